"""Measures speed and memory, and prints the results as rows of markdown
tables.

    python -m tools.bench loss         # compares SimKO's loss with GRPO's
    python -m tools.bench step laptop --trl-python ENV/bin/python
    python -m tools.bench scale        # updates with more and more tokens
    python -m tools.bench gpu          # updates of models of Qwen2.5's shapes
    python -m tools.bench gpu --shape 7b --layers 4 --profile
    python -m tools.bench generate     # rollouts of models of Qwen2.5's shapes
    python -m tools.bench verifier     # responses scored per second

`python -m tools.bench COMMAND --help` explains the options.
docs/performance.md lists the results.

Competing functions run alternately in one process. Times are medians. A ratio
is taken within each round, so that other load on the machine affects both
sides, and its median over rounds is printed. Memory is the peak minus what was
in use before. On GPUs it is what PyTorch allocates, on CPUs the resident size
of the process, which needs Linux with glibc.
"""
import itertools
import math
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from statistics import median
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.utils.benchmark import Timer
from transformers import AttentionInterface

import simko
from runtime import chunked, faults, ranks
from runtime.common import fail, flag, number_as_text
from runtime.data import read_jsonl
from runtime.hardware import missing_for_torch_compile
from runtime.packing import packed_attention
from tools import command_line, heads
from tools.bench_step import CASES, step
from tools.measuring import (
    DEVICE, DTYPE, QUIET, in_turn, memory_of, ratio, seconds_of, show, table)
from tools.random_models import SHAPES, SMALL, random_samples, random_trainer, shape_of


# -------------------------------------------------------------------- loss
def head_inputs(tokens, hidden, vocabulary):
    """Returns random states (T, D), head weight (V, D) and tokens (T,). The logits have variance
    1."""
    torch.manual_seed(0)
    on_device = {"device": DEVICE, "dtype": DTYPE}
    states = torch.randn(tokens, hidden, **on_device)
    weight = torch.empty(vocabulary, hidden, **on_device)
    weight.normal_(std=hidden**-0.5)
    token = torch.randint(vocabulary, (tokens,), device=DEVICE)
    return states.requires_grad_(), weight.requires_grad_(), token


@torch.no_grad()
def products(hidden, weight):
    """Computes only the head's matrix products, for 2048 tokens at a time: the logits twice, and
    both gradients. The logits serve as their own gradient. Returns the weight's gradient."""
    grad_weight = torch.zeros_like(weight)
    logits = hidden.new_empty(min(2048, len(hidden)), len(weight))
    for h in hidden.split(2048):
        z = torch.mm(h, weight.T, out=logits[:len(h)])
        torch.mm(h, weight.T, out=z)
        z @ weight
        grad_weight.addmm_(z.T, h)
    return grad_weight


def token_loss(method, statistics, advantage, lengths, cfg):
    """Returns the loss of each token, (T,), as `Trainer.update` computes it in the first update
    after a rollout. statistics: as `chunked.token_statistics` returns them."""
    logp, topk_logp, entropy, is_top1 = statistics
    old_logp = logp.detach()
    gate = entropy > simko.entropy_threshold(entropy, lengths, cfg.q)
    gamma = (logp - old_logp).exp()
    if method == "simko":
        gamma = simko.simko_ratio(
            logp, old_logp, topk_logp, is_top1, advantage, gate, cfg.alpha, cfg.lambda_top1)
    return simko.clipped_loss(gamma, advantage, cfg.epsilon, cfg.epsilon_high)


def loss(*, hidden=(896,), tokens=(512, 1024, 2048), vocabulary=151936, memory=16.0, rounds=3):
    """Measures SimKO's loss, forward and backward from the head's input. Compares it with GRPO's
    loss, with the released formulation and with the head's matrix products alone."""
    cfg = simko.Config()

    def run(statistics_of, method):
        states.grad = weight.grad = None
        statistics = statistics_of(states, weight, token, cfg.K, cfg.temperature)
        losses = token_loss(method, statistics, advantage, lengths, cfg)
        losses.mean().backward()

    table("hidden", "tokens", "SimKO s", "/ GRPO", "/ released",
          "/ products", "SimKO GiB", "GRPO GiB", "released GiB", "released / SimKO")
    for size, count in itertools.product(hidden, tokens):
        states, weight, token = head_inputs(count, size, vocabulary)
        lengths = torch.tensor([count // 8] * 8, device=DEVICE)
        advantage = torch.tensor([1.0, -1.0] * 4, device=DEVICE)
        advantage = advantage.repeat_interleave(lengths)
        ours, released = chunked.token_statistics, heads.released_statistics
        runs = {"SimKO": partial(run, ours, "simko"), "GRPO": partial(run, ours, "grpo")}
        copies = 3 * cfg.K + 3  # of the logits, in float32
        if 4 * count * vocabulary * copies <= memory * 2**30:
            runs["released"] = partial(run, released, "simko")
        timed = runs | {"products": partial(products, states, weight)}
        seconds = in_turn(timed, rounds)
        gib = {"released": math.nan}
        for name, function in runs.items():
            states.grad = weight.grad = None
            _, gib[name] = memory_of(function)
        bases = "GRPO", "released", "products"
        show(size, count, median(seconds["SimKO"]),
             *(ratio(seconds, "SimKO", base) for base in bases),
             gib["SimKO"], gib["GRPO"], gib["released"], gib["released"] / gib["SimKO"])


# ----------------------------------------------------------- scale and gpu
WAYS = {
    "grpo": "GRPO's loss",
    "simko": "SimKO's loss, as simko.py trains",
    "full-logits": "GRPO's loss on all logits of a micro-batch at once",
    "topk-first": "top-K before the cast to float32",
    "topk-blocks": "the same, with top-K by blocks of 64",
    "few-passes": "the same, with fewer passes over the logits",
    "compiled-chunks": "torch.compile on the functions of a chunk",
    "compiled-layers": "layer.compile() without attention",
}


def need_a_card(shapes, dry_run):
    if DEVICE == "cpu" and not set(shapes) <= set(SMALL):
        fail("no GPU was found: for a dry run on the CPU, use python -m tools.bench "
             f"{dry_run}")


def scale(*, shape=SMALL,
          tokens=(2048, 4096, 8192, 16384, 32768, 65536), rounds=3):
    """Measures how the time and memory of an update grow with its tokens, in sequences of 512
    tokens. Then measures the largest update with shorter sequences."""
    for name in shape:
        table("shape", "tokens", "samples", "s per update", "us per token",
              "/ the first's", "GiB above weights, gradients, optimizer")
        cases = [(count // 512, 512) for count in tokens]
        cases += [(max(tokens) // size, size) for size in (128, 32)]
        with ranks.process_group() as device:
            trainer = random_trainer(
                SHAPES[name], device, micro_batch_tokens=4096, gradient_checkpointing=False)
            runs = {}
            for case in cases:
                samples = random_samples(*case, name)
                runs[case] = partial(trainer.update, samples, "simko", None, QUIET)
            seconds = in_turn(runs, rounds)
            us = {case: [1e6 * t / math.prod(case) for t in times]
                  for case, times in seconds.items()}
            for case, run in runs.items():
                _, gib = memory_of(run)
                show(name, math.prod(case), case[0], median(seconds[case]),
                     median(us[case]), ratio(us, case, cases[0]), gib)


def gpu(*, shape=("0.5b", "1.5b", "7b"), tokens=(4096, 8192, 16384),
        ways=("grpo", "simko", "compiled-chunks", "full-logits"),
        layers=0, lora_rank=0, fake_world=1, profile=False, rounds=3):
    """Measures updates of four micro-batches on random weights, computed in several ways: tokens
    per second, FLOPs relative to the rate of a matrix product, and memory. Sequences have 1024
    tokens, and a micro-batch has at least one of them."""
    need_a_card(shape, "gpu --shape tiny-qwen --tokens 1024")
    for name in shape:
        most = SHAPES[name].num_hidden_layers
        if layers and not 2 <= layers <= most:
            fail(f"--layers {layers} must be from 2 to the {most} that {name} has")
    if packages := missing_for_torch_compile():
        print("Skipping the compiled ways, because torch.compile lacks packages: "
              f"on Debian and Ubuntu, run apt install {' '.join(packages)}")
        ways = [way for way in ways if not way.startswith("compiled")]
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    if fake_world > 1:
        where += f", one rank of {fake_world} without communication"
    if lora_rank:
        where += f", LoRA of rank {lora_rank}"
    print(where)
    table("shape", "tokens per micro-batch", "", "update tokens/s",
          "TFLOP/s of a matrix product", "FLOPs utilisation %", "time / grpo's",
          "GiB above weights, gradients, optimizer", "GiB in all")
    profiles = []
    for name, count in itertools.product(shape, tokens):
        remaining = list(ways)
        job = partial(measured_updates, name, count, rounds, fake_world, lora_rank)
        full = measure_what_fits(job, layers, remaining, profile)
        label = f"{name}, {layers} layers" if layers else name
        show_updates(label, count, full)
        for way, rows in full["profiles"].items():
            profiles.append((f"{name}, {way}", *rows))
        if layers:
            few = layers // 2
            fewer = measure_what_fits(job, few, remaining, False)
            every = SHAPES[name].num_hidden_layers
            label = f"{name}, {every} layers, extrapolated from {few} and {layers}"
            show_updates(label, count, extrapolated(fewer, full, few, layers, every))
    for title, milliseconds, rows in profiles:
        show_profile(title, milliseconds, rows)


def afresh(function, *arguments):
    """Calls a function in a new process and returns its result. In one process memory would fill
    up, because neither FSDP nor vLLM frees all of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_what_fits(job, layers, ways, profile):
    """Returns the result of `measured_updates` for the ways that fit in memory. Moves the others
    from the list `ways` to the result's list "out of memory"."""
    lost = []
    while ways:
        # FSDP is unusable after it has run out of memory, so start a new process.
        measured = afresh(job, layers, ways, profile)
        if "lost" not in measured:
            return measured | {"out of memory": lost}
        lost.append(measured["lost"])
        ways.remove(measured["lost"])
    return {"rate": math.nan, "tokens": 0, "seconds": {}, "profiles": {}, "out of memory": lost}


def show_updates(label, count, measured):
    for way in measured["out of memory"]:
        show(label, count, way, "out of memory", *"-----")
    rate, seconds = measured["rate"], measured["seconds"]
    for way, times in seconds.items():
        took = median(times)
        show(label, count, way, measured["tokens"] / took, rate / 1e12,
             100 * measured["flops"] / took / rate,
             ratio(seconds, way, "grpo"), *measured["memory"][way])


def extrapolated(fewer, full, few, many, every):
    """Extrapolates time, memory and FLOPs to `every` layers, linearly from those with `few`
    layers (fewer) and with `many` (full)."""
    def line(a, b):
        return b + (b - a) / (many - few) * (every - many)

    result = full | {"out of memory": [], "seconds": {}, "memory": {}}
    if fewer["seconds"]:
        result["flops"] = line(fewer["flops"], full["flops"])
    for way in fewer["seconds"]:
        times = [median(m["seconds"][way]) for m in (fewer, full)]
        pairs = zip(fewer["memory"][way], full["memory"][way])
        result["seconds"][way] = [line(*times)]
        result["memory"][way] = [line(*pair) for pair in pairs]
    return result


def show_profile(title, took, rows):
    """Prints the 20 operations that took longest."""
    total = sum(milliseconds for _, _, milliseconds in rows)
    table(f"{title}: {total:.4g} ms of operations in an update of "
          f"{took:.4g} ms", "calls", "ms", "% of them")
    for operation, calls, milliseconds in rows[:20]:
        name = operation.replace("|", "/")[:90]
        show(name, calls, milliseconds, 100 * milliseconds / total)


@contextmanager
def process_group(world):
    """Sets up simko.py's process group or, if world > 1, a fake group in which this process is
    rank 0 and no other rank exists. The fake group uses this rank's data in place of what the
    others would send, so shapes, memory and computation are realistic but the numbers are not."""
    if world == 1:
        with ranks.process_group() as device:
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
    """Compiles the layers once for all numbers of tokens and sequences.

    Attention is not compiled. Its kernel is fast already, and the length of the longest sequence
    is a Python number, which would be compiled in as a constant."""
    eager = torch.compiler.disable(packed_attention)
    AttentionInterface.register("packed", eager)
    for layer in model.base_model.layers:
        layer.compile(dynamic=True)


def product_rate():
    """Measures the FLOP/s of a product of two square matrices."""
    size = 8192 if DEVICE == "cuda" else 512
    square = torch.randn(size, size, device=DEVICE, dtype=DTYPE)
    timer = Timer("a @ a", globals={"a": square}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=1).median


def model_flops(model, samples):
    """Returns the FLOPs that an update needs: 6 for each weight and token, or 4 if LoRA freezes
    the weight, and those of causal attention. The head counts for response tokens only. The
    recomputation of gradient checkpointing does not count."""
    shape = model.config
    tokens = [s.size() for s in samples]
    targets = sum(len(s.response_ids) for s in samples)
    body = sum(
        p.numel() * (6 if p.requires_grad else 4) for p in model.base_model.layers.parameters())
    trained = model.get_output_embeddings().weight.requires_grad
    head = shape.vocab_size * shape.hidden_size * (6 if trained else 4)
    attention = 6 * shape.num_hidden_layers * shape.hidden_size * sum(n * n for n in tokens)
    return body * sum(tokens) + head * targets + attention


def update(trainer, samples, tokens, way):
    """Runs an update in one of WAYS. tokens: the size of a micro-batch."""
    method = "grpo" if way in ("grpo", "full-logits") else "simko"
    trainer.cfg.micro_batch_tokens = tokens
    # In all other ways, layers run eagerly even if they were compiled.
    stance = "default" if way == "compiled-layers" else "force_eager"
    with (torch.compiler.set_stance(stance),
          mock.patch.multiple(chunked, **heads.functions(way))):
        sums = trainer.update(samples, method, None, QUIET)
    if not math.isfinite(sums["grad_norm"]):
        raise FloatingPointError(
            f"{way}: the gradient is not finite, so the optimizer was not measured")


def measured_updates(name, tokens, rounds, world, lora_rank, layers, ways, profile):
    """Measures updates in each of `ways`. Returns a dict of "rate" (FLOP/s of a matrix product),
    "tokens" and "flops" (of an update), and for each way "seconds" (of each round), "memory"
    (GiB above what is in use before, GiB in total) and, with `profile`, "profiles". If a way runs
    out of memory, returns {"lost": way}."""
    change = compile_layers if "compiled-layers" in ways else None
    samples = random_samples(4 * tokens // 1024, 1024, name)
    rate, memory, way = product_rate(), {}, ways[0]
    with process_group(world) as device:
        try:
            trainer = random_trainer(shape_of(name, layers), device, change, lora_rank=lora_rank)
            runs = {way: partial(update, trainer, samples, tokens, way) for way in ways}
            for way, run in runs.items():
                run()  # allocates gradients and the optimizer's state
                held, above = memory_of(run)
                memory[way] = above, held + above
        except torch.OutOfMemoryError:
            return {"lost": way}
        seconds = in_turn(runs, rounds)
        profiles = {}
        if profile:
            profiles = {way: operations(run) for way, run in runs.items()}
        return {"rate": rate, "tokens": sum(s.size() for s in samples), "seconds": seconds,
                "flops": model_flops(trainer.policy, samples),
                "memory": memory, "profiles": profiles}


def operations(run):
    """Returns the ms that `run` takes and a list of (operation, calls, ms without its children),
    the longest first. The operations are kernels on a GPU and PyTorch's operators on a CPU."""
    kind, spent = DeviceType.CPU, "self_cpu_time_total"
    if DEVICE == "cuda":
        kind, spent = DeviceType.CUDA, "self_device_time_total"
    activities = torch.profiler.supported_activities()
    with torch.profiler.profile(activities=activities) as profiler:
        took = 1000 * seconds_of(run)
    rows = [(event.key, event.count, getattr(event, spent) / 1000)
            for event in profiler.key_averages() if event.device_type == kind]
    return took, sorted(rows, key=lambda row: -row[2])


# ---------------------------------------------------------------- generate
def generate(*, shape=("0.5b", "1.5b", "7b"), tokens=512, rounds=3):
    """Measures vLLM's rollouts with random weights, in tokens per second: 8 responses to each of
    32 prompts, and one response to each of 1,024 prompts. Each prompt has 256 tokens."""
    need_a_card(shape, "generate --shape tiny-qwen --tokens 16")
    table("shape", "prompts", "responses each", "tokens/s generated")
    for name in shape:
        for (prompts, n), rate in afresh(generation_rates, name, tokens, rounds).items():
            show(name, prompts, n, rate)


def generation_rates(name, tokens, rounds):
    """Returns {(prompts, responses to each): tokens that vLLM generates per second}."""
    words, rng = SHAPES[name].vocab_size, np.random.default_rng(0)
    counts = {}

    def run(case):
        prompts, n = case
        # As after a weight sync. Otherwise the prompts would be cached.
        engine.llm.reset_prefix_cache()
        ids = list(rng.integers(words, size=(prompts, 256)))
        samples = engine.generate(ids, n, 1.0, 1.0, tokens, QUIET)
        counts[case].append(sum(len(s.response_ids) for s in samples))

    with (tempfile.TemporaryDirectory() as folder, ranks.process_group() as device):
        SHAPES[name].save_pretrained(folder)
        cfg = simko.Config(model=folder, output_dir=folder, max_prompt_length=256)
        arguments = cfg, [2], device, DTYPE, "dummy", tokens
        with closing(simko.VLLMEngine(*arguments)) as engine:
            runs = {case: partial(run, case) for case in ((32, 8), (1024, 1))}
            counts.update((case, []) for case in runs)
            seconds = in_turn(runs, rounds)
    return {case: median(count / s for count, s in zip(counts[case][1:], times))
            for case, times in seconds.items()}


# ---------------------------------------------------------------- verifier
PROSE = (
    "We set up the equation and simplify both sides.",
    "Let $x$ be the number in question; then $2x + 3 = 7$.",
    "Substituting back, the terms cancel.",
    "Hence $\\frac{a}{b} = \\frac{c}{d}$, which we now use.")


def answer(rng):
    """Returns (gold answer, the same answer in another notation, a wrong answer). Kinds and
    shares resemble the answers of MATH."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 12), rng.choice((2, 3, 5, 7, 11))
    number = rng.choice((f"{a}", f"x = {a}", f"{a}.0", rf"{a} \text{{ cm}}"))
    root = rng.choice((rf"{b} \sqrt {c}", rf"\sqrt{{{b * b * c}}}"))
    kinds = [
        (60, f"{a}", number, f"{a + b}"),
        (14, rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{2 * a}}}{{{2 * b}}}",
         rf"\frac{{{b}}}{{{a + b}}}"),
        (7, rf"{b}\sqrt{{{c}}}", root, rf"{b + 1}\sqrt{{{c}}}"),
        (6, f"x^2+{b}x+{a}", f"{a} + {b}x + x^2", f"x^2-{b}x+{a}"),
        (5, f"({a},{b})", rf"\left({a}, {b}\right)", f"({b},{a + b})"),
        (3, rf"{a}\pi", rf"{a} \pi", f"{a}"),
        (2, rf"[{b},\infty)", rf"\left[{b}, \infty\right)", rf"({b},\infty)"),
        (3, f"{a},{-b}", f"{-b}, {a}", f"{a},{b}"),
    ]
    shares = [kind[0] for kind in kinds]
    return rng.choices(kinds, shares)[0][1:]


def made_up(rows):
    """Returns [(gold, response, whether it is right)]. Every second response is wrong."""
    rng, found = random.Random(0), []
    for row in range(rows):
        gold, *boxed = answer(rng)
        prose = " ".join(rng.choice(PROSE) for _ in range(rng.randint(5, 30)))
        response = f"{prose} The answer is $\\boxed{{{boxed[row % 2]}}}$."
        found.append((gold, response, row % 2 == 0))
    return found


def labelled(path):
    """Returns [(gold, response, whether it is right)] of the labelled math rows in a file of JSON
    lines."""
    found = []
    for where, row in read_jsonl(path):
        if not row.keys() >= {"gold", "response", "label"}:
            fail(f"{where} lacks gold, response or label: give each row all three")
        is_math, gold = row.get("task", "math") == "math", number_as_text(row["gold"])
        if not isinstance(gold, str):
            fail(f"{where}: the gold answer must be a text or a number, not {gold!r:.80}")
        if is_math and row["label"] is not None and gold.strip():
            found.append((gold, row["response"], bool(row["label"])))
    return found or fail(f"{path} has no math row with a label and a gold answer")


def verifier(*, rows=2048, cases=""):
    """Compares the speed and the verdicts of Verifier.score (two workers) with those of
    math-verify, called on one response at a time. The responses are made up or, with --cases, the
    rows {"gold": ..., "response": ..., "label": 0 or 1} of a file."""
    import math_verify

    from verify import Verifier
    golds, responses, labels = zip(*(labelled(cases) if cases else made_up(rows)))

    def measure(score):
        """Returns responses per second and {label: [(gold, response) that is misjudged]}."""
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
    counts = [sum(map(len, found.values())) for found in (slow_wrong, wrong)]
    table("responses", "math-verify /s", "wrong verdicts", "verify.py /s", "wrong", "times")
    show(len(golds), slow, counts[0], fast, counts[1], fast / slow)
    for label, pairs in wrong.items():
        for gold, response in pairs:
            verdict = "rejected" if label else "accepted"
            print(f"{verdict} wrongly: {gold!r}, {response[-80:]!r}")


# -------------------------------------------------------------------- main
OPTIONS = {
    "hidden": "The widths of the head's input.",
    "tokens": "The number of tokens in the loss, in an update (scale), in a micro-batch (gpu) or "
              "in a response (generate).",
    "vocabulary": "The size of the vocabulary.",
    "memory": "Skip the released formulation if it would take more GiB than this.",
    "rounds": "How many times to time each function.",
    "rollout": "The rollout backends to measure.",
    "trl_python": "The Python of an environment with TRL. Without it, TRL is not measured.",
    "shape": "The models to measure, with random weights.",
    "ways": "How to compute the update. " + " ".join(
        f"{way}: {about}." for way, about in WAYS.items()),
    "layers": "Measure this many layers and half as many, and extrapolate to all layers. "
              "0 measures all layers.",
    "lora_rank": "Train adapters of this rank. 0 trains all weights.",
    "fake_world": "Measure one rank of this many, without communication.",
    "profile": "Show the operations that take longest.",
    "rows": "How many responses to score.",
    "cases": "Score the labelled rows of this file instead of made-up responses.",
}
MULTIPLES = {loss: 8, scale: 512, gpu: 256}  # of --tokens, because sequences are whole
CHOICES = {"shape": SHAPES, "ways": WAYS, "rollout": ("hf", "vllm")}


def add_option(command, name, default):
    if isinstance(default, bool):
        command.add_argument(flag(name), action="store_true", help=OPTIONS[name])
        return
    kind, several = type(default), None
    if isinstance(default, tuple):
        kind, several = type(default[0]), "+"
    command.add_argument(
        flag(name), type=kind, default=default, nargs=several,
        choices=CHOICES.get(name), help=f"{OPTIONS[name]} Default: %(default)s")


def main(arguments):
    """Calls the function that the command line names. The function's keyword parameters are the
    options of the command."""
    parser = command_line(__file__, __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run in (loss, step, scale, gpu, generate, verifier):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        for name, default in run.__kwdefaults__.items():
            add_option(command, name, default)
        if run is step:
            command.add_argument("case", choices=CASES, help="Which flags of simko.py to use.")
    options, flags = parser.parse_known_args(arguments)
    settings = vars(options)
    run = settings.pop("run")
    if flags and run is not step:
        parser.error(f"unknown flag or value {flags[0]!r}")
    multiple = MULTIPLES.get(run)
    if multiple and any(count < 1 or count % multiple for count in settings["tokens"]):
        parser.error(f"--tokens must be multiples of {multiple}")
    for name in ("rounds", "rows"):
        if settings.get(name, 1) < 1:
            parser.error(f"--{name} must be at least 1")
    run(*flags, **settings)


if __name__ == "__main__":
    main(sys.argv[1:])
    faults.end_process()
