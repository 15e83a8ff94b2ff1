"""Tests of the probe before a run: which models it accepts and which it refuses.

    python -m pytest tests/test_probe.py
"""
import itertools
import re
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from transformers import (
    AutoConfig, AutoModelForCausalLM, GPT2Config, GPTNeoXJapaneseConfig, JetMoeConfig, XGLMConfig)

import simko
from runtime import faults
from runtime.models import check_trainable, load_config, load_model
from runtime.packing import packed_attention
from runtime.probe import check_log_probs, first_of_each_kind, probes
from tests import workers
from tests.conftest import edit_json, needs_vllm
from tools import zoo

ONE_BY_ONE = "packed sequences change each other.*--micro-batch-tokens 1"


def probe(folder, **settings):
    settings = {"max_prompt_length": 60, "max_completion_length": 60} | settings
    cfg = simko.Config(model=str(folder), **settings)
    model = load_model(cfg.model, "auto")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    before = len(model.base_model.layers)
    check_log_probs(model, simko.policy_forward, cfg, torch.device("cpu"))
    assert len(model.base_model.layers) == before
    assert model.config._attn_implementation == "packed"


@pytest.mark.parametrize("name", [
    "llama", "llama-tied", "llama-dropout", "qwen2", "qwen3", "qwen3-moe", "mistral", "gemma",
    "gemma3", "phi3", "olmo2", "smollm3", "glm4", "granite", "cohere", "seed-oss"])
def test_these_are_right(name, tmp_path):
    probe(zoo.save(name, tmp_path))


@pytest.mark.parametrize("name", ["lfm2", "falcon-h1", "phi3-longrope"])
def test_these_are_right_one_sequence_at_a_time(name, tmp_path):
    zoo.save(name, tmp_path)
    for tokens in (4, 16384):  # a sequence has at least two
        with pytest.raises(SystemExit, match=ONE_BY_ONE):
            probe(tmp_path, micro_batch_tokens=tokens)
    probe(tmp_path, micro_batch_tokens=3)


@pytest.mark.parametrize("name, message", [
    ("phi", "its output head has a bias"),
    ("nemotron", "NemotronAttention does not pass on where sequences begin"),
    ("mistral-window", "MistralAttention has a sliding window of 24 tokens"),
    ("gemma2", "Gemma2Attention caps its scores .soft-capping."),
])
def test_these_are_refused(name, message, tmp_path):
    with pytest.raises(SystemExit) as end:
        probe(zoo.save(name, tmp_path))
    assert len(str(end.value).splitlines()) == 1
    assert re.search(message, str(end.value))


def test_a_head_that_config_json_ties_but_the_weights_do_not_is_refused(tmp_path):
    zoo.save("llama", tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    with pytest.raises(SystemExit, match="set tie_word_embeddings to false"):
        probe(tmp_path)


@pytest.mark.parametrize("option, message", [
    ({"softcap": 50.0}, "a Linear caps its scores .soft-capping., which is not"),
    ({"s_aux": torch.zeros(1)}, "a Linear has attention sinks, which are not"),
    ({"position_bias": torch.zeros(1)}, "a Linear masks or biases its scores, .* which is not"),
    ({"indices": torch.zeros(1)}, "a Linear masks or biases its scores"),
    ({"block_indices": torch.zeros(1)}, "a Linear masks or biases its scores"),
    ({"sliding_window": 24}, "sliding window of 24 tokens.*: lower --max-prompt-length and "),
])
def test_each_attention_that_is_not_implemented_is_named(option, message):
    module, rest = torch.nn.Linear(1, 1), [None] * 4
    with pytest.raises(SystemExit, match=message) as end:
        packed_attention(module, *rest, 1.0, cu_seq_lens_q=torch.tensor([0, 25]),
                         max_length_q=25, **option)
    assert len(str(end.value).splitlines()) == 1


def test_longrope_is_right_in_a_run_too_short_to_reach_its_turning_point(tmp_path):
    probe(zoo.save("phi3-longrope", tmp_path), max_prompt_length=24, max_completion_length=24)


def train(arguments):
    sys.argv = ["simko.py", *arguments]
    faults.run(simko.main)


def test_a_run_is_refused_before_its_first_rollout(tmp_path, monkeypatch, capsys):
    """tools/zoo.py tries a model with --micro-batch-tokens 1 only if the run advised that. Its
    runs are forks here."""
    logs = (tmp_path / f"{i}.log" for i in itertools.count())

    def run(command, **_):
        log = next(logs)
        process = workers.start(partial(train, command[2:]), log)
        process.join(workers.LIMIT)
        return SimpleNamespace(returncode=process.exitcode, stdout=log.read_text(), stderr="")

    monkeypatch.setattr(zoo, "subprocess", SimpleNamespace(run=run))
    zoo.main(["lfm2", "qwen3", "--rollout", "hf"])
    _, _, lfm2, qwen3 = capsys.readouterr().out.splitlines()
    assert lfm2.startswith("| lfm2 | with --micro-batch-tokens 1: right, gap ")
    assert qwen3.startswith("| qwen3 | right, gap ")


@needs_vllm
def test_vllm_leaves_the_classes_of_transformers_to_the_trainer():
    """vLLM runs OLMo2 through transformers' class, which it would otherwise change in place."""
    assert zoo.outcome("olmo2", "vllm").startswith("right, gap ")


@pytest.mark.parametrize("rollout, rank", [("vllm", 0), ("hf", 2)])
def test_a_mixture_of_experts_is_trained_neither_through_vllm_nor_with_adapters(
        rollout, rank, tmp_path):
    cfg = simko.Config(
        model=str(zoo.save("qwen3-moe", tmp_path)), max_prompt_length=30,
        max_completion_length=30, rollout=rollout, lora_rank=rank)
    with pytest.raises(SystemExit, match="is a mixture of experts"):
        load_config("train", cfg)


@pytest.mark.parametrize("count", [0, None])
def test_a_config_that_counts_no_experts_is_not_a_mixture_of_them(count):
    """Granite 4.0 has the field in its dense models, too, and Gemma 4 names none."""
    cfg = simko.Config(rollout="vllm", lora_rank=2)
    config = mock.Mock(to_dict=lambda: {"num_experts": count})
    check_trainable(cfg, config, body_of(torch.nn.Linear(2, 2)))


def body_of(layer):
    body = torch.nn.Module()
    body._can_set_attn_implementation = lambda: True
    body.supports_gradient_checkpointing = True
    body.layers = torch.nn.ModuleList([layer])
    return body


@pytest.mark.parametrize("persistent, rollout, refused", [
    (True, "vllm", True), (True, "hf", False), (False, "vllm", False)])
def test_a_buffer_of_the_checkpoint_is_not_left_to_chance_in_vllm(persistent, rollout, refused):
    """Gemma 4 has one in each layer."""
    layer = torch.nn.Linear(2, 2)
    layer.register_buffer("layer_scalar", torch.ones(1), persistent)
    cfg, config = simko.Config(rollout=rollout), mock.Mock(to_dict=dict)
    with pytest.raises(SystemExit, match="layers.0.layer_scalar") if refused else nullcontext():
        check_trainable(cfg, config, body_of(layer))


@pytest.mark.parametrize("Config, flag, message", [
    (XGLMConfig, {}, "the attention of a XGLMModel cannot be replaced"),
    (GPTNeoXJapaneseConfig, {}, "the attention of a GPTNeoXJapaneseModel cannot be replaced"),
    (JetMoeConfig, {}, "a JetMoeModel does not support .*: add --no-gradient-checkpointing"),
    (JetMoeConfig, {"gradient_checkpointing": False}, None),
    (GPT2Config, {}, "a GPT2Model cannot be trained here .docs/models.md lists what can."),
])
def test_a_family_that_cannot_be_trained_is_refused_by_its_class(Config, flag, message):
    config = Config()
    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(config).base_model
    cfg = simko.Config(rollout="hf", **flag)
    with pytest.raises(SystemExit, match=message) if message else nullcontext():
        check_trainable(cfg, config, body)


@pytest.mark.parametrize("error, line", [
    (TypeError("'NoneType' object is not subscriptable"),
     "a LlamaForCausalLM cannot compute packed sequences.*'NoneType' object is not"),
    (torch.OutOfMemoryError("out of memory"), None),
])
def test_an_error_in_the_probe_is_one_line_unless_memory_is_short(error, line, tmp_path):
    forward = mock.Mock(side_effect=error)
    model = load_model(zoo.save("llama", tmp_path), "auto")
    cfg = simko.Config(model="some/model")
    with pytest.raises(SystemExit if line else torch.OutOfMemoryError, match=line):
        check_log_probs(model, forward, cfg, torch.device("cpu"))


def test_a_mixture_of_experts_is_trained_through_generate():
    config = mock.Mock(to_dict=lambda: {"num_experts": 8})
    check_trainable(simko.Config(rollout="hf"), config, body_of(torch.nn.Identity()))


def test_logits_that_are_not_a_product_and_a_scale_are_refused(tmp_path):
    zoo.save("llama", tmp_path)
    with (mock.patch("runtime.chunked.logit_scale", lambda config: 2.0),
          pytest.raises(SystemExit, match="nats from the model's own")):
        probe(tmp_path)


@pytest.mark.parametrize("several, message", [
    (False, "differ by up to .* nats from the model's own"),
    (True, ONE_BY_ONE)])
@pytest.mark.parametrize("error", [torch.nan, 3e-4, -3e-4])
def test_a_single_wrong_log_prob_is_refused_also_if_it_is_no_number(
        several, message, error, tmp_path):
    def forward(model, packed, K, temperature):
        logp, *others = simko.policy_forward(model, packed, K, temperature)
        if (len(packed.lengths) > 1) == several:
            logp[0] += error
        return logp, *others

    model = load_model(zoo.save("llama", tmp_path), "auto")
    cfg = simko.Config(model="some/model")
    with pytest.raises(SystemExit, match=message):
        check_log_probs(model, forward, cfg, torch.device("cpu"))


@pytest.mark.parametrize("message, in_float64", [
    (None, 0),
    (ONE_BY_ONE, 3e-4),
    (ONE_BY_ONE, RuntimeError("no such kernel")),
])
def test_rounding_in_float32_is_no_reason_to_refuse_a_model(message, in_float64, tmp_path):
    """The keys of Qwen2.5 are so large that packing changes log-probs in float32 by more than the
    limit. Here, a forward pass adds the difference."""
    def forward(model, packed, K, temperature):
        logp, *others = simko.policy_forward(model, packed, K, temperature)
        if logp.dtype == torch.float64 and isinstance(in_float64, Exception):
            raise in_float64
        if len(packed.lengths) > 1:
            logp[-1] += 3e-4 if logp.dtype == torch.float32 else in_float64
        return logp, *others

    model = load_model(zoo.save("qwen2", tmp_path), "auto")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    cfg = simko.Config(model="some/model")
    with pytest.raises(SystemExit, match=message) if message else nullcontext():
        check_log_probs(model, forward, cfg, torch.device("cpu"))
    assert model.config._attn_implementation == "packed"
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, before[name]), name


def test_layers_of_one_kind_are_tried_once_and_settings_tell_kinds_apart(tmp_path):
    config = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}
    for changes, count in (({}, 1), (config, 3)):
        shape = zoo.SHARED | {"num_hidden_layers": 4} | changes
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **shape))
        assert len(first_of_each_kind(model.base_model.layers)) == count
    model.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="sliding window of 24 tokens"):  # of layer 3
        probe(tmp_path)


def test_only_the_first_layers_of_each_kind_are_tried():
    linear, norm = torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)
    layers = torch.nn.ModuleList([linear, linear, norm, linear, norm])
    assert len(first_of_each_kind(layers)) == 3
    assert len(first_of_each_kind(layers[:2])) == 1


ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("family, changes, completion, longest", [
    ("phi3", zoo.LONGROPE, 60, 49),
    ("phi3", zoo.LONGROPE, 2, 40),
    ("phi3", zoo.LONGROPE | {"max_position_embeddings": 70}, 60, 71),
    ("mistral", {"sliding_window": 80}, 60, 81),
    ("llama", {"rope_parameters": ROPE}, 60, 65),
])
def test_the_longest_sequence_passes_each_turning_point_that_the_run_can_reach(
        family, changes, completion, longest):
    config = AutoConfig.for_model(family, **zoo.SHARED | changes)
    cfg = simko.Config(model="", max_prompt_length=40, max_completion_length=completion)
    assert max(sample.size() for sample in probes(config, cfg)) == longest
