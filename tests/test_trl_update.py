"""Tests of tools/trl_update.py. The comparison itself needs an environment with TRL and this
project's packages, whose Python SIMKO_TRL_PYTHON names."""
import importlib.util
import os
import subprocess

import pytest

from tests.test_bench import tables
from tests.workers import ROOT
from tools import trl_update


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
    assert len({len(s.response_ids) for s in samples}) > 5
    assert len({len(s.prompt_ids) for s in samples}) > 1
