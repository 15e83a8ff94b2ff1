"""Figures from evaluations, runs and the laptop study, named for the paper's figures that they answer to.

    python tools/plots.py [LABEL=]FOLDER ... -o DIR     folders of evaluations, or of runs (their last evaluation)
    python tools/plots.py [LABEL=]RUN ... --path 3 -o DIR
    python tools/plots.py --study docs/laptop -o DIR
    python tools/plots.py --follow RUN

fig1_pass_at_k   pass@K against K; band: the bootstrap's standard error over problems
fig1_candidates  exp(Lambda^(k)) against k at the end of training
fig3_5_dynamics  reward, entropy, Lambda and Lambda^(k) along training
fig6_entropy     entropies of the tokens at the end of training
--study          the rows of tools/study.py: fig3d_methods (pass@K of each method), fig3_5_study and fig3_5_shared
                 (dynamics, settings as chosen and at one learning rate), frontier (pass@1 against pass@K along
                 training), fig7_ablation; mean ± standard error over the seeds that all runs of a figure have, and each
                 method at the step that validation chose
--path INDEX     path_INDEX: the top candidates at each token of one response, model by model
--follow RUN     a chart in the terminal while RUN trains
"""
import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simko import Config, printable  # noqa: E402
from tools.checks import set_name  # noqa: E402
from tools.data import load_problems  # noqa: E402
from tools.prompts import encode_prompts  # noqa: E402
from tools.study import ABLATION_STEPS, NAMES, SHARED  # noqa: E402
from tools.tables import load, pass_rates, printable_exit  # noqa: E402

# Distinct in colour and, for grey prints, by line and marker; the first three also by lightness.
STYLES = [("#8c8c8c", ":", "o"), ("#e69f00", "--", "s"), ("#0072b2", "-", "D"), ("#009e73", "-.", "^"),
          ("#cc79a7", "--", "v"), ("#56b4e9", ":", "P"), ("#d55e00", "-", "X"), ("#000000", "-.", "*"),
          ("#7f6000", "--", "<"), ("#5e3c99", ":", ">")]
METHODS = dict(zip(NAMES, STYLES))
PARAMETERS = {"alpha": "α", "q": "q of τ(q)", "lam": "λ", "K": "K"}
LAST = 25  # steps that make the end of training


def read_rows(path, keys, remedy):
    """The rows of a .jsonl file, each with `keys`; what is behind the last newline is being written still."""
    rows = []
    try:
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            rows.append({**json.loads(line)})
            if missing := [key for key in keys if key not in rows[-1]]:
                raise ValueError(f"no {missing[0]!r}")
    except OSError:
        sys.exit(f"{path} is not there or cannot be read: {remedy}")
    except (ValueError, TypeError, RecursionError) as error:
        sys.exit(f"{path}, line {number}, is damaged or of another version ({error}): {remedy}")
    return rows


def grid(lines, columns, width, height, **options):
    """A figure of equal panels, with a thin frame for dark pages, and its axes (lines, columns)."""
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False,
                                layout="constrained", linewidth=1, edgecolor="#bbbbbb", **options)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(figure):
    """One legend under all panels, each label once."""
    found = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(found.values(), found, loc="outside lower center", frameon=False,
                  ncols=max(2, int(figure.get_figwidth() / 2)))
    return figure


def band(axis, x, mean, error, style, **options):
    colour, line, marker = style
    axis.plot(x, mean, **{"color": colour, "linestyle": line, "marker": marker, "markersize": 4} | options)
    axis.fill_between(x, np.subtract(mean, error), np.add(mean, error), color=colour, alpha=0.15, linewidth=0)


# -------------------------------------------------------------------------------------------- evaluations and runs
def pass_figure(rows, styles):
    """A panel a set, a line of panels a temperature."""
    names = list(dict.fromkeys(name for row in rows for name in row.sets))
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    figure, axes = grid(len(temperatures), len(names), 4.6, 3.6)
    panels = {(t, name): axes[i][j] for i, t in enumerate(temperatures) for j, name in enumerate(names)}
    for (temperature, name), axis in panels.items():
        ks = {}
        for row in rows:
            if row.temperature == temperature and name in row.sets:
                rates = pass_rates([row.sets[name]])
                band(axis, list(rates), *100 * np.array(list(rates.values())).T, styles[row.label], label=row.label)
                ks |= rates
        if not ks:
            axis.axis("off")
            continue
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(ks), list(ks))
        axis.set(xlabel="K", ylabel="pass@K, %", title=name if temperature is None else f"{name}, T = {temperature}")
    return legend(figure)


def candidates_figure(runs, styles):
    """exp of Lambda^(k)'s mean over the last steps, against k."""
    figure, ((axis,),) = grid(1, 1, 4.6, 3.6)
    for label, rows in runs.items():
        mean = {int(key[7:]): np.mean([row[key] for row in rows[-LAST:]]) for key in rows[-1] if key[:7] == "Lambda_"}
        band(axis, list(mean), np.exp(list(mean.values())), np.nan, styles[label], label=label, markersize=6)
    axis.set(yscale="log", xlabel="k", title=f"k-th candidate, last {LAST} steps",
             ylabel=r"$\exp\,\Lambda^{(k)}$" + "\n(geometric mean probability)")
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    return legend(figure)


def run_curves(rows):
    """{name: (steps, means, no errors)} of metrics.jsonl; a mean is of the 20th of the run that ends with its step."""
    width, found = max(1, len(rows) // 20), {}
    for name in ("reward", "entropy", *(key for key in rows[0] if key.startswith("Lambda"))):
        if all(name in row for row in rows):
            values = [row[name] for row in rows]
            means = [np.mean(values[max(0, i - width):i]) for i in range(1, len(values) + 1)]
            found[name] = [row["step"] for row in rows], means, np.nan
    return found


def dynamics_figure(curves, title=""):
    """curves: {label: (style, {name: (steps, means, errors)})}; a panel a name."""
    names = {name for _, values in curves.values() for name in values}
    ranks = sorted((name for name in names if name.startswith("Lambda_")), key=lambda name: int(name[7:]))
    titles = {"reward": "reward", "entropy": "entropy, nats", "Lambda": r"$\Lambda$, sampled tokens"}
    names = [name for name in titles if name in names] + ranks
    columns = min(3, len(names))
    figure, axes = grid(math.ceil(len(names) / columns), columns, 3.4, 2.6)
    for axis in axes.flat[len(names):]:
        axis.axis("off")
    for name, axis in zip(names, axes.flat):
        for label, (style, values) in curves.items():
            if name in values:
                steps = len(values[name][0])
                band(axis, *values[name], style, label=label, markevery=[*range(steps - 1, 0, -max(1, steps // 4))])
        axis.set(xlabel="step", title=titles.get(name, rf"$\Lambda^{{({name[7:]})}}$"))
    figure.suptitle(title, fontsize=10)
    return legend(figure)


def entropy_figure(runs, styles):
    """Share of tokens in bins of 0.1 nats, the last one open; None if no run has counted them."""
    runs = {label: rows for label, rows in runs.items() if all("entropy_histogram" in row for row in rows[-LAST:])}
    if not runs:
        return None
    figure, ((axis,),) = grid(1, 1, 5.4, 3.6)
    for label, rows in runs.items():
        counts = np.sum([row["entropy_histogram"] for row in rows[-LAST:]], 0)
        share = np.where(counts > 0, 100 * counts / counts.sum(), np.nan)  # 0 has no place on a log scale
        axis.stairs(share, np.arange(len(share) + 1) / 10, baseline=None, color=styles[label][0],
                    linestyle=styles[label][1], linewidth=1.6, label=label)
    axis.set(yscale="log", xlabel="token entropy, nats (last bin: 4 and above)", ylabel="tokens, %",
             title=f"last {LAST} steps")
    return legend(figure)


# ----------------------------------------------------------------------------------------------------------- study
def over_seeds(values):
    """(mean, standard error) over the first axis; one seed has no error: nan."""
    values = np.array(list(values), float)
    error = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)
    return values.mean(0), error / math.sqrt(len(values))


def same_seeds(found):
    """{key: {seed: value}} with the seeds alone that every key has."""
    seeds = set.intersection(*map(set, found.values())) if found else set()
    return {key: {seed: values[seed] for seed in sorted(seeds)} for key, values in found.items() if seeds}


def describe(seeds):
    return f"mean ± s.e. over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def load_study(folder):
    """Of a study as far as it is: ends {method: step} and points {(method, step): {seed: {K: %}}} with the settings as
    chosen, both also with SHARED's, ablation [(settings, seed, {K: %})], curves as dynamics_figure takes them."""
    def rows(name, *keys):
        remedy = "python tools/study.py writes it, and writes what is missing again"
        found = read_rows(folder / f"{name}.jsonl", ("method", "settings", "seed", *keys), remedy)
        return [(row, {int(k): 100 * value for k, value in row.get("pass", {}).items()}) for row in found]

    def optional(name, *keys):
        return rows(name, *keys) if (folder / f"{name}.jsonl").exists() else []
    points, main = {}, rows("main", "step", "pass")
    try:
        chosen = json.loads((folder / "chosen.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{folder / 'chosen.json'} cannot be read ({error}): python tools/study.py tune main writes it")
    chosen = {method: chosen[method] for method in NAMES if method in chosen}
    shared = {}
    for row, percent in main:
        for found, settings in ((points, chosen.get(row["method"], [None])[0]), (shared, SHARED.get(row["method"]))):
            if row["settings"] == settings:
                for method in [row["method"], *["base"] * (row["step"] == 0)]:
                    found.setdefault((method, row["step"]), {})[row["seed"]] = percent
    ends = {"base": 0, **{method: step for method, (_, step) in chosen.items()}}
    ends = {method: step for method, step in ends.items() if (method, step) in points}
    pair = same_seeds({key: points[key] for key in points if key[0] in ("base", *SHARED)})
    points = pair | {key: points[key] for key in points if key[0] in ends and key not in pair}  # these may have fewer
    if len(ends) < 2 or not points:
        sys.exit(f"{folder / 'main.jsonl'} has no seed with all that chosen.json names: python tools/study.py main")
    logs = [row for row, _ in optional("curves", "stage", "steps") if row["stage"] == "main"]
    rates = {method: f", {settings['lr']:g}" for method, (settings, _) in chosen.items()}
    ablation = [(row["settings"], row["seed"], percent) for row, percent in optional("ablation", "step", "pass")
                if row["step"]]
    largest = max(set.intersection(*(set(percent) for seeds in points.values() for percent in seeds.values())))
    shared = same_seeds(shared)
    last = {method: max(step for name, step in shared if name == method)
            for method in NAMES if (method, 0) in shared}
    return SimpleNamespace(ends=ends, points=points, shared=(last, shared), ablation=ablation, rates=rates,
                           curves=training_curves(logs, {method: settings for method, (settings, _) in chosen.items()}),
                           shared_curves=training_curves(logs, SHARED), ks=sorted({1, min(16, largest), largest}),
                           title=describe(points["base", 0]))


def training_curves(logs, settings):
    """(curves as dynamics_figure takes them, how many seeds) of the runs with these settings of each method."""
    found, curves = {}, {}
    for row in logs:
        if settings.get(row["method"]) == row["settings"]:
            found.setdefault(row["method"], {})[row["seed"]] = row
    found = same_seeds(found)
    for method, runs in found.items():
        runs, length = list(runs.values()), min(len(row["steps"]) for row in runs.values())
        curves[NAMES[method]] = METHODS[method], {
            name: (runs[0]["steps"][:length], *over_seeds(row[name][:length] for row in runs))
            for name in runs[0] if name in ("reward", "entropy") or name.startswith("Lambda")}
    return curves, describe(next(iter(found.values()), {}))


def at(values, k):
    """(mean, standard error) of pass@k; values: {seed: {K: %}}."""
    return over_seeds(percent[k] for percent in values.values())


def label(points, method, end):
    """The method's name, with the number of seeds where it has fewer than the base models."""
    seeds = len(points[method, end])
    return NAMES[method] + f" ({seeds} seeds)" * (seeds < len(points["base", 0]))


def frontier_figure(study):
    """pass@1 against pass@K along training, with the settings as chosen and, below, with one learning rate for both; a
    method that was evaluated at its end alone is a point."""
    ends, points = study.shared
    rows = [(study.ends, study.points, "settings as chosen: learning rates differ")]
    if len(ends) > 1:
        rows.append((ends, points, f"both at learning rate {SHARED['grpo']['lr']:g}"))
    figure, axes = grid(len(rows), len(study.ks) - 1, 4.8, 4.2)
    for line, (ends, points, how) in zip(axes, rows):
        for axis, k in zip(line, study.ks[1:]):
            frontier(axis, ends, points, k)
            axis.set(xlabel="pass@1, %", ylabel=f"pass@{k}, %", title=f"{how}\n{describe(points['base', 0])}")
            axis.margins(0.1)
    return legend(figure)


def frontier(axis, ends, points, k):
    for method, end in ends.items():
        colour, line, marker = METHODS[method]
        steps = sorted(step for name, step in points if name == method)
        if len(steps) < 3:  # not its way but its end: a line from base to there would pass for it
            steps, line = [end], ""
        (x, dx), (y, dy) = (np.array([at(points[method, step], i) for step in steps]).T for i in (1, k))
        if method not in ("base", *SHARED):  # a thin way to one mark, or nine methods would hide each other
            axis.plot(x, y, color=colour, linestyle=line, linewidth=0.9)
            i = steps.index(end)
            axis.errorbar(x[i], y[i], dy[i], dx[i], color=colour, linestyle="", marker=marker, elinewidth=0.7,
                          markersize=6, label=label(points, method, end), zorder=4)
            continue
        axis.errorbar(x, y, dy, dx, color=colour, linestyle=line, marker=marker, label=label(points, method, end),
                      elinewidth=0.7, markersize=9 if method == "base" else 5, zorder=4 if method == "base" else 3)
        for i in range(len(steps) - 1):
            axis.annotate("", ((x[i] + x[i + 1]) / 2, (y[i] + y[i + 1]) / 2), (x[i], y[i]), arrowprops={
                "arrowstyle": "-|>", "color": colour, "linewidth": 0, "mutation_scale": 13})
        if len(steps) > 1 or method == "base":
            place, text = steps.index(end), NAMES[method] + f", step {end}" * (method != "base")
            beside = place in (0, len(steps) - 1)  # else the way goes on there; down left there are no points
            offset = (7, -13 if method == "grpo" else 5) if beside else (-35, -60 if method == "grpo" else -35)
            axis.annotate(text, (x[place], y[place]), offset, textcoords="offset points", fontsize=8, zorder=5, ha=(
                "left" if beside else "right"), arrowprops=None if beside else {"arrowstyle": "-", "linewidth": 0.5})


def methods_figure(study):
    """pass@K of each method at its learning rate, a panel a K."""
    figure, axes = grid(1, len(study.ks), 3.4, 0.36 * len(study.ends) + 1, sharey=True)
    for axis, k in zip(axes[0], study.ks):
        for line, (method, step) in enumerate(study.ends.items()):
            mean, error = at(study.points[method, step], k)
            colour, _, marker = METHODS[method]
            axis.errorbar(mean, line, xerr=error, color=colour, marker=marker, capsize=3)
            axis.annotate(f"{mean:.1f}", (mean, line), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axis.set(xlabel=f"pass@{k}, %", yticks=range(len(study.ends)),
                 yticklabels=[label(study.points, method, end) + study.rates.get(method, "")
                              for method, end in study.ends.items()],
                 ylim=(len(study.ends) - 0.5, -0.8))
        axis.margins(x=0.12)
    figure.suptitle(study.title, fontsize=10)
    return figure


def ablation_figure(study):
    """pass@1 and pass@K against one setting of SimKO at a time, the others the laptop recipe's (tau's scope goes with
    q), beside GRPO and that SimKO; None if there is nothing to compare."""
    _, shared = study.shared
    ends = {method: shared[method, ABLATION_STEPS] for method in SHARED if (method, ABLATION_STEPS) in shared}
    usual = {"tau_scope": Config.tau_scope, "K": Config.K}
    unchanged, found = usual | SHARED["simko"], {}
    mine = [(SHARED["simko"], seed, percent) for seed, percent in ends.get("simko", {}).items()]
    for settings, seed, percent in study.ablation + mine:
        own = usual | settings
        for name in PARAMETERS:
            scope = own["tau_scope"] if name == "q" else ""
            if {**own, name: 0, "tau_scope": scope or own["tau_scope"]} == {
                    **unchanged, name: 0, "tau_scope": scope or unchanged["tau_scope"]}:
                found.setdefault((name, scope, own.get(name)), {})[seed] = percent
    shown = [name for name in PARAMETERS if len({key[2] for key in found if key[0] == name}) > 1]
    found = same_seeds(ends | {key: values for key, values in found.items() if key[0] in shown})
    if not shown or not found:
        return None
    figure, axes = grid(2, len(shown), 2.9, 2.5, sharex="col", sharey="row")
    for k, line in zip((1, study.ks[-1]), axes):
        for name, axis in zip(shown, line):
            for method in ends:
                mean, error = at(found[method], k)
                band(axis, [-0.3, 5.3], [mean] * 2, error, METHODS[method], marker="",
                     label=NAMES[method] + ", nothing changed" * (method == "simko"))
            keys = [key for key in found if key[0] == name]
            values = sorted({value for _, _, value in keys})
            for scope, style, marker in (("", "-", "o"), ("response", "-", "D"), ("batch", "--", "s")):
                x = [value for value in values if (name, scope, value) in found]
                if x:
                    mean, error = np.array([at(found[name, scope, value], k) for value in x]).T
                    axis.errorbar([values.index(value) for value in x], mean, error, color="black", linestyle=style,
                                  marker=marker, markerfacecolor="white" if scope == "batch" else "black",
                                  markersize=5, linewidth=1, capsize=2,
                                  label=f"SimKO, τ over the {scope}" if scope else "SimKO, one setting changed")
            axis.set_xlim(-0.3, len(values) - 0.7)
            axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        line[0].set_ylabel(f"pass@{k}, %")
    for name, axis in zip(shown, axes[1]):
        axis.set_xlabel(PARAMETERS[name])
    figure.suptitle(describe(next(iter(found.values()))), fontsize=10)
    return legend(figure)


# ------------------------------------------------------------------------------------------------------------ path
@torch.no_grad()
def candidates(folder, prompt, response, K, temperature):
    """(probabilities (L, K), ids (L, K)) of the top K at each token of `response` behind `prompt`, entropies (L,)."""
    from transformers import AutoModelForCausalLM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True,
                                                 trust_remote_code=False).to(device).eval()
    ids = torch.tensor([[*prompt, *response]], device=device)
    logp = (model(ids).logits[0, len(prompt) - 1:-1].float() / temperature).log_softmax(-1)
    top = logp.topk(K)
    return top.values.exp().cpu().numpy(), top.indices.cpu().numpy(), -(logp.exp() * logp).sum(-1).cpu().numpy()


def run_settings(folder, remedy):
    """The settings of a run, from its config.json."""
    try:
        return dataclasses.asdict(Config()) | json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return sys.exit(f"{folder / 'config.json'} cannot be read ({error!r}): {remedy}")


def first_correct(folders, name, id):
    """The first correct response to a problem: base's or, if it has none, a run's."""
    for pattern in ("eval_000000", "eval_*"):
        for path in (path for folder in folders for evaluation in sorted(folder.glob(pattern))
                     for path in sorted(evaluation.glob("*.jsonl")) if path.stem.partition("@T")[0] == name):
            for row in read_rows(path, (), "run the evaluation again")[1:]:
                if row["id"] == id and row["correct"]:
                    return row["response"]
    return sys.exit(f"no evaluation of these runs has a correct response to {id} of {name}: choose another --path")


def read_path(folders, index):
    """What path_figure takes: a response to a problem, read by base and by each of the runs."""
    from transformers import AutoTokenizer, logging
    logging.disable_progress_bar()
    runs = {label: folder for label, folder in folders.items() if (folder / "config.json").is_file()}
    settings = {label: run_settings(folder, "start the run again") for label, folder in runs.items()}
    own = SimpleNamespace(**next(iter(settings.values()), {"eval_data": []}))
    if not own.eval_data:
        sys.exit("--path needs a run that has --eval-data: name its folder, as LABEL=RUN")
    for label, folder in runs.items():
        if any(settings[label][key] != getattr(own, key) for key in ("model", "prompt_template", "eval_data")):
            sys.exit(f"{folder / 'config.json'}: another model, prompt_template or eval_data than {next(iter(runs))}: "
                     "--path takes runs that share them")
        if not (folder / "hf").is_dir():
            sys.exit(f"{folder / 'hf'} is not there: the run is unfinished, the command that began it goes on with it")
    problems, name = load_problems(own.eval_data[0], own.data_dir), set_name(own.eval_data[0])
    if not 0 <= index < len(problems):
        sys.exit(f"--path {index}: {own.eval_data[0]} has the problems 0 to {len(problems) - 1}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(own.model, trust_remote_code=False)
        ((problem,), _) = encode_prompts([problems[index]], tokenizer, own)
        response = tokenizer.encode(first_correct(runs.values(), name, problem["id"]), add_special_tokens=False)
        found = {label: candidates(model, problem["prompt_ids"], response, own.K, own.temperature)
                 for label, model in {"base": own.model, **{label: runs[label] / "hf" for label in runs}}.items()}
    except (OSError, ValueError) as error:
        sys.exit(f"{own.model} or a run's hf cannot be loaded ({' '.join(str(error).split())[:200]}): "
                 "relative paths hold in the folder where the runs were started")

    def word(id):
        text = printable(tokenizer.decode([id]).replace("\n", "↵").strip()) or "␣"
        return text if len(text) < 10 else text[:8] + "…"
    title = f"problem {index}: probabilities of the top {own.K} at each token (framed) of one response"
    title = f"{printable(name)}, {title}"
    return title, response, found, word


def path_figure(title, response, found, word, most=24):
    """A line of bars a model, found: {label: `candidates` at each token of `response`}, word: id -> text.

    Of a long response only the `most` tokens at which base's entropy is highest, with their places."""
    shown = sorted(np.argsort(-found["base"][2], kind="stable")[:most].tolist())
    figure, axes = grid(len(found), 1, max(5.5, 0.64 * len(shown) + 1), 1.6, sharex=True, sharey=True)
    for (label, (probability, ids, _)), axis in zip(found.items(), axes[:, 0]):
        shades = plt.get_cmap("Blues")(np.linspace(0.85, 0.2, probability.shape[1]))
        for x, place in enumerate(shown):
            tops = probability[place].cumsum()
            for rank, (height, top, id) in enumerate(zip(probability[place], tops, ids[place])):
                taken = id == response[place]
                axis.bar(x, height, 0.86, top - height, color=shades[rank], edgecolor="black" if taken else "white",
                         linewidth=1.4 if taken else 0.6, zorder=2 + taken)
                if height > 0.1:
                    axis.text(x, top - height / 2, word(id), ha="center", va="center", fontsize=7.5, parse_math=False,
                              color="black" if rank else "white", zorder=4)
        axis.set(ylabel=label, ylim=(0, 1), yticks=(0, 0.5, 1), xlim=(-0.6, len(shown) - 0.4))
        axis.grid(visible=False)
    ticks = [word(response[place]) + f"\n{place + 1}" * (len(shown) < len(response)) for place in shown]
    axes[-1][0].set_xticks(range(len(shown)), ticks, parse_math=False, fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure


# ---------------------------------------------------------------------------------------------------------- follow
def chart(rows, steps, width, height=3):
    """Text: four series in `height` lines each, over the steps that the run will have; a column is its steps' mean."""
    width, lines = max(1, min(width, steps)), [f"step {rows[-1]['step'] if rows else 0} of {steps}"]
    for name, title in (("reward", "reward"), ("Lambda_1", "Λ^(1)"), ("Lambda_2", "Λ^(2)"), ("entropy", "entropy")):
        parts = [[row[name] for row in rows if (row["step"] - 1) * width // steps == i and
                  math.isfinite(row.get(name, math.nan))] for i in range(width)]
        means = [np.mean(part) if part else None for part in parts]
        known = [mean for mean in means if mean is not None]
        if known:
            low, high = min(known), max(known)
            levels = [0 if mean is None else 1 + round((mean - low) / ((high - low) or 1) * (8 * height - 1))
                      for mean in means]
            for i in range(height):
                bars = "".join(" ▁▂▃▄▅▆▇█"[min(8, max(0, level - 8 * (height - 1 - i)))] for level in levels)
                left, side = {0: (title, f"{high:.3f}"), 1: (f"now {known[-1]:.3f}", "")}.get(i, ("", ""))
                lines.append(f"{left:<12}{side or f'{low:.3f}' * (i == height - 1):>9} {bars}".rstrip())
    return "\n".join(lines)


def follow(folder, seconds=3):
    """Prints the chart of a run; in a terminal again and again, until its last step is there."""
    steps = run_settings(folder, "--follow takes the folder of a run")["steps"]
    path, up = folder / "metrics.jsonl", ""
    while True:
        rows = read_rows(path, ("step", "reward"), "start the run again") if path.exists() else []
        text = chart(rows, steps, shutil.get_terminal_size().columns - 23)
        print(up + text, flush=True)
        if not sys.stdout.isatty() or (rows and rows[-1]["step"] >= steps):
            return
        up = f"\x1b[{text.count(chr(10)) + 1}A\x1b[J"  # back to the chart's first line, and all behind it cleared
        time.sleep(seconds)


@printable_exit()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="[LABEL=]FOLDER")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR")
    parser.add_argument("--study", type=Path, metavar="DIR", help="the folder of tools/study.py's rows")
    parser.add_argument("--path", type=int, metavar="INDEX", help="a problem's place in the runs' first set, from 0")
    parser.add_argument("--follow", type=Path, metavar="RUN")
    options = parser.parse_args()
    if options.follow:
        return follow(options.follow)
    wanted = options.folders or options.study and options.path is None
    if not options.output or not wanted:
        parser.error("name folders (--path: of runs) or --study, and -o for the figures; or --follow a run")
    rows = load(options.folders)
    folders = {row.label: row.folder for row in rows}
    if len(folders) > len(STYLES):
        sys.exit(f"{len(folders)} folders: no more than {len(STYLES)} can be told apart in one figure")
    styles, figures = dict(zip(folders, STYLES)), {}
    runs = {label: read_rows(folder / "metrics.jsonl", ("step", "reward"), "train the run again")
            for label, folder in folders.items() if (folder / "metrics.jsonl").is_file()}
    runs = {label: run for label, run in runs.items() if run}
    if options.path is not None:
        figures[f"path_{options.path}"] = path_figure(*read_path(folders, options.path))
    if rows:
        figures["fig1_pass_at_k"] = pass_figure(rows, styles)
    if runs:
        figures["fig1_candidates"] = candidates_figure(runs, styles)
        figures["fig3_5_dynamics"] = dynamics_figure({x: (styles[x], run_curves(run)) for x, run in runs.items()})
        figures["fig6_entropy"] = entropy_figure(runs, styles)
    if options.study:
        study = load_study(options.study)
        figures |= {"frontier": frontier_figure(study), "fig3d_methods": methods_figure(study),
                    "fig7_ablation": ablation_figure(study)}
        for name, (curves, seeds), how in (
                ("fig3_5_study", study.curves, "settings as chosen: learning rates differ"),
                ("fig3_5_shared", study.shared_curves, f"both at learning rate {SHARED['grpo']['lr']:g}")):
            figures[name] = dynamics_figure(curves, f"{how}; {seeds}") if curves else None
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        paths = {options.output / f"{name}.png": figure for name, figure in figures.items() if figure}
        for path, figure in paths.items():
            figure.savefig(path, dpi=150, facecolor="white", edgecolor=figure.get_edgecolor())
            plt.close(figure)
    except OSError as error:
        sys.exit(f"-o {options.output} cannot be written ({error.strerror}): name another folder")
    print("figures: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
