"""Tests of the folder of a run. It holds no secrets, and nothing in it is executed or steers the
terminal. A run or an evaluation that must not use it is refused, and every file stays as it was.

    python -m pytest tests/test_run_folder.py
"""
import contextlib
import dataclasses
import io
import json
import math
import os
import pickle
import shutil
import sys
from datetime import datetime
from pathlib import Path
from unittest import mock

import pytest
import torch

import verify
from runtime import checkpoints, cli, responses, run_folder
from runtime.log import Log
from simko import Config, ObjectiveConfig, RunConfig, TrainConfig
from tests import workers
from tests.conftest import (
    BEYOND_ASCII, ESCAPE, benchmark, edit_json, main, metrics, recipe, refused, write_rows)
from tools import data, paths, plots, tables

SECRET_NAMES = "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"
SECRETS = {name: f"secret-{i}-of-this-test" for i, name in enumerate(SECRET_NAMES)}


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """Returns (folder, stdout and stderr) of a step and its evaluation. The environment contains
    secrets."""
    folder = tmp_path_factory.mktemp("run") / "run"
    command = recipe(tiny, "train", folder, "--rollout", "hf", "--steps", 1)
    return folder, workers.run(workers.python("simko.py", *command), **SECRETS)


# ------------------------------------------------------------------------------------ what it holds
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


def test_a_path_is_drawn_only_for_the_problems_that_the_run_was_evaluated_on(
        tiny, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    moved = tmp_path / "test.jsonl"
    lines = (tiny / "test.jsonl").read_text().splitlines(keepends=True)
    moved.write_text("".join(lines))
    edit_json(folder / "config.json", eval_data=[str(moved)])
    paths.read_path({"a": folder}, 0)
    moved.write_text("".join(lines[:-1]))
    with pytest.raises(SystemExit, match="test.jsonl has responses to other problems than test"):
        paths.read_path({"a": folder}, 0)


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
    run_folder.rewind(tmp_path, 2, 2)  # as when a run resumes

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
    path = tmp_path / "metrics.jsonl"
    path.write_text(text + '{"st')
    run_folder.check_log(path)
    cut_off = mock.patch.object(Path, "replace", side_effect=OSError("killed"))
    with cut_off, pytest.raises(OSError, match="killed"):
        run_folder.rewind(tmp_path, 5, 5)
    assert path.read_text() == text + '{"st'  # no row is lost meanwhile
    run_folder.rewind(tmp_path, 5, 5)
    assert metrics(tmp_path) == [{"step": 1}, {"step": 4}, {"step": 5}]


def test_no_secret_is_written_or_printed(run):
    folder, printed = run
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.json", ".metadata", "eval.json", "test.jsonl", "model.safetensors"} <= names
    for text in [printed.encode(), *(path.read_bytes() for path in files)]:
        assert not any(secret.encode() in text for secret in SECRETS.values())


def test_what_a_model_or_file_says_does_not_steer_the_terminal(run, tmp_path, capfd, monkeypatch):
    folder, printed = run
    first = "test.jsonl: 40 problems; dropped 0 with prompts longer than 16 tokens\n  first prompt "
    assert first in printed
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
    later = shutil.copytree(path.parent, path.parent.with_name("step_000002"))
    path.write_bytes(pickle.dumps(Trap(trap)))
    message = rf"{path} calls {Path.__module__}.Path.*delete the checkpoint's folder"
    with pytest.raises(SystemExit, match=message):
        main(resume)
    shutil.rmtree(later)
    for name in ("torch load", "torch.hub Size", "torch.serialization load"):
        path.write_bytes(f"c{name.replace(' ', chr(10))}\n.".encode())
        with pytest.raises(SystemExit, match=f"{path} calls {name.replace(' ', '.')},"):
            checkpoints.check_checkpoints(folder)
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


# ---------------------------------------------------------------------------------- runs that go on
def test_damage_in_a_run_folder_is_named_before_anything_changes(tiny, run, tmp_path):
    resume = recipe(tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 2)
    for name, content, message in (
            ("config.json", b"\xff{}", r"config.json is damaged \(.*\): repair it"),
            ("config.json", b"[" * 10**6, "config.json is damaged"),
            ("metrics.jsonl", b'{"step": 1}\n{"st\n{"step": 3}\n',
             "metrics.jsonl, line 2, is damaged"),
            ("metrics.jsonl", b"\xff\n", "metrics.jsonl, line 1, is damaged"),
            ("eval_000001/test.jsonl", b"", "eval_000001/test.jsonl is damaged"),
            ("eval_000001/test.jsonl", b"[[]]\n", "eval_000001/test.jsonl is damaged"),
            ("eval_000001/test.jsonl", None,
             "eval_000001/test.jsonl, line 3, is damaged .*all lines below it")):
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


def test_a_run_does_not_begin_in_the_folder_of_an_evaluation(tiny, tmp_path):
    """Whoever named the folder later would get the trained model's results."""
    (tmp_path / "eval.json").write_text("{}")
    begin = recipe(tiny, "train", tmp_path, "--rollout", "hf", "--steps", 1)
    message = "holds an evaluation: choose another --output-dir for this run"
    with pytest.raises(SystemExit, match=message) as stop:
        cli.prepare(begin, Config)
    assert refused(stop.value)


@pytest.mark.parametrize("start", ['"answer": "1', '"task": "text", "answer": "'])
def test_a_run_does_not_go_on_with_other_problems(tiny, run, tmp_path, start):
    shutil.copytree(run[0], tmp_path / "run")
    train = tiny / "train.jsonl"
    content = train.read_bytes()
    try:
        train.write_bytes(content.replace(b'"answer": "', start.encode(), 1))
        resume = recipe(tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 1)
        message = f"a run on other training data: the problems of --train-data {train}"
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
    edit_json(tmp_path / "run" / "config.json", tensor_parallel_size=2, resume=False)
    # Messages advise some of these flags, for example where memory has run out.
    flags = """
        --micro-batch-tokens 99 --gradient-checkpointing --gpu-memory-utilization 0.5 --save-steps 7
        --eval-steps 2 --eval-n 2 --eval-temperature 0.5 --eval-top-p 0.9 --eval-max-tokens 9"""
    resume = recipe(
        tiny, "train", tmp_path / "run", "--rollout", "hf", "--steps", 2, "--train-data", moved,
        "--eval-data", tmp_path / "other.jsonl", "--data-dir", tmp_path, *flags.split())
    job = cli.prepare(resume, Config)
    assert [benchmark.set for benchmark in job.benchmarks] == ["other"]


@pytest.mark.parametrize("group, free", [
    (ObjectiveConfig, set()),
    (TrainConfig, {"steps", "eval_steps", "train_data"}),
    (RunConfig, {"output_dir"}),
])
def test_a_run_goes_on_only_with_the_settings_that_it_learned_by(group, free):
    assert free == {field.name for field in dataclasses.fields(group)} & {*run_folder.CHANGEABLE}


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


# ------------------------------------------------------------------- other outputs, and evaluations
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


@pytest.mark.parametrize("target", ["gone", "link"])  # the latter is a loop
def test_an_output_behind_a_link_to_nothing_is_refused(tiny, tmp_path, target):
    (tmp_path / "link").symlink_to(target)
    for command, output in ("train", "link/run"), ("eval", "link"):
        with pytest.raises(SystemExit, match=f"link to {target}, which does not exist") as stop:
            cli.prepare(recipe(tiny, command, tmp_path / output), Config)
        assert refused(stop.value)


def test_the_folder_of_a_run_is_not_taken_for_its_model(tiny, run, tmp_path):
    flags = "--model", run[0], "--rollout", "hf"
    with pytest.raises(SystemExit, match="is the folder of a run: name its model, .*/hf") as stop:
        cli.prepare(recipe(tiny, "eval", tmp_path / "eval", *flags), Config)
    assert refused(stop.value)
    # A model may have such a subfolder, too.
    shutil.copytree(tiny / "base", tmp_path / "base")
    (tmp_path / "base/hf").mkdir()
    cli.prepare(recipe(tmp_path, "eval", tmp_path / "eval", *flags[2:], "--eval-data",
                       tiny / "test.jsonl"), Config)


def test_an_evaluation_does_not_replace_the_results_of_other_sets(tmp_path):
    file = tmp_path / "eval.json"
    a, b = (benchmark(label=name) for name in "ab")
    responses.check_sets(file, [a])
    file.write_text(json.dumps({"settings": {}, "sets": {"a": {}, "c@T0.5": {}}}))
    with pytest.raises(SystemExit, match="eval.json has the results of c@T0.5, which") as stop:
        responses.check_sets(file, [a, b])
    assert refused(stop.value)
    file.write_text(json.dumps({"settings": {}, "sets": {"a": {}}}))
    cfg = Config(output_dir=str(tmp_path))
    for one in (a, b):  # each has its own settings
        text = json.dumps(one.settings(cfg)) + "\n"
        (tmp_path / f"{one.label}.jsonl").write_text(text)
    responses.check_evaluations("eval", cfg, [a, b])


@pytest.mark.parametrize("command, eval_steps, names", [
    ("eval", 10, ["."]),
    ("train", 0, ["eval_000040"]),
    ("train", 10, ["eval_000020", "eval_000040"]),
    ("train", 15, ["eval_000040"]),
])
def test_a_command_knows_the_evaluations_that_it_writes_again(tmp_path, command, eval_steps, names):
    for step in (10, 20):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    cfg = Config(output_dir=str(tmp_path), steps=40, eval_steps=eval_steps)
    assert responses.evaluation_folders(command, cfg) == [tmp_path / name for name in names]


def test_an_evaluation_does_not_go_on_with_a_model_of_which_a_file_was_rewritten(tmp_path):
    shards = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard in shards:
        shard.write_bytes(b"")
    config = Config(model=str(tmp_path), eval_data=["a.jsonl"])
    sets, dropped = {"a.jsonl": []}, {"a.jsonl": 0}

    def settings(command="eval"):
        (planned,) = responses.plan_benchmarks(command, config, sets, dropped, room=1)
        return planned.settings(config)

    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(settings()) + "\n")
    for shard in shards:
        before = settings()
        responses.check_responses(path, before)
        later = datetime.fromisoformat(before["weights_written"]).timestamp() + 60
        os.utime(shard, (later, later))
        with pytest.raises(SystemExit, match="other settings: weights_written was .* is "):
            responses.check_responses(path, settings())
        path.write_text(json.dumps(settings()) + "\n")
    assert settings("train")["weights_written"] == ""  # a run's own weights have no file


def test_an_evaluation_with_other_settings_does_not_pass_for_the_one_that_was_made(tmp_path):
    path, one = tmp_path / "set.jsonl", benchmark()
    config = Config(dtype="float32", rollout="vllm")
    path.write_text(json.dumps(one.settings(config)) + "\n")
    responses.check_responses(path, one.settings(config))
    for change, message in (
            ({"model": "mine"}, f"model was {config.model}, is mine"),
            ({"seed": 1}, "seed was 0, is 1"),
            ({"prompt_template": "raw"}, "prompt_template was chat, is raw"),
            ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs was .*, is {'a': 1}"),
            ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"),
            ({"rollout": "hf"}, "rollout was vllm, is hf")):
        changed = dataclasses.replace(config, **change)
        with pytest.raises(SystemExit, match=f"other settings: {message}"):
            responses.check_responses(path, one.settings(changed))
