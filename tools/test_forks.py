"""The README's worked diffs: each is applied to a copy of the code, and a run uses what it adds."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def apply(diff, root):
    """As a reader would who has saved the block to a file: `git apply` finds the place by the lines around it."""
    (root / "fork.diff").write_text(diff, encoding="utf-8")
    done = subprocess.run(["git", "apply", "fork.diff"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}{diff}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base model, barely trained, and its problems."""
    folder = tmp_path_factory.mktemp("forks") / "data"
    subprocess.run([sys.executable, ROOT / "tools/laptop.py", folder, "--steps", "20"], check=True, capture_output=True)
    return folder


def run(root, command, base, output, *flags):
    line = (f"{command} --model {base}/base --output {output} --rollout hf --prompt-template raw"
            " --max-prompt-tokens 16 --eval-max-tokens 12")
    if command == "train":
        line += (f" --train-data {base}/train.jsonl --steps 1 --batch 4 --mini-batch 2 --max-response-tokens 12"
                 " --no-gradient-checkpointing")
    done = subprocess.run([sys.executable, root / "simko.py", *line.split(), *map(str, flags)], cwd=root,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_there_is_a_worked_diff_for_data_reward_and_method_each_under_15_lines():
    assert len(DIFFS) == 3
    assert all(sum(line[:1] in "+-" for line in diff.splitlines()) - 2 < 15 for diff in DIFFS)


def test_the_worked_diffs_apply_and_run(base, tmp_path):
    root = tmp_path / "fork"
    root.mkdir()
    for name in ("simko.py", "verify.py"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    for diff in DIFFS:
        apply(diff, root)
    rows = [json.loads(line) for line in (base / "test.jsonl").read_text().splitlines()[:2]]
    problems = [{**row, "answer": row["answer"].split()[0], "task": "digits"} for row in rows]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    run(root, "eval", base, tmp_path / "eval", "--eval-data", "mine", "--data-dir", tmp_path)
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())["sets"]["mine"]
    lines = [json.loads(line) for line in (tmp_path / "eval" / "mine.jsonl").read_text().splitlines()[1:]]
    targets = {row["id"]: row["answer"] for row in problems}
    assert report["n"] == 64 and len(lines) == 128
    assert [line["correct"] for line in lines] == [
        int(re.findall("[0-9]+", line["response"])[-1:] == [targets[line["id"]]]) for line in lines]
    run(root, "train", base, tmp_path / "train", "--method", "rloo", "--task", "countdown")
    (row,) = map(json.loads, (tmp_path / "train" / "metrics.jsonl").read_text().splitlines())
    assert row["method"] == "rloo"
    script = ("import simko, torch; cfg = simko.Config(method='rloo', group_size=4);"
              "print(simko.response_advantage(torch.tensor([1., 0, 0, 1]), cfg).tolist())")
    printed = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True).stdout
    assert json.loads(printed) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    failed = subprocess.run([sys.executable, ROOT / "simko.py", "train", "--method", "rloo"], capture_output=True,
                            text=True, check=False)
    assert failed.returncode == 2 and "rloo" in failed.stderr  # without the diff there is no such method
