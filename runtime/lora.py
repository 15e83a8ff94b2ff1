"""LoRA (Hu et al., 2021): the model's weights are frozen, and two small
matrices learn beside each linear layer of its body. The layer's weight W
becomes W + s B A, where A is (rank, inputs), B is (outputs, rank) and s
is alpha / rank. The paper does not use it.

peft is imported where it is used, so that other runs do without it."""
from contextlib import nullcontext

import torch
from safetensors.torch import save_file

from runtime.common import seed_everything


def add_adapters(model, cfg, dtype):
    """Freezes the model's weights in `dtype`, and adds adapters, which
    are float32. The policy is still the model, since B starts as 0."""
    from peft import LoraConfig, inject_adapter_in_model
    seed_everything(cfg.seed)  # all ranks must draw the same A
    inject_adapter_in_model(LoraConfig(
        r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, task_type="CAUSAL_LM",
        target_modules="all-linear", base_model_name_or_path=cfg.model), model)
    for weight in model.parameters():
        weight.data = weight.data.to(torch.float32 if weight.requires_grad else dtype)


def switched_off(model):
    """A context in which a policy with adapters is the model that it
    started from. It changes no model without adapters."""
    if not hasattr(model, "peft_config"):
        return nullcontext()
    from peft.helpers import rescale_adapter_scale
    return rescale_adapter_scale(model, 0)


def merged(weights, cfg):
    """Yields (name, W + s B A) under the names of the model without
    adapters, a tensor at a time, so that there is no second model.

    weights: {name: tensor} of the policy, sharded or not."""
    for name, weight in weights.items():
        layer, adapted, kind = name.rpartition("base_layer.")
        if adapted and kind == "weight":
            A, B = (weights[f"{layer}lora_{x}.default.weight"] for x in "AB")
            weight = weight + cfg.lora_alpha / cfg.lora_rank * (B @ A)
        if ".lora_" not in name:
            yield layer + kind, weight


def save_adapter(folder, model, weights):
    """Writes the adapter as PEFT loads it onto the model that it started
    from. weights: {name: whole tensor} of the policy."""
    model.peft_config["default"].save_pretrained(folder)
    weights = {f"base_model.model.{name.replace('.default', '')}": weight
               for name, weight in weights.items() if ".lora_" in name}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
