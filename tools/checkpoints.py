"""simko.py's checkpoints, which a run goes on from, and its export as an ordinary Hugging Face folder."""
import os
import shutil

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (StateDictOptions, get_model_state_dict, get_state_dict,
                                                     set_state_dict)
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from simko import gather
from tools.faults import skip_checkpoint


def checkpoint_state(trainer):
    return dict(zip(("model", "optimizer"), get_state_dict(trainer.policy, trainer.optimizer)))


def save_checkpoint(folder, step, trainer):
    """Model and optimizer, each rank its shards; the rename is what makes it a checkpoint. Keeps the last two.
    After a refused update it saves nothing: what comes next may show that the weights are to blame."""
    if trainer.refused:
        return
    temporary = folder / f"step_{step:06d}.tmp"
    if trainer.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    dist.barrier()
    dcp.save(checkpoint_state(trainer), checkpoint_id=temporary)  # comes back when every rank has written
    if trainer.rank == 0:
        reach_disk(temporary)
        temporary.rename(folder / f"step_{step:06d}")
        reach_disk(folder)
        for old in sorted(folder.glob("step_??????"))[:-2]:
            shutil.rmtree(old)
    dist.barrier()


def reach_disk(folder):
    """A folder's entries are on the disk, as dcp.save has seen to for its files: after a power cut they are there."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def load_checkpoint(folder, trainer):
    """Loads the last checkpoint that can be read and returns its step; 0 if there is none at all. It may have been
    saved by another number of ranks."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # the default planner's torch.load would run a checkpoint's code
    found = gather(sorted(folder.glob("step_" + 6 * "[0-9]"), reverse=True) if trainer.rank == 0 else [])
    for path in found:
        state = checkpoint_state(trainer)
        try:
            dcp.load(state, checkpoint_id=path)
        except dcp.CheckpointException as error:  # of any rank, on every rank
            skip_checkpoint(path, error, last=path == found[-1])
            continue
        set_state_dict(trainer.policy, trainer.optimizer, model_state_dict=state["model"],
                       optim_state_dict=state["optimizer"])
        step = int(path.name.removeprefix("step_"))
        trainer.updates = step * (trainer.cfg.batch // trainer.cfg.mini_batch)
        return step
    return 0


def save_hf(folder, trainer, tokenizer, stop_ids):
    """An ordinary Hugging Face folder, in the dtype the run computed with; its responses end where the run's did."""
    state = get_model_state_dict(trainer.policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if trainer.rank == 0:
        with torch.device("meta"):  # a plain model to hang the weights on: fully_shard made the policy's class another
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(trainer.cfg.model), dtype=trainer.dtype)
        before = trainer.policy.generation_config
        model.generation_config = GenerationConfig(eos_token_id=stop_ids, bos_token_id=before.bos_token_id,
                                                   pad_token_id=before.pad_token_id)
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, state_dict={name: weight.to(trainer.dtype) for name, weight in state.items()})
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    dist.barrier()
