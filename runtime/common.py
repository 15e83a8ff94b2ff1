"""What every other file uses: messages, files that are never half written,
lists gathered from all ranks, random streams, the process group."""
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

# For ranks to find each other. Under torchrun they need not wait.
MEETING_LIMIT = timedelta(minutes=15)
# For ranks to answer each other: they wait for the slowest rollout,
# and for rank 0 while it exports the model.
ANSWER_LIMIT = timedelta(hours=2)


def printable(text):
    """The text with control characters escaped.

    A model's response or a file could otherwise send commands
    to the terminal that shows it."""
    return "".join(
        char if char.isprintable()
        else char.encode("unicode_escape").decode()
        for char in text)


def one_line(error):
    """The first 300 characters of an error's message, in one line."""
    return printable(" ".join(str(error).split())[:300])


def error_line(message):
    """A message for the user, in one line that names the program."""
    name = Path(sys.argv[0]).name
    if not name.endswith(".py") or name == "__main__.py":
        name = "simko.py"  # called from Python, and not as a program
    return f"{name}: error: {printable(message)}"


def fail(message):
    """Ends the program with a one-line message for the user."""
    raise SystemExit(error_line(message))


def write_whole(path, text):
    """Replaces a file's content as a whole.

    If anything goes wrong, the file stays as it was."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def gather(items):
    """Concatenates the lists of all ranks. Every rank gets the result."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def sum_over_ranks(sums):
    """Adds up {name: number or tensor} over all ranks. Every rank must
    have the same names. Returns {name: float or list}."""
    totals = {}
    for name, value in sums.items():
        total = torch.as_tensor(value).detach().double().cpu()
        dist.all_reduce(total)
        totals[name] = total.tolist()
    return totals


def seed_everything(*key):
    """Makes all random streams a function of `key`, a few integers.

    Both rollout engines draw from the process's global generators, and
    move them when they start. So each use is preceded by this call."""
    sequence = np.random.SeedSequence(key)
    value = int(sequence.generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def meet():
    """Waits for the ranks that another process has started. Returns the
    store that they share, this one's rank, and how many there are."""
    try:
        return next(dist.rendezvous("env://", timeout=MEETING_LIMIT))
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        fail(f"rank {os.environ['RANK']}: not all of WORLD_SIZE="
             f"{os.environ['WORLD_SIZE']} processes came to "
             f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within "
             f"{MEETING_LIMIT.total_seconds():.0f} s. If nobody starts them, "
             f"unset WORLD_SIZE. ({one_line(error)})")


@contextmanager
def process_group():
    """Sets up torch.distributed, under torchrun or for this process
    alone. Yields this rank's device, and cleans up in any case."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        # Port 0: the store finds a free port itself, so that
        # no other process can take it in between.
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
    """The mesh that FSDP shards over. On several nodes each node holds a
    replica of the model, which is sharded within the node."""
    world = dist.get_world_size()
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if local == world:
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // local, local),
                            mesh_dim_names=("replicate", "shard"))
