"""Measurements: every figure is a ratio of things timed in turn in one run, printed as a row of a markdown table.

    python tools/bench.py loss                     # SimKO's loss against GRPO's, the released way, the head's products
    python tools/bench.py step laptop --trl-python other/bin/python            # a training step, by phase, against TRL
    python tools/bench.py scale                    # update time and memory against tokens and samples
    python tools/bench.py gpu                      # tokens/s and FLOPs utilisation of random-weight Qwen2.5 shapes
    python tools/bench.py verifier                 # responses a second

What has been measured is in docs/performance.md. Times are medians; a ratio is the median over rounds of the ratio
within a round, so that what else the machine does falls on both sides. Memory is the peak above what there is before:
PyTorch's on GPUs, the process's resident size on CPUs (Linux with glibc alone).
"""
import argparse
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
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer
from tqdm import tqdm
from transformers import AttentionInterface, AutoModelForCausalLM, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import simko  # noqa: E402
from tools.log import Log  # noqa: E402

ENVIRONMENT = dict(os.environ)  # as it was: simko.process_group adds its address to it
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
QUIET = partial(tqdm, disable=True)
PIECES = "of_chunk", "logits_gradient"  # of simko.TokenStatistics, to compile
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


def peak(run):
    """GiB that `run` takes at its peak above what there is before."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    resident = lambda field: int(re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


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
        runs = {"SimKO": partial(run, simko.token_statistics, "simko"),
                "GRPO": partial(run, simko.token_statistics, "grpo"),
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
               "--task", "countdown", "--prompt-template", "raw", "--batch", "32", "--mini-batch", "8",
               "--lr", "4e-4", "--loss-norm", "token", "--max-prompt-tokens", "16", "--max-response-tokens", "12"],
    "smollm2": ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--train-data", "gsm8k", "--batch", "8",
                "--group-size", "4", "--mini-batch", "2", "--max-prompt-tokens", "256", "--max-response-tokens", "128",
                "--engine-memory", "1"],
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

    with closing(simko.make_engine(cfg, stop_ids, device, torch.float32, "dummy", cfg.max_response_tokens)) as engine:
        trainer, log = simko.Trainer(cfg, device, torch.float32), Log(Path(cfg.output), 0, cfg)
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
            yield {"tokens": row["response_tokens"], **spent,
                   **{phase: row[f"seconds_{phase}"] for phase in ("rollout", "reward", "sync")}}


def trl_steps(python, cfg, problems, tokenizer, steps):
    """Makes a step of TRL's GRPOTrainer with each `next`, on the prompts that simko.py takes, in the same order; gives
    tokens a response."""
    ids = [problems[i]["prompt_ids"].tolist() for step in range(steps)
           for i in simko.prompt_order(step, cfg.batch, len(problems), cfg.seed)]
    special = cfg.prompt_template != "raw"  # raw prompts get theirs from the tokenizer
    settings = {"output_dir": cfg.output, "per_device_train_batch_size": cfg.mini_batch * cfg.group_size,
                "steps_per_generation": cfg.batch // cfg.mini_batch, "num_generations": cfg.group_size,
                "max_completion_length": cfg.max_response_tokens, "learning_rate": cfg.lr}
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
    from tools.checks import prepare
    from verify import Verifier
    if DEVICE == "cuda":  # TRL's side is on the CPU, and phases are timed without waiting for a GPU
        sys.exit("bench.py: error: step compares on CPUs: CUDA_VISIBLE_DEVICES= python tools/bench.py step ...")
    rows, runs, phases = {}, {}, ("rollout", "forward", "backward", "optimizer", "reward", "sync")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _, cfg, tokenizer, stop_ids, sets, _ = prepare(["train", *CASES[case], "--no-gradient-checkpointing", *flags,
                                                        "--output", folder])
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


def random_model(name, dtype=torch.float32):
    AttentionInterface.register("packed", simko.packed_attention)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(SHAPES[name], dtype=dtype, attn_implementation="packed")


def random_samples(count, length, name):
    """Responses to update on, a quarter of each its prompt, half of them right."""
    rng, prompt, words = np.random.default_rng(0), length // 4, SHAPES[name].vocab_size
    old_logp = torch.full((length - prompt,), -math.log(words), device=DEVICE)
    return [simko.Sample(i, rng.integers(words, size=prompt), rng.integers(words, size=length - prompt), np.zeros(0),
                         False, advantage=1.0 - i % 2 * 2, old_logp=old_logp) for i in range(count)]


def random_trainer(name, device, **settings):
    """simko.Trainer on random weights: what it would load is made instead."""
    simko.load_model = lambda path, dtype: random_model(name, dtype)
    return simko.Trainer(simko.Config(model=name, **settings), device, DTYPE)


def scale(*, shape=("laptop", "tiny-qwen"), tokens=(2048, 4096, 8192, 16384, 32768, 65536), rounds=3):
    """Time and peak memory of an update against tokens, in sequences of 512, and against the number of sequences."""
    for name in shape:
        table("shape", "tokens", "samples", "s an update", "us a token", "/ the first's",
              "GiB above weights, gradients, optimizer")
        with simko.process_group() as device:
            trainer = random_trainer(name, device, micro_batch_tokens=4096, gradient_checkpointing=False)
            cases = [(count // 512, 512) for count in tokens] + [(max(tokens) // size, size) for size in (128, 32)]
            runs = {case: partial(trainer.update, random_samples(*case, name), None, QUIET) for case in cases}
            seconds = in_turn(runs, rounds)
            each = {case: [1e6 * t / math.prod(case) for t in times] for case, times in seconds.items()}
            for case, run in runs.items():
                show(name, math.prod(case), case[0], median(seconds[case]), median(each[case]),
                     ratio(each, case, cases[0]), peak(run))


def model_flops(name, model, samples):
    """FLOPs that an update on `samples` needs: 6 a weight and token, the head on response tokens alone; causal
    attention. What gradient checkpointing computes again is not in it."""
    shape, tokens = SHAPES[name], [len(s.prompt_ids) + len(s.response_ids) for s in samples]
    layers = sum(p.numel() for p in model.base_model.layers.parameters())
    head = shape.vocab_size * shape.hidden_size * sum(len(s.response_ids) for s in samples)
    attention = shape.num_hidden_layers * shape.hidden_size * sum(n * n for n in tokens)
    return 6 * (layers * sum(tokens) + head + attention)


def gpu(*, shape=("0.5b", "1.5b", "7b"), tokens=(4096, 8192, 16384), generate=512, rounds=3):
    """Update tokens/s, model-FLOPs utilisation (of the rate of a matrix product) and memory of GRPO, SimKO, SimKO with
    torch.compile on its chunks (where a compiler and Python's headers are at hand) and GRPO on full logits, in updates
    of four micro-batches of `tokens`; tokens/s that vLLM generates, in responses of `generate` tokens (0: not
    measured)."""
    if DEVICE == "cpu" and "tiny-qwen" not in shape:
        sys.exit("bench.py: error: no GPU here; a dry run on the CPU: gpu --shape tiny-qwen --tokens 1024")
    print(torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU")
    table("shape", "tokens a micro-batch", "", "update tokens/s", "TFLOP/s of a product", "FLOPs utilisation %",
          "time / GRPO's", "GiB above weights, gradients, optimizer")
    for name, count in itertools.product(shape, tokens):
        ways = ["GRPO", "SimKO", *["SimKO, compiled"] * COMPILES, "GRPO, full logits"]
        while ways and (lost := afresh(update_rates, name, count, rounds, ways)):  # FSDP is of no use after it
            show(name, count, lost, "out of memory", *"----")
            ways.remove(lost)
    if generate:
        table("shape", "vLLM, tokens/s generated")
        for name in shape:
            show(name, afresh(generation_rate, name, generate, rounds))


def afresh(function, *arguments):
    """In a process of its own, as neither FSDP nor vLLM gives back all memory that it took."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def update_rates(name, tokens, rounds, ways):
    """Prints a line for each of the ways, or returns the one that ran out of memory."""
    def run(way):
        trainer.cfg.method = "simko" if "SimKO" in way else "grpo"
        simko.token_statistics = partial(full_statistics, copies=False) if "full" in way else chunked
        for piece, function in (compiled if "compiled" in way else plain).items():
            setattr(simko.TokenStatistics, piece, staticmethod(function))
        trainer.update(samples, None, QUIET)

    size, chunked, gib = 8192 if DEVICE == "cuda" else 512, simko.token_statistics, {}
    plain = {piece: getattr(simko.TokenStatistics, piece) for piece in PIECES}
    # dynamic: the last chunk of a micro-batch is shorter
    compiled = {piece: torch.compile(function, dynamic=True) for piece, function in plain.items()}
    square = torch.randn(size, size, device=DEVICE, dtype=DTYPE)
    timer = Timer("a @ a", globals={"a": square}, num_threads=torch.get_num_threads())
    rate = 2 * size**3 / timer.blocked_autorange(min_run_time=1).median
    del square, timer
    with simko.process_group() as device:
        way, samples = ways[0], random_samples(4 * tokens // 1024, 1024, name)
        try:
            trainer = random_trainer(name, device, micro_batch_tokens=tokens)
            for way in ways:
                run(way)  # gradients and the optimizer's state stay
                gib[way] = peak(partial(run, way))
        except torch.OutOfMemoryError:
            return way
        seconds = in_turn({way: partial(run, way) for way in ways}, rounds)
        flops = model_flops(name, trainer.policy, samples)
        for way, times in seconds.items():
            show(name, tokens, way, 4 * tokens / median(times), rate / 1e12, 100 * flops / median(times) / rate,
                 ratio(seconds, way, "GRPO"), gib[way])


def generation_rate(name, response, rounds):
    """Tokens/s that vLLM generates for 32 prompts of 256 tokens, 8 samples each, weights random."""
    prompts, counts = list(np.random.default_rng(0).integers(SHAPES[name].vocab_size, size=(32, 256))), []
    with tempfile.TemporaryDirectory() as folder, simko.process_group() as device:
        SHAPES[name].save_pretrained(folder)
        cfg = simko.Config(model=folder, max_prompt_tokens=256)
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


def verifier(*, rows=2048):
    """Responses a second of Verifier.score with two workers, against math-verify called on each response in turn."""
    import math_verify

    from verify import Verifier
    rng, responses, golds, rates, wrong = random.Random(0), [], [], [], []
    for row in range(rows):
        gold, *boxed = answer(rng)
        prose = " ".join(rng.choice(PROSE) for _ in range(rng.randint(5, 30)))
        responses.append(f"{prose} The answer is $\\boxed{{{boxed[row % 2]}}}$.")
        golds.append(gold)

    def measure(score):
        start = time.perf_counter()
        verdicts = score(responses, golds)
        rates.append(rows / (time.perf_counter() - start))
        wrong.append(sum(bool(verdict) == row % 2 for row, verdict in enumerate(verdicts)))

    parse = math_verify.parse
    measure(lambda *rows: [math_verify.verify(parse(f"${gold}$"), parse(response)) for response, gold in zip(*rows)])
    with Verifier(workers=2) as scorer:
        measure(partial(scorer.score, task="math"))
    table("responses", "math-verify /s", "wrong verdicts", "verify.py /s", "wrong", "times")
    show(rows, rates[0], wrong[0], rates[1], wrong[1], rates[1] / rates[0])


# ----------------------------------------------------------------------------------------------------------- main
def main():
    """The command line: a function's name, and its parameters as flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for run in (loss, step, scale, gpu, verifier):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        for name, default in run.__kwdefaults__.items():
            several = isinstance(default, tuple)
            command.add_argument(f"--{name.replace('_', '-')}", type=type(default[0] if several else default),
                                 nargs="+" if several else None, default=default, help="default: %(default)s")
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
