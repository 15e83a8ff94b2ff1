"""Tests of runtime/vllm_setup.py: which kernels vLLM uses, its cache of compiled code, and its
log."""
import logging
import os
import re
import sys
import types
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import AutoConfig

import simko
from runtime import cli, vllm_setup
from tests.conftest import ESCAPE, config


@pytest.mark.parametrize("kernels", [
    "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_ALLREDUCE_USE_FLASHINFER"])
@pytest.mark.parametrize("set_by_the_user, expected", [(None, "0"), ("1", "1")])
def test_vllm_starts_without_flashinfers_kernels_unless_the_user_wants_them_and_keeps_its_log(
        monkeypatch, tmp_path, kernels, set_by_the_user, expected):
    done = []
    monkeypatch.setattr(vllm_setup, "keep_log", done.append)
    monkeypatch.setattr(vllm_setup, "leave_classes_alone", lambda: done.append("classes"))
    with mock.patch.dict(os.environ):
        for name in (kernels, "VLLM_CACHE_ROOT"):
            os.environ.pop(name, None)
        os.environ["RANK"] = "1"
        if set_by_the_user:
            os.environ[kernels] = set_by_the_user
        log = tmp_path / "vllm_log/rank_1.log"
        with vllm_setup.prepare_vllm(config("model", output_dir=str(tmp_path))):
            assert done == [log, "classes"] and log.exists()
            assert os.environ[kernels] == expected
            assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
            assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
            assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
            assert os.environ["VLLM_CACHE_ROOT"] == str(tmp_path / "vllm_cache/rank_1")


def find_vllm(monkeypatch, cuda, cards, lacks=(), **changes):
    """Calls the function on a machine with a vLLM for `cuda` or, if it is None, for CPUs.

    cards: whether there are GPUs. lacks: the packages that vLLM for CPUs lacks."""
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards)
    monkeypatch.setattr(vllm_setup, "missing_for_vllm_on_cpus", lambda: lacks)
    return vllm_setup.find_vllm(config("model", **changes))


@pytest.mark.parametrize("output, changes, problem", [
    ("run", {}, None),
    ("my run", {}, "--output-dir, .*/my run, contains a space"),
    ("link/run", {}, "--output-dir, .*/a folder/run, contains a space"),
    ("Ann's run", {}, "--output-dir, .*/Ann's run, contains"),
    (r"a\b", {}, "--output-dir, "),
    ("ü(1)=$~&run", {}, None),
    ("my run", {"cache": "/cache"}, None),
    ("my run", {"cache": "{tmp}/link"}, None),  # vLLM uses the name of the link
    ("run", {"cache": "/my cache"}, "VLLM_CACHE_ROOT, /my cache, contains a space"),
    ("run", {"cache": "~/cache", "home": "/the home"}, "VLLM_CACHE_ROOT, /the home/cache, "),
    ("run", {"torch": "/my venv/torch/__init__.py"}, "the folder of PyTorch, /my venv/torch, "),
    ("run", {"python": "/my python/lib"}, "the folder of Python, /my python/lib, "),
    ("run", {"temporary": "/my tmp"}, "TMPDIR, /my tmp, "),
    ("my run", {"gpu": True}, None),
])
def test_with_paths_that_vllm_cannot_compile_it_is_not_started(
        monkeypatch, tmp_path, capsys, output, changes, problem):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a folder")
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    if cache := changes.get("cache"):
        monkeypatch.setenv("VLLM_CACHE_ROOT", cache.format(tmp=tmp_path))
    monkeypatch.setenv("HOME", changes.get("home", "/home"))
    monkeypatch.setattr(torch, "__file__", changes.get("torch", "/venv/torch/__init__.py"))
    monkeypatch.setattr(
        vllm_setup.sysconfig, "get_config_var", lambda _: changes.get("python", "/lib"))
    monkeypatch.setattr(
        vllm_setup.tempfile, "gettempdir", lambda: changes.get("temporary", "/tmp"))
    find = partial(find_vllm, monkeypatch, None, "gpu" in changes,
                   output_dir=str(tmp_path / output))
    assert find(rollout="auto") == (problem is None)
    printed = capsys.readouterr().out
    if problem is None:
        assert printed == "" and find(rollout="vllm")
    else:
        assert re.search(f"generate makes the rollouts: {problem}", printed)
        with pytest.raises(SystemExit, match=f"{problem}.*choose --rollout hf"):
            find(rollout="vllm")
    # The check comes before that of the model. transformers' generate compiles nothing.
    no_model = "there is no such folder"
    flags = ["--model", str(tmp_path / "none"), "--output-dir", str(tmp_path / output),
             "--dtype", "float32"]
    for rollout, stop in ("vllm", problem or no_model), ("hf", no_model):
        with pytest.raises(SystemExit, match=stop):
            cli.prepare(["train", "--rollout", rollout, *flags], simko.Config)
    assert not any((tmp_path / "a folder").iterdir())


@pytest.mark.needs_vllm
@pytest.mark.parametrize("capability, has_compiler, model, sizes, options", [
    ((9, 0), False, "qwen2", {}, {}),
    ((12, 0), False, "qwen2", {}, {}),
    ((10, 0), True, "qwen2", {}, {}),
    ((10, 0), False, "deepseek_v3", {}, {}),
    ((10, 0), False, "gemma3", {"text_config": {"head_dim": 512}}, {}),
    ((10, 0), False, "qwen2", {}, {"attention_config": {"backend": "FLASH_ATTN"}}),
    ((10, 0), False, "mixtral", {}, {"attention_config": {"backend": "FLASH_ATTN"}}),
    ((10, 0), False, "gemma", {}, {"attention_config": {"backend": "FLASH_ATTN"}}),
])
def test_without_nvcc_a_b200_does_not_use_flashinfer(
        monkeypatch, tmp_path, capability, has_compiler, model, sizes, options):
    from vllm.utils import flashinfer
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(flashinfer, "has_flashinfer", lambda: has_compiler)
    AutoConfig.for_model(model, **sizes).save_pretrained(tmp_path)
    assert vllm_setup.attention_options(tmp_path) == options


def test_an_engine_on_several_gpus_fuses_no_all_reduce(monkeypatch):
    """vLLM would use FlashInfer for it wherever it finds an nvcc, which may not fit."""
    monkeypatch.setattr(vllm_setup, "attention_options", lambda model: {})
    assert vllm_setup.kernel_options(config("model")) == {}
    passes = {"pass_config": {"fuse_allreduce_rms": False}}
    options = vllm_setup.kernel_options(config("model", tensor_parallel_size=2))
    assert options == {"compilation_config": passes}


def test_a_cache_whose_engine_did_not_start_is_discarded(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir(tmp_path)
    cfg = config("model", output_dir=".")

    def start(error=None):
        """Simulates an engine that starts, or fails, and leaves a file in the cache. Returns (the
        cache, whether the file was there before)."""
        with mock.patch.dict(os.environ), vllm_setup.compile_cache(cfg):
            root = Path(os.environ["VLLM_CACHE_ROOT"])
            found = (root / "main.so").exists()
            (root / "main.so").touch()
            if error:
                raise error
        return root, found

    with pytest.raises(KeyboardInterrupt):
        start(KeyboardInterrupt())
    root, found = start()
    assert root == tmp_path / "vllm_cache" / "rank_1" and not found
    assert start() == (root, True)


def test_a_vllm_for_gpus_is_not_used_where_they_are_hidden(monkeypatch, capsys):
    assert find_vllm(monkeypatch, "13.0", True, rollout="vllm")
    assert capsys.readouterr().out == ""
    assert not find_vllm(monkeypatch, "13.0", False, rollout="auto")
    assert "vLLM cannot be used, so transformers' generate" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="built for GPUs, and PyTorch sees none.*--rollout hf"):
        find_vllm(monkeypatch, "13.0", False, rollout="vllm")
    # transformers' generate has no such engine.
    with pytest.raises(SystemExit, match="--rollout hf and --tensor-parallel-size 1$"):
        find_vllm(monkeypatch, "13.0", False, rollout="auto", tensor_parallel_size=2)


def test_a_vllm_for_cpus_that_lacks_packages_is_not_used(monkeypatch, capsys):
    find = partial(find_vllm, monkeypatch, None, False, output_dir="/run")
    monkeypatch.setattr(vllm_setup, "compile_paths", lambda cfg: [])
    assert find(rollout="vllm")
    lacks = ["g++", "libnuma1"]
    assert not find(lacks, rollout="auto")
    assert "makes the rollouts: this machine lacks packages" in capsys.readouterr().out
    with mock.patch.dict(os.environ, RANK="3", LOCAL_RANK="1"):  # another rank of its node says it
        assert not find(lacks, rollout="auto")
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match=r"apt install g\+\+ libnuma1. .* choose --rollout hf"):
        find(lacks, rollout="vllm")
    assert find_vllm(monkeypatch, None, True, lacks, rollout="vllm")


def test_a_vllm_that_cannot_be_imported_says_why(monkeypatch, tmp_path, capsys):
    (tmp_path / "vllm.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert not vllm_setup.find_vllm(config("model", rollout="auto"))
    assert capsys.readouterr().out.endswith(": undefined symbol\n")
    with pytest.raises(SystemExit, match="undefined symbol"):
        vllm_setup.find_vllm(config("model", rollout="vllm"))


def test_a_cache_of_the_users_own_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/their/cache")
    with vllm_setup.compile_cache(config("model", output_dir=str(tmp_path))):
        assert os.environ["VLLM_CACHE_ROOT"] == "/their/cache"
    assert not list(tmp_path.iterdir())


def test_vllms_log_is_kept_and_only_its_errors_are_shown(tmp_path, monkeypatch, capsys, caplog):
    logger = logging.getLogger("vllm")
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING"):
        monkeypatch.setenv(name, "ERROR")
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm_setup, "tail", vllm_setup.Tail())
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    assert vllm_setup.last_lines() == " It wrote no log."
    with mock.patch.dict(os.environ, VLLM_LOGGING_CONFIG_PATH="their.json"):
        vllm_setup.keep_log(tmp_path / "theirs.log")
    assert not (tmp_path / "theirs.log").exists()
    vllm_setup.keep_log(tmp_path / "rank_0.log")
    assert os.environ["VLLM_CONFIGURE_LOGGING"] == "0"
    for i in range(40):
        logging.getLogger("vllm.engine").log((logging.INFO, logging.WARNING)[i % 2], "line %d", i)
    logger.error("broken")
    assert list(vllm_setup.tail.lines) == [*(f"line {i}" for i in range(11, 40)), "broken"]
    assert capsys.readouterr().out == "broken\n" and "line 39\nbroken" in vllm_setup.last_lines()
    lines = (tmp_path / "rank_0.log").read_text().splitlines()
    assert lines == [*(f"line {i}" for i in range(40)), "broken"]
    logger.info("%s", ESCAPE)
    assert r"\x1b]0;owned" in vllm_setup.last_lines()
    assert "\x1b" not in vllm_setup.last_lines()
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "debug")  # vLLM takes it in lower case too
    vllm_setup.keep_log(tmp_path / "rank_0.log")
    logger.debug("details")
    assert capsys.readouterr().out == "details\n"
    assert not caplog.records  # or other handlers would show it a second time


def test_what_libraries_print_while_the_engine_starts_goes_to_a_file(
        tmp_path, capfd, monkeypatch):
    """C++ code writes to the file descriptor and not to sys.stderr, which pytest replaces."""
    path = tmp_path / "vllm_log" / "rank_0.log"
    with open(2, "w", closefd=False) as stderr:  # holds text back until it is flushed
        monkeypatch.setattr(sys, "stderr", stderr)
        stderr.write("before, ")
        with pytest.raises(ValueError), vllm_setup.stderr_in(path):
            os.write(2, b"from C++\n")
            stderr.write("from Python\n")
            raise ValueError
        os.write(2, b"afterwards\n")
        assert capfd.readouterr().err == "before, afterwards\n"
        with vllm_setup.stderr_in(path):  # of the next start
            os.write(2, b"again\n")
    assert path.read_text().splitlines() == ["from C++", "from Python", "again"]
