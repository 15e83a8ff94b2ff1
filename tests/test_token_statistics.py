"""Log-probs, candidates and entropies without the batch's logits, against plain softmax over all of them."""
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simko
from tests.conftest import near, randn, seeds


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
