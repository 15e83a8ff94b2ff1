"""Creates models with random weights, and random responses to train them on,
for tools.bench."""
import copy
import math
from unittest import mock

import numpy as np
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, Qwen2Config

import simko
from runtime.packing import Sample, packed_attention
from tools.measuring import DEVICE, DTYPE


def qwen2(vocabulary, hidden, feed_forward, layers, heads, kv_heads, tied=True):
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=feed_forward,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        tie_word_embeddings=tied, max_position_embeddings=32768,
        architectures=["Qwen2ForCausalLM"])


SHAPES = {
    "laptop": qwen2(94, 64, 192, 3, 2, 2),
    "tiny-qwen": qwen2(4096, 128, 512, 2, 4, 2),
    "0.5b": qwen2(151936, 896, 4864, 24, 14, 2),
    "1.5b": qwen2(151936, 1536, 8960, 28, 12, 2),
    "7b": qwen2(152064, 3584, 18944, 28, 28, 4, tied=False),
}
SMALL = "laptop", "tiny-qwen"  # small enough for a CPU


def shape_of(name, layers=0):
    """Returns the configuration of a shape. layers: how many layers to keep; 0 keeps all."""
    config = copy.deepcopy(SHAPES[name])
    if layers:
        config.num_hidden_layers = layers
        config.layer_types = config.layer_types[:layers]
    return config


def random_model(config):
    AttentionInterface.register("packed", packed_attention)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(  # which changes its config
            copy.deepcopy(config), dtype=DTYPE, attn_implementation="packed")


def random_samples(count, length, name):
    """Returns `count` samples to update on, half of them correct, for the shape `name`. The
    prompt takes a quarter of `length` tokens."""
    rng, samples = np.random.default_rng(0), []
    words, prompt = SHAPES[name].vocab_size, length // 4
    for i in range(count):
        ids = rng.integers(words, size=length)
        old_logp = torch.full((length - prompt,), -math.log(words), device=DEVICE)
        samples.append(Sample(
            i, ids[:prompt], ids[prompt:], np.zeros(0), truncated=False,
            advantage=-1.0 if i % 2 else 1.0, old_logp=old_logp))
    return samples


def random_trainer(config, device, change=None, **settings):
    """Returns a simko.Trainer with random weights.

    change: a function that modifies the model before it is sharded."""
    model = random_model(config)
    if change:
        change(model)
    # The probe is skipped: these architectures pass it, and compiled layers
    # would be compiled for it.
    with (mock.patch.object(simko, "load_model", lambda path, dtype: model),
          mock.patch.object(simko, "check_log_probs")):
        cfg = simko.Config(model="random", **settings)
        return simko.Trainer(cfg, device, DTYPE)
