"""Helpers that the other files share: error messages, atomic file writes,
collectives over all ranks, random seeds and the process group."""
import os
import random
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

# How long ranks wait for each other to start. Under torchrun all start together.
MEETING_LIMIT = timedelta(minutes=15)
# The limit for collectives, in which ranks wait for the slowest rollout
# and for rank 0 to export the model.
ANSWER_LIMIT = timedelta(hours=2)


def printable(text):
    """Returns the text with control characters escaped.

    Otherwise a model's response or a file could send commands to the
    terminal that shows it."""
    return "".join(
        char if char.isprintable()
        else char.encode("unicode_escape").decode()
        for char in text)


def one_line(error):
    """Returns the first 300 characters of an error's message as one line."""
    return printable(" ".join(str(error).split())[:300])


def error_line(message):
    """Returns a one-line message for the user that names the program."""
    name = Path(sys.argv[0]).name
    if not name.endswith(".py") or name == "__main__.py":
        name = "simko.py"  # called from Python rather than as a program
    return f"{name}: error: {printable(message)}"


def fail(message):
    """Ends the program with a one-line message for the user."""
    raise SystemExit(error_line(message))


@contextmanager
def fail_as(what):
    """Turns any error of a library, such as that of a damaged file, into
    one line that begins with `what`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        fail(f"{what}: {one_line(error) or repr(error)}")


def flag(name):
    return f"--{name.replace('_', '-')}"


def write_whole(path, text):
    """Replaces a file's content atomically: if anything goes wrong, the file
    keeps its old content. Overwrites the file with the suffix .tmp beside it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def gather(items):
    """Concatenates the lists of all ranks in the order of ranks. Every rank
    receives the result."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def sum_over_ranks(sums):
    """Sums {name: number or tensor} over all ranks. Every rank must pass the
    same names in the same order. Returns {name: float or list}."""
    totals = {}
    for name, value in sums.items():
        total = torch.as_tensor(value).detach().double().cpu()
        dist.all_reduce(total)
        totals[name] = total.tolist()
    return totals


def seed_everything(*key):
    """Seeds all global random generators from `key`, a few integers.

    Both rollout engines draw from these generators, and advance them even
    when they start. Call this before each use."""
    sequence = np.random.SeedSequence(key)
    value = int(sequence.generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def meet():
    """Waits for the ranks that a launcher has started. Returns (the store
    that they share, this process's rank, the number of ranks). Ends the
    program if not all ranks arrive within MEETING_LIMIT."""
    try:
        return next(dist.rendezvous("env://", timeout=MEETING_LIMIT))
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        fail(f"rank {os.environ['RANK']}: not all of WORLD_SIZE="
             f"{os.environ['WORLD_SIZE']} processes connected to "
             f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within "
             f"{MEETING_LIMIT.total_seconds():.0f} s. If no launcher starts them, "
             f"unset WORLD_SIZE. ({one_line(error)})")


@contextmanager
def process_group():
    """Sets up torch.distributed, for the ranks of a launcher such as torchrun
    or for a single process. Yields this rank's device, and cleans up in any
    case."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        # With port 0 the store itself finds a free port, so
        # no other process can take it first.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        rank, world = 0, 1
        os.environ |= {
            "RANK": "0", "LOCAL_RANK": "0",
            "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    else:
        store, rank, world = meet()
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    store.set_timeout(ANSWER_LIMIT)
    dist.init_process_group(
        backend, timeout=ANSWER_LIMIT, store=store, rank=rank, world_size=world)
    try:
        yield device
    finally:
        # Closing vLLM's engine may have destroyed it already.
        if dist.is_initialized():
            dist.destroy_process_group()


def device_mesh(device):
    """Returns the mesh that FSDP shards over. With several nodes, each node
    has a replica of the model, which is sharded within the node."""
    world = dist.get_world_size()
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if local == world:
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // local, local),
                            mesh_dim_names=("replicate", "shard"))
