"""Draws figures from evaluations, runs and the laptop study. A figure with
a number in its name is the counterpart of that figure in the paper.

    python -m tools.plots [LABEL=]FOLDER ... -o DIR
    python -m tools.plots [LABEL=]RUN ... --path 3 -o DIR
    python -m tools.plots --study docs/laptop -o DIR
    python -m tools.plots --walkthrough docs/walkthrough.json -o DIR
    python -m tools.plots --follow RUN

A FOLDER holds an evaluation, or a run, whose last evaluation is drawn if
it is finished. Without any, there is no fig1_pass_at_k and no report.
fig1_pass_at_k   pass@K against K, with the bootstrap's standard error
fig1_candidates  exp(Lambda^(k)) against k at the end of training
fig3_5_dynamics  reward, entropy, Lambda and Lambda^(k) during training
fig6_entropy     distribution of token entropies at the end of training
DIR/report.html shows all figures in one self-contained page, with tables
of pass@K, settings, versions and the seconds of each phase.

--path INDEX draws path_INDEX, which shows the top candidates of each model
at each token of one response. --follow RUN shows a chart in the terminal
while RUN trains. --study draws the results of tools.study:
fig3d_methods    pass@K of each method at the step chosen by validation
fig3_5_study     training dynamics with the chosen settings
fig3_5_shared    training dynamics of GRPO and SimKO at one learning rate
frontier         pass@K against pass@1 during training
fig7_ablation    pass@K when one setting of SimKO is changed at a time
They show the mean ± standard error over the seeds that all runs of a
figure share. --walkthrough draws the figures of docs/walkthrough.md from
the measurements of tools.walkthrough:
fig2_equal_entropy  two distributions with the same entropy
fig4_one_step       the gate, and one step on a correct and a wrong response
floor               when Eq. 6 pushes a candidate up, and where that leads
"""
import dataclasses
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import torch

from runtime.cli import set_name
from runtime.common import fail, one_line, printable
from runtime.data import load_problems, read_jsonl
from runtime.prompts import encode_prompts
from runtime.run_folder import check_log
from simko import Config, entropy_threshold, simko_ratio
from tools import command_line, report, tables
from tools.study import (
    ABLATION_STEPS, NAMES, SHARED, SWEEPS, comparisons, pass_rates, read, run_name)

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

plt.rcParams |= {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 150}
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
METHODS = dict(zip(NAMES, STYLES))
KS = 1, 16, 256  # the Ks of the study's figures
LAST = 25  # the number of steps that count as the end of training
CURVES = {
    "reward": "reward",
    "entropy": "entropy, nats",
    "Lambda": r"$\Lambda$, sampled tokens"}


# ---------------------------------------------------------------- drawing
def grid(lines, columns, width, height, **options):
    """Returns a figure of equal panels and its axes (lines, columns)."""
    size = width * columns, height * lines
    return plt.subplots(
        lines, columns, figsize=size, squeeze=False, layout="constrained", **options)


def legend(figure):
    """Puts one legend under all panels, with each label once."""
    found = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles))
    columns = max(2, int(figure.get_figwidth() / 2))  # two inches for each label
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns)
    return figure


def note(axis, text, place, offset, **options):
    """Writes a text beside a place of an axis, at an offset in points."""
    axis.annotate(text, place, offset, textcoords="offset points", **options)


def band(axis, x, mean, error, style, **options):
    colour, line, marker = style
    options = {"marker": marker, "markersize": 4} | options
    axis.plot(x, mean, color=colour, linestyle=line, **options)
    low, high = np.subtract(mean, error), np.add(mean, error)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


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


def ranks(log):
    """Returns the names of a log's columns of Lambda^(k), ordered by k."""
    names = [name for name in log if name.startswith("Lambda_")]
    return sorted(names, key=lambda name: int(name[7:]))


def pass_figure(rows, styles):
    """Draws pass@K against K, with a column of panels for each set and a
    line of panels for each temperature."""
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    figure, axes = grid(len(temperatures), len(names), 4.6, 3.6)
    for line, temperature in zip(axes, temperatures):
        for axis, name in zip(line, names):
            shown = [row for row in rows if row.temperature == temperature and name in row.sets]
            title = name if temperature is None else f"{name}, T = {temperature}"
            pass_panel(axis, name, shown, styles)
            axis.set(xlabel="K", ylabel="pass@K, %", title=title)
    return legend(figure)


def pass_panel(axis, name, rows, styles):
    """Draws pass@K of rows that all have the set `name`."""
    if rows:
        axis.set_xscale("log", base=2)
    else:
        axis.set_axis_off()
    ks = {}
    for row in rows:
        rates = tables.pass_rates([row.sets[name]])
        mean, error = 100 * np.array([*rates.values()]).T
        band(axis, [*rates], mean, error, styles[row.label], label=row.label)
        ks |= rates
    axis.set_xticks([*ks], [*ks])


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
        axis.set_xticks(x)
    axis.set(yscale="log", xlabel="k")
    axis.set_ylabel(r"$\exp\,\Lambda^{(k)}$" + "\n(geometric mean probability)")
    axis.set_title(f"k-th candidate, {last_steps(logs)}")
    return legend(figure)


def run_curves(log):
    """Smooths a log's columns: each value becomes the mean over its step
    and the steps before it, a 20th of the run. Returns (means, None)."""
    numbers = log.set_index("step").select_dtypes("number")
    window = max(1, len(log) // 20)
    return numbers.rolling(window, min_periods=1).mean(), None


def dynamics_figure(curves, styles, title=""):
    """Draws a panel for each column. curves: {label: (means, errors)} of
    DataFrames with a row for each step."""
    columns = pd.concat([means.head(1) for means, _ in curves.values()])
    names = [name for name in CURVES if name in columns]
    names += ranks(columns)
    width = min(3, len(names))
    figure, axes = grid(math.ceil(len(names) / width), width, 3.4, 2.6)
    for axis in axes.flat[len(names):]:
        axis.set_axis_off()
    for name, axis in zip(names, axes.flat):
        for label, (means, errors) in curves.items():
            if name not in means:
                continue
            error = np.nan if errors is None else errors[name]
            last = len(means) - 1
            marks = range(last, 0, -max(1, last // 4))
            band(axis, means.index, means[name], error, styles[label],
                 label=label, markevery=[*marks])
        title_of_rank = rf"$\Lambda^{{({name[7:]})}}$"
        axis.set(xlabel="step", title=CURVES.get(name, title_of_rank))
    figure.suptitle(title, fontsize=10)
    return legend(figure)


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
    return legend(figure)


# ------------------------------------------------------------------ study
def seeds_of(rates):
    if len(rates) > 1:
        return f"mean ± s.e. over {len(rates)} seeds"
    return "one seed"


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
    """Draws the path of a run through (pass@1, pass@K). mean, error: a row
    for each step. The annotation marks `step`."""
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
        # A path's last step has free space beside it, other steps only below.
        offsets = {"grpo": (-75, -70), "simko": (-85, -45)}
        if step == mean.index[-1]:
            offsets = {"grpo": (8, -14), "simko": (8, 8)}
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
    figure.suptitle(seeds_of(values), fontsize=10)
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

    labels = {"alpha": "α", "q": "q of τ(q)", "lambda_top1": "λ", "K": "K"}
    figure, axes = grid(2, len(labels), 2.9, 2.5, sharex="col", sharey="row")
    for (name, label), column in zip(labels.items(), axes.T):
        values = sorted({*SWEEPS[name], usual[name]})
        places = range(len(values))
        scopes = {Config.tau_scope: "o-"}
        if name == "q":
            scopes = {"response": "o-", "batch": "s--"}
        for k, axis in zip((KS[0], KS[-1]), column):
            for method, rates in same.items():
                level(axis, method, rates[k], (-0.3, len(values) - 0.7))
            for scope, style in scopes.items():
                found = [changed(**{name: value, "tau_scope": scope})[k] for value in values]
                means = [own.mean() for own in found]
                errors = [own.sem() for own in found]
                axis.errorbar(places, means, errors, fmt=style, color="black",
                              linewidth=1, capsize=2, markersize=5,
                              label=f"one setting changed, τ(q) over the {scope}")
            axis.set_ylabel(f"pass@{k}, %")
            axis.label_outer()
        column[1].set_xticks(places, [f"{value:g}" for value in values])
        column[1].set_xlabel(label)
    figure.suptitle(seeds_of(same["simko"]), fontsize=10)
    return legend(figure)


def level(axis, method, values, ends):
    """Draws the mean ± standard error of values as a level between ends."""
    label = NAMES[method]
    if method == "simko":
        label += ", nothing changed"
    mean, error = [values.mean()] * 2, [values.sem()] * 2
    band(axis, ends, mean, error, METHODS[method], marker="", label=label)


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


# ------------------------------------------------------------------- path
@torch.no_grad()
def candidates(folder, prompt, response, K, temperature):
    """Returns the probabilities (L, K) and ids (L, K) of the top K at each
    token of a response, and the entropies (L,)."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, trust_remote_code=False).eval()
    ids = torch.tensor([[*prompt, *response]])
    logits = model(ids).logits[0, len(prompt) - 1:-1].float()
    logp = (logits / temperature).log_softmax(-1)
    top = logp.topk(K)
    entropy = -(logp.exp() * logp).sum(-1)
    return top.values.exp().numpy(), top.indices.numpy(), entropy.numpy()


def run_settings(folder):
    """Reads the settings of a run from its config.json."""
    path = folder / "config.json"
    try:
        return dataclasses.asdict(Config()) | json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError) as error:
        fail(f"{path} cannot be read ({error!r}): name the folder of a run")


def only_runs(folders):
    """Returns those of {label: folder} that hold a run."""
    return {label: folder for label, folder in folders.items()
            if (folder / "config.json").is_file()}


def first_correct(folders, name, id):
    """Returns the first correct response to a problem: the base model's
    or, if it has none, that of a run."""
    for pattern in ("eval_000000/*.jsonl", "eval_*/*.jsonl"):
        paths = [path for folder in folders for path in sorted(folder.glob(pattern))]
        for path in paths:
            if path.stem.partition("@T")[0] != name:
                continue
            for _, row in read_jsonl(path):
                if row["id"] == id and row.get("correct"):
                    return row["response"]
    return fail(f"these runs have no correct response to {id} of {name}: choose another --path")


def read_path(folders, index):
    """Returns the arguments of `path_figure`: one response and its top
    candidates under the base model and each run of {label: folder}."""
    from transformers import AutoTokenizer, logging
    logging.disable_progress_bar()
    runs = only_runs(folders)
    settings = [run_settings(folder) for folder in runs.values()]
    names = "model", "prompt_template", "chat_template_kwargs", "eval_data"
    if not runs or any(own[name] != settings[0][name] for own in settings for name in names):
        fail(f"--path needs runs with the same {', '.join(names)}")
    for folder in runs.values():
        if not (folder / "hf").is_dir():
            fail(f"{folder / 'hf'} does not exist: the run is unfinished, "
                 "so run its command again")
    cfg = SimpleNamespace(**settings[0])
    if not cfg.eval_data:
        fail("--path needs runs with --eval-data")
    source = cfg.eval_data[0]
    name = set_name(source)
    problems = load_problems(source, cfg.data_dir)
    if not 0 <= index < len(problems):
        fail(f"--path {index}: {source} has the problems 0 to {len(problems) - 1}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(cfg.model, trust_remote_code=False)
        ((problem,), _) = encode_prompts([problems[index]], tokenizer, cfg)
        text = first_correct(runs.values(), name, problem["id"])
        response = tokenizer.encode(text, add_special_tokens=False)
        models = {"base": cfg.model}
        models |= {label: folder / "hf" for label, folder in runs.items()}
        found = {}
        for label, model in models.items():
            found[label] = candidates(
                model, problem["prompt_ids"], response, cfg.K, cfg.temperature)
    except (OSError, ValueError) as error:
        fail(f"{cfg.model} or a run's hf cannot be loaded ({one_line(error)}): "
             "if the path is relative, start this in the folder where the runs were started")

    def word(id):
        token = tokenizer.decode([id]).replace("\n", "↵")
        text = printable(token.strip()) or "␣"
        return text if len(text) < 10 else text[:8] + "…"

    title = (f"{printable(name)}, problem {index}: "
             f"probabilities of the top {cfg.K} at each token of one response")
    return title, response, found, word


def path_figure(title, response, found, word, most=24):
    """Draws a line of bars for each model. found: {label: `candidates`}.
    word: a function from a token's id to its text.

    For a long response, only the tokens with the highest entropy under the
    base model are shown, with their positions."""
    by_entropy = np.argsort(-found["base"][2], kind="stable")
    shown = sorted(by_entropy[:most].tolist())
    width = max(5.5, 0.64 * len(shown) + 1)
    figure, axes = grid(len(found), 1, width, 1.6, sharex=True, sharey=True)
    for (label, (probability, ids, _)), axis in zip(found.items(), axes[:, 0]):
        for x, place in enumerate(shown):
            stack(axis, x, probability[place], ids[place], response[place], word)
        axis.set(ylabel=label, ylim=(0, 1), yticks=(0, 0.5, 1))
        axis.set_xlim(-0.6, len(shown) - 0.4)
        axis.grid(False)
    ticks = [word(response[place]) for place in shown]
    if len(shown) < len(response):
        ticks = [f"{text}\n{place + 1}" for text, place in zip(ticks, shown)]
    axes[-1][0].set_xticks(range(len(shown)), ticks, parse_math=False, fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure


def stack(axis, x, probabilities, ids, sampled, word):
    """Draws the candidates at one token as a stack of bars, the most
    probable at the bottom, with a frame around the sampled one."""
    shades = plt.get_cmap("Blues")(np.linspace(0.85, 0.2, len(ids)))
    below = 0
    for rank, (height, id) in enumerate(zip(probabilities, ids)):
        frame = {"edgecolor": "white", "linewidth": 0.6, "zorder": 2}
        if id == sampled:
            frame = {"edgecolor": "black", "linewidth": 1.4, "zorder": 3}
        axis.bar(x, height, 0.86, below, color=shades[rank], **frame)
        if height > 0.1:  # a lower bar has no room for a word
            axis.text(x, below + height / 2, word(id), ha="center", va="center",
                      color="black" if rank else "white", fontsize=7.5,
                      parse_math=False, zorder=4)
        below += height


# ------------------------------------------------------------ walkthrough
def push(z, y, advantage, alpha=0.0, lambda_top1=1.0, K=3):
    """Returns the gradient (V,) of A times the ratio of Eq. 3 with respect
    to the logits z (V,), at gamma = 1 and with the gate open."""
    z = z.clone().requires_grad_()
    log_pi = z.log_softmax(-1)
    ratio = simko_ratio(
        logp=log_pi[y], old_logp=log_pi[y].detach(), topk_logp=log_pi.topk(K).values,
        is_top1=z.argmax() == y, advantage=torch.tensor(float(advantage)),
        gate=torch.tensor(True), alpha=alpha, lambda_top1=lambda_top1)
    return torch.autograd.grad(advantage * ratio, z)[0]


def peaked(entropy, others=50):
    """Returns probabilities (1 + others,) with the given entropy, of which
    the first dominates and the others are equal."""
    low, high = 1 / (1 + others), 1.0
    for _ in range(100):  # the entropy falls as the first candidate grows
        first = (low + high) / 2
        rest = [(1 - first) / others] * others
        p = torch.tensor([first, *rest], dtype=torch.float64)
        if entropy_of(p) > entropy:
            low = first
        else:
            high = first
    return p


def entropy_of(p):
    return -(p * p.log()).sum()


def equal_entropy_figure(measured):
    """Draws the distribution of the first token beside a constructed one
    that has the same entropy."""
    log_pi = torch.tensor(measured["first_token_log_pi"], dtype=torch.float64)
    pi, ids = log_pi.softmax(-1).sort(descending=True)
    words = [measured["vocabulary"][i] for i in ids[:6]]
    numbered = [f"rank {k}" for k in range(1, 7)]
    figure, ((left, right),) = grid(1, 2, 3.8, 3.2, sharey=True)
    distribution(left, "the first token of the response", pi, words)
    distribution(right, "constructed", peaked(entropy_of(pi)), numbered)
    left.set_ylabel(r"$\pi$")
    return figure


def distribution(axis, title, p, names):
    """Draws the six most probable candidates of p (V,), which is sorted."""
    bars = axis.bar(range(6), p[:6].tolist(), color=STYLES[2][0])
    axis.bar_label(bars, [f"{value:.3f}" for value in p[:6]], fontsize=7)
    axis.set_xticks(range(6), names, fontsize=8)
    seen = 1 - (1 - p[1]) ** 8
    lines = [
        title,
        rf"entropy {entropy_of(p):.3f} nats, $\log\pi^{{(2)}}$ = {p[1].log():.2f}",
        f"rank 2 among 8 samples: {100 * seen:.0f} %"]
    axis.set_title("\n".join(lines), fontsize=9)


def one_step_figure(measured):
    """Draws the gate over a response, and one step on its first token."""
    z = torch.tensor(measured["first_token_log_pi"], dtype=torch.float64)
    best = z.topk(3).indices.tolist()
    words = [measured["vocabulary"][i] for i in best]
    figure, ((gate, correct), (wrong_1, wrong_3)) = grid(2, 2, 4.6, 3.2)
    gate_panel(gate, measured)

    def panel(axis, y, advantage, title, settings):
        results = {"before": z.softmax(-1)}
        for label, own in settings.items():
            results[label] = (z + push(z, y, advantage, **own)).softmax(-1)
        width = 0.8 / len(results)
        colours = [STYLES[i][0] for i in (0, 1, 5, 2)]
        looks = zip(colours, ("", "////", "....", "xx"))
        for place, ((label, p), (colour, hatch)) in enumerate(zip(results.items(), looks)):
            x = np.arange(3) + (place - (len(results) - 1) / 2) * width
            axis.bar(x, p[best].tolist(), width, label=label,
                     color=colour, hatch=hatch, edgecolor="white")
        axis.set_xticks(range(3), words)
        axis.set(title=title, ylabel=r"$\pi$")
        axis.legend(fontsize=7)

    panel(correct, best[0], 1, f"{words[0]} was sampled in a correct response", {
        "GRPO": {},
        "SimKO, α = 0.01": {"alpha": 0.01},
        "SimKO, α = 0.3": {"alpha": 0.3}})
    panel(wrong_1, best[0], -1, f"{words[0]} was sampled in a wrong response", {
        "GRPO": {},
        "SimKO, λ = 1.1": {"lambda_top1": 1.1},
        "SimKO, λ = 1.5": {"lambda_top1": 1.5}})
    panel(wrong_3, best[2], -1, f"{words[2]} was sampled in a wrong response", {
        "GRPO and SimKO": {}})
    return figure


def gate_panel(axis, measured):
    """Draws the entropy at each token of a response, and τ(q)."""
    entropies = torch.tensor(measured["entropy"], dtype=torch.float64)
    count = len(entropies)
    tau = entropy_threshold(entropies, torch.tensor([count]), Config.q)
    bars = axis.bar(range(count), entropies.tolist())
    for bar, inside in zip(bars, entropies > tau):
        bar.set(facecolor=STYLES[0][0], hatch="////", edgecolor="white")
        if inside:
            bar.set(facecolor=STYLES[2][0], hatch="")
    axis.axhline(tau[0], color="black", linestyle="--", linewidth=1)
    note(axis, f"τ({Config.q:g})", (count - 0.5, tau[0]), (0, 3), ha="right")
    axis.set_xticks(range(count), measured["response"], fontsize=8)
    axis.set(title="SimKO changes the tokens above τ", ylabel="entropy, nats")


def floor_figure(measured):
    """Draws the push on a candidate that was not sampled, and each model's
    distribution of log pi of rank 2 and 3 at gated tokens."""
    figure, ((axis, *panels),) = grid(1, 3, 4.4, 3.8)
    push_panel(axis)
    for rank, panel in zip((2, 3), panels):
        for (label, own), (colour, line, _) in zip(measured["models"].items(), STYLES):
            look = {"color": colour, "linestyle": line}
            panel.plot(own["percentiles"][f"rank {rank}"], range(101), label=label, **look)
            alpha = own.get("alpha") if own.get("method") == "simko" else None
            if alpha:
                panel.axvline(math.log(alpha / own["K"]), linewidth=0.8, **look)
        panel.set(xlabel=rf"$\log\pi^{{({rank})}}$", xlim=(-14, 0))
        panel.set_ylabel("gated tokens below, %")
        panel.set_title(f"rank {rank} at gated tokens, q = {measured['gate_q']:g}\n"
                        "vertical lines: log α/K of each run")
        panel.legend(fontsize=7)
    return figure


def push_panel(axis):
    """Draws the push on a candidate that was not sampled against its
    probability, in a correct response."""
    probabilities = np.geomspace(2e-4, 0.2, 60)
    pushes = {
        "GRPO": (0.0, STYLES[1]),
        "SimKO, α = 0.01": (0.01, STYLES[2]),
        "SimKO, α = 0.05": (0.05, STYLES[3])}
    for label, (alpha, (colour, line, _)) in pushes.items():
        look = {"color": colour, "linestyle": line}
        found = []
        for p in probabilities:
            pi = [0.7 * (1 - p), 0.3 * (1 - p), p]
            z = torch.tensor(pi, dtype=torch.float64).log()
            found.append(push(z, 0, 1, alpha)[2].item())
        axis.plot(probabilities, found, label=label, **look)
        if alpha:
            axis.axvline(alpha / 3, linewidth=0.8, **look)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_yscale("symlog", linthresh=1e-3)  # linear around 0
    axis.set(xscale="log", ylabel="push on its logit")
    axis.set_xlabel(r"$\pi_k$ of a candidate that was not sampled")
    axis.set_title("a correct response, K = 3\nvertical lines: α/K")
    axis.legend(fontsize=8)


def walkthrough_figures(path):
    """Returns {name: figure} of docs/walkthrough.md."""
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read ({error}): create it with "
             "python -m tools.walkthrough --measure RUN ...")
    return {
        "fig2_equal_entropy": equal_entropy_figure(measured),
        "fig4_one_step": one_step_figure(measured),
        "floor": floor_figure(measured)}


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


def follow(folder, seconds=3):
    """Prints the chart of a run. In a terminal, updates it until the last
    step is done."""
    steps = run_settings(folder)["steps"]
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
        time.sleep(seconds)


# ------------------------------------------------------------------- main
def read_logs(folders):
    """Returns {label: log} of those folders that hold a log with a step."""
    logs = {}
    for label, folder in folders.items():
        path = folder / "metrics.jsonl"
        if path.is_file():
            logs[label] = read_log(path)
    return {label: log for label, log in logs.items() if len(log)}


def run_figures(rows, logs, styles):
    """Returns {name: figure} of evaluations and of runs' logs."""
    figures = {}
    if rows:
        figures["fig1_pass_at_k"] = pass_figure(rows, styles)
    if logs:
        figures["fig1_candidates"] = candidates_figure(logs, styles)
        curves = {label: run_curves(log) for label, log in logs.items()}
        figures["fig3_5_dynamics"] = dynamics_figure(curves, styles)
        figures["fig6_entropy"] = entropy_figure(logs, styles)
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
        help="draw this problem of the first set, counted from 0")
    parser.add_argument(
        "--walkthrough", type=Path, metavar="FILE",
        help="draw the measurements in this file")
    parser.add_argument(
        "--follow", type=Path, metavar="RUN",
        help="show the chart of the run in this folder")
    options = parser.parse_args()
    # --path draws runs, so a study or measurements are not enough for it.
    alone = (options.study or options.walkthrough) and options.path is None
    drawn = options.output and (options.folders or alone)
    if not (options.follow or drawn):
        parser.error("name folders (of runs, for --path), --study or --walkthrough, "
                     "and -o for the figures; or name a run with --follow")
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
        print(f"{label}: pass@K is not drawn, because there is no finished evaluation",
              file=sys.stderr)
    rows = tables.load({label: f for label, f in folders.items() if label not in unfinished})
    figures = {}
    if options.path is not None:
        arguments = read_path(folders, options.path)
        figures[f"path_{options.path}"] = path_figure(*arguments)
    figures |= run_figures(rows, logs, dict(zip(folders, STYLES)))
    if options.study:
        figures |= study_figures(options.study)
    if options.walkthrough:
        figures |= walkthrough_figures(options.walkthrough)

    paths = {name: options.output / f"{name}.png" for name in figures}
    page = options.output / "report.html"
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(paths[name])
            plt.close(figure)
        if rows:
            runs = only_runs(folders)
            settings = {label: run_settings(folder) for label, folder in runs.items()}
            pictures = {name: path.read_bytes() for name, path in paths.items()}
            report.write(page, rows, logs, settings, pictures)
    except OSError as error:
        fail(f"-o {options.output} cannot be written ({error.strerror}): name another folder")
    print("figures: " + ", ".join(map(str, paths.values())))
    if rows:
        print(f"report: {page}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
