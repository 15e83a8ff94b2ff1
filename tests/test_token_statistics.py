"""Tests of the token statistics. simko.py's definition is compared with softmax, and
runtime/chunked.py, which never holds the logits of the complete batch, with the definition."""
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simko
from runtime import chunked
from test_simko import gradient
from tests.conftest import near, randn, seeds


def inputs(T, V, tied, seed):
    """Returns states, the head's weight and sampled tokens, some of them rank-1, and the tensors
    to differentiate with respect to.

    tied: the states also depend on the head's weight, as in models that share it with the
    embedding, so that its gradient arrives on two paths."""
    generator = torch.Generator().manual_seed(seed)
    weight = randn(V, 5, seed=seed).requires_grad_()
    leaf = randn(T, 5, seed=seed + 1).requires_grad_()
    hidden = leaf.tanh()
    if tied:
        hidden = hidden + weight[torch.randint(V, (T,), generator=generator)].sin()
    token = torch.randint(V, (T,), generator=generator)
    token[::3] = (hidden @ weight.T).argmax(-1)[::3]
    return hidden, weight, token, (leaf, weight)


def statistics_and_gradients(function, T, V, K, temperature, tied, seed):
    """Returns the four statistics, and the gradients of weighted sums: of the log-probs, as in
    SimKO's loss, of each differentiable statistic alone, and of all three."""
    hidden, weight, token, leaves = inputs(T, V, tied, seed)
    logp, topk_logp, entropy, is_top1 = function(hidden, weight, token, K, temperature)
    assert not is_top1.requires_grad
    of_logp = (logp * randn(T, seed=seed + 2)).sum()
    of_topk = (topk_logp * randn(T, K, seed=seed + 3)).sum()
    of_entropy = (entropy * randn(T, seed=seed + 4)).sum()
    results = [logp, topk_logp, entropy, is_top1]
    for total in (of_logp + of_topk, of_logp, of_topk, of_entropy, of_logp + of_topk + of_entropy):
        results += torch.autograd.grad(total, leaves, retain_graph=True)
    return results


cases = given(
    T=st.integers(0, 9), V=st.integers(1, 11), K=st.integers(1, 11),
    temperature=st.sampled_from([1.0, 0.6, 2.0]), tied=st.booleans(), seed=seeds)


@pytest.mark.parametrize("shift", [0, 1000])
def test_logits_far_from_zero_cost_no_accuracy(shift):
    """Only the differences of logits matter. Every second token here is confident."""
    logits = shift + randn(8, 50).float() * torch.tensor([1, 30]).repeat(4)[:, None]
    exact = torch.distributions.Categorical(logits=logits.double())
    token = logits.argmax(-1)
    logp, topk_logp, entropy, _ = chunked.token_statistics(
        torch.eye(8), logits.T.contiguous(), token, 2, 1.0)
    assert (entropy >= 0).all()
    near(entropy, exact.entropy().float(), 1e-6)
    near(logp, exact.log_prob(token).float(), 1e-6)
    near(topk_logp, exact.logits.topk(2).values.float(), 1e-6)


@cases
def test_the_definition_says_what_softmax_says_of_each_token(T, V, K, temperature, tied, seed):
    K = min(K, V)
    hidden, weight, token, _ = inputs(T, V, tied, seed)
    got = simko.token_statistics(hidden, weight, token, K, temperature)
    for h, y, logp, topk_logp, entropy, is_top1 in zip(hidden, token, *got):
        pi = torch.softmax(weight @ h / temperature, dim=0)
        near(logp, pi[y].log())
        near(topk_logp, pi.sort(descending=True).values[:K].log())
        near(entropy, torch.distributions.Categorical(pi).entropy().detach(), 1e-10)
        assert is_top1 == (y == pi.argmax())
    assert [len(x) for x in got] == [T] * 4


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 7, 100])
@cases
def test_chunks_have_the_values_and_gradients_of_the_definition(
        chunk, T, V, K, temperature, tied, seed):
    case = T, V, min(K, V), temperature, tied, seed
    in_chunks = partial(chunked.token_statistics, chunk=chunk)
    for got, want in zip(statistics_and_gradients(in_chunks, *case),
                         statistics_and_gradients(simko.token_statistics, *case)):
        near(got, want)


def test_many_tokens_and_a_larger_vocabulary():
    case = 48, 610, 3, 0.7, True, 1
    for chunk in (None, 1, 7, 48, 1000):
        in_chunks = partial(chunked.token_statistics, chunk=chunk)
        for got, want in zip(statistics_and_gradients(in_chunks, *case),
                             statistics_and_gradients(simko.token_statistics, *case)):
            near(got, want, 1e-11)


@pytest.mark.parametrize("function", [simko.token_statistics, chunked.token_statistics])
def test_tokens_that_tie_for_the_highest_probability_are_all_rank_1(function):
    weight = torch.tensor([[1.0], [2.0], [2.0]])
    is_top1 = function(torch.ones(3, 1), weight, torch.arange(3), 1, 1.0)[3]
    assert is_top1.tolist() == [False, True, True]


@pytest.mark.parametrize("function", [simko.token_statistics, chunked.token_statistics])
def test_a_token_that_is_certain_overflows_nothing(function):
    """exp(150) is infinite in float32."""
    weight = torch.tensor([[150.0], [0.0], [0.0]], requires_grad=True)
    logp, topk_logp, entropy, _ = function(torch.ones(1, 1), weight, torch.tensor([0]), 3, 1.0)
    assert topk_logp.tolist() == [[0, -150, -150]]
    assert logp.item() == entropy.item() == 0
    assert gradient(logp, weight).tolist() == [[0], [0], [0]]


def test_the_loop_holds_the_logits_of_one_chunk_at_a_time(monkeypatch):
    """The default size of a chunk also stays within the limit."""
    V, shapes = 50, []
    logits_of = chunked.chunk_logits

    def watched(h, weight, temperature):
        shapes.append((len(h), len(weight)))
        return logits_of(h, weight, temperature)

    monkeypatch.setattr(chunked, "chunk_logits", watched)
    monkeypatch.setattr(chunked, "LOGITS_ON_CPU", 8 * V + 3)
    statistics_and_gradients(chunked.token_statistics, 20, V, 3, 1.0, False, 0)
    assert shapes == 6 * [(8, V), (8, V), (4, V)]  # forwards, then five times backwards


def bfloat16_inputs():
    hidden, weight = randn(40, 64, seed=1).bfloat16(), (randn(97, 64, seed=2) / 4).bfloat16()
    return hidden, weight, randn(40, 97, seed=3).argmax(1)


@pytest.mark.parametrize("chunk", [40, 16, 7])
def test_bfloat16_statistics_stay_within_the_rounding_of_their_logits(chunk):
    hidden, weight, token = bfloat16_inputs()
    in_chunks, results = partial(chunked.token_statistics, chunk=chunk), []
    for function, dtype in ((in_chunks, torch.bfloat16), (simko.token_statistics, torch.float64)):
        h, w = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        logp, topk_logp, entropy, _ = function(h, w, token, 3, 0.8)
        # The sum excludes the candidates, because rounding may swap two that are close.
        of_logp = (logp * randn(40, seed=4)).sum()
        of_entropy = (entropy * randn(40, seed=5)).sum()
        results.append([
            logp, topk_logp, entropy,
            *torch.autograd.grad(of_logp, (h, w), retain_graph=True),
            *torch.autograd.grad(of_entropy, (h, w))])
    # bfloat16 keeps 8 bits, so a logit z moves by up to 2^-8 |z|, and log pi by twice the largest
    # of these. The rest is in float32. Gradients are rounded as the logits' gradient, as the
    # product and once more per chunk, by 2^-8 each and not all in one direction. That of the
    # entropy also has log pi as a factor.
    largest = (hidden.double() @ weight.double().T).abs().max().item() / 0.8
    for i, (got, want) in enumerate(zip(*results)):
        if i < 3:
            assert got.dtype == torch.float32
            assert (got - want).abs().max() < 2 * 2**-8 * largest
        else:
            assert got.dtype == torch.bfloat16
            parts = 2 if i < 5 else 3
            assert (got.double() - want).norm() < parts * 2**-8 * want.norm()


@pytest.mark.parametrize("function", [
    simko.token_statistics, partial(chunked.token_statistics, chunk=9)])
def test_what_follows_bfloat16_logits_is_in_float32(function):
    hidden, weight, token = bfloat16_inputs()
    log_pi = ((hidden @ weight.T).float() / 0.8).log_softmax(-1)
    logp, topk_logp, entropy, _ = function(hidden, weight, token, 3, 0.8)
    assert logp.dtype == topk_logp.dtype == entropy.dtype == torch.float32
    near(logp, log_pi.gather(1, token[:, None])[:, 0], 1e-5)
    near(topk_logp, log_pi.topk(3).values, 1e-5)
    near(entropy, -(log_pi.exp() * log_pi).sum(-1), 1e-5)
