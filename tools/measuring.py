"""Measures time and memory for tools.bench, and prints tables."""
import ctypes
import re
import time
from pathlib import Path
from statistics import median

import torch

from runtime.log import Progress

QUIET = Progress(shown=False)
DEVICE, DTYPE = "cpu", torch.float32
if torch.cuda.is_available():
    DEVICE, DTYPE = "cuda", torch.bfloat16


def show(*cells):
    """Prints a row of a table."""
    texts = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("|", " | ".join(texts), "|", flush=True)


def table(*names):
    """Prints a table's header."""
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
    """Times functions in alternation. Each round starts with a different function, and the first
    round does not count.

    runs: {name: function}. Returns {name: list of seconds, one for each round}."""
    seconds, names = {name: [] for name in runs}, list(runs)
    for _ in range(rounds + 1):
        for name in names:
            seconds[name].append(seconds_of(runs[name]))
        names.append(names.pop(0))
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds, name, base):
    """Returns the median over rounds of name's time / base's time, or "-" if one is missing."""
    if not {name, base} <= seconds.keys():
        return "-"
    return median(a / b for a, b in zip(seconds[name], seconds[base]))


def resident(field):
    """Returns this process's resident memory in GiB, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+)", status)[1]) / 2**20


def memory_of(run):
    """Returns (GiB in use before `run`, GiB that `run` needs at its peak on top of them)."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
        run()
        peak = torch.cuda.max_memory_allocated() / 2**30
        return before, peak - before
    # Return freed memory to the system, or `run` could reuse it unnoticed.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    run()
    return before, resident("VmHWM") - before
