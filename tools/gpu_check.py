"""Runs all checks that need a GPU, the most important ones first, and writes a
report.

    python -m tools.gpu_check                    # takes thirty minutes at most
    python -m tools.gpu_check --model FOLDER     # also trains a real, small model
    python -m tools.gpu_check --only d e lora --minutes 5

The parts are the tests a to m of tests/test_gpu.py, 20 training steps, and
five short benchmarks of tools/bench.py. Whether results are right is checked
before speed is measured. Each part runs in its own process with its own time
limit, so a part that fails or hangs does not affect the others. Every line
goes to the report, runs/gpu_check.md, as soon as it is printed, so nothing is
lost if a borrowed machine disappears. A later call appends to the report.
Without a GPU, this is a dry run on the CPU.
"""
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from runtime.common import fail
from runtime.hardware import nvidia_smi
from runtime.versions import versions
from tools import ROOT, command_line

FENCE = "````"


class Part(NamedTuple):
    name: str
    about: str
    limit: int  # seconds
    command: list[str]


class Outcome(NamedTuple):
    part: Part
    status: str
    seconds: float
    last: str  # the last line it printed


# Each limit leaves room for a machine that is used for the first time. The first start of an engine
# took about 100 s there with vLLM 0.25, most of it compilation, and each later one about 50 s.
TESTS = {  # letter: (what the test checks, time limit in seconds), the most important first
    "a": ("the engine's sleep, sync and samples", 240),
    "b": ("three rounds of update, sync and samples, without and with LoRA", 240),
    "d": ("attention in bfloat16, and the probe", 60),
    "e": ("token statistics of a 7B head", 60),
    "f": ("an update's gradients", 60),
    "h": ("checkpoint and export", 150),
    "l": ("two ranks", 150),
    "m": ("two ranks, each with an engine or with half of one", 300),
    "c": ("top-p sampling without nvcc", 180),
    "i": ("seeds of the samples", 180),
    "k": ("the engine's shutdown", 180),
    "g": ("memory in the log", 180),
    "j": ("times of sleep, wake and reload", 150),
}
BENCHMARKS = {  # name: (what it measures, time limit in seconds, arguments of tools.bench)
    "update": (
        "the speed of an update", 200,
        "gpu --shape 0.5b --tokens 16384 --rounds 1 --ways grpo simko full-logits few-passes"),
    "rank": (
        "one rank of eight at 7B", 150,
        "gpu --shape 7b --tokens 8192 --rounds 1 --ways grpo simko --fake-world 8"),
    "lora": (
        "LoRA at 7B", 150,
        "gpu --shape 7b --tokens 8192 --rounds 1 --ways grpo simko --lora-rank 32"),
    "generate": (
        "the speed of rollouts", 180,
        "generate --shape 1.5b --tokens 512 --rounds 1"),
    "compiled": (
        "what torch.compile gains", 240,
        "gpu --shape 1.5b --tokens 16384 --rounds 1 --ways simko compiled-chunks compiled-layers"),
}


# ------------------------------------------------------------------------------------ the parts
def test_part(letter):
    about, limit = TESTS[letter]
    chosen = f"test_{letter}_"
    if torch.cuda.is_available() and find_spec("vllm"):
        chosen += " and not hf"  # hf is the fallback for machines without vLLM
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-k", chosen, "-m", "gpu",
               "-s", "-rs"]
    return Part(letter, about, limit, command)


def bench_part(name):
    about, limit, arguments = BENCHMARKS[name]
    command = [sys.executable, "-m", "tools.bench", *arguments.split()]
    if not torch.cuda.is_available():  # a model that a CPU can run
        command += ["--shape", "tiny-qwen", "--tokens", "1024" if "gpu" in command else "16"]
    return Part(name, about, limit, command)


def train_part(model, folder):
    """Returns the part that trains 20 steps on sums. Three examples in each prompt show even a
    small base model what to do."""
    rng = random.Random(0)

    def example():
        a, b = rng.randint(2, 30), rng.randint(2, 30)
        return f"{a} + {b} =", a + b

    rows = []
    for _ in range(400):
        shown = [example() for _ in range(3)]
        problem, answer = example()
        lines = [f"{text} \\boxed{{{result}}}" for text, result in shown]
        row = {"problem": "\n".join([*lines, problem]), "answer": str(answer)}
        rows.append(json.dumps(row) + "\n")
    data = Path(folder, "sums.jsonl")
    data.write_text("".join(rows))
    cards, launcher = torch.cuda.device_count(), ""
    if cards > 1:  # as in train.sh
        launcher = ("-m torch.distributed.run --standalone --local-addr localhost "
                    f"--nproc_per_node {cards}")
    flags = """
        --prompt-template raw --steps 20 --save-steps 20 --learning-rate 1e-5
        --batch-size 32 --mini-batch-size 8 --num-generations 8
        --max-prompt-length 128 --max-completion-length 10"""
    command = [
        sys.executable, *launcher.split(), "simko.py", "train", "--model", str(model),
        "--train-data", str(data), "--output-dir", str(Path(folder, "run")), *flags.split()]
    return Part("train", "20 steps of a real model", 240, command)


# ----------------------------------------------------------------------------------- the report
class Report:
    """A markdown file that is flushed after each line. The same lines go to the screen."""

    def __init__(self, path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", encoding="utf-8")
        except OSError as error:
            fail(f"--report {path} cannot be written ({error.strerror}): name another file")
        self.last = ""

    def write(self, text=""):
        self.file.write(text + "\n")
        self.file.flush()
        print(text, flush=True)

    def follow(self, stream):
        """Writes the lines of a running process, with only the last state of a progress bar."""
        for line in stream:
            line = line.rstrip().rpartition("\r")[2]
            if line:
                self.last = line
                self.write(line)


def machine():
    """Returns lines that describe the machine and the versions."""
    lines = [f"- {name} {version}" for name, version in versions().items()]
    lines.append(f"- {os.cpu_count()} CPUs")
    cards, driver = nvidia_smi()
    lines += [f"- a card of {gb:.0f} GB, driver {driver}" for gb in cards]
    if not torch.cuda.is_available():
        lines.append("- PyTorch sees no CUDA device, so this is a dry run on the CPU")
    return lines


# -------------------------------------------------------------------------------------- running
def run_part(part, report, limit):
    """Runs a part for at most `limit` seconds and writes its output to the report. Returns its
    Outcome."""
    report.write(f"\n## {part.name}: {part.about}\n\n    {shlex.join(part.command)}\n\n{FENCE}")
    report.last = ""
    start = time.monotonic()
    process = subprocess.Popen(
        part.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    # By default, each \r of a progress bar would end a line.
    output = io.TextIOWrapper(
        process.stdout, encoding="utf-8", errors="replace", newline="\n")
    reader = threading.Thread(target=report.follow, args=[output], daemon=True)
    reader.start()
    try:
        process.wait(limit)
        status = f"failed with status {process.returncode}" if process.returncode else "ok"
    except subprocess.TimeoutExpired:
        status = f"cut off after {limit:.0f} s"
    finally:
        if process.poll() is None:
            stop(process)
    # The pipe stays open while a process that the part left behind still runs.
    reader.join(10)
    if status == "ok" and " skipped" in report.last and " passed" not in report.last:
        status = "skipped"
    outcome = Outcome(part, status, time.monotonic() - start, report.last)
    report.write(f"{FENCE}\n{status}, {outcome.seconds:.1f} s")
    return outcome


def stop(process):
    """Sends SIGTERM to a part's processes, so that torchrun can end its ranks, and kills them
    after 15 s."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_all(parts, report, minutes, patience=1):
    """Runs the parts one after another until the time is up. Each may take `patience` times its
    limit. Returns their outcomes."""
    end = time.monotonic() + 60 * minutes
    outcomes = []
    for part in parts:
        left = end - time.monotonic()
        if left < 5:
            outcomes.append(Outcome(part, "not started: no time left", 0.0, ""))
        else:
            outcomes.append(run_part(part, report, min(patience * part.limit, left)))
    return outcomes


def summary(outcomes):
    """Returns the lines of a table with a row for each part."""
    lines = ["", "## Summary", "", "| part | | status | seconds | last line |",
             "| --- | --- | --- | --- | --- |"]
    for part, status, seconds, last in outcomes:
        last = last.strip("| ").replace("|", "/")[:120]
        lines.append(f"| {part.name} | {part.about} | {status} | {seconds:.1f} | {last} |")
    return lines


def main(arguments):
    parser = command_line(__file__, __doc__)
    parser.add_argument("--model", type=Path, metavar="FOLDER",
                        help="A real, small model to train for 20 steps.")
    parts = [*map(test_part, TESTS), *map(bench_part, BENCHMARKS)]
    worst = sum(part.limit for part in parts) / 60
    parser.add_argument("--minutes", type=float, default=30,
                        help="The time limit for all parts together, whose own limits add up to "
                        f"{worst:.0f} minutes. Default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=[*TESTS, *BENCHMARKS, "train"],
                        help="Run only these parts. " + " ".join(
                            f"{part.name}: {part.about}." for part in parts)
                        + " train: 20 steps with --model.")
    parser.add_argument("--report", type=Path, default=Path("runs/gpu_check.md"), metavar="FILE",
                        help="Where to write the report. Default: %(default)s")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes}: must be above 0")
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"--model {options.model} has no config.json: name the folder of a model")
    if options.only and "train" in options.only and not options.model:
        parser.error("--only train needs --model FOLDER")

    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            parts.insert(len(TESTS), train_part(options.model.resolve(), folder))
        if options.only:
            parts = [part for part in parts if part.name in options.only]
        report = Report(options.report)
        command = shlex.join(["python", "-m", "tools.gpu_check", *arguments])
        report.write(f"# GPU check\n\n{datetime.now():%d %B %Y, %H:%M}. `{command}`\n")
        report.write("\n".join(machine()))
        # A CPU is slower and may be busy.
        patience = 1 if torch.cuda.is_available() else 10
        outcomes = run_all(parts, report, options.minutes, patience)
        report.write("\n".join(summary(outcomes)))
    return int(any(outcome.status not in ("ok", "skipped") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
