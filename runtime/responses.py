"""The files of an evaluation: LABEL.jsonl, with the settings in its first line
and then a row for each response, and eval.json with pass@K. `check_...` are
called before anything is loaded, the others during the evaluation."""
import json
from typing import NamedTuple

from runtime.common import fail, write_whole
from runtime.data import digest
from runtime.run_folder import differences, read_settings
from runtime.versions import versions

# The settings of the run that its responses depend on.
RUN = ("model", "seed", "prompt_template", "chat_template_kwargs", "dtype", "rollout")


class Benchmark(NamedTuple):
    """A set of problems to evaluate on, and the sampling settings."""
    label: str       # the set's name, with "@T" and the temperature if there are several
    set: str
    problems: list
    n: int           # samples per problem
    temperature: float
    top_p: float
    max_tokens: int  # per response
    weights_written: str  # when --model's files were; "" in training

    def settings(self, cfg):
        """Returns everything that the responses depend on. It is the first
        line of their file."""
        own = ("set", "n", "temperature", "top_p", "max_tokens", "weights_written")
        return {
            **{name: getattr(cfg, name) for name in RUN},
            **{name: getattr(self, name) for name in own},
            "problems_sha256": digest(self.problems)}


# ------------------------------------------------ before anything is loaded
# Files of an earlier version have the names on the left.
RENAMED = {"weights_of": "weights_written", "problems": "problems_sha256"}


def check_responses(path, settings):
    """Refuses responses that are damaged, or that were made with other
    settings according to the first line of the file."""
    with path.open("rb") as file:
        before = read_settings(path, file.readline())
        before = {RENAMED.get(name, name): value for name, value in before.items()}
        changed = [f"{name} {change}"
                   for name, change in differences(before, settings).items()]
        if changed:
            fail(f"{path} was evaluated with other settings: "
                 f"{'; '.join(changed)}. Repeat these settings, choose another "
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


def read_row(path, number, line):
    """Returns the row in a line, or None if the line was cut off. Ends the
    program if the line is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        return {"id": row["id"], "correct": int(row["correct"]),
                "truncated": bool(row["truncated"])}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        fail(f"{path}, line {number}, is damaged ({error!r}). Remove this "
             "line and all that follow; the evaluation generates them again")


# ---------------------------------------------------- during an evaluation
def row(sample):
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
    its file if there is none.

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
