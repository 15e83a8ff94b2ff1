"""Runs the code cells of docs/walkthrough.md and writes their output.

    python -m tools.walkthrough
    python -m tools.walkthrough --measure RUN ...

docs/walkthrough.md is text with Python cells. The first command runs the
cells in order, updates the output below each cell, and writes the page as a
notebook, docs/walkthrough.ipynb. Run it after a change of the text or of
simko.py.

--measure writes docs/walkthrough.json, which the cells read. The file holds
the base model's probabilities for a correct response to the first test
problem and, for the base model and at the end of each RUN, the probabilities
of the rank-2 and rank-3 candidates where the gate is open. All runs must
start from the same base model. The committed numbers come from runs of the
laptop recipe with seed 0, 500 steps, learning rate 4e-4, lambda 1.5, q 0.5:

    flags="$(bash train.sh --list laptop psr) --rollout hf --lambda-top1 1.5 --q 0.5"
    python -m tools.laptop runs/laptop/data
    python simko.py train $flags --output-dir runs/GRPO --method grpo --eval-steps 500
    python simko.py train $flags --output-dir runs/SimKO-0.01 --alpha 0.01
    python simko.py train $flags --output-dir runs/SimKO-0.05 --alpha 0.05
    python simko.py train $flags --output-dir runs/SimKO-0.2 --alpha 0.2
    python -m tools.walkthrough --measure runs/GRPO runs/SimKO-0.01 runs/SimKO-0.05 runs/SimKO-0.2
"""
import contextlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import simko
from runtime.common import fail, write_whole
from runtime.data import digest, load_problems, read_jsonl
from runtime.models import load_model
from runtime.prompts import encode_prompts, read_tokenizer
from runtime.responses import set_name
from tools import ROOT, command_line
from tools.paths import first_correct
from tools.study import NAMES
from tools.tables import run_settings

DOCS = ROOT / "docs"
TEXT, NOTEBOOK, MEASURED = (DOCS / f"walkthrough.{end}" for end in ("md", "ipynb", "json"))
# A cell and the output below it. It splits the page into [text, code, text, ..., text].
CELL = re.compile(r"```python\n(.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)
RESPONSES = 8  # how many of each problem the statistics use
GATE = 0.5     # the q of these statistics, for every model


# ------------------------------------------------------------------- cells
def run_cells(codes):
    """Executes cells in one namespace, as a notebook does. Returns the
    output of each cell."""
    namespace, printed = {}, []
    for number, code in enumerate(codes, 1):
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(compile(code, f"cell {number}", "exec"), namespace)
        printed.append(stream.getvalue())
    return printed


def as_markdown(parts, printed):
    """Returns the page with each cell's output below the cell."""
    page = parts[0]
    for code, output, text in zip(parts[1::2], printed, parts[2::2]):
        page += f"```python\n{code}```\n"
        if output:
            page += f"\n```text\n{output}```\n"
        page += text
    return page


def as_notebook(parts, printed):
    """Returns the page as a notebook in Jupyter's format, version 4.5."""
    outputs, cells, runs = iter(printed), [], 0
    for number, part in enumerate(parts):
        source = part.strip("\n").splitlines(keepends=True)
        cell = {"id": f"cell-{number}", "metadata": {}, "source": source}
        if number % 2:
            runs += 1
            stream = next(outputs).splitlines(keepends=True)
            shown = [{"name": "stdout", "output_type": "stream", "text": stream}] if stream else []
            cells.append({"cell_type": "code", "execution_count": runs, "outputs": shown, **cell})
        elif source:
            cells.append({"cell_type": "markdown", **cell})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


# ----------------------------------------------------------------- measure
@torch.no_grad()
def read_responses(model, prompt, responses, temperature):
    """Returns the log-probabilities (L, V) at the tokens of each response."""
    # Padding after a response does not affect the tokens before it.
    ids = pad_sequence([torch.tensor([*prompt, *own]) for own in responses], batch_first=True)
    logits = model(ids).logits[:, len(prompt) - 1:-1].double() / temperature
    return [row[:len(own)].log_softmax(-1) for row, own in zip(logits, responses)]


def entropy(log_pi):
    return -(log_pi.exp() * log_pi).sum(-1)


def candidate_statistics(model, tokenizer, problems, path, temperature):
    """Returns statistics of log pi of the candidates of rank 1 to 3 in the
    model's own responses, which are in the file at `path`.

    Lambda is the mean over all tokens, Lambda_gated the mean over gated
    tokens, both averaged as in Eq. 2. percentiles has the 0th to 100th
    percentile of log pi of rank 2 and 3 over gated tokens."""
    own = {problem["id"]: [] for problem in problems}
    for _, row in read_jsonl(path):
        if "response" in row and len(own[row["id"]]) < RESPONSES:
            end = [] if row["truncated"] else [model.config.eos_token_id]
            ids = tokenizer.encode(row["response"], add_special_tokens=False)
            own[row["id"]].append(ids + end)
    everywhere, means, gated_means, gated = 0, [], [], []
    for problem in problems:
        responses = own[problem["id"]]
        for log_pi in read_responses(model, problem["prompt_ids"], responses, temperature):
            top, H = log_pi.topk(3).values, entropy(log_pi)
            inside = top[H > simko.entropy_threshold(H, torch.tensor([len(H)]), GATE)]
            everywhere += len(top)
            means.append(top.mean(0))
            gated.append(inside)
            gated_means += [inside.mean(0)] if len(inside) else []
    gated = torch.cat(gated)
    percentiles = np.percentile(gated[:, 1:].numpy(), range(101), axis=0)
    return {
        "tokens": everywhere, "gated": len(gated),
        "Lambda": rounded(torch.stack(means).mean(0)),
        "Lambda_gated": rounded(torch.stack(gated_means).mean(0)),
        "percentiles": {f"rank {k}": rounded(percentiles[:, k - 2]) for k in (2, 3)}}


def rounded(numbers):
    return [round(float(number), 6) for number in numbers]


def measure(folders):
    """Returns the contents of docs/walkthrough.json."""
    from transformers import logging
    logging.disable_progress_bar()
    settings = {folder: run_settings(folder) for folder in folders}
    cfg = SimpleNamespace(**next(iter(settings.values())))
    for folder, own in settings.items():
        if (own["model"], own["eval_data"]) != (cfg.model, cfg.eval_data):
            fail(f"the model or eval_data of {folder} differs from that of {folders[0]}: "
                 "name runs that share both")
    tokenizer = read_tokenizer(cfg.model)
    problems = load_problems(cfg.eval_data[0], cfg.data_dir, cfg.task)
    problems = encode_prompts(problems, tokenizer, cfg)
    benchmark = set_name(cfg.eval_data[0])

    def load(folder):
        return load_model(folder, torch.float32, attention=None).eval()

    base, first = load(cfg.model), problems[0]
    text = first_correct(folders, benchmark, first["id"], digest(problems))
    if text is None:
        fail(f"no run has a correct response to {first['id']} of {benchmark}: name runs that "
             "solve it")
    response = tokenizer.encode(text, add_special_tokens=False) + [base.config.eos_token_id]
    (log_pi,) = read_responses(base, first["prompt_ids"], [response], cfg.temperature)
    found = {
        "problem": first["problem"], "response": tokenizer.convert_ids_to_tokens(response),
        "entropy": rounded(entropy(log_pi)),
        "vocabulary": tokenizer.convert_ids_to_tokens(range(log_pi.shape[-1])),
        "first_token_log_pi": rounded(log_pi[0]), "gate_q": GATE, "models": {}}
    names = "method", "alpha", "K", "lambda_top1", "q", "learning_rate", "steps", "seed"
    models = [("base", cfg.model, folders[0] / "eval_000000", {})]
    for folder in folders:
        own = settings[folder]
        label = NAMES[own["method"]]
        if own["method"] == "simko":
            label += f", alpha {own['alpha']:g}, lambda {own['lambda_top1']:g}"
        if label in [name for name, *_ in models]:
            fail(f"two runs would both be called {label!r}: name only one of them")
        evaluation = folder / f"eval_{own['steps']:06d}"
        models.append((label, folder / "hf", evaluation, {name: own[name] for name in names}))
    for label, model, evaluation, about in models:
        path = evaluation / f"{benchmark}.jsonl"
        if not path.is_file():
            fail(f"{path} does not exist: train the first run with --eval-steps, and finish "
                 "every run")
        own = candidate_statistics(load(model), tokenizer, problems, path, cfg.temperature)
        found["models"][label] = about | own
    return found


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--measure", nargs="+", type=Path, metavar="RUN",
        help="folders of finished runs to measure")
    options = parser.parse_args()
    if options.measure:
        found = measure(options.measure)
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
        write_whole(MEASURED, "{\n" + ",\n".join(lines) + "\n}\n")
        print(f"wrote {MEASURED}")
        return
    parts = CELL.split(TEXT.read_text(encoding="utf-8"))
    printed = run_cells(parts[1::2])
    write_whole(TEXT, as_markdown(parts, printed))
    write_whole(NOTEBOOK, as_notebook(parts, printed))
    print(f"ran {len(printed)} cells; wrote {TEXT} and {NOTEBOOK}")


if __name__ == "__main__":
    main()
