"""The methods that the paper compares SimKO with (Sec. 5.1), as changes
to GRPO. Their constants come from the papers that introduced them.

A method changes the advantage of a response, the loss of a token, or both.
simko.py looks it up in METHODS: `train_step` asks for its advantage and its
gate, `Trainer.update` for its loss and for the responses that count."""
import math
from typing import Callable, NamedTuple

import numpy as np
import torch

from runtime.ranks import gather


class Method(NamedTuple):
    """What a method changes. The defaults change nothing."""
    about: str
    # f(rewards (N,), num_generations) -> (N,)
    advantage: Callable | None = None
    # f(grpo_loss, *, cfg, gamma, logp, old_logp, entropy, advantage, gate,
    # lengths) -> (loss, whether the clip has cut its gradient), both (T,).
    # grpo_loss(gamma, advantage) returns this pair for GRPO. cfg holds the
    # settings. lengths: (R,), tokens of each response. The others are (T,);
    # gamma, logp and entropy have a gradient. T and R are 0 where other ranks
    # have more micro-batches.
    token_loss: Callable | None = None
    # Eq. 3 gives the ratio: gamma-tilde takes gamma's place.
    uses_simko_ratio: bool = False
    # The gate opens above this quantile of all entropies in the batch.
    batch_quantile: float | None = None
    # f(samples), which sets `chosen` in each sample; `chosen` becomes the gate.
    choose: Callable | None = None
    # Responses with A = 0 are dropped before the loss is averaged.
    drops_zero_advantage: bool = False
    # Responses with A = 0 still have a gradient.
    trains_on_zero_advantage: bool = False


def psr_advantage(rewards, num_generations):
    return (rewards > 0).float()


def nsr_advantage(rewards, num_generations):
    return (rewards > 0).float() - 1


def w_reinforce_advantage(rewards, num_generations):
    return torch.where(rewards > 0, 0.1, -1.0)


def pass_at_k_advantage(rewards, num_generations, k=4):
    """The advantage if sets of k responses are rewarded when one of
    them is right (Chen et al., 2025a).

    It is the mean reward of the sets that contain the response, minus the
    mean reward of all sets, divided by the standard deviation of the rewards
    of all sets. rewards: (N,), ordered by group. Returns (N,). Raises
    ValueError if a group has fewer than k responses."""
    n = num_generations
    if n < k:
        raise ValueError(f"groups of {n} responses have no sets of {k}")
    right = rewards > 0
    wrong = (~right).view(-1, n).sum(1).repeat_interleave(n)
    # For each number m of wrong responses, the share of sets that fail:
    # among all sets, and among those that contain a given wrong response.
    all_sets, with_wrong = [], []
    for m in range(n + 1):
        all_sets.append(math.comb(m, k) / math.comb(n, k))
        others = math.comb(max(m - 1, 0), k - 1)
        with_wrong.append(others / math.comb(n - 1, k - 1))
    failure = torch.tensor(all_sets)[wrong]
    own_failure = torch.tensor(with_wrong)[wrong]
    own_failure = torch.where(right, 0, own_failure)
    deviation = (failure * (1 - failure)).sqrt()
    return (failure - own_failure) / (deviation + 1e-6)


def forking_loss(grpo_loss, *, gamma, advantage, gate, **_):
    """Keeps the loss of gated tokens only. The other tokens still count in
    the denominator."""
    loss, clipped = grpo_loss(gamma, advantage)
    return torch.where(gate, loss, 0), clipped & gate


def entropy_advantage_loss(grpo_loss, *, gamma, entropy, advantage, **_):
    """Uses A + min(0.4 H, |A| / 2) in place of A.

    H is detached: it scales the gradient of gamma, but the loss does not
    increase the entropy directly."""
    bonus = torch.minimum(0.4 * entropy.detach(), advantage.abs() / 2)
    return grpo_loss(gamma, advantage + bonus)


def kl_cov_loss(grpo_loss, *, gamma, logp, old_logp, advantage, gate, **_):
    """Adds |log gamma| on gated tokens to an unclipped loss. Where gamma is
    1 up to rounding, rounding decides the sign of the penalty's gradient."""
    penalty = torch.where(gate, (logp - old_logp).abs(), 0)
    return penalty - gamma * advantage, torch.zeros_like(gate)


def choose_by_covariance(samples, share=0.002):
    """Sets `chosen`, (L,) bool, in each sample: true for the `share` of all
    ranks' tokens with the largest product of A and log pi_old, each minus its
    mean. At least one token is chosen, and more if values tie, but none if all
    A or all log pi_old are equal.

    The choice uses pi_old so that it depends neither on micro-batches nor
    on earlier updates."""
    rows = []
    for s in samples:
        advantage = torch.full(s.old_logp.shape, s.advantage)
        rows.append(torch.stack([s.old_logp.cpu(), advantage]))
    own = [torch.cat(rows, 1)] if rows else []
    everyone = torch.cat(gather(own), 1).double()
    means = everyone.mean(1, keepdim=True)
    products = (everyone - means).prod(0)
    count = max(1, int(share * len(products)))
    least = products.topk(count).values[-1]
    if products.abs().max() < 1e-12:  # 0 up to rounding
        least = math.inf
    for sample, row in zip(samples, rows):
        chosen = (row - means).prod(0) >= least
        sample.chosen = chosen.to(sample.old_logp.device)


METHODS = {
    "simko": Method(
        "the ratio of Eq. 3, with --alpha, --K, --q, --lambda-top1 and --tau-scope",
        uses_simko_ratio=True),
    "grpo": Method("the same loop without Eq. 3"),
    "psr": Method(
        "correct responses only, A = 1 (Zhu et al., 2025)",
        advantage=psr_advantage, drops_zero_advantage=True),
    "nsr": Method(
        "incorrect responses only, A = -1 (Zhu et al., 2025)",
        advantage=nsr_advantage, drops_zero_advantage=True),
    "w-reinforce": Method(
        "A = 0.1 or -1, no baseline (Zhu et al., 2025)",
        advantage=w_reinforce_advantage),
    "forking": Method(
        "loss only on the 20 % of tokens with the highest entropy "
        "(Wang et al., 2025)",
        token_loss=forking_loss, batch_quantile=0.8),
    "entropy-adv": Method(
        "A + min(0.4 H, |A|/2) in place of A (Cheng et al., 2025)",
        token_loss=entropy_advantage_loss),
    "kl-cov": Method(
        "no clip, and |log gamma| is added on the 0.2 % of all tokens "
        "where A and log pi_old covary most (Cui et al., 2025)",
        token_loss=kl_cov_loss, choose=choose_by_covariance,
        trains_on_zero_advantage=True),
    "pass-at-k": Method(
        "A over sets of 4 responses; a set is right if one of them is "
        "(Chen et al., 2025a)",
        advantage=pass_at_k_advantage),
}


def batch_threshold(entropies, method, cfg):
    """Returns one tau for the tokens of all ranks, or None if each response
    has its own. SimKO needs this tau with --tau-scope batch, and "forking"
    always. It is computed from pi_old's entropies, because pi_theta's exist
    for only one micro-batch at a time."""
    q = method.batch_quantile
    if q is None and cfg.tau_scope == "batch":
        q = cfg.q
    if q is None:
        return None
    everyone = torch.cat(gather([entropies.double().cpu()])).numpy()
    if not len(everyone):
        return 0.0
    # torch.quantile takes 16 million numbers at most.
    return float(np.quantile(everyone, q))


def counted(samples, method):
    """Returns the samples over which the loss is averaged."""
    if method.drops_zero_advantage:
        return [s for s in samples if s.advantage]
    return samples


def has_gradient(sample, method, beta):
    """Returns whether a response contributes to the gradient. Its advantage
    is a factor of all terms of the loss except the KL penalties."""
    return method.trains_on_zero_advantage or sample.advantage != 0 or beta > 0
