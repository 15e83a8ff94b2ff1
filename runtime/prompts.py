"""Turns problems into prompts: loads the tokenizer, applies a template,
tokenizes the result, and checks that the model can read it. Also decides which
tokens end a response."""
import inspect
import re
from datetime import datetime

import numpy as np
from tokenizers import Tokenizer
from transformers import (
    AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig,
    PreTrainedTokenizerFast)
from transformers.utils import cached_file

from runtime.common import fail, fail_as
from runtime.models import NO_CODE, generation_file

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
# Tokenizers that treat spaces, lines, digits or LaTeX in different ways
# split this into different tokens.
SPACING_TEXT = f"Find 12 + 345.\n\nIt's  x = {BOXED}"


# ----------------------------------------------------------- the tokenizer
def load_tokenizer(cfg, vocab_size):
    with fail_as(f"--model {cfg.model}: its tokenizer is missing, damaged "
                 "or asks for code of its own (auto_map), which is never run"):
        tokenizer = read_tokenizer(cfg.model)
        # The vocabulary may be padded beyond the tokenizer's tokens,
        # and the padding may be sampled.
        tokenizer.decode([vocab_size - 1])
    has_turns = "<|im_end|>" in tokenizer.get_vocab()
    if cfg.prompt_template == "qwen-math" and not has_turns:
        fail(f"--prompt-template qwen-math needs the token <|im_end|>, which "
             f"{cfg.model} lacks: choose chat, plain or raw")
    if cfg.prompt_template == "chat" and not tokenizer.chat_template:
        known = [name for name in TEMPLATES if name != "qwen-math" or has_turns]
        fail(f"{cfg.model} has no chat template: choose --prompt-template "
             f"{', '.join(known)}")
    check_template_kwargs(cfg, tokenizer)
    return tokenizer


def read_tokenizer(model):
    """Returns the tokenizer that a model's tokenizer.json describes.

    For some classes AutoTokenizer takes only the vocabulary from it, and
    splits text by the rules of the class that tokenizer_config.json names.
    Where that is the wrong one, as in DeepSeek-R1-Distill-Llama, prompts and
    responses lose their spaces (transformers issue 45488)."""
    try:
        file = cached_file(model, "tokenizer.json")
    except OSError:  # there is no such file
        return AutoTokenizer.from_pretrained(model, **NO_CODE)
    # Where mistral_common is installed, a tekken.json would otherwise take
    # precedence. Its tokenizer has no chat template, and splits special tokens.
    tokenizer = AutoTokenizer.from_pretrained(model, mistral_format=False, **NO_CODE)
    if not tokenizer.is_fast:
        return tokenizer
    described = Tokenizer.from_file(file)
    # Some tokenizers put a space before a text, and others after each special
    # token as well.
    end = tokenizer.eos_token or ""
    if described.token_to_id(end) is None:
        end = ""
    sample = f"{SPACING_TEXT}{end}{SPACING_TEXT}{end} {SPACING_TEXT}"
    if as_tokens(sample, tokenizer.backend_tokenizer) == as_tokens(sample, described):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(model, **NO_CODE)


def as_tokens(text, tokenizer):
    """Returns the ids of a text and what they are decoded to, or None if the
    vocabulary lacks some of it, as a vocabulary of a few words may."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    except Exception:  # noqa: BLE001  tokenizers raises no other class
        return None
    return ids, tokenizer.decode(ids)


def check_template_kwargs(cfg, tokenizer):
    """Refuses --chat-template-kwargs that the template would ignore, and those
    with names that apply_chat_template uses itself."""
    if not cfg.chat_template_kwargs:
        return
    with fail_as(f"--model {cfg.model}: its chat template"):
        template = tokenizer.get_chat_template()
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in cfg.chat_template_kwargs:
        if name in {*taken, "messages"}:
            fail(f"--chat-template-kwargs: {name!r:.80} cannot be passed to "
                 "the template: leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            fail(f"--chat-template-kwargs: the chat template of {cfg.model} "
                 f"does not use {name!r:.80}: correct its spelling, or leave it out")


def end_tokens(cfg, tokenizer, vocab_size):
    """Returns the sorted ids of the tokens that end a response: those that
    the tokenizer, generation_config.json or config.json names, and the one
    with which the chat template ends a turn."""
    stops = [tokenizer.eos_token_id, *model_ends(cfg.model, vocab_size)]
    if cfg.prompt_template in ("chat", "qwen-math"):
        # Qwen's base models end a turn with this token, but a text with another.
        stops.append(tokenizer.get_vocab().get("<|im_end|>"))
    if cfg.prompt_template == "chat":
        stops.append(turn_end(cfg, tokenizer))
    stops = [stop for stop in stops if stop is not None]
    for stop in stops:
        if not isinstance(stop, int) or not 0 <= stop < vocab_size:
            fail(f"{cfg.model}: the end-of-text token {stop!r} is not one of "
                 f"the {vocab_size} of the model's vocabulary: model and "
                 "tokenizer, or config.json and generation_config.json, do "
                 "not belong together")
    if not stops:
        fail(f"{cfg.model} names no end-of-text token, so no response "
             "would end: give its tokenizer an eos_token")
    return sorted(set(stops))


def turn_end(cfg, tokenizer):
    """Returns the id of the special token that the chat template puts after
    the assistant's words, or None if it puts none there.

    The files of a fine-tuned model often name only the end-of-text token of
    its base model, such as Gemma's <eos>, though its turns end with another."""
    said = "It is four."
    chat = [{"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": said}]
    try:
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, **CLOCK | cfg.chat_template_kwargs)
    except Exception:  # noqa: BLE001  a template may refuse an assistant's turn
        return None
    _, found, rest = text.rpartition(said)
    if not found:
        return None
    for i, token in tokenizer.added_tokens_decoder.items():
        if token.special and rest.lstrip().startswith(token.content):
            return i
    return None


def model_ends(model, vocab_size):
    """Returns the end-of-text ids that a model's generation_config.json and
    config.json name."""
    def ids(settings):
        named = settings.get("eos_token_id")
        return named if isinstance(named, list) else [named]

    with fail_as(f"--model {model}"):
        config, _ = PreTrainedConfig.get_config_dict(model)
        parts, ends = [config, config.get("text_config") or {}], []
        if own := generation_file(model):
            ends = ids(own.to_dict())
        else:
            # Without the file vLLM also ends at the ids that are the
            # defaults of the config's class.
            defaults = GenerationConfig.from_model_config(
                AutoConfig.from_pretrained(model, **NO_CODE))
            parts.append(defaults.to_dict())
    # A config.json often keeps the ids of the model it was copied from.
    # An id beyond the vocabulary cannot be sampled, and does no harm.
    named = [i for part in parts for i in ids(part)]
    return ends + [i for i in named if i in range(vocab_size)]


# ------------------------------------------------------------- the prompts
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
    problems whose prompt is longer than --max-prompt-length. Ends the program
    if none remain."""
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
             f"{cfg.max_prompt_length}: raise it")
    return kept


def make_prompts(source, problems, tokenizer, vocab_size, cfg):
    """Returns the problems with their prompts, as `encode_prompts` does. Ends
    the program with one line about `source` if the template, the tokenizer or
    the model cannot handle them."""
    with fail_as(f"{cfg.model}: its chat template or tokenizer cannot make "
                 f"a prompt of {source}", "try another --prompt-template or, if the "
                 "model's vocabulary lacks words of the problems, another --model"):
        kept = encode_prompts(problems, tokenizer, cfg)
    check_prompts(source, kept, vocab_size, cfg)
    return kept


def check_prompts(source, problems, vocab_size, cfg):
    """Refuses a prompt that is empty or has a token that the model lacks, and
    prompts that are all the same although their problems differ."""
    texts = {problem["problem"].strip() for problem in problems}
    prompts = {problem["prompt_ids"].tobytes() for problem in problems}
    if len(texts) > 1 and len(prompts) == 1:
        fail(f"{source}: all prompts are the same, so the tokenizer of {cfg.model} "
             f"or --prompt-template {cfg.prompt_template} leaves the problem out: "
             "choose another template")
    for problem in problems:
        ids = problem["prompt_ids"]
        if len(ids) and ids.max() < vocab_size:
            continue
        what = "has no tokens"
        if len(ids):
            what = (f"has a token of id {ids.max()}, beyond the model's "
                    f"{vocab_size}")
        fail(f"{source}: the prompt of {problem['id']!r:.80} {what}: check "
             f"that the tokenizer belongs to {cfg.model}, and that "
             f"--prompt-template {cfg.prompt_template} contains the problem")
