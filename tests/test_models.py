"""Tests of the folder that --model names. If it is incomplete, damaged or not supported, one line
says so before a process starts. No code in it ever runs.

    python -m pytest tests/test_models.py
"""
import json
import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoTokenizer, FalconConfig, FalconForCausalLM, FalconH1Config, Gemma3Config,
    Gemma3TextConfig, Gemma4TextConfig, GenerationConfig, GPTNeoXConfig, LlamaConfig,
    LlamaForCausalLM, Phi3Config, PhiConfig, PreTrainedTokenizerBase, Qwen2_5_VLConfig,
    Qwen2Config)

from runtime import checkpoints, cli, models, prompts
from runtime.checkpoints import add_older_names
from runtime.hf_engine import HFEngine
from runtime.models import check_parallel, context_left, load_model
from simko import Config
from tests.conftest import ESCAPE, edit_json, main, recipe, refused, write_rows
from tests.conftest import TINY_VOCABULARY as VOCABULARY
from tools import laptop, tables, zoo

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48,
    "long_factor": [4.0] * 48}
SCALING = {name: value for name, value in LONG.items() if name != "rope_theta"}
REACH = {"original_max_position_embeddings": 48}
PART = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}


@pytest.fixture
def base(tiny, tmp_path):
    """Returns a copy of the model of `tiny`, for a test to change."""
    return shutil.copytree(tiny / "base", tmp_path / "base")


# -------------------------------------------------------------------------- models that are refused
def edit(name, **changes):
    """Returns a function of a folder that changes these fields of a JSON file in it."""
    return lambda folder: edit_json(folder / name, **changes)


def cut(name, size, text=None):
    """Returns a function of a folder that truncates a file in it, or replaces its content."""
    def change(folder):
        (folder / name).write_bytes(text or (folder / name).read_bytes()[:size])
    return change


def several(*changes):
    return lambda folder: [change(folder) for change in changes]


def remove(*names):
    return several(*(lambda folder, name=name: (folder / name).unlink() for name in names))


def store_as(dtype, name, size=1):
    """Returns a function of a folder that stores one of its weights in another dtype, or adds it
    with this size."""
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        weights[name] = weights.get(name, torch.ones(size)).to(dtype)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return change


def gpt2(folder):
    change = edit("config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"],
                  n_embd=4, n_head=2, n_layer=1)
    change(folder)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def add_code(folder):
    """Adds a module to the folder that creates a file next to the folder when it is imported."""
    trap = f"open({str(folder.parent / 'trap')!r}, 'w')\nclass C: pass\nT = M = C\n"
    (folder / "trap.py").write_text(trap)


def larger_tokenizer(folder):
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"] |= {"48": VOCABULARY}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))


def nested(folder):
    """Gives the folder the config of a model for text and images, whose text part names the
    end-of-text tokens."""
    text = {"vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "eos_token_id": [6, 8]}
    Gemma3Config(text_config=text).save_pretrained(folder)


CODE = {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.M"}
chat = partial(edit, "tokenizer_config.json")
def turns(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)


UNFIT = {  # case: (change to the model's folder, --prompt-template, what the message says)
    "no weights": (remove("model.safetensors"), "raw", "no weights in model.safetensors"),
    "pickled weights": (
        pickled,
        "raw",
        "no weights in model.safetensors.*Other formats are not read, since some can hold code",
    ),
    "weights of another format": (
        lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"),
        "raw",
        "no weights in model.safetensors",
    ),
    "shards without an index": (
        lambda folder: (folder / "model.safetensors").rename(
            folder / "model-00001-of-00001.safetensors"),
        "raw",
        "or in files that model.safetensors.index.json names",
    ),
    "cut weights": (
        cut("model.safetensors", 5000),
        "raw",
        "model.safetensors is damaged",
    ),
    "a shard missing": (
        several(
            remove("model.safetensors"),
            cut("model.safetensors.index.json", 0, b'{"weight_map": {"a": "1.safetensors"}}')),
        "raw",
        "1.safetensors is damaged or missing",
    ),
    "bad index": (
        several(remove("model.safetensors"), cut("model.safetensors.index.json", 0, b"{")),
        "raw",
        "model.safetensors.index.json",
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        "raw",
        "tokenizer is missing",
    ),
    "cut tokenizer": (
        cut("tokenizer.json", 99),
        "raw",
        "tokenizer is missing, damaged",
    ),
    "odd tokenizer": (
        cut("tokenizer.json", 0, b"[]"),
        "raw",
        "tokenizer is missing, damaged",
    ),
    "another's tokenizer": (
        larger_tokenizer,
        "raw",
        "has a token of id 128, beyond the model's 128",
    ),
    "no config": (
        remove("config.json"),
        "raw",
        "has no config.json: name the folder of a model",
    ),
    "cut config": (cut("config.json", 99), "raw", "config.json cannot be read"),
    "config of bytes": (
        cut("config.json", 0, b"\xff\xfe"),
        "raw",
        "config.json cannot be read",
    ),
    "config of a list": (
        cut("config.json", 0, b"[]"),
        "raw",
        "config.json cannot be read",
    ),
    "quantised": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "raw",
        "is quantised .gptq., as the quantization_config of its config.json says",
    ),
    "text part quantised": (
        edit("config.json", text_config={"quantization_config": {"load_in_4bit": True}}),
        "raw",
        "is quantised .its method is not named., as the quantization_config",
    ),
    "images": (
        lambda folder: Qwen2_5_VLConfig().save_pretrained(folder),
        "raw",
        "is a model of images and text",
    ),
    "images in layers of its own": (
        nested,
        "raw",
        "is a model of images and text",
    ),
    "quantised without a word": (
        store_as(torch.float8_e4m3fn, "model.layers.0.mlp.up_proj.weight"),
        "raw",
        "model.layers.0.mlp.up_proj.weight is stored as F8_E4M3, and only",
    ),
    "quantised to integers": (
        store_as(torch.int8, "model.layers.0.mlp.up_proj.weight"),
        "raw",
        "model.layers.0.mlp.up_proj.weight is stored as I8, and only",
    ),
    "in float64": (
        store_as(torch.float64, "model.norm.weight"),
        "raw",
        "model.norm.weight is stored as F64, and only",
    ),
    "adapter": (
        several(cut("adapter_config.json", 0, b"{}"), remove("config.json", "model.safetensors")),
        "raw",
        "has an adapter_config.json.* merge the adapter into its base model",
    ),
    "adapter beside a model": (
        cut("adapter_config.json", 0, b'{"peft_type": "LORA"}'),
        "raw",
        "has an adapter_config.json.* merge the adapter into its base model",
    ),
    "wrong type": (edit("config.json", hidden_size="x"), "raw", "hidden_size"),
    "unknown kind": (
        edit("config.json", model_type=f"kind{ESCAPE}"),
        "raw",
        r"model type `kind\\x1b\]0",
    ),
    "not built": (gpt2, "raw", "a GPT2Model cannot be trained here"),
    "code": (
        edit("config.json", model_type="kind", auto_map=CODE),
        "raw",
        "code of its own .auto_map., and such code is never run",
    ),
    "tokenizer's code": (
        chat(auto_map={"AutoTokenizer": ["trap.T", None]}, tokenizer_class="T"),
        "raw",
        "code of its own .auto_map., which is never run",
    ),
    "no end": (
        several(chat(eos_token=None), edit("generation_config.json", eos_token_id=None),
                edit("config.json", eos_token_id=None)),
        "raw",
        "names no end-of-text token",
    ),
    "end beyond": (
        edit("generation_config.json", eos_token_id=[2, 10**9]),
        "raw",
        "end-of-text token 1000000000 is",
    ),
    "end of text": (
        edit("generation_config.json", eos_token_id="x"),
        "raw",
        "end-of-text token 'x' is not one",
    ),
    "cut generation": (
        cut("generation_config.json", 9),
        "raw",
        "generation_config.json",
    ),
    "no template": (
        lambda folder: None,
        "chat",
        "has no chat template: choose --prompt-template plain, raw$",
    ),
    "turns without a template": (
        turns,
        "chat",
        "has no chat template: choose --prompt-template qwen-math, plain, raw$",
    ),
    "bad template": (
        chat(chat_template="{% if %}"),
        "chat",
        "chat template or tokenizer cannot make a prompt",
    ),
    "refusing template": (
        chat(chat_template=f"{{{{ raise_exception('no{ESCAPE}') }}}}"),
        "chat",
        r"no\\x1b",
    ),
    "prying template": (
        chat(chat_template="{{ ''.__class__.__mro__ }}"),
        "chat",
        "unsafe",
    ),
    "empty template": (
        chat(chat_template="{{ '' }}"),
        "chat",
        "leaves the problem out",
    ),
    "template of parts": (
        chat(chat_template=(
            "> {% for part in messages[0].content if part.text %}"
            "{{ part.text }}"
            "{% endfor %}")),
        "chat",
        "leaves the problem out",
    ),
    "no turns": (
        lambda folder: None,
        "qwen-math",
        "needs the token <.im_end.>, .*: choose chat, plain or raw$",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_cannot_be_used_is_refused_and_its_code_not_run(tiny, tmp_path, case, base):
    change, template, message = UNFIT[case]
    add_code(base)
    change(base)
    flags = "--model", base, "--prompt-template", template
    with (mock.patch("builtins.input", lambda *_: "y"),
          pytest.raises(SystemExit, match=message) as stop):
        cli.prepare(recipe(tiny, "train", tmp_path / "run", *flags), Config)
    assert str(base) in refused(stop.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_family_that_cannot_be_trained_can_be_evaluated(base):
    gpt2(base)
    assert models.load_config("eval", Config(model=str(base))).model_type == "gpt2"


def test_code_is_blamed_only_where_a_config_asks_for_it(tiny, tmp_path, base):
    edit("config.json", hidden_size="x")(base)
    with pytest.raises(SystemExit) as stop:
        cli.prepare(recipe(tiny, "train", tmp_path / "run", "--model", base), Config)
    assert "auto_map" not in refused(stop.value)


def test_code_beside_a_model_that_transformers_knows_is_not_run(tiny, tmp_path, base):
    add_code(base)
    edit("config.json", auto_map=CODE)(base)
    with mock.patch("builtins.input", lambda *_: "y"):
        cli.prepare(recipe(tiny, "train", tmp_path / "run", "--model", base), Config)
        assert type(load_model(base, torch.float32)) is LlamaForCausalLM
    assert not (tmp_path / "trap").exists()


def test_a_family_with_attentions_of_its_own_is_refused(tmp_path):
    model = FalconForCausalLM(FalconConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    model.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="its attention cannot be replaced by 'packed'"):
        load_model(tmp_path, torch.float32)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_model_without_padding_or_start_token_can_be_exported(tiny, tmp_path, name, base):
    """Older Llamas have -1 in place of no token, which transformers does not save."""
    (base / "generation_config.json").unlink(missing_ok=True)
    fields = {"pad_token_id": -1, "bos_token_id": VOCABULARY}
    if name == "config.json":
        edit(name, **fields)(base)
    else:
        (base / name).write_text(json.dumps(fields))
    flags = "--model", base, "--steps", 1, "--rollout", "hf"
    main(recipe(tiny, "train", tmp_path / "run", *flags))
    exported = GenerationConfig.from_pretrained(tmp_path / "run/hf")
    assert (exported.pad_token_id, exported.bos_token_id) == (None, None)


@pytest.mark.parametrize("config, old", [
    (Qwen2Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), {"rope_theta": 1e6}),
    (LlamaConfig(rope_parameters=LLAMA3 | {"rope_theta": 5e5}),
     {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    (PhiConfig(rope_parameters=PART), {"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    (Gemma3TextConfig(rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 3e5, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4}}),
     {"rope_theta": 3e5, "rope_local_base_freq": 3e4,
      "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    (GPTNeoXConfig(rope_parameters=PART | {"rope_theta": 5e5, "partial_rotary_factor": 0.5}),
     {"rotary_emb_base": 5e5, "rotary_pct": 0.5}),
    (Phi3Config(rope_parameters=LONG, **REACH), {"rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}}),
    (Phi3Config(rope_parameters=LONG | REACH | {"factor": 4.0}, **REACH),
     {"rope_theta": 1e4, "rope_scaling": SCALING | REACH | {"factor": 4.0}}),
    (LlamaConfig(rope_parameters=LONG | REACH, hidden_size=96, num_attention_heads=1),
     {"rope_theta": 1e4, "rope_scaling": SCALING | REACH}),
    (FalconH1Config(rope_parameters={"rope_type": "default", "rope_theta": 2e4}),
     {"rope_theta": 2e4}),
], ids=["theta", "llama3", "part", "gemma3", "gpt-neox", "phi3", "phi3-factor", "longrope",
        "falcon-h1"])
def test_an_export_also_has_the_names_of_transformers_4(tmp_path, config, old):
    """It reads these fields, and takes its own theta where they are missing. With transformers
    4.57.6 the log-probs of 40 tiny exports were those of version 5."""
    config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    add_older_names(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert {name: fields.get(name) for name in old} == old
    assert ("rope_scaling" in fields) == ("rope_scaling" in old)
    again = AutoConfig.from_pretrained(tmp_path).rope_parameters
    again.pop("type", None)  # as transformers 4 calls the rope_type
    assert again == config.rope_parameters


def test_older_names_that_transformers_5_would_misread_are_left_out(tmp_path):
    """It cannot load Gemma 4 with them."""
    Gemma4TextConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    before = (tmp_path / "config.json").read_text()
    add_older_names(tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_an_export_has_a_tied_head_once_and_both_names_of_its_dtype(tmp_path):
    """transformers below 4.56, and programs built on it, know only torch_dtype."""
    zoo.save("llama-tied", tmp_path / "base")
    rows = [{"problem": f"{i} {i}", "answer": "right"} for i in range(2, 6)]
    write_rows(tmp_path / "train.jsonl", rows)
    main(f"""
        train --model {tmp_path}/base --train-data {tmp_path}/train.jsonl --steps 1
        --output-dir {tmp_path}/run --prompt-template raw --rollout hf --dtype bfloat16
        --batch-size 2 --mini-batch-size 2 --num-generations 2 --max-prompt-length 8
        --max-completion-length 8""".split())
    fields = json.loads((tmp_path / "run/hf/config.json").read_text())
    assert fields["torch_dtype"] == fields["dtype"] == "bfloat16"
    weights = load_file(tmp_path / "run/hf/model.safetensors")
    assert "model.embed_tokens.weight" in weights
    assert "lm_head.weight" not in weights
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    model = load_model(str(tmp_path / "run/hf"), "auto")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_exported_tokenizer_has_the_names_of_transformers_4(tmp_path):
    """It knows no TokenizersBackend, and stops at a list of extra_special_tokens."""
    zoo.save("llama", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, extra_special_tokens=["<box>"])
    tokenizer.save_pretrained(tmp_path)
    add_older_names(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<box>"]
    assert "extra_special_tokens" not in settings
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_model_that_could_not_be_exported_is_refused_before_it_trains(tiny, tmp_path, base):
    edit("config.json", output_attentions=True)(base)
    with pytest.raises(SystemExit, match="the trained model could not be saved.*attentions"):
        cli.prepare(recipe(tiny, "train", tmp_path / "run", "--model", base), Config)


@pytest.mark.parametrize("owner, name", [
    (GenerationConfig, "save_pretrained"),
    (PreTrainedTokenizerBase, "save_pretrained"),
    (checkpoints, "add_older_names"),
])
def test_each_part_of_the_export_is_tried_before_a_run(tiny, tmp_path, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, mock.Mock(side_effect=ValueError("cannot be written")))
    with pytest.raises(SystemExit, match="trained model could not be saved: cannot be written"):
        cli.prepare(recipe(tiny, "train", tmp_path / "run"), Config)


def test_a_model_whose_config_asks_for_tuples_is_read(base):
    edit("config.json", return_dict=False)(base)
    model = load_model(base, torch.float32)
    assert model(torch.tensor([[1, 2]]), cu_seq_lens_q=torch.tensor([0, 2], dtype=torch.int32),
                 max_length_q=2, use_cache=False).logits.shape == (1, 2, VOCABULARY)


def test_the_weights_that_are_checked_are_those_that_are_read(tmp_path):
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shard = tmp_path / "model-00001-of-00001.safetensors"
    assert models.weight_files(tmp_path) == [shard]
    whole = tmp_path / "model.safetensors"  # transformers takes it first
    whole.touch()
    assert models.weight_files(tmp_path) == [whole]


def test_pickled_weights_are_not_loaded(base):
    """The files of a model on the hub are not looked at before."""
    weights = load_file(base / "model.safetensors")
    remove("model.safetensors")(base)
    torch.save(weights, base / "pytorch_model.bin")
    with pytest.raises(SystemExit, match="model.safetensors") as stop:
        load_model(base, torch.float32)
    refused(stop.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_copies_of_a_model_that_differ_in_a_file_are_told_apart(tiny, tmp_path, name):
    copy = shutil.copytree(tiny / "base", tmp_path / "copy")
    backwards = sorted(copy.iterdir(), reverse=True)  # as another file system may list them
    with mock.patch.object(Path, "iterdir", lambda folder: iter(backwards)):
        same = models.fingerprint(copy)
    assert same == models.fingerprint(tiny / "base")
    (copy / name).write_bytes((copy / name).read_bytes()[:-1] + b" ")
    assert models.fingerprint(copy) != models.fingerprint(tiny / "base")


@pytest.mark.parametrize("name", ["./model", "/model", "~/model", "some/other/model"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(monkeypatch, name):
    monkeypatch.setattr(models, "get_session", mock.Mock(side_effect=AssertionError))
    with pytest.raises(SystemExit, match="there is no such folder"):
        models.find_model(name)


def test_a_hub_that_cannot_be_reached_is_asked_once(tiny, tmp_path, monkeypatch):
    asked = []

    def head(url, timeout):
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(models, "get_session", lambda: mock.Mock(head=head))
    monkeypatch.setattr(models, "is_offline_mode", lambda: False)
    message = "some/model is not a folder here.*HF_HUB_OFFLINE=1"
    with pytest.raises(SystemExit, match=message) as stop:
        cli.prepare(recipe(tiny, "train", tmp_path / "run", "--model", "some/model"), Config)
    assert "no network" in refused(stop.value) and len(asked) == 1
    monkeypatch.setattr(models, "is_offline_mode", lambda: True)
    models.find_model("some/model")  # which may lie in the cache
    assert len(asked) == 1


def test_prompt_and_response_fit_into_the_models_context():
    cfg = Config(max_prompt_length=16, max_completion_length=20)
    for context, left in ((36, 20), (50, 34), (None, math.inf)):
        model = SimpleNamespace(max_position_embeddings=context)
        assert context_left("train", cfg, model) == context_left("eval", cfg, model) == left
    assert context_left("eval", cfg, SimpleNamespace(max_position_embeddings=17)) == 1
    assert context_left("train", cfg, SimpleNamespace()) == math.inf
    lengths = "--max-prompt-length 16"
    for command, context, flags in (
            ("train", 35, f"{lengths} and --max-completion-length 20"), ("eval", 16, lengths)):
        message = f"context of {context} tokens is too short for {flags}: choose smaller numbers$"
        with pytest.raises(SystemExit, match=message):
            context_left(command, cfg, SimpleNamespace(max_position_embeddings=context))


@pytest.mark.parametrize("heads, keys, inner, odd", [
    (8, 4, 12, None),
    (8, 2, 12, None),  # each key head is copied to two GPUs
    (8, None, None, None),
    (6, 4, 12, "num_attention_heads, 6"),
    (8, 3, 12, "num_key_value_heads, 3"),
    (8, 6, 12, "num_key_value_heads, 6"),
    (8, 4, 2, "intermediate_size, 2"),
])
def test_four_gpus_share_a_model_whose_sizes_they_divide(heads, keys, inner, odd):
    model = SimpleNamespace(
        num_attention_heads=heads, num_key_value_heads=keys, intermediate_size=inner)
    if not odd:
        check_parallel(4, model)
        return
    with pytest.raises(SystemExit, match=f"parallel-size 4 does not divide the model's {odd}: "):
        check_parallel(4, model)


# ----------------------------------------------------- the ends of responses, and the chat template
ENDS = {  # case: (change to the model's folder, whose tokenizer ends at 2, resulting ids)
    "generation_config.json": (edit("generation_config.json", eos_token_id=[2, 7]), [2, 7]),
    "config.json": (edit("config.json", eos_token_id=5), [2, 5]),
    "a list": (edit("config.json", eos_token_id=[5, 9]), [2, 5, 9]),
    "the text part": (several(nested, remove("generation_config.json")), [2, 6, 8]),
    "the text part too": (nested, [2, 6, 8]),
    "beyond the vocabulary": (edit("config.json", eos_token_id=[5, 10**6]), [2, 5]),
    "config.json alone": (
        several(edit("config.json", eos_token_id=[5, 9]), remove("generation_config.json"),
                chat(eos_token=None)),
        [5, 9]),
    "each file another": (
        several(edit("config.json", eos_token_id=5), chat(eos_token=":"),
                edit("generation_config.json", eos_token_id=7)),
        [5, 7, ":"]),
}


@pytest.mark.parametrize("case", ENDS)
def test_responses_end_at_the_ids_of_each_file_that_names_some(tiny, tmp_path, case, base):
    change, ends = ENDS[case]
    change(base)
    job = cli.prepare(recipe(tiny, "eval", tmp_path / "run", "--model", base), Config)
    known = job.tokenizer.get_vocab()
    assert job.stop_ids == sorted(known.get(end, end) for end in ends)


def test_a_response_ends_with_its_turn_where_the_template_has_turns(tiny):
    tokenizer = laptop.make_tokenizer()
    tokenizer.add_tokens(["<|im_end|>", "<turn|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<turn|>{% endfor %}"
    qwens, own = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<turn|>"])
    for template, ends in (
            ("raw", [2]), ("plain", [2]), ("chat", [2, qwens, own]), ("qwen-math", [2, qwens])):
        cfg = Config(model=str(tiny / "base"), prompt_template=template)
        assert prompts.end_tokens(cfg, tokenizer, VOCABULARY) == ends


def test_the_first_and_the_last_token_of_a_vocabulary_may_end_a_response(base):
    cfg, tokenizer = Config(model=str(base)), laptop.make_tokenizer()
    edit("generation_config.json", eos_token_id=[0, VOCABULARY - 1])(base)
    assert prompts.end_tokens(cfg, tokenizer, VOCABULARY) == [0, 2, VOCABULARY - 1]
    edit("generation_config.json", eos_token_id=VOCABULARY)(base)
    with pytest.raises(SystemExit, match=f"end-of-text token {VOCABULARY} is not one of"):
        prompts.end_tokens(cfg, tokenizer, VOCABULARY)


def test_a_run_ends_at_the_ids_of_config_json_and_its_export_keeps_them(tiny, tmp_path, base):
    ends = [*range(2, VOCABULARY, 8)]
    edit("config.json", eos_token_id=ends)(base)
    edit("generation_config.json", eos_token_id=2)(base)
    arguments = recipe(tiny, "train", tmp_path / "run", "--model", base,
                       "--rollout", "hf", "--steps", 1)
    samples, generate = [], HFEngine.generate

    def keep(*arguments, **options):
        found = generate(*arguments, **options)
        samples.extend(found)
        return found

    with mock.patch.object(HFEngine, "generate", keep):
        main(arguments)
    for sample in samples:
        places = [i for i, token in enumerate(sample.response_ids) if token in ends]
        assert places == ([] if sample.truncated else [len(sample.response_ids) - 1])
    # Token 2 alone would also end some responses, but not with so many different ids.
    assert len({int(s.response_ids[-1]) for s in samples if not s.truncated}) > 8
    exported = GenerationConfig.from_pretrained(tmp_path / "run" / "hf")
    assert exported.eos_token_id == ends
    assert (exported.bos_token_id, exported.pad_token_id) == (1, 0)


def test_arguments_of_the_chat_template_are_kept_with_the_run_and_what_it_ignores_is_refused(
        tiny, tmp_path, base):
    chat(chat_template="{{ messages[0]['content'] }}{% if thinking %} 20{% endif %}")(base)
    arguments = recipe(tiny, "train", tmp_path / "run", "--model", base,
                       "--rollout", "hf", "--steps", 1, "--prompt-template", "chat")
    for given, message in (
            ({"thinkin": 1}, "does not use 'thinkin': correct its spelling"),
            ({"(": 1}, r"does not use '\('"),
            ({"tokenize": 1}, "'tokenize' cannot be passed to the template"),
            ({"messages": []}, "'messages' cannot be passed to the template")):
        with pytest.raises(SystemExit, match=message) as stop:
            main([*arguments, "--chat-template-kwargs", json.dumps(given)])
        refused(stop.value)
    assert not (tmp_path / "run").exists()

    thinking = '{"thinking": true}'
    main([*arguments, "--chat-template-kwargs", thinking])
    files = [tmp_path / "run" / name
             for name in ("config.json", "eval_000001/eval.json", "eval_000001/test.jsonl")]
    settings, report = (json.loads(path.read_bytes()) for path in files[:2])
    with files[2].open() as file:
        first = json.loads(file.readline())
    for kept in (settings, report["settings"], first):
        assert kept["chat_template_kwargs"] == {"thinking": True}
    assert tables.read(files[1])["test"]["prompt_template"] == f"chat {thinking}"
    with pytest.raises(SystemExit, match="--chat-template-kwargs was {'thinking': True}, is {}"):
        main(arguments)


# ------------------------------------------------------------------------------------------ weights
def lose_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_missing_are_not_drawn_at_random(base):
    lose_a_tensor(base)
    message = f"--model {base} lacks weights: model.norm.weight"
    with pytest.raises(SystemExit, match=message):
        load_model(base, torch.float32)


def test_weights_of_another_shape_than_the_configs_are_named(base):
    edit("config.json", intermediate_size=33)(base)
    message = (rf"--model {base}: model.layers.0.mlp.down_proj.weight has the shape "
               r"\(16, 32\), but its config.json asks for \(16, 33\)")
    with pytest.raises(SystemExit, match=message) as stop:
        load_model(base, torch.float32)
    refused(stop.value)


@pytest.mark.parametrize("command, value", [
    ("train", math.nan), ("eval", math.nan), ("train", math.inf), ("eval", -math.inf)])
def test_weights_that_are_not_finite_are_named(tiny, tmp_path, command, value, base):
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    flags = "--model", base, "--rollout", "hf"
    message = f"--model {base}: its weights model.norm.weight contain NaN or infinity"
    with pytest.raises(SystemExit, match=message) as stop:
        main(recipe(tiny, command, tmp_path / "run", *flags))
    refused(stop.value)


@pytest.mark.parametrize("dtype, name", [
    (torch.float16, "model.norm.weight"),
    (torch.bfloat16, "lm_head.weight"),
    (torch.float32, "model.layers.0.self_attn.rotary_emb.inv_freq"),
    (torch.int64, "model.embeddings.position_ids"),
    (torch.bool, "model.layers.0.self_attn.mask"),
])
def test_weights_in_half_precision_and_buffers_of_older_checkpoints_are_read(dtype, name, base):
    store_as(dtype, name)(base)
    store_as(dtype, "model.empty", 0)(base)
    for command in ("train", "eval"):
        models.check_weights(command, base)


@pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError])
def test_an_error_of_the_loading_is_one_line(tiny, monkeypatch, error):
    loader = mock.Mock(side_effect=error("bad\nweights"))
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", loader)
    with pytest.raises(SystemExit, match=f"--model {tiny}/base: bad weights$") as stop:
        load_model(tiny / "base", torch.float32)
    refused(stop.value)


def test_each_rate_of_dropout_becomes_0():
    rates = "attention_dropout", "embd_pdrop", "resid_pdrop"
    config = Phi3Config(**dict.fromkeys(rates, 0.1))
    models.switch_off_dropout(config)
    assert [getattr(config, name) for name in rates] == [0, 0, 0]


@pytest.mark.parametrize("name", [
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.mlp.up_proj.weight_scale",
])
def test_weights_of_layers_that_the_config_does_not_know_are_named(name, base):
    store_as(torch.float32, name)(base)
    with pytest.raises(SystemExit, match=f"config.json does not use: {name} ...") as stop:
        load_model(base, torch.float32)
    refused(stop.value)


@pytest.mark.parametrize("name", [
    "model.layers.0.self_attn.rotary_emb.inv_freq",  # of older checkpoints
    "v_head.summary.weight",  # of PPO
])
def test_weights_that_change_no_response_may_be_there(name, base):
    store_as(torch.float32, name)(base)
    load_model(base, torch.float32)


def test_a_head_that_tying_makes_superfluous_may_be_there(tmp_path):
    zoo.save("llama-tied", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_model(tmp_path, torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
