"""Draws the path of a response: the top candidates of each model at each of its
tokens. tools.plots calls this with --path."""
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers import logging as transformers_logging

from runtime.common import fail, one_line, printable
from runtime.data import digest, load_problems, read_jsonl
from runtime.prompts import encode_prompts, read_tokenizer
from runtime.responses import set_name
from tools import tables
from tools.drawing import grid, plt


@torch.no_grad()
def candidates(folder, prompt, response, K, temperature):
    """Returns the probabilities (L, K) and ids (L, K) of the top K at each
    token of a response, and the entropies (L,)."""
    # In float32, no stored weight is rounded.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False).eval()
    ids = torch.tensor([[*prompt, *response]])
    logits = model(ids).logits[0, len(prompt) - 1:-1]
    logp = (logits / temperature).log_softmax(-1)
    top = logp.topk(K)
    entropy = -(logp.exp() * logp).sum(-1)
    return top.values.exp().numpy(), top.indices.numpy(), entropy.numpy()


def first_correct(folders, name, id, contents):
    """Returns the first correct response to a problem: the base model's
    or, if it has none, that of a run. Returns None if no run has one.
    contents: the digest of the problems."""
    for pattern in ("eval_000000/*.jsonl", "eval_*/*.jsonl"):
        paths = [path for folder in folders for path in sorted(folder.glob(pattern))]
        for path in paths:
            if path.stem.partition("@T")[0] != name:
                continue
            for _, row in read_jsonl(path):
                # The first line of the file has the digest of the problems.
                if row.get("problems_sha256", contents) != contents:
                    fail(f"{path} has responses to other problems than {name} has now: "
                         "put the old problems back, or evaluate again")
                if row["id"] == id and row.get("correct"):
                    return row["response"]
    return None


def read_path(folders, index):
    """Returns the arguments of `path_figure`: one response and its top
    candidates under the base model and each run of {label: folder}. Returns
    None if no run has a correct response to the problem."""
    transformers_logging.disable_progress_bar()
    runs = tables.only_runs(folders)
    cfg = shared_settings(runs)
    source = cfg.eval_data[0]
    name = set_name(source)
    problems = load_problems(source, cfg.data_dir, cfg.task)
    if not 0 <= index < len(problems):
        fail(f"--path {index}: {source} has problems 0 to {len(problems) - 1}")
    try:
        tokenizer = read_tokenizer(cfg.model)
        (problem,) = encode_prompts([problems[index]], tokenizer, cfg)
        contents = digest(encode_prompts(problems, tokenizer, cfg))
        text = first_correct(runs.values(), name, problem["id"], contents)
        if text is None:
            return None
        response = tokenizer.encode(text, add_special_tokens=False)
        models = {"base": cfg.model}
        models |= {label: folder / "hf" for label, folder in runs.items()}
        found = {
            label: candidates(model, problem["prompt_ids"], response, cfg.K, cfg.temperature)
            for label, model in models.items()}
    except (OSError, ValueError) as error:
        fail(f"{cfg.model} or a run's hf cannot be loaded ({one_line(error)}): if the path is "
             "relative, repeat the command in the folder where the runs were started")

    def word(id):
        token = tokenizer.decode([id]).replace("\n", "↵")
        text = printable(token.strip()) or "␣"
        return text if len(text) < 10 else text[:8] + "…"

    title = (f"{printable(name)}, problem {index}: "
             f"probabilities of the top {cfg.K} at each token of one response")
    return title, response, found, word


def shared_settings(runs):
    """Returns the settings of the first run. Ends the program if the runs are
    unfinished, or differ in their model, prompts or problems."""
    settings = [tables.run_settings(folder) for folder in runs.values()]
    names = "model", "prompt_template", "chat_template_kwargs", "eval_data"
    if not runs or any(own[name] != settings[0][name] for own in settings for name in names):
        fail(f"--path needs runs with the same {', '.join(names)}")
    for folder in runs.values():
        if not (folder / "hf").is_dir():
            fail(f"{folder / 'hf'} does not exist: the run is unfinished, "
                 "so run its command again")
    cfg = SimpleNamespace(**settings[0])
    if not cfg.eval_data:
        fail("--path needs runs with --eval-data")
    return cfg


def path_figure(title, response, found, word, most=16):
    """Draws a line of bars for each model. found: {label: `candidates`}.
    word: a function from a token's id to its text.

    For a long response, only the tokens with the highest entropy under the
    base model are shown, with their positions."""
    by_entropy = np.argsort(-found["base"][2], kind="stable")
    shown = sorted(by_entropy[:most].tolist())
    width = max(5.5, 0.64 * len(shown) + 1)
    figure, axes = grid(len(found), 1, width, 1.6, sharex=True, sharey=True)
    for (label, (probability, ids, _)), axis in zip(found.items(), axes[:, 0]):
        for x, place in enumerate(shown):
            stack(axis, x, probability[place], ids[place], response[place], word)
        axis.set(ylim=(0, 1), yticks=(0, 0.5, 1))
        axis.set_title(label, fontsize=9, loc="left")
        axis.set_xlim(-0.6, len(shown) - 0.4)
        axis.grid(False)
    ticks = [word(response[place]) for place in shown]
    if len(shown) < len(response):
        ticks = [f"{text}\n{place + 1}" for text, place in zip(ticks, shown)]
        title += (f"\nshown: the {most} of its {len(response)} tokens at which "
                  "the base model's entropy is highest, with their positions")
    axes[-1][0].set_xticks(range(len(shown)), ticks, parse_math=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def stack(axis, x, probabilities, ids, sampled, word):
    """Draws the candidates at one token as a stack of bars, the most
    probable at the bottom, with a frame around the sampled one."""
    depths = np.linspace(0.85, 0.2, len(ids))
    shades = plt.get_cmap("Blues")(depths)
    below = 0
    for rank, (height, id) in enumerate(zip(probabilities, ids)):
        frame = {"edgecolor": "white", "linewidth": 0.6, "zorder": 2}
        if id == sampled:
            frame = {"edgecolor": "black", "linewidth": 1.4, "zorder": 3}
        axis.bar(x, height, 0.86, below, color=shades[rank], **frame)
        if height > 0.1:  # a lower bar has no room for a word
            axis.text(x, below + height / 2, word(id), ha="center", va="center",
                      color="white" if depths[rank] > 0.6 else "black", fontsize=7.5,
                      parse_math=False, zorder=4)
        below += height
