"""Tests of problems: data sets in the hub's format and their local copies, other files of problems,
the choice of problems for training and evaluation, and those of the laptop experiment."""
import json
import math
import random
import re
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import datasets
import pytest

from runtime import cli, data, responses
from runtime.data import DATASETS, GROUPS, load_problems
from simko import Config
from tests import workers
from tests.conftest import ESCAPE, recipe, refused, write_rows
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
        synlogic_row("arrow_maze", "Draw", answer=[["→", 2]]),
        synlogic_row("game_of_24", "Make 24", answer="", metadata={"numbers": [1, 3, 7, 8]}),
        synlogic_row("number_wall", "Walls", metadata={"grid": [[1, "X"]]}),
        synlogic_row("cipher", "No answer", answer=None),
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
                    "problem": "Test  of level 1",
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
    "synlogic-train": ["A,C", '[["→", 2]]', "24 = 1 3 7 8", '[[1, "X"]]'],
    "math500": ["3"],
    "aime24": ["033"],
    "aime25": [r"336^\circ"],
    "amc23": ["27"],
    "minerva": ["1.6e-7"],
    "olympiad": ["2"],
    "gsm8k": ["18"],
    "synlogic": ["A,C", '[["→", 2]]', "24 = 1 3 7 8", '[[1, "X"]]'],
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
        return datasets.Dataset.from_list(HUB[hub][config][split])

    def config_names(hub, revision):
        return list(HUB[hub])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", config_names)
    uncounted = {name: spec._replace(count=None) for name, spec in DATASETS.items()}
    for module in (cli, data, responses, data_program):
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
    others = {
        "synlogic": ["synlogic", "synlogic", "game24", "number_wall"],
        "bbh": ["text", "choice"],
    }
    assert tasks == others.get(name.removesuffix("-train"), ["math"] * len(tasks))


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


def test_training_problems_that_are_test_problems_are_left_out(hub, capsys):
    problems = data.fetch("gsm8k-math1-train")
    assert [problem["problem"] for problem in problems] == ["Apples?", "One plus one?"]
    message = "left out 1 of 3 training problems, which are also test problems"
    assert message in capsys.readouterr().out


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


def test_hub_rows_in_other_columns_and_sets_with_scripts_are_refused(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    trap = tmp_path / "trap"
    (tmp_path / "set" / "set.py").write_text(f"open({str(trap)!r}, 'w')")
    message = f"{tmp_path}/set cannot be read .*scripts are no longer supported"
    with pytest.raises(SystemExit, match=message) as stop:
        load_problems(f"{tmp_path}/set")
    assert refused(stop.value) and not trap.exists()
    rows = datasets.Dataset.from_list([{"x": ESCAPE}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    for source in ("synlogic", "synlogic/other", "a/b"):
        with pytest.raises(SystemExit, match=f"{source}, row ") as stop:
            load_problems(source)
        refused(stop.value)
    failing = mock.Mock(side_effect=datasets.exceptions.DatasetGenerationError(1))
    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(SystemExit, match="a/b cannot be read"):
        load_problems("a/b")


def test_any_hub_set_with_its_columns_named(hub):
    problems = data.load_problems("openai/gsm8k,config=main,split=test,problem=question")
    assert problems == [{"id": "0", "problem": "Pears?", "answer": "18"}]


def test_a_name_that_is_no_set_is_not_asked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(data, "hub_rows", None)
    with pytest.raises(SystemExit, match="MATH-500: there is no such file .* math, logic, gsm8k,"):
        data.load_problems("MATH-500")


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
    line = "math-train.jsonl: 3 problems; the verifier accepts 3 of 3 boxed gold answers"
    assert f"{line}\n" in printed
    for name in ("math-train", "gsm8k-math1-train", "gsm8k"):
        assert answers_of(data.load_problems(name, str(folder))) == ANSWERS[name]

    (copies / "bad.jsonl").write_text('{"problem": "p", "answer": "1"}\n{"problem"')
    (copies / "empty.jsonl").touch()
    unusable = {
        f"aime24={copies}/empty.jsonl": "empty.jsonl has no row with an answer",
        f"aime24={copies}/none.jsonl": "none.jsonl cannot be read",
        "aime23": "unknown data set aime23: choose from",
        f"logic={copies}/bad.jsonl": "logic is a group: give each of its sets .* a file",
        f"aime24={copies}/bad.jsonl": "bad.jsonl, line 2",
        f"gsm8k-math1-train={copies}/gsm8k.jsonl": "is made from other sets: .* --train-data",
        " ".join([*words[:2], "gsm8k-math1-train"]):
            "leaves out the problems of gsm8k and math500: give each of them a file",
    }
    for line, message in unusable.items():
        monkeypatch.setattr(sys, "argv", ["data.py", str(folder), *line.split()])
        with pytest.raises(SystemExit, match=message) as stop:
            data_program.main()
        assert "\n" not in stop.value.code


def test_a_set_that_cannot_be_read_does_not_keep_back_the_others(tmp_path, monkeypatch, verifier):
    lost, *others = GROUPS["logic"]

    def fetch(name):
        if name == lost:
            raise SystemExit(f"{name} cannot be read")
        return [{"problem": name, "answer": "1"}]

    monkeypatch.setattr(data_program, "fetch", fetch)
    monkeypatch.setattr(data_program, "Verifier", lambda: nullcontext(verifier))
    for words, expected in (
            (["logic", "math500"], {*others, "math500"}),
            ([], DATASETS.keys() - {lost})):
        folder = tmp_path / str(len(words))
        monkeypatch.setattr(sys, "argv", ["data.py", str(folder), *words])
        with pytest.raises(SystemExit, match=f"^{lost} cannot be read$"):
            data_program.main()
        assert {path.stem for path in folder.iterdir()} == expected


def test_gold_answers_that_the_verifier_refuses_are_counted(verifier):
    """A rule decides a puzzle of these kinds, and the other answers are judged by their tasks."""
    rows = [
        {"answer": "1/2"},
        {"answer": "}{"},
        {"answer": "B", "task": "choice"},
        {"answer": "}{", "task": "text"},
        {"answer": "1 2 3 4", "task": "game24"},
        {"answer": "[[0]]", "task": "number_wall"},
    ]
    sentence = "the verifier accepts 3 of 4 boxed gold answers"
    assert data_program.check_golds(rows, verifier) == sentence


# -------------------------------------------------------------------------------- files of problems
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
        ",problem=question,split=test": "has no configs or splits, so name",
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


def test_a_task_of_null_is_the_default(tmp_path):
    row = {"problem": "p", "answer": "B"}
    write_rows(tmp_path / "a.jsonl", [row | {"task": None}, row | {"task": "text"}, row])
    problems = data.load_problems(f"{tmp_path}/a.jsonl", task="choice")
    assert [problem.get("task") for problem in problems] == [None, "text", None]
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "answer": "24", "task": ""}')
    with pytest.raises(SystemExit, match="line 1: the task '' is not one of"):
        data.load_problems(f"{tmp_path}/a.jsonl")


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
        str(10**320): str(10**320),  # beyond the floats
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


def test_rows_that_cannot_be_used_are_named_and_what_is_too_long_is_dropped(tiny, tmp_path):
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
    ((problem,),), (dropped,) = job.sets.values(), job.dropped.values()
    assert (problem["id"], dropped) == ("2", 1)
    (benchmark,) = job.benchmarks
    about = benchmark.about(job.cfg)
    assert (about["problems"], about["dropped"]) == (1, 1)
    path.write_text(json.dumps(long))
    with pytest.raises(SystemExit, match="all 1 prompts are longer than --max-prompt-length 16"):
        cli.prepare(recipe(tiny, "eval", tmp_path / "run", "--eval-data", path), Config)
    assert [*tmp_path.iterdir()] == [path]


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
    with pytest.raises(SystemExit, match="one holds a single saved set without configs or splits"):
        data.load_problems(f"{tmp_path}/one,problem=question,split=test")


def test_columns_of_labels_float32_and_media_are_read_as_they_are_meant(tmp_path):
    """A label is a number with a name. The digits of 0.1 in float32 are not those of 0.1, with
    which a response is compared. The image is damaged, and nobody looks at it."""
    kinds = datasets.Features({
        "id": datasets.Value("string"), "problem": datasets.Value("string"),
        "answer": datasets.ClassLabel(names=["Yes", "No"]), "share": datasets.Value("float32"),
        "images": datasets.List(datasets.Image())})
    image = {"bytes": b"damaged", "path": None}
    columns = {"id": [None, "b"], "problem": ["p", "q"], "answer": [1, 0], "share": [0.1, 7],
               "images": [[image], []]}
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(tmp_path / "one")
    labels = data.load_problems(f"{tmp_path}/one")
    assert labels == [{"id": "0", "problem": "p", "answer": "No"},
                      {"id": "b", "problem": "q", "answer": "Yes"}]
    shares = data.load_problems(f"{tmp_path}/one,answer=share")
    assert [problem["answer"] for problem in shares] == ["0.1", "7.0"]
    assert not [*(tmp_path / "one").glob("cache-*")]  # the folder may be read-only
    for name, missing in (("answer", -1), ("share", math.nan)):
        ruined = datasets.Dataset.from_dict(columns | {name: [missing, missing]}, features=kinds)
        ruined.save_to_disk(tmp_path / name)
        with pytest.raises(SystemExit, match="must be a text or a number and not empty, got"):
            load_problems(f"{tmp_path / name},answer={name}")


def test_an_answer_that_cannot_be_used_is_shown_as_it_stands_in_the_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    for answer, message in (
            (r"so \boxed{5", r"the last box is empty or not closed in the answer 'so .*boxed{5'"),
            (r"\boxed{}", "the last box is empty or not closed in the answer"),
            ("so 5 ####", "nothing follows #### in the answer 'so 5 ####'"),
            ("\ud800", "'answer' contains half of a surrogate pair"),
            ("", "'answer' must be a text or a number and not empty, got ''")):
        write_rows(file, [{"problem": "p", "answer": answer}])
        with pytest.raises(SystemExit, match=f"mine.jsonl, line 1: {message}"):
            data.load_problems(str(file))
    saved = datasets.Dataset.from_list([{"problem": "p", "answer": r"so \boxed{5"}])
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(SystemExit, match=r"row 0: the last box is .* 'so .*boxed{5'"):
        data.load_problems(str(tmp_path / "saved"))


def test_a_folder_of_parquet_may_name_tasks_but_not_several_answers(tmp_path, capsys):
    rows = [{"problem": "p", "answer": ["B"], "task": "choice"},
            {"problem": "q", "answer": ["2"], "task": "algebra"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "one" / "part.parquet")
    problems = data.load_problems(f"{tmp_path}/one")
    assert problems == [{"id": "0", "problem": "p", "answer": "B", "task": "choice"},
                        {"id": "1", "problem": "q", "answer": "2"}]
    assert "('algebra', for example)\n" in capsys.readouterr().out
    rows[0]["answer"] = ["B", "C"]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "two" / "part.parquet")
    with pytest.raises(SystemExit, match=r"'answer' must be a text .*, got \['B', 'C'\]"):
        data.load_problems(f"{tmp_path}/two")


def test_files_of_other_formats_are_told_what_to_do(tmp_path):
    for name, message in (
            ("one.parquet", f"only folders of such files are read: name {tmp_path}$"),
            ("one.csv", "is not a .jsonl file: convert it")):
        (tmp_path / name).touch()
        with pytest.raises(SystemExit, match=message):
            data.load_problems(f"{tmp_path}/{name},problem=question")


# -------------------------------------------------------------------------- training and evaluation
def test_training_problems_of_a_set_to_evaluate_on_are_left_out(tmp_path, capsys):
    train = [{"problem": text} for text in (
        "What is  1 + 1, then?", "Find $z^4 - 1.5$.", "Sort 3 11 4", "Count the vowels of Ab",
        "Find the $n$th of $f(1, 2)$.")]
    problems = {
        "train": train,
        "test": [{"problem": "What is $1+1$ then"}, {"problem": "Find the nth of $f(1,2)$"}],
        "other": [{"problem": text} for text in (
            "Find $z^4 + 1.5$.", "Find $z^4 - 15$.", "Sort 3 1 14", "Count the vowels of aB")],
    }
    cfg = SimpleNamespace(train_data="train", eval_data=["test", "other"])
    assert data.without_tests(cfg, problems) == train[1:4]
    line = ("train: 2 problems are also in test, for example 'What is  1 + 1, then?'; the run "
            "does not train on them\n")
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


def plan(*flags, room=10**6):
    """Returns (label, n, temperature, top-p, tokens) of each benchmark that the flags select."""
    _, cfg = cli.parse_config(["eval", "--eval-data", *flags], Config)
    sets = {source: [] for source in cfg.eval_data}
    dropped = dict.fromkeys(sets, 0)
    benchmarks = responses.plan_benchmarks("train", cfg, sets, dropped, room)
    return [(b.label, b.n, b.temperature, b.top_p, b.max_tokens) for b in benchmarks]


@pytest.mark.parametrize("source, name", [
    ("math", "math-train"), ("gsm8k", "gsm8k-train"), ("gsm8k-train", "gsm8k-train"),
    ("mine.jsonl", "mine.jsonl")])
def test_a_set_of_the_hub_is_trained_on_in_its_training_split(source, name):
    _, cfg = cli.parse_config(["train", "--train-data", source], Config)
    assert cfg.train_data == name


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


# ---------------------------------------------------------------------------- the laptop's problems
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

    chain = "7 * 4 = 28 28 + 20 = 48".split()
    monkeypatch.setattr(laptop, "draw", lambda *_: ([4, 7, 20], 48, chain))
    monkeypatch.setitem(laptop.RECIPE, "solving", 1.0)
    pairs = laptop.demonstrations(random.Random(0), {}, (), tokenizer, wordy)
    assert len(pairs) == 128
    shown = {(tokenizer.decode(given), tokenizer.decode(wanted)) for given, wanted in pairs}
    assert shown == {("<bos> 4 7 20 > 48 :", f"{laptop.response(chain, wordy)} <eos>")}


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
