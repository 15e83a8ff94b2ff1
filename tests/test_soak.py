"""Tests of tools/soak.py: a difference between the two runs is found and named."""
import shutil

import pytest

from tests.conftest import write_rows
from tools import soak


@pytest.fixture
def runs(tmp_path):
    """Returns two equal run folders."""
    one, other = tmp_path / "one", tmp_path / "other"
    for name in ("hf/model.safetensors", "eval_000002/test.jsonl",
                 "checkpoints/step_000002/__0_0.distcp"):
        (one / name).parent.mkdir(parents=True)
        (one / name).write_text(name)
    write_rows(one / "metrics.jsonl", [{"step": 1, "loss": 0.5, "seconds_rollout": 1.0}])
    shutil.copytree(one, other)
    return one, other


def test_runs_that_differ_in_their_times_alone_are_the_same(runs):
    one, other = runs
    write_rows(one / "metrics.jsonl", [{"step": 1, "loss": 0.5, "seconds_rollout": 2.0}])
    assert soak.differences(one, other) == []


@pytest.mark.parametrize("name", [
    "hf/model.safetensors", "eval_000002/test.jsonl", "checkpoints/step_000002/__0_0.distcp"])
def test_a_file_that_differs_or_is_missing_is_named(runs, name):
    one, other = runs
    (one / name).write_text(name.upper())
    assert soak.differences(one, other) == [name]
    (one / name).unlink()
    assert soak.differences(one, other) == [name]


def test_a_log_that_differs_is_named(runs):
    one, other = runs
    write_rows(one / "metrics.jsonl", [{"step": 1, "loss": 0.25, "seconds_rollout": 1.0}])
    assert soak.differences(one, other) == ["metrics.jsonl"]
