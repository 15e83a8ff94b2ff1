"""Checks the model that --model names, a folder or a model on the hub, and
loads it. A model that cannot be trained or evaluated here is refused in one
line that gives the reason."""
import json
import math
import os
import zlib
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import get_session, is_offline_mode, snapshot_download
from huggingface_hub.constants import ENDPOINT
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AutoConfig,
    AutoModelForCausalLM, GenerationConfig, PreTrainedConfig)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from runtime.common import fail, fail_as, one_line
from runtime.packing import packed_attention

# No code of a checkpoint is run. With None, the default, transformers would
# ask at a terminal whether to run it.
NO_CODE = {"trust_remote_code": False}

INDEX = "model.safetensors.index.json"  # names the files of large models
READS_IMAGES = ("is a model of images and text, as the vision_config of its "
                "config.json says: choose a text-only model")


# ---------------------------------------------------------- the checkpoint
def find_model(model):
    """Refuses a --model that is not a folder if the hub cannot be reached
    either. The hub's own client would first retry for minutes."""
    if os.path.isdir(model):  # unlike Path's, it takes names of any length
        return
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        fail(f"--model {model}: there is no such folder. Name the folder of a "
             "model, or its id on the hub")
    if is_offline_mode():
        return
    with fail_as(f"--model {model} is not a folder here, and {ENDPOINT} cannot "
                 "be reached", "name a folder, or set HF_HUB_OFFLINE=1 to use "
                 "what was downloaded before"):
        get_session().head(ENDPOINT, timeout=10)


def refuse_adapter(model):
    """Refuses a LoRA adapter, alone or beside a full model. The trainer
    and vLLM would not both apply it."""
    with fail_as(f"--model {model}"):
        adapter = find_adapter_config_file(model)
    if adapter:
        fail(f"--model {model} has an adapter_config.json. Adapters (LoRA) "
             "are not applied here: merge the adapter into its base model "
             "(PEFT's merge_and_unload), and name the merged model's folder. "
             "A run of this program saves its merged model in the subfolder hf")


def refuse_quantised(model, fields):
    """Refuses a checkpoint whose config.json says that it is quantised."""
    text = fields.get("text_config") or {}
    settings = (fields.get("quantization_config")
                or text.get("quantization_config"))
    if settings:
        kind = dict(settings).get("quant_method", "its method is not named")
        fail(f"--model {model} is quantised ({kind}), as the "
             "quantization_config of its config.json says. Only checkpoints "
             "that are not quantised are read: name the original model")


def load_config(command, cfg):
    """Returns the config of the model's text part. Refuses a model that cannot
    be built, or that does not suit the command or its flags."""
    find_model(cfg.model)
    refuse_adapter(cfg.model)
    file = os.path.join(cfg.model, "config.json")
    if os.path.isdir(cfg.model) and not os.path.exists(file):
        fail(f"--model {cfg.model} has no config.json: name the folder of a "
             "model. A run of this program saves its model in the subfolder hf")
    with fail_as(f"--model {cfg.model}: its config.json cannot be read"):
        fields, _ = PreTrainedConfig.get_config_dict(cfg.model)
        refuse_quantised(cfg.model, fields)
    if "model_type" not in fields and os.path.isdir(os.path.join(cfg.model, "hf")):
        fail(f"--model {cfg.model} is the folder of a run: name its model, "
             f"{os.path.join(cfg.model, 'hf')}")

    failure = "transformers cannot build the model that its config.json describes"
    if fields.get("auto_map"):
        failure += (", which asks for code of its own (auto_map), and such "
                    "code is never run")
    with fail_as(f"--model {cfg.model}: {failure}"):
        config = AutoConfig.from_pretrained(cfg.model, **NO_CODE)
        can_build = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        if "vision_config" in fields and not can_build:
            fail(f"--model {cfg.model} {READS_IMAGES}")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **NO_CODE)
        body = model.base_model
        config = config.get_text_config()
    if command == "train":
        if cfg.K > config.vocab_size:
            fail(f"--K {cfg.K} is more than the {config.vocab_size} tokens of "
                 "the model's vocabulary: choose a smaller number")
        check_trainable(cfg, config, body)
    check_parallel(cfg.tensor_parallel_size, config)
    return config


def check_trainable(cfg, config, body):
    """Refuses a model that these settings cannot train."""
    if not hasattr(body, "layers"):
        if hasattr(body.config, "vision_config"):
            fail(f"--model {cfg.model} {READS_IMAGES}")
        fail(f"--model {cfg.model}: a {type(body).__name__} cannot be "
             "trained here (docs/models.md lists what can): choose another model")
    # No public call reveals this. Such a model would keep its own attention, which
    # does not know where the sequences that are packed into a row begin.
    if not body._can_set_attn_implementation():
        fail(f"--model {cfg.model}: the attention of a {type(body).__name__} "
             "cannot be replaced, so it cannot be trained here: choose "
             "another model")
    if cfg.gradient_checkpointing and not body.supports_gradient_checkpointing:
        fail(f"--model {cfg.model}: a {type(body).__name__} does not support "
             "gradient checkpointing: add --no-gradient-checkpointing")
    # Some families have the field in dense models too: 0 in Granite 4.0, None in Gemma 4.
    experts = any("experts" in field and count
                  for field, count in config.to_dict().items())
    if experts and cfg.lora_rank:
        fail(f"--model {cfg.model} is a mixture of experts, which --lora-rank "
             "does not adapt: leave it out, and choose --rollout hf")
    if experts and cfg.rollout == "vllm":
        fail(f"--model {cfg.model} is a mixture of experts. vLLM packs the "
             "experts when it first loads them, and does not replace them "
             "later: add --rollout hf")
    parameters = dict(body.named_parameters(remove_duplicate=False))
    buffers = sorted(body.state_dict().keys() - parameters.keys())
    if buffers and cfg.rollout == "vllm":
        fail(f"--model {cfg.model} stores the buffer {buffers[0]}. vLLM "
             "starts with random buffers, and is later sent only "
             "parameters: add --rollout hf")


def check_parallel(parts, config):
    """Refuses a --tensor-parallel-size that does not divide the model evenly."""
    for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, field, None)
        if not isinstance(size, int) or size % parts == 0:
            continue
        # vLLM copies key heads where there are fewer than GPUs.
        if field == "num_key_value_heads" and parts % size == 0:
            continue
        fail(f"--tensor-parallel-size {parts} does not divide the model's "
             f"{field}, {size}: choose a number that does")


def context_left(command, cfg, config):
    """Returns how many tokens the model's context leaves for a response."""
    context = getattr(config, "max_position_embeddings", None) or math.inf
    left = context - cfg.max_prompt_length
    needed = cfg.max_completion_length if command == "train" else 1
    if left < needed:
        lengths = f"--max-prompt-length {cfg.max_prompt_length}"
        if command == "train":
            lengths += f" and --max-completion-length {needed}"
        fail(f"the model's context of {context} tokens is too short for "
             f"{lengths}: choose smaller numbers")
    return left


def weight_files(folder):
    """Returns the files of weights that transformers reads: model.safetensors
    if it is there, or those that the index names."""
    index = folder / INDEX
    if (folder / "model.safetensors").exists() or not index.exists():
        return sorted(folder.glob("model.safetensors"))
    with fail_as(f"{index} is damaged", "fetch it again"):
        names = json.loads(index.read_bytes())["weight_map"].values()
        return sorted({folder / name for name in names})


def check_weights(command, folder):
    """Refuses a model's folder unless it has sound .safetensors files.

    Before an evaluation all weights are read and checked here. A training
    run checks them later, when its trainer has loaded them."""
    files = weight_files(folder)
    if not files:
        fail(f"--model {folder} has no weights in model.safetensors, or in "
             f"files that {INDEX} names. Other formats are not read, since "
             "some can hold code. Save the model with save_pretrained")
    for file in files:
        with fail_as(f"{file} is damaged or missing", "fetch it again"):
            # Reads the header and compares it with the file's size.
            with safe_open(file, "pt") as weights:
                stored_dtypes(folder, weights)
                if command == "eval":
                    check_finite(folder, (
                        (name, weights.get_tensor(name))
                        for name in weights.keys()))  # noqa: SIM118


def stored_dtypes(model, weights):
    """Returns the dtypes in an open .safetensors file, as its header names
    them. Refuses float64 weights and those of quantised models, which
    transformers would convert without their scales. The masks and positions
    of older checkpoints may be integers."""
    dtypes = set()
    for name in weights.keys():  # noqa: SIM118
        dtype = weights.get_slice(name).get_dtype()
        is_weight = dtype.startswith("F") or name.endswith("weight")
        if is_weight and dtype not in ("F32", "F16", "BF16"):
            fail(f"--model {model}: {name} is stored as {dtype}, and only "
                 "weights in float32, float16 or bfloat16 are read: name the "
                 "original model, if this one is quantised")
        dtypes.add(dtype)
    return dtypes


def fingerprint(model):
    """Returns a text by which nodes notice that their copies of a model
    differ: the commit of a model on the hub, or a checksum of the last MiB
    of each file in a folder."""
    if not os.path.isdir(model):
        config = Path(cached_file(model, "config.json"))
        return f"{model} at commit {config.parent.name}"
    checksum = 0
    for file in sorted(Path(model).iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            with file.open("rb") as content:
                content.seek(max(0, file.stat().st_size - 2**20))
                checksum = zlib.crc32(content.read(), checksum)
    return f"files with checksum {checksum:08x}"


def check_finite(model, tensors):
    """Refuses weights, pairs of name and tensor, with NaN or infinity."""
    for name, tensor in tensors:
        # The extremes of a tensor with NaN are NaN. isfinite() would take
        # 44 s of a CPU core for a 7B model, where this takes 3 s.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            fail(f"--model {model}: its weights {name} contain NaN or "
                 "infinity. The training that saved them has "
                 "diverged, or the file is damaged: choose another checkpoint")


def generation_file(model):
    """Returns the GenerationConfig of a model's generation_config.json, or
    None if it has no such file. Raises OSError if a folder's file is damaged."""
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        if os.path.exists(os.path.join(model, "generation_config.json")):
            raise
        return None


# --------------------------------------------------------------- the model
def load_model(path, dtype, attention="packed"):
    """Returns a causal language model.

    dtype: a torch dtype, or "auto" for that of the stored weights.
    attention: "packed" for `packed_attention`, or None for the model's own.
    Only safetensors are read, and no code of the checkpoint is run."""
    AttentionInterface.register("packed", packed_attention)
    try:
        if dtype == "auto" and holds_float32(path):
            dtype = torch.float32
        config = AutoConfig.from_pretrained(path, **NO_CODE)
        # Otherwise "auto" would mean the dtype that config.json names. If that
        # is a lower precision, loading would round the weights.
        config.dtype = None
        config.return_dict = True
        switch_off_dropout(config)
        with errors_alone():
            model, found = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype,
                attn_implementation=attention, use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=True, **NO_CODE)
    except (OSError, ValueError, RuntimeError) as error:
        fail(f"--model {path}: {one_line(error)}")
    except KeyError as error:  # a family with its own table of attentions
        fail(f"--model {path}: its attention cannot be replaced by "
             f"{error}, so it can be evaluated here but not trained: choose another "
             "model")
    check_loaded(path, found)
    return model


@contextmanager
def errors_alone():
    """Silences transformers' warnings, among them a table of the weights that
    do not fit. `check_loaded` names those in one line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def check_loaded(path, found):
    """Refuses weights that do not fit the model that config.json describes.
    transformers would initialise missing weights at random.

    found: the loading_info that from_pretrained returns."""
    if found["missing_keys"]:
        names = ", ".join(sorted(found["missing_keys"])[:3])
        fail(f"--model {path} lacks weights: {names} ... Choose a complete "
             "checkpoint")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        fail(f"--model {path}: {name} has the shape {(*stored,)}, but its "
             f"config.json asks for {(*expected,)}: the two do not belong "
             "together")
    # transformers does not list the buffers of older checkpoints here, nor
    # layers that a family knows to ignore. An unused head does no harm.
    unused = [name for name in found["unexpected_keys"] if ".layers." in name]
    if unused:
        names = ", ".join(sorted(unused)[:3])
        fail(f"--model {path} has weights that the model in its config.json "
             f"does not use: {names} ... Correct config.json, or save "
             "the model without these weights")


def holds_float32(path):
    """Returns whether some weights of a folder or of a model on the hub are
    float32. With dtype="auto" transformers would give all weights the dtype
    of the first, and round them if it is lower."""
    folder, dtypes = Path(path), set()
    if not folder.is_dir():  # from_pretrained then finds them downloaded
        first = ["model.safetensors", INDEX]
        folder = Path(snapshot_download(path, allow_patterns=first))
        names = [file.name for file in weight_files(folder)]
        snapshot_download(path, allow_patterns=names)
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            dtypes |= stored_dtypes(path, weights)
    return "F32" in dtypes


def switch_off_dropout(config):
    """Sets all dropout rates to 0, because pi_old and pi_theta must be
    functions of their input. Not every model has its dropout in modules,
    but all of them read its rate from the config."""
    config = config.get_text_config()
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
