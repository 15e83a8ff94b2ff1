"""Tests of the methods SimKO is compared with, and of dynamic sampling. Every formula stands here a second time, a
response and a token at a time; values and gradients are compared, then updates, two processes and whole runs.

    python -m pytest tests/test_methods.py
"""
import itertools
import math
import random
from fractions import Fraction
from functools import cache
from statistics import mean
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simko
from simko import METHODS, Config, Sample
from test_simko import naive_ratio
from tests.conftest import (
    CPU, SHARES, config, distance, load_samples, main, metrics, move, near, one_base, plain_logits, plain_model, quiet,
    randn, seeds, short_recipe)
from runtime import cli
from runtime.hf_engine import HFEngine


# ------------------------------------------------------------------------------------------------------ advantages
def naive_advantage(method, rewards, i, k):
    """Of response i among its group's rewards, 0 or 1; k of pass-at-k. None: the response is left out."""
    N, right = len(rewards), rewards[i] == 1
    if method in ("psr", "nsr"):
        return {"psr": 1, "nsr": -1}[method] if right == (method == "psr") else None
    if method == "w-reinforce":
        return 0.1 if right else -1
    if method == "pass-at-k":  # the definition behind the formula: all sets of k, each rewarded by its best response
        best = {chosen: max(rewards[j] for j in chosen) for chosen in itertools.combinations(range(N), k)}
        rho = Fraction(sum(best.values()), len(best))
        mine = [Fraction(reward) for chosen, reward in best.items() if i in chosen]
        return float(sum(mine) / len(mine) - rho) / (math.sqrt(rho * (1 - rho)) + 1e-6)
    deviation = math.sqrt(sum((r - mean(rewards)) ** 2 for r in rewards) / (N - 1))
    return (rewards[i] - mean(rewards)) / (deviation + 1e-6)


@pytest.mark.parametrize("method", METHODS)
@given(N=st.integers(2, 8), k=st.integers(1, 8), groups=st.integers(0, 3), seed=seeds)
def test_advantages(method, N, k, groups, seed):
    k = min(k, N)
    rows = [[int(x > (seed + i) % 3 - 1) for x in randn(N, seed=seed + i)] for i in range(groups)]
    rows += [[0] * N, [1] * N, [1] + [0] * (N - 1), [0] + [1] * (N - 1)]  # every edge: M = 0, 1, N - 1, N
    got = simko.response_advantage(torch.tensor(sum(rows, [])).float(), Config(method=method, num_generations=N, pass_k=k))
    want = [naive_advantage(method, row, i, k) for row in rows for i in range(N)]
    near(got.double(), torch.tensor([0.0 if A is None else A for A in want], dtype=torch.float64), 1e-5)
    if method in ("psr", "nsr"):  # 0 is what marks a response as left out
        assert [A is None for A in want] == (got == 0).tolist()


@pytest.mark.parametrize("N, M, k, positive, negative", [
    (8, 4, 4, 1 / 70 / math.sqrt(69 / 4900), (1 / 70 - 1 / 35) / math.sqrt(69 / 4900)),
    (8, 8, 4, None, 0), (8, 0, 4, 0, None), (8, 3, 4, 0, 0), (4, 2, 1, 1, -1)])
def test_pass_at_k_advantages_worked_out_by_hand(N, M, k, positive, negative):
    rewards = torch.tensor([1.0] * (N - M) + [0.0] * M)
    got = simko.response_advantage(rewards, Config(method="pass-at-k", num_generations=N, pass_k=k)).tolist()
    assert got == pytest.approx([positive] * (N - M) + [negative] * M, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------- losses
def naive_loss(method, z, z_old, y, A, gate, cfg):
    """(loss of one token, whether it is clipped). z, z_old: (V,) logits at the sampling temperature; gate: the
    threshold's verdict. Numbers that are a method's own are written out."""
    pi, old = z.log_softmax(0).exp(), z_old.log_softmax(0).exp()
    gamma, H = pi[y] / old[y], -sum(p * math.log(p) for p in pi.tolist() if p)
    if method == "kl-cov":
        return -A * gamma + (1.0 * abs(pi[y].log() - old[y].log()) if gate else 0), False
    if method == "simko":
        gamma = naive_ratio(z, z_old, y, A, gate, cfg.alpha, cfg.K, cfg.lambda_top1)
    if method == "entropy-adv":
        A = A + min(0.4 * H, abs(A) / 2)
    if method == "forking" and not gate:
        return 0 * gamma, False
    clipped = A > 0 and gamma > 1 + cfg.epsilon_high or A < 0 and gamma < 1 - cfg.epsilon
    return (-A * (1 + cfg.epsilon_high if A > 0 else 1 - cfg.epsilon) + 0 * gamma if clipped else -A * gamma), clipped


def real_losses(z, z_old, y, A, gate, cfg):
    """The same of (N,) tokens by `token_losses`, whose entropies may be differentiated here."""
    log_pi = z.log_softmax(-1)
    logp, old_logp = (x.gather(1, y[:, None])[:, 0] for x in (log_pi, z_old.log_softmax(-1)))
    stats = logp, log_pi.topk(cfg.K).values, -(log_pi.exp() * log_pi).sum(-1), y == z.argmax(-1)
    return simko.token_losses(stats, old_logp, A, gate, cfg)


def batch_of_tokens(seed, moved, V=7, N=24):
    z, z_old = randn(N, V, seed=seed).requires_grad_(), randn(N, V, seed=seed) + moved * randn(N, V, seed=seed + 1)
    y = torch.where(randn(N, seed=seed + 2) > 0, z.argmax(-1), randn(N, V, seed=seed + 3).argmax(-1))
    return z, z_old, y, randn(N, seed=seed + 4) * (randn(N, seed=seed + 5) > -1), randn(N, seed=seed + 6) > 0


@pytest.mark.parametrize("method", METHODS)
@given(moved=st.sampled_from([0.2, 0.7]), seed=seeds)
def test_per_token_losses_and_their_gradients(method, moved, seed):
    tokens, weight = batch_of_tokens(seed, moved), randn(24, seed=seed + 7)
    cfg = Config(method=method, alpha=0.2, lambda_top1=1.6, epsilon=0.1, epsilon_high=0.15)
    real, clipped = real_losses(*tokens, cfg)
    naive, naively = zip(*(naive_loss(method, *row, cfg) for row in zip(*tokens)))
    near(real, torch.stack(naive))
    near(*(torch.autograd.grad(loss @ weight, tokens[0])[0] for loss in (real, torch.stack(naive))))
    assert clipped.tolist() == list(map(bool, naively))


@pytest.mark.parametrize("method, changes", [
    ("psr", {}), ("nsr", {}), ("w-reinforce", {}), ("pass-at-k", {}),  # other advantages, the same loss
    ("simko", {"alpha": 0.0, "lambda_top1": 1.0}), ("entropy-adv", {"entropy_weight": 0.0}),
    ("kl-cov", {"kl_cov_weight": 0.0}), ("forking", {})])
@given(seed=seeds)
def test_each_loss_reduces_to_grpos(method, changes, seed):
    z, z_old, y, A, gate = batch_of_tokens(seed, 0.5)
    gate = gate | (method == "forking")  # of all tokens
    clip = {"epsilon": 1 - 1e-9, "epsilon_high": 1e9} if method == "kl-cov" else {}
    results = []
    for cfg in (Config(method=method, **changes), Config(method="grpo", **clip)):
        loss, _ = real_losses(z, z_old, y, A, gate, cfg)
        results.append(torch.stack([loss.detach(), *torch.autograd.grad(loss.sum(), z)[0].T]))
    near(*results, 1e-14)


@given(seed=seeds)
def test_advantages_reduce_to_grpos(seed):
    """pass@1 training is GRPO but for the estimate of the deviation: N, not N - 1, under the root."""
    rewards = (randn(24, seed=seed) > 0.3).float()
    one, grpo = (simko.response_advantage(rewards, Config(method=method, pass_k=1)) for method in ("pass-at-k", "grpo"))
    near(one, grpo * math.sqrt(8 / 7), 1e-4)


# --------------------------------------------------------------------------------------------------------- updates
def case(folder, method, **changes):
    """Settings so strong that everything shows, and samples whose rewards go with the signs of their advantages."""
    cfg = config(folder, method=method, kl_cov_share=0.1, num_generations=11, **changes)
    samples = load_samples(folder)
    for s in samples:
        s.reward = float(s.advantage > 0)
    for s, A in zip(samples, simko.response_advantage(torch.tensor([s.reward for s in samples]), cfg).tolist()):
        s.advantage = A
    return cfg, samples


@cache
def naive_gradient(folder, method, norm):
    """(gradient, tokens the gate lets through, tokens) with pi_theta two moves from the checkpoint, pi_old one."""
    cfg, samples = case(folder, method)
    old, policy, entropies, covariances = plain_model(folder, 1), plain_model(folder, 1, 2), [], []
    rewards, rows = [int(s.reward) for s in samples], []
    for i, s in enumerate(samples):
        A = naive_advantage(method, rewards, i, 4)
        z_old, z = plain_logits(old, s).detach(), plain_logits(policy, s)
        rows.append((A, z_old, z, s.response_ids))
        entropies += torch.distributions.Categorical(logits=z_old).entropy().tolist()
        covariances += [(A, z_old.log_softmax(-1)[t, y].item()) for t, y in enumerate(s.response_ids)]
    mean_A, mean_logp = (mean(column) for column in zip(*covariances)) if method == "kl-cov" else (0, 0)
    most = sorted((A - mean_A) * (logp - mean_logp) for A, logp in covariances if A is not None)[-8:]  # of 88 tokens
    kept, losses, gates = [row for row in rows if row[0] is not None], [], 0
    tokens = sum(len(row[3]) for row in kept)
    for A, z_old, z, response in kept:
        entropy = torch.distributions.Categorical(logits=z.detach()).entropy()
        tau = np.quantile(entropies, 0.8) if method == "forking" else np.quantile(entropy, cfg.q)
        for t, y in enumerate(response):
            gate = entropy[t] > tau
            if method == "kl-cov":
                gate = (A - mean_A) * (z_old.log_softmax(-1)[t, y].item() - mean_logp) >= most[0] - 1e-9
            loss, _ = naive_loss(method, z[t], z_old[t], y, A, gate, cfg)
            losses.append(loss / (len(response) * len(kept) if norm == "response" else tokens))
            gates += int(gate)
    sum(losses).backward()
    return {name: p.grad for name, p in policy.named_parameters()}, gates, tokens


def real_gradient(cfg, samples):
    """(gradient, log's sums) of `Trainer.update`, prepared as `train_step` does."""
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    move(trainer.policy, 1)
    entropies = torch.cat(simko.gather([trainer.old_statistics(samples, quiet)[0]]))
    if cfg.method == "kl-cov":
        simko.choose_by_covariance(samples, cfg.kl_cov_share)
    tau = simko.entropy_threshold(entropies, torch.tensor([len(entropies)]), 1 - cfg.forking_share, "batch")[:1]
    move(trainer.policy, 2)
    sums, _ = trainer.update(samples, tau if cfg.method == "forking" else None, quiet)
    return {name: p.grad.full_tensor() for name, p in trainer.policy.named_parameters()}, sums


@one_base
@pytest.mark.parametrize("norm", ["response", "token"])
@pytest.mark.parametrize("method", METHODS)
def test_an_update_has_the_formulas_gradient_however_it_is_split(base, group, method, norm):
    want, gates, count = naive_gradient(base, method, norm)
    for tokens, order in [(1, 1), (40, -1), (10**6, 1)]:
        cfg, samples = case(base, method, loss_type=norm, micro_batch_tokens=tokens)
        got, sums = real_gradient(cfg, samples[::order])
        assert distance(got, want) < 1e-6
        assert sums[1] == gates > 0 and sums[4] == count and (count == 88) == (method not in ("psr", "nsr"))


def gradients(folder):
    """On this rank of two: the methods that need to know of all ranks' tokens, evenly dealt and with one rank idle.
    {(method, share): what `real_gradient` gives}"""
    rank, results = torch.distributed.get_rank(), {}
    for method, share in itertools.product(("psr", "nsr", "forking", "kl-cov"), ("dealt", "idle")):
        cfg, samples = case(folder, method)
        results[method, share] = real_gradient(cfg, SHARES[share](samples, rank))
    return results


def test_two_processes_have_the_gradient_of_one(base, two_ranks, group):
    results = two_ranks["methods", str(base)]
    assert len(results) == 8
    for (method, share), (got, sums) in results.items():
        want, same = real_gradient(*case(base, method))
        assert distance(got, want) < 1e-6
        near(sums, same, 1e-5)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), share=st.sampled_from([0.0, 0.002, 0.01, 1.0]),
       seed=seeds)
def test_kl_cov_takes_the_share_of_tokens_with_the_largest_covariance(lengths, share, seed):
    samples = [Sample(0, np.zeros(1), np.zeros(n), np.zeros(n), False, advantage=randn(1, seed=seed + i).item(),
                      old_logp=-randn(n, seed=seed - i).exp().float()) for i, n in enumerate(lengths)]
    with mock.patch.object(simko, "gather", lambda items: items):
        simko.choose_by_covariance(samples, share)
    A = np.float32([s.advantage for s in samples for _ in s.old_logp]).astype(float)
    logp = np.concatenate([s.old_logp.numpy() for s in samples]).astype(float)
    covariance = (A - A.mean()) * (logp - logp.mean())
    chosen, count = torch.cat([s.chosen for s in samples]).numpy(), max(1, math.floor(share * len(A)))
    least = np.sort(covariance)[-count]
    assert chosen.sum() >= count  # more where several share the least value
    assert covariance[chosen].min() >= least - 1e-12 and not (covariance[~chosen] > least + 1e-12).any()


@one_base
@pytest.mark.parametrize("method", ["psr", "nsr"])
def test_an_update_to_which_nothing_is_left_leaves_weights_and_momentum_alone(base, group, method):
    cfg, samples = case(base, method, learning_rate=1e-3, weight_decay=0.1, warmup_steps=3)
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    start = [p.detach().full_tensor().clone() for p in trainer.policy.parameters()]
    trainer.old_statistics(samples, quiet)

    def state():
        return [x.full_tensor().clone() for p in trainer.policy.parameters()
                for x in (p.detach(), trainer.optimizer.state[p]["exp_avg"])]

    trainer.update(samples, None, quiet)
    before = state()
    assert not any(map(torch.equal, start, before[::2]))
    for s in samples:
        s.advantage = 0.0
    trainer.old_statistics(samples, quiet)
    sums, norm = trainer.update(samples, None, quiet)
    assert [name for name, _ in trainer.named_weights()]  # though no backward pass has sharded the weights again
    assert all(map(torch.equal, before, state())) and sums.tolist() == [0] * 5 and norm == 0
    assert trainer.updates == 2 and trainer.optimizer.param_groups[0]["lr"] == 5e-4  # counted: a resumed run counts so


# ------------------------------------------------------------------------------------------------------ whole runs
def train(taught, output, *flags):
    """Rows of metrics.jsonl, and the weights, of a run by transformers' generate in this process."""
    main(short_recipe(taught, output, "--weight-decay", 0.1, *flags))
    return metrics(output), {name: p for name, p in simko.load_model(output / "hf", torch.float32).named_parameters()}


def test_every_method_trains_after_the_same_grpo_step(taught, tmp_path):
    results = {}
    for method in METHODS:
        rows, weights = results[method] = train(taught, tmp_path / method, "--method", method, "--steps", 3,
                                                "--grpo-warmup-steps", 1)
        assert [row["method"] for row in rows] == ["grpo", method, method] and 0 < rows[0]["mixed_groups"] < 1
        for row in rows:
            assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
            assert row["grad_norm"] > 0 and row["rollouts"] == 1 and row["groups"] == 8
        assert rows[0] == results.get("grpo", results["simko"])[0][0]
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
def test_a_step_without_a_mixed_group_updates_nothing_and_says_so(taught, tmp_path, capsys, method):
    flags = "--train-data", taught / "hopeless.jsonl", "--max-sampling-rounds", 2, "--steps", 1, "--tau-scope", "batch"
    (row,), weights = train(taught, tmp_path, "--method", method, *flags)
    assert ("step 1: --max-sampling-rounds 2 found 0 of 8 groups with unequal rewards, no update; raise it"
            in capsys.readouterr().out)
    unmeasured = {name for name, value in row.items() if isinstance(value, float) and math.isnan(value)}
    assert unmeasured == {"Lambda", "Lambda_1", "Lambda_2", "Lambda_3", "entropy"}  # of no response
    assert (row["rollouts"], row["groups"], row["reward"], row["grad_norm"]) == (2, 0, 0, 0)
    before = dict(simko.load_model(taught / "base", torch.float32).named_parameters())
    assert distance(weights, before) == 0


def test_dynamic_sampling_fills_the_batch_with_mixed_groups_and_resumes_bit_for_bit(taught, tmp_path, capsys):
    flags = "--max-sampling-rounds", 9, "--method", "simko", "--seed", 5
    with (mock.patch.object(simko, "seed_everything", wraps=simko.seed_everything) as seed,
          mock.patch.object(simko, "prompt_order", wraps=simko.prompt_order) as order,
          mock.patch.object(HFEngine, "sleep") as sleep,
          mock.patch.object(simko.Trainer, "update", autospec=True, side_effect=simko.Trainer.update) as update):
        rows, weights = train(taught, tmp_path / "straight", "--steps", 3, *flags)
    rounds = [(row["step"] - 1, r) for row in rows for r in range(row["rollouts"])]
    assert [call.args for call in seed.call_args_list] == [(5, step, 0, 2 * r) for step, r in rounds]
    assert [call.args[0] for call in order.call_args_list] == [9 * step + r for step, r in rounds]
    assert all(1 < row["rollouts"] < 9 and row["groups"] == 8 and row["mixed_groups"] < 1 for row in rows)
    assert "unequal" not in capsys.readouterr().out
    assert sleep.call_count == 1 + 3  # at the start, and after the last rollout of each step
    assert len(update.call_args_list) == 6
    for call in update.call_args_list:  # four groups each, all of them mixed
        signs = [s.advantage > 0 for s in call.args[1]]
        assert len(signs) == 32 and all(s.advantage for s in call.args[1]) and 4 <= sum(signs) <= 28
    train(taught, tmp_path / "stopped", "--steps", 1, *flags)
    again, same = train(taught, tmp_path / "stopped", "--steps", 3, *flags)
    assert again == rows and distance(same, weights) == 0


def test_a_cap_that_is_met_is_said_and_the_step_goes_on_with_what_there_is(taught, tmp_path, capsys):
    (whole,), _ = train(taught, tmp_path / "all", "--steps", 1)
    (row,), _ = train(taught, tmp_path / "mixed", "--steps", 1, "--max-sampling-rounds", 1)
    groups = round(8 * whole["mixed_groups"])
    assert 0 < groups < 8 and (row["groups"], row["rollouts"]) == (groups, 1) and row["grad_norm"] > 0
    assert f"--max-sampling-rounds 1 found {groups} of 8 groups with unequal rewards, updating" in capsys.readouterr().out
    for name in ("reward", "response_length", "mixed_groups", "truncated"):  # of all that was rolled out
        assert row[name] == whole[name]


def test_round_0_of_a_rollout_has_the_seed_of_a_step_without_rounds():
    draws = []
    for key in [(3, 1, 2), (3, 1, 2, 0), (3, 1, 2, 1), (3, 1, 2, 2)]:
        simko.seed_everything(*key)
        draws.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1] and len(set(draws)) == 3


@pytest.mark.parametrize("flags", ["pass-k 9 --method pass-at-k", "pass-k 0", "forking-share 1.1", "kl-cov-share -1",
                                   "grpo-steps -1", "dynamic-sampling -1", "positive-weight -1", "entropy-weight -1",
                                   "kl-cov-weight -1", "method rloo"])
def test_impossible_settings_are_refused_by_name(flags, capsys):
    with pytest.raises(SystemExit):
        checks.parse_config(["train", *f"--{flags}".split()])
    assert f"--{flags.split()[0]}" in capsys.readouterr().err


def test_every_method_has_a_line_of_help(capsys):
    with pytest.raises(SystemExit):
        checks.parse_config(["train", "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert all("".join(f"{name}{what}".split()) in text for name, what in METHODS.items())
