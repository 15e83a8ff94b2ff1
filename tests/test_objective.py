"""Tests of the objective's functions in all shapes and precisions, and of the input that they
refuse. ../test_simko.py tests the equations themselves."""
import math
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simko
from runtime import baselines, chunked
from runtime.baselines import METHODS
from tests.conftest import near, randn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_any_float_dtype_and_any_leading_shape(dtype, shape):
    sizes = [shape] * 4 + [(*shape, 3)]
    tensors = [(0.3 * randn(*size, seed=i)).to(dtype) for i, size in enumerate(sizes)]

    def compute(kind, leading):
        """Returns ratio, loss and gradients of the tensors in this dtype and leading shape."""
        logp, old, A, mark, topk = (
            x.to(kind, copy=True).reshape(leading + x.shape[len(shape):]).requires_grad_()
            for x in tensors)
        ratio = simko.simko_ratio(logp, old, topk, mark > 0.2, A, mark > -0.2, 0.3, 1.7)
        loss = simko.clipped_loss(ratio, A, 0.2, 0.28)
        assert ratio.shape == loss.shape == leading
        results = [ratio, loss, *torch.autograd.grad(loss.sum(), (logp, topk))]
        assert {x.dtype for x in results} == {kind}
        return results

    results = compute(dtype, shape)
    flat = compute(torch.float64, (math.prod(shape),))
    # They differ by a few roundings, each up to 2^-8 in bfloat16.
    tolerance = {8: 1e-15, 4: 1e-6, 2: 0.02}[dtype.itemsize]
    for got, want in zip(results, flat, strict=True):
        near(got.double().flatten(), want.flatten(), tolerance)


def test_gradcheck_where_nothing_is_detached():
    shapes = [(6,), (6,), (5, 4), (9, 4)]
    leaves = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    rank_1 = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    gate = torch.tensor([1, 1, 0, 1, 0, 0]).bool()
    signs = torch.tensor([-1.0, -1, -1, 0, 0, 1])
    token = torch.tensor([0, 8, 3, 3, 5])

    def ratio(logp, old):
        return simko.simko_ratio(logp, old, logp[:, None], rank_1, signs, gate, 0.3, 1.4)

    def plain(hidden, weight):
        return simko.token_statistics(hidden, weight, token, 3, 0.7)[:2]

    def in_chunks(hidden, weight):
        return chunked.token_statistics(hidden, weight, token, 3, 0.7, chunk=2)[:2]

    assert torch.autograd.gradcheck(ratio, leaves[:2])
    assert torch.autograd.gradcheck(simko.kl_penalty, leaves[:2])
    assert torch.autograd.gradcheck(plain, leaves[2:])
    assert torch.autograd.gradcheck(in_chunks, leaves[2:])


def test_there_are_no_thresholds_without_responses():
    lengths = torch.zeros(0, dtype=torch.int64)
    none = simko.entropy_threshold(torch.zeros(0), lengths, 0.8)
    assert none.shape == (0,)


def test_a_threshold_depends_on_its_own_response_alone():
    rows = [randn(n, seed=n) for n in (3, 1, 7, 3)]
    lengths = torch.tensor([len(row) for row in rows])
    together = simko.entropy_threshold(torch.cat(rows), lengths, 0.7)
    for row, length, tau in zip(rows, lengths, together.split(lengths.tolist())):
        alone = simko.entropy_threshold(row, length[None], 0.7)
        assert torch.equal(alone, tau)


@given(
    entropies=st.lists(st.integers(0, 9), max_size=40),
    q=st.floats(0, 1),
    scope=st.sampled_from(["response", "batch"]),
    method=st.sampled_from(["simko", "forking"]),
)
def test_tau_of_a_batch_is_the_quantile_over_the_tokens_of_all_ranks(entropies, q, scope, method):
    """The method "forking" has a quantile of its own."""
    own = torch.tensor(entropies).float() / 4
    others = torch.tensor([1.75, 0.5]).double()
    cfg = simko.Config(q=q, tau_scope=scope)
    with mock.patch.object(baselines, "gather", lambda items: [*items, others]):
        tau = baselines.batch_threshold(own, METHODS[method], cfg)
    if scope == "response" and method == "simko":
        assert tau is None
    else:
        everyone = np.concatenate([own.double(), others])
        assert tau == np.quantile(everyone, 0.8 if method == "forking" else q)


def exact_pass_at_k(n, c, k):
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def test_pass_at_k_is_exact_at_every_count():
    for k in (1, 2, 128, 256, 300):
        want = [exact_pass_at_k(300, c, k) for c in range(301)]
        assert simko.pass_at_k(300, torch.arange(301), k).tolist() == want


@pytest.mark.parametrize("n, c, k", [(4, 1, 5), (4, 1, 0), (4, 5, 2), (4, -1, 2)])
def test_pass_at_k_refuses_what_has_no_value(n, c, k):
    with pytest.raises(ValueError, match="1 <= k <= n"):
        simko.pass_at_k(n, torch.tensor([1, c]), k)


@pytest.mark.parametrize("count, size", [(4, 1), (4, 0), (7, 2), (3, 8)])
def test_rewards_that_form_no_groups_are_refused(count, size):
    with pytest.raises(ValueError, match=f"groups of {size}"):
        simko.group_advantage(torch.zeros(count), size)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("size", range(2, 12))
def test_equal_rewards_are_no_advantage_whatever_their_mean_rounds_to(size, value):
    rewards = torch.full((2 * size,), value)
    assert not simko.group_advantage(rewards, size).any()
