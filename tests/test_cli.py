"""Tests of the command line and of files of problems: impossible input is refused in one line,
before any file is written."""
import contextlib
import io
import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import simko
from runtime import cli
from runtime.data import load_problems
from runtime.models import check_parallel, context_left
from simko import Config
from tests import workers
from tests.conftest import CPU, main, recipe, write_rows

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
    "train --eval-data a/x,split=test b/x": "same name",
    "eval --alpha 0.1 --eval-data x": "--alpha",
    "train --output-dir=~/runs": "the shell replaces ~ only after a space",
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
    --learning-rate nan
    --weight-decay nan
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
for flags in BAD_VALUES.strip().splitlines():
    flag, value = flags.split()
    REFUSED[f"train {flag} {value}"] = flag


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


@pytest.mark.parametrize("flags, message", [
    (
        ["--tensor-parallel-size", 4],
        "--tensor-parallel-size 4 does not divide the model's num_attention_heads, 2",
    ),
    (["--K", 1000], "--K 1000 is more than"),
    (["--model", "./nosuch"], "--model ./nosuch"),
    (["--prompt-template", "chat"], "no chat template"),
    (["--max-prompt-length", 3], "than --max-prompt-length 3"),
    (["--train-data", "nosuch.jsonl"], "nosuch.jsonl"),
    (["--train-data", "bad.jsonl"], "bad.jsonl, line 2"),
    (["--eval-data", "bad.jsonl"], "bad.jsonl, line 2"),
])
def test_settings_that_contradict_model_or_data_are_refused_before_anything_is_written(
        laptop, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    rows = '{"problem": "1 2 3 > 6 :", "answer": "6 = 1 2 3"}', '{"problem": "1"}'
    Path("bad.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(SystemExit, match=message) as stop:
        main(recipe(laptop, "train", "run", *flags))
    assert "\n" not in str(stop.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize("change, message", [
    (["--seed", 1], "rank 1 has --seed 1, and rank 0 has 0: "),
    (["--method", "grpo"], "rank 1 has --method grpo, and rank 0 has simko: "),
    (["--train-data", "other/train.jsonl"], "rank 1 has --train-data [0-9a-f]{64}, "),
    (["--eval-data", "other/test.jsonl"], "rank 1 has --eval-data test [0-9a-f]{64}, "),
    (["--model", "other/base"], "rank 1 has --model with checksum "),
    (["--model", "copy/base", "--eval-data", "copy/test.jsonl"], None),
    (["--micro-batch-tokens", 64], None),
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
            cli.check_ranks_agree(jobs[1])


def test_a_run_shows_the_first_prompt_and_its_answer(laptop, tmp_path, group, capsys):
    job = cli.prepare(recipe(laptop, "eval", tmp_path, "--rollout", "hf"), simko.Config)
    first = job.benchmarks[0].problems[0]
    cli.announce(job, CPU, torch.float32)
    shown = f"  the first: '<bos> {first['problem']}' -> '{first['answer']}'\n"
    assert shown in capsys.readouterr().out
    first["prompt_ids"] = np.tile(first["prompt_ids"], 100)
    cli.announce(job, CPU, torch.float32)
    assert len(capsys.readouterr().out) < 700

    first["answer"] = "π"
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "ascii")) as ascii_screen:
        cli.announce(job, CPU, torch.float32)
        ascii_screen.seek(0)
        assert r" -> '\u03c0'" in ascii_screen.read()


def test_prompt_and_response_fit_into_the_models_context():
    cfg = Config(max_prompt_length=16, max_completion_length=20)
    for context, left in ((36, 20), (50, 34), (None, math.inf)):
        model = SimpleNamespace(max_position_embeddings=context)
        assert context_left("train", cfg, model) == context_left("eval", cfg, model) == left
    assert context_left("eval", cfg, SimpleNamespace(max_position_embeddings=17)) == 1
    assert context_left("train", cfg, SimpleNamespace()) == math.inf
    lengths = "--max-prompt-length 16"
    for command, context, flags in (
            ("train", 35, f"{lengths} and --max-completion-length 20"), ("eval", 16, lengths)):
        message = f"context of {context} tokens is too short for {flags}$"
        with pytest.raises(SystemExit, match=message):
            context_left(command, cfg, SimpleNamespace(max_position_embeddings=context))


@pytest.mark.parametrize("heads, keys, inner, odd", [
    (8, 4, 12, None),
    (8, 2, 12, None),  # each key head is copied to two GPUs
    (8, None, None, None),
    (6, 4, 12, "num_attention_heads, 6"),
    (8, 3, 12, "num_key_value_heads, 3"),
    (8, 6, 12, "num_key_value_heads, 6"),
    (8, 4, 2, "intermediate_size, 2"),
])
def test_four_gpus_share_a_model_whose_sizes_they_divide(heads, keys, inner, odd):
    model = SimpleNamespace(
        num_attention_heads=heads, num_key_value_heads=keys, intermediate_size=inner)
    if not odd:
        check_parallel(4, model)
        return
    with pytest.raises(SystemExit, match=f"parallel-size 4 does not divide the model's {odd}$"):
        check_parallel(4, model)


def test_problems_are_read_with_bom_crlf_blank_lines_and_worked_solutions(tmp_path):
    rows = [
        {"problem": "a", "answer": "so\n#### 7"},
        {"problem": "b", "answer": "8", "id": "x", "task": "text"},
        {"problem": "c\u2028d", "answer": "thus $\\boxed{\\frac{1}{2}}$.", "id": 5},
    ]
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = tmp_path / "data.jsonl"
    path.write_bytes(text.encode("utf-8-sig"))
    assert [list(row.values()) for row in load_problems(str(path))] == [
        ["1", "a", "7"],
        ["x", "b", "8", "text"],
        ["5", "c\u2028d", "\\frac{1}{2}"],
    ]


def test_answers_may_be_numbers(tmp_path):
    path = tmp_path / "data.jsonl"
    answers = {
        "2": "2",
        "-3": "-3",
        "0": "0",
        "2.50": "2.5",
        str(10**40): str(10**40),
        '"2"': "2",
    }
    for answer, text in answers.items():
        path.write_text(f'{{"problem": "x", "answer": {answer}}}\n')
        (problem,) = load_problems(str(path))
        assert problem["answer"] == text


@pytest.mark.parametrize("ids, expected", [
    ([None, None, None], ["1", "2", "3"]),
    ([None, 1, "x"], ["line 1", "1", "x"]),
    ([2, None, "line 2"], ["2", "line line 2", "line 2"]),
    (["3", "a", None], ["3", "a", "line 3"]),
])
@pytest.mark.parametrize("null", [False, True])
def test_a_row_without_an_id_gets_one_that_no_other_row_has(tmp_path, ids, expected, null):
    rows = []
    for id in ids:
        row = {"problem": "x", "answer": "1"}
        if id is not None or null:
            row["id"] = id
        rows.append(row)
    path = tmp_path / "data.jsonl"
    write_rows(path, rows)
    assert [problem["id"] for problem in load_problems(str(path))] == expected


ROW = '{"problem": "x", "answer": "1", "id": "twice"}'
BAD_ROWS = [
    ROW,
    ROW[:9],
    "[1, 2]",
    '"text"',
    "7",
    '{"problem": "x"}',
    '{"answer": "1"}',
    '{"problem": "", "answer": "1"}',
    '{"problem": "x", "answer": " "}',
    '{"problem": "x", "answer": true}',
    '{"problem": "x", "answer": NaN}',
    '{"problem": "x", "answer": -Infinity}',
    '{"problem": "x", "answer": null}',
    '{"problem": "x", "answer": {"x": 1}}',
    '{"problem": 7, "answer": "7"}',
    '{"problem": "x", "answer": ["1"]}',
    '{"problem": "x", "answer": [2]}',
    '{"problem": "x", "answer": "1", "task": "sums"}',
    '{"problem": "x", "answer": "1", "task": []}',
    '{"problem": "x", "answer": "44", "task": "countdown"}',
    '{"problem": "x", "answer": "3", "task": "number_wall"}',
    r'{"problem": "\ud800", "answer": "1"}',
    r'{"problem": "x", "answer": "\\boxed{}"}',
]


@pytest.mark.parametrize("content, where", [
    (b"", ""),
    (b"\n\n", ""),
    (b'{"problem": "\xff", "answer": "1"}', ", line 1"),
    *((f"{ROW}\n\n{bad}\n{ROW}".encode(), ", line 3") for bad in BAD_ROWS),
])
def test_bad_data_are_named_by_file_and_line(tmp_path, content, where):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"^[^\n]*{path}{where}[^\n]*$"):
        load_problems(str(path))


def test_a_file_gets_lines_and_not_a_progress_bar(tmp_path):
    command = workers.python("-m", "tools.laptop", tmp_path / "data", "--steps", 2)
    done = subprocess.run(
        command, cwd=workers.ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("base model: step ")
