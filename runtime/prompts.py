"""Turns problems into prompts: applies a template, tokenizes the result, and
checks that the model can read it."""
from datetime import datetime

import numpy as np

from runtime.common import fail, fail_as

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
# The problems of other tasks contain their own instructions.
ASK = {"math": BOXED, "choice": BOXED, "text": BOXED}
# "chat" applies the model's own chat template to "{problem}\n{ask}".
TEMPLATES = {
    "qwen-math": "<|im_start|>system\n{ask}<|im_end|>\n"
                 "<|im_start|>user\n{problem}<|im_end|>\n"
                 "<|im_start|>assistant\n",
    "plain": "Problem: {problem}\n{ask}\nSolution:",
    "raw": "{problem}",
}
# Some chat templates insert the date, and Mistral's even the time. A fixed date
# keeps their prompts the same from run to run.
TODAY = datetime(2024, 7, 26)
CLOCK = {"date_string": "26 Jul 2024", "strftime_now": TODAY.strftime}


def encode_opening(text, tokenizer):
    """Returns the token ids of a text that the model is to continue.

    Special tokens that the tokenizer puts before the text (BOS) stay. Those
    that it puts after the text (EOS) are removed, because they would tell the
    model that the text has ended. Raises ValueError if the special tokens
    change how the text itself is tokenized."""
    own = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    ids = tokenizer.encode(text, verbose=False)
    for front in range(len(ids) - len(own) + 1):
        end = front + len(own)
        if ids[front:end] == own:
            return ids[:end]
    raise ValueError("it tokenizes a text differently when it adds special tokens")


def encode_prompts(problems, tokenizer, cfg):
    """Adds "task" and "prompt_ids", an int64 array, to each problem and drops
    problems whose prompt is longer than --max-prompt-length.

    Returns (problems, number dropped). Ends the program if none remain."""
    kept = []
    for problem in problems:
        task = problem.get("task", cfg.task)
        ask = ASK.get(task, "")
        if cfg.prompt_template == "chat":
            message = {"role": "user", "content": f"{problem['problem']}\n{ask}".strip()}
            text = tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True,
                **CLOCK | cfg.chat_template_kwargs)
            ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        else:
            text = TEMPLATES[cfg.prompt_template].replace("{ask}", ask)
            ids = encode_opening(text.replace("{problem}", problem["problem"]), tokenizer)
        if len(ids) <= cfg.max_prompt_length:
            kept.append({**problem, "task": task, "prompt_ids": np.array(ids, np.int64)})
    if not kept:
        fail(f"all {len(problems)} prompts are longer than --max-prompt-length "
             f"{cfg.max_prompt_length}")
    return kept, len(problems) - len(kept)


def make_prompts(source, problems, tokenizer, vocabulary, cfg):
    """`encode_prompts`, which ends the program with one line about `source` if
    the template, the tokenizer or the model cannot do it."""
    with fail_as(f"{cfg.model}: its chat template or tokenizer cannot make "
                 f"a prompt of {source}; another --prompt-template may work"):
        kept, dropped = encode_prompts(problems, tokenizer, cfg)
    check_prompts(source, kept, vocabulary, cfg)
    return kept, dropped


def check_prompts(source, problems, vocabulary, cfg):
    """Refuses a prompt that is empty or has tokens that the model lacks, and
    prompts that are all the same although their problems differ."""
    texts = {problem["problem"].strip() for problem in problems}
    prompts = {problem["prompt_ids"].tobytes() for problem in problems}
    if len(texts) > 1 and len(prompts) == 1:
        fail(f"{source}: all prompts are the same, so the tokenizer of {cfg.model} "
             f"or --prompt-template {cfg.prompt_template} leaves the problem out: "
             "choose another template")
    for problem in problems:
        ids = problem["prompt_ids"]
        if len(ids) and ids.max() < vocabulary:
            continue
        what = "has no tokens"
        if len(ids):
            what = (f"has a token of id {ids.max()}, beyond the model's "
                    f"{vocabulary}")
        fail(f"{source}: the prompt of {problem['id']!r:.80} {what}: check "
             f"that the tokenizer belongs to {cfg.model}, and that "
             f"--prompt-template {cfg.prompt_template} contains the problem")
