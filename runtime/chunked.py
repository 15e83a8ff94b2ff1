"""Computes what the loss needs from the output head without holding all
logits in memory.

The loss needs a handful of numbers per token: the log-probability of the
sampled token, those of the K most probable tokens, and the entropy. A direct
computation holds several copies of a (tokens x vocabulary) matrix in float32.
For 16,384 tokens and a vocabulary of 152,000, a single copy takes 9 GiB.

`token_statistics` takes the head's input instead of its output. It computes
the logits of one chunk of tokens, keeps the few numbers, and frees the logits
before it computes the next chunk. The backward pass recomputes each chunk's
logits. Larger chunks need more memory. The chunk size changes the result only
by rounding: in bfloat16 the head's gradient is rounded once per chunk.
"""
import torch

# The float32 logits of a chunk: 1 GiB on a GPU, 1/4 GiB on a CPU. The forward
# pass holds two such arrays at its peak.
LOGITS_ON_GPU = 2**28
LOGITS_ON_CPU = 2**26


def token_statistics(hidden, weight, token, K, temperature, chunk=None):
    """`token_statistics` of simko.py, with the same arguments and results.

    chunk: the number of tokens to compute at a time, by default as many as
        `LOGITS_ON_GPU` or `LOGITS_ON_CPU` allows."""
    if chunk is None:
        limit = LOGITS_ON_GPU if hidden.is_cuda else LOGITS_ON_CPU
        chunk = max(1, limit // len(weight))
    return ChunkedHead.apply(hidden, weight, token, K, temperature, chunk)


class ChunkedHead(torch.autograd.Function):
    """`token_statistics` as a function that autograd can differentiate."""

    @staticmethod
    def forward(ctx, hidden, weight, token, K, temperature, chunk):
        # A result that the loss does not use then has the gradient None.
        ctx.set_materialize_grads(False)
        pieces = []
        for h, y in zip(hidden.split(chunk), token.split(chunk)):
            pieces.append(chunk_statistics(h, weight, y, K, temperature))
        logp, topk_logp, entropy, log_z, top = (
            torch.cat(piece) for piece in zip(*pieces))

        # By value, so tokens that tie for the highest probability are all rank-1.
        is_top1 = logp >= topk_logp[:, 0]

        # The upstream gradient is nonzero only in these columns: the sampled
        # token, then the K candidates.
        columns = torch.cat([token[:, None], top], dim=1)
        ctx.save_for_backward(hidden, weight, log_z, columns, entropy)
        ctx.temperature = temperature
        ctx.chunk = chunk
        ctx.mark_non_differentiable(is_top1)
        return logp, topk_logp, entropy, is_top1

    @staticmethod
    def backward(ctx, grad_logp, grad_topk, grad_entropy, grad_is_top1):
        hidden, weight, log_z, columns, entropy = ctx.saved_tensors
        grad = log_z.new_zeros(columns.shape)
        if grad_logp is not None:
            grad[:, 0] = grad_logp
        if grad_topk is not None:
            grad[:, 1:] = grad_topk

        grad_hidden = torch.empty_like(hidden)
        # LoRA freezes the head.
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            of_entropy = None
            if grad_entropy is not None:
                of_entropy = entropy[rows, None], grad_entropy[rows, None]
            grad_z = chunk_gradient(
                hidden[rows], weight, log_z[rows], columns[rows], grad[rows],
                ctx.temperature, of_entropy)
            torch.mm(grad_z, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight.addmm_(grad_z.T, hidden[rows])
            del grad_z  # before the next chunk is computed
        return grad_hidden, grad_weight, None, None, None, None


def chunk_logits(h, weight, temperature):
    """Returns the logits, (t, V). The matrix product uses the model's dtype,
    as the engine does; the softmax needs float32."""
    z = h @ weight.T
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if temperature != 1:
        z.div_(temperature)
    return z


def chunk_statistics(h, weight, y, K, temperature):
    """Returns logp (t,), topk_logp (t, K), entropy (t,), log Z (t, 1) and the
    candidates (t, K) of t tokens."""
    z = chunk_logits(h, weight, temperature)
    top = z.topk(K, dim=-1)
    largest = top.values[:, :1]

    # Subtracting the largest logit changes no result, but without it a confident
    # token's entropy, which is tiny, would be the difference of two large numbers.
    z.sub_(largest)
    exp = z.exp()
    total = exp.sum(-1, keepdim=True)
    log_total = total.log()
    mean_z = exp.mul_(z).sum(-1, keepdim=True) / total

    logp = z.gather(1, y[:, None]) - log_total
    topk_logp = top.values - largest - log_total
    # H = -sum_j pi_j log pi_j, where log pi_j = z_j - log total
    entropy = log_total - mean_z
    log_z = largest + log_total
    return logp[:, 0], topk_logp, entropy[:, 0], log_z, top.indices


def chunk_gradient(h, weight, log_z, columns, grad, temperature, of_entropy):
    """Returns d loss / d (h weight.T), (t, V), in the weight's dtype.

    grad: (t, 1 + K), d loss / d log pi(j) for each j in `columns` (t, 1 + K).
    Each j adds grad_j (e_j - pi), where e_j - pi is the negative of Eq. 4. Together
    they add -pi times the sum of grad, which is dense, and grad_j in column j.
    of_entropy: None, or the entropy and d loss / d entropy, both (t, 1)."""
    grad = grad / temperature  # the product is divided by it
    log_pi = chunk_logits(h, weight, temperature).sub_(log_z)
    if of_entropy is None:
        grad_z = log_pi.exp_().mul_(-grad.sum(1, keepdim=True))
    else:
        entropy, grad_entropy = of_entropy
        pi = log_pi.exp()
        # d entropy / d z_j = -pi_j (log pi_j + entropy)
        slope = log_pi.add_(entropy).mul_(grad_entropy / temperature)
        grad_z = pi.mul_(slope.add_(grad.sum(1, keepdim=True)).neg_())
    # If the sampled token is also a candidate, its two gradients are added.
    grad_z.scatter_add_(1, columns, grad)
    return grad_z.to(weight.dtype)


def logit_scale(config):
    """Returns the factor by which the model multiplies its logits, as named
    in the configs of Cohere and Granite."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    return scale / (getattr(config, "logits_scaling", None) or 1.0)
