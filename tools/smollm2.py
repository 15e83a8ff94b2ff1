"""Trains one real language model with GRPO and SimKO, to see whether it shows
what the paper says about Lambda, entropy, candidates and pass@K.

    python -m tools.smollm2 cpu MODEL DIR     hours of two cores
    python -m tools.smollm2 card MODEL DIR    nine minutes of one 80 GB GPU
    python -m tools.smollm2 table docs/smollm2/cpu.jsonl

MODEL is a Hugging Face folder: SmolLM2-135M-Instruct for docs/smollm2.md,
which explains the comparison. Both studies, cpu and card, fine-tune MODEL on
Countdown in plain words (tools/countdown.py). The result is called the start.
From it they train each arm (a method with its settings), on the same problems
in the same order. Each run is a process of its own, `simko.py train`, and
adds a row to the file --rows when it ends. A study that is started again with
the same DIR does only what is missing.

card stops by itself after nine minutes. A run whose evaluation is not
complete by then has a row without pass@K, and the same command completes it.
card needs PyTorch 2.11 and transformers 5.17 or later and the other packages
of pyproject.toml, but no network and no vLLM. To the machine with the GPU,
copy this repository and MODEL, or the GGUF file of 98 MB from which
docs/smollm2.md makes MODEL: `split -b 50M` cuts the file in two, and `cat`
joins the parts.

If as much time is left as the runs took, card also trains the arm simko-0.05,
which has a larger alpha. Otherwise, `--arms simko-0.05` adds this arm later.
`--first-seed 3` adds three seeds, at the learning rate of the rows that exist.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from runtime.common import fail, flag, write_whole
from runtime.data import read_jsonl
from runtime.hf_engine import HFEngine
from runtime.log import Progress
from runtime.seeding import seed_everything
from simko import pass_at_k
from tools import ROOT, allow_head, command_line, countdown, in_parallel, laptop, results
from tools.seeds import difference

ARMS = {  # settings of simko.py
    "grpo": {"method": "grpo"},
    "simko": {"method": "simko"},  # simko.py's defaults are the paper's
    "simko-0.05": {"method": "simko", "alpha": 0.05},
}
K, Q, G = 3, 0.8, 8
LONGEST = 56  # tokens of a response
MARGIN = 40  # seconds at the end that are reserved for the probe and the rows
# simko.py with another batch size of transformers' generate.
PROGRAM = (
    "import simko; from runtime import faults; from runtime.hf_engine import HFEngine; "
    "HFEngine.batch_size = {rows}; faults.run(simko.main)")


@dataclass
class Plan:
    """The sizes of a study."""
    demonstrations: int
    solving: float          # share of the demonstrations that reach the target
    batch: int              # of demonstrations
    arms: tuple             # those of ARMS to train
    if_time: tuple          # those to train afterwards, if there is time
    steps: int
    save_steps: int         # a checkpoint takes 1.6 GB
    prompts: int            # per step, in four updates as in the paper
    seeds: int
    jobs: int               # runs at a time
    generate_rows: int      # responses that generate makes at a time
    contexts: int           # responses that the probe reads
    valid: int              # held-out problems to choose the learning rate on
    test: int               # other held-out problems
    eval_n: int             # samples per problem for pass@K
    eval_arms: bool         # whether all runs get pass@K, or only the start
    learning_rates: tuple   # if there are several, GRPO's pass@1 decides
    tune_steps: int         # steps of the runs that decide
    minutes: tuple          # limits: fine-tuning, choosing the rate, everything


PLANS = {
    "cpu": Plan(
        demonstrations=4000, solving=0.25, batch=16, arms=tuple(ARMS), if_time=(),
        steps=15, save_steps=5, prompts=8, seeds=5, jobs=2, generate_rows=256,
        contexts=64, valid=0, test=64, eval_n=64, eval_arms=False,
        learning_rates=(3e-5,), tune_steps=0, minutes=(600, 600, 6000)),
    "card": Plan(
        demonstrations=4000, solving=0.25, batch=32,
        arms=("grpo", "simko"), if_time=("simko-0.05",),
        steps=60, save_steps=60, prompts=48, seeds=3, jobs=7,
        generate_rows=1024,  # with fewer, so small a model would leave the card idle
        contexts=256, valid=100, test=400, eval_n=256, eval_arms=True,
        learning_rates=(1e-5, 2e-5, 4e-5), tune_steps=20, minutes=(1.5, 2, 9)),
}


# ------------------------------------------------------------------ start
def make_start(plan, model, folder, device):
    """Writes folder/start and the problems beside it, unless they exist. The
    demonstrations contain no problem of valid or test."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = "demonstrations", "solving", "batch", "valid", "test"
    sizes = {name: getattr(plan, name) for name in names}
    made = folder / "start.json"
    if made.exists():
        if json.loads(made.read_text()) != sizes:
            fail(f"{folder} belongs to a study with other sizes, see {made}: name another DIR")
        return
    rng, legal = random.Random(0), laptop.all_chains()
    sets = {"valid": plan.valid, "test": plan.test}
    problems, held_out = countdown.held_out_rows(rng, legal, sets)
    shown = [countdown.demonstration(rng, legal, plan.solving, held_out)
             for _ in range(plan.demonstrations)]
    problems["train"] = countdown.train_rows(rng, legal, 4000, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in problems.items():
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    limit = time.monotonic() + 60 * plan.minutes[0]

    def report(step, loss):
        print(f"fine-tuning: step {step + 1}, loss {loss:.3f}", flush=True)
        if time.monotonic() > limit:
            fail(f"fine-tuning takes longer than {plan.minutes[0]} minutes: use a faster machine")

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = countdown.CHAT
    policy = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager").to(device)
    countdown.fine_tune(
        policy, tokenizer, shown, plan.batch, 2e-4, report)
    policy.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    write_whole(made, json.dumps(sizes) + "\n")  # last, to mark the start as complete


def probe_contexts(plan, folder, device):
    """Returns what the probe reads, the same for all runs: two responses of the
    start to each of the first problems of test, as Samples."""
    from transformers import AutoTokenizer

    start = folder / "start"
    tokenizer = AutoTokenizer.from_pretrained(start)
    problems = [row["problem"] for _, row in read_jsonl(folder / "test.jsonl")]
    prompts = [np.array(countdown.encode(tokenizer, problem, "")[0])
               for problem in problems[:plan.contexts // 2]]
    engine = HFEngine(SimpleNamespace(model=start), [tokenizer.eos_token_id], device,
                      torch.float32, "auto", LONGEST)
    seed_everything(0)
    return engine.generate(prompts, 2, temperature=1.0, top_p=1.0, max_tokens=LONGEST,
                           progress=Progress(shown=False), logprobs=False)


# ------------------------------------------------------------------- runs
@dataclass
class Run:
    """A run of simko.py, or an evaluation of the start if it has no steps."""
    arm: str
    seed: int
    steps: int
    learning_rate: float
    problems: str  # the set that it is evaluated on (valid or test), or ""
    n: int = 0

    def words(self, plan, folder, out):
        """Returns the arguments of simko.py."""
        flags = {
            "task": "countdown", "prompt_template": "chat", "rollout": "hf", "dtype": "bfloat16",
            "max_prompt_length": 64, "seed": self.seed, "output_dir": out,
            "model": folder / "start"}
        if self.problems:
            flags |= {
                "eval_data": folder / f"{self.problems}.jsonl", "eval_n": self.n,
                "eval_temperature": 1.0, "eval_top_p": 1.0, "eval_max_tokens": LONGEST}
        if self.steps:
            flags |= ARMS[self.arm] | {
                "train_data": folder / "train.jsonl", "steps": self.steps,
                "batch_size": plan.prompts, "mini_batch_size": plan.prompts // 4,
                "num_generations": G, "max_completion_length": LONGEST,
                "save_steps": plan.save_steps, "micro_batch_tokens": 4096,
                "learning_rate": self.learning_rate}
        words = ["train", "--no-gradient-checkpointing"] if self.steps else ["eval"]
        for name, value in flags.items():
            words += [flag(name), str(value)]
        return words


def stop(process):
    """Ends a run. What it has written stays usable, so it can resume later."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()  # it was busy with many samples
        process.wait()


class Study:
    """Does runs side by side, as processes. `end` is the time.monotonic() at
    which the last of them is stopped."""

    def __init__(self, plan, folder, rows, device, end):
        self.plan, self.folder, self.rows = plan, folder, rows
        self.device, self.end = device, end
        self.lock = threading.Lock()
        self.contexts = probe_contexts(plan, folder, device)
        _, entropy = self.statistics(folder / "start")
        self.gate = countdown.gate_of(entropy, self.contexts, Q)

    def statistics(self, model):
        return countdown.statistics(model, self.contexts, K, self.device)

    def probe(self, model):
        return countdown.summary(*self.statistics(model), self.gate, G)

    def out(self, run):
        return self.folder / "runs" / f"{run.arm}-{run.seed}-{run.learning_rate:g}"

    def execute(self, run, deadline):
        """Runs simko.py until it ends, or stops it at the deadline."""
        out = self.out(run)
        out.parent.mkdir(parents=True, exist_ok=True)
        program = PROGRAM.format(rows=self.plan.generate_rows)
        words = [sys.executable, "-c", program, *run.words(self.plan, self.folder, out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        log_file = out.with_name(f"{out.name}.log")
        with log_file.open("a") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
            failed = False
            try:
                failed = process.wait(max(0, deadline - time.monotonic())) != 0
            except subprocess.TimeoutExpired:
                stop(process)
        if failed:
            fail(f"a run failed, see {log_file}")

    def correct(self, run):
        """Returns {problem: number of correct responses} of the problems whose
        evaluation is complete."""
        out = self.out(run)
        if run.steps:
            out /= f"eval_{run.steps:06d}"
        path, verdicts = out / f"{run.problems}.jsonl", defaultdict(list)
        if run.problems and path.exists():
            for _, row in read_jsonl(path):
                if "correct" in row:  # the first line holds the settings
                    verdicts[row["id"]].append(row["correct"])
        return {name: sum(found) for name, found in verdicts.items() if len(found) == run.n}

    def finish(self, run):
        """Executes a run, and writes its row if its training is complete."""
        self.execute(run, self.end)
        out, model, rewards = self.out(run), self.folder / "start", []
        if run.steps:
            model = out / "hf"
            if not model.exists():
                print(f"{out.name}: no row, because the time was up", flush=True)
                return
            rewards = [row["reward"] for _, row in read_jsonl(out / "metrics.jsonl")]
        correct = self.correct(run)
        complete = not run.problems or len(correct) == self.plan.test
        with self.lock:
            row = {
                "arm": run.arm, "seed": run.seed, "steps": run.steps,
                "learning_rate": run.learning_rate, "rewards": rewards,
                "probe": self.probe(model), "n": run.n,
                "correct": correct if complete else {}}
            with self.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if run.steps and complete:
            shutil.rmtree(out / "checkpoints")
        print(f"{out.name}: {'done' if complete else 'its evaluation is not complete'}", flush=True)

    def all(self, task, runs):
        """Calls task with every run, plan.jobs of them at a time."""
        for _ in in_parallel(task, runs, self.plan.jobs):
            pass

    def choose_rate(self):
        """Returns the learning rate with GRPO's highest pass@1 on valid."""
        rates = self.plan.learning_rates
        if len(rates) == 1:
            return rates[0]
        runs = [Run("grpo", 1000, self.plan.tune_steps, rate, "valid", 16) for rate in rates]
        limit = min(self.end, time.monotonic() + 60 * self.plan.minutes[1])
        self.all(partial(self.execute, deadline=limit), runs)
        correct = {run.learning_rate: self.correct(run) for run in runs}
        common = set.intersection(*map(set, correct.values()))
        if not common:
            fail("the runs that choose the learning rate did not finish in time: "
                 "set it with --learning-rate")
        scores = {rate: sum(found[name] for name in common) for rate, found in correct.items()}
        print(f"correct on {len(common)} problems of valid, by learning rate:", scores, flush=True)
        return max(scores, key=scores.get)


def study(plan, model, folder, rows, first_seed, learning_rate):
    """Fine-tunes, chooses the learning rate, and does the runs that the file
    `rows` lacks."""
    end = time.monotonic() + 60 * plan.minutes[2] - MARGIN
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    rows.parent.mkdir(parents=True, exist_ok=True)
    before = [row for _, row in read_jsonl(rows)] if rows.exists() else []
    evaluated = {"start", *ARMS} if plan.eval_arms else {"start"}
    done = {(row["arm"], row["seed"]) for row in before
            if row["correct"] or row["arm"] not in evaluated}
    rates = {row["learning_rate"] for row in before if row["steps"]}
    rate = learning_rate or min(rates, default=None)
    if rates - {rate}:
        fail(f"{rows} has runs at the learning rates {sorted(rates)}, and this study would train "
             f"at {rate:g}: name another file with --rows")

    def missing(arms):
        seeds = range(first_seed, first_seed + plan.seeds)
        return [(arm, seed) for seed in seeds for arm in arms if (arm, seed) not in done]

    wanted = missing(plan.arms)
    is_started = ("start", first_seed) in done
    if not wanted and is_started:
        print(f"{rows} has all runs of this study. To repeat it, name another file with --rows")
        return
    make_start(plan, model, folder, device)
    runner = Study(plan, folder, rows, device, end)
    rate = rate or runner.choose_rate()
    tested = "test" if plan.eval_arms else ""

    def runs(pairs):
        return [Run(arm, seed, plan.steps, rate, tested, plan.eval_n) for arm, seed in pairs]

    # A start that was made on another day may differ in its last bits.
    start = [] if is_started else [Run("start", first_seed, 0, 0.0, "test", plan.eval_n)]
    begun = time.monotonic()
    runner.all(runner.finish, runs(wanted) + start)
    took = time.monotonic() - begun
    if wanted and time.monotonic() + took < end:
        runner.all(runner.finish, runs(missing(plan.if_time)))


# ------------------------------------------------------------------ table
def values(rows):
    """Returns a DataFrame with a row for each (arm, seed): what the probe found,
    and pass@K in % on the problems that all evaluated runs have."""
    try:
        rows = {(row["arm"], row["seed"]): row for row in rows}.values()  # the last of each
    except (KeyError, TypeError):
        fail("these are not rows of tools.smollm2: name a file that its command cpu or card wrote")
    evaluated = [row["correct"] for row in rows if row["correct"]]
    common = sorted(set.intersection(*map(set, evaluated))) if evaluated else []
    found = {}
    for row in rows:
        means = found[row["arm"], row["seed"]] = dict(row["probe"])
        if row["correct"] and common:
            c = torch.tensor([row["correct"][name] for name in common])
            for k in results.KS:
                if k <= row["n"]:
                    means[f"pass@{k}"] = 100 * pass_at_k(row["n"], c, k).mean().item()
    return pd.DataFrame.from_dict(found, orient="index")


def gap_above_line(start, grpo, ours):
    """Returns how far pass@256 of `ours` is above the straight line from the
    start to GRPO's end, at pass@1 of `ours`. GRPO's own path may bend above
    this line. Then GRPO, stopped earlier, would have such a gap too. start,
    grpo, ours: Series, or DataFrames with a row for each seed."""
    slope = (grpo["pass@256"] - start["pass@256"]) / (grpo["pass@1"] - start["pass@1"])
    expected = start["pass@256"] + slope * (ours["pass@1"] - start["pass@1"])
    return ours["pass@256"] - expected


def differences(ours, theirs):
    """Returns the text of `seeds.difference` for each column, over the seeds that
    both have."""
    cells = []
    for name in ours:
        gaps = (ours[name] - theirs[name]).dropna()
        cells.append(difference(gaps, digits=3) if len(gaps) else "")
    return cells


def show(rows):
    """Prints the means over seeds, and paired differences with Student's
    95 % interval."""
    found = values(rows)
    if "grpo" not in found.index:
        fail("the rows have no run of grpo to compare the others with: do its runs first")
    grpo, start = found.loc["grpo"], None
    arms = [arm for arm in ("start", *ARMS) if arm in found.index]
    head, columns = ["outcome", *arms], [found.columns]
    for arm in arms:
        means = found.loc[arm].mean()
        columns.append(["" if pd.isna(mean) else f"{mean:.3f}" for mean in means])
    if "start" in arms:
        # Each seed is compared with the start of its day.
        start = found.loc["start"].sort_index().reindex(grpo.index, method="ffill")
        head.append("grpo - start")
        columns.append(differences(grpo, start))
    others = [arm for arm in arms if arm not in ("start", "grpo")]
    for arm in others:
        head.append(f"{arm} - grpo")
        columns.append(differences(found.loc[arm], grpo))
    results.table("Means, and paired differences", head, list(zip(*columns)))
    if start is not None and "pass@256" in found:
        for arm in others:
            gap = gap_above_line(start, grpo, found.loc[arm]).dropna()
            if len(gap):
                print(f"\n{arm}: pass@256 above the straight line from the start to GRPO's end, "
                      f"which is not GRPO's path: {difference(gap)}")


def main():
    parser = command_line(__file__, __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, plan in PLANS.items():
        command = commands.add_parser(name)
        command.add_argument("model", metavar="MODEL", type=Path, help="Hugging Face folder")
        command.add_argument("dir", metavar="DIR", type=Path, help="folder to work in")
        rows = ROOT / "docs" / "smollm2" / f"{name}.jsonl"
        command.add_argument("--rows", type=Path, default=rows, help="file to add rows to")
        command.add_argument("--first-seed", type=int, default=0, help="the lowest seed")
        command.add_argument("--learning-rate", type=float,
                             help="use this one instead of the plan's")
        command.add_argument("--arms", nargs="+", choices=ARMS,
                             help="train these instead of the plan's")
    command = commands.add_parser("table")
    command.add_argument("rows", metavar="ROWS", type=Path)
    args = parser.parse_args()
    if args.command == "table":
        show([row for _, row in read_jsonl(args.rows)])
        return
    rate = args.learning_rate
    if args.first_seed < 0 or (rate is not None and rate <= 0):
        parser.error("--first-seed must be at least 0 and --learning-rate above 0")
    if not (args.model / "config.json").is_file():
        parser.error(f"{args.model} has no config.json: MODEL is a folder in Hugging Face's format")
    plan = PLANS[args.command]
    if args.arms:
        plan = replace(plan, arms=args.arms, if_time=())
    study(plan, args.model, args.dir, args.rows, args.first_seed, rate)


if __name__ == "__main__":
    if sys.argv[1:2] == ["table"]:
        allow_head()
    main()
