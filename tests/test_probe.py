"""The probe before a run: what it lets pass, and what it refuses.

    python -m pytest tests/test_probe.py
"""
import re

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import simko
from runtime.packing import load_model
from runtime.probe import check_log_probs, first_of_each_kind, probes
from tests.conftest import main, recipe

SIZE = {
    "vocab_size": 80, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
         "mamba_n_groups": 1, "mamba_d_ssm": 64}
LONGROPE = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64}}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
ONE_BY_ONE = "read side by side change each other.*--micro-batch-tokens 1"
NOT_ITS_OWN = "nats away from the model's own"


def saved(folder, kind, **changes):
    """A random model of a kind, as a checkpoint in `folder`."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **SIZE | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # a bias of 0 would not be missed
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


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


@pytest.mark.parametrize("kind, changes", [
    ("llama", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 16}),
    ("mistral", {"sliding_window": None}),
    ("gemma", {"head_dim": 8}),
    ("olmo2", {}),
    ("smollm3", {"layer_types": ["full_attention"] * 2}),
    ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 4.0}),
    ("cohere", {"logit_scale": 4.0}),
    ("qwen3_moe", {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4,
                   "num_experts_per_tok": 2}),
    ("llama", {"attention_dropout": 0.3}),
    ("seed_oss", {"attention_dropout": 0.3, "residual_dropout": 0.3, "head_dim": 8}),
    ("lfm2", CONVOLUTION | {"micro_batch_tokens": 1}),
    ("phi3", LONGROPE | {"micro_batch_tokens": 1}),
    ("phi3", LONGROPE | {"max_completion_length": 4}),  # below the turning point
], ids=str)
def test_these_are_right(kind, changes, tmp_path):
    names = "micro_batch_tokens", "max_completion_length"
    settings = {name: changes[name] for name in names if name in changes}
    changes = {name: value for name, value in changes.items() if name not in names}
    probe(saved(tmp_path, kind, **changes), **settings)


@pytest.mark.parametrize("kind, changes, message", [
    ("lfm2", CONVOLUTION, ONE_BY_ONE),
    ("falcon_h1", MAMBA, ONE_BY_ONE),
    ("phi3", LONGROPE, ONE_BY_ONE),
    ("phi", {"hidden_act": "gelu_new"}, NOT_ITS_OWN),
    ("nemotron", {}, "NemotronAttention does not pass on where sequences begin"),
    ("mistral", {"sliding_window": 100}, "sliding window below the sequence length"),
], ids=str)
def test_these_are_refused(kind, changes, message, tmp_path, capsys):
    folder = saved(tmp_path, kind, **changes)
    with pytest.raises(SystemExit) as end:
        probe(folder)
    assert len(str(end.value).splitlines()) == 1
    assert re.search(message, str(end.value))


def test_a_run_is_refused_before_its_first_rollout(laptop, tmp_path):
    model = saved(tmp_path / "model", "lfm2", vocab_size=94, **CONVOLUTION)
    transformers.AutoTokenizer.from_pretrained(laptop / "base").save_pretrained(model)
    with pytest.raises(SystemExit, match=ONE_BY_ONE):
        main(recipe(laptop, "train", tmp_path / "run", "--model", model, "--rollout", "hf",
                    "--steps", 1))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_only_the_first_layers_of_each_kind_are_tried():
    linear, norm = torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)
    layers = torch.nn.ModuleList([linear, linear, norm, linear, norm])
    assert len(first_of_each_kind(layers)) == 3
    assert len(first_of_each_kind(layers[:2])) == 1


@pytest.mark.parametrize("completion, longest", [(60, 65), (4, 40)])
def test_the_longest_sequence_passes_each_turning_point_that_the_run_can_reach(
        completion, longest):
    config = AutoConfig.for_model("phi3", **SIZE | LONGROPE)
    cfg = simko.Config(model="", max_prompt_length=60, max_completion_length=completion)
    assert max(sample.size() for sample in probes(config, cfg)) == longest
