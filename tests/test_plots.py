"""Tests of plots.py: what the figures show, read back from them, against plain computations on rows written here."""
import json
import math
import random
import shutil
import statistics
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tools import laptop, plots
from tools.tables import load

VOCABULARY = laptop.vocabulary()
SIMKO = {"lr": 1e-3, "alpha": 0.05, "lambda_top1": 1.5, "q": 0.5}
CHOSEN = {"grpo": [{"lr": 2e-3}, 400], "simko": [SIMKO, 200], "psr": [{"lr": 1e-3}, 300]}


@pytest.fixture(autouse=True)
def close():
    yield
    plots.plt.close("all")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluation(folder, *temperatures, **sets):
    """eval.json of {set: (n, counts of right answers)}, at several temperatures if any are named."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {name + (f"@T{t}" if temperatures else ""): {
        "set": name, "n": n, "temperature": t, "top_p": 1.0, "max_tokens": 12, "problems": len(right), "truncated": 0.0,
        "correct": {f"{name}-{i}": c for i, c in enumerate(right)}}
        for name, (n, right) in sets.items() for t in temperatures or [1.0]}
    (folder / "eval.json").write_text(json.dumps({"settings": {"prompt_template": "raw"}, "sets": report}))


def metrics(steps, seed=0, **more):
    rng = random.Random(seed)
    return [{"step": step, "reward": rng.random(), "entropy": rng.random(), "Lambda": -rng.random(),
             "Lambda_1": -rng.random(), "Lambda_2": -5 - rng.random(), **more} for step in range(1, steps + 1)]


def lines(axis):
    """{label: (x, y)} of an axis' lines."""
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axis.lines}


def points(axis):
    """{label: (x, y, [errors of x, if any, errors of y])} of an axis' errorbars."""
    found = {}
    for bars in axis.containers:
        x, y = map(list, bars.lines[0].get_data())
        errors = [[math.dist(*ends) / 2 for ends in part.get_segments()] for part in bars.lines[2]]
        found[bars.get_label()] = x, y, errors
    return found


def naive(values):
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs plots.py: the names of the figures."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plots.py", *map(str, arguments), "-o", str(tmp_path / "figures")])
        plots.main()
        paths = [Path(name) for name in capsys.readouterr().out.strip().removeprefix("figures: ").split(", ")]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
        return [path.stem for path in paths]
    return run


# ------------------------------------------------------------------------------------------------------------ runs
def test_what_is_there_is_drawn(tmp_path, call):
    evaluation(tmp_path / "run" / "eval_000004", a=(4, [1, 2]), b=(300, [3]))
    evaluation(tmp_path / "sweep", 0.2, 1.0, a=(4, [1, 2]))
    assert call(f"x={tmp_path / 'run'}") == ["fig1_pass_at_k"]
    log = write(tmp_path / "run" / "metrics.jsonl", metrics(4))
    assert call(f"x={tmp_path / 'run'}", tmp_path / "sweep") == ["fig1_pass_at_k", "fig1_candidates", "fig3_5_dynamics"]
    write(log, metrics(4, entropy_histogram=[1] * 41))
    assert call(f"x={tmp_path / 'run'}")[-1] == "fig6_entropy"
    with pytest.raises(SystemExit, match="11 folders: no more than 10"):
        call(*(f"{i}={tmp_path / 'run'}" for i in range(11)))


def test_pass_at_k_by_set_and_temperature(tmp_path):
    right = 0, 1, 5, 8
    evaluation(tmp_path / "x", a=(8, right), b=(300, [3]))
    evaluation(tmp_path / "sweep", 0.2, 1.0, a=(4, [1, 2]))
    rows = load([f"x={tmp_path / 'x'}"])
    figure = plots.pass_figure(rows, dict(zip("x", plots.STYLES)))
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    x, y = lines(figure.axes[0])["x"]
    assert x == [1, 2, 4, 8]
    assert y == pytest.approx([100 * statistics.mean(1 - math.comb(8 - c, k) / math.comb(8, k) for c in right)
                               for k in (1, 2, 4, 8)])
    rows = load([f"x={tmp_path / 'x'}", f"sweep={tmp_path / 'sweep'}"])
    figure = plots.pass_figure(rows, dict(zip(("x", "sweep"), plots.STYLES)))
    shown = {axis.get_title(): set(lines(axis)) for axis in figure.axes if axis.axison}
    assert shown == {"a, T = 0.2": {"sweep"}, "a, T = 1.0": {"x", "sweep"}, "b, T = 1.0": {"x"}}


def test_candidates_are_geometric_means_of_the_last_steps():
    rows = metrics(60)
    (axis,) = plots.candidates_figure({"x": rows}, dict(zip("x", plots.STYLES))).axes
    logs = [[row[f"Lambda_{k}"] for row in rows[35:]] for k in (1, 2)]
    assert lines(axis)["x"][0] == [1, 2] and axis.get_yscale() == "log"
    assert lines(axis)["x"][1] == pytest.approx([math.prod(map(math.exp, values)) ** (1 / 25) for values in logs])
    assert "geometric mean" in axis.get_ylabel()


def test_dynamics_are_means_of_the_steps_before():
    rows, old = metrics(60), [{"step": step, "reward": 0.25} for step in (1, 2)]
    curves = {label: (plots.STYLES[0], plots.run_curves(log)) for label, log in (("x", rows), ("old", old))}
    axes = plots.dynamics_figure(curves).axes
    assert [axis.get_title() for axis in axes if axis.axison] == [
        "reward", "entropy, nats", r"$\Lambda$, sampled tokens", r"$\Lambda^{(1)}$", r"$\Lambda^{(2)}$"]
    assert lines(axes[0])["old"] == ([1, 2], [0.25, 0.25]) and list(lines(axes[4])) == ["x"]
    for axis, name in zip(axes, ("reward", "entropy", "Lambda", "Lambda_1", "Lambda_2")):
        steps, values = lines(axis)["x"]
        assert steps == list(range(1, 61))
        for i in (0, 1, 2, 59):
            assert values[i] == pytest.approx(statistics.mean(row[name] for row in rows[max(0, i - 2):i + 1]))


def test_entropies_of_the_last_steps_as_shares(tmp_path):
    rng = random.Random(0)
    rows = [row | {"entropy_histogram": [rng.randrange(9) for _ in range(40)] + [0]} for row in metrics(30)]
    runs = {"x": rows, "old": metrics(30), "resumed": metrics(10) + rows[10:]}
    (axis,) = plots.entropy_figure(runs, dict(zip(runs, plots.STYLES))).axes
    (steps,) = axis.patches
    assert steps.get_label() == "x" and axis.get_yscale() == "log"
    counts = [sum(row["entropy_histogram"][i] for row in rows[5:]) for i in range(41)]
    values, edges, _ = steps.get_data()
    assert list(edges) == pytest.approx([i / 10 for i in range(42)])
    assert list(values[:40]) == pytest.approx([100 * count / sum(counts) for count in counts[:40]])
    assert math.isnan(values[40])
    assert plots.entropy_figure({"old": metrics(30)}, {}) is None


# ----------------------------------------------------------------------------------------------------------- study
def rates(*key):
    """{K: pass@K} that depend on the key alone and rise with K."""
    rng = random.Random(repr(key))
    return dict(zip(("1", "2", "16", "256"), sorted(rng.random() for _ in range(4))))


@pytest.fixture
def study(tmp_path):
    """main: three methods at seeds 0 to 2, GRPO at 3, too; ablation: seeds 0 and 1."""
    main, ablation, curves = [], [], []
    for method, (settings, end) in CHOSEN.items():
        for seed in range(4 if method == "grpo" else 3):
            about = {"run": method, "method": method, "settings": settings, "seed": seed}
            steps = [0, 100, 200, end] if method == "psr" else [0, 100, 200, 300, 400]
            main += [{**about, "step": s, "pass": rates(seed, s and method, s)} for s in steps]
            curves.append({"stage": "main", **about, "steps": [25, 50], "reward": [seed, seed ** 2],
                           "Lambda_1": [-seed, -2 * seed], "gate_share": [0, 0]})
    for method, settings in plots.SHARED.items():
        main += [{"method": method, "settings": settings, "seed": seed, "step": s,
                  "pass": rates(seed, s and f"{method} shared", s)} for seed in range(2) for s in range(0, 250, 50)]
        curves.append({"stage": "main", "method": method, "settings": settings, "seed": 0, "steps": [9], "reward": [7]})
    main.append({**main[-1], "settings": {"lr": 9}, "pass": {"1": 0, "256": 0}})  # not the chosen settings
    curves.append({**curves[0], "stage": "tune", "reward": [99, 99]})
    changes = [{"alpha": 0.0}, {"alpha": 0.2}, {"q": 0.2, "tau_scope": "response"}, {"q": 0.5, "tau_scope": "response"},
               {"q": 0.2, "tau_scope": "batch"}, {"alpha": 0.01, "lambda_top1": 1.1, "q": 0.8}]
    for change in changes:
        settings = {**plots.SHARED["simko"], **change}
        ablation += [{"run": "", "method": "simko", "settings": settings, "seed": seed, "step": step,
                      "pass": rates(seed, step, change)} for seed in range(2) for step in (0, 200)]
    folder = tmp_path / "laptop"
    for name, rows in (("main", main), ("ablation", ablation), ("curves", curves)):
        write(folder / f"{name}.jsonl", rows)
    (folder / "chosen.json").write_text(json.dumps(CHOSEN))
    return folder


def expected(method, step, k, seeds=range(3)):
    return naive([100 * rates(seed, step and method, step)[str(k)] for seed in seeds])


def test_frontier_shows_means_over_the_seeds_that_all_have(study):
    figure = plots.frontier_figure(plots.load_study(study))
    assert [axis.get_ylabel() for axis in figure.axes] == ["pass@16, %", "pass@256, %"] * 2
    for axis, k in zip(figure.axes[2:], (16, 256)):
        found = points(axis)
        assert axis.get_title() == "both at learning rate 0.0004\nmean ± s.e. over 2 seeds"
        assert list(found) == ["base", "GRPO", "SimKO"]
        assert list(zip(*found["SimKO"][1:2], found["SimKO"][2][1])) == [
            pytest.approx(expected(step and "simko shared", step, k, range(2))) for step in range(0, 250, 50)]
    for axis, k in zip(figure.axes[:2], (16, 256)):
        found = points(axis)
        assert axis.get_title() == "settings as chosen: learning rates differ\nmean ± s.e. over 3 seeds"
        assert list(found) == ["base", "GRPO", "SimKO", "PSR"]
        for name, method, steps in (("base", "", [0]), ("GRPO", "grpo", range(0, 500, 100)), ("PSR", "psr", [300]),
                                    ("SimKO", "simko", range(0, 500, 100))):
            x, y, (dx, dy) = found[name]
            assert list(zip(x, dx)) == [pytest.approx(expected(method, step, 1)) for step in steps]
            assert list(zip(y, dy)) == [pytest.approx(expected(method, step, k)) for step in steps]
        (way,) = (line for line in axis.lines if len(line.get_xdata()) == 4)  # PSR's, whose only mark is at its end
        assert list(way.get_ydata()) == pytest.approx([expected("psr", step, k)[0] for step in (0, 100, 200, 300)])
        arrows = [text for text in axis.texts if text.arrow_patch and not text.get_text()]
        assert len(arrows) == 8  # one a step of GRPO and SimKO
        x, y, _ = found["GRPO"]
        assert (arrows[1].xyann, arrows[1].xy) == ((x[1], y[1]), pytest.approx(((x[1] + x[2]) / 2, (y[1] + y[2]) / 2)))


def test_methods_are_compared_at_their_chosen_steps(study):
    figure = plots.methods_figure(plots.load_study(study))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["base", *(f"{plots.NAMES[method]}, {own['lr']:g}" for method, (own, _) in CHOSEN.items())]
    for axis, k in zip(figure.axes, (1, 16, 256)):
        assert axis.get_xlabel() == f"pass@{k}, %"
        for line, (bars, (method, step)) in enumerate(zip(axis.containers, {
                "": 0, **{method: step for method, (_, step) in CHOSEN.items()}}.items())):
            ((x,), (y,)), ((start, end),) = bars.lines[0].get_data(), bars.lines[2][0].get_segments()
            mean, error = expected(method, step, k)
            assert y == line and (x, (end[0] - start[0]) / 2) == pytest.approx((mean, error))
            assert axis.texts[line].get_text() == f"{mean:.1f}"


def test_ablation_changes_one_setting_at_a_time(study):
    figure = plots.ablation_figure(plots.load_study(study))
    assert [axis.get_xlabel() for axis in figure.axes[2:]] == ["α", "q of τ(q)"]
    for i, k in enumerate((1, 256)):
        alpha, q = (points(axis) for axis in figure.axes[2 * i:2 * i + 2])
        mine = expected("simko shared", 200, k, range(2))

        def changed(**change):
            return naive([100 * rates(seed, 200, change)[str(k)] for seed in range(2)])
        for found, values in ((alpha["SimKO, one setting changed"], [changed(alpha=0.0), mine, changed(alpha=0.2)]),
                              (q["SimKO, τ over the response"], [changed(q=0.2, tau_scope="response"), mine]),
                              (q["SimKO, τ over the batch"], [changed(q=0.2, tau_scope="batch")])):
            assert found[0] == list(range(len(values)))
            assert list(zip(found[1], found[2][0])) == [pytest.approx(value) for value in values]
        references = lines(figure.axes[2 * i])
        assert references["GRPO"][1] == pytest.approx([expected("grpo shared", 200, k, range(2))[0]] * 2)
        assert references["SimKO, nothing changed"][1] == pytest.approx([mine[0]] * 2)
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["0", "0.05", "0.2"]
    (study / "ablation.jsonl").unlink()
    assert plots.ablation_figure(plots.load_study(study)) is None


def test_dynamics_over_seeds(study):
    curves, seeds = plots.load_study(study).curves
    assert seeds == "mean ± s.e. over 3 seeds"
    axes = plots.dynamics_figure(curves).axes
    assert [axis.get_title() for axis in axes] == ["reward", r"$\Lambda^{(1)}$"]
    for name in ("GRPO", "SimKO", "PSR"):
        assert lines(axes[0])[name] == ([25, 50], pytest.approx([1, 5 / 3]))
    mean, error = naive([0, 1, 4])
    edge = axes[0].collections[0].get_paths()[0].vertices
    assert {round(y, 9) for x, y in edge if x == 50} == {round(mean - error, 9), round(mean + error, 9)}


def test_a_study_is_drawn_as_far_as_it_is(study, call):
    assert call("--study", study) == ["frontier", "fig3d_methods", "fig7_ablation", "fig3_5_study", "fig3_5_shared"]
    for name in ("ablation", "curves"):
        (study / f"{name}.jsonl").unlink()
    main = study / "main.jsonl"
    write(main, [row for row in map(json.loads, main.read_text().splitlines()) if row["seed"] == 0])
    assert call("--study", study) == ["frontier", "fig3d_methods"]  # one seed: no error bars


# ------------------------------------------------------------------------------------------------------------ path
@pytest.fixture
def runs(tmp_path):
    """Two runs of a tiny base model, as simko.py leaves them, with tools/laptop.py's tokenizer."""
    problems = write(tmp_path / "test.jsonl", [{"id": f"p{i}", "problem": f"{i} 2 3 > 9 :", "answer": "9"}
                                               for i in range(3)])
    for number, folder in enumerate(("base", "GRPO/hf", "SimKO/hf")):
        torch.manual_seed(number)
        config = LlamaConfig(vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                             num_attention_heads=2, initializer_range=0.6, max_position_embeddings=32)
        LlamaForCausalLM(config).save_pretrained(tmp_path / folder)
        laptop.make_tokenizer().save_pretrained(tmp_path / folder)
    folders = {label: tmp_path / label for label in ("GRPO", "SimKO")}
    settings = {"model": str(tmp_path / "base"), "eval_data": [str(problems)], "data_dir": "", "task": "countdown",
                "prompt_template": "raw", "max_prompt_length": 16, "K": 3, "temperature": 0.7, "steps": 4}
    for folder in folders.values():
        (folder / "config.json").write_text(json.dumps(settings))
    answers = [("p0", 1, "7"), ("p1", 0, "4"), ("p1", 1, "2 + 3 = 5"), ("p1", 1, "8")]
    for step, rows in (("eval_000000", answers), ("eval_000004", [("p2", 1, "6 * 6")])):
        write(folders["SimKO"] / step / "test.jsonl", [{"set": "test"}] + [
            {"id": id, "correct": correct, "response": text} for id, correct, text in rows])
    return folders


def test_path_shows_each_models_probabilities_of_one_response(runs, tmp_path):
    title, response, found, word = plots.read_path(runs, 1)
    prompt = [VOCABULARY[token] for token in "<bos> 1 2 3 > 9 :".split()]
    assert [word(id) for id in response] == "2 + 3 = 5".split() and "test, problem 1" in title
    figure = plots.path_figure(title, response, found, word)
    assert [axis.get_ylabel() for axis in figure.axes] == ["base", "GRPO", "SimKO"]
    for axis, folder in zip(figure.axes, ("base", "GRPO/hf", "SimKO/hf")):
        model, bars = AutoModelForCausalLM.from_pretrained(tmp_path / folder), iter(axis.patches)
        for i in range(5):  # one forward pass a token
            logits = model(torch.tensor([prompt + response[:i]])).logits[0, -1] / 0.7
            best, below = logits.softmax(-1).sort(descending=True), 0
            for value, id in zip(best.values[:3].tolist(), best.indices[:3].tolist()):
                bar = next(bars)
                assert (bar.get_x() + bar.get_width() / 2, bar.get_y()) == pytest.approx((i, below), abs=1e-5)
                assert bar.get_height() == pytest.approx(value, abs=1e-5)
                assert (bar.get_edgecolor()[:3] == (0, 0, 0)) == (id == response[i])
                below += value
    assert [word(id) for id in plots.read_path(runs, 2)[1]] == "6 * 6".split()  # base had none that is right
    few = plots.path_figure(title, response, found, word, most=2)
    places = sorted(sorted(range(5), key=lambda i: -found["base"][2][i])[:2])
    assert [label.get_text() for label in few.axes[-1].get_xticklabels()] == [
        f"{word(response[i])}\n{i + 1}" for i in places]


@pytest.mark.parametrize("index, change, message", [
    (3, None, "--path 3: .*test.jsonl has the problems 0 to 2"), (-1, None, "--path -1"),
    (1, lambda run: shutil.rmtree(run / "hf"), "GRPO/hf is not there: the run is unfinished"),
    (1, lambda run: shutil.rmtree(run.parent / "base"), "base or a run's hf cannot be loaded"),
    (1, lambda run: shutil.rmtree(run.parent / "SimKO" / "eval_000000"), "correct response to p1 of test"),
    (1, lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace("raw", "plain")),
     "config.json: another model, prompt_template or eval_data than GRPO")])
def test_what_path_cannot_show(runs, index, change, message):
    if change:
        change(runs["GRPO"])
    with pytest.raises(SystemExit, match=message):
        plots.read_path(runs, index)


# ------------------------------------------------------------------------------------------------- follow, errors
def test_chart_puts_the_means_of_steps_in_columns():
    rows = [{"step": step, "reward": step / 8} for step in (1, 2, 3, 4)]
    assert plots.chart(rows, 8, 4, height=3).split("\n") == [  # means 3/16 and 7/16; half of the run is still to come
        "step 4 of 8", "reward          0.438  █", "now 0.438              █", "                0.188 ▁█"]
    assert plots.chart([], 8, 4) == "step 0 of 8"
    assert "now" in plots.chart([{"step": 1, "reward": 0.5, "entropy": math.nan}], 8, 4)


def test_follow_prints_once_without_a_terminal_and_until_the_end_with_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text('{"steps": 8}')
    log = write(tmp_path / "metrics.jsonl", metrics(3))
    log.write_text(log.read_text() + '{"step": 4, "rew')  # is being written
    monkeypatch.setattr(sys, "argv", ["plots.py", "--follow", str(tmp_path)])
    monkeypatch.setattr(plots.time, "sleep", lambda seconds: pytest.fail("it waited"))
    plots.main()
    out = capsys.readouterr().out
    assert out.startswith("step 3 of 8\nreward") and "\x1b" not in out and "Λ^(2)" in out and len(out.split("\n")) == 14
    sizes = iter((5, 8))
    monkeypatch.setattr(plots.time, "sleep", lambda seconds: write(log, metrics(next(sizes))))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    plots.main()
    assert [part.split("\n")[0] for part in capsys.readouterr().out.split("\x1b[13A\x1b[J")] == [
        f"step {step} of 8" for step in (3, 5, 8)]


def test_errors_name_the_file_and_what_to_do(tmp_path, study, call):
    evaluation(tmp_path / "run" / "eval_000004", a=(4, [1, 2]))
    for text, message in (("{}\n", r"metrics.jsonl, line 1, .*no 'step'.*train the run again"),
                          ('{"step": 1, "reward": 1}\n?\n', r"metrics.jsonl, line 2, is damaged")):
        (tmp_path / "run" / "metrics.jsonl").write_text(text)
        with pytest.raises(SystemExit, match=message):
            call(f"x={tmp_path / 'run'}")
    with pytest.raises(SystemExit, match="config.json cannot be read .*--follow takes the folder of a run"):
        plots.follow(tmp_path / "nowhere")
    write(study / "main.jsonl", [{**row, "settings": {}} for row in map(json.loads, (study / "main.jsonl").open())])
    with pytest.raises(SystemExit, match="main.jsonl has no seed with all that chosen.json names"):
        call("--study", study)
    (study / "chosen.json").unlink()
    with pytest.raises(SystemExit, match="chosen.json cannot be read .*study.py tune main"):
        call("--study", study)
    with pytest.raises(SystemExit, match="main.jsonl is not there"):
        call("--study", tmp_path)
    for arguments in ((), ("--study", study, "--path", 1)):
        with pytest.raises(SystemExit, match="2"):
            call(*arguments)
