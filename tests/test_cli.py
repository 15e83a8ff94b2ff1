"""Tests of the command line. Impossible settings are refused in one line, before any file is
written."""
import contextlib
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import simko
import tools
from runtime import baselines, cli, responses, vllm_setup
from runtime.common import flag
from simko import Config, EvalConfig, RunConfig
from tests import workers
from tests.conftest import CPU, ESCAPE, config, main, needs_vllm, recipe, refused, write_rows

REFUSED = {  # command line: what the message names, by default the first flag
    "": "train or eval",
    "trian": "train or eval",
    "train stray": "stray",
    "train --vllm_gpu_memory_utilization 0.5": "did you mean --gpu-memory-utilization?",
    "train --max_steps 3": "'--max_steps' (see",
    "train --no-gradient-checkpoint": "did you mean --no-gradient-checkpointing?",
    "train --temperature=0.7,0.8": "invalid float value: '0.7,0.8'",
    "eval": "--eval-data",
    "train --batch-size 10 --mini-batch-size 4":
        "--mini-batch-size 4 does not divide --batch-size 10",
    "train --tensor-parallel-size 2 --rollout hf":
        "--tensor-parallel-size 2 is for vLLM, and does not work with --rollout hf",
    "train --eval-data b/y a/x,split=test b/x": "same name, x: rename",
    "train --eval-temperature 0.2 0.2": "--eval-temperature names a temperature twice",
    "eval --alpha 0.1 --eval-data x": "--alpha",
    "train --output-dir=~/runs": "begins with ~, which the shell replaces only after a space",
    "train --chat-template-kwargs [1]": "'[1]' is not a JSON object",
    "train --chat-template-kwargs false": "'false' is not a JSON object",
    'train --chat-template-kwargs {"a":NaN}': "is not JSON (NaN is not JSON)",
    "eval --eval-data x --chat-template-kwargs enable_thinking=false":
        "--chat-template-kwargs: 'enable_thinking=false' is not JSON (",
    'train --prompt-template raw --chat-template-kwargs {"a":1}':
        "--chat-template-kwargs are for --prompt-template chat",
}
BAD_VALUES = """
    --nosuch 1
    --method ppo
    --tau-scope all
    --loss-type sum
    --task nosuch
    --prompt-template nosuch
    --rollout nosuch
    --alpha 1.01
    --alpha -0.1
    --q 1.2
    --q -0.2
    --lambda-top1 0.9
    --epsilon 1
    --epsilon -0.1
    --epsilon-high -1
    --beta -1
    --K 0
    --K 2.5
    --num-generations 1
    --temperature 0
    --seed -1
    --steps 0
    --batch-size 0
    --mini-batch-size 0
    --learning-rate 0
    --weight-decay -1
    --max-grad-norm 0
    --max-sampling-rounds -1
    --warmup-steps -1
    --grpo-warmup-steps -1
    --eval-steps -1
    --max-prompt-length 0
    --max-completion-length -1
    --micro-batch-tokens 0
    --save-steps 0
    --eval-n 0
    --eval-max-tokens 0
    --eval-top-p 0
    --eval-top-p 1.1
    --eval-temperature -1
    --eval-temperature 0
    --gpu-memory-utilization 0
    --gpu-memory-utilization 1.1
    --tensor-parallel-size 0
    --tensor-parallel-size 2
"""
for line in BAD_VALUES.strip().splitlines():
    name, value = line.split()
    REFUSED[f"train {name} {value}"] = name


@pytest.mark.parametrize("line", REFUSED)
def test_impossible_settings_get_one_line_and_status_2(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        simko.main(line.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert REFUSED[line] in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [
    ("--output-dir", ""),
    ("--model", " "),
    ("--eval-data", "x", ""),
    ("--task", "a\nb"),
    ("--train-data", f"x{ESCAPE}"),
    ("--output-dir", f"~{ESCAPE}"),
    ("--data-dir", "\ud800"),
    ("--batch-size", str(10**30)),
    ("--batch-size", "1" * 5000),
    ("--seed", str(2**31)),
    ("--learning-rate", "inf"),
    ("--learning-rate", "1e400"),
    ("--learning-rate", "nan"),
    ("--weight-decay", "nan"),
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


@pytest.mark.parametrize("flags", [
    "--alpha 0 --lambda-top1 1 --q 0 --epsilon 0",
    "--alpha 1 --q 1",
    "--eval-temperature 0 --eval-n 1 --eval-top-p 1",
])
def test_the_ends_of_a_range_may_be_chosen(flags):
    command, _ = cli.parse_config(["train", *flags.split()], Config)
    assert command == "train"


@pytest.mark.parametrize("variable, good, bad, message", [
    ("VLLM_CPU_KVCACHE_SPACE", "4", "4.5", "VLLM_CPU_KVCACHE_SPACE must be a whole number of GiB"),
    ("LOCAL_WORLD_SIZE", "4", "3", "--tensor-parallel-size 2 does not divide the 3 processes"),
])
def test_variables_that_do_not_suit_vllm_are_refused(
        variable, good, bad, message, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    train = "train", "--tensor-parallel-size", "2"
    monkeypatch.setenv(variable, good)
    cli.parse_config(train, Config)
    monkeypatch.setenv(variable, bad)
    with pytest.raises(SystemExit) as stop:
        cli.parse_config(train, Config)
    assert message in refused(stop.value, capsys)


@pytest.mark.parametrize("flags, message", [
    pytest.param(
        ["--tensor-parallel-size", 4],
        "--tensor-parallel-size 4 does not divide the model's num_attention_heads, 2",
        marks=needs_vllm),
    (["--K", 1000], "--K 1000 is more than"),
    (["--model", "./nosuch"], "--model ./nosuch"),
    (["--prompt-template", "chat"], "no chat template"),
    (["--max-prompt-length", 3], "than --max-prompt-length 3"),
    (["--train-data", "nosuch.jsonl"], "nosuch.jsonl"),
    (["--train-data", "bad.jsonl"], "bad.jsonl, line 2"),
    (["--eval-data", "bad.jsonl"], "bad.jsonl, line 2"),
    (["--train-data", "one.jsonl", "--eval-data", "one.jsonl", "--steps", 1, "--rollout", "hf"],
     "all problems of --train-data one.jsonl"),
])
def test_settings_that_contradict_model_or_data_are_refused_before_anything_is_written(
        laptop, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    rows = '{"problem": "1 2 3 > 6 :", "answer": "6 = 1 2 3"}', '{"problem": "1"}'
    Path("bad.jsonl").write_text("\n".join(rows) + "\n")
    Path("one.jsonl").write_text(rows[0] + "\n")
    with pytest.raises(SystemExit, match=message) as stop:
        main(recipe(laptop, "train", "run", *flags))
    assert "\n" not in str(stop.value)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.jsonl", "one.jsonl"}


@pytest.mark.parametrize("change, message", [
    (["--seed", 1], "rank 1 has --seed 1, and rank 0 has 0: "),
    (["--method", "grpo"], "rank 1 has --method grpo, and rank 0 has simko: "),
    (["--train-data", "other/train.jsonl"], "rank 1 has --train-data [0-9a-f]{64}, "),
    (["--eval-data", "other/test.jsonl"], "rank 1 has --eval-data test [0-9a-f]{64}, "),
    (["--model", "other/base"], "rank 1 has --model files with checksum "),
    (["--model", "copy/base", "--eval-data", "copy/test.jsonl"], None),
    (["--micro-batch-tokens", 64, "--gradient-checkpointing", "--gpu-memory-utilization", 0.5,
      "--output-dir", "copy/run", "--data-dir", "copy"], None),
])
def test_nodes_with_other_commands_models_or_data_are_refused(
        laptop, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    for copy in ("copy", "other"):
        shutil.copytree(laptop, copy)
    weights = load_file("other/base/model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, "other/base/model.safetensors", {"format": "pt"})
    for name in ("train", "test"):
        path = Path(f"other/{name}.jsonl")
        first, *rows = map(json.loads, path.read_text().splitlines())
        write_rows(path, [{**first, "answer": "6 = 1 2 3"}, *rows])

    flags = recipe(laptop, "train", "run", "--rollout", "hf")
    jobs = [cli.prepare(words, simko.Config) for words in (flags, [*flags, *map(str, change)])]
    monkeypatch.setattr(cli, "gather", lambda mine: [cli.identity(jobs[0]), *mine])
    if message is None:
        cli.check_ranks_agree(jobs[1])
    else:
        with pytest.raises(SystemExit, match=message):
            main([*flags, *map(str, change)])


def test_a_node_that_evaluates_while_the_others_train_is_refused(tiny, tmp_path, monkeypatch):
    job = cli.prepare(recipe(tiny, "train", tmp_path, "--rollout", "hf"), simko.Config)
    monkeypatch.setattr(cli, "gather", lambda mine: [cli.identity(job), *mine])
    cli.check_ranks_agree(job)
    with pytest.raises(SystemExit, match="rank 1 has the command eval, and rank 0 has train: "):
        cli.check_ranks_agree(job._replace(command="eval"))


def test_a_python_without_docstrings_is_refused(tiny, tmp_path):
    words = recipe(tiny, "train", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-OO", "simko.py", *words],
        cwd=workers.ROOT, capture_output=True, text=True, check=False)
    assert "-OO or PYTHONOPTIMIZE=2" in done.stderr
    assert done.returncode == 1 and done.stderr.count("\n") == 1


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
        names = [name.rstrip(",") for name, _ in flags]
        assert len(names) == len(set(names)) and not any("_" in name for name in names)
        switches = {"--no-gradient-checkpointing"}
        assert set(names) - switches == {flag(field.name) for field in fields_of(command)}
        if command == "train":
            assert "do not recompute each layer" in " ".join(shown.split())
    _, cfg = cli.parse_config(["train", "--max_prompt_length", "7"], Config)
    assert cfg.max_prompt_length == 7  # _ is accepted for -


def test_settings_that_the_method_does_not_learn_by_are_said(tiny, tmp_path, capsys):
    train = partial(recipe, tiny, "train", tmp_path, "--method", "grpo")
    cli.prepare(train("--alpha", 0.2, "--tau-scope", "batch", "--q", 0.8), Config)
    printed = capsys.readouterr().out
    assert "note: --method grpo does not train with --alpha, --tau-scope\n" in printed
    assert "counts as gated still depends on --tau-scope\n" in printed  # 0.8 is q's default
    cli.prepare(train("--alpha", 0.2), Config)
    assert "gated" not in capsys.readouterr().out
    for method in ("forking", "kl-cov"):  # with a gate of their own
        cli.prepare(train("--method", method, "--q", 0.3), Config)
        assert "gated" not in capsys.readouterr().out
        cli.prepare(train("--method", method, "--q", 0.3, "--grpo-warmup-steps", 1), Config)
        assert "counts as gated still depends on --q\n" in capsys.readouterr().out
    mine = baselines.METHODS["simko"]._replace(advantage=baselines.nsr_advantage)
    with (mock.patch.dict(baselines.METHODS, mine=mine),
          mock.patch.dict(cli.CHOICES, method=("simko", "mine"))):
        for method in ("simko", "mine"):
            cli.prepare(train("--method", method, "--alpha", 0.2, "--q", 0.3), Config)
    assert "note" not in capsys.readouterr().out


def test_a_run_that_does_less_than_its_flags_promise_says_so(capsys):
    def printed(**changes):
        cli.note_idle_flags(Config(steps=5, **changes))
        return capsys.readouterr().out

    assert printed(grpo_warmup_steps=5) == (
        "note: all 5 steps use GRPO, because --grpo-warmup-steps is 5\n")
    assert printed(eval_steps=1) == "note: --eval-steps does nothing without --eval-data\n"
    assert printed(grpo_warmup_steps=4, eval_steps=1, eval_data=["math500"]) == ""
    assert printed(method="grpo", grpo_warmup_steps=5) == ""


@pytest.mark.parametrize("saved, changes", [
    ({"task": "countdown", "prompt_template": "raw", "seed": 1},
     "--prompt-template was raw, is chat; --task was countdown, is math"),
    ({"task": "math", "prompt_template": "chat", "chat_template_kwargs": {}}, ""),
    ({"model_type": "llama"}, ""),
    ([1], "")])
def test_prompts_unlike_those_of_the_run_that_trained_the_model_are_named(
        tmp_path, capsys, saved, changes):
    (tmp_path / "config.json").write_text(json.dumps(saved))
    model = tmp_path / "hf"
    cli.note_other_prompts(Config(model=str(model)))
    note = (f"note: --model {model} was trained with other settings: {changes}. Unless you mean "
            "to change them, give the old values\n")
    assert capsys.readouterr().out == (note if changes else "")


@pytest.mark.parametrize("name", ["temperature", "eval_temperature"])
def test_temperatures_that_vllm_refuses_or_changes_are_refused_before_it_starts(
        name, monkeypatch):
    def check(rollout, *values):
        values = values[0] if name == "temperature" else [*values]
        cli.check_temperatures(config("model", rollout=rollout, **{name: values}))

    check("hf", 10.0)
    for fine in (0.01, 1.0, 2.0):
        check("vllm", fine)
    if name == "eval_temperature":
        check("vllm", 0.0, 0.6)  # greedy
    for bad in (2.1, 0.005):
        with pytest.raises(SystemExit, match=f"{flag(name)} {bad:g} is not possible with vLLM"):
            check("vllm", bad)
    monkeypatch.setattr(cli, "find_vllm", lambda cfg: True)
    with pytest.raises(SystemExit, match=f"{flag(name)} 3 is not possible with vLLM"):
        cli.prepare(["train", "--model", "nowhere", flag(name), "3"], Config)


@pytest.mark.parametrize("source, name", [
    ("folder/mine.jsonl", "mine"),
    ("folder/MINE.JSONL", "MINE"),
    ("folder/mine.jsonl,problem=question,answer=a/b", "mine"),
    ("a,b.jsonl", "a,b"),
    ("org/MATH-v1.5", "MATH-v1.5"),
    ("org/data,config=a/b,split=test", "data"),
    ("parquet/", "parquet"),
    (".", "folder"),
])
def test_a_set_is_named_after_its_file_or_its_last_part(source, name, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    assert responses.set_name(source) == name


def test_auto_is_what_the_machine_has(tiny, tmp_path, monkeypatch, capsys):
    """Otherwise an evaluation that resumes elsewhere would mix two engines or dtypes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it raises ImportError
    arguments = recipe(tiny, "eval", tmp_path / "run")
    cfg = cli.prepare(arguments, Config).cfg
    assert (cfg.dtype, cfg.rollout) == ("float32", "hf")
    assert "so transformers' generate makes the rollouts" in capsys.readouterr().out
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for asked in (["--rollout", "vllm"], ["--tensor-parallel-size", "2"]):
        with pytest.raises(SystemExit, match="vLLM cannot be .* choose --rollout hf") as stop:
            cli.prepare([*arguments, *asked], Config)
        assert refused(stop.value)
    monkeypatch.setitem(sys.modules, "vllm", mock.Mock())
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(vllm_setup, "why_vllm_fails_on_cpus", lambda cfg: None)
    assert cli.prepare(arguments, Config).cfg.rollout == "vllm"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
        assert cli.resolve_auto(dataclasses.replace(cfg, dtype="auto")).dtype == dtype


@pytest.mark.parametrize("command, flags, weights, tokens", [
    ("train", ["--max-completion-length", 20], "dummy", 20),
    ("train", ["--eval-max-tokens", 30], "dummy", 30),
    ("eval", ["--eval-max-tokens", 30], "auto", 30),
])
def test_an_engine_has_room_for_the_longest_response_and_in_training_no_weights(
        tiny, tmp_path, monkeypatch, command, flags, weights, tokens):
    """In training it gets the policy's weights."""
    engine = mock.Mock(side_effect=SystemExit(0))
    monkeypatch.setattr(simko, "make_engine", engine)
    with pytest.raises(SystemExit):
        main(recipe(tiny, command, tmp_path, "--rollout", "hf", *flags))
    *_, load_format, max_tokens = engine.call_args.args
    assert (load_format, max_tokens) == (weights, tokens)


def test_a_run_shows_the_first_prompt_and_its_answer(laptop, tmp_path, group, capsys):
    job = cli.prepare(recipe(laptop, "eval", tmp_path, "--rollout", "hf"), simko.Config)
    first = job.benchmarks[0].problems[0]
    cli.announce(job, CPU, torch.float32)
    shown = f"  first prompt and answer: '<bos> {first['problem']}' -> '{first['answer']}'\n"
    assert shown in capsys.readouterr().out
    first["prompt_ids"] = np.tile(first["prompt_ids"], 100)
    cli.announce(job, CPU, torch.float32)
    assert len(capsys.readouterr().out) < 700


@pytest.mark.parametrize("start", [
    lambda: cli.parse_config(["train", "--model", "m", "--train-data", "d"], Config),
    lambda: tools.command_line(__file__, __doc__)])
def test_a_terminal_without_a_character_shows_an_escape(start):
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "ascii")) as screen:
        start()
        print("π")
        screen.seek(0)
        assert screen.read() == "\\u03c0\n"
