"""Measures how much rounding to bfloat16 changes what SimKO does.

    python -m tools.rounding --model MODEL --train-data FILE

The flags are those of simko.py train. The model samples --num-generations
responses to --batch-size prompts, in float32. A random half of each group
counts as correct, so that every response has a gradient. Then one update on
all of these responses (whatever --mini-batch-size says) is computed in
float32 and in bfloat16, from the same weights.

All numbers but the log-probs are percentages. "tie" means that the logits
round to the same number. "SimKO's part" is what SimKO adds to GRPO's gradient,
computed on its own: the difference of two rounded gradients would also hold
the rounding errors of both.
"""
import math
import os
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from transformers import AutoConfig

import simko
from runtime import cli, faults
from runtime.common import fail
from runtime.data import prompt_order
from runtime.models import NO_CODE
from runtime.packing import pack
from runtime.ranks import process_group
from tools import allow_head, command_line
from tools.measuring import QUIET, show, table
from tools.trl_update import flat

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def sampled(job, device):
    """Returns the samples with random rewards and their advantages."""
    cfg = job.cfg
    order = prompt_order(0, cfg.batch_size, len(job.problems), cfg.seed)
    prompts = [job.problems[i]["prompt_ids"] for i in order]
    arguments = cfg, job.stop_ids, device, torch.float32, "auto", cfg.max_completion_length
    torch.manual_seed(cfg.seed)
    with closing(simko.make_engine(*arguments)) as engine:
        samples = engine.generate(
            prompts, cfg.num_generations, cfg.temperature, 1.0,
            cfg.max_completion_length, QUIET)
    right = [2 * i < cfg.num_generations for i in range(cfg.num_generations)]
    rng = np.random.default_rng(cfg.seed)
    rewards = np.concatenate([rng.permutation(right) for _ in prompts])
    advantages = simko.group_advantage(torch.tensor(rewards).float(), cfg.num_generations)
    for sample, advantage in zip(samples, advantages.tolist()):
        sample.advantage = advantage
    return samples


def measured(cfg, samples, device, dtype):
    """Returns what an update on the samples decides and computes in a dtype.

    logp, gate, is_top1, tie_top1, tie_K: (T,), of all tokens.
    grpo, simko, part: the gradients, as vectors in float32."""
    trainer = simko.Trainer(cfg, device, dtype)
    trainer.compute_old_logp(samples, QUIET)
    tokens = {name: [] for name in ("logp", "gate", "is_top1", "tie_top1", "tie_K")}
    for batch in trainer.passes(samples):
        packed = pack(batch, device)
        with torch.no_grad():
            logp, topk_logp, entropy, is_top1 = trainer.policy.policy_forward(
                packed, cfg.K + 1, cfg.temperature)
        tau = simko.entropy_threshold(entropy, packed.lengths, cfg.q)
        equal = topk_logp[:, 1:] == topk_logp[:, :-1]
        for name, values in zip(tokens, (logp, entropy > tau, is_top1, equal[:, 0], equal[:, -1])):
            tokens[name].append(values.cpu())
    trainer.policy.reshard()  # without a backward pass the root stays gathered
    found = {name: torch.cat(values) for name, values in tokens.items()}
    trained = [weight for weight in trainer.policy.parameters() if weight.requires_grad]

    def gradient(method):
        trainer.update(samples, method, None, QUIET)
        return flat(weight.grad for weight in trained).cpu()

    found |= {"grpo": gradient("grpo"), "simko": gradient("simko")}
    with mock.patch.object(simko, "simko_ratio", part_of_ratio):
        found["part"] = gradient("simko")
    return found


def part_of_ratio(logp, old_logp, *others, ratio=simko.simko_ratio):
    """Returns SimKO's ratio with the gradient of SimKO's ratio minus GRPO's."""
    gamma = (logp - old_logp).exp()
    # The detach leaves the value of gamma and takes away GRPO's gradient.
    return ratio(logp, old_logp, *others) - gamma + gamma.detach()


def relative(vector, base):
    """Returns ||vector|| / ||base|| in percent."""
    size = base.double().norm().item()
    return 100 * vector.double().norm().item() / size if size else math.nan


def own_rows(found):
    """Returns {row: number} of one dtype."""
    gate = found["gate"]

    def share(name):
        return 100 * found[name][gate].double().mean().item()

    return {
        "gated tokens": 100 * gate.double().mean().item(),
        "gated tokens that are rank-1": share("is_top1"),
        "gated tokens with a tie at rank 1": share("tie_top1"),
        "gated tokens with a tie of ranks K and K + 1": share("tie_K"),
        "SimKO's part of the gradient / GRPO's gradient": relative(found["part"], found["grpo"])}


def differences(exact, rounded):
    """Returns {row: number} of a dtype against float32."""
    gate = exact["gate"]

    def changed(name):
        return 100 * (exact[name] != rounded[name])[gate].double().mean().item()

    def change(name):
        return relative(rounded[name] - exact[name], exact[name])

    gap = (exact["logp"] - rounded["logp"]).abs()
    return {
        "mean difference of log-probs, nats": gap.double().mean().item(),
        "gated tokens whose gate closes": changed("gate"),
        "gated tokens that become or cease to be rank-1": changed("is_top1"),
        "change of GRPO's gradient": change("grpo"),
        "change of SimKO's gradient": change("simko"),
        "change of SimKO's part": change("part")}


def main(arguments):
    parser = command_line(__file__, __doc__)
    _, flags = parser.parse_known_args(arguments)
    if not flags:
        parser.error("name a model and problems with --model and --train-data")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        fail("tools.rounding runs in one process: start it without torchrun")
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        job = cli.prepare(
            ["train", *flags, "--rollout", "hf", "--method", "simko", "--output-dir", folder],
            simko.Config)
        if job.cfg.tau_scope != "response":
            fail("--tau-scope batch is not measured: leave it out")
        config = AutoConfig.from_pretrained(job.cfg.model, **NO_CODE)
        if job.cfg.K == config.get_text_config().vocab_size:
            fail(f"--K {job.cfg.K} is the whole vocabulary, so no rank K + 1 can tie with rank K: "
                 "choose a smaller number")
        # Neither the optimizer nor the clip may change anything.
        cfg = replace(job.cfg, learning_rate=0.0, max_grad_norm=float("inf"))
        with process_group() as device:
            samples = sampled(job, device)
            exact, rounded = (measured(cfg, samples, device, dtype) for dtype in DTYPES.values())
    print(f"{len(samples)} responses, {len(exact['logp'])} tokens")
    table("", *DTYPES)
    for (name, number), other in zip(own_rows(exact).items(), own_rows(rounded).values()):
        show(name, number, other)
    table("bfloat16 against float32", "")
    for name, number in differences(exact, rounded).items():
        show(name, number)


if __name__ == "__main__":
    allow_head()
    main(sys.argv[1:])
    faults.end_process()
