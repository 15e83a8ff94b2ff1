"""Many verdicts at once: worker processes that compare answers.

What a response says is compared in a worker, never in the caller. A worker may
use timeout_s seconds of processor time for an answer and memory_mb of memory;
one that overruns is replaced, and the answer is wrong. Processor time, so that
a busy machine changes no verdict; a worker that gives no sign of life for
PATIENCE_S seconds on the clock is killed all the same.
"""
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait

PATIENCE_S = 60
READY, RIGHT, WRONG = b"+", b"1", b"0"


class WorkerPool:
    """Scores batches for the tasks that a subclass names in `tasks`. The
    workers run `program`, start when the first answer needs one, and stay.

    A task is a function of (response, answer, phrase) that returns a verdict,
    or the pair (answer, extracted) for a worker to compare."""

    program = None
    tasks = {}

    def __init__(self, workers=None, timeout_s=1.5, memory_mb=1024):
        self.workers = workers or max(1, min(8, own_cores()))
        self.timeout_s, self.memory_mb = timeout_s, memory_mb
        self.idle = []
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.cached_ask = functools.lru_cache(1 << 16)(self.ask)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        while self.idle:
            with self.idle.pop() as worker:  # closes its pipes, waits for it
                worker.kill()

    def score(self, responses, answers, task, progress=None, phrase=False):
        """1.0 for each correct response, else 0.0, in order.

        task is one name for all, or a list of them. progress(done, total) is
        called as verdicts come in. Raises ValueError for an unknown task and
        for an empty answer, which it names by its row."""
        names = [task] * len(responses) if isinstance(task, str) else task
        self.check(answers, {task} if isinstance(task, str) else {*task})
        verdicts = [
            self.tasks[name](response, answer, phrase)
            for name, response, answer in zip(names, responses, answers, strict=True)
        ]
        counts = Counter(pair for pair in verdicts if isinstance(pair, tuple))
        done = len(verdicts) - counts.total()
        answered = {}
        with self.lock, ThreadPoolExecutor(self.workers) as threads:
            self.start_workers(len(counts))
            replies = threads.map(self.cached_ask, counts)
            for pair, reply in zip(counts, replies):
                answered[pair] = reply
                done += counts[pair]
                if progress:
                    progress(done, len(verdicts))
        return [float(answered.get(verdict, verdict)) for verdict in verdicts]

    def check(self, answers, names):
        for name in names:
            if name not in self.tasks:
                known = ", ".join(self.tasks)
                raise ValueError(f"task {name!r} is unknown; use one of {known}")
        for row, answer in enumerate(answers):
            if not answer.strip():
                raise ValueError(f"row {row}: the gold answer is empty; "
                                 "give the row an answer or remove it")

    def start_workers(self, questions):
        if self.pid != os.getpid():  # after a fork, the workers are the parent's
            self.idle, self.pid = [], os.getpid()
        wanted = min(self.workers, questions) - len(self.idle)
        self.idle += [self.start() for _ in range(wanted)]

    def start(self):
        command = [sys.executable, os.path.abspath(self.program), "--worker",
                   str(self.timeout_s), str(self.memory_mb)]
        return subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True)  # Ctrl-C is for the caller alone

    def ask(self, pair):
        """Whether a worker says that the two are equal; False if it is not
        heard from in time."""
        worker = self.idle.pop()
        if worker.poll() is not None:  # it was killed meanwhile
            worker = self.start()
        if heard(worker) != READY:
            command = " ".join(worker.args)
            raise RuntimeError(f"a worker of the verifier did not start; this says why: {command}")
        reply = b""
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(pair).encode() + b"\n")
            reply = heard(worker)
        if not reply:
            with worker:
                worker.kill()
            worker = self.start()
        self.idle.append(worker)
        return reply == RIGHT


def own_cores():
    """The cores for this process: ranks of torchrun share the machine's."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def heard(worker):
    """The worker's next byte, or none when it has ended or is not heard from."""
    return worker.stdout.read(1) if wait([worker.stdout], PATIENCE_S) else b""


def work(judge, timeout_s, memory_mb):
    """A worker's loop: writes READY, reads a line with a JSON pair, writes RIGHT
    or WRONG as judge(*pair) says, and again."""
    if sys.platform == "linux":  # macOS refuses the limit
        import resource
        limit = int(memory_mb * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever is printed is no reply
    signal.signal(signal.SIGVTALRM, signal.default_int_handler)
    if not judge(r"\sqrt{4}", "2"):
        sys.exit("the worker has too little memory to compare answers")
    os.write(replies, READY)
    for line in sys.stdin:
        verdict = False
        # The first timer interrupts Python. The second one ends the process,
        # where a single call computes for long and cannot be interrupted.
        with contextlib.suppress(KeyboardInterrupt, MemoryError):
            signal.setitimer(signal.ITIMER_PROF, timeout_s + 1)
            signal.setitimer(signal.ITIMER_VIRTUAL, timeout_s)
            verdict = judge(*json.loads(line))
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        os.write(replies, (RIGHT if verdict else WRONG) + READY)
