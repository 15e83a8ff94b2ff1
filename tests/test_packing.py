"""Sequences in one row: each response as if it stood alone, micro-batches, and shares of the ranks."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simko
from simko import Sample
from tests.conftest import (
    CPU, VOCABULARY, distance, load_samples, near, plain_logits, plain_model, randn)


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


@pytest.mark.parametrize("feature", [{"sliding_window": 2}, {"softcap": 30.0}, {"s_aux": torch.zeros(1)}])
def test_attention_that_would_be_computed_wrongly_is_refused(feature):
    x, bounds = randn(1, 1, 3, 4), torch.tensor([0, 3], dtype=torch.int32)
    simko.packed_attention(None, x, x, x, None, 0.5, bounds, 3, sliding_window=3)
    with pytest.raises(SystemExit, match="not built"):
        simko.packed_attention(None, x, x, x, None, 0.5, bounds, 3, **feature)
