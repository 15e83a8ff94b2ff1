"""What a run writes down as it goes: a row a step, and where its time
and memory went."""
import json
import math
import resource
import sys
import time

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from runtime.common import write_whole


class Progress:
    """Makes progress bars, or bars that do not show. Those of
    transformers show along with them."""

    def __init__(self, shown):
        self.shown = shown
        if not shown:
            transformers_logging.disable_progress_bar()

    def __call__(self, *arguments, **options):
        options = {"leave": False, "dynamic_ncols": True, **options}
        return tqdm(*arguments, disable=not self.shown, **options)


def finite_or_null(value):
    """What JSON can say of a metric, which may be a list of numbers: null
    stands for nan and infinity."""
    if isinstance(value, list):
        return [finite_or_null(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Log:
    """metrics.jsonl, a line on screen, and TensorBoard's files where
    TensorBoard is installed.

    Rows after step `first` are removed: they are about to be made again."""

    def __init__(self, folder, first, cfg):
        self.path = folder / "metrics.jsonl"
        self.steps, self.K = cfg.steps, cfg.K
        lines = []
        if self.path.exists():
            # What follows the last newline was cut off.
            lines = self.path.read_text().split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= first]
        write_whole(self.path, "".join(line + "\n" for line in kept))
        self.board = None
        try:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(
                str(folder / "tensorboard"), purge_step=first + 1)
        except ImportError:
            pass

    def __call__(self, row):
        written = {name: finite_or_null(value) for name, value in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(written, allow_nan=False) + "\n")
        if self.board:
            for name, value in row.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(name, value, row["step"])
        ranks = " ".join(
            f"{row[f'Lambda_{k}']:.2f}" for k in range(1, self.K + 1))
        seconds = sum(
            value for name, value in row.items() if name.startswith("seconds_"))
        tqdm.write(
            f"step {row['step']:>4}/{self.steps}  "
            f"reward = pass@1 {row['reward']:.3f}  "
            f"Lambda^(k) {ranks}  "
            f"entropy {row['entropy']:.3f}  "
            f"tokens {row['response_length']:.0f}  "
            f"grad {row['grad_norm']:.2f}  "
            f"gap {row['logp_gap']:.0e}  {seconds:.1f} s", file=sys.stdout)
        sys.stdout.flush()


class Clock:
    """Measures the seconds of each phase of a step, the GPU's work
    included, and the largest memory at the end of any phase."""

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
        """Bytes in use: on a GPU those of the whole device, on a CPU this
        process's largest resident size so far.

        PyTorch's own counters would not do: they count the memory of
        vLLM's sleeping engine, which is given back. PyTorch keeps what a
        phase has needed until `empty_cache`, so the device shows a
        phase's peak at its end."""
        if self.on_gpu:
            free, total = torch.cuda.mem_get_info()
            return total - free
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def metrics(self, **tokens):
        """tokens: how many tokens each phase worked on."""
        row = {f"seconds_{name}": s for name, s in self.seconds.items()}
        for name, count in tokens.items():
            row[f"tokens_per_s_{name}"] = count / self.seconds[name]
        return {**row, "peak_memory_gib": self.memory / 2**30}


def entropy_histogram(entropy):
    """Counts of tokens in 41 bins of 0.1 nats. The last bin is open."""
    bins = (entropy / 0.1).long().clamp(0, 40)
    return torch.bincount(bins, minlength=41)


def distinct_tokens(topk_logp, num_generations):
    """How many different tokens num_generations samples hold at each
    position in expectation.

    Each token counts by its chance to be sampled at all, 1 - (1 - p)^G
    (Prop. 3 of the paper's third version, arXiv 2510.14807v3). All tokens
    below the top-K count as one, so the number is at most K + 1.
    topk_logp: (T, K). Returns (T,)."""
    # The detach leaves no gradient: only the log reads the result.
    p = topk_logp.detach().double().exp()
    rest = (1 - p.sum(-1, keepdim=True)).clamp(min=0)
    p = torch.cat([p, rest], -1)
    return (1 - (1 - p) ** num_generations).sum(-1)


def rollout_metrics(samples, num_generations):
    """Means over all that a step has sampled."""
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
    """Of the policy before its updates: Lambda and Lambda^(k) of Eq. 2
    and the entropy as means over responses, the gap to the engine as a
    mean over tokens."""
    metrics = dict(sums)
    metrics["logp_gap"] = sums["logp_gap"] / (sums["tokens"] or 1)
    responses = metrics.pop("responses")
    for name, total in sums.items():
        if name == "entropy" or name.startswith("Lambda"):
            metrics[name] = total / responses if responses else math.nan
    return metrics


def update_metrics(sums, updates):
    """Means over the tokens that were trained on, over the gated ones
    among them, or over updates."""
    tokens, gated = sums["tokens"] or 1, sums["gated_tokens"]
    distinct = sums["distinct_tokens"] / gated if gated else math.nan
    return {
        "gate_share": gated / tokens,
        "distinct_tokens": distinct,
        "clip_frac": sums["clipped_tokens"] / tokens,
        "approx_kl": sums["approx_kl"] / tokens,
        "loss": sums["loss"] / updates,
        "grad_norm": sums["grad_norm"] / updates}
