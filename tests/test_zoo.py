"""Tests of the verdicts that tools/zoo.py prints, with a stand-in for the runs of simko.py."""
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import write_rows
from tools import zoo


@pytest.fixture
def trained(monkeypatch):
    """Returns a function that sets what the next runs do. Each is a list of rows of the log, or
    the errors with which the run ends. The function's result lists the runs' commands."""
    monkeypatch.setattr(zoo, "save", lambda name, folder: folder)

    def give(*ends):
        rest, commands = iter(ends), []

        def run(command, **_):
            commands.append(" ".join(command))
            end = next(rest)
            if isinstance(end, str):
                folder = command[command.index("--model") + 1]
                return SimpleNamespace(returncode=1, stdout="", stderr=end.format(model=folder))
            folder = Path(command[command.index("--output-dir") + 1])
            folder.mkdir()
            write_rows(folder / "metrics.jsonl", end)
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return give


def steps(*pairs):
    return [{"grad_norm": norm, "logp_gap": gap} for norm, gap in pairs]


def test_the_gap_is_the_largest_of_all_steps(trained):
    trained(steps((0.5, 1e-6), (0.5, 2e-3), (0.5, 1e-5)))
    assert zoo.outcome("llama", "hf") == "right, gap 2e-03"


def test_a_step_without_a_gradient_tried_nothing(trained):
    trained(steps((0.5, 1e-6), (0.0, 1e-6)))
    assert zoo.outcome("llama", "hf") == "not tried, because a step had no gradient"


def test_a_refused_update_is_not_right(trained):
    trained(steps((0.5, 1e-6), (None, 1e-6)))
    assert zoo.outcome("llama", "hf") == "wrong: a step's gradient was not finite"


@pytest.mark.parametrize("printed, shown", [
    (
        "simko.py: error: --model {model} has a | in its name: choose another\n",
        r"--model MODEL has a \| in its name: choose another",
    ),
    ("Traceback\nValueError: a\nOSError: b\n", "OSError: b"),
    ("Killed\n", "ended with status 1"),
])
def test_a_run_that_fails_is_shown_by_its_last_error(trained, printed, shown):
    trained(printed)
    assert zoo.outcome("llama", "hf") == shown


def test_a_row_has_a_cell_for_each_backend(trained, capsys):
    right, advice = steps((0.5, 1e-6)), "simko.py: error: use --micro-batch-tokens 1\n"
    commands = trained(right, advice, steps((0.5, 1e-3)), right, "OSError: b\n")
    zoo.main(["qwen3", "llama", "--rollout", "vllm", "hf"])
    assert capsys.readouterr().out.splitlines() == [
        "| model | --rollout vllm | --rollout hf |",
        "| --- | --- | --- |",
        "| qwen3 | right, gap 1e-06 | with --micro-batch-tokens 1: right, gap 1e-03 |",
        "| llama | right, gap 1e-06 | OSError: b |",
    ]
    backends = [re.search(r"--rollout (\w+)", command)[1] for command in commands]
    assert backends == ["vllm", "hf", "hf", "vllm", "hf"]
    alone = [command.endswith(" --micro-batch-tokens 1") for command in commands]
    assert alone == [False, False, True, False, False]
