"""Prints the tables of docs/results.md from the rows of tools.study.

    python -m tools.results docs/laptop

± is the standard error over seeds. Differences are paired by seed, which
fixes the base model and the problems. Their 95 % intervals are Student's,
and "4 of 5" means that the difference is positive for 4 of 5 seeds.
"""
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd

from tools import command_line
from tools.study import (
    ABLATION_STEPS, NAMES, SHARED, SIMKO, STAGES, STEPS, comparisons, describe, pass_rates, read, run_name)

KS = [1, 4, 16, 64, 256]
# The 97.5 % quantile of Student's t, by degrees of freedom.
T975 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622}
RATE = SHARED["grpo"]["learning_rate"]


# ------------------------------------------------------------- statistics
# Values are Series over seeds, rates are DataFrames (seeds, K).
def with_error(values, digits=1):
    """Returns "mean ± standard error"."""
    error = f" ± {values.sem():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{error}"


def difference(values, digits=1):
    """Returns "mean [95 % interval] positive seeds of all seeds"."""
    mean, count = values.mean(), len(values)
    if count < 2:
        return f"{mean:+.{digits}f}"
    half = T975[count - 1] * values.sem()
    low, high = f"{mean - half:+.{digits}f}", f"{mean + half:+.{digits}f}"
    return f"{mean:+.{digits}f} [{low}, {high}] {(values > 0).sum()} of {count}"


def paired(ours, theirs, columns, digits=1):
    """Returns a cell for each column, over the seeds that both share."""
    seeds = ours.index.intersection(theirs.index)
    gaps = ours.loc[seeds] - theirs.loc[seeds]
    return [difference(gaps[column], digits) for column in columns] if len(seeds) else []


def table(title, head, lines):
    """Prints a markdown table, unless it has no lines."""
    if lines:
        print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for line in lines:
            print(f"| {' | '.join(map(str, line))} |")


def at_equal_pass1(path, target):
    """Returns pass@K where a run first reaches pass@1 = target, or None.
    path: (steps, K). Values between steps are interpolated linearly."""
    steps = [row for _, row in path.sort_index().iterrows()]
    for start, stop in pairwise(steps):
        if start[1] <= target <= stop[1]:
            share = (target - start[1]) / ((stop[1] - start[1]) or 1)
            return start + share * (stop - start)
    return None


def reached(rows, run, targets):
    """Returns pass@K (seeds, K) at the targets {seed: pass@1}, for the seeds
    that reach them."""
    paths = {seed: path.set_index("step")[KS] for seed, path in rows[rows.run == run].groupby("seed")}
    found = {seed: at_equal_pass1(paths[seed], target) for seed, target in targets.items() if seed in paths}
    return pd.DataFrame({seed: row for seed, row in found.items() if row is not None}).T


# ----------------------------------------------------------------- tables
def tuning(folder, chosen):
    rows = read("tune", folder).dropna(axis=1)
    rows["mean"] = rows[[name for name in rows if isinstance(name, int)]].mean(axis=1)

    def best(found):
        row = found.loc[found["mean"].idxmax()]
        return [row.step, *(f"{row[name]:.1f}" for name in ("mean", 1, 16, 64))]

    lines = []
    for method, (run, step) in chosen.items():
        tried = rows[rows.method == method].run.nunique()
        found = rows[(rows.run == run) & (rows.step == step)]
        lines.append([NAMES[method], tried, run.partition(" ")[2], *best(found)])
    head = ["step", "mean", "pass@1", "@16", "@64"]
    table("Settings chosen on validation problems (seed 0, n = 64): highest mean over K = 1, 2, 4, ..., 64",
          ["method", "settings tried", "chosen", *head], lines)
    lines = []
    for method, rate in [*((method, 1e-4) for method in chosen), *((method, RATE) for method in SHARED)]:
        settings = {**(SIMKO if method == "simko" else {}), "learning_rate": rate}
        found = rows[(rows.run == run_name(method, settings)) & (rows.step > 0)]
        if len(found):
            lines.append([NAMES[method], f"{rate:g}", *best(found)])
    table("The same with one learning rate, each method at its best step",
          ["method", "learning rate", *head], lines)


def methods(title, rates, ks=KS):
    """Prints a line for each method of {name: rates}."""
    table(title, ["", "seeds", *(f"pass@{k}" for k in ks)],
          [[name, len(own), *(with_error(own[k]) for k in ks)] for name, own in rates.items() if len(own)])


def main_tables(folder, chosen, shared):
    main, cool = read("main", folder), read("cool", folder)
    grpo = chosen["grpo"][0]

    def rates(rows, runs):
        found = {"base": pass_rates(rows, grpo, 0)}
        return found | {NAMES[method]: pass_rates(rows, *own) for method, own in runs.items()}

    usual, same = rates(main, chosen), rates(main, shared)
    cooler = rates(cool, {method: chosen[method] for method in SHARED})
    rate = f"both at learning rate {RATE:g}"
    methods("Test problems, T = 1.0, n = 256, settings as chosen (%)", usual)
    methods(f"GRPO and SimKO, {rate}, step {STEPS}, T = 1.0 (%)", same)
    methods("Settings as chosen, T = 0.6 (%)", cooler)
    lines = [[name, *paired(found["SimKO"], found["GRPO"], KS)] for name, found in (
        ("settings as chosen", usual), ("as chosen, T = 0.6", cooler), (f"{rate}, step {STEPS}", same))]
    lines += equal_pass1("as chosen", main, chosen, usual["SimKO"])
    lines += equal_pass1(rate, main, shared, same["SimKO"])
    table("SimKO - GRPO, percentage points: mean [95 % interval], seeds above 0",
          ["", *(f"pass@{k}" for k in KS)], [line for line in lines if len(line) > 1])


def equal_pass1(name, rows, runs, last):
    """Returns lines that compare SimKO with GRPO at equal pass@1: GRPO
    where it first had the pass@1 of SimKO's `last` step, and both where
    they first had a fixed pass@1."""
    lines, count = [], len(last)
    met = reached(rows, runs["grpo"][0], last[1])
    if count:
        how = f"GRPO where it first had SimKO's pass@1 ({len(met)} of {count} seeds came that high)"
        lines.append([f"{name}, {how}", "0 by construction", *paired(last, met, KS[1:])])
    for target in (46, 47, 48):
        ours, theirs = (reached(rows, runs[m][0], dict.fromkeys(last.index, target)) for m in ("simko", "grpo"))
        both = len(ours.index.intersection(theirs.index))
        if both > 1:
            how = f"both where they first had pass@1 = {target} % ({both} of {count} seeds)"
            lines.append([f"{name}, {how}", "0 by construction", *paired(ours, theirs, KS[1:])])
    return lines


def dynamics(folder, chosen, shared):
    """Prints Lambda^(k) and the entropy at the start and at the end of
    training, as means over 25 steps."""
    rows = read("curves", folder)
    names = ["Lambda_1", "Lambda_2", "Lambda_3", "entropy"]
    rows = rows[rows.stage == "main"].explode(["steps", *names])
    rows = rows.astype(dict.fromkeys(names, float)).set_index("seed")
    ends = {NAMES[method]: own for method, own in chosen.items()}
    ends |= {f"{NAMES[method]}, {RATE:g}": own for method, own in shared.items()}
    own = rows[rows.run == chosen["grpo"][0]]
    found = {"steps 1-25, GRPO": own[own.steps == own.steps.min()]}
    for label, (run, step) in ends.items():
        own = rows[(rows.run == run) & (rows.steps == step)]
        found[f"{label}, step {step}"] = found[label] = own
    lines = [[label, *(with_error(own[name], 2) for name in names)]
             for label, own in found.items() if "step" in label and len(own)]
    for theirs, ours in (("GRPO", "SimKO"), [*ends][-2:]):
        cells = paired(found[ours][names], found[theirs][names], names, 2)
        lines += [[f"{ours} - {theirs}", *cells]] if cells else []
    table("Mean log-probability of the rank-k candidate and entropy in training, all tokens of rollouts at T = 1",
          ["", "Lambda^(1)", "Lambda^(2)", "Lambda^(3)", "entropy"], lines)


def variants(title, head, rates, reference):
    """Prints a line for each of {name: rates}, with the differences to the
    rates of reference(name). The reference itself gets no differences."""
    ks, lines = [1, 16, 256], []
    for name, own in rates.items():
        theirs = reference(name)
        cells = paired(own, theirs, ks) if theirs is not None and theirs is not own else ["-"] * len(ks)
        lines.append([name, *(with_error(own[k]) for k in ks), *cells])
    table(title, ["", *(f"pass@{k}" for k in ks), *(f"{head} @{k}" for k in ks)], lines)


def stage_rates(folder, stage, step):
    """Returns {run: rates} of a stage, in the order of its jobs."""
    rows = read(stage, folder)
    found = {job.run: pass_rates(rows, job.run, step) for job in STAGES[stage]()}
    return {run: rates for run, rates in found.items() if len(rates)}


def wordy_and_short(folder):
    rows = read("wordy", folder)
    base = rows[rows.step == 0].drop_duplicates("seed").set_index("seed")
    methods("Wordy responses, step 300, T = 1.0 (%): base", {"base": base}, [1, 16, 256])
    for stage, responses in (("wordy", "Wordy responses"), ("short", "The usual responses with the same settings")):
        rates = stage_rates(folder, stage, 300)
        variants(f"{responses}, step 300, T = 1.0; differences to GRPO with the same learning rate", "difference",
                 rates, lambda run: rates.get("grpo " + re.search(r"learning_rate=\S+", run)[0]))


def ablation(folder):
    found, main = stage_rates(folder, "ablation", ABLATION_STEPS), read("main", folder)
    if not found:
        return
    seeds = next(iter(found.values())).index
    main = main[main.seed.isin(seeds)]
    grpo, unchanged = (pass_rates(main, run_name(method, settings), ABLATION_STEPS)
                       for method, settings in SHARED.items())
    usual = run_name("simko", SHARED["simko"]).split()
    rates = {"GRPO": grpo, "SimKO, nothing changed": unchanged}
    for run, own in found.items():
        words = [word for word in run.split() if word not in usual]
        if "tau_scope" in run:  # show q as well, even if it is unchanged
            words = run.split()[-2:]
        rates[" ".join(words)] = own
    title = f"SimKO ({describe(SHARED['simko'])} K=3), step {ABLATION_STEPS}, with one setting changed"
    variants(f"{title}; differences to GRPO", "to GRPO", rates, lambda name: grpo)
    parts = {"without γ^pos": "alpha=0", "without γ^neg": "lambda_top1=1",
             "the rank-1 token as only candidate": "K=1"}
    variants("Without a part; differences to SimKO with nothing changed", "to SimKO",
             {f"{what}: {part}": rates[part] for what, part in parts.items() if part in rates},
             lambda name: unchanged)


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("folder", type=Path, help="the folder that tools.study writes to")
    folder = parser.parse_args().folder
    chosen, shared = comparisons(folder)
    tuning(folder, chosen)
    main_tables(folder, chosen, shared)
    dynamics(folder, chosen, shared)
    wordy_and_short(folder)
    ablation(folder)


if __name__ == "__main__":
    main()
