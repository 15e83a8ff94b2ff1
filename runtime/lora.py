"""LoRA (Hu et al., 2021), which is not in the paper. All weights W of the
model are frozen. Each linear layer of its body multiplies by W + s B A
instead, where A (rank, inputs) and B (outputs, rank) are trained, and
s = alpha / rank. peft calls a pair of A and B an adapter."""
from contextlib import nullcontext

import torch
from torch.distributed.tensor import DTensor, Replicate

from runtime.common import fail_as
from runtime.seeding import seed_everything


def add_adapters(model, cfg, dtype):
    """Freezes the weights of the model in `dtype` and adds adapters, which
    are trained in float32. B starts as zero, so the policy does not change."""
    from peft import LoraConfig  # not above: under -OO peft cannot be imported
    seed_everything(cfg.seed)  # every rank must draw the same A
    with fail_as(f"--lora-rank: PEFT cannot adapt {cfg.model}"):
        model.add_adapter(LoraConfig(
            r=cfg.lora_rank, lora_alpha=cfg.lora_alpha,
            task_type="CAUSAL_LM", target_modules="all-linear"))
    for weight in model.parameters():
        weight.data = weight.data.to(torch.float32 if weight.requires_grad else dtype)


def without_adapters(model, cfg):
    """Returns a context in which the policy is the model that the run
    started from. Without LoRA, the context changes nothing."""
    if not cfg.lora_rank:
        return nullcontext()
    from peft.helpers import rescale_adapter_scale
    return rescale_adapter_scale(model, 0)


def merged(weights, cfg):
    """Yields (name, weight) of a plain model without adapters, with W + s B A
    in place of W. Each sum is computed only when its turn comes.

    weights: {name: tensor, sharded or whole} of the policy. Each tensor is
    removed when its turn comes, so that an export does not hold all weights
    twice."""
    for name in [*weights]:
        weight = weights.pop(name)
        layer, adapted, _ = name.partition(".base_layer.weight")
        if adapted:
            A = weights[f"{layer}.lora_A.default.weight"]
            B = weights[f"{layer}.lora_B.default.weight"]
            if isinstance(A, DTensor):
                # With all of A, each rank computes its own rows of B A.
                # Otherwise each would compute a part of every element, and
                # a sum over all ranks would send whole matrices.
                A = A.redistribute(placements=[Replicate()])
            weight = weight + cfg.lora_alpha / cfg.lora_rank * (B @ A)
        if ".lora_" not in name:
            yield name.replace(".base_layer", ""), weight
