"""Tests of runtime/scoring.py: the workers' limits, their replacement and their end."""
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import simko
import verify
from runtime.data import check_problem
from runtime.packing import Sample
from runtime.scoring import WorkerPool
from tests.conftest import box
from tests.workers import ROOT
from verify import Verifier

LIMIT = 120  # seconds after which a test that hangs fails


PROGRAM = """
import sys, time
sys.path[:0] = [{root!r}]
from runtime import scoring

def judge(gold, pred):
{judge}

scoring.work(judge, *map(float, sys.argv[2:]))
"""


def program_of(judge, folder):
    """Writes a worker's program that compares answers with `judge`, the body of a function of
    (gold, pred). Returns its path."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT), judge=textwrap.indent(judge, "    ")))
    return str(program)


def pool_of(judge, folder, **options):
    class Pool(WorkerPool):
        program = program_of(judge, folder)
        tasks = {"pairs": lambda response, answer: (answer, response)}

    return Pool(workers=1, **options)


def test_bad_calls_name_the_row_or_the_task(verifier):
    with pytest.raises(ValueError, match="row 1: the gold answer is empty"):
        verifier.score(["a", "b"], ["1", " "], "math")
    with pytest.raises(ValueError, match="task 'maths' is unknown; use one of math, countdown"):
        verifier.score(["a"], ["1"], "maths")
    with pytest.raises(ValueError):
        verifier.score(["a", "b"], ["1"], "math")
    assert verifier.score([], [], "math") == []


def test_each_response_is_judged_by_the_task_and_the_answer_of_its_own_problem(verifier):
    problems = [{"id": "a", "answer": "8", "task": "math"},
                {"id": "b", "answer": "10 = 3 7", "task": "countdown"}]
    texts = [box(8), "3 + 7 = 11", "3 + 7 = 10", "3 + 7 = 10"]
    samples = [Sample(i, np.zeros(1), np.array([row]), np.zeros(1), truncated=False)
               for row, i in enumerate([0, 1, 1, 0])]
    tokenizer = mock.Mock(decode=lambda ids, skip_special_tokens: texts[ids[0]])
    simko.score(samples, problems, tokenizer, verifier)
    assert [s.id for s in samples] == ["a", "b", "b", "a"]
    assert [s.text for s in samples] == texts
    assert [s.reward for s in samples] == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("result", [
    0.05, 1, 0, None, "yes", [True], ("1",), ("1", 2), re.match("a", "a"),
    np.bool_(True), np.float64(1),
], ids=repr)
def test_a_reward_must_be_true_or_false(result):
    """A graded reward of 0.05 would count as a right response in pass@K."""
    class Pool(WorkerPool):
        tasks = {"graded": lambda response, answer: result}

    message = ("^task 'graded' must return True or False, .* but it returned .*"
               "docs/forking.md says where a partial reward goes$")
    with pytest.raises(TypeError, match=message) as caught:
        Pool().score(["a"], ["1"], "graded")
    assert "\n" not in str(caught.value)


def test_a_task_with_graded_rewards_is_refused_when_problems_are_read(monkeypatch):
    monkeypatch.setitem(verify.TASKS, "graded", lambda response, answer: 0.05)
    with pytest.raises(SystemExit, match="error: task 'graded' must return True or False"):
        check_problem("row 1", {"id": 1, "problem": "1 + 1?", "answer": "2"}, "graded")


def test_only_a_task_of_ones_own_may_have_an_answer_longer_than_a_response_s(monkeypatch):
    monkeypatch.setitem(verify.TASKS, "unit_tests", lambda response, answer: False)
    problem = {"id": 1, "problem": "Write it.", "answer": "[1]" * 2000}
    assert check_problem("row 1", problem, "unit_tests")["answer"] == problem["answer"]
    for task in {*verify.TASKS} - {"unit_tests"}:
        with pytest.raises(SystemExit, match="row 1: the answer has 6000 characters, but"):
            check_problem("row 1", problem, task)


@pytest.mark.parametrize("answer", ["2", "Paris", "(C) Paris", "(AB)"])
def test_an_answer_that_no_choice_can_match_is_refused_when_problems_are_read(answer):
    problem = {"id": 1, "problem": "Which?", "answer": answer}
    message = "the task choice raises an error for the answer .*For the answer"
    with pytest.raises(SystemExit, match=message):
        check_problem("row 1", problem, "choice")


@pytest.mark.parametrize("answer, error", [
    ("x", "invalid literal for int"),
    ("4", "list index out of range"),
])
def test_a_task_of_a_forks_own_that_fails_is_named_before_anything_loads(
        monkeypatch, answer, error):
    """It has no docstring, and an empty response has no last word."""
    def last(response, answer):
        return int(answer) == response.split()[-1]

    monkeypatch.setitem(verify.TASKS, "last", last)
    message = f"row 1: the task last raises an error for the answer '{answer}' .*: {error}"
    with pytest.raises(SystemExit, match=message):
        check_problem("row 1", {"id": 1, "problem": "Which?", "answer": answer}, "last")


def test_a_task_that_fails_in_a_run_names_the_response():
    pool = WorkerPool()
    pool.tasks = {"length": lambda response, answer: 1 / len(response) > 0.5}
    with pool, pytest.raises(ZeroDivisionError) as error:
        pool.score(["a", ""], ["x", "7"], "length")
    (note,) = error.value.__notes__
    assert note == "The task 'length' failed for the answer '7' and the response ''"


def test_each_pair_is_asked_once(tmp_path):
    """What the comparison prints is no reply."""
    log = tmp_path / "asked"
    judge = f"print(1, flush=True)\nopen({str(log)!r}, 'a').write(pred)\nreturn pred != 'b'"
    with pool_of(judge, tmp_path) as pool:
        assert pool.score(["a", "a", "b"], ["x"] * 3, "pairs") == [1.0, 1.0, 0.0]
        assert pool.score(["b", "a"], ["x"] * 2, "pairs") == [0.0, 1.0]
    # A worker must judge a 2 before it is ready.
    assert sorted(log.read_text()) == ["2", "a", "b"]
    assert pool.idle == []  # at the end, the worker is killed


@pytest.mark.parametrize("busy", [
    "while pred == 'slow': pass",
    "pred == 'slow' and pow(3, 10 ** 9)",
], ids=["Python", "one call"])
def test_an_overrun_of_processor_time_is_wrong_and_the_next_answer_is_judged(busy, tmp_path):
    with pool_of(f"{busy}\nreturn True", tmp_path, timeout_s=0.2, memory_mb=1 << 14) as pool:
        assert pool.score(["quick", "slow", "again"], ["x"] * 3, "pairs") == [1.0, 0.0, 1.0]


def test_waiting_is_no_overrun(tmp_path):
    """A worker may have to wait on a busy machine. That must not change a verdict."""
    with pool_of("time.sleep(1)\nreturn True", tmp_path, timeout_s=0.2) as pool:
        assert pool.score(["late"], ["x"], "pairs") == [1.0]


def test_a_worker_that_gives_no_sign_of_life_is_replaced(tmp_path, monkeypatch):
    judge = "if pred == 'asleep': time.sleep(1000)\nreturn True"
    with pool_of(judge, tmp_path) as pool:
        assert pool.score(["quick"], ["x"], "pairs") == [1.0]
        monkeypatch.setattr("runtime.scoring.PATIENCE_S", 1)
        assert pool.score(["asleep"], ["x"], "pairs") == [0.0]
        monkeypatch.undo()
        assert pool.score(["again"], ["x"], "pairs") == [1.0]


def test_memory_is_limited(tmp_path):
    judge = "bytearray(1 << (29 if pred == 'large' else 28))\nreturn True"
    with pool_of(judge, tmp_path, memory_mb=512) as pool:
        assert pool.score(["small", "large", "small again"], ["x"] * 3, "pairs") == [1.0, 0.0, 1.0]


def test_a_worker_that_cannot_start_is_named(tmp_path):
    with pool_of("return True", tmp_path) as pool:
        Path(pool.program).write_text("import nothing_of_this_name")
        with pytest.raises(RuntimeError, match="did not start; to see why, run: .*program.py"):
            pool.score(["a"], ["x"], "pairs")
    # As if too little memory were left: this worker does not find that the root of 4 is 2.
    with pool_of("return False", tmp_path) as pool:
        with pytest.raises(RuntimeError, match="did not start"):
            pool.score(["a"], ["x"], "pairs")


def test_a_killed_worker_is_replaced():
    with Verifier(workers=1) as one:
        assert one.score([box(r"\log_e 5")], [r"\ln 5"], "math") == [1.0]
        pid = one.idle[0].pid
        assert os.getsid(pid) == pid  # Ctrl-C at a terminal does not reach it
        os.kill(pid, signal.SIGKILL)
        one.idle[0].wait()
        assert one.score([box(r"\log_e 7")], [r"\ln 7"], "math") == [1.0]


def test_answers_that_need_no_comparison_start_no_worker():
    with Verifier() as one:
        assert one.score([box("0.5"), "no box"], ["0.5", "0.5"], "math") == [1.0, 0.0]
        assert one.score(["1 + 2 = 3"], ["3 = 1 2"], "countdown") == [1.0]
        assert one.idle == []


def test_from_threads(verifier):
    answers = [rf"\ln {n}" for n in range(2, 10)]
    scores = {}

    def score(n):
        scores[n] = verifier.score([box(rf"\log_e {n}")] * 8, answers, "math")

    threads = [threading.Thread(target=score, args=[n]) for n in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(scores) == [2, 3, 4, 5]
    for n, found in scores.items():
        assert found == [float(n == other) for other in range(2, 10)]


def run(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(verify.__file__).parent,
        **options,
    )


def gone(pid, patience=LIMIT):
    """Returns whether a process ends within `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(sent, tmp_path):
    """This also holds if the parent ends while a worker is busy with a slow answer."""
    program = program_of("while pred == 'slow': pass\nreturn True", tmp_path)
    parent = run(f"""
        from runtime.scoring import WorkerPool

        class Pool(WorkerPool):
            program = {program!r}
            tasks = {{"pairs": lambda response, answer: (answer, response)}}

        pool = Pool(workers=1)
        pool.score(["quick"], ["x"], "pairs")
        print(pool.idle[0].pid, flush=True)
        pool.score(["slow"] * 50, ["x"] * 50, "pairs")
        """, stderr=subprocess.DEVNULL)
    worker = int(parent.stdout.readline())
    assert not gone(worker, 0.3)
    parent.send_signal(sent)
    parent.wait(LIMIT)
    assert gone(worker)


def test_under_torchrun_the_ranks_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert Verifier().workers == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert Verifier().workers == 1
    assert Verifier(workers=3).workers == 3


def test_in_a_forked_child():
    child = run(r"""
        import os, verify
        one = verify.Verifier(workers=1)
        one.score([r"\boxed{\log_e 5}"], [r"\ln 5"], "math")
        parents = one.idle[0].pid
        pid = os.fork()
        right = one.score([r"\boxed{\log_e 7}"] * 2, [r"\ln 7", r"\ln 8"], "math") == [1.0, 0.0]
        if pid == 0:
            os._exit(0 if right and one.idle[0].pid != parents else 1)
        print(right, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """)
    assert child.communicate(timeout=LIMIT)[0].strip() == "True 0"
