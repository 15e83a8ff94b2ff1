"""Tests of data sets in the hub's format, of local copies, of prompts, and of the sets and
sampling settings of evaluations."""
import json
import logging
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from runtime import cli, data
from runtime.data import DATASETS, GROUPS
from runtime.prompts import BOXED, TEMPLATES, encode_prompts
from simko import Config
from tests import workers
from tests.conftest import write_rows
from tools import data as data_program
from tools import laptop
from verify import Verifier, is_correct

def synlogic_row(game, question, **changes):
    data = {"question": "?", "answer": "A,C", "metadata": {}} | changes
    return {
        "data_source": f"synlogic/{game}",
        "prompt": [{"role": "user", "content": question}],
        "extra_info": {"game_data_str": json.dumps(data)},
    }


def synlogic_rows(split):
    return [
        synlogic_row("boolean_expressions", f"Which? {split}"),
        synlogic_row("game_of_24", "Make 24", answer="", metadata={"numbers": [1, 3, 7, 8]}),
        synlogic_row("number_wall", "Walls", metadata={"grid": [[1, "X"]]}),
    ]


def single_set(*rows, config=None, split="test"):
    return {config: {split: list(rows)}}


HUB = {  # id: {config: {split: rows}}, in the columns that these sets have on the hub
    "EleutherAI/hendrycks_math": {
        "algebra": {
            "train": [
                {
                    "problem": "One plus one?",
                    "level": "Level 1",
                    "type": "Algebra",
                    "solution": r"It is $\boxed{1}$, no, $\boxed{2}$.",
                },
                {
                    "problem": "Empty",
                    "level": "Level 1",
                    "type": "Algebra",
                    "solution": r"$\boxed{}$",
                },
            ],
            "test": [
                {
                    "problem": "Test of level 1",
                    "level": "Level 1",
                    "solution": r"\boxed{5}",
                },
            ],
        },
        "geometry": {
            "train": [
                {
                    "problem": "Area?",
                    "level": "Level 3",
                    "type": "Geometry",
                    "solution": r"$\boxed{\frac{1}{2}}$",
                },
                {
                    "problem": "test  of LEVEL 1",
                    "level": "Level 1",
                    "solution": r"$\boxed{5}$",
                },
            ],
            "test": [],
        },
    },
    "openai/gsm8k": {
        "main": {
            "train": [{"question": "Apples?", "answer": "3+4=<<3+4=7>>7\n#### 1,007"}],
            "test": [{"question": "Pears?", "answer": "so\n#### 18"}],
        },
    },
    "HuggingFaceH4/MATH-500": single_set(
        {"problem": "p", "solution": r"\boxed{3}", "answer": "3"}),
    "math-ai/aime24": single_set(
        {"id": 60, "problem": "p", "solution": r"\boxed{033}", "url": ""}),
    "math-ai/aime25": single_set(
        {"problem": "p", "answer": r"336^\circ", "id": "0"}),
    "math-ai/amc23": single_set(
        {"id": 0, "question": "p", "answer": "27"}),
    "math-ai/minervamath": single_set(
        {"question": "p", "answer": r"1.6e-7"}),
    "Hothan/OlympiadBench": single_set(
        {"id": 1606, "question": "p", "final_answer": ["2"]},
        config="OE_TO_maths_en_COMP",
        split="train",
    ),
    "MiniMaxAI/SynLogic": {
        "easy": {split: synlogic_rows(split) for split in ("train", "validation")},
    },
    "SaylorTwift/bbh": {
        **single_set({"input": "Back?", "target": "Yes"}, config="navigate"),
        **single_set({"input": "Which?", "target": "(B)"}, config="snarks"),
    },
}
ANSWERS = {
    "math-train": ["2", r"\frac{1}{2}", "5"],
    "gsm8k-train": ["1,007"],
    "gsm8k-math1-train": ["1,007", "2"],
    "synlogic-train": ["A,C", "24 = 1 3 7 8", '[[1, "X"]]'],
    "math500": ["3"],
    "aime24": ["033"],
    "aime25": [r"336^\circ"],
    "amc23": ["27"],
    "minerva": ["1.6e-7"],
    "olympiad": ["2"],
    "gsm8k": ["18"],
    "synlogic": ["A,C", "24 = 1 3 7 8", '[[1, "X"]]'],
    "bbh": ["Yes", "(B)"],
}


@pytest.fixture
def hub(monkeypatch):
    """Gives `datasets` a fake hub with one or two rows per set, and ignores the expected counts."""
    def load_dataset(hub, config=None, split=None, revision=None):
        if hub not in HUB:
            raise RuntimeError("no such set")
        assert revision == data.REVISIONS.get(hub)
        assert revision or "SynLogic" in hub
        return HUB[hub][config][split]

    def config_names(hub, revision):
        return list(HUB[hub])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", config_names)
    uncounted = {name: spec._replace(count=None) for name, spec in DATASETS.items()}
    for module in (cli, data, data_program):
        monkeypatch.setattr(module, "DATASETS", uncounted)


def answers_of(problems):
    return [problem["answer"] for problem in problems]


def tasks_of(problems):
    return [problem.get("task", "math") for problem in problems]


@pytest.mark.parametrize("name", DATASETS)
def test_each_set_is_read_in_the_columns_of_the_hub(hub, name):
    problems = data.load_problems(name)
    assert answers_of(problems) == ANSWERS[name]
    assert all(problem["problem"] for problem in problems)
    tasks = tasks_of(problems)
    others = {"synlogic": ["synlogic", "game24", "number_wall"], "bbh": ["text", "choice"]}
    assert tasks == others.get(name.removesuffix("-train"), ["math"] * len(tasks))


def test_training_problems_that_are_test_problems_are_left_out(hub, capsys):
    problems = data.fetch("gsm8k-math1-train")
    assert [problem["problem"] for problem in problems] == ["Apples?", "One plus one?"]
    message = "left out 1 of 3 training problems, which are also test problems"
    assert message in capsys.readouterr().err


UNUSABLE = {  # source: what the message says
    "no/such": "no/such cannot be read",
    "a/b,split": "key=value",
    "a/b,column=c": "key=value",
    "openai/gsm8k,config=main,split=test,problem=quest":
        "no column 'quest' among .'id', 'question', 'answer'.",
}


def test_a_hub_that_changed_or_cannot_be_reached_is_an_error_of_one_line(hub, monkeypatch):
    monkeypatch.setattr(data, "DATASETS", DATASETS)
    with pytest.raises(SystemExit, match="math500 has 1 problems, not 500"):
        data.fetch("math500")
    for source, message in UNUSABLE.items():
        with pytest.raises(SystemExit, match=message) as stop:
            data.load_problems(source)
        assert "\n" not in str(stop.value)


def test_any_hub_set_with_its_columns_named(hub):
    problems = data.load_problems("openai/gsm8k,config=main,split=test,problem=question")
    assert problems == [{"id": "0", "problem": "Pears?", "answer": "18"}]


@pytest.mark.parametrize("name", ["mine.jsonl", "MINE.JSONL"])
def test_a_jsonl_file_with_its_columns_named(name, tmp_path):
    file = tmp_path / name
    write_rows(file, [{"question": "1 + 1?", "solution": r"It is \boxed{2}.", "answer": "two"}])
    problems = data.load_problems(f"{file},problem=question,answer=solution")
    assert problems == [{"id": "1", "problem": "1 + 1?", "answer": "2"}]
    unusable = {
        "": r"line 1: there is no 'problem' among its keys \['question', 'solution', 'answer'\]: "
            f"name the columns, as in {file},problem=question,answer=solution",
        ",problem=question,answer=gold": "line 1: there is no 'gold' among its keys",
        ",problem=question,split=test": "neither config nor split",
        ",column=question": "key=value",
    }
    for columns, message in unusable.items():
        with pytest.raises(SystemExit, match=message) as stop:
            data.load_problems(f"{file}{columns}")
        assert "\n" not in str(stop.value)


SOLUTIONS = [
    "We add. It is 3.\nThe answer is 2",
    "We " + "add, and " * 20 + "the answer is 2",
    "We add $\\frac12$ and 3.\nThe answer is 5",
    r"We \textbf{add}." + "\n" + "And then " * 20 + r"it is $\frac{1}{2}$",
]
FINAL = [
    "2",
    "a\n",
    "[[1,2],\n[3,4]]",
    r"\frac{\text{force}}{\text{mass}}" * 9,
    ", ".join(map(str, range(99))),
    "\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}",
]


def test_worked_solutions_without_a_mark_are_refused_and_a_few_of_them_noted(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    for solution in SOLUTIONS:
        write_rows(file, [{"problem": "p", "answer": answer} for answer in (*FINAL, solution)])
        where = f"{file}, line {len(FINAL) + 1}"
        message = re.escape(f"{where}: the answer {solution!r:.80} is a worked solution")
        with pytest.raises(SystemExit, match=message) as stop:
            data.load_problems(str(file))
        assert "\n" not in str(stop.value)
        assert len(data.load_problems(str(file), task="text")) == len(FINAL) + 1
    assert not capsys.readouterr().out
    write_rows(file, [{"problem": "p", "answer": answer} for answer in (SOLUTIONS[0], *"9" * 100)])
    assert len(data.load_problems(str(file))) == 101
    assert "note: " in (note := capsys.readouterr().out)
    assert f"1 answers are worked solutions, which no response will match; the first is that of " \
           f"{file}, line 1\n" in note


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    saved = datasets.Dataset.from_list([{"question": "1 + 1?", "answer": "so\n#### 2"}])
    problem = {"id": "0", "problem": "1 + 1?", "answer": "2"}
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "splits")
    for name in ("one", "splits"):
        assert data.load_problems(f"{tmp_path}/{name},problem=question") == [problem]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "state.json").write_text("{}")
    with pytest.raises(SystemExit, match="damaged cannot be read as a data set: "):
        data.load_problems(f"{tmp_path}/damaged")
    with pytest.raises(SystemExit, match="one holds one saved set, which has neither config nor"):
        data.load_problems(f"{tmp_path}/one,problem=question,split=test")


def test_a_folder_of_parquet_may_name_tasks_but_not_several_answers(tmp_path, capsys):
    rows = [{"problem": "p", "answer": ["B"], "task": "choice"},
            {"problem": "q", "answer": ["2"], "task": "algebra"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "one" / "part.parquet")
    problems = data.load_problems(f"{tmp_path}/one")
    assert problems == [{"id": "0", "problem": "p", "answer": "B", "task": "choice"},
                        {"id": "1", "problem": "q", "answer": "2"}]
    assert "but 'algebra' for example\n" in capsys.readouterr().out
    rows[0]["answer"] = ["B", "C"]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "two" / "part.parquet")
    with pytest.raises(SystemExit, match=r"'answer' must be a text .*, got \['B', 'C'\]"):
        data.load_problems(f"{tmp_path}/two")


def test_a_name_that_is_no_set_is_not_asked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(data, "hub_rows", None)
    with pytest.raises(SystemExit, match="MATH-500: there is no such file .* math, logic, gsm8k,"):
        data.load_problems("MATH-500")


def test_a_task_of_null_is_the_default(tmp_path):
    row = {"problem": "p", "answer": "B"}
    write_rows(tmp_path / "a.jsonl", [row | {"task": None}, row | {"task": "text"}, row])
    problems = data.load_problems(f"{tmp_path}/a.jsonl", task="choice")
    assert [problem.get("task") for problem in problems] == [None, "text", None]
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "answer": "24", "task": ""}')
    with pytest.raises(SystemExit, match="line 1: the task '' is not one of"):
        data.load_problems(f"{tmp_path}/a.jsonl")


def test_files_of_other_formats_are_told_what_to_do(tmp_path):
    for name, message in (
            ("one.parquet", f"only folders of them are read: name {tmp_path}$"),
            ("one.csv", "is not a .jsonl file: convert it")):
        (tmp_path / name).touch()
        with pytest.raises(SystemExit, match=message):
            data.load_problems(f"{tmp_path}/{name},problem=question")


def test_copies_become_a_folder_for_data_dir(tmp_path, monkeypatch):
    copies, folder = tmp_path / "copies", tmp_path / "data"
    copies.mkdir()
    math = HUB["EleutherAI/hendrycks_math"]
    gsm8k = HUB["openai/gsm8k"]["main"]
    sets = {
        "math-train": math["algebra"]["train"] + math["geometry"]["train"],
        "gsm8k-train": gsm8k["train"],
        "gsm8k": gsm8k["test"],
        "math500": [{"id": "a", "problem": "Test of level 1", "answer": "5"}],
    }
    for name, rows in sets.items():
        write_rows(copies / f"{name}.jsonl", rows)
    words = [f"{name}={copies / name}.jsonl" for name in sets]
    command = workers.python("-m", "tools.data", folder, *words, "gsm8k-math1-train")
    printed = subprocess.check_output(command, cwd=workers.ROOT, text=True)
    line = "math-train.jsonl: 3 problems; the verifier accepts 3 of 3 gold answers in a box"
    assert f"{line}\n" in printed
    for name in ("math-train", "gsm8k-math1-train", "gsm8k"):
        assert answers_of(data.load_problems(name, str(folder))) == ANSWERS[name]

    (copies / "bad.jsonl").write_text('{"problem": "p", "answer": "1"}\n{"problem"')
    unusable = {
        f"aime24={copies}/none.jsonl": "none.jsonl cannot be read",
        "aime23": "unknown data set aime23: choose from",
        f"aime24={copies}/bad.jsonl": "bad.jsonl, line 2",
    }
    for word, message in unusable.items():
        monkeypatch.setattr(sys, "argv", ["data.py", str(folder), word])
        with pytest.raises(SystemExit, match=message) as stop:
            data_program.main()
        assert "\n" not in stop.value.code


def test_training_problems_of_a_set_to_evaluate_on_are_left_out(tmp_path, capsys):
    train = [{"problem": "What is  1 + 1, then?"}, {"problem": "Find $z^4 - 1.5$."}]
    problems = {
        "train": train,
        "test": [{"problem": "what is $1+1$ then"}],
        "other": [{"problem": "Find $z^4 + 1.5$."}, {"problem": "Find $z^4 - 15$."}],
    }
    cfg = SimpleNamespace(train_data="train", eval_data=["test", "other"])
    assert data.without_tests(cfg, problems) == train[1:]
    line = "train: 1 problems are also in test; the run does not train on them\n"
    assert capsys.readouterr().out == line
    with pytest.raises(SystemExit, match="all problems of --train-data train"):
        data.without_tests(cfg, {**problems, "other": train})


@pytest.mark.parametrize("batch_size", [1, 7, 50, 120])
def test_every_epoch_trains_on_each_prompt_once_in_an_order_of_its_own(batch_size):
    """The order does not depend on the size of the batches."""
    count, epochs = 50, []
    for seed in (0, 1):
        steps = range(-(-3 * count // batch_size))
        batches = [data.prompt_order(step, batch_size, count, seed) for step in steps]
        assert {len(batch) for batch in batches} == {batch_size}
        order = sum(batches, [])
        assert order[:3 * count] == [
            i for step in range(3) for i in data.prompt_order(step, count, count, seed)]
        epochs += [order[i:i + count] for i in (0, count, 2 * count)]
    assert all(sorted(epoch) == [*range(count)] for epoch in epochs)
    assert len({*map(tuple, epochs)}) == 6


def test_gold_answers_in_a_box_are_right(hub):
    with Verifier(workers=1) as verifier:
        for name in DATASETS:
            problems = [
                problem for problem in data.load_problems(name)
                if problem.get("task") not in ("game24", "number_wall")
            ]
            golds = answers_of(problems)
            responses = [f"So \\boxed{{{gold}}}." for gold in golds]
            scores = verifier.score(responses, golds, tasks_of(problems))
            assert scores == [1.0] * len(golds)


# ------------------------------------------------------------------------------------------ prompts
QWEN_SYSTEM = (
    "<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n")
QWEN = (
    f"{{%- if messages[0].role != 'system' %}}{QWEN_SYSTEM}{{% endif %}}"
    "{%- for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\n"
    "Today Date: {{ date_string }}\n\n<|eot_id|>"
    "{%- for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>"
    "{% endfor %}"
    "{%- if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}")
PUBLISHED = {  # what the model makers' documentation shows for the question "1 + 1?"
    ("qwen-math", None): (
        f"<|im_start|>system\n{BOXED}<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n"),
    ("chat", QWEN): (
        f"{QWEN_SYSTEM}"
        f"<|im_start|>user\n1 + 1?\n{BOXED}<|im_end|>\n"
        "<|im_start|>assistant\n"),
    ("chat", LLAMA): (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n1 + 1?\n{BOXED}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("plain", None): f"Problem: 1 + 1?\n{BOXED}\nSolution:",
    ("raw", None): "1 + 1?",
}


def make_tokenizer(chat_template):
    """Returns a tokenizer with a token for each byte and for each special token. It adds no
    special tokens by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<|begin_of_text|>",
        additional_special_tokens=[
            "<|im_start|>",
            "<|im_end|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def a_row(problem="1 + 1?", **more):
    return {"id": "0", "problem": problem, "answer": "2"} | more


@pytest.mark.parametrize(
    "template, chat", PUBLISHED, ids=["qwen-math", "qwen", "llama", "plain", "raw"])
def test_prompts_are_in_the_models_published_format(template, chat):
    expected = PUBLISHED[template, chat]
    tokenizer = make_tokenizer(chat)
    if chat:  # whose BOS is in the template, if there is one
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.bos_token_id)])
    (problem,), dropped = encode_prompts([a_row()], tokenizer, Config(prompt_template=template))
    assert tokenizer.decode(problem["prompt_ids"]) == expected
    assert dropped == 0
    cfg = Config(prompt_template=template, max_prompt_length=len(problem["prompt_ids"]))
    kept, dropped = encode_prompts([a_row(), a_row("1 + 10?")], tokenizer, cfg)
    assert len(kept) == dropped == 1
    specials = sum(map(expected.count, tokenizer.all_special_tokens))
    # They are single tokens, not spelt out.
    assert (problem["prompt_ids"] >= 256).sum() == specials


def prompts(rows, tokenizer, cfg):
    """Returns the texts of the prompts that the rows get."""
    made, _ = encode_prompts(rows, tokenizer, cfg)
    return [tokenizer.decode(problem["prompt_ids"]) for problem in made]


def test_puzzles_with_their_own_instructions_are_not_asked_for_a_box():
    rows = [a_row("Q", task=task) for task in ("synlogic", "text")]
    puzzle, question = prompts(rows, make_tokenizer(QWEN), Config())
    assert BOXED not in puzzle
    assert BOXED in question
    assert "user\nQ<|im_end|>" in puzzle


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_problem_beyond_the_tokenizers_limit_is_dropped_without_a_warning(
        template, monkeypatch, caplog):
    """transformers would warn of errors when the model reads the problem, which it never does."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = make_tokenizer(QWEN)
    tokenizer.model_max_length = 300
    cfg = Config(prompt_template=template, max_prompt_length=300)
    (kept,), dropped = encode_prompts([a_row("1" * 999), a_row("2")], tokenizer, cfg)
    assert (kept["problem"], dropped) == ("2", 1)
    assert not caplog.records
    tokenizer.encode("1" * 999)  # as it would have said
    assert "longer than the specified maximum" in caplog.text


# Mistral's tokenizers put a BOS before a text. Some fine-tuned ones put an EOS after it.
ADDED = {
    "nothing": ("$A", [], []),
    "BOS": ("{bos} $A", ["{bos}"], []),
    "EOS": ("$A {eos}", [], ["{eos}"]),
    "both": ("{bos} $A {eos}", ["{bos}"], ["{eos}"]),
}


@pytest.mark.parametrize("template", ["plain", "raw", "qwen-math"])
@pytest.mark.parametrize("problem", ["1 + 1?", "what does {eos} mean, and {bos}? {eos}"])
@pytest.mark.parametrize("case", ADDED)
def test_a_prompt_keeps_the_bos_and_has_no_eos_behind_it(case, problem, template):
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = "<|eot_id|>"
    names = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    single, front, behind = ADDED[case]
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in names.values()]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single.format(**names), pair=None, special_tokens=ids)
    problem = problem.format(**names)
    if behind:  # the tokenizer does add an EOS
        assert tokenizer.decode(tokenizer.encode(problem)[-1:]) == names["eos"]

    text = TEMPLATES[template].replace("{ask}", BOXED).replace("{problem}", problem)
    text = "".join(front).format(**names) + text
    assert prompts([a_row(problem)], tokenizer, Config(prompt_template=template)) == [text]


CLOCKS = [
    "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}",
    "{% if not date_string is defined %}"
    "{% set date_string = strftime_now('%S.%f') %}"
    "{% endif %}"
    "{{ date_string }}",
]


@pytest.mark.parametrize("clock", CLOCKS, ids=["strftime_now", "date_string"])
def test_prompts_do_not_change_with_the_time_of_day(clock):
    tokenizer = make_tokenizer(clock + "{{ messages[0]['content'] }}")
    texts = set(prompts([a_row()] * 3, tokenizer, Config()))
    assert len(texts) == 1
    assert "2024" in texts.pop()


def test_a_chat_template_gets_its_arguments():
    tokenizer = make_tokenizer(
        "{{ messages[0]['content'] }}"
        "{% if enable_thinking is not defined %} think"
        "{% elif not enable_thinking %} no"
        "{% endif %}, {{ date_string }}")
    rows = [a_row("Q", task="synlogic")]

    def prompt(**arguments):
        (text,) = prompts(rows, tokenizer, Config(chat_template_kwargs=arguments))
        return text

    assert prompt() == "Q think, 26 Jul 2024"
    assert prompt(enable_thinking=True) == "Q, 26 Jul 2024"
    assert prompt(enable_thinking=False) == "Q no, 26 Jul 2024"
    assert prompt(date_string="today") == "Q think, today"


# --------------------------------------------------------------------------------------- evaluation
def plan(*flags, room=10**6):
    """Returns (label, n, temperature, top-p, tokens) of each benchmark that the flags select."""
    _, cfg = cli.parse_config(["eval", "--eval-data", *flags], Config)
    sets = {source: ([], 0) for source in cfg.eval_data}
    benchmarks = cli.plan_benchmarks("train", cfg, sets, room)
    return [(b.label, b.n, b.temperature, b.top_p, b.max_tokens) for b in benchmarks]


def test_each_benchmark_is_evaluated_as_in_the_paper_unless_a_flag_says_otherwise():
    for name, n, *others in plan("math"):
        assert n == (300 if name.startswith(("aime", "amc")) else 256)
        assert others == [0.6, 0.95, 4096]
    assert [name for name, *_ in plan("math")] == list(GROUPS["math"])
    assert plan("logic", "mine.jsonl", room=5000) == [
        ("synlogic", 128, 0.7, 0.95, 5000),
        ("bbh", 128, 0.7, 0.95, 5000),
        ("mine", 256, 0.6, 0.95, 4096),
    ]
    flags = "--eval-n", "8", "--eval-top-p", "1", "--eval-max-tokens", "99"
    assert plan("aime24", *flags) == [("aime24", 8, 0.6, 1, 99)]
    for flags in (("--eval-temperature", "0.2", "1.0"), ("--temperature", "0.2,1.0"),
                  ("--temperature=0.2,1.0",), ("--eval_temperature=0.2,1.0",)):
        assert plan("amc23", *flags, "--eval-n", "4") == [
            ("amc23@T0.2", 4, 0.2, 0.95, 4096),
            ("amc23@T1.0", 4, 1.0, 0.95, 4096),
        ]


@pytest.mark.parametrize("wordy", [False, True])
def test_the_laptops_demonstrations_are_what_its_verifier_reads(wordy, monkeypatch):
    tokenizer = laptop.make_tokenizer(wordy)
    chains = sorted(laptop.chains((4, 7, 20)))
    for *chain, target in chains:
        text = laptop.response(chain, wordy)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert 0 not in ids  # 0 means an unknown token
        assert tokenizer.decode(ids) == text
        assert is_correct(text, f"{target} = 4 7 20", "countdown")
        assert not is_correct(text, f"{target} = 4 7 7", "countdown")

    def draw(rng, legal, held_out):
        """Draws one of two problems, so that prompts have unequal lengths."""
        if rng.random() < 0.5:
            return [4, 7, 2], 30, "7 * 4 = 28 28 + 2 = 30".split()
        return [4, 7, 20], 48, "7 * 4 = 28 28 + 20 = 48".split()

    monkeypatch.setattr(laptop, "draw", draw)
    monkeypatch.setitem(laptop.RECIPE, "solving", 1.0)
    ids, labels, shortest = laptop.demonstrations(
        random.Random(0), {(4, 7, 20): chains}, (), tokenizer, wordy)
    assert ids.shape == labels.shape == (128, ids.shape[1])
    for row, learnt in zip(ids, labels):
        start = int((learnt != -100).nonzero()[0])
        assert tokenizer.decode(row[:start]) in ("<bos> 4 7 20 > 48 :", "<bos> 4 7 2 > 30 :")
        assert start >= shortest
        kept = learnt[learnt != -100]
        assert tokenizer.decode(kept).endswith("<eos>")
        assert "<bos>" not in tokenizer.decode(kept)
        assert (row[start:start + len(kept)] == kept).all()
        assert not row[start + len(kept):].any()  # padding, and no label on it
    assert (labels[:, shortest] != -100).any()


def test_the_laptops_sets_share_no_problem_that_they_must_not(tmp_path):
    """In any order of its numbers, no problem of valid or test is one of train or of the other."""
    legal, words, keys = laptop.all_chains(), laptop.vocabulary(), {}
    laptop.write_problems(random.Random(0), legal, tmp_path)
    for name, size in (("train", 4000), ("valid", 200), ("test", 200)):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        rows, found = [json.loads(line) for line in lines], []
        assert [row["id"] for row in rows] == [f"{name}-{i}" for i in range(size)]
        for row in rows:
            target, *numbers = map(int, row["answer"].replace("=", "").split())
            assert row["problem"] == laptop.prompt(numbers, target)
            assert 40 <= target <= 83 and target not in numbers and max(numbers) <= 20
            assert any(chain[-1] == target for chain in legal[tuple(sorted(numbers))])
            found.append(laptop.key(numbers, target))
        keys[name] = {*found}
    assert all(str(number) in words for number in range(84))
    assert len(keys["valid"]) == len(keys["test"]) == 200
    assert not keys["test"] & keys["valid"] and not keys["train"] & (keys["test"] | keys["valid"])
