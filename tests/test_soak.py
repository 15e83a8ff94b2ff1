"""Tests of tools/soak.py: a difference between the two runs is found and named, and the memory
that it prints is that of the clean run."""
import json
import math
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest

from tests.conftest import write_rows
from tools import measuring, soak


def log_row(measured):
    """Returns a row of a log whose times and memory have this value."""
    names = "seconds_rollout", "tokens_per_s_rollout", "peak_memory_gib"
    return {"step": 1, "loss": 0.5} | dict.fromkeys(names, measured)


@pytest.fixture
def runs(tmp_path):
    """Returns two equal run folders."""
    one, other = tmp_path / "one", tmp_path / "other"
    for name in ("hf/model.safetensors", "eval_000002/test.jsonl",
                 "checkpoints/step_000002/__0_0.distcp"):
        (one / name).parent.mkdir(parents=True)
        (one / name).write_text(name)
    write_rows(one / "metrics.jsonl", [log_row(1.0)])
    shutil.copytree(one, other)
    return one, other


def test_runs_that_differ_in_their_times_alone_are_the_same(runs):
    one, other = runs
    write_rows(one / "metrics.jsonl", [log_row(2.0)])
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
    write_rows(one / "metrics.jsonl", [log_row(1.0) | {"loss": 0.25}])
    assert soak.differences(one, other) == ["metrics.jsonl"]


def test_the_memory_of_a_process_is_in_mib():
    this = os.getpid()
    ours = soak.resident([this])
    assert ours == {this: pytest.approx(1024 * measuring.resident("VmRSS"), rel=0.2)}


@pytest.fixture
def quick(monkeypatch):
    """Replaces the verifier, and the two seconds between two measurements."""
    verifier = mock.Mock(idle=[])
    monkeypatch.setattr(soak.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(soak, "Verifier", lambda workers: nullcontext(verifier))
    return verifier


def test_a_run_ends_by_itself_or_is_killed(tmp_path, quick):
    quick.idle = [mock.Mock(pid=os.getpid())]
    command = [sys.executable, "-c", "import sys, time; time.sleep(float(sys.argv[1]))"]
    assert soak.run([*command, "60"], 0.3, quick, tmp_path) is None
    row = json.loads((tmp_path / "memory.jsonl").read_text().splitlines()[-1])
    assert row["run"] == "60"
    (worker,) = row["workers"]
    assert 0 < row["trainer"] < worker  # this process has loaded PyTorch
    assert soak.run([*command, "0"], 60, quick, tmp_path) == 0
    assert soak.run([*command, "no number"], 60, quick, tmp_path) == 1


def test_memory_is_shown_as_means_of_fifths_of_the_clean_run(tmp_path, capsys):
    rows = [{"run": "clean", "trainer": i * i, "workers": [i, 2 * i]} for i in range(15)]
    rows[0]["workers"] = None  # the workers had not started
    rows.append({"run": "killed", "trainer": 9999, "workers": [9999]})
    write_rows(tmp_path / "memory.jsonl", rows)
    soak.show_memory(tmp_path / "memory.jsonl")
    shown = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
    # Of the squares of 0 to 2, 3 to 5 and so on, and of twice 1 to 3, 4 to 6 and so on.
    assert shown == ["2 17 50 101 170", "4 10 16 22 27"]


@pytest.fixture
def soaked(tmp_path, monkeypatch, quick, capsys):
    """Returns a function that runs the program with runs of two steps, of which the second is
    killed as often as `kills` says and then has this loss. Returns status and last line."""
    def call(kills, loss, code=0):
        left = [None] * kills + [code]

        def run(command, patience, verifier, output):
            folder = Path(command[-1])
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_rows(output / "memory.jsonl", [{"run": "clean", "trainer": 1, "workers": [1]}])
            if folder.name == "clean":
                assert patience == math.inf
            else:
                assert 0 < patience < 40
                waits.append(patience)
                if (ended := left.pop(0)) != 0:
                    return ended
            own = loss if folder.name == "killed" else 0.5
            write_rows(folder / "metrics.jsonl", [{"step": 1, "loss": own}])
            (folder / "eval_000002").mkdir()
            (folder / "eval_000002" / "eval.json").touch()
            return 0

        waits = []
        monkeypatch.setattr(soak, "run", run)
        words = ["soak.py", "data", tmp_path / "soak", "--steps", 2]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as stop:
            soak.main()
        return stop.value.code, capsys.readouterr().out.splitlines()[-1], waits

    return call


def test_the_last_line_is_the_verdict(soaked):
    status, line, waits = soaked(kills=9, loss=0.5)
    assert (status, line) == (0, "2 steps, 9 kills: bit-identical")
    assert max(waits) > 20  # up to twice the mean
    assert soaked(kills=1, loss=0.25)[:2] == (1, "2 steps, 1 kills: DIFFERENT: metrics.jsonl")
    status, line, _ = soaked(kills=0, loss=0.5)
    assert "the run ended before it was killed" in status
    status, line, _ = soaked(kills=1, loss=0.5, code=3)
    assert "a run ended with status 3" in status
