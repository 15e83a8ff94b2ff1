"""Measurements: every figure is a ratio of things timed in turn in one run, printed as a row of a markdown table.

    python tools/bench.py loss                     # SimKO's loss against GRPO's, the released way, the head's products
    python tools/bench.py step laptop --trl-python other/bin/python            # a training step, by phase, against TRL
    python tools/bench.py scale                    # update time and memory against tokens and samples
    python tools/bench.py gpu                      # tokens/s and FLOPs utilisation of random-weight Qwen2.5 shapes
    python tools/bench.py gpu --shape 7b --layers 4          # measured with 4 of its 28 layers, extrapolated to all
    python tools/bench.py gpu --shape 7b --fake-world 8      # one rank of eight, without the communication
    python tools/bench.py gpu --shape 0.5b --profile         # and what the card spends its time on
    python tools/bench.py verifier                 # responses a second

What has been measured is in docs/performance.md. Times are medians; a ratio is the median over rounds of the ratio
within a round, so that what else the machine does falls on both sides. Memory is the peak above what there is before:
PyTorch's on GPUs, the process's resident size on CPUs (Linux with glibc alone).
"""
import argparse
import copy
import ctypes
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.utils.benchmark import Timer
from tqdm import tqdm
from transformers import AttentionInterface, AutoModelForCausalLM, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import simko  # noqa: E402
from runtime import chunked  # noqa: E402
from runtime.log import Log  # noqa: E402

ENVIRONMENT = dict(os.environ)  # as it was: simko.process_group adds its address to it
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
QUIET = partial(tqdm, disable=True)
COMPILES = bool(shutil.which("g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()


# ------------------------------------------------------------------------------------------------------ measuring
def show(*cells):
    print("|", " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells), "|", flush=True)


def table(*names):
    print()
    show(*names)
    show(*["---"] * len(names))


def in_turn(runs, rounds):
    """{name: seconds of each round} of {name: function}, in turn, each round from another; a first is not counted."""
    seconds, names = {name: [] for name in runs}, list(runs)
    for i in range(rounds + 1):
        for name in names[i % len(names):] + names[:i % len(names)]:
            start = time.perf_counter()
            runs[name]()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds, name, base):
    return median(a / b for a, b in zip(seconds[name], seconds[base])) if {name, base} <= seconds.keys() else "-"


def resident(field):
    """GiB of memory that the system counts for this process: VmRSS is what it has, VmHWM the most it had."""
    return int(re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def memory(run):
    """(GiB held before `run`, GiB that it takes at its peak above them)."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
        run()
        return before, torch.cuda.max_memory_allocated() / 2**30 - before
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run()
    return before, resident("VmHWM") - before


def peak(run):
    """GiB that `run` takes at its peak above what there is before."""
    return memory(run)[1]


# ----------------------------------------------------------------------------------------------------------- loss
def full_statistics(hidden, weight, token, K, temperature=1.0, copies=True):
    """What simko.token_statistics returns, from all logits at once under autograd. copies: as the released code has it,
    the log-probs of the K candidates from K copies of the logits; else gathered from one log-softmax."""
    logits = (hidden @ weight.T).to(torch.promote_types(weight.dtype, torch.float32)) / temperature
    top = logits.detach().topk(K).indices
    with torch.no_grad():
        entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    if copies:
        logp = -F.cross_entropy(logits, token, reduction="none")
        topk_logp = -F.cross_entropy(logits.repeat_interleave(K, 0), top.flatten(), reduction="none").view(-1, K)
    else:
        logp, topk_logp = logits.log_softmax(-1).gather(1, torch.cat([token[:, None], top], 1)).split([1, K], 1)
        logp = logp[:, 0]
    return logp, topk_logp, entropy, logp >= topk_logp[:, 0]


def head_inputs(tokens, hidden, vocabulary):
    """Random states of eight responses, a head that gives logits of variance 1, the sampled tokens."""
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, device=DEVICE, dtype=DTYPE).requires_grad_()
    weight = torch.empty(vocabulary, hidden, device=DEVICE, dtype=DTYPE).normal_(std=hidden**-0.5).requires_grad_()
    return states, weight, torch.randint(vocabulary, (tokens,), device=DEVICE)


@torch.no_grad()
def products(hidden, weight):
    """The head's matrix products alone: logits, the same once more, and both gradients; 2048 tokens at a time. Returns
    the last, of logits as they are."""
    grad_weight, logits = torch.zeros_like(weight), hidden.new_empty(min(2048, len(hidden)), len(weight))
    for h in hidden.split(2048):
        z = torch.mm(h, weight.T, out=logits[:len(h)])
        torch.mm(h, weight.T, out=z)
        z @ weight
        grad_weight.addmm_(z.T, h)
    return grad_weight


def loss(*, hidden=(896,), tokens=(512, 1024, 2048), vocabulary=151936, memory=16.0, rounds=3):
    """SimKO's loss, forward and backward, against GRPO's, the released formulation (left out where it needs more than
    `memory` GiB) and the head's matrix products."""
    def run(statistics, method):
        states.grad = weight.grad = None
        stats = statistics(states, weight, token, cfg.K)
        gate = simko.entropy_gate(stats[2], lengths, cfg.q)
        simko.token_losses(stats, stats[0].detach(), advantage, gate, replace(cfg, method=method))[0].mean().backward()

    cfg = simko.Config()
    table("hidden", "tokens", "SimKO s", "/ GRPO", "/ released", "/ products", "SimKO GiB", "GRPO GiB", "released GiB",
          "released / SimKO")
    for size, count in itertools.product(hidden, tokens):
        states, weight, token = head_inputs(count, size, vocabulary)
        lengths = torch.tensor([count // 8] * 8, device=DEVICE)
        advantage = torch.tensor([1.0, -1.0] * 4, device=DEVICE).repeat_interleave(lengths)
        runs = {"SimKO": partial(run, chunked.token_statistics, "simko"),
                "GRPO": partial(run, chunked.token_statistics, "grpo"),
                "released": partial(run, full_statistics, "simko"), "products": partial(products, states, weight)}
        if 4 * count * vocabulary * (3 * cfg.K + 3) / 2**30 > memory:
            del runs["released"]
        seconds, gib = in_turn(runs, rounds), {"released": math.nan}
        for name in list(runs)[:-1]:
            states.grad = weight.grad = None  # they are above the weights
            gib[name] = peak(runs[name])
        show(size, count, median(seconds["SimKO"]),
             *(ratio(seconds, "SimKO", name) for name in ("GRPO", "released", "products")),
             gib["SimKO"], gib["GRPO"], gib["released"], gib["released"] / gib["SimKO"])


# ----------------------------------------------------------------------------------------------------------- step
CASES = {  # flags of simko.py; those behind the case on the command line win
    "laptop": ["--model", "runs/laptop/data/base", "--train-data", "runs/laptop/data/train.jsonl",
               "--task", "countdown", "--prompt-template", "raw", "--batch-size", "32", "--mini-batch-size", "8",
               "--learning-rate", "4e-4", "--loss-type", "token", "--max-prompt-length", "16", "--max-completion-length", "12"],
    "smollm2": ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--train-data", "gsm8k", "--batch-size", "8",
                "--num-generations", "4", "--mini-batch-size", "2", "--max-prompt-length", "256", "--max-completion-length", "128",
                "--gpu-memory-utilization", "1"],
}


def simko_steps(cfg, problems, tokenizer, stop_ids, device, verifier):
    """Makes a step of simko.py's with each `next`; gives tokens a response and the seconds of each phase."""
    spent = Counter()

    def timed(owner, name, phase):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[phase] += time.perf_counter() - start
            return result
        setattr(owner, name, wrapper)

    with closing(simko.make_engine(cfg, stop_ids, device, torch.float32, "dummy", cfg.max_completion_length)) as engine:
        trainer, log = simko.Trainer(cfg, device, torch.float32), Log(Path(cfg.output_dir), 0, cfg)
        engine.sync(trainer.named_weights())
        for phase, owner, name in (
                ("forward", trainer.policy, "policy_statistics"), ("forward", simko, "entropy_gate"),
                ("forward", simko, "token_losses"), ("backward", torch.Tensor, "backward"),
                ("optimizer", torch.nn.utils, "clip_grad_norm_"), ("optimizer", trainer.optimizer, "step")):
            timed(owner, name, phase)
        for step in itertools.count():
            spent.clear()
            row = simko.train_step(step, cfg, problems, tokenizer, engine, trainer, verifier, QUIET)
            with redirect_stdout(sys.stderr):
                log(row)
            yield {"tokens": row["response_length"], **spent,
                   **{phase: row[f"seconds_{phase}"] for phase in ("rollout", "reward", "sync")}}


def trl_steps(python, cfg, problems, tokenizer, steps):
    """Makes a step of TRL's GRPOTrainer with each `next`, on the prompts that simko.py takes, in the same order; gives
    tokens a response."""
    ids = [problems[i]["prompt_ids"].tolist() for step in range(steps)
           for i in simko.prompt_order(step, cfg.batch_size, len(problems), cfg.seed)]
    special = cfg.prompt_template != "raw"  # raw prompts get theirs from the tokenizer
    settings = {"output_dir": cfg.output_dir, "per_device_train_batch_size": cfg.mini_batch_size * cfg.num_generations,
                "steps_per_generation": cfg.batch_size // cfg.mini_batch_size, "num_generations": cfg.num_generations,
                "max_completion_length": cfg.max_completion_length, "learning_rate": cfg.learning_rate}
    job = {"model": cfg.model, "prompts": [tokenizer.decode(i, skip_special_tokens=not special) for i in ids],
           "prompt_ids": ids, "settings": settings}
    with subprocess.Popen([python, Path(__file__).with_name("trl_steps.py")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, bufsize=1, env=ENVIRONMENT) as process:
        process.stdin.write(json.dumps(job) + "\n")
        while True:
            process.stdin.write("\n")
            yield {"tokens": float(process.stdout.readline() or sys.exit("bench.py: error: TRL stopped, see above"))}


def step(*flags, case, rollout=("hf", "vllm"), trl_python="", rounds=3):
    """A whole training step by phase, on our two rollout backends and, if `trl_python` of an environment with TRL is
    named, against TRL's. case: laptop or smollm2; further flags are simko.py's."""
    from runtime.cli import prepare
    from verify import Verifier
    if DEVICE == "cuda":  # TRL's side is on the CPU, and phases are timed without waiting for a GPU
        sys.exit("bench.py: error: step compares on CPUs: CUDA_VISIBLE_DEVICES= python tools/bench.py step ...")
    rows, runs, phases = {}, {}, ("rollout", "forward", "backward", "optimizer", "reward", "sync")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _, cfg, tokenizer, stop_ids, sets, _ = prepare(["train", *CASES[case], "--no-gradient-checkpointing", *flags,
                                                        "--output-dir", folder])
        problems, device = sets[cfg.train_data][0], stack.enter_context(simko.process_group())
        verifier = stack.enter_context(Verifier())
        if trl_python:  # every group half right, here and there, so that no response is without a gradient
            score = verifier.score
            verifier.score = lambda *rows: [float(i % 2) for i, _ in enumerate(score(*rows))]
            runs["TRL"] = trl_steps(trl_python, cfg, problems, tokenizer, rounds + 2)
        for name in rollout:
            runs[name] = simko_steps(replace(cfg, rollout=name), problems, tokenizer, stop_ids, device, verifier)
        for name, steps in runs.items():
            rows[name], steps = [], stack.enter_context(closing(steps))
            runs[name] = lambda answers=rows[name], steps=steps: answers.append(next(steps))
        seconds = in_turn(runs, rounds)
    table(case, "s a step", "steps/s", "x TRL's", "response tokens", *(f"{name} %" for name in phases), "other %")
    for name, times in seconds.items():
        counted = rows[name][1:]
        share = [100 * median(row.get(phase, 0) / t for row, t in zip(counted, times)) for phase in phases]
        show(name, median(times), 1 / median(times), ratio(seconds, "TRL", name),
             mean(row["tokens"] for row in counted), *("-" * 7 if name == "TRL" else [*share, 100 - sum(share)]))


# ---------------------------------------------------------------------------------------------------- scale and gpu
def qwen2(vocabulary, hidden, feed_forward, layers, heads, kv_heads, tied=True):
    return Qwen2Config(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=feed_forward,
                       num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                       architectures=["Qwen2ForCausalLM"], tie_word_embeddings=tied, max_position_embeddings=32768)


SHAPES = {"laptop": qwen2(94, 64, 192, 3, 2, 2), "tiny-qwen": qwen2(4096, 128, 512, 2, 4, 2),
          "0.5b": qwen2(151936, 896, 4864, 24, 14, 2), "1.5b": qwen2(151936, 1536, 8960, 28, 12, 2),
          "7b": qwen2(152064, 3584, 18944, 28, 28, 4, tied=False)}


def shape_of(name, layers=0):
    """The configuration of a shape, with its first `layers` layers alone unless that is 0."""
    config = copy.deepcopy(SHAPES[name])
    if layers:
        config.num_hidden_layers = layers
        config.layer_types = config.layer_types[:layers]
    return config


def random_model(config, dtype=torch.float32):
    AttentionInterface.register("packed", simko.packed_attention)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="packed")


def random_samples(count, length, name):
    """Responses to update on, a quarter of each its prompt, half of them right."""
    rng, prompt, words = np.random.default_rng(0), length // 4, SHAPES[name].vocab_size
    old_logp = torch.full((length - prompt,), -math.log(words), device=DEVICE)
    return [simko.Sample(i, rng.integers(words, size=prompt), rng.integers(words, size=length - prompt), np.zeros(0),
                         False, advantage=1.0 - i % 2 * 2, old_logp=old_logp) for i in range(count)]


def random_trainer(config, device, prepare=None, **settings):
    """simko.Trainer on random weights: what it would load is made instead, and handed to `prepare`."""
    def load(path, dtype):
        model = random_model(config, dtype)
        if prepare:
            prepare(model)
        return model

    simko.load_model = load
    return simko.Trainer(simko.Config(model="random", **settings), device, DTYPE)


def scale(*, shape=("laptop", "tiny-qwen"), tokens=(2048, 4096, 8192, 16384, 32768, 65536), rounds=3):
    """Time and peak memory of an update against tokens, in sequences of 512, and against the number of sequences."""
    for name in shape:
        table("shape", "tokens", "samples", "s an update", "us a token", "/ the first's",
              "GiB above weights, gradients, optimizer")
        with simko.process_group() as device:
            trainer = random_trainer(SHAPES[name], device, micro_batch_tokens=4096, gradient_checkpointing=False)
            cases = [(count // 512, 512) for count in tokens] + [(max(tokens) // size, size) for size in (128, 32)]
            runs = {case: partial(trainer.update, random_samples(*case, name), None, QUIET) for case in cases}
            seconds = in_turn(runs, rounds)
            each = {case: [1e6 * t / math.prod(case) for t in times] for case, times in seconds.items()}
            for case, run in runs.items():
                show(name, math.prod(case), case[0], median(seconds[case]), median(each[case]),
                     ratio(each, case, cases[0]), peak(run))


def model_flops(model, samples):
    """FLOPs that an update on `samples` needs: 6 a weight and token, the head on response tokens alone; causal
    attention. What gradient checkpointing computes again is not in it."""
    shape, tokens = model.config, [len(s.prompt_ids) + len(s.response_ids) for s in samples]
    layers = sum(p.numel() for p in model.base_model.layers.parameters())
    head = shape.vocab_size * shape.hidden_size * sum(len(s.response_ids) for s in samples)
    attention = shape.num_hidden_layers * shape.hidden_size * sum(n * n for n in tokens)
    return 6 * (layers * sum(tokens) + head + attention)


# Other ways to compute a chunk of the head, to take the place of runtime/chunked.py's `chunk_statistics` and
# `chunk_gradient`. On a card the head waits for passes over the float32 logits; these make fewer or smaller passes.
def top_k_by_blocks(z, K, size=64):
    """z.topk(K), exact, in one pass over z: the K largest are in those K blocks whose maxima are the largest."""
    if z.shape[1] % size or z.shape[1] // size < K:
        return z.topk(K)
    blocks = z.unflatten(1, (-1, size))
    best = blocks.amax(-1).topk(K).indices
    values, place = blocks.gather(1, best[:, :, None].expand(-1, -1, size)).flatten(1).topk(K)
    return values, best.gather(1, place // size) * size + place % size


def statistics_top_k_first(h, weight, y, K, temperature, top_k=torch.topk):
    """`chunked.chunk_statistics` with the top-K taken of the logits in the model's dtype, of half the bytes: neither
    the cast nor the division changes their order."""
    z = h @ weight.T
    values, top = top_k(z, K)
    wide = torch.promote_types(z.dtype, torch.float32)
    values = values.to(wide) / temperature
    largest = values[:, :1]

    z = z.to(wide)
    if temperature != 1:
        z.div_(temperature)
    exp = (z - largest).exp_()
    total = exp.sum(-1, keepdim=True)
    log_z = largest + total.log()
    mean_z = exp.mul_(z).sum(-1, keepdim=True) / total

    logp = z.gather(1, y[:, None]) - log_z
    return logp[:, 0], values - log_z, (log_z - mean_z)[:, 0], log_z, top


def statistics_in_few_passes(h, weight, y, K, temperature):
    """Block-wise top-K; cast, division and subtraction in one pass; sum_j exp_j z_j as a dot product, which writes no
    product down."""
    z = h @ weight.T
    values, top = top_k_by_blocks(z, K)
    values = values.to(torch.promote_types(z.dtype, torch.float32)) / temperature
    largest = values[:, :1]
    sampled = z.gather(1, y[:, None]).to(values.dtype) / temperature

    z = torch.add(-largest, z, alpha=1 / temperature)  # float32 of bfloat16 logits, without a copy in between
    exp = z.exp()
    total = exp.sum(-1, keepdim=True)
    log_total = total.log()
    mean_z = torch.bmm(exp[:, None, :], z[:, :, None])[:, 0] / total  # of logits less the largest
    log_z = largest + log_total
    return (sampled - log_z)[:, 0], values - log_z, (log_total - mean_z)[:, 0], log_z, top


def gradient_in_few_passes(h, weight, log_z, columns, grad, temperature):
    """`chunked.chunk_gradient` with cast, division and subtraction in one pass."""
    z = h @ weight.T
    pi = torch.add(-log_z, z, alpha=1 / temperature).exp_()
    grad_z = pi.mul_(-grad.sum(1, keepdim=True))
    return grad_z.scatter_add_(1, columns, grad).to(weight.dtype)


HEADS = {  # a way's own functions of a chunk, (statistics, gradient)
    "topk-first": (statistics_top_k_first, chunked.chunk_gradient),
    "topk-blocks": (partial(statistics_top_k_first, top_k=top_k_by_blocks), chunked.chunk_gradient),
    "few-passes": (statistics_in_few_passes, gradient_in_few_passes),
}
WAYS = {
    "grpo": "the same update with GRPO's loss",
    "simko": "as simko.py trains",
    "full-logits": "GRPO's loss on the logits of the whole micro-batch",
    "topk-first": "top-K of the logits before they are cast to float32",
    "topk-blocks": "the same, by blocks of 64",
    "few-passes": "the same, with exp, its sums and the gradient in as few passes as PyTorch's functions allow",
    "compiled-chunks": "torch.compile on what is computed for a chunk",
    "compiled-layers": "layer.compile(), attention left out, lengths dynamic",
    "half-checkpointed": "every second layer checkpointed, micro-batches of half the tokens",
}


def gpu(*, shape=("0.5b", "1.5b", "7b"), tokens=(4096, 8192, 16384), layers=0, fake_world=1, profile=False,
        ways=("grpo", "simko", "compiled-chunks", "full-logits"), generate=512, rounds=3):
    """Tokens/s, model-FLOPs utilisation (of the rate of a matrix product) and memory of updates of four micro-batches
    of `tokens`, in several ways, see WAYS. layers: measure with that many of the shape's layers and with half as many,
    and extrapolate to all. fake_world: one rank of as many, without communication. profile: the operations that took
    most time. generate: tokens/s that vLLM generates in responses of so many tokens (0: not measured)."""
    if DEVICE == "cpu" and "tiny-qwen" not in shape:
        sys.exit("bench.py: error: no GPU here; a dry run on the CPU: gpu --shape tiny-qwen --tokens 1024")
    if layers and not all(2 <= layers <= SHAPES[name].num_hidden_layers for name in shape):
        sys.exit(f"bench.py: error: --layers {layers}: at least 2, and no more than the shape has")
    if not COMPILES:
        print("without compiled ways: torch.compile needs a C++ compiler and Python's headers")
        ways = [way for way in ways if not way.startswith("compiled")]
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(where, *[f"as one rank of {fake_world}, communication left out"] * (fake_world > 1), sep=", ")
    table("shape", "tokens a micro-batch", "", "update tokens/s", "TFLOP/s of a product", "FLOPs utilisation %",
          "time / grpo's", "GiB above weights, gradients, optimizer", "GiB in all")
    profiles = []
    for name, count in itertools.product(shape, tokens):
        remaining = list(ways)
        job = partial(measured_updates, name, count, rounds, fake_world)
        measured = measure_what_fits(job, layers, remaining, profile)
        show_updates(f"{name}, {layers} layers" if layers else name, count, measured)
        profiles += [(name, way, kernels) for way, kernels in measured["profiles"].items()]
        if layers:
            half = measure_what_fits(job, layers // 2, remaining, False)
            every = SHAPES[name].num_hidden_layers
            label = f"{name}, {every} layers, extrapolated from {layers // 2} and {layers}"
            show_updates(label, count, extrapolated(half, measured, layers // 2, layers, every))
    if profile:
        show_profiles(profiles)
    if generate:
        table("shape", "vLLM, tokens/s generated")
        for name in shape:
            show(name, afresh(generation_rate, name, generate, rounds))


def afresh(function, *arguments):
    """In a process of its own, as neither FSDP nor vLLM gives back all memory that it took."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_what_fits(job, layers, ways, profile):
    """What `measured_updates` measures of those ways that do not run out of memory; the others leave the list."""
    lost = []
    while ways:  # afresh after each loss, since FSDP is of no use once it ran out of memory
        measured = afresh(job, layers, ways, profile)
        if "lost" not in measured:
            return measured | {"out of memory": lost}
        lost.append(measured["lost"])
        ways.remove(measured["lost"])
    return {"rate": math.nan, "tokens": 0, "seconds": {}, "profiles": {}, "out of memory": lost}


def show_updates(label, count, measured):
    for way in measured["out of memory"]:
        show(label, count, way, "out of memory", *"-----")
    for way, times in measured["seconds"].items():
        above, whole = measured["memory"][way]
        utilisation = 100 * measured["flops"] / median(times) / measured["rate"]
        show(label, count, way, measured["tokens"] / median(times), measured["rate"] / 1e12, utilisation,
             ratio(measured["seconds"], way, "grpo"), above, whole)


def extrapolated(half, full, few, many, every):
    """What `every` layers would give if each took what a layer more took between `few` and `many`."""
    def line(a, b):
        return b + (b - a) / (many - few) * (every - many)

    ways = full["seconds"].keys() & half["seconds"].keys()
    return full | {
        "out of memory": [],
        "flops": line(half["flops"], full["flops"]) if ways else math.nan,
        "seconds": {way: [line(median(half["seconds"][way]), median(times))]
                    for way, times in full["seconds"].items() if way in ways},
        "memory": {way: [line(*pair) for pair in zip(half["memory"][way], full["memory"][way])] for way in ways}}


def show_profiles(profiles):
    for name, way, (took, kernels) in profiles:
        total = sum(milliseconds for _, _, milliseconds in kernels)
        table(f"{name}, {way}: {total:.4g} ms of operations in an update of {took:.4g} ms", "calls", "ms", "% of them")
        for operation, calls, milliseconds in kernels[:20]:
            show(operation.replace("|", "/")[:90], calls, milliseconds, 100 * milliseconds / total)


@contextmanager
def process_group(world):
    """simko.py's, or that of rank 0 of `world` ranks of which no other exists: what they would send is taken to be
    what this rank holds. So shapes, memory and computation are those of a real run, and the numbers are not."""
    if world == 1:
        with simko.process_group() as device:
            yield device
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield torch.device(DEVICE, 0)
    finally:
        dist.destroy_process_group()


def compile_layers(model):
    """With `dynamic`, neither another number of tokens nor of sequences compiles anything anew. Attention is left out:
    its kernel is fast as it is, and the longest sequence, a Python number, would be compiled in."""
    AttentionInterface.register("packed", torch.compiler.disable(simko.packed_attention))
    for layer in model.base_model.layers:
        layer.compile(dynamic=True)


def compiled_head():
    """(statistics, gradient) of a chunk, compiled; dynamic, as the last chunk of a micro-batch is shorter."""
    allowed = torch.compiler.set_stance("default")  # the layers around them may be held to eager mode
    return [allowed(torch.compile(function, dynamic=True))
            for function in (chunked.chunk_statistics, chunked.chunk_gradient)]


def set_head(statistics, gradient):
    chunked.chunk_statistics, chunked.chunk_gradient = statistics, gradient


def set_statistics(function):
    """What the trainer calls for the statistics of its tokens."""
    simko.token_statistics = function


def product_rate():
    """FLOP/s of a product of two square matrices."""
    size = 8192 if DEVICE == "cuda" else 512
    square = torch.randn(size, size, device=DEVICE, dtype=DTYPE)
    timer = Timer("a @ a", globals={"a": square}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=1).median


def measured_updates(name, tokens, rounds, world, layers, ways, profile):
    """A dict: FLOP/s of a product, tokens and FLOPs of an update, and of each way seconds, memory (above what is held
    before, in all) and, with `profile`, operations. Or {"lost": the way that ran out of memory}."""
    plain = chunked.chunk_statistics, chunked.chunk_gradient
    heads = HEADS | ({"compiled-chunks": compiled_head()} if "compiled-chunks" in ways else {})

    def run(way):
        trainer.cfg.method = "grpo" if way in ("grpo", "full-logits") else "simko"
        trainer.cfg.micro_batch_tokens = tokens // 2 if way == "half-checkpointed" else tokens
        for layer in trainer.policy.base_model.layers[1::2]:
            layer.gradient_checkpointing = way != "half-checkpointed"
        set_head(*heads.get(way, plain))
        set_statistics(partial(full_statistics, copies=False) if way == "full-logits" else chunked.token_statistics)
        with torch.compiler.set_stance("default" if way == "compiled-layers" else "force_eager"):
            _, norm = trainer.update(samples, None, QUIET)
        if not math.isfinite(norm):
            raise FloatingPointError(f"{way}: the gradient's norm is {norm}: the optimizer was not measured")

    rate, memories = product_rate(), {}
    with process_group(world) as device:
        way, samples = ways[0], random_samples(4 * tokens // 1024, 1024, name)
        try:
            trainer = random_trainer(shape_of(name, layers), device, micro_batch_tokens=tokens,
                                     prepare=compile_layers if "compiled-layers" in ways else None)
            for way in ways:
                run(way)  # gradients and the optimizer's state stay
                held, above = memory(partial(run, way))
                memories[way] = above, held + above
        except torch.OutOfMemoryError:
            return {"lost": way}
        seconds = in_turn({way: partial(run, way) for way in ways}, rounds)
        return {"rate": rate, "tokens": 4 * tokens, "flops": model_flops(trainer.policy, samples), "seconds": seconds,
                "memory": memories,
                "profiles": {way: operations(partial(run, way)) for way in ways} if profile else {}}


def operations(run):
    """(ms that `run` takes, [(operation, calls, ms in it alone)], longest first): kernels on a GPU, else PyTorch's
    operators."""
    activities, kind = torch.profiler.supported_activities(), DeviceType.CUDA if DEVICE == "cuda" else DeviceType.CPU
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        took = 1e3 * (time.perf_counter() - start)
    spent = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    rows = [(event.key, event.count, getattr(event, spent) / 1e3)
            for event in profiler.key_averages() if event.device_type == kind]
    return took, sorted(rows, key=lambda row: -row[2])


def generation_rate(name, response, rounds):
    """Tokens/s that vLLM generates for 32 prompts of 256 tokens, 8 samples each, weights random."""
    prompts, counts = list(np.random.default_rng(0).integers(SHAPES[name].vocab_size, size=(32, 256))), []
    with tempfile.TemporaryDirectory() as folder, simko.process_group() as device:
        SHAPES[name].save_pretrained(folder)
        cfg = simko.Config(model=folder, max_prompt_length=256)
        with closing(simko.VLLMEngine(cfg, [2], device, DTYPE, "dummy", response)) as engine:
            def generate():
                engine.llm.reset_prefix_cache()  # as each sync does: these prompts would be known from the last round
                samples = engine.generate(prompts, 8, 1.0, 1.0, response, QUIET)
                counts.append(sum(len(sample.response_ids) for sample in samples))

            seconds = in_turn({"generate": generate}, rounds)["generate"]
    return median(count / s for count, s in zip(counts[1:], seconds))


# ------------------------------------------------------------------------------------------------------- verifier
PROSE = ("We set up the equation and simplify both sides.", "Let $x$ be the number in question; then $2x + 3 = 7$.",
         "Substituting back, the terms cancel.", "Hence $\\frac{a}{b} = \\frac{c}{d}$, which we now use.")


def answer(rng):
    """(gold, the same written another way, a wrong one): kinds and shares as in the answers of MATH."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 12), rng.choice((2, 3, 5, 7, 11))
    kinds = [
        (60, f"{a}", rng.choice((f"{a}", f"x = {a}", f"{a}.0", rf"{a} \text{{ cm}}")), f"{a + b}"),
        (14, rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{2 * a}}}{{{2 * b}}}", rf"\frac{{{b}}}{{{a + b}}}"),
        (7, rf"{b}\sqrt{{{c}}}", rng.choice((rf"{b} \sqrt {c}", rf"\sqrt{{{b * b * c}}}")), rf"{b + 1}\sqrt{{{c}}}"),
        (6, f"x^2+{b}x+{a}", f"{a} + {b}x + x^2", f"x^2-{b}x+{a}"),
        (5, f"({a},{b})", rf"\left({a}, {b}\right)", f"({b},{a + b})"),
        (3, rf"{a}\pi", rf"{a} \pi", f"{a}"),
        (2, rf"[{b},\infty)", rf"\left[{b}, \infty\right)", rf"({b},\infty)"),
        (3, f"{a},{-b}", f"{-b}, {a}", f"{a},{b}"),
    ]
    return rng.choices(kinds, [kind[0] for kind in kinds])[0][1:]


def made_up(rows):
    """[(gold, response, whether it is right)], every second one wrong."""
    rng, found = random.Random(0), []
    for row in range(rows):
        gold, *boxed = answer(rng)
        prose = " ".join(rng.choice(PROSE) for _ in range(rng.randint(5, 30)))
        found.append((gold, f"{prose} The answer is $\\boxed{{{boxed[row % 2]}}}$.", row % 2 == 0))
    return found


def labelled(path):
    """[(gold, response, whether it is right)] of the math rows with a label in a file of JSON lines."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(row["gold"], row["response"], bool(row["label"])) for row in rows
            if row.get("task", "math") == "math" and row["label"] is not None and row["gold"].strip()]


def verifier(*, rows=2048, cases=""):
    """Responses a second of Verifier.score with two workers, against math-verify called on each response in turn:
    on made-up responses, or with --cases on the rows of a file, {"gold": ..., "response": ..., "label": 0 or 1}."""
    import math_verify

    from verify import Verifier
    golds, responses, labels = zip(*(labelled(cases) if cases else made_up(rows)))

    def measure(score):
        """Responses a second, and the (gold, response) that are judged wrongly, by their label."""
        start = time.perf_counter()
        verdicts = score(responses, golds)
        rate = len(golds) / (time.perf_counter() - start)
        wrong = {False: [], True: []}
        for *pair, label, verdict in zip(golds, responses, labels, verdicts):
            if bool(verdict) != label:
                wrong[label].append(pair)
        return rate, wrong

    def naive(response, gold):
        return math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(response))

    slow, slow_wrong = measure(lambda *pairs: list(map(naive, *pairs)))
    with Verifier(workers=2) as scorer:
        fast, wrong = measure(partial(scorer.score, task="math"))
    table("responses", "math-verify /s", "wrong verdicts", "verify.py /s", "wrong", "times")
    show(len(golds), slow, sum(map(len, slow_wrong.values())), fast, sum(map(len, wrong.values())), fast / slow)
    for label, pairs in wrong.items():
        for gold, response in pairs:
            print(f"{'rejected' if label else 'accepted'} wrongly: {gold!r}, {response[-80:]!r}")


# ----------------------------------------------------------------------------------------------------------- main
CHOICES = {"shape": SHAPES, "ways": WAYS}


def main():
    """The command line: a function's name, and its parameters as flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for run in (loss, step, scale, gpu, verifier):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        for name, default in run.__kwdefaults__.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(default, bool):
                command.add_argument(flag, action="store_true")
                continue
            several = isinstance(default, tuple)
            command.add_argument(flag, type=type(default[0] if several else default), default=default,
                                 nargs="+" if several else None, choices=CHOICES.get(name), help="default: %(default)s")
        if run is step:
            command.add_argument("case", choices=CASES)
    options, flags = parser.parse_known_args()
    settings = vars(options)
    run = globals()[settings.pop("command")]
    if flags and run is not step:
        parser.error(f"unknown flag or value {flags[0]!r}")
    run(*flags, **settings)


if __name__ == "__main__":
    main()
