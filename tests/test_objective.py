"""The objective's functions in every shape, precision and layout, and what they refuse. The equations themselves are in
../test_simko.py."""
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import simko
from tests.conftest import near, randn, seeds


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


def test_gradcheck_where_nothing_is_detached():
    leaves = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate([(6,), (6,), (5, 4), (9, 4)])]
    rank_1, gate = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 0]]).bool()
    signs, token = torch.tensor([-1.0, -1, -1, 0, 0, 1]), torch.tensor([0, 8, 3, 3, 5])
    ratio = lambda logp, old: simko.simko_ratio(logp, old, logp[:, None], rank_1, signs, gate, 0.3, 1.4)
    statistics_ = lambda hidden, weight: simko.token_statistics(hidden, weight, token, 3, 0.7, 2)[:2]
    assert torch.autograd.gradcheck(ratio, leaves[:2]) and torch.autograd.gradcheck(statistics_, leaves[2:])
    assert torch.autograd.gradcheck(simko.kl_penalty, leaves[:2])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), eighths=st.integers(0, 8),
       scope=st.sampled_from(["response", "batch"]), seed=seeds)
def test_the_gate_is_the_same_in_every_layout(lengths, eighths, scope, seed):
    """Flat with lengths; padded with lengths; padded with a mask."""
    q, entropy = eighths / 8, (randn(sum(lengths), seed=seed) * 4).round() / 4  # ties, and arithmetic without rounding
    rows, lengths = entropy.split(lengths), torch.tensor(lengths)
    tau = [np.quantile(entropy if scope == "batch" else row, q) for row in rows]
    flat = simko.entropy_gate(entropy, lengths, q, scope)
    assert flat.tolist() == [h > t for row, t in zip(rows, tau) for h in row.tolist()]
    padded = F.pad(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=99.0), (0, 2), value=-99.0)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    for layout in (lengths, mask):
        gate = simko.entropy_gate(padded, layout, q, scope)
        assert gate[mask].tolist() == flat.tolist() and not gate[~mask].any()


def test_pass_at_k_is_exact_at_every_count_and_broadcasts():
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
