"""Tests of the laptop study: the choice of settings in tools/study.py, the statistics of
tools/results.py, and whether docs/results.md shows the tables that it prints."""
import json
import re
from unittest import mock

import pandas as pd
import pytest

from tests import workers
from tests.conftest import write_rows
from tools import results, study


def write_tune(folder):
    """Writes a few rows in the format of stage tune. GRPO's mean is highest for rate 2, step
    100."""
    found = [
        ("grpo", 1, 0, (0.90, 1.00)),
        ("grpo", 1, 100, (0.50, 0.60)),
        ("grpo", 2, 100, (0.40, 0.72)),
        ("grpo", 2, 200, (0.55, 0.56)),
        ("psr", 1, 100, (0.10, 0.20)),
    ]
    rows = []
    for method, rate, step, values in found:
        rows.append({
            "run": f"{method} learning_rate={rate}",
            "method": method,
            "settings": {"learning_rate": rate},
            "seed": 0,
            "step": step,
            "pass": dict(zip("12", values)),
        })
    write_rows(folder / "tune.jsonl", rows)


def test_settings_are_chosen_by_the_mean_over_k_and_never_at_step_0(tmp_path):
    write_tune(tmp_path)
    rows = study.read("tune", tmp_path)
    assert rows[[1, 2]].iloc[0].tolist() == [90, 100]  # pass@K in %
    assert study.choose(rows) == {
        "grpo": ({"learning_rate": 2}, 100),
        "psr": ({"learning_rate": 1}, 100),
    }


def test_the_name_of_a_run_does_not_depend_on_the_order_of_its_settings():
    for settings in ({"q": 0.5, "K": 3, "alpha": 0.05}, {"alpha": 0.05, "K": 3, "q": 0.5}):
        assert study.run_name("simko", settings) == "simko K=3 alpha=0.05 q=0.5"


def test_nothing_is_chosen_before_all_settings_were_tried(tmp_path, monkeypatch):
    write_tune(tmp_path)
    monkeypatch.setattr(study, "read", lambda name, read=study.read: read(name, tmp_path))
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="main needs the results of all runs of tune"):
        study.main_stage()
    assert [path.name for path in tmp_path.iterdir()] == ["tune.jsonl"]


def test_rows_of_a_study_are_read_or_named(tmp_path):
    assert study.read("tune", tmp_path).empty  # the study has not started
    write_tune(tmp_path)
    path, once = tmp_path / "tune.jsonl", study.read("tune", tmp_path)
    path.write_text(2 * path.read_text())
    twice = study.read("tune", tmp_path)
    assert twice.drop(columns="id").equals(once.drop(columns="id")) and len(once) == 5
    write_tune(tmp_path)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(SystemExit, match="tune.jsonl, line 5 cannot be read"):
        study.read("tune", tmp_path)
    write_rows(path, [{"run": "grpo", "method": "grpo", "seed": 0, "pass": [0.5]}])
    with pytest.raises(SystemExit, match="tune.jsonl, line 1 was written by another version"):
        study.read("tune", tmp_path)
    with pytest.raises(SystemExit, match="chosen.json cannot be read .*tools.study tune main"):
        study.comparisons(tmp_path)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Returns the list of runs that simko.py is asked for in a study of one job. Instead of
    training, they write what simko.py would."""
    asked = []

    def simko(command, job, folder, log, **flags):
        asked.append((command, flags.get("steps", 0), flags.get("eval_temperature", 1.0)))
        steps = [0, flags["steps"]] if command == "train" else []
        run = flags["output_dir"]
        for path in [folder] + [run / f"eval_{step:06d}" for step in steps]:
            path.mkdir(parents=True, exist_ok=True)
            entry = {"set": "test", "n": 4, "temperature": asked[-1][2], "pass": {"1": 0.5},
                     "correct": {"a": 1, "b": 3}}
            (path / "eval.json").write_text(json.dumps({"sets": {"test": entry}}))
        if command == "train":
            assert job.settings.items() <= flags.items()
            (run / "checkpoints").mkdir(exist_ok=True)
            write_rows(run / "metrics.jsonl", [
                {"step": step, "reward": 0.5, "entropy": 1.0, "loss": None}
                for step in range(1, flags["steps"] + 1)])

    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study, "simko", simko)
    monkeypatch.setattr(study, "make_base", lambda job: None)
    monkeypatch.setattr(study, "read", lambda name, read=study.read: read(name, study.RESULTS))
    monkeypatch.setattr("sys.argv", ["study.py", "short", "--jobs", "1"])
    job = study.Job("grpo", {"learning_rate": 1e-4}, 3, 50, 50, cool=25)
    monkeypatch.setitem(study.STAGES, "short", lambda: [job])
    return asked


def test_the_runs_of_a_study_see_no_gpu(tmp_path, monkeypatch):
    """Their rows would be in bfloat16, beside docs/laptop's in float32."""
    seen, run = [], study.subprocess.run

    def start(words, **options):
        if "train" not in words:
            return run(words, **options)
        seen.append(options["env"]["CUDA_VISIBLE_DEVICES"])
        (tmp_path / "eval.json").touch()
        return mock.Mock(returncode=0)

    monkeypatch.setattr(study.subprocess, "run", start)
    job = study.Job("grpo", {"learning_rate": 1e-4}, 3, 50, 50)
    study.simko("train", job, tmp_path, tmp_path / "log")
    assert seen == [""]


def test_a_run_becomes_rows_and_is_not_done_twice(runs, tmp_path, capsys):
    study.main()
    assert runs == [("train", 25, 1.0), ("eval", 0, 0.6), ("eval", 0, 0.6), ("train", 50, 1.0)]
    about = {"run": "grpo learning_rate=0.0001", "method": "grpo", "seed": 3}
    for name, steps, temperature in (("cool", [0, 25], 0.6), ("short", [0, 25, 50], 1.0)):
        rows = study.read(name)
        assert rows.step.tolist() == steps
        assert set(rows.temperature) == {temperature} and set(rows[1]) == {50}
        assert rows.correct.tolist() == [[1, 3]] * len(steps)
        assert rows[[*about]].drop_duplicates().to_dict("records") == [about]
    (curve,) = study.read("curves").to_dict("records")
    assert (curve["stage"], curve["steps"], curve["reward"]) == ("short", [25, 50], [0.5, 0.5])
    assert not list((tmp_path / "runs").glob("*/checkpoints"))
    study.main()
    assert len(runs) == 4
    assert "short: 1 runs are done, 0 are left" in capsys.readouterr().out


def test_a_curve_consists_of_means_over_25_steps(tmp_path):
    log = [{"step": step, "reward": step, "Lambda_1": -step, "entropy": 2 * step,
            "gate_share": 0.5, "loss": 1.0} for step in range(1, 61)]
    write_rows(tmp_path / "metrics.jsonl", log)
    assert study.curve(tmp_path) == {
        "steps": [25, 50, 60],
        "reward": [13, 38, 55.5],
        "Lambda_1": [-13, -38, -55.5],
        "entropy": [26, 76, 111],
        "gate_share": [0.5, 0.5, 0.5],
    }


@pytest.mark.parametrize("target, expected", [
    (25, 100), (30, 95), (35, 90), (40, 80), (44, 65), (50, 70), (52, None), (20, None)])
def test_a_path_is_met_where_it_first_reaches_pass_at_1(target, expected):
    path = pd.DataFrame(
        {1: [25, 35, 40, 38, 50], 16: [100, 90, 80, 60, 70]},
        index=[0, 50, 100, 150, 200])
    for rows in (path, path[::-1]):  # the order of the rows makes no difference
        found = results.at_equal_pass1(rows, target)
        if expected is None:
            assert found is None
        else:
            assert found[16] == expected


def test_the_page_shows_what_the_rows_say():
    printed = workers.run(workers.python("-m", "tools.results", "docs/laptop")).strip()
    page = (workers.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    parts = printed.split("\n\n")  # title, table, title, table, ...
    tables = ["\n\n".join(parts[i:i + 2]) for i in range(0, len(parts), 2)]
    assert len(tables) > 8
    assert [part for part in tables if part not in page] == []
    # The page shows no outdated table.
    shown = re.findall(r"^\|---", page, re.MULTILINE)
    assert len(shown) == len(tables)


@pytest.mark.parametrize("missing", ["tune", "main", "curves"])
def test_a_study_that_is_not_finished_is_one_line(missing, tmp_path, monkeypatch):
    for path in study.RESULTS.glob("*.json*"):
        if path.stem != missing:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr("sys.argv", ["results.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"/{missing}.jsonl has no rows: finish python -m"):
        results.main()


def test_a_study_without_its_pass_at_k_runs_has_all_other_tables(tmp_path, monkeypatch, capsys):
    for path in study.RESULTS.glob("*.json*"):
        (tmp_path / path.name).symlink_to(path)
    rows = (study.RESULTS / "main.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "main.jsonl").unlink()
    others = [row for row in rows if json.loads(row)["method"] != "pass-at-k"]
    (tmp_path / "main.jsonl").write_text("".join(others))
    monkeypatch.setattr("sys.argv", ["results.py", str(tmp_path)])
    results.main()
    printed = capsys.readouterr().out
    assert "**SimKO - GRPO, percentage points" in printed
    assert "**Pass@k training" not in printed


def test_a_row_without_a_comparison_has_all_cells(monkeypatch):
    """No run of GRPO reached SimKO's pass@1."""
    monkeypatch.setattr(results, "reached", lambda rows, run, targets: pd.DataFrame())
    last = pd.DataFrame({k: [50.0, 51.0] for k in results.KS}, index=[0, 1])
    runs = {"grpo": ("a", 500), "simko": ("b", 500)}
    (row,) = results.equal_pass1("as chosen", pd.DataFrame(), runs, last)
    assert row[1:] == ["0 by construction", *["–"] * (len(results.KS) - 1)]


def test_the_chosen_settings_are_those_of_the_rows():
    chosen = json.loads((study.RESULTS / "chosen.json").read_text())
    assert chosen == json.loads(json.dumps(study.choose(study.read("tune"))))
