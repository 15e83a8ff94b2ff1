"""Tests of tools/tables.py on evaluations that they write themselves. They also check that the
paper's numbers are consistent with each other."""
import json
import math
import random
import re
import statistics
import sys

import pytest

from runtime.common import printable
from tests.conftest import ESCAPE
from tools import tables

SIX = ["aime24", "aime25", "amc23", "math500", "minerva", "olympiad"]
TITLE = "pass@K in % ± standard error over problems"


def entry(name, right, n, **changes):
    """Returns a set's entry in eval.json. right: the correct samples of each problem."""
    counts = {f"{name}-{i}": c for i, c in enumerate(right)}
    return {
        "set": name,
        "n": n,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 4096,
        "problems": len(counts),
        "truncated": 0.0125,
        "correct": counts,
        "pass": {},
    } | changes


def write(folder, *entries, **sets):
    """Writes an eval.json with `entries`, labelled by their sets, and with `sets`, labelled by
    their keywords. Returns its contents."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": "m", "seed": 0, "task": "math", "prompt_template": "plain"}
    sets = {entry["set"]: entry for entry in entries} | sets
    report = {"settings": settings, "sets": sets}
    (folder / "eval.json").write_text(json.dumps(report), encoding="utf-8")
    return report


def load(arguments):
    return tables.load(tables.labelled(arguments))


def naive(n, correct, k):
    """Returns pass@k by its definition, from binomial coefficients."""
    return statistics.mean(
        1 - math.comb(n - c, k) / math.comb(n, k)
        for c in correct)


def parse(printed):
    """Returns {title: {row: {column: cell}}} of the tables in a text."""
    found, title = {}, None
    for line in printed.splitlines():
        if not line.startswith("|"):
            title = line or title
            continue
        first, *rest = (cell.strip() for cell in line.strip("|").split(" | "))
        if title not in found:
            found[title], head = {}, rest
        elif not first.startswith("--"):
            found[title][first] = dict(zip(head, rest))
    return {
        title.removeprefix(TITLE).lstrip(": "): rows
        for title, rows in found.items()
    }


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs the program and returns its output and the tables in it."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, arguments)])
        tables.main()
        printed = capsys.readouterr().out
        return printed, parse(printed)
    return call


# ------------------------------------------------------------------------------------- statistics
def test_a_mean_counts_each_set_the_same_and_stops_at_the_smallest_n(tmp_path, run):
    rng = random.Random(0)
    a = [rng.randrange(9) for _ in range(30)]
    b = [rng.randrange(4) for _ in range(7)]
    write(tmp_path / "x", entry("a", a, 8), entry("b", b, 3))
    # The paper's tables for logic show every K of each set.
    _, found = run(f"X={tmp_path / 'x'}", "--paper", "logic")

    def value(row, k):
        return row[f"K={k}"].split(" ± ")[0]

    mean = found["mean of a, b"]["X"]
    assert list(mean) == ["K=1", "K=2"]  # pass@4 cannot be estimated from n = 3
    for k in (1, 2):
        expected = 50 * (naive(8, a, k) + naive(3, b, k))
        assert value(mean, k) == f"{expected:.1f}"
    of_a = found["a"]["X"]
    for k in (1, 2, 4, 8):
        assert value(of_a, k) == f"{100 * naive(8, a, k):.1f}"
    by_set = found[""]["X"]
    assert list(by_set) == ["a @1 / @8", "b @1 / @2", "average @1 / @2"]
    assert list(found[""]) == ["X"]  # the paper has no numbers for these sets
    assert by_set["a @1 / @8"] == f"{of_a['K=1']} / {of_a['K=8']}"
    assert by_set["average @1 / @2"] == f"{mean['K=1']} / {mean['K=2']}"


def test_the_standard_error_is_that_of_problems_drawn_within_each_set():
    rng = random.Random(1)
    sets = [[rng.randrange(17) for _ in range(size)] for size in (40, 300)]
    rates = tables.pass_rates([entry("s", correct, 16) for correct in sets])
    assert list(rates) == [1, 2, 4, 8, 16]
    for k, (mean, error) in rates.items():
        means, errors = [], []
        for correct in sets:
            values = [naive(16, [c], k) for c in correct]
            means.append(statistics.mean(values))
            errors.append(statistics.stdev(values) / math.sqrt(len(values)))
        assert mean == pytest.approx(statistics.mean(means), abs=1e-12)
        assert error == pytest.approx(math.hypot(*errors) / 2)


def test_a_difference_has_students_interval_over_problems(tmp_path, run):
    """30 ± 2.776 * sqrt(250 / 5). Problems that are all equal, or alone, have no interval. In
    floating point, 300 rates of 3/10 have a standard error of 3e-18."""
    for name, right in (("x", [0] * 5), ("y", [1, 2, 3, 4, 5]), ("z", [1] * 5)):
        equal = entry("c", [3] * 300, 10)
        write(tmp_path / name, entry("a", right, 10), entry("b", right[:1], 10), equal)
    # The paper's tables for logic show every K of each set.
    paths = [f"{name}={tmp_path / name}" for name in "xyz"]
    _, found = run(*paths[:2], "--paper", "logic")
    title = f"{tables.DIFFERENCES}: "
    assert found[f"{title}a"]["y − x"]["K=1"] == "+30.0 [+10.4, +49.6]"
    assert found[f"{title}b"]["y − x"]["K=1"] == "+10.0"
    assert found["a"]["x"]["K=1"] == "0.0"
    assert "±" not in "".join(found["c"]["x"].values())
    _, found = run(paths[0], paths[2], "--paper", "logic")
    assert found[f"{title}a"]["z − x"]["K=1"] == "+10.0"
    # The mean over two sets has the freedom of the smaller: 15 ± 2.776 * sqrt(250 / 5) / 2.
    five, many = (entry("a", right, 10) for right in ([1, 2, 3, 4, 5], [3] * 300))
    found = tables.difference([entry("a", [0] * 5, 10), many], [five, many])
    assert found[1] == "+15.0 [+5.2, +24.8]"


def test_a_difference_has_the_interval_of_problems_that_both_answered(tmp_path, run):
    """Its width is that of the differences of single problems, and the folder with fewer samples
    decides how many K there are."""
    rng, x, y, z = random.Random(2), *(tmp_path / name for name in "xyz")
    before = [rng.randrange(17) for _ in range(300)]
    after = [max(0, count - rng.randrange(3)) for count in before]
    write(x, entry("a", before, 16))
    write(y, entry("a", after, 16))
    _, found = run(f"X={x}", f"Y={y}")
    line = found["Differences in points [95 % interval over problems]: a"]["Y − X"]
    assert list(line) == ["K=1", "K=2", "K=4", "K=8", "K=16"]
    for k in (1, 4, 16):
        shifts = [100 * (naive(16, [b], k) - naive(16, [a], k)) for a, b in zip(before, after)]
        point, low, high = map(float, re.findall(r"[-+][0-9.]+", line[f"K={k}"]))
        assert point == pytest.approx(statistics.mean(shifts), abs=0.051)
        width = 2 * 1.96 * statistics.pstdev(shifts) / math.sqrt(300)
        assert high - low == pytest.approx(width, rel=0.15, abs=0.11)

    write(z, entry("a", [1] * 300, 4))
    _, found = run(f"X={x}", f"Z={z}", f"Y={y}")
    lines = found["Differences in points [95 % interval over problems]: a"]
    assert list(lines) == ["Z − X", "Y − Z"]
    assert list(lines["Z − X"]) == ["K=1", "K=2", "K=4"]
    # Problems of other ids, with other contents or in another order are not paired.
    write(z, entry("a", after, 16, problems_sha256="1"))
    write(x, entry("a", before, 16, problems_sha256="2"))
    printed, found = run(f"X={x}", f"Z={z}")
    line = "- a: the same ids, but different problems, answers, tasks or order (X, Z)"
    assert line in printed
    assert not any("Differences" in title for title in found)
    in_order = entry("a", after, 16)["correct"]
    others = {f"b-{i}": c for i, c in enumerate(after)}
    for correct in (others, dict(reversed(in_order.items()))):
        write(z, entry("a", after, 16, correct=correct))
        _, found = run(f"Y={y}", f"Z={z}")
        assert not any("Differences" in title for title in found)


@pytest.mark.parametrize("name, values, word", [
    ("dtype", ("float32", "bfloat16"), "dtype"),
    ("rollout", ("vllm", "hf"), "engine"),
])
def test_evaluations_in_another_dtype_or_by_another_engine_are_not_compared_without_a_word(
        tmp_path, run, name, values, word):
    for folder, value in zip(("x", "y"), values):
        write(tmp_path / folder, entry("a", [1], 4, **{name: value}))
    printed, _ = run(f"X={tmp_path / 'x'}", f"Y={tmp_path / 'y'}")
    assert f"- a: {word} {values[0]} (X), {values[1]} (Y)" in printed


def test_other_arguments_of_the_chat_template_are_another_template(tmp_path, run):
    report = write(tmp_path / "x", entry("a", [1], 4))
    write(tmp_path / "y", entry("a", [1], 4))
    report["settings"]["chat_template_kwargs"] = {"enable_thinking": False}
    (tmp_path / "x/eval.json").write_text(json.dumps(report))
    printed, _ = run(f"X={tmp_path / 'x'}", f"Y={tmp_path / 'y'}")
    assert '- a: template plain {"enable_thinking": false} (X), plain (Y)' in printed


def test_a_name_in_a_file_gives_the_terminal_no_command(tmp_path, run):
    report = write(tmp_path / "x", entry(ESCAPE, [1], 4), entry("b", [1], 4))
    report["settings"]["prompt_template"] = ESCAPE
    (tmp_path / "x/eval.json").write_text(json.dumps(report))
    printed, _ = run(f"{ESCAPE}={tmp_path / 'x'}")
    assert printable(ESCAPE) in printed and "\x1b" not in printed


# ------------------------------------------------------------------------------------- the tables
def test_folders_are_compared_on_what_they_share(tmp_path, run):
    x, y, z = (tmp_path / name for name in "xyz")
    write(x, entry("a", [1, 2], 16), entry("b", [3, 4], 16), entry("c", [5, 6], 16))
    write(y, entry("b", [1, 0], 4), entry("a", [1, 4], 16))
    _, found = run(x, f"Y={y}")
    mean, by_set = found["mean of a, b"], found[""]
    assert mean["Y"]["K=8"] == "–" != mean[str(x)]["K=8"]
    columns = ["a @1 / @16", "b @1 / @4", "c @1 / @16"]
    assert list(by_set["Y"]) == [*columns, "average @1 / @4"]
    assert by_set["Y"]["c @1 / @16"] == "–"
    write(z, entry("b", [4, 0], 4))
    printed, found = run(f"X={x}", f"Z={z}")
    assert printed.count("b @1 / @4") == 1
    assert "The paper reports" not in printed
    assert found["b"]["Z"]["K=1"].startswith("50.0")
    assert list(found[""]["Z"]) == columns
    _, found = run(f"X={x}", f"Z={z}", "--paper", "logic")
    assert list(found["a"]) == ["X"]
    write(z, entry("d", [1], 1))
    _, found = run(f"X={x}", f"Z={z}")
    assert list(found) == ["", "Evaluated with"]
    assert found[""]["Z"]["d @1"] == "100.0"  # one problem has no error
    write(z, entry("a", [1, 2], 16), entry("b", [3], 16))  # another set of this name
    _, found = run(f"X={x}", f"Z={z}")
    assert list(found) == ["mean of a, b", "", "Evaluated with"]


def test_several_temperatures_are_a_row_each(tmp_path, run):
    x, y = tmp_path / "x", tmp_path / "y"
    sweep = {}
    for name in ("aime24", "math500"):
        sweep[f"{name}@T1.0"] = entry(name, [0, 4], 4, temperature=1.0)
        sweep[f"{name}@T0.2"] = entry(name, [2, 4], 4, temperature=0.2)
    write(x, **sweep)
    write(y, entry("aime24", [1, 1], 4), entry("math500", [1, 1], 4))
    printed, found = run(f"X={x}", f"Y={y}", "--paper", "qwen2.5-math-7b")
    mean, by_set = found["mean of aime24, math500"], found[""]
    assert list(mean) == ["X, T = 0.2", "Y, T = 0.6", "X, T = 1.0"]
    assert [row["K=1"].split()[0] for row in mean.values()] == ["75.0", "25.0", "50.0"]
    names = list(by_set)
    assert [name for name in names if not name.startswith("paper")] == list(mean)
    # The paper has numbers for K = 1 and 256 only.
    assert by_set["paper v1: SimKO, T = 0.2"]["aime24 @1 / @4"] == "31.9 / –"
    ordered = "X, T = 0.2", "paper v1: GRPO, T = 0.2", "Y, T = 0.6"
    places = [names.index(name) for name in ordered]
    assert places == sorted(places)
    assert ": T " not in printed  # temperatures that differ on purpose need no warning
    assert not any("Differences" in title for title in found)
    _, of_llama = run(f"X={x}", "--paper", "llama3.2-3b")
    assert "paper v1: SimKO" in of_llama[""]  # the paper has its sweep for one model alone
    _, found = run(f"Y={y}")
    assert list(found["mean of aime24, math500"]) == ["Y"]

    # Each temperature is compared with the same one in other folders.
    write(y, **sweep | {"math500@T0.2": entry("math500", [2, 4], 8, temperature=0.2)})
    printed, _ = run(f"X={x}", f"Y={y}")
    assert "\n- math500: n 4 (X), 8 (Y)\n" in printed
    # What holds at each temperature is said once.
    write(y, **{label: old | {"correct": {"other": 1, "ids": 1}} for label, old in sweep.items()})
    printed, _ = run(f"X={x}", f"Y={y}")
    assert printed.count("- math500: different problem ids (X, Y)") == 1


def test_sets_with_temperatures_of_their_own_stay_in_one_row(tmp_path, run):
    x, y = tmp_path / "x", tmp_path / "y"
    write(x, entry("a", [1, 2], 4), entry("b", [3, 4], 4, temperature=0.7))
    sweep = {f"a@T{T}": entry("a", [1, 2], 4, temperature=T) for T in (0.2, 1.0)}
    write(y, **sweep)
    _, found = run(f"Z={x}", f"X={x}")
    assert list(found["mean of a, b"]) == ["Z", "X"]  # in the order of the arguments
    _, found = run(f"X={x}", f"Y={y}")
    assert list(found["a"]) == ["X", "Y, T = 0.2", "Y, T = 1.0"]


@pytest.mark.parametrize("changes, line", [
    ({"n": 8}, "n 4 (X, Y), 8 (Z)"),
    ({"temperature": 1.0}, "T 0.6 (X, Y), 1.0 (Z)"),
    ({"top_p": 1.0}, "top-p 0.95 (X, Y), 1.0 (Z)"),
    ({"max_tokens": 64}, "max tokens 4096 (X, Y), 64 (Z)"),
    ({"correct": {"a": 1, "b": 2}}, "different problem ids (X, Y, Z)"),
    ({"correct": {"math500-0": 1}, "problems": 1}, "problems 2 (X, Y), 1 (Z)"),
])
def test_what_was_not_evaluated_alike_is_said(tmp_path, run, changes, line):
    usual = entry("math500", [1, 2], 4)
    write(tmp_path / "x", usual)
    write(tmp_path / "y", usual)
    write(tmp_path / "z", usual | changes)
    X, Y, Z = (f"{name.upper()}={tmp_path / name}" for name in "xyz")
    printed, _ = run(X, Y, Z)
    assert "THESE EVALUATIONS DIFFER" in printed
    assert f"- math500: {line}\n" in printed
    printed, _ = run(X, Y)
    assert "THESE EVALUATIONS DIFFER" not in printed
    printed, _ = run(X, Y, "--paper", "qwen2.5-7b")
    assert "- math500: n 4 (X, Y), 256 (the paper)\n" in printed


def test_settings_are_printed_with_the_share_truncated(tmp_path, run):
    x, y = tmp_path / "x", tmp_path / "y"
    write(x, entry("a", [1, 2], 4, truncated=0.5), entry("b", [1], 8, temperature=0.7))
    write(y, entry("a", [1, 2], 4))
    _, found = run(f"X={x}", f"Y={y}")
    a = {
        "n": "4",
        "T": "0.6",
        "top-p": "0.95",
        "max tokens": "4096",
        "problems": "2",
        "template": "plain",
        "truncated, %: X / Y": "50.0 / 1.2",
    }
    b = a | {
        "n": "8",
        "T": "0.7",
        "problems": "1",
        "truncated, %: X / Y": "1.2 / –",
    }
    assert found["Evaluated with"] == {"a": a, "b": b}


def test_tables_are_aligned_markdown(tmp_path, run):
    write(tmp_path / "x", *(entry(name, [1, 2, 9], 256) for name in SIX))
    printed, found = run(f"X={tmp_path / 'x'}", "--paper", "llama3.2-3b")
    blocks = [block.splitlines() for block in printed.strip().split("\n\n")]
    blocks = [block for block in blocks if block[0].startswith("|")]
    assert len(blocks) == len(found) == 3
    for _, rule, *rows in blocks:
        assert {*rule} == {*"|-: "}
        widths = {len(line) for line in (rule, *rows)}
        assert len(widths) == 1
    # A head, a rule, X and six rows of the paper.
    assert [len(block) for block in blocks[:2]] == [9, 9]


def test_the_papers_rows_stand_where_they_apply(tmp_path, run):
    x, y, z = (tmp_path / name for name in "xyz")
    write(x, *(entry(name, [1, 200], 256) for name in SIX))
    printed, found = run(f"X={x}", "--paper", "qwen2.5-math-7b")
    mean, by_set = found[f"mean of {', '.join(SIX)}"], found[""]
    assert list(mean["paper v1: SimKO"].values()) == [
        "43.4", "50.7", "56.7", "61.4", "65.6", "69.4", "73.1", "76.7", "80.5",
    ]
    assert list(by_set["paper v1: GRPO"].values()) == [
        "28.1 / 72.3",
        "11.5 / 52.1",
        "61.2 / 97.1",
        "76.6 / 96.2",
        "33.4 / 64.0",
        "39.1 / 74.7",
        "41.7 / 76.1",
    ]
    assert "The paper reports no numbers" not in printed
    versions = [name.partition(": ")[0] for name in by_set]
    assert versions == ["X"] + ["paper v1"] * 10 + ["paper v3"] * 7
    assert by_set["paper v3: CaSP, N = 2"] == {
        **{f"{name} @1 / @256": "–" for name in SIX},
        "average @1 / @256": "42.8 / 79.2",
    }

    write(y, *(entry(name, [1, 200], 256) for name in SIX[:2]))
    printed, found = run(f"Y={y}", "--paper", "qwen2.5-math-7b")
    assert list(found["mean of aime24, aime25"]) == ["Y"]
    assert "The paper reports no numbers for this combination of sets" in printed
    assert found[""]["paper v1: GRPO"]["average @1 / @256"] == "–"

    write(z, *(entry(name, [1, 100], 128) for name in ("synlogic", "bbh")))
    _, found = run(f"X={x}", "--paper", "qwen2.5-math-7b-ablations")
    assert len(found[""]) == 1 + 12
    assert found[""]["paper v1: tau(0.4)"]["average @1 / @256"] == "38.6 / 76.9"
    _, found = run(f"Z={z}", "--paper", "logic")
    assert list(found["bbh"]["paper v1: NSR"].values()) == [
        "26.1", "41.6", "59.3", "74.9", "85.3", "90.5", "92.7", "93.5",
    ]
    assert found[""]["paper v1: SimKO"] == {
        "synlogic @1 / @128": "34.7 / 55.0",
        "bbh @1 / @128": "58.4 / 92.0",
        "average @1 / @128": "–",
    }
    assert found[""]["paper v3: GRPO"] == {
        "synlogic @1 / @128": "34.0 / 48.6",
        "bbh @1 / @128": "54.4 / 86.8",
        "average @1 / @128": "–",
    }
    assert found["synlogic"]["paper v3: CaSP"]["K=8"] == "45.3"


def test_a_model_of_the_third_version_alone_has_rows(tmp_path, run):
    write(tmp_path / "x", *(entry(name, [1, 100], 128) for name in SIX))
    printed, found = run(f"X={tmp_path / 'x'}", "--paper", "qwen2.5-32b")
    assert found[f"mean of {', '.join(SIX)}"]["paper v3: GRPO"]["K=128"] == "71.6"
    assert len(found[""]) == 6  # X and five rows of the paper
    # Only the first version's settings are on record.
    assert "THESE EVALUATIONS DIFFER" not in printed
    write(tmp_path / "y", entry("livecodebench", [1, 8], 16))
    _, found = run(f"Y={tmp_path / 'y'}", "--paper", "r1-distill-qwen-7b")
    assert found["livecodebench"]["paper v3: CaSP"] == {
        "K=1": "36.02",
        "K=2": "–",
        "K=4": "–",
        "K=8": "–",
        "K=16": "54.48",
    }


# ---------------------------------------------------------------------------------------- folders
def test_a_run_stands_for_its_last_evaluation(tmp_path):
    for step in (5, 999999, 1000000):
        write(tmp_path / f"eval_{step:06d}", entry("a", [step % 7], 8))
    last = {"a-0": 1000000 % 7}
    (row,) = load([str(tmp_path)])
    assert row.sets["a"]["correct"] == last
    assert row.folder == tmp_path
    write(tmp_path, entry("a", [0], 8))  # a later evaluation does not hide the run's
    (row,) = load([str(tmp_path)])
    assert row.sets["a"]["correct"] == last


@pytest.mark.parametrize("steps, planned, line", [
    ((3, 3), (3, 3), None),
    ((3, 6), (3, 6), "3 (X), 6 (Y)"),
    ((3, 6), (3, None), "3 (X), 6 (Y)"),  # a copy without config.json
    ((3, 0), (3, 9), "3 (X), 0 of 9 (Y)"),  # a run that is still going shows its base model
    ((3, 3), (9, 9), "3 of 9 (X, Y)"),
])
def test_runs_that_were_not_trained_alike_are_said(tmp_path, run, steps, planned, line):
    for name, step, last in zip("xy", steps, planned):
        for evaluated in (0, step):
            write(tmp_path / name / f"eval_{evaluated:06d}", entry("a", [1], 8))
        if last:
            (tmp_path / name / "config.json").write_text(json.dumps({"steps": last}))
    write(tmp_path / "base", entry("a", [1], 8))  # an evaluation was named as such
    printed, _ = run(f"base={tmp_path / 'base'}", *(f"{n.upper()}={tmp_path / n}" for n in "xy"))
    said = f"- steps of training before the evaluation: {line}\n" in printed
    assert said == ("THESE EVALUATIONS DIFFER" in printed) == (line is not None)
    # The folders of the evaluations say the same as those of the runs.
    named = (f"{name.upper()}={tmp_path / name / f'eval_{step:06d}'}"
             for name, step in zip("xy", steps))
    printed, _ = run(f"base={tmp_path / 'base'}", *named)
    assert (f"- steps of training before the evaluation: {line}\n" in printed) == (line is not None)


def test_a_label_ends_at_the_last_equals_sign_unless_the_whole_is_a_folder(tmp_path):
    whole, other = tmp_path / "learning_rate=1", tmp_path / "other"
    for folder in (whole, other):
        write(folder, entry("a", [1], 8))
    one, two = load([str(whole), f"q=0.5={other}"])
    assert (one.label, one.folder) == (str(whole), whole)
    assert (two.label, two.folder) == ("q=0.5", other)


DAMAGE = [
    ({"sets": {}}, {}),
    ({"sets": None}, {}),
    ({"sets": {"a": 7}}, {}),
    ({"settings": {}}, {}),
    ({}, {"n": "8"}),
    ({}, {"n": 8.0}),
    ({}, {"n": None}),
    ({}, {"temperature": None}),
    ({}, {"truncated": None}),
    ({}, {"set": "b"}),
    ({}, {"problems": 1}),
    ({}, {"correct": {}, "problems": 0}),
    ({}, {"correct": {"x": 1, "y": 9}}),
    ({}, {"correct": {"x": 1, "y": -1}}),
    ({}, {"correct": {"x": 1, "y": 1.0}}),
]


@pytest.mark.parametrize("report, sets", DAMAGE)
def test_a_damaged_evaluation_is_named_in_one_line(tmp_path, report, sets):
    report = write(tmp_path, a=entry("a", [1, 2], 8) | sets) | report
    (tmp_path / "eval.json").write_text(json.dumps(report))
    with pytest.raises(SystemExit) as stop:
        load([str(tmp_path)])
    message = stop.value.code
    assert f"{tmp_path / 'eval.json'} " in message
    assert "\n" not in message
    assert len(message) < 400
    assert message.endswith(("run the evaluation again", "evaluate again"))


def test_an_unfinished_evaluation_is_not_passed_over_for_an_earlier_one(tmp_path):
    write(tmp_path / "eval_000010", entry("a", [1], 8))
    (tmp_path / "eval_000020").mkdir()
    with pytest.raises(SystemExit, match=r"eval_000020/eval.json does not exist: .* unfinished"):
        load([str(tmp_path)])
    (tmp_path / "eval_000020" / "eval.json").write_text('{"settings": {"mo')
    with pytest.raises(SystemExit, match=r"eval_000020/eval.json is damaged"):
        load([str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no folder nowhere"):
        load(["x=nowhere"])
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SystemExit, match="config.json cannot be read .*: name the folder"):
            tables.run_settings(tmp_path)
    with pytest.raises(SystemExit, match="two folders have the label x: "):
        load([f"x={tmp_path / 'eval_000010'}"] * 2)


# -------------------------------------------------------------------------------------- the paper
PRINTED = tables.PAPER["tables"]
LATER = tables.PAPER["tables_v3"]


def paper_values(numbers, printed=PRINTED):
    """Yields (table's number, model, method, lists of numbers) for each row of these tables."""
    for number in numbers:
        for model, methods in printed[number]["rows"].items():
            for method, values in methods.items():
                yield number, model, method, values


def test_the_papers_tables_are_whole():
    counts = {
        number: [len(methods) for methods in table["rows"].values()]
        for number, table in PRINTED.items()
    }
    assert counts == {"1": [10, 6, 6], "2": [6], "3": [12], "4": [10, 6, 6], "5": [15]}
    for printed in (PRINTED, LATER):
        for number, _, _, values in paper_values(printed, printed):
            table = printed[number]
            assert len(values) == len(table["sets"])
            for numbers in values:
                assert len(numbers) == len(table["K"])
                assert numbers == sorted(numbers)
                assert 0 < numbers[0]
                assert numbers[-1] <= 100


def test_the_papers_tables_agree_with_each_other():
    for model, methods in PRINTED["4"]["rows"].items():
        curves = PRINTED["1"]["rows"][model]
        assert methods.keys() == curves.keys()
        for method, values in methods.items():
            assert values[-1] == [curves[method][0][i] for i in (0, -1)]
    (ablations,) = PRINTED["3"]["rows"].values()
    for method in ("Base Model", "GRPO", "SimKO"):
        assert ablations[method] == PRINTED["4"]["rows"]["qwen2.5-math-7b"][method]
    # GRPO and SimKO at T = 0.6 come from different runs or evaluations in Tables 4 and 5.
    one, five = (PRINTED[number]["rows"]["qwen2.5-math-7b"] for number in "45")
    for method in ("Base Model", "GRPO", "SimKO"):
        same = five[f"{method}@T0.6"] == one[method]
        assert same == (method == "Base Model")
    # The third version calls SimKO CaSP. Its N is the first version's K, which is 3.
    casp = LATER["math"]["rows"]["qwen2.5-math-7b"]["CaSP, N = 3"][0]
    assert casp == one["SimKO"][-1]


def test_five_of_the_papers_averages_are_not_the_mean_of_their_row():
    off = {}
    for number, model, method, (*sets, average) in paper_values("345"):
        for j, k in enumerate((1, 256)):
            mean = statistics.mean(values[j] for values in sets)
            if abs(mean - average[j]) > 0.1:  # all numbers are rounded to 0.1
                off[number, model, method, k] = round(mean, 1), average[j]
    assert off == {
        ("3", "qwen2.5-math-7b-ablations", "w/o gamma^neg", 1): (42.6, 42.8),
        ("4", "llama3.2-3b", "GRPO", 1): (22.8, 23.3),
        ("5", "qwen2.5-math-7b", "Base Model@T0.8", 1): (26.0, 23.5),
        ("5", "qwen2.5-math-7b", "Base Model@T0.8", 256): (78.4, 76.7),
        ("5", "qwen2.5-math-7b", "GRPO@T1.0", 256): (76.5, 76.6),
    }
