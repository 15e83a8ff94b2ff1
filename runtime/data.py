"""Problems: the paper's data sets from the Hugging Face hub, JSONL files,
and which of them a step takes.

A problem is {"id", "problem", "answer"} and, if it is not mathematics,
{"task"}, a name in verify.TASKS. tools/data.py writes the paper's sets to
files for machines without a network."""
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.common import fail, one_line
from verify import MAX_ANSWER, TASKS, extract_answer


class DataSet(NamedTuple):
    """A data set of the paper on the Hugging Face hub; `fetch` fetches it, at a pinned revision."""
    hub: str            # id
    config: str | None  # "*": all of them
    split: str
    problem: str        # column
    answer: str         # column; of a worked solution, what counts is behind "####" or in the last box
    count: int | None   # problems, checked when it is fetched: what is on the hub can change
    n: int = 256        # samples a problem when it is evaluated (Sec. 5.1)


DATASETS = {
    "math-train": DataSet("EleutherAI/hendrycks_math", "*", "train", "problem", "solution", 7498),
    "gsm8k-train": DataSet("openai/gsm8k", "main", "train", "question", "answer", 7473),
    "gsm8k-math1-train": DataSet("openai/gsm8k", "main", "train", "question", "answer", None),  # and level 1 of MATH
    "synlogic-train": DataSet("MiniMaxAI/SynLogic", "easy", "train", "prompt", "extra_info", None),
    "math500": DataSet("HuggingFaceH4/MATH-500", None, "test", "problem", "answer", 500),
    "aime24": DataSet("math-ai/aime24", None, "test", "problem", "solution", 30, 300),
    "aime25": DataSet("math-ai/aime25", None, "test", "problem", "answer", 30, 300),
    "amc23": DataSet("math-ai/amc23", None, "test", "question", "answer", 40, 300),
    "minerva": DataSet("math-ai/minervamath", None, "test", "question", "answer", 272),
    "olympiad": DataSet("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", "question", "final_answer", 674),
    "gsm8k": DataSet("openai/gsm8k", "main", "test", "question", "answer", 1319),
    "synlogic": DataSet("MiniMaxAI/SynLogic", "easy", "validation", "prompt", "extra_info", None, 128),
    "bbh": DataSet("SaylorTwift/bbh", "*", "test", "input", "target", 6511, 128),
}
GROUPS = {"math": ["math500", "aime24", "aime25", "amc23", "minerva", "olympiad"], "logic": ["synlogic", "bbh"]}
PROTOCOL = {"math": (0.6, 0.95, 4096), "logic": (0.7, 0.95, 8192)}  # temperature, top-p, tokens (released recipes)
REVISIONS = {  # commits that other public evaluation code pins too; SynLogic's is missing: none was found
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


def fetch(source):
    """The rows of a name in DATASETS or of a hub data set hub/id,config=NAME,split=train,problem=COLUMN,answer=COLUMN.
    Rows of DATASETS without an answer (an empty box) are left out; a count other than the table's is an error."""
    if source == "gsm8k-math1-train":
        math_tests = hub_rows(DATASETS["math-train"].hub, "*", "test")  # all: MATH-500 is a part of it
        return gsm8k_math1(fetch("gsm8k-train"), fetch("math-train"), fetch("gsm8k") + [row for row, _ in math_tests])
    spec = DATASETS.get(source) or parse_source(source)
    rows = []
    for row, id in hub_rows(spec.hub, spec.config, spec.split):
        try:
            rows.append(convert(source, spec, row, id))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            fail(f"{source}, row {id}: its columns are not the expected ones ({error!r})")
    if source in DATASETS:
        rows = [row for row in rows if row["answer"]]
    if spec.count not in (None, len(rows)):
        fail(f"{source} has {len(rows)} problems, not {spec.count}: {spec.hub} has changed, and results on it are not "
             "comparable. To use it all the same: python tools/data.py FOLDER with an older copy, or load it by its id")
    return rows


def parse_source(source):
    """hub/id,config=NAME,split=train,problem=COLUMN,answer=COLUMN as a DataSet."""
    hub, *pairs = source.split(",")
    fields = {"config": None, "split": "train", "problem": "problem", "answer": "answer"}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in fields or not equals:
            fail(f"{source}: after the id come key=value pairs with the keys {', '.join(fields)}")
        fields[key] = value
    return DataSet(hub, **fields, count=None)


def hub_rows(hub, config, split):
    """[(row, id)] of a hub data set at its pinned revision; config "*": all of them, one after another."""
    import datasets
    revision = REVISIONS.get(hub)
    try:
        configs = datasets.get_dataset_config_names(hub, revision=revision) if config == "*" else [config]
        return [(row, f"{name}-{i}" if config == "*" else str(i)) for name in configs
                for i, row in enumerate(datasets.load_dataset(hub, name, split=split, revision=revision))]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:  # no network, no such set
        return fail(f"{hub} cannot be read from the Hugging Face hub, and is no .jsonl file: "
                    + " ".join(str(error).split())[:300])


def convert(source, spec, row, id):
    """A row in the hub's columns, or in ours, as {"id", "problem", "answer"[, "task", "level"]}."""
    problem, answer = row.get(spec.problem, row.get("problem")), row.get(spec.answer, row.get("answer"))
    made = {"id": str(row.get("id", id)), "problem": problem}
    if source.startswith("synlogic"):
        made |= synlogic(row)
    elif source == "bbh":
        made |= {"answer": answer, "task": "choice" if re.fullmatch(r"\([A-Z]\)", answer) else "text"}
    else:
        text = ", ".join(answer) if isinstance(answer, list) else answer  # Olympiad's: a list, of one string
        text = str(text) if isinstance(text, int) else text
        made["answer"] = final_answer(text) if isinstance(text, str) else text
    if "level" in row:
        made["level"] = str(row["level"]).removeprefix("Level ")
    return made


def synlogic(row):
    """SynLogic's puzzle: on the hub a chat and a JSON string, in generated files the fields of the latter."""
    game = json.loads(row["extra_info"]["game_data_str"]) if "extra_info" in row else row
    prompt = "\n".join(turn["content"] for turn in row["prompt"]) if "prompt" in row else row["problem"]
    kind = row.get("data_source") or row.get("source", "")
    facts = game.get("metadata") or {}
    facts = json.loads(facts) if isinstance(facts, str) else facts
    if kind.endswith("game_of_24"):
        numbers = " ".join(map(str, facts["numbers"]))
        return {"problem": prompt, "answer": f"{facts.get('result', 24)} = {numbers}", "task": "game24"}
    if kind.endswith("number_wall"):
        return {"problem": prompt, "answer": json.dumps(facts["grid"]), "task": "number_wall"}
    answer = game["answer"] if isinstance(game["answer"], str) else json.dumps(game["answer"], ensure_ascii=False)
    return {"problem": prompt, "answer": answer, "task": "synlogic"}


def gsm8k_math1(gsm8k, math, tests):
    """GSM8K's problems and those of MATH that have level 1, without those that are a problem of the tests too."""
    rows = [{**row, "id": f"gsm8k-{row['id']}"} for row in gsm8k] + [
        {**row, "id": f"math-{row['id']}"} for row in math if row.get("level") == "1"]
    kept = outside(rows, tests)
    print(f"{len(rows) - len(kept)} of {len(rows)} training problems are test problems too: left out", file=sys.stderr)
    return kept


def final_answer(solution):
    """What counts of a worked solution: what is behind "####" (GSM8K), else in the last box (MATH), else all of it; ""
    for an empty box."""
    return (extract_answer(solution) or "") if "\\boxed" in solution else solution.split("####")[-1].strip()


def load_problems(source, data_dir="", task="math"):
    """[{"id", "problem", "answer"}, some with a "task" of their own] of a .jsonl file with these fields (id and task
    optional), of a name in DATASETS or of a hub data set `hub/id,config=NAME,split=train,problem=COLUMN,answer=COLUMN`.

    data_dir: a folder of NAME.jsonl that stands in for the hub; task: of rows that name none. An answer may be a worked
    solution."""
    rows, where = [], str(Path(data_dir, f"{source}.jsonl") if data_dir and source in DATASETS else source)
    if where.endswith(".jsonl"):
        try:
            for number, line in enumerate(Path(path := where).read_bytes().splitlines(), 1):
                where = f"{path}, line {number}"
                if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise ValueError('a row must be an object, {"problem": ..., "answer": ...}')
                    rows.append((where, {"id": number, **row}))
        except (OSError, ValueError, RecursionError) as error:  # ValueError: of JSON and UTF-8 alike
            fail(f"{where} cannot be read: {one_line(error).replace('line 1 column', 'column')}")
    else:
        rows = [(f"{source}, row {row['id']}", row) for row in fetch(source)]
    problems = {}
    for where, row in rows:
        problem, answer = row.get("problem"), row.get("answer")
        if isinstance(answer, str) and row.get("task", task) == "math":
            answer = final_answer(answer)
        for name, text in (("problem", problem), ("answer", answer)):
            if not isinstance(text, str) or not text.strip() or text.encode("utf-8", "replace").decode() != text:
                fail(f"{where}: '{name}' must be a text and not empty, got {text!r:.80}; the row has "
                     f"{[*row][isinstance(row['id'], int):]!r:.200}")
        if len(answer) > MAX_ANSWER:
            fail(f"{where}: the answer has {len(answer)} characters, and no response with more than {MAX_ANSWER} is "
                 "right: shorten it, or remove the row")
        if row.get("task", "math") not in [*TASKS]:
            fail(f"{where}: the task {row['task']!r:.80} is none of {', '.join(TASKS)}")
        try:
            TASKS[row.get("task", task)]("", answer, False)
        except (ValueError, TypeError, RecursionError):
            name = row.get("task", task)
            fail(f"{where}: {answer!r:.80} is no answer of the task {name}: {' '.join(TASKS[name].__doc__.split())}")
        id = str(row["id"])
        if id in problems:
            fail(f"{where}: the id {id!r:.80} stands in an earlier row already")
        problems[id] = {"id": id, "problem": problem, "answer": answer}
        if "task" in row:
            problems[id]["task"] = row["task"]
    return list(problems.values()) or fail(f"{source} holds no problems")


def outside(rows, tests):
    """The rows whose problem is none of the tests', but for case, spacing, dollars and punctuation."""
    def plain(row):
        text = re.sub(r"[\s$]", "", row["problem"].casefold())
        return re.sub(r"[;:!?]|[.,](?!\d)|(?<!\d)[.,]", "", text)
    known = {plain(row) for row in tests}
    return [row for row in rows if plain(row) not in known]


def without_tests(cfg, problems):
    """The training problems that are in none of the sets to evaluate on."""
    rows = problems[cfg.train_data]
    for source in cfg.eval_data:
        kept = outside(rows, problems[source])
        if len(kept) < len(rows):
            print(f"{cfg.train_data}: {len(rows) - len(kept)} problems are in {source} too: not trained on", flush=True)
        rows = kept
    return rows or fail(f"all problems of --train-data {cfg.train_data} are in the sets of --eval-data")


def prompt_order(step, batch_size, count, seed):
    """Which of `count` prompts a step takes: one permutation after
    another, each a function of (seed, epoch)."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // count
    order = []
    for epoch in np.unique(epochs):
        rng = np.random.default_rng([seed, epoch])
        permutation = rng.permutation(count)
        order += permutation[places[epochs == epoch] % count].tolist()
    return order
