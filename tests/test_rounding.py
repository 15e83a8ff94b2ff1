"""Tests of tools/rounding.py."""
import itertools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from runtime.packing import micro_batches
from simko import entropy_threshold
from tests.conftest import CPU, config, load_samples, plain_logits, plain_model
from tests.test_bench import tables
from tools import rounding


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
    cfg, samples = config(folder, K=3), load_samples(bases[False])
    found = rounding.measured(cfg, samples, CPU, torch.float32)
    model, want = plain_model(folder), []
    for sample in itertools.chain(*micro_batches(samples, cfg.micro_batch_tokens)):
        log_pi = plain_logits(model, sample).log_softmax(-1).detach()
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
    found = rounding.measured(config(folder, K=4), samples, CPU, torch.float32)
    assert found["tie_K"].equal(equal[:, 3])


def test_gradients_are_those_of_both_methods(bases, group):
    cfg, samples = config(bases[False]), load_samples(bases[False])
    found = rounding.measured(cfg, samples, CPU, torch.float32)
    off = config(bases[False], alpha=0.0, lambda_top1=1.0)
    same = rounding.measured(off, samples, CPU, torch.float32)
    assert same["simko"].equal(same["grpo"])
    assert same["grpo"].equal(found["grpo"])
    assert rounding.norm(found["simko"] - found["grpo"]) > 0.01 * rounding.norm(found["grpo"])
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
    }
    assert [*rounding.own_rows(exact).values()] == [80, 25, 0, 50, 40]
    rounded = exact | {
        "logp": exact["logp"] + torch.tensor([0.5, -0.5, 0, 0, 1.5]),
        "gate": torch.tensor([True, True, True, False, True]),
        "is_top1": torch.tensor([False, True, False, False, False]),
        "grpo": torch.tensor([3.0, 5.0]),
        "simko": torch.tensor([3.0, 6.0]),
    }
    assert [*rounding.differences(exact, rounded).values()] == [0.5, 25, 50, 20, 0, 50]


def test_a_table_of_both_dtypes(data, capsys):
    rounding.main([
        "--model", str(data / "base"), "--train-data", str(data / "test.jsonl"),
        "--task", "countdown", "--prompt-template", "raw", "--max-prompt-length", "20",
        "--max-completion-length", "9", "--batch-size", "2", "--num-generations", "4",
        "--mini-batch-size", "2", "--alpha", "0.5"])
    printed = capsys.readouterr().out
    assert "8 responses, " in printed
    own, against = tables(printed)
    by_row = {row.pop(""): row for row in own}
    assert all(row.keys() == {"float32", "bfloat16"} for row in by_row.values())
    assert float(by_row["gated tokens"]["float32"]) > 0
    assert len(against) == 6
    assert all(math.isfinite(float(row[""])) for row in against)


def test_a_model_must_be_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        rounding.main([])
    assert "name a model and problems with --model and --train-data" in capsys.readouterr().err
