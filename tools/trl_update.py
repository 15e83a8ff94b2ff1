"""Compares updates of simko.py with those of TRL's GRPOTrainer and of
SimKOTrainer (tools/trl_trainer.py), which adds SimKO to it.

    TRL_ENV/bin/python -m tools.trl_update

TRL_ENV is an environment with TRL 1.16 and this project's packages. Both
sides get the same random model, prompts, responses and rewards. The
reference, the old and the current policy differ, so that some ratios are
clipped and the KL penalty is not 0. TRL runs its own training loop, but does
not sample.

A row of the printed table is a case. A cell says how far the two sides are
apart: for advantages, log-probs and entropies the largest difference, for the
other columns ||ours - TRL's|| / ||TRL's||. After the first column, both sides
use TRL's advantages. "gradient" is the gradient before clipping, and "step" is
what AdamW adds to the weights. TRL logs KL and clip as means over
micro-batches.
"""
import importlib.util
import os
import sys
import tempfile
from contextlib import redirect_stdout
from unittest import mock

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

import simko
from runtime import faults
from runtime.packing import Sample, pack
from runtime.ranks import process_group
from tools import command_line
from tools.laptop import make_tokenizer
from tools.measuring import QUIET, show, table
from tools.random_models import shape_of

GROUP, LONGEST = 6, 12  # responses of a prompt, and tokens of a response
REWARDS = [1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]
SHARED = {  # settings with the same name on both sides
    "learning_rate": 1e-3, "epsilon": 0.2, "epsilon_high": 0.28, "max_grad_norm": 1.0,
    "num_generations": GROUP, "max_completion_length": LONGEST, "gradient_checkpointing": False}
SIMKO = {"alpha": 0.2, "q": 0.5, "lambda_top1": 1.5}  # so strong that each part shows
DAPO, KL, SPLIT = {"loss_type": "dapo"}, {"beta": 0.04}, {"gradient_accumulation_steps": 4}
CASES = {  # name: (further settings of both sides, settings of TRL alone)
    "grpo": ({}, {}),
    "grpo, T 0.7, KL, split": (KL | {"temperature": 0.7}, SPLIT),
    "dapo": (DAPO, {}),
    "dapo, T 0.7, KL, split": (DAPO | KL | {"temperature": 0.7}, SPLIT),
    "grpo, KL; TRL's default KL": (KL, {"use_bias_correction_kl": True}),
    "dapo; bnpo": (DAPO, {"loss_type": "bnpo"}),
    "dapo; bnpo, split": (DAPO, SPLIT | {"loss_type": "bnpo"}),
    "dapo; dr_grpo": (DAPO, {"loss_type": "dr_grpo"}),
    "grpo; truncated masked": ({}, {"mask_truncated_completions": True}),
    "simko": ({}, {}),
    "simko, T 0.7, KL, split": (KL | {"temperature": 0.7}, SPLIT),
}
COLUMNS = (
    "advantages", "log-probs", "entropies", "clip", "KL", "loss", "norm", "gradient", "step")


def make_samples(folder):
    """Saves a random model with the laptop's tokenizer. Returns samples for it, in
    which every second token is rank-1, so that lambda acts, and the others are
    random."""
    config, tokenizer = shape_of("laptop"), make_tokenizer()
    config.initializer_range = 0.15  # with the default all tokens are about equally likely
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    move(model, 1)
    move(model, 2)  # the weights that the current policy will have
    tokenizer.save_pretrained(folder)
    rng, samples = np.random.default_rng(0), []
    for i, rewards in enumerate(REWARDS):
        prompt = rng.integers(3, config.vocab_size, size=rng.integers(3, 10))
        for reward in rewards:
            length = rng.integers(1, LONGEST + 6)
            ids = rng.integers(3, config.vocab_size, size=min(length, LONGEST))
            for place in range(0, len(ids), 2):
                ids[place] = most_probable(model, [*prompt, *ids[:place]])
            if length <= LONGEST:
                ids[-1] = config.eos_token_id
            samples.append(Sample(
                i, prompt, ids, np.zeros(len(ids)), length > LONGEST, reward=float(reward)))
    return samples


@torch.no_grad()
def most_probable(model, ids):
    """Returns the most probable next token that is not a special one."""
    logits = model(torch.tensor([ids])).logits[0, -1]
    return 3 + int(logits[3:].argmax())


def local(tensor):
    """Returns a plain tensor for one that may be sharded (over one rank)."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def flat(tensors):
    """Copies tensors into one vector."""
    return torch.cat([local(tensor).detach().flatten() for tensor in tensors])


@torch.no_grad()
def move(model, seed):
    """Adds seeded noise to all weights."""
    rng = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        local(weight).add_(0.01 * torch.randn(weight.shape, generator=rng))


def trl_update(folder, samples, settings, method):
    """Returns {column: TRL's value}."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from tools.trl_trainer import SimKOTrainer
    base = type("Strong", (SimKOTrainer,), SIMKO) if method == "simko" else GRPOTrainer
    mask = pad_sequence([torch.ones(len(s.response_ids)) for s in samples], batch_first=True)
    seen = {}

    class Replay(base):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
            passed = tokens, torch.cat([batch["prompt_mask"], mask.long()], 1), mask.shape[1]
            with torch.no_grad():
                old_logp, *_ = self._get_per_token_logps_and_entropies(self.model, *passed)
                move(self.model, 2)
                logp, entropy, _ = self._get_per_token_logps_and_entropies(
                    self.model, *passed, compute_entropy=True)
            seen["log-probs"], seen["entropies"] = logp[mask > 0], entropy[mask > 0]
            seen["advantages"] = batch["advantages"]
            seen["before"] = flat(self.model.parameters())
            return batch | {"old_per_token_logps": old_logp}

        def _clip_grad_norm(self, model):
            seen["gradient"] = flat(weight.grad for weight in model.parameters())
            return super()._clip_grad_norm(model)

    def rollout(prompts, trainer):
        return {"prompt_ids": [s.prompt_ids.tolist() for s in samples], "logprobs": None,
                "completion_ids": [s.response_ids.tolist() for s in samples]}

    size = len(samples) // settings.get("gradient_accumulation_steps", 1)
    config = GRPOConfig(
        **settings, output_dir=folder, per_device_train_batch_size=size, max_steps=1,
        logging_steps=1, model_init_kwargs={"dtype": "float32"}, bf16=False, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True)
    trainer = Replay(
        folder, lambda **_: [s.reward for s in samples], config,
        Dataset.from_dict({"prompt": ["-"] * len(REWARDS)}), rollout_func=rollout)
    move(trainer.model, 1)
    with redirect_stdout(sys.stderr):
        trainer.train()
    log = trainer.state.log_history[0]
    return seen | {
        "clip": log["clip_ratio/region_mean"], "KL": log.get("kl", 0.0), "loss": log["loss"],
        "norm": log["grad_norm"], "step": flat(trainer.model.parameters()) - seen["before"]}


def our_update(cfg, samples, advantages):
    """Returns {column: our value}, with the given advantages. Sets the samples'
    advantages and log-probs."""
    with mock.patch.dict(os.environ), process_group() as device:
        trainer = simko.Trainer(cfg, device, torch.float32)
        policy = trainer.policy
        move(policy, 1)
        trainer.compute_old_logp(samples, QUIET)
        move(policy, 2)
        with torch.no_grad():
            logp, _, entropy, _ = policy.policy_forward(
                pack(samples, device), cfg.K, cfg.temperature)
        policy.reshard()
        for s, advantage in zip(samples, advantages.tolist()):
            s.advantage = advantage
        before = flat(policy.parameters())
        sums = trainer.update(samples, cfg.method, None, QUIET)
        gradient = flat(weight.grad for weight in policy.parameters())
        step = flat(policy.parameters()) - before
    kl = 0.0
    if cfg.beta:
        kl = simko.kl_penalty(logp, torch.cat([s.ref_logp for s in samples])).mean().item()
    rewards = torch.tensor([s.reward for s in samples])
    return {
        "advantages": simko.group_advantage(rewards, GROUP), "log-probs": logp, "KL": kl,
        "entropies": entropy, "clip": sums["clipped_tokens"] / len(logp), "loss": sums["loss"],
        "norm": sums["grad_norm"], "step": step,
        "gradient": gradient * max(sums["grad_norm"] / cfg.max_grad_norm, 1)}


def apart(column, ours, trl):
    """Returns a cell of the table: how far ours[column] and trl[column] are apart."""
    ours, trl = (torch.as_tensor(side[column]).double() for side in (ours, trl))
    if column in ("advantages", "log-probs", "entropies"):
        return (ours - trl).abs().max().item()
    return ((ours - trl).norm() / trl.norm()).item() if trl.norm() else "-"


def main(arguments):
    parser = command_line(__file__, __doc__)
    parser.parse_args(arguments)
    if not importlib.util.find_spec("trl"):
        parser.error("this Python has no TRL: use the Python of an environment with TRL")
    table("ours; TRL's", *COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        samples = make_samples(folder)
        for case, (both, alone) in CASES.items():
            method = "simko" if case.startswith("simko") else "grpo"
            settings = SHARED | {"loss_type": "grpo", "use_bias_correction_kl": False}
            trl = trl_update(folder, samples, settings | both | alone, method)
            cfg = simko.Config(
                model=folder, micro_batch_tokens=64, method=method, **SHARED, **SIMKO, **both)
            ours = our_update(cfg, samples, trl["advantages"])
            show(case, *(apart(column, ours, trl) for column in COLUMNS))


if __name__ == "__main__":
    main(sys.argv[1:])
    faults.end_process()
