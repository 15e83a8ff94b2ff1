"""Tests of tables.py on evaluations written here, and of the paper's numbers against each other."""
import json
import math
import random
import statistics
import sys

import pytest

from tools import tables

SIX = ["aime24", "aime25", "amc23", "math500", "minerva", "olympiad"]


def entry(name, right, n, **changes):
    counts = {f"{name}-{i}": c for i, c in enumerate(right)}
    return {"set": name, "n": n, "temperature": 0.6, "top_p": 0.95, "max_tokens": 4096, "problems": len(counts),
            "truncated": 0.0125, "correct": counts, "pass": {}} | changes


def write(folder, *entries, **sets):
    """An evaluation of `entries`, under their sets' names, and of `sets`, under the labels given."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": "m", "seed": 0, "task": "math", "prompt_template": "plain"}
    report = {"settings": settings, "sets": {one["set"]: one for one in entries} | sets}
    (folder / "eval.json").write_text(json.dumps(report), encoding="utf-8")
    return report


def naive(n, correct, k):
    return statistics.mean(1 - math.comb(n - c, k) / math.comb(n, k) for c in correct)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs tables.py: (what it printed, {title: {row: {column: cell}}})."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, arguments)])
        tables.main()
        out = capsys.readouterr().out
        found, title = {}, None
        for line in out.splitlines():
            if not line.startswith("|"):
                title = line or title
                continue
            first, *rest = (cell.strip() for cell in line.strip("|").split(" | "))
            if title not in found:
                found[title], head = {}, rest
            elif not first.startswith("--"):
                found[title][first] = dict(zip(head, rest))
        return out, {key.removeprefix("pass@K in % ± standard error over problems").lstrip(": "): value
                     for key, value in found.items()}
    return call


def test_a_mean_counts_each_set_the_same_and_stops_at_the_smallest_n(tmp_path, run):
    rng = random.Random(0)
    a, b = [rng.randrange(9) for _ in range(30)], [rng.randrange(4) for _ in range(7)]
    write(tmp_path / "x", entry("a", a, 8), entry("b", b, 3))
    _, found = run(f"X={tmp_path / 'x'}", "--each")
    mean = found["mean of a, b"]["X"]
    assert list(mean) == ["K=1", "K=2"]  # n = 3 has no estimate at 4
    for k in (1, 2):
        assert mean[f"K={k}"].split(" ± ")[0] == f"{50 * (naive(8, a, k) + naive(3, b, k)):.1f}"
    assert [found["a"]["X"][f"K={k}"].split()[0] for k in (1, 2, 4, 8)] == [f"{100 * naive(8, a, k):.1f}"
                                                                          for k in (1, 2, 4, 8)]
    by_set = found[""]["X"]
    assert list(by_set) == ["a @1 / @8", "b @1 / @2", "average @1 / @2"]
    assert by_set["a @1 / @8"] == f"{found['a']['X']['K=1']} / {found['a']['X']['K=8']}"
    assert by_set["average @1 / @2"] == f"{mean['K=1']} / {mean['K=2']}"


def test_the_standard_error_is_that_of_problems_drawn_within_each_set():
    rng = random.Random(1)
    sets = [([rng.randrange(17) for _ in range(size)], 16) for size in (40, 300)]
    rates = tables.pass_rates([entry("s", correct, n) for correct, n in sets])
    for k, (mean, error) in rates.items():
        each = [[1 - math.comb(n - c, k) / math.comb(n, k) for c in correct] for correct, n in sets]
        assert mean == pytest.approx(statistics.mean(map(statistics.mean, each)), abs=1e-12)
        exact = math.hypot(*(statistics.pstdev(values) / math.sqrt(len(values)) for values in each)) / 2
        assert error == pytest.approx(exact, rel=0.1)  # 1000 draws: 2 % off, as a rule
    assert list(rates) == [1, 2, 4, 8, 16]


def test_folders_are_compared_on_what_they_share(tmp_path, run):
    write(tmp_path / "x", entry("a", [1, 2], 16), entry("b", [3, 4], 16), entry("c", [5, 6], 16))
    write(tmp_path / "y", entry("b", [1, 0], 4), entry("a", [1, 4], 16))
    out, found = run(tmp_path / "x", f"Y={tmp_path / 'y'}")
    assert found["mean of a, b"]["Y"]["K=8"] == "–" != found["mean of a, b"][str(tmp_path / "x")]["K=8"]
    assert list(found[""]["Y"]) == ["a @1 / @16", "b @1 / @4", "c @1 / @16", "average @1 / @4"]
    assert found[""]["Y"]["c @1 / @16"] == "–"
    write(tmp_path / "z", entry("b", [4, 0], 4))
    _, found = run(f"X={tmp_path / 'x'}", f"Z={tmp_path / 'z'}")
    assert found["b"]["Z"]["K=1"].startswith("50.0")
    assert list(found[""]["Z"]) == ["a @1 / @16", "b @1 / @4", "c @1 / @16"]
    write(tmp_path / "z", entry("d", [1], 1))
    _, found = run(f"X={tmp_path / 'x'}", f"Z={tmp_path / 'z'}")
    assert list(found) == ["", "Evaluated with"] and found[""]["Z"]["d @1"] == "100.0 ± 0.0"


def test_several_temperatures_are_a_row_each(tmp_path, run):
    sweep = {f"{name}@T{t}": entry(name, [c, 4], 4, temperature=t)
             for name in ("aime24", "math500") for c, t in ((0, 1.0), (2, 0.2))}
    write(tmp_path / "x", **sweep)
    write(tmp_path / "y", entry("aime24", [1, 1], 4), entry("math500", [1, 1], 4))
    out, found = run(f"X={tmp_path / 'x'}", f"Y={tmp_path / 'y'}", "--paper", "qwen2.5-math-7b")
    mean, by_set = found["mean of aime24, math500"], found[""]
    assert list(mean) == ["X, T = 0.2", "Y, T = 0.6", "X, T = 1.0"]
    assert [row["K=1"].split()[0] for row in mean.values()] == ["75.0", "25.0", "50.0"]
    assert [name for name in by_set if not name.startswith("paper")] == list(mean)
    assert by_set["paper: SimKO, T = 0.2"]["aime24 @1 / @4"] == "31.9 / –"  # the paper has 1 and 256
    assert list(by_set).index("X, T = 0.2") < list(by_set).index("paper: GRPO, T = 0.2")
    assert list(by_set).index("paper: GRPO, T = 0.2") < list(by_set).index("Y, T = 0.6")
    assert ": T " not in out  # temperatures that differ on purpose
    _, found = run(f"Y={tmp_path / 'y'}")
    assert list(found["mean of aime24, math500"]) == ["Y"]


@pytest.mark.parametrize("changes, line", [
    ({"n": 8}, "n 4 (X, Y), 8 (Z)"), ({"temperature": 1.0}, "T 0.6 (X, Y), 1.0 (Z)"),
    ({"top_p": 1.0}, "top-p 0.95 (X, Y), 1.0 (Z)"), ({"max_tokens": 64}, "max tokens 4096 (X, Y), 64 (Z)"),
    ({"correct": {"a": 1, "b": 2}}, "not the same problem ids (X, Y, Z)"),
    ({"correct": {"math500-0": 1}, "problems": 1}, "problems 2 (X, Y), 1 (Z)"),
])
def test_what_was_not_evaluated_alike_is_said(tmp_path, run, changes, line):
    for name in "xyz":
        write(tmp_path / name, entry("math500", [1, 2], 4) | (changes if name == "z" else {}))
    folders = [f"{name.upper()}={tmp_path / name}" for name in "xyz"]
    out, found = run(*folders)
    assert "NOT EVALUATED ALIKE" in out and f"- math500: {line}\n" in out
    assert "NOT EVALUATED ALIKE" not in run(*folders[:2])[0]
    assert "- math500: n 4 (X, Y), 256 (the paper)\n" in run(*folders[:2], "--paper", "qwen2.5-7b")[0]


def test_settings_are_printed_with_the_share_truncated(tmp_path, run):
    write(tmp_path / "x", entry("a", [1, 2], 4, truncated=0.5), entry("b", [1], 8, temperature=0.7))
    write(tmp_path / "y", entry("a", [1, 2], 4))
    _, found = run(f"X={tmp_path / 'x'}", f"Y={tmp_path / 'y'}")
    assert found["Evaluated with"] == {
        "a": {"n": "4", "T": "0.6", "top-p": "0.95", "max tokens": "4096", "problems": "2", "template": "plain",
              "truncated, %: X / Y": "50.0 / 1.2"},
        "b": {"n": "8", "T": "0.7", "top-p": "0.95", "max tokens": "4096", "problems": "1", "template": "plain",
              "truncated, %: X / Y": "1.2 / –"}}


def test_text_holds_what_markdown_holds(tmp_path, run):
    write(tmp_path / "x", *(entry(name, [1, 2, 9], 256) for name in SIX))
    arguments = [f"X={tmp_path / 'x'}", "--paper", "llama3.2-3b"]
    (markdown, _), (text, _) = run(*arguments), run(*arguments, "--text")

    def words(out):
        return [word for word in out.replace("|", " ").split() if set(word) - set("-:")]

    assert words(markdown) == words(text) and "|" not in text
    rows = [line for line in text.splitlines() if line.startswith(("X  ", "paper: "))]
    assert len(rows) == 2 * 7 and len({len(row) for row in rows}) == 2  # two tables, each of one width


def test_the_papers_rows_stand_where_they_apply(tmp_path, run):
    write(tmp_path / "x", *(entry(name, [1, 200], 256) for name in SIX))
    out, found = run(f"X={tmp_path / 'x'}", "--paper", "qwen2.5-math-7b")
    assert list(found[f"mean of {', '.join(SIX)}"]["paper: SimKO"].values()) == [
        "43.4", "50.7", "56.7", "61.4", "65.6", "69.4", "73.1", "76.7", "80.5"]
    assert list(found[""]["paper: GRPO"].values()) == [
        "28.1 / 72.3", "11.5 / 52.1", "61.2 / 97.1", "76.6 / 96.2", "33.4 / 64.0", "39.1 / 74.7", "41.7 / 76.1"]
    assert "The paper has no number" not in out and len(found[""]) == 11
    write(tmp_path / "y", *(entry(name, [1, 200], 256) for name in SIX[:2]))
    out, found = run(f"Y={tmp_path / 'y'}", "--paper", "qwen2.5-math-7b")
    assert list(found["mean of aime24, aime25"]) == ["Y"] and "The paper has no number for these sets together" in out
    assert found[""]["paper: GRPO"]["average @1 / @256"] == "–"
    write(tmp_path / "z", *(entry(name, [1, 100], 128) for name in ("synlogic", "bbh")))
    _, found = run(f"Z={tmp_path / 'z'}", "--paper", "logic")
    assert list(found["bbh"]["paper: NSR"].values()) == ["26.1", "41.6", "59.3", "74.9", "85.3", "90.5", "92.7", "93.5"]
    assert found[""]["paper: SimKO"] == {"synlogic @1 / @128": "34.7 / 55.0", "bbh @1 / @128": "58.4 / 92.0",
                                         "average @1 / @128": "–"}


def test_a_run_stands_for_its_last_evaluation(tmp_path):
    for step in (5, 999999, 1000000):
        write(tmp_path / f"eval_{step:06d}", entry("a", [step % 7], 8))
    row, = tables.load([str(tmp_path)])
    assert row.sets["a"]["correct"] == {"a-0": 1000000 % 7} and row.folder == tmp_path
    write(tmp_path, entry("a", [0], 8))  # of another evaluation: it does not hide the run's
    assert tables.load([str(tmp_path)])[0].sets["a"]["correct"] == {"a-0": 1000000 % 7}
    (tmp_path / "learning_rate=1").mkdir()
    write(tmp_path / "learning_rate=1", entry("a", [1], 8))
    rows = tables.load([f"{tmp_path}/learning_rate=1", f"q=0.5={tmp_path}"])
    assert [row.label for row in rows] == [f"{tmp_path}/learning_rate=1", "q=0.5"]


@pytest.mark.parametrize("report, sets", [
    ({"sets": {}}, {}), ({"sets": None}, {}), ({"sets": {"a": 7}}, {}), ({"settings": {}}, {}), ({}, {"n": "8"}),
    ({}, {"n": None}), ({}, {"temperature": None}), ({}, {"set": "b"}), ({}, {"problems": 1}), ({}, {"correct": {}}),
    ({}, {"correct": {"x": 1, "y": 9}}), ({}, {"correct": {"x": 1, "y": -1}}), ({}, {"correct": {"x": 1, "y": 1.0}}),
])
def test_a_damaged_evaluation_is_named_in_one_line(tmp_path, report, sets):
    report = write(tmp_path, a=entry("a", [1, 2], 8) | sets) | report
    (tmp_path / "eval.json").write_text(json.dumps(report))
    with pytest.raises(SystemExit) as stop:
        tables.load([str(tmp_path)])
    message = stop.value.code
    assert message.startswith(str(tmp_path / "eval.json")) and "\n" not in message and len(message) < 400
    assert message.endswith(("run the evaluation again", "evaluate again"))


def test_an_unfinished_evaluation_is_not_passed_over_for_an_earlier_one(tmp_path):
    write(tmp_path / "eval_000010", entry("a", [1], 8))
    (tmp_path / "eval_000020").mkdir()
    with pytest.raises(SystemExit, match=r"eval_000020/eval.json is not there: .* unfinished"):
        tables.load([str(tmp_path)])
    (tmp_path / "eval_000020" / "eval.json").write_text('{"settings": {"mo')
    with pytest.raises(SystemExit, match=r"eval_000020/eval.json is damaged"):
        tables.load([str(tmp_path)])
    with pytest.raises(SystemExit, match="nowhere/eval.json is not there"):
        tables.load(["x=nowhere"])
    with pytest.raises(SystemExit, match="two folders have the label x: "):
        tables.load([f"x={tmp_path / 'eval_000010'}"] * 2)


def test_the_papers_tables_agree_but_for_four_of_their_averages():
    printed = tables.PAPER["tables"]
    assert {number: [len(rows) for rows in table["rows"].values()] for number, table in printed.items()} == {
        "1": [10, 6, 6], "2": [6], "4": [10, 6, 6], "5": [15]}
    for table in printed.values():
        for values in (values for methods in table["rows"].values() for values in methods.values()):
            assert len(values) == len(table["sets"]) and {len(numbers) for numbers in values} == {len(table["K"])}
            assert all(numbers == sorted(numbers) and 0 < numbers[0] and numbers[-1] <= 100 for numbers in values)
    for model, methods in printed["4"]["rows"].items():
        assert methods.keys() == printed["1"]["rows"][model].keys()
        for method, values in methods.items():
            assert values[-1] == [printed["1"]["rows"][model][method][0][i] for i in (0, -1)]
    off = {(number, model, method, k): (round(statistics.mean(values[j] for values in sets[:-1]), 1), sets[-1][j])
           for number in "45" for model, methods in printed[number]["rows"].items() for method, sets in methods.items()
           for j, k in enumerate((1, 256))
           if abs(statistics.mean(values[j] for values in sets[:-1]) - sets[-1][j]) > 0.1}  # both are rounded to 0.1
    assert off == {  # the mean of the row, and the average printed in it
        ("4", "llama3.2-3b", "GRPO", 1): (22.8, 23.3), ("5", "qwen2.5-math-7b", "Base Model@T0.8", 1): (26.0, 23.5),
        ("5", "qwen2.5-math-7b", "Base Model@T0.8", 256): (78.4, 76.7),
        ("5", "qwen2.5-math-7b", "GRPO@T1.0", 256): (76.5, 76.6)}
    math_rows, at = printed["4"]["rows"]["qwen2.5-math-7b"], printed["5"]["rows"]["qwen2.5-math-7b"]
    same = [method for method in ("Base Model", "GRPO", "SimKO") if at[f"{method}@T0.6"] == math_rows[method]]
    assert same == ["Base Model"]  # Table 5's GRPO and SimKO at 0.6 are other evaluations or runs than Table 4's
