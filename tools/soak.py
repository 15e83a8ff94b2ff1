"""A soak: the laptop recipe killed at random moments until it has come to its end, compared with a run left alone.

    python tools/soak.py runs/laptop/data runs/soak [--steps 300] [--kill-after 20] [--seed 0] [any simko.py flag ...]

Each start is a process of its own, ended by SIGKILL after a random time of up to twice --kill-after seconds, which must
be more than a start and ten steps take, and less than the whole run does. Log, weights and evaluations of both runs
must be the same bits; the exit status is 1 where they are not, or where no kill came before the end.
OUTPUT/memory.jsonl gets the resident memory of the trainer every two seconds, and that of two workers of the verifier,
which answer questions meanwhile: the laptop's own task needs none."""
import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from math import inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from verify import Verifier

ROOT = Path(__file__).resolve().parents[1]


def recipe(data):
    """The laptop recipe's flags, as train.sh has them, on this data."""
    flags = subprocess.run(["bash", ROOT / "train.sh", "--list", "laptop"], capture_output=True, text=True, check=True)
    return flags.stdout.replace("runs/laptop/data", str(data)).split()


def resident(*pids):
    """MiB of each process."""
    rows = subprocess.run(["ps", "-o", "pid=,rss=", "-p", ",".join(map(str, pids))], capture_output=True, text=True)
    return {int(pid): int(kib) / 1024 for pid, kib in map(str.split, rows.stdout.splitlines())}


def run(command, patience, verifier, output):
    """One start: its exit code, or None if it was killed after `patience` seconds."""
    began, name = time.monotonic(), Path(command[-1]).name
    with (output / "log").open("a") as log, (output / "memory.jsonl").open("a") as memory:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.monotonic() - began < patience:
                numbers = random.sample(range(2, 10**6), 10)  # new ones, which no cache knows
                verifier.score([rf"\boxed{{\sqrt{{{n}}} + x}}" for n in numbers],
                               [rf"x + {n}^{{1/2}}" for n in numbers], "math")
                mib = resident(process.pid, *(worker.pid for worker in verifier.idle))
                row = {"run": name, "seconds": round(time.monotonic() - began, 1),
                       "trainer": mib.pop(process.pid, None), "workers": list(mib.values())}
                memory.write(json.dumps(row) + "\n")
                time.sleep(2)
            return process.poll()
        finally:
            process.kill()
            process.wait()


def differences(run, other):
    """The files in which two run folders differ, but for times and memory."""
    def rows(folder):
        return [{name: value for name, value in json.loads(line).items() if not re.search("second|_per_s|memory", name)}
                for line in (folder / "metrics.jsonl").read_text().splitlines()]
    paths = [path.relative_to(other) for pattern in ("hf/*.safetensors", "eval_*/*", "checkpoints/step_*/*.distcp")
             for path in sorted(other.glob(pattern))]
    return ["metrics.jsonl"] * (rows(run) != rows(other)) + [
        str(path) for path in paths
        if not (run / path).exists() or (run / path).read_bytes() != (other / path).read_bytes()]


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that tools/laptop.py made")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kill-after", type=float, default=20, help="seconds, the mean")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, flags = parser.parse_known_args(arguments)
    output, rng, kills = options.output.resolve(), random.Random(options.seed), []
    if output.exists() and not (output / "memory.jsonl").exists():
        sys.exit(f"soak.py: error: {output} is not a soak's folder: name another")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "simko.py"), "train", *recipe(options.data.resolve()), "--eval-n", "16",
               "--save-every", "10", *flags, "--steps", str(options.steps), "--output"]
    with Verifier(workers=2) as verifier:
        code = run([*command, str(output / "clean")], inf, verifier, output)
        while code == 0 and not (output / "killed" / f"eval_{options.steps:06d}" / "eval.json").exists():
            patience = rng.uniform(0, 2 * options.kill_after)
            ended = run([*command, str(output / "killed")], patience, verifier, output)
            code = ended or 0
            if ended is None:
                kills.append(round(patience, 1))
                print(f"killed after {patience:.1f} s, the {len(kills)}. time", flush=True)
    if code:
        sys.exit(f"soak.py: error: a run ended with {code}: see {output / 'log'}")
    rows = [json.loads(line) for line in (output / "memory.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["run"] == "clean" and row["trainer"] and row["workers"]]
    for name, values in (("trainer", [row["trainer"] for row in rows]),
                         ("largest worker", [max(row["workers"]) for row in rows])):
        parts = [values[i * len(values) // 5:(i + 1) * len(values) // 5] or [0] for i in range(5)]
        print(f"{name}, MiB, mean of each fifth of the clean run:", *(round(sum(x) / len(x)) for x in parts))
    found = differences(output / "killed", output / "clean")
    print(f"{options.steps} steps, {len(kills)} kills:", f"DIFFERENT: {', '.join(found)}" if found else "the same bits")
    sys.exit("soak.py: error: the run ended before it was killed: a lower --kill-after" if not kills else bool(found))


if __name__ == "__main__":
    main(sys.argv[1:])
