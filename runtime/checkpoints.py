"""Saves and loads checkpoints, and exports the result as an ordinary
Hugging Face folder."""
import io
import json
import os
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING as MEMORY_FORMATS)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict)
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from runtime import lora
from runtime.common import fail, fail_as, print_once, write_whole
from runtime.faults import reason
from runtime.models import NO_CODE, generation_file
from runtime.ranks import gather
from runtime.run_folder import (
    check_shared, rewind, run_settings, saved_checkpoints)
from runtime.versions import versions


# -------------------------------------------------------- save and resume
def start_or_resume(folder, problems, trainer):
    """Creates the run folder, or loads its last checkpoint. Returns the
    number of steps made so far. problems: the problems to train on."""
    if trainer.rank == 0:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        settings = run_settings(trainer.cfg, problems)
        # The versions are those of the last start.
        text = json.dumps({**settings, "versions": versions()}, indent=1)
        write_whole(folder / "config.json", text)
    check_shared(folder)
    first = load_checkpoint(folder, trainer)
    if trainer.rank == 0:
        rewind(folder, first, trainer.cfg.steps)
    return first


def load_checkpoint(folder, trainer):
    """Loads the run folder's last checkpoint that can be read. Returns its
    step, or 0 if there is none. Another number of ranks may have saved it."""
    # Otherwise the planner's torch.load would run a checkpoint's code.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    own = []  # all ranks try what rank 0 sees
    if trainer.rank == 0:
        own = [*reversed(saved_checkpoints(folder).items())]
    found = gather(own)
    # This creates AdamW's tensors, in a new run too. Otherwise the first update
    # would put them into blocks of memory that it has just freed, and PyTorch
    # could then not release these blocks to the engine.
    state = checkpoint_state(trainer)
    for step, path in found:
        try:
            dcp.load(state, checkpoint_id=path)
        except dcp.CheckpointException as error:
            # An error on any rank is raised on all of them.
            skip_checkpoint(path, error, last=(step, path) == found[-1])
            continue
        set_state_dict(
            trainer.policy, trainer.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=False))  # LoRA saves only adapters
        cfg = trainer.cfg
        trainer.updates = step * (cfg.batch_size // cfg.mini_batch_size)
        print_once(f"{path}: loaded; the run resumes after step {step}")
        return step
    return 0


def skip_checkpoint(path, error, last):
    """Renames a checkpoint that cannot be read and prints why.

    error: a CheckpointException. last: whether no other checkpoint is left to
    try. The program then ends, because the user must decide whether to start
    over. It also ends if the error may be temporary."""
    causes = [cause for cause, _ in error.failures.values()]
    temporary = torch.OutOfMemoryError | OSError
    if any(isinstance(cause, temporary)
           and not isinstance(cause, FileNotFoundError) for cause in causes):
        fail(f"{path} could not be read this time ({reason(error)}). Nothing "
             "has changed: run the same command again")
    if last:
        fail(f"{path} cannot be read, and neither can any later checkpoint "
             f"({reason(error)}). Repair it, or move it away to start the run "
             "from the beginning")
    if dist.get_rank() == 0:
        number = 1
        while path.with_suffix(f".unreadable{number}").exists():
            number += 1
        aside = path.with_suffix(f".unreadable{number}")
        path.rename(aside)
        print(f"{path} cannot be read; skipped it and renamed it to "
              f"{aside.name}: {reason(error)}", flush=True)


def save_checkpoint(folder, step, trainer):
    """Saves model and optimizer in the run folder. Each rank writes its
    shards, and a rename completes the checkpoint. The last two are kept.

    After a refused update nothing is saved, because the next steps may
    show that the weights are to blame. After the last step no other step
    can show it, so the checkpoint is saved."""
    if trainer.refused and step < trainer.cfg.steps:
        print_once(f"step {step}: no checkpoint, because the last update was skipped")
        return
    final = folder / "checkpoints" / f"step_{step:06d}"
    temporary = final.with_suffix(".tmp")
    # This call returns when every rank has written.
    dcp.save(checkpoint_state(trainer), checkpoint_id=temporary)
    if trainer.rank == 0:
        reach_disk(temporary)  # dcp.save does so for its files
        temporary.rename(final)
        reach_disk(final.parent)
        for old in [*saved_checkpoints(folder).values()][:-2]:
            shutil.rmtree(old)
    dist.barrier()


def checkpoint_state(trainer):
    """Returns the states of model and optimizer, without copying any tensor."""
    # An optimizer that has made no step gets its state from get_state_dict,
    # by a step with learning rate 0, which must not count.
    fresh = not trainer.optimizer.state
    model, optimizer = get_state_dict(trainer.policy, trainer.optimizer)
    if fresh:
        for state in trainer.optimizer.state.values():
            state["step"].zero_()
    if trainer.cfg.lora_rank:  # --model has the frozen weights
        model = {name: weight for name, weight in model.items() if ".lora_" in name}
    return {"model": model, "optimizer": optimizer}


def reach_disk(path):
    """Makes sure that a file's content or a folder's list of entries
    survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


# ----------------------------------------------------------------- export
def save_hf(folder, trainer, tokenizer, stop_ids):
    """Writes an ordinary Hugging Face folder, in the dtype of the run's
    computation. Its responses end at the same tokens as the run's. LoRA's
    adapters are merged into it, and are also saved beside it in `adapter`."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(trainer.policy, options=options)
    if trainer.rank == 0:
        # fully_shard has changed the policy's class, so a plain model saves
        # the weights.
        model = plain_model(trainer.cfg, stop_ids, trainer.dtype)
        if trainer.cfg.lora_rank:
            # transformers loads some generation configs that it refuses to save.
            trainer.policy.generation_config = model.generation_config
            with whole_folder(folder.with_name("adapter")) as path:
                trainer.policy.save_pretrained(path, state_dict=state)
        # Once converted to another dtype, a tied head is no longer the same
        # tensor, and would be saved twice.
        tied = model.all_tied_weights_keys
        state = {name: weight.to(trainer.dtype)
                 for name, weight in lora.merged(state, trainer.cfg)
                 if name not in tied}
        with whole_folder(folder) as path:
            model.save_pretrained(path, state_dict=state)
            tokenizer.save_pretrained(path)
            add_older_names(path)
    dist.barrier()


def add_older_names(folder):
    """Adds to an exported folder the names that its settings have in
    transformers 4, for programs built on that version. They do not read
    rope_parameters, and would silently compute positions with another theta."""
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if "dtype" in fields:
        fields["torch_dtype"] = fields["dtype"]
    if rope := fields.get("rope_parameters"):
        older = fields | older_rope(fields["model_type"], rope)
        if same_rope(folder, older):
            fields = older
    write_whole(path, json.dumps(fields, indent=2) + "\n")

    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_whole(path, json.dumps(settings, indent=2) + "\n")


def older_rope(model_type, rope):
    """Returns the fields that transformers 4 has in place of rope_parameters."""
    older = {}
    if "full_attention" in rope:  # Gemma 3 has one theta for each kind of layer
        local = rope.get("sliding_attention") or {}
        older["rope_local_base_freq"] = local.get("rope_theta")
        rope = rope["full_attention"]
    rope = dict(rope)
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            older[name] = rope.pop(name)
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = rope
    longrope = rope.get("rope_type") == "longrope"
    if model_type == "phi3" and longrope and "factor" not in rope:
        # transformers 4 refuses any field but these three here.
        older["rope_scaling"] = {
            "type": "longrope", "short_factor": rope["short_factor"],
            "long_factor": rope["long_factor"]}
    if model_type == "gpt_neox":  # which has names of its own there
        older["rotary_emb_base"] = older["rope_theta"]
        older["rotary_pct"] = older["partial_rotary_factor"]
    return older


def same_rope(folder, older):
    """Returns whether transformers reads the same rope from a folder's
    config.json as from the fields `older`, which have both the new names and
    the old ones. Some families cannot read the two side by side."""
    with TemporaryDirectory() as other:
        # transformers reads infinite numbers, as in Falcon-H1, only from a file.
        Path(other, "config.json").write_text(json.dumps(older), encoding="utf-8")
        try:
            # transformers 4 may call the rope_type "type", which changes nothing.
            before, after = (
                {**AutoConfig.from_pretrained(path, **NO_CODE).rope_parameters,
                 "type": None} for path in (folder, other))
        except Exception:  # noqa: BLE001
            return False
    return before == after


def plain_model(cfg, stop_ids, dtype=None):
    """Returns the model that a run exports, on the meta device."""
    config = AutoConfig.from_pretrained(cfg.model, **NO_CODE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **NO_CODE)
    before = generation_file(cfg.model) or model.generation_config
    vocab_size = config.get_text_config().vocab_size

    def known(token):  # -1 stands for no token, but cannot be saved
        return token if token in range(vocab_size) else None

    model.generation_config = GenerationConfig(
        eos_token_id=stop_ids, bos_token_id=known(before.bos_token_id),
        pad_token_id=known(before.pad_token_id))
    return model


def check_export(cfg, tokenizer, stop_ids):
    """Refuses a model whose export would fail at the end of the run."""
    with (fail_as(f"--model {cfg.model}: the trained model could not be saved"),
          TemporaryDirectory() as folder):
        model = plain_model(cfg, stop_ids)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        add_older_names(Path(folder))


@contextmanager
def whole_folder(folder):
    """Yields a temporary path, which replaces the folder at the end."""
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    yield temporary
    # A run that finds this folder does not export again, so it must be complete.
    for path in (*temporary.rglob("*"), temporary):
        reach_disk(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    reach_disk(folder.parent)


# ---------------------------------------------- what a checkpoint may hold
# Everything that the .metadata file of a checkpoint may name, apart from dtypes.
PICKLED = {
    "torch.Size", "torch.serialization._get_layout",
    "pathlib.PosixPath", "pathlib._local.PosixPath",
    *(f"torch.distributed.checkpoint.{name}" for name in (
        "filesystem._StorageInfo", "metadata.Metadata",
        "metadata.MetadataIndex", "metadata.StorageMeta",
        "metadata.TensorStorageMetadata", "metadata.BytesStorageMetadata",
        "metadata.ChunkStorageMetadata", "metadata.TensorProperties",
        "metadata._MEM_FORMAT_ENCODING"))}
# Fixed before any pickle could change the class.
MEMORY_FORMAT_NAMES = frozenset(MEMORY_FORMATS.__members__)


class UnsafePickle(Exception):
    """A pickle calls something that no checkpoint of simko.py contains."""


class MetadataUnpickler(pickle.Unpickler):
    """Loads the names of PICKLED and dtypes, and nothing else."""

    def find_class(self, module, name):
        if (module, name) == ("builtins", "getattr"):
            return self.member
        is_dtype = (module == "torch" and
                    isinstance(getattr(torch, name, None), torch.dtype))
        if is_dtype or f"{module}.{name}" in PICKLED:
            return super().find_class(module, name)
        raise UnsafePickle(f"{module}.{name}")

    @staticmethod
    def member(*arguments):
        """Takes the place of getattr, through which some Pythons (such as
        Debian 12's 3.11.2) pickle a member of an enumeration.

        It takes any arguments, because a TypeError would pass for a damaged
        file, which `check_checkpoints` leaves to the loader."""
        match arguments:
            case (owner, str(name)):
                if owner is MEMORY_FORMATS and name in MEMORY_FORMAT_NAMES:
                    return getattr(owner, name)
        raise UnsafePickle("getattr")


def check_checkpoints(folder):
    """Refuses checkpoints that would run code when they are loaded.

    torch.distributed.checkpoint unpickles .metadata without any check. A
    damaged file is left to the loader, whose message names it."""
    for path in saved_checkpoints(folder).values():
        file = path / ".metadata"
        try:
            MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
        except UnsafePickle as error:
            fail(f"{file} calls {error}, which no checkpoint of this program "
                 "does: delete the checkpoint's folder, or choose another --output-dir")
        except Exception:  # noqa: BLE001, S110
            pass
