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

PAGE = (ROOT / "docs" / "forking.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)


def apply(diff, root):
    """Applies a diff as a reader would: saved to a file, by `git apply`, which finds the place by
    the lines around it."""
    (root / "fork.diff").write_text(diff, encoding="utf-8")
    command = ["git", "apply", "--verbose", "fork.diff"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}{diff}"
    assert "offset" not in done.stderr, "the page names other lines than those that change"


def start(root, *arguments):
    """Runs simko.py in a copy of the project."""
    command = workers.python("simko.py", *arguments)
    return subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=workers.LIMIT,
        check=False,
    )


def run(root, *arguments):
    done = start(root, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]


def printed_by(root, *lines):
    """Returns the output of a script in a copy of the project."""
    command = workers.python("-c", "\n".join(lines))
    return subprocess.check_output(command, cwd=root, text=True)


def test_there_is_a_worked_diff_for_data_reward_and_method_each_under_15_lines():
    assert len(DIFFS) == 3
    for diff in DIFFS:
        signed = [line for line in diff.splitlines() if line[:1] in "+-"]
        assert len(signed) - 2 < 15  # two of them name the file


def test_the_worked_diffs_apply_and_run(laptop, tmp_path):
    root = tmp_path / "fork"
    for path in (*ROOT.glob("*.py"), *ROOT.glob("runtime/*.py"), *ROOT.glob("tools/*.py")):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for diff in DIFFS:
        apply(diff, root)
    problems = []
    for line in (laptop / "test.jsonl").read_text().splitlines()[:2]:
        row = json.loads(line)
        target = row["answer"].split()[0]
        problems.append({**row, "answer": target, "task": "last_number"})
    write_rows(tmp_path / "mine.jsonl", problems)
    flags = "--rollout", "hf", "--eval-data", "mine", "--data-dir", tmp_path
    evaluate = recipe(laptop, "eval", tmp_path / "eval", *flags)
    place = evaluate.index("--eval-n")
    del evaluate[place:place + 2]  # the first diff sets the number of samples for its set
    run(root, *evaluate)
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())["sets"]["mine"]
    responses = (tmp_path / "eval" / "mine.jsonl").read_text().splitlines()[1:]
    targets = {row["id"]: row["answer"] for row in problems}
    assert report["n"] == 64
    assert len(responses) == 128
    for line in map(json.loads, responses):
        last = re.findall("[0-9]+", line["response"])[-1:]
        assert line["correct"] == int(last == [targets[line["id"]]])
    cases = [
        ("That makes 1,000.", "1000"),
        ("It is -5", "-5"),
        ("so $3.50", "3.50"),
        ("12,345", "345"),
        ("5 of 7", "5"),
        ("none", "5"),
    ]
    printed = printed_by(
        root,
        "from verify import is_correct",
        f"print([is_correct(*case, 'last_number') for case in {cases}])",
    )
    assert printed == "[True, True, True, False, False, False]\n"

    flags = [
        "--rollout", "hf",
        "--method", "rloo",
        "--steps", 1,
        "--batch-size", 4,
        "--mini-batch-size", 2,
        "--eval-n", 1,
    ]
    run(root, *recipe(laptop, "train", tmp_path / "train", *flags))
    log = (tmp_path / "train" / "metrics.jsonl").read_text()
    (row,) = map(json.loads, log.splitlines())
    assert row["method"] == "rloo"
    printed = printed_by(
        root,
        "import torch",
        "from runtime.baselines import METHODS",
        "rewards = torch.tensor([1., 0, 0, 1])",
        "print(METHODS['rloo'].advantage(rewards, 4).tolist())",
    )
    assert json.loads(printed) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    # The method does not exist without the diff.
    failed = start(ROOT, "train", "--method", "rloo")
    assert failed.returncode == 2
    assert "--method rloo is not one of" in failed.stderr
