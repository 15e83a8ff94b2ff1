"""GRPO and SimKO from one real language model: is what the paper says of
Lambda, entropy and candidates to be seen there, and pass@K?

    python -m tools.smollm2 cpu MODEL DIR     hours of two cores
    python -m tools.smollm2 card MODEL DIR    nine minutes of one 80 GB GPU
    python -m tools.smollm2 table docs/smollm2/cpu.jsonl

MODEL is a Hugging Face folder, SmolLM2-135M-Instruct in docs/results.md,
which says what is compared. Both studies fine-tune MODEL on Countdown in
plain words (tools/countdown.py), and train it with every method from that
one start, on the same problems in the same order. A run is `simko.py
train` as a process of its own; when it ends, its row goes to ROWS. Started
again with the same DIR, a study goes on with what is missing.

card ends by itself after --minutes, with the runs that are complete by
then. It needs no vLLM and no network, only Python 3.12, PyTorch 2.11 and
transformers 5.17. What must be carried there is this repository and MODEL,
which is 98 MB as GGUF: two parts made by `split -b 50M`. On another day
`--first-seed 3 --learning-rate LR`, with the LR that the first day chose,
adds three seeds to the same ROWS.
"""
import json
import os
import random
import statistics as stats
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from runtime.common import fail, seed_everything, write_whole
from runtime.data import read_jsonl
from runtime.packing import Sample
from simko import pass_at_k
from tools import countdown, laptop

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "grpo": {"method": "grpo"},
    "simko": {"method": "simko"},  # simko.py's defaults are the paper's
    "simko-0.05": {"method": "simko", "alpha": 0.05},
}
K, Q = 3, 0.8
LONGEST = {"max_prompt_length": 64, "max_completion_length": 56}
# Student's 97.5 % quantile for 1, 2, ... degrees of freedom.
STUDENT = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262


@dataclass
class Plan:
    """The sizes of a study."""
    demonstrations: int
    solving: float        # share of the demonstrations that solve
    demonstration_batch: int
    arms: tuple
    steps: int
    batch_size: int       # prompts; four updates a step, as in the paper
    seeds: int
    jobs: int             # runs at a time
    contexts: int         # responses that the probe reads
    test: int             # held-out problems
    eval_problems: int    # of them, for pass@K
    eval_n: int
    eval_arms: bool       # pass@K of every run, and not of the start alone
    learning_rates: tuple # one, or candidates for a choice on validation
    tune_steps: int = 0


PLANS = {
    "cpu": Plan(
        demonstrations=1600, solving=1.0, demonstration_batch=16, arms=tuple(ARMS), steps=15,
        batch_size=8, seeds=3, jobs=2, contexts=64, test=64, eval_problems=32, eval_n=64,
        eval_arms=False, learning_rates=(1e-5,)),
    "card": Plan(
        demonstrations=4096, solving=0.6, demonstration_batch=32, arms=("grpo", "simko"), steps=60,
        batch_size=48, seeds=3, jobs=6, contexts=256, test=400, eval_problems=400, eval_n=256,
        eval_arms=True, learning_rates=(5e-6, 1e-5, 2e-5), tune_steps=20),
}
