"""Tables of the laptop study, from the rows that tools/study.py writes.

    python tools/results.py docs/laptop                  prints what docs/results.md shows

± is the standard error over seeds. A difference is paired: the same base model, problems and seed; its interval is
Student's, 95 %, and "4 of 5" says in how many seeds it was above zero.
"""
import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.study import ABLATION_STEPS, NAMES, SHARED, SIMKO, STAGES, STEPS, describe, rows  # noqa: E402

T975 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # Student's t


def read(folder, name):
    """The rows of a stage, pass@K in % by int(K)."""
    found = rows(name, folder)
    for row in found:
        row["pass"] = {int(k): 100 * value for k, value in row.get("pass", {}).items()}
    return found


def curves(found, **wanted):
    """{seed: {step: {K: %}}} of the rows whose columns are as wanted."""
    seeds = {}
    for row in found:
        if all(row[name] == value for name, value in wanted.items()):
            seeds.setdefault(row["seed"], {})[row["step"]] = row["pass"]
    return seeds


def with_error(values, digits=1):
    """"mean ± standard error" of one value a seed."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{error}"


def difference(values, digits=1):
    """"mean [95 % interval] positive of all" of one difference a seed."""
    if len(values) < 2:
        return f"{mean(values):+.{digits}f}"
    half = T975[len(values) - 1] * stdev(values) / len(values) ** 0.5
    above = sum(value > 0 for value in values)
    return f"{mean(values):+.{digits}f} [{mean(values) - half:+.{digits}f}, {mean(values) + half:+.{digits}f}] " \
           f"{above} of {len(values)}"


def table(title, head, lines):
    """A markdown table; no lines, no table."""
    if lines:
        print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        print("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


def at_equal_pass1(path, target):
    """{K: %} where a run, from checkpoint to checkpoint in a straight line, first reaches pass@1 = target, or None."""
    points = [path[step] for step in sorted(path)]
    for start, stop in zip(points, points[1:]):
        if start[1] <= target <= stop[1]:
            return {k: start[k] + (stop[k] - start[k]) * (target - start[1]) / ((stop[1] - start[1]) or 1)
                    for k in start.keys() & stop.keys()}
    return None


def reached(paths, targets):
    """{seed: {K: %}} of the seeds whose path comes to its target {seed: pass@1}."""
    found = {seed: at_equal_pass1(paths[seed], target) for seed, target in targets.items()}
    return {seed: percent for seed, percent in found.items() if percent}


def tuning(folder, chosen):
    def scores(percent):
        return [f"{mean(percent.values()):.1f}", *(f"{percent[k]:.1f}" for k in (1, 16, 64))]
    found, lines = read(folder, "tune"), []
    for method, (settings, step) in chosen.items():
        own = [row for row in found if row["method"] == method]
        best = [row["pass"] for row in own if row["settings"] == settings and row["step"] == step][-1]
        tried = len({row["run"] for row in own})
        lines.append([NAMES[method], tried, " ".join(describe(settings)), step, *scores(best)])
    table("Settings chosen on validation problems (seed 0, n = 64): highest mean over K = 1, 2, 4, ..., 64",
          ["method", "settings tried", "chosen", "step", "mean", "pass@1", "@16", "@64"], lines)
    lines = []
    for rate, methods in ((1e-4, chosen), (SHARED["grpo"]["lr"], SHARED)):
        for method in methods:
            settings = {**(SIMKO if method == "simko" else {}), "lr": rate}
            own = [row for row in found if (row["method"], row["settings"]) == (method, settings) and row["step"]]
            for best in sorted(own, key=lambda row: mean(row["pass"].values()))[-1:]:
                lines.append([NAMES[method], f"{rate:g}", best["step"], *scores(best["pass"])])
    table("The same with one learning rate, each method at its best step",
          ["method", "learning rate", "step", "mean", "pass@1", "@16", "@64"], lines)


def methods(title, points, ks):
    """points: {name: {seed: {K: %}}}."""
    table(title, ["", "seeds", *(f"pass@{k}" for k in ks)],
          [[name, len(seeds), *(with_error([percent[k] for percent in seeds.values()]) for k in ks)]
           for name, seeds in points.items() if seeds])


def paired(ours, theirs, ks):
    """A cell a K: differences of {seed: {K: %}} over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    return [difference([ours[seed][k] - theirs[seed][k] for seed in seeds]) for k in ks] if seeds else []


def end(found, step, **wanted):
    return {seed: path[step] for seed, path in curves(found, **wanted).items() if step in path}


def main_tables(folder, chosen):
    main, cool, ks = read(folder, "main"), read(folder, "cool"), (1, 4, 16, 64, 256)
    (grpo, grpo_step), (simko, simko_step) = chosen["grpo"], chosen["simko"]
    points = {"base": end(main, 0, method="grpo", settings=grpo)}
    points |= {NAMES[method]: end(main, step, method=method, settings=settings)
               for method, (settings, step) in chosen.items()}
    methods("Test problems, T = 1.0, n = 256, settings as chosen (%)", points, ks)
    shared = {NAMES[method]: end(main, STEPS, method=method, settings=settings) for method, settings in SHARED.items()}
    rate = f"both at learning rate {SHARED['grpo']['lr']:g}"
    methods(f"GRPO and SimKO, {rate}, step {STEPS}, T = 1.0 (%)", {"base": points["base"], **shared}, ks)
    cooler = {"base": end(cool, 0, method="grpo"), "GRPO": end(cool, grpo_step, method="grpo", settings=grpo),
              "SimKO": end(cool, simko_step, method="simko", settings=simko)}
    methods("Settings as chosen, T = 0.6 (%)", cooler, ks)
    lines = [[name, *paired(where["SimKO"], where["GRPO"], ks)] for name, where in (
        ("settings as chosen", points), ("as chosen, T = 0.6", cooler), (f"{rate}, step {STEPS}", shared))]
    for name, settings, step in (("as chosen", (grpo, simko), simko_step),
                                 (rate, SHARED.values(), STEPS)):
        theirs, ours = (curves(main, method=method, settings=own)
                        for method, own in zip(("grpo", "simko"), settings))
        seeds = sorted(seed for seed in theirs.keys() & ours.keys() if step in ours[seed])
        last = {seed: ours[seed][step] for seed in seeds}
        met = reached(theirs, {seed: percent[1] for seed, percent in last.items()})
        if seeds:
            how = f"GRPO where it first had SimKO's pass@1 ({len(met)} of {len(seeds)} seeds came that high)"
            lines.append([f"{name}, {how}", "0 by construction", *(paired(last, met, ks[1:]) or "-" * len(ks[1:]))])
        for target in (46, 47, 48):
            both = [reached(paths, dict.fromkeys(seeds, target)) for paths in (ours, theirs)]
            met = both[0].keys() & both[1].keys()
            if len(met) > 1:
                how = f"both where they first had pass@1 = {target} % ({len(met)} of {len(seeds)} seeds)"
                lines.append([f"{name}, {how}", "0 by construction", *paired(*both, ks[1:])])
    table("SimKO - GRPO, percentage points: mean [95 % interval], seeds above 0", ["", *(f"pass@{k}" for k in ks)],
          [line for line in lines if len(line) > 1])


def dynamics(folder, chosen):
    """Lambda at the start and at the chosen step: means of 25 training steps."""
    logs = [row for row in read(folder, "curves") if row["stage"] == "main"]
    names = "Lambda_1", "Lambda_2", "Lambda_3", "entropy"
    runs = [(NAMES[method], method, *own) for method, own in chosen.items()] + [
        (f"{NAMES[method]}, {settings['lr']:g}", method, settings, STEPS) for method, settings in SHARED.items()]
    found, lines = {}, []
    for label, method, settings, step in runs:
        own = [row for row in logs if (row["method"], row["settings"]) == (method, settings)]
        found[label] = {row["seed"]: {name: row[name][row["steps"].index(step)] for name in names} for row in own}
        if label == "GRPO" and own:
            lines.append(["steps 1-25, GRPO", *(with_error([row[name][0] for row in own], 2) for name in names)])
        if found[label]:
            lines.append([f"{label}, step {step}", *(with_error([row[name] for row in found[label].values()], 2)
                                                     for name in names)])
    for theirs, ours in (("GRPO", "SimKO"), [label for label, *_ in runs[-2:]]):
        seeds = sorted(found[ours].keys() & found[theirs].keys())
        if seeds:
            lines.append([f"{ours} - {theirs}", *(difference([found[ours][seed][name] - found[theirs][seed][name]
                                                              for seed in seeds], 2) for name in names)])
    table("Mean log-probability of the rank-k candidate and entropy in training, all tokens of rollouts at T = 1",
          ["", "Lambda^(1)", "Lambda^(2)", "Lambda^(3)", "entropy"], lines)


def variants(title, head, points, reference, ks=(1, 16, 256)):
    """A line for each of points {name: {seed: {K: %}}}, with its difference to reference(name), of the same kind."""
    lines = []
    for name, own in points.items():
        theirs = reference(name)
        cells = own != theirs and paired(own, theirs, ks)
        lines.append([name, *(with_error([percent[k] for percent in own.values()]) for k in ks),
                      *(cells or ["-"] * len(ks))])
    table(title, ["", *(f"pass@{k}" for k in ks), *(f"{head} @{k}" for k in ks)], lines)


def stage_points(folder, stage, step):
    """{run: {seed: {K: %}}} of a stage, in its own order."""
    found = read(folder, stage)
    points = {work["run"]: end(found, step, run=work["run"]) for work in STAGES[stage]()}
    return {run: seeds for run, seeds in points.items() if seeds}


def wordy_and_short(folder):
    methods("Wordy responses, step 300, T = 1.0 (%): base", {"base": end(read(folder, "wordy"), 0)}, (1, 16, 256))
    for stage, responses in (("wordy", "Wordy responses"), ("short", "The usual responses with the same settings")):
        points = stage_points(folder, stage, 300)
        variants(f"{responses}, step 300, T = 1.0; differences to GRPO with the same learning rate", "difference",
                 points, lambda run: points.get("grpo " + re.search(r"lr=\S+", run)[0], {}))


def ablation(folder):
    found, main = stage_points(folder, "ablation", ABLATION_STEPS), read(folder, "main")
    seeds = {seed for own in found.values() for seed in own}
    grpo, unchanged = ({seed: percent for seed, percent in
                        end(main, ABLATION_STEPS, method=method, settings=settings).items() if seed in seeds}
                       for method, settings in SHARED.items())
    usual = " ".join(["simko", *describe(SHARED["simko"])])
    short = {run: " ".join(part for part in run.split() if part not in usual.split() or (
        part.startswith("q=") and "tau_scope" in run)) for run in found}
    points = {"GRPO": grpo, "SimKO, nothing changed": unchanged, **{short[run]: own for run, own in found.items()}}
    title = f"SimKO ({' '.join(describe(SHARED['simko']))} K=3), step {ABLATION_STEPS}, with one setting changed"
    variants(f"{title}; differences to GRPO", "to GRPO", {name: own for name, own in points.items() if own},
             lambda name: grpo)
    parts = {"without γ^pos": "alpha=0", "without γ^neg": "lam=1", "the rank-1 token as only candidate": "K=1"}
    less = {f"{what}: {part}": points[part] for what, part in parts.items() if part in points}
    variants("Without a part; differences to SimKO with nothing changed", "to SimKO", less, lambda name: unchanged)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / "chosen.json").exists():
        sys.exit(f"{folder} has no chosen.json: python tools/study.py tune main writes it")
    chosen = json.loads((folder / "chosen.json").read_text())
    tuning(folder, chosen)
    main_tables(folder, chosen)
    dynamics(folder, chosen)
    wordy_and_short(folder)
    ablation(folder)


if __name__ == "__main__":
    main()
