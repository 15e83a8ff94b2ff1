"""Loads problems, from the paper's data sets on the Hugging Face hub or from
JSONL files, and decides which of them a batch holds.

A problem is {"id", "problem", "answer"}. If it is not mathematics, it also
has "task", a name in verify.TASKS. tools/data.py writes the paper's data sets
to files for machines without a network."""
import hashlib
import json
import os
import re
from typing import NamedTuple

import numpy as np

from runtime.common import fail, fail_as, number_as_text, one_line, print_once
from runtime.latex import MAX_ANSWER, extract_answer
from runtime.scoring import check_result
from verify import TASKS


class DataSet(NamedTuple):
    """A data set on the Hugging Face hub."""
    hub: str            # id on the hub
    config: str | None  # "*" means all configs
    split: str
    problem: str        # column
    answer: str         # column, which may contain a worked solution
    count: int | None   # expected number of problems, since the hub can change
    n: int = 256        # samples per problem in evaluations (Sec. 5.1)


DATASETS = {
    "math-train": DataSet("EleutherAI/hendrycks_math", "*", "train", "problem", "solution", 7498),
    "gsm8k-train": DataSet("openai/gsm8k", "main", "train", "question", "answer", 7473),
    # `fetch` adds level 1 of MATH to this set.
    "gsm8k-math1-train": DataSet("openai/gsm8k", "main", "train", "question", "answer", None),
    "synlogic-train": DataSet("MiniMaxAI/SynLogic", "easy", "train", "prompt", "extra_info", None),
    "math500": DataSet("HuggingFaceH4/MATH-500", None, "test", "problem", "answer", 500),
    "aime24": DataSet("math-ai/aime24", None, "test", "problem", "solution", 30, 300),
    "aime25": DataSet("math-ai/aime25", None, "test", "problem", "answer", 30, 300),
    "amc23": DataSet("math-ai/amc23", None, "test", "question", "answer", 40, 300),
    "minerva": DataSet("math-ai/minervamath", None, "test", "question", "answer", 272),
    "olympiad": DataSet("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", "question",
                        "final_answer", 674),
    "gsm8k": DataSet("openai/gsm8k", "main", "test", "question", "answer", 1319),
    "synlogic": DataSet("MiniMaxAI/SynLogic", "easy", "validation", "prompt", "extra_info", None,
                        128),
    "bbh": DataSet("SaylorTwift/bbh", "*", "test", "input", "target", 6511, 128),
}
GROUPS = {
    "math": ["math500", "aime24", "aime25", "amc23", "minerva", "olympiad"],
    "logic": ["synlogic", "bbh"]}

# Temperature, top-p and maximum response length; docs/reproduce.md has their source.
PROTOCOL = {"math": (0.6, 0.95, 4096), "logic": (0.7, 0.95, 8192)}

# These tasks need no answer longer than MAX_ANSWER characters. A fork's own may.
SHORT = "math", "countdown", "choice", "text", "synlogic", "game24", "number_wall"

# Other public evaluation code pins the same commits.
# We found no such commit of SynLogic.
REVISIONS = {
    "EleutherAI/hendrycks_math": "21a5633873b6a120296cce3e2df9d5550074f4a3",
    "openai/gsm8k": "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
    "HuggingFaceH4/MATH-500": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    "math-ai/aime24": "83a7f387baaa524a8bda0022eac0541582297103",
    "math-ai/aime25": "563bb8404243c5f09de6ec262f2db674fe5bce9b",
    "math-ai/amc23": "80815d37005feb82cd7f8fbc6901d5d3eff43057",
    "math-ai/minervamath": "ee46ddc498933b1977577953250ca5c66be64f96",
    "Hothan/OlympiadBench": "91184b52131e7fc9455fef848035173aea8cc01a",
    "SaylorTwift/bbh": "b5306be6f827cfafbb545ff5a51f96916029b0fd",
}


# ------------------------------------------------------------- data sets
def fetch(source):
    """Fetches a data set from the hub. Returns a list of rows as `convert`
    makes them.

    source: a name in DATASETS, or an id with columns as in `parse_source`.
    Ends the program if the data set cannot be read or the number of problems
    differs from `DATASETS`."""
    if source == "gsm8k-math1-train":
        # All of MATH's test split, of which MATH-500 is a part.
        tests = hub_rows("EleutherAI/hendrycks_math", "*", "test") + fetch("gsm8k")
        return gsm8k_math1(fetch("gsm8k-train"), fetch("math-train"), tests)
    spec = DATASETS.get(source) or parse_source(source)
    if "/" not in spec.hub and not os.path.exists(spec.hub):
        names = dict.fromkeys(name.removesuffix("-train") for name in [*GROUPS, *DATASETS])
        fail(f"{source}: there is no such file or folder. A hub id has the form owner/name, and "
             f"the names known here are {', '.join(names)}")
    found = hub_rows(spec.hub, spec.config, spec.split)
    rows = convert_all(source, spec, ((f"{source}, row {row['id']}", row) for row in found))
    if spec.count not in (None, len(rows)):
        fail(f"{source} has {len(rows)} problems, not {spec.count}: {spec.hub} has changed, so "
             "results on it are not comparable with earlier ones. Give python -m tools.data an "
             "older copy, or load the changed data set by its id")
    return rows


def parse_source(source):
    """Turns `hub/id,config=NAME,split=train,problem=COLUMN,answer=COLUMN`
    into a DataSet. A folder or a file may take the place of the id. Ends the
    program if a key is unknown."""
    hub, *pairs = source.split(",")
    fields = {"config": None, "split": "train", "problem": "problem", "answer": "answer"}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in fields or not equals:
            fail(f"{source}: after the id come key=value pairs with the keys {', '.join(fields)}")
        fields[key] = value
    return DataSet(hub, **fields, count=None)


def hub_rows(hub, config, split):
    """Returns the rows of a hub data set at its pinned revision, or of a folder."""
    import datasets
    if os.path.isfile(hub):
        if hub.lower().endswith(".parquet"):
            folder = os.path.dirname(hub) or "."
            fail(f"{hub} is a Parquet file, and only folders of such files are read: name {folder}")
        fail(f"{hub} is not a .jsonl file: convert it, with datasets' to_json for example")
    what = f"{hub} cannot be read as a data set"
    if not os.path.isdir(hub):
        what = (f"{hub} cannot be read from the Hugging Face hub (--data-dir can name a folder "
                "of copies), and it is not a .jsonl file")
    revision, rows = REVISIONS.get(hub), []
    with fail_as(what):
        if os.path.isfile(os.path.join(hub, "state.json")):  # by save_to_disk
            if config or split != "train":
                fail(f"{hub} holds a single saved set without configs or splits: "
                     "name only its columns")
            return [*plain_rows(datasets.load_from_disk(hub))]
        configs = [config]
        if config == "*":
            configs = datasets.get_dataset_config_names(hub, revision=revision)
        for name in configs:
            part = datasets.load_dataset(hub, name, split=split, revision=revision)
            prefix = f"{name}-" if config == "*" else ""
            rows += plain_rows(part, prefix)
    return rows


def plain_rows(part, prefix=""):
    """Yields the rows of a datasets.Dataset, with an index for a missing id.

    Labels become their names, and numbers in float32 get back the digits that
    they were written with. Images and sounds are left out, because nothing here
    uses them, and decoding them needs time and further libraries."""
    import datasets
    kinds = {field.name: str(field.type) for field in part.features.arrow_schema}
    part = part.remove_columns([
        name for name, kind in kinds.items()
        if "struct<bytes: binary, path: string>" in kind])
    singles = [name for name, kind in kinds.items() if kind == "float"]
    labels = {name: feature.names for name, feature in part.features.items()
              if isinstance(feature, datasets.ClassLabel)}
    for i, row in enumerate(part):
        row = {"id": None, **row}
        for name in singles:
            if row[name] is not None:
                row[name] = float(str(np.float32(row[name])))
        for name, names in labels.items():
            # -1 stands for no label.
            row[name] = names[row[name]] if row[name] in range(len(names)) else None
        if row["id"] is None:
            row["id"] = f"{prefix}{i}"
        yield row


def convert_all(source, spec, rows):
    """Converts (where, row) pairs. Drops rows of DATASETS that have no answer
    because their box is empty."""
    converted, others = [], set()
    for where, row in rows:
        if row.get("task") not in [None, *TASKS]:
            others.add(str(row["task"]))
        try:
            converted.append(convert(source, spec, row))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            fail(f"{where}: a column of {source} is missing or has the wrong content ({error!r})")
    if others and source not in DATASETS:
        print_once(f"note: {source}: the column task is ignored in rows where it is not one of "
                   f"{', '.join(TASKS)} ({min(others)!r:.80}, for example)")
    return [row for row in converted if row["answer"] or source not in DATASETS]


def convert(source, spec, row):
    """Converts a row with the hub's columns into {"id", "problem",
    "answer"[, "task", "level"]}. The rows of DATASETS may have our columns
    instead. Raises KeyError if a column is missing."""
    if source not in DATASETS:
        for name in (spec.problem, spec.answer):
            if name not in row:
                raise KeyError(f"there is no column {name!r} among {[*row]}; name the columns, as "
                               f"in {spec.hub},problem=question,answer=solution")
    answer = row.get(spec.answer, row.get("answer"))
    made = {"id": str(row["id"]), "problem": row.get(spec.problem, row.get("problem"))}
    if source.startswith("synlogic"):
        made |= synlogic(row)
    elif source == "bbh":
        is_choice = re.fullmatch(r"\([A-Z]\)", answer)
        made |= {"answer": answer, "task": "choice" if is_choice else "text"}
    else:
        # Several answers may be alternatives, except in OlympiadBench.
        if isinstance(answer, list) and (source == "olympiad" or len(answer) == 1):
            answer = ", ".join(answer)
        answer = number_as_text(answer)
        # `check_problem` does this for other sources, and shows what they have.
        is_solution = source in DATASETS and isinstance(answer, str)
        made["answer"] = solution_answer(answer) if is_solution else answer
        if source not in DATASETS and row.get("task") in [*TASKS]:
            made["task"] = row["task"]
    if "level" in row:
        made["level"] = str(row["level"]).removeprefix("Level ")
    return made


def synlogic(row):
    """Converts a puzzle of SynLogic. Rows from the hub contain a chat and a
    JSON text; generated files contain the fields of that text directly."""
    game, prompt = row, row.get("problem")
    if "extra_info" in row:
        game = json.loads(row["extra_info"]["game_data_str"])
    if "prompt" in row:
        prompt = "\n".join(turn["content"] for turn in row["prompt"])
    kind = row.get("data_source") or row.get("source", "")
    facts = game.get("metadata") or {}
    if isinstance(facts, str):
        facts = json.loads(facts)
    if kind.endswith("game_of_24"):
        numbers = " ".join(map(str, facts["numbers"]))
        task, answer = "game24", f"{facts.get('result', 24)} = {numbers}"
    elif kind.endswith("number_wall"):
        task, answer = "number_wall", json.dumps(facts["grid"])
    else:
        task, answer = "synlogic", game["answer"]
        if answer is not None and not isinstance(answer, str):
            answer = json.dumps(answer, ensure_ascii=False)
    return {"problem": prompt, "answer": answer, "task": task}


def gsm8k_math1(gsm8k, math_rows, tests):
    """Returns the problems of GSM8K and of level 1 of MATH, without those
    that are also test problems."""
    rows = [{**row, "id": f"gsm8k-{row['id']}"} for row in gsm8k]
    rows += [{**row, "id": f"math-{row['id']}"} for row in math_rows
             if row.get("level") == "1"]
    kept, shared = separate(rows, tests)
    print_once(f"left out {len(shared)} of {len(rows)} training problems, "
               "which are also test problems")
    return kept


def solution_answer(solution):
    """Extracts the answer of a worked solution: the last box (MATH), else
    the text after "####" (GSM8K), else the entire text. Returns "" for an
    empty box."""
    if "\\boxed" in solution:
        return extract_answer(solution) or ""
    return solution.split("####")[-1].strip()


# -------------------------------------------------------------- problems
def read_jsonl(path):
    """Returns (where, row) for each nonblank line of a file. `where` names the
    line in messages. A row without an id gets its line number as the id, or
    "line NUMBER" if another row has that id. Ends the program if the file or a
    line cannot be read."""
    where, rows = path, []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise ValueError("a row must be an object, {...}")
                    rows.append((number, where, row))
    except (OSError, ValueError, RecursionError) as error:
        fail(f"{where} cannot be read: {one_line(error).replace('line 1 column', 'column')}")
    taken = {str(row["id"]) for *_, row in rows if row.get("id") is not None}
    named = []
    for number, where, row in rows:
        id = row.get("id")
        if id is None:
            id = str(number)
            while id in taken:
                id = f"line {id}"
        named.append((where, {**row, "id": id}))
    return named


def jsonl_file(source):
    """Returns the path of the .jsonl file that a source names, without the
    names of its columns, or None if the source is not such a file."""
    for name in (source, source.split(",")[0]):
        if name.lower().endswith(".jsonl"):
            return name
    return None


def read_columns(source, file):
    """Returns (where, row) for each row of a .jsonl file. "problem" and
    "answer" are from the columns that the source names, as in `parse_source`."""
    spec = parse_source("" if source == file else source)
    if spec.config or spec.split != "train":
        fail(f"{source}: a .jsonl file has no configs or splits, so name only its columns")
    renamed = []
    for where, row in read_jsonl(file):
        for name in (spec.problem, spec.answer):
            if name not in row:
                keys = [key for key in row if key != "id"]
                mend = "add the key, or remove the row"
                if not renamed:  # perhaps no row has it
                    mend = f"name the columns, as in {file},problem=question,answer=solution"
                fail(f"{where}: there is no {name!r} among its keys {keys!r:.200}: {mend}")
        renamed.append((where, {**row, "problem": row[spec.problem], "answer": row[spec.answer]}))
    return renamed


def load_problems(source, data_dir="", task="math"):
    """Loads problems. Returns a list of {"id", "problem", "answer"[, "task"]}.

    source: a .jsonl file or a hub data set, with columns as in
    `parse_source`, or a name in DATASETS. data_dir: a folder of NAME.jsonl
    files to use instead of the hub. task: the task of rows that name none.
    Ends the program with a message that names the first unusable row."""
    path = f"{data_dir}/{source}.jsonl" if data_dir and source in DATASETS else source
    if file := jsonl_file(path):
        rows = read_columns(path, file)
    else:
        rows = [(f"{source}, row {row['id']}", row) for row in fetch(source)]
    problems, answers = {}, []
    for where, row in rows:
        problem = check_problem(where, row, task)
        if problem["id"] in problems:
            fail(f"{where}: an earlier row has the same id, {problem['id']!r:.80}: give "
                 "each row its own id")
        problems[problem["id"]] = problem
        if problem.get("task", task) == "math":
            answers.append((where, problem["answer"]))
    if not problems:
        fail(f"{source} contains no problems")
    check_solutions(source, answers)
    return list(problems.values())


def check_problem(where, row, task):
    """Returns the row as a problem. Ends the program if it is unusable, or if
    its task returns no verdict."""
    own_task = row.get("task")
    if own_task is not None:
        task = own_task
    problem, answer = row.get("problem"), number_as_text(row.get("answer"))
    for name, text in (("problem", problem), ("answer", answer)):
        if not isinstance(text, str) or not text.strip():
            kind = "a text or a number" if name == "answer" else "a text"
            fail(f"{where}: {name!r} must be {kind} and not empty, got {text!r:.80}; "
                 f"the row has the keys {[*row]!r:.200}")
        if text != text.encode("utf-8", "replace").decode():
            fail(f"{where}: {name!r} contains half of a surrogate pair, which UTF-8 cannot "
                 f"encode: correct or remove the row ({text!r:.80})")
    if task == "math":
        solution, answer = answer, solution_answer(answer)
        if not answer:
            boxed = "\\boxed" in solution
            fault = "the last box is empty or not closed" if boxed else "nothing follows ####"
            fail(f"{where}: {fault} in the answer {solution!r:.80}: correct or remove the row")
    if len(answer) > MAX_ANSWER and task in SHORT:
        fail(f"{where}: the answer has {len(answer)} characters, but a response's answer may "
             f"have at most {MAX_ANSWER}: shorten it, or remove the row")
    if task not in [*TASKS]:  # a list: a row's task may be unhashable
        fail(f"{where}: the task {task!r:.80} is not one of {', '.join(TASKS)}")
    try:
        result = TASKS[task]("", answer)
    except Exception as error:  # noqa: BLE001  a task may be a fork's own
        expected = " ".join((TASKS[task].__doc__ or "").split())
        fail(f"{where}: the task {task} raises an error for the answer {answer!r:.80} and an "
             f"empty response: {one_line(error)}. {expected}")
    try:
        check_result(task, result)
    except TypeError as error:
        fail(error.args[0])
    checked = {"id": str(row["id"]), "problem": problem, "answer": answer}
    return checked if own_task is None else {**checked, "task": task}


def check_solutions(source, answers):
    """Refuses a set if at least five percent of its answers of the task math are
    worked solutions, which no response will match. Below that it only prints a
    note: the authors' copy of GSM8K has four. answers: (where, answer)."""
    solutions = [pair for pair in answers if is_solution(pair[1])]
    if not solutions:
        return
    where, answer = solutions[0]
    if len(solutions) < len(answers) / 20:
        print_once(f"note: {source}: {len(solutions)} answers are worked solutions, which no "
                   f"response will match; the first is that of {where}")
        return
    fail(f"{where}: the answer {answer!r:.80} is a worked solution, which no response will "
         "match: mark its final answer with \\boxed{} or ####, or choose another --task")


def is_solution(answer):
    """Returns whether an answer is a worked solution in which `solution_answer`
    has found no box and no "####". No final answer in the paper's sets has
    more than 68 letters outside LaTeX commands."""
    text = re.sub(r"\\[A-Za-z]+", " ", answer)
    letters = re.sub(r"[\W\d_]", "", text)
    has_words = re.search(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}", text)
    return len(letters) > 100 or bool(has_words and "\n" in answer.strip())


def separate(rows, tests):
    """Returns the rows whose problem is not among the tests, and the others. The
    comparison ignores dollar signs, punctuation, and all spaces but those between
    two words or numbers: 3 11 4 is not 3 1 14."""
    def plain(row):
        text = re.sub(r"\s*,\s*", ",", row["problem"].replace("$", ""))
        text = re.sub(r"[;:!?]|[.,](?!\d)|(?<!\d)[.,]", " ", text)
        return re.sub(r" (?!\w)|(?<!\w) ", "", " ".join(text.split()))

    known = {plain(row) for row in tests}
    kept, shared = [], []
    for row in rows:
        (shared if plain(row) in known else kept).append(row)
    return kept, shared


def without_tests(cfg, problems):
    """Returns the training problems that are not in any evaluation set. Ends
    the program if none remain. problems: {source: list of problems}."""
    rows = problems[cfg.train_data]
    for source in cfg.eval_data:
        rows, shared = separate(rows, problems[source])
        if shared:
            print_once(f"{cfg.train_data}: {len(shared)} problems are also in {source}, for "
                       f"example {shared[0]['problem']!r:.80}; the run does not train on them")
    if not rows:
        fail(f"all problems of --train-data {cfg.train_data} are also in the sets of "
             "--eval-data: choose other data for one of them")
    return rows


def prompt_order(batch, batch_size, count, seed):
    """Returns the indices of the prompts in a batch, out of `count` prompts.
    Batches are counted from 0. The order within an epoch is a permutation that
    depends only on (seed, epoch)."""
    positions = np.arange(batch * batch_size, (batch + 1) * batch_size)
    epochs = positions // count
    order = []
    for epoch in np.unique(epochs):
        rng = np.random.default_rng([seed, epoch])
        permutation = rng.permutation(count)
        order += permutation[positions[epochs == epoch] % count].tolist()
    return order


def digest(problems):
    """Returns the SHA-256 of the problems, their answers and their tasks."""
    names = "id", "problem", "answer", "task"
    content = json.dumps([[p[name] for name in names] for p in problems])
    return hashlib.sha256(content.encode()).hexdigest()
