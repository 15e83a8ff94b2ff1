"""Draws the laptop study for tools.plots --study."""
import re

from runtime.common import fail
from simko import Config
from tools.drawing import (
    CURVES, SETTINGS, STYLES, band, dynamics_figure, grid, legend, note, over_k, sweep_figure)
from tools.study import (
    ABLATION_STEPS, NAMES, SHARED, SWEEPS, comparisons, pass_rates, read, run_name)

METHODS = dict(zip(NAMES, STYLES))
KS = 1, 16, 256  # the Ks of the study's figures


def seeds_of(rates):
    if len(rates) > 1:
        return f"mean ± s.e. over {len(rates)} seeds"
    return "one seed"


def pass_at_k_figure(main, parts):
    """Draws pass@K against K for the base model, GRPO and SimKO, with a panel
    for each entry of parts {title: {method: (run, step)}}."""
    figure, axes = grid(1, len(parts), 3.7, 3, sharey=True)
    for axis, (title, runs) in zip(axes[0], parts.items()):
        shown = {"base": (runs["grpo"][0], 0)}
        shown |= {method: runs[method] for method in SHARED}
        for method, (run, step) in shown.items():
            rates = pass_rates(main, run, step).dropna(axis=1)
            ks, mean, error = list(rates), rates.mean(), rates.sem()
            band(axis, ks, mean, error, METHODS[method], label=NAMES[method])
        over_k(axis, ks)
        axis.set_title(f"{title}\n{seeds_of(rates)}", fontsize=10)
    axes[0][0].set_ylabel("pass@K, %")
    return legend(figure)


def same_seeds(rows, runs):
    """Returns the rows of the seeds that all the runs (run, step) share."""
    seeds = [set(pass_rates(rows, run, step).index) for run, step in runs]
    shared = set.intersection(*seeds)
    return rows[rows.seed.isin(shared)]


def frontier_figure(main, parts):
    """Draws pass@K against pass@1, with a line of panels for each entry of
    parts {title: {method: (run, step)}}."""
    figure, axes = grid(len(parts), len(KS) - 1, 4.8, 4.2)
    for line, (title, runs) in zip(axes, parts.items()):
        for axis, k in zip(line, KS[1:]):
            for method, (run, step) in runs.items():
                way = main[main.run == run].groupby("step")[[1, k]]
                frontier(axis, method, way.mean(), way.sem(), step)
            seeds = seeds_of(pass_rates(main, *runs["simko"]))
            axis.set(xlabel="pass@1, %", ylabel=f"pass@{k}, %")
            axis.set_title(f"{title}\n{seeds}")
            axis.margins(0.1)
    return legend(figure)


def frontier(axis, method, mean, error, step):
    """Draws the path of a run through (pass@1, pass@K). mean, error: a row for
    each step. GRPO and SimKO get a mark at every step, and a label at `step`.
    The other methods get one mark, at `step`."""
    x, y = mean.columns
    colour, line, marker = METHODS[method]
    often = method in SHARED  # nine methods with all their marks would hide each other
    width = 1.5 if often else 0.9
    size = 5 if often else 6
    steps = mean.index[1:] if often else [step]

    base_colour, _, base_marker = METHODS["base"]
    axis.plot(*mean.loc[0], base_marker, color=base_colour, markersize=9,
              label=NAMES["base"], zorder=5)
    axis.plot(mean[x], mean[y], color=colour, linestyle=line, linewidth=width)
    marks, bars = mean.loc[steps], error.loc[steps]
    axis.errorbar(marks[x], marks[y], bars[y], bars[x], color=colour, linestyle="",
                  marker=marker, markersize=size, elinewidth=0.7, label=NAMES[method])
    if often:
        # There is space for both labels only below the paths.
        offsets = {"grpo": (-75, -70), "simko": (-85, -45)}
        if step == mean.index[-1]:
            offsets = dict.fromkeys(SHARED, (-110, -15))
        note(axis, f"{NAMES[method]}, step {step}", mean.loc[step], offsets[method],
             fontsize=8, zorder=6, arrowprops={"arrowstyle": "-", "linewidth": 0.5})


def methods_figure(main, runs):
    """Draws pass@K of each method, with a panel for each K. runs:
    {method: (run, step)}."""
    runs = {"base": (runs["grpo"][0], 0), **runs}
    figure, axes = grid(1, 3, 3.4, 0.36 * len(runs) + 1, sharey=True)
    for axis, k in zip(axes[0], KS):
        for place, (method, (run, step)) in enumerate(runs.items()):
            values = pass_rates(main, run, step)[k]
            mean = values.mean()
            colour, _, marker = METHODS[method]
            axis.errorbar(mean, place, xerr=values.sem(),
                          color=colour, marker=marker, capsize=3)
            note(axis, f"{mean:.1f}", (mean, place), (0, 6), ha="center", fontsize=8)
        axis.set(xlabel=f"pass@{k}, %", ylim=(len(runs) - 0.5, -0.8))
        axis.margins(x=0.12)
    names = []
    for method, (run, _) in runs.items():
        rate = re.search(r"learning_rate=(\S+)", run)[1]
        names.append(NAMES[method] if method == "base" else f"{NAMES[method]}, {rate}")
    axes[0][0].set_yticks(range(len(names)), names)
    seeds = seeds_of(pass_rates(main, *runs["simko"]))
    figure.suptitle(f"method, learning rate; {seeds}", fontsize=10)
    return figure


def ablation_figure(main, rows):
    """Draws pass@1 and pass@K against one setting of SimKO at a time,
    beside GRPO and unchanged SimKO. rows: the rows of stage ablation."""
    runs = [(run, ABLATION_STEPS) for run in rows.run.unique()]
    rows = same_seeds(rows, runs)
    main = main[main.seed.isin(rows.seed)]
    same = {}
    for method, settings in SHARED.items():
        same[method] = pass_rates(main, run_name(method, settings), ABLATION_STEPS)
    usual = SHARED["simko"] | {"K": Config.K, "tau_scope": Config.tau_scope}

    def changed(**change):
        if usual | change == usual:
            return same["simko"]
        if "q" not in change:  # only runs that change q have the scope in their name
            del change["tau_scope"]
        run = run_name("simko", SHARED["simko"] | change)
        return pass_rates(rows, run, ABLATION_STEPS)

    sweeps = {}
    for name in SETTINGS:
        values = sorted({*SWEEPS[name], usual[name]})
        scopes = ("response", "batch") if name == "q" else (Config.tau_scope,)
        sweeps[name] = {
            f"one setting changed, τ(q) over the {scope}": {
                value: over_seeds(changed(**{name: value, "tau_scope": scope}))
                for value in values}
            for scope in scopes}
    names = {"grpo": NAMES["grpo"], "simko": NAMES["simko"] + ", nothing changed"}
    levels = {names[method]: (METHODS[method], over_seeds(rates))
              for method, rates in same.items()}
    figure = sweep_figure(sweeps, levels, (KS[0], KS[-1]))
    figure.suptitle(seeds_of(same["simko"]), fontsize=10)
    return figure


def over_seeds(rates):
    """Returns {K: (mean, standard error)} of pass@K. rates: (seeds, K)."""
    return dict(zip(rates, zip(rates.mean(), rates.sem())))


def mean_curves(rows, runs):
    """Returns {name: (means, errors)} over seeds of the training curves of
    the runs {method: (run, step)}."""
    rows = rows[rows.stage == "main"].dropna(axis=1)
    names = [name for name in rows if name in CURVES or name.startswith("Lambda_")]
    found = {}
    for method, (run, _) in runs.items():
        own = rows[rows.run == run].explode(["steps", *names])
        steps = own.groupby("steps")[names]
        means = steps.mean().astype(float)
        found[NAMES[method]] = means, steps.sem().astype(float)
    return found


def study_figures(folder):
    """Returns {name: figure} of a study, over the seeds for which stage
    main is complete."""
    main, rows, curves = (read(name, folder) for name in ("main", "ablation", "curves"))
    chosen, shared = comparisons(folder)
    main = same_seeds(main, [*chosen.values(), *shared.values()])
    if main.empty:
        fail(f"{folder / 'main.jsonl'} has no seed with all runs of chosen.json: "
             "run python -m tools.study main")
    rows = rows[rows.seed.isin(main.seed)]
    curves = curves[curves.seed.isin(main.seed)]
    rate = SHARED["grpo"]["learning_rate"]
    parts = {
        "settings as chosen: learning rates differ": chosen,
        f"both at learning rate {rate:g}": shared}
    figures = {
        "pass_at_k": pass_at_k_figure(main, dict(reversed(parts.items()))),
        "frontier": frontier_figure(main, parts),
        "fig3d_methods": methods_figure(main, chosen)}
    if len(curves):
        styles = {NAMES[method]: style for method, style in METHODS.items()}
        names = "fig3_5_study", "fig3_5_shared"
        for name, (title, runs) in zip(names, parts.items()):
            seeds = seeds_of(pass_rates(main, *runs["simko"]))
            means = mean_curves(curves, runs)
            figures[name] = dynamics_figure(means, styles, f"{title}; {seeds}")
    if len(rows):
        figures["fig7_ablation"] = ablation_figure(main, rows)
    return figures
