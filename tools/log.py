"""What a run writes down as it goes: a row a step, and where its time went."""
import json
import resource
import sys
import time

import torch
from tqdm import tqdm

from simko import write_whole


class Log:
    """metrics.jsonl, a line on screen, and TensorBoard where it is installed."""

    def __init__(self, folder, first, cfg):
        self.path, self.steps, self.K, self.board = folder / "metrics.jsonl", cfg.steps, cfg.K, None
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []  # the last may have been cut off
        write_whole(self.path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= first))
        try:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
        except ImportError:
            pass

    def __call__(self, row):
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items() if self.board else ():
            if isinstance(value, int | float):
                self.board.add_scalar(name, value, row["step"])
        ranks = " ".join(f"{row[f'Lambda_{k}']:.2f}" for k in range(1, self.K + 1))
        seconds = sum(value for name, value in row.items() if name.startswith("seconds_"))
        tqdm.write(f"step {row['step']:>4}/{self.steps}  reward = pass@1 {row['reward']:.3f}  Lambda^(k) {ranks}  "
                   f"entropy {row['entropy']:.3f}  tokens {row['response_tokens']:.0f}  grad {row['grad_norm']:.2f}  "
                   f"gap {row['logp_gap']:.0e}  {seconds:.1f} s", file=sys.stdout)
        sys.stdout.flush()


class Clock:
    """Seconds in all laps of a name, the GPU's work included, and the largest memory so far."""

    def __init__(self, device):
        self.cuda, self.seconds, self.last = device.type == "cuda", {}, time.perf_counter()

    def lap(self, name):
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name], self.last = self.seconds.get(name, 0) + now - self.last, now

    def peak_memory(self):
        """GiB: PyTorch's on the GPU, or the process's resident size where there is none."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
