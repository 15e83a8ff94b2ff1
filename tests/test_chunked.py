"""runtime/chunked.py gives the numbers and gradients of plain logits, whatever the size of its chunks."""
import pytest
import torch

from runtime.chunked import token_statistics

K = 3
TEMPERATURE = 0.7


def plain_statistics(hidden, weight, token, K, temperature):
    """What `token_statistics` stands for, with all logits at once and autograd's own gradient."""
    logp = (hidden @ weight.T / temperature).log_softmax(-1)
    topk_logp = logp.topk(K).values
    entropy = -(logp.exp() * logp).sum(-1)
    sampled = logp.gather(1, token[:, None])[:, 0]
    return sampled, topk_logp, entropy, sampled >= topk_logp[:, 0]


def inputs(tokens, vocabulary, tied, dtype=torch.float64):
    """States, head and sampled tokens. Tied: the states come out of the head's own weight, as in models that share it
    with the embedding, so that the weight's gradient arrives on two paths."""
    generator = torch.Generator().manual_seed(tokens)
    weight = torch.randn(vocabulary, 16, generator=generator, dtype=dtype, requires_grad=True)
    hidden = torch.randn(tokens, 16, generator=generator, dtype=dtype, requires_grad=True)
    read = torch.randint(vocabulary, (tokens,), generator=generator)
    states = hidden + weight[read].tanh() if tied else hidden
    token = torch.randint(vocabulary, (tokens,), generator=generator)
    token[::3] = (states @ weight.T).argmax(-1)[::3]  # some of them rank 1
    return hidden, states, weight, token


def values_and_gradients(statistics, tokens, tied, **options):
    hidden, states, weight, token = inputs(tokens, 61, tied)
    values = statistics(states, weight, token, K, TEMPERATURE, **options)
    logp, topk_logp, entropy, is_top1 = values
    loss = logp.sin().sum() + topk_logp.cos().sum()
    loss.backward()
    return *values, hidden.grad, weight.grad


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 48])
@pytest.mark.parametrize("chunk", [1, 7, 48, 1000, None])
def test_values_and_gradients_are_those_of_plain_logits(tied, tokens, chunk):
    ours = values_and_gradients(token_statistics, tokens, tied, chunk=chunk)
    plain = values_and_gradients(plain_statistics, tokens, tied)
    for mine, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)


def test_entropy_and_rank_have_no_gradient():
    _, states, weight, token = inputs(5, 61, tied=False)
    logp, topk_logp, entropy, is_top1 = token_statistics(states, weight, token, K)
    assert logp.requires_grad and topk_logp.requires_grad
    assert not entropy.requires_grad and not is_top1.requires_grad


def test_tokens_that_tie_for_the_highest_probability_are_all_rank_1():
    weight = torch.tensor([[0.0], [1.0], [1.0]])
    is_top1 = token_statistics(torch.ones(3, 1), weight, torch.arange(3), K=1)[3]
    assert is_top1.tolist() == [False, True, True]


def test_bfloat16_states_give_the_statistics_of_their_own_logits_in_float32():
    _, states, weight, token = inputs(40, 97, tied=False, dtype=torch.float32)
    states, weight = states.detach().bfloat16(), weight.detach().bfloat16()
    logits = (states @ weight.T).float()
    expected = logits.log_softmax(-1)
    logp, topk_logp, entropy, _ = token_statistics(states, weight, token, K, chunk=9)
    assert logp.dtype == topk_logp.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logp, expected.gather(1, token[:, None])[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(topk_logp, expected.topk(K).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-5)
