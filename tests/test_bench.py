"""Tests of tools/bench.py. Each command runs on tiny sizes and prints readable tables. The
implementations that SimKO's loss is compared with compute the same numbers.

Comparing `step` with TRL needs a separate environment, whose Python SIMKO_TRL_PYTHON names."""
import math
import mmap
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import simko
from runtime import chunked, lora
from runtime.hardware import missing_for_torch_compile
from runtime.packing import pack
from tests import workers
from tests.conftest import eager_vllm, needs_vllm, quiet, write_rows
from tools import bench, bench_step, heads, measuring, random_models

generation_rates = bench.generation_rates
needs_compiler = pytest.mark.skipif(
    bool(missing_for_torch_compile()), reason="torch.compile lacks a compiler or Python.h")
needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
ABOVE = "GiB above weights, gradients, optimizer"


def tables(output):
    """Returns [[{column: cell} of each row] of each table]. Numbers are floats."""
    found, lines = [], output.splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or line.startswith("| --- "):
            continue
        if following.startswith("| --- "):
            names = cells
            found.append([])
        else:
            found[-1].append(dict(zip(names, map(number, cells), strict=True)))
    return found


def number(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


@pytest.fixture
def run(capsys, monkeypatch):
    """Returns a function that runs a command line in this process and returns its tables."""
    monkeypatch.setattr(bench, "afresh", lambda function, *arguments: function(*arguments))

    def call(*arguments):
        with mock.patch.dict(os.environ):
            bench.main([str(argument) for argument in arguments])
        return tables(capsys.readouterr().out)

    return call


# ------------------------------------------------------------------------ what is compared is equal
def values_and_gradients(statistics, K, vocabulary=60, temperature=0.7, **arguments):
    states, weight, token = bench.head_inputs(48, 16, vocabulary)
    token[::3] = (states @ weight.T).argmax(1)[::3]  # some are rank-1
    logp, topk_logp, entropy, is_top1 = statistics(
        states, weight, token, K, temperature, **arguments)
    (logp.sin().sum() + topk_logp.cos().sum()).backward()
    return logp, topk_logp, entropy, is_top1, states.grad, weight.grad


@pytest.mark.parametrize("K", [1, 3, 7])
@pytest.mark.parametrize("statistics", [heads.released_statistics, heads.full_statistics])
def test_full_logits_give_the_same_numbers(K, statistics, monkeypatch):
    monkeypatch.setattr(bench, "DTYPE", torch.float64)
    ours = values_and_gradients(chunked.token_statistics, K)
    torch.testing.assert_close(ours, values_and_gradients(statistics, K), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocabulary", [60, 320])  # 320 makes five blocks of 64; 60 has none
@pytest.mark.parametrize("way", [
    "topk-first", "topk-blocks", "few-passes",
    pytest.param("compiled-chunks", marks=needs_compiler)])
def test_every_head_gives_the_same_numbers(way, vocabulary, temperature):
    settings = {"vocabulary": vocabulary, "temperature": temperature, "chunk": 20}
    plain = values_and_gradients(chunked.token_statistics, 3, **settings)
    functions = heads.functions(way)
    assert functions != heads.PLAIN
    with mock.patch.multiple(chunked, **functions):
        other = values_and_gradients(chunked.token_statistics, 3, **settings)
    torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("K", [1, 3, 5, 6])  # of 320 logits in five blocks
def test_top_k_by_blocks_is_exact(K):
    z = torch.randn(50, 320, generator=torch.Generator().manual_seed(0))
    z[1] = z[1].round()  # ties
    z[2, 64:70] = 9      # all of them in one block
    values, indices = heads.top_k_by_blocks(z, K)
    assert torch.equal(values, z.topk(K).values)
    assert torch.equal(z.gather(1, indices), values)
    assert all(len(set(row)) == K for row in indices.tolist())


@needs_compiler
def test_layers_are_compiled_once_for_all_lengths_and_give_the_same_gradients(group):
    from torch._dynamo.utils import counters
    config, device = random_models.shape_of("laptop"), torch.device(bench.DEVICE)
    norms, graphs = [], []
    for change in (None, bench.compile_layers):
        torch.manual_seed(0)
        trainer = random_models.random_trainer(config, device, change, learning_rate=0.0)
        norms.append([])
        graphs.append([])
        for count, length in ((4, 64), (2, 64), (3, 50)):
            samples = random_models.random_samples(count, length, "laptop")
            norms[-1].append(trainer.update(samples, "simko", None, quiet)["grad_norm"])
            graphs[-1].append(counters["stats"]["unique_graphs"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert graphs[0][-1] < graphs[1][0] == graphs[1][-1]


def test_the_loss_is_that_of_a_trainer(group):
    """The loss is that of the first update after a rollout, as a mean over tokens."""
    device = torch.device(bench.DEVICE)
    trainer = random_models.random_trainer(
        random_models.shape_of("laptop"), device, loss_type="dapo", lambda_top1=1.6, q=0.4)
    samples = random_models.random_samples(4, 512, "laptop")  # some tokens happen to be rank-1
    packed = pack(samples, device)
    losses = {}
    for method in ("simko", "grpo"):
        statistics = trainer.policy.policy_forward(packed, trainer.cfg.K, 1.0)
        own = statistics[0].detach().split(packed.lengths.tolist())
        for sample, logp, advantage in zip(samples, own, (-2.0, -1.0, 0.5, -0.5)):
            sample.old_logp, sample.advantage = logp, advantage
        advantages = torch.tensor([s.advantage for s in samples], device=device)
        advantages = advantages.repeat_interleave(packed.lengths)
        loss = bench.token_loss(method, statistics, advantages, packed.lengths, trainer.cfg)
        losses[method] = loss.mean().item()
        sums = trainer.update(samples, method, None, quiet)
        assert sums["loss"] == pytest.approx(losses[method], rel=1e-4)
    assert losses["simko"] > losses["grpo"]


# ----------------------------------------------------------------------- what is counted is right
def test_products_compute_the_gradient_of_a_head():
    states, weight, _ = bench.head_inputs(16, 8, 20)
    with FlopCounterMode(display=False) as counter:
        grad_weight = bench.products(states, weight)
    torch.testing.assert_close(grad_weight, (states @ weight.T).T @ states)
    # addmm_ is not counted, but its result is.
    assert counter.get_total_flops() == 3 * 2 * 16 * 8 * 20


def test_a_model_leaves_its_shape_as_it_is_for_the_next_one():
    shape = random_models.SHAPES["tiny-qwen"]
    before = shape._attn_implementation
    model = random_models.random_model(shape)
    assert model.config._attn_implementation == "packed" != before
    assert shape._attn_implementation == before


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_model_flops_against_a_count(lora_rank):
    samples = random_models.random_samples(2, 64, "tiny-qwen")
    model = random_models.random_model(random_models.shape_of("tiny-qwen"))
    if lora_rank:
        lora.add_adapters(model, simko.Config(lora_rank=lora_rank), bench.DTYPE)
        # The first layer is not spared the gradient of its input, as one of 28 hardly matters.
        model.get_input_embeddings().weight.requires_grad_()
    # It is counted product by product, above the diagonal too.
    model.set_attn_implementation("eager")
    ids = torch.zeros(2, 64, dtype=torch.long, device=bench.DEVICE)
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids).last_hidden_state
        (hidden[:, :48] @ model.get_output_embeddings().weight.T).sum().backward()
    shape = random_models.SHAPES["tiny-qwen"]
    # The half of the attention above the diagonal, which causal attention skips.
    half = 6 * shape.num_hidden_layers * shape.hidden_size * 2 * 64**2
    counted = bench.model_flops(model, samples) + half
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_functions_run_in_turn_and_the_first_round_does_not_count(monkeypatch):
    clock = iter([7.0, 8.0, 1.0, 2.0, 3.0, 4.0])
    calls = []
    monkeypatch.setattr(measuring, "seconds_of", lambda run: run() or next(clock))
    runs = {name: partial(calls.append, name) for name in "ab"}
    seconds = measuring.in_turn(runs, 2)
    assert "".join(calls) == "abbaab"
    assert seconds == {"a": [2.0, 3.0], "b": [1.0, 4.0]}


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    seconds = {"ours": [1.0, 9.0, 4.0, 6.0], "theirs": [2.0, 3.0, 1.0, 3.0]}
    assert measuring.ratio(seconds, "ours", "theirs") == 2.5  # of 0.5, 3, 4 and 2
    assert measuring.ratio(seconds, "ours", "TRL") == "-"


@needs_cpu
def test_memory_excludes_memory_that_was_already_free():
    def several():
        """Allocates 64 MiB in pieces that the C library keeps when they are freed."""
        return [torch.ones(2**18) for _ in range(64)]

    def mapped():
        """Allocates 64 MiB in pages that are returned to the system when it ends."""
        with mmap.mmap(-1, 2**26) as pages:
            pages[::2**12] = bytes(2**14)

    several()
    for run in (several, mapped, lambda: torch.ones(2**24)):
        _, taken = measuring.memory_of(run)
        assert 0.06 < taken < 0.09
    before, taken = measuring.memory_of(lambda: None)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert before == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE") / 2**30, rel=0.02)
    assert taken < 0.01


def test_every_number_of_an_update_is_in_its_column(capsys):
    measured = {
        "out of memory": [],
        "rate": 2e12,
        "tokens": 4000,
        "flops": 1e12,
        "seconds": {"grpo": [1.0, 2.0, 9.0], "simko": [4.0, 5.0, 3.0]},
        "memory": {"grpo": (1.0, 2.0), "simko": (3.0, 5.0)},
    }
    bench.show_updates("7b", 1000, measured)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["7b", "1000", "grpo", "2e+03", "2", "25", "1", "1", "2"],
        ["7b", "1000", "simko", "1e+03", "2", "12.5", "2.5", "3", "5"],
    ]


def test_a_profile_shows_the_operations_that_take_longest(capsys):
    rows = [(f"kernel {i}", i, 30.0 - i) for i in range(25)]
    bench.show_profile("7b, simko", 1000.0, rows)
    shown, = tables(capsys.readouterr().out)
    title = "7b, simko: 450 ms of operations in an update of 1000 ms"
    assert len(shown) == 20
    assert shown[2] == {title: "kernel 2", "calls": 2, "ms": 28, "% of them": 6.22}


def test_operations_are_sorted_by_their_milliseconds():
    square = torch.randn(600, 600, device=bench.DEVICE)
    _, rows = bench.operations(lambda: [square @ square, square[:2, :2] + 1, square[:2, :2] + 1])
    times = [milliseconds for _, _, milliseconds in rows]
    assert times == sorted(times, reverse=True)


@needs_cpu
def test_the_rate_of_a_product_counts_its_multiplications_and_additions():
    square = torch.randn(512, 512, device=bench.DEVICE, dtype=bench.DTYPE)
    with FlopCounterMode(display=False) as counter:
        square @ square
    with mock.patch.object(bench, "Timer") as timer:
        timer.return_value.blocked_autorange.return_value.median = 0.5
        assert bench.product_rate() == counter.get_total_flops() / 0.5


def test_without_a_time_for_fewer_layers_nothing_is_extrapolated():
    nothing = {"rate": math.nan, "seconds": {}, "memory": {}}
    full = {"flops": 4.0, "seconds": {"simko": [6.0]}, "memory": {"simko": [1.5, 4.0]}}
    found = bench.extrapolated(nothing, full, 2, 4, 28)
    assert found["seconds"] == found["memory"] == {}


def test_time_and_memory_of_more_layers_are_extrapolated():
    half = {"flops": 3.0, "seconds": {"simko": [5.0]}, "memory": {"simko": [1.0, 2.0]}}
    full = {"rate": 9.0, "flops": 4.0,
            "seconds": {"grpo": [1.0], "simko": [6.0, 8.0]},
            "memory": {"grpo": [1.0, 1.0], "simko": [1.5, 4.0]}}
    assert bench.extrapolated(half, full, 2, 4, 28) == {
        "rate": 9.0, "flops": 16.0, "seconds": {"simko": [31.0]},
        "memory": {"simko": [7.5, 28.0]}, "out of memory": []}


def test_one_rank_of_many_holds_its_share_and_updates():
    with mock.patch.dict(os.environ), bench.process_group(8) as device:
        trainer = random_models.random_trainer(random_models.shape_of("laptop"), device)
        whole = sum(p.numel() for p in trainer.policy.parameters())
        share = sum(p.to_local().numel() for p in trainer.policy.parameters())
        assert whole / 8 <= share < whole / 7
        samples = random_models.random_samples(2, 32, "laptop")
        sums = trainer.update(samples, "simko", None, quiet)
        assert sums["grad_norm"] > 0
        assert sums["tokens"] == 2 * 24


def test_a_way_that_runs_out_of_memory_is_named(monkeypatch):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setitem(heads.HEADS, "full-logits", {"token_statistics": too_large})
    with mock.patch.dict(os.environ):
        lost = bench.measured_updates("laptop", 256, 1, 1, 0, 0, ["grpo", "full-logits"], False)
    assert lost == {"lost": "full-logits"}


def test_memory_is_measured_from_the_second_update_on(monkeypatch):
    """The first allocates gradients and the optimizer's state, which are in use ever after."""
    update, rounds = mock.Mock(), {"simko": [1.0]}
    seen = []

    def memory_of(run):
        seen.append(update.call_count)
        return 10.0, 3.0

    monkeypatch.setattr(bench, "update", update)
    monkeypatch.setattr(bench, "memory_of", memory_of)
    monkeypatch.setattr(bench, "in_turn", lambda runs, count: rounds)
    with mock.patch.dict(os.environ):
        measured = bench.measured_updates("laptop", 256, 1, 1, 0, 0, ["simko"], False)
    assert seen == [1]
    assert measured["memory"] == {"simko": (3.0, 13.0)}
    (_, samples, size, way), _ = update.call_args
    assert (size, way) == (256, "simko")
    assert measured["tokens"] == sum(s.size() for s in samples) == 4 * size


def test_ways_that_run_out_of_memory_are_rows(monkeypatch, capsys):
    answers = [{"lost": "full-logits"}, {"lost": "simko"}]
    monkeypatch.setattr(bench, "afresh", lambda job, layers, ways, profile: answers.pop(0))
    measured = bench.measure_what_fits(None, 0, ["simko", "full-logits"], False)
    bench.show_updates("7b", 16, measured)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["7b", "16", "full-logits", "out of memory", *"-----"],
        ["7b", "16", "simko", "out of memory", *"-----"],
    ]


# ---------------------------------------------------------------------------------- the commands
def test_loss(run):
    rows, = run("loss", "--hidden", 16, "--tokens", 512, 4096, "--vocabulary", 6000,
                "--rounds", 1, "--memory", 1)
    assert [row["tokens"] for row in rows] == [512, 4096]
    assert all(row[f"/ {name}"] > 0 for row in rows for name in ("GRPO", "products"))
    assert rows[0]["/ released"] > 0
    assert rows[0]["released GiB"] > 1.5 * rows[0]["SimKO GiB"] > 0.01
    assert rows[1]["/ released"] == "-"  # the released formulation would take 1.1 GiB
    assert math.isnan(rows[1]["released GiB"])


@pytest.fixture
def measurements(monkeypatch):
    """Replaces what a command measures with the given numbers. Returns a function that takes the
    seconds and the GiB of each function in the order in which the command measures them. It
    returns a dict that then gets the measured functions."""
    def give(seconds, gib):
        measured = {}

        def in_turn(runs, rounds):
            measured.update(runs)
            return dict(zip(runs, seconds, strict=True))

        rest = iter(gib)
        monkeypatch.setattr(bench, "in_turn", in_turn)
        monkeypatch.setattr(bench, "memory_of", lambda run: (100.0, next(rest)))
        return measured

    return give


def test_every_number_of_a_loss_is_in_its_column(run, measurements):
    # SimKO, GRPO, the released formulation and the matrix products
    seconds = [4.0, 8.0, 6.0], [2.0, 2.0, 2.0], [8.0, 8.0, 24.0], [1.0, 1.0, 2.0]
    measured = measurements(seconds, [2.0, 3.0, 7.0])
    (row,), = run("loss", "--hidden", 16, "--tokens", 64, "--vocabulary", 80)
    assert row == {
        "hidden": 16,
        "tokens": 64,
        "SimKO s": 6,
        "/ GRPO": 3,
        "/ released": 0.5,
        "/ products": 4,
        "SimKO GiB": 2,
        "GRPO GiB": 3,
        "released GiB": 7,
        "released / SimKO": 3.5,
    }
    ours = chunked.token_statistics
    assert measured["SimKO"].args == (ours, "simko")
    assert measured["GRPO"].args == (ours, "grpo")
    assert measured["released"].args == (heads.released_statistics, "simko")


def test_every_number_of_a_scale_is_in_its_column(run, measurements):
    # two sequences of 512 tokens, four of 512, and the largest update in sequences of 128 and 32
    seconds = [1.0, 2.0, 3.0], [2.0, 4.0, 18.0], [4.0, 4.0, 4.0], [8.0, 8.0, 8.0]
    measurements(seconds, [1.0, 2.0, 3.0, 4.0])
    rows, = run("scale", "--shape", "laptop", "--tokens", 1024, 2048)
    assert [list(row.values()) for row in rows] == [
        ["laptop", 1024, 2, 2, 1950, 1, 1],
        ["laptop", 2048, 4, 4, 1950, 1, 2],
        ["laptop", 2048, 16, 4, 1950, 1, 3],
        ["laptop", 2048, 64, 8, 3910, 2, 4],
    ]


@needs_cpu
def test_step(run, taught):
    flags = [
        "--rollout", "hf", "--rounds", 2, "--batch-size", 2, "--num-generations", 2,
        "--mini-batch-size", 1, "--max-completion-length", 4,
        "--model", taught / "base", "--train-data", taught / "all.jsonl"]
    trl = []
    if python := os.environ.get("SIMKO_TRL_PYTHON"):
        trl = ["--trl-python", python]
    rows, = run("step", "laptop", *flags, *trl)
    assert [row["laptop"] for row in rows] == [*["TRL"] * bool(trl), "hf"]
    shares = [share for name, share in rows[-1].items() if name.endswith(" %")]
    assert rows[-1]["s per step"] > 0
    assert rows[-1]["response tokens"] <= 4
    assert len(shares) == 7
    assert all(share > 0 for share in shares)


def test_a_trl_that_does_not_start_is_one_line():
    """The job of 600 prompts is more than a pipe holds."""
    cfg = simko.Config(batch_size=600, mini_batch_size=600)
    job = mock.Mock(problems=[{"prompt_ids": np.arange(50)}] * 600)
    job.tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))
    with pytest.raises(SystemExit, match="TRL stopped; its error is above"):
        next(bench_step.trl_steps("false", cfg, job, 1))


@needs_cpu
def test_every_number_of_a_step_is_in_its_column(run, taught, monkeypatch):
    phases = "rollout", "forward", "backward", "optimizer", "reward", "sync"

    def ours(*_):
        for tokens in (999, 4, 6, 11):  # the first round does not count
            yield {"tokens": tokens, **{name: i / 10 for i, name in enumerate(phases, 1)}}

    def theirs(*_):
        for tokens in (999, 1, 2, 3):
            yield {"tokens": tokens}

    def in_turn(runs, rounds):
        for function in [*runs.values()] * (rounds + 1):
            function()
        return {"TRL": [4.0, 8.0, 30.0], "hf": [2.0, 4.0, 10.0]}

    monkeypatch.setattr(bench_step, "simko_steps", ours)
    monkeypatch.setattr(bench_step, "trl_steps", theirs)
    monkeypatch.setattr(bench_step, "in_turn", in_turn)
    rows, = run("step", "laptop", "--rollout", "hf", "--trl-python", sys.executable,
                "--model", taught / "base", "--train-data", taught / "all.jsonl")
    shares = 2.5, 5, 7.5, 10, 12.5, 15, 47.5  # of four seconds, the median
    assert [list(row.values()) for row in rows] == [
        ["TRL", 8, 0.125, 1, 2, *"-------"],
        ["hf", 4, 0.25, 2, 7, *shares],
    ]


def test_the_times_of_a_phase_are_added_up(monkeypatch):
    clock = iter([1.0, 3.0, 10.0, 15.0])
    monkeypatch.setattr(bench_step.time, "perf_counter", lambda: next(clock))
    owner, seconds = mock.Mock(), Counter()
    owner.work = lambda x: 2 * x
    with bench_step.timed(owner, "work", seconds, "forward"):
        assert [owner.work(1), owner.work(2)] == [2, 4]
    assert seconds == {"forward": 7}


def test_scale(run):
    rows, = run("scale", "--shape", "tiny-qwen", "--tokens", 1024, "--rounds", 1)
    assert [row["samples"] for row in rows] == [2, 8, 32]
    assert rows[0]["/ the first's"] == 1
    assert all(row["s per update"] > 0 and row[ABOVE] > 0 for row in rows)


def test_gpu_measures_every_way(run):
    ways = bench.WAYS
    if missing_for_torch_compile():
        ways = [way for way in ways if not way.startswith("compiled")]
    rows, = run("gpu", "--shape", "laptop", "--tokens", 1024, "--rounds", 1,
                "--ways", *ways)
    assert [row[""] for row in rows] == [*ways]
    for row in rows:
        assert 0 < row["FLOPs utilisation %"] < 100
        assert row["update tokens/s"] > 0
        assert row["GiB in all"] > row[ABOVE] > 0


def test_gpu_trains_adapters(run):
    with mock.patch.object(bench, "random_trainer", wraps=bench.random_trainer) as made:
        (row,), = run("gpu", "--shape", "tiny-qwen", "--tokens", 256, "--rounds", 1,
                      "--ways", "simko", "--lora-rank", 2)
    assert made.call_args.kwargs == {"lora_rank": 2} and row["update tokens/s"] > 0


def test_gpu_extrapolates_layers_and_profiles(run):
    rows, profile = run("gpu", "--shape", "laptop", "--tokens", 256, "--rounds", 1,
                        "--ways", "simko", "--layers", 3, "--profile")
    measured, whole = rows
    assert measured.pop("shape") == "laptop, 3 layers"
    assert whole.pop("shape") == "laptop, 3 layers, extrapolated from 1 and 3"
    assert whole == measured  # the model has no more layers than were measured
    title, = (name for name in profile[0] if name.startswith("laptop, simko"))
    if bench.DEVICE == "cpu":
        assert "aten::mm" in [row[title] for row in profile]
    assert 0 < sum(row["% of them"] for row in profile) <= 100.1


def test_gpu_gives_each_measurement_a_process(capsys):
    bench.main(["gpu", "--shape", "laptop", "--tokens", "256", "--rounds", "1", "--ways", "simko"])
    (row,), = tables(capsys.readouterr().out)
    assert row["update tokens/s"] > 0


def eager_generation_rates(*arguments):
    with eager_vllm():
        return generation_rates(*arguments)


@needs_vllm
def test_generate(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # In this cache vLLM finds what it has learnt of the model's class in other tests.
    monkeypatch.setenv("VLLM_CACHE_ROOT", workers.ENVIRONMENT["VLLM_CACHE_ROOT"])
    monkeypatch.setattr(bench, "generation_rates", eager_generation_rates)
    bench.main(["generate", "--shape", "laptop", "--tokens", "2", "--rounds", "1"])
    rows, = tables(capsys.readouterr().out)
    assert [(row["prompts"], row["responses each"]) for row in rows] == [(32, 8), (1024, 1)]
    assert all(row["tokens/s generated"] > 0 for row in rows)


def test_verifier(run):
    rows, = run("verifier", "--rows", 32)
    assert rows[0]["responses"] == 32
    assert rows[0]["times"] > 0 == rows[0]["wrong"]
    right = [is_right for _, _, is_right in bench.made_up(4)]
    assert right == [True, False] * 2


def test_verdicts_that_labels_contradict_are_counted_and_shown(tmp_path, capsys, monkeypatch):
    rows = [
        {"gold": "2", "response": r"\boxed{2}", "label": 1},
        {"gold": "3", "response": r"\boxed{3}", "label": 0},
        {"gold": "4", "response": r"\boxed{5}", "label": 1},
        {"gold": "6", "response": r"\boxed{7}", "label": 1},
        {"gold": 8, "response": r"\boxed{9}", "label": 0},
        {"gold": "2", "response": r"\boxed{1}", "label": 1, "task": "text"},
        {"gold": "2", "response": r"\boxed{1}", "label": None},
        {"gold": " ", "response": r"\boxed{1}", "label": 1},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    clock = iter([0.0, 5.0, 10.0, 10.5])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    # Of math-verify's verdicts, only the first contradicts its label.
    verdicts = iter([False, False, True, True, False])
    with mock.patch("math_verify.verify", lambda gold, answer: next(verdicts)):
        bench.main(["verifier", "--cases", str(tmp_path / "rows.jsonl")])
    output = capsys.readouterr().out
    (row,), = tables(output)
    assert list(row.values()) == [5, 1, 1, 10, 3, 10]
    assert output.splitlines()[-3:] == [
        r"accepted wrongly: '3', '\\boxed{3}'",
        r"rejected wrongly: '4', '\\boxed{5}'",
        r"rejected wrongly: '6', '\\boxed{7}'",
    ]


@pytest.mark.parametrize("arguments, message", [
    (["loss", "--hiden", "3"], "--hiden"),
    (["step", "desktop"], "desktop"),
    (["gpu", "--ways", "best"], "best"),
    (["gpu", "--shape", "tiny-qwen", "--layers", "3"], "--layers 3"),
    (["loss", "--rounds", "0"], "--rounds must be at least 1"),
    (["verifier", "--rows", "0"], "--rows must be at least 1"),
    (["loss", "--tokens", "100"], "--tokens must be multiples of 8"),
    (["scale", "--tokens", "256"], "--tokens must be multiples of 512"),
    (["gpu", "--shape", "tiny-qwen", "--tokens", "512", "0"], "--tokens must be multiples of 256"),
    (["verifier", "--cases", "docs/laptop/main.jsonl"], "main.jsonl, line 1 lacks gold"),
    pytest.param(["step", "laptop", "--trl-python", "none"], "--trl-python none", marks=needs_cpu),
    pytest.param(["gpu"], "no GPU was found", marks=needs_cpu)])
def test_what_cannot_be_measured_is_an_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(arguments)
    printed = capsys.readouterr()
    # argparse prints its own message, and Python prints that of a SystemExit.
    last = (printed.err or end.value.code).splitlines()[-1]
    assert message in last
    assert not printed.out


def test_help_explains_every_option(capsys):
    for command in ("loss", "step", "scale", "gpu", "verifier"):
        with pytest.raises(SystemExit):
            bench.main([command, "--help"])
        assert "Default" in capsys.readouterr().out
