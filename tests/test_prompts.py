"""Tests of runtime/prompts.py: prompts are in the format that each model was trained with."""
import base64
import json
import logging

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2Tokenizer)

from runtime.prompts import (
    BOXED, SPACING_TEXT, TEMPLATES, check_prompts, encode_prompts, read_tokenizer, turn_end)
from simko import Config
from tests.conftest import edit_json

QWEN_SYSTEM = (
    "<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n")
QWEN = (
    f"{{%- if messages[0].role != 'system' %}}{QWEN_SYSTEM}{{% endif %}}"
    "{%- for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\n"
    "Today Date: {{ date_string }}\n\n<|eot_id|>"
    "{%- for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>"
    "{% endfor %}"
    "{%- if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}")
PUBLISHED = {  # what the model makers' documentation shows for the question "1 + 1?"
    ("qwen-math", None): (
        f"<|im_start|>system\n{BOXED}<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n"),
    ("chat", QWEN): (
        f"{QWEN_SYSTEM}"
        f"<|im_start|>user\n1 + 1?\n{BOXED}<|im_end|>\n"
        "<|im_start|>assistant\n"),
    ("chat", LLAMA): (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n1 + 1?\n{BOXED}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("plain", None): f"Problem: 1 + 1?\n{BOXED}\nSolution:",
    ("raw", None): "1 + 1?",
}


TEKKEN = {  # a tokenizer of 256 bytes and 20 special tokens, as Mistral writes it
    "config": {
        "pattern": ".+", "num_vocab_tokens": 256, "default_vocab_size": 276,
        "default_num_special_tokens": 20, "version": "v7"},
    "vocab": [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None}
        for i in range(256)],
    "special_tokens": [
        {"rank": i, "token_str": token, "is_control": True}
        for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<{i}>" for i in range(17))])],
}


def make_tokenizer(chat_template):
    """Returns a tokenizer with a token for each byte and for each special token. It adds no
    special tokens by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<|begin_of_text|>",
        additional_special_tokens=[
            "<|im_start|>",
            "<|im_end|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def a_row(problem="1 + 1?", **more):
    return {"id": "0", "problem": problem, "answer": "2"} | more


@pytest.mark.parametrize(
    "template, chat", PUBLISHED, ids=["qwen-math", "qwen", "llama", "plain", "raw"])
def test_prompts_are_in_the_models_published_format(template, chat):
    expected = PUBLISHED[template, chat]
    tokenizer = make_tokenizer(chat)
    if chat:  # whose BOS is in the template, if there is one
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.bos_token_id)])
    (problem,) = encode_prompts([a_row()], tokenizer, Config(prompt_template=template))
    assert tokenizer.decode(problem["prompt_ids"]) == expected
    cfg = Config(prompt_template=template, max_prompt_length=len(problem["prompt_ids"]))
    assert len(encode_prompts([a_row(), a_row("1 + 10?")], tokenizer, cfg)) == 1
    specials = sum(map(expected.count, tokenizer.all_special_tokens))
    # They are single tokens, not spelt out.
    assert (problem["prompt_ids"] >= 256).sum() == specials


def prompts(rows, tokenizer, cfg):
    """Returns the texts of the prompts that the rows get."""
    made = encode_prompts(rows, tokenizer, cfg)
    return [tokenizer.decode(problem["prompt_ids"]) for problem in made]


@pytest.mark.parametrize("template", ["chat", *TEMPLATES])
def test_a_problem_may_contain_the_words_of_a_template(template):
    cfg = Config(prompt_template=template)
    (prompt,) = prompts([a_row("{ask} {problem}")], make_tokenizer(QWEN), cfg)
    assert "{ask} {problem}" in prompt


def test_an_empty_prompt_is_refused_and_two_equal_ones_are_not():
    """Problems may differ in what a template leaves out, but not all of them."""
    def problem(name, *ids):
        return {"id": name, "problem": name, "prompt_ids": np.array(ids, np.int64)}

    pair = [problem("a", 1), problem("b", 1)]
    check_prompts("file", [*pair, problem("c", 2)], 3, Config())
    with pytest.raises(SystemExit, match="file: all prompts are the same"):
        check_prompts("file", pair, 3, Config())
    with pytest.raises(SystemExit, match="the prompt of 'c' has no tokens"):
        check_prompts("file", [*pair, problem("c")], 3, Config())


def test_puzzles_with_their_own_instructions_are_not_asked_for_a_box():
    rows = [a_row("Q", task=task) for task in ("synlogic", "math", "choice", "text")]
    puzzle, *questions = prompts(rows, make_tokenizer(QWEN), Config())
    assert BOXED not in puzzle
    assert all(BOXED in question for question in questions)
    assert "user\nQ<|im_end|>" in puzzle


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_problem_beyond_the_tokenizers_limit_is_dropped_without_a_warning(
        template, monkeypatch, caplog):
    """transformers would warn of errors when the model reads the problem, which it never does."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = make_tokenizer(QWEN)
    tokenizer.model_max_length = 300
    cfg = Config(prompt_template=template, max_prompt_length=300)
    (kept,) = encode_prompts([a_row("1" * 999), a_row("2")], tokenizer, cfg)
    assert kept["problem"] == "2"
    assert not caplog.records
    tokenizer.encode("1" * 999)  # as it would have said
    assert "longer than the specified maximum" in caplog.text


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
def test_a_prompt_keeps_the_bos_and_has_no_eos_after_it(case, problem, template):
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = "<|eot_id|>"
    names = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    single, front, back = ADDED[case]
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in names.values()]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single.format(**names), pair=None, special_tokens=ids)
    problem = problem.format(**names)
    if back:  # the tokenizer does add an EOS
        assert tokenizer.decode(tokenizer.encode(problem)[-1:]) == names["eos"]

    text = TEMPLATES[template].replace("{ask}", BOXED).replace("{problem}", problem)
    text = "".join(front).format(**names) + text
    assert prompts([a_row(problem)], tokenizer, Config(prompt_template=template)) == [text]


CLOCKS = [
    "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}",
    "{% if not date_string is defined %}"
    "{% set date_string = strftime_now('%S.%f') %}"
    "{% endif %}"
    "{{ date_string }}",
]


@pytest.mark.parametrize("clock", CLOCKS, ids=["strftime_now", "date_string"])
def test_prompts_do_not_change_with_the_time_of_day(clock):
    tokenizer = make_tokenizer(clock + "{{ messages[0]['content'] }}")
    texts = set(prompts([a_row()] * 3, tokenizer, Config()))
    assert len(texts) == 1
    assert "2024" in texts.pop()


def test_a_chat_template_gets_its_arguments():
    tokenizer = make_tokenizer(
        "{{ messages[0]['content'] }}"
        "{% if enable_thinking is not defined %} think"
        "{% elif not enable_thinking %} no"
        "{% endif %}, {{ date_string }}")
    rows = [a_row("Q", task="synlogic")]

    def prompt(**arguments):
        (text,) = prompts(rows, tokenizer, Config(chat_template_kwargs=arguments))
        return text

    assert prompt() == "Q think, 26 Jul 2024"
    assert prompt(enable_thinking=True) == "Q, 26 Jul 2024"
    assert prompt(enable_thinking=False) == "Q no, 26 Jul 2024"
    assert prompt(date_string="today") == "Q think, today"


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_text_is_split_as_tokenizer_json_describes(named, tmp_path):
    """DeepSeek-R1-Distill-Llama names LlamaTokenizerFast beside a byte-level tokenizer.json, and
    AutoTokenizer drops the spaces of its text."""
    make_tokenizer(LLAMA).save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=named)
    text = "Find 12 + 3 .\n\nIt's \\boxed{15}"
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.chat_template == LLAMA
    assert tokenizer.bos_token == "<|begin_of_text|>"


def test_a_tokenizer_without_tokenizer_json_is_read_from_the_files_of_its_class(tmp_path):
    make_tokenizer(QWEN).save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("Find  12 + 3.")) == "Find  12 + 3."


def test_a_class_that_splits_text_as_tokenizer_json_does_is_kept(tmp_path):
    """It may know more than that file, such as its own special tokens."""
    make_tokenizer(QWEN).save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    assert isinstance(read_tokenizer(tmp_path), Qwen2Tokenizer)
    edit_json(tmp_path / "tokenizer.json", decoder={"type": "Fuse"})  # the ids stay the same
    assert not isinstance(read_tokenizer(tmp_path), Qwen2Tokenizer)


@pytest.mark.parametrize("legacy", [True, False])
def test_text_after_a_special_token_is_split_as_tokenizer_json_describes(legacy, tmp_path):
    """Llama 2's tokenizer.json puts a space before each text between special tokens. Its class in
    transformers 5 does so before the first alone, or leaves it out before a space."""
    letters = ["▁", *"abc", *sorted({*SPACING_TEXT} - {*" abc"})]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    fast = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast.add_special_tokens(["<unk>", "<s>", "</s>"])
    PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    ).save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=legacy)
    text = "<s>ab</s> c</s>"
    ids = read_tokenizer(tmp_path).encode(text, add_special_tokens=False)
    assert ids == [1, 3, 4, 5, 2, 3, 3, 6, 2]


def test_a_tekken_json_beside_tokenizer_json_is_left_alone(tmp_path):
    """Mistral Small 3 has both files. With mistral_common, which vLLM needs, AutoTokenizer would
    take the first."""
    pytest.importorskip("mistral_common")
    make_tokenizer(LLAMA).save_pretrained(tmp_path)
    MistralConfig().save_pretrained(tmp_path)
    (tmp_path / "tekken.json").write_text(json.dumps(TEKKEN))
    tokenizer = read_tokenizer(tmp_path)
    (prompt,) = prompts([a_row()], tokenizer, Config())
    assert prompt == PUBLISHED["chat", LLAMA]


# Gemma, Phi-3 and Llama 3 end a turn with a token of their own.
TURNS = {
    "after the answer": ("{{ message.content }}<|eot_id|>\n", "<|eot_id|>"),
    "after a line break": ("{{ message.content }}\n<|eot_id|>", "<|eot_id|>"),
    "none": ("{{ message.content }}\n", None),
    "no special one": ("{{ message.content }} end<|eot_id|>", None),
    "a token for a word": ("{{ message.content }}<end><|eot_id|>", None),
    "where an argument asks for it": (
        "{{ message.content }}{% if brief %}<|eot_id|>{% endif %}", "<|eot_id|>"),
    "of the question alone": (
        "{% if message.role == 'user' %}{{ message.content }}<|eot_id|>{% endif %}", None),
    "no answers": (
        "{% if message.role != 'user' %}{{ raise_exception('no') }}{% endif %}", None),
}


@pytest.mark.parametrize("case", TURNS)
def test_a_turn_ends_with_the_token_that_the_template_puts_after_an_answer(case):
    turn, end = TURNS[case]
    tokenizer = make_tokenizer(
        "<|begin_of_text|>{% for message in messages %}" + turn + "{% endfor %}")
    tokenizer.add_tokens(["<end>"])
    cfg = Config(chat_template_kwargs={"brief": True})
    assert turn_end(cfg, tokenizer) == tokenizer.get_vocab().get(end)
