"""Draws the figures of docs/walkthrough.md for tools.plots --walkthrough."""
import json
import math

import numpy as np
import torch

from runtime.common import fail
from simko import Config, entropy_threshold, simko_ratio
from tools.drawing import STYLES, grid, legend, note


def push(z, y, advantage, alpha=0.0, lambda_top1=1.0, K=3):
    """Returns the gradient (V,) of A times the ratio of Eq. 3 with respect
    to the logits z (V,), at gamma = 1 and with the gate open."""
    z = z.clone().requires_grad_()
    log_pi = z.log_softmax(-1)
    ratio = simko_ratio(
        logp=log_pi[y], old_logp=log_pi[y].detach(), topk_logp=log_pi.topk(K).values,
        is_top1=z.argmax() == y, advantage=torch.tensor(float(advantage)),
        gate=torch.tensor(True), alpha=alpha, lambda_top1=lambda_top1)
    return torch.autograd.grad(advantage * ratio, z)[0]


def peaked(entropy, others=50):
    """Returns probabilities (1 + others,) with the given entropy, of which
    the first dominates and the others are equal."""
    low, high = 1 / (1 + others), 1.0
    for _ in range(100):  # the entropy falls as the first candidate grows
        first = (low + high) / 2
        rest = [(1 - first) / others] * others
        p = torch.tensor([first, *rest], dtype=torch.float64)
        if entropy_of(p) > entropy:
            low = first
        else:
            high = first
    return p


def entropy_of(p):
    return -(p * p.log()).sum()


def equal_entropy_figure(measured):
    """Draws the distribution of the first token beside a constructed one
    that has the same entropy."""
    log_pi = torch.tensor(measured["first_token_log_pi"], dtype=torch.float64)
    pi, ids = log_pi.softmax(-1).sort(descending=True)
    words = [measured["vocabulary"][i] for i in ids[:6]]
    numbered = [f"rank {k}" for k in range(1, 7)]
    figure, ((left, right),) = grid(1, 2, 3.8, 3.2, sharey=True)
    distribution(left, "the first token of the response", pi, words)
    distribution(right, "constructed", peaked(entropy_of(pi)), numbered)
    left.set_ylabel(r"$\pi$")
    return figure


def distribution(axis, title, p, names):
    """Draws the six most probable candidates of p (V,), which is sorted."""
    bars = axis.bar(range(6), p[:6].tolist(), color=STYLES[2][0])
    axis.bar_label(bars, [f"{value:.3f}" for value in p[:6]], fontsize=7)
    axis.set_xticks(range(6), names, fontsize=8)
    seen = 1 - (1 - p[1]) ** 8
    lines = [
        title,
        rf"entropy {entropy_of(p):.3f} nats, $\log\pi^{{(2)}}$ = {p[1].log():.2f}",
        f"rank 2 among 8 samples: {100 * seen:.0f} %"]
    axis.set_title("\n".join(lines), fontsize=9)


def one_step_figure(measured):
    """Draws the gate over a response, and one step on its first token."""
    z = torch.tensor(measured["first_token_log_pi"], dtype=torch.float64)
    best = z.topk(3).indices.tolist()
    words = [measured["vocabulary"][i] for i in best]
    figure, ((gate, correct), (wrong_1, wrong_3)) = grid(2, 2, 4.6, 3.2)
    gate_panel(gate, measured)

    def panel(axis, y, advantage, title, settings):
        results = {"before": z.softmax(-1)}
        for label, own in settings.items():
            results[label] = (z + push(z, y, advantage, **own)).softmax(-1)
        width = 0.8 / len(results)
        colours = [STYLES[i][0] for i in (0, 1, 5, 2)]
        looks = zip(colours, ("", "////", "....", "xx"))
        for place, ((label, p), (colour, hatch)) in enumerate(zip(results.items(), looks)):
            x = np.arange(3) + (place - (len(results) - 1) / 2) * width
            axis.bar(x, p[best].tolist(), width, label=label,
                     color=colour, hatch=hatch, edgecolor="white")
        axis.set_xticks(range(3), words)
        axis.set(title=title, ylabel=r"$\pi$", ylim=(0, 1))
        axis.legend(fontsize=8)

    panel(correct, best[0], 1, f"{words[0]} was sampled in a correct response", {
        "GRPO": {},
        "SimKO, α = 0.01": {"alpha": 0.01},
        "SimKO, α = 0.3": {"alpha": 0.3}})
    panel(wrong_1, best[0], -1, f"{words[0]} was sampled in a wrong response", {
        "GRPO": {},
        "SimKO, λ = 1.1": {"lambda_top1": 1.1},
        "SimKO, λ = 1.5": {"lambda_top1": 1.5}})
    panel(wrong_3, best[2], -1, f"{words[2]} was sampled in a wrong response", {
        "GRPO and SimKO": {}})
    return figure


def gate_panel(axis, measured):
    """Draws the entropy at each token of a response, and τ(q)."""
    entropies = torch.tensor(measured["entropy"], dtype=torch.float64)
    count = len(entropies)
    tau = entropy_threshold(entropies, torch.tensor([count]), Config.q)
    bars = axis.bar(range(count), entropies.tolist())
    for bar, inside in zip(bars, entropies > tau):
        bar.set(facecolor=STYLES[0][0], hatch="////", edgecolor="white")
        if inside:
            bar.set(facecolor=STYLES[2][0], hatch="")
    axis.axhline(tau[0], color="black", linestyle="--", linewidth=1)
    note(axis, f"τ({Config.q:g})", (count - 0.5, tau[0]), (0, 3), ha="right")
    axis.set_xticks(range(count), measured["response"], fontsize=8)
    axis.set(title="SimKO changes the tokens above τ", ylabel="entropy, nats")


def floor_figure(measured):
    """Draws the push on a candidate that was not sampled, and each model's
    distribution of log pi of rank 2 and 3 at gated tokens."""
    figure, ((axis, *panels),) = grid(1, 3, 3.7, 3.8)
    push_panel(axis)
    for rank, panel in zip((2, 3), panels):
        for (label, own), (colour, line, _) in zip(measured["models"].items(), STYLES):
            look = {"color": colour, "linestyle": line}
            panel.plot(own["percentiles"][f"rank {rank}"], range(101), label=label, **look)
            alpha = own.get("alpha") if own.get("method") == "simko" else None
            if alpha:
                panel.axvline(math.log(alpha / own["K"]), linewidth=0.8, **look)
        panel.set(xlabel=rf"$\log\pi^{{({rank})}}$", xlim=(-14, 0))
        panel.set_ylabel("gated tokens below, %")
        panel.set_title(f"rank {rank} at gated tokens, q = {measured['gate_q']:g}\n"
                        "vertical lines: log α/K of each run")
    return legend(figure)


def push_panel(axis):
    """Draws the push on a candidate that was not sampled against its
    probability, in a correct response."""
    probabilities = np.geomspace(2e-4, 0.2, 60)
    pushes = {
        "GRPO": (0.0, STYLES[1]),
        "Eq. 6, α = 0.01": (0.01, STYLES[2]),
        "Eq. 6, α = 0.05": (0.05, STYLES[3])}
    for label, (alpha, (colour, line, _)) in pushes.items():
        look = {"color": colour, "linestyle": line}
        found = []
        for p in probabilities:
            pi = [0.7 * (1 - p), 0.3 * (1 - p), p]
            z = torch.tensor(pi, dtype=torch.float64).log()
            found.append(push(z, 0, 1, alpha)[2].item())
        axis.plot(probabilities, found, label=label, **look)
        if alpha:
            axis.axvline(alpha / 3, linewidth=0.8, **look)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_yscale("symlog", linthresh=1e-3)  # linear around 0
    axis.set(xscale="log", ylabel="push on its logit")
    axis.set_xlabel(r"$\pi_k$ of a candidate that was not sampled")
    axis.set_title("a correct response, K = 3\nvertical lines: α/K")


def walkthrough_figures(path):
    """Returns {name: figure} of docs/walkthrough.md."""
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        measured["first_token_log_pi"], measured["models"]  # other files have no such keys
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{path} cannot be read ({error!r}): create it with "
             "python -m tools.walkthrough --measure RUN ...")
    return {
        "fig2_equal_entropy": equal_entropy_figure(measured),
        "fig4_one_step": one_step_figure(measured),
        "floor": floor_figure(measured)}
