"""The tests, in micrograd's manner: a claim is computed twice, naively from the paper's formulas and by simko.py, and
values and gradients are compared. Pure functions first, then packing and updates, engines, whole runs, bad input.

    python -m pytest test_simko.py

No network, no download: the checkpoints are made here, from seeds. Two ranks, and each vLLM (a process can hold only
one in its life), run in processes of their own, which enter this file at its end."""
import dataclasses
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from fractions import Fraction
from functools import cache, partial, reduce
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import simko
import verify
from simko import Config, Sample
from tools import checks

HERE = Path(simko.__file__).resolve().parent
ENVIRONMENT = dict(os.environ)  # as it was: process_group adds its address to this process's
STOPS, VOCABULARY = [2, 7], 61  # of the checkpoints made here, whose own end of text is 2
CPU, quiet = torch.device("cpu"), partial(tqdm, disable=True)
needs_vllm = pytest.mark.skipif(sys.platform != "linux", reason="there is no vLLM wheel for this platform")
settings.register_profile("simko", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("simko")
seeds = st.integers(0, 2**32 - 1)
torch.set_num_threads(1)  # tensors this small are slower on more
# transformers' norm rounds to float32 even in a float64 model: not here, so that a small difference is a difference.
LlamaRMSNorm.forward = lambda norm, x: F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def randn(*shape, seed=0, dtype=torch.float64):
    """Normal numbers that are a function of (shape, seed)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def near(got, want, tolerance=1e-12):
    """Fails unless every entry is within `tolerance`, absolute and relative."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def distance(got, want):
    """||got - want|| / ||want|| over a whole gradient {name: tensor}."""
    assert got.keys() == want.keys()
    flat = [torch.cat([x[name].detach().double().flatten() for name in want]) for x in (got, want)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


# ------------------------------------------------------------------------------------------------------- objective
def naive_ratio(z, z_old, y, advantage, gate, alpha, K, lam):
    """Eq. 3 at one token as the paper prints it, old policy's top-K ratios included. z, z_old: (V,) logits."""
    pi, old = z.softmax(0), z_old.softmax(0).detach()
    gamma, top = pi[y] / old[y], pi.topk(K).indices.tolist()
    if gate and advantage > 0:
        gamma_k = [pi[k] / old[k] for k in top]
        return (1 - alpha) * gamma + alpha / K * sum((gamma / g).detach() * g for g in gamma_k)  # Eq. 6
    return lam * gamma if gate and advantage < 0 and y == top[0] else gamma  # Sec. 4.3


def real_ratio(z, z_old, y, advantage, gate, alpha, K, lam):
    """The same for (N,) tokens through `simko_ratio`. z, z_old: (N, V) logits."""
    log_pi, index = z.log_softmax(-1), y[:, None]
    logp, old_logp = log_pi.gather(1, index)[:, 0], z_old.log_softmax(-1).gather(1, index)[:, 0]
    topk_logp = log_pi.topk(K, -1).values
    return simko.simko_ratio(logp, old_logp, topk_logp, y == z.argmax(-1), advantage, gate, alpha, lam)


@given(V=st.integers(2, 12), K=st.integers(1, 12), alpha=st.floats(0, 1), inside=st.booleans(), seed=seeds)
def test_eq6_has_the_gradient_of_eq5_and_the_value_of_gamma(V, K, alpha, inside, seed):
    K = min(K, V)
    z, z_old = randn(V, seed=seed).requires_grad_(), randn(V, seed=seed) + 0.5 * randn(V, seed=seed + 1)
    order = z.detach().argsort(descending=True)
    y = order[seed % K] if inside or K == V else order[K + seed % (V - K)]
    ratio = real_ratio(z[None], z_old[None], y[None], torch.ones(1), torch.tensor([True]), alpha, K, lam=7.0)
    gamma = (z.detach().log_softmax(0)[y] - z_old.log_softmax(0)[y]).exp()
    e_tilde = (1 - alpha) * F.one_hot(y, V).double() + alpha / K * F.one_hot(order[:K], V).sum(0).double()
    assert torch.equal(ratio.detach()[0], gamma)
    near(torch.autograd.grad(ratio.sum(), z)[0], gamma * (e_tilde - z.detach().softmax(0)))


@given(V=st.integers(1, 9), K=st.integers(1, 9), alpha=st.floats(0, 1), lam=st.floats(1, 3), seed=seeds)
def test_the_ratio_is_the_papers_whose_old_top_k_cancels(V, K, alpha, lam, seed):
    N, K, weight = 24, min(K, V), randn(24, seed=seed + 6)
    z, z_old = randn(N, V, seed=seed).requires_grad_(), randn(N, V, seed=seed) + 0.7 * randn(N, V, seed=seed + 1)
    y = torch.where(randn(N, seed=seed + 2) > 0, z.argmax(-1), randn(N, V, seed=seed + 3).argmax(-1))
    advantage, gate = randn(N, seed=seed + 4).round(), randn(N, seed=seed + 5) > -0.5
    real = real_ratio(z, z_old, y, advantage, gate, alpha, K, lam)
    naive = torch.stack([naive_ratio(*row, alpha, K, lam) for row in zip(z, z_old, y, advantage, gate)])
    near(real, naive)
    near(torch.autograd.grad(real @ weight, z)[0], torch.autograd.grad(naive @ weight, z)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_any_float_dtype_and_any_leading_shape(dtype, shape):
    results = []
    for kind, leading in ((dtype, shape), (torch.float64, (math.prod(shape),))):
        sizes = [shape] * 4 + [(*shape, 3)]
        tensors = [(0.3 * randn(*size, seed=i)).to(dtype).to(kind) for i, size in enumerate(sizes)]
        logp, old, A, mark, topk = (x.reshape(leading + x.shape[len(shape):]).requires_grad_() for x in tensors)
        ratio = simko.simko_ratio(logp, old, topk, mark > 0.2, A, mark > -0.2, 0.3, 1.7)
        loss = simko.clipped_loss(ratio, A, 0.2, 0.28)
        results.append([ratio, loss, *torch.autograd.grad(loss.sum(), (logp, topk))])
        assert {x.dtype for x in results[-1]} == {kind} and ratio.shape == loss.shape == leading
    for got, want in zip(*results):  # some roundings apart, in bfloat16 of 2^-8 each
        near(got.double().flatten(), want.flatten(), {8: 1e-15, 4: 1e-6}.get(dtype.itemsize, 0.02))


@given(V=st.integers(2, 9), alpha=st.floats(0.01, 1), seed=seeds,
       dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_alpha_0_with_lambda_1_and_q_1_are_grpo_bit_for_bit(V, alpha, dtype, seed):
    z, z_old = randn(32, V, seed=seed, dtype=dtype).requires_grad_(), randn(32, V, seed=seed + 1, dtype=dtype)
    y, advantage = randn(32, V, seed=seed + 2).argmax(-1), randn(32, seed=seed + 3, dtype=dtype).round()
    entropy = torch.distributions.Categorical(logits=z.detach().float()).entropy()
    half, none = (simko.entropy_gate(entropy, torch.tensor([20, 12]), q, "response") for q in (0.5, 1.0))

    def loss_and_gradient(ratio):
        loss = simko.clipped_loss(ratio, advantage, 0.2, 0.2)
        return torch.stack([loss.detach(), *torch.autograd.grad(loss.sum(), z)[0].T])

    logp, old_logp = (x.log_softmax(-1).gather(1, y[:, None])[:, 0] for x in (z, z_old))
    grpo = loss_and_gradient((logp - old_logp).exp())
    assert half.any() and not none.any()
    assert torch.equal(loss_and_gradient(real_ratio(z, z_old, y, advantage, half, 0.0, 2, 1.0)), grpo)
    assert torch.equal(loss_and_gradient(real_ratio(z, z_old, y, advantage, none, alpha, 2, 1.5)), grpo)


def test_lambda_acts_before_the_clip():
    logp = torch.tensor([0.75, 0.7], dtype=torch.float64).log().requires_grad_()
    yes, minus, zero = torch.tensor([True, True]), -torch.ones(2), torch.zeros(2, dtype=torch.float64)
    ratio = simko.simko_ratio(logp, zero, zero[:, None], yes, minus, yes, alpha=0.5, lam=1.1)
    loss = simko.clipped_loss(ratio, minus, 0.2, 0.2)
    near(loss, torch.tensor([0.825, 0.8], dtype=torch.float64))  # after the clip it would be 1.1 * 0.8 twice,
    near(torch.autograd.grad(loss.sum(), logp)[0], torch.tensor([0.825, 0.0], dtype=torch.float64))  # without gradient


@given(gamma=st.floats(0.1, 3), advantage=st.floats(-2, 2), low=st.floats(0.05, 0.9), high=st.floats(0.05, 1))
def test_the_clip_stops_gains_beyond_the_interval_and_nothing_else(gamma, advantage, low, high):
    stopped = advantage > 0 and gamma > 1 + high or advantage < 0 and gamma < 1 - low
    bound, leaf = 1 + high if advantage > 0 else 1 - low, torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    loss = simko.clipped_loss(leaf, torch.tensor(advantage, dtype=torch.float64), low, high)
    near(loss.item(), -(bound if stopped else gamma) * advantage)
    near(torch.autograd.grad(loss, leaf)[0].item(), 0.0 if stopped else -advantage)


def test_gradcheck_where_nothing_is_detached():
    leaves = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate([(6,), (6,), (5, 4), (9, 4)])]
    rank_1, gate = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 0]]).bool()
    signs, token = torch.tensor([-1.0, -1, -1, 0, 0, 1]), torch.tensor([0, 8, 3, 3, 5])
    ratio = lambda logp, old: simko.simko_ratio(logp, old, logp[:, None], rank_1, signs, gate, 0.3, 1.4)
    statistics_ = lambda hidden, weight: simko.token_statistics(hidden, weight, token, 3, 0.7, 2)[:2]
    assert torch.autograd.gradcheck(ratio, leaves[:2]) and torch.autograd.gradcheck(statistics_, leaves[2:])
    assert torch.autograd.gradcheck(simko.kl_penalty, leaves[:2])


@given(size=st.integers(2, 11), groups=st.integers(1, 4), seed=seeds)
def test_advantages_are_rewards_against_their_group(size, groups, seed):
    rewards, want = randn(groups * size, seed=seed).round(), []
    for group in rewards.view(groups, size).tolist():
        want += [(r - statistics.mean(group)) / (statistics.stdev(group) + 1e-6) for r in group]
    near(simko.group_advantage(rewards, size), torch.tensor(want, dtype=torch.float64), 1e-9)
    for value in (0.0, 1.0, 0.1, 1 / 3):  # all equal: exactly nothing, whatever the mean rounds to
        assert simko.group_advantage(torch.full((2 * size,), value), size).tolist() == [0.0] * (2 * size)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), eighths=st.integers(0, 8),
       scope=st.sampled_from(["response", "batch"]), seed=seeds)
def test_the_gate_opens_strictly_above_the_quantile_in_every_layout(lengths, eighths, scope, seed):
    q, entropy = eighths / 8, (randn(sum(lengths), seed=seed) * 4).round() / 4  # ties, and arithmetic without rounding
    rows, lengths = entropy.split(lengths), torch.tensor(lengths)
    tau = [np.quantile(entropy if scope == "batch" else row, q) for row in rows]
    near(simko.entropy_threshold(entropy, lengths, q, scope), torch.from_numpy(np.repeat(tau, lengths)))
    flat = simko.entropy_gate(entropy, lengths, q, scope)
    assert flat.tolist() == [h > t for row, t in zip(rows, tau) for h in row.tolist()]
    padded = F.pad(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=99.0), (0, 2), value=-99.0)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    for layout in (lengths, mask):
        gate = simko.entropy_gate(padded, layout, q, scope)
        assert gate[mask].tolist() == flat.tolist() and not gate[~mask].any()


@pytest.mark.parametrize("entropy, lengths, scope, want", [
    ([.3] * 7, [7], "response", [0] * 7),                     # all tie: none is above
    ([1, 2, 3], [1, 1, 1], "response", [0, 0, 0]),            # a single token is its own quantile
    ([1, 5, 2, 4, 3, 0], [6], "response", [0, 1, 0, 0, 0, 0]),
    ([1, 5, 2, 5, 3, 0], [6], "response", [0] * 6),           # tau(0.8) falls on the tie
    ([1, 9, 2, 3], [2, 2], "response", [0, 1, 0, 1]), ([1, 9, 2, 3], [2, 2], "batch", [0, 1, 0, 0])])
def test_gates_worked_out_by_hand(entropy, lengths, scope, want):
    assert simko.entropy_gate(torch.tensor(entropy).float(), torch.tensor(lengths), 0.8, scope).int().tolist() == want


def test_pass_at_k_counts_the_subsets_that_hold_a_correct_sample_exactly():
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            hits = [min(subset) < c for subset in itertools.combinations(range(n), k)]
            assert simko.pass_at_k(n, c, k).item() == sum(hits) / len(hits)
    for k in (1, 2, 128, 256, 300):
        want = [float(1 - Fraction(math.comb(300 - c, k), math.comb(300, k))) for c in range(301)]
        assert simko.pass_at_k(300, torch.arange(301), k).tolist() == want
    assert simko.pass_at_k(torch.tensor([[4], [8]]), torch.tensor([0, 1, 4]), 4).shape == (2, 3)


@pytest.mark.parametrize("function, arguments", [
    *((simko.pass_at_k, x) for x in [(4, 1, 5), (torch.tensor([8, 4]), 1, 5), (4, 1, 0), (4, 5, 2), (4, -1, 2)]),
    *((simko.group_advantage, (torch.zeros(count), size)) for count, size in [(4, 1), (4, 0), (7, 2), (3, 8)])])
def test_what_has_no_value_is_an_error(function, arguments):
    with pytest.raises(ValueError):
        function(*arguments)


# ------------------------------------------------------------------------------------------------ token statistics
def plain_statistics(hidden, weight, token, K, temperature):
    """`token_statistics` with all logits at once."""
    log_pi = (hidden @ weight.T / temperature).log_softmax(-1)
    logp = log_pi.gather(1, token[:, None])[:, 0]
    return logp, log_pi.topk(K).values, -(log_pi.exp() * log_pi).sum(-1).detach(), logp == log_pi.amax(-1)


@pytest.mark.parametrize("tied", [False, True])
@given(T=st.integers(0, 9), V=st.integers(1, 11), K=st.integers(1, 11), chunk=st.sampled_from([None, 1, 2, 3, 100]),
       temperature=st.sampled_from([1.0, 0.6, 1.7]), seed=seeds)
def test_token_statistics_are_those_of_plain_logits(tied, T, V, K, chunk, temperature, seed):
    token, K, results = torch.randint(V, (T,), generator=torch.Generator().manual_seed(seed)), min(K, V), []
    for function in (partial(simko.token_statistics, chunk=chunk), plain_statistics):
        weight, states = randn(V, 5, seed=seed).requires_grad_(), randn(T, 5, seed=seed + 1).requires_grad_()
        hidden = states.tanh() + (weight[token.flip(0)].sin() if tied else 0)  # tied: the head embeds the input, too
        logp, topk_logp, entropy, is_top1 = function(hidden, weight, token, K, temperature)
        assert not entropy.requires_grad and not is_top1.requires_grad
        total = (logp * randn(T, seed=seed + 2)).sum() + (topk_logp * randn(T, K, seed=seed + 3)).sum()
        results.append([logp, topk_logp, entropy, *torch.autograd.grad(total, (states, weight)), is_top1])
    for got, want in zip(*results):
        near(got, want)
    weight = torch.tensor([[1.0], [2.0], [2.0]])  # a tie for the highest probability: both are rank-1
    assert simko.token_statistics(torch.ones(3, 1), weight, torch.arange(3), 1)[3].tolist() == [False, True, True]


@pytest.mark.parametrize("chunk", [40, 16, 7])
def test_bfloat16_token_statistics_stay_within_the_rounding_of_their_logits(chunk):
    hidden, weight = randn(40, 64, seed=1, dtype=torch.bfloat16), (randn(97, 64, seed=2) / 4).bfloat16()
    token, results, real = randn(40, 97, seed=3).argmax(1), [], partial(simko.token_statistics, chunk=chunk)
    for function, dtype in ((real, torch.bfloat16), (plain_statistics, torch.float64)):
        h, w = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        logp, topk_logp, entropy, _ = function(h, w, token, 3, 0.8)
        total = (logp * randn(40, seed=4)).sum()  # not of the candidates: rounding may swap two that are close
        results.append([logp, topk_logp, entropy, *torch.autograd.grad(total, (h, w))])
    # bfloat16 keeps 8 bits, so a logit z moves by up to 2^-8 |z|, log pi by twice the largest of these; what follows is
    # float32. Gradients are rounded as grad_z, as the product and once more a chunk: 2^-8 each, not all one way.
    largest = (hidden.double() @ weight.double().T).abs().max().item() / 0.8
    for i, (got, want) in enumerate(zip(*results)):
        if i < 3:
            assert got.dtype == torch.float32 and (got - want).abs().max() < 2 * 2**-8 * largest
        else:
            assert got.dtype == torch.bfloat16 and (got.double() - want).norm() < 2 * 2**-8 * want.norm()


# ------------------------------------------------------------------------------------------------- packed policy
@pytest.fixture(scope="session", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    """Folder of a tiny random Llama with grouped-query attention and samples.json: responses of 1 to 17 tokens, some
    of one length, sampled from it where the advantage is positive and greedy elsewhere."""
    folder, samples = tmp_path_factory.mktemp("checkpoint"), []
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=request.param, initializer_range=0.2,
        bos_token_id=1, eos_token_id=STOPS[0], pad_token_id=0))
    for prompt, length, advantage in zip([3, 5, 3, 8, 4, 3, 6, 3, 5, 9, 4], [1, 7, 9, 7, 2, 17, 11, 9, 7, 5, 13],
                                         [1.5, -0.9, 0.7, 1.1, -1.2, -0.6, 0.8, 0.0, -1.4, 1.0, 0.9]):
        ids = torch.randint(3, VOCABULARY, (1, prompt))
        ids = model.generate(ids, do_sample=advantage > 0, min_new_tokens=length, max_new_tokens=length)[0].tolist()
        samples.append([ids[:prompt], ids[prompt:], advantage])
    model.save_pretrained(folder)
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder


def load_samples(folder):
    return [Sample(0, np.array(prompt), np.array(response), np.zeros(len(response), np.float32), True, advantage=A)
            for prompt, response, A in json.loads((folder / "samples.json").read_text())]


@torch.no_grad()
def move(model, seed):
    """Shifts all weights, sharded or not, by a few percent: seeded noise of 0.01 (they are of size 0.2, or 1)."""
    from torch.distributed.tensor import DTensor, distribute_tensor
    if hasattr(model, "reshard"):
        model.reshard()  # else it may show gathered weights, which the next pass forgets
    for i, parameter in enumerate(model.parameters()):
        noise = 0.01 * randn(*parameter.shape, seed=1000 * seed + i, dtype=torch.float32)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
        parameter.add_(noise)


def plain_model(folder, *seeds):
    """The checkpoint moved by `seeds`, in float64, with transformers' own attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    for seed in seeds:
        move(model, seed)
    return model.double()


def plain_logits(model, sample):
    """(L, V): what predicts each response token, from a pass over this sequence alone."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]))[None]
    return model(input_ids=ids).logits[0, len(sample.prompt_ids) - 1:-1]


def test_packed_statistics_are_those_of_each_response_alone(base):
    model, plain, samples = simko.load_model(base, torch.float64), plain_model(base), load_samples(base)
    for order in (samples, samples[::-1], samples[3:4], sorted(samples, key=lambda s: len(s.prompt_ids))):
        got = simko.policy_statistics(model, simko.pack(order, CPU), 3, 0.7)
        log_pi = torch.cat([plain_logits(plain, s) for s in order]).div(0.7).log_softmax(-1)
        token = torch.from_numpy(np.concatenate([s.response_ids for s in order]))
        logp = log_pi.gather(1, token[:, None])[:, 0]
        want = logp, log_pi.topk(3).values, -(log_pi.exp() * log_pi).sum(-1), token == log_pi.argmax(-1)
        for x, y in zip(got, want):
            near(x, y, 1e-12)
        gradients = [dict(enumerate(torch.autograd.grad(x @ randn(len(token)), [*some_model.parameters()])))
                     for some_model, x in ((model, got[0]), (plain, logp))]
        assert distance(*gradients) < 1e-12


@pytest.mark.parametrize("changed", range(11))
def test_no_token_sees_another_response(base, changed):
    model, samples = simko.load_model(base, torch.float32), load_samples(base)
    samples.sort(key=lambda s: -len(s.prompt_ids) - len(s.response_ids))  # equal lengths side by side
    before = simko.policy_statistics(model, simko.pack(samples, CPU), 3, 1.0)
    samples[changed].prompt_ids, samples[changed].response_ids = (
        (ids + 1) % VOCABULARY for ids in (samples[changed].prompt_ids, samples[changed].response_ids))
    packed = simko.pack(samples, CPU)
    others = torch.arange(len(samples)).repeat_interleave(packed.lengths) != changed
    for x, y in zip(before, simko.policy_statistics(model, packed, 3, 1.0)):
        near(x[others], y[others], 1e-6)
        assert x.dtype == torch.bool or not torch.isclose(x[~others], y[~others]).all()


@given(lengths=st.lists(st.integers(1, 30), max_size=25), budget=st.integers(1, 80), world=st.integers(1, 5))
def test_micro_batches_and_ranks_share_out_every_sample_once_and_evenly(lengths, budget, world):
    blank = lambda lengths: [Sample(i, np.zeros(2), np.zeros(n), np.zeros(n), False) for i, n in enumerate(lengths)]
    samples = blank(lengths)
    size = lambda share: sum(len(s.prompt_ids) + len(s.response_ids) for s in share)
    batches, shares = simko.micro_batches(samples, budget), [simko.deal(samples, rank, world) for rank in range(world)]
    for parts in (batches, shares):
        assert sorted(s.prompt for part in parts for s in part) == list(range(len(samples)))
    assert all(len(batch) == 1 or size(batch) <= budget for batch in batches)
    assert all(size(a) + size(b[:1]) > budget for a, b in itertools.pairwise(batches))  # none is closed too early
    for measure, most in ((len, 1), (size, max(lengths, default=0) + 2)):
        assert max(map(measure, shares)) - min(map(measure, shares)) <= most
    stairs = blank(range(1, 4 * world + 1))
    assert len({size(simko.deal(stairs, rank, world)) for rank in range(world)}) == 1


# -------------------------------------------------------------------------------------------------------- updates
CASES = {
    "response": {"loss_norm": "response"},
    "token": {"loss_norm": "token", "temperature": 0.8, "gradient_checkpointing": False},
    "kl": {"loss_norm": "response", "kl_beta": 0.3, "temperature": 1.3},
    "kl-token-tau": {"loss_norm": "token", "kl_beta": 0.3, "tau_scope": "batch"},
}
TAU = 2.5  # nats: stands for the rollout batch's threshold where tau_scope is "batch"
SHARES = {  # how two ranks divide the samples: evenly, so that one has most of the micro-batches, or all of them
    "dealt": lambda samples, rank: simko.deal(samples, rank, 2),
    "uneven": lambda samples, rank: samples[1:] if rank else samples[:1],
    "idle": lambda samples, rank: [] if rank else samples,
}


def config(folder, **changes):
    """An objective so strong that each part of it shows in a gradient."""
    strong = Config(model=str(folder), alpha=0.2, lam=1.6, q=0.4, clip_low=0.1, clip_high=0.15, grad_clip=1e9, lr=0.0,
                    micro_batch_tokens=40, max_prompt_tokens=200, max_response_tokens=24, eval_max_tokens=24)
    return dataclasses.replace(strong, **changes)


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
            gamma = naive_ratio(z[l], z_old[l], y, A, gate, cfg.alpha, cfg.K, cfg.lam)
            rho = z_ref[l].softmax(0)[y].detach() / z[l].softmax(0)[y]
            J = min(gamma * A, gamma.clamp(1 - cfg.clip_low, 1 + cfg.clip_high) * A)
            J = J - cfg.kl_beta * (rho - rho.log() - 1)
            losses.append(-J / (len(s.response_ids) * len(samples) if cfg.loss_norm == "response" else 1))
            taken = gate and A > 0, gate and A < 0 and y == z[l].argmax(), gate and (A or cfg.kl_beta)
            clipped = A < 0 and gamma < 1 - cfg.clip_low, A > 0 and gamma > 1 + cfg.clip_high
            branches.update(name for name, yes in zip(["pos", "neg", "gate", "low", "high"], taken + clipped) if yes)
    (sum(losses) / (1 if cfg.loss_norm == "response" else len(losses))).backward()
    return {name: p.grad for name, p in policy.named_parameters()}, branches


def real_update(folder, cfg, samples):
    """It through Trainer: old log-probs by policy 1, an update of policy 2; at lr 0 another, since the first must leave
    nothing behind. Returns (gradient, log's sums, norm, trainer)."""
    trainer = simko.Trainer(cfg, CPU, torch.float64)
    move(trainer.policy, 1)
    trainer.old_statistics(samples, quiet)
    move(trainer.policy, 2)
    for _ in range(1 if cfg.lr else 2):
        sums, norm = trainer.update(samples, torch.tensor(TAU) if cfg.tau_scope == "batch" else None, quiet)
    return {name: p.grad.full_tensor() for name, p in trainer.policy.named_parameters()}, sums, norm, trainer


@pytest.fixture
def group():
    """torch.distributed for this process alone; its environment variables leave with it."""
    with mock.patch.dict(os.environ), simko.process_group():
        yield


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
        cfg, samples = config(base, lr=1e-3, weight_decay=0.1, loss_norm="token"), load_samples(base)
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
    assert distance(gradient(alpha=0.0, lam=1.0), grpo) == distance(gradient(q=1.0), grpo) == 0
    assert distance(gradient(), grpo) > 0.01


def test_a_step_clips_the_norm_warms_up_and_is_adamws(base, group):
    cfg = config(base, lr=1e-3, grad_clip=0.05, lr_warmup=2, weight_decay=0.1)
    gradient, _, norm, trainer = real_update(base, cfg, load_samples(base))
    want = {name: x * 0.05 / norm for name, x in naive_gradient(base, "response")[0].items()}
    assert norm > 0.1 and distance(gradient, want) < 1e-5
    plain = plain_model(base, 1, 2).float()
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1)
    for update in (1, 2, 3, 4):
        for name, parameter in plain.named_parameters():
            parameter.grad = gradient[name]
        optimizer.param_groups[0]["lr"] = cfg.lr * min(1, update / 3)
        optimizer.step()
        got = {name: weight.float() for name, weight in trainer.named_weights()}
        near(got, {name: parameter.data for name, parameter in plain.named_parameters()}, 1e-6)
        samples = load_samples(base)
        trainer.old_statistics(samples, quiet)
        trainer.update(samples, None, quiet)
        gradient = {name: p.grad.full_tensor() for name, p in trainer.policy.named_parameters()}


def start(*command):
    """Runs a program in a process of its own, in this project's folder; fails with its output."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=HERE, env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


TWO_RANKS = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2


def two_ranks_worker(folder):
    """Every case and share on this rank of two; rank 0 writes what `real_update` gives."""
    with simko.process_group():
        rank, results = torch.distributed.get_rank(), {}
        for case, share in itertools.product(CASES, SHARES):
            samples = SHARES[share](load_samples(folder), rank)
            results[case, share] = real_update(folder, config(folder, **CASES[case]), samples)[:3]
        if rank == 0:
            torch.save(results, folder / "two_ranks.pt")


@pytest.fixture(scope="session")
def two_ranks(base):
    start(*TWO_RANKS, HERE / "test_simko.py", "two_ranks_worker", base)
    return torch.load(base / "two_ranks.pt")


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradient_of_one(base, two_ranks, group, case, share):
    want, sums, norm, _ = real_update(base, config(base, **CASES[case]), load_samples(base))
    got, got_sums, got_norm = two_ranks[case, share]
    assert distance(got, want) < 1e-6
    near((got_sums, got_norm), (sums, norm), 1e-5)


# -------------------------------------------------------------------------------------------------------- engines
def engine_prompts(folder):
    return [s.prompt_ids for s in load_samples(folder)] + [np.arange(150) % 50 + 3]  # the last: for the prefix cache


def try_engine(folder, backend):
    """Syncs an engine with a trainer, moves all weights, syncs again; writes what the tests below ask for."""
    cfg, report, rollouts = config(folder, rollout=backend, temperature=0.9, micro_batch_tokens=4000), {}, {}
    with closing(simko.make_engine(cfg, STOPS, CPU, torch.float32, "dummy", 24)) as engine:
        trainer = simko.Trainer(cfg, CPU, torch.float32)

        def rollout(*key):
            simko.seed_everything(*key)
            return engine.generate(engine_prompts(folder), 4, cfg.temperature, 1.0, 16, quiet)

        def compare(samples):  # largest difference of log-probs; mean of log pi + H: 0 for tokens drawn from pi
            entropies, _ = trainer.old_statistics(samples, quiet)
            logp, engine_logp = (torch.cat([torch.as_tensor(x) for x in column]) for column in zip(
                *((s.old_logp, s.engine_logp) for s in samples)))
            return (logp - engine_logp).abs().max().item(), (logp.sum() + entropies.sum()).item() / len(logp)

        engine.sync(trainer.named_weights())
        before = rollout(0, 0, 0)
        report["synced"] = compare(before)
        move(trainer.policy, 1)
        report["stale"] = compare(before)
        trainer.policy.reshard()
        engine.sync(trainer.named_weights())
        rollouts = {str(key): rollout(*key) for key in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]}
        rollouts["again"] = rollout(0, 0, 0)
        report["moved"] = list(map(compare, rollouts.values()))
        row = lambda s: (s.prompt, s.prompt_ids.tolist(), s.response_ids.tolist(), s.truncated)
        report["samples"] = {key: list(map(row, samples)) for key, samples in rollouts.items()}
        (folder / f"{backend}.json").write_text(json.dumps(report))


def vllm_worker(folder):
    with simko.process_group():
        try_engine(folder, "vllm")


@pytest.fixture(scope="session", params=["hf", pytest.param("vllm", marks=needs_vllm)])
def engine(request, base):
    """The report of `try_engine`."""
    if request.param == "vllm":
        start(HERE / "test_simko.py", "vllm_worker", base)
    else:
        with mock.patch.dict(os.environ), simko.process_group():
            try_engine(base, "hf")
    return json.loads((base / f"{request.param}.json").read_text())


def test_an_engine_samples_from_the_trainers_policy_after_each_sync(engine):
    gaps, surprises = zip(engine["synced"], *engine["moved"])
    assert max(gaps) < 1e-4 and engine["stale"][0] > 0.1
    assert abs(statistics.mean(surprises[:-1])) < 0.1  # about 4 standard errors


def test_the_same_seeds_give_the_same_tokens_and_another_seed_step_or_rank_others(engine):
    responses = {key: [row[2] for row in rows] for key, rows in engine["samples"].items()}
    assert responses.pop("again") == responses["(0, 0, 0)"]
    assert all(a != b for a, b in itertools.combinations(responses.values(), 2)) and len(responses) == 4


def test_responses_come_in_order_keep_their_end_and_say_when_they_were_cut(engine, base):
    samples, prompts = engine["samples"]["(0, 0, 0)"], enumerate(engine_prompts(base))
    assert [row[:2] for row in samples] == [[i, prompt.tolist()] for i, prompt in prompts for _ in range(4)]
    for *_, tokens, truncated in samples:
        assert not set(STOPS).intersection(tokens[:-1]) and (len(tokens) == 16 or not truncated)
        assert truncated == (tokens[-1] not in STOPS)
    assert {row[3] for row in samples} == {False, True} and len({tuple(row[2]) for row in samples}) > 24


# ----------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="session")
def laptop(tmp_path_factory):
    """The laptop experiment's folder, its base model trained just enough to be rewarded now and then."""
    folder = tmp_path_factory.mktemp("laptop") / "data"
    start("tools/laptop.py", folder, "--seed", 0, "--steps", 250)
    return folder


def recipe(data, command, output, *flags):
    """Arguments of the laptop recipe's `train`, or of an evaluation of its base model."""
    line = (f"{command} --model {data}/base --output {output} --task countdown --prompt-template raw --eval-n 4 "
            f"--max-prompt-tokens 16 --eval-max-tokens 12 --eval-data {data}/test.jsonl --eval-temperature 1 "
            "--eval-top-p 1")
    if command == "train":
        line += (f" --train-data {data}/train.jsonl --batch 32 --mini-batch 8 --lr 4e-4 --max-response-tokens 12"
                 " --loss-norm token --no-gradient-checkpointing --save-every 1")
    return [*line.split(), *map(str, flags)]


def main(arguments):
    """simko.py in this process, whose environment variables it leaves as they were."""
    with mock.patch.dict(os.environ):
        simko.main(arguments)


def metrics(run):
    """Rows of metrics.jsonl without what depends on the machine's load."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not re.search("second|_per_s|memory", name)} for row in rows]


@pytest.fixture(scope="session")
def runs(laptop, tmp_path_factory):
    """Run folders: three steps straight through; and two steps, a kill while step 3 was being saved, a second start."""
    folder = tmp_path_factory.mktemp("runs")
    straight, stopped = folder / "straight", folder / "stopped"
    began = time.monotonic()
    start("simko.py", *recipe(laptop, "train", stopped, "--rollout", "vllm", "--steps", 2))
    (stopped / "checkpoints/step_000003.tmp").mkdir()
    (stopped / "checkpoints/step_000003.tmp/__0_0.distcp").write_bytes(b"half")
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**metrics(stopped)[-1], "step": 3, "reward": -1}) + '\n{"step": 4, "rew')
    start("simko.py", *recipe(laptop, "train", stopped, "--rollout", "vllm", "--steps", 3))
    seconds = time.monotonic() - began
    start("simko.py", *recipe(laptop, "train", straight, "--rollout", "vllm", "--steps", 3))
    return straight, stopped, seconds


@needs_vllm
def test_stopped_and_resumed_equals_straight_through_bit_for_bit(runs):
    straight, stopped, seconds = runs
    assert metrics(straight) == metrics(stopped) and [row["step"] for row in metrics(straight)] == [1, 2, 3]
    for path in ("hf/model.safetensors", "hf/config.json", "eval_000003/test.jsonl", "eval_000003/eval.json"):
        assert (straight / path).read_bytes() == (stopped / path).read_bytes()
    for row in metrics(straight):  # and there was something to learn, from an engine in step with the trainer
        assert row["mixed_groups"] > 0 and row["grad_norm"] > 0 and row["logp_gap"] < 1e-5
        assert 0.1 < row["gate_share"] < 0.2 and row["Lambda_3"] < row["Lambda_2"] < row["Lambda_1"] < 0
    assert seconds < 120


@needs_vllm
def test_a_run_folder_holds_the_last_two_checkpoints_the_export_and_its_evaluation(runs):
    for run in runs[:2]:
        assert {"config.json", "metrics.jsonl", "checkpoints", "hf", "eval_000003"} <= {x.name for x in run.iterdir()}
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000002", "step_000003"]
        report = json.loads((run / "eval_000003/eval.json").read_text())["sets"]["test"]
        _, *lines = (run / "eval_000003/test.jsonl").read_text().splitlines()
        right = [row["id"] for row in map(json.loads, lines) if row["correct"]]
        assert len(report["correct"]) == 200 and report["correct"] == {id: right.count(id) for id in report["correct"]}
        for k in (1, 2, 4):
            hits = [1 - math.comb(4 - c, k) / math.comb(4, k) for c in report["correct"].values()]
            near(report["pass"][str(k)], statistics.mean(hits))


@needs_vllm
def test_the_export_is_an_ordinary_checkpoint_that_transformers_loads_and_generates_from(runs, laptop):
    model, before = (AutoModelForCausalLM.from_pretrained(path) for path in (runs[0] / "hf", laptop / "base"))
    assert 0 < distance(dict(model.named_parameters()), dict(before.named_parameters())) < 0.5
    tokenizer = AutoTokenizer.from_pretrained(runs[0] / "hf")
    ids = tokenizer("3 5 7 > 56 :", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, max_new_tokens=6, min_new_tokens=6)[0])
    assert text.startswith("<bos> 3 5 7 > 56 : ") and len(text.split()) == 13


def test_a_stopped_evaluation_goes_on_and_comes_to_the_same_result(laptop, tmp_path):
    from tools.hf_rollout import HFEngine
    arguments = recipe(laptop, "eval", tmp_path, "--rollout", "hf")
    responses, report = tmp_path / "test.jsonl", tmp_path / "eval.json"
    with mock.patch.object(HFEngine, "generate", autospec=True, side_effect=HFEngine.generate) as generate:
        main(arguments)
        whole, result = responses.read_bytes(), report.read_bytes()
        lines = whole.splitlines(keepends=True)
        assert len(lines) == 1 + 4 * 200 and generate.call_count == 4  # 64 problems a call
        for kept, rest, calls in [(701, b"", 2), (301, b'{"id"', 3), (513, b"", 2), (1, b"", 4), (801, b"", 0)]:
            generate.reset_mock()
            report.unlink()
            responses.write_bytes(b"".join(lines[:kept]) + rest)
            main(arguments)
            assert generate.call_count == calls and (responses.read_bytes(), report.read_bytes()) == (whole, result)
    with pytest.raises(SystemExit, match="other settings"):
        main([*arguments, "--eval-top-p", "0.5"])
    (tmp_path / "other").mkdir()  # a set of that name with one problem less: no old verdict may count for it
    problems = (laptop / "test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other" / "test.jsonl").write_text("".join(problems[1:]))
    with pytest.raises(SystemExit, match="other settings"):
        main([*arguments, "--eval-data", str(tmp_path / "other" / "test.jsonl")])
    assert responses.read_bytes() == whole


def test_all_nine_methods_train_three_steps_on_the_laptop_recipe(laptop, tmp_path):
    runs = {}
    for method in simko.METHODS:
        main(recipe(laptop, "train", tmp_path / method, "--rollout", "hf", "--method", method, "--steps", 3))
        runs[method] = metrics(tmp_path / method)
        assert [row["method"] for row in runs[method]] == [method] * 3
        assert runs[method][0]["grad_norm"] > 0 and all(row["logp_gap"] < 1e-5 for row in runs[method])
        assert (tmp_path / method / "eval_000003" / "eval.json").exists() and (tmp_path / method / "hf").exists()
    assert len(runs) == 9 and len({rows[0]["reward"] for rows in runs.values()}) == 1  # the same first rollout
    assert len({rows[2]["Lambda_2"] for rows in runs.values()}) == 9  # and then each goes its way


def test_one_in_four_of_the_responses_without_a_gradient_stands_for_all_in_the_log(laptop, tmp_path):
    """By its weight, so that the log's means are unbiased; with --tau-scope batch all are looked at."""
    looked_at = []
    method = simko.Trainer.old_statistics
    with mock.patch.object(simko.Trainer, "old_statistics", autospec=True, side_effect=method) as old:
        for scope in ("response", "batch"):
            main(recipe(laptop, "train", tmp_path / scope, "--rollout", "hf", "--steps", 3, "--tau-scope", scope))
            looked_at.append([s for call in old.call_args_list for s in call.args[1]])
            old.reset_mock()
    some, everyone = looked_at
    idle = [s for s in some if s.advantage == 0]
    count = sum(s.advantage == 0 for s in everyone)  # of the first step the same; all three are about as many
    assert len(everyone) == 3 * 256 and {s.weight for s in everyone} == {s.weight for s in some if s.advantage} == {1.0}
    assert {s.weight for s in idle} == {4.0} and abs(4 * len(idle) - count) < 60
    first, same = (metrics(tmp_path / scope)[0] for scope in ("response", "batch"))
    for name in ("Lambda", "Lambda_1", "Lambda_2", "Lambda_3", "entropy"):
        assert abs(first[name] - same[name]) < 0.3 * abs(same[name])
    assert sum(same["entropy_histogram"]) == pytest.approx(256 * same["response_tokens"])


def test_a_broken_sync_stops_the_run_and_says_so(laptop, tmp_path):
    from tools.hf_rollout import HFEngine
    with (mock.patch.object(HFEngine, "sync", lambda engine, named_weights: list(named_weights)),
          pytest.raises(SystemExit, match="does not sample from the trained policy")):
        main(recipe(laptop, "train", tmp_path, "--rollout", "hf", "--steps", 3, "--lr", 4e-3))
    assert [row["step"] for row in metrics(tmp_path)] == [1]


def train_worker(folder):
    """`simko.py train` on this rank of two; writes down the keys of its random streams and tau in its updates."""
    with (mock.patch.object(simko, "seed_everything", wraps=simko.seed_everything) as seed,
          mock.patch.object(simko.Trainer, "update", autospec=True, side_effect=simko.Trainer.update) as update):
        simko.main(json.loads((folder / "arguments.json").read_text()))
    keys, tau = [call.args for call in seed.call_args_list], [call.args[2].item() for call in update.call_args_list]
    (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps([keys, tau]))


def test_two_processes_train_with_one_tau_and_seeds_of_their_own_and_one_goes_on(laptop, tmp_path):
    flags = ["--rollout", "hf", "--tau-scope", "batch", "--kl-beta", 0.1, "--q", 0.5, "--micro-batch-tokens", 99]
    train = partial(recipe, laptop, "train", tmp_path, *flags, "--steps")
    (tmp_path / "arguments.json").write_text(json.dumps(train(1)))
    start(*TWO_RANKS, HERE / "test_simko.py", "train_worker", tmp_path)
    (first, tau), (second, same_tau) = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    with mock.patch.object(simko, "seed_everything", wraps=simko.seed_everything) as seed:
        main(train(2))
    keys = [*map(tuple, first + second), seed.call_args_list[0].args]
    assert len(set(keys)) == len(keys) and tau == same_tau
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2]
    for row in metrics(tmp_path):
        assert row["logp_gap"] < 1e-5 and 0.4 < row["gate_share"] < 0.6 and row["grad_norm"] > 0
    (tmp_path / "65.jsonl").write_text("".join((laptop / "train.jsonl").read_text().splitlines(keepends=True)[:65]))
    flags = "--rollout", "hf", "--eval-n", 2, "--eval-data", tmp_path / "65.jsonl"
    start(*TWO_RANKS, HERE / "simko.py", *recipe(laptop, "eval", tmp_path / "eval", *flags))  # 64 + 1
    assert len((tmp_path / "eval" / "65.jsonl").read_text().splitlines()) == 1 + 2 * 65
    with pytest.raises(SystemExit, match="--lam was 1.1, is 1.2"):  # another run may not go on here
        main(train(3, "--lam", 1.2))
    with pytest.raises(SystemExit, match="has come to step 2 already: --steps 1 is behind it"):
        main(train(1))
    with pytest.raises(SystemExit, match="is the folder of a training run"):
        main(recipe(laptop, "eval", tmp_path))
    (tmp_path / "config.json").write_text('{"lam"')
    with pytest.raises(SystemExit, match="config.json is damaged"):
        main(train(3))
    with pytest.raises(SystemExit, match="config.json/run is a file, or lies in one"):
        main(recipe(laptop, "train", tmp_path / "config.json" / "run"))


@pytest.mark.parametrize("feature", [{"sliding_window": 2}, {"softcap": 30.0}, {"s_aux": torch.zeros(1)}])
def test_attention_that_would_be_computed_wrongly_is_refused(feature):
    x, bounds = randn(1, 1, 3, 4), torch.tensor([0, 3], dtype=torch.int32)
    simko.packed_attention(None, x, x, x, None, 0.5, bounds, 3, sliding_window=3)
    with pytest.raises(SystemExit, match="not built"):
        simko.packed_attention(None, x, x, x, None, 0.5, bounds, 3, **feature)


# ------------------------------------------------------------------------------------------- command line and data
REFUSED = {  # command line: what the message names, by default the first flag
    "": "train or eval", "trian": "train or eval", "train stray": "stray", "eval": "--eval-data",
    "train --batch 10 --mini-batch 4": "--mini-batch 4 does not divide --batch 10",
    "train --tensor-parallel 2 --rollout hf": "--tensor-parallel 2 is for vLLM's engine: not with --rollout hf",
    "train --eval-data a/x,split=test b/x": "same name", "eval --alpha 0.1 --eval-data x": "--alpha",
    **{f"train --{flags}": f"--{flags.split()[0]}" for flags in (
        "nosuch 1", "group-size 1", "alpha 1.01", "alpha -0.1", "q 1.2", "q -0.2", "lam 0.9", "clip-low 1", "seed -1",
        "clip-low -0.1", "clip-high -1", "K 0", "K 2.5", "temperature 0", "kl-beta -1", "eval-top-p 0",
        "eval-top-p 1.1", "method ppo", "loss-norm sum", "tau-scope all", "task nosuch", "prompt-template nosuch",
        "lr nan", "steps 0", "weight-decay nan", "batch 0", "mini-batch 0", "max-prompt-tokens 0",
        "max-response-tokens -1", "grad-clip 0", "eval-n 0", "micro-batch-tokens 0", "save-every 0",
        "eval-max-tokens 0", "engine-memory 0", "tensor-parallel 0", "tensor-parallel 2",
        "eval-temperature -1", "eval-temperature 0")}}


@pytest.mark.parametrize("line", REFUSED)
def test_impossible_settings_get_one_line_and_status_2(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        simko.main(line.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and REFUSED[line] in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, message", [
    (["--tensor-parallel", 4], "--tensor-parallel 4 does not divide the model's num_attention_heads, 2"),
    (["--K", 1000], "--K 1000 is more than"), (["--model", "./nosuch"], "--model ./nosuch"),
    (["--prompt-template", "chat"], "no chat template"), (["--max-prompt-tokens", 3], "than --max-prompt-tokens 3"),
    (["--train-data", "nosuch.jsonl"], "nosuch.jsonl"), (["--train-data", "bad.jsonl"], "bad.jsonl, line 2"),
    (["--eval-data", "bad.jsonl"], "bad.jsonl, line 2")])
def test_what_model_or_data_rule_out_is_said_before_anything_is_made(laptop, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    Path("bad.jsonl").write_text('{"problem": "1 2 3 > 6 :", "answer": "6 = 1 2 3"}\n{"problem": "1"}\n')
    with pytest.raises(SystemExit, match=message) as stop:
        main(recipe(laptop, "train", "run", *flags))
    assert "\n" not in str(stop.value) and [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_problems_are_read_with_bom_crlf_blank_lines_and_worked_solutions(tmp_path):
    rows = [{"problem": "a", "answer": "so\n#### 7"}, {"problem": "b", "answer": "8", "id": "x", "task": "text"},
            {"problem": "c\u2028d", "answer": "thus $\\boxed{\\frac{1}{2}}$.", "id": 5}]
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "data.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert [list(row.values()) for row in checks.load_problems(str(tmp_path / "data.jsonl"))] == [
        ["1", "a", "7"], ["x", "b", "8", "text"], ["5", "c\u2028d", "\\frac{1}{2}"]]


ROW = '{"problem": "x", "answer": "1", "id": "twice"}'


@pytest.mark.parametrize("content, where", [
    (b"", ""), (b"\n\n", ""), (b'{"problem": "\xff", "answer": "1"}', ", line 1"),
    *((f"{ROW}\n\n{bad}\n{ROW}".encode(), ", line 3") for bad in (
        ROW, ROW[:9], "[1, 2]", '"text"', "7", '{"problem": "x"}', '{"answer": "1"}', '{"problem": "", "answer": "1"}',
        '{"problem": "x", "answer": " "}', '{"problem": "x", "answer": 7}', '{"problem": 7, "answer": "7"}',
        '{"problem": "x", "answer": ["1"]}', '{"problem": "x", "answer": "1", "task": "sums"}',
        '{"problem": "x", "answer": "1", "task": []}', '{"problem": "x", "answer": "44", "task": "countdown"}',
        '{"problem": "x", "answer": "3", "task": "number_wall"}', r'{"problem": "\ud800", "answer": "1"}',
        r'{"problem": "x", "answer": "\\boxed{}"}'))])
def test_bad_data_are_named_by_file_and_line(tmp_path, content, where):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"^[^\n]*{path}{where}[^\n]*$"):
        checks.load_problems(str(path))


def test_the_readmes_table_from_paper_to_code_names_what_exists():
    section = (HERE / "README.md").read_text(encoding="utf-8").partition("## Paper to code\n")[2].partition("\n## ")[0]
    rows = [line.strip().strip("|").split("|")[-1] for line in section.splitlines() if line.startswith("|")][2:]
    names = [name for row in rows for name in re.findall("`([^`]+)`", row)]
    assert len(rows) >= 5 and all("`" in row for row in rows)
    for name in names:
        lookup = partial(reduce, lambda thing, part: getattr(thing, part, None), name.split("."))
        assert lookup(simko) or lookup(verify), f"README.md names {name}, which is nowhere"


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
