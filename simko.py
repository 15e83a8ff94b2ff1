r"""SimKO: Simple Pass@K Policy Optimization, to read beside the paper.

Reinforcement learning with verifiable rewards makes a language model
better at its first answer (pass@1) and often worse at finding an answer
in K tries (pass@K). The paper traces this to GRPO, whose updates pile
probability on the rank-1 token. SimKO changes two things, at
high-entropy tokens only. A correct response shares its gradient with
the top-K candidates (Eq. 6). A wrong response is pushed down harder
where it took the rank-1 candidate (Sec. 4.3). Both changes are in
`simko_ratio` below. The rest of this file is GRPO, with a few hooks
(`method.`) for the baselines.

    bash train.sh                        # a recipe that fits this machine
    torchrun --nproc_per_node 8 simko.py train --prompt-template qwen-math
    python simko.py eval --model runs/simko/hf --prompt-template qwen-math \
        --eval-data math500 --output-dir runs/math500
    python simko.py train --help         # all settings

The order is: settings, objective, token statistics, rollout, policy,
loop, evaluation, main. runtime/ holds what a first reading can do
without: the baselines, packing, checkpoints, checks, error messages.

Left out on purpose: value networks, reward models, tools, multi-turn
prompts, tensor-parallel training, asynchronous rollouts.
"""
import math
import os
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import (
    MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method)

from runtime import baselines, chunked, cli, faults, log, lora, responses, run_folder
from runtime.checkpoints import save_checkpoint, save_hf, start_or_resume
from runtime.cli import SystemConfig, TrainSystemConfig, setting
from runtime.data import prompt_order
from runtime.hf_engine import HFEngine
from runtime.log import Clock, Log, Progress
from runtime.models import load_model
from runtime.packing import (
    Sample, balance_across_ranks, groups_to_train_on, join, micro_batches, pack)
from runtime.probe import check_log_probs
from runtime.ranks import device_mesh, gather, process_group, sum_over_ranks
from runtime.seeding import seed_everything
from runtime.vllm_setup import kernel_options, prepare_vllm, repack_heads
from verify import Verifier


# ---------------------------------------------------------------- settings
# Defaults come from the paper, or else from the released code; docs/methods.md and
# docs/reproduce.md list the exceptions. --help shows each class under its _argument_group_name.
@dataclass
class ObjectiveConfig:
    _argument_group_name = "objective"
    method: str = setting("simko", "simko, grpo or a baseline (listed at the end of this help)")
    alpha: float = setting(0.01, "share of the gradient that the top-K tokens get (Eq. 6)")
    K: int = setting(3, "number of candidates in Eq. 6; the log has Lambda^(1) to Lambda^(K)")
    q: float = setting(0.8, "tau of Eq. 3 is this quantile of the token entropies (Sec. 5.1)")
    lambda_top1: float = setting(1.1, "factor on wrong rank-1 tokens (Sec. 4.3; Qwen2.5-7B: 1.05)")
    tau_scope: str = setting("response", "one tau per response (paper's v3) or per batch")
    epsilon: float = setting(0.2, "ratios are clipped below 1 - epsilon (Sec. 2)")
    epsilon_high: float = setting(0.2, "ratios are clipped above 1 + epsilon_high (0.28 for logic)")
    beta: float = setting(0.0, "weight of the KL penalty against the initial model (Sec. 2)")
    loss_type: str = setting(
        "grpo", "grpo: mean over each response, then over responses (Sec. 2); "
        "dapo: mean over all tokens (released code)")
    grpo_warmup_steps: int = setting(0, "GRPO steps before the method begins; logic: 50")


@dataclass
class TrainConfig:
    _argument_group_name = "training"
    train_data: str = setting(
        "math", "math, gsm8k, gsm8k-math1, synlogic, a JSONL file or a hub data set")
    steps: int = setting(140, "training steps; 140 as in the released code, 19 epochs of MATH")
    batch_size: int = setting(1024, "prompts per step, over all ranks")
    mini_batch_size: int = setting(256, "prompts per update")
    num_generations: int = setting(8, "responses per prompt (G of Sec. 2)")
    max_sampling_rounds: int = setting(
        0, "dynamic sampling: at most this many rollouts per step, until enough groups "
        "have unequal rewards; 0: one rollout, and all groups are kept")
    max_completion_length: int = setting(3072, "maximum tokens per response")
    temperature: float = setting(1.0, "temperature of the rollouts, and of pi in the loss")
    learning_rate: float = setting(1e-6, "learning rate of AdamW")
    warmup_steps: int = setting(0, "optimizer updates over which the learning rate rises")
    weight_decay: float = setting(0.0, "weight decay of AdamW; the paper names none")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    lora_rank: int = setting(0, "rank of the LoRA adapters; 0: train all weights (paper)")
    lora_alpha: float = setting(32.0, "LoRA's alpha: the weights become W + (alpha / rank) B A")
    eval_steps: int = setting(0, "steps between evaluations; 0: only one, at the end")


@dataclass
class EvalConfig:
    _argument_group_name = "evaluation"
    eval_data: list[str] = setting([], "benchmarks, groups (math, logic), JSONL files, hub sets")
    eval_n: int | None = setting(
        None, "samples per problem (default: 256; AIME and AMC: 300; logic: 128)")
    eval_temperature: list[float] | None = setting(
        None, "one or several temperatures (default: 0.6; logic: 0.7)")
    eval_top_p: float | None = setting(None, "top-p of the samples (default: 0.95)")
    eval_max_tokens: int | None = setting(
        None, "maximum tokens per response (default: 4096; logic: 8192)")


@dataclass
class RunConfig:
    _argument_group_name = "model and run"
    model: str = setting("Qwen/Qwen2.5-Math-7B", "hub id or folder")
    output_dir: str = setting("runs/simko", "folder for settings, log, checkpoints and results")
    seed: int = setting(0, "seed of the random streams, which also depend on step and rank")
    prompt_template: str = setting("chat", "chat (the model's own), qwen-math, plain or raw")
    chat_template_kwargs: dict = setting({}, "arguments for the chat template, as a JSON object")
    max_prompt_length: int = setting(1024, "maximum tokens per prompt; longer ones are left out")
    task: str = setting("math", "how answers are checked; a row may name a task of its own")


@dataclass
class Config(ObjectiveConfig, TrainConfig, EvalConfig, RunConfig, SystemConfig, TrainSystemConfig):
    """All settings."""


# --------------------------------------------------------------- objective
# These functions are pure: tensors in, tensors out.
def simko_ratio(logp, old_logp, topk_logp, is_top1, advantage, gate, alpha, lambda_top1):
    """gamma-tilde of Eq. 3, which takes gamma's place in GRPO's loss.

    logp: log pi_theta(y|s) of the sampled token y, (...,).
    old_logp: log pi_old(y|s), by the policy that sampled y, (...,). The
        paper prints pi_ref here; the released code has pi_old.
    topk_logp: log pi_theta of pi_theta's K most probable tokens, (..., K).
    is_top1: whether y is the rank-1 candidate, bool (...,).
    advantage: A of y's response, (...,).
    gate: whether pi_theta's entropy at s is above tau(q), bool (...,).

    Returns (...,). Where A > 0 its value is exactly gamma. With alpha = 0
    and lambda_top1 = 1, or where the gate is closed, it is gamma, bit for bit."""
    gamma = (logp - old_logp).exp()

    # Eq. 6 sums sg(gamma / gamma_k) gamma_k with gamma_k = pi_k / pi_old,k.
    # pi_old,k cancels, which leaves sg(gamma) pi_k / sg(pi_k).
    # This detach makes the value 1 and leaves the gradient of log pi_k.
    ratio_k = (topk_logp - topk_logp.detach()).exp()
    # sg(gamma) is a weight: only the candidates get a gradient.
    shared = gamma.detach() * ratio_k.mean(-1)
    # (1 - alpha) gamma + alpha shared, in a form that rounds to exactly gamma.
    gamma_pos = gamma + alpha * (shared - gamma)  # Eq. 6

    # lambda is in the ratio, so it acts before the clip.
    gamma_neg = torch.where(is_top1, lambda_top1 * gamma, gamma)  # Sec. 4.3

    # Eq. 3: correct responses, wrong ones, and gamma everywhere else.
    ratio = torch.where(gate & (advantage > 0), gamma_pos, gamma)
    return torch.where(gate & (advantage < 0), gamma_neg, ratio)


def clipped_loss(gamma, advantage, epsilon, epsilon_high):
    """GRPO's loss of each token (Sec. 2). Shapes: (...,)."""
    clipped = gamma.clamp(1 - epsilon, 1 + epsilon_high)
    return -torch.minimum(gamma * advantage, clipped * advantage)


def group_advantage(rewards, num_generations):
    """GRPO's advantage: each reward, standardised in its group (Sec. 2).

    rewards: (N,), one group after another. Returns (N,).
    Raises ValueError if the rewards do not form groups of at least 2."""
    if num_generations < 2 or rewards.numel() % num_generations:
        raise ValueError(f"{rewards.numel()} rewards do not form groups of {num_generations}")
    group = rewards.reshape(-1, num_generations)
    mean = group.mean(1, keepdim=True)
    std = group.std(1, keepdim=True)  # over n - 1, as in the released code
    advantage = (group - mean) / (std + 1e-6)
    # The mean of equal rewards can be off by a rounding error,
    # which must not become an advantage.
    equal = group.amax(1, keepdim=True) == group.amin(1, keepdim=True)
    return advantage.masked_fill(equal, 0).reshape(rewards.shape)


def entropy_threshold(entropy, lengths, q):
    """tau(q) of Sec. 5.1 within each response, for each of its tokens.

    The gate of Eq. 3 is open strictly above it: `entropy > tau`.
    entropy: (T,) in nats, one response after another.
    lengths: (R,) tokens of each response, at least 1. Returns (T,)."""
    entropy = entropy.detach()  # tau gets no gradient
    tau = [h.quantile(q) for h in entropy.split(lengths.tolist())]
    return entropy.new_tensor(tau).repeat_interleave(lengths)


def kl_penalty(logp, ref_logp):
    """Estimates KL(pi_theta || pi_ref) of Sec. 2 at each token, as Shao et
    al. (2024) do. The estimate is unbiased for samples of pi_theta and, but
    for rounding, never negative. Shapes: (...,)."""
    log_ratio = ref_logp - logp
    return log_ratio.exp() - log_ratio - 1


def pass_at_k(n, c, k):
    """pass@k of each problem: 1 - C(n-c, k) / C(n, k) (Sec. 5.1).

    Computed in exact integers and rounded once. n: samples per problem.
    c: (P,), how many of them are correct. Returns (P,), float64.
    Raises ValueError unless 1 <= k <= n and 0 <= c <= n."""
    if not (1 <= k <= n and ((0 <= c) & (c <= n)).all()):
        raise ValueError(
            f"pass@k needs 1 <= k <= n and 0 <= c <= n, not {k = }, {n = }, c = {c.tolist()}")
    sets = math.comb(n, k)
    values = [(sets - math.comb(n - c_i, k)) / sets for c_i in c.tolist()]
    return torch.tensor(values, dtype=torch.float64)


# -------------------------------------------------------- token statistics
def token_statistics(hidden, weight, token, K, temperature):
    """The quantities of pi_theta that the loss needs at each token.

    hidden: (T, D), the state that predicts each token.
    weight: (V, D), the output head. token: (T,).
    Returns logp (T,), topk_logp (T, K) in descending order, entropy (T,)
    in nats and is_top1 (T,), bool. All but the last have a gradient.

    This is the definition, and the reference of the tests. It holds T x V
    logits in memory. The loop calls `chunked.token_statistics`, which
    does not."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_pi = (logits / temperature).log_softmax(-1)
    logp = log_pi.gather(1, token[:, None])[:, 0]
    topk_logp = log_pi.topk(K).values
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    # Tokens that tie for the highest probability are all rank-1.
    is_top1 = logp >= topk_logp[:, 0]
    return logp, topk_logp, entropy, is_top1


def policy_forward(model, packed, K, temperature):
    """`token_statistics` of all response tokens. Because it reads the head's
    weight directly, build_model has FSDP gather the weights for this call."""
    body = model.base_model(
        input_ids=packed.tokens[None], position_ids=packed.positions[None],
        cu_seq_lens_q=packed.bounds, max_length_q=packed.longest, use_cache=False)
    hidden = body.last_hidden_state[0, packed.predicts]
    head = model.get_output_embeddings().weight
    # Cohere and Granite scale their logits, which acts as a temperature.
    temperature = temperature / chunked.logit_scale(model.config)
    return chunked.token_statistics(hidden, head, packed.targets, K, temperature)


# ----------------------------------------------------------------- rollout
# A Sample (runtime/packing.py) is one response. An engine gives it
# prompt_ids, response_ids and engine_logp. Its reward, advantage and
# old_logp are filled in below.
class VLLMEngine:
    """vLLM inside the training process, on the training GPU.

    load_format: "dummy" (random weights until the first load_weights, so
    that a mistake there is noticed) or "auto" (the weights of cfg.model).
    max_tokens: the length of the longest response that will be requested.

    With tensor_parallel_size > 1, that many neighbouring ranks share an
    engine, and `generate` is a collective call. Each rank schedules and
    samples on its own; the ranks agree because all get the same prompts in
    the same order and draw from the same random stream."""

    def __init__(self, cfg, stop_ids, device, dtype, load_format, max_tokens):
        self.on_gpu = device.type == "cuda"
        self.asleep = False
        self.stop_ids = stop_ids
        self.tp_size = cfg.tensor_parallel_size
        if self.on_gpu:
            memory = {"gpu_memory_utilization": cfg.gpu_memory_utilization,
                      "enable_sleep_mode": True}
        else:  # by default each rank would claim most of the main memory
            gib = int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", 1))
            memory = {"kv_cache_memory_bytes": gib * 2**30}
        with prepare_vllm(cfg):
            from vllm import LLM
            self.llm = LLM(
                cfg.model, load_format=load_format, dtype=dtype, seed=cfg.seed,
                max_model_len=cfg.max_prompt_length + max_tokens,
                tensor_parallel_size=cfg.tensor_parallel_size,
                # Each rank drives its own GPU. Otherwise all use cuda:0.
                distributed_executor_backend="external_launcher",
                # Log-probs of the distribution that is actually sampled from.
                logprobs_mode="processed_logprobs",
                skip_tokenizer_init=True, **kernel_options(cfg), **memory)

    def generate(self, prompts, n, temperature, top_p, max_tokens, progress, logprobs=True):
        """Returns n Samples of each prompt, one prompt after another.

        prompts: int arrays. logprobs: fill in `engine_logp`."""
        from vllm import SamplingParams
        params = SamplingParams(
            n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens,
            stop_token_ids=self.stop_ids, detokenize=False, flat_logprobs=True,
            logprobs=0 if logprobs else None)  # 0: of the sampled token only
        offset, everyone = 0, prompts
        if self.tp_size > 1:
            # Each rank of an engine passes it the prompts of all its ranks.
            rank = dist.get_rank()
            first = rank - rank % self.tp_size
            shares = gather([prompts])[first:first + self.tp_size]
            offset = sum(len(share) for share in shares[:rank - first])
            everyone = [prompt for share in shares for prompt in share]
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids.tolist()} for ids in everyone],
            params, use_tqdm=progress if progress.shown else False)
        samples = []
        for i, prompt_ids in enumerate(prompts):
            for out in outputs[offset + i].outputs:
                logp = out.logprobs.logprobs if logprobs else []
                samples.append(Sample(
                    prompt=i, prompt_ids=prompt_ids,
                    response_ids=np.array(out.token_ids, np.int64),
                    engine_logp=np.array(logp, np.float32),
                    truncated=out.finish_reason == "length"))
        return samples

    def sleep(self):
        """Frees the GPU's memory for the trainer.

        Level 2 drops the weights, whereas level 1 would keep a copy in
        pinned host memory. `load_weights` loads all of them again. If it
        missed one, `check_gap` would end the run at the next step."""
        if self.on_gpu:
            self.llm.sleep(level=2)
            self.asleep = True

    def load_weights(self, named_weights):
        """Takes (name, tensor) pairs, with Hugging Face's names."""
        if self.asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.on_gpu:
            self.llm.apply_model(repack_heads)
        # The cache holds keys and values that the old weights computed.
        self.llm.reset_prefix_cache()

    def close(self):
        if self.asleep:
            try:
                # Shutting down frees memory, which must be mapped first.
                self.llm.wake_up()
            except RuntimeError:
                return  # After an error there may be no room to wake up in.
        self.llm.llm_engine.engine_core.shutdown()  # LLM itself has no close


def score(samples, problems, tokenizer, verifier):
    """Fills in `id`, `text` and `reward` of samples. A sample's `prompt` is
    the index of its problem in `problems`."""
    texts = [tokenizer.decode(s.response_ids, skip_special_tokens=True) for s in samples]
    answers = [problems[s.prompt]["answer"] for s in samples]
    tasks = [problems[s.prompt]["task"] for s in samples]
    rewards = verifier.score(texts, answers, tasks)
    for s, text, reward in zip(samples, texts, rewards):
        s.id, s.text, s.reward = problems[s.prompt]["id"], text, reward


# ------------------------------------------------------------------ policy
class Trainer:
    """The policy under FSDP2, with its optimizer."""

    def __init__(self, cfg, device, dtype):
        self.cfg, self.device, self.dtype = cfg, device, dtype
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.policy = self.build_model()
        self.reference = None
        if cfg.beta:  # with LoRA, the policy without its adapters
            self.reference = self.policy if cfg.lora_rank else self.build_model()
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
        self.updates = 0
        self.refused = 0  # updates in a row that were not finite

    def build_model(self):
        """Loads cfg.model and shards it over the ranks.

        Trained weights are float32, since bfloat16 would round away updates
        of 1e-6. LoRA's frozen weights and all computation are in self.dtype."""
        model = load_model(self.cfg.model, dtype="auto")
        if self.cfg.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        check_log_probs(model, policy_forward, self.cfg, self.device)
        weight_dtype = torch.float32
        if self.cfg.lora_rank:
            lora.add_adapters(model, self.cfg, self.dtype)
            weight_dtype = None  # each weight keeps its own
        precision = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
        shard = partial(fully_shard, mesh=device_mesh(self.device), mp_policy=precision)
        # Layer by layer, so that no GPU ever holds the whole model in float32.
        for layer in model.base_model.layers:
            shard(layer.to(self.device, weight_dtype))
        shard(model.to(self.device, weight_dtype))
        model.policy_forward = partial(policy_forward, model)
        register_fsdp_forward_method(model, "policy_forward")
        return model

    def named_weights(self):
        """Yields (name, whole tensor) in the engine's dtype. Every rank must read
        to the end, because all of them take part in gathering a tensor."""
        weights = dict(self.policy.named_parameters())
        for name, weight in lora.merged(weights, self.cfg):
            # The detach leaves no gradient; the engine needs none.
            yield name, weight.detach().to(self.dtype).full_tensor()

    def passes(self, samples):
        """Returns this rank's micro-batches. Empty ones follow until all ranks
        have the same number, because FSDP's collectives wait for every rank.
        There is at least one, so that gradients are zero rather than None."""
        batches = micro_batches(samples, self.cfg.micro_batch_tokens)
        count = torch.tensor(max(len(batches), 1), device=self.device)
        dist.all_reduce(count, dist.ReduceOp.MAX)
        return batches + [[]] * (int(count) - len(batches))

    @torch.no_grad()
    def compute_old_logp(self, samples, progress):
        """Fills in `old_logp`, and `ref_logp` if there is a reference.

        Returns the entropies (N,) of this rank's tokens, and metrics of all
        ranks for the log, such as Lambda and Lambda^(k) of Eq. 2."""
        cfg, entropies, sums = self.cfg, [], Counter()
        for batch in progress(self.passes(samples), desc="log-probs"):
            packed = pack(batch, self.device)
            lengths = packed.lengths
            logp, topk_logp, entropy, _ = self.policy.policy_forward(
                packed, cfg.K, cfg.temperature)
            for s, part in zip(batch, logp.split(lengths.tolist())):
                s.old_logp = part
            if self.reference:
                with lora.without_adapters(self.reference, cfg):
                    ref_logp, *_ = self.reference.policy_forward(packed, 1, cfg.temperature)
                for s, part in zip(batch, ref_logp.split(lengths.tolist())):
                    s.ref_logp = part
            entropies.append(entropy)
            # Eq. 2: the mean over a response's tokens; policy_metrics divides by responses.
            length = lengths.repeat_interleave(lengths)
            sums["Lambda"] += (logp / length).sum().double()
            for k in range(cfg.K):
                sums[f"Lambda_{k + 1}"] += (topk_logp[:, k] / length).sum().double()
            sums["entropy"] += (entropy / length).sum().double()
            forking = entropy > entropy_threshold(entropy, lengths, log.FORKING)
            sums.update(log.forking_sums(topk_logp[forking]))  # Counter.update adds
            # The engine's log-probs show whether it has the same policy.
            engine_logp = [torch.from_numpy(s.engine_logp) for s in batch]
            gap = logp.cpu() - join(engine_logp, like=logp.cpu())
            sums["logp_gap"] += gap.abs().sum().double()
            sums["tokens"] += len(logp)
            sums["responses"] += len(batch)
            sums["entropy_histogram"] += log.entropy_histogram(entropy)
        for model in filter(None, (self.policy, self.reference)):
            model.reshard()  # without a backward pass the root stays gathered
        return torch.cat(entropies), log.policy_metrics(sum_over_ranks(sums))

    def update(self, samples, method_name, tau, progress):
        """Makes one optimizer step on this rank's share of a mini-batch.

        tau: one threshold for the whole batch, or None if each response
        has its own. Returns a dict of sums over all ranks for the log.

        The loss is a sum over tokens, divided once by a count over all
        ranks. So the result does not depend on how samples are split into
        micro-batches and over ranks. If the loss or its gradient is not
        finite, the weights stay as they are."""
        cfg, method = self.cfg, baselines.METHODS[method_name]
        samples = baselines.counted(samples, method)
        count = len(samples)
        if cfg.loss_type == "dapo":
            count = sum(len(s.response_ids) for s in samples)
        denominator = torch.tensor(count, device=self.device)
        dist.all_reduce(denominator)
        self.updates += 1
        warmup = min(1, self.updates / (cfg.warmup_steps + 1))
        self.optimizer.param_groups[0]["lr"] = cfg.learning_rate * warmup
        if not denominator:
            return {}  # no response is left; a step would be momentum alone
        # Samples without a gradient are counted above, but need no pass.
        samples = [s for s in samples if baselines.has_gradient(s, method, cfg.beta)]
        self.optimizer.zero_grad()
        sums, finite = Counter(), []
        for batch in progress(self.passes(samples), desc="update"):
            packed = pack(batch, self.device)
            lengths = packed.lengths
            logp, topk_logp, entropy, is_top1 = self.policy.policy_forward(
                packed, cfg.K, cfg.temperature)
            old_logp = join([s.old_logp for s in batch], like=logp)
            A = torch.tensor([s.advantage for s in batch], device=self.device)
            A = A.repeat_interleave(lengths)
            # The gate of Eq. 3. Without SimKO, only the log and some baselines read it.
            if method.choose:  # kl-cov's gate is not about entropy
                gate = join([s.chosen for s in batch], like=is_top1)
            elif tau is None:
                gate = entropy > entropy_threshold(entropy, lengths, cfg.q)
            else:
                gate = entropy > tau

            if method.uses_simko_ratio:
                gamma = simko_ratio(logp, old_logp, topk_logp, is_top1, A, gate,
                                    cfg.alpha, cfg.lambda_top1)
            else:
                gamma = (logp - old_logp).exp()
            if method.token_loss:
                loss, clipped = method.token_loss(
                    self.grpo_loss, cfg=cfg, gamma=gamma, logp=logp, old_logp=old_logp,
                    entropy=entropy, advantage=A, gate=gate, lengths=lengths)
            else:
                loss, clipped = self.grpo_loss(gamma, A)
            if cfg.beta:
                ref_logp = join([s.ref_logp for s in batch], like=logp)
                loss = loss + cfg.beta * kl_penalty(logp, ref_logp)
            if cfg.loss_type == "grpo":
                loss = loss / lengths.repeat_interleave(lengths)    # 1 / |y|

            # KL(pi_old || pi_theta), for the log: the detach leaves no gradient.
            approx_kl = kl_penalty(old_logp, logp.detach())
            # Where A > 0 the clip hides an infinite gamma from the loss,
            # though its gradient is nan. approx_kl shows it.
            finite.append((batch, (loss + approx_kl).isfinite()))
            # The mean over responses (1 / G of Sec. 2, over all prompts) or, with dapo, tokens.
            loss = loss.sum() / denominator
            # FSDP averages gradients over ranks. We want their sum.
            (loss * self.world).backward()
            sums["loss"] += loss.detach()  # the log needs no gradient
            sums["gated_tokens"] += gate.sum()
            sums["distinct_tokens"] += log.distinct_tokens(
                topk_logp[gate], cfg.num_generations).sum()
            sums["clipped_tokens"] += clipped.sum()
            sums["approx_kl"] += approx_kl.sum()
            sums["tokens"] += lengths.sum()
        sums = sum_over_ranks(sums)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), cfg.max_grad_norm)
        sums["grad_norm"] = norm.full_tensor().item()
        sums["updates"] = 1
        # Loss and norm are the same on all ranks, so all decide alike.
        if not math.isfinite(sums["loss"] + sums["grad_norm"]):
            faults.refuse_update(self, finite, sums["loss"], sums["grad_norm"])
            return {"grad_norm": math.nan}  # null in the log
        self.refused = 0
        self.optimizer.step()
        return sums

    def grpo_loss(self, gamma, advantage):
        """Returns the loss of each token, and whether the clip has cut its gradient."""
        loss = clipped_loss(gamma, advantage, self.cfg.epsilon, self.cfg.epsilon_high)
        return loss, loss > -gamma * advantage


# -------------------------------------------------------------------- loop
def train_step(step, cfg, problems, tokenizer, engine, trainer, verifier, progress):
    """Rollouts, and batch_size // mini_batch_size updates on them.
    Returns a row for metrics.jsonl."""
    rank, world, clock = trainer.rank, trainer.world, Clock(trainer.device)
    method_name = "grpo" if step < cfg.grpo_warmup_steps else cfg.method
    method = baselines.METHODS[method_name]

    # Each rank samples for its share of the prompts, and receives all samples.
    # There is one round, unless groups with equal rewards are to be replaced.
    max_rounds = max(cfg.max_sampling_rounds, 1)
    rounds, groups, sampled = 0, [], []
    while len(groups) < cfg.batch_size and rounds < max_rounds:
        # A step owns max_rounds batches, used or not, so that its prompts
        # do not depend on how many rounds the steps before it took.
        batch = step * max_rounds + rounds
        order = prompt_order(batch, cfg.batch_size, len(problems), cfg.seed)
        own_problems = [problems[i] for i in order[rank::world]]
        # The last number is even here and 1 in `evaluate`, so the random streams differ.
        seed_everything(cfg.seed, step, rank // cfg.tensor_parallel_size, 2 * rounds)
        samples = engine.generate(
            [problem["prompt_ids"] for problem in own_problems],
            cfg.num_generations, cfg.temperature, top_p=1.0,
            max_tokens=cfg.max_completion_length, progress=progress)
        clock.lap("rollout")
        score(samples, own_problems, tokenizer, verifier)
        for s in samples:
            s.prompt = rank + world * s.prompt  # its place among all prompts
        sampled += sorted(gather(samples), key=lambda s: s.prompt)
        groups = groups_to_train_on(sampled, cfg)
        rounds += 1
        clock.lap("reward")
    engine.sleep()
    faults.check_groups(step, groups, cfg)
    clock.lap("rollout")

    samples = [s for group in groups for s in group]
    rewards = torch.tensor([s.reward for s in samples])
    advantage_of = method.advantage or group_advantage
    advantages = advantage_of(rewards, cfg.num_generations) if samples else rewards
    for s, advantage in zip(samples, advantages.tolist()):
        s.advantage = advantage

    # Mini-batches are cut before the ranks share them, so that a single rank would make
    # the same updates. If groups are missing, the last mini-batches are smaller.
    size = cfg.mini_batch_size * cfg.num_generations
    starts = range(0, cfg.batch_size * cfg.num_generations, size)
    mini_batches = [balance_across_ranks(samples[i:i + size], rank, world) for i in starts]
    own_samples = [s for mini_batch in mini_batches for s in mini_batch]
    with faults.phase("computation of log-probs"):
        entropies, metrics = trainer.compute_old_logp(own_samples, progress)
        faults.check_gap(metrics["logp_gap"], own_samples, trainer.dtype)
        tau = baselines.batch_threshold(entropies, method, cfg)
        if method.choose and samples:
            method.choose(own_samples)
    clock.lap("logprobs")

    totals = Counter()
    with faults.phase("update"):
        for mini_batch in mini_batches:
            totals.update(trainer.update(mini_batch, method_name, tau, progress))
        trainer.optimizer.zero_grad()  # frees the gradients' memory
    clock.lap("update")
    engine.load_weights(trainer.named_weights())
    clock.lap("sync")
    return {
        "step": step + 1, "method": method_name, "sampling_rounds": rounds,
        **log.rollout_metrics(sampled, cfg.num_generations),
        **metrics, **log.update_metrics(totals),
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        **clock.metrics(rollout=sum(len(s.response_ids) for s in sampled),
                        logprobs=metrics["tokens"], update=totals["tokens"])}


# -------------------------------------------------------------- evaluation
def evaluate(cfg, folder, benchmarks, tokenizer, engine, verifier, progress):
    """Samples n responses to each problem of each benchmark, and writes
    pass@K to folder/eval.json and to the screen. Returns {LABEL: results}.

    Each response goes to folder/LABEL.jsonl with its verdict. If an
    evaluation is stopped, the same call resumes after the last complete
    chunk of problems. With the same number of ranks it draws the same
    samples, which are a function of (seed, chunk, rank)."""
    rank, world = dist.get_rank(), dist.get_world_size()
    chunk, results = 64, {}
    for benchmark in benchmarks:
        n, problems = benchmark.n, benchmark.problems
        path = folder / f"{benchmark.label}.jsonl"
        done = responses.resume(path, benchmark, cfg, n * chunk) if rank == 0 else []
        rows = gather(done)
        starts = range(len(rows) // n, len(problems), chunk)
        for start in progress(starts, desc=benchmark.label):
            own = problems[start:start + chunk][rank::world]
            seed_everything(cfg.seed, start, rank // cfg.tensor_parallel_size, 1)
            samples = engine.generate(
                [problem["prompt_ids"] for problem in own], n,
                benchmark.temperature, benchmark.top_p,
                benchmark.max_tokens, progress, logprobs=False)
            score(samples, own, tokenizer, verifier)
            new = gather([responses.to_row(s) for s in samples])
            if rank == 0:
                responses.append(path, new)
            rows += map(responses.verdict, new)
        correct = {problem["id"]: 0 for problem in problems}
        for row in rows:
            correct[row["id"]] += row["correct"]
        c = torch.tensor(list(correct.values()))
        ks = [2**i for i in range(n.bit_length())]
        results[benchmark.label] = {
            **benchmark.about(cfg), "correct": correct,
            "truncated": sum(row["truncated"] for row in rows) / len(rows),
            "pass": {k: pass_at_k(n, c, k).mean().item() for k in ks}}
    if rank == 0:
        responses.report(folder, cfg, results)
    return results


# -------------------------------------------------------------------- main
def make_engine(cfg, *arguments):
    """Builds the engine that --rollout names, with the arguments of VLLMEngine."""
    Engine = VLLMEngine if cfg.rollout == "vllm" else HFEngine
    return Engine(cfg, *arguments)


def main(arguments):
    job = cli.prepare(arguments, Config)
    cfg, tokenizer, training = job.cfg, job.tokenizer, job.command == "train"
    folder = Path(cfg.output_dir)
    with (process_group() as device, Verifier() as verifier,
          faults.explained(cfg, verifier) as stack):
        stack.enter_context(run_folder.claimed(folder))
        rank = dist.get_rank()
        dtype = getattr(torch, cfg.dtype)
        progress = Progress(rank == 0 and sys.stderr.isatty())
        cli.check_ranks_agree(job)
        cli.announce(job, device, dtype)

        # The engine starts first, while a GPU's memory is free, and then sleeps.
        start = partial(make_engine, cfg, job.stop_ids, device, dtype,
                        "dummy" if training else "auto", job.max_tokens)
        engine = faults.GuardedEngine(start, shared=cfg.tensor_parallel_size > 1)
        stack.enter_context(closing(engine))
        run_eval = partial(evaluate, cfg, benchmarks=job.benchmarks, tokenizer=tokenizer,
                           engine=engine, verifier=verifier, progress=progress)
        if not training:
            run_eval(folder)
            dist.barrier()
            return

        engine.sleep()
        with faults.phase("loading of the policy"):
            trainer = Trainer(cfg, device, dtype)
            first = start_or_resume(folder, job.problems, trainer)
        write_row = Log(folder, first, cfg) if rank == 0 else None
        engine.load_weights(trainer.named_weights())
        faults.try_sampling(cfg, job.benchmarks, engine, progress)

        def evaluate_after(steps):
            results = run_eval(folder / f"eval_{steps:06d}")
            if rank == 0:
                write_row.add_pass_rates(steps, results)

        try:
            for step in range(first, cfg.steps):
                if job.benchmarks and cfg.eval_steps and step % cfg.eval_steps == 0:
                    evaluate_after(step)
                row = train_step(step, cfg, job.problems, tokenizer, engine,
                                 trainer, verifier, progress)
                if rank == 0:
                    write_row(row)
                    faults.check_rewards(folder / "metrics.jsonl")
                if (step + 1) % cfg.save_steps == 0 or step + 1 == cfg.steps:
                    save_checkpoint(folder, step + 1, trainer)
        except faults.Stopped:
            # Raised in a rollout, on every rank, after `step` whole steps.
            if step > first and step % cfg.save_steps:
                save_checkpoint(folder, step, trainer)
            raise
        exported = gather([(folder / "hf").exists()])[0]  # as rank 0 sees it
        if first < cfg.steps or not exported:
            with faults.phase("export"):
                save_hf(folder / "hf", trainer, tokenizer, job.stop_ids)
        if job.benchmarks:
            evaluate_after(cfg.steps)
        # Closing vLLM's engine ends the process group, so all ranks wait.
        dist.barrier()


if __name__ == "__main__":
    faults.run(main)
