"""Draws figures from evaluations, runs and the laptop study. A figure with
a number in its name is the counterpart of that figure in the paper.

    python -m tools.plots [LABEL=]FOLDER ... -o DIR
    python -m tools.plots [LABEL=]RUN ... --path 3 -o DIR
    python -m tools.plots --study docs/laptop -o DIR
    python -m tools.plots --walkthrough docs/walkthrough.json -o DIR
    python -m tools.plots --follow RUN

A FOLDER holds an evaluation, or a run, whose last evaluation is drawn.
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

from runtime.cli import check_log, set_name
from runtime.common import fail, one_line, printable
from runtime.data import load_problems, read_jsonl
from runtime.prompts import encode_prompts
from simko import Config, entropy_threshold, simko_ratio
from tools import command_line, report, tables
from tools.study import ABLATION_STEPS, NAMES, SHARED, SWEEPS, comparisons, pass_rates, read, run_name

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

plt.rcParams |= {
    "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "savefig.dpi": 150}
# Line style and marker distinguish the curves when they are printed in grey.
STYLES = [
    ("#8c8c8c", ":", "o"), ("#e69f00", "--", "s"), ("#0072b2", "-", "D"), ("#009e73", "-.", "^"),
    ("#cc79a7", "--", "v"), ("#56b4e9", ":", "P"), ("#d55e00", "-", "X"), ("#000000", "-.", "*"),
    ("#7f6000", "--", "<"), ("#5e3c99", ":", ">")]
METHODS = dict(zip(NAMES, STYLES))
KS = 1, 16, 256  # the Ks of the study's figures
LAST = 25  # the number of steps that count as the end of training
CURVES = {"reward": "reward", "entropy": "entropy, nats", "Lambda": r"$\Lambda$, sampled tokens"}


# ---------------------------------------------------------------- drawing
def grid(lines, columns, width, height, **options):
    """Returns a figure of equal panels and its axes (lines, columns)."""
    return plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False,
                        layout="constrained", **options)


def legend(figure):
    """Puts one legend under all panels, with each label once."""
    found = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles))
    figure.legend(found.values(), found, loc="outside lower center", ncols=max(2, int(figure.get_figwidth() / 2)))
    return figure


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
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    for number, row in enumerate(rows, 1):
        if missing := {"reward", "Lambda_1", "entropy_histogram"} - row.keys():
            fail(f"{path}, line {number}, was written by another version and has no {min(missing)}: "
                 "train the run again")
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
            axis.set_axis_off() if not shown else axis.set_xscale("log", base=2)
            ks = {}
            for row in shown:
                rates = tables.pass_rates([row.sets[name]])
                mean, error = 100 * np.array([*rates.values()]).T
                band(axis, [*rates], mean, error, styles[row.label], label=row.label)
                ks |= rates
            axis.set_xticks([*ks], [*ks])
            title = name if temperature is None else f"{name}, T = {temperature}"
            axis.set(xlabel="K", ylabel="pass@K, %", title=title)
    return legend(figure)


def candidates_figure(logs, styles):
    figure, ((axis,),) = grid(1, 1, 4.6, 3.6)
    for label, log in logs.items():
        means = np.exp(log[ranks(log)].tail(LAST).mean())
        x = range(1, len(means) + 1)
        band(axis, x, means, np.nan, styles[label], label=label, markersize=6)
        axis.set_xticks(x)
    axis.set(yscale="log", xlabel="k", title=f"k-th candidate, last {LAST} steps",
             ylabel=r"$\exp\,\Lambda^{(k)}$" + "\n(geometric mean probability)")
    return legend(figure)


def run_curves(log):
    """Smooths a log's columns: each value becomes the mean over its step
    and the steps before it, a 20th of the run. Returns (means, None)."""
    log = log.set_index("step").select_dtypes("number")
    return log.rolling(max(1, len(log) // 20), min_periods=1).mean(), None


def dynamics_figure(curves, styles, title=""):
    """Draws a panel for each column. curves: {label: (means, errors)} of
    DataFrames with a row for each step."""
    columns = pd.concat([mean.head(1) for mean, _ in curves.values()])
    names = [name for name in CURVES if name in columns] + ranks(columns)
    width = min(3, len(names))
    figure, axes = grid(math.ceil(len(names) / width), width, 3.4, 2.6)
    for axis in axes.flat[len(names):]:
        axis.set_axis_off()
    for name, axis in zip(names, axes.flat):
        for label, (means, errors) in curves.items():
            if name in means:
                error = np.nan if errors is None else errors[name]
                last = len(means) - 1
                band(axis, means.index, means[name], error, styles[label], label=label,
                     markevery=[*range(last, 0, -max(1, last // 4))])
        axis.set(xlabel="step", title=CURVES.get(name, rf"$\Lambda^{{({name[7:]})}}$"))
    figure.suptitle(title, fontsize=10)
    return legend(figure)


def entropy_figure(logs, styles):
    """Draws the share of tokens in bins of 0.1 nats. The last bin is open."""
    figure, ((axis,),) = grid(1, 1, 5.4, 3.6)
    for label, log in logs.items():
        counts = np.sum(log["entropy_histogram"].tail(LAST).tolist(), 0)
        # A logarithmic scale cannot show a share of 0.
        share = np.where(counts > 0, 100 * counts / counts.sum(), np.nan)
        colour, line, _ = styles[label]
        axis.stairs(share, np.arange(len(share) + 1) / 10, baseline=None, color=colour,
                    linestyle=line, linewidth=1.6, label=label)
    axis.set(yscale="log", xlabel="token entropy, nats (last bin: 4 and above)",
             ylabel="tokens, %", title=f"last {LAST} steps")
    return legend(figure)


# ------------------------------------------------------------------ study
def seeds_of(rates):
    return f"mean ± s.e. over {len(rates)} seeds" if len(rates) > 1 else "one seed"


def same_seeds(rows, runs):
    """Returns the rows of the seeds that all the runs (run, step) share."""
    seeds = set.intersection(*(set(pass_rates(rows, run, step).index) for run, step in runs))
    return rows[rows.seed.isin(seeds)]


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
            axis.set(xlabel="pass@1, %", ylabel=f"pass@{k}, %", title=f"{title}\n{seeds}")
            axis.margins(0.1)
    return legend(figure)


def frontier(axis, method, mean, error, step):
    """Draws the path of a run through (pass@1, pass@K). mean, error: a row
    for each step. The annotation marks `step`."""
    x, y = mean.columns
    colour, line, marker = METHODS[method]
    often = method in SHARED  # nine methods with all their marks would hide each other
    axis.plot(*mean.loc[0], METHODS["base"][2], color=METHODS["base"][0], markersize=9, label=NAMES["base"], zorder=5)
    axis.plot(mean[x], mean[y], color=colour, linestyle=line, linewidth=1.5 if often else 0.9)
    steps = mean.index[1:] if often else [step]
    way, bars = mean.loc[steps], error.loc[steps]
    axis.errorbar(way[x], way[y], bars[y], bars[x], color=colour, linestyle="", marker=marker,
                  markersize=5 if often else 6, elinewidth=0.7, label=NAMES[method])
    if often:
        place = (-75, -70) if method == "grpo" else (-85, -45)
        if step == mean.index[-1]:
            place = (8, -14) if method == "grpo" else (8, 8)
        axis.annotate(f"{NAMES[method]}, step {step}", mean.loc[step], place, textcoords="offset points",
                      fontsize=8, zorder=6, arrowprops={"arrowstyle": "-", "linewidth": 0.5})


def methods_figure(main, runs):
    """Draws pass@K of each method, with a panel for each K. runs:
    {method: (run, step)}."""
    runs = {"base": (runs["grpo"][0], 0), **runs}
    figure, axes = grid(1, 3, 3.4, 0.36 * len(runs) + 1, sharey=True)
    for axis, k in zip(axes[0], KS):
        for place, (method, (run, step)) in enumerate(runs.items()):
            values = pass_rates(main, run, step)[k]
            colour, _, marker = METHODS[method]
            axis.errorbar(values.mean(), place, xerr=values.sem(), color=colour, marker=marker, capsize=3)
            axis.annotate(f"{values.mean():.1f}", (values.mean(), place), (0, 6),
                          textcoords="offset points", ha="center", fontsize=8)
        axis.set(xlabel=f"pass@{k}, %", ylim=(len(runs) - 0.5, -0.8))
        axis.margins(x=0.12)
    rates = {method: re.search(r"learning_rate=(\S+)", run)[1] for method, (run, _) in runs.items()}
    names = [NAMES[method] + f", {rate}" * (method != "base") for method, rate in rates.items()]
    axes[0][0].set_yticks(range(len(names)), names)
    figure.suptitle(seeds_of(values), fontsize=10)
    return figure


def ablation_figure(main, rows):
    """Draws pass@1 and pass@K against one setting of SimKO at a time,
    beside GRPO and unchanged SimKO. rows: the rows of stage ablation."""
    rows = same_seeds(rows, [(run, ABLATION_STEPS) for run in rows.run.unique()])
    main = main[main.seed.isin(rows.seed)]
    usual = SHARED["simko"] | {"K": Config.K, "tau_scope": Config.tau_scope}
    same = {method: pass_rates(main, run_name(method, own), ABLATION_STEPS) for method, own in SHARED.items()}

    def changed(**change):
        if usual | change == usual:
            return same["simko"]
        if "q" not in change:  # only runs that change q have the scope in their name
            del change["tau_scope"]
        return pass_rates(rows, run_name("simko", SHARED["simko"] | change), ABLATION_STEPS)

    labels = {"alpha": "α", "q": "q of τ(q)", "lambda_top1": "λ", "K": "K"}
    figure, axes = grid(2, len(labels), 2.9, 2.5, sharex="col", sharey="row")
    for (name, label), column in zip(labels.items(), axes.T):
        values = sorted({*SWEEPS[name], usual[name]})
        scopes = {"response": "o-", "batch": "s--"} if name == "q" else {Config.tau_scope: "o-"}
        for k, axis in zip((KS[0], KS[-1]), column):
            for method, rates in same.items():
                mean, error = [rates[k].mean()] * 2, [rates[k].sem()] * 2
                band(axis, [-0.3, len(values) - 0.7], mean, error, METHODS[method], marker="",
                     label=NAMES[method] + ", nothing changed" * (method == "simko"))
            for scope, style in scopes.items():
                found = [changed(**{name: value, "tau_scope": scope})[k] for value in values]
                axis.errorbar(range(len(values)), [own.mean() for own in found], [own.sem() for own in found],
                              fmt=style, color="black", linewidth=1, capsize=2, markersize=5,
                              label=f"one setting changed, τ(q) over the {scope}")
            axis.set_ylabel(f"pass@{k}, %")
            axis.label_outer()
        column[1].set_xticks(range(len(values)), [f"{value:g}" for value in values])
        column[1].set_xlabel(label)
    figure.suptitle(seeds_of(same["simko"]), fontsize=10)
    return legend(figure)


def mean_curves(rows, runs):
    """Returns {name: (means, errors)} over seeds of the training curves of
    the runs {method: (run, step)}."""
    rows, found = rows[rows.stage == "main"].dropna(axis=1), {}
    names = [name for name in rows if name in CURVES or name.startswith("Lambda_")]
    for method, (run, _) in runs.items():
        steps = rows[rows.run == run].explode(["steps", *names]).groupby("steps")[names]
        found[NAMES[method]] = steps.mean().astype(float), steps.sem().astype(float)
    return found


def study_figures(folder):
    """Returns {name: figure} of a study, over the seeds for which stage
    main is complete."""
    main, rows, curves = (read(name, folder) for name in ("main", "ablation", "curves"))
    chosen, shared = comparisons(folder)
    main = same_seeds(main, [*chosen.values(), *shared.values()])
    if main.empty:
        fail(f"{folder / 'main.jsonl'} has no seed with all runs of chosen.json: run python -m tools.study main")
    rows, curves = (frame[frame.seed.isin(main.seed)] for frame in (rows, curves))
    rate = f"both at learning rate {SHARED['grpo']['learning_rate']:g}"
    parts = {"settings as chosen: learning rates differ": chosen, rate: shared}
    figures = {"frontier": frontier_figure(main, parts), "fig3d_methods": methods_figure(main, chosen)}
    styles = {NAMES[method]: style for method, style in METHODS.items()}
    for name, (title, runs) in zip(("fig3_5_study", "fig3_5_shared"), parts.items() if len(curves) else ()):
        title = f"{title}; {seeds_of(pass_rates(main, *runs['simko']))}"
        figures[name] = dynamics_figure(mean_curves(curves, runs), styles, title)
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


def first_correct(folders, name, id):
    """Returns the first correct response to a problem: the base model's
    or, if it has none, that of a run."""
    for pattern in ("eval_000000/*.jsonl", "eval_*/*.jsonl"):
        for path in (path for folder in folders for path in sorted(folder.glob(pattern))):
            if path.stem.partition("@T")[0] == name:
                for _, row in read_jsonl(path):
                    if row["id"] == id and row.get("correct"):
                        return row["response"]
    return fail(f"these runs have no correct response to {id} of {name}: choose another --path")


def read_path(folders, index):
    """Returns the arguments of `path_figure`: one response and its top
    candidates under the base model and each run of {label: folder}."""
    from transformers import AutoTokenizer, logging
    logging.disable_progress_bar()
    runs = {label: folder for label, folder in folders.items() if (folder / "config.json").is_file()}
    settings = [run_settings(folder) for folder in runs.values()]
    names = "model", "prompt_template", "chat_template_kwargs", "eval_data"
    if not runs or any(own[name] != settings[0][name] for own in settings for name in names):
        fail(f"--path needs runs with the same {', '.join(names)}")
    for folder in runs.values():
        if not (folder / "hf").is_dir():
            fail(f"{folder / 'hf'} does not exist: the run is unfinished, so run its command again")
    cfg = SimpleNamespace(**settings[0])
    if not cfg.eval_data:
        fail("--path needs runs with --eval-data")
    source, name = cfg.eval_data[0], set_name(cfg.eval_data[0])
    problems = load_problems(source, cfg.data_dir)
    if not 0 <= index < len(problems):
        fail(f"--path {index}: {source} has the problems 0 to {len(problems) - 1}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(cfg.model, trust_remote_code=False)
        ((problem,), _) = encode_prompts([problems[index]], tokenizer, cfg)
        text = first_correct(runs.values(), name, problem["id"])
        response = tokenizer.encode(text, add_special_tokens=False)
        models = {"base": cfg.model, **{label: folder / "hf" for label, folder in runs.items()}}
        found = {label: candidates(model, problem["prompt_ids"], response, cfg.K, cfg.temperature)
                 for label, model in models.items()}
    except (OSError, ValueError) as error:
        fail(f"{cfg.model} or a run's hf cannot be loaded ({one_line(error)}): "
             "if the path is relative, start this in the folder where the runs were started")

    def word(id):
        text = printable(tokenizer.decode([id]).replace("\n", "↵").strip()) or "␣"
        return text if len(text) < 10 else text[:8] + "…"

    title = f"{printable(name)}, problem {index}: probabilities of the top {cfg.K} at each token of one response"
    return title, response, found, word


def path_figure(title, response, found, word, most=24):
    """Draws a line of bars for each model. found: {label: `candidates`}.
    word: a function from a token's id to its text.

    For a long response, only the tokens with the highest entropy under the
    base model are shown, with their positions."""
    shown = sorted(np.argsort(-found["base"][2], kind="stable")[:most].tolist())
    figure, axes = grid(len(found), 1, max(5.5, 0.64 * len(shown) + 1), 1.6, sharex=True, sharey=True)
    for (label, (probability, ids, _)), axis in zip(found.items(), axes[:, 0]):
        shades = plt.get_cmap("Blues")(np.linspace(0.85, 0.2, probability.shape[1]))
        for x, place in enumerate(shown):
            below = 0
            for rank, (height, id) in enumerate(zip(probability[place], ids[place])):
                taken = id == response[place]
                axis.bar(x, height, 0.86, below, color=shades[rank], zorder=3 if taken else 2,
                         edgecolor="black" if taken else "white", linewidth=1.4 if taken else 0.6)
                if height > 0.1:
                    axis.text(x, below + height / 2, word(id), ha="center", va="center", fontsize=7.5,
                              parse_math=False, color="black" if rank else "white", zorder=4)
                below += height
        axis.set(ylabel=label, ylim=(0, 1), yticks=(0, 0.5, 1), xlim=(-0.6, len(shown) - 0.4))
        axis.grid(False)
    ticks = [word(response[place]) for place in shown]
    if len(shown) < len(response):
        ticks = [f"{text}\n{place + 1}" for text, place in zip(ticks, shown)]
    axes[-1][0].set_xticks(range(len(shown)), ticks, parse_math=False, fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure


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
        p = torch.tensor([first] + [(1 - first) / others] * others, dtype=torch.float64)
        low, high = (first, high) if -(p * p.log()).sum() > entropy else (low, first)
    return p


def equal_entropy_figure(measured):
    """Draws the distribution of the first token beside a constructed one
    that has the same entropy."""
    log_pi = torch.tensor(measured["first_token_log_pi"], dtype=torch.float64).log_softmax(-1)
    pi, ids = log_pi.exp().sort(descending=True)
    entropy = -(pi * pi.log()).sum()
    figure, ((left, right),) = grid(1, 2, 3.8, 3.2, sharey=True)
    words = [measured["vocabulary"][i] for i in ids[:6]]
    shown = {"the first token of the response": (left, pi, words),
             "constructed": (right, peaked(entropy), [f"rank {k}" for k in range(1, 7)])}
    for title, (axis, p, names) in shown.items():
        bars = axis.bar(range(6), p[:6].tolist(), color=STYLES[2][0])
        axis.bar_label(bars, [f"{value:.3f}" for value in p[:6]], fontsize=7)
        axis.set_xticks(range(6), names, fontsize=8)
        seen = 1 - (1 - p[1]) ** 8
        axis.set_title(f"{title}\nentropy {-(p * p.log()).sum():.3f} nats, "
                       rf"$\log\pi^{{(2)}}$ = {p[1].log():.2f}" + f"\nrank 2 among 8 samples: {100 * seen:.0f} %",
                       fontsize=9)
    left.set_ylabel(r"$\pi$")
    return figure


def one_step_figure(measured):
    """Draws the gate over a response, and one step on its first token."""
    z = torch.tensor(measured["first_token_log_pi"], dtype=torch.float64)
    best = z.topk(3).indices.tolist()
    words = [measured["vocabulary"][i] for i in best]
    figure, ((gate, correct), (wrong_1, wrong_3)) = grid(2, 2, 4.6, 3.2)

    entropies = torch.tensor(measured["entropy"], dtype=torch.float64)
    tau = entropy_threshold(entropies, torch.tensor([len(entropies)]), Config.q)
    bars = gate.bar(range(len(entropies)), entropies.tolist())
    for bar, inside in zip(bars, entropies > tau):
        colour, hatch = (STYLES[2][0], "") if inside else (STYLES[0][0], "////")
        bar.set(facecolor=colour, hatch=hatch, edgecolor="white")
    gate.axhline(tau[0], color="black", linestyle="--", linewidth=1)
    gate.annotate(f"τ({Config.q:g})", (len(entropies) - 0.5, tau[0]), (0, 3), textcoords="offset points", ha="right")
    gate.set_xticks(range(len(entropies)), measured["response"], fontsize=8)
    gate.set(title="SimKO changes the tokens above τ", ylabel="entropy, nats")

    def panel(axis, y, advantage, title, settings):
        results = {"before": z.softmax(-1)}
        for label, own in settings.items():
            results[label] = (z + push(z, y, advantage, **own)).softmax(-1)
        hatches = "", "////", "....", "xx"
        for place, (label, p) in enumerate(results.items()):
            x = np.arange(3) + (place - (len(results) - 1) / 2) * 0.8 / len(results)
            colour = (STYLES[0], STYLES[1], STYLES[5], STYLES[2])[place][0]
            axis.bar(x, p[best].tolist(), 0.8 / len(results), color=colour, hatch=hatches[place], edgecolor="white", label=label)
        axis.set_xticks(range(3), words)
        axis.set(title=title, ylabel=r"$\pi$")
        axis.legend(fontsize=7)

    panel(correct, best[0], 1, f"{words[0]} was sampled in a correct response",
          {"GRPO": {}, "SimKO, α = 0.01": {"alpha": 0.01}, "SimKO, α = 0.3": {"alpha": 0.3}})
    panel(wrong_1, best[0], -1, f"{words[0]} was sampled in a wrong response",
          {"GRPO": {}, "SimKO, λ = 1.1": {"lambda_top1": 1.1}, "SimKO, λ = 1.5": {"lambda_top1": 1.5}})
    panel(wrong_3, best[2], -1, f"{words[2]} was sampled in a wrong response", {"GRPO and SimKO": {}})
    return figure


def floor_figure(measured):
    """Draws the push on a candidate that was not sampled, and each model's
    distribution of log pi of rank 2 and 3 at gated tokens."""
    figure, ((axis, *panels),) = grid(1, 3, 4.4, 3.8)
    grid_of_p = np.geomspace(2e-4, 0.2, 60)
    pushes = {"GRPO": (0.0, STYLES[1]), "SimKO, α = 0.01": (0.01, STYLES[2]), "SimKO, α = 0.05": (0.05, STYLES[3])}
    for label, (alpha, (colour, line, _)) in pushes.items():
        found = []
        for p in grid_of_p:
            z = torch.tensor([0.7 * (1 - p), 0.3 * (1 - p), p], dtype=torch.float64).log()
            found.append(push(z, 0, 1, alpha)[2].item())
        axis.plot(grid_of_p, found, color=colour, linestyle=line, label=label)
        if alpha:
            axis.axvline(alpha / 3, color=colour, linestyle=line, linewidth=0.8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_yscale("symlog", linthresh=1e-3)  # linear around 0
    axis.set(xscale="log", xlabel=r"$\pi_k$ of a candidate that was not sampled", ylabel="push on its logit",
             title="a correct response, K = 3\nvertical lines: α/K")
    axis.legend(fontsize=8)
    for rank, panel in zip((2, 3), panels):
        for (label, own), (colour, line, _) in zip(measured["models"].items(), STYLES):
            panel.plot(own["percentiles"][f"rank {rank}"], range(101), color=colour, linestyle=line, label=label)
            if alpha := own.get("alpha") if own.get("method") == "simko" else None:
                panel.axvline(math.log(alpha / own["K"]), color=colour, linestyle=line, linewidth=0.8)
        panel.set(xlabel=rf"$\log\pi^{{({rank})}}$", xlim=(-14, 0), ylabel="gated tokens below, %",
                  title=f"rank {rank} at gated tokens, q = {measured['gate_q']:g}\nvertical lines: log α/K of each run")
        panel.legend(fontsize=7)
    return figure


def walkthrough_figures(path):
    """Returns {name: figure} of docs/walkthrough.md."""
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read ({error}): create it with python -m tools.walkthrough --measure RUN ...")
    return {"fig2_equal_entropy": equal_entropy_figure(measured),
            "fig4_one_step": one_step_figure(measured), "floor": floor_figure(measured)}


# ----------------------------------------------------------------- follow
def chart(log, steps, width):
    """Returns a text with a line of bars for each of four columns. Each of
    the `width` bars is a mean over its share of all `steps` of the run."""
    lines = [f"step {log['step'].iloc[-1] if len(log) else 0} of {steps}"]
    for name in ("reward", "Lambda_1", "Lambda_2", "entropy"):
        if name in log and log[name].notna().any():
            means = log[name].groupby((log["step"] - 1) * width // steps).mean().reindex(range(width))
            low, high = means.min(), means.max()
            levels = 1 + 7 * (means - low) / ((high - low) or 1)
            bars = "".join(" ▁▂▃▄▅▆▇█"[round(level)] for level in levels.fillna(0))
            lines.append(f"{name:9}{bars} {low:.3f} to {high:.3f}")
    return "\n".join(lines)


def follow(folder, seconds=3):
    """Prints the chart of a run. In a terminal, updates it until the last
    step is done."""
    steps = run_settings(folder)["steps"]
    path, up = folder / "metrics.jsonl", ""
    width = max(1, min(steps, shutil.get_terminal_size().columns - 28))
    while True:
        log = read_log(path) if path.exists() else pd.DataFrame()
        text = chart(log, steps, width)
        print(up + text, flush=True)
        if not sys.stdout.isatty() or (len(log) and log["step"].iloc[-1] >= steps):
            return
        # Moves up to the chart's first line and clears the screen below.
        up = f"\x1b[{text.count(chr(10)) + 1}A\x1b[J"
        time.sleep(seconds)


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("folders", nargs="*", metavar="[LABEL=]FOLDER")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the figures to this folder")
    parser.add_argument("--study", type=Path, metavar="DIR", help="draw the study whose rows are in this folder")
    parser.add_argument("--path", type=int, metavar="INDEX", help="draw this problem of the first set, counted from 0")
    parser.add_argument("--walkthrough", type=Path, metavar="FILE", help="draw the measurements in this file")
    parser.add_argument("--follow", type=Path, metavar="RUN", help="show the chart of the run in this folder")
    options = parser.parse_args()
    if options.follow:
        return follow(options.follow)
    wanted = options.folders or (options.study or options.walkthrough) and options.path is None
    if not options.output or not wanted:
        parser.error("name folders (of runs, for --path), --study or --walkthrough, and -o for the figures; "
                     "or name a run with --follow")
    rows = tables.load(options.folders)
    folders = {row.label: row.folder for row in rows}
    if len(folders) > len(STYLES):
        fail(f"{len(folders)} folders are too many: a figure shows at most {len(STYLES)}")
    styles = dict(zip(folders, STYLES))
    paths = {label: folder / "metrics.jsonl" for label, folder in folders.items()}
    logs = {label: read_log(path) for label, path in paths.items() if path.is_file()}
    logs = {label: log for label, log in logs.items() if len(log)}
    figures = {}
    if options.path is not None:
        figures[f"path_{options.path}"] = path_figure(*read_path(folders, options.path))
    if rows:
        figures["fig1_pass_at_k"] = pass_figure(rows, styles)
    if logs:
        figures["fig1_candidates"] = candidates_figure(logs, styles)
        curves = {label: run_curves(log) for label, log in logs.items()}
        figures["fig3_5_dynamics"] = dynamics_figure(curves, styles)
        figures["fig6_entropy"] = entropy_figure(logs, styles)
    if options.study:
        figures |= study_figures(options.study)
    if options.walkthrough:
        figures |= walkthrough_figures(options.walkthrough)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(options.output / f"{name}.png")
            plt.close(figure)
        if rows:
            settings = {label: run_settings(folder) for label, folder in folders.items()
                        if (folder / "config.json").is_file()}
            pictures = {name: (options.output / f"{name}.png").read_bytes() for name in figures}
            report.write(options.output / "report.html", rows, logs, settings, pictures)
    except OSError as error:
        fail(f"-o {options.output} cannot be written ({error.strerror}): name another folder")
    print("figures: " + ", ".join(f"{options.output / name}.png" for name in figures))
    if rows:
        print(f"report: {options.output / 'report.html'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
