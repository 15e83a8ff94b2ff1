"""What a model is asked: a problem in its prompt template, as tokens."""
from datetime import datetime

import numpy as np

from runtime.common import fail

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
# The problems of other tasks say themselves how to answer.
ASK = {"math": BOXED, "choice": BOXED, "text": BOXED}
# "chat" is the model's own chat template around "{problem}\n{ask}".
TEMPLATES = {
    "qwen-math": "<|im_start|>system\n{ask}<|im_end|>\n"
                 "<|im_start|>user\n{problem}<|im_end|>\n"
                 "<|im_start|>assistant\n",
    "plain": "Problem: {problem}\n{ask}\nSolution:",
    "raw": "{problem}",
}
# Templates that name today's date would otherwise make another prompt every
# day, and some of them (Mistral's) even every second.
TODAY = datetime(2024, 7, 26)
CLOCK = {"date_string": "26 Jul 2024", "strftime_now": TODAY.strftime}


def encode_opening(text, tokenizer):
    """The tokens of a text that the model is to continue.

    What the tokenizer puts in front of a text (BOS) stays. What it puts
    behind one (EOS) would tell the model that the text is over, so it is
    left out. Raises ValueError if the text's own tokens cannot be found."""
    own = tokenizer.encode(text, add_special_tokens=False)
    ids = tokenizer.encode(text)
    for front in range(len(ids) - len(own) + 1):
        end = front + len(own)
        if ids[front:end] == own:
            return ids[:end]
    raise ValueError("it splits a text differently when it adds special tokens")


def encode_prompts(problems, tokenizer, cfg):
    """Adds "prompt_ids" and "task" to each problem, and drops those whose
    prompt is longer than --max-prompt-length.

    Returns (problems, number dropped)."""
    kept = []
    for problem in problems:
        task = problem.get("task", cfg.task)
        ask = ASK.get(task, "")
        if cfg.prompt_template == "chat":
            message = {"role": "user", "content": f"{problem['problem']}\n{ask}".strip()}
            text = tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True,
                **CLOCK | cfg.chat_template_kwargs)
            ids = tokenizer.encode(text, add_special_tokens=False)
        else:
            text = TEMPLATES[cfg.prompt_template].replace("{ask}", ask)
            ids = encode_opening(text.replace("{problem}", problem["problem"]), tokenizer)
        if len(ids) <= cfg.max_prompt_length:
            kept.append({**problem, "task": task, "prompt_ids": np.array(ids, np.int64)})
    if not kept:
        fail(f"all {len(problems)} prompts are longer than --max-prompt-length "
             f"{cfg.max_prompt_length}")
    return kept, len(problems) - len(kept)
