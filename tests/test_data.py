"""Tests of data sets in the hub's format, of local copies, of prompts, and of the sets and
sampling settings of evaluations."""
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from runtime import cli, data
from runtime.data import DATASETS, GROUPS
from runtime.prompts import BOXED, TEMPLATES, encode_prompts
from simko import Config
from tests import workers
from tests.conftest import write_rows
from tools import data as data_program
from tools import laptop
from verify import Verifier, is_correct

GAME = {"question": "?", "answer": "A,C", "metadata": {}}
HUB = {  # id: {config: {split: rows}}, in the columns that these sets have on the hub
    "EleutherAI/hendrycks_math": {
        "algebra": {
            "train": [{"problem": "One plus one?", "level": "Level 1", "type": "Algebra",
                       "solution": r"It is $\boxed{1}$, no, $\boxed{2}$."},
                      {"problem": "Empty", "level": "Level 1", "type": "Algebra",
                       "solution": r"$\boxed{}$"}],
            "test": [{"problem": "Test of level 1", "level": "Level 1",
                      "solution": r"\boxed{5}"}]},
        "geometry": {
            "train": [{"problem": "Area?", "level": "Level 3", "type": "Geometry",
                       "solution": r"$\boxed{\frac{1}{2}}$"},
                      {"problem": "test  of LEVEL 1", "level": "Level 1",
                       "solution": r"$\boxed{5}$"}],
            "test": []}},
    "openai/gsm8k": {"main": {
        "train": [{"question": "Apples?", "answer": "3+4=<<3+4=7>>7\n#### 1,007"}],
        "test": [{"question": "Pears?", "answer": "so\n#### 18"}]}},
    "HuggingFaceH4/MATH-500": {None: {
        "test": [{"problem": "p", "solution": r"\boxed{3}", "answer": "3"}]}},
    "math-ai/aime24": {None: {
        "test": [{"id": 60, "problem": "p", "solution": r"\boxed{033}", "url": ""}]}},
    "math-ai/aime25": {None: {"test": [{"problem": "p", "answer": r"336^\circ", "id": "0"}]}},
    "math-ai/amc23": {None: {"test": [{"id": 0, "question": "p", "answer": "27"}]}},
    "math-ai/minervamath": {None: {"test": [{"question": "p", "answer": r"1.6e-7"}]}},
    "Hothan/OlympiadBench": {"OE_TO_maths_en_COMP": {
        "train": [{"id": 1606, "question": "p", "final_answer": ["2"]}]}},
    "MiniMaxAI/SynLogic": {"easy": {split: [
        {"data_source": "synlogic/boolean_expressions",
         "prompt": [{"role": "user", "content": f"Which? {split}"}],
         "extra_info": {"game_data_str": json.dumps(GAME)}},
        {"data_source": "synlogic/game_of_24", "prompt": [{"role": "user", "content": "Make 24"}],
         "extra_info": {"game_data_str": json.dumps(
             {**GAME, "answer": "", "metadata": {"numbers": [1, 3, 7, 8]}})}},
        {"data_source": "synlogic/number_wall", "prompt": [{"role": "user", "content": "Walls"}],
         "extra_info": {"game_data_str": json.dumps({**GAME, "metadata": {"grid": [[1, "X"]]}})}},
    ] for split in ("train", "validation")}},
    "SaylorTwift/bbh": {"navigate": {"test": [{"input": "Back?", "target": "Yes"}]},
                        "snarks": {"test": [{"input": "Which?", "target": "(B)"}]}},
}
ANSWERS = {
    "math-train": ["2", r"\frac{1}{2}", "5"], "gsm8k-train": ["1,007"],
    "gsm8k-math1-train": ["1,007", "2"],
    "synlogic-train": ["A,C", "24 = 1 3 7 8", '[[1, "X"]]'], "math500": ["3"], "aime24": ["033"],
    "aime25": [r"336^\circ"], "amc23": ["27"], "minerva": ["1.6e-7"], "olympiad": ["2"],
    "gsm8k": ["18"],
    "synlogic": ["A,C", "24 = 1 3 7 8", '[[1, "X"]]'], "bbh": ["Yes", "(B)"]}


@pytest.fixture
def hub(monkeypatch):
    """Gives `datasets` a fake hub with one or two rows per set, and ignores the expected counts."""
    def load_dataset(hub, config=None, split=None, revision=None):
        if hub not in HUB:
            raise RuntimeError("no such set")
        assert revision == data.REVISIONS.get(hub) and (revision or "SynLogic" in hub)
        return HUB[hub][config][split]
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda hub, revision: list(HUB[hub]))
    uncounted = {name: spec._replace(count=None) for name, spec in DATASETS.items()}
    for module in (cli, data, data_program):
        monkeypatch.setattr(module, "DATASETS", uncounted)


@pytest.mark.parametrize("name", DATASETS)
def test_each_set_is_read_in_the_columns_of_the_hub(hub, name):
    problems = data.load_problems(name)
    assert [problem["answer"] for problem in problems] == ANSWERS[name]
    assert all(problem["problem"] for problem in problems)
    tasks = [problem.get("task", "math") for problem in problems]
    others = {"synlogic": ["synlogic", "game24", "number_wall"], "bbh": ["text", "choice"]}
    assert tasks == others.get(name.removesuffix("-train"), ["math"] * len(tasks))


def test_training_problems_that_are_test_problems_are_left_out(hub, capsys):
    problems = data.fetch("gsm8k-math1-train")
    assert [problem["problem"] for problem in problems] == ["Apples?", "One plus one?"]
    assert "left out 1 of 3 training problems, which are also test problems" in capsys.readouterr().err


def test_a_hub_that_changed_or_cannot_be_reached_is_an_error_of_one_line(hub, monkeypatch):
    monkeypatch.setattr(data, "DATASETS", DATASETS)
    with pytest.raises(SystemExit, match="math500 has 1 problems, not 500"):
        data.fetch("math500")
    for source, message in (("no/such", "no/such cannot be read"), ("a/b,split", "key=value"),
                            ("a/b,column=c", "key=value"),
                            ("openai/gsm8k,config=main,split=test,problem=quest",
                             "no column 'quest' among .'id', 'question', 'answer'.")):
        with pytest.raises(SystemExit, match=message) as stop:
            data.load_problems(source)
        assert "\n" not in str(stop.value)


def test_any_hub_set_with_its_columns_named(hub):
    assert data.load_problems("openai/gsm8k,config=main,split=test,problem=question") == [
        {"id": "0", "problem": "Pears?", "answer": "18"}]


def test_copies_become_a_folder_for_data_dir(tmp_path, monkeypatch):
    copies, folder = tmp_path / "copies", tmp_path / "data"
    copies.mkdir()
    math, gsm8k = HUB["EleutherAI/hendrycks_math"], HUB["openai/gsm8k"]["main"]
    sets = {
        "math-train": [row for subject in math.values() for row in subject["train"]],
        "gsm8k-train": gsm8k["train"],
        "gsm8k": gsm8k["test"],
        "math500": [{"id": "a", "problem": "Test of level 1", "answer": "5"}]}
    for name, rows in sets.items():
        write_rows(copies / f"{name}.jsonl", rows)
    words = [f"{name}={copies / name}.jsonl" for name in sets]
    command = workers.python("-m", "tools.data", folder, *words, "gsm8k-math1-train")
    printed = subprocess.check_output(command, cwd=workers.ROOT, text=True)
    assert "math-train.jsonl: 3 problems; the verifier accepts 3 of 3 gold answers in a box\n" in printed
    for name in ("math-train", "gsm8k-math1-train", "gsm8k"):
        problems = data.load_problems(name, str(folder))
        assert [problem["answer"] for problem in problems] == ANSWERS[name]
    (copies / "bad.jsonl").write_text('{"problem": "p", "answer": "1"}\n{"problem"')
    for word, message in ((f"aime24={copies}/none.jsonl", "none.jsonl cannot be read"),
                          ("aime23", "unknown data set aime23: choose from"),
                          (f"aime24={copies}/bad.jsonl", "bad.jsonl, line 2")):
        monkeypatch.setattr(sys, "argv", ["data.py", str(folder), word])
        with pytest.raises(SystemExit, match=message) as stop:
            data_program.main()
        assert "\n" not in stop.value.code


def test_training_problems_of_a_set_to_evaluate_on_are_left_out(tmp_path, capsys):
    texts = {"train": ["What is  1 + 1, then?", "Find $z^4 - 1.5$."],
             "test": ["what is $1+1$ then"],
             "other": ["Find $z^4 + 1.5$.", "Find $z^4 - 15$."]}
    problems = {name: [{"problem": text} for text in column] for name, column in texts.items()}
    cfg = SimpleNamespace(train_data="train", eval_data=["test", "other"])
    assert data.without_tests(cfg, problems) == problems["train"][1:]
    assert capsys.readouterr().out == "train: 1 problems are also in test; the run does not train on them\n"
    with pytest.raises(SystemExit, match="all problems of --train-data train"):
        data.without_tests(cfg, {**problems, "other": problems["train"]})


def test_gold_answers_in_a_box_are_right(hub):
    with Verifier(workers=1) as verifier:
        for name in DATASETS:
            problems = [problem for problem in data.load_problems(name)
                        if problem.get("task") not in ("game24", "number_wall")]
            golds = [problem["answer"] for problem in problems]
            tasks = [problem.get("task", "math") for problem in problems]
            responses = [f"So \\boxed{{{gold}}}." for gold in golds]
            assert verifier.score(responses, golds, tasks) == [1.0] * len(golds)


# ------------------------------------------------------------------------------------------ prompts
QWEN_SYSTEM = ("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
               "You are a helpful assistant.<|im_end|>\n")
QWEN = (f"{{%- if messages[0].role != 'system' %}}{QWEN_SYSTEM}{{% endif %}}"
        "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA = ("{{- bos_token }}{%- if not date_string is defined %}"
         "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
         "<|start_header_id|>system<|end_header_id|>\n\n"
         "Cutting Knowledge Date: December 2023\nToday Date: {{ date_string }}\n\n<|eot_id|>"
         "{%- for message in messages %}<|start_header_id|>{{ message.role }}"
         "<|end_header_id|>\n\n{{ message.content }}<|eot_id|>{% endfor %}"
         "{%- if add_generation_prompt %}"
         "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
PUBLISHED = {  # what the model makers' documentation shows for the question "1 + 1?"
    ("qwen-math", None): f"<|im_start|>system\n{BOXED}<|im_end|>\n"
                         "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n",
    ("chat", QWEN): f"{QWEN_SYSTEM}<|im_start|>user\n1 + 1?\n{BOXED}<|im_end|>\n"
                    "<|im_start|>assistant\n",
    ("chat", LLAMA): "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
                     "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
                     f"<|start_header_id|>user<|end_header_id|>\n\n1 + 1?\n{BOXED}<|eot_id|>"
                     "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ("plain", None): f"Problem: 1 + 1?\n{BOXED}\nSolution:",
    ("raw", None): "1 + 1?",
}


def make_tokenizer(chat_template):
    """Returns a tokenizer with a token for each byte and for each special token. It adds no
    special tokens by itself."""
    special = [f"<|{name}|>" for name in (
        "begin_of_text", "im_start", "im_end", "start_header_id", "end_header_id", "eot_id")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=special[0],
                                        additional_special_tokens=special[1:])
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.mark.parametrize(
    "template, chat", PUBLISHED, ids=["qwen-math", "qwen", "llama", "plain", "raw"])
def test_prompts_are_in_the_models_published_format(template, chat):
    tokenizer = make_tokenizer(chat)
    cfg = Config(prompt_template=template)
    rows = [{"id": "0", "problem": "1 + 1?", "answer": "2"}]
    (problem,), dropped = encode_prompts(rows, tokenizer, cfg)
    assert tokenizer.decode(problem["prompt_ids"]) == PUBLISHED[template, chat] and dropped == 0
    specials = sum(PUBLISHED[template, chat].count(token) for token in tokenizer.all_special_tokens)
    # They are single tokens, not spelt out.
    assert (problem["prompt_ids"] >= 256).sum() == specials


def test_puzzles_with_their_own_instructions_are_not_asked_for_a_box():
    cfg = Config()
    problems = [{"id": task, "problem": "Q", "answer": "1", "task": task}
                for task in ("synlogic", "text")]
    tokenizer = make_tokenizer(QWEN)
    texts = [tokenizer.decode(p["prompt_ids"]) for p in encode_prompts(problems, tokenizer, cfg)[0]]
    assert [BOXED in text for text in texts] == [False, True] and "user\nQ<|im_end|>" in texts[0]


# Mistral's tokenizers put a BOS before a text. Some fine-tuned ones put an EOS after it.
ADDED = {
    "nothing": ("$A", [], []),
    "BOS": ("{bos} $A", ["{bos}"], []),
    "EOS": ("$A {eos}", [], ["{eos}"]),
    "both": ("{bos} $A {eos}", ["{bos}"], ["{eos}"]),
}


@pytest.mark.parametrize("template", ["plain", "raw", "qwen-math"])
@pytest.mark.parametrize("problem", ["1 + 1?", "what does {eos} mean, and {bos}? {eos}"])
@pytest.mark.parametrize("case", ADDED)
def test_a_prompt_keeps_the_bos_and_has_no_eos_behind_it(case, problem, template):
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = "<|eot_id|>"
    names = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    single, front, behind = ADDED[case]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single.format(**names), pair=None,
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))
                        for token in names.values()])
    problem = problem.format(**names)
    whole = tokenizer.encode(problem)
    assert tokenizer.decode(whole[-1:]) == names["eos"] or not behind  # the tokenizer does add an EOS

    cfg = Config(prompt_template=template)
    rows = [{"id": "0", "problem": problem, "answer": "2"}]
    (made,), _ = encode_prompts(rows, tokenizer, cfg)
    text = TEMPLATES[template].replace("{ask}", BOXED).replace("{problem}", problem)
    text = "".join(front).format(**names) + text
    assert tokenizer.decode(made["prompt_ids"]) == text


CLOCKS = [
    "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}",
    "{% if not date_string is defined %}{% set date_string = strftime_now('%S.%f') %}{% endif %}"
    "{{ date_string }}",
]


@pytest.mark.parametrize("clock", CLOCKS, ids=["strftime_now", "date_string"])
def test_prompts_do_not_change_with_the_time_of_day(clock):
    cfg = Config()
    tokenizer = make_tokenizer(clock + "{{ messages[0]['content'] }}")
    rows = [{"id": "0", "problem": "1 + 1?", "answer": "2"}] * 3
    made, _ = encode_prompts(rows, tokenizer, cfg)
    texts = {tokenizer.decode(problem["prompt_ids"]) for problem in made}
    assert len(texts) == 1 and "2024" in texts.pop()


def test_a_chat_template_gets_its_arguments():
    template = ("{{ messages[0]['content'] }}{% if enable_thinking is not defined %} think"
                "{% elif not enable_thinking %} no{% endif %}, {{ date_string }}")
    tokenizer = make_tokenizer(template)
    rows = [{"id": "0", "problem": "Q", "answer": "1", "task": "synlogic"}]

    def prompt(**arguments):
        (made,), _ = encode_prompts(rows, tokenizer, Config(chat_template_kwargs=arguments))
        return tokenizer.decode(made["prompt_ids"])

    assert prompt() == "Q think, 26 Jul 2024"
    assert prompt(enable_thinking=True) == "Q, 26 Jul 2024"
    assert prompt(enable_thinking=False) == "Q no, 26 Jul 2024"
    assert prompt(date_string="today") == "Q think, today"


# --------------------------------------------------------------------------------------- evaluation
def plan(*flags, room=10**6):
    """Returns (label, n, temperature, top-p, tokens) of each benchmark that the flags select."""
    _, cfg = cli.parse_config(["eval", "--eval-data", *flags], Config)
    sets = {source: ([], 0) for source in cfg.eval_data}
    benchmarks = cli.plan_benchmarks("train", cfg, sets, room)
    return [(b.label, b.n, b.temperature, b.top_p, b.max_tokens) for b in benchmarks]


def test_each_benchmark_is_evaluated_as_in_the_paper_unless_a_flag_says_otherwise():
    assert plan("math") == [(name, 300 if name[:3] in ("aim", "amc") else 256, 0.6, 0.95, 4096)
                            for name in GROUPS["math"]]
    assert plan("logic", "mine.jsonl", room=5000) == [
        ("synlogic", 128, 0.7, 0.95, 5000), ("bbh", 128, 0.7, 0.95, 5000),
        ("mine", 256, 0.6, 0.95, 4096)]
    assert plan("aime24", "--eval-n", "8", "--eval-top-p", "1", "--eval-max-tokens", "99") == [
        ("aime24", 8, 0.6, 1, 99)]
    for flags in (("--eval-temperature", "0.2", "1.0"), ("--temperature", "0.2,1.0")):
        assert plan("amc23", *flags, "--eval-n", "4") == [
            ("amc23@T0.2", 4, 0.2, 0.95, 4096), ("amc23@T1.0", 4, 1.0, 0.95, 4096)]


@pytest.mark.parametrize("wordy", [False, True])
def test_the_laptops_demonstrations_are_what_its_verifier_reads(wordy):
    tokenizer, legal = laptop.make_tokenizer(wordy), {(4, 7, 20): sorted(laptop.chains((4, 7, 20)))}
    for *chain, target in legal[4, 7, 20]:
        text = laptop.response(chain, wordy)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert 0 not in ids and tokenizer.decode(ids) == text  # 0 means an unknown token
        assert is_correct(text, f"{target} = 4 7 20", "countdown")
        assert not is_correct(text, f"{target} = 4 7 7", "countdown")
    draws = (([4, 7, 20], 48, "7 * 4 = 28 28 + 20 = 48".split()),
             ([4, 7, 2], 30, "7 * 4 = 28 28 + 2 = 30".split()))
    with pytest.MonkeyPatch.context() as patch:  # so that prompts have unequal lengths
        patch.setattr(laptop, "draw", lambda rng, legal, held_out: draws[rng.random() < 0.5])
        patch.setitem(laptop.RECIPE, "solving", 1.0)
        ids, labels, shortest = laptop.demonstrations(random.Random(0), legal, (), tokenizer, wordy)
    assert ids.shape == labels.shape == (128, ids.shape[1])
    for row, learnt in zip(ids, labels):
        start = int((learnt != -100).nonzero()[0])
        assert tokenizer.decode(row[:start]) in ("<bos> 4 7 20 > 48 :", "<bos> 4 7 2 > 30 :")
        assert start >= shortest
        kept = learnt[learnt != -100]
        assert tokenizer.decode(kept).endswith("<eos>")
        assert (row[start:start + len(kept)] == kept).all()
        assert not row[start + len(kept):].any()  # padding, and no label on it
    assert (labels[:, shortest] != -100).any()
