"""Tests of complete runs and evaluations. A run that resumes after a stop is bit-identical, other
programs can read its folder, and it runs on one rank and on two."""
import json
import math
import os
import shutil
import statistics
import tracemalloc
from collections import Counter
from functools import partial
from importlib import metadata
from unittest import mock

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import simko
from runtime import responses
from runtime.baselines import METHODS
from runtime.data import prompt_order
from runtime.hf_engine import HFEngine
from runtime.packing import Sample
from runtime.puzzles import countdown
from tests import workers
from tests.conftest import (
    benchmark, checkpoints, distance, main, metrics, near, needs_vllm, quiet, recipe, spy)


def vllm_runs(folder, arguments):
    """Runs three steps without a stop. Then starts again with a copy of the folder from the moment
    when step 3 was being saved.

    Both runs are forks of this process, which imports vLLM once. Their engines are compiled, as in
    real runs."""
    import vllm.v1.worker.cpu_worker  # noqa: F401
    straight, stopped = folder / "straight", folder / "stopped"

    def run(output):
        start = partial(simko.main, [*arguments, "--output-dir", str(output)])
        pid = workers.fork(start, folder / "log")
        if workers.end_of(pid):
            raise SystemExit(1)

    run(straight)
    shutil.copytree(straight, stopped)
    for later in ("checkpoints/step_000003", "hf", "eval_000003"):
        shutil.rmtree(stopped / later)
    unfinished = stopped / "checkpoints/step_000003.tmp"
    unfinished.mkdir()
    (unfinished / "__0_0.distcp").write_bytes(b"half")
    *rows, last = metrics(stopped)
    rows.append({**last, "reward": -1})  # a row of a step that was never saved
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (stopped / "metrics.jsonl").write_text(lines + '{"step": 4, "rew')
    run(stopped)


@pytest.fixture(scope="session")
def runs(laptop, tmp_path_factory):
    """Returns the folders of two runs: one of three steps without a stop, and one that was killed
    while step 3 was being saved."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = recipe(laptop, "train", "unused", "--rollout", "vllm", "--steps", 3)
    log = folder / "log"
    workers.call(partial(vllm_runs, folder, arguments), log)
    return folder / "straight", folder / "stopped"


@needs_vllm
def test_stopped_and_resumed_equals_straight_through_bit_for_bit(runs):
    straight, stopped = runs
    assert metrics(straight) == metrics(stopped)
    assert [row["step"] for row in metrics(straight)] == [1, 2, 3]
    for path in (
            "hf/model.safetensors",
            "hf/config.json",
            "eval_000003/test.jsonl",
            "eval_000003/eval.json"):
        assert (straight / path).read_bytes() == (stopped / path).read_bytes()
    # There was something to learn, and engine and trainer had the same policy.
    for row in metrics(straight):
        assert row["mixed_groups"] > 0
        assert row["grad_norm"] > 0
        assert row["logp_gap"] < 1e-5
        assert 0.1 < row["gate_share"] < 0.2
        assert row["Lambda_3"] < row["Lambda_2"] < row["Lambda_1"] < 0


@needs_vllm
def test_a_run_folder_holds_the_last_two_checkpoints_the_export_and_its_evaluation(runs):
    for run in runs:
        names = {"config.json", "metrics.jsonl", "checkpoints", "hf", "eval_000003"}
        assert names <= {path.name for path in run.iterdir()}
        assert checkpoints(run) == ["step_000002", "step_000003"]
        settings = json.loads((run / "config.json").read_text())
        report = json.loads((run / "eval_000003/eval.json").read_text())
        versions = report["versions"]
        assert settings["versions"] == versions
        assert versions["torch"] == metadata.version("torch")
        assert versions["commit"]
        entry = report["sets"]["test"]
        correct = entry["correct"]
        _, *lines = (run / "eval_000003/test.jsonl").read_text().splitlines()
        right = [row["id"] for row in map(json.loads, lines) if row["correct"]]
        assert len(correct) == 200
        assert correct == {id: right.count(id) for id in correct}
        for k in (1, 2, 4):
            hits = [1 - math.comb(4 - c, k) / math.comb(4, k) for c in correct.values()]
            near(entry["pass"][str(k)], statistics.mean(hits))


@needs_vllm
def test_the_export_is_an_ordinary_checkpoint_that_transformers_loads_and_generates_from(
        runs, laptop):
    model = AutoModelForCausalLM.from_pretrained(runs[0] / "hf")
    before = AutoModelForCausalLM.from_pretrained(laptop / "base")
    moved = distance(dict(model.named_parameters()), dict(before.named_parameters()))
    assert 0 < moved < 0.5
    tokenizer = AutoTokenizer.from_pretrained(runs[0] / "hf")
    ids = tokenizer("3 5 7 > 56 :", return_tensors="pt").input_ids
    (made,) = model.generate(ids, max_new_tokens=6, min_new_tokens=6)
    text = tokenizer.decode(made)
    assert text.startswith("<bos> 3 5 7 > 56 : ")
    assert len(text.split()) == 13
    # transformers 4 reads this field.
    assert json.loads((runs[0] / "hf" / "config.json").read_text())["rope_theta"] == 10000


def test_a_stopped_evaluation_goes_on_and_comes_to_the_same_result(laptop, tmp_path):
    flags = (
        "--seed", 5, "--eval-temperature", 1.1, "--eval-top-p", 0.99, "--eval-max-tokens", 11)
    arguments = recipe(laptop, "eval", tmp_path, "--rollout", "hf", *flags)
    rows, report = tmp_path / "test.jsonl", tmp_path / "eval.json"
    problems = (laptop / "test.jsonl").read_text().splitlines(keepends=True)
    answers = {row["id"]: row["answer"] for row in map(json.loads, problems)}
    with spy(HFEngine, "generate") as generate, spy(simko, "seed_everything") as seed:
        main(arguments)
        keys = [call.args for call in seed.call_args_list]
        assert keys == [(5, start, 0, 1) for start in (0, 64, 128, 192)]
        whole, result = rows.read_bytes(), report.read_bytes()
        lines = whole.splitlines(keepends=True)
        assert len(lines) == 1 + 4 * 200
        assert generate.call_count == 4  # 64 problems a call
        for call in generate.call_args_list:
            n, temperature, top_p, max_tokens = call.args[2:6]
            assert (n, temperature, top_p, max_tokens) == (4, 1.1, 0.99, 11)
        made = [json.loads(line) for line in lines[1:]]
        entry = json.loads(result)["sets"]["test"]
        right = Counter(row["id"] for row in made if countdown(row["response"], answers[row["id"]]))
        assert right == Counter(row["id"] for row in made if row["correct"])
        assert entry["correct"] == {row["id"]: right[row["id"]] for row in made}
        assert entry["pass"]["1"] == pytest.approx(right.total() / len(made)) != 0
        assert entry["pass"].keys() == {"1", "2", "4"}
        assert {row["tokens"] for row in made if row["truncated"]} == {11}
        cut = sum(row["truncated"] for row in made)
        assert entry["truncated"] == cut / len(made) != 0
        assert (entry["problems"], entry["dropped"]) == (200, 0)
        for kept, rest, calls in [
                (701, b"", 2),
                (301, b'{"id"', 3),
                (513, b"", 2),
                (1, b"", 4),
                (801, b"", 0)]:
            generate.reset_mock()
            report.unlink()
            rows.write_bytes(b"".join(lines[:kept]) + rest)
            main(arguments)
            assert generate.call_count == calls
            assert rows.read_bytes() == whole
            assert report.read_bytes() == result
    for flag, value, name in [
            ("--seed", 1, "seed"),
            ("--dtype", "bfloat16", "dtype"),
            ("--eval-n", 2, "n"),
            ("--eval-temperature", 1, "temperature"),
            ("--eval-top-p", 0.5, "top_p"),
            ("--eval-max-tokens", 12, "max_tokens")]:
        with pytest.raises(SystemExit, match=f"other settings: {name} was"):
            main([*arguments, flag, str(value)])
    # Old verdicts must not count for a set of the same name with one problem fewer.
    other = tmp_path / "other" / "test.jsonl"
    other.parent.mkdir()
    other.write_text("".join(problems[1:]))
    with pytest.raises(SystemExit, match="other settings"):
        main([*arguments, "--eval-data", str(other)])
    assert rows.read_bytes() == whole


def test_an_evaluation_shows_pass_at_k_and_its_average_over_the_sets(tmp_path, capsys):
    one = {"set": "one", "n": 4, "temperature": 0.6, "top_p": 0.95, "max_tokens": 64,
           "problems": 5, "dropped": 0, "pass": {1: 0.25, 2: 0.5, 4: 1.0}}
    two = one | {"set": "two", "n": 2, "temperature": 1.0, "pass": {1: 0.75, 2: 0.8}}

    def shown(results):
        responses.report(tmp_path, simko.Config(), results)
        _, *lines = capsys.readouterr().out.splitlines()
        return [line.split() for line in lines]

    head = "set n T top-p tokens K = 1 2 4".split()
    of_one = "one 4 0.6 0.95 64 25.0 50.0 100.0".split()
    of_two = "two 2 1.0 0.95 64 75.0 80.0".split()
    average = "average 50.0 65.0".split()
    assert shown({"one": one, "two": two}) == [head, of_one, of_two, average]
    assert shown({"one": one}) == [head, of_one]
    # Two temperatures of a set have no average.
    both = shown({"one": one, "one@T1.0": one})
    assert [words[0] for words in both] == ["set", "one", "one@T1.0"]
    *_, note = shown({"one": one, "two": two | {"dropped": 2}})
    assert " ".join(note).startswith("two: pass@K leaves out 2 of 7 problems, whose prompts are")
    *_, note = shown({"one": one, "two": two | {"pass": {1: 0.0, 2: 0.0}}})
    assert " ".join(note) == (
        f"two: no response is right. Read some in {tmp_path}/two.jsonl, and check --task, "
        "--prompt-template and the format of the answers")


@pytest.mark.parametrize("n, values", [(1, [1]), (3, [1, 2]), (8, [1, 2, 4, 8])])
def test_pass_at_k_is_for_the_powers_of_two_up_to_n(group, tmp_path, n, values):
    problem = {"id": "a", "problem": "", "prompt_ids": np.ones(1), "answer": "1", "task": "math"}
    samples = [Sample(0, np.ones(1), np.ones(1), np.zeros(0), truncated=False) for _ in range(n)]
    simko.evaluate(
        simko.Config(), tmp_path, [benchmark([problem], n)],
        tokenizer=mock.Mock(decode=lambda ids, **_: ""),
        engine=mock.Mock(generate=lambda *_, **__: samples),
        verifier=mock.Mock(score=lambda *_: [1.0] + [0.0] * (n - 1)),
        progress=quiet)
    shares = json.loads((tmp_path / "eval.json").read_text())["sets"]["set"]["pass"]
    near(shares, {str(k): k / n for k in values})  # one of n is right


def test_an_evaluation_does_not_keep_the_texts_of_its_responses_in_memory(group, tmp_path):
    problems = [{"id": str(i), "problem": "", "prompt_ids": np.ones(1), "answer": "1",
                 "task": "math"} for i in range(640)]
    chunk, size = 64, 10**5
    samples = [Sample(i, np.ones(1), np.ones(1), np.zeros(0), truncated=False)
               for i in range(chunk)]
    tracemalloc.start()
    simko.evaluate(
        simko.Config(), tmp_path, [benchmark(problems, 1)],
        tokenizer=mock.Mock(decode=lambda ids, **_: "x" * size),
        engine=mock.Mock(generate=lambda *_, **__: samples),
        verifier=mock.Mock(score=lambda texts, *_: [0.0] * len(texts)),
        progress=quiet)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A chunk exists a few times, as samples, as rows and in the gather.
    assert (tmp_path / "set.jsonl").stat().st_size > 640 * size
    assert peak < 6 * chunk * size


def test_all_nine_methods_train_three_steps_on_the_laptop_recipe(laptop, tmp_path):
    runs = {}
    for method in METHODS:
        folder = tmp_path / method
        flags = "--rollout", "hf", "--method", method, "--steps", 3
        main(recipe(laptop, "train", folder, *flags))
        rows = metrics(folder)
        runs[method] = rows
        assert [row["method"] for row in rows] == [method] * 3
        assert rows[0]["grad_norm"] > 0
        for row in rows:
            assert row["logp_gap"] < 1e-5
        assert (folder / "eval_000003" / "eval.json").exists()
        assert (folder / "hf").exists()
    # Their first rollouts are the same, and then they diverge.
    assert len(runs) == 9
    assert len({rows[0]["reward"] for rows in runs.values()}) == 1
    assert len({rows[2]["Lambda_2"] for rows in runs.values()}) == 9


def test_the_log_is_of_all_responses_and_does_not_depend_on_the_scope_of_tau(laptop, tmp_path):
    """The log includes responses without a gradient."""
    rows = {}
    for scope in ("response", "batch"):
        folder = tmp_path / scope
        flags = "--rollout", "hf", "--steps", 2, "--tau-scope", scope
        with spy(simko.Trainer, "compute_old_logp") as old:
            main(recipe(laptop, "train", folder, *flags))
        rows[scope] = metrics(folder)
        for call, row in zip(old.call_args_list, rows[scope], strict=True):
            samples = call.args[1]
            assert len(samples) == 32 * 8
            assert any(sample.advantage == 0 for sample in samples)
            tokens = sum(len(sample.response_ids) for sample in samples)
            assert row["tokens"] == sum(row["entropy_histogram"]) == tokens
            assert row["response_length"] == tokens / len(samples)
    (first, second), (same, other) = rows.values()
    of_the_rollout = [name for name in first if name.startswith("Lambda")]
    of_the_rollout += ["entropy", "entropy_histogram", "logp_gap", "reward", "tokens"]
    assert len(of_the_rollout) == 9
    for name in of_the_rollout:
        assert first[name] == same[name], name
    # The policies differ from the second step on.
    assert second["entropy"] != other["entropy"]


def test_a_broken_sync_stops_the_run_and_says_so(laptop, tmp_path, monkeypatch):
    def forget(engine, named_weights):
        """Takes the weights and does not load them."""
        list(named_weights)

    monkeypatch.setattr(HFEngine, "load_weights", forget)
    flags = "--rollout", "hf", "--steps", 3, "--learning-rate", 4e-3
    with pytest.raises(SystemExit, match="does not sample from the trained policy"):
        main(recipe(laptop, "train", tmp_path, *flags))
    assert [row["step"] for row in metrics(tmp_path)] == [1]


def one_rank(folder, arguments):
    """Runs `simko.py train` on this rank of two. Records the keys of its random streams, and the
    threshold tau and the problems of its updates."""
    with spy(simko, "seed_everything") as seed, spy(simko.Trainer, "update") as updates:
        simko.main(arguments)
    keys = [call.args for call in seed.call_args_list]
    tau = [call.args[3] for call in updates.call_args_list]
    ids = [[s.id for s in call.args[1]] for call in updates.call_args_list]
    (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps([keys, tau, ids]))


def test_two_processes_train_with_one_tau_and_seeds_of_their_own_and_one_goes_on(
        laptop, tmp_path):
    flags = [
        "--rollout", "hf",
        "--tau-scope", "batch",
        "--beta", 0.1,
        "--q", 0.5,
        "--micro-batch-tokens", 99,
    ]
    train = partial(recipe, laptop, "train", tmp_path, *flags, "--steps")
    workers.call_on_two_ranks(partial(one_rank, tmp_path, train(1)), tmp_path / "log")
    first, tau, own = json.loads((tmp_path / "rank_0.json").read_text())
    second, same_tau, other = json.loads((tmp_path / "rank_1.json").read_text())
    with spy(simko, "seed_everything") as seed:
        main(train(2))
    keys = [*map(tuple, first + second), seed.call_args_list[0].args]
    assert len(set(keys)) == len(keys)
    assert len(tau) == 4
    assert tau == same_tau
    assert min(tau) > 0
    # Together the ranks train on 8 responses to each of the 8 problems that one rank would take.
    problems = (laptop / "train.jsonl").read_text().splitlines(keepends=True)
    order = prompt_order(0, 32, len(problems), seed=0)
    for update in range(4):
        ids = [json.loads(problems[i])["id"] for i in order[8 * update:8 * update + 8]]
        assert Counter(own[update] + other[update]) == dict.fromkeys(ids, 8)
    workers.run(workers.two_ranks("simko.py", *train(3)))
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        # All metrics are of the responses of both ranks.
        tokens = 32 * 8 * row["response_length"]
        assert row["tokens"] == sum(row["entropy_histogram"]) == tokens
        assert row["logp_gap"] < 1e-5
        assert 0.4 < row["gate_share"] < 0.6
        assert row["grad_norm"] > 0

    # Two ranks finish an evaluation. Its second chunk has one problem, so rank 1 has none.
    (tmp_path / "65.jsonl").write_text("".join(problems[:65]))
    flags = "--rollout", "hf", "--eval-n", 2, "--eval-data", tmp_path / "65.jsonl"
    evaluate = recipe(laptop, "eval", tmp_path / "eval", *flags)
    main(evaluate)
    rows = tmp_path / "eval" / "65.jsonl"
    kept = rows.read_text().splitlines(keepends=True)[:1 + 2 * 64]
    rows.write_text("".join(kept))
    (tmp_path / "eval" / "eval.json").unlink()
    workers.run(workers.two_ranks("simko.py", *evaluate))
    *same, one, two = rows.read_text().splitlines(keepends=True)
    assert same == kept
    assert json.loads(one)["id"] == json.loads(two)["id"] == json.loads(problems[64])["id"]

    # A run with other settings must not resume here.
    with pytest.raises(SystemExit, match="--lambda-top1 was 1.1, is 1.2"):
        main(train(4, "--lambda-top1", 1.2))
    with pytest.raises(SystemExit, match="reached step 3 already, which is beyond --steps 1"):
        main(train(1))
    with pytest.raises(SystemExit, match="is the folder of a training run"):
        main(recipe(laptop, "eval", tmp_path))
    (tmp_path / "config.json").write_text('{"lambda_top1"')
    with pytest.raises(SystemExit, match="config.json is damaged"):
        main(train(4))
    with pytest.raises(SystemExit, match="config.json/run is a file, or lies in one"):
        main(recipe(laptop, "train", tmp_path / "config.json" / "run"))
