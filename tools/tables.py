"""Prints tables of pass@K from evaluations, in the layouts of the paper's
Tables 1 to 5.

    python -m tools.tables base=runs/base GRPO=runs/grpo SimKO=runs/simko \\
        --paper qwen2.5-math-7b

A [LABEL=]FOLDER holds an evaluation, or a run, whose last evaluation is used.
A mean over sets gives each set the same weight. ± is the standard error over
problems. Two folders are compared problem by problem. The 95 % interval of
their difference is Student's and is mostly narrower than the two ± suggest.
Both show how much the result varies with the choice of problems and with
sampling, but not with the seed of the training. Neither is printed where all
problems have the same value, or where a set has only one. This does not make
the value certain: if all of P problems are solved, 3 / P of other such
problems may still be out of reach. Where all but ten problems or fewer have
the same value, ± and the interval are too small.

--paper adds the paper's rows, labelled with the version that reports them.
The third version calls SimKO CaSP, and its N is the first version's K.
"""
import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import NamedTuple

import mpmath
import pandas as pd
import torch

from runtime.cli import SIMKO_ONLY
from runtime.common import fail, printable
from runtime.run_folder import CHANGEABLE, by_step
from simko import Config, pass_at_k
from tools import ROOT, allow_head, command_line

PAPER = json.loads((ROOT / "docs" / "paper_tables.json").read_text(encoding="utf-8"))
AVERAGED = {*PAPER["tables"]["4"]["sets"]}  # the math sets and "average"
SETTINGS = {
    "n": "n", "temperature": "T", "top_p": "top-p", "max_tokens": "max tokens",
    "problems": "problems", "prompt_template": "template"}
COMPARED = SETTINGS | {"dtype": "dtype", "rollout": "engine"}
DIFFERENCES = "Differences in points [95 % interval over problems]"
# Trainings that differ only in these settings are still compared. Steps and
# evaluations have checks of their own.
NOT_COMPARED = {*CHANGEABLE, "seed", "versions"}
OF_A_METHOD = {"method", "K", "grpo_warmup_steps", *SIMKO_ONLY}
ROUNDING = 1e-9  # rounding gives equal problems a standard error below this
NUMBERS = "n", "temperature", "top_p", "max_tokens", "problems", "truncated"


class Row(NamedTuple):
    label: str
    folder: Path | None        # None for a row of the paper
    temperature: float | None  # None: all rows share one, or it differs by set
    sets: dict                 # {set: its entry in eval.json}; for a row of
    #                            the paper {set or "average": {K: number}}

    @property
    def name(self):
        return self.label if self.temperature is None else f"{self.label}, T = {self.temperature}"


# ---------------------------------------------------------------- reading
def consistent(label, entry):
    """Returns whether the numbers of a set's entry in eval.json fit together."""
    n, right = entry["n"], [*entry["correct"].values()]
    return (label.startswith(entry["set"])
            and all(isinstance(entry[name], int | float) for name in NUMBERS)
            and isinstance(n, int)
            and 0 < len(right) == entry["problems"]
            and all(isinstance(c, int) and 0 <= c <= n for c in right))


def read(path):
    """Returns the sets of an eval.json. Ends the program if the file is
    missing or inconsistent."""
    if not path.parent.is_dir():
        fail(f"there is no folder {path.parent}")
    if not path.is_file():
        fail(f"{path} does not exist: either the evaluation is unfinished (run its command again, "
             "or name an earlier eval_STEP), or the folder holds no evaluation")
    try:
        report = json.loads(path.read_bytes())
        settings = report["settings"]
        template = str(settings["prompt_template"])
        if more := settings.get("chat_template_kwargs"):
            template += f" {json.dumps(more)}"
        for label, entry in report["sets"].items():
            if not consistent(label, entry):
                raise ValueError(f"the entries of {label} are inconsistent")
            entry |= {"prompt_template": template, "seed": int(settings["seed"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fail(f"{path} is damaged or was written by another version ({error!r}): "
             "run the evaluation again")
    if not report["sets"]:
        fail(f"{path} has no sets: name some with --eval-data and evaluate again")
    return report["sets"]


def label_and_folder(argument):
    """Returns both parts of a [LABEL=]FOLDER argument."""
    label, _, folder = argument.rpartition("=")
    if Path(argument).is_dir():
        label, folder = "", argument
    folder = Path(folder)
    return printable(label or str(folder)), folder


def labelled(arguments):
    """Returns {label: folder} of [LABEL=]FOLDER arguments."""
    folders = {}
    for argument in arguments:
        label, folder = label_and_folder(argument)
        if label in folders:
            fail(f"two folders have the label {label}: give each its own, as LABEL=FOLDER")
        folders[label] = folder
    return folders


def last_report(folder):
    """Returns the path of the eval.json of a run's last evaluation, or of
    the evaluation in the folder itself."""
    steps = by_step(folder, "eval")
    return (steps[max(steps)] if steps else folder) / "eval.json"


def run_of(folder):
    """Returns the run's folder, given itself or an eval_STEP in it, or None for
    the folder of an evaluation by `simko.py eval`."""
    return next((place for place in (folder, folder.parent)
                 if (place / "config.json").is_file()), None)


def only_runs(folders):
    """Returns those of {label: folder} that hold a run."""
    return {label: folder for label, folder in folders.items()
            if (folder / "config.json").is_file()}


def run_settings(folder):
    """Reads the settings of a run from its config.json."""
    path = folder / "config.json"
    try:
        return dataclasses.asdict(Config()) | json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError) as error:
        fail(f"{path} cannot be read ({error!r}): name the folder of a run")


def steps_trained(folder):
    """Returns (the step of an evaluation, the number of steps planned), or None
    for the folder of an evaluation by `simko.py eval`. folder: a run, whose last
    evaluation counts, or an eval_STEP of one."""
    beside = by_step(folder.parent, "eval")
    evaluated = by_step(folder, "eval") or {
        step: path for step, path in beside.items() if path == folder}
    if not evaluated:
        return None
    last, run = max(evaluated), run_of(folder)
    return last, run_settings(run)["steps"] if run else last


def different_settings(folders, ignored=frozenset()):
    """Returns the names of the settings in which trainings differ. A folder
    holds a run, or is the eval_STEP of one. An evaluation by `simko.py eval`
    is left out, because it does not record how its model was trained."""
    runs = []
    for folder in folders:
        if run := run_of(folder):
            runs.append(run_settings(run))
    names = set().union(*runs) - NOT_COMPARED - ignored
    return [name for name in sorted(names)
            if any(own.get(name) != runs[0].get(name) for own in runs)]


def load(folders):
    """Returns a row for each folder of {label: folder} or, for a folder
    with several temperatures, a row for each temperature."""
    rows = []
    for label, folder in folders.items():
        groups = {}
        for key, entry in read(last_report(folder)).items():
            temperature = None if key == entry["set"] else entry["temperature"]
            groups.setdefault(temperature, {})[printable(entry["set"])] = entry
        for sets in groups.values():
            temperatures = {entry["temperature"] for entry in sets.values()}
            only = temperatures.pop() if len(temperatures) == 1 else None
            rows.append(Row(label, folder, only, sets))
    if len(rows) == len(folders):
        rows = [row._replace(temperature=None) for row in rows]
    return sorted(rows, key=lambda row: row.temperature or 0)


def paper_rows(model, sweep):
    """Returns the paper's rows for a model. With several temperatures
    (sweep), these are the rows of Table 5 if it has the model. Otherwise
    they are the rows of Tables 1 to 4 of the first version, followed
    by those that the third version adds or revises."""
    first, third = PAPER["tables"], PAPER["tables_v3"]
    if sweep and model in first["5"]["rows"]:
        versions = {"v1": [first["5"]]}
    else:
        versions = {"v1": [first[number] for number in "1234"], "v3": third.values()}
    rows = []
    for version, tables in versions.items():
        found = {}
        for table in tables:
            for method, values in table["rows"].get(model, {}).items():
                sets = found.setdefault(method, {})
                for name, numbers in zip(table["sets"], values):
                    sets.setdefault(name, {}).update(zip(table["K"], numbers))
        for method, sets in found.items():
            name, _, temperature = method.partition("@T")
            temperature = float(temperature) if temperature else None
            rows.append(Row(f"paper {version}: {name}", None, temperature, sets))
    return rows


# ----------------------------------------------------------------- tables
def shared_ks(entries):
    """Returns K = 1, 2, 4, ... up to the smallest n of the sets."""
    return [2**i for i in range(min(entry["n"] for entry in entries).bit_length())]


def problem_rates(entry, ks):
    """Returns pass@K, from 0 to 1, of each problem of a set, (problems, K)."""
    n, correct = entry["n"], [*entry["correct"].values()]
    by_count = torch.stack([pass_at_k(n, torch.arange(n + 1), k) for k in ks], 1)
    return pd.DataFrame(by_count[correct].numpy(), columns=ks)


def mean_over_sets(of_sets):
    """Returns the mean over sets of means over problems, and its standard
    error, as Series over K. of_sets: a DataFrame (problems, K) for each set."""
    count = len(of_sets)
    mean = sum(own.mean() for own in of_sets) / count
    squares = sum(own.sem()**2 for own in of_sets)
    return mean, squares**0.5 / count


def pass_rates(entries):
    """Returns {K: (mean, standard error)} of pass@K, from 0 to 1, over one or more
    sets, for K = 1, 2, 4, ... up to the smallest n. One problem has no standard
    error."""
    ks = shared_ks(entries)
    mean, error = mean_over_sets([problem_rates(entry, ks) for entry in entries])
    return dict(zip(ks, zip(mean, error)))


def t975(freedom):
    """Returns the 97.5 % quantile of Student's t."""
    def outside(t):
        below = freedom / (freedom + t * t)
        return mpmath.betainc(freedom / 2, 0.5, 0, below, regularized=True)

    root = mpmath.findroot(lambda t: outside(t) - 0.05, (1.9, 13), solver="anderson")
    return float(root)


def with_interval(mean, half, digits=1):
    """Returns "mean [low, high]"."""
    low, high = mean - half, mean + half
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def cells(row, names):
    """Returns {K: text} of the mean over the sets `names`, or an empty dict
    if the row lacks one of them."""
    if row.folder is None:
        key = None
        if len(names) == 1:
            key = names[0]
        elif {*names, "average"} == AVERAGED:
            key = "average"
        return {k: str(number) for k, number in row.sets.get(key, {}).items()}
    if not row.sets.keys() >= {*names}:
        return {}
    found = {}
    for k, (mean, error) in pass_rates([row.sets[name] for name in names]).items():
        found[k] = f"{100 * mean:.1f}"
        if error > ROUNDING:
            found[k] += f" ± {100 * error:.1f}"
    return found


def curve_table(rows, names):
    """Returns a table of the mean over sets with a column for each K, as in
    Tables 1 and 2."""
    return table_over_k({row.name: texts for row in rows if (texts := cells(row, names))})


def table_over_k(found, ks=None):
    """Returns a table of {name: {K: text}} with a column for each K, by default
    for those that have a text."""
    ks = ks or sorted({k for texts in found.values() for k in texts})
    lines = [[name, *(texts.get(k, "–") for k in ks)] for name, texts in found.items()]
    return [["", *(f"K={k}" for k in ks)], *lines]


def difference_table(rows, names):
    """Returns a table of each folder's mean over sets minus that of the
    folder above it, in points with a 95 % interval. There is no line for
    folders with other problems, or between two temperatures of a sweep,
    and no table without a line."""
    own = [row for row in rows if row.folder and row.sets.keys() >= {*names}]
    found = {}
    for above, row in zip(own, own[1:]):
        before = [above.sets[name] for name in names]
        after = [row.sets[name] for name in names]
        if not all(map(same_problems, before, after)) or above.temperature != row.temperature:
            continue
        found[f"{row.name} − {above.name}"] = difference(before, after)
    return table_over_k(found) if found else []


def difference(before, after):
    """Returns {K: text} of pass@K after minus before, over one or more
    sets, for each K that both have."""
    ks = shared_ks(before + after)
    gaps = []
    for old, new in zip(before, after):
        gaps.append(100 * (problem_rates(new, ks) - problem_rates(old, ks)))
    mean, error = mean_over_sets(gaps)
    # The smallest of several sets has the largest t quantile, so the interval
    # is too wide rather than too narrow.
    fewest = max(2, min(map(len, gaps)))
    half = t975(fewest - 1) * error
    found = {}
    for k in ks:
        found[k] = f"{mean[k]:+.1f}"
        if half[k] > ROUNDING:
            found[k] = with_interval(mean[k], half[k])
    return found


def same_problems(one, other):
    """Returns whether two evaluations have the same problems in the same
    order."""
    return [*one["correct"]] == [*other["correct"]] and same_contents([one, other])


def same_contents(entries):
    """Returns whether entries with the same ids also have the same problems,
    in the same order."""
    return len({entry.get("problems_sha256") for entry in entries}) < 2


def set_table(rows, columns):
    """Returns a table with a column for each list of sets, as in Tables 4
    and 5: pass@1, and pass@K at the largest K that all folders share."""
    table = [[""], *([row.name] for row in rows)]
    for names in columns:
        own = [row for row in rows if row.folder]
        n = min(row.sets[name]["n"] for row in own for name in names if name in row.sets)
        ks = sorted({1, 2**(n.bit_length() - 1)})
        title = names[0] if len(names) == 1 else "average"
        table[0].append(f"{title} {' / '.join(f'@{k}' for k in ks)}")
        for line, row in zip(table[1:], rows):
            texts = cells(row, names)
            line.append(" / ".join(texts.get(k, "–") for k in ks) if texts else "–")
    return [line for line in table if {*line[1:]} != {"–"}]


def settings_table(rows, names):
    """Returns a table of the settings of each set's evaluation, with the
    share of truncated responses."""
    labels, lines = list(dict.fromkeys(row.label for row in rows)), {}
    for name in names:
        for row in rows:
            if entry := row.sets.get(name):
                line = name, *(str(entry[key]) for key in SETTINGS)
                lines.setdefault(line, {})[row.label] = f"{100 * entry['truncated']:.1f}"
    table = [["set", *SETTINGS.values(), "truncated, %: " + " / ".join(labels)]]
    for line, shares in lines.items():
        table.append([*line, " / ".join(shares.get(label, "–") for label in labels)])
    return table


def different_training(rows):
    """Returns a line if trainings differ in more than the settings of their
    methods, and one if they differ in their steps or have not ended."""
    folders = {row.label: row.folder for row in rows}
    lines = []
    if names := different_settings(folders.values(), OF_A_METHOD):
        lines.append(f"trained with different {', '.join(names)}")
    trained = {}
    for label, folder in folders.items():
        if steps := steps_trained(folder):
            trained.setdefault(steps, []).append(label)
    if len(trained) < 2 and all(last == planned for last, planned in trained):
        return lines
    texts = []
    for (last, planned), labels in trained.items():
        steps = str(last) if last == planned else f"{last} of {planned}"
        texts.append(f"{steps} ({', '.join(labels)})")
    return [*lines, "steps of training before the evaluation: " + ", ".join(texts)]


def differences(rows, names, paper):
    """Returns a line for each difference between evaluations of a set.
    paper: whether to include the settings of the paper's first version."""
    lines = different_training(rows)
    temperatures = dict.fromkeys(row.temperature for row in rows)
    for name, temperature in product(names, temperatures):
        group = {row.label: row.sets[name] for row in rows
                 if row.temperature == temperature and name in row.sets}
        if len({frozenset(entry["correct"]) for entry in group.values()}) > 1:
            lines.append(f"{name}: different problem ids ({', '.join(group)})")
        elif not same_contents(group.values()):
            lines.append(f"{name}: the same ids, but different problems, answers, tasks or "
                         f"order ({', '.join(group)})")
        if group and paper:
            group["the paper"] = PAPER["protocol"].get(name, {})
        for key, word in COMPARED.items():
            values = {}
            for label, entry in group.items():
                if key in entry and (key != "temperature" or temperature is None):
                    values.setdefault(entry[key], []).append(label)
            if len(values) > 1:
                texts = (f"{value} ({', '.join(labels)})" for value, labels in values.items())
                lines.append(f"{name}: {word} " + ", ".join(texts))
    return list(dict.fromkeys(lines))  # temperatures may repeat a line


def warn(lines):
    """Prints the lines of `differences`, if there are any."""
    if lines:
        print("\nTHESE EVALUATIONS DIFFER; compare them with care:\n")
        print(*(printable(f"- {line}") for line in lines), sep="\n")


def described(names):
    """Returns what a table over the sets `names` is about."""
    return names[0] if len(names) == 1 else f"mean of {', '.join(names)}"


def show(title, table):
    """Prints a table of texts, whose first row is the head, as aligned
    markdown."""
    table = [[printable(text) for text in line] for line in table]
    # The rule below the head needs at least a dash and a colon.
    widths = [max(2, *map(len, column)) for column in zip(*table)]
    table = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in table]
    table.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    print(f"\n{title}\n", *(f"| {' | '.join(line)} |" for line in table), sep="\n")


def models_of(of_paper):
    """Returns the models that have a row in any of the paper's tables, as the keys of
    a dict."""
    return dict.fromkeys(model for table in of_paper.values() for model in table["rows"])


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    first, third = models_of(PAPER["tables"]), models_of(PAPER["tables_v3"])
    parser.add_argument(
        "--paper", choices=first | third,
        help="add the rows for this model from the paper's first (v1) and third (v3) "
        "version; logic also prints a table of every K for each set, as in Table 2, and "
        "qwen2.5-math-7b-ablations is Table 3")
    options = parser.parse_args()
    rows = load(labelled(options.folders))
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    common = [name for name in names if all(name in row.sets for row in rows)]
    settings = settings_table(rows, names)
    warn(differences(rows, names, options.paper in first))
    rows += paper_rows(options.paper, any(row.temperature is not None for row in rows))
    rows.sort(key=lambda row: row.temperature or 0)
    title = "pass@K in % ± standard error over problems"
    mean = [common] if common else []
    columns = [[name] for name in names] if len(names) > 1 else []
    for sets in mean + (columns if options.paper == "logic" else []):
        what = described(sets)
        show(f"{title}: {what}", curve_table(rows, sets))
        if table := difference_table(rows, sets):
            show(f"{DIFFERENCES}: {what}", table)
    if columns:
        show(title, set_table(rows, columns + (mean if len(common) > 1 else [])))
    show("Evaluated with", settings)
    if options.paper and not any(cells(row, common) for row in rows if row.folder is None):
        print("\nThe paper reports no numbers for this combination of sets.")


if __name__ == "__main__":
    allow_head()
    main()
