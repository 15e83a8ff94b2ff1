"""What simko.py does when something goes wrong while it runs: signals, numbers that are not finite, memory, disks,
checkpoints, an engine that hangs, ranks that die. docs/reliability.md says what is promised, test_faults.py shows it.
"""
import errno
import faulthandler
import fcntl
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import traceback
import uuid
import weakref
from collections import deque
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException
from tqdm import tqdm

from simko import fail, gather, one_line, printable

START_LIMIT = 3600  # seconds for an engine to start: it may have to download its model
PHASES = {  # function: what the run was doing, and what to change if memory does not suffice
    "make_engine": ("the start of the engine", "lower --engine-memory {engine_memory}"),
    "GuardedEngine.generate": ("a rollout", "lower --engine-memory {engine_memory}, or the response limit"),
    "GuardedEngine.sync": ("the engine's wake-up and sync", "lower --engine-memory {engine_memory}, or more GPUs"),
    "Trainer.__init__": ("loading the policy", "more GPUs (weights and optimizer are sharded over them), or lower "
                                               "--engine-memory {engine_memory}"),
    "Trainer.old_statistics": ("log-probs", "lower --micro-batch-tokens {micro_batch_tokens}"),
    "Trainer.update": ("an update", "lower --micro-batch-tokens {micro_batch_tokens}, --gradient-checkpointing (now "
                                    "{gradient_checkpointing}), or more GPUs"),
    "save_hf": ("the export", "more GPUs; the last checkpoint is whole"),
}
LOST = "Connection (closed|reset|refused)|[Bb]roken pipe|remote process (has )?exited"
SILENT = "[Tt]imed out|[Tt]imeout"


class Stopped(SystemExit):
    """Every rank leaves, with status 0: a signal asked one of them to."""


class Tail(logging.Handler):
    """Keeps the last lines of a log."""

    def __init__(self):
        super().__init__()
        self.lines = deque(maxlen=30)

    def emit(self, record):
        self.lines.append(f"{self.format(record)}\n")


engine_log = Tail()


def keep_log():
    """Keeps the last lines that vLLM logs; on screen are its errors, or what VLLM_LOGGING_LEVEL says. Whoever gives
    vLLM a logging configuration of his own keeps that."""
    if "VLLM_LOGGING_CONFIG_PATH" in os.environ:
        return
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"  # or every engine that starts sets vLLM's own handlers anew
    logger, shown = logging.getLogger("vllm"), logging.StreamHandler(sys.stdout)
    shown.setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())
    logger.handlers, logger.propagate = [shown, engine_log], False
    logger.setLevel(min(shown.level, logging.INFO))


class Unbroken:
    """A stream that nobody may be left to read: Ctrl-C ends the `| tee log` behind a run, too, and must not cost its
    save."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            to_nowhere(self.stream.fileno())


def to_nowhere(descriptor):
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


class GuardedEngine:
    """An engine with a time limit on its start, whose rollouts end early at SIGTERM or SIGINT, on all ranks together.

    A signal during anything else waits for the next rollout, which then does not begin. Weights are whole in a rollout,
    and only there: what follows it changes them. A second signal ends the process at once. Where ranks share an engine,
    one that left a rollout would leave the others waiting in it: they begin it together, and finish it."""

    def __init__(self, start, shared=False):
        self.shared = shared
        self.asked = self.abandonable = self.stopped = False  # asked: this rank itself
        self.signal, self.rank = None, dist.get_rank()
        timer = threading.Timer(START_LIMIT, self.hangs)
        timer.daemon = True
        timer.start()
        faulthandler.dump_traceback_later(START_LIMIT + 60, exit=True, file=2)  # if the interpreter is blocked
        try:
            self.engine = start()
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()
        self.sleep = self.engine.sleep
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGTERM, signal.SIGINT)}
        self.streams = sys.stdout, sys.stderr

    def hangs(self):
        print(f"simko.py: error: rank {self.rank}: the engine did not start within {START_LIMIT} s.{log_lines()}\n"
              "Where it stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(2)
        os._exit(1)

    def ask(self, number, frame):
        if self.asked:
            os._exit(128 + number)
        self.asked, self.signal = True, number
        sys.stdout, sys.stderr = map(Unbroken, self.streams)
        name = signal.Signals(number).name
        try:
            os.write(2, f"rank {self.rank}: {name}: stopping after the last whole step; once more: at once\n".encode())
        except BrokenPipeError:
            to_nowhere(2)
        if self.abandonable:
            self.abandonable = False
            raise Stopped(0)

    def generate(self, *arguments, **options):
        samples = None
        if self.shared:
            self.stop_if_asked()
        try:
            self.abandonable = not self.shared
            samples = None if self.signal and self.abandonable else self.engine.generate(*arguments, **options)
            self.abandonable = False
        except Stopped:
            pass
        self.stop_if_asked()
        return samples

    def stop_if_asked(self):
        """Stopped on every rank, if a signal has come to one of them."""
        asked = torch.tensor(self.signal or 0)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        if asked:
            self.signal, self.stopped = int(asked), True
            freed = threading.Event()
            weakref.finalize(asked, freed.set)
            del asked
            freed.wait(10)  # gloo's thread may have it still, and would abort a process that ends before it lets go
            raise Stopped(0)

    def sync(self, named_weights):  # a function of its own, by which PHASES knows it
        self.engine.sync(named_weights)

    def close(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.stopped and self.rank == 0:
            print(f"stopped by {signal.Signals(self.signal).name}: the same command goes on", flush=True)
        sys.stdout, sys.stderr = self.streams
        self.engine.close()


def log_lines():
    lines = "".join(f"{printable(line.rstrip())}\n" for line in engine_log.lines)
    return f"\nThe last lines of its log:\n{lines}" if lines else " It wrote no log."


@contextmanager
def explained(cfg):
    """Errors that have an explanation: what the run was doing, and what to do."""
    try:
        yield
    except Exception as error:
        doing, help = phase(error.__traceback__)
        what = f"rank {os.environ['RANK']}, in {doing}"
        if isinstance(error, torch.OutOfMemoryError):
            fail(f"{what}: out of GPU memory. What helps: {help.format(**vars(cfg))}. ({one_line(error)})")
        number = re.search(r"os error (\d+)", str(error))  # of safetensors, whose errors have no errno
        if (int(number[1]) if number else getattr(error, "errno", 0)) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fail(f"{what}: {one_line(error)}. {room(cfg.output)}")
        if isinstance(error, RuntimeError) and re.search(LOST, str(error)):
            fail(f"{what}: the connection to another rank is lost; that rank's own error says why. ({one_line(error)})")
        if isinstance(error, RuntimeError) and re.search(SILENT, str(error)):
            fail(f"{what}: another rank gave no answer in the time it has (process_group in simko.py): it hangs. "
                 f"`py-spy dump --pid` shows where; the same command goes on. ({one_line(error)})")
        if doing in (PHASES["make_engine"][0], PHASES["GuardedEngine.generate"][0]):
            error.add_note(f"simko.py: the engine failed in {doing}.{log_lines()}\nIf it is for want of memory: "
                           f"{help.format(**vars(cfg))}; if its cache is too small, raise --engine-memory.")
        raise
    except CheckpointException as error:  # of a save: on every rank, whichever met it
        if os.environ["RANK"] == "0":  # the process group may have gone with the engine
            drop_unfinished(cfg.output)
        fail(f"a checkpoint could not be written: {reason(error)}. {room(cfg.output)}")


def phase(trace):
    """The innermost of PHASES that a traceback passes through."""
    names = [frame.f_code.co_qualname for frame, _ in traceback.walk_tb(trace)]
    return next((PHASES[name] for name in reversed(names) if name in PHASES),
                ("what is between the phases", "lower --engine-memory {engine_memory}"))


def reason(error):
    """What the first rank met that could not load or save a checkpoint."""
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {type(cause).__name__}: {one_line(cause)}"


def room(folder):
    return (f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB are free there. What {folder} has of checkpoints is "
            "whole: where room is short make some (checkpoints of finished runs, say), and give the same command again")


def drop_unfinished(folder):
    """Saves that were cut off: none of them is a checkpoint."""
    for path in Path(folder, "checkpoints").glob("step_*.tmp"):
        print(f"{path}: a save that was cut off, removed", flush=True)
        shutil.rmtree(path, ignore_errors=True)


def skip_checkpoint(path, error, last):
    """Names a checkpoint that cannot be read and puts it aside, where no save meets it. Not the last there is: to begin
    again is the user's decision."""
    causes = [cause for cause, _ in error.failures.values()]
    if any(isinstance(cause, torch.OutOfMemoryError | OSError) and not isinstance(cause, FileNotFoundError)
           for cause in causes):
        fail(f"{path} could not be read this time ({reason(error)}): nothing is changed; give the command again")
    if last:
        fail(f"{path} cannot be read, nor a later one ({reason(error)}). Put it right; or move it away: the run then "
             "begins again")
    if dist.get_rank() == 0:
        aside = next(name for i in count(1) if not (name := path.with_suffix(f".unreadable{i}")).exists())
        path.rename(aside)
        print(f"{path} cannot be read, skipped and renamed to {aside.name}: {reason(error)}", flush=True)


def check_restart():
    """torchrun's own store would show a restarted rank the addresses of the dead ones (pytorch issue 135712)."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        fail("torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, on every node")


@contextmanager
def claimed(folder):
    """The run folder, for this run alone: two of them, a job and its requeue say, would destroy each other's saves."""
    if dist.get_rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of those it forks
        except (BlockingIOError, PermissionError):
            fail(f"another process is at work in {folder}: wait for its end, stop it, or choose another --output")
        except OSError as error:
            print(f"note: {folder} cannot be locked ({one_line(error)}): no other run may write there", flush=True)
        yield


def check_shared(folder):
    """Every rank writes its part of a checkpoint into the run folder: on several nodes it must be the same one."""
    if int(os.environ["LOCAL_WORLD_SIZE"]) == dist.get_world_size():
        return
    (name,) = gather([f".shared-{uuid.uuid4().hex}"] if dist.get_rank() == 0 else [])  # no cache knows it
    if dist.get_rank() == 0:
        (folder / name).touch()
    dist.barrier()
    blind = gather([dist.get_rank()] * (not (folder / name).exists()))
    if dist.get_rank() == 0:
        (folder / name).unlink(missing_ok=True)
    if blind:
        fail(f"ranks {blind} do not see what rank 0 writes to {folder}: --output must lie on a disk all nodes share")


def rewind(folder, first, steps):
    """Removes what a run that goes on from step `first` will make again: of later weights, or of half a save."""
    drop_unfinished(folder)
    if first < steps:
        shutil.rmtree(folder / "hf", ignore_errors=True)
    for path in folder.glob("eval_" + 6 * "[0-9]"):
        if int(path.name.removeprefix("eval_")) > first:  # on GPUs, weights made again are not the same bits
            shutil.rmtree(path)


def refuse_update(trainer, finite, loss, norm):
    """Names what made a loss or gradient not finite; the third time in a row it ends the run. On all ranks together.

    finite: (samples, bools of their tokens) of each micro-batch of this rank."""
    trainer.refused += 1
    found = [sample for samples, tokens in finite if samples for sample, part in zip(
        samples, tokens.split([len(s.response_ids) for s in samples])) if not part.all()]
    rows = gather([f"rank {trainer.rank}, problem {s.id}: {ascii(s.text[:60])}" for s in found])
    if not rows:  # the gradient alone: each of these may be the one
        ids = sorted({*gather([s.id for samples, _ in finite for s in samples])})
        rows = [f"no response's loss is; the mini-batch's problems: {', '.join(ids[:50])}"]
    if trainer.rank == 0:
        step, update = divmod(trainer.updates - 1, trainer.cfg.batch // trainer.cfg.mini_batch)
        rows = rows[:8] + [f"and {len(rows) - 8} more"] * (len(rows) > 8)
        tqdm.write(f"step {step + 1}, update {update + 1}: loss {loss}, gradient norm {norm}: not finite, not stepped:"
                   + "".join(f"\n  {printable(row)}" for row in rows), file=sys.stderr)
    if trainer.refused == 3:
        fail("three updates in a row were not finite: see above. The last checkpoint was saved before them. Likely: a "
             "log-ratio above 88 (a lower --lr, fewer updates a rollout), numbers too large for --dtype, a broken GPU")


def check_gap(gap, dtype):
    """Stops a run whose engine does not sample from the trained policy: pi_old is then a fiction."""
    limit = 0.2 if dtype == torch.bfloat16 else 0.01  # rounding alone: about 0.04 and 1e-6 to 1e-5
    if not gap < limit:
        fail(f"mean |log pi_trainer - log pi_engine| is {gap:.3g}, above {limit}: the engine does not sample from the "
             "trained policy. Likely: weights the engine knows by other names, an attention or output head with "
             "soft-capping or a bias, a quantised checkpoint; where it is nan, numbers too large for --dtype.")


def check_rewards(path, steps=10):
    """One warning when all rewards of the last `steps` rows of metrics.jsonl were equal."""
    with path.open() as file:
        rewards = [json.loads(line)["reward"] for line in deque(file, steps + 1)]
    equal = [math.isclose(reward, rewards[-1]) and reward in (0.0, 1.0) for reward in rewards]
    if len(rewards) >= steps and all(equal[-steps:]) and (len(rewards) == steps or not equal[0]):
        tqdm.write(f"warning: all rewards of {steps} steps were {rewards[-1]:.0f}: nothing to learn from. Read some "
                   "responses (simko.py eval --eval-n 4) and check --task, the answers' format in --train-data, "
                   "--prompt-template, --max-response-tokens (`truncated` in metrics.jsonl), the problems' difficulty",
                   file=sys.stderr)
