"""Trains the toy of tools/toy.py with many settings, to see which of them keep
all six modes.

    python -m tools.toy_sweep docs/toy

A cell is one combination of settings. FOLDER/rows.csv gets a row for each
cell, with the columns of `tools.toy.measure`. If that file exists already,
nothing is trained. Then the program prints tables of the rows, and draws the
accuracy and modes of each cell in FOLDER/modes.png.
"""
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from runtime.common import fail, one_line, write_whole
from tools import allow_head, command_line
from tools.drawing import STYLES, grid, legend
from tools.study import NAMES
from tools.tables import show
from tools.toy import SEEDS, Cell, measure, shape

SAMPLES, RATES = (8, 32), (0.3, 1.0, 3.0, 10.0)
ENTROPIES = 0.03, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0
# SimKO's grid of learning rate, alpha, lambda_top1, K and q, by samples.
# It is coarser with 32 samples, which take four times as long.
SIMKO = {
    8: (RATES, (0.01, 0.05, 0.1, 0.3, 0.6), (1.0, 1.1, 2.0, 4.0, 10.0), (2, 3, 4), (None, 0.8)),
    32: ((1.0, 3.0, 10.0), (0.01, 0.3, 0.6), (1.1, 2.0, 10.0), (3, 4), (None, 0.8)),
}
# (accuracy, modes) that the paper's third version reports.
PUBLISHED = {"GRPO + entropy bonus": (0.48, 6), "SimKO": (1.00, 6)}


def all_cells():
    cells = []
    for start in product(SAMPLES, RATES):
        cells += [Cell(method, *start) for method in ("grpo", "nsr", "pass-at-k")]
        cells += [Cell("grpo", *start, entropy=entropy) for entropy in ENTROPIES]
    for samples, grid_of_simko in SIMKO.items():
        cells += [Cell("simko", samples, *setting) for setting in product(*grid_of_simko)]
    return cells


def sweep(path):
    """Measures all cells, then writes their rows."""
    torch.set_num_threads(1)  # more threads are slower on such small tensors
    shapes, rows = {}, []
    for cell in all_cells():
        shapes.setdefault(shape(cell), []).append(cell)
    for cells in tqdm(shapes.values()):
        rows += measure(cells)
    write_whole(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))


def read(path):
    """Reads rows.csv and adds two columns: the method's name, and the name
    of the family of cells that share a panel."""
    try:
        rows = pd.read_csv(path)
    except ValueError as error:
        fail(f"{path} is damaged ({one_line(error)}): move it away to sweep again")
    if missing := {*Cell._fields, "modes", "accuracy", "six", "six_at_1"} - {*rows}:
        fail(f"{path} has no column {min(missing)}: move it away to sweep again")
    if len(rows) != len(all_cells()):
        fail(f"{path} has {len(rows)} of {len(all_cells())} cells: move it away to sweep again")
    rows["name"] = rows.method.map(NAMES)
    rows.loc[rows.entropy > 0, "name"] += " + entropy bonus"
    gate = rows.q.map("q = {:g}".format).where(rows.q.notna(), "every token")
    ours = "SimKO, K = " + rows.K.astype(str) + ", " + gate
    rows["family"] = rows.name.where(rows.method != "simko", ours)
    return rows


def summary(rows):
    """Returns a table of how many cells of each family keep six modes."""
    head = ["", "cells", "six modes in all seeds", "and at accuracy 1", "most modes at accuracy 1"]
    table = [head]
    for family, cells in rows.groupby("family", sort=False):
        sure = cells[cells.accuracy >= 0.995]
        table.append([family, str(len(cells)), str((cells.six == SEEDS).sum()),
                      str((cells.six_at_1 == SEEDS).sum()),
                      f"{sure.modes.max():.1f}" if len(sure) else "–"])
    return table


def cross(rows, lines, columns):
    """Returns a table of "modes / accuracy" by two columns of the rows.
    lines, columns: a column's name or a list of names."""
    texts = rows.modes.map("{:.1f} / ".format) + rows.accuracy.map("{:.3f}".format)
    keys = [rows[names].astype(str).agg(", ".join, axis=1) for names in (lines, columns)]
    table = texts.groupby(keys, sort=False).first().unstack(sort=False)
    return [["", *table], *([name, *line] for name, line in zip(table.index, table.values))]


def draw(rows):
    names = list(dict.fromkeys(rows.family))
    columns = -(-len(names) // 2)
    figure, axes = grid(2, columns, 2.6, 2.6, sharex=True, sharey=True)
    for axis in axes.flat[len(names):]:
        axis.set_axis_off()
    for name, axis in zip(names, axes.flat):
        cells = rows[rows.family == name]
        for rate, (colour, _, marker) in zip(RATES, STYLES[1:]):
            for samples, fill in zip(SAMPLES, ("none", colour)):
                shown = cells[(cells.learning_rate == rate) & (cells.samples == samples)]
                axis.plot(shown.accuracy, shown.modes, marker, color=colour, markerfacecolor=fill,
                          markersize=4, label=f"learning rate {rate:g}")
        if published := PUBLISHED.get(name.partition(",")[0]):
            axis.plot(*published, "kx", markersize=10, label="published")
        axis.set(title=name, xlabel="accuracy", ylabel="modes kept",
                 xlim=(0.1, 1.05), ylim=(0.7, 6.3))
        axis.label_outer()
    figure.suptitle(f"Means of {SEEDS} seeds; open marks: 8 samples, filled: 32", fontsize=10)
    return legend(figure)


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the folder of rows.csv and modes.png")
    folder = parser.parse_args().folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "rows.csv"
        if not path.is_file():
            sweep(path)
        rows = read(path)
        draw(rows).savefig(folder / "modes.png")
    except OSError as error:
        fail(f"{folder} cannot be used ({error}): name another folder")
    show(f"Cells that keep six modes in all of {SEEDS} seeds", summary(rows))
    plain = rows[rows.method != "simko"]
    show("Modes / accuracy, by samples and learning rate",
         cross(plain, ["name", "entropy"], ["samples", "learning_rate"]))
    ours = rows[rows.method == "simko"].groupby(["family", "samples"], sort=False)
    for (family, samples), cells in ours:
        show(f"{family}, {samples} samples: modes / accuracy, "
             "by learning rate, alpha and lambda_top1",
             cross(cells, ["learning_rate", "alpha"], ["lambda_top1"]))


if __name__ == "__main__":
    allow_head()
    main()
