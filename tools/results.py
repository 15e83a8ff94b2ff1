"""Prints the tables of docs/results.md from the rows of tools.study.

    python -m tools.results docs/laptop

± is the standard error over seeds. Differences are paired by seed, which
fixes the base model and the problems. Their 95 % intervals are Student's t
intervals, and "4 of 5" means that the difference is positive for 4 of 5 seeds.
"""
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd

from runtime.common import fail
from tools import allow_head, command_line
from tools.seeds import means, paired
from tools.study import (
    ABLATION_STEPS, NAMES, SHARED, SIMKO, STAGES, STEPS,
    comparisons, describe, ks_of, pass_rates, read, run_name)

KS = [1, 4, 16, 64, 256]
FEW_KS = [1, 16, 256]  # for tables with many lines or columns
RATE = SHARED["grpo"]["learning_rate"]


# ------------------------------------------------------------ equal pass@1
def at_equal_pass1(path, target):
    """Returns pass@K where a run first reaches pass@1 = target, or None.
    path: (steps, K). Values between steps are interpolated linearly."""
    steps = [row for _, row in path.sort_index().iterrows()]
    for start, stop in pairwise(steps):
        if start[1] <= target <= stop[1]:
            rise = stop[1] - start[1]
            share = (target - start[1]) / (rise or 1)
            return start + share * (stop - start)
    return None


def reached(rows, run, targets):
    """Returns pass@K (seeds, K) at the targets {seed: pass@1}, for the seeds
    that reach them."""
    own = rows[rows.run == run].set_index("step")
    paths = {seed: path[KS] for seed, path in own.groupby("seed")}
    found = {}
    for seed, target in targets.items():
        if seed in paths:
            found[seed] = at_equal_pass1(paths[seed], target)
    met = {seed: row for seed, row in found.items() if row is not None}
    return pd.DataFrame(met).T


# ----------------------------------------------------------------- tables
def table(title, head, lines):
    """Prints a markdown table, unless it has no lines."""
    if not lines:
        return
    print(f"\n**{title}**\n")
    print(f"| {' | '.join(head)} |")
    print(f"|{'---|' * len(head)}")
    for line in lines:
        print(f"| {' | '.join(map(str, line))} |")


def pass_at(ks):
    return [f"pass@{k}" for k in ks]


def tuning(folder, chosen):
    rows = read("tune", folder)
    rows["mean"] = rows[ks_of(rows)].mean(axis=1)
    head = ["step", "mean", "pass@1", "@16", "@64"]

    def best(found):
        row = found.loc[found["mean"].idxmax()]
        rates = [f"{row[name]:.1f}" for name in ("mean", 1, 16, 64)]
        return [row.step, *rates]

    lines = []
    for method, (run, step) in chosen.items():
        tried = rows[rows.method == method].run.nunique()
        settings = run.partition(" ")[2]
        found = rows[(rows.run == run) & (rows.step == step)]
        lines.append([NAMES[method], tried, settings, *best(found)])
    table("Settings chosen on validation problems (seed 0, n = 64): "
          "highest mean over K = 1, 2, 4, ..., 64",
          ["method", "settings tried", "chosen", *head], lines)

    lines = []
    at_rate = [(method, 1e-4) for method in chosen]
    at_rate += [(method, RATE) for method in SHARED]
    for method, rate in at_rate:
        settings = {"learning_rate": rate}
        if method == "simko":
            settings |= SIMKO
        run = run_name(method, settings)
        found = rows[(rows.run == run) & (rows.step > 0)]
        if len(found):
            lines.append([NAMES[method], f"{rate:g}", *best(found)])
    table("The same with one learning rate, each method at its best step",
          ["method", "learning rate", *head], lines)


def methods(title, rates, ks=KS):
    """Prints a line for each method of {name: rates}."""
    lines = []
    for name, own in rates.items():
        if len(own):
            lines.append([name, len(own), *means(own, ks)])
    table(title, ["", "seeds", *pass_at(ks)], lines)


def main_tables(folder, chosen, shared):
    main = read("main", folder)
    cool = read("cool", folder)
    grpo = chosen["grpo"][0]

    def rates(rows, runs):
        found = {"base": pass_rates(rows, grpo, 0)}
        for method, (run, step) in runs.items():
            found[NAMES[method]] = pass_rates(rows, run, step)
        return found

    usual = rates(main, chosen)
    same = rates(main, shared)
    cooler = rates(cool, {method: chosen[method] for method in SHARED})
    rate = f"both at learning rate {RATE:g}"
    methods("Test problems, T = 1.0, n = 256, settings as chosen (%)", usual)
    methods(f"GRPO and SimKO, {rate}, step {STEPS}, T = 1.0 (%)", same)
    methods("Settings as chosen, T = 0.6 (%)", cooler)

    # SimKO's settings were first tried on the test problems of seed 0.
    other_seeds = {name: own[own.index != 0] for name, own in same.items()}
    comparison = {
        "settings as chosen": usual,
        "as chosen, T = 0.6": cooler,
        f"{rate}, step {STEPS}": same,
        f"{rate}, step {STEPS}, without seed 0": other_seeds}
    lines = []
    for name, found in comparison.items():
        cells = paired(found["SimKO"], found["GRPO"], KS)
        if cells:
            lines.append([name, *cells])
    lines += equal_pass1("as chosen", main, chosen, usual["SimKO"])
    lines += equal_pass1(rate, main, shared, same["SimKO"])
    interval = "percentage points: mean [95 % interval], seeds with a positive difference"
    table(f"SimKO - GRPO, {interval}", ["", *pass_at(KS)], lines)

    lines = []
    if "pass-at-k" in chosen:
        ours = usual[NAMES["pass-at-k"]]
        for method in SHARED:
            cells = paired(ours, usual[NAMES[method]], KS)
            if cells:
                lines.append([f"vs {NAMES[method]}", *cells])
    table(f"Pass@k training, settings as chosen, {interval}", ["", *pass_at(KS)], lines)


def equal_pass1(name, rows, runs, last, targets=(46, 47, 48)):
    """Returns lines that compare SimKO with GRPO at equal pass@1. In the
    first, GRPO is taken where it first reached SimKO's pass@1 in `last`, in
    the others both are taken where they first reached one of the targets."""
    grpo, simko = runs["grpo"][0], runs["simko"][0]
    lines = []

    def compare(how, ours, theirs):
        cells = paired(ours, theirs, KS[1:]) or ["–" for _ in KS[1:]]
        lines.append([f"{name}, {how}", "0 by construction", *cells])

    count = len(last)
    if count:
        met = reached(rows, grpo, last[1])
        seeds = f"{len(met)} of {count} seeds did"
        compare(f"GRPO where it first reached SimKO's pass@1 ({seeds})", last, met)
    for target in targets:
        everywhere = dict.fromkeys(last.index, target)
        ours = reached(rows, simko, everywhere)
        theirs = reached(rows, grpo, everywhere)
        both = len(ours.index.intersection(theirs.index))
        if both > 1:
            seeds = f"{both} of {count} seeds"
            compare(f"both where they first reached pass@1 = {target} % ({seeds})", ours, theirs)
    return lines


def dynamics(folder, chosen, shared):
    """Prints Lambda^(k) and the entropy at the start and at the end of
    training, as means over 25 steps."""
    rows = read("curves", folder)
    names = ["Lambda_1", "Lambda_2", "Lambda_3", "entropy"]
    rows = rows[rows.stage == "main"].explode(["steps", *names])
    rows = rows.astype(dict.fromkeys(names, float)).set_index("seed")
    ends = {NAMES[method]: own for method, own in chosen.items()}
    for method, own in shared.items():
        ends[f"{NAMES[method]}, {RATE:g}"] = own

    own = rows[rows.run == chosen["grpo"][0]]
    shown = {"steps 1-25, GRPO": own[own.steps == own.steps.min()]}
    last = {}
    for label, (run, step) in ends.items():
        last[label] = rows[(rows.run == run) & (rows.steps == step)][names]
        shown[f"{label}, step {step}"] = last[label]

    lines = []
    for label, own in shown.items():
        if len(own):
            lines.append([label, *means(own, names, 2)])
    # The last two entries are GRPO and SimKO at one learning rate.
    for theirs, ours in (("GRPO", "SimKO"), [*ends][-2:]):
        cells = paired(last[ours], last[theirs], names, 2)
        if cells:
            lines.append([f"{ours} - {theirs}", *cells])
    table("Mean log-probability of the rank-k candidate and entropy in training, "
          "all tokens of rollouts at T = 1",
          ["", "Lambda^(1)", "Lambda^(2)", "Lambda^(3)", "entropy"], lines)


def variants(title, head, rates, reference):
    """Prints a line for each of {name: rates}, with the differences from the
    rates of reference(name). The reference itself gets no differences."""
    lines = []
    for name, own in rates.items():
        theirs = reference(name)
        if theirs is None or theirs is own:
            cells = ["-"] * len(FEW_KS)
        else:
            cells = paired(own, theirs, FEW_KS)
        lines.append([name, *means(own, FEW_KS), *cells])
    gaps = [f"{head} @{k}" for k in FEW_KS]
    table(title, ["", *pass_at(FEW_KS), *gaps], lines)


def stage_rates(folder, stage, step):
    """Returns {run: rates} of a stage, in the order of its jobs."""
    rows = read(stage, folder)
    found = {}
    for job in STAGES[stage]():
        rates = pass_rates(rows, job.run, step)
        if len(rates):
            found[job.run] = rates
    return found


def wordy_and_short(folder):
    rows = read("wordy", folder)
    base = rows[rows.step == 0].drop_duplicates("seed").set_index("seed")
    methods("Wordy responses, step 300, T = 1.0 (%): base", {"base": base}, FEW_KS)
    stages = {
        "wordy": "Wordy responses",
        "short": "The usual responses with the same settings"}
    for stage, responses in stages.items():
        rates = stage_rates(folder, stage, 300)

        def grpo_at_its_rate(run):
            rate = re.search(r"learning_rate=\S+", run)[0]
            return rates.get(f"grpo {rate}")

        variants(f"{responses}, step 300, T = 1.0; "
                 "differences from GRPO at the same learning rate",
                 "difference", rates, grpo_at_its_rate)


def repetition(folder):
    """Prints the results of stage repeat, without the seeds of stage wordy."""
    rows = read("repeat", folder)
    rates = stage_rates(folder, "repeat", 300)
    if len(rates) < 2:
        return
    grpo, simko = rates
    base = rows[rows.step == 0].drop_duplicates("seed").set_index("seed")
    methods("Wordy responses, new seeds, the paper's settings, learning rate 0.0001, "
            "step 300, T = 1.0 (%)",
            {"base": base, "GRPO": rates[grpo], "SimKO": rates[simko]})
    lines = [["step 300", *paired(rates[simko], rates[grpo], KS)]]
    runs = {"grpo": (grpo, 300), "simko": (simko, 300)}
    lines += equal_pass1("step 300", rows, runs, rates[simko], targets=())
    table("SimKO - GRPO in these seeds, percentage points: mean [95 % interval], "
          "seeds with a positive difference", ["", *pass_at(KS)], lines)


def ablation(folder):
    found = stage_rates(folder, "ablation", ABLATION_STEPS)
    if not found:
        return
    seeds = next(iter(found.values())).index
    main = read("main", folder)
    main = main[main.seed.isin(seeds)]
    grpo, unchanged = (
        pass_rates(main, run_name(method, settings), ABLATION_STEPS)
        for method, settings in SHARED.items())
    rates = {"GRPO": grpo, "SimKO, nothing changed": unchanged}
    usual = run_name("simko", SHARED["simko"]).split()
    for run, own in found.items():
        words = [word for word in run.split() if word not in usual]
        if "tau_scope" in run:  # show q as well, even if it is unchanged
            words = run.split()[-2:]
        rates[" ".join(words)] = own
    settings = describe(SHARED["simko"])
    variants(f"SimKO ({settings} K=3), step {ABLATION_STEPS}, with one setting changed; "
             "differences from GRPO",
             "vs GRPO", rates, lambda name: grpo)

    parts = {
        "without γ^pos": "alpha=0",
        "without γ^neg": "lambda_top1=1",
        "the rank-1 token as the only candidate": "K=1"}
    without = {}
    for what, part in parts.items():
        if part in rates:
            without[f"{what}: {part}"] = rates[part]
    variants("Without one part; differences from SimKO with nothing changed",
             "vs SimKO", without, lambda name: unchanged)


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("folder", type=Path, help="the folder that tools.study writes to")
    folder = parser.parse_args().folder
    chosen, shared = comparisons(folder)
    for name in ("tune", "main", "curves"):
        if read(name, folder).empty:
            fail(f"{folder}/{name}.jsonl has no rows: finish python -m tools.study first")
    tuning(folder, chosen)
    main_tables(folder, chosen, shared)
    dynamics(folder, chosen, shared)
    wordy_and_short(folder)
    repetition(folder)
    ablation(folder)


if __name__ == "__main__":
    allow_head()
    main()
