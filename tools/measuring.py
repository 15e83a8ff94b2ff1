"""How tools.bench measures: things that are compared run in turn."""
import ctypes
import re
import sys
import time
from pathlib import Path
from statistics import median

import torch

from runtime.log import Progress

QUIET = Progress(shown=False)
DEVICE, DTYPE = "cpu", torch.float32
if torch.cuda.is_available():
    DEVICE, DTYPE = "cuda", torch.bfloat16


def fail(message):
    sys.exit(f"bench.py: error: {message}")


def show(*cells):
    """Prints a row of a table."""
    texts = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("|", " | ".join(texts), "|", flush=True)


def table(*names):
    """Prints the head of a table."""
    print()
    show(*names)
    show(*["---"] * len(names))


def seconds_of(run):
    start = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(runs, rounds):
    """Times functions in turn. Every round starts with another one, and the first round does
    not count.

    runs: {name: function}. Returns {name: seconds of each round}."""
    seconds, names = {name: [] for name in runs}, list(runs)
    for _ in range(rounds + 1):
        for name in names:
            seconds[name].append(seconds_of(runs[name]))
        names.append(names.pop(0))
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds, name, base):
    """The median of a ratio over rounds, or "-" if one side is missing."""
    if not {name, base} <= seconds.keys():
        return "-"
    return median(a / b for a, b in zip(seconds[name], seconds[base]))


def resident(field):
    """GiB of this process's memory: VmRSS is what it has now, and VmHWM the most it had."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+)", status)[1]) / 2**20


def memory_of(run):
    """Returns the GiB that are held before `run`, and those that it takes at its peak above
    them."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
        run()
        peak = torch.cuda.max_memory_allocated() / 2**30
        return before, peak - before
    # Memory that was freed but not given back would be used again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the last peak
    before = resident("VmRSS")
    run()
    return before, resident("VmHWM") - before
