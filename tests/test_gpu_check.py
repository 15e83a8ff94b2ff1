"""Tests of tools/gpu_check.py: it runs its parts one by one, each within its time limit, and the
report contains their output."""
import fcntl
import json
import re
import sys
from pathlib import Path

import pytest

import simko
from runtime.cli import parse_config
from tests import workers
from tools import bench, gpu_check
from tools.gpu_check import Part, Report, run_all, run_part, summary


def python(program):
    return [sys.executable, "-c", program]


def test_every_line_is_in_the_report_while_the_part_runs(tmp_path):
    path, script = tmp_path / "report.md", tmp_path / "part.py"
    script.write_text(f"""
import time
print("first", flush=True)
end = time.monotonic() + 20
while "\\nfirst\\n" not in open({str(path)!r}).read():
    assert time.monotonic() < end
    time.sleep(0.05)
print("seen")
""")
    outcome = run_part(Part("x", "a part", 60, [sys.executable, str(script)]), Report(path), 60)
    assert (outcome.status, outcome.last) == ("ok", "seen")
    assert "first\nseen\n````\nok, " in path.read_text()


def test_a_part_that_fails_or_hangs_does_not_affect_the_next(tmp_path, capsys):
    parts = [Part("fails", "it raises", 60, python("raise SystemExit(3)")),
             Part("hangs", "it does not end", 5, python(
                 "print('begun', flush=True); import time; time.sleep(600)")),
             Part("bar", "it overwrites a line", 60, python(r"print('10 %\r20 %\r30 %')")),
             Part("tests", "nothing to do", 60, python("print('2 skipped in 1.0s')"))]
    outcomes = run_all(parts, Report(tmp_path / "report.md"), minutes=3)
    assert [outcome.status for outcome in outcomes] == [
        "failed with status 3", "cut off after 5 s", "ok", "skipped"]
    assert [outcome.last for outcome in outcomes] == ["", "begun", "30 %", "2 skipped in 1.0s"]
    assert "30 %" in (report := (tmp_path / "report.md").read_text())
    assert "20 %\n" not in report  # only the last state of a progress bar
    rows = summary(outcomes)
    assert rows[-3].startswith("| hangs | it does not end | cut off after 5 s | ")
    assert rows[-3].endswith(" | begun |")


def test_processes_that_a_part_started_end_with_it(tmp_path):
    """The inner process holds a lock. If the lock is free, the process has ended."""
    held = tmp_path / "held"
    inner = (f"import fcntl, time; file = open({str(held)!r}, 'w'); "
             "fcntl.flock(file, fcntl.LOCK_EX); "
             "print('locked', flush=True); time.sleep(600)")
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    outcome = run_part(Part("x", "", 60, python(program)), Report(tmp_path / "report.md"), 5)
    assert (outcome.status, outcome.last) == ("cut off after 5 s", "locked")
    with held.open() as file:
        # This raises a BlockingIOError if the lock is still held.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_report_is_appended_to_or_refused(tmp_path):
    path = tmp_path / "report.md"
    for word in ("one", "two"):
        Report(path).write(word)
    assert path.read_text() == "one\ntwo\n"
    with pytest.raises(SystemExit, match="--report .* cannot be written"):
        Report(tmp_path)


def test_parts_are_not_started_when_the_time_is_up(tmp_path):
    part = Part("x", "a part", 60, python("print('it ran')"))
    outcome, = run_all([part], Report(tmp_path / "report.md"), minutes=0.01)
    assert outcome.status == "not started: no time left"
    assert "it ran" not in (tmp_path / "report.md").read_text()


def test_dry_run(tmp_path):
    path = tmp_path / "report.md"
    printed = workers.run(workers.python(
        "-m", "tools.gpu_check", "--only", "d", "--report", path))
    text = path.read_text()
    assert text == printed
    row, = (line.split(" | ") for line in text.split("## Summary")[1].splitlines()[4:])
    assert (row[0], row[2]) == ("| d", "ok")
    assert "3 passed" in row[4]
    assert "- torch " in text and "python -m tools.gpu_check --only d" in text


def test_the_training_part_has_settings_of_simko(tmp_path):
    command = gpu_check.train_part(tmp_path, tmp_path).command
    _, cfg = parse_config(command[command.index("simko.py") + 1:], simko.Config)
    assert (cfg.model, cfg.steps) == (str(tmp_path), 20)
    row = json.loads(Path(cfg.train_data).read_text().splitlines()[0])
    *examples, (a, b) = [
        list(map(int, re.findall(r"\d+", line))) for line in row["problem"].splitlines()]
    assert len(examples) == 3 and all(x + y == result for x, y, result in examples)
    assert int(row["answer"]) == a + b


def test_every_check_belongs_to_a_part_and_speed_comes_last(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(gpu_check, "run_all", lambda parts, *_: seen.extend(parts) or [])
    (tmp_path / "config.json").touch()
    gpu_check.main(["--model", str(tmp_path), "--report", str(tmp_path / "report.md")])
    names = [part.name for part in seen]
    assert names == [*gpu_check.TESTS, "train", *gpu_check.BENCHMARKS]
    text = Path(workers.ROOT, "tests", "test_gpu.py").read_text()
    assert set(re.findall(r"^def test_([a-z])_", text, re.M)) == set(gpu_check.TESTS)


@pytest.mark.parametrize("name", gpu_check.BENCHMARKS)
def test_each_benchmark_has_options_of_bench(name, monkeypatch, capsys):
    nothing = {"rate": 1.0, "seconds": {}, "profiles": {}, "out of memory": []}
    monkeypatch.setattr(bench, "measure_what_fits", lambda *_: nothing)
    monkeypatch.setattr(bench, "afresh", lambda *_: {(32, 8): 1.0})
    command = gpu_check.bench_part(name).command
    bench.main(command[command.index("tools.bench") + 1:])
    assert "| --- |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["--minutes", "0"], "--minutes 0.0: must be above 0"),
    (["--model", "nowhere"], "--model nowhere has no config.json: name the folder of a model"),
    (["--only", "train"], "--only train needs --model"),
    (["--only", "z"], "invalid choice: 'z'")])
def test_impossible_options_are_refused_before_anything_runs(
        arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        gpu_check.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
