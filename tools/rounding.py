"""Measures how much rounding to bfloat16 changes what SimKO does.

    python -m tools.rounding --model MODEL --train-data FILE

All flags are those of simko.py train. The model samples --num-generations
responses to --batch-size prompts, in float32. A random half of them counts
as correct, so that every response has a gradient. Then the first update on
these responses is computed four times: with GRPO and with SimKO, each in
float32 and in bfloat16. The weights are the same and do not change.

The rows of the printed table are shares in percent, except for the first.
"tie" means that the logits round to the same number. "SimKO's part" is
SimKO's gradient minus GRPO's.
"""
import os
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

import simko
from runtime import cli, faults
from runtime.data import prompt_order
from runtime.packing import pack
from runtime.ranks import process_group
from tools import command_line
from tools.measuring import QUIET, show, table

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
    grpo, simko: the gradients, as vectors in float32."""
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
    for method in ("grpo", "simko"):
        trainer.update(samples, method, None, QUIET)
        trained = [w for w in trainer.policy.parameters() if w.requires_grad]
        found[method] = torch.cat([w.grad.full_tensor().flatten() for w in trained]).float().cpu()
    return found


def norm(vector):
    return vector.double().norm().item()


def own_rows(found):
    """Returns {row: number} of one dtype."""
    gate = found["gate"]

    def share(name):
        return 100 * found[name][gate].double().mean().item()

    part = norm(found["simko"] - found["grpo"])
    return {
        "gated tokens": 100 * gate.double().mean().item(),
        "gated tokens that are rank-1": share("is_top1"),
        "gated tokens with a tie at rank 1": share("tie_top1"),
        "gated tokens with a tie of ranks K and K + 1": share("tie_K"),
        "SimKO's part of the gradient / GRPO's gradient": 100 * part / norm(found["grpo"])}


def differences(exact, rounded):
    """Returns {row: number} of a dtype against float32."""
    gate = exact["gate"]

    def changed(name):
        return 100 * (exact[name] != rounded[name])[gate].double().mean().item()

    def apart(vector, other):
        return 100 * norm(vector - other) / norm(vector)

    parts = [found["simko"] - found["grpo"] for found in (exact, rounded)]
    gap = (exact["logp"] - rounded["logp"]).abs()
    return {
        "mean difference of log-probs, nats": gap.double().mean().item(),
        "gated tokens whose gate closes": changed("gate"),
        "gated tokens that become or cease to be rank-1": changed("is_top1"),
        "change of GRPO's gradient": apart(exact["grpo"], rounded["grpo"]),
        "change of SimKO's gradient": apart(exact["simko"], rounded["simko"]),
        "change of SimKO's part": apart(*parts)}


def main(arguments):
    parser = command_line(__file__, __doc__)
    _, flags = parser.parse_known_args(arguments)
    if not flags:
        parser.error("name a model and problems with --model and --train-data")
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        job = cli.prepare(
            ["train", *flags, "--rollout", "hf", "--method", "simko", "--output-dir", folder],
            simko.Config)
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
    main(sys.argv[1:])
    faults.end_process()
