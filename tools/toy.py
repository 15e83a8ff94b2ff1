"""A toy problem in which modes can be lost, trained by simko.py's own functions.

The toy is that of Sec. 4.3 in the paper's third version. A response takes
three of the actions A to D, and six of the 64 paths are rewarded. The
policy is a table: it has four logits at each of the 21 states. Two choices
are ours, because that version does not print them: the start, at equal
probabilities up to a little noise, and plain gradient descent with one
rollout for each update.

tools/toy_sweep.py trains it with many settings.
"""
from typing import NamedTuple

import torch

from runtime.baselines import METHODS
from simko import clipped_loss, group_advantage, simko_ratio

PATHS, STATES, ACTIONS, DEPTH = 64, 21, 4, 3
REWARDED = "ACD", "ACB", "BDC", "BDA", "CAB", "DBA"
MODES = [int(path.translate(str.maketrans("ABCD", "0123")), 4) for path in REWARDED]
SEEDS, STEPS, EPSILON = 20, 1000, 0.2


class Cell(NamedTuple):
    """One combination of the settings that are swept. The defaults are GRPO's."""
    method: str
    samples: int
    learning_rate: float
    alpha: float = 0.0
    lambda_top1: float = 1.0
    K: int = 4              # N in the paper's third version
    q: float | None = None  # None: the gate is open at every token
    entropy: float = 0.0    # coefficient of the entropy bonus


def path_probabilities(pi):
    """Returns the exact probabilities of all paths (R, 64) under the tables pi
    (R, 21, 4)."""
    reach = pi.new_ones(len(pi), 1)
    for first, last in (0, 1), (1, 5), (5, 21):
        reach = (reach[..., None] * pi[:, first:last]).flatten(1)
    return reach


def rollout(pi, uniform):
    """Samples paths from pi (R, 21, 4) with uniform numbers (R, G, 3).

    Returns states and actions (R, G, 3), and the paths' numbers (R, G).
    As in a heap, the state s leads to the states 4 s + 1 to 4 s + 4."""
    bounds = pi.cumsum(-1)[..., :-1].unbind(-1)
    state = torch.zeros(uniform.shape[:2], dtype=torch.long)
    states, actions = [], []
    for u in uniform.unbind(-1):
        action = sum((u > bound.gather(1, state)).long() for bound in bounds)
        states.append(state)
        actions.append(action)
        state = ACTIONS * state + action + 1
    return torch.stack(states, -1), torch.stack(actions, -1), state - STATES


def toy_loss(theta, states, actions, rewards, method, K, q, alpha, lambda_top1, entropy):
    """Returns the loss of each run (R,), as `simko.Trainer.update` computes it.

    theta: the logits (R, 21, 4). rewards: (R, G). alpha, lambda_top1 and
    the coefficient of the entropy bonus broadcast with (R, G, 3)."""
    runs, count = rewards.shape
    method = METHODS[method]
    A = (method.advantage or group_advantage)(rewards.flatten(), count).view(runs, count, 1)
    log_pi = theta.log_softmax(-1)
    visited = states.flatten(1)
    taken = ACTIONS * visited + actions.flatten(1)
    logp = log_pi.flatten(1).gather(1, taken).view_as(states)
    index = visited[..., None].expand(-1, -1, K)
    topk_logp = log_pi.topk(K).values.gather(1, index).view(*states.shape, K)
    H = -(log_pi.exp() * log_pi).sum(-1).gather(1, visited).view_as(states)
    is_top1 = logp >= topk_logp[..., 0]
    gate = torch.ones_like(is_top1)
    if q is not None:  # `simko.entropy_threshold`, for all responses at once
        gate = H > H.detach().quantile(q, -1, keepdim=True)

    # Each rollout serves one update, so pi_old is pi_theta. With alpha = 0
    # and lambda_top1 = 1 this ratio is GRPO's.
    gamma = simko_ratio(logp, logp.detach(), topk_logp, is_top1, A, gate, alpha, lambda_top1)
    loss = clipped_loss(gamma, A, EPSILON, EPSILON).mean(-1)
    if method.drops_zero_advantage:
        count = (A[..., 0] != 0).sum(1).clamp(min=1)
    return loss.sum(1) / count - (entropy * H).mean((1, 2))


def shape(cell):
    """Returns what cells must share to be trained side by side."""
    return cell.method, cell.samples, cell.K, cell.q


def train(cells, seeds=SEEDS, steps=STEPS):
    """Trains cells of one shape. Returns the tables pi (cells, seeds, 21, 4).

    All cells with the same samples draw from the same random numbers."""
    method, samples, K, q = shape(cells[0])
    names = "learning_rate", "alpha", "lambda_top1", "entropy"
    values = torch.tensor([[getattr(cell, name) for name in names] for cell in cells]).double()
    values = values.repeat_interleave(seeds, 0)[..., None, None]
    rate, alpha, lambda_top1, entropy = values.unbind(1)
    options = {"dtype": torch.double, "generator": torch.Generator().manual_seed(0)}
    # Noise breaks ties: among equal logits there is no rank-1 candidate.
    theta = 0.01 * torch.randn(seeds, STATES, ACTIONS, **options)
    theta = theta.repeat(len(cells), 1, 1).requires_grad_()
    reward = torch.zeros(PATHS).double().index_fill(0, torch.tensor(MODES), 1)
    for _ in range(steps):
        uniform = torch.rand(seeds, samples, DEPTH, **options).repeat(len(cells), 1, 1)
        states, actions, path = rollout(theta.detach().softmax(-1), uniform)
        loss = toy_loss(theta, states, actions, reward[path], method, K, q,
                        alpha, lambda_top1, entropy)
        gradient, = torch.autograd.grad(loss.sum(), theta)
        with torch.no_grad():
            theta -= rate * gradient
    return theta.detach().softmax(-1).view(len(cells), seeds, STATES, ACTIONS)


def measure(cells, **options):
    """Returns a dict of results for each cell. options go to `train`.

    accuracy   the policy's total probability of the six paths, computed
               from the table and not sampled; mean over the seeds
    modes      how many of the six have at least the probability 1/64, as
               every path has at the start; mean over the seeds
    six        seeds with six modes
    six_at_1   seeds with six modes at an accuracy of at least 0.995
    least      probability of the least likely of the six; median"""
    rows = []
    for cell, pi in zip(cells, train(cells, **options)):
        modes = path_probabilities(pi)[:, MODES]
        accuracy, kept = modes.sum(1), (modes >= 1 / PATHS).sum(1)
        rows.append(cell._asdict() | {
            "modes": kept.double().mean().item(), "accuracy": accuracy.mean().item(),
            "six": (kept == 6).sum().item(),
            "six_at_1": ((kept == 6) & (accuracy >= 0.995)).sum().item(),
            "least": modes.amin(1).median().item()})
    return rows
