"""An evaluation's benchmarks and its files: LABEL.jsonl, with the settings in
its first line and then a row for each response, and eval.json with pass@K."""
import glob
import json
import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from runtime.common import fail, fail_as, write_whole
from runtime.data import DATASETS, GROUPS, PROTOCOL, digest, jsonl_file
from runtime.run_folder import differences, read_settings, saved_checkpoints
from runtime.versions import versions

# The settings of the run that its responses depend on.
RUN = ("model", "seed", "prompt_template", "chat_template_kwargs", "dtype", "rollout")


class Benchmark(NamedTuple):
    """A set of problems to evaluate on, and the sampling settings."""
    label: str       # the set's name, plus "@T0.6" (say) if there are several temperatures
    set: str
    problems: list
    dropped: int     # problems left out because their prompts are too long
    n: int           # samples per problem
    temperature: float
    top_p: float
    max_tokens: int  # per response
    weights_written: str  # when the files of --model were written; "" in training

    def settings(self, cfg):
        """Returns everything that the responses depend on. It is the first
        line of their file."""
        own = ("set", "n", "temperature", "top_p", "max_tokens", "weights_written")
        return {
            **{name: getattr(cfg, name) for name in RUN},
            **{name: getattr(self, name) for name in own},
            "problems_sha256": digest(self.problems)}

    def about(self, cfg):
        """Returns what eval.json says about the set, beside its results."""
        return {
            **self.settings(cfg),
            "problems": len(self.problems), "dropped": self.dropped}


# ------------------------------------------------ before anything is loaded
def set_name(source):
    """Returns the name of a set, for tables and for its file of responses."""
    if file := jsonl_file(source):
        return Path(file).stem
    # The last part of hub/id,split=test or of a folder, which may be "."
    return os.path.basename(os.path.abspath(source.split(",")[0]))


def plan_benchmarks(command, cfg, sets, dropped, room):
    """Returns the Benchmarks of --eval-data. What the flags leave open is
    taken from DATASETS and PROTOCOL. sets, dropped: as in cli.Job. room: the
    tokens of the model's context that a prompt leaves for a response."""
    weights_written = ""
    if command == "eval":
        files = Path(cfg.model).glob("*.safetensors")
        written = [file.stat().st_mtime for file in files]
        if written:
            weights_written = str(datetime.fromtimestamp(max(written)))
    benchmarks = []
    for source in cfg.eval_data:
        kind = "logic" if source in GROUPS["logic"] else "math"
        temperature, top_p, tokens = PROTOCOL[kind]
        n = DATASETS[source].n if source in DATASETS else 256
        temperatures = cfg.eval_temperature or [temperature]
        for t in temperatures:
            name = set_name(source)
            benchmarks.append(Benchmark(
                label=f"{name}@T{t}" if len(temperatures) > 1 else name,
                set=name, problems=sets[source], dropped=dropped[source],
                n=cfg.eval_n or n, temperature=t,
                top_p=cfg.eval_top_p or top_p,
                max_tokens=min(cfg.eval_max_tokens or tokens, room),
                weights_written=weights_written))
    return benchmarks


def check_responses(path, settings):
    """Refuses responses that are damaged, or that were made with other
    settings according to the first line of the file."""
    with path.open("rb") as file:
        before = read_settings(path, file.readline())
        changed = [f"{name} {change}"
                   for name, change in differences(before, settings).items()]
        if changed:
            fail(f"{path} was evaluated with other settings: "
                 f"{'; '.join(changed)}. Give the old values, choose another "
                 "--output-dir, or delete the file")
        if not (path.parent / "eval.json").exists():
            for number, line in enumerate(file, 2):
                read_row(path, number, line)


def check_sets(file, benchmarks):
    """Refuses to replace an eval.json that has the results of other sets."""
    if not file.exists():
        return
    sets = read_settings(file, file.read_bytes()).get("sets", {})
    lost = sets.keys() - {benchmark.label for benchmark in benchmarks}
    if lost:
        fail(f"{file} has the results of {', '.join(sorted(lost))}, which this "
             "command would remove: choose another --output-dir")


def check_evaluations(command, cfg, benchmarks):
    """Refuses a folder whose evaluations the command cannot continue."""
    folder = Path(cfg.output_dir)
    for benchmark in benchmarks:
        name = f"{glob.escape(benchmark.label)}.jsonl"
        for path in folder.glob(f"eval_*/{name}" if command == "train" else name):
            check_responses(path, benchmark.settings(cfg))
    for written in evaluation_folders(command, cfg):
        check_sets(written / "eval.json", benchmarks)


def evaluation_folders(command, cfg):
    """Returns the folders in which the command will replace eval.json, if it is
    there."""
    folder = Path(cfg.output_dir)
    if command == "eval":
        return [folder]
    steps = {cfg.steps}
    reached = max(saved_checkpoints(folder), default=0)
    if cfg.eval_steps and reached % cfg.eval_steps == 0:
        steps.add(reached)  # the run evaluates first where it resumes
    return [folder / f"eval_{step:06d}" for step in sorted(steps)]


def read_row(path, number, line):
    """Returns the row in a line, or None if the line was cut off. Ends the
    program if the line is damaged."""
    if not line.endswith(b"\n"):
        return None
    with fail_as(f"{path}, line {number}, is damaged",
                 "remove it and all lines below it, and the evaluation generates "
                 "their responses again"):
        return verdict(json.loads(line))


def verdict(row):
    """Returns what an evaluation counts in a row, without the text. The texts
    of a large evaluation would take gigabytes on each rank."""
    return {"id": row["id"], "correct": int(row["correct"]),
            "truncated": bool(row["truncated"])}


# ---------------------------------------------------- during an evaluation
def to_row(sample):
    """Converts a sample to a row of the file of responses."""
    return {
        "id": sample.id, "correct": int(sample.reward > 0),
        "tokens": len(sample.response_ids),
        "truncated": bool(sample.truncated), "response": sample.text}


def append(path, rows):
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def resume(path, benchmark, cfg, size):
    """Returns the rows that an interrupted evaluation has written. Creates
    the file of responses if there is none.

    Rows after the last complete chunk, of `size` responses, are removed from
    the file. `check_responses` has already compared the settings."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(benchmark.settings(cfg)) + "\n")
    whole = benchmark.n * len(benchmark.problems)
    rows = []
    with path.open("rb+") as file:
        ends = [len(file.readline())]
        for number, line in enumerate(file, 2):
            if found := read_row(path, number, line):
                rows.append(found)
                ends.append(ends[-1] + len(line))
        count = len(rows) // size * size
        if len(rows) >= whole:
            count = whole
        file.truncate(ends[count])
    return rows[:count]


def report(folder, cfg, results):
    """Writes eval.json and prints a table of pass@K in %."""
    settings = {name: getattr(cfg, name) for name in RUN}
    contents = {
        "settings": settings, "versions": versions(), "sets": results}
    write_whole(folder / "eval.json", json.dumps(contents))

    table = [*results.items()]
    curves = [result["pass"] for result in results.values()]
    fewest, most = min(curves, key=len), max(curves, key=len)  # values of K
    sets = {result["set"] for result in results.values()}
    if 1 < len(results) == len(sets):  # no set at several temperatures
        mean = {k: sum(curve[k] for curve in curves) / len(curves) for k in fewest}
        table.append(("average", {"pass": mean}))
    print(f"{folder}: pass@K in %")
    print(f"{'set':16}{'n':>5}{'T':>5}{'top-p':>7}{'tokens':>8}{'K =':>5}"
          + "".join(f"{k:>7}" for k in most))
    for label, result in table:
        how = [result.get(name, "")
               for name in ("n", "temperature", "top_p", "max_tokens")]
        print("{:16}{:>5}{:>5}{:>7}{:>8}     ".format(label[:16], *how)
              + "".join(f"{100 * share:7.1f}" for share in result["pass"].values()),
              flush=True)
    for label, result in results.items():
        if not any(result["pass"].values()):
            print(f"{label}: no response is right. Read some in {folder / label}.jsonl, and "
                  "check --task, --prompt-template and the format of the answers", flush=True)
        if dropped := result["dropped"]:
            print(f"{label}: pass@K leaves out {dropped} of "
                  f"{result['problems'] + dropped} problems, whose prompts are "
                  "longer than --max-prompt-length", flush=True)
