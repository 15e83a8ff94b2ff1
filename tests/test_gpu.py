"""Tests of what only a GPU can show: the kernels, bfloat16, the engine's sleep, NCCL.

    python -m pytest tests/test_gpu.py -m gpu -v -rs -s

-s shows the output of the tests, such as the times of test j. The models are tiny and random, and
nothing is downloaded. tools/gpu_check.py runs the letters one by one and orders them by their
importance. Without a GPU, the tests that can run in float32 on the CPU do so, so that a typing
error does not waste the first minutes on a GPU. The others are skipped.

vLLM can start only once in the life of a process, and closing it destroys the process group.
Therefore each test that starts an engine calls a function `worker_NAME` in its own process (on a
CPU often in a fork, see run_worker):

    python -m tests.test_gpu NAME FOLDER BACKEND
"""
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import simko
from runtime import faults, probe
from runtime.checkpoints import load_checkpoint, save_checkpoint, save_hf
from runtime.chunked import token_statistics
from runtime.log import Clock
from runtime.models import load_model
from runtime.packing import Sample, packed_attention
from runtime.ranks import gather, process_group
from runtime.seeding import seed_everything
from tests import workers
from tests.conftest import eager_vllm, quiet, why_no_vllm, write_rows
from tools import zoo

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
# The mean of |log pi_trainer - log pi_engine| that rounding may cause.
GAP = 0.05 if CUDA else 1e-3
GIB = 2**30
# A prompt fills blocks of vLLM's cache, which a sync must forget.
VOCABULARY, PROMPT, RESPONSE, END = 512, 40, 32, 1
# vLLM counts preemptions. The 64 responses of `sample` need 192 blocks of 32 tokens, so in a small
# cache, vLLM preempts responses and resumes them.
COUNTED = {"disable_log_stats": False}
SMALL_CACHE = COUNTED | {"block_size": 32, "num_gpu_blocks_override": 40}

pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
no_vllm = find_spec("vllm") is None if CUDA else why_no_vllm() is not None
needs_vllm = pytest.mark.skipif(no_vllm, reason="vLLM is not installed or cannot start")
needs_two_cards = pytest.mark.skipif(
    CUDA and torch.cuda.device_count() < 2, reason="needs two CUDA devices")
# vLLM takes 15 to 30 s to start on a CPU, so only two tests use it there.
both_engines_anywhere = pytest.mark.parametrize(
    "backend", [pytest.param("vllm", marks=needs_vllm), "hf"])
both_engines = pytest.mark.parametrize(
    "backend", [pytest.param("vllm", marks=[needs_cuda, needs_vllm]), "hf"])


# ---------------------------------------------------------------------------------- what they share
@pytest.fixture(autouse=True)
def memory_goes_back():
    """Frees this process's GPU memory after each test, for the processes that later tests start."""
    yield
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tied(tmp_path_factory):
    """Returns a model whose output head is its embedding, as it is in most small models."""
    return save_model(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def save_model(folder, **changes):
    """Saves a random Qwen2 with its tokenizer.

    The weights are large enough for log-probs to differ from token to token. Two such models
    differ by several nats, so a wrong weight shows in the gap."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.12,
             "tie_word_embeddings": False}
    config = Qwen2Config(
        vocab_size=VOCABULARY, max_position_embeddings=512, eos_token_id=END, bos_token_id=None,
        pad_token_id=0, **shape | changes)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    zoo.save_tokenizer(folder, VOCABULARY)
    return folder


def config(folder, **changes):
    """Returns settings of a run on the tiny model, whose engine may use a tenth of the GPU. The
    run folder, which gets the engine's log, is in the folder of the model."""
    settings = {"model": str(folder), "output_dir": str(Path(folder, "run")), "rollout": "hf",
                "gpu_memory_utilization": 0.1, "learning_rate": 0.0, "micro_batch_tokens": 128,
                "max_prompt_length": PROMPT, "max_completion_length": RESPONSE}
    return simko.Config(**settings | changes)


def responses(lengths):
    """Returns random samples to update on, half of them correct."""
    rng = np.random.default_rng(0)
    samples = []
    for i, length in enumerate(lengths):
        prompt = rng.integers(2, VOCABULARY, PROMPT)
        response = rng.integers(2, VOCABULARY, length)
        samples.append(Sample(
            i, prompt, response, np.zeros(length, np.float32), truncated=False,
            advantage=1.0 if i % 2 else -1.0))
    return samples


def start_engine(cfg, device, weights="dummy", graphs=False, **options):
    """Returns the engine, which `with` closes. graphs: whether to compile it, as a run does.
    options: of vllm.LLM, if it is not compiled."""
    with eager_vllm(**options) if cfg.rollout == "vllm" and not graphs else nullcontext():
        return closing(simko.make_engine(cfg, [END], device, DTYPE, weights, RESPONSE))


def sample(engine, key=(0, 0, 0), temperature=1.0, top_p=1.0, logprobs=True, n=4):
    """Returns n responses to each of sixteen prompts, which are other ones on each rank."""
    prompts = np.random.default_rng(dist.get_rank()).integers(2, VOCABULARY, (16, PROMPT))
    seed_everything(*key)
    return engine.generate(
        list(prompts), n, temperature, top_p, RESPONSE, quiet, logprobs=logprobs)


def mean_gap(samples, logp):
    """Returns the mean |log-prob by the trainer - log-prob by the engine| over all tokens.

    logp: the attribute of a sample that contains the trainer's log-probs."""
    gaps = [np.abs(getattr(s, logp).cpu().numpy() - s.engine_logp) for s in samples]
    return float(np.concatenate(gaps).mean())


def gap_to_the_policy(trainer, samples):
    trainer.compute_old_logp(samples, quiet)
    return mean_gap(samples, "old_logp")


def gap_at(temperature, engine, trainer):
    trainer.cfg.temperature = temperature
    gap = gap_to_the_policy(trainer, sample(engine, temperature=temperature))
    print(f"gap at temperature {temperature}: {gap:.2g}")
    return gap


def free_memory():
    """Returns the GiB that are free on the GPU, whichever process uses the rest."""
    synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] / GIB


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def run_worker(name, *arguments, ranks=1, environment=None):
    """Runs `worker_NAME` of this file in its own process, or on several ranks. On a CPU, a single
    rank is a fork, which saves the imports. On a GPU, nobody has tried that."""
    if CUDA or ranks > 1:
        run_command(name, *arguments, ranks=ranks, environment=environment)
        return
    worker = partial(globals()[f"worker_{name}"], *map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        workers.call(worker, log, environment)
        print(log.read_text())


def run_command(name, *arguments, ranks=1, environment=None, check=True):
    """Runs `worker_NAME` by its command. Shows each line as soon as it is printed, and returns
    (status, output). Stops a worker after 240 s, and fails."""
    start = workers.two_ranks if ranks == 2 else workers.python
    environment = workers.ENVIRONMENT | {"PYTHONUNBUFFERED": "1"} | (environment or {})
    process = subprocess.Popen(
        start("-m", "tests.test_gpu", name, *arguments), cwd=workers.ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []

    def follow():
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    timed_out = False
    try:
        process.wait(240)
    except subprocess.TimeoutExpired:
        timed_out = True
        process.terminate()  # torchrun ends its ranks
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # The pipe stays open while a process that the worker left behind still runs.
    reader.join(10)
    status, output = process.returncode, "".join(lines)
    assert not timed_out, f"{name} was still running after 240 s:\n{output[-6000:]}"
    assert status == 0 or not check, f"{name} ended with status {status}:\n{output[-6000:]}"
    return status, output


@contextmanager
def engine_and_trainer(folder, backend, graphs=False, options=None, **changes):
    """Yields the GPU's free memory (GiB before the engine starts, GiB while it sleeps; 0 on a
    CPU), the engine, which is still asleep, and the policy. options: of vllm.LLM."""
    cfg = config(folder, rollout=backend, **changes)
    with process_group() as device:
        before = free_memory() if CUDA else 0
        with start_engine(cfg, device, graphs=graphs, **options or {}) as engine:
            engine.sleep()
            asleep = free_memory() if CUDA else 0
            trainer = simko.Trainer(cfg, device, DTYPE)
            yield (before, asleep), engine, trainer


# ------------------------------------------------------------------------------ a, b, c: the engine
@both_engines_anywhere
def test_a_engine_gives_its_memory_back_and_samples_from_the_policy(tied, backend):
    run_worker("sleep_and_sync", tied, backend)


def worker_sleep_and_sync(folder, backend):
    """On a CPU, where the size of the cache does not matter here, it is small."""
    with engine_and_trainer(
            folder, backend, CUDA, SMALL_CACHE) as ((before, asleep), engine, trainer):
        print(f"free: {before:.2f} GiB before the engine, {asleep:.2f} while it sleeps")
        if backend == "vllm":
            print(runner_and_scheduling(engine))
            assert before - asleep < 3
        engine.load_weights(trainer.named_weights())
        assert gap_at(1.0, engine, trainer) < GAP
        # vLLM's sampler takes another path at other temperatures than 1.
        assert gap_at(0.6, engine, trainer) < GAP

        # The gap is meaningful only if a wrong weight would widen it.
        with torch.no_grad():
            for parameter in trainer.policy.parameters():
                parameter.mul_(0.7)
        assert gap_at(1.0, engine, trainer) > 3 * GAP
        engine.sleep()
        engine.load_weights(trainer.named_weights())
        assert gap_at(1.0, engine, trainer) < GAP
        if backend == "vllm" and not CUDA:
            assert preemptions(engine) > 0


def runner_and_scheduling(engine):
    """Returns a line that names vLLM's model runner and whether it schedules asynchronously."""
    runner, = engine.llm.collective_rpc(lambda worker: type(worker.model_runner))
    scheduling = engine.llm.llm_engine.vllm_config.scheduler_config
    return (f"runner {runner.__module__}.{runner.__name__}, async scheduling "
            f"{getattr(scheduling, 'async_scheduling', 'unknown')}")


@pytest.mark.parametrize("model, lora_rank, learning_rate", [("base", 0, 3e-3), ("tied", 8, 1e-2)])
@both_engines
def test_b_engine_follows_the_policy_through_updates(
        request, backend, model, lora_rank, learning_rate):
    """With LoRA, the engine has a SMALL_CACHE."""
    run_worker("three_rounds", request.getfixturevalue(model), backend, lora_rank, learning_rate)


def worker_three_rounds(folder, backend, lora_rank, learning_rate, tensor_parallel_size=1):
    """Because of the KL penalty, the trainer keeps the starting model. The penalty is too weak to
    have another effect."""
    to_start, free, lora_rank, parts = [], [], int(lora_rank), int(tensor_parallel_size)
    changes = {"learning_rate": float(learning_rate), "lora_rank": lora_rank, "beta": 1e-9,
               "tensor_parallel_size": parts}
    options = SMALL_CACHE if lora_rank else COUNTED
    with engine_and_trainer(folder, backend, False, options, **changes) as (_, engine, trainer):
        tokens = record_tokens(engine.llm) if backend == "vllm" else []
        engine.load_weights(trainer.named_weights())
        for round in range(3):
            samples = sample(engine, (0, round, trainer.rank // parts))
            preempted = preemptions(engine) if backend == "vllm" else "no"
            engine.sleep()
            free.append(free_memory() if CUDA else 0)
            gap = gap_to_the_policy(trainer, samples)
            to_start.append(mean_gap(samples, "ref_logp"))
            print(f"round {round}: gap {gap:.2g}, to the starting model {to_start[-1]:.2g}, "
                  f"free {free[-1]:.2f} GiB, {preempted} preemptions")
            assert gap < GAP

            for i, response in enumerate(samples):
                response.advantage = 1.0 if i % 2 else -1.0
            trainer.update(samples, "simko", None, quiet)
            trainer.optimizer.zero_grad()
            engine.load_weights(trainer.named_weights())
        if backend == "vllm":
            assert bool(lora_rank) == (preempted > 0)
            same = [others == tokens for others in gather([tokens])]
            shared = [rank // parts == trainer.rank // parts for rank in range(trainer.world)]
            assert same == shared
    assert to_start[0] < GAP < 3 * GAP < to_start[1] < to_start[2]
    # The first update allocates what then remains: kernels, NCCL's buffers, the optimizer's state.
    assert max(free[1:]) - min(free[1:]) < 100 / 1024


def record_tokens(llm):
    """Returns a list to which every later rollout of vLLM adds the tokens of all its responses,
    including those for the prompts of other ranks."""
    tokens, generate = [], llm.generate

    def call(*arguments, **options):
        outputs = generate(*arguments, **options)
        tokens.append([list(o.token_ids) for output in outputs for o in output.outputs])
        return outputs

    llm.generate = call
    return tokens


def preemptions(engine):
    """Returns how often vLLM has taken a response's place in the cache for another one."""
    count, = (metric.value for metric in engine.llm.get_metrics()
              if metric.name == "vllm:num_preemptions")
    return count


@both_engines_anywhere
def test_c_evaluation_samples_where_there_is_no_nvcc(base, backend, tmp_path):
    """PyTorch, vLLM and FlashInfer look for nvcc in CUDA_HOME or CUDA_PATH, and only without these
    in PATH and in /usr/local/cuda. So an empty folder hides a toolkit wherever it is."""
    run_worker("evaluation_sampling", base, backend,
               environment={"CUDA_HOME": str(tmp_path), "CUDA_PATH": str(tmp_path)})


def worker_evaluation_sampling(folder, backend):
    if backend == "vllm":
        from vllm.utils.flashinfer import has_flashinfer
        print(f"vLLM may use FlashInfer's kernels: {has_flashinfer()}")
    with process_group() as device:
        with start_engine(config(folder, rollout=backend), device, "auto") as engine:
            # vLLM has one top-p kernel for at most 64 rows and one for more.
            samples = sample(engine, temperature=0.6, top_p=0.95, logprobs=False, n=8)
        model = load_model(str(folder), torch.float32).to(device)
        model.set_attn_implementation("sdpa")
    assert len(samples) == 128 and not any(len(s.engine_logp) for s in samples)
    outside = sum(
        tokens_outside_the_nucleus(model, s, temperature=0.6, top_p=0.95) for s in samples)
    tokens = sum(len(s.response_ids) for s in samples)
    print(f"{outside} of {tokens} tokens lie outside of the nucleus")
    assert outside < 0.01 * tokens  # rounding decides at the edge


@torch.no_grad()
def tokens_outside_the_nucleus(model, response, temperature, top_p):
    """Returns how many tokens top-p sampling should have excluded, because more probable tokens
    already have a total probability of `top_p`."""
    prompt = len(response.prompt_ids)
    ids = np.concatenate([response.prompt_ids, response.response_ids])
    ids = torch.from_numpy(ids).to(model.device)
    logits = model(input_ids=ids[None]).logits[0, prompt - 1:-1]
    p = (logits / temperature).softmax(-1)
    own = p.gather(1, ids[prompt:, None])
    return int((torch.where(p > own, p, 0).sum(-1) > top_p + 0.01).sum())


# ------------------------------------------------------------------------------ d, e, f: the policy
@pytest.mark.parametrize("recomputed", [False, True])
def test_d_packed_attention_is_that_of_each_sequence_alone(recomputed):
    heads, kv_heads, d = 28, 4, 128
    lengths = [1, 7, 4096] if CUDA else [1, 7, 300]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)
    torch.manual_seed(0)
    inputs = [torch.randn(1, n, sum(lengths), d, device=DEVICE, dtype=DTYPE, requires_grad=True)
              for n in (heads, kv_heads, kv_heads)]
    weight = torch.randn(1, sum(lengths), heads, d, device=DEVICE)

    def attend(q, k, v):
        return packed_attention(None, q, k, v, None, d**-0.5, bounds, max(lengths))[0]

    out = checkpoint(attend, *inputs, use_reentrant=False) if recomputed else attend(*inputs)
    (out * weight).sum().backward()

    exact = [x.detach().float().requires_grad_() for x in inputs]
    alone = [F.scaled_dot_product_attention(*pieces, is_causal=True, enable_gqa=True)
             for pieces in zip(*(x.split(lengths, dim=2) for x in exact))]
    expected = torch.cat(alone, dim=2).transpose(1, 2)
    (expected * weight).sum().backward()

    difference = (out.float() - expected).abs().max().item()
    gradients = [relative_difference(x.grad, y.grad) for x, y in zip(inputs, exact)]
    print(f"largest difference of the outputs {difference:.2g}; "
          f"of the gradients, relative: {gradients}")
    assert difference < 2e-2
    assert max(gradients) < 2e-2


def relative_difference(got, expected):
    return ((got.float() - expected).norm() / expected.norm()).item()


def test_d_probe_accepts_keys_as_large_as_those_of_qwen(tmp_path, monkeypatch):
    """In Qwen2.5's first layer, biases take some coordinates of the keys to about 170. In float32,
    how packing orders sums may then change log-probs by more than the probe allows."""
    heads, kv_heads, d = (28, 4, 128) if CUDA else (4, 2, 32)
    save_model(tmp_path, num_hidden_layers=1, num_attention_heads=heads,
               num_key_value_heads=kv_heads, hidden_size=heads * d, initializer_range=0.02)
    model = load_model(tmp_path, "auto")
    bias = model.base_model.layers[0].self_attn.k_proj.bias
    with torch.no_grad():
        bias.normal_(std=5)
        bias[::16] = 170 * bias[::16].sign()
    seen, largest_gaps = [], probe.largest_gaps
    monkeypatch.setattr(
        probe, "largest_gaps", lambda *found: seen.append(largest_gaps(*found)) or seen[-1])
    probe.check_log_probs(model, simko.policy_forward, config(tmp_path), DEVICE)
    print("gaps of the log-probs, one by one and packed, in float32 and, if tried, in float64: "
          f"{seen}")


def test_e_token_statistics_are_those_of_their_own_logits():
    tokens, vocabulary, hidden, K = (4096, 152_064, 3584, 3) if CUDA else (64, 2_000, 96, 3)
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, device=DEVICE, dtype=DTYPE, requires_grad=True)
    weight = torch.empty(vocabulary, hidden, device=DEVICE, dtype=DTYPE)
    weight.normal_(std=3 * hidden**-0.5).requires_grad_()
    token = torch.randint(vocabulary, (tokens,), device=DEVICE)

    before = start_of_peak()
    logp, topk_logp, entropy, _ = token_statistics(states, weight, token, K, 1.0)
    (logp.sum() + topk_logp.sum()).backward()
    peak = peak_since(before)

    grad_states = torch.zeros_like(states, dtype=torch.float32)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    worst = 0.0
    # All tokens at once would take more memory than some GPUs have.
    for rows in torch.arange(tokens).split(512):
        z = (states[rows] @ weight.T).detach().float().requires_grad_()
        plain = z.log_softmax(-1)
        plain_logp, plain_topk = plain.gather(1, token[rows, None])[:, 0], plain.topk(K).values
        (plain_logp.sum() + plain_topk.sum()).backward()
        grad_states[rows] = z.grad @ weight.detach().float()
        grad_weight += z.grad.T @ states[rows].detach().float()
        plain_entropy = -(plain.exp() * plain).sum(-1)
        for got, want in ((logp, plain_logp), (topk_logp, plain_topk), (entropy, plain_entropy)):
            worst = max(worst, (got[rows] - want).abs().max().item())

    gradients = [relative_difference(states.grad, grad_states),
                 relative_difference(weight.grad, grad_weight)]
    print(f"largest difference {worst:.2g} nats; of the gradients, relative: {gradients}; "
          f"peak {peak:.2f} GiB")
    assert worst < 1e-3
    assert max(gradients) < 1e-2
    assert peak < 4.5


def start_of_peak():
    if not CUDA:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_since(before):
    """Returns PyTorch's peak memory since `start_of_peak` in GiB, minus the memory then; 0 on a
    CPU."""
    return (torch.cuda.max_memory_allocated() - before) / GIB if CUDA else 0


def test_f_update_has_float32_gradients_whatever_it_computes_in(base, group, monkeypatch):
    """The CPU also computes in bfloat16 here. A rank with fewer tokens than others runs an empty
    micro-batch."""
    passes = simko.Trainer.passes
    monkeypatch.setattr(
        simko.Trainer, "passes", lambda self, samples: [[], *passes(self, samples), []])
    norms, empty = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        trainer = simko.Trainer(config(base, max_grad_norm=1e9), DEVICE, dtype)
        samples = responses([32, 20, 32, 7, 1, 25])
        trainer.compute_old_logp(samples, quiet)
        sums = trainer.update(samples, "simko", None, quiet)
        norms[dtype] = sums["grad_norm"]
        assert sums["tokens"] == 117
        for parameter in trainer.policy.parameters():
            assert parameter.grad.to_local().dtype == torch.float32
            assert parameter.grad.placements == parameter.placements
        for response in samples:
            response.advantage = 0.0
        empty[dtype] = trainer.update(samples, "simko", None, quiet)["grad_norm"]
    print(norms)
    assert norms[torch.bfloat16] == pytest.approx(norms[torch.float32], rel=0.02)
    assert norms[torch.float32] > 0
    assert set(empty.values()) == {0.0}


# ---------------------------------------------------------------- g: memory, h: what is on the disk
@both_engines
def test_g_memory_in_the_log_is_that_of_the_device(base, backend):
    run_worker("logged_memory", base, backend)


def worker_logged_memory(folder, backend):
    """Allocates and frees 3 GiB between two readings of the log's memory. The engine's memory must
    not count while the engine sleeps. (On a CPU, a process starts with the peak of its parent,
    which may be a large pytest. 3 GiB are more.)"""
    with engine_and_trainer(folder, backend) as (_, engine, trainer):
        clock = Clock(trainer.device)
        before = clock.used_memory() / GIB
        taken = torch.ones(3 * GIB, dtype=torch.uint8, device=trainer.device)
        used = device_memory()
        del taken
        logged = clock.used_memory() / GIB
    print(f"logged {before:.2f} GiB before, {logged:.2f} after; the device had {used:.2f} in use")
    assert logged - before > 0.5
    assert abs(logged - used) < 1  # a CUDA context takes half a GiB


def device_memory():
    """Returns the GiB in use on the GPU, or by this process on a CPU."""
    if CUDA:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / GIB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / GIB


def test_h_checkpoint_has_the_same_bits(base, group, tmp_path):
    checkpoint_has_the_same_bits(tmp_path, DEVICE, base)


def checkpoint_has_the_same_bits(path, device, folder, lora_rank=0):
    """Returns the trainer that has made an update and has been saved."""
    cfg = config(folder, learning_rate=1e-3, lora_rank=lora_rank)
    trainers = [simko.Trainer(cfg, device, DTYPE) for _ in range(2)]
    samples = responses([32, 20, 7])
    trainers[0].compute_old_logp(samples, quiet)
    trainers[0].update(samples, "simko", None, quiet)
    save_checkpoint(path, 1, trainers[0])

    assert not same_weights(*trainers)
    assert load_checkpoint(path, trainers[1]) == 1
    assert same_weights(*trainers)
    states = [get_optimizer_state_dict(t.policy, t.optimizer)["state"] for t in trainers]
    assert states[0].keys() == states[1].keys() != set()
    for name, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(whole(value), whole(states[1][name][key])), (name, key)
    return trainers[0]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def same_weights(*trainers):
    pairs = zip(*(trainer.policy.parameters() for trainer in trainers))
    return all(torch.equal(whole(a), whole(b)) for a, b in pairs)


@both_engines
def test_h_export_loads_in_an_engine(base, tmp_path, backend):
    run_worker("export", base, backend, tmp_path)
    run_worker("load_export", tmp_path / "hf", backend)


def worker_export(folder, _, output):
    with process_group() as device:
        trainer = simko.Trainer(config(folder, learning_rate=3e-3), device, DTYPE)
        samples = responses([32] * 8)
        trainer.compute_old_logp(samples, quiet)
        trainer.update(samples, "simko", None, quiet)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        save_hf(Path(output) / "hf", trainer, tokenizer, [END])


def worker_load_export(folder, backend):
    cfg = config(folder, rollout=backend)
    with process_group() as device, start_engine(cfg, device, "auto") as engine:
        samples = sample(engine)
        engine.sleep()
        gap = gap_to_the_policy(simko.Trainer(cfg, device, DTYPE), samples)
    print(f"gap {gap:.2g}")
    assert gap < GAP


# ----------------------------------------------------------------------- i, j, k: the engine's life
@both_engines
def test_i_seed_and_rank_decide_what_is_sampled(base, backend):
    run_worker("seeds", base, backend)


def worker_seeds(folder, backend):
    cfg = config(folder, rollout=backend)
    with process_group() as device, start_engine(cfg, device, "auto") as engine:
        first, again, other = ([s.response_ids[0] for s in sample(engine, key)]
                               for key in ((0, 3, 0), (0, 3, 0), (0, 3, 1)))
    # On a GPU later tokens may differ, because sums depend on the rest of the batch.
    assert first == again
    assert first != other


@needs_cuda
@needs_vllm
def test_j_times_of_sleep_wake_and_reload(tmp_path):
    """The model has the shape of a 0.5B model, because times of a tiny one are meaningless."""
    folder = save_model(
        tmp_path / "half", hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, initializer_range=0.02)
    run_worker("times", folder, "vllm")


def worker_times(folder, backend):
    seconds = Counter()

    def timed(name, function):
        def call(*arguments, **options):
            synchronize()
            start = time.perf_counter()
            result = function(*arguments, **options)
            synchronize()
            seconds[name, str(options.get("tags", ""))] += time.perf_counter() - start
            return result
        return call

    with engine_and_trainer(folder, backend) as (_, engine, trainer):
        names = "sleep", "wake_up", "collective_rpc"
        calls = {name: timed(name, getattr(engine.llm, name)) for name in names}
        with mock.patch.multiple(engine.llm, **calls):
            for round in range(3):
                engine.load_weights(trainer.named_weights())
                gap = gap_to_the_policy(trainer, sample(engine, (0, round, 0)))
                engine.sleep()
                print(f"round {round}: gap {gap:.2g}, seconds {dict(seconds)}")
                seconds.clear()
                assert gap < GAP


@pytest.mark.parametrize("asleep", [False, pytest.param(True, marks=needs_cuda)])
@both_engines
def test_k_close_leaves_without_a_word(base, backend, asleep):
    _, output = run_command("close", base, backend, *["asleep"] * asleep)
    assert "engine closed" in output
    assert "CUDA Error" not in output


def worker_close(folder, backend, asleep=""):
    with engine_and_trainer(folder, backend) as (_, engine, trainer):
        if not asleep:
            engine.load_weights(trainer.named_weights())
            sample(engine)
    print("engine closed")


# ------------------------------------------------------------------------------ l, m: several ranks
@needs_two_cards
def test_l_two_ranks_have_the_loss_of_one(base, tmp_path):
    run_worker("loss", base, tmp_path / "one.json")
    run_worker("loss", base, tmp_path / "two.json", ranks=2)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    print(f"(loss, gradient norm) of each update: {one} on one rank, {two} on two")
    for alone, shared in zip(one, two, strict=True):
        rel, least = (0.02, 1e-3) if CUDA else (1e-4, 1e-6)
        assert shared == pytest.approx(alone, rel=rel, abs=least)


def worker_loss(folder, output):
    rows = []
    with process_group() as device:
        rank, world = dist.get_rank(), dist.get_world_size()
        trainer = simko.Trainer(config(folder, learning_rate=1e-4), device, DTYPE)
        samples = responses([32, 20, 32, 7, 1, 25, 30])
        mine = samples[rank::world]
        trainer.compute_old_logp(mine, quiet)
        for _ in range(3):
            sums = trainer.update(mine, "simko", None, quiet)
            rows.append([sums["loss"], sums["grad_norm"]])
        if rank == 0:
            Path(output).write_text(json.dumps(rows))


@needs_two_cards
def test_l_two_ranks_save_what_they_have(base, tied, tmp_path):
    run_worker("save", base, tied, tmp_path, ranks=2)


def worker_save(base, tied, output):
    """Saves a checkpoint and an export after an update, of all weights and of adapters."""
    with process_group() as device:
        for folder, lora_rank in ((base, 0), (tied, 8)):
            path = Path(output, str(lora_rank))
            trainer = checkpoint_has_the_same_bits(path, device, folder, lora_rank)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            save_hf(path / "hf", trainer, tokenizer, [END])
            exported = dict(load_model(str(path / "hf"), DTYPE).to(device).named_parameters())
            for name, weight in trainer.named_weights():
                # Here each rank computes some rows of B @ A, and in the export one computes all
                # of them, so the last digits may differ.
                torch.testing.assert_close(exported.pop(name), weight)
            assert not exported


@needs_two_cards
def test_l_rank_that_raises_ends_all(base, tmp_path):
    """torchrun ends the other rank, which would wait for the failed one for hours."""
    problems = [{"problem": f"{i} {i + 1}", "answer": f"{i}"} for i in range(2, 10)]
    write_rows(tmp_path / "train.jsonl", problems)
    status, output = run_command("raising_rank", base, tmp_path, ranks=2, check=False)
    took = time.time() - float((tmp_path / "raised").read_text())
    print(f"all gone {took:.1f} s after the error")
    assert status != 0
    assert "this rank was made to fail" in output


def worker_raising_rank(folder, output):
    """Runs two ranks, of which the second fails in its third micro-batch."""
    output, calls = Path(output), Counter()
    clipped_loss = simko.clipped_loss  # the trainer calls it once per micro-batch

    def fails_at_the_third(*arguments):
        calls["clipped_loss"] += 1
        if calls["clipped_loss"] == 3 and os.environ["RANK"] == "1":
            (output / "raised").write_text(str(time.time()))
            raise RuntimeError("this rank was made to fail")
        return clipped_loss(*arguments)

    flags = f"""
        train --model {folder} --output-dir {output}/run --train-data {output}/train.jsonl
        --rollout hf --prompt-template raw --method w-reinforce --steps 2
        --batch-size 8 --num-generations 2 --mini-batch-size 8 --micro-batch-tokens 40
        --max-prompt-length {PROMPT} --max-completion-length {RESPONSE}"""
    with mock.patch.object(simko, "clipped_loss", fails_at_the_third):
        simko.main(flags.split())


@needs_cuda
@needs_two_cards
@needs_vllm
@pytest.mark.parametrize("model, lora_rank, learning_rate, tensor_parallel_size", [
    ("base", 0, 3e-3, 1), ("tied", 8, 1e-2, 2)])
def test_m_engines_of_two_ranks_follow_the_policy(
        request, model, lora_rank, learning_rate, tensor_parallel_size):
    """The ranks have an engine each, or share one that has a SMALL_CACHE."""
    run_worker("three_rounds", request.getfixturevalue(model), "vllm", lora_rank, learning_rate,
               tensor_parallel_size, ranks=2)


if __name__ == "__main__":
    worker, *arguments = sys.argv[1:]
    globals()[f"worker_{worker}"](*arguments)
    faults.end_process()
