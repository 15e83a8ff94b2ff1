"""Runs training steps of simko.py and of TRL for `tools.bench step`."""
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from unittest import mock

import torch

import simko
from runtime import cli
from runtime.common import fail
from runtime.data import prompt_order
from runtime.log import Log
from runtime.ranks import process_group
from tools.measuring import DEVICE, QUIET, in_turn, ratio, show, table
from verify import Verifier

# A copy for TRL's process, made before process_group adds its own variables.
ENVIRONMENT = dict(os.environ)
CASES = {  # flags of simko.py
    "laptop": """
        --model runs/laptop/data/base --task countdown
        --train-data runs/laptop/data/train.jsonl --prompt-template raw
        --batch-size 32 --mini-batch-size 8 --learning-rate 4e-4
        --loss-type dapo --max-prompt-length 16
        --max-completion-length 12""",
    "smollm2": """
        --model HuggingFaceTB/SmolLM2-135M-Instruct --train-data gsm8k
        --batch-size 8 --num-generations 4 --mini-batch-size 2
        --max-prompt-length 256 --max-completion-length 128""",
}


@contextmanager
def timed(owner, name, seconds, phase):
    """Adds the time of each call of owner.name to seconds[phase]."""
    function = getattr(owner, name)

    def call(*arguments, **options):
        start = time.perf_counter()
        result = function(*arguments, **options)
        seconds[phase] += time.perf_counter() - start
        return result

    with mock.patch.object(owner, name, call):
        yield


def simko_steps(cfg, job, device, verifier):
    """Runs a training step of simko.py at each `next`. Yields {"tokens": mean response length,
    phase: seconds}."""
    arguments = (cfg, job.stop_ids, device, torch.float32, "dummy", cfg.max_completion_length)
    log = Log(Path(cfg.output_dir), 0, cfg)
    with closing(simko.make_engine(*arguments)) as engine, closing(log.board):
        trainer = simko.Trainer(cfg, device, torch.float32)
        engine.load_weights(trainer.named_weights())
        parts = [
            ("forward", trainer.policy, "policy_forward"),
            ("forward", simko, "entropy_threshold"),
            ("forward", simko, "simko_ratio"),
            ("forward", simko, "clipped_loss"),
            ("backward", torch.Tensor, "backward"),
            ("optimizer", torch.nn.utils, "clip_grad_norm_"),
            ("optimizer", trainer.optimizer, "step")]
        for step in itertools.count():
            seconds = Counter()
            with ExitStack() as stack:
                for phase, owner, name in parts:
                    stack.enter_context(timed(owner, name, seconds, phase))
                row = simko.train_step(
                    step, cfg, job.problems, job.tokenizer, engine, trainer, verifier, QUIET)
            with redirect_stdout(sys.stderr):
                log(row)
            for phase in ("rollout", "reward", "sync"):
                seconds[phase] = row[f"seconds_{phase}"]
            yield {"tokens": row["response_length"], **seconds}


def trl_steps(python, cfg, job, steps):
    """Runs a step of TRL's GRPOTrainer at each `next`, on the same prompts as simko.py and in
    the same order. Yields {"tokens": mean response length}.

    python: the Python of an environment with TRL. steps: how many steps need prompts."""
    ids = []
    for step in range(steps):
        order = prompt_order(step, cfg.batch_size, len(job.problems), cfg.seed)
        ids += [job.problems[i]["prompt_ids"].tolist() for i in order]
    # The tokenizer adds special tokens to raw prompts only.
    raw = cfg.prompt_template == "raw"
    task = {
        "model": cfg.model, "prompt_ids": ids,
        "prompts": [job.tokenizer.decode(prompt, skip_special_tokens=raw) for prompt in ids],
        "settings": {
            "output_dir": cfg.output_dir,
            "per_device_train_batch_size": cfg.mini_batch_size * cfg.num_generations,
            "steps_per_generation": cfg.batch_size // cfg.mini_batch_size,
            "num_generations": cfg.num_generations,
            "max_completion_length": cfg.max_completion_length,
            "learning_rate": cfg.learning_rate}}
    with subprocess.Popen(
            [python, Path(__file__).with_name("trl_steps.py")], env=ENVIRONMENT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        ask = json.dumps(task) + "\n\n"  # the task, then an empty line for each step
        while True:
            answer = ""
            with suppress(BrokenPipeError):  # TRL has ended
                process.stdin.write(ask)
                answer = process.stdout.readline()
            if not answer:
                fail("TRL stopped; its error is above")
            yield {"tokens": float(answer)}
            ask = "\n"


def half_right(verifier):
    """Replaces the verifier's verdicts so that every second response is right. Every response
    then has a gradient, as in `trl_steps`. The verifier still judges, which takes its time."""
    score = verifier.score

    def half(*rows):
        return [float(i % 2) for i, _ in enumerate(score(*rows))]

    verifier.score = half


def step(*flags, case, rollout=("hf", "vllm"), trl_python="", rounds=3):
    """Measures a complete training step by phase with both rollout backends, and compares it with
    TRL's. Further flags go to simko.py and take precedence over those of the case."""
    if DEVICE == "cuda":
        # TRL runs on the CPU here, and the timers of phases do not wait for a GPU.
        fail("step compares on CPUs only: put CUDA_VISIBLE_DEVICES= before the command")
    if trl_python and not shutil.which(trl_python):
        fail(f"--trl-python {trl_python} is no program: name the Python of an environment "
             "with TRL")
    phases = ("rollout", "forward", "backward", "optimizer", "reward", "sync")
    sources, rows = {}, {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        job = cli.prepare(
            ["train", *CASES[case].split(), "--no-gradient-checkpointing",
             *flags, "--output-dir", folder], simko.Config)
        device = stack.enter_context(process_group())
        verifier = stack.enter_context(Verifier())
        if trl_python:
            half_right(verifier)
            sources["TRL"] = trl_steps(trl_python, job.cfg, job, rounds + 2)
        for name in rollout:
            cfg = replace(job.cfg, rollout=name)
            sources[name] = simko_steps(cfg, job, device, verifier)

        def run(name):
            rows[name].append(next(sources[name]))

        for name, steps in sources.items():
            rows[name] = []
            stack.enter_context(closing(steps))
        seconds = in_turn({name: partial(run, name) for name in sources}, rounds)
    table(case, "s per step", "steps/s", "x TRL's", "response tokens",
          *(f"{name} %" for name in phases), "other %")
    for name, times in seconds.items():
        counted = rows[name][1:]
        shares = ["-"] * (len(phases) + 1)
        if name != "TRL":
            shares = [100 * median(row[phase] / t for row, t in zip(counted, times))
                      for phase in phases]
            shares.append(100 - sum(shares))
        show(name, median(times), 1 / median(times), ratio(seconds, "TRL", name),
             mean(row["tokens"] for row in counted), *shares)
