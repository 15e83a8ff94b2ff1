"""The ranks of a run, one process for each GPU: how they are launched and find
each other, and what they compute together."""
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from runtime.common import fail, one_line

# How long ranks wait for each other to start. Under torchrun all start together.
MEETING_LIMIT = timedelta(minutes=15)
# The limit for collectives, in which ranks wait for the slowest rollout
# and for rank 0 to export the model.
ANSWER_LIMIT = timedelta(hours=2)
# The variables that torchrun sets for each process.
LAUNCH_NUMBERS = "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"


# -------------------------------------------------------------- the launch
def check_launch():
    """Ends the program if only some of torchrun's variables are set, for example
    by a cluster's job. The run would wait for ranks that nobody starts.

    If all are set but not by torchrun, another launcher may have set them, or
    a job may have left them. Only the other ranks can tell, so the run prints
    that it is waiting, and `meet` gives up after MEETING_LIMIT."""
    check_restart()
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return
    bad = [name for name in LAUNCH_NUMBERS
           if not os.environ.get(name, "").isdecimal()]
    if not os.environ.get("MASTER_ADDR"):
        bad.append("MASTER_ADDR")
    if bad:
        fail(f"WORLD_SIZE={world} in the environment asks for several "
             f"processes, but {', '.join(bad)} is missing or invalid: start "
             "the run with torchrun, or unset WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        rank = os.environ["RANK"]
        print(f"note: rank {rank} waits for the other ranks, because "
              f"WORLD_SIZE={world} is set in the environment; if no launcher "
              "starts them, unset WORLD_SIZE", flush=True)


def check_restart():
    """Ends the program if torchrun restarted this rank with its own store,
    which would return the addresses of ranks that have died (PyTorch issue
    135712)."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        fail("torchrun --max-restarts needs "
             "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, on "
             "every node")


# ------------------------------------------------------- the process group
@contextmanager
def process_group():
    """Sets up torch.distributed, for the ranks of a launcher such as torchrun
    or for a single process. Yields this rank's device, and always cleans up."""
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
    # NVIDIA's containers allow TF32, which would round log-probs in float32.
    torch.set_float32_matmul_precision("highest")
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            fail(f"rank {rank} is process {local + 1} on its machine, where PyTorch "
                 f"sees {count} GPUs: start one process for each GPU, and let "
                 "each process see all of them")
        device = torch.device("cuda", local)
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    store.set_timeout(ANSWER_LIMIT)
    dist.init_process_group(
        backend, timeout=ANSWER_LIMIT, store=store, rank=rank, world_size=world)
    try:
        yield device
    finally:
        # Closing vLLM's engine may already have destroyed the group.
        if dist.is_initialized():
            dist.destroy_process_group()


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


def device_mesh(device):
    """Returns the mesh that FSDP shards over. With several nodes, each node
    has a replica of the model, which is sharded within the node."""
    world = dist.get_world_size()
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if local == world:
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // local, local),
                            mesh_dim_names=("replicate", "shard"))


# ------------------------------------------------------------- collectives
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
