"""Logs a run: one row of metrics per step, with the seconds that each phase
took and the peak memory."""
import json
import math
import resource
import sys
import time

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers.utils import logging as transformers_logging


# A forking token is one whose entropy is above this quantile in its response.
FORKING = 0.8


class Progress:
    """Makes progress bars. If `shown` is false, they are invisible, and the bars
    of transformers are switched off, too."""

    def __init__(self, shown):
        self.shown = shown
        if not shown:
            transformers_logging.disable_progress_bar()

    def __call__(self, *arguments, **options):
        options = {"leave": False, "dynamic_ncols": True, **options}
        return tqdm(*arguments, disable=not self.shown, **options)


def finite_or_null(value):
    """Returns a metric, a number or a list of numbers, with None in place of
    nan and infinity, which JSON cannot represent."""
    if isinstance(value, list):
        return [finite_or_null(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Log:
    """Adds each row to metrics.jsonl, to the screen and to TensorBoard's files.

    first: the number of steps that are done when the run starts or resumes.
    TensorBoard hides the values it has for later steps, whose rows `rewind`
    has removed from metrics.jsonl."""

    def __init__(self, folder, first, cfg):
        self.path = folder / "metrics.jsonl"
        self.path.touch()
        self.steps, self.K = cfg.steps, cfg.K
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def __call__(self, row):
        written = {name: finite_or_null(value) for name, value in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(written, allow_nan=False) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float):
                self.board.add_scalar(name, value, row["step"])
        candidates = " ".join(
            f"{row[f'Lambda_{k}']:.2f}" for k in range(1, self.K + 1))
        seconds = sum(
            value for name, value in row.items() if name.startswith("seconds_"))
        tqdm.write(
            f"step {row['step']:>4}/{self.steps}  "
            f"reward = pass@1 {row['reward']:.3f}  "
            f"Lambda^(k) {candidates}  "
            f"entropy {row['entropy']:.3f}  "
            f"tokens {row['response_length']:.0f}  "
            f"grad {row['grad_norm']:.2f}  "
            f"gap {row['logp_gap']:.0e}  {seconds:.1f} s", file=sys.stdout)
        sys.stdout.flush()

    def add_pass_rates(self, step, results):
        """Adds an evaluation's pass@K after `step` steps to TensorBoard.

        results: those that `evaluate` returns."""
        for label, result in results.items():
            for k, share in result["pass"].items():
                self.board.add_scalar(f"{label}/pass@{k}", share, step)
        self.board.flush()  # the run may end here


class Clock:
    """Measures the seconds that each phase of a step takes, including the
    GPU's work, and the largest memory in use at the end of any phase."""

    def __init__(self, device):
        self.on_gpu = device.type == "cuda"
        self.seconds, self.memory = {}, 0
        self.last = time.perf_counter()

    def lap(self, name):
        """Adds the time since the last lap to the phase `name`."""
        if self.on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0) + now - self.last
        self.memory = max(self.memory, self.used_memory())
        self.last = time.perf_counter()

    def used_memory(self):
        """Returns the bytes in use: on a GPU, those of the entire device; on a
        CPU, this process's largest resident size so far.

        PyTorch's own counters are wrong here: they still count the memory that
        vLLM's engine releases while it sleeps. The device shows a phase's peak
        even at its end, because PyTorch keeps memory until `empty_cache`."""
        if self.on_gpu:
            free, total = torch.cuda.mem_get_info()
            return total - free
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def metrics(self, **tokens):
        """Returns {metric: number}. tokens: how many tokens each phase
        processed."""
        row = {f"seconds_{name}": s for name, s in self.seconds.items()}
        for name, count in tokens.items():
            row[f"tokens_per_s_{name}"] = count / self.seconds[name]
        return {**row, "peak_memory_gib": self.memory / 2**30}


def entropy_histogram(entropy):
    """Counts tokens in 41 bins of 0.1 nats by their entropy, (T,). The last bin
    is open-ended. Returns (41,)."""
    bins = (entropy / 0.1).long().clamp(0, 40)
    return torch.bincount(bins, minlength=41)


def distinct_tokens(topk_logp, num_generations):
    """Returns a lower bound on the expected number of distinct tokens among
    num_generations samples at each position.

    Each token contributes the probability 1 - (1 - p)^G that at least one
    sample contains it (Prop. 3 of the paper's third version, arXiv
    2510.14807v3). All tokens below the top K count as one, so the bound is
    at most K + 1, and loose where many of them are likely.
    topk_logp: (T, K). Returns (T,), float64."""
    # Only the log uses the result, so it needs no gradient.
    p = topk_logp.detach().double().exp()
    rest = (1 - p.sum(-1, keepdim=True)).clamp(min=0)
    p = torch.cat([p, rest], -1)
    return (1 - (1 - p) ** num_generations).sum(-1)


def forking_sums(topk_logp):
    """Returns sums over forking tokens. topk_logp: (T, K), of these tokens.

    Most tokens of a response are nearly certain, and dominate its Lambda^(k).
    These sums show the candidates where the policy has a choice, for all
    methods at the same share of tokens."""
    sums = {"forking_tokens": len(topk_logp)}
    for k, total in enumerate(topk_logp.double().sum(0), 1):
        sums[f"forking_Lambda_{k}"] = total
    return sums


def rollout_metrics(samples, num_generations):
    """Returns means over all samples of a step, which are ordered by group."""
    rewards = torch.tensor([s.reward for s in samples])
    right = (rewards > 0).view(-1, num_generations)
    mixed = right.any(1) & ~right.all(1)
    lengths = [len(s.response_ids) for s in samples]
    return {
        "reward": rewards.mean().item(),
        f"pass@{num_generations}": right.any(1).float().mean().item(),
        "mixed_groups": mixed.float().mean().item(),
        "response_length": sum(lengths) / len(samples),
        "truncated": sum(s.truncated for s in samples) / len(samples)}


def policy_metrics(sums):
    """Returns metrics of the policy before its updates. Lambda and Lambda^(k)
    (Eq. 2), the entropy and whatever a fork adds are means over responses.
    forking_Lambda is a mean over the forking tokens, and the gap to the
    engine's log-probs one over all tokens. sums: {name: sum over all ranks}."""
    sums = dict(sums)
    responses = sums.pop("responses") or math.nan  # a mean over none is nan
    tokens = sums.pop("tokens")
    forking = sums.pop("forking_tokens", 0) or math.nan
    metrics = {
        "logp_gap": sums.pop("logp_gap") / (tokens or 1),
        "tokens": tokens,
        "entropy_histogram": sums.pop("entropy_histogram")}
    for name in [name for name in sums if name.startswith("forking_Lambda_")]:
        metrics[name] = sums.pop(name) / forking
    means = {name: total / responses for name, total in sums.items()}
    return means | metrics


def update_metrics(sums):
    """Returns means over the updates that were made (loss, grad_norm), over
    the gated tokens (distinct_tokens) or over the trained tokens (the others,
    and whatever a fork adds). sums: {name: sum over all ranks}, without those
    of updates that were not made."""
    sums = dict(sums)
    tokens = sums.pop("tokens", 0) or 1
    updates = sums.pop("updates", 0) or 1
    gated = sums.pop("gated_tokens", 0)
    metrics = {
        "gate_share": gated / tokens,
        "distinct_tokens": sums.pop("distinct_tokens", 0) / (gated or math.nan),
        "clip_frac": sums.pop("clipped_tokens", 0) / tokens,
        "approx_kl": sums.pop("approx_kl", 0) / tokens,
        "loss": sums.pop("loss", 0) / updates,
        "grad_norm": sums.pop("grad_norm", 0) / updates}
    return metrics | {name: total / tokens for name, total in sums.items()}
