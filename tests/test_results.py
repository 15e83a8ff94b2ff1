"""The laptop study: what study.py chooses, results.py's statistics, docs/results.md against what it prints."""
import json
import re
import subprocess
import sys

import pytest

from tests.workers import ROOT
from tools import results, study


def test_settings_are_chosen_by_the_mean_over_k_and_never_at_step_0(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "rows", lambda name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()])
    found = [("grpo", 1, 0, (90, 100)), ("grpo", 1, 100, (50, 60)), ("grpo", 2, 100, (40, 72)),
             ("grpo", 2, 200, (55, 56)), ("psr", 1, 100, (10, 20))]
    (tmp_path / "tune.jsonl").write_text("".join(json.dumps({
        "run": f"{method} learning_rate={lr}", "method": method, "settings": {"lr": lr}, "step": step,
        "pass": dict(zip(("1", "2"), values))}) + "\n" for method, lr, step, values in found))
    assert study.choose() == {"grpo": ({"lr": 2}, 100), "psr": ({"lr": 1}, 100)}
    with pytest.raises(SystemExit, match="main needs the settings that tune finds"):
        study.main_stage()  # most of tune has not run
    assert [path.name for path in tmp_path.iterdir()] == ["tune.jsonl"]


def test_a_difference_has_students_interval():
    assert results.difference([1, 2, 3, 4, 5]) == "+3.0 [+1.0, +5.0] 5 of 5"  # 3 ± 2.776 * sqrt(2.5 / 5)
    assert results.difference([-1, 0, 4], 2) == "+1.00 [-5.57, +7.57] 1 of 3"  # 1 ± 4.303 * sqrt(7 / 3)
    assert results.difference([2]) == "+2.0" and results.with_error([2]) == "2.0"
    assert results.with_error([1, 2, 3, 4, 5], 2) == "3.00 ± 0.71"


@pytest.mark.parametrize("target, expected", [(25, 100), (30, 95), (35, 90), (40, 80), (44, 65), (50, 70), (52, None),
                                              (20, None)])
def test_a_path_is_met_where_it_first_reaches_pass_at_1(target, expected):
    path = {0: {1: 25, 16: 100}, 50: {1: 35, 16: 90}, 100: {1: 40, 16: 80}, 150: {1: 38, 16: 60}, 200: {1: 50, 16: 70}}
    found = results.at_equal_pass1(path, target)
    assert (found and found[16]) == expected


def test_the_page_shows_what_the_rows_say():
    command = [sys.executable, ROOT / "tools" / "results.py", ROOT / "docs" / "laptop"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    parts = printed.split("\n\n")  # title, table, title, table, ...
    tables = ["\n\n".join(parts[i:i + 2]) for i in range(0, len(parts), 2)]
    assert len(tables) > 8 and [part for part in tables if part not in page] == []
    assert len(re.findall(r"^\|---", page, re.MULTILINE)) == len(tables)  # no table of an earlier day is left
