"""Checks that imports go one way: tests and tools -> simko.py -> runtime/ and verify.py.

The imports come from each file's syntax tree, so an import inside a function counts like one at
the top.
"""
import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.workers import ROOT

ALLOWED = {  # room: the rooms that it may import
    "verify": {"verify", "runtime"},
    "runtime": {"runtime", "verify"},
    "simko": {"simko", "runtime", "verify"},
    "tools": {"tools", "simko", "runtime", "verify"},
    "tests": {"tests", "test_simko", "tools", "simko", "runtime", "verify"},
    "test_simko": {"simko", "runtime", "verify"},
}
FILES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.py", "runtime/**/*.py", "tools/**/*.py", "tests/**/*.py")
    for path in ROOT.glob(pattern)
)


def tree(file):
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def room(file):
    """Returns "simko" for simko.py, "tools" for tools/tables.py."""
    return file.parts[0].removesuffix(".py")


def module(file):
    """Returns "tools.tables" for tools/tables.py, "runtime" for runtime/__init__.py."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def imports(nodes):
    """Returns the names, of modules or of their contents, that the nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "name the package in full, as in from runtime import log"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def imported_rooms(nodes):
    """Returns the project's rooms that the nodes import."""
    return {name.split(".")[0] for name in imports(nodes)} & set(ALLOWED)


def import_graph(files):
    """Returns {module: the project's modules that it imports} for the files."""
    modules = {module(file) for file in files}
    graph = {}
    for file in files:
        names = imports(ast.walk(tree(file)))
        names |= {name.rpartition(".")[0] for name in names}
        graph[module(file)] = names & modules
    return graph


def names_of(node):
    """Returns "sys.path.insert" for the expression sys.path.insert. If the expression contains
    more than names, None takes the place of the rest."""
    if isinstance(node, ast.Attribute):
        return f"{names_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def tricks(nodes):
    """Yields uses of sys.modules and changes of sys.path. Both change what an import means."""
    for node in nodes:
        if isinstance(node, ast.Subscript) and names_of(node.value) == "sys.modules":
            yield node.lineno, "sys.modules[...]"
        if isinstance(node, ast.Call):
            name = names_of(node.func)
            if name in ("sys.path.insert", "sys.path.append"):
                yield node.lineno, name


def test_every_file_belongs_to_a_room_and_no_room_is_empty():
    assert {room(file) for file in FILES} == set(ALLOWED)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_line_is_too_long_to_read_beside_the_paper(file):
    """A window of 100 columns shows every line whole and leaves half of a screen to the paper. A
    step that needs a longer line reads better as two steps."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    too_long = [number for number, line in enumerate(lines, 1) if len(line) > 100]
    assert not too_long, f"{file}: the lines {too_long} have more than 100 characters"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_import_goes_the_wrong_way(file):
    home = room(file)
    forbidden = imported_rooms(ast.walk(tree(file))) - ALLOWED[home]
    assert not forbidden, f"{file} may import {sorted(ALLOWED[home])} alone"


@pytest.mark.parametrize("file", [file for file in FILES if room(file) != "tests"], ids=str)
def test_no_program_changes_what_an_import_means(file):
    assert not list(tricks(ast.walk(tree(file))))


def test_another_package_of_the_name_tools_does_not_come_first(tmp_path):
    """Some distributions install one, Mako's for example."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('the wrong tools')")
    done = subprocess.run(
        [sys.executable, "-m", "tools.data", "--help"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_no_files_import_each_other_in_a_circle():
    """Tests are exempt, because their workers call functions in the test files that start them."""
    graph = import_graph([file for file in FILES if room(file) != "tests"])
    assert {"runtime.baselines", "runtime.cli", "verify"} <= graph["simko"]
    TopologicalSorter(graph).prepare()  # or a CycleError names the circle


@pytest.mark.parametrize("code, rooms, found", [
    ("import simko, torch", {"simko"}, 0),
    ("def f():\n    from tools.data import load", {"tools"}, 0),
    ("import simkoplus", set(), 0),
    ("import sys\nsys.modules['simko'] = 1", set(), 1),
    ("import sys\nsys.path.insert(0, '.')", set(), 1),
    ("text = 'import tools; sys.path.insert(0)'", set(), 0),
])
def test_the_reader_of_imports_sees_what_it_should(code, rooms, found):
    nodes = list(ast.walk(ast.parse(code)))
    assert imported_rooms(nodes) == rooms
    assert len(list(tricks(nodes))) == found


@pytest.mark.parametrize("code, names", [
    ("import verify", {"verify"}),
    ("from runtime import log, data", {"runtime.log", "runtime.data"}),
    ("from runtime.common import fail", {"runtime.common.fail"}),
])
def test_each_form_of_import_has_its_names(code, names):
    assert imports(ast.walk(ast.parse(code))) == names
