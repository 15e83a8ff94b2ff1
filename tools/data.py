"""Writes the paper's data sets to JSONL files, which simko.py reads with
--data-dir on machines without a network.

    python -m tools.data FOLDER                     all sets, from the hub
    python -m tools.data FOLDER math500 logic       one set and one group
    python -m tools.data FOLDER minerva=copies/minerva.jsonl

The third command converts a local copy, a JSONL file with the hub's columns
or with those that simko.py reads.
"""
import json
import sys
from pathlib import Path

from runtime.common import fail, write_whole
from runtime.data import DATASETS, GROUPS, convert_all, fetch, gsm8k_math1, read_jsonl
from tools import command_line
from verify import Verifier


def read_copy(path, name):
    """Returns the rows of a data set from a local copy. Ends the program if
    the copy cannot be read or no row has an answer."""
    rows = convert_all(name, DATASETS[name], read_jsonl(path))
    return rows or fail(f"{path} has no row with an answer")


def read(name, copies):
    """Returns the rows of a data set from its copy, or from the hub if copies,
    {name: path}, does not contain it."""
    if name in copies:
        return read_copy(copies[name], name)
    if name == "gsm8k-math1-train" and copies.keys() >= {"gsm8k-train", "math-train"}:
        parts = "gsm8k-train", "math-train", "gsm8k", "math500"
        if missing := [part for part in parts if part not in copies]:
            fail(f"{name} leaves out the problems of {' and '.join(missing)}: give each "
                 "of them a file, too")
        gsm8k, math, *tests = (read_copy(copies[part], part) for part in parts)
        return gsm8k_math1(gsm8k, math, sum(tests, []))
    return fetch(name)


def check_golds(rows, verifier):
    """Returns a sentence on how many gold answers the verifier accepts if each
    is in a box. Puzzles that are decided by a rule have no gold answer."""
    golds = [row for row in rows if row.get("task") not in ("game24", "number_wall")]
    answers = [row["answer"] for row in golds]
    tasks = [row.get("task", "math") for row in golds]
    right = sum(verifier.score([f"\\boxed{{{x}}}" for x in answers], answers, tasks))
    return f"the verifier accepts {right:.0f} of {len(golds)} boxed gold answers"


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("folder", type=Path, help="the folder to write the files to")
    parser.add_argument("names", nargs="*", metavar="NAME[=FILE]",
                        help=f"any of {', '.join([*GROUPS, *DATASETS])} (default: all sets)")
    options = parser.parse_args()
    names, copies = parse_names(options.names or DATASETS)
    failed = []
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        with Verifier() as verifier:
            for name in names:
                try:
                    rows = read(name, copies)
                except SystemExit as stop:  # go on with the other sets
                    failed.append(str(stop))
                    continue
                path = options.folder / f"{name}.jsonl"
                write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
                print(f"{path}: {len(rows)} problems; {check_golds(rows, verifier)}", flush=True)
    except OSError as error:
        fail(f"{options.folder} cannot be written ({error.strerror}): name another folder")
    if failed:
        sys.exit("\n".join(failed))


def parse_names(words):
    """Returns (names of sets without repetition, {name: path of its copy}) of
    NAME[=FILE] words. Ends the program if a name is unknown or takes no file."""
    names, copies = [], {}
    for word in words:
        name, equals, file = word.partition("=")
        if equals and name in GROUPS:
            fail(f"{name} is a group: give each of its sets ({', '.join(GROUPS[name])}) a file")
        if equals and name == "gsm8k-math1-train":  # the released file contains test problems
            fail(f"{name} is made from other sets: give gsm8k-train, math-train, gsm8k and "
                 f"math500 a file, and {name} none. To train on a file as it is, name it with "
                 "--train-data")
        if equals:
            names.append(name)
            copies[name] = Path(file)
        else:
            names += GROUPS.get(name, [name])
    if unknown := [name for name in names if name not in DATASETS]:
        known = ", ".join([*GROUPS, *DATASETS])
        fail(f"unknown data set {', '.join(unknown)}: choose from {known}")
    return list(dict.fromkeys(names)), copies


if __name__ == "__main__":
    main()
