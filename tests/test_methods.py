"""Tests of the methods that SimKO is compared with, and of dynamic sampling.

These tests implement every formula again, for one response and one token at a time. They compare
values and gradients, then updates, updates on two ranks, and complete runs.
"""
import itertools
import math
import random
from fractions import Fraction
from functools import cache, partial
from statistics import mean
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simko
from runtime import baselines, cli, faults
from runtime.hf_engine import HFEngine
from runtime.models import load_model
from runtime.packing import Sample
from runtime.seeding import seed_everything
from test_simko import naive_ratio
from tests.conftest import (
    CPU, SHARES, config, distance, load_samples, main, metrics, move, near, one_base,
    plain_logits, plain_model, quiet, randn, seeds, short_recipe, spy)

# The methods whose formulas this file has.
METHODS = (
    "simko", "grpo", "psr", "nsr", "w-reinforce", "forking", "entropy-adv", "kl-cov", "pass-at-k")
# Those with their own loss of a token.
LOSSES = "simko", *(name for name in METHODS if baselines.METHODS[name].token_loss)


def test_this_file_has_the_formula_of_every_method():
    missing = set(baselines.METHODS) - set(METHODS)
    assert not missing, (
        f"add the formulas of {missing} to naive_advantage or naive_loss, and name them in METHODS")


# ------------------------------------------------------------------------------------ advantages
def naive_advantage(method, rewards, i, k):
    """Returns the advantage of response i among its group's rewards, which are 0 or 1, or None if
    the method drops the response. k: the size of the sets of pass-at-k."""
    N, right = len(rewards), rewards[i] == 1
    if method == "psr":
        return 1 if right else None
    if method == "nsr":
        return None if right else -1
    if method == "w-reinforce":
        return 0.1 if right else -1
    if method == "pass-at-k":
        # The definition behind the formula: each set of k is rewarded by its best response.
        best = {chosen: max(rewards[j] for j in chosen)
                for chosen in itertools.combinations(range(N), k)}
        rho = Fraction(sum(best.values()), len(best))
        own = [Fraction(reward) for chosen, reward in best.items() if i in chosen]
        return float(sum(own) / len(own) - rho) / (math.sqrt(rho * (1 - rho)) + 1e-6)
    deviation = math.sqrt(sum((r - mean(rewards)) ** 2 for r in rewards) / (N - 1))
    return (rewards[i] - mean(rewards)) / (deviation + 1e-6)


def real_advantage(method, rewards, N, k=None):
    """Returns the advantages (N,) as `train_step` computes them, or pass-at-k's for another k."""
    if method == "pass-at-k" and k:
        return baselines.pass_at_k_advantage(rewards, N, k)
    function = baselines.METHODS[method].advantage or simko.group_advantage
    return function(rewards, N)


@pytest.mark.parametrize("method", METHODS)
@given(N=st.integers(2, 8), k=st.integers(1, 8), groups=st.integers(0, 3), seed=seeds)
def test_advantages(method, N, k, groups, seed):
    k = min(k, N)
    rows = [[int(x > (seed + i) % 3 - 1) for x in randn(N, seed=seed + i)]
            for i in range(groups)]
    # These are all edge cases: 0, 1, N - 1 and N responses are wrong.
    rows += [[0] * N, [1] * N, [1] + [0] * (N - 1), [0] + [1] * (N - 1)]
    got = real_advantage(method, torch.tensor(sum(rows, [])).float(), N, k).double()
    want = [naive_advantage(method, row, i, k) for row in rows for i in range(N)]
    near(got, torch.tensor([A or 0.0 for A in want], dtype=torch.float64), 1e-5)
    if method in ("psr", "nsr"):
        # 0 marks a response that is dropped.
        assert baselines.METHODS[method].drops_zero_advantage
        assert [A is None for A in want] == (got == 0).tolist()


@pytest.mark.parametrize("N, M, k, positive, negative", [
    (8, 4, 4, 1 / 70 / math.sqrt(69 / 4900), (1 / 70 - 1 / 35) / math.sqrt(69 / 4900)),
    (8, 8, 4, None, 0), (8, 0, 4, 0, None), (8, 3, 4, 0, 0), (4, 2, 1, 1, -1)])
def test_pass_at_k_advantages_worked_out_by_hand(N, M, k, positive, negative):
    rewards = torch.tensor([1.0] * (N - M) + [0.0] * M)
    got = baselines.pass_at_k_advantage(rewards, N, k).tolist()
    assert got == pytest.approx([positive] * (N - M) + [negative] * M, abs=1e-4)


@given(seed=seeds)
def test_pass_at_1_advantages_are_grpos(seed):
    """They are equal except that the standard deviation divides by N instead of N - 1."""
    rewards = (randn(24, seed=seed) > 0.3).float()
    grpo = simko.group_advantage(rewards, 8)
    near(baselines.pass_at_k_advantage(rewards, 8, k=1), grpo * math.sqrt(8 / 7), 1e-4)


def test_pass_at_k_advantages_need_groups_of_at_least_k():
    with pytest.raises(ValueError, match="groups of 3 responses have no sets of 4"):
        baselines.pass_at_k_advantage(torch.ones(6), 3)


# ---------------------------------------------------------------------------------------- losses
def naive_loss(method, z, z_old, y, A, gate, cfg):
    """Returns (the loss of one token, whether the clip removed its gradient).

    z, z_old: (V,) logits at the sampling temperature. gate: whether the token's entropy is above
    the threshold. The methods' constants are written as numbers."""
    pi, old = z.log_softmax(0).exp(), z_old.log_softmax(0).exp()
    gamma, H = pi[y] / old[y], -sum(p * math.log(p) for p in pi.tolist() if p)
    if method == "simko":
        gamma = naive_ratio(z, z_old, y, A, gate, cfg.alpha, cfg.K, cfg.lambda_top1)
    if method == "kl-cov":
        penalty = 1.0 * abs(pi[y].log() - old[y].log()) if gate else 0
        return -A * gamma + penalty, False
    if method == "entropy-adv":
        A = A + min(0.4 * H, abs(A) / 2)
    if method == "forking" and not gate:
        return 0 * gamma, False
    if A > 0 and gamma > 1 + cfg.epsilon_high:
        return -A * (1 + cfg.epsilon_high) + 0 * gamma, True
    if A < 0 and gamma < 1 - cfg.epsilon:
        return -A * (1 - cfg.epsilon) + 0 * gamma, True
    return -A * gamma, False


def real_losses(method, z, z_old, y, A, gate, cfg, entropy=None):
    """Returns (losses, clipped) of N tokens, composed as in `Trainer.update`.

    The entropy is differentiable, so a loss with a gradient through it would fail."""
    log_pi, old_log_pi = z.log_softmax(-1), z_old.log_softmax(-1)
    logp, old_logp = (x.gather(1, y[:, None])[:, 0] for x in (log_pi, old_log_pi))
    gamma = (logp - old_logp).exp()
    grpo_loss = partial(simko.Trainer.grpo_loss, SimpleNamespace(cfg=cfg))
    if method == "simko":
        ratio = simko.simko_ratio(
            logp, old_logp, log_pi.topk(cfg.K).values, y == z.argmax(-1), A, gate,
            cfg.alpha, cfg.lambda_top1)
        return grpo_loss(ratio, A)
    if method == "grpo":
        return grpo_loss(gamma, A)
    if entropy is None:
        entropy = -(log_pi.exp() * log_pi).sum(-1)
    return baselines.METHODS[method].token_loss(
        grpo_loss, cfg=cfg, gamma=gamma, logp=logp, old_logp=old_logp, entropy=entropy,
        advantage=A, gate=gate, lengths=torch.tensor([len(y)]))


def batch_of_tokens(seed, moved, V=7, N=24):
    """Returns (z, z_old, y, A, gate) of N tokens. Half of them are rank-1, and some have A = 0."""
    z = randn(N, V, seed=seed).requires_grad_()
    z_old = randn(N, V, seed=seed) + moved * randn(N, V, seed=seed + 1)
    any_token = randn(N, V, seed=seed + 3).argmax(-1)
    y = torch.where(randn(N, seed=seed + 2) > 0, z.argmax(-1), any_token)
    A = randn(N, seed=seed + 4) * (randn(N, seed=seed + 5) > -1)
    return z, z_old, y, A, randn(N, seed=seed + 6) > 0


@pytest.mark.parametrize("method", ["grpo", *LOSSES])
@given(moved=st.sampled_from([0.2, 0.7]), seed=seeds)
def test_per_token_losses_and_their_gradients(method, moved, seed):
    tokens, weight = batch_of_tokens(seed, moved), randn(24, seed=seed + 7)
    cfg = simko.Config(alpha=0.2, lambda_top1=1.6, epsilon=0.1, epsilon_high=0.15)
    real, clipped = real_losses(method, *tokens, cfg)
    naive, naively = zip(*(naive_loss(method, *row, cfg) for row in zip(*tokens)))
    naive = torch.stack(naive)
    near(real, naive)
    assert clipped.tolist() == list(naively)
    near(*(torch.autograd.grad(loss @ weight, tokens[0])[0] for loss in (real, naive)))


@pytest.mark.parametrize("method", LOSSES)
@given(seed=seeds)
def test_each_loss_reduces_to_grpos(method, seed):
    z, z_old, y, A, gate = batch_of_tokens(seed, 0.5)
    cfg, grpo = simko.Config(), simko.Config()
    entropy = None
    if method == "simko":
        cfg = simko.Config(alpha=0.0, lambda_top1=1.0)
    if method == "forking":  # all tokens have a loss
        gate = torch.ones_like(gate)
    if method == "entropy-adv":  # without entropy there is no bonus
        entropy = torch.zeros(len(y))
    if method == "kl-cov":  # no token is penalised, and GRPO does not clip
        gate = torch.zeros_like(gate)
        grpo = simko.Config(epsilon=1 - 1e-9, epsilon_high=1e9)
    results = []
    for loss, _ in (real_losses(method, z, z_old, y, A, gate, cfg, entropy),
                    real_losses("grpo", z, z_old, y, A, gate, grpo)):
        results.append(torch.stack([loss.detach(), *torch.autograd.grad(loss.sum(), z)[0].T]))
    near(*results, 1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_a_response_without_an_advantage_has_a_gradient_where_there_is_a_kl(method):
    sample = Sample(0, np.zeros(1), np.zeros(1), np.zeros(1), False, advantage=0.0)
    has_gradient = partial(baselines.has_gradient, sample, baselines.METHODS[method])
    assert has_gradient(beta=0.0) == (method == "kl-cov")
    assert has_gradient(beta=0.1)
    sample.advantage = -0.5
    assert has_gradient(beta=0.0)


# --------------------------------------------------------------------------------------- updates
def case(folder, method, **changes):
    """Returns settings so strong that each part of the loss has an effect, and samples whose
    rewards match the signs of their advantages."""
    cfg, samples = config(folder, method=method, **changes), load_samples(folder)
    for s in samples:
        s.reward = float(s.advantage > 0)
    rewards = torch.tensor([s.reward for s in samples])
    for s, A in zip(samples, real_advantage(method, rewards, len(samples)).tolist()):
        s.advantage = A
    return cfg, samples


@cache
def naive_gradient(folder, method, loss_type):
    """Returns (gradient, {name: expected sum for the log}), where pi_old is the checkpoint moved
    once and pi_theta the checkpoint moved twice."""
    cfg, samples = case(folder, method)
    old, policy = plain_model(folder, 1), plain_model(folder, 1, 2)
    rewards = [int(s.reward) for s in samples]
    rows, entropies, covariances = [], [], []
    for i, s in enumerate(samples):
        A = naive_advantage(method, rewards, i, k=4)
        z_old, z = plain_logits(old, s).detach(), plain_logits(policy, s)
        rows.append((A, z_old, z, s.response_ids))
        entropies += torch.distributions.Categorical(logits=z_old).entropy().tolist()
        covariances += [(A, z_old.log_softmax(-1)[t, y].item())
                        for t, y in enumerate(s.response_ids)]
    if method == "kl-cov":
        mean_A, mean_logp = (mean(column) for column in zip(*covariances))
        products = sorted((A - mean_A) * (logp - mean_logp) for A, logp in covariances)
        least = products[-8]  # a tenth of 88 tokens
    kept = [row for row in rows if row[0] is not None]
    tokens = sum(len(row[3]) for row in kept)
    losses, sums = [], {"gated_tokens": 0, "clipped_tokens": 0, "tokens": tokens}
    for A, z_old, z, response in kept:
        entropy = torch.distributions.Categorical(logits=z.detach()).entropy()
        tau = np.quantile(entropies, 0.8) if method == "forking" else np.quantile(entropy, cfg.q)
        for t, y in enumerate(response):
            gate = entropy[t] > tau
            if method == "kl-cov":
                logp = z_old.log_softmax(-1)[t, y].item()
                gate = (A - mean_A) * (logp - mean_logp) >= least - 1e-9
            loss, clipped = naive_loss(method, z[t], z_old[t], y, A, gate, cfg)
            losses.append(loss / (len(response) * len(kept) if loss_type == "grpo" else tokens))
            sums["gated_tokens"] += int(gate)
            sums["clipped_tokens"] += clipped
    sum(losses).backward()
    return {name: p.grad for name, p in policy.named_parameters()}, sums


def real_gradient(cfg, samples):
    """Returns (gradient, sums for the log) of `Trainer.update`, called as in `train_step`.

    kl-cov penalises a tenth of the tokens here, because 0.2 % of so few would be one token."""
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    move(trainer.policy, 1)
    entropies, _ = trainer.compute_old_logp(samples, quiet)
    tau = baselines.batch_threshold(entropies, baselines.METHODS[cfg.method], cfg)
    if cfg.method == "kl-cov":
        baselines.choose_by_covariance(samples, share=0.1)
    move(trainer.policy, 2)
    sums = trainer.update(samples, cfg.method, tau, quiet)
    return {name: p.grad.full_tensor() for name, p in trainer.policy.named_parameters()}, sums


@one_base
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize("method", METHODS)
def test_an_update_has_the_formulas_gradient_however_it_is_split(base, group, method, loss_type):
    want, sums = naive_gradient(base, method, loss_type)
    assert sums["gated_tokens"] > 0
    assert (sums["clipped_tokens"] > 0) == (method != "kl-cov")
    assert (sums["tokens"] == 88) == (method not in ("psr", "nsr"))
    for tokens, order in [(1, 1), (40, -1), (10**6, 1)]:
        cfg, samples = case(base, method, loss_type=loss_type, micro_batch_tokens=tokens)
        got, real_sums = real_gradient(cfg, samples[::order])
        assert distance(got, want) < 1e-6
        assert {name: real_sums[name] for name in sums} == sums


@one_base
def test_an_entropy_bonus_in_a_token_loss_trains(base, group, monkeypatch):
    """The paper's v3 compares with such a bonus. It is not one of the methods here."""
    def with_bonus(grpo_loss, *, gamma, entropy, advantage, **_):
        loss, clipped = grpo_loss(gamma, advantage)
        return loss - 0.1 * entropy, clipped

    method = baselines.Method("", token_loss=with_bonus, trains_on_zero_advantage=True)
    monkeypatch.setitem(baselines.METHODS, "bonus", method)
    gradients = {}
    for name in ("bonus", "grpo"):
        cfg, samples = case(base, name)
        samples[0].advantage = 0.0  # its entropy counts all the same
        gradients[name], _ = real_gradient(cfg, samples)
    policy, samples = plain_model(base, 1, 2), load_samples(base)
    entropies = [torch.distributions.Categorical(logits=plain_logits(policy, s)).entropy().mean()
                 for s in samples]
    (-0.1 * torch.stack(entropies).mean()).backward()
    want = {name: p.grad for name, p in policy.named_parameters()}
    got = {name: gradients["bonus"][name] - gradients["grpo"][name] for name in want}
    assert distance(got, want) < 1e-5


def gradients(folder):
    """Returns {(method, share): result of `real_gradient`} on this rank of two, for the methods
    that depend on the tokens of all ranks. The samples are dealt evenly, or one rank is idle."""
    rank, results = torch.distributed.get_rank(), {}
    for method, share in itertools.product(("psr", "nsr", "forking", "kl-cov"), ("dealt", "idle")):
        cfg, samples = case(folder, method)
        gradient, sums = real_gradient(cfg, SHARES[share](samples, rank))
        results[method, share] = gradient, dict(sums)
    return results


def test_two_processes_have_the_gradient_of_one(base, two_ranks, group):
    results = two_ranks["methods", str(base)]
    assert len(results) == 8
    for (method, share), (got, sums) in results.items():
        want, same = real_gradient(*case(base, method))
        assert distance(got, want) < 1e-6
        near(sums, dict(same), 1e-5)


def test_kl_cov_chooses_a_token_even_if_none_has_a_positive_covariance():
    samples = [Sample(0, np.zeros(1), np.zeros(2), np.zeros(2), False, advantage=advantage,
                      old_logp=torch.tensor(logp))
               for advantage, logp in ((1.0, [-3.0, -2.0]), (-1.0, [-1.0, -0.5]))]
    with mock.patch.object(baselines, "gather", lambda items: items):
        baselines.choose_by_covariance(samples)
    assert [s.chosen.tolist() for s in samples] == [[False, True], [False, False]]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
       share=st.sampled_from([0.0, 0.002, 0.01, 1.0]), seed=seeds)
def test_kl_cov_takes_the_share_of_tokens_with_the_largest_covariance(lengths, share, seed):
    samples = [Sample(0, np.zeros(1), np.zeros(n), np.zeros(n), False,
                      advantage=randn(1, seed=seed + i).item(),
                      old_logp=-randn(n, seed=seed - i).exp().float())
               for i, n in enumerate(lengths)]
    with mock.patch.object(baselines, "gather", lambda items: items):
        baselines.choose_by_covariance(samples, share)
    A = np.float32([s.advantage for s in samples for _ in s.old_logp]).astype(float)
    logp = np.concatenate([s.old_logp.numpy() for s in samples]).astype(float)
    covariance = (A - A.mean()) * (logp - logp.mean())
    chosen = torch.cat([s.chosen for s in samples]).numpy()
    count = max(1, math.floor(share * len(A)))
    if len(samples) == 1:  # all A are equal, and nothing covaries
        assert not chosen.any()
        return
    least = np.sort(covariance)[-count]
    assert chosen.sum() >= count  # more if several tokens share the smallest value
    assert covariance[chosen].min() >= least - 1e-12
    assert not (covariance[~chosen] > least + 1e-12).any()


@one_base
@pytest.mark.parametrize("method", ["psr", "nsr"])
def test_an_update_without_samples_changes_neither_weights_nor_momentum(
        base, group, method):
    cfg, samples = case(base, method, learning_rate=1e-3, weight_decay=0.1, warmup_steps=3)
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    start = [p.detach().full_tensor().clone() for p in trainer.policy.parameters()]
    trainer.compute_old_logp(samples, quiet)

    def state():
        return [x.full_tensor().clone() for p in trainer.policy.parameters()
                for x in (p.detach(), trainer.optimizer.state[p]["exp_avg"])]

    trainer.update(samples, method, None, quiet)
    before = state()
    assert not any(map(torch.equal, start, before[::2]))
    for s in samples:
        s.advantage = 0.0
    trainer.compute_old_logp(samples, quiet)
    sums = trainer.update(samples, method, None, quiet)
    # The engine can read the weights although no backward pass has resharded them.
    assert [name for name, _ in trainer.named_weights()]
    assert all(map(torch.equal, before, state())) and not sums
    # It still counts as an update, as it does in a resumed run.
    assert trainer.updates == 2 and trainer.optimizer.param_groups[0]["lr"] == 5e-4


# ------------------------------------------------------------------------------------ whole runs
def weights_of(folder):
    return dict(load_model(folder, torch.float32).named_parameters())


def train(taught, output, *flags):
    """Runs simko.py with transformers' generate in this process. Returns the rows of metrics.jsonl
    and the weights."""
    main(short_recipe(taught, output, "--weight-decay", 0.1, *flags))
    return metrics(output), weights_of(output / "hf")


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_step_trains_each_response_with_its_own_advantage_from_the_policy_that_sampled_it(
        taught, tmp_path, beta):
    """A step has two updates. The second starts from weights that the first has moved, and the
    second step from weights that the first step has left."""
    with spy(simko.Trainer, "update") as updates:
        train(taught, tmp_path, "--steps", 2, "--beta", beta, "--eval-steps", 1)
    assert not [*tmp_path.glob("eval*")]  # without --eval-data there is nothing to evaluate
    shares = [call.args[1] for call in updates.call_args_list]
    assert [len(share) for share in shares] == [4 * 8] * 4
    for step in (shares[:2], shares[2:]):
        # The first update has the first four prompts of the step, and the second the others.
        prompts = [{s.prompt for s in share} for share in step]
        assert prompts == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    groups = [[s for s in share if s.prompt == prompt]
              for share in shares for prompt in sorted({s.prompt for s in share})]
    advantages = set()
    for group in groups:
        rewards = np.array([s.reward for s in group])
        want = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
        near([s.advantage for s in group], want.tolist(), 1e-5)
        advantages |= {s.advantage > 0 for s in group if s.advantage}
    assert advantages == {True, False}

    start = plain_model(taught / "base")
    for number, share in enumerate(shares):
        gaps = []
        for s in share:
            log_pi = plain_logits(start, s).log_softmax(-1)
            logp = log_pi[range(len(log_pi)), s.response_ids].detach()
            gaps.append((s.old_logp - logp).abs().max().item())
            if beta:
                near(s.ref_logp.double(), logp, 1e-4)
        # Both updates of the first step have the starting model's.
        assert (max(gaps) < 1e-4) == (number < 2)


def test_every_method_trains_after_the_same_grpo_step(taught, tmp_path):
    results = {}
    for method in METHODS:
        rows, weights = results[method] = train(
            taught, tmp_path / method, "--method", method, "--steps", 3,
            "--grpo-warmup-steps", 1)
        assert [row["method"] for row in rows] == ["grpo", method, method]
        assert 0 < rows[0]["mixed_groups"] < 1
        for row in rows:
            assert all(map(math.isfinite, (x for x in row.values() if isinstance(x, float))))
            assert row["grad_norm"] > 0 and row["sampling_rounds"] == 1
        assert rows[0] == results["simko"][0][0]
        tokens = round(64 * rows[1]["response_length"])
        if method == "kl-cov":
            assert round(rows[1]["gate_share"] * tokens) == int(0.002 * tokens) > 0
        if method == "forking":
            assert 0.15 < rows[1]["gate_share"] < 0.25
        if method == "grpo":
            assert 0.3 < rows[1]["gate_share"] < 0.5
    for a, b in itertools.combinations(results, 2):
        assert results[a][0][1]["grad_norm"] != results[b][0][1]["grad_norm"], (a, b)
        assert distance(results[a][1], results[b][1]) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_step_without_a_mixed_group_updates_nothing_and_says_so(
        taught, tmp_path, capsys, method):
    after_one_step = partial(faults.check_rewards, steps=1)
    with mock.patch.object(faults, "check_rewards", after_one_step):
        (row,), weights = train(
            taught, tmp_path, "--train-data", taught / "hopeless.jsonl", "--method", method,
            "--max-sampling-rounds", 2, "--steps", 1, "--tau-scope", "batch")
    _, error = capsys.readouterr()
    assert "step 1: --max-sampling-rounds 2 found only 0 of 8 groups with unequal rewards" in error
    assert "all rewards of 1 steps were 0" in error
    unmeasured = {name for name, x in row.items() if x is None}
    assert unmeasured == {
        "Lambda",
        "Lambda_1",
        "Lambda_2",
        "Lambda_3",
        "entropy",
        "distinct_tokens",
        "forking_Lambda_1",
        "forking_Lambda_2",
        "forking_Lambda_3",
    }
    assert (row["sampling_rounds"], row["reward"], row["grad_norm"]) == (2, 0, 0)
    assert distance(weights, weights_of(taught / "base")) == 0


def test_dynamic_sampling_fills_the_batch_with_mixed_groups_and_resumes_bit_for_bit(
        taught, tmp_path, capsys):
    flags = "--max-sampling-rounds", 9, "--method", "simko", "--seed", 5, "--temperature", 0.8
    with (spy(simko, "seed_everything") as seed,
          spy(simko, "prompt_order") as order,
          mock.patch.object(HFEngine, "sleep") as sleep,
          spy(HFEngine, "generate") as generate,
          spy(simko.Trainer, "update") as updates):
        rows, weights = train(taught, tmp_path / "straight", "--steps", 3, *flags)
    rounds = [(row["step"] - 1, r) for row in rows for r in range(row["sampling_rounds"])]
    assert [call.args for call in seed.call_args_list] == [
        (5, step, 0, 2 * r) for step, r in rounds]
    batches_and_seeds = [(call.args[0], call.args[3]) for call in order.call_args_list]
    assert batches_and_seeds == [(9 * step + r, 5) for step, r in rounds]
    assert all(1 < row["sampling_rounds"] < 9 and row["mixed_groups"] < 1 for row in rows)
    rollouts = [call for call in generate.call_args_list if len(call.args[1]) == 8]
    assert len(rollouts) == len(rounds)
    for call in rollouts:
        assert call.args[2:4] == (8, 0.8)
        assert (call.kwargs["top_p"], call.kwargs["max_tokens"]) == (1.0, 12)
    assert "unequal" not in capsys.readouterr().out
    assert sleep.call_count == 1 + 3  # at the start, and after the last rollout of each step
    assert len(updates.call_args_list) == 6
    for call in updates.call_args_list:  # four groups each, all of them mixed
        samples = call.args[1]
        assert len(samples) == 32 and all(s.advantage for s in samples)
        assert 4 <= sum(s.advantage > 0 for s in samples) <= 28
    train(taught, tmp_path / "stopped", "--steps", 1, *flags)
    with mock.patch.object(simko, "Log", wraps=simko.Log) as log:
        again, same = train(taught, tmp_path / "stopped", "--steps", 3, *flags)
    assert again == rows and distance(same, weights) == 0
    assert log.call_args.args[1] == 1  # TensorBoard goes on showing the first step


def test_a_step_that_reaches_its_sampling_limit_warns_and_trains_on_the_groups_found(
        taught, tmp_path, capsys):
    def without_gradients(trainer):
        """The engine needs the memory of the gradients."""
        assert all(p.grad is None for p in trainer.policy.parameters())
        return named_weights(trainer)

    flags = "--steps", 1, "--mini-batch-size", 1
    named_weights = simko.Trainer.named_weights
    with spy(simko.Clock, "metrics") as speeds:
        (whole,), _ = train(taught, tmp_path / "all", *flags)
        with (spy(simko.Trainer, "update") as updates,
              mock.patch.object(simko.Trainer, "named_weights", without_gradients)):
            (row,), _ = train(taught, tmp_path / "mixed", *flags, "--max-sampling-rounds", 1)
    groups = round(8 * whole["mixed_groups"])
    # All eight updates count for the warm-up, as they do in a resumed run.
    assert len(updates.call_args_list) == 8
    trained = [s for call in updates.call_args_list for s in call.args[1]]
    assert 0 < groups < 8 and len(trained) == 8 * groups and all(s.advantage for s in trained)
    assert row["sampling_rounds"] == 1 and row["grad_norm"] > 0
    sampled, kept = whole["tokens"], row["tokens"]
    assert [call.kwargs for call in speeds.call_args_list] == [
        {"rollout": sampled, "logprobs": sampled, "update": kept},  # others have no gradient
        {"rollout": sampled, "logprobs": kept, "update": kept}]
    warning = f"--max-sampling-rounds 1 found only {groups} of 8 groups with unequal rewards"
    assert warning in capsys.readouterr().err
    # These metrics cover all samples.
    for name in ("reward", "response_length", "mixed_groups", "truncated"):
        assert row[name] == whole[name]


def test_kl_cov_chooses_its_tokens_on_a_rank_without_samples_too(taught, tmp_path):
    """The choice is a collective call, so the others would wait for that rank. Of many ranks,
    some may have no samples if few groups are found."""
    choose = mock.Mock()
    method = baselines.METHODS["kl-cov"]._replace(choose=choose)
    with (mock.patch.dict(baselines.METHODS, {"kl-cov": method}),
          mock.patch.object(simko, "balance_across_ranks", lambda *_: [])):
        train(taught, tmp_path, "--steps", 1, "--method", "kl-cov")
    choose.assert_called_once_with([])


def test_random_streams_are_functions_of_their_keys_and_of_nothing_else():
    """Checks rounds 0 and 1 of a training step, and an evaluation."""
    def draw(*key):
        seed_everything(*key)
        return torch.rand(()).item(), random.random(), np.random.rand()

    keys = (3, 1, 2, 0), (3, 1, 2, 2), (3, 1, 2, 1)
    draws = [draw(*key) for key in keys]
    assert len(set(draws)) == 3
    assert [draw(*key) for key in keys] == draws


@pytest.mark.parametrize("flags", [
    "num-generations 4 --method pass-at-k", "grpo-warmup-steps -1", "max-sampling-rounds -1",
    "method rloo"])
def test_impossible_settings_are_refused_by_name(flags, capsys):
    with pytest.raises(SystemExit):
        cli.parse_config(["train", *f"--{flags}".split()], simko.Config)
    assert f"--{flags.split()[0]}" in capsys.readouterr().err


def test_every_method_has_a_line_of_help(capsys):
    with pytest.raises(SystemExit):
        cli.parse_config(["train", "--help"], simko.Config)
    text = "".join(capsys.readouterr().out.split())
    for name, method in baselines.METHODS.items():
        assert "".join(f"{name}{method.about}".split()) in text
