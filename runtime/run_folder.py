"""The run folder: the checks before a run uses it, the lock that keeps other
runs out, and the removal of what a resumed run will write again."""
import dataclasses
import fcntl
import json
import os
import re
import shutil
import tempfile
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from runtime.common import fail, fail_as, flag, one_line, write_whole
from runtime.data import digest
from runtime.ranks import gather

# A run may resume with other values of these settings. The training problems
# are compared by their contents, so their file may have moved. Evaluations
# that have begun keep their settings, which check_responses compares.
CHANGEABLE = (
    "output_dir", "steps", "save_steps", "micro_batch_tokens",
    "gradient_checkpointing", "gpu_memory_utilization",
    "tensor_parallel_size", "train_data", "data_dir", "eval_data",
    "eval_steps", "eval_n", "eval_temperature", "eval_top_p",
    "eval_max_tokens")


# ------------------------------------------------------- what a run leaves
def saved_checkpoints(folder):
    """Returns {step: path} of a run's complete checkpoints, in ascending order."""
    return by_step(folder / "checkpoints", "step")


def by_step(folder, kind):
    """Returns {step: path} of the entries KIND_STEP, such as step_000020 or
    eval_000020, but not step_000020.tmp."""
    found = {}
    for path in folder.glob(f"{kind}_*"):
        if match := re.fullmatch(rf"{kind}_([0-9]{{6,}})", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


# ------------------------------------------------ before anything is loaded
def check_writable(folder):
    """Refuses an --output-dir that is not a folder. Raises OSError if
    nothing can be written there. Leaves nothing behind."""
    paths = [folder, *folder.parents]
    if any(path.exists() and not path.is_dir() for path in paths):
        fail(f"--output-dir {folder} is a file, or lies in one: name a folder")
    for path in paths:
        if path.is_symlink() and not path.exists():  # its disk may not be mounted
            fail(f"--output-dir {folder}: {path} is a link to {os.readlink(path)}, "
                 "which does not exist: make that folder, or name another one")
    with suppress(FileNotFoundError):
        folder.stat()  # raises if the name is too long, as exists() did before Python 3.14
    nearest = next(path for path in paths if path.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def run_settings(cfg, problems):
    """Returns the settings that config.json holds, which a run that resumes
    must share."""
    settings = dataclasses.asdict(cfg)
    return {**settings, "train_data_sha256": digest(problems)}


def check_run(cfg, problems):
    """Refuses a run folder that holds another run, or damage."""
    folder = Path(cfg.output_dir)
    if (folder / "metrics.jsonl").exists():
        check_log(folder / "metrics.jsonl")
    file = folder / "config.json"
    saved = saved_checkpoints(folder)
    if (folder / "hf").exists() and not saved:
        fail(f"{folder} holds a finished run without its checkpoints, so it "
             "cannot be continued, and starting over would delete its "
             "results: choose another --output-dir, or remove this one")
    if not file.exists():
        if (folder / "eval.json").exists():
            fail(f"{folder} holds an evaluation: choose another --output-dir "
                 "for this run")
        if saved:
            fail(f"{folder} holds checkpoints but no config.json that names "
                 "their settings: choose another --output-dir")
        return
    settings = run_settings(cfg, problems)
    fixed = {name: v for name, v in settings.items() if name not in CHANGEABLE}
    before = read_settings(file, file.read_bytes())
    # A run from before a setting existed had its default.
    changes = differences(dataclasses.asdict(type(cfg)()) | before, fixed)
    if "train_data_sha256" in changes:
        fail(f"{folder} holds a run on other training data: the problems of "
             f"--train-data {cfg.train_data} that are not in --eval-data, or "
             "their --task, have changed. Choose another --output-dir")
    changed = [f"{flag(name)} {change}" for name, change in changes.items()]
    if changed:
        fail(f"{folder} holds a run with other settings: "
             f"{'; '.join(changed)}. Give the old values, or choose another "
             "--output-dir")
    reached = max(saved, default=0)
    if reached > cfg.steps:
        fail(f"{folder} has reached step {reached} already, which is "
             f"beyond --steps {cfg.steps}: choose another --output-dir, or "
             "more steps")


def read_settings(path, text):
    """Returns the JSON object in `text`, which comes from the file `path`."""
    with fail_as(f"{path} is damaged", "repair it, or choose another --output-dir"):
        return dict(json.loads(text))


def differences(before, settings):
    """Returns {name: "was this, is that"} for each setting that has changed."""
    return {name: f"was {before.get(name)}, is {value}"
            for name, value in settings.items()
            if before.get(name) != value}


def check_log(path):
    """Refuses a metrics.jsonl with a damaged line, apart from a last line
    that was cut off."""
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        with fail_as(f"{path}, line {number}, is damaged", "remove the line"):
            int(json.loads(line)["step"])


# ----------------------------------------------------------- during a run
@contextmanager
def claimed(folder):
    """Locks the run folder. Two runs in one folder, such as a job and its
    requeued copy, would destroy each other's saves."""
    if dist.get_rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            # The lock belongs to this process; forked children do not keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            fail(f"another process uses {folder}: wait until it ends, "
                 "stop it, or choose another --output-dir")
        except OSError as error:
            print(f"note: {folder} cannot be locked ({one_line(error)}), so "
                  "make sure that no other run writes there", flush=True)
        yield


def check_shared(folder):
    """Ends the program if the nodes do not share the run folder. Every rank
    writes its part of each checkpoint there."""
    if int(os.environ["LOCAL_WORLD_SIZE"]) == dist.get_world_size():
        return
    rank = dist.get_rank()
    # A file system cannot have cached whether a random name exists.
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
             "choose an --output-dir on a disk that all nodes share")


def rewind(folder, first, steps):
    """Removes incomplete saves, and what a run that resumes after step `first`
    will write again."""
    drop_unfinished(folder)
    log = folder / "metrics.jsonl"
    if log.exists():
        # Text after the last newline is a row that was cut off.
        lines = log.read_text().split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= first]
        write_whole(log, "".join(line + "\n" for line in kept))
    if first < steps:
        for name in ("hf", "adapter"):
            shutil.rmtree(folder / name, ignore_errors=True)
    for step, path in by_step(folder, "eval").items():
        # On GPUs, repeated steps do not reproduce the same weights.
        if step > first:
            shutil.rmtree(path)


def drop_unfinished(folder):
    """Removes saves that were cut off before their rename."""
    for path in Path(folder, "checkpoints").glob("step_*.tmp"):
        print(f"{path}: removed, because this save was cut off", flush=True)
        shutil.rmtree(path, ignore_errors=True)
