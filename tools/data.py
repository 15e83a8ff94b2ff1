"""The paper's data sets as JSONL files that simko.py reads with --data-dir, for machines without a network.

    python tools/data.py FOLDER                                         every set in simko.DATASETS, from the hub
    python tools/data.py FOLDER math500 logic                           these; math and logic are groups of them
    python tools/data.py FOLDER minerva=copies/minerva_math.jsonl ...   from copies, .jsonl or .jsonl.gz, in the hub's
                                                                        columns or ours
A row is {"id", "problem", "answer"} and, where it is not math, {"task"}: a name in verify.TASKS. Without --data-dir,
simko.py calls `fetch` itself.
"""
import argparse
import gzip
import json
import re
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simko import DATASETS, GROUPS, DataSet, fail, write_whole  # noqa: E402
from tools.checks import final_answer, outside  # noqa: E402
from verify import Verifier  # noqa: E402

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


def read_copy(path, source):
    """The rows of a .jsonl or .jsonl.gz file, in the hub's columns or ours."""
    rows, number = [], 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                rows.append(convert(source, DATASETS[source], json.loads(line), str(number)))
    except (OSError, EOFError, zlib.error) as error:
        fail(f"{path} cannot be read: {error}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        fail(f"{path}, line {number}: not a row of {source} ({error!r})")
    return [row for row in rows if row["answer"]] or fail(f"{path} has no row with an answer")


def read(name, copies):
    """The rows of a name in DATASETS from its file in `copies`, else from the hub."""
    if name in copies:
        return read_copy(copies[name], name)
    if name == "gsm8k-math1-train" and {"gsm8k-train", "math-train"} <= copies.keys():
        gsm8k, math, *tests = (read_copy(copies[part], part) if part in copies else []
                               for part in ("gsm8k-train", "math-train", "gsm8k", "math500"))
        return gsm8k_math1(gsm8k, math, sum(tests, []))
    return fetch(name)


def check_golds(rows, verifier):
    """How many gold answers are right when a response puts them in a box; where a rule decides, there is none."""
    golds = [row for row in rows if row.get("task") not in ("game24", "number_wall")]
    answers, tasks = [row["answer"] for row in golds], [row.get("task", "math") for row in golds]
    right = sum(verifier.score([f"\\boxed{{{answer}}}" for answer in answers], answers, tasks))
    return f"in a box, {right:.0f} of {len(golds)} golds pass the verifier"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME[=FILE]", help=f"of {', '.join(DATASETS)}")
    options = parser.parse_args()
    names = [name for word in options.names for name in GROUPS.get(word, [word])] or list(DATASETS)
    copies = {name: Path(file) for name, equals, file in (word.partition("=") for word in names) if equals}
    names = [word.partition("=")[0] for word in names]
    if unknown := [name for name in names if name not in DATASETS]:
        fail(f"{', '.join(unknown)}: none of {', '.join(DATASETS)}")
    failed = []
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{options.folder} cannot be written: {error}")
    with Verifier() as verifier:
        for name in names:
            try:
                rows = read(name, copies)
            except SystemExit as stop:  # one set that cannot be had does not keep back the others
                failed.append(str(stop))
                continue
            try:
                write_whole(options.folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            except OSError as error:
                fail(f"{options.folder} cannot be written: {error}")
            print(f"{options.folder / name}.jsonl: {len(rows)} problems; {check_golds(rows, verifier)}", flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
