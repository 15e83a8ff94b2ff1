"""Tests of complete runs and evaluations. A run that resumes after a stop is bit-identical, other
programs can read its folder, and it runs on one rank and on two."""
import json
import math
import os
import shutil
import statistics
from functools import partial
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import simko
from runtime.baselines import METHODS
from runtime.hf_engine import HFEngine
from tests import workers
from tests.conftest import checkpoints, distance, main, metrics, near, needs_vllm, recipe


def vllm_runs(folder):
    """Runs three steps without a stop. Then starts again with a copy of the folder from the moment
    when step 3 was being saved.

    Both runs are forks of this process, which imports vLLM once. Their engines are compiled, as in
    real runs."""
    import vllm.v1.worker.cpu_worker  # noqa: F401
    arguments = json.loads((folder / "arguments.json").read_text())
    straight, stopped = folder / "straight", folder / "stopped"

    def run(output):
        start = partial(simko.main, [*arguments, "--output-dir", str(output)])
        pid = workers.fork(start, folder / "log")
        if workers.end_of(pid):
            raise SystemExit((folder / "log").read_text())

    run(straight)
    shutil.copytree(straight, stopped)
    for later in ("checkpoints/step_000003", "hf", "eval_000003"):
        shutil.rmtree(stopped / later)
    (stopped / "checkpoints/step_000003.tmp").mkdir()
    (stopped / "checkpoints/step_000003.tmp/__0_0.distcp").write_bytes(b"half")
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
    (folder / "arguments.json").write_text(json.dumps(arguments))
    workers.run(workers.python(*workers.worker("runs", folder)))
    return folder / "straight", folder / "stopped"


@needs_vllm
def test_stopped_and_resumed_equals_straight_through_bit_for_bit(runs):
    straight, stopped = runs
    assert metrics(straight) == metrics(stopped)
    assert [row["step"] for row in metrics(straight)] == [1, 2, 3]
    for path in ("hf/model.safetensors", "hf/config.json",
                 "eval_000003/test.jsonl", "eval_000003/eval.json"):
        assert (straight / path).read_bytes() == (stopped / path).read_bytes()
    # There was something to learn, and engine and trainer had the same policy.
    for row in metrics(straight):
        assert row["mixed_groups"] > 0 and row["grad_norm"] > 0 and row["logp_gap"] < 1e-5
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
        assert settings["versions"] == report["versions"]
        assert report["versions"]["torch"] == torch.__version__ and report["versions"]["commit"]
        report = report["sets"]["test"]
        _, *lines = (run / "eval_000003/test.jsonl").read_text().splitlines()
        right = [row["id"] for row in map(json.loads, lines) if row["correct"]]
        assert len(report["correct"]) == 200
        assert report["correct"] == {id: right.count(id) for id in report["correct"]}
        for k in (1, 2, 4):
            hits = [1 - math.comb(4 - c, k) / math.comb(4, k) for c in report["correct"].values()]
            near(report["pass"][str(k)], statistics.mean(hits))


@needs_vllm
def test_the_export_is_an_ordinary_checkpoint_that_transformers_loads_and_generates_from(
        runs, laptop):
    model = AutoModelForCausalLM.from_pretrained(runs[0] / "hf")
    before = AutoModelForCausalLM.from_pretrained(laptop / "base")
    assert 0 < distance(dict(model.named_parameters()), dict(before.named_parameters())) < 0.5
    tokenizer = AutoTokenizer.from_pretrained(runs[0] / "hf")
    ids = tokenizer("3 5 7 > 56 :", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, max_new_tokens=6, min_new_tokens=6)[0])
    assert text.startswith("<bos> 3 5 7 > 56 : ") and len(text.split()) == 13


def test_a_stopped_evaluation_goes_on_and_comes_to_the_same_result(laptop, tmp_path):
    arguments = recipe(laptop, "eval", tmp_path, "--rollout", "hf")
    responses, report = tmp_path / "test.jsonl", tmp_path / "eval.json"
    with mock.patch.object(
            HFEngine, "generate", autospec=True, side_effect=HFEngine.generate) as generate:
        main(arguments)
        whole, result = responses.read_bytes(), report.read_bytes()
        lines = whole.splitlines(keepends=True)
        assert len(lines) == 1 + 4 * 200 and generate.call_count == 4  # 64 problems a call
        for kept, rest, calls in [
                (701, b"", 2), (301, b'{"id"', 3), (513, b"", 2), (1, b"", 4), (801, b"", 0)]:
            generate.reset_mock()
            report.unlink()
            responses.write_bytes(b"".join(lines[:kept]) + rest)
            main(arguments)
            assert generate.call_count == calls
            assert responses.read_bytes() == whole and report.read_bytes() == result
    with pytest.raises(SystemExit, match="other settings"):
        main([*arguments, "--eval-top-p", "0.5"])
    # Old verdicts must not count for a set of the same name with one problem fewer.
    other = tmp_path / "other" / "test.jsonl"
    other.parent.mkdir()
    problems = (laptop / "test.jsonl").read_text().splitlines(keepends=True)
    other.write_text("".join(problems[1:]))
    with pytest.raises(SystemExit, match="other settings"):
        main([*arguments, "--eval-data", str(other)])
    assert responses.read_bytes() == whole


def test_all_nine_methods_train_three_steps_on_the_laptop_recipe(laptop, tmp_path):
    runs = {}
    for method in METHODS:
        folder = tmp_path / method
        main(recipe(laptop, "train", folder, "--rollout", "hf", "--method", method, "--steps", 3))
        runs[method] = metrics(folder)
        assert [row["method"] for row in runs[method]] == [method] * 3
        assert runs[method][0]["grad_norm"] > 0
        assert all(row["logp_gap"] < 1e-5 for row in runs[method])
        assert (folder / "eval_000003" / "eval.json").exists() and (folder / "hf").exists()
    # Their first rollouts are the same, and then they diverge.
    assert len(runs) == 9 and len({rows[0]["reward"] for rows in runs.values()}) == 1
    assert len({rows[2]["Lambda_2"] for rows in runs.values()}) == 9


def test_the_log_is_of_all_responses_and_does_not_depend_on_the_scope_of_tau(laptop, tmp_path):
    """The log includes responses without a gradient."""
    compute = simko.Trainer.compute_old_logp
    rows = {}
    for scope in ("response", "batch"):
        with mock.patch.object(
                simko.Trainer, "compute_old_logp", autospec=True, side_effect=compute) as old:
            main(recipe(laptop, "train", tmp_path / scope, "--rollout", "hf", "--steps", 2,
                        "--tau-scope", scope))
        for call, row in zip(old.call_args_list, metrics(tmp_path / scope), strict=True):
            samples = call.args[1]
            assert len(samples) == 32 * 8 and any(s.advantage == 0 for s in samples)
            tokens = sum(len(s.response_ids) for s in samples)
            assert row["tokens"] == sum(row["entropy_histogram"]) == tokens
            assert row["response_length"] == tokens / len(samples)
        rows[scope] = metrics(tmp_path / scope)
    (first, second), (same, other) = rows.values()
    of_the_rollout = [name for name in first if name.startswith("Lambda")]
    of_the_rollout += ["entropy", "entropy_histogram", "logp_gap", "reward", "tokens"]
    assert len(of_the_rollout) == 9
    assert all(first[name] == same[name] for name in of_the_rollout)
    # The policies differ from the second step on.
    assert second["entropy"] != other["entropy"]


def test_a_broken_sync_stops_the_run_and_says_so(laptop, tmp_path):
    with (mock.patch.object(
            HFEngine, "load_weights", lambda engine, named_weights: list(named_weights)),
          pytest.raises(SystemExit, match="does not sample from the trained policy")):
        main(recipe(laptop, "train", tmp_path, "--rollout", "hf", "--steps", 3,
                    "--learning-rate", 4e-3))
    assert [row["step"] for row in metrics(tmp_path)] == [1]


def one_rank(folder):
    """Runs `simko.py train` on this rank of two. Records the keys of its random streams and the
    threshold tau of its updates."""
    update = simko.Trainer.update
    with (mock.patch.object(simko, "seed_everything", wraps=simko.seed_everything) as seed,
          mock.patch.object(
              simko.Trainer, "update", autospec=True, side_effect=update) as updates):
        simko.main(json.loads((folder / "arguments.json").read_text()))
    keys = [call.args for call in seed.call_args_list]
    tau = [call.args[3] for call in updates.call_args_list]
    (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps([keys, tau]))


def test_two_processes_train_with_one_tau_and_seeds_of_their_own_and_one_goes_on(
        laptop, tmp_path):
    flags = ["--rollout", "hf", "--tau-scope", "batch", "--beta", 0.1, "--q", 0.5,
             "--micro-batch-tokens", 99]
    train = partial(recipe, laptop, "train", tmp_path, *flags, "--steps")
    (tmp_path / "arguments.json").write_text(json.dumps(train(1)))
    workers.run(workers.two_ranks(*workers.worker("one rank", tmp_path)))
    (first, tau), (second, same_tau) = (
        json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    with mock.patch.object(simko, "seed_everything", wraps=simko.seed_everything) as seed:
        main(train(2))
    keys = [*map(tuple, first + second), seed.call_args_list[0].args]
    assert len(set(keys)) == len(keys)
    assert len(tau) == 4 and tau == same_tau and all(x > 0 for x in tau)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2]
    for row in metrics(tmp_path):
        assert row["logp_gap"] < 1e-5 and 0.4 < row["gate_share"] < 0.6 and row["grad_norm"] > 0

    # The second chunk of an evaluation has one problem, so rank 1 has none.
    problems = (laptop / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "65.jsonl").write_text("".join(problems[:65]))
    flags = "--rollout", "hf", "--eval-n", 2, "--eval-data", tmp_path / "65.jsonl"
    workers.run(workers.two_ranks("simko.py", *recipe(laptop, "eval", tmp_path / "eval", *flags)))
    assert len((tmp_path / "eval" / "65.jsonl").read_text().splitlines()) == 1 + 2 * 65

    # A run with other settings must not resume here.
    with pytest.raises(SystemExit, match="--lambda-top1 was 1.1, is 1.2"):
        main(train(3, "--lambda-top1", 1.2))
    with pytest.raises(SystemExit, match="reached step 2 already, which is beyond --steps 1"):
        main(train(1))
    with pytest.raises(SystemExit, match="is the folder of a training run"):
        main(recipe(laptop, "eval", tmp_path))
    (tmp_path / "config.json").write_text('{"lambda_top1"')
    with pytest.raises(SystemExit, match="config.json is damaged"):
        main(train(3))
    with pytest.raises(SystemExit, match="config.json/run is a file, or lies in one"):
        main(recipe(laptop, "train", tmp_path / "config.json" / "run"))
