"""The laptop study: nine methods from the same tiny base models, over seeds, settings chosen on validation problems.

    bash train.sh laptop-study                all of it; stopped and started again, it goes on
    python tools/study.py tune main           these stages: tune, main, wordy, short, ablation
    python tools/study.py --jobs 1 main       one run at a time; by default one a core

Each run is `simko.py train` with the laptop recipe's flags and the run's own. What its evaluations found goes to
docs/laptop/STAGE.jsonl as soon as it ends, a row an evaluation, and its training curve to docs/laptop/curves.jsonl; a
run that is there is not run again. Seed s means base model s, its problems, and sampling from s.

tune       the validation problems of seed 0. A method gets the settings and the number of steps with the highest pass@K
           averaged over K = 1, 2, 4, ..., 64: docs/laptop/chosen.json. The test problems play no part.
main       the chosen settings on the test problems of seeds 0 to 4, n = 256, every 50 steps up to the chosen one; GRPO
           and SimKO to the end, at the chosen step at T = 0.6 too; and both at one learning rate, the recipe's
wordy      longer responses in which fewer tokens are decisions (tools/laptop.py --wordy): GRPO, SimKO with the paper's
           settings and with the laptop's, seeds 0 to 2; on seed 0 at the recipe's learning rate too
short      GRPO and SimKO with the paper's settings as in `wordy`, on the usual responses
ablation   SimKO's settings one at a time at the recipe's learning rate, 200 steps, seeds 0 to 2
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "study", ROOT / "docs" / "laptop"
NAMES = {"base": "base", "grpo": "GRPO", "simko": "SimKO", "psr": "PSR", "nsr": "NSR", "w-reinforce": "W-Reinforce",
         "forking": "forking tokens", "entropy-adv": "Entropy-Adv", "kl-cov": "KL-Cov", "pass-at-k": "pass@k training"}
SIMKO, PAPER = {"alpha": 0.05, "lam": 1.5, "q": 0.5}, {"alpha": 0.01, "lam": 1.1, "q": 0.8}
# GRPO and SimKO get nine settings each, the others their authors' at two learning rates.
GRID = {
    "grpo": [{"lr": lr} for lr in (1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4)] + [
        {"lr": lr, "clip_high": 0.28} for lr in (2e-4, 4e-4)],
    "simko": [{**SIMKO, "lr": lr} for lr in (1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)] + [
        {**SIMKO, "lr": 1e-4, **change} for change in ({"alpha": 0.1}, {"lam": 1.1}, {"q": 0.2})],
    **{method: [{"lr": lr} for lr in (1e-4, 2e-4)]
       for method in ("psr", "nsr", "w-reinforce", "forking", "entropy-adv", "kl-cov", "pass-at-k")},
}
STEPS, ABLATION_STEPS = 500, 200
SHARED = {"grpo": {"lr": 4e-4}, "simko": {**SIMKO, "lr": 4e-4}}  # the laptop recipe's learning rate for both


def rows(name, folder=RESULTS):
    """The rows of docs/laptop/NAME.jsonl; none if there is no such file."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def describe(settings):
    """["alpha=0.05", "lr=0.0004", ...]"""
    return [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in sorted(settings.items())]


def job(method, settings, seed, wordy=False, **extra):
    """A run: its name, its flags, what its rows say of it."""
    return {"run": " ".join([method, *describe(settings)]), "method": method, "settings": settings, "seed": seed,
            "data": RUNS / f"{'wordy' if wordy else 'data'}_{seed}", **extra}


def tune():
    flags = {"eval_every": 100, "eval_n": 64, "set": "valid", "steps": STEPS}
    return [job(method, settings, 0, **flags) for method, grid in GRID.items() for settings in grid]


def choose():
    """{method: (settings, steps)} with the highest mean over K of pass@K."""
    best = {}
    for row in rows("tune"):
        score = sum(row["pass"].values()) / len(row["pass"])
        if row["step"] and score > best.get(row["method"], (-1,))[0]:
            best[row["method"]] = score, row["settings"], row["step"]
    return {method: (settings, steps) for method, (_, settings, steps) in best.items()}


def main_stage():
    if {work["run"] for work in tune()} - {row["run"] for row in rows("tune")}:
        sys.exit("tools/study.py: error: main needs the settings that tune finds: python tools/study.py tune main")
    chosen = choose()
    (RESULTS / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n")
    test, often = {"set": "test", "eval_n": 256}, {"eval_every": 50, "steps": STEPS}
    jobs = []
    for seed in range(5):
        for method, (settings, steps) in chosen.items():
            along = {**often, "cool": steps} if method in SHARED else {**often, "steps": steps}
            jobs.append(job(method, settings, seed, **test, **along))
        jobs += [job(method, settings, seed, **test, **often) for method, settings in SHARED.items()]
    return sorted(jobs, key=lambda work: work["method"] not in SHARED)  # GRPO and SimKO first


def wordy():
    variants = [("grpo", {}), ("simko", PAPER), ("simko", {**SIMKO, "q": 0.8}), ("simko", SIMKO)]
    return [job(method, {**settings, "lr": lr}, seed, wordy=True, set="test", eval_n=256, steps=300, eval_every=300)
            for lr, seed in ((1e-4, 0), (1e-4, 1), (1e-4, 2), (4e-4, 0)) for method, settings in variants]


def short():
    return [job(method, {**settings, "lr": 1e-4}, seed, set="test", eval_n=256, steps=300, eval_every=300)
            for seed in range(3) for method, settings in (("grpo", {}), ("simko", PAPER))]


def ablation():
    changes = [{name: value} for name, values in (("alpha", (0.0, 0.01, 0.02, 0.1, 0.2)), ("lam", (1.0, 1.1, 2.0)),
                                                  ("K", (1, 2, 5))) for value in values]
    changes += [{"q": q, "tau_scope": scope} for q in (0.0, 0.2, 0.5, 0.8) for scope in ("response", "batch")
                if (q, scope) != (SIMKO["q"], "response")]
    changes += [PAPER]
    return [job("simko", {**SHARED["simko"], **change}, seed, set="test", eval_n=256, steps=ABLATION_STEPS,
                eval_every=STEPS) for seed in range(3) for change in changes]


STAGES = {"tune": tune, "main": main_stage, "wordy": wordy, "short": short, "ablation": ablation}


def curve(folder, width=25):
    """Means of the log's rows over `width` steps each."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [name for name in log[0] if name.startswith("Lambda") or name in ("reward", "entropy", "gate_share")]
    return {"steps": [log[min(i + width, len(log)) - 1]["step"] for i in range(0, len(log), width)],
            **{name: [sum(row[name] for row in log[i:i + width]) / len(log[i:i + width])
                      for i in range(0, len(log), width)] for name in names}}


def simko(command, log, data, evaluation, **own):
    """simko.py COMMAND with the laptop recipe's flags and then one's own; what it says goes to the file `log`. Without
    eval.json in the folder `evaluation` it has not come to its end: a run that is asked to stop exits with 0."""
    # psr: a method for which the laptop recipe has no flags of its own
    flags = subprocess.check_output(["bash", "train.sh", "--list", "laptop", "psr"], cwd=ROOT, text=True).split()
    own = [part for name, value in own.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    limits = {"train": ("--max-response-tokens", "--eval-max-tokens"), "eval": ("--eval-max-tokens",)}[command]
    if command == "eval":
        known = ("--task", "--prompt-template", "--max-prompt-tokens", "--eval-top-p", *limits)
        flags = [part for name in known for part in (name, flags[flags.index(name) + 1])]
    if data.name.startswith("wordy"):
        own += [part for name in limits for part in (name, "34")]  # the longest demonstration has 33 tokens
    with log.open("a") as file:
        done = subprocess.run([sys.executable, ROOT / "simko.py", command, *flags, *own], stdout=file, stderr=file,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode or not (evaluation / "eval.json").exists():
        sys.exit(f"tools/study.py: error: a run failed or was stopped: see {log}")


def evaluations(folder, about):
    """A row for each test of the folder's eval.json."""
    return [{**about, **{name: entry[name] for name in ("set", "n", "temperature", "pass")},
             "correct": list(entry["correct"].values())}
            for entry in json.loads((folder / "eval.json").read_text())["sets"].values()]


def make_base(data, tests):
    """A base model, its problems, and its evaluations (set, n, T): they serve all runs from it."""
    kind, seed = data.name.split("_")
    make = ROOT / "tools" / "laptop.py", data, "--seed", seed
    subprocess.run([sys.executable, *make, *["--wordy"] * (kind == "wordy")], check=True)
    for name, n, temperature in tests:
        folder = base_folder(data, name, n, temperature)
        if not (folder / "eval.json").exists():
            simko("eval", folder.with_name(folder.name + ".log"), data, folder, model=data / "base", seed=seed,
                  output=folder, rollout="hf", eval_data=data / f"{name}.jsonl", eval_n=n, eval_temperature=temperature)


def base_folder(data, name, n, temperature):
    return RUNS / f"base_{data.name}_{name}_{n}_T{temperature}"


def run(stage, work, lock):
    """One run and its rows; its checkpoints are removed."""
    seed, method = work["seed"], work["method"]
    data, folder = work["data"], RUNS / f"{stage} {work['run']} seed={seed}".replace(" ", "_")
    log, about = folder.with_name(folder.name + ".log"), {k: work[k] for k in ("run", "method", "settings", "seed")}
    own = {"seed": seed, "rollout": "hf", "eval_data": data / f"{work['set']}.jsonl", "eval_n": work["eval_n"]}

    def train(steps):
        simko("train", log, data, folder / f"eval_{steps:06d}", **own, **work["settings"], method=method, steps=steps,
              output=folder, model=data / "base", train_data=data / "train.jsonl", eval_every=work["eval_every"])
    found = {stage: [], "cool": []}
    base = partial(base_folder, data, work["set"], work["eval_n"])
    shutil.copytree(base(1.0), folder / "eval_000000", dirs_exist_ok=True)
    if "cool" in work:
        cool = folder / "cool"
        if not (cool / "eval.json").exists():
            train(work["cool"])
            simko("eval", log, data, cool, **own, eval_temperature=0.6, model=folder / "hf", output=cool)
        for step, path in ((0, base(0.6)), (work["cool"], cool)):
            found["cool"] += evaluations(path, {**about, "step": step})
    train(work["steps"])
    for path in sorted(folder.glob("eval_*")):
        found[stage] += evaluations(path, {**about, "step": int(path.name[5:])})
    found["curves"] = [{"stage": stage, **about, **curve(folder)}]
    with lock:  # curves last: its row says that the run is done
        for name, lines in found.items():
            with (RESULTS / f"{name}.jsonl").open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    shutil.rmtree(folder / "checkpoints")
    return folder.name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: one a core)")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    for stage in options.stages or STAGES:
        todo = STAGES[stage]()
        there = {(row["run"], row["seed"], row["steps"][-1]) for row in rows("curves") if row["stage"] == stage}
        todo = [work for work in todo if (work["run"], work["seed"], work["steps"]) not in there]
        print(f"{stage}: {len(there)} runs are there, {len(todo)} to do", flush=True)
        tests = {}
        for work in todo:
            tests.setdefault(work["data"], set()).update(
                (work["set"], work["eval_n"], temperature) for temperature in (1.0, 0.6)[:1 + ("cool" in work)])
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(make_base, tests, tests.values()))
            futures = [pool.submit(run, stage, work, lock) for work in todo]
            try:
                for future in as_completed(futures):
                    print(f"{stage}: {future.result()}", flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the runs that are on their way end, no other begins
                raise


if __name__ == "__main__":
    main()
