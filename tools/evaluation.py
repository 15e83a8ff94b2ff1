"""simko.py's evaluation: n samples for each problem of each test, pass@K on screen and in eval.json."""
import hashlib
import json
from typing import NamedTuple

import torch
import torch.distributed as dist

from simko import fail, gather, pass_at_k, score, seed_everything, write_whole


def digest(problems):
    """Of what a model is asked and judged by."""
    content = json.dumps([[problem[name] for name in ("id", "problem", "answer", "task")] for problem in problems])
    return hashlib.sha256(content.encode()).hexdigest()


class Test(NamedTuple):
    """A set to evaluate on, at one temperature."""
    label: str       # the set's name, with @T and the temperature where there are several
    set: str
    problems: list
    n: int           # samples a problem
    temperature: float
    top_p: float
    max_tokens: int  # of a response
    weights_of: str  # when those of --model were written; "" where they are a training run's own

    def settings(self, cfg):
        """What the responses are a function of: the first line of their file."""
        return {"model": cfg.model, "seed": cfg.seed, "prompt_template": cfg.prompt_template,
                **{k: getattr(self, k) for k in ("set", "n", "temperature", "top_p", "max_tokens", "weights_of")},
                "problems": digest(self.problems)}


def evaluate(cfg, folder, tests, tokenizer, engine, verifier, progress):
    """n samples for each problem of each test; pass@K on screen and in folder/eval.json.

    Every response goes to folder/LABEL.jsonl with its verdict, chunk by chunk. A stopped evaluation goes on after the
    last whole chunk and comes to the same samples: they depend on (seed, chunk, rank) alone."""
    rank, world, chunk, report = dist.get_rank(), dist.get_world_size(), 64, {}  # chunk: problems
    for test in tests:
        path, n, problems, settings = folder / f"{test.label}.jsonl", test.n, test.problems, test.settings(cfg)
        rows = gather(read_responses(path, settings, n * chunk, n * len(problems)) if rank == 0 else [])
        for start in progress(range(len(rows) // n, len(problems), chunk), desc=test.label):
            own = problems[start:start + chunk][rank::world]
            seed_everything(cfg.seed, start, rank // cfg.tensor_parallel, 1)
            samples = engine.generate([problem["prompt_ids"] for problem in own], n, test.temperature, test.top_p,
                                      test.max_tokens, progress, logprobs=False)
            score(samples, own, tokenizer, verifier)
            new = gather([{"id": own[s.prompt]["id"], "correct": int(s.reward > 0), "tokens": len(s.response_ids),
                           "truncated": bool(s.truncated), "response": s.text} for s in samples])
            if rank == 0:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in new)
            rows += [(row["id"], row["correct"], row["truncated"]) for row in new]
        correct = {problem["id"]: 0 for problem in problems}
        for id, right, _ in rows:
            correct[id] += right
        c = torch.tensor(list(correct.values()))
        report[test.label] = {
            **settings, "problems": len(problems), "correct": correct,
            "truncated": sum(truncated for *_, truncated in rows) / len(rows),
            "pass": {2**i: pass_at_k(n, c, 2**i).mean().item() for i in range(n.bit_length())}}
    if rank == 0:
        settings = {name: getattr(cfg, name) for name in ("model", "seed", "prompt_template")}
        write_whole(folder / "eval.json", json.dumps({"settings": settings, "sets": report}))
        common = min((row["pass"] for row in report.values()), key=len)
        average = {k: sum(row["pass"][k] for row in report.values()) / len(report) for k in common}
        print(f"{folder}: pass@K in %\n{'set':16}{'n':>5}{'T':>5}{'top-p':>7}{'tokens':>8}{'K =':>5}"
              + "".join(f"{k:>7}" for k in max((row["pass"] for row in report.values()), key=len)))
        one_each = 1 < len(report) == len({test.set for test in tests})  # not one set at several temperatures
        for label, row in [*report.items(), *[("average", {"pass": average})] * one_each]:
            how = [row.get(k, "") for k in ("n", "temperature", "top_p", "max_tokens")]
            print("{:16}{:>5}{:>5}{:>7}{:>8}     ".format(label[:16], *how)
                  + "".join(f"{100 * value:7.1f}" for value in row["pass"].values()), flush=True)


def read_response(path, number, line):
    """(id, correct, truncated) of a response file's line; None of a last line that was cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        return row["id"], int(row["correct"]), bool(row["truncated"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return fail(f"{path}, line {number}, is damaged ({error!r}): remove it and all behind it, they are made again")


def read_responses(path, settings, chunk, whole):
    """[(id, correct, truncated)] of the responses an evaluation has already, its file cut to whole chunks of them; the
    file's first line is what it was run with."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings) + "\n")
    rows = []
    with path.open("rb+") as file:
        ends = [len(file.readline())]  # tools/checks.py has compared it
        for number, line in enumerate(file, 2):
            if row := read_response(path, number, line):
                rows.append(row)
                ends.append(ends[-1] + len(line))
        count = whole if len(rows) >= whole else len(rows) // chunk * chunk
        file.truncate(ends[count])
    return rows[:count]
