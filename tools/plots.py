"""Draws figures from evaluations, runs and the laptop study. A figure with
a number in its name is the counterpart of that figure in the paper.

    python -m tools.plots [LABEL=]FOLDER ... -o DIR
    python -m tools.plots [LABEL=]RUN ... --path 3 -o DIR
    python -m tools.plots --study docs/laptop -o DIR
    python -m tools.plots --walkthrough docs/walkthrough.json -o DIR
    python -m tools.plots --follow RUN

A FOLDER holds an evaluation, or a run, whose last evaluation is drawn if
it is finished. If no FOLDER has an evaluation, fig1_pass_at_k and the
report are left out. The figures are:

fig1_pass_at_k   pass@K against K, with the standard error over problems
fig1_candidates  exp(Lambda^(k)) against k at the end of training
fig3_5_dynamics  reward, entropy, Lambda and Lambda^(k) during training,
                 over all tokens and over forking tokens
fig6_entropy     distribution of token entropies at the end of training
fig7_ablation    pass@1 and pass@K against the settings of SimKO in which
                 otherwise equal runs differ

DIR/report.html shows these figures in one self-contained page, with tables
of pass@K, settings, versions and the seconds of each phase.

--path INDEX draws path_INDEX, which shows the top candidates of each model
at each token of one response. --follow RUN shows a chart in the terminal
while RUN trains.

--study draws the results of tools.study, as the mean ± standard error over
the seeds that all runs of a figure share:

pass_at_k        pass@K of the base model, GRPO and SimKO against K
fig3d_methods    pass@K of each method at the step chosen by validation
fig3_5_study     training dynamics with the chosen settings
fig3_5_shared    training dynamics of GRPO and SimKO at one learning rate
frontier         pass@K against pass@1 during training
fig7_ablation    pass@K when one setting of SimKO is changed at a time

--walkthrough draws the figures of docs/walkthrough.md from the measurements
of tools.walkthrough:

fig2_equal_entropy  two distributions with the same entropy
fig4_one_step       the gate, and one step on a correct and a wrong response
floor               when Eq. 6 pushes a candidate up, and where that leads
"""
import itertools
import json
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from runtime.common import fail
from runtime.run_folder import check_log
from tools import command_line, paths, report, tables
from tools.drawing import (
    SETTINGS, STYLES, band, dynamics_figure, grid, legend, over_k, panels, plt, ranks,
    sweep_figure, whole_numbers)
from tools.study_figures import METHODS, study_figures
from tools.walkthrough_figures import walkthrough_figures

LAST = 25  # the number of steps that count as the end of training


# --------------------------------------------------- evaluations and runs
def read_log(path):
    """Reads metrics.jsonl into a DataFrame. An unterminated last line is
    skipped, because the run is still writing it."""
    check_log(path)
    lines = path.read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines[:-1]]
    for number, row in enumerate(rows, 1):
        missing = {"reward", "Lambda_1", "entropy_histogram"} - row.keys()
        if missing:
            fail(f"{path}, line {number}, was written by another version "
                 f"and has no {min(missing)}: train the run again")
    # null stands for nan. A column that contains only nulls must be numeric too.
    return pd.DataFrame(rows).replace({None: math.nan}).infer_objects()


def pass_figure(rows, styles):
    """Draws pass@K against K, with a panel for each set at each temperature."""
    names = dict.fromkeys(name for row in rows for name in row.sets)
    temperatures = dict.fromkeys(row.temperature for row in rows)
    found = {}
    for temperature, name in itertools.product(temperatures, names):
        shown = [row for row in rows if row.temperature == temperature and name in row.sets]
        if shown:
            found[temperature, name] = shown
    # With up to three sets, each temperature has a line of its own.
    figure, axes = panels(len(found), 4.6, 3.6, most=min(3, len(names)))
    for ((temperature, name), shown), axis in zip(found.items(), axes):
        title = name if temperature is None else f"{name}, T = {temperature}"
        pass_panel(axis, name, shown, styles)
        axis.set(ylabel="pass@K, %", title=title)
    return legend(figure)


def pass_panel(axis, name, rows, styles):
    """Draws pass@K of rows that all have the set `name`."""
    ks = {}
    for row in rows:
        rates = tables.pass_rates([row.sets[name]])
        mean, error = 100 * np.array([*rates.values()]).T
        band(axis, [*rates], mean, error, styles[row.label], label=row.label)
        ks |= rates
    over_k(axis, [*ks])


def sweeps(rows):
    """Returns (a run, {setting: {value: run}}), where runs are labels of rows:
    the run of SimKO from which the most runs differ in one setting of SimKO
    and in nothing else, and these runs with the run itself."""
    rows = {row.label: row for row in rows}
    folders = tables.only_runs({label: row.folder for label, row in rows.items()})
    runs = {label: tables.run_settings(folder) for label, folder in folders.items()}
    runs = {label: own for label, own in runs.items() if own["method"] == "simko"}
    centre, found, most = None, {}, 0
    for one, own in runs.items():
        near = {}
        for label, settings in runs.items():
            changed = tables.different_settings([folders[one], folders[label]])
            if (len(changed) == 1 and changed[0] in SETTINGS and own["seed"] == settings["seed"]
                    and alike(rows[one], rows[label])):
                name, = changed
                near.setdefault(name, {own[name]: one})[settings[name]] = label
        count = sum(len(values) - 1 for values in near.values())  # without the run itself
        if count > most:
            centre, found, most = one, near, count
    in_order = [name for name in SETTINGS if name in found]
    return centre, {name: dict(sorted(found[name].items())) for name in in_order}


def alike(one, other):
    """Returns whether `other` has the sets of `one`, and tools.tables compares
    them without a warning."""
    return (other.sets.keys() >= one.sets.keys()
            and not tables.differences([one, other], list(one.sets), paper=None))


def ablation_figure(rows, styles):
    """Draws pass@1 and pass@K, averaged over sets, against settings of SimKO.
    The evaluations of other methods and of the base model are levels.
    Returns None if no two runs can be compared. Prints what is left out."""
    runs = {row.label: tables.run_of(row.folder) for row in rows}
    simko = [label for label, run in runs.items()
             if run and tables.run_settings(run)["method"] == "simko"]
    if len(simko) < 2:
        return None
    found = {}
    if all(row.temperature is None for row in rows):
        centre, found = sweeps(rows)
    if not found:
        print("fig7_ablation is not drawn, because no two runs differ in one setting of SimKO "
              "alone and have evaluations alike, at one temperature", file=sys.stderr)
        return None
    rows = {row.label: row for row in rows}
    others = [label for label, row in rows.items()
              if label not in simko and alike(rows[centre], row)]
    shown = {*others, *(label for values in found.values() for label in values.values())}
    if left := [label for label in rows if label not in shown]:
        print(f"fig7_ablation leaves out {', '.join(left)}: more than one setting of SimKO, or "
              f"something else, differs from {centre}", file=sys.stderr)

    names, rates = list(rows[centre].sets), {}
    for label in shown:
        of_row = tables.pass_rates([rows[label].sets[name] for name in names])
        rates[label] = {k: (100 * mean, 100 * error) for k, (mean, error) in of_row.items()}
    curves = {
        name: {f"{centre}, one setting changed": {
            value: rates[label] for value, label in values.items()}}
        for name, values in found.items()}
    levels = {label: (styles[label], rates[label]) for label in others}
    figure = sweep_figure(curves, levels, sorted({1, max(rates[centre])}))
    figure.suptitle("mean over " + ", ".join(names), fontsize=10)
    return figure


def last_steps(logs):
    """Returns which steps of the logs count as the end of training."""
    longest = max(map(len, logs.values()))
    return f"last {LAST} steps" if longest > LAST else "all steps"


def candidates_figure(logs, styles):
    figure, ((axis,),) = grid(1, 1, 4.6, 3.6)
    for label, log in logs.items():
        means = np.exp(log[ranks(log)].tail(LAST).mean())
        x = range(1, len(means) + 1)
        band(axis, x, means, np.nan, styles[label], label=label, markersize=6)
    axis.set(yscale="log", xlabel="k")
    whole_numbers(axis)
    axis.set_ylabel(r"$\exp\,\Lambda^{(k)}$" + "\n(geometric mean probability)")
    axis.set_title(f"k-th candidate, {last_steps(logs)}")
    return legend(figure)


def run_curves(log):
    """Smooths a log's columns: each value becomes the mean over a window that
    ends at its step and is a 20th of the run long. Returns (means, None)."""
    numbers = log.set_index("step").select_dtypes("number")
    window = max(1, len(log) // 20)
    return numbers.rolling(window, min_periods=1).mean(), None


def entropy_figure(logs, styles):
    """Draws the share of tokens in bins of 0.1 nats. The last bin is open."""
    figure, ((axis,),) = grid(1, 1, 5.4, 3.6)
    for label, log in logs.items():
        histograms = log["entropy_histogram"].tail(LAST)
        counts = np.sum(histograms.tolist(), 0)
        # A logarithmic scale cannot show a share of 0.
        share = np.where(counts > 0, 100 * counts / counts.sum(), np.nan)
        colour, line, _ = styles[label]
        edges = np.arange(len(share) + 1) / 10
        axis.stairs(share, edges, baseline=None, label=label,
                    color=colour, linestyle=line, linewidth=1.6)
    axis.set(yscale="log", ylabel="tokens, %", title=last_steps(logs))
    axis.set_xlabel("token entropy, nats (last bin: 4 and above)")
    axis.set_xlim(right=edges[-1])
    return legend(figure)


# ----------------------------------------------------------------- follow
def chart(log, steps, width):
    """Returns a text with a line of bars for each of four columns. Each of
    the `width` bars is a mean over its share of all `steps` of the run."""
    done = log["step"].iloc[-1] if len(log) else 0
    lines = [f"step {done} of {steps}"]
    for name in ("reward", "Lambda_1", "Lambda_2", "entropy"):
        if name not in log or log[name].isna().all():
            continue
        column = (log["step"] - 1) * width // steps
        means = log[name].groupby(column).mean().reindex(range(width))
        low, high = means.min(), means.max()
        levels = 1 + 7 * (means - low) / ((high - low) or 1)
        bars = "".join(" ▁▂▃▄▅▆▇█"[round(level)] for level in levels.fillna(0))
        lines.append(f"{name:9}{bars} {low:.3f} to {high:.3f}")
    return "\n".join(lines)


def follow(folder):
    """Prints the chart of a run. In a terminal, updates it until the last
    step is done."""
    steps = tables.run_settings(folder)["steps"]
    path = folder / "metrics.jsonl"
    room = shutil.get_terminal_size().columns - 28  # beside the name and the range
    width = max(1, min(steps, room))
    up = ""
    while True:
        log = read_log(path) if path.exists() else pd.DataFrame()
        text = chart(log, steps, width)
        print(up + text, flush=True)
        done = len(log) and log["step"].iloc[-1] >= steps
        if done or not sys.stdout.isatty():
            return
        # Moves up to the chart's first line and clears the screen below.
        height = len(text.split("\n"))
        up = f"\x1b[{height}A\x1b[J"
        time.sleep(3)


# ------------------------------------------------------------------- main
def read_logs(folders):
    """Returns {label: log} of those folders that hold a log with a step."""
    logs = {}
    for label, folder in folders.items():
        path = folder / "metrics.jsonl"
        if path.is_file():
            logs[label] = read_log(path)
    return {label: log for label, log in logs.items() if len(log)}


def styles_of(labels):
    """Returns {label: style}. A method's name as a label gets the method's own
    style; the other labels get the styles that are left."""
    own = {}
    for label in labels:
        style = METHODS.get(label.lower())
        if style and style not in own.values():  # GRPO and grpo are two runs
            own[label] = style
    free = iter([style for style in STYLES if style not in own.values()])
    return {label: own.get(label) or next(free) for label in labels}


def run_figures(rows, logs, styles):
    """Returns {name: figure} of evaluations and of runs' logs."""
    figures = {}
    if rows:
        figures["fig1_pass_at_k"] = pass_figure(rows, styles)
    # A run whose dynamic sampling keeps no group logs nothing about its policy.
    ends = {label: log for label, log in logs.items()
            if log["Lambda_1"].tail(LAST).notna().any()}
    if ends:
        figures["fig1_candidates"] = candidates_figure(ends, styles)
    if logs:
        curves = {label: run_curves(log) for label, log in logs.items()}
        title = "moving averages over a 20th of each run's steps"
        figures["fig3_5_dynamics"] = dynamics_figure(curves, styles, title)
    if ends:
        figures["fig6_entropy"] = entropy_figure(ends, styles)
    if rows and (ablation := ablation_figure(rows, styles)):
        figures["fig7_ablation"] = ablation
    return figures


def parse_arguments():
    parser = command_line(__file__, __doc__)
    parser.add_argument("folders", nargs="*", metavar="[LABEL=]FOLDER")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="write the figures to this folder")
    parser.add_argument(
        "--study", type=Path, metavar="DIR",
        help="draw the study whose rows are in this folder")
    parser.add_argument(
        "--path", type=int, metavar="INDEX",
        help="draw a response to this problem of the first set, counted from 0")
    parser.add_argument(
        "--walkthrough", type=Path, metavar="FILE",
        help="draw the measurements in this file")
    parser.add_argument(
        "--follow", type=Path, metavar="RUN",
        help="show the chart of the run in this folder")
    options = parser.parse_args()
    # --path needs folders of runs beside --study or --walkthrough.
    alone = (options.study or options.walkthrough) and options.path is None
    drawn = options.output and (options.folders or alone)
    if not (options.follow or drawn):
        parser.error("name what to draw: folders (of runs, for --path), --study or "
                     "--walkthrough; and a folder for the figures with -o. Or name a run "
                     "with --follow")
    others = options.folders, options.output, options.study, options.walkthrough
    if options.follow and (any(others) or options.path is not None):
        parser.error("--follow takes no other arguments: draw figures with another command")
    return options


def main():
    options = parse_arguments()
    if options.follow:
        return follow(options.follow)
    folders = tables.labelled(options.folders)
    if len(folders) > len(STYLES):
        fail(f"{len(folders)} folders are too many: a figure shows at most {len(STYLES)}")
    logs = read_logs(folders)
    unfinished = [label for label in logs if not tables.last_report(folders[label]).exists()]
    for label in unfinished:
        print(f"{label}: pass@K is not drawn, because no evaluation is finished",
              file=sys.stderr)
    rows = tables.load({label: f for label, f in folders.items() if label not in unfinished})
    figures = {}
    if options.path is not None:
        name = f"path_{options.path}"
        if arguments := paths.read_path(folders, options.path):
            figures[name] = paths.path_figure(*arguments)
        else:
            print(f"{name} is not drawn, because no run has a correct response to this problem: "
                  "choose another one with --path", file=sys.stderr)
    figures |= run_figures(rows, logs, styles_of(folders))
    reported = [*figures]
    if options.study:
        figures |= study_figures(options.study)
    if options.walkthrough:
        figures |= walkthrough_figures(options.walkthrough)

    files = {name: options.output / f"{name}.png" for name in figures}
    page = options.output / "report.html"
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(files[name])
            plt.close(figure)
        if rows:
            runs = tables.only_runs(folders)
            settings = {label: tables.run_settings(folder) for label, folder in runs.items()}
            pictures = {name: files[name].read_bytes() for name in reported}
            report.write(page, rows, logs, settings, pictures)
    except OSError as error:
        fail(f"-o {options.output} cannot be written ({error.strerror}): name another folder")
    print("figures: " + ", ".join(map(str, files.values())))
    if rows:
        print(f"report: {page}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
