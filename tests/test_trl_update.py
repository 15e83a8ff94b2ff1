"""Tests of tools/trl_update.py. The comparison itself needs an environment with TRL and this
project's packages, whose Python SIMKO_TRL_PYTHON names."""
import importlib.util
import math
import os
import subprocess

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
    same = {"grpo", "grpo, T 0.7, KL, split", "dapo", "dapo, T 0.7, KL, split", "dapo; bnpo"}
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
