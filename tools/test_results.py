"""tools/results.py: its statistics, and docs/results.md against what it prints."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tools import results  # noqa: E402


def test_a_difference_has_students_interval():
    assert results.difference([1, 2, 3, 4, 5]) == "+3.0 [+1.0, +5.0] 5 of 5"  # 3 ± 2.776 * sqrt(2.5 / 5)
    assert results.difference([-1, 0, 4], 2) == "+1.00 [-5.57, +7.57] 1 of 3"  # 1 ± 4.303 * sqrt(7 / 3)
    assert results.difference([2]) == "+2.0" and results.with_error([2]) == "2.0"
    assert results.with_error([1, 2, 3, 4, 5], 2) == "3.00 ± 0.71"


@pytest.mark.parametrize("target, expected", [(25, 100), (30, 95), (35, 90), (40, 80), (44, 65), (50, 70), (52, None),
                                              (20, None)])
def test_a_path_is_met_where_it_first_reaches_pass_at_1(target, expected):
    path = {0: {1: 25, 16: 100}, 50: {1: 35, 16: 90}, 100: {1: 40, 16: 80}, 150: {1: 38, 16: 60}, 200: {1: 50, 16: 70}}
    assert results.at_equal_pass1(path, target, 16) == expected


def test_the_page_shows_what_the_rows_say():
    command = [sys.executable, ROOT / "tools" / "results.py", ROOT / "docs" / "laptop"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tables = printed.split("\n\n")
    assert len(tables) > 8 and [part for part in tables if part not in page] == []
