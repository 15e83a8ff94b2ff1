"""Measurements: every figure is a ratio of things timed in turn in one run, printed as a row of a markdown table.

    python tools/bench.py loss                     # SimKO's loss against GRPO's, the released way, the head's products
    python tools/bench.py step laptop smollm2 --trl-python other/bin/python    # a training step, by phase, against TRL
    python tools/bench.py scale                    # update time and memory against tokens and samples
    python tools/bench.py gpu                      # tokens/s and FLOPs utilisation of random-weight Qwen2.5 shapes
    python tools/bench.py verifier                 # responses a second

What has been measured is in docs/performance.md. Times are medians; a ratio is the median over rounds of the ratio
within a round, so that what else the machine does falls on both sides. Memory on CPUs is the resident peak of a fresh
process, read from /proc: Linux alone.
"""
import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
ENVIRONMENT = dict(os.environ)  # as it was: process_group adds its address to this process's

LLAMA = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
QWEN = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 32768}


def sizes(hidden, feed_forward, layers, heads, kv_heads):
    return {"hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads}


SHAPES = {  # with random weights
    "laptop": LLAMA | sizes(64, 192, 3, 2, 2) | {"vocab_size": 94},
    "smollm2": LLAMA | sizes(576, 1536, 30, 9, 3) | {"vocab_size": 49152, "tie_word_embeddings": True},
    "tiny-qwen": QWEN | sizes(128, 512, 2, 4, 2) | {"vocab_size": 4096},
    "0.5b": QWEN | sizes(896, 4864, 24, 14, 2),
    "1.5b": QWEN | sizes(1536, 8960, 28, 12, 2),
    "7b": QWEN | sizes(3584, 18944, 28, 28, 4) | {"vocab_size": 152064, "tie_word_embeddings": False},
}


# ------------------------------------------------------------------------------------------------------ measuring
def show(*cells):
    print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |",
          flush=True)


def table(*names):
    print()
    show(*names)
    show(*["---"] * len(names))


def in_turn(runs, rounds):
    """{name: seconds of each round} of functions {name: function}, one after another, to and fro; a first round is not
    counted."""
    import torch
    seconds = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name in list(runs)[::1 if i % 2 else -1]:
            start = time.perf_counter()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds, name, base):
    return median(a / b for a, b in zip(seconds[name], seconds[base]))


def resident(field):
    """Bytes: "VmRSS" now, "VmHWM" the peak. getrusage's peak is no use: a process inherits it from the one before."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak(run):
    """GiB that `run` takes at its peak above what there is before; on CPUs true in a fresh process only."""
    import torch
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 2**30


def afresh(*flags):
    """The number that this file's own command, run in a process of its own with `flags` behind it, prints last."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], *map(str, flags)], stdout=subprocess.PIPE,
                          text=True, env=ENVIRONMENT)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else math.nan


# ----------------------------------------------------------------------------------------------------------- loss
def full_statistics(hidden, weight, token, K, temperature=1.0, copies=True):
    """What simko.token_statistics returns, from all logits at once under autograd. copies: as the released code has it,
    the log-probs of the K candidates from K copies of the logits; else gathered from one log-softmax."""
    import torch
    import torch.nn.functional as F
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


def released_losses(stats, data, cfg):
    """Per-token loss with Eq. 6 from stored log-probs of the old policy's candidates, and lambda as a factor of A."""
    import torch

    from simko import clipped_loss, entropy_gate
    logp, topk_logp, entropy, is_top1 = stats
    gate = entropy_gate(entropy, data.lengths, cfg.q)
    gamma, gamma_k = (logp - data.old_logp).exp(), (topk_logp - data.old_topk_logp).exp()
    shared = ((gamma[:, None] / gamma_k).detach() * gamma_k).mean(1)
    gamma = torch.where(gate & (data.advantage > 0), (1 - cfg.alpha) * gamma + cfg.alpha * shared, gamma)
    advantage = torch.where(gate & (data.advantage < 0) & is_top1, cfg.lam * data.advantage, data.advantage)
    return clipped_loss(gamma, advantage, cfg.clip_low, cfg.clip_high)


def our_losses(stats, data, cfg):
    from simko import entropy_gate, token_losses
    return token_losses(stats, data.old_logp, data.advantage, entropy_gate(stats[2], data.lengths, cfg.q), cfg)[0]


def head_inputs(tokens, hidden, vocabulary, K, device, dtype):
    """Random states, a head, and what a mini-batch holds of eight responses; logits of variance 1."""
    import torch
    torch.manual_seed(0)
    make = {"device": device, "dtype": dtype}
    states = torch.randn(tokens, hidden, **make).requires_grad_()
    weight = torch.empty(vocabulary, hidden, **make).normal_(std=hidden**-0.5).requires_grad_()
    make["dtype"] = torch.promote_types(dtype, torch.float32)
    old_logp = torch.full((tokens,), -math.log(vocabulary) - 0.5, **make)
    sign = torch.tensor([1, -1] * 4, **make)
    lengths = torch.tensor([tokens // 8] * 8, device=device)
    return SimpleNamespace(hidden=states, weight=weight, token=torch.randint(vocabulary, (tokens,), device=device),
                           old_logp=old_logp, old_topk_logp=old_logp[:, None].expand(-1, K) + 4, lengths=lengths,
                           advantage=sign.repeat_interleave(lengths))


def products(data):
    """The head's matrix products alone: logits, the same once more, and both gradients; 2048 tokens at a time."""
    import torch
    with torch.no_grad():
        grad_weight = torch.zeros_like(data.weight)
        for h in data.hidden.split(2048):
            h @ data.weight.T
            z = h @ data.weight.T
            z @ data.weight
            grad_weight.addmm_(z.T, h)


def loss_runs(data, cfg):
    from dataclasses import replace

    from simko import token_statistics

    def run(statistics, losses, method="simko"):
        data.hidden.grad = data.weight.grad = None
        stats = statistics(data.hidden, data.weight, data.token, cfg.K)
        losses(stats, data, replace(cfg, method=method)).mean().backward()

    return {"SimKO": partial(run, token_statistics, our_losses),
            "GRPO": partial(run, token_statistics, our_losses, "grpo"),
            "released": partial(run, full_statistics, released_losses),
            "products": partial(products, data)}


def loss(options):
    """SimKO's loss, forward and backward, against GRPO's, the released formulation and the head's matrix products."""
    import torch

    from simko import Config
    cfg, device = Config(K=options.K), "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if not options.probe:
        table("hidden", "tokens", "SimKO s", "/ GRPO", "/ released", "/ products", "SimKO GiB", "GRPO", "released",
              "released / SimKO")
    for hidden in options.hidden:
        for tokens in options.tokens:
            data = head_inputs(tokens, hidden, options.vocabulary, options.K, device, dtype)
            runs = loss_runs(data, cfg)
            if options.probe:
                print(peak(runs[options.probe]))
                return
            need = 4 * tokens * options.vocabulary * (3 * options.K + 3) / 2**30
            if need > options.memory:
                print(f"{tokens} tokens: released needs about {need:.0f} GiB, --memory is {options.memory:g}: skipped")
                del runs["released"]
            seconds = in_turn(runs, options.rounds)
            gib = {name: peak(run) if device == "cuda" else None for name, run in runs.items()}
            del data, runs
            for name in gib if device == "cpu" else ():
                gib[name] = afresh("--probe", name, "--hidden", hidden, "--tokens", tokens)
            times = [ratio(seconds, "SimKO", name) if name in seconds else "-"
                     for name in ("GRPO", "released", "products")]
            show(hidden, tokens, median(seconds["SimKO"]), *times, gib["SimKO"], gib["GRPO"], gib.get("released", "-"),
                 gib["released"] / gib["SimKO"] if "released" in gib else "-")


# ----------------------------------------------------------------------------------------------------------- step
CASES = {  # flags of simko.py; those behind the case on the command line win
    "laptop": ["--model", "runs/laptop/data/base", "--train-data", "runs/laptop/data/train.jsonl",
               "--task", "countdown", "--prompt-template", "raw", "--batch", "32", "--mini-batch", "8",
               "--lr", "4e-4", "--loss-norm", "token", "--max-prompt-tokens", "16", "--max-response-tokens", "12",
               "--no-gradient-checkpointing"],
    "smollm2": ["--batch", "8", "--group-size", "4", "--mini-batch", "2", "--max-prompt-tokens", "256",
                "--max-response-tokens", "128", "--no-gradient-checkpointing", "--engine-memory", "1"],
}


def random_words(folder, problems=256):
    """A model of SmolLM2-135M's shape with random weights, a tokenizer of one token a word, and problems as long as
    GSM8K's; returns simko.py's flags for them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    torch.manual_seed(0)
    words = {"<end>" if i == 2 else f"w{i}": i for i in range(SHAPES["smollm2"]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    random_model("smollm2", torch.float32).save_pretrained(folder)
    rng = random.Random(0)
    rows = [{"problem": " ".join(rng.choices(list(words)[3:], k=rng.randint(50, 150))), "answer": "1"}
            for _ in range(problems)]
    Path(folder, "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", folder, "--train-data", f"{folder}/problems.jsonl", "--prompt-template", "raw"]


class Worker:
    """A process that makes one training step for each line it gets, and answers it with a line of JSON."""

    def __init__(self, python, *arguments):
        self.process = subprocess.Popen([python, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline() or sys.exit("bench.py: error: a worker stopped, see above")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def private_stdout():
    """A file for answers; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def simko_worker(options):
    """(used by step) simko.py's training step, its time by phase."""
    answers = private_stdout()
    import torch
    from tqdm import tqdm

    import simko
    from tools.checks import prepare
    from verify import Verifier
    _, cfg, tokenizer, stop_ids, sets, _ = prepare(["train", *options.flags])
    problems, quiet, spent = sets[cfg.train_data][0], partial(tqdm, disable=True), Counter()

    def timed(owner, name, phase):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[phase] += time.perf_counter() - start
            return result
        setattr(owner, name, wrapper)

    with (simko.process_group() as device, Verifier() as verifier,
          closing(simko.make_engine(cfg, stop_ids, device, torch.float32, "dummy", cfg.max_response_tokens)) as engine):
        trainer, log = simko.Trainer(cfg, device, torch.float32), simko.Log(Path(cfg.output), 0, cfg)
        engine.sync(trainer.named_weights())
        timed(trainer.policy, "policy_statistics", "forward")
        timed(simko, "entropy_gate", "forward")
        timed(simko, "token_losses", "forward")
        timed(torch.Tensor, "backward", "backward")
        timed(trainer.optimizer, "step", "optimizer")
        timed(torch.nn.utils, "clip_grad_norm_", "optimizer")
        timed(simko, "pack", "packing")
        judge = verifier
        if options.all_mixed:  # every group half right, so that no response is without a gradient
            judge = SimpleNamespace(score=lambda *rows: [float(i % 2) for i, _ in enumerate(verifier.score(*rows))])
        for step, _ in enumerate(sys.stdin):
            spent.clear()
            start = time.perf_counter()
            row = simko.train_step(step, cfg, problems, tokenizer, engine, trainer, judge, quiet)
            spent.update({name: row[f"seconds_{name}"] for name in ("rollout", "reward", "sync")})
            log(row)
            answers.write(json.dumps({"seconds": time.perf_counter() - start, "phases": spent,
                                      "tokens": row["response_tokens"]}) + "\n")


def trl_worker(options):
    """(used by step) TRL's GRPOTrainer, one generation and the updates on it; in an environment of its own."""
    answers = private_stdout()
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    job = SimpleNamespace(**json.loads(sys.stdin.readline()))
    tokenizer, lengths = AutoTokenizer.from_pretrained(job.model, padding_side="left"), []
    if tokenizer(job.prompts)["input_ids"] != job.prompt_ids:
        sys.exit("bench.py: error: TRL would see other prompt tokens than simko.py")

    def half_right(prompts, completions, completion_ids, **_):
        lengths.append(sum(map(len, completion_ids)) / len(completion_ids))
        return [i % 2 for i in range(len(prompts))]

    class OneStepALine(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step % job.updates == 0:
                sys.stdin.readline() or sys.exit()
                self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            if state.global_step % job.updates == 0:
                seconds = time.perf_counter() - self.start
                answers.write(json.dumps({"seconds": seconds, "tokens": lengths[-1]}) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=job.responses // job.updates, num_generations=job.group_size,
            steps_per_generation=job.updates, max_completion_length=job.max_response_tokens, temperature=1.0, beta=0.0,
            learning_rate=job.lr, max_steps=10**6, shuffle_dataset=False, bf16=False, gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"}, use_cpu=True, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True)
        GRPOTrainer(job.model, half_right, config, Dataset.from_dict({"prompt": job.prompts}),
                    processing_class=tokenizer, callbacks=[OneStepALine()]).train()


def trl_job(flags, steps):
    """What trl_worker needs to make the steps that simko.py makes with `flags`: the same prompts, in the same order."""
    from simko import prompt_order
    from tools.checks import prepare
    _, cfg, tokenizer, _, sets, _ = prepare(["train", *flags])
    problems = sets[cfg.train_data][0]
    ids = [problems[i]["prompt_ids"].tolist() for step in range(steps)
           for i in prompt_order(step, cfg.batch, len(problems), cfg.seed)]
    special = cfg.prompt_template != "raw"  # raw prompts get theirs from the tokenizer
    return json.dumps({
        "model": cfg.model, "prompts": [tokenizer.decode(i, skip_special_tokens=not special) for i in ids],
        "prompt_ids": ids, "responses": cfg.batch * cfg.group_size, "updates": cfg.batch // cfg.mini_batch,
        "group_size": cfg.group_size, "max_response_tokens": cfg.max_response_tokens, "lr": cfg.lr})


def step(options):
    """A whole training step by phase, on our two rollout backends, and against TRL's; further flags are simko.py's."""
    with tempfile.TemporaryDirectory() as folder:
        flags = CASES[options.case] + options.flags
        if options.case == "smollm2" and "--model" not in flags:
            flags += random_words(f"{folder}/model")
        mixed, workers = ["--all-mixed"] * bool(options.trl_python), {}
        for name in options.rollout:
            output = ["--rollout", name, "--output", f"{folder}/{name}"]
            Path(folder, name).mkdir()
            workers[name] = Worker(sys.executable, "simko-worker", *mixed, *flags, *output)
        if options.trl_python:
            workers["TRL"] = Worker(options.trl_python, "trl-worker")
            job = trl_job([*flags, "--output", f"{folder}/TRL"], options.rounds + 2)
            workers["TRL"].process.stdin.write(job + "\n")
        rows = {name: [] for name in workers}
        for i in range(options.rounds + 1):  # the first is not counted
            for name in list(workers)[::1 if i % 2 else -1]:
                rows[name].append(workers[name].step())
                print(f"round {i}: {name} {rows[name][-1]['seconds']:.3g} s", file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.close()
    rows = {name: answers[1:] for name, answers in rows.items()}
    seconds = {name: [answer["seconds"] for answer in answers] for name, answers in rows.items()}
    phases = ("rollout", "forward", "backward", "optimizer", "reward", "sync", "packing")
    table(options.case, "s a step", "steps/s", "x TRL's", "response tokens", *(f"{name} %" for name in phases),
          "other %", "reward to other %")
    for name, answers in rows.items():
        share = {phase: 100 * median(answer.get("phases", {}).get(phase, 0) / answer["seconds"] for answer in answers)
                 for phase in phases}
        other = 100 - sum(share.values())
        last = [*share.values(), other, sum(share[phase] for phase in phases[4:]) + other]
        show(name, median(seconds[name]), 1 / median(seconds[name]),
             ratio(seconds, "TRL", name) if "TRL" in seconds else "-",
             sum(answer["tokens"] for answer in answers) / len(answers), *(last if name != "TRL" else "-" * 9))


# ---------------------------------------------------------------------------------------------------- scale and gpu
def random_model(shape, dtype, device="cpu"):
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
    import torch

    from simko import packed_attention
    AttentionInterface.register("packed", packed_attention)
    settings = dict(SHAPES[shape])
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings),
                                                dtype=dtype, attn_implementation="packed")


def random_samples(count, prompt, response, vocabulary, device):
    """Responses to update on, all of one length, half of them right."""
    import numpy as np
    import torch

    from simko import Sample
    rng = np.random.default_rng(0)
    return [Sample(i, rng.integers(vocabulary, size=prompt), rng.integers(vocabulary, size=response), np.zeros(0),
                   False, advantage=1.0 - i % 2 * 2,
                   old_logp=torch.full((response,), -math.log(vocabulary), device=device)) for i in range(count)]


def make_trainer(shape, device, dtype, **settings):
    """simko.Trainer on random weights: what it would load is made instead."""
    import simko
    simko.load_model = lambda path, weights_dtype: random_model(shape, weights_dtype, device)
    return simko.Trainer(simko.Config(model=shape, lr=1e-6, **settings), device, dtype)


def scale(options):
    """Time and peak memory of an update against tokens, at one length of responses, and against their number."""
    import torch
    from tqdm import tqdm

    import simko
    with simko.process_group() as device:
        for shape in options.shape:
            vocabulary, length = SHAPES[shape]["vocab_size"], 18 if shape == "laptop" else 512
            most = max(options.tokens)
            cases = [(tokens // length, length) for tokens in options.tokens]
            if shape != "laptop":
                cases += [(most // size, size) for size in (32, 128) if size < length]
            trainer = make_trainer(shape, device, torch.float32, micro_batch_tokens=options.micro_batch_tokens,
                                   gradient_checkpointing=False)
            runs = {(count, size): partial(trainer.update,
                                           random_samples(count, size // 3, size - size // 3, vocabulary, device), None,
                                           partial(tqdm, disable=True)) for count, size in cases}
            if options.probe:
                runs[cases[0]]()  # the optimizer's state and the gradients stay
                print(peak(runs[cases[int(options.probe)]]))
                return
            table("shape", "tokens", "samples", "s an update", "us a token", "/ the first's",
                  "GiB above weights, gradients, optimizer")
            seconds = in_turn(runs, options.rounds)
            for i, (count, size) in enumerate(cases):
                each = [t / (count * size) for t in seconds[count, size]]
                first = [t / math.prod(cases[0]) for t in seconds[cases[0]]]
                show(shape, count * size, count, median(seconds[count, size]), 1e6 * median(each),
                     median(a / b for a, b in zip(each, first)), afresh("--probe", i, "--shape", shape))


def model_flops(shape, model, samples):
    """FLOPs that an update on `samples` needs: 6 a weight and token, the head on response tokens alone; causal
    attention. What gradient checkpointing computes again is not in it."""
    layer = sum(p.numel() for p in model.base_model.layers.parameters())
    tokens = [len(s.prompt_ids) + len(s.response_ids) for s in samples]
    head = SHAPES[shape]["vocab_size"] * SHAPES[shape]["hidden_size"] * sum(len(s.response_ids) for s in samples)
    attention = SHAPES[shape]["num_hidden_layers"] * SHAPES[shape]["hidden_size"] * sum(n * n for n in tokens)
    return 6 * (layer * sum(tokens) + head + attention)


def matrix_rate(device, dtype, size):
    """FLOP/s of a square matrix product."""
    import torch
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(in_turn({"product": lambda: a @ a}, 10)["product"])


def update_with(trainer, samples, micro_batch_tokens, method, statistics):
    import simko
    from tqdm import tqdm
    simko.token_statistics = statistics
    trainer.cfg.method, trainer.cfg.micro_batch_tokens = method, micro_batch_tokens
    trainer.update(samples, None, partial(tqdm, disable=True))


def gpu(options):
    """Update tokens/s, model-FLOPs utilisation and memory of SimKO, GRPO and full logits; vLLM's tokens/s."""
    import torch

    import simko
    if not (torch.cuda.is_available() or options.dry_run):
        sys.exit("bench.py: error: no GPU here; a dry run on the CPU: --dry-run --shape tiny-qwen --tokens 1024")
    if options.probe:
        print(generation_rate(options))
        return
    cuda, chunked = torch.cuda.is_available(), simko.token_statistics
    with simko.process_group() as device:
        dtype = torch.bfloat16 if cuda else torch.float32
        rate = matrix_rate(device, dtype, 8192 if cuda else 512)
        print(f"{torch.cuda.get_device_name() if cuda else 'CPU'}: {rate / 1e12:.3g} TFLOP/s of {dtype} matrix product")
        table("shape", "packed tokens", "", "update tokens/s", "FLOPs utilisation %", "time / GRPO's", "peak GiB")
        for shape in options.shape:
            trainer = make_trainer(shape, device, dtype)
            for tokens in options.tokens:
                samples = random_samples(tokens // 1024, 256, 768, SHAPES[shape]["vocab_size"], device)

                run = partial(update_with, trainer, samples, tokens)
                runs = {"SimKO": partial(run, "simko", chunked), "GRPO": partial(run, "grpo", chunked),
                        "GRPO, full logits": partial(run, "grpo", partial(full_statistics, copies=False))}
                gib = {}
                for name in list(runs):
                    try:
                        runs[name]()
                        torch.cuda.empty_cache()
                        gib[name] = peak(runs[name]) + (torch.cuda.memory_allocated() / 2**30 if cuda else 0)
                    except torch.OutOfMemoryError:
                        print(f"{shape}, {tokens} tokens, {name}: out of memory")
                        trainer.optimizer.zero_grad()
                        del runs[name]
                seconds = in_turn(runs, options.rounds)
                flops = model_flops(shape, trainer.policy, samples)
                for name in runs:
                    s = median(seconds[name])
                    show(shape, tokens, name, tokens / s, 100 * flops / s / rate,
                         ratio(seconds, name, "GRPO") if "GRPO" in runs else "-", gib[name])
            del trainer
            torch.cuda.empty_cache()
    if options.generate:
        table("shape", "vLLM, tokens/s generated")
        for shape in options.shape:
            show(shape, afresh("--probe", "generate", "--shape", shape))


def generation_rate(options):
    """Tokens/s that vLLM generates for 32 prompts of 256 tokens, 8 samples each, weights random."""
    import numpy as np
    import torch
    from tqdm import tqdm
    from transformers import AutoConfig

    import simko
    settings, lengths = dict(SHAPES[options.shape[0]]), []
    prompts = list(np.random.default_rng(0).integers(settings["vocab_size"], size=(32, 256)))
    with tempfile.TemporaryDirectory() as folder, simko.process_group() as device:
        AutoConfig.for_model(settings.pop("model_type"), **settings).save_pretrained(folder)
        cfg = simko.Config(model=folder, max_prompt_tokens=256)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

        def generate():
            samples = engine.generate(prompts, 8, 1.0, 1.0, options.generate, partial(tqdm, disable=True))
            lengths.append(sum(len(sample.response_ids) for sample in samples))

        with closing(simko.VLLMEngine(cfg, [2], device, dtype, "dummy", options.generate)) as engine:
            seconds = in_turn({"generate": generate}, options.rounds)["generate"]
    return median(tokens / s for tokens, s in zip(lengths[1:], seconds))


# ------------------------------------------------------------------------------------------------------- verifier
PROSE = ("We set up the equation and simplify both sides.", "Let $x$ be the number in question; then $2x + 3 = 7$.",
         "Substituting back, the terms cancel.", "By symmetry it is enough to look at one case.",
         "Hence $\\frac{a}{b} = \\frac{c}{d}$, which we now use.", "Collecting terms gives the result.")


def answer(rng):
    """(gold, the same written another way, a wrong one): kinds and shares as in the answers of MATH."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 12), rng.choice((2, 3, 5, 7, 11))
    kinds = {
        "integer": (60, f"{a}", rng.choice((f"{a}", f"x = {a}", f"{a}.0", rf"{a} \text{{ cm}}")), f"{a + b}"),
        "fraction": (14, rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{2 * a}}}{{{2 * b}}}", rf"\frac{{{b}}}{{{a + b}}}"),
        "root": (7, rf"{b}\sqrt{{{c}}}", rng.choice((rf"{b} \sqrt {c}", rf"\sqrt{{{b * b * c}}}")),
                 rf"{b + 1}\sqrt{{{c}}}"),
        "polynomial": (6, f"x^2+{b}x+{a}", f"{a} + {b}x + x^2", f"x^2-{b}x+{a}"),
        "tuple": (5, f"({a},{b})", rf"\left({a}, {b}\right)", f"({b},{a + b})"),
        "pi": (3, rf"{a}\pi", rf"{a} \pi", f"{a}"),
        "interval": (2, rf"[{b},\infty)", rf"\left[{b}, \infty\right)", rf"({b},\infty)"),
        "list": (3, f"{a},{-b}", f"{-b}, {a}", f"{a},{b}"),
    }
    return kinds[rng.choices(list(kinds), [kind[0] for kind in kinds.values()])[0]][1:]


def verifier(options):
    """Responses a second of Verifier.score, cold and again, against math-verify called on each response in turn."""
    import math_verify

    from verify import Verifier
    rng = random.Random(0)
    responses, golds = [], []
    for row in range(options.rows):
        gold, right, wrong = answer(rng)
        prose = " ".join(rng.choice(PROSE) for _ in range(rng.randint(5, 30)))
        responses.append(f"{prose} The answer is $\\boxed{{{wrong if row % 2 else right}}}$.")
        golds.append(gold)
    start = time.perf_counter()
    naive = [float(math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(response)))
             for response, gold in zip(responses, golds)]
    naive_rate = options.rows / (time.perf_counter() - start)
    rates = []
    with Verifier(workers=options.workers) as scorer:
        for _ in range(2):
            start = time.perf_counter()
            scores = scorer.score(responses, golds, "math")
            rates.append(options.rows / (time.perf_counter() - start))
    wrong = [sum(score != float(row % 2 == 0) for row, score in enumerate(verdicts)) for verdicts in (naive, scores)]
    print("| responses | workers | math-verify /s (wrong verdicts) | verify.py /s (wrong) | times | again /s |")
    print("|---|---|---|---|---|---|")
    print(f"| {options.rows} | {options.workers} | {naive_rate:.0f} ({wrong[0]}) | {rates[0]:.0f} ({wrong[1]}) "
          f"| {rates[0] / naive_rate:.1f} | {rates[1]:.0f} |")


# ----------------------------------------------------------------------------------------------------------- main
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{loss,step,scale,gpu,verifier}")

    def command(run):
        added = commands.add_parser(run.__name__.replace("_", "-"), help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        if run not in (verifier, simko_worker, trl_worker):
            added.add_argument("--rounds", type=int, default=3, help="counted; a first one is not")
            added.add_argument("--probe", help=argparse.SUPPRESS)
        return added

    one = command(loss)
    one.add_argument("--hidden", type=int, nargs="+", default=[896])
    one.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    one.add_argument("--vocabulary", type=int, default=151936)
    one.add_argument("--K", type=int, default=3)
    one.add_argument("--memory", type=float, default=16, help="GiB; what would need more is skipped")
    one = command(step)
    one.add_argument("case", choices=CASES)
    one.add_argument("--rollout", nargs="+", default=["hf", "vllm"])
    one.add_argument("--trl-python", help="of an environment with TRL: every group is then half right, here and there")
    command(simko_worker).add_argument("--all-mixed", action="store_true")
    command(trl_worker)
    one = command(scale)
    one.add_argument("--shape", nargs="+", choices=SHAPES, default=["laptop", "tiny-qwen"])
    one.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768, 65536])
    one.add_argument("--micro-batch-tokens", type=int, default=4096)
    one = command(gpu)
    one.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.5b", "1.5b", "7b"])
    one.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    one.add_argument("--generate", type=int, default=512, help="tokens a response of vLLM's; 0: not measured")
    one.add_argument("--dry-run", action="store_true", help="on the CPU")
    one = command(verifier)
    one.add_argument("--rows", type=int, default=2048)
    one.add_argument("--workers", type=int, default=2)
    options, options.flags = parser.parse_known_args()
    if options.flags and options.run not in (step, simko_worker):
        parser.error(f"unknown flag or value {options.flags[0]!r}")
    options.run(options)


if __name__ == "__main__":
    main()
