"""Tests of tools/trl_update.py and tools/trl_trainer.py. The comparison itself needs an environment
with TRL and this project's packages, whose Python SIMKO_TRL_PYTHON names."""
import importlib.util
import inspect
import math
import os
import runpy
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import simko
from tests.test_bench import tables
from tests.workers import ROOT
from tools import trl_update
from tools.laptop import make_tokenizer


@pytest.mark.skipif("SIMKO_TRL_PYTHON" not in os.environ, reason="needs TRL")
def test_an_update_is_trls_but_for_named_differences():
    done = subprocess.run(
        [os.environ["SIMKO_TRL_PYTHON"], "-m", "tools.trl_update"],
        cwd=ROOT, capture_output=True, text=True, check=True)
    rows, = tables(done.stdout)
    gradient = {row["ours; TRL's"]: row["gradient"] for row in rows}
    same = {"grpo", "grpo, T 0.7, KL, split", "dapo", "dapo, T 0.7, KL, split", "dapo; bnpo",
            "simko", "simko, T 0.7, KL, split"}
    assert gradient.keys() == trl_update.CASES.keys()
    for case, distance in gradient.items():
        assert distance < 1e-5 if case in same else distance > 0.01


def test_a_python_without_trl_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        trl_update.main([])
    assert stop.value.code == 2
    assert "this Python has no TRL" in capsys.readouterr().err


def test_responses_differ_in_length_and_some_are_truncated(tmp_path):
    samples = trl_update.make_samples(tmp_path)
    assert len(samples) == len(trl_update.REWARDS) * trl_update.GROUP
    assert 5 < sum(s.truncated for s in samples) < 12
    end = make_tokenizer().eos_token_id
    assert [s.truncated for s in samples] == [s.response_ids[-1] != end for s in samples]
    assert len({len(s.response_ids) for s in samples}) > 5
    assert len({len(s.prompt_ids) for s in samples}) > 1


@pytest.mark.parametrize("part", [
    {"alpha": 0.2, "lambda_top1": 1.0}, {"alpha": 0.0, "lambda_top1": 1.5}])
def test_each_part_of_simko_changes_the_gradient_of_the_samples(tmp_path, part):
    samples = trl_update.make_samples(tmp_path)
    advantages = torch.tensor([s.reward for s in samples]) - 0.5
    gradients = []
    for method in ("grpo", "simko"):
        cfg = simko.Config(
            model=str(tmp_path), micro_batch_tokens=64, method=method, q=0.5,
            **trl_update.SHARED, **part)
        gradients.append(trl_update.our_update(cfg, samples, advantages)["gradient"])
    grpo, ours = gradients
    assert (ours - grpo).norm() > 0.01 * grpo.norm()


def test_a_cell_says_how_far_two_values_are_apart():
    ours, trl = torch.tensor([3.0, -4.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    for column in ("advantages", "log-probs", "entropies"):
        assert trl_update.apart(column, {column: ours}, {column: trl}) == 4
    length = math.sqrt(3**2 + 4**2 + 2**2)
    assert trl_update.apart("step", {"step": ours}, {"step": trl}) == pytest.approx(length / 2)
    assert trl_update.apart("KL", {"KL": 0.3}, {"KL": 0.2}) == pytest.approx(0.5)
    assert trl_update.apart("KL", {"KL": 0.0}, {"KL": 0.0}) == "-"


def test_our_side_reports_one_update_of_all_samples(tmp_path):
    samples = trl_update.make_samples(tmp_path)
    advantages = torch.tensor([s.reward for s in samples]) - 0.5
    settings = trl_update.SHARED | {"max_grad_norm": 1e-3}
    cfg = simko.Config(model=str(tmp_path), micro_batch_tokens=64, beta=0.04, **settings)
    ours = trl_update.our_update(cfg, samples, advantages)
    tokens = sum(len(s.response_ids) for s in samples)
    assert len(ours["log-probs"]) == len(ours["entropies"]) == tokens
    assert ours["log-probs"].max() <= 0 < ours["entropies"].min()
    assert 0 < ours["clip"] < 1
    # In exp(d) - d - 1 = d² / 2 + ..., d is the difference to the reference policy.
    apart = torch.cat([s.ref_logp for s in samples]) - ours["log-probs"]
    assert ours["KL"] == pytest.approx((apart.exp() - apart - 1).mean().item())
    # The gradient is the one before clipping, and AdamW's first step goes against it.
    assert ours["gradient"].norm().item() == pytest.approx(ours["norm"], rel=1e-3)
    assert torch.dot(ours["gradient"], ours["step"]) < 0


# ------------------------------------------------------------------------------- tools/trl_trainer
class StandIn:
    """What GRPOTrainer of TRL 1.16 does around SimKOTrainer: its place in the loss, and the old
    policy that it assumes where none is given."""
    temperature = 0.7

    def __init__(self, tools=(), **settings):
        usual = {
            "loss_type": "dapo", "importance_sampling_level": "token", "beta": 0.0,
            "off_policy_mask_threshold": None, "use_bias_correction_kl": True}
        self.args, self.tools = SimpleNamespace(**usual | settings), tools

    def _get_per_token_logps_and_entropies(self, model, ids, attention, n, **rest):
        return "TRL's own", ids, rest

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        n = inputs["completion_ids"].shape[1]
        logp, _, _ = self._get_per_token_logps_and_entropies(
            model, ids, mask, n, compute_entropy=True)
        old_logp = inputs.get("old_per_token_logps")
        gamma = (logp - (logp.detach() if old_logp is None else old_logp)).exp()
        loss = simko.clipped_loss(gamma, inputs["advantages"][:, None], 0.2, 0.2)
        return (loss * inputs["completion_mask"]).sum()


class Bigram(torch.nn.Module):
    """A model whose logits depend on the last token alone, so that padding cannot change them."""
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False)

    def forward(self, input_ids, attention_mask, logits_to_keep):
        return SimpleNamespace(logits=self.head(self.body(input_ids))[:, -logits_to_keep:])


@pytest.fixture
def trainer_class(monkeypatch):
    """Returns SimKOTrainer on top of StandIn. Of simko.py it finds the source of simko_ratio
    alone, since its help says that this function can be copied."""
    alone = {"torch": torch}
    exec(inspect.getsource(simko.simko_ratio), alone)
    monkeypatch.setitem(sys.modules, "simko", SimpleNamespace(simko_ratio=alone["simko_ratio"]))
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(GRPOTrainer=StandIn))
    return runpy.run_path(str(ROOT / "tools" / "trl_trainer.py"))["SimKOTrainer"]


@pytest.mark.parametrize("wrong", [
    {"loss_type": "cispo"}, {"importance_sampling_level": "sequence"},
    {"off_policy_mask_threshold": 0.1}, {"beta": 0.1}, {"tools": ["search"]}])
def test_the_trainer_for_trl_refuses_what_would_silently_be_another_method(trainer_class, wrong):
    (name,) = wrong
    named = "use_bias_correction_kl=True" if name == "beta" else name
    with pytest.raises(ValueError, match=f"this {named}:"):
        trainer_class(**wrong)
    trainer_class(beta=0.1, use_bias_correction_kl=False, loss_type="grpo")


@pytest.mark.parametrize("given, message", [
    ({"tool_mask": torch.ones(1, 2)}, "responses that the model wrote alone"),
    ({}, "does not pass on pixel_values")])
def test_inputs_that_the_trainer_for_trl_cannot_use_are_refused(trainer_class, given, message):
    trainer = trainer_class()
    trainer._get_per_token_logps_and_entropies = partial(
        trainer._get_per_token_logps_and_entropies, pixel_values=torch.ones(2))
    ones = torch.ones(1, 2).long()
    inputs = dict.fromkeys(
        ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), ones)
    with pytest.raises(ValueError, match=message):
        trainer._compute_loss(None, inputs | given)
    assert trainer.batch is None  # or else TRL's next log-probs would be SimKO's


@pytest.mark.parametrize("on_policy", [True, False])
def test_the_trainer_for_trl_has_the_gradient_of_simko(trainer_class, on_policy):
    trainer, defaults = trainer_class(), simko.Config()
    for name in ("alpha", "K", "q", "lambda_top1"):
        assert getattr(trainer, name) == getattr(defaults, name)
    trainer.alpha, trainer.q, trainer.lambda_top1 = 0.3, 0.5, 1.4

    torch.manual_seed(0)
    lengths = torch.tensor([17, 30, 0, 9, 1, 30])  # TRL can mask a truncated response as a whole
    mask = torch.arange(30) < lengths[:, None]
    inputs = {
        "prompt_ids": torch.randint(7, (6, 3)),
        "prompt_mask": torch.ones(6, 3),
        "completion_ids": torch.randint(7, (6, 30)).masked_fill(~mask, 7),
        "completion_mask": mask.int(),
        "advantages": torch.tensor([-0.6, -1.0, 1.0, -0.5, -1.0, 0.7]),
    }
    model = Bigram()
    with torch.no_grad():
        model.body.weight[7] *= 1000  # after padding, the model is certain, and wrong

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    logp, topk_logp, entropy, is_top1 = simko.token_statistics(
        model.body(ids[:, 2:-1][mask]), model.head.weight, inputs["completion_ids"][mask], 3, 0.7)
    A = inputs["advantages"].repeat_interleave(lengths)
    old_logp = logp.detach()
    if not on_policy:
        old_logp = old_logp + 0.2 * torch.randn(len(logp))
        inputs["old_per_token_logps"] = torch.zeros(6, 30).masked_scatter(mask, old_logp)
    gate = entropy > simko.entropy_threshold(entropy, lengths[lengths > 0], 0.5)
    assert (gate & is_top1 & (A < 0)).any()  # lambda acts
    gamma = simko.simko_ratio(logp, old_logp, topk_logp, is_top1, A, gate, 0.3, 1.4)
    loss = simko.clipped_loss(gamma, A, 0.2, 0.2).sum()
    want = torch.autograd.grad(loss, list(model.parameters()))

    before = dict(inputs)
    got = trainer._compute_loss(model, inputs)
    torch.testing.assert_close(got, loss)
    torch.testing.assert_close(torch.autograd.grad(got, list(model.parameters())), want)
    # A second update finds the batch as it was, and TRL computes the old policy's log-probs.
    assert inputs == before
    passed = trainer._get_per_token_logps_and_entropies(model, "ids", "attention", 30, more=1)
    assert passed == ("TRL's own", "ids", {"more": 1})
