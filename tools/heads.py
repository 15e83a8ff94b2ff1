"""Alternative implementations of the output head, which `tools.bench` compares
with runtime/chunked.py.

On a GPU, memory bandwidth limits the head, because it passes over the float32
logits several times. Most of these functions make fewer or smaller passes.
They have the same arguments and return values as the functions that they
replace, and compute the same numbers up to rounding.
"""
from functools import cache, partial

import torch
import torch.nn.functional as F

from runtime import chunked


def full_statistics(hidden, weight, token, K, temperature):
    """Computes `chunked.token_statistics` from all logits at once, with autograd."""
    logits = full_logits(hidden, weight, temperature)
    top = logits.detach().topk(K).indices
    columns = torch.cat([token[:, None], top], 1)
    log_pi = logits.log_softmax(-1).gather(1, columns)
    return with_entropy(logits, log_pi[:, 0], log_pi[:, 1:])


def released_statistics(hidden, weight, token, K, temperature):
    """Computes `chunked.token_statistics` as the released code does, which takes the log-probs of
    the K candidates from K copies of the logits."""
    logits = full_logits(hidden, weight, temperature)
    top = logits.detach().topk(K).indices
    logp = -F.cross_entropy(logits, token, reduction="none")
    copies = logits.repeat_interleave(K, 0)
    topk_logp = -F.cross_entropy(copies, top.flatten(), reduction="none")
    return with_entropy(logits, logp, topk_logp.view(-1, K))


def full_logits(hidden, weight, temperature):
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits / temperature


def with_entropy(logits, logp, topk_logp):
    """Returns the four statistics. Here the entropy has no gradient, which the losses that
    bench.py measures do not need."""
    with torch.no_grad():
        mean = (logits.softmax(-1) * logits).sum(-1)
        entropy = logits.logsumexp(-1) - mean
    return logp, topk_logp, entropy, logp >= topk_logp[:, 0]


def top_k_by_blocks(z, K, size=64):
    """Computes z.topk(K) exactly, in one pass over z.

    The K largest values are in the K blocks with the largest maxima."""
    width = z.shape[1]
    if width % size or width // size < K:
        return z.topk(K)
    blocks = z.unflatten(1, (-1, size))
    best = blocks.amax(-1).topk(K).indices
    index = best[:, :, None].expand(-1, -1, size)
    values, place = blocks.gather(1, index).flatten(1).topk(K)
    return values, best.gather(1, place // size) * size + place % size


def statistics_top_k_first(h, weight, y, K, temperature, top_k=torch.topk):
    """Computes `chunked.chunk_statistics`, but takes the top-K from the logits in the model's
    dtype, where they have half the bytes. The cast and the division do not change their order."""
    z = h @ weight.T
    values, top = top_k(z, K)
    wide = torch.promote_types(z.dtype, torch.float32)
    values = values.to(wide) / temperature
    largest = values[:, :1]

    z = z.to(wide)
    if temperature != 1:
        z.div_(temperature)
    exp = (z - largest).exp_()
    total = exp.sum(-1, keepdim=True)
    log_z = largest + total.log()
    mean_z = exp.mul_(z).sum(-1, keepdim=True) / total

    logp = z.gather(1, y[:, None]) - log_z
    entropy = log_z - mean_z
    return logp[:, 0], values - log_z, entropy[:, 0], log_z, top


def statistics_in_few_passes(h, weight, y, K, temperature):
    """Computes `chunked.chunk_statistics` with the top-K by blocks, one pass for cast, division
    and subtraction, and sum_j exp_j z_j as a dot product, which does not store the products."""
    z = h @ weight.T
    values, top = top_k_by_blocks(z, K)
    wide = torch.promote_types(z.dtype, torch.float32)
    values = values.to(wide) / temperature
    largest = values[:, :1]
    sampled = z.gather(1, y[:, None]).to(wide) / temperature

    # This converts bfloat16 logits to float32 without an intermediate copy.
    z = torch.add(-largest, z, alpha=1 / temperature)
    exp = z.exp()
    total = exp.sum(-1, keepdim=True)
    log_total = total.log()
    log_z = largest + log_total
    products = torch.bmm(exp[:, None, :], z[:, :, None])[:, 0]
    # Both terms use logits minus the largest logit, which cancels.
    entropy = log_total - products / total
    logp = sampled - log_z
    return logp[:, 0], values - log_z, entropy[:, 0], log_z, top


def gradient_in_few_passes(h, weight, log_z, columns, grad, temperature, of_entropy):
    """Computes `chunked.chunk_gradient` with one pass for cast, division and subtraction, for a
    loss without the entropy's own gradient."""
    assert of_entropy is None
    grad = grad / temperature
    z = h @ weight.T
    pi = torch.add(-log_z, z, alpha=1 / temperature).exp_()
    grad_z = pi.mul_(-grad.sum(1, keepdim=True))
    grad_z.scatter_add_(1, columns, grad)
    return grad_z.to(weight.dtype)


PLAIN = {
    "token_statistics": chunked.token_statistics,
    "chunk_statistics": chunked.chunk_statistics,
    "chunk_gradient": chunked.chunk_gradient,
}
HEADS = {
    "full-logits": {"token_statistics": full_statistics},
    "topk-first": {"chunk_statistics": statistics_top_k_first},
    "topk-blocks": {"chunk_statistics": partial(
        statistics_top_k_first, top_k=top_k_by_blocks)},
    "few-passes": {
        "chunk_statistics": statistics_in_few_passes,
        "chunk_gradient": gradient_in_few_passes},
}


@cache
def compiled():
    """Returns the functions of a chunk, compiled for dynamic shapes, because the last chunk of a
    micro-batch is shorter."""
    # These functions are compiled even if `update` forces the layers to run eagerly.
    allowed = torch.compiler.set_stance("default")
    return {
        name: allowed(torch.compile(PLAIN[name], dynamic=True))
        for name in ("chunk_statistics", "chunk_gradient")}


def functions(way):
    """Returns {name: function}, the functions to patch into runtime/chunked.py for a key of
    bench.WAYS."""
    if way == "compiled-chunks":
        return PLAIN | compiled()
    return PLAIN | HEADS.get(way, {})
