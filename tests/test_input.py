"""Tests that bad input gets a one-line message which names the file, row or flag. Nothing from a
checkpoint, a data set or a model is ever executed or sent to the terminal as control characters.

    python -m pytest tests/test_input.py
"""
import contextlib
import dataclasses
import io
import json
import math
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import typing
from functools import partial
from pathlib import Path
from unittest import mock

import datasets
import huggingface_hub.constants
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    FalconConfig, FalconForCausalLM, Gemma3Config, GenerationConfig, LlamaConfig,
    LlamaForCausalLM, Qwen2_5_VLConfig)

import verify
from runtime import checkpoints, cli, models, responses, run_folder
from runtime.common import flag
from runtime.data import load_problems
from runtime.hf_engine import HFEngine
from runtime.log import Log
from runtime.models import load_model
from runtime.responses import Benchmark
from simko import Config, EvalConfig, RunConfig
from tests import workers
from tests.conftest import main, metrics, recipe, write_rows
from tools import data, laptop, plots, study, tables, zoo

VOCABULARY = 128  # of the model; its tokenizer has 94 tokens and those named here
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
BEYOND_ASCII = "\u202e\u2028\ud800"  # reverses the line, ends it, is not a character
SECRET_NAMES = "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"
SECRETS = {name: f"secret-{i}-of-this-test" for i, name in enumerate(SECRET_NAMES)}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Returns a folder like those of tools/laptop.py. The model has random weights and a
    vocabulary padded beyond the tokenizer's. Some tokens contain terminal commands."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0))
    model.save_pretrained(folder / "base")
    tokenizer = laptop.make_tokenizer()
    tokenizer.add_tokens([f"{ESCAPE}{i}" for i in range(9)])
    tokenizer.save_pretrained(folder / "base")
    for name in ("train", "test"):
        second = 1 if name == "test" else 0
        rows = []
        for i in range(40):
            rows.append({
                "id": f"{name}{ESCAPE}{i}",
                "problem": f"{i} {second} 4 > 48 :",
                "answer": f"48 = {i} 20 4",
            })
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def edit(name, **changes):
    """Returns a function of a folder that changes these fields of a JSON file in it."""
    def change(folder):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(fields | changes))
    return change


def cut(name, size, text=None):
    """Returns a function of a folder that truncates a file in it, or replaces its content."""
    def change(folder):
        (folder / name).write_bytes(text or (folder / name).read_bytes()[:size])
    return change


def several(*changes):
    return lambda folder: [change(folder) for change in changes]


def remove(*names):
    return several(*(lambda folder, name=name: (folder / name).unlink() for name in names))


def lose_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def store_as(dtype, name):
    """Returns a function of a folder that stores one of its weights in another dtype, or adds it
    with one element."""
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        weights[name] = weights.get(name, torch.ones(1)).to(dtype)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return change


def refused(stop, capsys=None):
    """Returns the message of a SystemExit, from its code or from stderr. Fails unless the message
    is one printable line and the status is not 0."""
    assert stop.code not in (0, None)
    line = stop.code
    if not isinstance(line, str):
        line = capsys.readouterr().err.removesuffix("\n")
    assert line
    assert line.isprintable()
    assert "Traceback" not in line
    return line


# ------------------------------------------------------------------------------------- command line
def fields_of(command):
    """Returns the settings of a command."""
    groups = [Config] if command == "train" else [EvalConfig, RunConfig, cli.SystemConfig]
    return [field for group in groups for field in dataclasses.fields(group)]


def test_help_names_each_flag_once_and_with_dashes(capsys):
    for command in ("train", "eval"):
        with pytest.raises(SystemExit, match="^0$"):
            cli.parse_config([command, "--help"], Config)
        shown = capsys.readouterr().out
        assert not re.search(r"\(default: (None|\[\])?\)", shown)
        flags = re.findall(r"^  (--.*?)(?: |$)(.*)", shown, re.MULTILINE)
        names = [flag.rstrip(",") for flag, _ in flags]
        assert len(names) == len(set(names)) and not any("_" in name for name in names)
        switches = {"--no-gradient-checkpointing", "--no-resume"} & set(names)
        assert set(names) - switches == {flag(field.name) for field in fields_of(command)}
        if command == "train":
            assert "do not resume from the last checkpoint" in " ".join(shown.split())
    _, cfg = cli.parse_config(["train", "--max_prompt_length", "7"], Config)
    assert cfg.max_prompt_length == 7  # _ is accepted for -


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


@pytest.mark.parametrize("flags", [
    ("--output-dir", ""),
    ("--model", " "),
    ("--eval-data", "x", ""),
    ("--task", "a\nb"),
    ("--train-data", f"x{ESCAPE}"),
    ("--data-dir", "\ud800"),
    ("--batch-size", str(10**30)),
    ("--batch-size", "1" * 5000),
    ("--seed", str(2**31)),
    ("--learning-rate", "inf"),
    ("--learning-rate", "1e400"),
    ("--temperature", "nan"),
    ("--eval-temperature", "0.5", "inf"),
    ("--beta", "-inf"),
    ("--eval-top-p", "nan"),
    ("--max-prompt", "7"),
    ("--eval-t", "1"),
    ("--gradient-checkpointing", "perhaps")])
def test_values_that_no_run_can_have_name_their_flag(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse_config(["train", *flags], Config)
    assert flags[0] in refused(stop.value, capsys).replace("_", "-")
    assert stop.value.code == 2


def test_settings_that_the_method_does_not_learn_by_are_said(tiny, tmp_path, capsys):
    train = partial(recipe, tiny, "train", tmp_path, "--method", "grpo")
    cli.prepare(train("--alpha", 0.2, "--tau-scope", "batch", "--q", 0.8), Config)
    printed = capsys.readouterr().out
    assert "note: --method grpo does not train with --alpha, --tau-scope\n" in printed
    assert "counts as gated still depends on --tau-scope\n" in printed  # 0.8 is q's default
    cli.prepare(train("--alpha", 0.2), Config)
    assert "gated" not in capsys.readouterr().out
    cli.prepare(train("--method", "simko", "--alpha", 0.2, "--q", 0.3), Config)
    assert "note" not in capsys.readouterr().out


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
    yield lambda: plots.run_settings(path.parent)
    yield lambda: study.read("main", path.parent)
    yield lambda: run_folder.check_log(path)
    yield lambda: run_folder.differences(
        run_folder.read_settings(path, path.read_bytes()), {"lambda_top1": 1})
    yield lambda: responses.check_responses(path, {})
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


def test_rows_that_cannot_be_used_are_named_and_what_is_too_long_is_dropped(tiny, tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    row = {"problem": "1 20 4 > 48 :", "answer": "48 = 1 20 4"}
    named = {**row, "id": "x"}
    for changes, message in (
            ({"answer": f"{'9' * 10**6}"}, "line 2: the answer has 1000000 characters"),
            ({"answer": "1", "task": f"{ESCAPE}{'x' * 10**6}"}, "line 2: the task "),
            ({"problem": None, ESCAPE * 9999: 1}, "line 2: 'problem' must be a text"),
            ({"problem": "1"}, "line 2: an earlier row has the same id, 'x'")):
        path.write_text(f"{json.dumps(named)}\n{json.dumps(named | changes)}")
        with pytest.raises(SystemExit, match=f"{path}, {message}") as stop:
            load_problems(str(path))
        assert len(refused(stop.value)) < 700
    long = {**row, "problem": "1 " * 500_000}  # a line of 1 MB
    path.write_text(f"{json.dumps(long)}\n{json.dumps(row)}\r\n", encoding="utf-8-sig")
    job = cli.prepare(recipe(tiny, "eval", tmp_path / "run", "--eval-data", path), Config)
    ((problem,), dropped), = job.sets.values()
    assert (problem["id"], dropped) == ("2", 1)
    path.write_text(json.dumps(long))
    with pytest.raises(SystemExit, match="all 1 prompts are longer than --max-prompt-length 16"):
        cli.prepare(recipe(tiny, "eval", tmp_path / "run", "--eval-data", path), Config)
    assert [*tmp_path.iterdir()] == [path]


def test_hub_rows_in_other_columns_and_sets_with_scripts_are_refused(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    trap = tmp_path / "trap"
    (tmp_path / "set" / "set.py").write_text(f"open({str(trap)!r}, 'w')")
    message = f"{tmp_path}/set cannot be read .*scripts are no longer supported"
    with pytest.raises(SystemExit, match=message) as stop:
        load_problems(f"{tmp_path}/set")
    assert refused(stop.value) and not trap.exists()
    rows = [{"problem": "p", "answer": "1"}, {"x": ESCAPE}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    for source in ("synlogic", "synlogic/other", "a/b"):
        with pytest.raises(SystemExit, match=f"{source}, row ") as stop:
            load_problems(source)
        refused(stop.value)
    failing = mock.Mock(side_effect=datasets.exceptions.DatasetGenerationError(1))
    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(SystemExit, match="a/b cannot be read"):
        load_problems("a/b")


# ------------------------------------------------------------------------------------------- models
def gpt2(folder):
    change = edit("config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"],
                  n_embd=4, n_head=2, n_layer=1)
    change(folder)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def add_code(folder):
    """Adds a module to the folder that creates a file next to the folder when it is imported."""
    trap = f"open({str(folder.parent / 'trap')!r}, 'w')\nclass C: pass\nT = M = C\n"
    (folder / "trap.py").write_text(trap)


def larger_tokenizer(folder):
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"] |= {"48": 5000}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))


def nested(folder):
    """Gives the folder the config of a model for text and images, whose text part names the
    end-of-text tokens."""
    text = {"vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "eos_token_id": [6, 8]}
    Gemma3Config(text_config=text).save_pretrained(folder)


CODE = {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.M"}
chat = partial(edit, "tokenizer_config.json")
UNFIT = {  # case: (change to the model's folder, --prompt-template, what the message says)
    "no weights": (remove("model.safetensors"), "raw", "no weights in model.safetensors"),
    "pickled weights": (
        pickled,
        "raw",
        "no weights in model.safetensors.*Other formats are not read, since some can hold code",
    ),
    "weights of another format": (
        lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"),
        "raw",
        "no weights in model.safetensors",
    ),
    "shards without an index": (
        lambda folder: (folder / "model.safetensors").rename(
            folder / "model-00001-of-00001.safetensors"),
        "raw",
        "or in files that model.safetensors.index.json names",
    ),
    "cut weights": (
        cut("model.safetensors", 5000),
        "raw",
        "model.safetensors is damaged",
    ),
    "a shard missing": (
        cut("model.safetensors.index.json", 0, b'{"weight_map": {"a": "1.safetensors"}}'),
        "raw",
        "1.safetensors is damaged or missing",
    ),
    "bad index": (
        cut("model.safetensors.index.json", 0, b"{"),
        "raw",
        "model.safetensors.index.json",
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        "raw",
        "tokenizer is missing",
    ),
    "cut tokenizer": (
        cut("tokenizer.json", 99),
        "raw",
        "tokenizer is missing, damaged",
    ),
    "odd tokenizer": (
        cut("tokenizer.json", 0, b"[]"),
        "raw",
        "tokenizer is missing, damaged",
    ),
    "another's tokenizer": (
        larger_tokenizer,
        "raw",
        "has a token of id 5000, beyond the model's 128",
    ),
    "no config": (
        remove("config.json"),
        "raw",
        "has no config.json: is it the folder of a model",
    ),
    "cut config": (cut("config.json", 99), "raw", "config.json cannot be read"),
    "config of bytes": (
        cut("config.json", 0, b"\xff\xfe"),
        "raw",
        "config.json cannot be read",
    ),
    "config of a list": (
        cut("config.json", 0, b"[]"),
        "raw",
        "config.json cannot be read",
    ),
    "quantised": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "raw",
        "is quantised .gptq., as the quantization_config of its config.json says",
    ),
    "text part quantised": (
        edit("config.json", text_config={"quantization_config": {"load_in_4bit": True}}),
        "raw",
        "is quantised .its method is not named., as the quantization_config",
    ),
    "images": (
        lambda folder: Qwen2_5_VLConfig().save_pretrained(folder),
        "raw",
        "is a model of images and text",
    ),
    "images in layers of its own": (
        nested,
        "raw",
        "is a model of images and text",
    ),
    "quantised without a word": (
        store_as(torch.float8_e4m3fn, "model.layers.0.mlp.up_proj.weight"),
        "raw",
        "model.layers.0.mlp.up_proj.weight is stored as F8_E4M3, and only",
    ),
    "quantised to integers": (
        store_as(torch.int8, "model.layers.0.mlp.up_proj.weight"),
        "raw",
        "model.layers.0.mlp.up_proj.weight is stored as I8, and only",
    ),
    "adapter": (
        several(cut("adapter_config.json", 0, b"{}"), remove("config.json", "model.safetensors")),
        "raw",
        "has an adapter_config.json.* merge the adapter into its base model",
    ),
    "adapter beside a model": (
        cut("adapter_config.json", 0, b'{"peft_type": "LORA"}'),
        "raw",
        "has an adapter_config.json.* merge the adapter into its base model",
    ),
    "wrong type": (edit("config.json", hidden_size="x"), "raw", "hidden_size"),
    "unknown kind": (
        edit("config.json", model_type=f"kind{ESCAPE}"),
        "raw",
        r"model type `kind\\x1b\]0",
    ),
    "not built": (gpt2, "raw", "a GPT2Model cannot be trained here"),
    "code": (
        edit("config.json", model_type="kind", auto_map=CODE),
        "raw",
        "code of its own .auto_map., and such code is never run",
    ),
    "tokenizer's code": (
        chat(auto_map={"AutoTokenizer": ["trap.T", None]}, tokenizer_class="T"),
        "raw",
        "code of its own .auto_map., which is never run",
    ),
    "no end": (
        several(chat(eos_token=None), edit("generation_config.json", eos_token_id=None),
                edit("config.json", eos_token_id=None)),
        "raw",
        "names no end-of-text token",
    ),
    "end beyond": (
        edit("generation_config.json", eos_token_id=[2, 10**9]),
        "raw",
        "end-of-text token 1000000000 is",
    ),
    "end of text": (
        edit("generation_config.json", eos_token_id="x"),
        "raw",
        "end-of-text token 'x' is not one",
    ),
    "cut generation": (
        cut("generation_config.json", 9),
        "raw",
        "generation_config.json",
    ),
    "no template": (
        lambda folder: None,
        "chat",
        "has no chat template: choose --prompt-template",
    ),
    "bad template": (
        chat(chat_template="{% if %}"),
        "chat",
        "chat template or tokenizer cannot make a prompt",
    ),
    "refusing template": (
        chat(chat_template=f"{{{{ raise_exception('no{ESCAPE}') }}}}"),
        "chat",
        r"no\\x1b",
    ),
    "prying template": (
        chat(chat_template="{{ ''.__class__.__mro__ }}"),
        "chat",
        "unsafe",
    ),
    "empty template": (
        chat(chat_template="{{ '' }}"),
        "chat",
        "leaves the problem out",
    ),
    "template of parts": (
        chat(chat_template=(
            "> {% for part in messages[0].content if part.text %}"
            "{{ part.text }}"
            "{% endfor %}")),
        "chat",
        "leaves the problem out",
    ),
    "no turns": (lambda folder: None, "qwen-math", "needs the token <.im_end.>, which"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_cannot_be_used_is_refused_and_its_code_not_run(tiny, tmp_path, case):
    change, template, message = UNFIT[case]
    shutil.copytree(tiny / "base", tmp_path / "base")
    add_code(tmp_path / "base")
    change(tmp_path / "base")
    flags = "--model", tmp_path / "base", "--prompt-template", template
    with (mock.patch("builtins.input", lambda *_: "y"),
          pytest.raises(SystemExit, match=message) as stop):
        cli.prepare(recipe(tiny, "train", tmp_path / "run", *flags), Config)
    assert str(tmp_path / "base") in refused(stop.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_code_is_blamed_only_where_a_config_asks_for_it(tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    edit("config.json", hidden_size="x")(tmp_path / "base")
    with pytest.raises(SystemExit) as stop:
        cli.prepare(recipe(tiny, "train", tmp_path / "run", "--model", tmp_path / "base"), Config)
    assert "auto_map" not in refused(stop.value)


def test_a_hub_that_cannot_be_reached_is_asked_once(tiny, tmp_path, monkeypatch):
    asked = []

    def head(url, timeout):
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(models, "get_session", lambda: mock.Mock(head=head))
    monkeypatch.setattr(models, "is_offline_mode", lambda: False)
    message = "some/model is not a folder here.*HF_HUB_OFFLINE=1"
    with pytest.raises(SystemExit, match=message) as stop:
        cli.prepare(recipe(tiny, "train", tmp_path / "run", "--model", "some/model"), Config)
    assert "no network" in refused(stop.value) and len(asked) == 1


def test_a_python_without_docstrings_is_refused(tiny, tmp_path):
    words = recipe(tiny, "train", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-OO", "simko.py", *words],
        cwd=workers.ROOT, capture_output=True, text=True, check=False)
    assert "-OO or PYTHONOPTIMIZE=2" in done.stderr
    assert done.returncode == 1 and done.stderr.count("\n") == 1


ENDS = {  # case: (change to the model's folder, whose tokenizer ends at 2, resulting ids)
    "generation_config.json": (edit("generation_config.json", eos_token_id=[2, 7]), [2, 7]),
    "config.json": (edit("config.json", eos_token_id=5), [2, 5]),
    "a list": (edit("config.json", eos_token_id=[5, 9]), [2, 5, 9]),
    "the text part": (several(nested, remove("generation_config.json")), [2, 6, 8]),
    "the text part too": (nested, [2, 6, 8]),
    "beyond the vocabulary": (edit("config.json", eos_token_id=[5, 10**6]), [2, 5]),
    "config.json alone": (
        several(edit("config.json", eos_token_id=[5, 9]), remove("generation_config.json"),
                chat(eos_token=None)),
        [5, 9]),
    "each file another": (
        several(edit("config.json", eos_token_id=5), chat(eos_token=":"),
                edit("generation_config.json", eos_token_id=7)),
        [5, 7, ":"]),
}


@pytest.mark.parametrize("case", ENDS)
def test_responses_end_at_the_ids_of_each_file_that_names_some(tiny, tmp_path, case):
    change, ends = ENDS[case]
    shutil.copytree(tiny / "base", tmp_path / "base")
    change(tmp_path / "base")
    job = cli.prepare(recipe(tiny, "eval", tmp_path / "run", "--model", tmp_path / "base"), Config)
    known = job.tokenizer.get_vocab()
    assert job.stop_ids == sorted(known.get(end, end) for end in ends)


def test_a_response_ends_with_its_turn_where_the_template_has_turns(tiny):
    tokenizer = laptop.make_tokenizer()
    tokenizer.add_tokens(["<|im_end|>"])
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for template, ends in (
            ("raw", [2]), ("plain", [2]), ("chat", [2, turn]), ("qwen-math", [2, turn])):
        cfg = Config(model=str(tiny / "base"), prompt_template=template)
        assert models.end_tokens(cfg, tokenizer, VOCABULARY) == ends


def test_a_run_ends_at_the_ids_of_config_json_and_its_export_keeps_them(tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    ends = [*range(2, VOCABULARY, 8)]
    edit("config.json", eos_token_id=ends)(tmp_path / "base")
    remove("generation_config.json")(tmp_path / "base")
    arguments = recipe(tiny, "train", tmp_path / "run", "--model", tmp_path / "base",
                       "--rollout", "hf", "--steps", 1)
    samples, generate = [], HFEngine.generate

    def keep(*arguments, **options):
        found = generate(*arguments, **options)
        samples.extend(found)
        return found

    with mock.patch.object(HFEngine, "generate", keep):
        main(arguments)
    for sample in samples:
        places = [i for i, token in enumerate(sample.response_ids) if token in ends]
        assert places == ([] if sample.truncated else [len(sample.response_ids) - 1])
    # Token 2 alone would also end some responses, but not with so many different ids.
    assert len({int(s.response_ids[-1]) for s in samples if not s.truncated}) > 8
    exported = GenerationConfig.from_pretrained(tmp_path / "run" / "hf")
    assert exported.eos_token_id == ends
    assert (exported.bos_token_id, exported.pad_token_id) == (1, 0)


def test_code_beside_a_model_that_transformers_knows_is_not_run(tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    add_code(tmp_path / "base")
    edit("config.json", auto_map=CODE)(tmp_path / "base")
    with mock.patch("builtins.input", lambda *_: "y"):
        cli.prepare(recipe(tiny, "train", tmp_path / "run", "--model", tmp_path / "base"), Config)
        assert type(load_model(tmp_path / "base", torch.float32)) is LlamaForCausalLM
    assert not (tmp_path / "trap").exists()


def test_weights_that_are_missing_are_not_drawn_at_random(tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    lose_a_tensor(tmp_path / "base")
    message = f"--model {tmp_path}/base lacks weights: model.norm.weight"
    with pytest.raises(SystemExit, match=message):
        load_model(tmp_path / "base", torch.float32)


@pytest.mark.parametrize("dtype, name", [
    (torch.float16, "model.norm.weight"),
    (torch.bfloat16, "lm_head.weight"),
    (torch.float32, "model.layers.0.self_attn.rotary_emb.inv_freq"),
    (torch.int64, "model.embeddings.position_ids"),
    (torch.bool, "model.layers.0.self_attn.mask"),
])
def test_weights_in_half_precision_and_buffers_of_older_checkpoints_are_read(
        dtype, name, tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    store_as(dtype, name)(tmp_path / "base")
    models.check_weights("train", tmp_path / "base")


@pytest.mark.parametrize("name", [
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.mlp.up_proj.weight_scale",
])
def test_weights_of_layers_that_the_config_does_not_know_are_named(name, tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    store_as(torch.float32, name)(tmp_path / "base")
    with pytest.raises(SystemExit, match=f"config.json would not use: {name} ...") as stop:
        load_model(tmp_path / "base", torch.float32)
    refused(stop.value)


@pytest.mark.parametrize("name", [
    "model.layers.0.self_attn.rotary_emb.inv_freq",  # of older checkpoints
    "v_head.summary.weight",  # of PPO
])
def test_weights_that_change_no_response_may_be_there(name, tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    store_as(torch.float32, name)(tmp_path / "base")
    load_model(tmp_path / "base", torch.float32)


def test_a_head_that_tying_makes_superfluous_may_be_there(tmp_path):
    zoo.save("llama-tied", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_model(tmp_path, torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_family_with_attentions_of_its_own_is_refused(tmp_path):
    model = FalconForCausalLM(FalconConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    model.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="its attention cannot be replaced by 'packed'"):
        load_model(tmp_path, torch.float32)


def test_weights_of_another_shape_than_the_configs_are_named(tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    edit("config.json", intermediate_size=33)(tmp_path / "base")
    message = (rf"--model {tmp_path}/base: model.layers.0.mlp.down_proj.weight has the shape "
               r"\(16, 32\), where its config.json asks for \(16, 33\)")
    with pytest.raises(SystemExit, match=message) as stop:
        load_model(tmp_path / "base", torch.float32)
    refused(stop.value)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_weights_that_are_not_finite_are_named(tiny, tmp_path, command):
    shutil.copytree(tiny / "base", tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    flags = "--model", tmp_path / "base", "--rollout", "hf"
    message = f"--model {tmp_path}/base: its weights are not finite: model.norm.weight"
    with pytest.raises(SystemExit, match=message) as stop:
        main(recipe(tiny, command, tmp_path / "run", *flags))
    refused(stop.value)


# -------------------------------------------------------------------------------------- run folders
@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """Returns (folder, stdout and stderr) of a step and its evaluation. The environment contains
    secrets."""
    folder = tmp_path_factory.mktemp("run") / "run"
    command = recipe(tiny, "train", folder, "--rollout", "hf", "--steps", 1)
    return folder, workers.run(workers.python("simko.py", *command), **SECRETS)


def test_ids_beyond_the_tokenizer_are_sampled_without_harm(tiny, run):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    assert len(tokenizer) == 103 and tokenizer.decode([120, 5, 127]) == tokenizer.decode([5])
    _, *lines = (run[0] / "eval_000001" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 160 and any(ESCAPE in row["response"] for row in rows)
    texts = [row["response"].replace(ESCAPE, "").split() for row in rows]
    short = sum(row["tokens"] > len(text) + 1 for row, text in zip(rows, texts))
    # A fifth of the vocabulary is beyond the tokenizer, and most responses contain some of it.
    assert short > 80
    assert 0 < metrics(run[0])[0]["entropy"] and metrics(run[0])[0]["logp_gap"] < 1e-5


def test_no_secret_is_written_or_printed(run):
    folder, printed = run
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.json", ".metadata", "eval.json", "test.jsonl", "model.safetensors"} <= names
    for text in [printed.encode(), *(path.read_bytes() for path in files)]:
        assert not any(secret.encode() in text for secret in SECRETS.values())


def test_what_a_model_or_file_says_does_not_steer_the_terminal(run, tmp_path, capfd, monkeypatch):
    folder, printed = run
    assert "step    1/1" in printed and "\x1b" not in printed.replace("\x1b[A", "")  # tqdm's own
    shutil.copytree(folder, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "eval_000001" / "eval.json").read_text())
    for name in (f"test{ESCAPE}", f"b{BEYOND_ASCII}"):
        report["sets"][name] = {**report["sets"]["test"], "set": name, "prompt_template": ESCAPE}
    report["settings"]["prompt_template"] = ESCAPE
    (tmp_path / "run" / "eval_000001" / "eval.json").write_text(json.dumps(report))
    shown = []
    for module, *words in ((tables,), (plots, "-o", tmp_path / "figures")):
        labelled = f"a={tmp_path / 'run'}", f"b{ESCAPE}={folder}"
        monkeypatch.setattr(sys, "argv", ["x", *labelled, *map(str, words)])
        module.main()
        shown += [*capfd.readouterr()]
    assert r"test\x1b]0;owned" in shown[0] and r"\u202e\u2028\ud800" in shown[0]
    name = tmp_path / f"{ESCAPE}.jsonl"
    for module, *words in (
            (verify, name),
            (tables, name),
            (plots, name, "-o", tmp_path),
            (plots, "--follow", name),
            (plots, f"a={folder}", "--path", 0, "-o", tmp_path),
            (data, tmp_path, f"aime24={name}")):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            module.main()
        shown += [*capfd.readouterr()]
        assert "x1b" in refused(stop.value) + shown[-1]
    assert not any(char in text for text in shown for char in "\x1b\x07\u202e\u2028")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Attribute:
    """Is pickled as a getattr, like members of enumerations in Python 3.11.2."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return getattr, self.arguments


def test_no_code_in_a_checkpoint_is_run(tiny, run, tmp_path):
    folder, trap = tmp_path / "run", tmp_path / "trap"
    shutil.copytree(run[0], folder)
    resume = recipe(tiny, "train", folder, "--rollout", "hf", "--steps", 2)
    path = folder / "checkpoints" / "step_000001" / ".metadata"
    whole = pickle.loads(path.read_bytes())
    checkpoints.check_checkpoints(folder)
    path.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(SystemExit, match=rf"{path} calls pathlib.Path.*delete its folder"):
        main(resume)
    path.write_bytes(pickle.dumps(dataclasses.replace(whole, planner_data=Trap(trap))))
    with pytest.raises(SystemExit, match=f"{path} calls"):
        main(resume)
    formats = checkpoints.MEMORY_FORMATS
    for arguments, allowed in (
            ((formats, "TORCH_PRESERVE_FORMAT"), True),
            ((formats, "__subclasses__"), False),
            ((torch.Size, "mro"), False),
            ((torch.Size, "TORCH_PRESERVE_FORMAT"), False),
            ((formats, "mro", None), False)):
        changed = dataclasses.replace(whole, planner_data=Attribute(*arguments))
        path.write_bytes(pickle.dumps(changed))
        ends = pytest.raises(SystemExit, match=f"{path} calls getattr")
        with contextlib.nullcontext() if allowed else ends:
            checkpoints.check_checkpoints(folder)
    path.write_bytes(b"\x80\x04damaged")
    # The readable part calls nothing. Loading will fail, because this is not a checkpoint.
    checkpoints.check_checkpoints(folder)
    shards = folder / "checkpoints" / "step_000001" / "__0_0.distcp"
    index, place = next(
        (i, place) for i, place in whole.storage_data.items() if i.fqn.endswith(".lr"))
    torch.save(Trap(trap), code := io.BytesIO())
    whole.storage_data[index] = dataclasses.replace(
        place, offset=shards.stat().st_size, length=len(code.getvalue()))
    with shards.open("ab") as file:
        file.write(code.getvalue())
    # The pickle names nothing unusual. The code is in the value of the learning rate.
    path.write_bytes(pickle.dumps(whole))
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(BaseException, match="Weights only load failed"):
        main(resume)
    assert not trap.exists() and before == (folder / "metrics.jsonl").read_bytes()
    torch.load(io.BytesIO(code.getvalue()), weights_only=False)
    assert trap.exists()  # so the code would have run


def test_damage_in_a_run_folder_is_named_before_anything_changes(tiny, run, tmp_path):
    resume = recipe(tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 2)
    for name, content, message in (
            ("config.json", b"\xff{}", "config.json is damaged"),
            ("config.json", b"[" * 10**6, "config.json is damaged"),
            ("metrics.jsonl", b'{"step": 1}\n{"st\n{"step": 3}\n',
             "metrics.jsonl, line 2, is damaged"),
            ("metrics.jsonl", b"\xff\n", "metrics.jsonl, line 1, is damaged"),
            ("eval_000001/test.jsonl", b"", "eval_000001/test.jsonl is damaged"),
            ("eval_000001/test.jsonl", b"[[]]\n", "eval_000001/test.jsonl is damaged"),
            ("eval_000001/test.jsonl", None,
             "eval_000001/test.jsonl, line 3, is damaged .*all that follow")):
        shutil.copytree(run[0], tmp_path / "run")
        (tmp_path / "run" / "eval_000001" / "eval.json").unlink()
        path = tmp_path / "run" / name
        if content is None:
            first, second, third, *others = path.read_bytes().splitlines(keepends=True)
            content = b"".join([first, second, third[:-9] + b"\n", *others])
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=message) as stop:
            cli.prepare(resume, Config)
        assert refused(stop.value) and path.read_bytes() == content
        shutil.rmtree(tmp_path / "run")
    shutil.copytree(run[0], tmp_path / "run")
    # Without it, a run of another method could resume from these checkpoints.
    (tmp_path / "run/config.json").unlink()
    with pytest.raises(SystemExit, match="run holds checkpoints but no config.json") as stop:
        cli.prepare(resume, Config)
    assert refused(stop.value)


def test_a_finished_run_without_its_checkpoints_is_not_begun_again(tiny, run, tmp_path):
    """Starting over would delete the export and the evaluations."""
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    resume = recipe(tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 2)
    with pytest.raises(SystemExit, match="a finished run without its checkpoints") as stop:
        cli.prepare(resume, Config)
    assert refused(stop.value)


def test_what_is_not_finite_is_null_in_the_log(run, tmp_path):
    shutil.copy(run[0] / "metrics.jsonl", tmp_path)
    path = tmp_path / "metrics.jsonl"
    (row,) = map(json.loads, path.read_text().splitlines())
    odd = {
        "step": 2,
        "grad_norm": math.nan,
        "loss": -math.inf,
        "logp_gap": math.inf,
        "entropy_histogram": [0.5, math.nan],
    }
    Log(tmp_path, 1, Config())(row | odd)
    run_folder.check_log(path)
    Log(tmp_path, 2, Config())  # as when a run resumes

    def no_number(name):
        pytest.fail(f"{name} is no JSON")

    rows = [json.loads(line, parse_constant=no_number) for line in path.read_text().splitlines()]
    null = {
        "step": 2,
        "grad_norm": None,
        "loss": None,
        "logp_gap": None,
        "entropy_histogram": [0.5, None],
    }
    assert rows == [row, row | null]


def test_a_log_that_lost_rows_goes_on(run, tmp_path):
    rows = [{"step": step} for step in (1, 4, 5, 6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"st')
    Log(tmp_path, 5, Config())
    assert metrics(tmp_path) == [{"step": 1}, {"step": 4}, {"step": 5}]


@pytest.mark.parametrize("output, message", [
    ("/proc/run", "--output-dir /proc/run cannot be used"),
    ("x" * 300, "--output-dir x+ cannot be used"),
    ("/dev/null", "/dev/null is a file"),
    ("/dev/null/run", "/dev/null/run is a file, or lies in one")])
@pytest.mark.skipif(sys.platform != "linux", reason="these places are Linux's")
def test_an_output_that_cannot_be_written_is_refused(tiny, tmp_path, monkeypatch, output, message):
    monkeypatch.chdir(tmp_path)
    for command in ("train", "eval"):
        with pytest.raises(SystemExit, match=message) as stop:
            cli.prepare(recipe(tiny, command, output), Config)
        assert refused(stop.value) and not any(tmp_path.iterdir())


def test_a_folder_that_holds_another_run_is_left_alone(tiny, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # The name is also a pattern.
    (tmp_path / "te[s]t.jsonl").write_text((tiny / "test.jsonl").read_text())
    pattern = folder / "eval_000001" / "te[s]t.jsonl"
    shutil.copy(folder / "eval_000001" / "test.jsonl", pattern)
    before[pattern] = pattern.read_bytes()
    for command, flags, message in (
            ("train", ["--alpha", 0.5],
             "holds a run with other settings: --alpha was 0.01, is 0.5"),
            ("train", ["--no-resume"], "holds a run already: choose another --output-dir"),
            ("train", ["--eval-n", 2], "was evaluated with other settings: n was 4, is 2"),
            ("eval", [], "is the folder of a training run"),
            ("eval", ["--output-dir", folder / "eval_000001",
                      "--eval-data", tmp_path / "te[s]t.jsonl"],
             "te.s.t.jsonl was evaluated with other settings: set was test, is te.s.t")):
        steps = ["--steps=1"] if command == "train" else []
        with pytest.raises(SystemExit, match=message) as stop:
            main(recipe(tiny, command, folder, "--rollout", "hf", *steps, *flags))
        assert refused(stop.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_arguments_of_the_chat_template_are_kept_with_the_run_and_what_it_ignores_is_refused(
        tiny, tmp_path):
    shutil.copytree(tiny / "base", tmp_path / "base")
    chat(chat_template="{{ messages[0]['content'] }}{% if thinking %} 20{% endif %}")(
        tmp_path / "base")
    arguments = recipe(tiny, "train", tmp_path / "run", "--model", tmp_path / "base",
                       "--rollout", "hf", "--steps", 1, "--prompt-template", "chat")
    for given, message in (
            ({"thinkin": 1}, "does not know 'thinkin': look for a misspelling"),
            ({"tokenize": 1}, "'tokenize' cannot be passed to the template"),
            ({"messages": []}, "'messages' cannot be passed to the template")):
        with pytest.raises(SystemExit, match=message) as stop:
            main([*arguments, "--chat-template-kwargs", json.dumps(given)])
        refused(stop.value)
    assert not (tmp_path / "run").exists()

    thinking = '{"thinking": true}'
    main([*arguments, "--chat-template-kwargs", thinking])
    files = [tmp_path / "run" / name
             for name in ("config.json", "eval_000001/eval.json", "eval_000001/test.jsonl")]
    settings, report = (json.loads(path.read_bytes()) for path in files[:2])
    with files[2].open() as file:
        first = json.loads(file.readline())
    for kept in (settings, report["settings"], first):
        assert kept["chat_template_kwargs"] == {"thinking": True}
    assert tables.read(files[1])["test"]["prompt_template"] == f"chat {thinking}"
    with pytest.raises(SystemExit, match="--chat-template-kwargs was {'thinking': True}, is {}"):
        main(arguments)

    # A run from before this setting existed resumes.
    before = settings | {"chat_template_kwargs": {}}
    assert run_folder.differences(settings, before)
    del settings["chat_template_kwargs"]
    assert not run_folder.differences(settings, before)


def test_a_run_does_not_go_on_with_other_problems(tiny, run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    train = tiny / "train.jsonl"
    content = train.read_bytes()
    try:
        train.write_bytes(content.replace(b'"answer": "', b'"answer": "1', 1))
        resume = recipe(tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 1)
        message = f"a run on other training data than --train-data {train} has now"
        with pytest.raises(SystemExit, match=message) as stop:
            cli.prepare(resume, Config)
        assert refused(stop.value)
    finally:
        train.write_bytes(content)


def test_a_run_goes_on_where_its_problems_have_moved_and_with_other_evaluations(
        tiny, run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    moved = shutil.copy(tiny / "train.jsonl", tmp_path / "moved.jsonl")
    write_rows(tmp_path / "other.jsonl", [{"problem": "3 5 7 > 11 :", "answer": "11 = 3 5 7"}])
    resume = recipe(
        tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 2, "--train-data", moved,
        "--eval-data", tmp_path / "other.jsonl")
    job = cli.prepare(resume, Config)
    assert [benchmark.set for benchmark in job.benchmarks] == ["other"]


def test_a_setting_that_a_run_does_not_name_had_its_default(tiny, run, tmp_path):
    """The run is older than the setting."""
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["epsilon"]
    (folder / "config.json").write_text(json.dumps(settings))
    resume = recipe(tiny, "train", folder, "--rollout", "hf", "--steps", 2)
    cli.prepare(resume, Config)
    with pytest.raises(SystemExit, match="--epsilon was 0.2, is 0.1"):
        cli.prepare([*resume, "--epsilon", "0.1"], Config)


def test_an_evaluation_of_other_sets_where_a_run_resumes_is_refused(tiny, run, tmp_path):
    """The run would evaluate step 1 again before it goes on, and replace the results."""
    shutil.copytree(run[0], tmp_path / "run")
    write_rows(tmp_path / "other.jsonl", [{"problem": "3 5 7 > 11 :", "answer": "11 = 3 5 7"}])
    resume = recipe(
        tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 2,
        "--eval-data", tmp_path / "other.jsonl", "--eval-steps", 1)
    with pytest.raises(SystemExit, match="eval_000001/eval.json has the results of test") as stop:
        cli.prepare(resume, Config)
    assert refused(stop.value)


@pytest.mark.parametrize("source, name", [
    ("folder/mine.jsonl", "mine"),
    ("folder/MINE.JSONL", "MINE"),
    ("folder/mine.jsonl,problem=question,answer=a/b", "mine"),
    ("a,b.jsonl", "a,b"),
    ("org/MATH-v1.5", "MATH-v1.5"),
    ("org/data,config=a/b,split=test", "data"),
    ("parquet/", "parquet"),
])
def test_a_set_is_named_after_its_file_or_its_last_part(source, name):
    assert cli.set_name(source) == name


def test_the_folder_of_a_run_is_not_taken_for_its_model(tiny, run, tmp_path):
    flags = "--model", run[0], "--rollout", "hf"
    with pytest.raises(SystemExit, match="is the folder of a run: name its model, .*/hf") as stop:
        cli.prepare(recipe(tiny, "eval", tmp_path / "eval", *flags), Config)
    assert refused(stop.value)


def test_an_evaluation_does_not_replace_the_results_of_other_sets(tmp_path):
    file = tmp_path / "eval.json"
    a, b = (Benchmark(name, name, [], 1, 1.0, 1.0, 1, "") for name in "ab")
    responses.check_sets(file, [a])
    file.write_text(json.dumps({"settings": {}, "sets": {"a": {}, "c@T0.5": {}}}))
    with pytest.raises(SystemExit, match="eval.json has the results of c@T0.5, which") as stop:
        responses.check_sets(file, [a, b])
    assert refused(stop.value)
    file.write_text(json.dumps({"settings": {}, "sets": {"a": {}}}))
    responses.check_sets(file, [a, b])


def test_auto_is_what_the_machine_has(tiny, tmp_path, monkeypatch, capsys):
    """Otherwise an evaluation that resumes elsewhere would mix two engines or dtypes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it raises ImportError
    arguments = recipe(tiny, "eval", tmp_path / "run")
    cfg = cli.prepare(arguments, Config).cfg
    assert (cfg.dtype, cfg.rollout) == ("float32", "hf")
    assert "so transformers' generate makes the rollouts" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="vLLM cannot be imported .* choose --rollout hf") as stop:
        cli.prepare([*arguments, "--rollout", "vllm"], Config)
    assert refused(stop.value)
    monkeypatch.setitem(sys.modules, "vllm", mock.Mock())
    assert cli.prepare(arguments, Config).cfg.rollout == "vllm"


def test_an_evaluation_in_another_dtype_does_not_pass_for_the_one_that_was_made(tmp_path):
    benchmark = Benchmark("a", "a", [], 1, 1.0, 1.0, 1, "")
    path = tmp_path / "a.jsonl"
    config = Config(dtype="float32", rollout="vllm")
    path.write_text(json.dumps(benchmark.settings(config)) + "\n")
    responses.check_responses(path, benchmark.settings(config))
    for change, message in (
            ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"),
            ({"rollout": "hf"}, "rollout was vllm, is hf")):
        changed = dataclasses.replace(config, **change)
        with pytest.raises(SystemExit, match=f"other settings: {message}"):
            responses.check_responses(path, benchmark.settings(changed))

    # A file of an earlier version says auto, or neither, and has two other names.
    older = benchmark.settings(Config())
    path.write_text(json.dumps(older) + "\n")
    responses.check_responses(path, benchmark.settings(config))
    del older["dtype"], older["rollout"]
    older["weights_of"] = older.pop("weights_written")
    older["problems"] = older.pop("problems_sha256")
    path.write_text(json.dumps(older) + "\n")
    responses.check_responses(path, benchmark.settings(Config(rollout="hf")))


def test_other_programs_refuse_places_that_they_cannot_write(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"problem": "p", "answer": "1"}\n')
    evaluation = {
        "set": "a",
        "n": 2,
        "temperature": 1,
        "top_p": 1,
        "max_tokens": 1,
        "problems": 1,
        "truncated": 0,
        "correct": {"1": 1},
    }
    report = {"settings": {"prompt_template": "raw"}, "sets": {"a": evaluation}}
    (tmp_path / "eval.json").write_text(json.dumps(report))
    place = f"{tmp_path}/file/x"
    for module, *words in (
            (laptop, place),
            (data, place, f"aime24={tmp_path}/rows.jsonl"),
            (plots, tmp_path, "-o", place)):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        with pytest.raises(SystemExit, match=f"{place} cannot be") as stop:
            module.main()
        refused(stop.value)
    command = ["bash", workers.ROOT / "train.sh", "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("train.sh: error: no recipe 'nosuch': choose one of")
