"""Scores many responses in worker processes, and reads files of responses.

Answers are compared in a worker, never in the calling process. A worker may use
timeout_s seconds of processor time per answer and memory_mb MiB of memory. If it
exceeds either limit, the answer is wrong and a new worker takes over. The limit
is on processor time so that a busy machine cannot change a verdict. A worker
that does not reply within PATIENCE_S seconds of wall-clock time is killed too.
"""
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

from runtime.common import number_as_text, one_line

PATIENCE_S = 60
READY, RIGHT, WRONG = b"+", b"1", b"0"


class WorkerPool:
    """Scores batches of responses. Subclasses set `tasks`, {name: task}, and
    `program`, the file that workers run. Workers start when the first answer
    needs one and then remain.

    A task is a function of (response, answer) that returns True or False, or the
    pair (answer, extracted) for a worker to compare."""

    def __init__(self, workers=None, timeout_s=1.5, memory_mb=1024):
        self.workers = workers or max(1, min(8, own_cores()))
        self.timeout_s, self.memory_mb = timeout_s, memory_mb
        self.idle = []
        self.lock = threading.Lock()
        self.cached_ask = functools.lru_cache(1 << 16)(self.ask)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        while self.idle:
            with self.idle.pop() as worker:  # __exit__ closes its pipes and waits
                worker.kill()

    def score(self, responses, answers, task):
        """Returns a list with 1.0 for each correct response and 0.0 for others.

        task is one name for all responses or a list with one for each. Raises
        ValueError for an unknown task, an empty answer (the message names its row)
        or lists of different lengths, TypeError if a task returns anything but
        a verdict or a pair, and RuntimeError if a worker does not start."""
        names = [task] * len(responses) if isinstance(task, str) else task
        self.check(answers, {*names})
        results = [
            self.run(name, response, answer)
            for name, response, answer in zip(names, responses, answers, strict=True)
        ]
        pairs = list(dict.fromkeys(r for r in results if isinstance(r, tuple)))
        with self.lock, ThreadPoolExecutor(self.workers) as threads:
            missing = min(self.workers, len(pairs)) - len(self.idle)
            self.idle += [self.start() for _ in range(missing)]
            equal = dict(zip(pairs, threads.map(self.cached_ask, pairs)))
        return [float(equal.get(result, result)) for result in results]

    def run(self, name, response, answer):
        """Returns what a task finds. If the task raises an error, a note names
        the response."""
        try:
            result = self.tasks[name](response, answer)
        except Exception as error:
            error.add_note(f"The task {name!r} failed for the answer {answer!r:.80} and "
                           f"the response {response!r:.300}")
            raise
        check_result(name, result)
        return result

    def check(self, answers, names):
        for name in names:
            if name not in self.tasks:
                known = ", ".join(self.tasks)
                raise ValueError(f"task {name!r} is unknown; use one of {known}")
        for row, answer in enumerate(answers):
            if not answer.strip():
                raise ValueError(f"row {row}: the gold answer is empty; "
                                 "give the row an answer or remove it")

    def start(self):
        command = [sys.executable, os.path.abspath(self.program), "--worker",
                   str(self.timeout_s), str(self.memory_mb)]
        return subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True)  # Ctrl-C must reach only the caller

    def ask(self, pair):
        """Returns whether a worker finds the two answers equal; False if it
        does not reply in time."""
        worker = self.idle.pop()
        if worker.poll() is not None:  # killed, or owned by this process's parent
            worker = self.start()
        if heard(worker) != READY:
            command = " ".join(worker.args)
            raise RuntimeError(
                f"a worker of the verifier did not start; to see why, run: {command}")
        reply = b""
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(pair).encode() + b"\n")
            reply = heard(worker)
        if not reply:
            with worker:
                worker.kill()  # the next question starts another
        self.idle.append(worker)
        return reply == RIGHT


def check_result(task, result):
    """Raises TypeError unless a task returned True, False or a pair of texts. A
    numpy.bool_ is refused like any other type."""
    is_pair = isinstance(result, tuple) and [*map(type, result)] == [str, str]
    if not is_pair and not isinstance(result, bool):
        shown = " ".join(repr(result).split())
        raise TypeError(f"task {task!r} must return True or False, because pass@K counts "
                        f"right responses, but it returned {shown:.80}. docs/forking.md "
                        "says where a partial reward goes")


def read_rows(path, tasks):
    """Returns [(task, response, answer)] from a file of JSON lines, to be scored.
    tasks: the names of tasks. Exits with a message at the first invalid line."""
    rows, number = [], 0
    try:
        for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a row must be an object, {...}")
            task, response = row.get("task") or "math", row.get("response")
            answer = number_as_text(row.get("answer"))
            if task not in [*tasks]:  # a list: a row's task may be unhashable
                raise ValueError(f"the task must be one of {', '.join(tasks)}, not {task!r:.80}")
            if not isinstance(response, str):
                raise ValueError(f"the response must be a text, not {response!r:.80}")
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError("the answer must be a text or a number and not empty, "
                                 f"not {answer!r:.80}")
            rows.append((task, response, answer))
    except OSError as error:  # !r escapes control characters in a file name
        sys.exit(f"{path!r} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        sys.exit(f"{path!r}, line {number}: {one_line(error)}")
    return rows or sys.exit(f"{path!r} has no rows")


def own_cores():
    """Returns the number of cores for this process. The ranks that torchrun
    starts on a machine share its cores."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def heard(worker):
    """Returns the worker's next byte, or b"" if it has ended or does not reply
    within PATIENCE_S."""
    return worker.stdout.read(1) if wait([worker.stdout], PATIENCE_S) else b""


def work(judge, timeout_s, memory_mb):
    """Runs a worker's loop: writes READY, reads a JSON pair from a line of stdin,
    writes RIGHT or WRONG as judge(*pair) decides, and repeats."""
    if sys.platform == "linux":  # macOS refuses the limit
        import resource
        limit = int(memory_mb * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    replies = os.dup(1)
    os.dup2(2, 1)  # printed text must not be read as a reply
    signal.signal(signal.SIGVTALRM, signal.default_int_handler)
    if not judge(r"\sqrt{4}", "2"):
        sys.exit("the worker has too little memory to compare answers")
    os.write(replies, READY)
    for line in sys.stdin:
        verdict = False
        # ITIMER_VIRTUAL interrupts Python code. ITIMER_PROF, a second later, ends
        # the process if a long call into C has kept Python from reacting.
        with contextlib.suppress(KeyboardInterrupt, MemoryError):
            signal.setitimer(signal.ITIMER_PROF, timeout_s + 1)
            signal.setitimer(signal.ITIMER_VIRTUAL, timeout_s)
            verdict = judge(*json.loads(line))
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        os.write(replies, (RIGHT if verdict else WRONG) + READY)
