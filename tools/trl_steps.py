"""Runs training steps of TRL's GRPOTrainer. `python -m tools.bench step`
starts this program with the Python of an environment that has TRL.

The first line of stdin is a job in JSON. For each line that follows, the
program generates responses, trains on them, and prints their mean length. The
reward takes no time: half of the responses in each group count as correct.
"""
import json
import os
import sys
from statistics import mean

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # output of libraries goes to stderr
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
job = json.loads(sys.stdin.readline())
tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
if tokenizer(job["prompts"])["input_ids"] != job["prompt_ids"]:
    sys.exit("trl_steps.py: error: TRL and simko.py tokenize the prompts differently")
lengths = []


def half_right(prompts, completion_ids, **_):
    lengths.append(mean(map(len, completion_ids)))
    return [i % 2 for i in range(len(prompts))]


class OneStepALine(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step % args.steps_per_generation == 0:
            sys.stdin.readline() or sys.exit()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % args.steps_per_generation == 0:
            print(lengths[-1], file=answers)


config = GRPOConfig(
    **job["settings"], beta=0.0, max_steps=10**6, shuffle_dataset=False, bf16=False,
    gradient_checkpointing=False, model_init_kwargs={"dtype": "float32"}, use_cpu=True,
    report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True)
GRPOTrainer(
    job["model"], half_right, config, Dataset.from_dict({"prompt": job["prompts"]}),
    processing_class=tokenizer, callbacks=[OneStepALine()]).train()
