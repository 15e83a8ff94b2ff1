"""Countdown in plain words, the probe and the table; and the card's command, dry, from a tiny
model to its rows."""
import itertools
import json
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from runtime.log import distinct_tokens
from runtime.prompts import encode_prompts
from runtime.puzzles import countdown as judge
from simko import Config
from tests import workers
from tests.conftest import (
    CPU, load_samples, near, one_base, plain_logits, plain_model, write_rows)
from tests.workers import ROOT
from tools import countdown, laptop, smollm2

LEGAL = laptop.all_chains()
TINY = smollm2.Plan(
    demonstrations=32,
    solving=1.0,
    batch=16,
    arms=("grpo", "simko"),
    if_time=("simko-0.05",),
    steps=1,
    save_steps=1,
    prompts=4,
    seeds=1,
    jobs=2,
    generate_rows=8,
    contexts=4,
    valid=4,
    test=4,
    eval_n=4,
    eval_arms=True,
    learning_rates=(1e-4, 1e-3),
    tune_steps=1,
    minutes=(5, 5, 20),
)


def demonstrations(seed, count, solving=1.0, held_out=()):
    rng = random.Random(seed)
    return [
        countdown.demonstration(rng, LEGAL, solving, held_out)
        for _ in range(count)
    ]


def asked(question):
    """Returns (numbers, target), the problem that a question asks."""
    *numbers, target = map(int, re.findall("[0-9]+", question))
    return tuple(numbers), target


# ----------------------------------------------------------------------------------- problems
def test_demonstrations_are_a_function_of_the_seed():
    assert demonstrations(3, 20) == demonstrations(3, 20)
    assert demonstrations(3, 20) != demonstrations(4, 20)


@pytest.mark.parametrize("solving, low, high", [(1.0, 200, 200), (0.3, 50, 110)])
def test_the_verifier_tells_demonstrations_that_solve_from_others(solving, low, high):
    right = 0
    for question, answer in demonstrations(0, 200, solving):
        numbers, target = asked(question)
        given = " ".join(map(str, numbers))
        right += judge(answer, f"{target} = {given}")
        assert not judge(answer, f"{target + 1} = {given}")
    assert low <= right <= high


def key_of(row):
    """Returns the key of the problem of a row, from its answer such as "48 = 4 7 20"."""
    target, numbers = row["answer"].split("=")
    return laptop.key(tuple(map(int, numbers.split())), int(target))


def test_sets_share_no_problem_that_they_must_not():
    rng = random.Random(1)
    rows, held_out = countdown.held_out_rows(rng, LEGAL, {"valid": 20, "test": 30})
    rows["train"] = countdown.train_rows(rng, LEGAL, 300, held_out)
    shown = demonstrations(1, 300, held_out=held_out)
    taken = {laptop.key(*asked(question)) for question, _ in shown}
    sizes = {name: len(some) for name, some in rows.items()}
    assert sizes == {"valid": 20, "test": 30, "train": 300}
    valid, test, train = (
        set(map(key_of, rows[name])) for name in ("valid", "test", "train"))
    assert len(valid) == 20
    assert len(test) == 30
    assert not valid & test
    assert valid | test == held_out
    assert not held_out & (train | taken)
    assert train & taken


# -------------------------------------------------------------------------------------- probe
def test_the_summary_is_over_the_gate_and_over_all():
    topk_logp = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    entropy = torch.tensor([0.5, 1.5])
    gate = torch.tensor([False, True])
    means = countdown.summary(topk_logp, entropy, gate, 8)
    assert means["Lambda_1"] == -3
    assert means["Lambda_2"] == -4
    assert means["entropy"] == 1.5
    assert means["Lambda_1_all"] == -2
    assert means["Lambda_2_all"] == -3
    assert means["entropy_all"] == 1
    near(means["distinct"], distinct_tokens(topk_logp[1], 8).item(), 1e-6)


@one_base
def test_the_probe_is_of_each_response_token_of_the_model(base):
    contexts = 4 * load_samples(base)  # more than fit into one pass
    topk_logp, entropy = countdown.statistics(base, contexts, 3, "cpu")
    model = plain_model(base)
    with torch.no_grad():
        logp = torch.cat([plain_logits(model, s) for s in contexts]).log_softmax(-1)
    near(topk_logp.double(), logp.topk(3).values, 1e-4)
    near(entropy.double(), -(logp.exp() * logp).sum(-1), 1e-4)

    gate = countdown.gate_of(entropy, contexts, 0.6)
    lengths = [len(s.response_ids) for s in contexts]
    for own, above in zip(entropy.split(lengths), gate.split(lengths)):
        assert above.tolist() == (own > own.quantile(0.6)).tolist()


# -------------------------------------------------------------------------------- fine-tuning
@one_base
def test_the_loss_is_the_mean_over_the_tokens_of_all_answers(base):
    samples = load_samples(base)
    pairs = [(s.prompt_ids.tolist(), s.response_ids.tolist()) for s in samples]
    model = plain_model(base).float()
    surprise = [
        -plain_logits(model, s).log_softmax(-1)[range(len(s.response_ids)), s.response_ids]
        for s in samples]
    near(laptop.supervised_loss(model, pairs), torch.cat(surprise).mean(), 1e-5)


def test_a_demonstration_has_the_prompt_of_a_run_and_ends(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = countdown.CHAT
    first = tokenizer.convert_tokens_to_ids("?")  # put before every other text, as a BOS
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="? $A", pair=None, special_tokens=[("?", first)])
    (question, answer), = demonstrations(0, 1)
    given, wanted = countdown.encode(tokenizer, question, answer)
    (problem,) = encode_prompts(
        [{"problem": question}], tokenizer, Config(prompt_template="chat", task="countdown"))
    assert given == problem["prompt_ids"].tolist()
    assert [first, *wanted] == [*tokenizer.encode(answer), tokenizer.eos_token_id]


def test_each_demonstration_is_shown_once_at_a_rate_that_rises_and_falls(monkeypatch):
    """Of a constant gradient, AdamW makes steps as long as the learning rate."""
    shown, weights = [], []

    def loss(model, pairs):
        shown.extend(pairs)
        weights.append(model.weight.item())
        return model.weight.sum()

    monkeypatch.setattr(laptop, "supervised_loss", loss)
    monkeypatch.setattr(countdown, "encode", lambda tokenizer, *pair: pair)
    model, log = torch.nn.Linear(1, 1, bias=False), mock.Mock()
    model.device = CPU
    pairs = [(str(i), "") for i in range(61)]  # the last one fills no batch
    countdown.fine_tune(model, None, pairs, 2, 0.5, log)
    assert shown == pairs[:60]
    assert log.mock_calls == [mock.call(i, pytest.approx(w)) for i, w in enumerate(weights)]
    weights.append(model.weight.item())
    rates = [min((i + 1) / 10, 1, (30 - i) / 10) / 2 for i in range(30)]
    assert [a - b for a, b in itertools.pairwise(weights)] == pytest.approx(rates, abs=1e-4)


# -------------------------------------------------------------------------------------- table
def row(arm, seed, value, correct=None):
    return {
        "arm": arm,
        "seed": seed,
        "probe": {"entropy": value},
        "correct": correct or {},
        "n": 256,
    }


def test_the_table_has_paired_differences(capsys):
    smollm2.show([
        row("start", 0, 0.5),
        row("grpo", 0, 1.0),
        row("simko", 0, 1.5),
        row("grpo", 1, 3.0),
        row("simko", 1, 3.7),
        row("simko", 2, 0.8),  # seed 2 has no pair yet
    ])
    line = (
        "| entropy | 0.500 | 2.000 | 2.000 "
        "| +1.500 [-11.206, +14.206] 2 of 2 "
        "| +0.600 [-0.671, +1.871] 2 of 2 |")
    assert line in capsys.readouterr().out


def test_pass_rates_are_of_the_problems_that_all_have():
    rows = [
        row("start", 0, 0, {"a": 0, "b": 256}),
        row("grpo", 0, 0, {"a": 256, "b": 256}),
        row("simko", 0, 0, {"b": 0}),
    ]
    assert smollm2.values(rows)["pass@1"].tolist() == [100, 100, 0]


def test_the_gap_is_above_the_line_through_start_and_grpo():
    start = {"pass@1": 20, "pass@256": 90}
    grpo = {"pass@1": 40, "pass@256": 80}
    simko = {"pass@1": 30, "pass@256": 88}
    assert smollm2.gap_above_line(start, grpo, simko) == 3


def test_the_gap_above_the_line_is_printed(capsys):
    """GRPO has the pass@256 of the start, 50 %, and SimKO solves every problem."""
    smollm2.show([
        row("start", 0, 0.5, {"a": 64, "b": 0}),
        row("grpo", 0, 0.5, {"a": 128, "b": 0}),
        row("simko", 0, 0.5, {"a": 96, "b": 1}),
    ])
    assert "\nsimko: pass@256 above the straight line from the start to GRPO's end, " \
        "which is not GRPO's path: +50.0\n" in capsys.readouterr().out
    # No line, and not nan, where GRPO has no pass@K yet.
    smollm2.show([
        row("start", 0, 0.5, {"a": 64}), row("grpo", 0, 0.5), row("simko", 0, 0.5, {"a": 96})])
    assert "straight line" not in capsys.readouterr().out


def test_rows_of_other_days_are_compared_with_their_own_start(capsys):
    smollm2.show([
        row("start", 0, 0.5),
        row("grpo", 0, 1.0),
        row("grpo", 1, 2.0),
        row("start", 6, 9.0),  # the days may come in any order
        row("grpo", 6, 10.0),
        row("start", 3, 5.0),
        row("grpo", 3, 6.0),
    ])
    assert "| entropy | 4.833 | 4.750 | +1.000" in capsys.readouterr().out
    for other, message in ((row("start", 0, 0.5), "have no run of grpo"), ({}, "not rows of")):
        with pytest.raises(SystemExit, match=message):
            smollm2.show([other])


def test_learning_rates_are_compared_on_the_problems_that_all_have(monkeypatch):
    runner = object.__new__(smollm2.Study)
    runner.plan = TINY
    runner.end = 0
    found = {1e-4: {"a": 4, "b": 4, "c": 0}, 1e-3: {"c": 2}}
    monkeypatch.setattr(runner, "all", mock.Mock())
    monkeypatch.setattr(runner, "correct", lambda run: found[run.learning_rate])
    assert runner.choose_rate() == 1e-3
    found[1e-3] = {}
    with pytest.raises(SystemExit, match="set it with --learning-rate"):
        runner.choose_rate()


# ------------------------------------------------------------------------------------ dry run
@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Llama whose tokens are words."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = [" ".join([countdown.CHAT, *pair]) for pair in demonstrations(0, 2000)]
    words = Tokenizer(models.WordLevel(unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["?", "<|im_end|>"])
    words.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="?",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    ))
    model.save_pretrained(folder)
    return folder


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Fork:
    """Takes the place of subprocess.Popen. The program runs in a fork of the tests' server, which
    has imported everything."""

    def __init__(self, words, stdout, stderr, env):
        _, _, program, *arguments = words
        function = partial(run_program, program, arguments)
        self.process = workers.start(function, Path(stdout.name), env)

    def wait(self, timeout):
        self.process.join(timeout)
        if self.process.exitcode is None:
            workers.end(self.process)
            pytest.fail("a run takes longer than the study has time")
        return self.process.exitcode


def run_program(program, arguments):
    sys.argv = ["-c", *arguments]
    exec(program)


def test_the_cards_command_runs_to_its_end(tiny, tmp_path, monkeypatch, capsys):
    """The first run is a process of its own, as all are outside tests."""
    kinds = iter([subprocess.Popen])
    monkeypatch.setattr(smollm2, "subprocess", SimpleNamespace(
        TimeoutExpired=subprocess.TimeoutExpired,
        Popen=lambda *words, **options: next(kinds, Fork)(*words, **options)))
    rows = tmp_path / "rows.jsonl"
    words = ["smollm2", "card", str(tiny), str(tmp_path / "work"), "--rows", str(rows)]

    def start_command(*flags):
        monkeypatch.setattr("sys.argv", [*words, *flags])
        smollm2.main()

    monkeypatch.setitem(smollm2.PLANS, "card", TINY)
    with mock.patch.object(smollm2, "shutil"):  # runs keep their checkpoints
        start_command()
    written = read_rows(rows)
    assert {(row["arm"], row["seed"]) for row in written} == {
        ("start", 0),
        ("grpo", 0),
        ("simko", 0),
        ("simko-0.05", 0),
    }
    by_arm = {}
    for row in written:
        assert len(row["correct"]) == 4
        assert row["n"] == 4
        if row["arm"] != "start":
            assert row["learning_rate"] in TINY.learning_rates
        by_arm.setdefault(row["arm"], row)
    start, grpo, simko = (by_arm[arm] for arm in ("start", *TINY.arms))
    assert grpo["rewards"] == simko["rewards"]  # the first step's samples are the start's
    assert grpo["probe"] != start["probe"] or not any(grpo["rewards"])

    before = rows.read_text()
    start_command()  # nothing is missing
    assert "has all runs of this study" in capsys.readouterr().out
    assert rows.read_text() == before
    with pytest.raises(SystemExit, match=r"has runs at the learning rates \[.*would train at 0.5"):
        start_command("--learning-rate", "0.5")

    # A run whose evaluation was cut off is completed.
    simko["correct"] = {}
    write_rows(rows, written)
    start_command()
    again = read_rows(rows)
    assert len(again) == len(written) + 1
    written = list(map(json.loads, before.splitlines()))
    assert smollm2.values(again).equals(smollm2.values(written))
    smollm2.show(written)
    assert "| pass@4 |" in capsys.readouterr().out


def test_after_the_end_no_run_goes_on_and_no_row_is_written(tmp_path, capsys):
    runner = object.__new__(smollm2.Study)  # without a start to probe
    runner.plan = TINY
    runner.folder = tmp_path
    runner.rows = tmp_path / "rows.jsonl"
    runner.end = 0
    runner.finish(smollm2.Run("grpo", 0, 1, 1e-4, "test", 4))
    assert "grpo-0-0.0001: no row, because the time was up" in capsys.readouterr().out
    assert not runner.rows.exists()


@pytest.mark.parametrize("words, message", [
    (["table", "none.jsonl"], "none.jsonl cannot be read"),
    (["card", "none", "work"], "none has no config.json"),
    (["card", "none", "work", "--learning-rate", "0"], "--learning-rate above 0"),
])
def test_bad_input_is_named_before_anything_is_made(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["smollm2", *words])
    with pytest.raises(SystemExit) as error:
        smollm2.main()
    assert message in f"{error.value} {capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_study_is_refused(tmp_path):
    (tmp_path / "start.json").write_text("{}")
    with pytest.raises(SystemExit, match="belongs to a study with other sizes"):
        smollm2.make_start(TINY, "no model", tmp_path, "cpu")


@pytest.mark.parametrize("name", ["cpu", "cpu_first_start"])
def test_the_page_shows_what_the_rows_say(name, capsys):
    smollm2.show(read_rows(ROOT / "docs" / "smollm2" / f"{name}.jsonl"))
    page = (ROOT / "docs" / "smollm2.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in page
