"""The style of all figures, and helpers to draw them."""
import math
import os
import re

import numpy as np
import pandas as pd

# A notebook sets MPLBACKEND to a backend that may not be installed here.
os.environ["MPLBACKEND"] = "Agg"
import matplotlib.pyplot as plt  # noqa: E402

plt.rcParams |= {
    "axes.grid": True,
    "axes.axisbelow": True,  # bars are in front of the grid
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.bbox": "tight"}  # includes the legend below the panels
# Line style and marker distinguish the curves when they are printed in grey.
STYLES = [
    ("#8c8c8c", ":", "o"),
    ("#e69f00", "--", "s"),
    ("#0072b2", "-", "D"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", "--", "v"),
    ("#56b4e9", ":", "P"),
    ("#d55e00", "-", "X"),
    ("#000000", "-.", "*"),
    ("#7f6000", "--", "<"),
    ("#5e3c99", ":", ">")]
CURVES = {
    "reward": "reward",
    "entropy": "entropy, nats",
    "Lambda": r"$\Lambda$, sampled tokens"}
# SimKO's settings, and their names on an axis.
SETTINGS = {"alpha": "α", "q": "q of τ(q)", "lambda_top1": "λ", "K": "K"}


def grid(lines, columns, width, height, **options):
    """Returns a figure of equal panels and its axes (lines, columns)."""
    size = width * columns, height * lines
    return plt.subplots(
        lines, columns, figsize=size, squeeze=False, layout="constrained", **options)


def panels(count, width, height, most=3):
    """Returns a figure and `count` axes, at most `most` of them in a line."""
    columns = min(most, count)
    figure, axes = grid(math.ceil(count / columns), columns, width, height)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes.flat[:count]


def over_k(axis, ks):
    """Gives an axis a logarithmic scale of K, with a tick at each of ks."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, ks)
    axis.set_xlabel("K")


def whole_numbers(axis):
    """Puts the ticks of x at whole numbers only."""
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def legend(figure):
    """Puts one legend under all panels, with each label once."""
    found = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles))
    # In inches: 0.7 for the line and the gaps, and 0.09 for each letter.
    widest = 0.7 + 0.09 * max(map(len, found), default=0)
    columns = max(1, int(figure.get_figwidth() / widest))
    # It is below the figure, so that many labels do not shrink the panels.
    figure.legend(found.values(), found, loc="upper center",
                  bbox_to_anchor=(0.5, 0), ncols=columns)
    return figure


def note(axis, text, place, offset, **options):
    """Writes a text beside the point `place` of a panel, at an offset in
    typographic points."""
    axis.annotate(text, place, offset, textcoords="offset points", **options)


def band(axis, x, mean, error, style, **options):
    colour, line, marker = style
    options = {"marker": marker, "markersize": 4} | options
    axis.plot(x, mean, color=colour, linestyle=line, **options)
    low, high = np.subtract(mean, error), np.add(mean, error)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def ranks(log, start="Lambda_"):
    """Returns the names of a log's columns of Lambda^(k), ordered by k."""
    names = [name for name in log if re.fullmatch(rf"{start}\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix(start)))


def dynamics_figure(curves, styles, heading=""):
    """Draws a panel for each column. curves: {label: (means, errors)} of
    DataFrames with a row for each step."""
    columns = pd.concat([means.head(1) for means, _ in curves.values()])
    names = [name for name in CURVES if name in columns]
    names += ranks(columns) + ranks(columns, "forking_Lambda_")
    figure, axes = panels(len(names), 3.4, 2.6)
    for name, axis in zip(names, axes):
        for label, (means, errors) in curves.items():
            if name not in means:
                continue
            error = np.nan if errors is None else errors[name]
            last = len(means) - 1
            marks = range(last, -1, -max(1, last // 4))
            band(axis, means.index, means[name], error, styles[label],
                 label=label, markevery=[*marks])
        title = CURVES.get(name, rf"$\Lambda^{{({name.split('_')[-1]})}}$")
        if name.startswith("forking_"):
            title += " at forking tokens"
        axis.set(xlabel="step", title=title)
        whole_numbers(axis)
    figure.suptitle(heading, fontsize=10)
    return legend(figure)


def sweep_figure(sweeps, levels, ks):
    """Draws pass@K against settings of SimKO, with a column for each setting
    and a line of panels for each K of ks.

    sweeps: {setting: {label of a curve: {value: rates}}}.
    levels: {label: (style, rates)} of what the curves are compared with.
    rates: {K: (mean, standard error)} of pass@K in percent."""
    figure, axes = grid(len(ks), len(sweeps), 2.9, 2.5, sharex="col", sharey="row")
    for (name, curves), column in zip(sweeps.items(), axes.T):
        for k, axis in zip(ks, column):
            values = sweep_panel(axis, k, curves, levels)
            axis.set_ylabel(f"pass@{k}, %")
            axis.label_outer()
        column[-1].set_xticks(range(len(values)), [f"{value:g}" for value in values])
        column[-1].set_xlabel(SETTINGS[name])
    return legend(figure)


def sweep_panel(axis, k, curves, levels):
    """Draws pass@k, and returns the values on the x axis, which are equally
    spaced. All curves have the same values."""
    values = [*next(iter(curves.values()))]
    ends = -0.3, len(values) - 0.7
    for label, (style, rates) in levels.items():
        mean, error = rates[k]
        band(axis, ends, [mean] * 2, [error] * 2, style, marker="", label=label)
    for (label, points), style in zip(curves.items(), ("o-", "s--")):
        means, errors = zip(*(rates[k] for rates in points.values()))
        axis.errorbar(
            range(len(points)), means, errors, fmt=style, color="black",
            linewidth=1, capsize=2, markersize=5, label=label)
    return values
