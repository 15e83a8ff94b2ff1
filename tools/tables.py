"""pass@K tables from evaluations, in the layouts of the paper's Tables 1, 2, 4 and 5.

    python tools/tables.py base=runs/grpo/eval_000000 GRPO=runs/grpo SimKO=runs/simko --paper qwen2.5-math-7b

Each [LABEL=]FOLDER is an evaluation's, or a run's (its last evaluation). A mean over sets counts each set the same;
± is the standard error over problems: 1000 bootstrap draws of the problems within each set.
"""
import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from simko import pass_at_k, printable  # noqa: E402

PAPER = json.loads((ROOT / "docs" / "paper_tables.json").read_text(encoding="utf-8"))
SETTINGS = {"n": "n", "temperature": "T", "top_p": "top-p", "max_tokens": "max tokens", "problems": "problems",
            "prompt_template": "template"}


class Row(NamedTuple):
    label: str
    folder: Path | None        # None: the paper's
    temperature: float | None  # None: no folder has several, or its sets differ in theirs
    sets: dict                 # name -> entry of eval.json; of the paper: name or "average" -> {K: number}

    @property
    def name(self):
        return self.label if self.temperature is None else f"{self.label}, T = {self.temperature}"


def printable_texts(fields):
    return {printable(key): printable(value) if isinstance(value, str) else value for key, value in fields.items()}


@contextmanager
def printable_exit():
    """What stops a program is said in a line, with nothing in it that a terminal would obey."""
    try:
        yield
    except SystemExit as stop:
        sys.exit(printable(stop.code) if isinstance(stop.code, str) else stop.code)


def read(path):
    """The sets of an eval.json, each with its prompt template; exits with one line if they cannot be relied on."""
    if not path.is_file():
        sys.exit(f"{path} is not there: the evaluation is unfinished (the command that began it goes on with it; an "
                 "earlier eval_STEP can be named instead), or the folder is not that of an evaluation or run")
    try:
        report = json.loads(path.read_bytes(), object_hook=printable_texts)
        for label, entry in report["sets"].items():
            entry["prompt_template"] = report["settings"]["prompt_template"]
            right, numbers = list(entry["correct"].values()), {*SETTINGS, "truncated"} - {"prompt_template"}
            if not (all(isinstance(entry[key], int | float) for key in numbers) and label.startswith(entry["set"])
                    and 0 < len(right) == entry["problems"]
                    and all(isinstance(c, int) and c in range(entry["n"] + 1) for c in right)):
                raise ValueError(f"{label}: its settings, problems and counts of right answers do not fit together")
        return report["sets"] or sys.exit(f"{path} has no sets: name some with --eval-data and evaluate again")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        sys.exit(f"{path} is damaged or of another version of simko.py ({error!r}): run the evaluation again")


def load(arguments):
    """Rows of [LABEL=]FOLDER arguments: one each or, where there are several temperatures, one a temperature."""
    rows = []
    for argument in arguments:
        label, _, folder = ("", "", argument) if Path(argument).is_dir() else argument.rpartition("=")
        folder, label = Path(folder), printable(label or str(Path(folder)))
        if any(row.label == label for row in rows):
            sys.exit(f"two folders have the label {label}: give each its own, as LABEL=FOLDER")
        steps = sorted((p for p in folder.glob("eval_*") if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))
        last = steps[-1] if steps else folder
        groups = {}
        for key, entry in read(last / "eval.json").items():
            groups.setdefault(None if key == entry["set"] else entry["temperature"], {})[entry["set"]] = entry
        for sets in groups.values():
            temperature, *others = {entry["temperature"] for entry in sets.values()}
            rows.append(Row(label, folder, None if others else temperature, sets))
    if len(rows) == len(arguments):
        rows = [row._replace(temperature=None) for row in rows]
    return sorted(rows, key=lambda row: row.temperature or 0)


def paper_rows(model, sweep):
    """The paper's rows for `model`: of Table 5 beside several temperatures, if it has them; else of Tables 1, 2, 4."""
    found = {}
    for table in "5" if sweep and model in PAPER["tables"]["5"]["rows"] else "124":
        table = PAPER["tables"][table]
        for method, values in table["rows"].get(model, {}).items():
            for name, numbers in zip(table["sets"], values):
                found.setdefault(method.partition("@T")[::2], {}).setdefault(name, {}).update(zip(table["K"], numbers))
    return [Row(f"paper: {method}", None, float(t) if t else None, sets) for (method, t), sets in found.items()]


def pass_rates(entries):
    """{K: (mean, standard error)} of one set, or averaged over several, for K = 1, 2, 4, ... up to the smallest n."""
    ks = [2**i for i in range(min(entry["n"] for entry in entries).bit_length())]
    rng, mean, draws = np.random.default_rng(0), 0, 0
    for entry in entries:
        n, correct = entry["n"], list(entry["correct"].values())
        each = torch.stack([pass_at_k(n, torch.arange(n + 1), k) for k in ks], 1)[correct].numpy()  # (problems, Ks)
        drawn = rng.multinomial(len(each), np.full(len(each), 1 / len(each)), 1000)  # times each problem is drawn
        mean, draws = mean + each.mean(0) / len(entries), draws + drawn @ each / len(each) / len(entries)
    return dict(zip(ks, zip(mean.tolist(), draws.std(0).tolist())))


def cells(row, names):
    """{K: text} of the mean over the sets `names`; empty if the row does not have it."""
    if row.folder is None:
        key = names[0] if len(names) == 1 else "average" if {*names, "average"} == row.sets.keys() else None
        return {k: str(number) for k, number in row.sets.get(key, {}).items()}
    if not row.sets.keys() >= set(names):
        return {}
    return {k: f"{100 * m:.1f} ± {100 * e:.1f}" for k, (m, e) in pass_rates([row.sets[n] for n in names]).items()}


def curve_table(rows, names):
    """As Tables 1 and 2: the mean over the sets `names`, a column a K."""
    found = [(row.name, texts) for row in rows if (texts := cells(row, names))]
    ks = sorted({k for _, texts in found for k in texts})
    return [["", *(f"K={k}" for k in ks)], *([name, *(texts.get(k, "–") for k in ks)] for name, texts in found)]


def set_table(rows, columns):
    """As Tables 4 and 5: for each list of sets a column of pass@1 / pass@K, at the largest K that every folder has."""
    table = [[""], *([row.name] for row in rows)]
    for names in columns:
        n = min(row.sets[name]["n"] for row in rows for name in names if row.folder and name in row.sets)
        ks = sorted({1, 2**(n.bit_length() - 1)})
        table[0].append(" ".join([names[0] if len(names) == 1 else "average", " / ".join(f"@{k}" for k in ks)]))
        for line, row in zip(table[1:], rows):
            texts = cells(row, names)
            line.append(" / ".join(texts.get(k, "–") for k in ks) if texts else "–")
    return [line for line in table if set(line[1:]) != {"–"}]


def settings_table(rows, names, paper):
    """(how each set was evaluated, with the share truncated by folder; a line on each thing that was not alike)."""
    labels, lines, groups, differences = list(dict.fromkeys(row.label for row in rows)), {}, {}, []
    for name, row in ((name, row) for name in names for row in rows if name in row.sets):
        entry = row.sets[name]
        line = name, *(str(entry[key]) for key in SETTINGS)
        lines.setdefault(line, {})[row.label] = f"{100 * entry['truncated']:.1f}"
        groups.setdefault((name, row.temperature), []).append((row.label, entry))
    for (name, temperature), group in groups.items():
        if len({frozenset(entry["correct"]) for _, entry in group}) > 1:
            differences.append(f"{name}: not the same problem ids ({', '.join(label for label, _ in group)})")
        printed = {key: value for key, value in PAPER["protocol"].get(name, {}).items()
                   if paper and (key != "temperature" or temperature is None)}
        for key, word in SETTINGS.items():
            values = {}
            for label, entry in [*group, ("the paper", printed)]:
                if key in entry:
                    values.setdefault(entry[key], []).append(label)
            if len(values) > 1:
                differences.append(f"{name}: {word} " + ", ".join(f"{v} ({', '.join(of)})" for v, of in values.items()))
    head = ["set", *SETTINGS.values(), "truncated, %: " + " / ".join(labels)]
    return [head, *([*line, " / ".join(cut.get(x, "–") for x in labels)] for line, cut in lines.items())], differences


def show(title, table, text):
    """Prints a table of strings, its first row the head: markdown or, if `text`, plain; aligned either way."""
    widths = [max(2, *map(len, column)) for column in zip(*table)]  # 2: markdown wants a dash beside the colon
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in table]
    lines.insert(1, ["-" * widths[0], *("-" * width if text else "-" * (width - 1) + ":" for width in widths[1:])])
    print(f"\n{title}\n", *("  ".join(line) if text else f"| {' | '.join(line)} |" for line in lines), sep="\n")


@printable_exit()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    models = dict.fromkeys(model for table in PAPER["tables"].values() for model in table["rows"])
    parser.add_argument("--paper", choices=models, help="add the paper's rows for this model (logic: Table 2)")
    parser.add_argument("--each", action="store_true", help="every K for each set, too (as --paper logic does)")
    parser.add_argument("--text", action="store_true", help="plain text instead of markdown")
    options = parser.parse_args()
    rows = load(options.folders)
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    common = [name for name in names if all(name in row.sets for row in rows)]
    settings, differences = settings_table(rows, names, options.paper)
    if differences:
        print("\nNOT EVALUATED ALIKE, compare with care:\n", *(f"- {line}" for line in differences), sep="\n")
    rows += paper_rows(options.paper, any(row.temperature is not None for row in rows))
    rows.sort(key=lambda row: row.temperature or 0)
    title, mean = "pass@K in % ± standard error over problems", [common] * bool(common)
    columns = [[name] for name in names] * (len(names) > 1)
    for sets in mean + columns * (options.each or options.paper == "logic"):
        what = sets[0] if len(sets) == 1 else f"mean of {', '.join(sets)}"
        show(f"{title}: {what}", curve_table(rows, sets), options.text)
    if columns:
        show(title, set_table(rows, columns + mean * (len(common) > 1)), options.text)
    show("Evaluated with", settings, options.text)
    if options.paper and not any(cells(row, common) for row in rows if row.folder is None):
        print("\nThe paper has no number for these sets together.")


if __name__ == "__main__":
    main()
