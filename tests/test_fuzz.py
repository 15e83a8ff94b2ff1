"""Tests that no random input ends in a traceback: a command line or file that cannot be used gets
one line.

    python -m pytest tests/test_fuzz.py
"""
import json
import os
import sys
import typing
from functools import partial
from unittest import mock

import datasets
import huggingface_hub.constants
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import verify
from runtime import cli, responses, run_folder
from runtime.common import flag
from runtime.data import load_problems
from simko import Config
from tests.conftest import BEYOND_ASCII, ESCAPE, recipe, refused
from tests.test_cli import fields_of
from tools import data, laptop, plots, study, tables


def outcome(call, capsys):
    """Returns the result of `call`, or None if it stopped with a one-line message. Any other
    exception is a failure."""
    capsys.readouterr()
    try:
        return call()
    except SystemExit as stop:
        if stop.code == 0:  # --help
            return None
        refused(stop, capsys)
        return None


any_input = partial(settings, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ------------------------------------------------------------------------------------ command lines
@pytest.fixture
def offline(monkeypatch):
    """Keeps the hub from being asked: a name that is not a file counts as unknown there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("load_dataset", "get_dataset_config_names"):
        unknown = mock.Mock(side_effect=ValueError("no such set"))
        monkeypatch.setattr(datasets, name, unknown)


JUNK = st.text(st.characters(), max_size=6) | st.sampled_from([
    "", " ", "-", "--", "-1", "0", "1e400", "nan", "-inf", "1" * 400, "1_0", "0x1", "\u0663",
    "true", "{}", "%s", "1,2", "a,b=c", "..", "/", "~", ".", "x" * 300, "/dev/null/x", "**", "[",
    "a=", "=", "\0", ESCAPE, BEYOND_ASCII])
NAMES = st.sampled_from([
    "chat", "qwen-math", "plain", "raw", "math", "countdown", "number_wall", "logic", "a/b"])
NUMBERS = {int: (st.integers(-1, 70) | st.integers()).map(str),
           float: (st.floats(0, 2) | st.floats()).map(str)}


def values(field):
    """Returns a strategy for the value of --FIELD, which mostly has the right type."""
    kinds = typing.get_args(field.type) or (field.type,)
    if isinstance(kinds[0], str):
        return st.sampled_from(kinds)
    return NUMBERS.get(kinds[0], st.just("true") if kinds[0] is bool else NAMES | JUNK)


@st.composite
def command_lines(draw):
    """Draws train, eval or nothing, and flags. A few flags are truncated, misspelt, given twice,
    or have invalid values."""
    command, words = draw(st.sampled_from(["train", "train", "eval", None])), []
    fields = st.sampled_from(fields_of(command or "train"))
    for field in draw(st.lists(fields, min_size=1, max_size=4)):
        name, odd = flag(field.name), draw(st.integers(0, 39))
        changed = {0: name[:7], 1: f"--{field.name}", 3: draw(JUNK)}.get(odd, name)
        given = draw(JUNK if odd == 4 else values(field))
        words += [f"{name}={given}"] if odd == 2 else [changed, given]
        if odd == 5:
            words += draw(st.lists(JUNK, max_size=2))
    return command, words


@any_input(max_examples=250)
@given(line=command_lines())
@example(line=("train", ["--output-dir", "x" * 300]))
@example(line=("eval", ["--output-dir", "/dev/null/run"]))
def test_no_command_line_ends_in_a_traceback(tiny, offline, capsys, tmp_path_factory, line):
    command, words = line
    here = os.getcwd()
    folder = tmp_path_factory.getbasetemp() / "fuzz"  # a relative --output-dir lies in it
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        start = recipe(tiny, command, folder / "run") if command else []
        found = outcome(lambda: cli.prepare([*start, *words], Config), capsys)
    finally:
        os.chdir(here)
    assert not any(folder.iterdir())  # nothing was written
    if found:
        assert found.command == command and found.sets and isinstance(found.cfg, Config)


# -------------------------------------------------------------------------------------------- files
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
SCALARS |= st.sampled_from(["1", "\\boxed{}", "countdown", "44 = 1 2", ESCAPE])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=3), inner, max_size=3), max_leaves=5)
KEYS = ["id", "problem", "answer", "response", "task", "correct", "truncated", "step", "reward",
        "sets", "settings"]
OBJECTS = st.dictionaries(st.sampled_from(KEYS), VALUES | st.just("1"), max_size=8)
LINES = st.lists(
    (OBJECTS | VALUES).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=9),
    max_size=4)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
MARKS = st.sampled_from([b"", b"\xef\xbb\xbf"])
CONTENTS = st.tuples(MARKS, LINES, ENDS, st.integers(0, 300)).map(  # a few are cut at their start
    lambda x: x[0] + x[2].join(x[1])[x[3] // 8 if x[3] < 80 else 0:])


def readers(path):
    """Returns all functions that read a file which may come from elsewhere or have been edited."""
    yield lambda: load_problems(str(path))
    yield lambda: data.read_copy(path, "math500")
    yield lambda: data.read_copy(path, "synlogic")
    yield lambda: data.read_copy(path, "bbh")
    yield lambda: tables.read(path)
    yield lambda: plots.read_log(path)
    yield lambda: tables.run_settings(path.parent)
    yield lambda: study.read("main", path.parent)
    yield lambda: run_folder.check_log(path)
    yield lambda: run_folder.differences(
        run_folder.read_settings(path, path.read_bytes()), {"lambda_top1": 1})
    yield lambda: responses.check_responses(path, {})
    yield lambda: cli.note_other_prompts(Config(model=str(path.parent / "hf")))
    with mock.patch.object(sys, "argv", ["verify.py", str(path)]):
        yield verify.main
    with mock.patch.object(sys, "argv", ["laptop.py", str(path.parent)]):
        yield laptop.main


@any_input(max_examples=150)
@given(content=CONTENTS)
@example(content=b"[" * 200_000)
@example(content=b'{"step": 1, "id": ' + b"[" * 200_000)
@example(content=b"\xff\xfe\x00")
@example(content=b"")
@example(content=b'{"response": "1", "answer": "1", "task": []}')
@example(content=b"1" * 5000)
@example(content=b'{"step": Infinity}\n')
@example(content=b'{"prompt_template": "\\u001b[31m"}')
@example(content=b'{"run": 1, "method": 1, "seed": 1, "pass": {"1e9": []}}')
@example(content=b'{}\n{"id": "1", "correct": Infinity, "truncated": 0}\n')
def test_no_content_of_a_file_ends_in_a_traceback(capsys, tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any" / "laptop.json"
    path.parent.mkdir(exist_ok=True)
    for name in ("laptop.json", "config.json", "main.jsonl"):
        path.with_name(name).write_bytes(content)
    for read in readers(path):
        outcome(read, capsys)
        assert "\x1b" not in capsys.readouterr().out
