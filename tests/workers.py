"""Starts processes for tests that need them: ranks, engines, and runs that are killed.

A process can start only one vLLM engine in its life, and each rank is a process. If each imported
everything itself, most of its time would go there. So a server imports it once, and the processes
are forks of the server. A worker is a function that a test calls in such a fork. It is sent there
by its name, so it must be at the top level of its file.
"""
import contextlib
import multiprocessing
import os
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from runtime.ranks import process_group

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = dict(os.environ)  # a copy from before any test changes it
# One cache for all runs: with a cache of its own, each would compile its engine again.
ENVIRONMENT.setdefault("VLLM_CACHE_ROOT", str(Path.home() / ".cache" / "vllm"))
LIMIT = 1800  # seconds; even on a busy machine, only a process that hangs takes this long

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.conftest"])


# ----------------------------------------------------------------------------------------- commands
def python(*command):
    return [sys.executable, *map(str, command)]


def one_node(ranks):
    """Returns torchrun's options for this many ranks on this machine.

    They look for rank 0 at localhost, because the machine's own name may not resolve."""
    options = f"""
        --local-addr localhost --rdzv-backend c10d --rdzv-endpoint localhost:0
        --nproc-per-node {ranks}"""
    return options.split()


def two_ranks(*command):
    """Returns a command line that runs a program or `-m module` on two ranks."""
    return python("-m", "torch.distributed.run", *one_node(2), *command)


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


# ---------------------------------------------------------------------------------------- functions
def call(function, log, environment=None):
    """Calls function() in a fork of the server, whose output goes to the file `log`. If it fails,
    fails the test and shows the output. environment: variables to add."""
    wait(start(function, log, environment), log)


def call_on_two_ranks(function, log):
    """Does the same on two ranks."""
    wait(start_ranks(function, log, *one_node(2)), log)


def wait(process, log):
    try:
        process.join(LIMIT)
        code = process.exitcode
    finally:
        end(process)
    assert code == 0, f"exit code {code}\n{log.read_text()[-9000:]}"


def end(process):
    """Kills a process that still runs. Otherwise pytest would wait for it when it ends."""
    process.kill()
    process.join()


def start(function, log, environment=None):
    """Does what `call` does, but returns the process instead of waiting for it."""
    environment = ENVIRONMENT | (environment or {})
    process = server.Process(target=within_process, args=(function, log, environment))
    with contextlib.chdir(ROOT):  # in Python 3.11 the server imports only from there
        process.start()
    return process


def within_process(function, log, environment):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    np.random.seed()  # so that forks do not share what separate processes would not
    redirect(log)
    function()


def start_ranks(function, log, *options):
    """Calls function() on several ranks, as torchrun does with these options. Returns the process
    of torchrun's agent. The ranks are its forks."""
    return start(partial(agent, function, *options), log)


def agent(function, *options):
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config, _, _ = config_from_args(parse_args([*map(str, options), "no program"]))
    config.start_method = "fork"
    elastic_launch(config, rank)(function)


def rank(function):
    """Calls function(). The agent reads the name of what it calls, and a partial has none."""
    np.random.seed()
    function()


def redirect(log):
    """Appends what this process prints to the file `log`."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def fork(function, log):
    """Calls function() in a fork of this process, and returns the fork's pid. The fork's output
    goes to the file `log`.

    Workers use it if their forks share what the server lacks: the import of vLLM, or patches that
    cannot be pickled."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        redirect(log)
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


def gradients(bases, results):
    """Computes everything that test_trainer.py, test_methods.py and test_lora.py need from two
    ranks, so that the ranks start only once."""
    from tests import test_lora, test_methods, test_trainer
    computed = {}
    with process_group():
        for base in bases:
            computed["trainer", str(base)] = test_trainer.gradients(base)
            computed["methods", str(base)] = test_methods.gradients(base)
            computed["lora", str(base)] = test_lora.update(base)
        if torch.distributed.get_rank() == 0:
            torch.save(computed, results)
