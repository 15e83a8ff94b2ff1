"""Prints pass@K of several runs of each method, as means over seeds.

    python -m tools.seeds GRPO=runs/grpo-0 GRPO=runs/grpo-1 \\
        SimKO=runs/simko-0 SimKO=runs/simko-1

Folders with the same LABEL are runs of one method, which should differ
in --seed alone. A folder holds a run, whose last evaluation is used, or an
evaluation. ± is the standard error over seeds. Each label is compared
with the one above it, seed by seed. The difference has Student's 95 %
interval, and "2 of 3" means that it is positive for 2 of 3 seeds. An
interval of zero width means that these seeds agree, not that others must.
To see how much the choice of problems matters, use tools.tables. Labels
are not compared if they share fewer than two seeds, or if their
evaluations have different problems.
"""
from itertools import pairwise

import pandas as pd

from runtime.common import fail
from tools import allow_head, command_line, tables


# ------------------------------------------------------------- statistics
# Values are Series over seeds, rates are DataFrames (seeds, K).
def with_error(values, digits=1):
    """Returns "mean ± standard error"."""
    mean = f"{values.mean():.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {values.sem():.{digits}f}"


def means(rates, columns, digits=1):
    """Returns a cell `with_error` for each column."""
    return [with_error(rates[column], digits) for column in columns]


def difference(values, digits=1):
    """Returns "mean [low, high] 2 of 3": the 95 % interval, and for how many
    of the seeds the value is positive."""
    mean, count = values.mean(), len(values)
    if count < 2:
        return f"{mean:+.{digits}f}"
    half = tables.t975(count - 1) * values.sem()
    positive = (values > 0).sum()
    return f"{tables.with_interval(mean, half, digits)} {positive} of {count}"


def paired(ours, theirs, columns, digits=1):
    """Returns a cell for each column, over the seeds that both share."""
    seeds = ours.index.intersection(theirs.index)
    if seeds.empty:
        return []
    gaps = ours.loc[seeds] - theirs.loc[seeds]
    return [difference(gaps[column], digits) for column in columns]


# ---------------------------------------------------------------- reading
def load(arguments):
    """Returns {name: {seed: row}} of [LABEL=]FOLDER arguments. The name is the
    label, or the label and T if a folder has several temperatures."""
    labels, folders = zip(*map(tables.label_and_folder, arguments))
    found = {}
    # Several folders may have one label, so tables.load gets numbers as labels.
    for row in tables.load(dict(enumerate(folders))):
        row = row._replace(label=labels[row.label])
        seed = next(iter(row.sets.values()))["seed"]
        runs = found.setdefault(row.name, {})
        if seed in runs:
            fail(f"{runs[seed].folder} and {row.folder} are both {row.label} with seed {seed}: "
                 "train or evaluate one with another --seed, or give them different labels")
        runs[seed] = row
    if all(len(runs) == 1 for runs in found.values()):
        fail("no two folders have the same label: give the runs of a method the same one, as in "
             "GRPO=runs/grpo-0 GRPO=runs/grpo-1, or compare single runs with "
             "python -m tools.tables")
    return found


def different_runs(methods):
    """Returns a line for each label whose runs differ in more than the seed."""
    runs, lines = {}, []
    for rows in methods.values():
        for row in rows.values():
            runs.setdefault(row.label, []).append(row.folder)
    for label, folders in runs.items():
        if names := tables.different_settings(folders):
            lines.append(f"the runs of {label} have different {', '.join(names)}")
    return lines


# ----------------------------------------------------------------- tables
def pass_rates(runs, names):
    """Returns pass@K in % (seeds, K), the mean over the sets `names`."""
    rates = {}
    for seed, row in runs.items():
        found = tables.pass_rates([row.sets[name] for name in names])
        rates[seed] = pd.Series({k: 100 * mean for k, (mean, _) in found.items()})
    return pd.DataFrame(rates).T.dropna(axis=1)


def comparable(above, runs, names):
    """Returns whether two methods share at least two seeds, and have the same
    temperature and problems in all of them."""
    shared = above.keys() & runs.keys()
    return len(shared) > 1 and all(
        above[seed].temperature == runs[seed].temperature
        and tables.same_problems(above[seed].sets[name], runs[seed].sets[name])
        for seed in shared for name in names)


def unpaired(methods):
    """Returns a line for each label that shares too few seeds with the one
    above it to be compared."""
    lines = []
    for (above, theirs), (name, ours) in pairwise(methods.items()):
        temperatures = {row.temperature for row in [*theirs.values(), *ours.values()]}
        if len(temperatures) == 1 and len(theirs.keys() & ours.keys()) < 2:
            lines.append(f"{name} and {above} have fewer than two seeds in common, "
                         "so they are not compared")
    return lines


def seed_tables(methods, names):
    """Returns a table of pass@K, and one of the differences between methods."""
    complete = {}
    for name, runs in methods.items():
        own = {seed: row for seed, row in runs.items() if row.sets.keys() >= {*names}}
        if own:
            complete[name] = own
    rates = {name: pass_rates(own, names) for name, own in complete.items()}
    all_ks = sorted({k for own in rates.values() for k in own})
    levels = {}
    for name, own in rates.items():
        levels[f"{name} ({len(own)})"] = dict(zip(own, means(own, own)))

    gaps = {}
    for above, name in pairwise(rates):
        theirs, ours = rates[above], rates[name]
        if comparable(complete[above], complete[name], names):
            ks = [k for k in ours if k in theirs]
            gaps[f"{name} − {above}"] = dict(zip(ks, paired(ours, theirs, ks)))
    shifts = tables.table_over_k(gaps, all_ks) if gaps else []
    return tables.table_over_k(levels, all_ks), shifts


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    methods = load(parser.parse_args().folders)
    rows = []
    for runs in methods.values():
        for seed, row in runs.items():
            rows.append(row._replace(label=f"{row.label} seed {seed}"))
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    common = [name for name in names if all(name in row.sets for row in rows)]
    tables.warn(different_runs(methods) + tables.differences(rows, names, paper=None))

    columns = [[name] for name in names]
    for sets in columns + ([common] if len(common) > 1 else []):
        what = tables.described(sets)
        levels, gaps = seed_tables(methods, sets)
        tables.show(f"pass@K in % ± standard error over seeds (number of seeds): {what}", levels)
        if gaps:
            tables.show("Differences in points, paired by seed [95 % interval over seeds], "
                        f"seeds with a positive difference: {what}", gaps)
    for line in unpaired(methods):
        print(f"\n{line}")


if __name__ == "__main__":
    allow_head()
    main()
