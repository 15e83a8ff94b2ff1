"""Kills the laptop recipe at random moments, restarts it until it is complete,
and compares the result with a run that was never killed.

    python -m tools.soak runs/laptop/data runs/soak [--steps 300]
        [--kill-after 20] [--seed 0] [any flag of simko.py ...]

After each start, SIGKILL ends the run after a random time of up to twice
--kill-after seconds. --kill-after must leave time for a start and the ten
steps to the next checkpoint, and be shorter than the complete run. In the end
the weights, the evaluations and the log, apart from its times and memory, must
be bit-identical in both runs. The exit status is 1 if they differ or if no
kill happened.

Every two seconds, OUTPUT/memory.jsonl records the resident memory of the
trainer and of two workers of the verifier. The workers compare answers in the
meantime, since the laptop's own task needs no worker.
"""
import filecmp
import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from runtime.common import fail
from runtime.data import read_jsonl
from tools import ROOT, command_line
from tools.study import laptop_recipe
from verify import Verifier


def resident(pids):
    """Returns {process id: resident memory in MiB}."""
    found = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it may have ended
            found[pid] = psutil.Process(pid).memory_info().rss / 2**20
    return found


def run(command, patience, verifier, output):
    """Starts a run, and appends to `log` and memory.jsonl in the folder `output`.
    Returns its exit code, or None if it was killed after `patience` seconds."""
    began, name = time.monotonic(), Path(command[-1]).name
    with (output / "log").open("a") as log, (output / "memory.jsonl").open("a") as memory:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.monotonic() - began < patience:
                numbers = random.sample(range(2, 10**6), 10)  # random, so no cache has them
                verifier.score([rf"\boxed{{\sqrt{{{n}}} + x}}" for n in numbers],
                               [rf"x + {n}^{{1/2}}" for n in numbers], "math")
                mib = resident([process.pid, *(worker.pid for worker in verifier.idle)])
                row = {"run": name, "seconds": round(time.monotonic() - began, 1),
                       "trainer": mib.pop(process.pid, None), "workers": [*mib.values()] or None}
                memory.write(json.dumps(row) + "\n")
                time.sleep(2)
            return process.poll()
        finally:
            process.kill()
            process.wait()


def read(path):
    return pd.DataFrame(row for _, row in read_jsonl(path))


def differences(run, other):
    """Returns the names of files in which two run folders differ. Times and
    memory in the log are ignored."""
    ours, theirs = (read(folder / "metrics.jsonl").filter(regex="^(?!.*(second|_per_s|memory))")
                    for folder in (run, other))
    found = [] if ours.equals(theirs) else ["metrics.jsonl"]
    for pattern in ("hf/*.safetensors", "eval_*/*", "checkpoints/step_*/*.distcp"):
        for path in sorted(other.glob(pattern)):
            name = path.relative_to(other)
            if not (run / name).exists() or not filecmp.cmp(run / name, path, shallow=False):
                found.append(str(name))
    return found


def show_memory(path):
    rows = read(path)
    rows["largest worker"] = rows.workers.map(max, na_action="ignore")
    for name in ("trainer", "largest worker"):
        values = rows[rows.run == "clean"][name].dropna()
        means = [round(part.mean()) for part in np.array_split(values, 5) if len(part)]
        print(f"{name}, MiB, mean of each fifth of the clean run:", *means)


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("data", type=Path, help="the folder that tools.laptop wrote")
    parser.add_argument("output", type=Path, help="the folder for both runs")
    parser.add_argument("--steps", type=int, default=300, help="the steps of each run")
    parser.add_argument("--kill-after", type=float, default=20,
                        help="the mean number of seconds before a kill")
    parser.add_argument("--seed", type=int, default=0, help="the seed for the times of the kills")
    options, flags = parser.parse_known_args()
    output, rng, kills = options.output.resolve(), random.Random(options.seed), 0
    if output.exists() and not (output / "memory.jsonl").exists():
        fail(f"{output} was not written by tools.soak: choose another folder")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    data = str(options.data.resolve())
    recipe = [word.replace("runs/laptop/data", data) for word in laptop_recipe()]
    command = [sys.executable, str(ROOT / "simko.py"), "train", *recipe, "--eval-n", "16",
               "--save-steps", "10", *flags, "--steps", str(options.steps), "--output-dir"]
    last = output / "killed" / f"eval_{options.steps:06d}" / "eval.json"
    with Verifier(workers=2) as verifier:
        code = run([*command, str(output / "clean")], inf, verifier, output)
        while not code and not last.exists():
            patience = rng.uniform(0, 2 * options.kill_after)
            code = run([*command, str(output / "killed")], patience, verifier, output)
            if code is None:
                kills += 1
                print(f"kill {kills} came after {patience:.1f} s", flush=True)
    if code:
        fail(f"a run ended with status {code}: see {output / 'log'}")
    show_memory(output / "memory.jsonl")
    found = differences(output / "killed", output / "clean")
    print(f"{options.steps} steps, {kills} kills:",
          f"DIFFERENT: {', '.join(found)}" if found else "bit-identical")
    if not kills:
        fail("the run ended before it was killed: choose a lower --kill-after")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
