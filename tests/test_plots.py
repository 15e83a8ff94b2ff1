"""Tests of tools/plots.py and tools/report.py. They read the data back from the figures and
compare it with plain computations on rows that they write themselves."""
import base64
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from runtime import data
from simko import Config
from tests.conftest import save_tiny_models, write_rows
from tests.test_tables import entry, write
from tools import drawing, laptop, paths, plots, study_figures, tables, walkthrough_figures
from tools.study import ABLATION_STEPS, SHARED, STEPS, ablation, curve, run_name

VOCABULARY = laptop.vocabulary()


@pytest.fixture(autouse=True)
def close():
    yield
    plots.plt.close("all")


def test_a_notebook_s_backend_is_not_needed():
    """Colab and Kaggle set MPLBACKEND, and .venv does not have what it names."""
    environment = os.environ | {"MPLBACKEND": "module://not_here.backend"}
    command = [sys.executable, "-m", "tools.plots", "--help"]
    subprocess.run(command, env=environment, capture_output=True, check=True)


def styles(*labels):
    return dict(zip(labels, drawing.STYLES))


def evaluation(folder, *temperatures, **sets):
    """Writes an eval.json from {set: (n, correct samples of each problem)}. With temperatures, it
    contains each set once for each temperature."""
    entries = {}
    for name, (n, right) in sets.items():
        for t in temperatures or [1.0]:
            label = f"{name}@T{t}" if temperatures else name
            entries[label] = entry(name, right, n, temperature=t)
    write(folder, **entries)


def metrics(steps):
    """Returns rows of metrics.jsonl with random values."""
    rng = random.Random(0)
    rows = []
    for step in range(1, steps + 1):
        rows.append({
            "step": step,
            "reward": rng.random(),
            "entropy": rng.random(),
            "Lambda": -rng.random(),
            "Lambda_1": -rng.random(),
            "Lambda_2": -5 - rng.random(),
            "entropy_histogram": [rng.randrange(9) for _ in range(40)] + [0],
        })
    return rows


def lines(axis):
    """Returns {label: (x, y)} of the lines in an axis."""
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axis.lines}


def points(axis):
    """Returns {label: (x, y, errors)} of the error bars in an axis. The errors are those of y, or
    a list of those of x and those of y."""
    found = {}
    for bars in axis.containers:
        marks, _, parts = bars.lines
        x, y = map(list, marks.get_data())
        errors = [
            [math.dist(*ends) / 2 for ends in part.get_segments()]
            for part in parts
        ]
        found[bars.get_label()] = x, y, errors if len(errors) > 1 else errors[0]
    return found


def band_at(axis, x, number=0):
    """Returns the lower and the upper edge at x of a band in an axis, by default the first."""
    edge = axis.collections[number].get_paths()[0].vertices
    values = [y for place, y in edge if place == x]
    return min(values), max(values)


def ticks(axis):
    return [label.get_text() for label in axis]


def naive(values):
    """Returns mean and standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def near(pairs):
    return [pytest.approx(pair) for pair in pairs]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Returns a function that runs the program and returns the names of the figures. The
    function's `errors` is what the last call wrote to standard error."""
    def run(*arguments):
        words = [*map(str, arguments), "-o", str(tmp_path / "figures")]
        monkeypatch.setattr(sys, "argv", ["plots.py", *words])
        plots.main()
        printed = capsys.readouterr()
        run.errors = printed.err
        names = printed.out.splitlines()[0].removeprefix("figures: ")
        paths = [Path(name) for name in names.split(", ")]
        for path in paths:
            assert path.read_bytes().startswith(b"\x89PNG")
        return [path.stem for path in paths]
    return run


# --------------------------------------------------------------------------- evaluations and runs
def test_what_is_there_is_drawn(tmp_path, call):
    run, sweep = tmp_path / "run", tmp_path / "sweep"
    evaluation(run / "eval_000004", a=(4, [1, 2]), b=(300, [3]))
    evaluation(sweep, 0.2, 1.0, a=(4, [1, 2]))
    assert call(f"x={run}") == ["fig1_pass_at_k"]
    (run / "metrics.jsonl").touch()  # the first step is not finished
    assert call(f"x={run}") == ["fig1_pass_at_k"]
    write_rows(run / "metrics.jsonl", metrics(4))
    assert call(f"x={run}", sweep) == [
        "fig1_pass_at_k", "fig1_candidates", "fig3_5_dynamics", "fig6_entropy"]
    with pytest.raises(SystemExit, match="11 folders are too many: a figure shows at most 10"):
        call(*(f"{i}={run}" for i in range(11)))


def test_a_run_without_a_finished_evaluation_is_drawn_from_its_log(tmp_path, call):
    x, y = tmp_path / "x", tmp_path / "y"
    for run in (x, y):
        run.mkdir()
        write_rows(run / "metrics.jsonl", metrics(30))
    of_the_log = ["fig1_candidates", "fig3_5_dynamics", "fig6_entropy"]
    assert call(x) == of_the_log
    evaluation(y / "eval_000010", a=(4, [1, 2]))
    assert call(x, y) == ["fig1_pass_at_k", *of_the_log]
    assert call.errors == (
        f"{x}: pass@K is not drawn, because no evaluation is finished\n")
    (y / "eval_000020").mkdir()  # an evaluation that has begun
    assert call(y) == of_the_log


def trained(folder, right, n=4, evaluated=10, **settings):
    """Writes a run whose last evaluation has two sets."""
    evaluation(folder / f"eval_{evaluated:06d}", a=(n, right), b=(n, [n, 0]))
    (folder / "config.json").write_text(json.dumps({"steps": 10, "seed": 7} | settings))


def test_an_ablation_starts_from_the_run_with_the_most_neighbours(tmp_path):
    """More settings with fewer runs in all do not count for more."""
    runs = {"b": {"seed": 8}, "b q": {"seed": 8, "q": 0.4}, "b K": {"seed": 8, "K": 2},
            "b lambda": {"seed": 8, "lambda_top1": 2}, "a": {}}
    runs |= {f"a {alpha}": {"alpha": alpha} for alpha in (0.1, 0.2, 0.3, 0.4)}
    for name, settings in runs.items():
        trained(tmp_path / name, [1, 2, 0], **settings)
    centre, found = plots.sweeps(tables.load({name: tmp_path / name for name in runs}))
    assert centre.startswith("a")
    assert [len(values) for values in found.values()] == [5]


def test_runs_that_differ_in_one_setting_of_simko_are_an_ablation(tmp_path, call):
    compared = {"base": (4, 0, 0), "grpo": (4, 4, 0), "simko": (1, 2, 0), "high": (0, 4, 0),
                "low": (1, 0, 0), "q": (2, 2, 0)}
    changes = {"grpo": {"method": "grpo"}, "simko": {}, "high": {"alpha": 0.5},
               "low": {"alpha": 0}, "q": {"q": 0.4}}
    evaluation(tmp_path / "base", a=(4, compared["base"]), b=(4, [4, 0]))
    for name, settings in changes.items():
        trained(tmp_path / name, compared[name], **settings)
    different = {
        "two changes": {"alpha": 0.2, "lambda_top1": 2}, "rate": {"alpha": 0.3, "model": "x"},
        "seed": {"alpha": 0.3, "seed": 8}, "longer": {"alpha": 0.3, "steps": 20, "evaluated": 20},
        "unfinished": {"alpha": 0.3, "evaluated": 5}, "n": {"alpha": 0.3, "n": 8},
        "psr": {"method": "psr", "learning_rate": 1}}
    for name, settings in different.items():
        trained(tmp_path / name, [4, 4, 4], **settings)
    # An earlier evaluation of a run of SimKO is neither a point nor a level.
    evaluation(tmp_path / "high/eval_000005", a=(4, [4, 4, 4]), b=(4, [4, 0]))
    names = ["two changes", *compared, *different.keys() - {"two changes"}]
    folders = {name: tmp_path / name for name in names}
    folders["early"] = tmp_path / "high/eval_000005"
    styles_ = {name: drawing.STYLES[i % 10] for i, name in enumerate(folders)}
    figure = plots.ablation_figure(tables.load(folders), styles_)
    assert figure.get_suptitle() == "mean over a, b"
    alpha, q, *last = figure.axes
    assert [axis.get_xlabel() for axis in last] == ["α", "q of τ(q)"]
    assert [axis.get_ylabel() for axis in (alpha, last[0])] == ["pass@1, %", "pass@4, %"]
    assert [ticks(axis.get_xticklabels()) for axis in last] == [
        ["0", "0.01", "0.5"], ["0.4", "0.8"]]

    def rate(k, right):
        """Returns mean and error of pass@k over both sets, in percent."""
        rates = [[100 * (1 - math.comb(4 - c, k) / math.comb(4, k)) for c in own]
                 for own in (right, (4, 0))]
        means, errors = zip(*map(naive, rates))
        return statistics.mean(means), math.hypot(*errors) / 2

    label = "simko, one setting changed"
    for axis, k, runs in (
            (alpha, 1, ["low", "simko", "high"]), (last[0], 4, ["low", "simko", "high"]),
            (q, 1, ["q", "simko"]), (last[1], 4, ["q", "simko"])):
        found = points(axis)
        assert list(found) == [label]
        x, y, errors = found[label]
        assert x == list(range(len(runs)))
        assert list(zip(y, errors)) == near(rate(k, compared[run]) for run in runs)
        levels = {name: y for name, (_, y) in lines(axis).items() if name in folders}
        assert levels.keys() == {"base", "grpo"}
        for name, ends in levels.items():
            assert ends == pytest.approx([rate(k, compared[name])[0]] * 2)
        colours = {line.get_label(): line.get_color() for line in axis.lines}
        assert colours["grpo"] == styles_["grpo"][0]

    drawn = call(*(folders[name] for name in ("seed", *compared)))
    assert "fig7_ablation" in drawn
    assert call.errors.endswith(
        f"\nfig7_ablation leaves out {folders['seed']}: more than one setting of SimKO, or "
        f"something else, differs from {folders['simko']}\n")
    assert "fig7_ablation" not in call(*(folders[name] for name in ("base", "grpo", "simko")))
    assert call.errors == ""
    for other in ("seed", "n", "rate", "longer", "unfinished", "two changes"):
        assert "fig7_ablation" not in call(folders["simko"], folders[other])
        assert "fig7_ablation is not drawn" in call.errors
    # A folder with several temperatures has no single pass@K.
    evaluation(tmp_path / "sweep", 0.2, 1.0, a=(4, [1, 2]), b=(4, [4, 0]))
    assert "fig7_ablation" not in call(folders["simko"], folders["low"], tmp_path / "sweep")
    assert "fig7_ablation is not drawn" in call.errors


def test_a_title_says_which_steps_are_the_last():
    logs = {size: pd.DataFrame(metrics(size)) for size in (12, 60)}
    assert plots.last_steps({"x": logs[12]}) == "all steps"
    assert plots.last_steps({"x": logs[12], "y": logs[60]}) == "last 25 steps"


def test_pass_at_k_by_set_and_temperature(tmp_path):
    right = 0, 1, 5, 8
    evaluation(tmp_path / "x", a=(8, right), b=(300, [3]))
    evaluation(tmp_path / "sweep", 0.2, 1.0, a=(4, [1, 2]))
    figure = plots.pass_figure(tables.load({"x": tmp_path / "x"}), styles("x"))
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    axis = figure.axes[0]
    assert axis.get_ylabel() == "pass@K, %"
    assert ticks(axis.get_xticklabels()) == ["1", "2", "4", "8"]
    x, y = lines(axis)["x"]
    assert x == [1, 2, 4, 8]
    for k, value in zip(x, y, strict=True):
        rates = [1 - math.comb(8 - c, k) / math.comb(8, k) for c in right]
        assert value == pytest.approx(100 * statistics.mean(rates))
        error = 100 * statistics.stdev(rates) / math.sqrt(len(right))
        edges = value - error, value + error
        assert band_at(axis, k) == pytest.approx(edges)
    rows = tables.load({name: tmp_path / name for name in ("x", "sweep")})
    figure = plots.pass_figure(rows, styles("x", "sweep"))
    shown = {axis.get_title(): set(lines(axis)) for axis in figure.axes if axis.get_title()}
    assert shown == {
        "a, T = 0.2": {"sweep"},
        "a, T = 1.0": {"x", "sweep"},
        "b, T = 1.0": {"x"},
    }
    # The sweep has fewer samples, and its marks do not replace those of x.
    (shared,) = (axis for axis in figure.axes if axis.get_title() == "a, T = 1.0")
    assert ticks(shared.get_xticklabels()) == ["1", "2", "4", "8"]


def test_six_sets_are_two_lines_of_panels(tmp_path):
    names = "abcdef"
    evaluation(tmp_path, **{name: (4, [1, 2]) for name in names})
    axes = plots.pass_figure(tables.load({"x": tmp_path}), styles("x")).axes
    assert [axis.get_title() for axis in axes] == [*names]
    assert {axis.get_subplotspec().get_geometry()[:2] for axis in axes} == {(2, 3)}


def test_a_label_that_is_a_methods_name_has_its_style():
    methods = study_figures.METHODS
    found = plots.styles_of(["x", "SimKO", "grpo", "y"])
    assert found["SimKO"] == methods["simko"] and found["grpo"] == methods["grpo"]
    assert len(set(found.values())) == 4
    assert len(set(plots.styles_of(["GRPO", "grpo", "simko"]).values())) == 3
    assert plots.styles_of("abcdefghij") == styles(*"abcdefghij")


@pytest.mark.parametrize("letters", [4, 30, 100])
def test_a_picture_has_room_for_its_legend(letters):
    labels = [f"{i}".rjust(letters, "x") for i in range(9)]
    figure = plots.entropy_figure(
        dict.fromkeys(labels, pd.DataFrame(metrics(4))), styles(*labels))
    picture = figure.get_tightbbox()
    legend = figure.legends[0].get_tightbbox().transformed(figure.dpi_scale_trans.inverted())
    assert picture.x0 <= legend.x0 and legend.x1 <= picture.x1 and picture.y0 <= legend.y0
    assert legend.width < max(figure.get_figwidth(), 0.7 + 0.1 * letters)
    assert plots.plt.rcParams["savefig.bbox"] == "tight"


def test_a_run_that_found_no_groups_lately_is_drawn_without_its_policy(recwarn):
    rows = metrics(30)
    for row in rows[5:]:
        row |= {name: math.nan for name in row if name.startswith("Lambda")}
        row["entropy_histogram"] = [0] * len(row["entropy_histogram"])
    idle, busy = pd.DataFrame(rows), pd.DataFrame(metrics(30))
    style = styles("idle", "busy")
    assert [*plots.run_figures([], {"idle": idle}, style)] == ["fig3_5_dynamics"]
    found = plots.run_figures([], {"idle": idle, "busy": busy}, style)
    assert [*found] == ["fig1_candidates", "fig3_5_dynamics", "fig6_entropy"]
    assert list(lines(found["fig1_candidates"].axes[0])) == ["busy"]
    assert not [*recwarn]


def test_a_run_of_one_step_is_seen():
    figure = drawing.dynamics_figure(
        {"x": plots.run_curves(pd.DataFrame(metrics(1)))}, styles("x"))
    for axis in figure.axes[:5]:
        assert [*axis.lines[0].get_markevery()] == [0]
        assert all(tick == round(tick) for tick in axis.get_xticks())


def test_candidates_are_geometric_means_of_the_last_steps():
    rows = metrics(60)
    (axis,) = plots.candidates_figure({"x": pd.DataFrame(rows)}, styles("x")).axes
    x, y = lines(axis)["x"]
    assert x == [1, 2] and axis.get_yscale() == "log"
    for k in (1, 2):
        probabilities = [math.exp(row[f"Lambda_{k}"]) for row in rows[35:]]
        assert y[k - 1] == pytest.approx(math.prod(probabilities) ** (1 / 25))
    names = ["Lambda_10", "Lambda", "Lambda_2", "forking_Lambda_1", "Lambda_of_a_fork"]
    assert drawing.ranks(names) == ["Lambda_2", "Lambda_10"]
    assert "geometric mean" in axis.get_ylabel()
    assert axis.get_title() == "k-th candidate, last 25 steps"


def test_dynamics_are_means_of_the_steps_before():
    rows = metrics(60)
    old = pd.DataFrame([{"step": step, "reward": 0.25} for step in (1, 2)])
    curves = {"old": plots.run_curves(old), "x": plots.run_curves(pd.DataFrame(rows))}
    own = styles("old", "x")
    figure = drawing.dynamics_figure(curves, own)
    axes = figure.axes
    (legend,) = figure.legends
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        assert handle.get_color() == own[text.get_text()][0]
    titles = {
        "reward": "reward",
        "entropy": "entropy, nats",
        "Lambda": r"$\Lambda$, sampled tokens",
        "Lambda_1": r"$\Lambda^{(1)}$",
        "Lambda_2": r"$\Lambda^{(2)}$",
    }
    assert [axis.get_title() for axis in axes if axis.axison] == list(titles.values())
    assert lines(axes[0])["old"] == ([1, 2], [0.25, 0.25])
    assert list(lines(axes[4])) == ["x"]
    for axis, name in zip(axes, titles):
        assert axis.get_xlabel() == "step"
        steps, values = lines(axis)["x"]
        assert steps == list(range(1, 61))
        for i in (0, 1, 2, 59):
            before = [row[name] for row in rows[max(0, i - 2):i + 1]]
            assert values[i] == pytest.approx(statistics.mean(before))


def test_candidates_of_forking_tokens_have_panels_of_their_own():
    rows = [{**row, "forking_Lambda_1": -1.0, "forking_Lambda_2": -3.0} for row in metrics(2)]
    rows[0]["forking_Lambda_2"] = None  # a step without responses
    figure = drawing.dynamics_figure({"x": plots.run_curves(pd.DataFrame(rows))}, styles("x"))
    first, second = [axis for axis in figure.axes if axis.get_title().endswith("forking tokens")]
    assert first.get_title() == r"$\Lambda^{(1)}$ at forking tokens"
    assert lines(first)["x"] == ([1, 2], [-1, -1])
    assert second.get_title() == r"$\Lambda^{(2)}$ at forking tokens"
    assert lines(second)["x"][1][1] == -3


def test_entropies_of_the_last_steps_as_shares():
    rows = metrics(30)
    (axis,) = plots.entropy_figure({"x": pd.DataFrame(rows)}, styles("x")).axes
    (steps,) = axis.patches
    assert steps.get_label() == "x"
    assert axis.get_yscale() == "log"
    assert axis.get_ylabel() == "tokens, %"
    assert axis.get_title() == "last 25 steps"
    histograms = [row["entropy_histogram"] for row in rows[5:]]
    counts = list(map(sum, zip(*histograms)))
    shares = [100 * count / sum(counts) for count in counts]
    values, edges, _ = steps.get_data()
    assert list(edges) == pytest.approx([i / 10 for i in range(42)])
    assert list(values[:40]) == pytest.approx(shares[:40])
    assert math.isnan(values[40])  # a logarithmic scale cannot show 0


# ------------------------------------------------------------------------------------------ study
CHOSEN = {
    "grpo": [{"learning_rate": 2e-3}, 400],
    "simko": [{"learning_rate": 1e-3, "alpha": 0.05, "lambda_top1": 1.5, "q": 0.5}, 200],
    "psr": [{"learning_rate": 1e-3}, 300],
}
RUNS = {method: run_name(method, settings) for method, (settings, _) in CHOSEN.items()}
SAME_RATE = {method: run_name(method, settings) for method, settings in SHARED.items()}


def rates(run, seed, step):
    """Returns {K: pass@K}, random but fixed by the arguments, and increasing with K. At step 0 all
    runs are the base model."""
    rng = random.Random(repr((seed, step and run, step)))
    values = sorted(rng.random() for _ in range(4))
    return dict(zip(("1", "2", "16", "256"), values))


def expected(run, step, k, seeds=range(3)):
    """Returns mean and standard error of pass@k, in %, over the seeds."""
    return naive([100 * rates(run, seed, step)[str(k)] for seed in seeds])


def study_rows(run, method, settings, seeds, steps):
    """Returns rows of main.jsonl or ablation.jsonl, and the matching rows of curves.jsonl."""
    rows, curves = [], []
    for seed in seeds:
        about = {"run": run, "method": method, "settings": settings, "seed": seed}
        for step in steps:
            rows.append({**about, "step": step, "pass": rates(run, seed, step)})
        curves.append({
            "stage": "main",
            **about,
            "steps": [25, 50],
            "reward": [seed, seed ** 2],
            "Lambda_1": [-seed, -2 * seed],
            "gate_share": [0, 0],
        })
    return rows, curves


@pytest.fixture
def study(tmp_path):
    """Returns the folder of an unfinished study. In main, all runs have the seeds 0 to 2, and some
    also 3 or 4. In the ablation, all runs have the seeds 0 and 1, and 3 and 4, which main lacks."""
    main, curves, changed = [], [], []

    def add(run, method, settings, seeds, steps):
        rows, own_curves = study_rows(run, method, settings, seeds, steps)
        main.extend(rows)
        curves.extend(own_curves)

    for method, (settings, end) in CHOSEN.items():
        steps = [0, 100, 200, end] if method == "psr" else [0, 100, 200, 300, 400]
        seeds = range(5 if method == "grpo" else 4)
        add(RUNS[method], method, settings, seeds, steps)
    for method, settings in SHARED.items():
        add(SAME_RATE[method], method, settings, [0, 1, 2, 4], range(0, 550, 50))
    tuned = {"stage": "tune", "reward": [99, 99], "Lambda_2": [0, 0]}
    curves.append(curves[0] | tuned)
    main.append({**main[-1], "run": "simko learning_rate=9"})  # no figure may show this run
    for job in ablation()[:-1]:  # the last run lacks seed 2
        rows, _ = study_rows(
            job.run, job.method, job.settings, [job.seed, job.seed + 3], [0, ABLATION_STEPS])
        changed += rows
    folder = tmp_path / "laptop"
    folder.mkdir()
    write_rows(folder / "main.jsonl", main)
    write_rows(folder / "ablation.jsonl", changed)
    write_rows(folder / "curves.jsonl", curves)
    (folder / "chosen.json").write_text(json.dumps(CHOSEN))
    return folder


def path_of(run, steps, k):
    """Returns mean and standard error of pass@k, in %, at each step of a run."""
    return near(expected(run, step, k) for step in steps)


def test_pass_at_k_is_shown_for_each_comparison(study):
    left, right = plots.study_figures(study)["pass_at_k"].axes
    seeds = "mean ± s.e. over 3 seeds"
    assert left.get_title() == f"both at learning rate 0.0004\n{seeds}"
    assert right.get_title() == f"settings as chosen: learning rates differ\n{seeds}"
    shown = {
        left: [(SAME_RATE["grpo"], STEPS), (SAME_RATE["simko"], STEPS)],
        right: [(RUNS["grpo"], 400), (RUNS["simko"], 200)],
    }
    ks = [1, 2, 16, 256]
    for axis, trained in shown.items():
        found = lines(axis)
        assert list(found) == ["base", "GRPO", "SimKO"]
        runs = [("base", 0), *trained]
        for number, ((x, y), (run, step)) in enumerate(zip(found.values(), runs)):
            means, errors = zip(*(expected(run, step, k) for k in ks))
            assert (x, y) == (ks, pytest.approx(means))
            for k, mean, error in zip(ks, means, errors):
                assert band_at(axis, k, number) == pytest.approx((mean - error, mean + error))


def test_frontier_shows_means_over_the_seeds_that_all_have(study):
    axes = plots.study_figures(study)["frontier"].axes
    seeds = "mean ± s.e. over 3 seeds"
    assert [axis.get_ylabel() for axis in axes] == ["pass@16, %", "pass@256, %"] * 2
    marks = {
        "grpo": range(100, 500, 100),
        "simko": range(100, 500, 100),
        "psr": [300],
    }
    for axis, k in zip(axes[:2], (16, 256)):
        assert axis.get_title() == f"settings as chosen: learning rates differ\n{seeds}"
        found = points(axis)
        assert list(found) == ["GRPO", "SimKO", "PSR"]
        for (x, y, (dx, dy)), (method, steps) in zip(found.values(), marks.items()):
            assert list(zip(x, dx)) == path_of(RUNS[method], steps, 1)
            assert list(zip(y, dy)) == path_of(RUNS[method], steps, k)
    for axis, k in zip(axes[2:], (16, 256)):
        assert axis.get_title() == f"both at learning rate 0.0004\n{seeds}"
        assert list(points(axis)) == ["GRPO", "SimKO"]
        _, y, (_, dy) = points(axis)["SimKO"]
        assert list(zip(y, dy)) == path_of(SAME_RATE["simko"], range(50, 550, 50), k)


def drawn(axis):
    """Returns the lines of an axis that are visible as lines and not as marks."""
    return [line for line in axis.lines if line.get_linestyle() != "None"]


def test_each_way_begins_at_the_base_model(study):
    axes = plots.study_figures(study)["frontier"].axes
    for axis, k in zip(axes, (16, 256, 16, 256)):
        base = [expected("base", 0, i)[0] for i in (1, k)]
        assert [value for (value,) in lines(axis)["base"]] == pytest.approx(base)
        ways = [line for line in drawn(axis) if len(line.get_xdata()) > 1]
        assert len(ways) == len(points(axis))
        for way in ways:
            assert list(way.get_xydata()[0]) == pytest.approx(base)
    # PSR has only one mark, at its last step, but its line passes through every step.
    color = study_figures.METHODS["psr"][0]
    (way,) = (line for line in drawn(axes[0]) if line.get_color() == color)
    ends = [expected(RUNS["psr"], step, 16)[0] for step in (0, 100, 200, 300)]
    assert list(way.get_ydata()) == pytest.approx(ends)

    def place(method, step):
        x, _ = expected(RUNS[method], step, 1)
        y, _ = expected(RUNS[method], step, 16)
        return pytest.approx((x, y))

    found = {text.get_text(): text.xy for text in axes[0].texts}
    assert found == {
        f"{study_figures.NAMES['grpo']}, step 400": place("grpo", 400),
        f"{study_figures.NAMES['simko']}, step 200": place("simko", 200),
    }


def test_methods_are_compared_at_their_chosen_steps(study):
    figure = plots.study_figures(study)["fig3d_methods"]
    assert figure.get_suptitle() == "method, learning rate; mean ± s.e. over 3 seeds"
    axes = figure.axes
    names = ["base", "GRPO, 0.002", "SimKO, 0.001", "PSR, 0.001"]
    assert ticks(axes[0].get_yticklabels()) == names
    shown = [("base", 0)]
    for method, (_, step) in CHOSEN.items():
        shown.append((RUNS[method], step))
    for axis, k in zip(axes, (1, 16, 256)):
        assert axis.get_xlabel() == f"pass@{k}, %"
        assert len(axis.containers) == len(shown)
        for place, (run, step) in enumerate(shown):
            bars = axis.containers[place]
            (x,), (y,) = bars.lines[0].get_data()
            ((start, end),) = bars.lines[2][0].get_segments()
            mean, error = expected(run, step, k)
            assert y == place
            assert min(axis.get_ylim()) < y < max(axis.get_ylim())
            assert x == pytest.approx(mean)
            assert (end[0] - start[0]) / 2 == pytest.approx(error)
            assert axis.texts[place].get_text() == f"{mean:.1f}"


def changed_run(**change):
    """Returns the name of the ablation's run with this setting changed, or of the unchanged run."""
    unchanged = {"alpha": 0.05, "lambda_top1": 1.5, "K": 3, "q": 0.5, "tau_scope": "response"}
    if change.items() <= unchanged.items():
        return SAME_RATE["simko"]
    if "q" not in change:
        change.pop("tau_scope")
    return run_name("simko", SHARED["simko"] | change)


def test_ablation_changes_one_setting_at_a_time(study):
    figure = plots.study_figures(study)["fig7_ablation"]
    assert figure.get_suptitle() == "mean ± s.e. over 2 seeds"
    panels = {"α": "alpha", "q of τ(q)": "q", "λ": "lambda_top1", "K": "K"}
    assert [axis.get_xlabel() for axis in figure.axes[4:]] == list(panels)
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["pass@1, %", "pass@256, %"]
    for upper, lower, name in zip(figure.axes[:4], figure.axes[4:], panels.values()):
        values = list(map(float, ticks(lower.get_xticklabels())))
        assert values == sorted(values)
        assert lower.get_xticks().tolist() == list(range(len(values)))
        assert len(values) > 3
        scopes = ["response", "batch"] if name == "q" else ["response"]
        for axis, k in ((upper, 1), (lower, 256)):
            found = points(axis)
            assert list(found) == [f"one setting changed, τ(q) over the {it}" for it in scopes]
            for scope, (x, y, errors) in zip(scopes, found.values()):
                means = []
                for value in values:
                    run = changed_run(**{name: value, "tau_scope": scope})
                    means.append(expected(run, 200, k, range(2)))
                assert x == list(range(len(values)))
                assert list(zip(y, errors)) == near(means)
            for label, method in (("GRPO", "grpo"), ("SimKO, nothing changed", "simko")):
                mean, error = expected(SAME_RATE[method], 200, k, range(2))
                assert lines(axis)[label][1] == pytest.approx([mean] * 2)
                if method == "grpo":
                    assert band_at(axis, -0.3) == pytest.approx((mean - error, mean + error))


def test_dynamics_over_seeds(study):
    figures = plots.study_figures(study)
    chosen = "settings as chosen: learning rates differ"
    shared = "both at learning rate 0.0004"
    for name, title, labels in (
            ("fig3_5_study", chosen, ["GRPO", "SimKO", "PSR"]),
            ("fig3_5_shared", shared, ["GRPO", "SimKO"])):
        figure = figures[name]
        assert figure.get_suptitle() == f"{title}; mean ± s.e. over 3 seeds"
        reward, first = (axis for axis in figure.axes if axis.axison)
        assert reward.get_title() == "reward"
        assert first.get_title() == r"$\Lambda^{(1)}$"
        curve = [25, 50], pytest.approx([1, 5 / 3])
        assert lines(reward) == dict.fromkeys(labels, curve)
        mean, error = naive([0, 1, 4])
        assert band_at(reward, 50) == pytest.approx((mean - error, mean + error))


def test_a_study_is_drawn_as_far_as_it_is(study, call):
    assert call("--study", study) == [
        "pass_at_k",
        "frontier",
        "fig3d_methods",
        "fig3_5_study",
        "fig3_5_shared",
        "fig7_ablation",
    ]
    for name in ("ablation", "curves"):
        (study / f"{name}.jsonl").unlink()
    rows = map(json.loads, (study / "main.jsonl").read_text().splitlines())
    write_rows(study / "main.jsonl", [row for row in rows if row["seed"] == 0])
    assert call("--study", study) == ["pass_at_k", "frontier", "fig3d_methods"]
    # One seed has no standard error, so the titles do not mention one.
    figure = plots.study_figures(study)["fig3d_methods"]
    assert figure.get_suptitle() == "method, learning rate; one seed"


# ------------------------------------------------------------------------------------------- path
@pytest.fixture
def runs(tmp_path):
    """Returns {label: folder} of two runs of a tiny base model in the layout of simko.py's output,
    with the laptop's tokenizer."""
    problems = tmp_path / "test.jsonl"
    rows = [
        {"id": f"p{i}", "problem": f"{i} 2 3 > 9 :", "answer": f"9 = {i} 2 3"}
        for i in range(3)
    ]
    write_rows(problems, rows)
    with_task = [row | {"task": "countdown"} for row in rows]
    header = {"set": "test", "problems_sha256": data.digest(with_task)}
    save_tiny_models(*(tmp_path / name for name in ("base", "GRPO/hf", "SimKO/hf")))
    folders = {label: tmp_path / label for label in ("GRPO", "SimKO")}
    settings = {
        "model": str(tmp_path / "base"),
        "eval_data": [str(problems), str(tmp_path / "other.jsonl")],
        "task": "countdown",
        "prompt_template": "raw",
        "max_prompt_length": 16,
        "temperature": 0.7,
        "K": 2,
        "steps": 4,
    }
    for folder in folders.values():
        (folder / "config.json").write_text(json.dumps(settings))
    answers = {
        "eval_000000": [
            {"id": "p0", "correct": 1, "response": "7"},
            {"id": "p1", "correct": 0, "response": "4"},
            {"id": "p1", "correct": 1, "response": "2 + 3 = 5"},
            {"id": "p1", "correct": 1, "response": "8"},
        ],
        "eval_000004": [
            {"id": "p2", "correct": 1, "response": "6 * 6"},
        ],
    }
    for step, rows in answers.items():
        folder = folders["SimKO"] / step
        folder.mkdir()
        write_rows(folder / "test@T0.6.jsonl", [header, *rows])
        # The second set has problems of the same names.
        own = {"set": "other", "problems_sha256": "another"}
        write_rows(folder / "other.jsonl", [own, *rows[:1]])
    # The base model's response is preferred to this one.
    (folders["GRPO"] / "eval_000004").mkdir()
    trained = {"id": "p1", "correct": 1, "response": "1 + 2"}
    write_rows(folders["GRPO"] / "eval_000004" / "test.jsonl", [header, trained])
    return folders


def test_path_shows_each_models_probabilities_of_one_response(runs, tmp_path):
    title, response, found, word = paths.read_path(runs, 1)
    prompt = [VOCABULARY[token] for token in "<bos> 1 2 3 > 9 :".split()]
    assert [word(id) for id in response] == "2 + 3 = 5".split()
    assert title == "test, problem 1: probabilities of the top 2 at each token of one response"
    figure = paths.path_figure(title, response, found, word)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["base", "GRPO", "SimKO"]
    assert figure.get_suptitle() == title
    shown = zip(figure.axes, found.values(), ("base", "GRPO/hf", "SimKO/hf"))
    for axis, (_, _, entropies), folder in shown:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        bars = iter(axis.patches)
        words = []
        for i, sampled in enumerate(response):  # one forward pass for each token
            logits = model(torch.tensor([prompt + response[:i]])).logits[0, -1] / 0.7
            entropy = torch.distributions.Categorical(logits=logits).entropy()
            assert entropies[i] == pytest.approx(entropy.item(), abs=1e-4)
            best = logits.softmax(-1).topk(2)
            below = 0
            for value, id in zip(best.values.tolist(), best.indices.tolist()):
                bar = next(bars)
                place = bar.get_x() + bar.get_width() / 2, bar.get_y()
                assert place == pytest.approx((i, below), abs=1e-5)
                assert bar.get_height() == pytest.approx(value, abs=1e-5)
                black = bar.get_edgecolor()[:3] == (0, 0, 0)
                assert black == (id == sampled)
                if value > 0.1:  # a lower bar has no room for a word
                    words.append((i, pytest.approx(below + value / 2, abs=1e-5), word(id)))
                below += value
        texts = [(*text.get_position(), text.get_text()) for text in axis.texts]
        assert texts == words
        assert axis.get_ylim() == (0, 1)


def test_path_takes_a_runs_response_where_the_base_model_had_none_that_is_right(runs):
    _, response, _, word = paths.read_path(runs, 2)
    assert [word(id) for id in response] == "6 * 6".split()


def test_a_problem_that_no_run_solves_does_not_keep_back_the_other_figures(runs, tmp_path, call):
    run = runs["SimKO"]
    write_rows(run / "eval_000000" / "test@T0.6.jsonl", [{"set": "test"}])
    write_rows(run / "metrics.jsonl", metrics(4))
    evaluation(run / "eval_000004", test=(4, [1, 2]))
    named = f"SimKO={run}", "--path"
    assert call(*named, 2)[0] == "path_2"
    text = (tmp_path / "figures" / "report.html").read_text()
    assert "<figcaption>The top candidates of each model at each token" in text
    assert call(*named, 1) == [
        "fig1_pass_at_k", "fig1_candidates", "fig3_5_dynamics", "fig6_entropy"]
    assert "path_1 is not drawn, because no run has a correct response" in call.errors


def test_path_shows_the_tokens_of_a_long_response_at_which_the_base_model_wavers(runs):
    title, response, found, word = paths.read_path(runs, 1)
    entropy = found["base"][2]
    response = found["base"][1][:, 0].tolist()  # so that a frame is around each of these
    found["SimKO"] = (*found["SimKO"][:2], -entropy)  # wavers elsewhere
    figure = paths.path_figure(title, response, found, word, most=2)
    by_entropy = sorted(range(5), key=lambda i: -entropy[i])
    places = sorted(by_entropy[:2])
    expected_ticks = [f"{word(response[i])}\n{i + 1}" for i in places]
    assert ticks(figure.axes[-1].get_xticklabels()) == expected_ticks
    assert "\nshown: the 2 of its 5 tokens at which " in figure.get_suptitle()
    for axis, (probabilities, ids, _) in zip(figure.axes, found.values()):
        heights = [bar.get_height() for bar in axis.patches]
        assert heights == pytest.approx([p for i in places for p in probabilities[i]])
        framed = [bar.get_edgecolor()[:3] == (0, 0, 0) for bar in axis.patches]
        assert framed == [id == response[i] for i in places for id in ids[i]]


def test_path_leaves_out_folders_that_are_no_runs(runs, tmp_path):
    _, _, found, _ = paths.read_path({"evaluation": tmp_path, **runs}, 1)
    assert list(found) == ["base", "GRPO", "SimKO"]
    with pytest.raises(SystemExit, match="--path needs runs"):
        paths.read_path({"evaluation": tmp_path}, 1)


def rewrite(run, before, after):
    path = run / "config.json"
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.parametrize("index, change, message", [
    (
        3,
        None,
        "--path 3: .*test.jsonl has problems 0 to 2",
    ),
    (
        -1,
        None,
        "--path -1",
    ),
    (
        1,
        lambda run: shutil.rmtree(run / "hf"),
        "GRPO/hf does not exist: the run is unfinished",
    ),
    (
        1,
        lambda run: shutil.rmtree(run.parent / "base"),
        "base or a run's hf cannot be loaded",
    ),
    (
        1,
        lambda run: write_rows(
            run.parent / "SimKO" / "eval_000000" / "test@T0.6.jsonl",
            [{"set": "test", "problems_sha256": "another"}]),
        "test@T0.6.jsonl has responses to other problems than test has now",
    ),
    (
        1,
        lambda run: rewrite(run, "raw", "plain"),
        "the same model, prompt_template, chat_template_kwargs, eval_data",
    ),
    (
        1,
        lambda run: rewrite(run, "{", "["),
        "GRPO/config.json cannot be read",
    ),
])
def test_what_path_cannot_show(runs, index, change, message):
    if change:
        change(runs["GRPO"])
    with pytest.raises(SystemExit, match=message):
        paths.read_path(runs, index)


# ------------------------------------------------------------------------------------ walkthrough
PROBABILITIES = 0.2, 0.5, 0.25, 0.03, 0.01, 0.01
RANKED = sorted(PROBABILITIES, reverse=True)
MEASURED = {
    "vocabulary": list("wxyzab"),
    "first_token_log_pi": [math.log(p) for p in PROBABILITIES],
    "response": ["x", "y", "<eos>"],
    "entropy": [0.9, 0.5, 0.1],
    "gate_q": 0.5,
    "models": {
        "base": {
            "percentiles": {
                "rank 2": [i / 10 - 12 for i in range(101)],
                "rank 3": [i / 10 - 13 for i in range(101)],
            },
        },
        "SimKO": {
            "method": "simko",
            "alpha": 0.03,
            "K": 3,
            "percentiles": {
                "rank 2": [i / 20 - 7 for i in range(101)],
                "rank 3": [i / 20 - 8 for i in range(101)],
            },
        },
    },
}


def heights(container):
    return [bar.get_height() for bar in container]


def test_the_walkthroughs_two_distributions_have_one_entropy():
    left, right = walkthrough_figures.equal_entropy_figure(MEASURED).axes
    assert heights(left.containers[0]) == pytest.approx(RANKED)
    first, *others = heights(right.containers[0])
    other = others[0]
    assert others == pytest.approx([other] * 5)
    assert first + 50 * other == pytest.approx(1)
    entropy = -sum(p * math.log(p) for p in RANKED)
    spread = -first * math.log(first) - 50 * other * math.log(other)
    assert spread == pytest.approx(entropy)
    for axis, second in ((left, 0.25), (right, other)):
        in_8_samples = 100 * (1 - (1 - second) ** 8)
        assert f"entropy {entropy:.3f}" in axis.get_title()
        assert f"8 samples: {in_8_samples:.0f} %" in axis.get_title()


def one_step(push):
    """Returns pi of the three most probable candidates after a step, by rank."""
    weights = [p * math.exp(g) for p, g in zip(RANKED, push)]
    return pytest.approx([weight / sum(weights) for weight in weights[:3]])


def test_the_walkthroughs_steps_follow_the_formulas():
    gate, correct, wrong_1, wrong_3 = walkthrough_figures.one_step_figure(MEASURED).axes
    (tau,) = gate.lines
    assert tau.get_ydata()[0] == pytest.approx(0.74)  # q = 0.8
    assert [bar.get_hatch() for bar in gate.containers[0]] == ["", "////", "////"]
    labels = [bars.get_label() for bars in correct.containers]
    assert labels == ["before", "GRPO", "SimKO, α = 0.01", "SimKO, α = 0.3"]

    def push(rank, A, alpha, scale):
        target = [alpha / 3] * 3 + [0] * 3
        target[rank] += 1 - alpha
        return [A * scale * (e - p) for e, p in zip(target, RANKED)]

    for axis, rank, A, settings in (
            (correct, 0, 1, [(0, 1), (0.01, 1), (0.3, 1)]),
            (wrong_1, 0, -1, [(0, 1), (0, 1.1), (0, 1.5)]),
            (wrong_3, 2, -1, [(0, 1)])):
        before, *after = axis.containers
        assert heights(before) == pytest.approx(RANKED[:3])
        for bars, own in zip(after, settings, strict=True):
            assert heights(bars) == one_step(push(rank, A, *own))
        assert ticks(axis.get_xticklabels()) == ["x", "y", "w"]
        for i in range(3):  # the bars of a candidate stand above its name
            centres = [bars[i].get_x() + bars[i].get_width() / 2 for bars in axis.containers]
            assert sum(centres) / len(centres) == pytest.approx(i)


def test_the_floor_is_where_the_push_changes_its_sign():
    pushes, *ranks = walkthrough_figures.floor_figure(MEASURED).axes
    alphas = {
        "GRPO": 0,
        "Eq. 6, α = 0.01": 0.01,
        "Eq. 6, α = 0.05": 0.05,
    }
    for label, alpha in alphas.items():
        x, y = lines(pushes)[label]
        assert y == pytest.approx([alpha / 3 - p for p in x])
    for k, axis in zip((2, 3), ranks):
        for label, own in MEASURED["models"].items():
            values = own["percentiles"][f"rank {k}"]
            assert lines(axis)[label] == (values, list(range(101)))
        (level,) = (line for line in axis.lines if list(line.get_ydata()) == [0, 1])
        assert level.get_xdata() == pytest.approx([math.log(0.01)] * 2)


def test_the_walkthroughs_figures_need_its_measurements(tmp_path, call):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(MEASURED))
    assert call("--walkthrough", path) == ["fig2_equal_entropy", "fig4_one_step", "floor"]
    message = "measured.json cannot be read .*tools.walkthrough --measure"
    for damaged in ("{", "{}", "[]"):
        path.write_text(damaged)
        with pytest.raises(SystemExit, match=message):
            call("--walkthrough", path)


# ----------------------------------------------------------------------------------------- report
class Page(HTMLParser):
    """Parses an HTML page into its tables (lists of lists of texts), pictures, tags and texts."""

    def __init__(self, text):
        super().__init__()
        self.tables = []
        self.pictures = []
        self.tags = [None]
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.pictures.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.words.append(data)
        if self.tags[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()


@pytest.fixture
def reported(tmp_path, call, capsys):
    """Returns the page about two runs, the names of its figures and its folder. The name of one
    run is HTML."""
    seconds = {"seconds_rollout": 3.0, "seconds_update": 1.0}
    for name, alpha, right in (("one", Config.alpha, 0), ("two", 0.2, 1)):
        run = tmp_path / name
        evaluation(run / "eval_000004", a=(4, [1, 2]), b=(2, [1, right]))
        write_rows(run / "metrics.jsonl", [row | seconds for row in metrics(4)])
        settings = {"alpha": alpha, "model": "<img src=x>", "steps": 4}
        if name == "one":  # older runs did not record their versions
            settings["versions"] = {"commit": "c0ffee", "torch": "2.0", "lost": "1"}
        (run / "config.json").write_text(json.dumps(settings))
    names = call(f"one={tmp_path / 'one'}", f"<b>two</b>={tmp_path / 'two'}")
    folder = tmp_path / "figures"
    page = Page((folder / "report.html").read_text())
    return page, names, folder


def test_a_report_holds_the_figures_themselves(reported):
    page, names, folder = reported
    assert len(names) == 5
    for name, source in zip(names, page.pictures, strict=True):
        held = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert held == (folder / f"{name}.png").read_bytes()
    text = (folder / "report.html").read_text()
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert re.findall('<img alt="(.*?)"', text) == captions
    assert [caption.split(" ")[:2] for caption in captions] == [
        ["pass@K", "against"],
        ["Geometric", "mean"],
        ["Reward,", "entropy,"],
        ["The", "distribution"],
        ["pass@1", "and"],
    ]


def test_a_report_says_what_was_measured_and_set(reported):
    page, _, folder = reported
    headings = re.findall("<h3>(.*?)</h3>", (folder / "report.html").read_text())
    assert headings == ["a", "b"]
    assert page.words.count("one, <b>two</b>") == 2  # the title and the heading
    assert page.words.count("Differences in points [95 % interval over problems]") == 2
    tables_ = page.tables
    assert tables_[0][0][1:] == ["K=1", "K=2", "K=4"]
    assert [line[0] for line in tables_[0][1:]] == ["one", "<b>two</b>"]
    assert tables_[0][1][1].startswith("37.5 ± ")  # 1 and 2 of 4 samples are correct
    (difference,) = tables_[1][1:]
    assert difference[0] == "<b>two</b> − one"
    assert [line[1][:4] for line in tables_[2][1:]] == ["25.0", "50.0"]
    assert tables_[3][1][1].startswith("+25.0")
    seconds, changed, defaults, versions = tables_[5:]
    assert seconds[1:4] == [
        ["one", "rollout", "12.0", "3.00", "75 %"],
        ["one", "update", "4.0", "1.00", "25 %"],
        ["one", "all 4 steps", "16.0", "4.00", ""],
    ]
    assert {line[0]: line[1:] for line in changed[1:]} == {
        "alpha": [str(Config.alpha), "0.2"],
        "model": ["<img src=x>"] * 2,
        "steps": ["4"] * 2,
    }
    assert ["K", "3", "3"] in defaults
    assert versions[0] == ["what", "one", "<b>two</b>", "this page"]
    assert ["lost", "1", "", ""] in versions
    assert ["torch", "2.0", "", metadata.version("torch")] in versions
    assert versions[1][:3] == ["commit", "c0ffee", ""] and versions[1][3]


def test_a_report_leaves_out_figures_that_are_not_of_its_runs(tmp_path, call):
    evaluation(tmp_path / "x", a=(4, [1, 2]))
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps(MEASURED))
    assert len(call(tmp_path / "x", "--walkthrough", measured)) == 4
    assert len(Page((tmp_path / "figures" / "report.html").read_text()).pictures) == 1


def test_a_report_loads_and_runs_nothing(reported):
    page, _, folder = reported
    text = (folder / "report.html").read_text()
    assert not {"script", "link", "iframe", "b"} & {*page.tags}
    assert page.tags.count("img") == 5  # one for each figure
    assert not re.search(r"https?:|url\(", text) and "default-src 'none'" in text


def test_a_report_warns_of_evaluations_that_are_not_alike(tmp_path, call):
    evaluation(tmp_path / "x", a=(4, [1, 2]))
    evaluation(tmp_path / "y", a=(8, [1, 2]))
    assert call(f"x={tmp_path / 'x'}", f"y={tmp_path / 'y'}") == ["fig1_pass_at_k"]
    page = Page((tmp_path / "figures" / "report.html").read_text())
    assert "a: n 4 (x), 8 (y)" in page.words
    # The folders are not runs.
    assert "Time" not in page.words
    assert "Settings" not in page.words


# --------------------------------------------------------------------------------- follow, errors
def test_chart_puts_the_means_of_steps_in_columns():
    log = pd.DataFrame([{"step": step, "reward": step / 8} for step in (1, 2, 3, 4)])
    # The means are 3/16 and 7/16. The second half of the run has no steps yet.
    assert plots.chart(log, 8, 4).split("\n") == [
        "step 4 of 8", "reward   ▁█   0.188 to 0.438"]
    assert plots.chart(pd.DataFrame(), 8, 4) == "step 0 of 8"
    log = pd.DataFrame([{"step": 1, "reward": 0.5, "entropy": math.nan}])
    assert plots.chart(log, 8, 4).split("\n") == [
        "step 1 of 8", "reward   ▁    0.500 to 0.500"]


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """Makes a run of 8 steps that is in its fourth step. The command line says to follow it."""
    (tmp_path / "config.json").write_text('{"steps": 8}')
    log = tmp_path / "metrics.jsonl"
    write_rows(log, metrics(3))
    log.write_text(log.read_text() + '{"step": 4, "rew')  # the run is still writing this line
    monkeypatch.setattr(sys, "argv", ["plots.py", "--follow", str(tmp_path)])
    return tmp_path


def test_follow_prints_once_without_a_terminal(followed, monkeypatch, capsys):
    monkeypatch.setattr(plots.time, "sleep", lambda seconds: pytest.fail("it waited"))
    plots.main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "step 3 of 8"
    assert [line.split()[0] for line in rest] == ["reward", "Lambda_1", "Lambda_2", "entropy"]
    assert all(line.isprintable() for line in rest)


def test_follow_goes_on_to_the_last_step_in_a_terminal(followed, monkeypatch, capsys):
    sizes = iter((5, 8))

    def train(seconds):
        """Stands in for a pause, during which the run goes on."""
        write_rows(followed / "metrics.jsonl", metrics(next(sizes)))

    monkeypatch.setattr(plots.time, "sleep", train)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    plots.main()
    charts = capsys.readouterr().out.split("\x1b[5A\x1b[J")  # moves up five lines and clears
    first_lines = [chart.split("\n")[0] for chart in charts]
    assert first_lines == ["step 3 of 8", "step 5 of 8", "step 8 of 8"]


def test_null_in_a_log_is_nan(tmp_path):
    rows = metrics(3)
    for row, entropy in zip(rows, (0.5, None, 0.25)):
        row |= {"entropy": entropy, "Lambda_2": None}
    write_rows(tmp_path / "metrics.jsonl", rows)
    log = plots.read_log(tmp_path / "metrics.jsonl")
    assert log["entropy"].mean() == 0.375
    assert math.isnan(log["Lambda_2"].mean())
    chart = plots.chart(log, 3, 3)
    assert "entropy" in chart
    assert "Lambda_2" not in chart
    plots.candidates_figure({"x": log}, styles("x"))
    drawing.dynamics_figure({"x": plots.run_curves(log)}, styles("x"))
    means = curve(tmp_path)
    assert means["entropy"] == [0.375]
    assert math.isnan(means["Lambda_2"][0])


@pytest.mark.parametrize("text, message", [
    ("{}\n", "line 1, is damaged .*'step'"),
    ('{"step": 1, "reward": 1}\n', "line 1, .* no Lambda_1: train the run again"),
    (json.dumps(metrics(1)[0]) + "\n?\n", "line 2, is damaged"),
])
def test_a_damaged_log_is_named_by_file_and_line(tmp_path, call, text, message):
    evaluation(tmp_path / "run" / "eval_000004", a=(4, [1, 2]))
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=f"metrics.jsonl, {message}"):
        call(f"x={tmp_path / 'run'}")


def test_errors_name_the_file_and_what_to_do(tmp_path, study, call):
    with pytest.raises(SystemExit, match="config.json cannot be read .*name the folder of a run"):
        plots.follow(tmp_path / "nowhere")
    main = study / "main.jsonl"
    rows = map(json.loads, main.read_text().splitlines())
    write_rows(main, [row for row in rows if row["run"] != RUNS["psr"]])
    message = "main.jsonl has no seed with all runs of chosen.json: .* tools.study main"
    with pytest.raises(SystemExit, match=message):
        call("--study", study)
    main.unlink()
    with pytest.raises(SystemExit, match=message):
        call("--study", study)
    (study / "chosen.json").unlink()
    with pytest.raises(SystemExit, match="chosen.json cannot be read .*tools.study tune main"):
        call("--study", study)
    for arguments in ((), ("--study", study, "--path", 1), ("--follow", study)):
        with pytest.raises(SystemExit, match="2"):
            call(*arguments)
