"""Tests of packing. Packed sequences do not affect each other, micro-batches are complete, and
ranks get even shares."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simko
from runtime import packing
from runtime.models import load_model
from runtime.packing import (
    Sample, balance_across_ranks, flash_can_do, micro_batches, pack,
    packed_attention)
from tests.conftest import (
    CPU, VOCABULARY, distance, load_samples, near, plain_logits, plain_model, randn)


def test_packed_statistics_are_those_of_each_response_alone(base):
    model, plain = load_model(base, torch.float64), plain_model(base)
    samples = load_samples(base)
    by_prompt = sorted(samples, key=lambda s: len(s.prompt_ids))
    for order in (samples, samples[::-1], samples[3:4], by_prompt):
        packed = pack(order, CPU)
        # Attention on a GPU takes both as they are, which no result on a CPU shows.
        assert packed.bounds.dtype == torch.int32
        assert packed.longest == max(len(s.prompt_ids) + len(s.response_ids) for s in order)
        got = simko.policy_forward(model, packed, 3, 0.7)
        logits = torch.cat([plain_logits(plain, s) for s in order])
        log_pi = (logits / 0.7).log_softmax(-1)
        token = torch.from_numpy(np.concatenate([s.response_ids for s in order]))
        logp = log_pi.gather(1, token[:, None])[:, 0]
        entropy = -(log_pi.exp() * log_pi).sum(-1)
        want = logp, log_pi.topk(3).values, entropy, token == log_pi.argmax(-1)
        for x, y in zip(got, want):
            near(x, y, 1e-12)
        gradients = []
        for some_model, x in ((model, got[0]), (plain, logp)):
            parts = torch.autograd.grad(x @ randn(len(token)), [*some_model.parameters()])
            gradients.append(dict(enumerate(parts)))
        assert distance(*gradients) < 1e-12


@pytest.mark.parametrize("changed", range(11))
def test_no_token_sees_another_response(base, changed):
    model, samples = load_model(base, torch.float32), load_samples(base)
    samples.sort(key=lambda s: -s.size())  # equal lengths are neighbours
    before = simko.policy_forward(model, pack(samples, CPU), 3, 1.0)
    other = samples[changed]
    other.prompt_ids = (other.prompt_ids + 1) % VOCABULARY
    other.response_ids = (other.response_ids + 1) % VOCABULARY
    packed = pack(samples, CPU)
    same = torch.arange(len(samples)).repeat_interleave(packed.lengths) != changed
    for x, y in zip(before, simko.policy_forward(model, packed, 3, 1.0)):
        near(x[same], y[same], 1e-6)
        assert x.dtype == torch.bool or not torch.isclose(x[~same], y[~same]).all()


def blank_samples(lengths):
    """Returns samples with a gradient, with 2 prompt tokens and `lengths` response tokens."""
    return [Sample(i, np.zeros(2), np.zeros(n), np.zeros(n), False, advantage=1.0)
            for i, n in enumerate(lengths)]


def size(samples):
    return sum(len(s.prompt_ids) + len(s.response_ids) for s in samples)


def assert_whole(parts, samples):
    """Fails unless every sample is in exactly one of the parts."""
    assert sorted(s.prompt for part in parts for s in part) == list(range(len(samples)))


many_lengths = st.lists(st.integers(1, 30), max_size=25)


@given(lengths=many_lengths, budget=st.integers(1, 80))
def test_micro_batches_keep_to_their_budget_and_none_is_closed_too_early(lengths, budget):
    samples = blank_samples(lengths)
    batches = micro_batches(samples, budget)
    assert_whole(batches, samples)
    assert all(len(batch) == 1 or size(batch) <= budget for batch in batches)
    assert all(size(a) + size(b[:1]) > budget for a, b in itertools.pairwise(batches))
    sizes = [s.size() for batch in batches for s in batch]
    assert sizes == sorted(sizes, reverse=True)  # equal lengths are neighbours


@given(lengths=many_lengths, world=st.integers(1, 5), data=st.data())
def test_ranks_get_even_shares_of_the_samples_with_a_gradient_and_of_the_others(
        lengths, world, data):
    samples = blank_samples(lengths)
    for s in samples:
        s.advantage = data.draw(st.sampled_from([-1.0, 0.0, 1.0]))
    shares = [balance_across_ranks(samples, rank, world) for rank in range(world)]
    assert_whole(shares, samples)
    trained = [[s for s in share if s.advantage] for share in shares]
    for parts, measure, most in (
            (shares, len, 1), (trained, len, 1),
            (trained, size, max(lengths, default=0) + 2),
            (shares, size, 2 * max(lengths, default=0) + 4)):
        measured = [measure(part) for part in parts]
        assert max(measured) - min(measured) <= most


@given(world=st.integers(1, 5))
def test_ranks_take_turns_forwards_and_backwards(world):
    stairs = blank_samples(range(1, 4 * world + 1))
    assert len({size(balance_across_ranks(stairs, rank, world)) for rank in range(world)}) == 1


@pytest.mark.parametrize("feature", [
    {"sliding_window": 2}, {"softcap": 30.0}, {"s_aux": torch.zeros(1)},
    {"attention_mask": torch.zeros(3, 3)}])
def test_attention_that_would_be_computed_wrongly_is_refused(feature):
    x, bounds = randn(1, 1, 3, 4), torch.tensor([0, 3], dtype=torch.int32)
    packed_attention(None, x, x, x, None, 0.5, bounds, 3, sliding_window=3)
    with pytest.raises(SystemExit, match="not implemented"):
        packed_attention(None, x, x, x, feature.pop("attention_mask", None), 0.5, bounds, 3,
                         **feature)


@pytest.mark.parametrize("dtype, sizes, expected", [
    (torch.bfloat16, (128, 128), True),
    (torch.bfloat16, (256, 256), True),  # Gemma
    (torch.float32, (128, 128), False),
    (torch.float64, (128, 128), False),
    (torch.bfloat16, (24, 16), False),  # DeepSeek V3, MiniCPM3
    (torch.bfloat16, (12, 12), False),
    (torch.bfloat16, (288, 288), False),
])
def test_flash_attention_gets_only_what_it_takes(dtype, sizes, expected):
    q, v = (torch.zeros(1, 1, size, dtype=dtype) for size in sizes)
    assert flash_can_do(q, v) == expected


def test_pytorchs_kernel_gets_the_keyword_for_grouped_heads_only_where_it_has_it(monkeypatch):
    """PyTorch 2.11's varlen_attn accepts fewer key heads than query heads without a keyword."""
    import torch.nn.attention.varlen
    seen = []

    def of_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        seen.append({"scale": scale, "window_size": window_size})

    def of_2_13(*arguments, enable_gqa=False, **options):
        of_2_11(*arguments, **options)
        seen[-1]["enable_gqa"] = enable_gqa

    causal = {"scale": 0.5, "window_size": (-1, 0)}
    q, one_head, bounds = torch.zeros(3, 2, 4), torch.zeros(3, 1, 4), torch.tensor([0, 3])
    for function in (of_2_11, of_2_13):
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", function)
        for k in (one_head, q):
            packing.varlen_attention(q, k, k, bounds, 3, 0.5)
    assert seen == [causal, causal, {**causal, "enable_gqa": True}, {**causal, "enable_gqa": False}]


def test_without_samples_the_row_is_one_token_that_predicts_nothing(base):
    """A rank without samples must run as many passes as the others."""
    packed = pack([], CPU)
    assert len(packed.tokens) == packed.longest == 1
    statistics = simko.policy_forward(load_model(base, torch.float32), packed, 3, 1.0)
    assert [x.shape for x in statistics] == [(0,), (0, 3), (0,), (0,)]
