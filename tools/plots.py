"""Figures from evaluations and runs.

    python tools/plots.py [LABEL=]FOLDER ... -o DIR     folders of evaluations, or of runs (their last evaluation)

Draws pass_at_k.png (the paper's Fig. 1: pass@K against K) and, for the runs among them that have metrics.jsonl,
dynamics.png (Fig. 3 and 5: Lambda and Lambda^(k) of Eq. 2 along training, with the reward).
"""
import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.tables import load, pass_rates  # noqa: E402

# Distinct in colour, in grey (lightness falls from one to the next) and by line and marker.
STYLES = [("#8c8c8c", ":", "o"), ("#e69f00", "--", "s"), ("#0072b2", "-", "D"), ("#009e73", "-.", "^"),
          ("#cc79a7", "--", "v"), ("#56b4e9", ":", "P"), ("#d55e00", "-", "X"), ("#000000", "-.", "*")]


def pass_figure(rows, styles, path):
    """pass@K, a panel a set (a line of panels a temperature), with the bootstrap's standard error as a band."""
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    figure, axes = plt.subplots(len(temperatures), len(names), figsize=(5 * len(names), 3.6 * len(temperatures)),
                                squeeze=False, layout="constrained")
    panels = {(t, name): axes[i][j] for i, t in enumerate(temperatures) for j, name in enumerate(names)}
    for (temperature, name), axis in panels.items():
        ks = {}
        for row in rows:
            if row.temperature == temperature and name in row.sets:
                colour, line, marker = styles[row.label]
                rates = pass_rates([row.sets[name]])
                mean, error = ([100 * value[i] for value in rates.values()] for i in (0, 1))
                axis.plot(list(rates), mean, line, color=colour, marker=marker, markersize=4, label=row.label)
                axis.fill_between(list(rates), [m - e for m, e in zip(mean, error)],
                                  [m + e for m, e in zip(mean, error)], color=colour, alpha=0.15, linewidth=0)
                ks |= rates
        if not ks:
            axis.axis("off")
            continue
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(ks), list(ks))
        axis.set(xlabel="K", ylabel="pass@K, %", title=name if temperature is None else f"{name}, T = {temperature}")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=150, facecolor="white")


def dynamics_figure(runs, path):
    """Reward, Lambda of the sampled tokens and Lambda^(1..K) against the step, smoothed over a 20th of the run."""
    keys = ["reward", "Lambda"] + sorted(key for key in runs[0][1][0] if key.startswith("Lambda_"))
    titles = {"reward": "reward", "Lambda": "Λ, sampled tokens"}
    figure, axes = plt.subplots(1, len(keys), figsize=(3 * len(keys), 3), layout="constrained")
    for axis, key in zip(axes, keys):
        for label, rows, (colour, line, _) in runs:
            values, width = [row[key] for row in rows], max(1, len(rows) // 20)
            smooth = [sum(values[max(0, i - width + 1):i + 1]) / len(values[max(0, i - width + 1):i + 1])
                      for i in range(len(values))]
            axis.plot([row["step"] for row in rows], smooth, line, color=colour, label=label)
        axis.set(xlabel="step", title=titles.get(key, f"Λ^({key[7:]})"))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=150, facecolor="white")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    rows = load(options.folders)
    folders = {row.label: row.folder for row in rows}
    if len(folders) > len(STYLES):
        sys.exit(f"{len(folders)} folders: no more than {len(STYLES)} can be told apart in one figure")
    styles = dict(zip(folders, STYLES))
    options.output.mkdir(parents=True, exist_ok=True)
    figures = [options.output / "pass_at_k.png"]
    pass_figure(rows, styles, figures[0])
    runs = [(label, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], styles[label])
            for label, folder in folders.items() if (folder / "metrics.jsonl").is_file()]
    if runs:
        figures.append(options.output / "dynamics.png")
        dynamics_figure(runs, figures[1])
    print("figures: " + ", ".join(map(str, figures)))


if __name__ == "__main__":
    main()
