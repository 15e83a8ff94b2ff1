"""Before a run: are the log-probs that it would train on the model's own?

simko.py reads many sequences in one row and computes the output head by
itself. Some architectures are not made for that: their layers carry a state
from one sequence into the next, or their head does more than a matrix
product. What they would train on would be wrong without an error.
"""
import inspect

import numpy as np
import torch

from runtime.cli import check_finite
from runtime.common import fail
from runtime.packing import Sample, pack, use_attention_of_transformers

# The largest difference that float32 may make, in nats. 34 tiny models that
# are right differed by 2e-6 at most and SmolLM2-135M by 1.2e-5, and those
# that are wrong by 4e-3 at least.
LIMIT = 1e-4


@torch.no_grad()
def check_log_probs(model, policy_forward, cfg, device):
    """Ends the run if the policy's log-probs are not those that the model
    itself gives to each sequence alone.

    model: before it is sharded. Its first layers, up to the first one of
    every kind, are tried in float32 on `device`, where the trainer wants
    them next. policy_forward: as in simko.py."""
    name = f"--model {cfg.model}, a {type(model).__name__}"
    check_finite(cfg.model, model.named_parameters())
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        fail(f"{name}: its output head has a bias, which is not implemented")
    layers = model.base_model.layers
    model.base_model.layers = first_of_each_kind(layers)
    model.to(device, torch.float32)
    samples = probes(model.config.get_text_config(), cfg)
    alone = [
        part for sample in samples
        for part in log_probs(model, policy_forward, [sample], device)]
    packed = alone
    if cfg.micro_batch_tokens >= 4:  # the least that two sequences have
        packed = log_probs(model, policy_forward, samples, device)

    use_attention_of_transformers(model)
    own = {id(s): own_log_probs(model, s, device) for s in samples}
    model.set_attn_implementation("packed")
    model.base_model.layers = layers

    worst = largest_difference(alone, own)
    if not worst <= LIMIT:
        fail(f"{name}: the log-probs computed here are up to {worst:.2g} nats away "
             "from the model's own. Its output head may have a scale or "
             "soft-capping, or its layers may be random in training. Such "
             "models are not supported")
    worst = largest_difference(packed, own)
    if not worst <= LIMIT:
        fail(f"{name}: sequences that are read side by side change each other's "
             f"log-probs, by up to {worst:.2g} nats, as state-space and "
             "convolution layers do, and longrope. Add --micro-batch-tokens 1, which reads "
             "them one at a time and is slower")


def first_of_each_kind(layers):
    """The layers up to the last one that differs from all before it."""
    kinds, count = [], 0
    for i, layer in enumerate(layers):
        if kind_of(layer) not in kinds:
            kinds.append(kind_of(layer))
            count = i + 1
    return layers[:count]


def kind_of(layer):
    """A layer's modules, and the numbers and words that they are set to,
    such as a window; but not the layer's place in the model."""
    settings = [
        (key, value) for module in layer.modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str))
        and not key.endswith(("idx", "index", "id", "number"))]
    return repr(layer), settings


def probes(config, cfg):
    """A few random sequences. The longest is just longer than each length
    at which the model changes its positions or its attention, if the run
    can have such sequences. A short prompt after another sequence shows
    what leaks out of that one."""
    rope = getattr(config, "rope_parameters", None) or {}
    lengths = [
        rope.get("original_max_position_embeddings"),
        *(getattr(config, name, None) for name in (
            "original_max_position_embeddings", "max_position_embeddings",
            "sliding_window"))]
    longest = cfg.max_prompt_length + cfg.max_completion_length
    lengths = [n + 1 for n in lengths if isinstance(n, int) and n < longest]
    first = max(lengths, default=0)
    rng = np.random.default_rng(0)
    samples = []
    for size, response in ((max(first, 40), 16), (13, 12), (29, 20), (6, 5)):
        ids = rng.integers(config.vocab_size, size=size)
        samples.append(Sample(
            len(samples), ids[:-response], ids[-response:],
            np.zeros(0, np.float32), truncated=False))
    return samples


def log_probs(model, policy_forward, batch, device):
    """[(sample, its response's log-probs)], as the trainer computes them."""
    packed = pack(batch, device)
    logp, *_ = policy_forward(model, packed, 1, 1.0)
    return zip(batch, logp.split(packed.lengths.tolist()))


def own_log_probs(model, sample, device):
    """The same of one sequence alone, from the model's own logits."""
    ids = np.concatenate([sample.prompt_ids, sample.response_ids])
    ids = torch.from_numpy(ids)[None].to(device)
    n = len(sample.response_ids)
    options = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = n + 1  # all others would cost memory
    logits = model(input_ids=ids, use_cache=False, **options).logits[0, -n - 1:-1]
    logp = logits.float().log_softmax(-1)
    return logp.gather(1, ids[0, -n:, None])[:, 0]


def largest_difference(found, own):
    """found: pairs of a sample and its log-probs. NaN if one is NaN."""
    differences = [(logp - own[id(s)]).abs() for s, logp in found]
    return torch.cat(differences).max().item()
