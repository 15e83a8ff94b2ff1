"""Tests of bench.py: every command runs on tiny sizes and its rows can be read, and what SimKO's loss is timed against
gives the same numbers. `step` against TRL needs an environment of its own, named by SIMKO_TRL_PYTHON."""
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import simko
from runtime import chunked
from tools import bench

BENCH = Path(bench.__file__)
torch.set_num_threads(1)
needs_compiler = pytest.mark.skipif(not bench.COMPILES, reason="torch.compile needs a C++ compiler, Python's headers")


def run(*arguments):
    """Runs bench.py: [[{column: cell, numbers as floats} of each row] of each table], and what else it printed."""
    done = subprocess.run([sys.executable, BENCH, *map(str, arguments)], capture_output=True, text=True,
                          env=bench.ENVIRONMENT | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    tables, rest, lines = [], [], done.stdout.splitlines()
    for i, line in enumerate(lines):
        cells = line.strip("|").split("|")
        if not line.startswith("|"):
            rest.append(line)
        elif lines[i + 1:] and lines[i + 1].startswith("| --- "):
            names = [cell.strip() for cell in cells]
            tables.append([])
        elif "---" not in line:
            assert len(cells) == len(names)
            tables[-1].append({name: number(cell.strip()) for name, cell in zip(names, cells)})
    return tables, "\n".join(rest)


def number(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


def values_and_gradients(statistics, K, vocabulary=60, temperature=0.7, **arguments):
    states, weight, token = bench.head_inputs(48, 16, vocabulary)
    token[::3] = (states @ weight.T).argmax(1)[::3]  # some are rank-1
    logp, topk_logp, entropy, is_top1 = statistics(states, weight, token, K, temperature, **arguments)
    (logp.sin().sum() + topk_logp.cos().sum()).backward()
    return logp, topk_logp, entropy, is_top1, states.grad, weight.grad


@pytest.mark.parametrize("K", [1, 3, 7])
@pytest.mark.parametrize("copies", [True, False])
def test_the_released_way_gives_the_same_numbers(K, copies, monkeypatch):
    monkeypatch.setattr(bench, "DTYPE", torch.float64)
    for ours, released in zip(values_and_gradients(chunked.token_statistics, K),
                              values_and_gradients(bench.full_statistics, K, copies=copies)):
        torch.testing.assert_close(ours, released, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocabulary", [60, 320])  # 320 makes five blocks of 64; 60 has none
@pytest.mark.parametrize("way", [*bench.HEADS, pytest.param("compiled-chunks", marks=needs_compiler)])
def test_every_head_gives_the_same_numbers(way, vocabulary, temperature, monkeypatch):
    settings = {"vocabulary": vocabulary, "temperature": temperature, "chunk": 20}
    expected = values_and_gradients(chunked.token_statistics, 3, **settings)
    for name in ("chunk_statistics", "chunk_gradient"):
        monkeypatch.setattr(chunked, name, getattr(chunked, name))  # set_head changes them
    bench.set_head(*(bench.HEADS.get(way) or bench.compiled_head()))
    for plain, other in zip(expected, values_and_gradients(chunked.token_statistics, 3, **settings), strict=True):
        torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("K", [1, 3, 5, 6])  # of 320 logits in five blocks
def test_top_k_by_blocks_is_exact(K):
    z = torch.randn(50, 320, generator=torch.Generator().manual_seed(0))
    z[1] = z[1].round()  # ties
    z[2, 64:70] = 9      # all of them in one block
    values, indices = bench.top_k_by_blocks(z, K)
    assert torch.equal(values, z.topk(K).values) and torch.equal(z.gather(1, indices), values)
    assert all(len(set(row)) == K for row in indices.tolist())


@needs_compiler
def test_layers_are_compiled_once_for_all_lengths_and_give_the_same_gradients():
    from torch._dynamo.utils import counters
    config = bench.shape_of("laptop")
    norms = []
    with simko.process_group() as device:
        for prepare in (None, bench.compile_layers):
            torch.manual_seed(0)
            trainer = bench.random_trainer(config, device, prepare, learning_rate=0.0)
            norms.append([])
            for count, length in ((4, 64), (2, 64), (3, 50)):
                _, norm = trainer.update(bench.random_samples(count, length, "laptop"), None, bench.QUIET)
                norms[-1].append(norm)
                graphs = counters["stats"]["unique_graphs"]
                first = graphs if len(norms[-1]) == 1 else first
            assert graphs == first
    assert norms[1] == pytest.approx(norms[0], rel=1e-4) and graphs > 0


def test_products_are_those_of_a_head():
    states, weight, _ = bench.head_inputs(16, 8, 20)
    with FlopCounterMode(display=False) as counter:
        grad_weight = bench.products(states, weight)
    torch.testing.assert_close(grad_weight, (states @ weight.T).T @ states)
    assert counter.get_total_flops() == 3 * 2 * 16 * 8 * 20  # addmm_ is not counted, but its result is there


def test_model_flops_against_a_count():
    samples, model = bench.random_samples(2, 64, "tiny-qwen"), bench.random_model(bench.shape_of("tiny-qwen"))
    model.set_attn_implementation("eager")  # counted product by product, above the diagonal too
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=torch.zeros(2, 64, dtype=torch.long)).last_hidden_state
        (hidden[:, :48] @ model.get_output_embeddings().weight.T).sum().backward()
    shape = bench.SHAPES["tiny-qwen"]
    half = 6 * shape.num_hidden_layers * shape.hidden_size * 2 * 64**2  # of the attention: what causal leaves out
    assert math.isclose(bench.model_flops(model, samples) + half, counter.get_total_flops(), rel_tol=0.02)


def test_peak_sees_what_a_run_takes_and_not_what_was_free():
    several = lambda: [torch.ones(2**18) for _ in range(64)]  # 64 MiB in pieces that the C library keeps when freed
    several()
    assert 0.06 < bench.peak(several) < 0.09 and 0.06 < bench.peak(lambda: torch.ones(2**24)) < 0.09
    assert bench.peak(lambda: None) < 0.01


def test_loss():
    (rows,), _ = run("loss", "--hidden", 16, "--tokens", 512, 4096, "--vocabulary", 6000, "--rounds", 1, "--memory", 1)
    assert [row["tokens"] for row in rows] == [512, 4096]
    assert all(row[f"/ {name}"] > 0 for row in rows for name in ("GRPO", "products"))
    assert rows[0]["/ released"] > 0 and rows[0]["released GiB"] > 1.5 * rows[0]["SimKO GiB"] > 0.01
    assert rows[1]["/ released"] == "-" and math.isnan(rows[1]["released GiB"])  # it would take 1.1 GiB


def test_step(tmp_path):
    small = ["--batch-size", 2, "--num-generations", 2, "--mini-batch-size", 1, "--max-completion-length", 4]
    subprocess.run([sys.executable, BENCH.parent / "laptop.py", tmp_path / "data", "--steps", "1"], check=True,
                   capture_output=True)
    data = ["--model", tmp_path / "data/base", "--train-data", tmp_path / "data/train.jsonl"]
    trl = ["--trl-python", os.environ["SIMKO_TRL_PYTHON"]] if "SIMKO_TRL_PYTHON" in os.environ else []
    (rows,), _ = run("step", "laptop", "--rollout", "hf", "--rounds", 2, *data, *small, *trl)
    assert [row["laptop"] for row in rows] == [*["TRL"] * bool(trl), "hf"]
    shares = [share for name, share in rows[-1].items() if name.endswith(" %")]
    assert rows[-1]["s a step"] > 0 and rows[-1]["response tokens"] <= 4
    assert len(shares) == 7 and all(share > 0 for share in shares)


def test_scale():
    (rows,), _ = run("scale", "--shape", "tiny-qwen", "--tokens", 1024, "--rounds", 1)
    assert [row["samples"] for row in rows] == [2, 8, 32] and rows[0]["/ the first's"] == 1
    assert all(row["s an update"] > 0 and row["GiB above weights, gradients, optimizer"] > 0 for row in rows)


def test_gpu_dry_run():
    generate = 16 * bool(find_spec("vllm"))
    (rows, *generated), _ = run("gpu", "--shape", "tiny-qwen", "--tokens", 1024, "--rounds", 1, "--generate", generate)
    compiled = ["compiled-chunks"] * bench.COMPILES
    assert [row[""] for row in rows] == ["grpo", "simko", *compiled, "full-logits"]
    assert all(0 < row["FLOPs utilisation %"] < 100 and row["update tokens/s"] > 0 for row in rows)
    assert all(row["GiB in all"] > row["GiB above weights, gradients, optimizer"] > 0 for row in rows)
    assert not generate or generated[0][0]["vLLM, tokens/s generated"] > 0


def test_gpu_measures_the_other_ways():
    ways = [way for way in bench.WAYS if way not in bench.gpu.__kwdefaults__["ways"]]
    ways = [way for way in ways if bench.COMPILES or not way.startswith("compiled")]
    (rows,), _ = run("gpu", "--shape", "tiny-qwen", "--tokens", 256, "--rounds", 1, "--generate", 0, "--ways", *ways)
    assert [row[""] for row in rows] == ways and all(row["update tokens/s"] > 0 for row in rows)


def test_gpu_extrapolates_layers_and_profiles():
    (rows, profile), _ = run("gpu", "--shape", "tiny-qwen", "--tokens", 256, "--rounds", 1, "--generate", 0,
                             "--ways", "simko", "--layers", 2, "--profile")
    measured, whole = rows
    assert measured.pop("shape") == "tiny-qwen, 2 layers"
    assert whole.pop("shape") == "tiny-qwen, 2 layers, extrapolated from 1 and 2"
    assert whole == measured  # it has no more layers than were measured
    title, = (name for name in profile[0] if name.startswith("tiny-qwen, simko"))
    assert "aten::mm" in [row[title] for row in profile]
    assert 0 < sum(row["% of them"] for row in profile) <= 100.1


def test_what_more_layers_take_is_extrapolated():
    half = {"flops": 3.0, "seconds": {"simko": [5.0]}, "memory": {"simko": [1.0, 2.0]}}
    full = {"flops": 4.0, "seconds": {"simko": [6.0, 8.0]}, "memory": {"simko": [1.5, 4.0]}, "rate": 9.0}
    every = bench.extrapolated(half, full, 2, 4, 28)
    assert every == {"rate": 9.0, "flops": 16.0, "seconds": {"simko": [31.0]}, "memory": {"simko": [7.5, 28.0]},
                     "out of memory": []}


def test_one_rank_of_many_holds_its_share_and_updates():
    with bench.process_group(8) as device:
        trainer = bench.random_trainer(bench.shape_of("laptop"), device)
        whole = sum(p.numel() for p in trainer.policy.parameters())
        share = sum(p.to_local().numel() for p in trainer.policy.parameters())
        assert whole / 8 <= share < whole / 7
        sums, norm = trainer.update(bench.random_samples(2, 32, "laptop"), None, bench.QUIET)
        assert norm > 0 and sums[-1] == 2 * 24  # response tokens


def test_a_way_that_runs_out_of_memory_is_named(monkeypatch):
    for owner, name in ((simko, "load_model"), (simko, "token_statistics"), (chunked, "chunk_statistics"),
                        (chunked, "chunk_gradient")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # measured_updates changes them

    def too_large(*_, **__):
        raise torch.OutOfMemoryError
    monkeypatch.setattr(bench, "full_statistics", too_large)
    lost = bench.measured_updates("tiny-qwen", 256, 1, 1, 0, ["full-logits"], False)
    assert lost == {"lost": "full-logits"}


def test_ways_that_run_out_of_memory_are_rows(monkeypatch, capsys):
    answers = [{"lost": "full-logits"}, {"lost": "simko"}]
    monkeypatch.setattr(bench, "afresh", lambda job, layers, ways, profile: answers.pop(0))
    bench.show_updates("7b", 16, bench.measure_what_fits(None, 0, ["simko", "full-logits"], False))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2:4] for line in lines] == [["full-logits", "out of memory"], ["simko", "out of memory"]]


def test_verifier():
    (rows,), _ = run("verifier", "--rows", 32)
    assert rows[0]["responses"] == 32 and rows[0]["times"] > 0 == rows[0]["wrong"]


@pytest.mark.parametrize("arguments, status, message", [
    (["loss", "--hiden", "3"], 2, "--hiden"), (["step", "desktop"], 2, "desktop"),
    (["gpu", "--ways", "best"], 2, "best"),
    (["gpu", "--shape", "tiny-qwen", "--layers", "3"], 1, "--layers 3"),
    *([] if torch.cuda.is_available() else [(["gpu"], 1, "no GPU here")])])
def test_what_cannot_be_measured_is_an_error(arguments, status, message):
    done = subprocess.run([sys.executable, BENCH, *arguments], capture_output=True, text=True)
    assert done.returncode == status and message in done.stderr.splitlines()[-1] and not done.stdout
