"""What vLLM needs to run inside the training process, beyond its public
options: environment variables, its log, and a remedy for CPUs."""
import logging
import os
import shutil
import sys
from collections import deque
from contextlib import contextmanager
from pathlib import Path

from runtime.common import printable


class Tail(logging.Handler):
    """Keeps the last lines of a log."""

    def __init__(self):
        super().__init__()
        self.lines = deque(maxlen=30)

    def emit(self, record):
        self.lines.append(f"{self.format(record)}\n")


tail = Tail()


def prepare_vllm(cfg):
    """To be called before anything else imports vLLM."""
    os.environ.update(
        # The engine in this process, where its weights can be reached.
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        # Otherwise vLLM pins the whole process to one core.
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_NO_USAGE_STATS="1")
    # FlashInfer compiles its sampler when it first meets a top-p, which
    # is in the first evaluation, and fails where there is no nvcc. vLLM's
    # own sampler needs no compiler.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    keep_log(log_path(cfg))
    leave_classes_alone()


def leave_classes_alone():
    """Models that vLLM does not implement run in it as transformers' own
    classes. vLLM would change these for torch.compile, in place, and the
    trainer could not build the same model any more. vLLM has no option
    against that, so such models are sampled from without torch.compile."""
    from vllm.model_executor.models.transformers.base import Base
    Base._decorate_for_torch_compile = lambda model: None


@contextmanager
def engine_files(cfg):
    """Gives the engine that starts within it a log and a cache of compiled
    code in the run folder, which belong to this run and rank alone."""
    with stderr_in(log_path(cfg)), compile_cache(cfg):
        yield


def log_path(cfg):
    return Path(cfg.output_dir, "vllm_log", f"rank_{os.environ['RANK']}.log")


@contextmanager
def stderr_in(path):
    """Appends to a file what this process writes to stderr meanwhile.

    While vLLM starts, libraries write harmless warnings and progress bars
    there, some of them from C++. If the start fails, the error itself
    still reaches the screen, since it is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    screen = os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(screen, 2)
        os.close(screen)


@contextmanager
def compile_cache(cfg):
    """A process that is killed while vLLM compiles leaves damaged files in
    the cache, on which all later starts would fail. So a cache whose
    engine did not come to the end of its start is discarded.
    VLLM_CACHE_ROOT, if the user has set it, stays as it is."""
    if "VLLM_CACHE_ROOT" in os.environ:
        yield
        return
    folder = Path(cfg.output_dir, "vllm_cache", f"rank_{os.environ['RANK']}")
    mark = folder / "unfinished"
    if mark.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    os.environ["VLLM_CACHE_ROOT"] = str(folder.resolve())
    yield
    # An exception skips this line, and so does a kill.
    mark.unlink()


def keep_log(path):
    """Keeps what vLLM logs in a file, and the last lines in memory. The
    screen shows its errors, or what VLLM_LOGGING_LEVEL says. A logging
    configuration of the user's own stays as it is."""
    if "VLLM_LOGGING_CONFIG_PATH" in os.environ:
        return
    # Otherwise each engine that starts installs vLLM's own handlers.
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    shown = logging.StreamHandler(sys.stdout)
    shown.setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())
    logger = logging.getLogger("vllm")
    file = logging.FileHandler(path)
    logger.handlers, logger.propagate = [shown, tail, file], False
    logger.setLevel(min(shown.level, logging.INFO))


def last_lines():
    """The end of vLLM's log, as text for an error message."""
    if not tail.lines:
        return " It wrote no log."
    lines = [f"{printable(line.rstrip())}\n" for line in tail.lines]
    return "\nThe last lines of its log:\n" + "".join(lines)


def repack_heads(model):
    """On CPUs vLLM keeps a packed copy of a tied output head, which
    reloading the weights does not refresh. Makes that copy anew."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead)
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
