"""Writes an HTML page about runs, to share with others:

    python -m tools.plots [LABEL=]RUN ... -o DIR      writes DIR/report.html

The page shows pass@K, the figures, the seconds that each phase took, the
settings, and the versions and commit that the runs and the page were made
with. It is one file: the figures are embedded, and nothing is loaded.
"""
import base64
import dataclasses
import json
from html import escape

from runtime.common import printable, write_whole
from runtime.versions import versions
from simko import Config
from tools import tables

CAPTIONS = {
    "fig1_pass_at_k":
        "pass@K against K. The bands are standard errors over problems.",
    "fig1_candidates":
        "Geometric mean probability of the rank-k candidate at the end of training.",
    "fig3_5_dynamics":
        "Reward, entropy, Λ and Λ^(k) during training, as moving averages over steps. "
        "Λ^(k) is over all tokens. Forking tokens are the fifth of each response with the "
        "highest entropies.",
    "fig6_entropy":
        "The distribution of token entropies at the end of training.",
    "fig7_ablation":
        "pass@1 and pass@K against settings of SimKO, of which one at a time is changed. "
        "Bars and bands are standard errors over problems.",
}
PATH_CAPTION = (
    "The top candidates of each model at each token of one response. "
    "Frames mark the response's tokens.")
STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .6rem; }
th, td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
img { background: white; height: auto; max-width: 100%; }
.wide { overflow-x: auto; }
"""
# Without this policy, text in a run's files could load resources or run scripts.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value):
    return escape(printable(str(value)))


def table(lines):
    """Returns the HTML of a table of texts, whose first line is the head."""
    head, *body = lines
    rows = ["".join(f'<th scope="col">{text(cell)}</th>' for cell in head)]
    for line in body:
        rows.append("".join(f"<td>{text(cell)}</td>" for cell in line))
    inner = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>{inner}</table></div>'


def picture(name, png):
    caption = PATH_CAPTION if name.startswith("path_") else CAPTIONS[name]
    data = base64.b64encode(png).decode()
    return (f'<figure><img alt="{text(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text(caption)}</figcaption></figure>")


def pass_tables(rows):
    """Returns the HTML of pass@K on each set and of the evaluations'
    settings."""
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    found = []
    differences = tables.differences(rows, names, paper=None)
    if differences:
        items = "".join(f"<li>{text(line)}</li>" for line in differences)
        warning = "These evaluations differ; compare them with care:"
        found.append(f"<p>{warning}</p><ul>{items}</ul>")
    for name in names:
        found.append(f"<h3>{text(name)}</h3>")
        found.append(table(tables.curve_table(rows, [name])))
        if shifts := tables.difference_table(rows, [name]):
            found.append(f"<p>{tables.DIFFERENCES}</p>")
            found.append(table(shifts))
    found.append(table(tables.settings_table(rows, names)))
    return "".join(found)


def seconds_table(logs):
    """Returns the HTML of the seconds that each phase of a run took.
    logs: {label: DataFrame of metrics.jsonl}."""
    lines = [["run", "phase", "seconds", "per step", "share"]]
    for label, log in logs.items():
        phases = log.filter(regex="^seconds_").sum()
        steps, everything = len(log), phases.sum()
        for name, seconds in phases.items():
            share = f"{100 * seconds / (everything or 1):.0f} %"
            phase = name.removeprefix("seconds_")
            lines.append([label, phase, f"{seconds:.1f}", f"{seconds / steps:.2f}", share])
        whole = f"all {steps} steps"
        lines.append([label, whole, f"{everything:.1f}", f"{everything / steps:.2f}", ""])
    return table(lines)


def settings_tables(settings):
    """Returns the HTML of the settings that differ from the defaults, and
    of the others. settings: {label: settings of a run}."""
    defaults = dataclasses.asdict(Config())
    names = dict.fromkeys(name for own in settings.values() for name in own)
    names.pop("versions", None)
    changed, unchanged = [], []
    for name in names:
        values = [own.get(name) for own in settings.values()]
        same = name in defaults and all(value == defaults[name] for value in values)
        shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
        (unchanged if same else changed).append([name, *shown])
    head = ["setting", *settings]
    summary = "<summary>Settings at their defaults</summary>"
    return (table([head, *changed])
            + f"<details>{summary}{table([head, *unchanged])}</details>")


def versions_table(runs):
    """Returns the HTML of the versions that each run was trained with, from
    its config.json, and of those that make this page. runs: {label: versions}."""
    columns = [*runs.values(), versions()]
    names = dict.fromkeys(name for column in columns for name in column)
    lines = [["what", *runs, "this page"]]
    for name in names:
        lines.append([name, *(column.get(name, "") for column in columns)])
    return table(lines)


def write(path, rows, logs, settings, figures):
    """Writes the page.

    rows: as `tables.load` returns them. logs: {label: DataFrame of metrics.jsonl}.
    settings: {label: settings of a run}. figures: {name: bytes of a PNG}."""
    trained_with = {label: own.get("versions", {}) for label, own in settings.items()}
    title = ", ".join(dict.fromkeys(row.label for row in rows))
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{text(title)}</title>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{text(title)}</h1>",
        "<h2>pass@K in % ± standard error over problems</h2>", pass_tables(rows),
        "<h2>Figures</h2>", *(picture(name, png) for name, png in figures.items())]
    if logs:
        parts += ["<h2>Time</h2>", seconds_table(logs)]
    if settings:
        parts += ["<h2>Settings</h2>", settings_tables(settings)]
    parts += ["<h2>Versions</h2>", versions_table(trained_with), "</body></html>"]
    write_whole(path, "\n".join(parts) + "\n")
