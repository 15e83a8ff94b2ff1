"""Starts processes for tests that need them: ranks, engines, and runs that are killed.

A process can start only one vLLM engine in its life, and each rank is a process. Each process
calls a worker, a function in the file of its test. A worker takes a folder, reads its input from
there and writes its results there:

    python -m tests.workers NAME FOLDER
"""
import json
import os
import pkgutil
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = dict(os.environ)  # a copy from before any test changes it
# One cache for all runs: with a cache of its own, each would compile its engine again.
ENVIRONMENT.setdefault("VLLM_CACHE_ROOT", str(Path.home() / ".cache" / "vllm"))
LIMIT = 1800  # seconds; even on a busy machine, only a process that hangs takes this long

WORKERS = {
    "gradients": "tests.workers:gradients",
    "engines": "tests.test_engines:vllm_engines",
    "runs": "tests.test_runs:vllm_runs",
    "one rank": "tests.test_runs:one_rank",
    "killed": "tests.test_faults:killed_runs",
    "faulty rank": "tests.test_ranks:faulty_rank",
    "shared engine": "tests.test_ranks:shared_engines",
    "nodes' folders": "tests.test_ranks:see_folders",
}


def torchrun(*options):
    """Returns the start of a command line that runs a program or `-m module` on several ranks.

    The ranks look for rank 0 at localhost, because the machine's own name may not resolve."""
    start = [sys.executable, "-m", "torch.distributed.run", "--local-addr", "localhost"]
    return [*start, *map(str, options)]


def worker(name, folder):
    """Returns the end of a command line that calls a worker, for Python or torchrun."""
    return ["-m", "tests.workers", name, str(folder)]


def two_ranks(*command):
    return [*torchrun("--standalone", "--nproc_per_node", 2), *map(str, command)]


def python(*command):
    return [sys.executable, *map(str, command)]


def run(command, **environment):
    """Runs a command in the project's folder and returns its output. If the command fails, fails
    the test and shows the output."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-9000:]}"
    return done.stdout


def fork(function, log):
    """Calls function() in a fork of this process, and returns the fork's pid. The fork's output
    goes to the file `log`.

    A fork has the imports of this process already, which take most of an engine's start."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        function()
        code = 0
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_of(pid):
    """Waits for a process and returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def gradients(folder):
    """Computes everything that test_trainer.py, test_methods.py and test_lora.py need from two
    ranks, so that the ranks start only once."""
    import torch

    from runtime.ranks import process_group
    from tests import test_lora, test_methods, test_trainer
    results = {}
    with process_group():
        for base in json.loads((folder / "bases.json").read_text()):
            results["trainer", base] = test_trainer.gradients(Path(base))
            results["methods", base] = test_methods.gradients(Path(base))
            results["lora", base] = test_lora.update(Path(base))
        if torch.distributed.get_rank() == 0:
            torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    from runtime import faults
    name, folder = sys.argv[1:]
    pkgutil.resolve_name(WORKERS[name])(Path(folder))
    faults.end_process()
