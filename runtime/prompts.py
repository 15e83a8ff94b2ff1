"""What a model is asked: a problem in its prompt template, as tokens."""
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
            # Without a fixed date Llama's prompts would change every day.
            text = tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024")
            ids = tokenizer.encode(text, add_special_tokens=False)
        else:
            text = TEMPLATES[cfg.prompt_template].replace("{ask}", ask)
            ids = tokenizer.encode(text.replace("{problem}", problem["problem"]))
        if len(ids) <= cfg.max_prompt_length:
            kept.append({**problem, "task": task, "prompt_ids": np.array(ids, np.int64)})
    if not kept:
        fail(f"all {len(problems)} prompts are longer than --max-prompt-length "
             f"{cfg.max_prompt_length}")
    return kept, len(problems) - len(kept)
