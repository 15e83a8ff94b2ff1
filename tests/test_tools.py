"""Tests of what the programs of tools/ have in common: help, one line if they cannot write, and
progress that is readable in a file."""
import runpy
import subprocess
import sys

import pytest

from tests import workers
from tests.conftest import refused
from tests.test_tables import entry, write
from tools import data, laptop, plots

PROGRAMS = sorted(path.stem for path in (workers.ROOT / "tools").glob("*.py")
                  if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_of_tools_has_help_that_says_how_to_start_it(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_module(f"tools.{name}", run_name="__main__")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: python -m tools.{name} ")


def test_other_programs_refuse_places_that_they_cannot_write(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"problem": "p", "answer": "1"}\n')
    write(tmp_path, entry("a", [1], 2))
    place = f"{tmp_path}/file/x"
    for module, *words in (
            (laptop, place),
            (data, place, f"aime24={tmp_path}/rows.jsonl"),
            (plots, tmp_path, "-o", place)):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        with pytest.raises(SystemExit, match=f"{place} cannot be") as stop:
            module.main()
        refused(stop.value)


def test_a_file_gets_lines_and_not_a_progress_bar(tmp_path):
    command = workers.python("-m", "tools.laptop", tmp_path / "data", "--steps", 2)
    done = subprocess.run(
        command, cwd=workers.ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("base model: step ")
