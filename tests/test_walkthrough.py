"""Tests of docs/walkthrough.md and its notebook: the cells run and print what the pages show."""
import json
import math
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import save_tiny_models, write_rows
from tools import laptop, walkthrough

PAGE = walkthrough.TEXT.read_text(encoding="utf-8")
VOCABULARY = laptop.vocabulary()


@pytest.fixture(scope="module")
def printed():
    return walkthrough.run_cells(walkthrough.CELL.split(PAGE)[1::2])


def test_the_page_and_the_notebook_show_what_the_cells_print(printed):
    parts = walkthrough.CELL.split(PAGE)
    assert len(printed) > 10
    assert PAGE == walkthrough.as_markdown(parts, printed)
    notebook = walkthrough.NOTEBOOK.read_text(encoding="utf-8")
    assert notebook == walkthrough.as_notebook(parts, printed)


def test_every_number_of_the_text_is_printed_or_set_by_a_cell(printed):
    parts = walkthrough.CELL.split(PAGE)
    texts, codes = parts[::2], parts[1::2]
    material = " ".join(codes + printed)
    numbers = re.findall(r"(?<!Sec\. )(?<!\d)\d+\.\d+", " ".join(texts))
    assert len(numbers) > 5
    for number in numbers:
        share = f"{float(number) / 100:.6f}".rstrip("0")
        assert number in material or share in material, f"no cell prints {number}"


def test_a_cell_that_prints_something_else_changes_both_pages():
    page = (
        "text\n\n"
        "```python\nx = 2\n```\n\n"
        "```python\nprint(x + 1)\n```\n\n"
        "```text\n4\n```\n\n"
        "end\n")
    parts = walkthrough.CELL.split(page)
    assert parts[1::2] == ["x = 2\n", "print(x + 1)\n"]
    printed = walkthrough.run_cells(parts[1::2])
    assert printed == ["", "3\n"]
    fresh = walkthrough.as_markdown(parts, printed)
    assert fresh == page.replace("```text\n4\n", "```text\n3\n")
    assert walkthrough.as_markdown(walkthrough.CELL.split(fresh), printed) == fresh
    cells = json.loads(walkthrough.as_notebook(parts, printed))["cells"]
    kinds = [cell["cell_type"] for cell in cells]
    assert kinds == ["markdown", "code", "code", "markdown"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert sources == ["text", "x = 2", "print(x + 1)", "end"]
    assert cells[1]["outputs"] == []
    three = {"name": "stdout", "output_type": "stream", "text": ["3\n"]}
    assert cells[2]["outputs"] == [three]


# ---------------------------------------------------------------------------------------- measure
@pytest.fixture
def runs(tmp_path):
    """Makes two finished runs of a tiny base model, with the laptop's tokenizer and two
    problems."""
    problems = [
        {"id": "p0", "problem": "0 2 3 > 9 :", "answer": "9 = 0 2 3"},
        {"id": "p1", "problem": "1 2 3 > 9 :", "answer": "9 = 1 2 3"},
    ]
    write_rows(tmp_path / "test.jsonl", problems)
    save_tiny_models(*(tmp_path / name for name in ("base", "one/hf", "two/hf")))
    rows = [
        {"set": "test"},
        {"id": "p0", "correct": 1, "response": "2 + 7 = 9", "truncated": False},
        {"id": "p0", "correct": 0, "response": "7", "truncated": True},
        {"id": "p1", "correct": 0, "response": "3 * 3", "truncated": False},
    ]
    for name, method in (("one", "psr"), ("two", "simko")):
        settings = {
            "model": str(tmp_path / "base"),
            "eval_data": [str(tmp_path / "test.jsonl")],
            "task": "countdown",
            "prompt_template": "raw",
            "max_prompt_length": 16,
            "temperature": 0.7,
            "steps": 4,
            "method": method,
        }
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        for step in ("eval_000000", "eval_000004"):
            (tmp_path / name / step).mkdir()
            write_rows(tmp_path / name / step / "test.jsonl", rows)
    return [tmp_path / "one", tmp_path / "two"]


def naive(folder, prompt, response):
    """Returns log pi (L, V) at each token, from one forward pass for each token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = [VOCABULARY[token] for token in f"<bos> {prompt} {response}".split()]
    start = len(prompt.split()) + 1
    rows = []
    with torch.no_grad():
        for i in range(start, len(ids)):
            logits = model(torch.tensor([ids[:i]])).logits[0, -1]
            rows.append(logits.double() / 0.7)
    return torch.stack(rows).log_softmax(-1).numpy()


def entropies(log_pi):
    return (-np.exp(log_pi) * log_pi).sum(1)


def close(values):
    return pytest.approx(list(values), abs=2e-5)


def test_measure_reads_the_models_at_each_token(runs, tmp_path):
    found = walkthrough.measure(runs)
    assert found["problem"] == "0 2 3 > 9 :"
    assert found["response"] == "2 + 7 = 9 <eos>".split()
    log_pi = naive(tmp_path / "base", "0 2 3 > 9 :", "2 + 7 = 9 <eos>")
    assert found["first_token_log_pi"] == close(log_pi[0])
    assert found["entropy"] == close(entropies(log_pi))
    assert found["vocabulary"] == list(VOCABULARY)

    assert list(found["models"]) == ["base", "PSR", "SimKO, alpha 0.01, lambda 1.1"]
    texts = [
        ("0 2 3 > 9 :", "2 + 7 = 9 <eos>"),
        ("0 2 3 > 9 :", "7"),
        ("1 2 3 > 9 :", "3 * 3 <eos>"),
    ]
    for own, folder in zip(found["models"].values(), ("base", "one/hf", "two/hf")):
        means, gated, gated_means = [], [], []
        for prompt, response in texts:
            log_pi = naive(tmp_path / folder, prompt, response)
            H = entropies(log_pi)
            top = -np.sort(-log_pi, axis=1)[:, :3]
            means.append(top.mean(0))
            inside = top[H > np.quantile(H, 0.5)]
            gated.append(inside)
            if len(inside):
                gated_means.append(inside.mean(0))
        gated = np.concatenate(gated)
        assert own["tokens"] == 11
        assert own["gated"] == len(gated) == 5
        assert own["Lambda"] == close(np.mean(means, 0))
        assert own["Lambda_gated"] == close(np.mean(gated_means, 0))
        for k in (2, 3):
            values = own["percentiles"][f"rank {k}"]
            of_rank = gated[:, k - 1]
            assert len(values) == 101
            assert values == sorted(values)
            expected = of_rank.min(), np.median(of_rank), of_rank.max()
            assert [values[i] for i in (0, 50, 100)] == close(expected)


def test_measure_says_which_run_it_cannot_use(runs):
    (runs[1] / "eval_000004" / "test.jsonl").unlink()
    message = "eval_000004/test.jsonl does not exist: train the first run with"
    with pytest.raises(SystemExit, match=message):
        walkthrough.measure(runs)
    config = runs[1] / "config.json"
    config.write_text(config.read_text().replace("base", "other"))
    with pytest.raises(SystemExit, match="model or eval_data of .*two differs from .*one"):
        walkthrough.measure(runs)


def test_two_runs_that_would_share_a_name_are_refused(runs):
    config = runs[1] / "config.json"
    config.write_text(config.read_text().replace("simko", "psr"))
    with pytest.raises(SystemExit, match="two runs would both be called 'PSR'"):
        walkthrough.measure(runs)


def test_measure_needs_a_correct_response_to_the_first_problem(runs):
    for folder in runs:
        for path in folder.glob("eval_*/test.jsonl"):
            write_rows(path, [{"set": "test"}, {"id": "p0", "correct": 0, "response": "7"}])
    with pytest.raises(SystemExit, match="no run has a correct response to p0 of test: name runs"):
        walkthrough.measure(runs)


def test_the_committed_measurement_is_whole():
    measured = json.loads(walkthrough.MEASURED.read_text(encoding="utf-8"))
    log_pi = measured["first_token_log_pi"]
    assert sum(map(math.exp, log_pi)) == pytest.approx(1, abs=1e-4)
    assert len(measured["vocabulary"]) == len(log_pi)
    assert len(measured["response"]) == len(measured["entropy"])
    assert "base" in measured["models"]
    assert len(measured["models"]) > 2
