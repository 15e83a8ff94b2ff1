"""Updates of the policy against the paper's gradient, computed a response and a token at a time: however the samples are
split, ordered and dealt to ranks; and what a step of the optimizer does."""
import itertools
import math
from collections import Counter
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch

import simko
from test_simko import naive_ratio
from tests.conftest import (
    CPU, SHARES, config, distance, load_samples, move, near, plain_logits, plain_model, quiet)

CASES = {
    "response": {"loss_type": "response"},
    "token": {"loss_type": "token", "temperature": 0.8, "gradient_checkpointing": False},
    "kl": {"loss_type": "response", "beta": 0.3, "temperature": 1.3},
    "kl-token-tau": {"loss_type": "token", "beta": 0.3, "tau_scope": "batch"},
}
TAU = 2.5  # nats: stands for the rollout batch's threshold where tau_scope is "batch"


@cache
def naive_gradient(folder, case):
    """Gradient of the paper's objective, a response and a token at a time; tokens in each of its branches."""
    cfg = config(folder, **CASES[case])
    reference, old, policy = plain_model(folder), plain_model(folder, 1), plain_model(folder, 1, 2)
    samples, branches, losses = load_samples(folder), Counter(), []
    for s in samples:
        z, z_old, z_ref = (plain_logits(m, s) / cfg.temperature for m in (policy, old, reference))
        entropy, A = torch.distributions.Categorical(logits=z.detach()).entropy(), s.advantage
        tau = TAU if cfg.tau_scope == "batch" else np.quantile(entropy, cfg.q)
        for l, y in enumerate(s.response_ids):
            gate = entropy[l] > tau
            gamma = naive_ratio(z[l], z_old[l], y, A, gate, cfg.alpha, cfg.K, cfg.lambda_top1)
            rho = z_ref[l].softmax(0)[y].detach() / z[l].softmax(0)[y]
            J = min(gamma * A, gamma.clamp(1 - cfg.epsilon, 1 + cfg.epsilon_high) * A)
            J = J - cfg.beta * (rho - rho.log() - 1)
            losses.append(-J / (len(s.response_ids) * len(samples) if cfg.loss_type == "response" else 1))
            taken = gate and A > 0, gate and A < 0 and y == z[l].argmax(), gate and (A or cfg.beta)
            clipped = A < 0 and gamma < 1 - cfg.epsilon, A > 0 and gamma > 1 + cfg.epsilon_high
            branches.update(name for name, yes in zip(["pos", "neg", "gate", "low", "high"], taken + clipped) if yes)
    (sum(losses) / (1 if cfg.loss_type == "response" else len(losses))).backward()
    return {name: p.grad for name, p in policy.named_parameters()}, branches


def real_update(folder, cfg, samples):
    """It through Trainer: old log-probs by policy 1, an update of policy 2; at lr 0 another, since the first must leave
    nothing behind. Returns (gradient, log's sums, norm, trainer)."""
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    move(trainer.policy, 1)
    trainer.old_statistics(samples, quiet)
    move(trainer.policy, 2)
    for _ in range(1 if cfg.learning_rate else 2):
        sums, norm = trainer.update(samples, torch.tensor(TAU) if cfg.tau_scope == "batch" else None, quiet)
    return {name: p.grad.full_tensor() for name, p in trainer.policy.named_parameters()}, sums, norm, trainer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens, order", [(1, 1), (40, -1), (10**6, 1)])
def test_an_update_has_the_papers_gradient_however_it_is_split_and_ordered(base, group, case, tokens, order):
    want, branches = naive_gradient(base, case)
    cfg = config(base, micro_batch_tokens=tokens, **CASES[case])
    gradient, sums, norm, _ = real_update(base, cfg, load_samples(base)[::order])
    assert distance(gradient, want) < 1e-6
    assert len(branches) == 5 and min(branches.values()) >= 3  # every part of the objective was at work
    near(norm, math.sqrt(sum(x.square().sum().item() for x in want.values())), 1e-6)
    assert sums[1:3].tolist() == [branches["gate"], branches["low"] + branches["high"]]


@pytest.mark.parametrize("zeros", [5, 11])
def test_responses_whose_advantage_is_0_count_but_need_no_pass(base, group, zeros):
    """Nor old log-probs; where all are 0, AdamW's momentum and decay go on as if their gradient had been computed."""
    updates = []
    for spare in (True, False):
        cfg, samples = config(base, learning_rate=1e-3, weight_decay=0.1, loss_type="token"), load_samples(base)
        trainer = simko.Trainer(cfg, CPU, torch.float64)
        trainer.old_statistics(samples, quiet)
        trainer.update(samples, None, quiet)
        for s in samples[:zeros]:
            s.advantage, s.old_logp = 0.0, None if spare else s.old_logp
        with (mock.patch.object(simko, "without_gradient", simko.without_gradient if spare else lambda *_: False),
              mock.patch.object(simko, "pack", wraps=simko.pack) as pack):
            sums, _ = trainer.update(samples, None, quiet)
        passed = [s for call in pack.call_args_list for s in call.args[0]]
        assert len(passed) == (11 - zeros - sum(not s.advantage for s in samples[zeros:]) if spare else 11)
        assert sums[4] == sum(len(s.response_ids) for s in passed)
        updates.append({name: p.detach().full_tensor().clone() for name, p in trainer.policy.named_parameters()})
    assert distance(*updates) < 1e-12


def test_simko_reduces_to_grpo_bit_for_bit_in_the_trainer(base, group):
    gradient = lambda **changes: real_update(base, config(base, **changes), load_samples(base))[0]
    grpo = gradient(method="grpo")
    assert distance(gradient(alpha=0.0, lambda_top1=1.0), grpo) == distance(gradient(q=1.0), grpo) == 0
    assert distance(gradient(), grpo) > 0.01


def test_a_step_clips_the_norm_warms_up_and_is_adamws(base, group):
    cfg = config(base, learning_rate=1e-3, max_grad_norm=0.05, warmup_steps=2, weight_decay=0.1)
    gradient, _, norm, trainer = real_update(base, cfg, load_samples(base))
    want = {name: x * 0.05 / norm for name, x in naive_gradient(base, "response")[0].items()}
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
        trainer.old_statistics(samples, quiet)
        trainer.update(samples, None, quiet)
        gradient = {name: p.grad.full_tensor() for name, p in trainer.policy.named_parameters()}


def gradients(folder):
    """Every case and share on this rank of two: {(case, share): what `real_update` gives}."""
    rank, results = torch.distributed.get_rank(), {}
    for case, share in itertools.product(CASES, SHARES):
        samples = SHARES[share](load_samples(folder), rank)
        results[case, share] = real_update(folder, config(folder, **CASES[case]), samples)[:3]
    return results


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradient_of_one(base, two_ranks, group, case, share):
    want, sums, norm, _ = real_update(base, config(base, **CASES[case]), load_samples(base))
    got, got_sums, got_norm = two_ranks["trainer", str(base)][case, share]
    assert distance(got, want) < 1e-6
    near((got_sums, got_norm), (sums, norm), 1e-5)
