"""Tests of tools/rounding.py."""
import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from runtime.packing import micro_batches
from simko import entropy_threshold
from tests.conftest import CPU, config, load_samples, plain_logits, plain_model
from tests.test_bench import tables
from tools import laptop, rounding

WORDS = str(len(laptop.vocabulary()))  # tokens in the vocabulary of data's model


@pytest.fixture
def with_ties(bases, tmp_path):
    """Returns a model whose head gives each token of even id the logit of the token after it."""
    model = AutoModelForCausalLM.from_pretrained(bases[False])
    with torch.no_grad():
        head = model.lm_head.weight
        head[0:-1:2] = head[1::2]
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("ties", [False, True])
def test_decisions_are_those_of_all_logits(bases, with_ties, group, ties):
    folder = with_ties if ties else bases[False]
    cfg, samples = config(folder, K=3, temperature=0.7), load_samples(bases[False])
    found = rounding.measured(cfg, samples, CPU, torch.float32)
    model, want = plain_model(folder), []
    for sample in itertools.chain(*micro_batches(samples, cfg.micro_batch_tokens)):
        log_pi = (plain_logits(model, sample) / 0.7).log_softmax(-1).detach()
        logp = log_pi.gather(1, torch.from_numpy(sample.response_ids)[:, None])[:, 0]
        entropy = -(log_pi.exp() * log_pi).sum(-1)
        gate = entropy > entropy_threshold(entropy, torch.tensor([len(entropy)]), cfg.q)
        is_top1 = (logp - log_pi.amax(-1)).abs() < 1e-9
        top = log_pi.topk(5).values
        equal = (top[:, :-1] - top[:, 1:]) < 1e-9
        want.append((logp, gate, is_top1, equal))
    logp, gate, is_top1, equal = map(torch.cat, zip(*want))
    torch.testing.assert_close(found["logp"].double(), logp, atol=1e-5, rtol=0)
    assert found["gate"].equal(gate)
    assert found["is_top1"].equal(is_top1)
    assert found["tie_top1"].equal(equal[:, 0])
    assert found["tie_K"].equal(equal[:, 2])
    assert found["tie_top1"].any() == found["tie_K"].any() == ties
    found = rounding.measured(replace(cfg, K=4), samples, CPU, torch.float32)
    assert found["tie_K"].equal(equal[:, 3])


def test_gradients_are_those_of_both_methods(bases, group):
    cfg, samples = config(bases[False]), load_samples(bases[False])
    found = rounding.measured(cfg, samples, CPU, torch.float32)
    off = config(bases[False], alpha=0.0, lambda_top1=1.0)
    same = rounding.measured(off, samples, CPU, torch.float32)
    assert same["simko"].equal(same["grpo"])
    assert same["grpo"].equal(found["grpo"])
    assert not same["part"].any()
    torch.testing.assert_close(found["part"], found["simko"] - found["grpo"], atol=1e-6, rtol=1e-4)
    assert rounding.relative(found["part"], found["grpo"]) > 1
    rounded = rounding.measured(cfg, samples, CPU, torch.bfloat16)
    apart = rounding.differences(found, rounded)["change of GRPO's gradient"]
    assert 0.1 < apart < 20
    assert set(rounding.differences(found, found).values()) == {0}


def test_shares_are_of_gated_tokens():
    gate = torch.tensor([True, True, True, True, False])
    exact = {
        "logp": torch.tensor([-1.0, -2, -3, -4, -5]),
        "gate": gate,
        "is_top1": torch.tensor([True, False, False, False, True]),
        "tie_top1": torch.tensor([False] * 5),
        "tie_K": torch.tensor([False, False, True, True, True]),
        "grpo": torch.tensor([3.0, 4.0]),
        "simko": torch.tensor([3.0, 6.0]),
        "part": torch.tensor([0.0, 2.0]),
    }
    assert [*rounding.own_rows(exact).values()] == [80, 25, 0, 50, 40]
    rounded = exact | {
        "logp": exact["logp"] + torch.tensor([0.5, -0.5, 0, 0, 1.5]),
        "gate": torch.tensor([True, True, True, False, True]),
        "is_top1": torch.tensor([False, True, False, False, False]),
        "grpo": torch.tensor([3.0, 5.0]),
        "simko": torch.tensor([3.0, 6.0]),
        "part": torch.tensor([1.0, 2.0]),
    }
    assert [*rounding.differences(exact, rounded).values()] == [0.5, 25, 50, 20, 0, 50]
    exact["part"] = torch.zeros(2)
    assert math.isnan(rounding.differences(exact, rounded)["change of SimKO's part"])


def test_a_table_of_both_dtypes(data, capsys, monkeypatch):
    calls, measured = [], rounding.measured

    def recorded(*arguments):
        calls.append((*arguments, measured(*arguments)))
        return calls[-1][-1]

    monkeypatch.setattr(rounding, "measured", recorded)
    rounding.main([
        "--model", str(data / "base"), "--train-data", str(data / "test.jsonl"),
        "--task", "countdown", "--prompt-template", "raw", "--max-prompt-length", "20",
        "--max-completion-length", "9", "--batch-size", "2", "--num-generations", "4",
        "--mini-batch-size", "2", "--alpha", "0.5", "--max-grad-norm", "0.001"])
    (cfg, samples, _, float32, exact), (_, _, _, bfloat16, rounded) = calls
    assert (float32, bfloat16) == (torch.float32, torch.bfloat16)
    assert (cfg.learning_rate, cfg.max_grad_norm, cfg.alpha) == (0, math.inf, 0.5)
    for group in (samples[:4], samples[4:]):
        assert sum(sample.advantage > 0 for sample in group) == 2
        assert sum(sample.advantage for sample in group) == pytest.approx(0, abs=1e-6)
        assert len({tuple(sample.prompt_ids) for sample in group}) == 1
    assert len({tuple(sample.response_ids) for sample in samples}) > 2
    tokens = sum(len(sample.response_ids) for sample in samples)
    assert max(len(sample.response_ids) for sample in samples) > 5

    printed = capsys.readouterr().out
    assert f"8 responses, {tokens} tokens" in printed
    own, against = tables(printed)
    short = partial(pytest.approx, rel=0.01)
    both = zip(rounding.own_rows(exact).items(), rounding.own_rows(rounded).values())
    assert own == [{"": name, "float32": short(number), "bfloat16": short(other)}
                   for (name, number), other in both]
    want = rounding.differences(exact, rounded)
    assert against == [{"bfloat16 against float32": name, "": short(number)}
                       for name, number in want.items()]
    assert want["change of GRPO's gradient"] > 0


@pytest.mark.parametrize("flags, environment, message", [
    (["--tau-scope", "batch"], {}, "--tau-scope batch is not measured"),
    (["--K", WORDS], {}, f"--K {WORDS} is the whole vocabulary"),
    ([], {"WORLD_SIZE": "2"}, "start it without torchrun")])
def test_what_is_not_measured_is_refused(data, monkeypatch, flags, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        rounding.main([
            "--model", str(data / "base"), "--train-data", str(data / "test.jsonl"),
            "--task", "countdown", "--prompt-template", "raw", "--max-prompt-length", "20",
            "--max-completion-length", "9", *flags])


def test_a_model_must_be_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        rounding.main([])
    assert "name a model and problems with --model and --train-data" in capsys.readouterr().err
