"""Tests of the trainer. Its updates match the paper's gradient, computed for one response and one
token at a time, however the samples are split, ordered and dealt to ranks. Further tests cover the
optimizer's steps and the precision of the weights."""
import itertools
import json
import math
import time
import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from unittest import mock

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import simko
from runtime import baselines, log
from runtime.checkpoints import checkpoint_state, start_or_resume
from runtime.hf_engine import HFEngine
from runtime.models import fingerprint, load_model
from runtime.packing import Sample
from test_simko import naive_ratio
from tests.conftest import (
    CPU, SHARES, STOPS, config, distance, load_samples, move, near, one_base, plain_logits,
    plain_model, quiet, randn, spy)

CASES = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo", "temperature": 0.8, "gradient_checkpointing": False},
    "kl": {"loss_type": "grpo", "beta": 0.3, "temperature": 1.3},
    "kl-dapo-tau": {"loss_type": "dapo", "beta": 0.3, "tau_scope": "batch"},
}
TAU = 2.5  # nats: the rollout batch's threshold if tau_scope is "batch"


@cache
def naive_gradient(folder, case):
    """Returns the gradient of the paper's objective for a case, the number of tokens in each of
    its branches, and what the log should show of it."""
    policy = plain_model(folder, 1, 2)
    branches, row = naive_backward(
        config(folder, **CASES[case]), plain_model(folder), plain_model(folder, 1), policy)
    return {name: p.grad for name, p in policy.named_parameters()}, branches, row


def naive_backward(cfg, reference, old, policy):
    """Leaves the gradient of the paper's objective in `policy`, computed for one response and one
    token at a time. Returns the number of tokens in each of the objective's branches, and what the
    log should show. Its means, such as KL(pi_old || pi_theta), are over tokens that need a pass."""
    samples, branches, losses, kl = load_samples(Path(cfg.model)), Counter(), [], []
    for s in samples:
        z, z_old, z_ref = (
            plain_logits(model, s) / cfg.temperature for model in (policy, old, reference))
        A, length = s.advantage, len(s.response_ids)
        entropy = torch.distributions.Categorical(logits=z.detach()).entropy()
        tau = TAU if cfg.tau_scope == "batch" else np.quantile(entropy, cfg.q)
        for l, y in enumerate(s.response_ids):
            gate = entropy[l] > tau
            gamma = naive_ratio(
                z[l], z_old[l], y, A, gate, cfg.alpha, cfg.K, cfg.lambda_top1)
            rho = z_ref[l].softmax(0)[y].detach() / z[l].softmax(0)[y]
            J = min(gamma * A, gamma.clamp(1 - cfg.epsilon, 1 + cfg.epsilon_high) * A)
            J = J - cfg.beta * (rho - rho.log() - 1)
            losses.append(-J / length if cfg.loss_type == "grpo" else -J)
            if A or cfg.beta:
                ratio = (z[l].softmax(0)[y] / z_old[l].softmax(0)[y]).item()
                kl.append(ratio - 1 - math.log(ratio))
            in_branch = {
                "pos": gate and A > 0,
                "neg": gate and A < 0 and y == z[l].argmax(),
                "gate": gate and (A or cfg.beta),  # only for tokens that need a pass
                "low": A < 0 and gamma < 1 - cfg.epsilon,
                "high": A > 0 and gamma > 1 + cfg.epsilon_high,
            }
            branches.update(name for name, yes in in_branch.items() if yes)
    count = len(samples) if cfg.loss_type == "grpo" else len(losses)
    loss = sum(losses) / count
    loss.backward()
    return branches, {
        "loss": loss.item(),
        "approx_kl": sum(kl) / len(kl),
        "gate_share": branches["gate"] / len(kl),
        "clip_frac": (branches["low"] + branches["high"]) / len(kl),
    }


def gradient_of(trainer):
    return {name: p.grad.full_tensor() for name, p in trainer.policy.named_parameters()}


def weights_of(trainer):
    return {name: p.detach().full_tensor().clone()
            for name, p in trainer.policy.named_parameters()}


def real_update(folder, cfg, samples, dtype=torch.float64):
    """Computes the same with Trainer: policy 1 computes the old log-probs, and policy 2 is updated.

    It is updated twice at a learning rate of 0, because the first update must leave no trace.
    Returns (gradient, the sums for the log, trainer)."""
    trainer = simko.Trainer(cfg, CPU, dtype)
    move(trainer.policy, 1)
    trainer.compute_old_logp(samples, quiet)
    move(trainer.policy, 2)
    tau = TAU if cfg.tau_scope == "batch" else None
    for _ in range(1 if cfg.learning_rate else 2):
        sums = trainer.update(samples, cfg.method, tau, quiet)
    return gradient_of(trainer), sums, trainer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens, order", [(1, 1), (40, -1), (10**6, 1)])
def test_an_update_has_the_papers_gradient_however_it_is_split_and_ordered(
        base, group, case, tokens, order):
    want, branches, row = naive_gradient(base, case)
    cfg = config(base, micro_batch_tokens=tokens, **CASES[case])
    gradient, sums, _ = real_update(base, cfg, load_samples(base)[::order])
    assert distance(gradient, want) < 1e-6
    # Every part of the objective had an effect.
    assert len(branches) == 5 and min(branches.values()) >= 3
    norm = math.sqrt(sum(x.square().sum().item() for x in want.values()))
    near(sums["grad_norm"], norm, 1e-6)
    logged = log.update_metrics(sums)
    near({name: logged[name] for name in row}, row, 1e-6)


@pytest.mark.parametrize("zeros", [5, 11])
def test_responses_whose_advantage_is_0_count_but_need_no_pass(base, group, zeros):
    """The update does not need their old log-probs either. If all advantages are 0, AdamW's
    momentum and weight decay still act as if the gradient had been computed."""
    updates = []
    for spare in (True, False):
        cfg = config(base, learning_rate=1e-3, weight_decay=0.1, loss_type="dapo")
        samples = load_samples(base)
        trainer = simko.Trainer(cfg, CPU, torch.float64)
        trainer.compute_old_logp(samples, quiet)
        trainer.update(samples, "simko", None, quiet)
        for s in samples[:zeros]:
            s.advantage = 0.0
            if spare:
                s.old_logp = None
        has_gradient = baselines.has_gradient if spare else lambda *_: True
        with (mock.patch.object(baselines, "has_gradient", has_gradient),
              mock.patch.object(simko, "pack", wraps=simko.pack) as pack):
            sums = trainer.update(samples, "simko", None, quiet)
        passed = [s for call in pack.call_args_list for s in call.args[0]]
        trained = [s for s in samples if s.advantage] if spare else samples
        assert sorted(map(id, passed)) == sorted(map(id, trained))
        assert sums["tokens"] == sum(len(s.response_ids) for s in passed)
        updates.append(weights_of(trainer))
    assert distance(*updates) < 1e-12


@pytest.mark.parametrize("method", baselines.METHODS)
def test_an_update_drops_the_graph_of_each_micro_batch(base, group, method):
    """If the log's sums or the list of losses kept them, memory would grow with the number of
    micro-batches."""
    graphs, alive = [], []

    def policy_forward(*arguments):
        alive.append(sum(graph() is not None for graph in graphs))
        outputs = forward(*arguments)
        graphs.append(weakref.ref(outputs[0].grad_fn))
        return outputs

    cfg = config(base, method=method, beta=0.3, micro_batch_tokens=1)
    samples = load_samples(base)
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    trainer.compute_old_logp(samples, quiet)
    if choose := baselines.METHODS[method].choose:
        choose(samples)
    forward = trainer.policy.policy_forward
    with mock.patch.object(trainer.policy, "policy_forward", policy_forward):
        trainer.update(samples, method, None, quiet)
    # The loop's own variables hold the graph of the micro-batch before.
    assert alive == [0] + [1] * (len(alive) - 1)
    assert len(alive) > 3


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_simko_reduces_to_grpo_bit_for_bit_in_the_trainer(base, group, beta):
    """The KL penalty is a part of both."""
    def gradient(**changes):
        return real_update(base, config(base, beta=beta, **changes), load_samples(base))[0]

    grpo = gradient(method="grpo")
    assert distance(gradient(alpha=0.0, lambda_top1=1.0), grpo) == 0
    assert distance(gradient(q=1.0), grpo) == 0
    assert distance(gradient(), grpo) > 0.01


def test_a_step_clips_the_norm_warms_up_and_is_adamws(base, group):
    cfg = config(
        base, learning_rate=1e-3, max_grad_norm=0.05, warmup_steps=2, weight_decay=0.1)
    gradient, sums, trainer = real_update(base, cfg, load_samples(base))
    norm = sums["grad_norm"]
    want = {name: x * 0.05 / norm for name, x in naive_gradient(base, "grpo")[0].items()}
    assert norm > 0.1 and distance(gradient, want) < 1e-5
    plain = plain_model(base, 1, 2).float()
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1)
    for update in (1, 2, 3, 4):
        for name, parameter in plain.named_parameters():
            parameter.grad = gradient[name]
        optimizer.param_groups[0]["lr"] = cfg.learning_rate * min(1, update / 3)
        optimizer.step()
        got = {name: weight.float() for name, weight in trainer.named_weights()}
        near(got, {name: parameter.data for name, parameter in plain.named_parameters()}, 1e-6)
        samples = load_samples(base)
        trainer.compute_old_logp(samples, quiet)
        trainer.update(samples, "simko", None, quiet)
        gradient = gradient_of(trainer)


@one_base
@pytest.mark.parametrize("again", [True, False])
def test_an_update_computes_its_layers_again_with_gradient_checkpointing_alone(base, group, again):
    """Neither this nor the sharding changes a gradient, but a GPU's memory depends on both."""
    cfg = config(base, micro_batch_tokens=10**6, gradient_checkpointing=again)
    trainer, samples = simko.Trainer(cfg, CPU, torch.float32), load_samples(base)
    trainer.compute_old_logp(samples, quiet)
    with spy(LlamaMLP, "forward") as forward:
        trainer.update(samples, "simko", None, quiet)
    assert forward.call_count == (4 if again else 2)  # it has two layers
    # FSDP gathers one layer at a time, and then the rest.
    assert sum(isinstance(module, FSDPModule) for module in trainer.policy.modules()) == 2 + 1


# --------------------------------------------------------------------------------- old log-probs
def test_the_expected_number_of_distinct_tokens_is_that_of_many_draws():
    """There are four tokens, of which the third and fourth count as one."""
    pi = torch.tensor([[0.5, 0.3, 0.1, 0.1], [1, 0, 0, 0]])
    expected = log.distinct_tokens(pi[:, :2].log(), num_generations=8)
    torch.manual_seed(0)
    draws = pi[0].multinomial(8 * 20_000, replacement=True).clamp(max=2).view(-1, 8)
    counted = sum((draws == token).any(1).double().mean() for token in range(3))
    near(expected.tolist(), [counted.item(), 1.0], 0.02)
    exact = (1 - 0.5**8) + (1 - 0.7**8) + (1 - 0.8**8)
    near(expected[0].item(), exact, 1e-6)


@pytest.mark.parametrize("tokens", [1, 40])
def test_only_tokens_above_the_tau_of_the_batch_are_gated(base, group, tokens):
    """It may be one of the entropies, or 0 if most tokens are certain."""
    cfg, samples = config(base, micro_batch_tokens=tokens), load_samples(base)
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    samples = [s for s in samples if s.advantage]
    entropies, _ = trainer.compute_old_logp(samples, quiet)
    for tau in (0.0, entropies.median().item(), entropies.max().item()):
        sums = trainer.update(samples, "simko", tau, quiet)
        assert sums["gated_tokens"] == (entropies > tau).sum()


def test_distinct_tokens_are_a_mean_over_the_gated_tokens_that_were_trained_on(base, group):
    cfg, samples = config(base, temperature=0.8), load_samples(base)
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    trainer.compute_old_logp(samples, quiet)
    sums = trainer.update(samples, "simko", None, quiet)
    row = log.update_metrics(sums)

    distinct, plain = [], plain_model(base)
    for s in samples:
        if s.advantage:
            log_pi = (plain_logits(plain, s) / cfg.temperature).log_softmax(-1)
            pi = log_pi.exp()
            entropy = -(pi * log_pi).sum(-1)
            top = pi[entropy > entropy.quantile(cfg.q)].sort(descending=True).values
            parts = torch.cat([top[:, :3], top[:, 3:].sum(1, keepdim=True)], 1)
            distinct += (1 - (1 - parts) ** cfg.num_generations).sum(1).tolist()
    assert len(distinct) == sums["gated_tokens"]
    near(row["distinct_tokens"], sum(distinct) / len(distinct), 1e-12)


def test_the_log_has_eq_2_as_means_over_all_responses_and_the_gap_to_the_engine(base, group):
    """Responses without a gradient count as much as the others."""
    cfg, samples = config(base, temperature=0.8), load_samples(base)
    assert any(s.advantage == 0 for s in samples)
    for i, s in enumerate(samples):
        s.engine_logp = randn(len(s.response_ids), seed=i, dtype=torch.float32).numpy()
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    entropies, row = trainer.compute_old_logp(samples, quiet)

    means, gaps, forks, plain = Counter(), [], [], plain_model(base)
    for s in samples:
        log_pi = (plain_logits(plain, s) / cfg.temperature).log_softmax(-1)
        logp = log_pi[range(len(log_pi)), s.response_ids]
        near(s.old_logp, logp.detach(), 1e-12)
        gaps += (logp - torch.from_numpy(s.engine_logp)).abs().tolist()
        means["Lambda"] += logp.mean().item() / len(samples)
        candidates = log_pi.sort(descending=True).values[:, :3]
        for k, column in enumerate(candidates.T, start=1):
            means[f"Lambda_{k}"] += column.mean().item() / len(samples)
        entropy = -(log_pi.exp() * log_pi).sum(-1)
        means["entropy"] += entropy.mean().item() / len(samples)
        forks += candidates[entropy > np.quantile(entropy.detach(), 0.8)].tolist()
    assert len(means) == 5
    for k, column in enumerate(zip(*forks, strict=True), start=1):
        near(row[f"forking_Lambda_{k}"], sum(column) / len(column), 1e-12)
    near({name: row[name] for name in means}, dict(means), 1e-12)
    near(row["logp_gap"], sum(gaps) / len(gaps), 1e-12)
    assert len(entropies) == row["tokens"] == len(gaps)
    assert row["entropy_histogram"] == log.entropy_histogram(entropies).tolist()


def test_entropies_are_counted_in_bins_of_a_tenth_of_a_nat():
    entropy = torch.tensor([0.0, 0.05, 0.15, 3.95, 4.05, 9.0])
    assert log.entropy_histogram(entropy).tolist() == [2, 1, *[0] * 37, 1, 2]
    for few in (entropy[:0], entropy[:3]):  # the histograms of micro-batches are added
        assert len(log.entropy_histogram(few)) == 41


def test_the_log_describes_a_rollout_by_its_responses_and_groups():
    samples = []
    for length, reward in enumerate([0, 0, 1, 0, 0, 1, 1, 1], start=1):
        sample = Sample(0, np.zeros(3), np.zeros(length), np.zeros(length), truncated=length == 8)
        sample.reward = float(reward)
        samples.append(sample)
    assert log.rollout_metrics(samples, num_generations=2) == {
        "reward": 4 / 8,
        "pass@2": 3 / 4,
        "mixed_groups": 2 / 4,
        "response_length": 36 / 8,
        "truncated": 1 / 8,
    }


def test_the_screen_and_tensorboard_show_the_rows_of_the_log(tmp_path, capsys):
    """A run that resumes after step 3 replaces what it had shown of step 4."""
    row = {
        "Lambda_1": -0.5,
        "Lambda_2": -2.25,
        "entropy": 0.75,
        "entropy_histogram": [1, 2],
        "response_length": 12.0,
        "grad_norm": 1.5,
        "logp_gap": 1e-6,
        "seconds_rollout": 2.0,
        "seconds_update": 1.3,
    }
    cfg = simko.Config(steps=9, K=2)
    for first, step, reward in [(2, 3, 0.5), (3, 4, 0.875), (3, 4, 0.25)]:
        write_row = log.Log(tmp_path, first, cfg)
        write_row({"step": step, "reward": reward} | row)
        write_row.add_pass_rates(step, {"mine": {"pass": {1: reward, 2: 1.0}}})
        write_row.board.close()
    words = ("step 4/9 reward = pass@1 0.250 Lambda^(k) -0.50 -2.25 entropy 0.750 "
             "tokens 12 grad 1.50 gap 1e-06 3.3 s")
    assert capsys.readouterr().out.splitlines()[-1].split() == words.split()

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    numbers = {"step", "reward", *row} - {"entropy_histogram"}
    assert {*board.Tags()["scalars"]} == numbers | {"mine/pass@1", "mine/pass@2"}
    for name in ("reward", "mine/pass@1"):
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert shown == [(3, 0.5), (4, 0.25)]


def test_the_clock_adds_up_the_laps_of_each_phase(monkeypatch):
    times = iter([0, 2, 2, 3, 3, 8, 8])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = log.Clock(CPU)
    for phase in ("rollout", "update", "rollout"):
        clock.lap(phase)
    row = clock.metrics(rollout=14, update=5)
    assert 0.1 < row.pop("peak_memory_gib") < 64
    assert row == {
        "seconds_rollout": 2 + 5,
        "seconds_update": 1,
        "tokens_per_s_rollout": 14 / 7,
        "tokens_per_s_update": 5 / 1,
    }


def test_the_clock_keeps_the_largest_memory_of_all_phases(monkeypatch):
    sizes = iter([1, 3, 2])
    monkeypatch.setattr(log.Clock, "used_memory", lambda clock: next(sizes) * 2**30)
    clock = log.Clock(CPU)
    for phase in ("rollout", "update", "sync"):
        clock.lap(phase)
    assert clock.metrics()["peak_memory_gib"] == 3


# ------------------------------------------------------------------------------------- precision
def bfloat16_checkpoint(base, folder):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return torch.bfloat16


def mislabelled_checkpoint(base, folder):
    """Saves float32 weights with a config.json that says bfloat16."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(folder)
    file = folder / "config.json"
    names = json.loads(file.read_text())
    assert names["dtype"] == "float32"
    file.write_text(json.dumps({**names, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    return torch.float32


def mixed_checkpoint(base, folder):
    """Saves the layers in float32, and the weights that are read first in bfloat16."""
    bfloat16_checkpoint(base, folder)
    weights = load_file(base / "model.safetensors")
    for name in weights:
        if "layers" not in name:
            weights[name] = weights[name].bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return torch.float32


@pytest.mark.parametrize(
    "checkpoint", [bfloat16_checkpoint, mislabelled_checkpoint, mixed_checkpoint])
def test_a_checkpoint_is_loaded_in_its_own_dtype_and_held_in_float32(
        base, group, tmp_path, checkpoint):
    """The weights are bit-identical. If each rank loaded a large model in float32, it would need
    twice the memory until the weights are sharded."""
    dtype = checkpoint(base, tmp_path)
    loaded = {}
    load_model = simko.load_model

    def watched(*arguments, **options):
        model = load_model(*arguments, **options)
        loaded.update({name: p.dtype for name, p in model.named_parameters()})
        return model

    with mock.patch.object(simko, "load_model", watched):
        trainer = simko.Trainer(config(tmp_path), CPU, torch.float32)
    assert {*loaded.values()} == {dtype}
    stored = load_file(tmp_path / "model.safetensors")
    held = weights_of(trainer)
    assert held.keys() == loaded.keys() == stored.keys()
    for name, weight in stored.items():
        assert held[name].dtype == torch.float32
        assert torch.equal(held[name], weight.float()), name
    assert checkpoint is bfloat16_checkpoint or any(
        not torch.equal(weight, weight.bfloat16().float()) for weight in stored.values())
    policy = trainer.policy
    tied = policy.get_input_embeddings().weight is policy.get_output_embeddings().weight
    assert tied == policy.config.tie_word_embeddings

    # The engine's copy has the dtype of the run.
    engine = HFEngine(config(tmp_path), STOPS, CPU, torch.bfloat16, "auto", 8)
    assert {weight.dtype for weight in engine.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("file", ["model.safetensors", "weights-1-of-1.safetensors"])
def test_weights_of_several_dtypes_are_not_rounded_in_a_folder_or_from_the_hub(
        base, tmp_path, monkeypatch, file):
    """The norms are float32, the first weight is bfloat16. The hub's copy is in its cache. An
    index may give the file another name."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--one--model/snapshots/abc"
    bfloat16_checkpoint(base, folder)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs/main").write_text("abc")
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"] = stored["model.norm.weight"].float() + 1e-3
    (folder / "model.safetensors").unlink()
    save_file(stored, folder / file, {"format": "pt"})
    if file != "model.safetensors":
        index = {"metadata": {}, "weight_map": dict.fromkeys(stored, file)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in (folder, "one/model"):
        model = load_model(name, "auto")
        assert torch.equal(model.model.norm.weight, stored["model.norm.weight"]), name
    assert fingerprint("one/model") == "one/model at commit abc"


def test_a_checkpoint_leaves_no_trace_in_the_next_update(base, group):
    """Before the first update, torch gives the optimizer its state for a checkpoint by a step,
    which AdamW would count."""
    weights = []
    for save in (False, True):
        trainer = simko.Trainer(config(base, learning_rate=1e-2), CPU, torch.float64)
        samples = load_samples(base)
        trainer.compute_old_logp(samples, quiet)
        for _ in range(2):
            if save:
                checkpoint_state(trainer)
            trainer.update(samples, "simko", None, quiet)
        weights.append(weights_of(trainer))
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_the_log_has_means_over_the_updates_that_were_made(base, group):
    cfg, samples = config(base), load_samples(base)
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    trainer.compute_old_logp(samples, quiet)
    totals = Counter()
    made = trainer.update(samples, "simko", None, quiet)
    totals.update(made)
    totals.update({name: 3 * value for name, value in made.items()} | {"updates": 1})
    totals.update(trainer.update([], "simko", None, quiet))  # a mini-batch without responses
    row = log.update_metrics(totals)
    near(row["grad_norm"], 2 * made["grad_norm"])
    near(row["loss"], 2 * made["loss"])
    assert made["grad_norm"] > 0
    assert log.update_metrics(Counter())["grad_norm"] == 0

    totals.update(Counter(grad_norm=math.nan))  # an update that was refused
    row = log.update_metrics(totals)
    assert math.isnan(row["grad_norm"])
    near(row["loss"], 2 * made["loss"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_before_the_first_update_the_reference_is_the_policy(base, group, dtype):
    trainer = simko.Trainer(config(base, beta=0.1), CPU, dtype)
    samples = load_samples(base)
    trainer.compute_old_logp(samples, quiet)
    for sample in samples:
        assert torch.equal(sample.ref_logp, sample.old_logp)


def test_a_run_starts_with_adamws_tensors_in_place(base, group, tmp_path):
    trainer = simko.Trainer(config(base), CPU, torch.float64)
    start_or_resume(tmp_path, [], trainer)
    states = trainer.optimizer.state
    assert states.keys() == {*trainer.policy.parameters()}
    assert all(state["exp_avg"].shape == p.shape for p, state in states.items())


# --------------------------------------------------------------------------------- two processes
# case: (changes of the settings, dtype). In bfloat16 each response is computed alone, so that its
# gradient has the same bits; what the ranks add up must then not be rounded to bfloat16 again.
ON_TWO = {case: (changes, torch.float64) for case, changes in CASES.items()}
ON_TWO["bfloat16"] = {"micro_batch_tokens": 1}, torch.bfloat16


def gradients(folder):
    """Returns {(case, share): result of `real_update`} for all cases and shares on this rank of
    two."""
    rank, results = torch.distributed.get_rank(), {}
    for case, share in itertools.product(ON_TWO, SHARES):
        samples = SHARES[share](load_samples(folder), rank)
        changes, dtype = ON_TWO[case]
        gradient, sums, _ = real_update(folder, config(folder, **changes), samples, dtype)
        results[case, share] = gradient, dict(sums)
    return results


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", ON_TWO)
def test_two_processes_have_the_gradient_of_one(base, two_ranks, group, case, share):
    changes, dtype = ON_TWO[case]
    want, sums, _ = real_update(base, config(base, **changes), load_samples(base), dtype)
    got, got_sums = two_ranks["trainer", str(base)][case, share]
    assert distance(got, want) < 1e-6
    near(got_sums, dict(sums), 1e-5)


def test_a_metric_of_a_forks_own_becomes_a_mean():
    sums = {"responses": 4, "tokens": 10, "logp_gap": 5.0, "entropy_histogram": [3, 7],
            "Lambda": -8.0, "mine": 2.0}
    assert log.policy_metrics(sums) == {
        "tokens": 10, "logp_gap": 0.5, "entropy_histogram": [3, 7], "Lambda": -2.0, "mine": 0.5}
    assert log.update_metrics(Counter(tokens=10, mine=5.0))["mine"] == 0.5
