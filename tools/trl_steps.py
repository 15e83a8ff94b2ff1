"""Makes training steps of TRL's GRPOTrainer for the comparison of `python
-m tools.bench step`, which starts this program with the Python of an
environment that has TRL.

It reads a job, a line of JSON. For each further line it makes one
generation and the updates on it, and answers with the mean length of the
responses. The reward costs nothing: half of each group is right.
"""
import json
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from statistics import mean


def main():
    parser = ArgumentParser(
        prog="python -m tools.trl_steps", description=__doc__,
        formatter_class=RawDescriptionHelpFormatter)
    parser.parse_args()

    # Only --help works in an environment without TRL.
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    job = json.loads(sys.stdin.readline())
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    if tokenizer(job["prompts"])["input_ids"] != job["prompt_ids"]:
        sys.exit("trl_steps.py: error: TRL would see other prompt tokens than simko.py")
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


if __name__ == "__main__":
    main()
