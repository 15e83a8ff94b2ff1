"""Tests of failures during a run: kills, signals, full disks, damaged checkpoints, non-finite
numbers, lack of memory, and engines that crash or hang. docs/reliability.md lists them.

    python -m pytest tests/test_faults.py

Processes that have to die are forks of one that has imported everything. See workers.py."""
import contextlib
import errno
import faulthandler
import itertools
import json
import math
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter

import simko
from runtime import cli, faults, packing, ranks, run_folder, vllm_setup
from runtime.checkpoints import save_checkpoint, skip_checkpoint, whole_folder
from runtime.hf_engine import HFEngine
from runtime.log import Log
from tests import workers
from tests.conftest import (
    CPU, benchmark, checkpoints, config, handled, load_samples, main, metrics, one_base, quiet)
from tests.provoke import ask, at_call, broken_losses, evaluation, flags, kill, raised, rollout
from tests.workers import end_of


# ---------------------------------------------------------------------------------- killed, stopped
def named(pattern):
    return lambda path, *_: Path(path).match(pattern)


def places():
    """Returns the places where a run is killed, one in each start of the run."""
    return {
        "first evaluation, between chunks": at_call(simko, "score", 2, kill),
        "rollout": at_call(HFEngine, "generate", 2, kill, after=True, when=rollout),
        "update": at_call(simko.Trainer, "update", 3, kill),
        "save, its parts written": at_call(FileSystemWriter, "finish", 1, kill),
        "save, before its rename": at_call(Path, "rename", 1, kill, when=named("step_000002.tmp")),
        "save, after its rename": at_call(
            Path, "rename", 1, kill, after=True, when=named("step_000002.tmp")),
        "before a save": at_call(simko, "save_checkpoint", 1, kill),
        "evaluation of step 3": at_call(HFEngine, "generate", 1, kill, after=True, when=evaluation),
        "export, before its rename": at_call(Path, "rename", 1, kill, when=named("hf.tmp")),
        "last evaluation's report": at_call(
            Path, "replace", 1, kill, when=named("eval_000006/eval.tmp")),
    }


def fork(log, function, *patches):
    """Calls function() with the patches in a fork of this process, whose output goes to the file
    `log`. Returns the fork's pid."""
    def patched():
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            function()
    return workers.fork(patched, log)


def killed_runs(data, folder):
    """Starts runs in forks of this process, kills them, and writes the outcomes to report.json."""
    log, report = folder / "log", {}

    def run(name, *patches):
        return fork(log, partial(simko.main, flags(data, folder / name)), *patches)

    _, status, used = os.wait4(run("clean"), 0)
    report["clean"], seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    report["places"] = {name: end_of(run("places", patch)) for name, patch in places().items()}
    report["places"]["nowhere"] = end_of(run("places"))

    rng, report["moments"], number = random.Random(0), [], 0
    # Each run dies after some seconds of its own CPU time, since the machine may be busy.
    # The signal has no handler, so it is as sudden as SIGKILL.
    while len(report["moments"]) < 10:
        moment = rng.uniform(0.1, 0.9) * seconds
        alarm = partial(signal.setitimer, signal.ITIMER_PROF, moment)
        code = end_of(run(f"random_{number}", mock.patch.object(ranks, "check_restart", alarm)))
        number += code == 0
        if code:
            report["moments"].append([number, round(moment, 2), code])
    report["random"] = [end_of(run(f"random_{i}")) for i in range(number + 1)]

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    def unread():
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.kill(os.getpid(), signal.SIGINT)

    def closed():
        terminal, ours = os.openpty()
        os.dup2(ours, 1)
        os.dup2(ours, 2)
        os.close(ours)
        os.close(terminal)

    report["closed"] = end_of(run("closed", at_call(simko.Trainer, "update", 3, closed)))
    report["closed_left"] = checkpoints(folder / "closed")
    report["unread"] = end_of(run("unread", at_call(simko.Trainer, "update", 5, unread)))
    report["unread_left"] = checkpoints(folder / "unread")
    report["twice"] = end_of(run("twice", at_call(simko.Trainer, "update", 1, twice)))
    report["twice_left"] = checkpoints(folder / "twice")

    hang = at_call(HFEngine, "__init__", 1, partial(time.sleep, 10**6))
    limit = mock.patch.object(faults, "START_LIMIT", 1)
    lines = mock.patch.object(vllm_setup.tail, "lines", ["INFO waiting for the moon"])
    report["hang"] = end_of(run("hang", hang, limit, lines))
    report["hang_log"] = log.read_text().partition("the engine did not start")[2]
    (folder / "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="session")
def forks(data, tmp_path_factory):
    """Returns (folder, report) of `killed_runs`."""
    folder = tmp_path_factory.mktemp("forks")
    log = folder / "log"
    workers.call(partial(killed_runs, data, folder), log)
    return folder, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="session")
def clean(forks):
    """Returns the folder of an undisturbed run."""
    assert forks[1]["clean"] == 0
    rows = metrics(forks[0] / "clean")
    assert all(row["grad_norm"] > 0 for row in rows) and rows[0]["reward"] != rows[-1]["reward"]
    assert checkpoints(forks[0] / "clean") == ["step_000004", "step_000006"]
    return forks[0] / "clean"


def same(run, other):
    """Fails unless log, weights, optimizer, export and evaluations of two runs are
    bit-identical."""
    assert metrics(run) == metrics(other)
    assert [row["step"] for row in metrics(run)] == list(range(1, 7))
    paths = ["hf/model.safetensors", "hf/config.json", "checkpoints/step_000006/__0_0.distcp"]
    for step in (0, 3, 6):
        paths += [f"eval_{step:06d}/{name}" for name in ("test.jsonl", "eval.json")]
    changed = [path for path in paths if (run / path).read_bytes() != (other / path).read_bytes()]
    assert changed == []


def test_killed_at_each_place_in_turn_a_run_comes_to_the_same_bits(forks, clean):
    codes = forks[1]["places"]
    assert codes == {**dict.fromkeys(places(), -signal.SIGKILL), "nowhere": 0}
    same(forks[0] / "places", clean)
    assert checkpoints(forks[0] / "places") == checkpoints(clean)
    log = (forks[0] / "log").read_text()
    assert "step_000002.tmp: removed, because this save was cut off" in log


def test_killed_at_ten_random_moments_a_run_comes_to_the_same_bits(forks, clean):
    moments = forks[1]["moments"]
    print("run, seconds after its start, exit:", moments)
    assert len(moments) == 10 and {code for *_, code in moments} == {-signal.SIGPROF}
    assert set(forks[1]["random"]) == {0}
    for number in range(len(forks[1]["random"])):
        same(forks[0] / f"random_{number}", clean)


ENDS = {"complete": "", "stopped": "raise faults.Stopped(0)", "Ctrl-C": "raise KeyboardInterrupt",
        "error": "raise OSError"}


def end_of_program(program, **options):
    """Runs a program whose output Python buffers until the end."""
    return subprocess.run(
        workers.python("-c", textwrap.dedent(program), "an argument"), cwd=workers.ROOT,
        env=workers.ENVIRONMENT | {"PYTHONUNBUFFERED": ""}, text=True, timeout=workers.LIMIT,
        check=False, **options)


@pytest.mark.parametrize("end, status", [
    ("complete", 0), ("stopped", 0), ("Ctrl-C", 1), ("error", 1)])
def test_how_a_run_ends_its_process(end, status):
    """gloo may abort a process that shuts Python down, so one that succeeded does not."""
    done = end_of_program(f"""
        import atexit, sys
        from runtime import faults
        def main(arguments):
            atexit.register(print, "Python shuts down")
            sys.stdout.write(f"{{arguments}}, in the buffer. ")
            {ENDS[end]}
        faults.run(main)""", capture_output=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("['an argument'], in the buffer. ")
    assert ("Python shuts down" in done.stdout) == (status != 0)
    if end == "Ctrl-C":
        assert done.stderr == (
            "simko.py: stopped; run the same command to continue from the last checkpoint\n")


def test_simko_py_ends_so(monkeypatch):
    started = []
    monkeypatch.setattr(faults, "run", started.append)
    runpy.run_path(str(workers.ROOT / "simko.py"), run_name="__main__")
    assert [function.__name__ for function in started] == ["main"]


def test_a_reader_that_has_gone_does_not_fail_the_end_of_a_process():
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as output:
        done = end_of_program("""
            from runtime import faults
            print("a line")
            faults.end_process()""", stdout=output, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")


def sleep_and_ask():
    threading.Timer(0.3, ask()).start()
    time.sleep(10**6)


def test_sigterm_and_ctrl_c_save_the_last_whole_step_and_exit_0(data, clean, tmp_path, capfd):
    """The signals come at different places. The same command resumes each time, and the final
    result is bit-identical."""
    stops = [  # where the signal comes, and what exists then; step 0 leaves nothing
        (at_call(HFEngine, "generate", 1, ask(), when=evaluation), []),
        (at_call(HFEngine, "generate", 1, ask(signal.SIGINT), when=rollout), []),
        (at_call(HFEngine, "generate", 2, sleep_and_ask, when=rollout), [1]),
        (at_call(simko.Trainer, "update", 2, ask()), [1, 2]),
        (at_call(dcp, "save", 1, ask(signal.SIGINT)), [2, 4]),
        (at_call(simko.Trainer, "compute_old_logp", 1, ask()), [4, 5]),
        (at_call(HFEngine, "generate", 1, ask(), when=rollout), [4, 5]),  # before any new step
        (at_call(HFEngine, "generate", 2, ask(), when=evaluation), [5, 6]),
    ]
    for i, (patch, there) in enumerate(stops):
        with patch, pytest.raises(SystemExit) as stop:
            main(flags(data, tmp_path))
        assert stop.value.code == 0
        out, err = capfd.readouterr()
        name = "SIGINT" if i in (1, 4) else "SIGTERM"
        assert f"stopped by {name}: the same command resumes the run" in out
        assert f"rank 0 received {name} and stops" in err
        assert "\r" not in err  # progress bars are for terminals
        assert checkpoints(tmp_path) == [f"step_{step:06d}" for step in there], i
    main(flags(data, tmp_path))
    same(tmp_path, clean)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # restored


def test_a_terminal_that_closes_saves_the_run_unless_nohup_ignores_it(data, tmp_path, capfd):
    def hang_up():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

    def closed():
        return at_call(simko.Trainer, "update", 2, hang_up)

    with handled(signal.SIGHUP, signal.SIG_IGN), closed():
        main(flags(data, tmp_path / "nohup", "--steps", 1))
    assert "stopped" not in capfd.readouterr().out
    assert checkpoints(tmp_path / "nohup") == ["step_000001"]  # the last step is always saved
    default = handled(signal.SIGHUP, signal.SIG_DFL)
    with default, closed(), pytest.raises(SystemExit) as stop:
        main(flags(data, tmp_path / "run"))
    assert stop.value.code == 0
    assert "stopped by SIGHUP: the same command resumes the run" in capfd.readouterr().out
    assert checkpoints(tmp_path / "run") == ["step_000001"]


def test_ctrl_c_that_ended_the_reader_of_the_output_too_saves(forks):
    """This happens with `simko.py train ... | tee log`."""
    assert forks[1]["unread"] == 0 and forks[1]["unread_left"] == ["step_000002", "step_000003"]


def test_a_terminal_that_is_gone_when_a_line_is_written_is_no_error(forks):
    assert forks[1]["closed"] == 0 and forks[1]["closed_left"] == ["step_000004", "step_000006"]


def test_a_second_ctrl_c_exits_at_once(forks):
    assert forks[1]["twice"] == 128 + signal.SIGINT and forks[1]["twice_left"] == []


def test_an_evaluation_stops_at_sigterm_and_goes_on(data, tmp_path):
    line = (f"eval --model {data}/base --eval-data {data}/test.jsonl --task countdown "
            "--prompt-template raw --rollout hf --max-prompt-length 16 --eval-max-tokens 12 "
            "--eval-n 4 --output-dir").split()
    with at_call(HFEngine, "generate", 2, ask()), pytest.raises(SystemExit) as stop:
        main([*line, str(tmp_path / "stopped")])
    assert stop.value.code == 0
    assert len((tmp_path / "stopped/test.jsonl").read_text().splitlines()) == 1 + 4 * 64
    for name in ("stopped", "straight"):
        main([*line, str(tmp_path / name)])
    for name in ("test.jsonl", "eval.json"):
        stopped, straight = (tmp_path / run / name for run in ("stopped", "straight"))
        assert stopped.read_bytes() == straight.read_bytes()


def test_two_runs_in_one_folder_are_refused(data, tmp_path):
    hold = ("import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
            "print(flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / ".lock"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(SystemExit, match=f"another process uses {tmp_path}"):
            main(flags(data, tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        other.communicate(b"\n")
    main(flags(data, tmp_path, "--steps", 1))


def test_a_folder_that_cannot_be_locked_is_used_with_a_note(group, tmp_path, capsys):
    """Some network disks have no locks. A lock that another process holds may be reported as
    EACCES."""
    for number, refusal in (
            (errno.ENOLCK, contextlib.nullcontext()),
            (errno.EACCES, pytest.raises(SystemExit, match=f"another process uses {tmp_path}: "))):
        error = OSError(number, os.strerror(number))
        with (mock.patch.object(run_folder.fcntl, "lockf", side_effect=error), refusal,
              run_folder.claimed(tmp_path)):
            assert number == errno.ENOLCK
    assert f"note: {tmp_path} cannot be locked (" in capsys.readouterr().out


# ----------------------------------------------------------------------------- disk and checkpoints
@contextlib.contextmanager
def full_at(function, count):
    """Limits all files to 200,000 bytes, less than a checkpoint needs, from the count-th call of
    this function of simko.py on."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, hard))
        with at_call(simko, function, count, limit):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def test_a_full_disk_during_a_save_leaves_the_checkpoints_before_it(data, clean, tmp_path, capfd):
    message = "a checkpoint could not be written.*GiB are free.*free some space"
    with full_at("save_checkpoint", 2), pytest.raises(SystemExit, match=message):
        main(flags(data, tmp_path))
    assert checkpoints(tmp_path) == ["step_000002"]
    main(flags(data, tmp_path))
    same(tmp_path, clean)


def test_a_full_disk_during_the_export_is_named_and_the_run_goes_on(data, clean, tmp_path):
    with (full_at("save_hf", 1),
          pytest.raises(SystemExit, match="during the export: .*File too large.*GiB are free")):
        main(flags(data, tmp_path))
    main(flags(data, tmp_path))
    same(tmp_path, clean)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_elsewhere_is_named_too(data, tmp_path, number):
    full = OSError(number, os.strerror(number), "metrics.jsonl")
    message = f"during the run: .*{os.strerror(number)}: 'metrics.jsonl'.*GiB are free"
    with (at_call(Log, "__call__", 2, raised(full)),
          pytest.raises(SystemExit, match=message)):
        main(flags(data, tmp_path))


def test_a_full_disk_under_the_output_is_not_taken_for_a_reader_that_has_gone():
    """Otherwise the rest of the run would be logged nowhere."""
    stream = mock.Mock()
    stream.write.side_effect = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        faults.Unbroken(stream).write("a line\n")


def test_free_space_is_in_gib(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: mock.Mock(free=5 * 2**29))
    assert faults.after_failed_save(tmp_path).startswith(f"2.5 GiB are free in {tmp_path}. ")


def save_elsewhere(path, state):
    with mock.patch.dict(os.environ), ranks.process_group():
        dcp.save(state, checkpoint_id=path)


def cut(path):
    (part,) = path.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:2000])


DAMAGES = {
    "incomplete": lambda path: (path / ".metadata").unlink(),
    "without its parts": lambda path: [part.unlink() for part in path.glob("*.distcp")],
    "cut off": cut,
    "empty": lambda path: (shutil.rmtree(path), path.mkdir()),
    "of other shapes": lambda path: (shutil.rmtree(path), save_elsewhere(path, {"model": {
        "model.embed_tokens.weight": torch.zeros(3, 2)}})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_read_is_named_and_the_one_before_it_used(
        data, clean, tmp_path, damage, capfd):
    run = tmp_path / "run"
    shutil.copytree(clean, run)
    DAMAGES[damage](run / "checkpoints/step_000006")
    (run / "checkpoints/step_000006.unreadable1/before").mkdir(parents=True)
    (run / "checkpoints/step_000005.tmp").mkdir()
    main(flags(data, run))
    same(run, clean)
    out = capfd.readouterr().out
    assert "step_000006 cannot be read; skipped it and renamed it to step_000006.unreadable2" in out
    assert "step_000004: loaded; the run resumes after step 4\n" in out
    assert "step_000005.tmp: removed, because this save was cut off" in out
    assert checkpoints(run) == [
        "step_000004", "step_000006", "step_000006.unreadable1", "step_000006.unreadable2"]
    assert sum(line.startswith("step ") for line in out.splitlines()) == 2


def test_where_no_checkpoint_can_be_read_nothing_is_begun_again(data, clean, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(clean, run)
    for path in (run / "checkpoints").iterdir():
        (path / ".metadata").unlink()
    for _ in range(2):
        message = "step_000004 cannot be read, and neither can any later checkpoint.*move it away"
        with pytest.raises(SystemExit, match=message):
            main(flags(data, run))
        assert metrics(run) == metrics(clean) and (run / "hf").exists()


@pytest.mark.parametrize("error", [
    OSError(5, "Input/output error"), torch.OutOfMemoryError("CUDA out of memory")], ids=repr)
def test_a_checkpoint_that_cannot_be_read_this_time_stays(tmp_path, error):
    """Another attempt may read it, so the run must not go on from an older one."""
    path = tmp_path / "step_000004"
    path.mkdir()
    failed = dcp.CheckpointException("load", {
        2: (error, None), 1: (error, None), 3: (ValueError("damaged"), None)})
    with pytest.raises(SystemExit, match="step_000004 could not be read this time .rank 1: "):
        skip_checkpoint(path, failed, last=False)
    assert path.exists()


@one_base
def test_a_power_cut_during_a_save_leaves_whole_checkpoints(base, group, tmp_path, monkeypatch):
    """A new checkpoint reaches the disk before its rename, and its new name before the oldest one
    is removed."""
    trainer, folder = simko.Trainer(config(base), CPU, torch.float32), tmp_path / "checkpoints"
    fsync, rename, rmtree, seen = os.fsync, Path.rename, shutil.rmtree, []

    def see_fsync(descriptor):
        for path in (folder, *folder.iterdir()):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                seen.append(f"{path.name} reaches the disk")
        fsync(descriptor)

    def see_rename(path, target):
        seen.append(f"{path.name} becomes {target.name}")
        return rename(path, target)

    def see_rmtree(path):
        seen.append(f"{path.name} is removed")
        rmtree(path)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(Path, "rename", see_rename)
    monkeypatch.setattr(shutil, "rmtree", see_rmtree)
    for step in (1, 2, 3):
        seen.clear()
        save_checkpoint(tmp_path, step, trainer)
    assert [line for line in seen if "step" in line or "checkpoints" in line] == [
        "step_000003.tmp reaches the disk", "step_000003.tmp becomes step_000003",
        "checkpoints reaches the disk", "step_000001 is removed"]


def test_a_power_cut_after_an_export_leaves_whole_files(tmp_path, monkeypatch):
    """The run that goes on after it finds the folder, and does not export again."""
    fsync, safe, folder = os.fsync, [], tmp_path / "hf"

    def see_fsync(descriptor):
        safe.append((os.fstat(descriptor).st_ino, folder.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", see_fsync)
    (tmp_path / "hf.tmp").mkdir()
    (tmp_path / "hf.tmp/part").touch()  # of an export that was killed
    with whole_folder(folder) as path:
        (path / "templates").mkdir(parents=True)
        for name in ("config.json", "templates/one.jinja"):
            (path / name).write_text("{}")
    *inside, last = safe
    assert last == (tmp_path.stat().st_ino, True)  # its new name
    assert {*inside} == {(path.stat().st_ino, False) for path in tmp_path.rglob("*")}
    assert not (folder / "part").exists()
    with whole_folder(folder) as path:  # in place of the first
        path.mkdir()
    assert not list(folder.iterdir())


def test_evaluations_of_later_steps_than_the_checkpoint_are_made_again(tmp_path):
    for name in ("eval_000000", "eval_000040", "eval_000041", "hf", "adapter", "evaluations",
                 "checkpoints/step_000050.tmp"):
        (tmp_path / name).mkdir(parents=True)
    run_folder.rewind(tmp_path, 40, 40)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"eval_000000", "eval_000040", "hf", "adapter", "checkpoints", "evaluations"}
    run_folder.rewind(tmp_path, 40, 41)
    assert not (tmp_path / "hf").exists() and not (tmp_path / "adapter").exists()
    assert not list((tmp_path / "checkpoints").iterdir())


# ------------------------------------------------------------------------------------------ numbers
@one_base
@pytest.mark.parametrize("poisoned", [2, 4, None], ids=["right", "wrong", "gradient alone"])
def test_an_update_that_is_not_finite_is_named_and_not_stepped(base, group, capsys, poisoned):
    """A log-ratio above 88 overflows. It makes the loss of a wrong response infinite, and the
    gradient of a right one 0 times infinity."""
    cfg = config(base, learning_rate=1e-3, batch_size=8, mini_batch_size=4, loss_type="dapo")
    trainer = simko.Trainer(cfg, CPU, torch.float32)

    def update(*bad):
        samples = load_samples(base)
        trainer.compute_old_logp(samples, quiet)
        for i, sample in enumerate(samples):
            sample.id, sample.text = f"problem-{i}", f"\x1b[31m text {i}"
        for i in bad:
            samples[i].old_logp[1] = -200
        return trainer.update(samples, "grpo", None, quiet)

    def state():
        moments = [x for part in trainer.optimizer.state.values() for x in part.values()]
        return [x.full_tensor().clone() if hasattr(x, "full_tensor") else x.clone()
                for x in [*trainer.policy.parameters(), *moments]]

    update()
    before, broken = state(), contextlib.nullcontext()
    if poisoned is None:
        infinite = mock.Mock(full_tensor=lambda: torch.tensor(math.inf))
        broken = mock.patch.object(torch.nn.utils, "clip_grad_norm_", lambda *_: infinite)
    with broken:
        sums = update(*[poisoned] * (poisoned is not None))
        error = capsys.readouterr().err
        assert all(map(torch.equal, before, state())) and trainer.refused == 1
        assert [*sums] == ["grad_norm"] and math.isnan(sums["grad_norm"])
        assert "step 1, update 2: skipped, because the loss (" in error
        assert ") is not finite:\n  " in error
        if poisoned is None:
            assert all(f"problem-{i}" in error for i in (1, 2, 4))
        else:
            assert f"rank 0, problem problem-{poisoned}: '\\x1b[31m text {poisoned}'" in error
            assert error.count("problem-") == 1
    update()
    # The next update works.
    assert trainer.refused == 0 and not all(map(torch.equal, before, state()))
    update(2), update(4)
    with pytest.raises(SystemExit, match="three updates in a row were not finite.*88"):
        update(2)


def test_after_three_refused_updates_the_run_stops_and_the_last_checkpoint_is_of_before(
        data, clean, tmp_path, capfd):
    # Each step has 2 updates. One of step 2 is refused, and all from the second of step 4 on.
    with broken_losses(3, 8), pytest.raises(SystemExit, match="three updates in a row"):
        main(flags(data, tmp_path))
    rows, error = metrics(tmp_path), capfd.readouterr().err
    assert [row["grad_norm"] is None for row in rows] == [False, True, False, True]
    for step, update in ((2, 1), (4, 2), (5, 1), (5, 2)):
        assert f"step {step}, update {update}: skipped, because the loss (nan) or" in error
    assert checkpoints(tmp_path) == ["step_000002"]  # its last update was good; step 4's was not
    with broken_losses(1000):
        main(flags(data, tmp_path))
    assert checkpoints(tmp_path) == ["step_000004", "step_000006"]


def test_a_run_whose_last_update_is_refused_is_saved_and_finished_by_the_same_command(
        data, clean, tmp_path, capfd):
    """Step 3 saves no checkpoint, because its last update is refused; step 6, the last, does."""
    arguments = flags(data, tmp_path, "--save-steps", 3)
    with broken_losses(6, 12):
        main(arguments)
    printed = capfd.readouterr().out
    assert "step 3: no checkpoint, because the last update was skipped\n" in printed
    assert checkpoints(tmp_path) == ["step_000006"]
    main(arguments)
    assert "the run resumes after step 6" in capfd.readouterr().out


def test_log_probs_that_are_not_numbers_stop_the_run(data, tmp_path):
    generate = HFEngine.generate

    def infinite(*arguments, **options):
        samples = generate(*arguments, **options)
        samples[0].engine_logp = samples[0].engine_logp * np.nan
        return samples
    with (mock.patch.object(HFEngine, "generate", infinite),
          pytest.raises(SystemExit, match="is nan.*numbers are too large for --dtype")):
        main(flags(data, tmp_path, "--eval-steps", 0))


def test_one_response_that_is_altogether_wrong_is_not_hidden_by_the_mean():
    def response(name, gap):
        old = torch.full((20,), -1.0)
        return packing.Sample(
            0, np.zeros(1), np.zeros(20), old.numpy() - gap, False, id=name, old_logp=old)

    good = [response(f"good-{i}", 0.001) for i in range(1000)]
    faults.check_gap(0.002, good, torch.float32)
    for gap in (1.0, -1.0, np.tile([1.0, -1.0], 10)):
        with pytest.raises(SystemExit, match="over a response to odd is 1, above 0.05"):
            faults.check_gap(0.002, [*good, response("odd", gap)], torch.float32)
    with pytest.raises(SystemExit, match="over all responses is nan"):
        faults.check_gap(float("nan"), [], torch.float32)
    faults.check_gap(0.15, [], torch.bfloat16)
    with pytest.raises(SystemExit, match="over all responses is 0.25, above 0.2:"):
        faults.check_gap(0.25, [], torch.bfloat16)


def test_equal_rewards_get_one_warning(tmp_path, capsys):
    rewards = [0.5, *[0.0] * 12, 0.1, *[1.0] * 9, 0.9, *[1.0] * 11]
    warned, path = [], tmp_path / "metrics.jsonl"
    for step in range(1, len(rewards) + 1):
        path.write_text("".join(json.dumps({"step": i, "reward": reward}) + "\n"
                                for i, reward in enumerate(rewards[:step], 1)))
        faults.check_rewards(path)
        error = capsys.readouterr().err
        if error:
            warned.append(step)
            for word in ("--task", "--prompt-template", "--max-completion-length", "format"):
                assert word in error
    assert warned == [11, 34]
    path.write_text('{"reward": 0.0}\n' * 9 + '{"reward": null}\n' + '{"reward": 0.0}\n')
    faults.check_rewards(path)
    assert not capsys.readouterr().err
    path.write_text('{"reward": 0.0}\n' * 10)
    faults.check_rewards(path)
    assert "all rewards of 10 steps were 0" in capsys.readouterr().err


# ---------------------------------------------------------------------------- memory and the engine
OOM = {  # where memory runs out in a run with --rollout hf: what the message says
    "engine": (HFEngine, "__init__", "engine start: .*To fix it: choose a smaller --model"),
    "policy": (simko, "load_model", "loading of the policy: .*more GPUs"),
    "checkpoint": (simko, "start_or_resume", "loading of the policy: .*more GPUs"),
    "rollout": (HFEngine, "generate", "rollout: .*To fix it: lower --max-completion-length "),
    "log-probs": (simko, "pack", "computation of log-probs: .*--micro-batch-tokens .now 999."),
    "update": (simko, "clipped_loss", "update: .*--micro-batch-tokens .now 999., "
               "or add --gradient-checkpointing, or use more GPUs"),
    "sync": (HFEngine, "load_weights", "weight sync: .*To fix it: use more GPUs"),
    "export": (simko, "save_hf", "export: .*use more GPUs"),
}


@pytest.mark.parametrize("where", OOM)
def test_out_of_memory_says_in_which_phase_and_which_flag_helps(data, tmp_path, where):
    owner, name, message = OOM[where]
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 MiB free")
    with (at_call(owner, name, 1, raised(error)),
          pytest.raises(SystemExit, match=f"rank 0, during the {message}.*2.00 GiB")):
        main(flags(data, tmp_path, "--eval-steps", 0, "--steps", 1, "--micro-batch-tokens", 999))


def test_advice_on_memory_is_for_the_engine_and_the_settings_of_the_run():
    def advice(phase, **settings):
        with faults.phase(phase):
            return faults.more_memory(simko.Config(**settings))

    for phase in ("engine start", "rollout", "weight sync", "loading of the policy", "run"):
        assert "--gpu-memory-utilization (now 0.4)" in advice(
            phase, rollout="vllm", gpu_memory_utilization=0.4)
        assert "--gpu-memory-utilization" not in advice(phase, rollout="hf")
    assert "--gradient-checkpointing" in advice("update", gradient_checkpointing=False)
    assert "--gradient-checkpointing" not in advice("update", gradient_checkpointing=True)
    for phase, settings in itertools.product(
            faults.MORE_MEMORY, ({"rollout": "hf"}, {"gradient_checkpointing": True})):
        assert advice(phase, **settings)


def test_an_error_lets_go_of_its_tensors_before_the_engine_is_closed(data, tmp_path):
    """vLLM's engine wakes up to be closed, which needs the memory that they take."""
    held, alive = [], []

    def fails(gamma, *rest):
        held.append(weakref.ref(gamma))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def close(engine):
        alive.append(held[0]() is not None)

    with (mock.patch.object(simko, "clipped_loss", fails),
          mock.patch.object(HFEngine, "close", close),
          pytest.raises(SystemExit, match="during the update: out of GPU memory")):
        main(flags(data, tmp_path, "--eval-steps", 0, "--steps", 1))
    assert alive == [False]


def test_the_engine_sleeps_while_the_policy_is_loaded_and_trained(data, tmp_path):
    """A GPU may not have room for both."""
    for owner, name, times in ((simko, "Trainer", 1), (simko.Trainer, "compute_old_logp", 2)):
        with (mock.patch.object(HFEngine, "sleep") as sleep,
              mock.patch.object(owner, name, side_effect=SystemExit(0)),
              pytest.raises(SystemExit)):
            main(flags(data, tmp_path))
        assert sleep.call_count == times


def test_out_of_memory_of_vllms_allocator_gets_the_advice_too(data, tmp_path):
    """vLLM's own allocator maps the engine's memory when it wakes up, and raises a RuntimeError."""
    error = RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:62")
    advice = "during the weight sync: out of GPU memory. To fix it: use more GPUs"
    with (at_call(HFEngine, "load_weights", 1, raised(error)),
          pytest.raises(SystemExit, match=f"{advice}.*cumem_allocator")):
        main(flags(data, tmp_path))
    with (at_call(HFEngine, "load_weights", 1, raised(RuntimeError("CUDA Error: another one"))),
          pytest.raises(RuntimeError, match="^CUDA Error: another one$")):
        main(flags(data, tmp_path))


def test_each_way_of_sampling_is_tried_once_before_the_first_step(data, tmp_path):
    """Evaluations sample with top-p, but rollouts do not. An engine that does not support top-p
    should fail in the first minute, not after training."""
    prompt = np.array([5, 6])
    benchmarks = [
        benchmark([{"prompt_ids": prompt}], 4, temperature=temperature, top_p=top_p,
                  max_tokens=tokens)
        for temperature, top_p, tokens in ((0.6, 0.95, 4096), (0.6, 0.95, 4096), (1.0, 0.9, 3))]
    engine, drawn = mock.Mock(), []
    engine.generate.side_effect = lambda *_, **__: drawn.append(torch.rand(1).item())
    faults.try_sampling(simko.Config(), benchmarks, engine, quiet)
    assert drawn[0] == drawn[1]  # seeded, as ranks that share an engine need it
    assert engine.generate.mock_calls == [
        mock.call([prompt], 1, 0.6, 0.95, 8, quiet, logprobs=False),
        mock.call([prompt], 1, 1.0, 0.9, 3, quiet, logprobs=False)]

    generate, tried = HFEngine.generate, []

    def no_top_p(engine, prompts, n, temperature, top_p, *arguments, **options):
        tried.append((len(prompts), temperature, top_p))
        if temperature == 0.2 and top_p < 1:
            raise ValueError("no nvcc here")
        return generate(engine, prompts, n, temperature, top_p, *arguments, **options)
    with (mock.patch.object(HFEngine, "generate", no_top_p),
          pytest.raises(ValueError, match="no nvcc here") as crash):
        main(flags(data, tmp_path, "--eval-steps", 0, "--eval-temperature", 1, 0.2))
    assert not hasattr(crash.value, "__notes__")  # the advice is for vLLM
    assert tried == [(1, 1, 0.95), (1, 0.2, 0.95)] and metrics(tmp_path) == []


@pytest.mark.parametrize("owner, name, count", [
    (HFEngine, "__init__", 1), (HFEngine, "generate", 1), (simko.Trainer, "update", 0)])
def test_the_last_lines_of_vllms_log_are_shown_if_it_crashes_and_only_then(
        data, tmp_path, owner, name, count):
    with (at_call(owner, name, 1, raised(ValueError("engine core died"))),
          mock.patch.object(simko, "VLLMEngine", HFEngine),
          mock.patch.object(cli, "find_vllm", lambda cfg: True),
          mock.patch.object(vllm_setup.tail, "lines", ["INFO loading"]),
          pytest.raises(ValueError, match="core died") as crash):
        main(flags(data, tmp_path, "--rollout", "vllm"))
    notes = getattr(crash.value, "__notes__", [])
    assert len(notes) == count
    for note in notes:
        assert "The last lines of its log:\nINFO loading" in note
        assert "--gpu-memory-utilization (now 0.6)" in note


def test_an_engine_that_has_started_is_not_ended_by_the_limit_of_its_start(group):
    """Otherwise every run would end after an hour."""
    cancel = mock.Mock(wraps=faulthandler.cancel_dump_traceback_later)
    with mock.patch.object(faulthandler, "cancel_dump_traceback_later", cancel):
        engine = faults.GuardedEngine(lambda: mock.Mock(spec=["sleep", "close"]))
    with contextlib.closing(engine):
        timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
        assert all(timer.finished.is_set() for timer in timers)
        cancel.assert_called_once_with()


def test_an_engine_that_does_not_start_in_time_ends_the_run_with_its_log_and_where_it_stands(forks):
    report = forks[1]
    assert report["hang"] == 1 and "INFO waiting for the moon" in report["hang_log"]
    # The stack ends at the line that sleeps.
    assert "provoke.py" in report["hang_log"].partition("Its stack")[2]
