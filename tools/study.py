"""Runs the laptop study: nine methods train the same tiny base models over
several seeds, with settings chosen on validation problems.

    bash train.sh laptop-study             runs all stages
    python -m tools.study tune main        runs some stages
    python -m tools.study --jobs 1 main    does one run at a time

By default, the study does as many runs at a time as there are cores. If it
is started again, it does only the missing ones. A run is `simko.py train`
with the laptop recipe's flags and the run's own flags. When a run ends, each
of its evaluations becomes a row of docs/laptop/STAGE.jsonl, and its training
curve a row of docs/laptop/curves.jsonl. Seed s selects base model s, the
problems made with it, and the seed for sampling. The stages are:

tune      tries settings. Stage main chooses, for each method, the settings and
          the step with the highest mean of pass@K on seed 0's validation problems
main      writes docs/laptop/chosen.json, and evaluates the chosen settings
          on test problems of seeds 0 to 4; also evaluates GRPO and SimKO
          at T = 0.6 and at the laptop recipe's learning rate
wordy     trains GRPO and SimKO on responses in which few tokens are decisions
short     trains both on the usual responses, SimKO with the paper's settings
repeat    checks with five new seeds whether the paper's settings raise pass@256
          on wordy responses, as the three seeds of stage wordy suggest
ablation  changes one setting of SimKO at a time at the recipe's learning rate

docs/results.md describes each stage.
"""
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial

import pandas as pd

from runtime.common import fail, flag
from runtime.data import read_jsonl
from runtime.run_folder import by_step
from tools import ROOT, command_line, in_parallel

RUNS, RESULTS = ROOT / "runs" / "study", ROOT / "docs" / "laptop"
NAMES = {
    "base": "base", "grpo": "GRPO", "simko": "SimKO", "psr": "PSR", "nsr": "NSR",
    "w-reinforce": "W-Reinforce", "forking": "forking tokens", "entropy-adv": "Entropy-Adv",
    "kl-cov": "KL-Cov", "pass-at-k": "pass@k training"}
SIMKO = {"alpha": 0.05, "lambda_top1": 1.5, "q": 0.5}
PAPER = {"alpha": 0.01, "lambda_top1": 1.1, "q": 0.8}
STEPS, ABLATION_STEPS = 500, 200
# Both use the laptop recipe's learning rate.
SHARED = {"grpo": {"learning_rate": 4e-4}, "simko": {**SIMKO, "learning_rate": 4e-4}}
SWEEPS = {"alpha": (0.0, 0.01, 0.02, 0.1, 0.2), "lambda_top1": (1.0, 1.1, 2.0),
          "K": (1, 2, 5), "q": (0.0, 0.2, 0.5, 0.8)}


def at_rates(*rates, **settings):
    return [{**settings, "learning_rate": rate} for rate in rates]


# GRPO and SimKO try nine settings each. The other methods use the settings
# of their papers and try two learning rates.
GRID = {
    "grpo": at_rates(1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
    + at_rates(2e-4, 4e-4, epsilon_high=0.28),
    "simko": at_rates(1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, **SIMKO)
    + at_rates(1e-4, **SIMKO | {"alpha": 0.1})
    + at_rates(1e-4, **SIMKO | {"lambda_top1": 1.1})
    + at_rates(1e-4, **SIMKO | {"q": 0.2}),
    **{method: at_rates(1e-4, 2e-4) for method in NAMES if method not in ("base", *SHARED)}}


# ---------------------------------------------------------------- results
def read(name, folder=RESULTS):
    """Reads FOLDER/NAME.jsonl into a DataFrame, which is empty if the file
    does not exist. Columns whose names are ints, K, hold pass@K in %."""
    path, rows = folder / f"{name}.jsonl", []
    for where, row in read_jsonl(path) if path.exists() else ():
        try:
            rates = {int(k): 100 * share for k, share in row.pop("pass", {}).items()}
            rows.append({name: row[name] for name in ("run", "method", "seed")} | row | rates)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            fail(f"{where} was written by another version ({error!r}): remove this line "
                 "and run python -m tools.study")
    columns = "stage", "run", "method", "seed", "step", "steps"
    found = pd.DataFrame(rows or None, columns=None if rows else columns)
    # A study that was stopped while it wrote a run's rows writes them once more.
    keys = [name for name in ("stage", "run", "seed", "set", "step") if name in found]
    return found.drop_duplicates(keys, keep="last", ignore_index=True)


def ks_of(rows):
    """Returns the names of the columns that hold pass@K."""
    return [name for name in rows if isinstance(name, int)]


def pass_rates(rows, run, step):
    """Returns pass@K in % of a run at a step, (seeds, K)."""
    rows = rows[(rows.run == run) & (rows.step == step)].set_index("seed")
    return rows[ks_of(rows)]


def describe(settings):
    """Returns "alpha=0.05 learning_rate=0.0004 ..."."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in sorted(settings.items()))


def run_name(method, settings):
    return f"{method} {describe(settings)}"


def comparisons(folder):
    """Returns the runs to compare, as two dicts {method: (run, step)}: all
    methods with the chosen settings, and GRPO and SimKO at one learning rate."""
    try:
        chosen = json.loads((folder / "chosen.json").read_text())
    except (OSError, ValueError) as error:
        fail(f"{folder / 'chosen.json'} cannot be read ({error}): create it with "
             "python -m tools.study tune main")
    return ({method: (run_name(method, own), step) for method, (own, step) in chosen.items()},
            {method: (run_name(method, own), STEPS) for method, own in SHARED.items()})


def choose(rows):
    """Returns {method: (settings, steps)}, from the row of each method with the
    highest mean of pass@K over K. rows: the rows of stage tune."""
    rows = rows[rows.step > 0]
    scores = rows[ks_of(rows)].mean(axis=1)
    best = rows.loc[scores.groupby(rows.method, sort=False).idxmax()]
    return {row.method: (row.settings, int(row.step)) for row in best.itertuples()}


# ----------------------------------------------------------------- stages
@dataclass
class Job:
    """A run and its evaluations: every `eval_steps` steps, on the set `problems`,
    with n samples for each problem."""
    method: str
    settings: dict
    seed: int
    steps: int
    eval_steps: int
    problems: str = "test"
    n: int = 256
    wordy: bool = False
    cool: int = 0  # the step of an evaluation at T = 0.6, or 0 for none

    def __post_init__(self):
        self.run = run_name(self.method, self.settings)
        self.data = RUNS / f"{'wordy' if self.wordy else 'data'}_{self.seed}"


def tune():
    return [Job(method, settings, 0, STEPS, 100, "valid", 64)
            for method, grid in GRID.items() for settings in grid]


def main_stage():
    rows = read("tune")
    if {job.run for job in tune()} - {*rows.run}:
        fail("main needs the results of all runs of tune: run python -m tools.study tune main")
    chosen = choose(rows)
    (RESULTS / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n")
    pair, others = [], []
    for seed in range(5):
        for method, (settings, steps) in chosen.items():
            if method in SHARED:
                pair.append(Job(method, settings, seed, STEPS, 50, cool=steps))
                if settings != SHARED[method]:
                    pair.append(Job(method, SHARED[method], seed, STEPS, 50))
            else:
                others.append(Job(method, settings, seed, steps, 50))
    return pair + others


def wordy():
    variants = ("grpo", {}), ("simko", PAPER), ("simko", SIMKO | {"q": 0.8}), ("simko", SIMKO)
    return [Job(method, {**settings, "learning_rate": rate}, seed, 300, 300, wordy=True)
            for rate, seed in ((1e-4, 0), (1e-4, 1), (1e-4, 2), (4e-4, 0))
            for method, settings in variants]


def short():
    return [Job(method, {**settings, "learning_rate": 1e-4}, seed, 300, 300)
            for seed in range(3) for method, settings in (("grpo", {}), ("simko", PAPER))]


def repeat():
    return [Job(method, {**settings, "learning_rate": 1e-4}, seed, 300, 50, wordy=True)
            for seed in range(3, 8) for method, settings in (("grpo", {}), ("simko", PAPER))]


def ablation():
    changes = [{name: value} for name in ("alpha", "lambda_top1", "K") for value in SWEEPS[name]]
    changes += [{"q": q, "tau_scope": scope} for q in SWEEPS["q"] for scope in ("response", "batch")
                if (q, scope) != (SIMKO["q"], "response")]
    return [Job("simko", SHARED["simko"] | change, seed, ABLATION_STEPS, STEPS)
            for seed in range(3) for change in [*changes, PAPER]]


STAGES = {
    "tune": tune, "main": main_stage, "wordy": wordy, "short": short, "repeat": repeat,
    "ablation": ablation}


# ------------------------------------------------------------------- runs
def laptop_recipe():
    """Returns the laptop recipe's flags, as train.sh lists them for a method
    without flags of its own."""
    words = ["bash", ROOT / "train.sh", "--list", "laptop", "psr"]
    return subprocess.check_output(words, text=True).split()


def simko(command, job, folder, log, **flags):
    """Runs simko.py with the laptop recipe's flags, the job's and `flags`.
    Ends the program if `folder` has no evaluation afterwards."""
    recipe = laptop_recipe()
    flags |= {"seed": job.seed, "rollout": "hf", "eval_n": job.n,
              "eval_data": job.data / f"{job.problems}.jsonl"}
    if command == "eval":
        known = "task", "prompt-template", "max-prompt-length", "eval-top-p", "eval-max-tokens"
        places = [recipe.index(f"--{name}") for name in known]
        recipe = [word for place in places for word in recipe[place:place + 2]]
    if job.wordy:  # the longest demonstration has 33 tokens
        flags["eval_max_tokens"] = 34
        if command == "train":
            flags["max_completion_length"] = 34
    words = [sys.executable, ROOT / "simko.py", command, *recipe]
    for name, value in flags.items():
        words += [flag(name), str(value)]
    with log.open("a") as file:
        # The rows in docs/laptop were computed on CPUs, in float32.
        one_core = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(words, stdout=file, stderr=file, check=False,
                              env={**os.environ, **one_core})
    # A run that was asked to stop exits with 0, too.
    if done.returncode or not (folder / "eval.json").exists():
        fail(f"a run failed or was stopped: see {log}")


def make_base(job):
    """Makes a job's base model and problems."""
    words = [sys.executable, "-m", "tools.laptop", job.data, "--seed", str(job.seed)]
    subprocess.run(words + ["--wordy"] * job.wordy, cwd=ROOT, check=True)


def evaluations(folder, **about):
    """Returns a row for each set of an evaluation."""
    names = "set", "n", "temperature", "pass"
    report = json.loads((folder / "eval.json").read_text())
    return [{**about, **{name: entry[name] for name in names},
             "correct": list(entry["correct"].values())} for entry in report["sets"].values()]


def run(stage, job, lock):
    """Does a run and its evaluations, writes their rows, and returns its name."""
    about = {"run": job.run, "method": job.method, "settings": job.settings, "seed": job.seed}
    name = f"{stage} {job.run} seed={job.seed}".replace(" ", "_")
    folder, log, found = RUNS / name, RUNS / f"{name}.log", {}

    def train(steps):
        simko("train", job, folder / f"eval_{steps:06d}", log, method=job.method, steps=steps,
              output_dir=folder, model=job.data / "base", train_data=job.data / "train.jsonl",
              eval_steps=job.eval_steps, **job.settings)

    if job.cool:
        cool = folder / "cool"
        if not (cool / "eval.json").exists():
            train(job.cool)
        found["cool"] = []
        models = (0, job.data / "base", folder / "cool_0"), (job.cool, folder / "hf", cool)
        for step, model, to in models:
            if not (to / "eval.json").exists():
                simko("eval", job, to, log, model=model, output_dir=to, eval_temperature=0.6)
            found["cool"] += evaluations(to, **about, step=step)
    train(job.steps)
    found[stage] = []
    for step, path in by_step(folder, "eval").items():
        found[stage] += evaluations(path, **about, step=step)
    # The curve is written last, because its row marks the run as done.
    found["curves"] = [{"stage": stage, **about, **curve(folder)}]
    with lock:
        for name, rows in found.items():
            with (RESULTS / f"{name}.jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    shutil.rmtree(folder / "checkpoints")
    return folder.name


def curve(folder):
    """Returns a run's training curve, as means over 25 steps each."""
    log = pd.DataFrame(row for _, row in read_jsonl(folder / "metrics.jsonl"))
    log = log.replace({None: math.nan}).infer_objects()  # null stands for nan
    names = [name for name in log
             if name.startswith("Lambda") or name in ("reward", "entropy", "gate_share")]
    parts = log.groupby(log.index // 25)
    return {"steps": parts.step.last().tolist(), **parts[names].mean().to_dict("list")}


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "stages", nargs="*", choices=[[], *STAGES], metavar="STAGE",
        help=f"any of {', '.join(STAGES)} (default: all)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(),
        help="runs at a time (default: one per core)")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    RESULTS.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    for stage in options.stages or STAGES:
        jobs, curves = STAGES[stage](), read("curves")
        curves = curves[curves.stage == stage]
        done = {(row.run, row.seed, row.steps[-1]) for row in curves.itertuples()}
        jobs = [job for job in jobs if (job.run, job.seed, job.steps) not in done]
        print(f"{stage}: {len(done)} runs are done, {len(jobs)} are left", flush=True)
        for _ in in_parallel(make_base, {job.data: job for job in jobs}.values(), options.jobs):
            pass
        train_one = partial(run, stage, lock=lock)
        for name in in_parallel(train_one, jobs, options.jobs):
            print(f"{stage}: {name}", flush=True)


if __name__ == "__main__":
    main()
