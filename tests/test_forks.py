"""Tests of the worked diffs of docs/forking.md. They apply the diffs to a copy of the code and use
what each diff adds."""
import json
import re
import shutil
import subprocess

import pytest

from tests import workers
from tests.conftest import recipe, write_rows
from tests.workers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "forking.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)


def apply(diff, root):
    """Applies a diff as a reader would: saved to a file, by `git apply`, which finds the place by
    the lines around it."""
    (root / "fork.diff").write_text(diff, encoding="utf-8")
    done = subprocess.run(["git", "apply", "fork.diff"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}{diff}"


def run(root, *arguments):
    """Runs simko.py in a copy of the project."""
    done = subprocess.run(
        workers.python("simko.py", *arguments), cwd=root,
        capture_output=True, text=True, timeout=workers.LIMIT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_there_is_a_worked_diff_for_data_reward_and_method_each_under_15_lines():
    assert len(DIFFS) == 3
    assert all(sum(line[:1] in "+-" for line in diff.splitlines()) - 2 < 15 for diff in DIFFS)
    assert DIFFS[1] in README


def test_the_worked_diffs_apply_and_run(laptop, tmp_path):
    root = tmp_path / "fork"
    for path in (*ROOT.glob("*.py"), *ROOT.glob("runtime/*.py"), *ROOT.glob("tools/*.py")):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for diff in DIFFS:
        apply(diff, root)
    rows = [json.loads(line) for line in (laptop / "test.jsonl").read_text().splitlines()[:2]]
    problems = [{**row, "answer": row["answer"].split()[0], "task": "last_number"} for row in rows]
    write_rows(tmp_path / "mine.jsonl", problems)
    evaluate = recipe(laptop, "eval", tmp_path / "eval", "--rollout", "hf",
                      "--eval-data", "mine", "--data-dir", tmp_path)
    place = evaluate.index("--eval-n")
    del evaluate[place:place + 2]  # the first diff sets the number of samples for its set
    run(root, *evaluate)
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())["sets"]["mine"]
    responses = (tmp_path / "eval" / "mine.jsonl").read_text().splitlines()[1:]
    lines = [json.loads(line) for line in responses]
    targets = {row["id"]: row["answer"] for row in problems}
    assert report["n"] == 64 and len(lines) == 128
    assert [line["correct"] for line in lines] == [
        int(re.findall("[0-9]+", line["response"])[-1:] == [targets[line["id"]]]) for line in lines]
    cases = [("That makes 1,000.", "1000"), ("It is -5", "-5"), ("so $3.50", "3.50"),
             ("12,345", "345"), ("5 of 7", "5"), ("none", "5")]
    script = ("from verify import is_correct;"
              f"print([is_correct(*case, 'last_number') for case in {cases}])")
    printed = subprocess.check_output(workers.python("-c", script), cwd=root, text=True)
    assert printed == "[True, True, True, False, False, False]\n"
    run(root, *recipe(
        laptop, "train", tmp_path / "train", "--rollout", "hf", "--method", "rloo",
        "--steps", 1, "--batch-size", 4, "--mini-batch-size", 2, "--eval-n", 1))
    (row,) = map(json.loads, (tmp_path / "train" / "metrics.jsonl").read_text().splitlines())
    assert row["method"] == "rloo"
    script = ("import torch; from runtime.baselines import METHODS;"
              "print(METHODS['rloo'].advantage(torch.tensor([1., 0, 0, 1]), 4).tolist())")
    printed = subprocess.check_output(workers.python("-c", script), cwd=root, text=True)
    assert json.loads(printed) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    failed = subprocess.run(
        workers.python(ROOT / "simko.py", "train", "--method", "rloo"),
        capture_output=True, text=True, check=False)
    # The method does not exist without the diff.
    assert failed.returncode == 2 and "--method rloo is not one of" in failed.stderr
