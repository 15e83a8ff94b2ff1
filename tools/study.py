"""The laptop study: nine methods from the same tiny base models, over seeds, settings chosen on validation problems.

    bash train.sh laptop-study                all of it; stopped and started again, it goes on
    python tools/study.py tune main           these stages: tune, main, ablation
    python tools/study.py --jobs 1 main       one run at a time; by default one a core

Each run is `simko.py train` with the laptop recipe's flags and the run's own. What its evaluations found goes to
docs/laptop/STAGE.jsonl as soon as it ends, a row an evaluation, and its training curve to docs/laptop/curves.jsonl; a
run that is there is not run again. Seed s means base model s, its problems, and sampling from s.

tune       the validation problems of seed 0. A method gets the settings and the number of steps with the highest pass@K
           averaged over K = 1, 2, 4, ..., 64: docs/laptop/chosen.json. The test problems play no part.
main       the chosen settings on the test problems of seeds 0 to 4, n = 256; GRPO and SimKO along training, too
ablation   SimKO's settings one at a time, seeds 0 to 2
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "study", ROOT / "docs" / "laptop"
SIMKO = {"alpha": 0.05, "lam": 1.5, "q": 0.5}
# GRPO and SimKO get seven settings each, the others their authors' at two learning rates.
GRID = {
    "grpo": [{"lr": lr} for lr in (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)] + [
        {"lr": lr, "clip_high": 0.28} for lr in (2e-4, 4e-4)],
    "simko": [{**SIMKO, "lr": lr} for lr in (5e-5, 1e-4, 2e-4, 4e-4)] + [
        {**SIMKO, "lr": 1e-4, **change} for change in ({"alpha": 0.1}, {"lam": 1.1}, {"q": 0.2})],
    **{method: [{"lr": lr} for lr in (1e-4, 2e-4)]
       for method in ("psr", "nsr", "w-reinforce", "forking", "entropy-adv", "kl-cov", "pass-at-k")},
}
STEPS = 500


def rows(name):
    """The rows of docs/laptop/NAME.jsonl."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def describe(method, settings):
    return " ".join([method, *(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                               for name, value in sorted(settings.items()))])


def job(method, settings, seed, **extra):
    """A run: its name, its flags, what its rows say of it."""
    return {"run": describe(method, settings), "method": method, "settings": settings, "seed": seed, **extra}


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
    chosen = choose()
    if chosen.keys() != GRID.keys():
        sys.exit("tools/study.py: error: main needs the settings that tune finds: python tools/study.py tune main")
    (RESULTS / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n")
    return [job(method, settings, seed, set="test", eval_n=256, steps=STEPS if method in ("grpo", "simko") else steps,
                eval_every=50 if method in ("grpo", "simko") else STEPS)
            for seed in range(5) for method, (settings, steps) in chosen.items()]


def ablation():
    settings, steps = choose()["simko"]
    changes = [{name: value} for name, values in (("alpha", (0.0, 0.01, 0.02, 0.1, 0.2)), ("lam", (1.0, 1.1, 2.0)),
                                                  ("K", (1, 2, 5))) for value in values]
    changes += [{"q": q, "tau_scope": scope} for q in (0.0, 0.2, 0.5, 0.8) for scope in ("response", "batch")]
    changes += [{"alpha": 0.01, "lam": 1.1, "q": 0.8}]  # the paper's
    return [job("simko", {**settings, **change}, seed, set="test", eval_n=256, steps=steps, eval_every=STEPS)
            for seed in range(3) for change in changes]


STAGES = {"tune": tune, "main": main_stage, "ablation": ablation}


def curve(folder, width=25):
    """Means of the log's rows over `width` steps each."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [name for name in log[0] if name.startswith("Lambda") or name in ("reward", "entropy", "gate_share")]
    return {"steps": [log[min(i + width, len(log)) - 1]["step"] for i in range(0, len(log), width)],
            **{name: [sum(row[name] for row in log[i:i + width]) / len(log[i:i + width])
                      for i in range(0, len(log), width)] for name in names}}


def run(stage, work, flags, lock):
    """One run and its rows; its checkpoints are removed."""
    data = RUNS / f"data_{work['seed']}"
    folder = RUNS / f"{stage} {work['run']} seed={work['seed']}".replace(" ", "_")
    own = {**work["settings"], "method": work["method"], "seed": work["seed"], "steps": work["steps"],
           "eval_every": work["eval_every"], "eval_n": work["eval_n"], "rollout": "hf", "output": folder,
           "model": data / "base", "train_data": data / "train.jsonl", "eval_data": data / f"{work['set']}.jsonl"}
    command = [sys.executable, ROOT / "simko.py", "train", *flags,
               *(part for name, value in own.items() for part in (f"--{name.replace('_', '-')}", str(value)))]
    RUNS.mkdir(parents=True, exist_ok=True)
    with (folder.with_name(folder.name + ".log")).open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        sys.exit(f"tools/study.py: error: a run failed: see {log.name}")
    about = {name: work[name] for name in ("run", "method", "settings", "seed")}
    lines = []
    for path in sorted(folder.glob("eval_*/eval.json")):
        (entry,) = json.loads(path.read_text())["sets"].values()
        lines.append({**about, "step": int(path.parent.name[5:]), "set": entry["set"], "n": entry["n"],
                      "temperature": entry["temperature"], "pass": entry["pass"],
                      "correct": list(entry["correct"].values())})
    with lock:
        for name, found in ((stage, lines), ("curves", [{"stage": stage, **about, **curve(folder)}])):
            with (RESULTS / f"{name}.jsonl").open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in found)
    shutil.rmtree(folder / "checkpoints")
    return folder.name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: one a core)")
    options = parser.parse_args()
    flags = subprocess.check_output(["bash", "train.sh", "--list", "laptop"], cwd=ROOT, text=True).split()
    RESULTS.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    for stage in options.stages or STAGES:
        todo = STAGES[stage]()
        there = {(row["run"], row["seed"]) for row in rows("curves") if row["stage"] == stage}
        todo = [work for work in todo if (work["run"], work["seed"]) not in there]
        for seed in sorted({work["seed"] for work in todo}):
            make = ROOT / "tools" / "laptop.py", RUNS / f"data_{seed}", "--seed", str(seed)
            subprocess.run([sys.executable, *make], check=True)
        print(f"{stage}: {len(there)} runs are there, {len(todo)} to do", flush=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = [pool.submit(run, stage, work, flags, lock) for work in todo]
            try:
                for future in as_completed(futures):
                    print(f"{stage}: {future.result()}", flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the runs that are on their way end, no other begins
                raise


if __name__ == "__main__":
    main()
