"""Checks, before a run, that its log-probs equal the model's own.

simko.py packs many sequences into one row and computes the output head
itself. Some architectures do not support this: their layers carry state from
one sequence into the next, or their head does more than a matrix product.
Without this check, a run would silently train on wrong log-probs.
"""
import inspect
from functools import partial

import numpy as np
import torch

from runtime.common import fail, one_line
from runtime.models import check_finite
from runtime.packing import Sample, pack

# The largest difference that is accepted, in nats. In float32, supported models
# differed by at most 2e-6 (34 tiny models) and 1.2e-5 (SmolLM2-135M), unsupported
# ones by at least 4e-3. Where keys are as large as in the first layers of Qwen2.5,
# rounding alone can exceed the limit. A model that fails is tried in float64 too.
LIMIT = 1e-4


@torch.no_grad()
def check_log_probs(model, policy_forward, cfg, device):
    """Ends the run if the policy's log-probs differ from those that the model
    itself computes for each sequence alone.

    model: the model before it is sharded. The check uses its first layers, up
    to the first one of every kind, and leaves these and the embeddings in
    float32 on `device`; the trainer converts the rest. policy_forward: the
    function of that name in simko.py."""
    name = f"--model {cfg.model}, a {type(model).__name__}"
    check_finite(cfg.model, model.named_parameters())
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        fail(f"{name}: its output head has a bias, which is not implemented: choose "
             "another model")
    refuse_untied(name, model)
    layers = model.base_model.layers
    model.base_model.layers = first_of_each_kind(layers)
    model.to(device, torch.float32)
    samples = probes(model.config.get_text_config(), cfg)
    batches = [[[s] for s in samples]]  # one by one
    if cfg.micro_batch_tokens >= 4:  # the minimum for two sequences
        batches.append([samples])  # packed
    compute = partial(trainers_log_probs, model, policy_forward, batches, device)
    try:
        found = compute()
    except torch.OutOfMemoryError:
        raise  # faults.explain has advice for it
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        fail(f"{name} cannot compute packed sequences, so it cannot be trained "
             "here: choose another model, or look for a mistake in your own changes "
             f"({type(error).__name__}: {one_line(error)})")

    gaps = largest_gaps(found, own_log_probs(model, samples, device))
    if not all(gap <= LIMIT for gap in gaps):
        gaps = gaps_in_float64(model, compute, samples, device) or gaps
    model.base_model.layers = layers

    one_by_one, packed = gaps[0], gaps[-1]
    if not one_by_one <= LIMIT:
        fail(f"{name}: the log-probs computed here differ by up to {one_by_one:.2g} "
             "nats from the model's own. Its output head may have a scale or "
             "soft-capping, or its layers may be random in training. Such "
             "models are not supported")
    if not packed <= LIMIT:
        fail(f"{name}: packed sequences change each other's log-probs by up to "
             f"{packed:.2g} nats. State-space layers, convolution layers and longrope "
             "cause this. Add --micro-batch-tokens 1, which computes one "
             "sequence at a time and is slower")


def largest_gaps(found, expected):
    """Returns the largest difference, in nats, between the expected log-probs and
    each of the tensors in `found`. It is nan if a log-prob is nan."""
    return [(logp - expected).abs().max().item() for logp in found]


def gaps_in_float64(model, compute, samples, device):
    """Returns `largest_gaps` computed in float64, or None if the model has an
    operation without float64. Leaves the model in float32."""
    model.double()
    try:
        return largest_gaps(compute(), own_log_probs(model, samples, device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError):
        return None
    finally:
        model.float()  # exact, because its weights were in float32 before


def refuse_untied(name, model):
    """Refuses a model with an output head of its own that its config.json ties
    to the embeddings. transformers keeps the two apart, but other programs would
    tie them, and would read another model from what the run exports."""
    head = model.get_output_embeddings().weight
    config = model.config.get_text_config()
    tied = getattr(config, "tie_word_embeddings", False)
    if tied and head is not model.get_input_embeddings().weight:
        fail(f"{name}: its config.json has tie_word_embeddings, but its "
             "weights have an output head that differs from the embeddings: "
             "set tie_word_embeddings to false")


def first_of_each_kind(layers):
    """Returns the shortest run of first layers that has a layer of every kind."""
    kinds, count = [], 0
    for i, layer in enumerate(layers):
        if kind_of(layer) not in kinds:
            kinds.append(kind_of(layer))
            count = i + 1
    return layers[:count]


def kind_of(layer):
    """Returns a layer's modules and their settings, such as the size of a
    window, without the layer's place in the model."""
    settings = [
        (key, value) for module in layer.modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str))
        and not key.endswith(("idx", "index", "id", "number"))]
    return repr(layer), settings


def probes(config, cfg):
    """Returns a few random sequences as Samples. The first is longer than each
    length at which the model changes its positions or its attention, if the
    run's sequences can be that long. The short prompts after it reveal what
    leaks from one sequence into the next."""
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
    # The length of a sequence, and how much of it is the response.
    for size, response in ((max(first, 40), 16), (13, 12), (29, 20), (6, 5)):
        ids = rng.integers(config.vocab_size, size=size)
        samples.append(Sample(
            len(samples), ids[:-response], ids[-response:],
            np.zeros(0, np.float32), truncated=False))
    return samples


def trainers_log_probs(model, policy_forward, batches, device):
    """Returns the log-probs of all responses, (tokens,), as the trainer computes
    them, for each way to split them into rows. batches: lists of lists of Samples,
    each of which is packed into one row."""
    return [
        torch.cat([policy_forward(model, pack(row, device), 1, 1.0)[0] for row in rows])
        for rows in batches]


def use_attention_of_transformers(model):
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # the architecture has no sdpa
        model.set_attn_implementation("eager")


def own_log_probs(model, samples, device):
    """Returns the log-probs of all responses, (tokens,), from the model's own
    logits for each sequence alone."""
    use_attention_of_transformers(model)
    try:
        return torch.cat([own_log_probs_of(model, sample, device) for sample in samples])
    finally:
        model.set_attn_implementation("packed")


def own_log_probs_of(model, sample, device):
    ids = np.concatenate([sample.prompt_ids, sample.response_ids])
    ids = torch.from_numpy(ids)[None].to(device)
    n = len(sample.response_ids)
    options = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = n + 1  # saves memory
    logits = model(input_ids=ids, use_cache=False, **options).logits[0, -n - 1:-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logp = logits.log_softmax(-1)
    return logp.gather(1, ids[0, -n:, None])[:, 0]
