"""Write the paper's data sets to JSONL files that simko.py reads with --data-dir, for machines without a network.

    python -m tools.data FOLDER                                         all sets in DATASETS, from the hub
    python -m tools.data FOLDER math500 logic                           these; math and logic are groups of sets
    python -m tools.data FOLDER minerva=copies/minerva_math.jsonl ...   from copies, .jsonl or .jsonl.gz, with the
                                                                        hub's columns or ours
"""
import argparse
import gzip
import json
import sys
import zlib
from pathlib import Path

from runtime.common import fail, write_whole
from runtime.data import DATASETS, GROUPS, convert, fetch, gsm8k_math1
from verify import Verifier


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
