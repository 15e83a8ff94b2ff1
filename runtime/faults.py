"""Handles failures of a run: an engine that hangs, signals, lack of memory or
disk space, ranks that die, and numbers that show that a run cannot learn.
docs/reliability.md lists what a run promises in each case."""
import errno
import faulthandler
import json
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections import deque
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.elastic.multiprocessing.errors import (
    get_error_handler, record)
from tqdm import tqdm

from runtime.common import error_line, fail, one_line, printable
from runtime.ranks import gather
from runtime.run_folder import drop_unfinished
from runtime.seeding import seed_everything
from runtime.vllm_setup import last_lines

# Seconds that an engine may take to start, which may include a download.
START_LIMIT = 3600

# Only vLLM obeys this flag.
ENGINE = "lower --gpu-memory-utilization (now {gpu_memory_utilization})"
CHECKPOINTING = "add --gradient-checkpointing"
FEWER_TOKENS = "lower --micro-batch-tokens (now {micro_batch_tokens})"
MORE_GPUS = "use more GPUs"
# For each phase, one or several ways to give it more memory.
MORE_MEMORY = {
    "engine start": (ENGINE, "choose a smaller --model"),
    "rollout": (
        ENGINE, "lower --max-completion-length (in an evaluation: --eval-max-tokens)"),
    "weight sync": (ENGINE, MORE_GPUS),
    "loading of the policy": (
        "use more GPUs (weights and optimizer are sharded over them)", ENGINE),
    "computation of log-probs": (FEWER_TOKENS,),
    "update": (FEWER_TOKENS, CHECKPOINTING, MORE_GPUS),
    "export": ("use more GPUs; the last checkpoint is complete",),
    "run": (ENGINE, MORE_GPUS)}

# What gloo, NCCL and the store say when a rank has ended (LOST), and when it
# does not answer (SILENT).
LOST = ("Connection (closed|reset|refused)|[Bb]roken pipe|"
        "remote process (has )?exited")
SILENT = "[Tt]imed out|[Tt]imeout"


# ------------------------------------------------------ the process's end
def run(main):
    """Calls main with the arguments of the command line, and ends the process."""
    try:
        # torchrun then shows the error of the rank that failed first. This
        # returns if main ends with status 0, as a stopped run does.
        record(main)(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("simko.py: stopped; run the same command to continue from the "
                 "last checkpoint")
    end_process()


def end_process():
    """Ends the process with status 0, without Python's own shutdown.

    A thread of gloo may outlive the process group. If it frees a tensor while
    Python shuts down, it aborts the process (PyTorch issue 190489), and
    torchrun reports that a complete run has failed."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if closed
        Unbroken(stream).write("")
    os._exit(0)


# ------------------------------------------------------------------ phases
current_phase = "run"


@contextmanager
def phase(name):
    """Sets the phase, a key of MORE_MEMORY, that error messages name."""
    global current_phase
    before, current_phase = current_phase, name
    yield
    # An exception skips this line, so the message names the innermost phase.
    current_phase = before


# ------------------------------------------------------------------ errors
class LostRank(SystemExit):
    """The connection to another rank is lost. That rank's error is the cause."""


@contextmanager
def explained(cfg, verifier):
    """Replaces an error that `explain` knows with a one-line message.

    Yields an ExitStack for what must be closed at the end. With several
    ranks, an error closes nothing: vLLM's engine would destroy the process
    group, which waits for the other ranks, while they wait for this one.
    Instead the process exits at once, and torchrun ends the other ranks."""
    global current_phase
    current_phase = "run"
    with ExitStack() as stack:
        try:
            yield stack
        # CheckpointException derives from BaseException, not from Exception.
        except (Exception, SystemExit, CheckpointException) as error:
            if isinstance(error, SystemExit) and not error.code:
                raise  # a regular stop
            told = explain(error, cfg)
            if dist.get_world_size() > 1:
                leave_at_once(told, verifier)
            if isinstance(told, SystemExit):
                # The traceback, which nobody will see, keeps alive the tensors
                # of the functions in it. The engine needs their memory, because
                # it wakes up before it closes.
                traceback.clear_frames(error.__traceback__)
            if told is error:
                raise
            raise told from error


def explain(error, cfg):
    """Returns a SystemExit that says what the run was doing and what to do, or
    the error itself if there is no explanation."""
    if isinstance(error, SystemExit):
        return error
    where = f"rank {os.environ['RANK']}, during the {current_phase}"
    text = str(error)
    advice = more_memory(cfg)
    if isinstance(error, CheckpointException):
        # This exception reaches all ranks, whichever of them failed.
        if os.environ["RANK"] == "0":
            drop_unfinished(cfg.output_dir)
        return one_line_exit(
            f"a checkpoint could not be written: {reason(error)}. "
            + after_failed_save(cfg.output_dir))
    # vLLM's allocator raises a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and "out of memory" in text):
        return one_line_exit(
            f"{where}: out of GPU memory. To fix it: {advice}. ({one_line(error)})")
    # safetensors gives the error number only in the text.
    named = re.search(r"os error (\d+)", text)
    number = int(named[1]) if named else getattr(error, "errno", 0)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return one_line_exit(
            f"{where}: {one_line(error)}. " + after_failed_save(cfg.output_dir))
    if isinstance(error, RuntimeError) and re.search(LOST, text):
        return LostRank(error_line(
            f"{where}: the connection to another rank is lost; that rank's "
            f"own error gives the cause. ({one_line(error)})"))
    if isinstance(error, RuntimeError) and re.search(SILENT, text):
        return one_line_exit(
            f"{where}: another rank hangs: it did not respond within the time "
            "limit. `py-spy dump --pid` shows its stack; the same command "
            f"resumes the run. ({one_line(error)})")
    if current_phase in ("engine start", "rollout") and cfg.rollout == "vllm":
        error.add_note(
            f"simko.py: the engine failed during the {current_phase}."
            f"{last_lines()}\nIf it ran out of memory: {advice}. If the engine's "
            "cache is too small: raise --gpu-memory-utilization, or on CPUs "
            "VLLM_CPU_KVCACHE_SPACE.")
    return error


def more_memory(cfg):
    """Returns the ways to give the current phase more memory."""
    useless = set()
    if cfg.rollout == "hf":
        useless.add(ENGINE)
    if cfg.gradient_checkpointing:
        useless.add(CHECKPOINTING)
    ways = [way for way in MORE_MEMORY[current_phase] if way not in useless]
    return ", or ".join(ways).format(**vars(cfg))


def one_line_exit(message):
    """Returns a SystemExit that shows one line for the user."""
    return SystemExit(error_line(message))


def after_failed_save(folder):
    """Returns what to tell the user when a save has failed."""
    free = shutil.disk_usage(folder).free / 2**30
    return (f"{free:.1f} GiB are free in {folder}. Complete checkpoints and "
            "responses are kept. If the disk is full, free some space (for "
            "example, delete checkpoints of finished runs) and run the same "
            "command again")


def leave_at_once(error, verifier):
    """Prints the error, with its traceback if there is no explanation, and
    ends this process and its workers."""
    if isinstance(error, SystemExit):
        text = f"{error.code}\n"
    else:
        text = "".join(traceback.format_exception(error))
    print(text, end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    verifier.close()
    if isinstance(error, LostRank):
        # torchrun reports the first rank that ends as the root cause and
        # then ends the others. Wait for its signal, so that it reports the
        # rank that failed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not GuardedEngine.asked:
            threading.Event().wait(30)
    else:
        get_error_handler().record_exception(error)
    os._exit(1)


def reason(error):
    """Returns the error of the first rank that could not load or save a
    checkpoint."""
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {type(cause).__name__}: {one_line(cause)}"


# ----------------------------------------------------------------- signals
class Stopped(SystemExit):
    """A signal asked one rank to stop, so all ranks exit with status 0."""


class Unbroken:
    """Wraps a stream so that writing does not fail when its reader has gone.
    In `simko.py ... | tee log`, Ctrl-C ends tee as well, and a terminal may
    close at any time. The run must still save."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            discard(self.stream.fileno())


def discard(descriptor):
    """Redirects a file descriptor to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextmanager
def start_limit(rank):
    """Ends the process if the engine does not start within START_LIMIT."""
    # The engine may redirect stderr to a file in the meantime.
    with os.fdopen(os.dup(2), "w") as screen:
        timer = threading.Timer(START_LIMIT, hangs, (rank, screen))
        timer.daemon = True
        timer.start()
        # Unlike the timer, this works even if the interpreter is blocked.
        faulthandler.dump_traceback_later(
            START_LIMIT + 60, exit=True, file=screen)
        try:
            yield
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()


def hangs(rank, screen):
    """Ends the process, because the engine did not start in time."""
    print(f"simko.py: error: rank {rank}: the engine did not start within "
          f"{START_LIMIT} s.{last_lines()}\nIts stack:", file=screen, flush=True)
    faulthandler.dump_traceback(screen)
    os._exit(1)


class GuardedEngine:
    """An engine whose start has a time limit. Its rollouts end early on all
    ranks when any rank receives SIGTERM, SIGINT or SIGHUP.

    A signal in another phase takes effect where the next rollout would begin,
    because the weights belong to a complete step only during a rollout.
    A second signal other than SIGHUP ends the process at once.

    start: a function that returns the engine. shared: whether several ranks
    share an engine. If one of them left a rollout early, the others would
    wait for it, so all of them finish the rollout."""
    # Whether this process has received a signal. It belongs to the class,
    # because `leave_at_once` has no engine.
    asked = False

    def __init__(self, start, shared=False):
        self.shared = shared
        self.rank = dist.get_rank()
        self.signal = None         # the signal that any rank has received
        GuardedEngine.asked = False
        self.abandonable = False   # whether the rollout may be left now
        self.stopped = False
        with start_limit(self.rank), phase("engine start"):
            self.engine = start()
        self.sleep = self.engine.sleep
        numbers = [signal.SIGTERM, signal.SIGINT]
        # Under nohup, SIGHUP is ignored: the run outlives its terminal.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self.ask) for number in numbers}
        self.streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = map(Unbroken, self.streams)

    def ask(self, number, frame):
        """Handles SIGTERM, SIGINT and SIGHUP."""
        if self.asked:
            if number == signal.SIGHUP:
                return  # A terminal that closes sends it more than once.
            os._exit(128 + number)
        GuardedEngine.asked, self.signal = True, number
        name = signal.Signals(number).name
        text = (f"rank {self.rank} received {name} and stops; complete steps and "
                "responses are kept; a second signal stops at once\n")
        try:
            os.write(2, text.encode())
        except OSError:
            discard(2)
        if self.abandonable:
            raise Stopped(0)

    def generate(self, *arguments, **options):
        """Returns the engine's samples, or raises Stopped on all ranks if one of
        them has received a signal."""
        samples = None
        if self.shared:
            self.stop_if_asked()
        try:
            self.abandonable = not self.shared
            if not (self.signal and self.abandonable):
                with phase("rollout"):
                    samples = self.engine.generate(*arguments, **options)
            self.abandonable = False
        except Stopped:
            pass
        self.stop_if_asked()
        return samples

    def stop_if_asked(self):
        """Raises Stopped on every rank if any rank has received a signal."""
        global current_phase
        current_phase = "run"  # a rollout that was left early did not reset it
        asked = torch.tensor(self.signal or 0)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        if not asked:
            return
        self.signal, self.stopped = int(asked), True
        raise Stopped(0)

    def load_weights(self, named_weights):
        with phase("weight sync"):
            self.engine.load_weights(named_weights)

    def close(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.stopped and self.rank == 0:
            name = signal.Signals(self.signal).name
            print(f"stopped by {name}: the same command resumes the run", flush=True)
        sys.stdout, sys.stderr = self.streams
        self.engine.close()


# ------------------------------------------------------ the start of a run
def try_sampling(cfg, benchmarks, engine, progress):
    """Samples a few tokens with the sampling settings of each benchmark, so
    that settings which fail do so in the first minute of a run rather than
    after hours of training."""
    ways = {(b.temperature, b.top_p): b for b in benchmarks}
    for (temperature, top_p), benchmark in ways.items():
        prompt = benchmark.problems[0]["prompt_ids"]
        # Ranks that share an engine need the same random state.
        seed_everything(cfg.seed)
        engine.generate(
            [prompt], 1, temperature, top_p, min(8, benchmark.max_tokens),
            progress, logprobs=False)


# ----------------------------------------------------------------- numbers
def refuse_update(trainer, finite, loss, norm):
    """Prints which responses made a loss or gradient non-finite. Ends the run
    at the third such update in a row. All ranks must call it together.

    finite: (samples, whether the loss of each of their tokens is finite) for
    each micro-batch. loss, norm: the mini-batch's loss and gradient norm."""
    trainer.refused += 1
    found = []
    for samples, is_finite in finite:
        parts = is_finite.split([len(s.response_ids) for s in samples])
        found += [s for s, part in zip(samples, parts) if not part.all()]
    rows = gather([
        f"rank {trainer.rank}, problem {s.id}: {ascii(s.text[:60])}"
        for s in found])
    if not rows:
        # Only the gradient is not finite, so any response may be the cause.
        own = [s.id for samples, _ in finite for s in samples]
        ids = sorted({*gather(own)})
        rows = ["the loss of each response is finite; the problems of the "
                f"mini-batch: {', '.join(ids[:50])}"]
    if trainer.rank == 0:
        cfg = trainer.cfg
        updates = cfg.batch_size // cfg.mini_batch_size
        step, update = divmod(trainer.updates - 1, updates)
        more = [f"and {len(rows) - 8} more"] if len(rows) > 8 else []
        lines = [f"\n  {printable(row)}" for row in rows[:8] + more]
        tqdm.write(
            f"step {step + 1}, update {update + 1}: skipped, because the loss "
            f"({loss}) or the gradient norm ({norm}) is not finite:"
            + "".join(lines), file=sys.stderr)
    if trainer.refused == 3:
        fail("three updates in a row were not finite; the messages above name "
             "the responses. The last checkpoint was saved before them. Likely "
             "causes: a log-ratio above 88 (lower --learning-rate, or make "
             "fewer updates per rollout), numbers too large for --dtype, or a "
             "broken GPU")


def check_gap(gap, samples, dtype):
    """Ends the run if the engine's policy differs from the trained policy, so
    that the samples do not come from pi_old.

    gap: the mean |log pi_trainer - log pi_engine| over the tokens of all
    ranks, in nats. samples: this rank's samples, which are checked one by one
    because the mean could hide a few that are entirely wrong."""
    # Rounding alone gave at most 0.02 in bfloat16 on an H100, 0.08 with large
    # random logits, and 1e-5 in float32.
    limit = 0.2 if dtype == torch.bfloat16 else 0.01
    refuse_gap(gap, limit, "over all responses")
    for s in samples:
        sample_gap = np.abs(s.old_logp.cpu().numpy() - s.engine_logp).mean()
        # A few rare tokens may differ by more than the mean.
        refuse_gap(sample_gap, 5 * limit, f"over a response to {printable(s.id)}")


def refuse_gap(gap, limit, where):
    if not gap < limit:
        fail(f"mean |log pi_trainer - log pi_engine| {where} is {gap:.3g}, "
             f"above {limit}: the engine does not sample from the trained "
             "policy. Likely causes: weights that have other names in the "
             "engine, an attention or output head with soft-capping or a bias, "
             "a quantised checkpoint, or, with --rollout hf, layers whose output "
             "changes with the padding of short prompts. If the value is nan, "
             "numbers are too large for --dtype")


def check_groups(step, groups, cfg):
    """Warns if --max-sampling-rounds did not find enough groups for a batch."""
    if len(groups) < cfg.batch_size and dist.get_rank() == 0:
        tqdm.write(
            f"warning: step {step + 1}: --max-sampling-rounds "
            f"{cfg.max_sampling_rounds} found only {len(groups)} of "
            f"{cfg.batch_size} groups with unequal rewards, and the step trains "
            "on those. Raise this number, or change --train-data",
            file=sys.stderr)


def check_rewards(path, steps=10):
    """Warns if all rewards of the last `steps` steps in metrics.jsonl, at path,
    were 0 or all were 1. Warns once, and not at every step that follows."""
    with path.open() as file:
        rewards = [json.loads(line)["reward"] for line in deque(file, steps + 1)]
    before, last = rewards[:-steps], rewards[-steps:]
    # A fork's own reward may be nan, which the log holds as null.
    if len(last) < steps or set(last) not in ({0.0}, {1.0}):
        return
    if before == last[:1]:  # the step before has warned already
        return
    tqdm.write(
        f"warning: all rewards of {steps} steps were {last[0]:.0f}, so "
        "there is nothing to learn from. Read some responses (simko.py "
        "eval --eval-n 4) and check --task, the format of the answers "
        "in --train-data, --prompt-template, --max-completion-length "
        "(`truncated` in metrics.jsonl), and how hard the problems are",
        file=sys.stderr)
