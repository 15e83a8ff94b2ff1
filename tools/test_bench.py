"""Tests of bench.py: every command runs on tiny sizes and its rows can be read, and what SimKO's loss is timed against
is the same loss. `step` against TRL needs an environment of its own, named by SIMKO_TRL_PYTHON."""
import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simko import Config, token_statistics
from tools import bench

BENCH = Path(bench.__file__)
torch.set_num_threads(1)


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
        elif i + 1 < len(lines) and lines[i + 1].startswith(("| --- ", "|---")):
            names = [cell.strip() for cell in cells]
            assert lines[i + 1].count("---") == len(names)
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


def inputs(seed, K):
    """What the losses are functions of, near enough the old policy that the clip acts on the far side alone."""
    data, generator = bench.head_inputs(48, 16, 60, K, "cpu", torch.float64), torch.Generator().manual_seed(seed)
    logp, topk_logp, *_ = token_statistics(data.hidden, data.weight, data.token, K)
    data.old_logp = logp.detach() + 0.3 * torch.rand(len(logp), generator=generator) - 0.15
    data.old_topk_logp = topk_logp.detach() + torch.randn(topk_logp.shape, generator=generator)
    data.token[::3] = (data.hidden @ data.weight.T).argmax(1)[::3]  # rank-1, also where A < 0
    data.old_logp[::3] = token_statistics(data.hidden, data.weight, data.token, K)[0].detach()[::3]
    return data


@pytest.mark.parametrize("K", [1, 3, 7])
@pytest.mark.parametrize("copies", [True, False])
def test_what_the_loss_is_timed_against_is_the_same_loss(K, copies):
    cfg = Config(alpha=0.1, lam=1.3, q=0.5, K=K)
    results = []
    for statistics, losses in ((token_statistics, bench.our_losses),
                               (lambda *a: bench.full_statistics(*a, copies=copies), bench.released_losses)):
        data = inputs(K, K)
        values = losses(statistics(data.hidden, data.weight, data.token, K), data, cfg)
        values.mean().backward()
        results.append((values.detach(), data.hidden.grad, data.weight.grad))
    for ours, released in zip(*results):
        torch.testing.assert_close(ours, released, rtol=1e-11, atol=1e-13)
    data = inputs(K, K)
    stats = token_statistics(data.hidden, data.weight, data.token, K)
    grpo = bench.our_losses(stats, data, dataclasses.replace(cfg, method="grpo"))
    grpo.mean().backward()
    assert (data.weight.grad - results[0][2]).norm() > 0.01 * data.weight.grad.norm()  # Eq. 3 did act


def test_products_are_those_of_a_head():
    data = bench.head_inputs(16, 8, 20, 3, "cpu", torch.float64)
    with FlopCounterMode(display=False) as counter:
        bench.products(data)
    assert counter.get_total_flops() == 3 * 2 * 16 * 8 * 20  # the fourth, addmm_, is not counted


def test_model_flops_against_a_count():
    samples = bench.random_samples(2, 20, 44, 4096, "cpu")
    model = bench.random_model("tiny-qwen", torch.float32)
    ids = torch.zeros(2, 64, dtype=torch.long)
    model.set_attn_implementation("eager")  # counted product by product, above the diagonal too
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids).last_hidden_state
        (hidden[:, :44] @ model.get_output_embeddings().weight.T).sum().backward()
    shape = bench.SHAPES["tiny-qwen"]
    half = 6 * shape["num_hidden_layers"] * shape["hidden_size"] * 2 * 64**2  # of the attention: what causal leaves out
    assert math.isclose(bench.model_flops("tiny-qwen", model, samples) + half, counter.get_total_flops(), rel_tol=0.02)


def test_loss():
    (rows,), _ = run("loss", "--hidden", 16, "--tokens", 512, 2048, "--vocabulary", 20000, "--rounds", 1)
    assert [row["tokens"] for row in rows] == [512, 2048]
    assert all(row[f"/ {name}"] > 0 for row in rows for name in ("GRPO", "released", "products"))
    assert all(row["released"] > 1.5 * row["SimKO GiB"] for row in rows)
    assert rows[1]["released"] > 2.5 * rows[0]["released"] and rows[1]["SimKO GiB"] < 2.5 * rows[0]["SimKO GiB"]


def test_loss_leaves_out_what_does_not_fit():
    ((row,),), rest = run("loss", "--hidden", 16, "--tokens", 1024, "--vocabulary", 3000, "--rounds", 1,
                          "--memory", 0.1)
    assert "1024 tokens: released needs about" in rest
    assert row["released"] == "-" == row["/ released"] and row["SimKO GiB"] > 0


def test_step(tmp_path):
    small = ["--batch", 2, "--group-size", 2, "--mini-batch", 1, "--max-response-tokens", 4]
    subprocess.run([sys.executable, BENCH.parent / "laptop.py", tmp_path / "data", "--steps", "1"], check=True,
                   capture_output=True)
    data = ["--model", tmp_path / "data/base", "--train-data", tmp_path / "data/train.jsonl"]
    trl = ["--trl-python", os.environ["SIMKO_TRL_PYTHON"]] if "SIMKO_TRL_PYTHON" in os.environ else []
    (rows,), _ = run("step", "laptop", "--rollout", "hf", "--rounds", 2, *data, *small, *trl)
    assert [row["laptop"] for row in rows] == ["hf", *["TRL"] * bool(trl)]
    phases = ("rollout", "forward", "backward", "optimizer", "reward", "sync", "packing", "other")
    assert rows[0]["s a step"] > 0 and rows[0]["response tokens"] <= 4
    assert all(rows[0][f"{name} %"] > 0 for name in phases)
    assert math.isclose(sum(rows[0][f"{name} %"] for name in phases), 100, abs_tol=1)


def test_random_words_stand_in_for_a_checkpoint(tmp_path, monkeypatch):
    from tools.checks import prepare
    monkeypatch.setitem(bench.SHAPES, "smollm2", bench.SHAPES["laptop"])
    flags = bench.CASES["smollm2"] + bench.random_words(str(tmp_path / "model")) + ["--output", str(tmp_path / "run")]
    _, cfg, tokenizer, stop_ids, sets, _ = prepare(["train", *flags])
    problems, dropped = sets[cfg.train_data]
    assert stop_ids == [2] and not dropped and 50 <= min(len(p["prompt_ids"]) for p in problems) < 150
    assert tokenizer.decode(problems[0]["prompt_ids"]) == problems[0]["problem"]


def test_scale():
    (rows,), _ = run("scale", "--shape", "tiny-qwen", "--tokens", 1024, "--rounds", 1, "--micro-batch-tokens", 512)
    assert [row["samples"] for row in rows] == [2, 32, 8] and rows[0]["/ the first's"] == 1
    assert all(row["s an update"] > 0 and row["GiB above weights, gradients, optimizer"] >= 0 for row in rows)


def test_gpu_dry_run():
    tables, rest = run("gpu", "--dry-run", "--shape", "tiny-qwen", "--tokens", 1024, "--rounds", 1, "--generate", 0)
    assert "TFLOP/s" in rest
    assert [row[""] for row in tables[0]] == ["SimKO", "GRPO", "GRPO, full logits"]
    assert all(0 < row["FLOPs utilisation %"] < 100 and row["update tokens/s"] > 0 for row in tables[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_needs_one():
    done = subprocess.run([sys.executable, BENCH, "gpu"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no GPU here" in done.stderr


def test_verifier():
    (rows,), _ = run("verifier", "--rows", 32, "--workers", 1)
    assert rows[0]["responses"] == 32 and rows[0]["times"] > 0
    assert rows[0]["verify.py /s (wrong)"].endswith("(0)")


def test_unknown_flag():
    done = subprocess.run([sys.executable, BENCH, "loss", "--hiden", "3"], capture_output=True, text=True)
    assert done.returncode == 2 and "--hiden" in done.stderr
