"""What happens when something goes wrong in a run: signals, numbers that
are not finite, memory, disks, checkpoints, an engine that hangs, ranks
that die. docs/reliability.md says what is promised."""
import errno
import faulthandler
import fcntl
import json
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
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from tqdm import tqdm

from runtime.common import (
    error_line, fail, gather, one_line, printable, seed_everything)
from runtime.vllm_setup import last_lines

# Seconds for an engine to start: it may have to download its model.
START_LIMIT = 3600

# What helps if a phase runs out of memory.
MORE_MEMORY = {
    "engine start":
        "lower --gpu-memory-utilization {gpu_memory_utilization}",
    "rollout":
        "lower --gpu-memory-utilization {gpu_memory_utilization}, or the "
        "response limit",
    "weight sync":
        "lower --gpu-memory-utilization {gpu_memory_utilization}, or use "
        "more GPUs",
    "loading of the policy":
        "use more GPUs (weights and optimizer are sharded over them), or "
        "lower --gpu-memory-utilization {gpu_memory_utilization}",
    "log-probs":
        "lower --micro-batch-tokens {micro_batch_tokens}",
    "update":
        "lower --micro-batch-tokens {micro_batch_tokens}, use "
        "--gradient-checkpointing (now {gradient_checkpointing}), or use "
        "more GPUs",
    "export":
        "use more GPUs; the last checkpoint is whole",
    "run":
        "lower --gpu-memory-utilization {gpu_memory_utilization}"}

LOST = ("Connection (closed|reset|refused)|[Bb]roken pipe|"
        "remote process (has )?exited")
SILENT = "[Tt]imed out|[Tt]imeout"


# ------------------------------------------------------------------ phases
current_phase = "run"


@contextmanager
def phase(name):
    """Error messages say in which phase (of MORE_MEMORY) a run was."""
    global current_phase
    before, current_phase = current_phase, name
    yield
    # An exception skips this line, so that the innermost phase stays.
    current_phase = before


class Stopped(SystemExit):
    """A signal asked one rank to stop: all leave with status 0."""


class LostRank(SystemExit):
    """Another rank has gone. Its error is the one to look at."""


# ------------------------------------------------------------------ errors
@contextmanager
def explained(cfg, verifier):
    """Turns an error that has an explanation into a line that says what
    the run was doing, and what to do.

    Yields an ExitStack for what must be closed at the end. With several
    ranks an error closes nothing: closing vLLM's engine destroys the
    process group, for which it would wait for ranks that wait for this
    one. Instead the process leaves at once, and torchrun ends the rest."""
    global current_phase
    current_phase = "run"
    with ExitStack() as stack:
        try:
            yield stack
        except (Exception, SystemExit, CheckpointException) as error:
            if isinstance(error, SystemExit) and not error.code:
                raise  # a wanted stop
            told = explain(error, cfg)
            if dist.get_world_size() > 1:
                leave_at_once(told, verifier)
            if told is error:
                raise
            raise told from error


def explain(error, cfg):
    """The error with an explanation, or as it is."""
    if isinstance(error, SystemExit):
        return error
    where = f"rank {os.environ['RANK']}, during the {current_phase}"
    text = str(error)
    help = MORE_MEMORY[current_phase].format(**vars(cfg))
    if isinstance(error, CheckpointException):
        # It reaches every rank, whichever met it.
        if os.environ["RANK"] == "0":
            drop_unfinished(cfg.output_dir)
        return stop(f"a checkpoint could not be written: {reason(error)}. "
                    + disk_space(cfg.output_dir))
    # vLLM's allocator raises a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and "out of memory" in text):
        return stop(f"{where}: out of GPU memory. What helps: {help}. "
                    f"({one_line(error)})")
    # safetensors puts the number into the text.
    number = re.search(r"os error (\d+)", text)
    number = int(number[1]) if number else getattr(error, "errno", 0)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return stop(f"{where}: {one_line(error)}. "
                    + disk_space(cfg.output_dir))
    if isinstance(error, RuntimeError) and re.search(LOST, text):
        return LostRank(error_line(
            f"{where}: the connection to another rank is lost; that rank's "
            f"own error says why. ({one_line(error)})"))
    if isinstance(error, RuntimeError) and re.search(SILENT, text):
        return stop(f"{where}: another rank hangs: it did not answer within "
                    "the limit that process_group sets. `py-spy dump --pid` "
                    "shows where it stands; the same command goes on. "
                    f"({one_line(error)})")
    if current_phase in ("engine start", "rollout"):
        error.add_note(
            f"simko.py: the engine failed during the {current_phase}."
            f"{last_lines()}\nIf memory is short: {help}. If the engine's "
            "cache is too small: raise --gpu-memory-utilization, on CPUs "
            "VLLM_CPU_KVCACHE_SPACE.")
    return error


def stop(message):
    return SystemExit(error_line(message))


def leave_at_once(error, verifier):
    """Prints the whole error and ends this process, with its workers."""
    if isinstance(error, SystemExit):
        text = f"{error.code}\n"
    else:
        text = "".join(traceback.format_exception(error))
    print(text, end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    verifier.close()
    if isinstance(error, LostRank):
        # torchrun takes the first rank to end for the root cause, and
        # then ends the others. So this one waits for its signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not GuardedEngine.asked:
            threading.Event().wait(30)
    else:
        get_error_handler().record_exception(error)
    os._exit(1)


def reason(error):
    """What the first rank that could not load or save a checkpoint met."""
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {type(cause).__name__}: {one_line(cause)}"


def disk_space(folder):
    free = shutil.disk_usage(folder).free / 2**30
    return (f"{free:.1f} GiB are free there. The checkpoints in {folder} "
            "are whole. If space is short, make some (checkpoints of "
            "finished runs, for example), and give the same command again")


# ----------------------------------------------------------------- signals
class Unbroken:
    """A stream that may have lost its reader. Ctrl-C also ends the
    `| tee log` behind a run, and that must not cost the run its save."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            discard(self.stream.fileno())


def discard(descriptor):
    """Sends what is written to a file descriptor nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


class GuardedEngine:
    """An engine with a limit on the time of its start. SIGTERM and SIGINT
    end its rollouts early, on all ranks together.

    A signal in any other phase waits for the next rollout, which then
    does not begin. The weights are whole during a rollout and at no other
    time. A second signal ends the process at once.

    shared: several ranks share an engine. If one of them left a rollout
    early, the others would wait for it, so all finish the rollout."""
    asked = False  # whether a signal has come to this process

    def __init__(self, start, shared=False):
        self.shared = shared
        self.rank = dist.get_rank()
        self.signal = None         # the one that came, to any rank
        GuardedEngine.asked = False
        self.abandonable = False   # whether a rollout may be left now
        self.stopped = False
        # The engine's start may send stderr to a file.
        self.screen = os.fdopen(os.dup(2), "w")
        timer = threading.Timer(START_LIMIT, self.hangs)
        timer.daemon = True
        timer.start()
        # This one works even if the interpreter is blocked.
        faulthandler.dump_traceback_later(
            START_LIMIT + 60, exit=True, file=self.screen)
        try:
            with phase("engine start"):
                self.engine = start()
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()
            self.screen.close()
        self.sleep = self.engine.sleep
        self.before = {
            number: signal.signal(number, self.ask)
            for number in (signal.SIGTERM, signal.SIGINT)}
        self.streams = sys.stdout, sys.stderr

    def hangs(self):
        print(f"simko.py: error: rank {self.rank}: the engine did not start "
              f"within {START_LIMIT} s.{last_lines()}\nWhere it stands:",
              file=self.screen, flush=True)
        faulthandler.dump_traceback(self.screen)
        os._exit(1)

    def ask(self, number, frame):
        """The signal handler."""
        if self.asked:
            os._exit(128 + number)
        GuardedEngine.asked, self.signal = True, number
        sys.stdout, sys.stderr = map(Unbroken, self.streams)
        name = signal.Signals(number).name
        text = (f"rank {self.rank}: {name}: stopping after the last whole "
                "step; a second signal stops at once\n")
        try:
            os.write(2, text.encode())
        except BrokenPipeError:
            discard(2)
        if self.abandonable:
            self.abandonable = False
            raise Stopped(0)

    def generate(self, *arguments, **options):
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
        """Raises Stopped on every rank, if a signal came to one."""
        global current_phase
        current_phase = "run"  # a rollout that was left did not say so
        asked = torch.tensor(self.signal or 0)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        if not asked:
            return
        self.signal, self.stopped = int(asked), True
        # gloo's thread may still hold the tensor, and would abort a
        # process that ends before it lets go.
        freed = threading.Event()
        weakref.finalize(asked, freed.set)
        del asked
        freed.wait(10)
        raise Stopped(0)

    def load_weights(self, named_weights):
        with phase("weight sync"):
            self.engine.load_weights(named_weights)

    def close(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.stopped and self.rank == 0:
            name = signal.Signals(self.signal).name
            print(f"stopped by {name}: the same command goes on", flush=True)
        sys.stdout, sys.stderr = self.streams
        self.engine.close()


def try_sampling(cfg, benchmarks, engine, progress):
    """Samples a few tokens in each way in which the benchmarks will. What
    cannot work should fail in the first minute of a run, not after hours
    of training."""
    ways = {(b.temperature, b.top_p): b for b in benchmarks}
    for (temperature, top_p), benchmark in ways.items():
        prompt = benchmark.problems[0]["prompt_ids"]
        # Ranks that share an engine must draw from one random stream.
        seed_everything(cfg.seed)
        engine.generate(
            [prompt], 1, temperature, top_p, min(8, benchmark.max_tokens),
            progress, logprobs=False)


# ---------------------------------------------------------- the run folder
def drop_unfinished(folder):
    """Removes saves that were cut off. None of them is a checkpoint."""
    for path in Path(folder, "checkpoints").glob("step_*.tmp"):
        print(f"{path}: a save that was cut off, removed", flush=True)
        shutil.rmtree(path, ignore_errors=True)


def skip_checkpoint(path, error, last):
    """Puts a checkpoint aside that cannot be read, and says so.

    last: there is no other. Then the user decides whether to begin
    again, and the program ends."""
    causes = [cause for cause, _ in error.failures.values()]
    temporary = torch.OutOfMemoryError | OSError
    if any(isinstance(cause, temporary)
           and not isinstance(cause, FileNotFoundError) for cause in causes):
        fail(f"{path} could not be read this time ({reason(error)}). Nothing "
             "has changed: give the command again")
    if last:
        fail(f"{path} cannot be read, nor a later one ({reason(error)}). "
             "Repair it; or move it away, and the run begins again")
    if dist.get_rank() == 0:
        aside = next(
            name for i in count(1)
            if not (name := path.with_suffix(f".unreadable{i}")).exists())
        path.rename(aside)
        print(f"{path} cannot be read, skipped and renamed to {aside.name}: "
              f"{reason(error)}", flush=True)


# What torchrun sets for each process.
LAUNCH_NUMBERS = "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"


def check_launch():
    """Refuses a half of torchrun's variables, as a cluster's job may leave
    them behind. The run would wait for ranks that nobody has started.

    If all are there but torchrun is not, another launcher may be at work,
    or a job left them all behind. Only the other ranks can tell, so the
    run says that it waits, and `process_group` gives up in time."""
    check_restart()
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return
    bad = [name for name in LAUNCH_NUMBERS
           if not os.environ.get(name, "").isdecimal()]
    if not os.environ.get("MASTER_ADDR"):
        bad.append("MASTER_ADDR")
    if bad:
        fail(f"WORLD_SIZE={world} is in the environment, which asks for "
             f"several processes, but no usable {', '.join(bad)}: start the "
             "run with torchrun, or unset WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        rank = os.environ["RANK"]
        print(f"note: rank {rank} will wait for the other ranks, since "
              f"WORLD_SIZE={world} is in the environment; if nobody starts "
              "them, unset WORLD_SIZE", flush=True)


def check_restart():
    """torchrun's own store would give a restarted rank the addresses of
    the dead ones (PyTorch's issue 135712)."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        fail("torchrun --max-restarts needs "
             "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, on "
             "every node")


@contextmanager
def claimed(folder):
    """Claims the run folder. Two runs in it, a job and its requeue for
    example, would destroy each other's saves."""
    if dist.get_rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            # It belongs to this process, and not to those it forks.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            fail(f"another process works in {folder}: wait until it ends, "
                 "stop it, or choose another --output-dir")
        except OSError as error:
            print(f"note: {folder} cannot be locked ({one_line(error)}), so "
                  "make sure that no other run writes there", flush=True)
        yield


def check_shared(folder):
    """Every rank writes its part of a checkpoint into the run folder, so
    several nodes must see the same folder."""
    if int(os.environ["LOCAL_WORLD_SIZE"]) == dist.get_world_size():
        return
    rank = dist.get_rank()
    # A name that no cache can know.
    mine = [f".shared-{uuid.uuid4().hex}"] if rank == 0 else []
    (name,) = gather(mine)
    if rank == 0:
        (folder / name).touch()
    dist.barrier()
    blind = gather([] if (folder / name).exists() else [rank])
    if rank == 0:
        (folder / name).unlink(missing_ok=True)
    if blind:
        fail(f"ranks {blind} do not see what rank 0 writes to {folder}: "
             "--output-dir must be on a disk that all nodes share")


def rewind(folder, first, steps):
    """Removes what a run that goes on after step `first` will make anew,
    and saves that were cut off."""
    drop_unfinished(folder)
    if first < steps:
        shutil.rmtree(folder / "hf", ignore_errors=True)
    for path in folder.glob("eval_" + 6 * "[0-9]"):
        # On GPUs, steps made again do not give the same weights.
        if int(path.name.removeprefix("eval_")) > first:
            shutil.rmtree(path)


# ----------------------------------------------------------------- numbers
def refuse_update(trainer, finite, loss, norm):
    """Names what made a loss or gradient not finite. The third time in a
    row ends the run. All ranks call it together.

    finite: (samples, bools of their tokens) of each micro-batch."""
    trainer.refused += 1
    found = []
    for samples, tokens in finite:
        parts = tokens.split([len(s.response_ids) for s in samples])
        found += [s for s, part in zip(samples, parts) if not part.all()]
    rows = gather([
        f"rank {trainer.rank}, problem {s.id}: {ascii(s.text[:60])}"
        for s in found])
    if not rows:
        # The gradient alone is not finite: any response may be the cause.
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
            f"step {step + 1}, update {update + 1}: loss {loss}, gradient "
            f"norm {norm}: not finite, so the weights stay as they are:"
            + "".join(lines), file=sys.stderr)
    if trainer.refused == 3:
        fail("three updates in a row were not finite, see above. The last "
             "checkpoint was saved before them. Likely causes: a log-ratio "
             "above 88 (lower --learning-rate, or make fewer updates a "
             "rollout), numbers too large for --dtype, a broken GPU")


def check_gap(gap, samples, dtype):
    """Ends a run whose engine samples from another policy than the
    trained one: pi_old would be a fiction.

    gap: the mean over all tokens of all ranks. samples: of this rank. The
    mean could hide a few responses that are altogether wrong."""
    # Rounding alone makes about 0.04 in bfloat16, 1e-5 in float32.
    limit = 0.2 if dtype == torch.bfloat16 else 0.01
    refuse_gap(gap, limit, "over all responses")
    for s in samples:
        gap = np.abs(s.old_logp.cpu().numpy() - s.engine_logp).mean()
        # A few rare tokens may be further off than the mean.
        refuse_gap(gap, 5 * limit, f"over a response to {printable(s.id)}")


def refuse_gap(gap, limit, where):
    if not gap < limit:
        fail(f"mean |log pi_trainer - log pi_engine| {where} is {gap:.3g}, "
             f"above {limit}: the engine does not sample from the trained "
             "policy. Likely causes: weights that the engine knows by other "
             "names, an attention or output head with soft-capping or a bias, "
             "a quantised checkpoint; if it is nan, numbers too large for "
             "--dtype.")


def check_groups(step, groups, cfg):
    """Warns if max_sampling_rounds did not suffice."""
    if len(groups) < cfg.batch_size and dist.get_rank() == 0:
        tqdm.write(
            f"step {step + 1}: --max-sampling-rounds {cfg.max_sampling_rounds} "
            f"found {len(groups)} of {cfg.batch_size} groups with unequal "
            "rewards, and the step trains on those. Raise it, or change "
            "--train-data.")


def check_rewards(path, steps=10):
    """Warns once if all rewards of the last steps in metrics.jsonl were
    equal."""
    with path.open() as file:
        rows = [json.loads(line) for line in deque(file, steps + 1)]
    rewards = [row["reward"] for row in rows]
    last = rewards[-1]
    # A reward of a fork's own may have been nan, which the log has as None.
    known = last in (0.0, 1.0)
    equal = [known and r is not None and math.isclose(r, last) for r in rewards]
    # It was said before if the step before these was like them.
    new = len(rewards) == steps or not equal[0]
    if len(rewards) >= steps and all(equal[-steps:]) and new:
        tqdm.write(
            f"warning: all rewards of {steps} steps were {last:.0f}, so "
            "there is nothing to learn from. Read some responses (simko.py "
            "eval --eval-n 4) and check --task, the format of the answers "
            "in --train-data, --prompt-template, --max-completion-length "
            "(`truncated` in metrics.jsonl), and how hard the problems are",
            file=sys.stderr)
