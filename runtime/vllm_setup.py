"""Finds vLLM, and sets up what its public options do not: environment
variables, its log, its compile cache, and a fix for CPUs."""
import logging
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig

from runtime.common import fail, one_line, print_once, printable
from runtime.hardware import missing_for_vllm_on_cpus
from runtime.models import NO_CODE


def find_vllm(cfg):
    """Returns whether vLLM can be used. Ends the program if it cannot and
    the settings ask for it."""
    problem = why_vllm_cannot_start(cfg)
    if problem is None:
        return True
    if cfg.rollout == "vllm" or cfg.tensor_parallel_size > 1:
        without = "--rollout hf"
        if cfg.tensor_parallel_size > 1:
            without += " and --tensor-parallel-size 1"
        fail(f"vLLM cannot be used: {problem}. To go on without it, choose {without}")
    if os.environ.get("LOCAL_RANK", "0") == "0":  # nodes may lack different things
        print("vLLM cannot be used, so transformers' generate makes the "
              f"rollouts: {problem}", flush=True)
    return False


def why_vllm_cannot_start(cfg):
    """Returns the reason in words, or None if vLLM should start."""
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        return one_line(error)
    if torch.cuda.is_available():
        return None
    if torch.version.cuda:  # vLLM is built for the same devices as PyTorch
        return "it was built for GPUs, and PyTorch sees none"
    return why_vllm_fails_on_cpus(cfg)


def why_vllm_fails_on_cpus(cfg):
    """Returns the reason in words, or None. vLLM itself would fail late in its
    start, with an error that does not say what to do."""
    if packages := missing_for_vllm_on_cpus():
        return ("this machine lacks packages that vLLM needs; on Debian "
                f"and Ubuntu, run apt install {' '.join(packages)}")
    for name, path in compile_paths(cfg):
        if is_split(path):
            return (f"{name}, {path}, contains a space, a quotation mark or a "
                    "backslash, and vLLM cannot compile code with such paths")
    return None


def compile_paths(cfg):
    """Returns (name, path) of each path that PyTorch passes to the C++
    compiler, without quotes. On GPUs, kernels are compiled by Triton, which
    passes each path on its own."""
    cache = "--output-dir", os.path.realpath(cfg.output_dir)
    if "VLLM_CACHE_ROOT" in os.environ:
        root = os.path.expanduser(os.environ["VLLM_CACHE_ROOT"])
        cache = "VLLM_CACHE_ROOT", os.path.abspath(root)
    return [
        cache,
        ("TMPDIR", tempfile.gettempdir()),
        ("the folder of PyTorch", os.path.dirname(torch.__file__)),
        ("the folder of Python", sysconfig.get_config_var("LIBDIR") or "/")]


def is_split(path):
    """Returns whether shlex, with which PyTorch splits its commands, would
    change the path."""
    try:
        return shlex.split(path) != [path]
    except ValueError:  # a quotation mark without its pair
        return True


@contextmanager
def prepare_vllm(cfg):
    """Sets up vLLM's environment for the engine that starts in this context.
    Each rank has its own log and cache of compiled code in the run folder.
    Must be entered before vLLM's engine is imported."""
    log = Path(cfg.output_dir, "vllm_log", f"rank_{os.environ['RANK']}.log")
    print_once(f"starting vLLM; its log is {log}")
    with stderr_in(log), compile_cache(cfg):
        os.environ.update(
            # Run the engine in this process, so that its weights are accessible.
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            # Otherwise vLLM pins the whole process to one core.
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_NO_USAGE_STATS="1")
        # FlashInfer compiles its kernels at their first use, and fails without
        # nvcc: the sampler in the first evaluation, the all-reduce while an
        # engine on several GPUs starts. vLLM's own kernels need no compiler.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        os.environ.setdefault("VLLM_ALLREDUCE_USE_FLASHINFER", "0")
        keep_log(log)
        leave_classes_alone()
        yield


def kernel_options(cfg):
    """Returns the options of vLLM's LLM that avoid kernels which would be compiled
    by nvcc while the engine starts."""
    options = attention_options(cfg.model)
    if cfg.tensor_parallel_size > 1:
        # VLLM_ALLREDUCE_USE_FLASHINFER does not reach this pass of the compiler.
        passes = {"fuse_allreduce_rms": False}
        options["compilation_config"] = {"pass_config": passes}
    return options


def attention_options(model):
    """Returns the options of vLLM's LLM for attention on this machine.

    On a GPU of compute capability 10, such as a B200, vLLM prefers FlashInfer,
    even where there is no nvcc to compile its kernels at their first use.
    vLLM's next choice, FlashAttention, needs no nvcc, but has neither latent
    attention (DeepSeek) nor large heads."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 10:
        return {}
    from vllm.utils.flashinfer import has_flashinfer
    config = AutoConfig.from_pretrained(model, **NO_CODE).get_text_config()
    latent = getattr(config, "kv_lora_rank", None)
    if has_flashinfer() or latent or (getattr(config, "head_dim", None) or 0) > 256:
        return {}
    return {"attention_config": {"backend": "FLASH_ATTN"}}


def leave_classes_alone():
    """Stops vLLM from changing the classes of transformers.

    vLLM runs models that it does not implement through transformers' classes.
    It would decorate these in place for torch.compile, and the trainer could
    then no longer build the same model. No option of vLLM prevents this, so
    vLLM runs such models without torch.compile."""
    from vllm.model_executor.models.transformers.base import Base
    Base._decorate_for_torch_compile = lambda model: None


@contextmanager
def stderr_in(path):
    """Redirects this process's stderr to the end of a file.

    While vLLM starts, libraries write harmless warnings and progress bars to
    stderr, some of them from C++. If the start fails, the error itself still
    reaches the screen, because it is raised."""
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
    """Sets a cache for compiled code, and discards it at the next start if
    this start does not complete.

    A process that is killed while vLLM compiles leaves damaged files in the
    cache, and all later starts would fail on them. If the user has set
    VLLM_CACHE_ROOT, that cache is used and never discarded."""
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
    # Neither an exception nor a kill reaches this line.
    mark.unlink()


class Tail(logging.Handler):
    """Keeps the last lines of a log."""

    def __init__(self):
        super().__init__()
        self.lines = deque(maxlen=30)

    def emit(self, record):
        self.lines.append(self.format(record))


tail = Tail()


def keep_log(path):
    """Writes vLLM's log to a file and keeps its last lines in memory. The
    screen shows errors only, unless VLLM_LOGGING_LEVEL names another level.
    A logging configuration that the user has set stays in effect."""
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
    """Returns the last lines of vLLM's log as text for an error message."""
    if not tail.lines:
        return " It wrote no log."
    lines = [f"{printable(line.rstrip())}\n" for line in tail.lines]
    return "\nThe last lines of its log:\n" + "".join(lines)


def repack_heads(model):
    """Repacks the output heads of vLLM's model after new weights are loaded.

    On CPUs, vLLM keeps a packed copy of a tied output head, and reloading the
    weights does not refresh that copy."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead)
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
