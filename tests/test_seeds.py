"""Tests of tools/seeds.py, on evaluations that they write themselves."""
import json
import statistics
import sys

import pandas as pd
import pytest

from simko import Config
from tests.test_tables import entry, naive, parse
from tools import seeds, tables

LEVELS = "pass@K in % ± standard error over seeds (number of seeds): a"
GAPS = ("Differences in points, paired by seed [95 % interval over seeds], "
        "seeds with a positive difference: a")
SETTINGS = {"method": "grpo", "steps": 20, "alpha": 0.01}


def write_run(folder, seed, *entries, **settings):
    """Writes a run of 20 steps with an evaluation at its end. Returns its folder."""
    last = folder / "eval_000020"
    last.mkdir(parents=True)
    sets = {own.pop("label", own["set"]): own for own in entries}
    about = {"seed": seed, "prompt_template": "plain"}
    (last / "eval.json").write_text(json.dumps({"settings": about, "sets": sets}))
    config = SETTINGS | {"seed": seed, "output_dir": str(folder)} | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs the program and returns its output and the tables in it."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["seeds.py", *arguments])
        seeds.main()
        printed = capsys.readouterr().out
        return printed, parse(printed)
    return call


# ------------------------------------------------------------------------------------- statistics
def test_a_difference_has_students_interval():
    values = pd.Series([1, 2, 3, 4, 5])
    # 3 ± 2.776 * sqrt(2.5 / 5) and 1 ± 4.303 * sqrt(7 / 3)
    assert seeds.difference(values) == "+3.0 [+1.0, +5.0] 5 of 5"
    assert seeds.difference(pd.Series([-1, 0, 4]), 2) == "+1.00 [-5.57, +7.57] 1 of 3"
    assert seeds.with_error(values, 2) == "3.00 ± 0.71"
    one = pd.Series([2])
    assert seeds.difference(one) == "+2.0"
    assert seeds.with_error(one) == "2.0"


@pytest.mark.parametrize("freedom, quantile", [
    (1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (14, 2.1448), (100, 1.9840)])
def test_the_quantiles_of_students_t_are_those_of_printed_tables(freedom, quantile):
    assert tables.t975(freedom) == pytest.approx(quantile, abs=5e-5)


def test_differences_are_paired_by_seed():
    ours = pd.DataFrame({1: [5.0, 3.0, 9.0]}, index=[2, 0, 7])
    theirs = pd.DataFrame({1: [1.0, 1.0, 0.0]}, index=[0, 2, 5])
    # The differences are 3 - 1 for seed 0 and 5 - 1 for seed 2. Seeds 5 and 7 have no partner.
    expected = seeds.difference(pd.Series([2.0, 4.0]))
    assert seeds.paired(ours, theirs, [1]) == [expected]
    assert seeds.paired(ours, theirs.loc[[5]], [1]) == []


# --------------------------------------------------------------------------------------- program
def test_a_method_has_the_mean_of_its_seeds(tmp_path, run):
    """And a difference is that of runs with the same seed, in whatever order they are named."""
    right = {("GRPO", 0): [3, 1], ("GRPO", 4): [2, 2], ("GRPO", 7): [4, 0],
             ("SimKO", 0): [4, 1], ("SimKO", 4): [2, 4], ("SimKO", 9): [0, 0]}
    arguments = []
    for (method, seed), counts in reversed(right.items()):
        folder = write_run(tmp_path / f"{method}-{seed}", seed, entry("a", counts, 4))
        arguments.append(f"{method}={folder}")
    printed, found = run(*sorted(arguments, key=lambda text: text.startswith("SimKO")))
    assert "DIFFER" not in printed
    for k in (1, 2, 4):
        rates = {run: 100 * naive(4, counts, k) for run, counts in right.items()}
        for method in ("GRPO", "SimKO"):
            own = [rate for (name, _), rate in rates.items() if name == method]
            error = statistics.stdev(own) / 3**0.5
            cell = found[LEVELS][f"{method} (3)"][f"K={k}"]
            assert cell == f"{statistics.mean(own):.1f} ± {error:.1f}"
        gaps = [rates["SimKO", seed] - rates["GRPO", seed] for seed in (0, 4)]
        cell = found[GAPS]["SimKO − GRPO"][f"K={k}"]
        assert cell == seeds.difference(pd.Series(gaps))
    assert cell.endswith("of 2")


def test_the_mean_over_sets_is_that_of_every_seed(tmp_path, run):
    for seed, a, b in ((0, 1, 2), (1, 4, 1)):
        write_run(tmp_path / str(seed), seed, entry("a", [a], 4), entry("b", [b, b], 2))
    _, found = run(f"x={tmp_path / '0'}", f"x={tmp_path / '1'}")
    levels = {title.rpartition(": ")[2]: table["x (2)"] for title, table in found.items()}
    assert list(levels) == ["a", "b", "mean of a, b"]
    # Seed 0: (25 + 100) / 2 and (50 + 100) / 2. Seed 1: (100 + 50) / 2 and 100.
    assert levels["mean of a, b"] == {"K=1": "68.8 ± 6.2", "K=2": "87.5 ± 12.5"}


def test_runs_that_differ_in_more_than_the_seed_are_named(tmp_path, run):
    one = write_run(tmp_path / "one", 0, entry("a", [1], 4), temperature=Config.temperature)
    (tmp_path / "config.json").write_text(json.dumps({"alpha": 1}))  # not theirs
    changes = {"versions": {"a": 1}, "micro_batch_tokens": 1}  # which change nothing
    other = write_run(tmp_path / "other", 1, entry("a", [1], 4), alpha=0.05,
                      train_data_sha256="1", **changes)
    third = write_run(tmp_path / "third", 2, entry("a", [1], 4, temperature=1.0), steps=30)
    printed, _ = run(*(f"x={folder}" for folder in (one, other, third)))
    lines = [line for line in printed.splitlines() if line.startswith("- ")]
    assert lines == [
        "- the runs of x have different alpha, train_data_sha256",
        "- trained with different train_data_sha256",
        "- steps of training before the evaluation: "
        "20 (x seed 0, x seed 1), 20 of 30 (x seed 2)",
        "- a: T 0.6 (x seed 0, x seed 1), 1.0 (x seed 2)"]
    # A folder without the settings of a training is not known to differ.
    (third / "config.json").unlink()
    (tmp_path / "config.json").unlink()
    printed, _ = run(f"x={third}", f"x={one}")
    assert "different" not in printed


def test_methods_without_two_seeds_in_common_are_not_compared(tmp_path, run):
    for name, seed in (("x", 0), ("x", 1), ("y", 1), ("y", 2), ("base", 0)):
        write_run(tmp_path / f"{name}-{seed}", seed, entry("a", [1], 4))
    printed, found = run(*(f"{path.name[:-2]}={path}" for path in sorted(tmp_path.iterdir())))
    assert list(found) == [LEVELS]
    assert "\ny and x have fewer than two seeds in common" in printed
    assert list(found[LEVELS]) == ["base (1)", "x (2)", "y (2)"]
    assert found[LEVELS]["base (1)"]["K=1"] == "25.0"


def test_methods_with_other_problems_are_not_compared(tmp_path, run):
    for name, right in (("x", [1, 2]), ("y", [3])):
        for seed in (0, 1):
            write_run(tmp_path / f"{name}-{seed}", seed, entry("a", right, 4))
    printed, found = run(*(f"{path.name[0]}={path}" for path in sorted(tmp_path.iterdir())))
    assert list(found) == [LEVELS]
    assert "- a: different problem ids (x seed 0, x seed 1, y seed 0, y seed 1)" in printed


def test_methods_that_differ_in_more_than_their_own_settings_are_named(tmp_path, run):
    folders = []
    own = {"alpha": 0.05, "K": 2, "grpo_warmup_steps": 5}
    for name, settings in (("x", {"method": "psr"}), ("y", own | {"batch_size": 8})):
        for seed in (0, 1):
            folder = write_run(tmp_path / f"{name}{seed}", seed, entry("a", [1], 4), **settings)
            folders.append(f"{name}={folder}/eval_000020")  # the settings are those of its run
    printed, _ = run(*folders)
    lines = [line for line in printed.splitlines() if line.startswith("- ")]
    assert lines == ["- trained with different batch_size"]


def test_one_folder_may_have_more_temperatures_than_another(tmp_path, run):
    cool, hot = (entry("a", [1], 4, temperature=t, label=f"a@T{t}") for t in (0.2, 1.0))
    both = write_run(tmp_path / "both", 0, cool, hot, alpha=0.05)
    single = write_run(tmp_path / "single", 1, entry("a", [3], 4, temperature=0.2))
    printed, found = run(f"x={both}", f"x={single}")
    assert list(found[LEVELS]) == ["x, T = 0.2 (2)", "x, T = 1.0 (1)"]
    assert found[LEVELS]["x, T = 0.2 (2)"]["K=1"] == "50.0 ± 25.0"
    assert printed.count("the runs of x have different alpha") == 1


def test_temperatures_are_compared_each_with_itself(tmp_path, run):
    for name in ("x", "y"):
        for seed in (0, 1):
            cool, hot = (
                entry("a", [1 + seed], 4, temperature=t, label=f"a@T{t}") for t in (0.2, 1.0))
            write_run(tmp_path / f"{name}-{seed}", seed, cool, hot)
    _, found = run(*(f"{path.name[0]}={path}" for path in sorted(tmp_path.iterdir())))
    assert list(found[LEVELS]) == [
        "x, T = 0.2 (2)", "y, T = 0.2 (2)", "x, T = 1.0 (2)", "y, T = 1.0 (2)"]
    assert list(found[GAPS]) == ["y, T = 0.2 − x, T = 0.2", "y, T = 1.0 − x, T = 1.0"]


def test_seeds_may_have_other_sets_and_fewer_samples(tmp_path, run):
    """A set is averaged over the seeds that have it, up to the smallest n."""
    for name, seed, *entries in (
            ("x", 0, entry("a", [1], 2), entry("b", [1], 4)), ("x", 1, entry("a", [1], 4)),
            ("y", 0, entry("a", [4], 4)), ("y", 1, entry("a", [4], 4))):
        write_run(tmp_path / f"{name}-{seed}", seed, *entries)
    _, found = run(*(f"{path.name[0]}={path}" for path in sorted(tmp_path.iterdir())))
    of_b = LEVELS.replace(": a", ": b")
    assert list(found) == [LEVELS, GAPS, of_b]
    assert found[LEVELS]["x (2)"] == {"K=1": "37.5 ± 12.5", "K=2": "75.0 ± 25.0", "K=4": "–"}
    assert found[GAPS]["y − x"]["K=4"] == "–"
    assert list(found[of_b]) == ["x (1)"]


@pytest.mark.parametrize("labels, seeds_of_runs, message", [
    ("xx", (3, 3), "one and .*other are both x with seed 3: train or evaluate one"),
    ("xy", (3, 4), "no two folders have the same label: .*python -m tools.tables")])
def test_what_has_no_mean_is_one_line(labels, seeds_of_runs, message, tmp_path, run):
    arguments = []
    for name, label, seed in zip(("one", "other"), labels, seeds_of_runs):
        folder = write_run(tmp_path / name, seed, entry("a", [1], 4))
        arguments.append(f"{label}={folder}")
    with pytest.raises(SystemExit, match=message):
        run(*arguments)
