"""SimKO: Simple Pass@K Policy Optimization, in one file to read beside the paper.

RLVR with GRPO makes a model better at its first answer (pass@1) and worse at finding one in K tries (pass@K), because
every update piles probability on the rank-1 token. SimKO changes two things, at high-entropy tokens only: a correct
response shares its gradient with the top-K candidates (Eq. 6), a wrong one is pushed down harder where it took the
rank-1 candidate (Sec. 4.3). Both live in `simko_ratio` below; the rest is what a real run needs: vLLM rollouts in the
training process, a rule-based reward (verify.py), FSDP2 updates on packed tokens, evaluation, checkpoints.

    bash train.sh                                       # picks a recipe by the hardware, makes its own environment
    torchrun --nproc_per_node 8 simko.py train --model Qwen/Qwen2.5-Math-7B --prompt-template qwen-math
    python simko.py eval --model runs/simko/hf --prompt-template qwen-math --eval-data math500 --output runs/math500
    python simko.py train --help                        # every setting, where its default comes from

Left out on purpose: value networks, reward models, multi-turn and tools, LoRA, tensor-parallel training, asynchronous
rollouts, models with logit soft-capping or an output bias. Read on: settings, objective, token statistics, rollout,
update, main. What a first reading can do without is in tools/: data.py (data sets), prompts.py, checks.py (before a
run), hf_rollout.py (without vLLM), evaluation.py, checkpoints.py, log.py, faults.py (when something goes wrong).
"""
import dataclasses
import json
import math
import os
import random
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm
from transformers.hf_argparser import HfArg
from transformers.utils import logging as transformers_logging


# ------------------------------------------------------------------------------------------------------- settings
@dataclass
class RunConfig:
    _argument_group_name = "model and run"
    model: str = HfArg(default="Qwen/Qwen2.5-Math-7B", help="hub id or folder (Sec. 5.1)")
    output: str = HfArg(default="runs/simko", help="run folder: settings, metrics, checkpoints, evaluations")
    seed: int = HfArg(default=0, help="every random stream is a function of (seed, step, rank)")
    task: str = HfArg(default="math", help="how answers are checked where rows name no task: see verify.TASKS")
    data_dir: str = HfArg(default="", help="folder of NAME.jsonl instead of the hub: python tools/data.py writes it")
    prompt_template: str = HfArg(default="chat", help="chat (the model's own), qwen-math, plain, raw: tools/prompts.py")
    max_prompt_tokens: int = HfArg(default=1024, help="longer prompts are dropped and counted (released recipe)")
    rollout: Literal["auto", "vllm", "hf"] = HfArg(default="auto", help="auto: vLLM where it can be imported")
    dtype: Literal["auto", "bfloat16", "float32"] = HfArg(default="auto", help="compute; auto: bfloat16 on GPUs")
    engine_memory: float = HfArg(default=0.6, help="vLLM's share of GPU memory; on CPUs the GiB of its KV cache")
    tensor_parallel: int = HfArg(default=1, help="neighbouring ranks of a node that share a vLLM engine")


@dataclass
class ObjectiveConfig:
    _argument_group_name = "objective"
    method: Literal["simko", "grpo", "psr", "nsr", "w-reinforce", "forking", "entropy-adv", "kl-cov", "pass-at-k"] = (
        HfArg(default="simko", help="see METHODS"))
    alpha: float = HfArg(default=0.01, help="share of a correct token's gradient given to the top-K, Eq. 6 (Sec. 5.1)")
    K: int = HfArg(default=3, help="number of candidates in Eq. 6 and of the logged Lambda^(k) (Sec. 3)")
    q: float = HfArg(default=0.8, help="entropy quantile tau(q) above which Eq. 3 acts (Sec. 5.1)")
    lam: float = HfArg(default=1.1, help="lambda_top1 of Sec. 4.3 (Sec. 5.1; Qwen2.5-7B: 1.05)")
    tau_scope: Literal["response", "batch"] = HfArg(default="response", help="tokens behind tau(q) (released code)")
    clip_low: float = HfArg(default=0.2, help="epsilon below 1 (GRPO's usual value; the paper gives none)")
    clip_high: float = HfArg(default=0.2, help="epsilon above 1 (logic runs of the released recipes: 0.28)")
    kl_beta: float = HfArg(default=0.0, help="beta of the KL penalty to the starting model (0 in every experiment)")
    loss_norm: Literal["response", "token"] = HfArg(default="response", help="1/G sum 1/|y| (Sec. 2) or token mean")
    grpo_steps: int = HfArg(default=0, help="first steps, made with grpo before the method (released logic recipe: 50)")
    positive_weight: float = HfArg(default=0.1, help="w-reinforce: A of a correct response")
    forking_share: float = HfArg(default=0.2, help="forking: share of all tokens that is trained on")
    entropy_weight: float = HfArg(default=0.4, help="entropy-adv: factor of H")
    kl_cov_share: float = HfArg(default=0.002, help="kl-cov: share of all tokens that is penalised")
    kl_cov_weight: float = HfArg(default=1.0, help="kl-cov: factor of |log gamma|")
    pass_k: int = HfArg(default=4, help="pass-at-k: k")


@dataclass
class TrainConfig:
    _argument_group_name = "training"
    train_data: str = HfArg(default="math", help="math, gsm8k, gsm8k-math1, synlogic, a JSONL file or a hub id")
    steps: int = HfArg(default=140, help="rollouts, of batch // mini_batch updates each (20 epochs of MATH)")
    batch: int = HfArg(default=1024, help="prompts a step over all ranks (Sec. 5.1)")
    group_size: int = HfArg(default=8, help="G, responses a prompt (Sec. 5.1)")
    mini_batch: int = HfArg(default=256, help="prompts an update (Sec. 5.1)")
    dynamic_sampling: int = HfArg(default=0, help="most rollouts a step, to replace groups of equal reward; 0: no")
    max_response_tokens: int = HfArg(default=3072, help="longer responses are cut: truncated (released recipe)")
    temperature: float = HfArg(default=1.0, help="of rollouts, and so of every probability in the loss (Sec. 5.1)")
    lr: float = HfArg(default=1e-6, help="AdamW's learning rate (Sec. 5.1)")
    lr_warmup: int = HfArg(default=0, help="updates of linear warm-up (the paper gives none)")
    weight_decay: float = HfArg(default=0.0, help="AdamW's (the paper gives none)")
    grad_clip: float = HfArg(default=1.0, help="largest gradient norm (the usual value; the paper gives none)")
    micro_batch_tokens: int = HfArg(default=16384, help="packed tokens a forward pass: memory, not results")
    gradient_checkpointing: bool = HfArg(default=True, help="recompute each layer in the backward pass")
    save_every: int = HfArg(default=20, help="steps between checkpoints; the last two are kept")
    eval_every: int = HfArg(default=0, help="steps between evaluations, the first before any; 0: only after the last")
    resume: bool = HfArg(default=True, help="go on from the run folder's last checkpoint")


@dataclass
class EvalConfig:
    _argument_group_name = "evaluation"
    eval_data: list[str] = HfArg(default_factory=list, help="names or groups in tools/data.py, JSONL files")
    eval_n: int | None = HfArg(default=None, help="samples a problem; default: the set's (Sec. 5.1), else 256")
    eval_temperature: list[float] | None = HfArg(default=None, help="one or several (Table 5); math 0.6, logic 0.7")
    eval_top_p: float | None = HfArg(default=None, help="0.95 (released recipes)")
    eval_max_tokens: int | None = HfArg(default=None, help="response limit, tokens; math 4096, logic 8192 (released)")


@dataclass
class Config(RunConfig, ObjectiveConfig, TrainConfig, EvalConfig):
    pass


# ------------------------------------------------------------------------------------------------------ objective
# Pure functions, tensors in and out. `logp` is log pi_theta(y|s) of the sampled token at the rollout temperature.
# The paper prints pi_ref under the ratio gamma; as in every implementation it is the policy that sampled the batch.
def group_advantage(rewards, group_size):
    """GRPO's advantage (Sec. 2): each reward against its group. rewards: (N,), groups of `group_size` in a row.
    Returns (N,); a group whose rewards are all equal gets exactly 0. ValueError if groups do not fit."""
    if group_size < 2 or rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards do not make groups of {group_size} (at least 2)")
    group = rewards.reshape(-1, group_size)
    advantage = (group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + 1e-6)
    equal = group.amax(1, keepdim=True) == group.amin(1, keepdim=True)  # the mean may be an ulp off: not an advantage
    return advantage.masked_fill(equal, 0).reshape(rewards.shape)


def simko_ratio(logp, old_logp, topk_logp, is_top1, advantage, gate, alpha, lam):
    """gamma-tilde of Eq. 3, which takes gamma's place in GRPO's loss.

    logp, old_logp, is_top1 (bool), advantage, gate (bool: entropy above tau): (...,); topk_logp: (..., K), the current
    policy's log-probs of its own top-K candidates. Any float dtype. Returns (...,). Its value is gamma exactly where
    A > 0; alpha = 0 with lam = 1, or an empty gate, gives gamma and its gradient bit for bit."""
    gamma = (logp - old_logp).exp()
    # sg(gamma / gamma_k) gamma_k = sg(gamma) pi_k / sg(pi_k): the old policy's top-K cancels, so it is never computed.
    # First detach: what is left is the gradient of each candidate, at the sampled token's importance weight.
    # Second detach: the ratio is worth 1 and only its numerator is differentiated, so sum_k gives sum_k grad log pi_k.
    shared = gamma.detach() * (topk_logp - topk_logp.detach()).exp().mean(-1)
    gamma_pos = torch.lerp(gamma, shared, alpha)  # Eq. 6: (1 - alpha) gamma + alpha/K sum_k sg(gamma/gamma_k) gamma_k
    gamma_neg = torch.where(is_top1, lam * gamma, gamma)  # Sec. 4.3; inside the ratio, so lambda acts before the clip
    inside = torch.where(advantage > 0, gamma_pos, torch.where(advantage < 0, gamma_neg, gamma))
    return torch.where(gate, inside, gamma)  # Eq. 3


def pass_at_k_advantage(right, group_size, k):
    """Advantage if a set of k responses is rewarded when one of them is right (Chen et al., 2025a): the mean reward of
    the sets of k that hold the response less that of all sets, rho, over their standard deviation.

    right: (N,) bool, groups of `group_size` in a row. Returns (N,)."""
    wrong = (~right).view(-1, group_size).sum(1).repeat_interleave(group_size)
    shares = [[math.comb(max(m - i, 0), k - i) / math.comb(group_size - i, k - i) for m in range(group_size + 1)]
              for i in (0, 1)]
    failure, with_wrong = torch.tensor(shares)[:, wrong]  # of all sets 1 - rho; of those with a given wrong response
    return (failure - torch.where(right, 0, with_wrong)) / ((failure * (1 - failure)).sqrt() + 1e-6)


def clipped_loss(gamma, advantage, clip_low, clip_high):
    """Per-token loss -min(gamma A, clip(gamma, 1 - clip_low, 1 + clip_high) A) (Sec. 2). All (...,)."""
    return -torch.minimum(gamma * advantage, gamma.clamp(1 - clip_low, 1 + clip_high) * advantage)


def entropy_threshold(entropy, lengths, q, scope):
    """tau(q) for every token: the q-quantile (linear interpolation) of the entropies of its response, or of them all.

    entropy: (T,) nats, responses one after another; lengths: (R,) tokens of each; scope: "response" or "batch"."""
    if not len(entropy):
        return entropy
    rows, count = list(entropy.split(lengths.tolist())), lengths
    if scope == "batch":
        rows, count = [entropy], torch.tensor([entropy.numel()], device=entropy.device)
    ordered = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.inf).sort(1).values
    position = q * (count - 1).clamp(min=0).double()  # double: a batch has more tokens than float32 counts exactly
    low, high = (ordered.gather(1, index.long()[:, None])[:, 0] for index in (position.floor(), position.ceil()))
    tau = torch.lerp(low, high, (position - position.floor()).to(low))
    return tau.repeat_interleave(lengths) if scope == "response" else tau.expand_as(entropy)


def entropy_gate(entropy, lengths_or_mask, q, scope="response"):
    """True where Eq. 3 acts: entropy strictly above tau(q) (Sec. 4.1), so q = 1 lets no token through.

    entropy: (T,) with lengths (R,), responses one after another; or (R, L), padded on the right, with lengths (R,) or
    a bool mask (R, L). Returns bools of entropy's shape, False on padding. Scopes as in `entropy_threshold`."""
    if entropy.dim() == 1:
        return entropy > entropy_threshold(entropy, lengths_or_mask, q, scope)
    mask = lengths_or_mask
    if mask.dtype != torch.bool:
        mask = torch.arange(entropy.shape[1], device=entropy.device) < lengths_or_mask[:, None]
    gate = torch.zeros_like(mask)
    gate[mask] = entropy_gate(entropy[mask], mask.sum(1), q, scope)
    return gate


def kl_penalty(logp, ref_logp):
    """Per-token estimate of KL(pi_theta || pi_ref), unbiased and never negative (GRPO's). (...,) -> (...,)."""
    return (ref_logp - logp).exp() - (ref_logp - logp) - 1


def pass_at_k(n, c, k):
    """Unbiased pass@k of each problem (Sec. 5.1): 1 - C(n-c, k) / C(n, k), from exact integers, rounded once.

    n samples, c of them correct: ints or tensors that broadcast. Returns float64 of that shape. ValueError if k is not
    in 1..n or c not in 0..n: no estimate exists."""
    n, c = torch.broadcast_tensors(torch.as_tensor(n), torch.as_tensor(c))
    if not ((1 <= k) & (n >= k) & (0 <= c) & (c <= n)).all():
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= c <= n; n = {n.tolist()}, c = {c.tolist()}")
    values = [(math.comb(i, k) - math.comb(i - j, k)) / math.comb(i, k)
              for i, j in zip(n.reshape(-1).tolist(), c.reshape(-1).tolist())]
    return torch.tensor(values, dtype=torch.float64).reshape(n.shape)


# ----------------------------------------------------------------------------------------------- token statistics
class TokenStatistics(torch.autograd.Function):
    """What the loss needs of pi_theta at each token, without the (tokens x vocabulary) logits of the batch.

    The forward pass makes the logits of a chunk of tokens, keeps a few numbers per token and drops them; the backward
    pass makes them once more. d log pi(j) / d z = e_j - pi (Eq. 4), so their gradient is written down, not traced."""

    @staticmethod
    def logits(hidden, weight, temperature):
        z = hidden @ weight.T  # in the compute dtype, as the engine does; statistics in float32 at least
        return z.to(torch.promote_types(z.dtype, torch.float32)).div_(temperature)

    @staticmethod
    def of_chunk(h, weight, y, K, temperature):
        """h: (t, D), y: (t,). Returns logp (t,), topk_logp (t, K), entropy (t,), log Z (t, 1), y with its candidates
        (t, 1 + K)."""
        z = TokenStatistics.logits(h, weight, temperature)
        top = z.topk(K, dim=-1)
        exp = (z - top.values[:, :1]).exp_()
        total = exp.sum(-1, keepdim=True)
        lse = top.values[:, :1] + total.log()
        logp = (z.gather(1, y[:, None]) - lse)[:, 0]
        entropy = (lse - exp.mul_(z).sum(-1, keepdim=True) / total)[:, 0]  # H = log Z - E[z]
        return logp, top.values - lse, entropy, lse, torch.cat([y[:, None], top.indices], 1)

    @staticmethod
    def logits_gradient(h, weight, lse, index, grad, temperature):
        """(t, V), in weight's dtype: d loss / d z, of the gradient `grad` (t, 1 + K) of the log-probs at `index`."""
        z = TokenStatistics.logits(h, weight, temperature)
        grad_z = z.sub_(lse).exp_().mul_(-grad.sum(1, keepdim=True))
        return grad_z.scatter_add_(1, index, grad).to(weight.dtype)

    @staticmethod
    def forward(ctx, hidden, weight, token, K, temperature, chunk):
        parts = [TokenStatistics.of_chunk(h, weight, y, K, temperature)
                 for h, y in zip(hidden.split(chunk), token.split(chunk))]
        logp, topk_logp, entropy, lse, index = map(torch.cat, zip(*parts))
        is_top1 = logp >= topk_logp[:, 0]  # by value: tokens that tie for the highest probability are all rank-1
        ctx.save_for_backward(hidden, weight, lse, index)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy, is_top1)
        return logp, topk_logp, entropy, is_top1

    @staticmethod
    def backward(ctx, grad_logp, grad_topk, *_):
        hidden, weight, lse, index = ctx.saved_tensors
        grads = torch.cat([grad_logp[:, None], grad_topk], 1) / ctx.temperature  # at the token and its K candidates
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            grad_z = TokenStatistics.logits_gradient(hidden[rows], weight, lse[rows], index[rows], grads[rows],
                                                     ctx.temperature)
            torch.mm(grad_z, weight, out=grad_hidden[rows])
            grad_weight.addmm_(grad_z.T, hidden[rows])
            del grad_z  # before the next chunk's is made
        return grad_hidden, grad_weight, None, None, None, None


def token_statistics(hidden, weight, token, K, temperature=1.0, chunk=None):
    """hidden: (T, D) states that predict `token` (T,); weight: (V, D) of the output head; K candidates of V.

    Returns logp (T,) and topk_logp (T, K), descending, both with gradient; entropy (T,) in nats and is_top1 (T,) bool,
    without. All at `temperature`. chunk: tokens at a time, by default 1 GiB of float32 logits on GPUs, 1/4 on CPUs."""
    chunk = chunk or max(1, (2**28 if hidden.is_cuda else 2**26) // len(weight))
    return TokenStatistics.apply(hidden, weight, token, K, temperature, chunk)


class Packed(NamedTuple):
    """Prompts with their responses in one row of tokens, without padding."""
    tokens: torch.Tensor     # (T,)
    positions: torch.Tensor  # (T,) from 0 in each sequence
    bounds: torch.Tensor     # (R + 1,) int32: where each sequence starts; the last is T
    predicts: torch.Tensor   # (N,) where in the row each response token is predicted: one place before it
    targets: torch.Tensor    # (N,) the response tokens
    lengths: torch.Tensor    # (R,) response tokens of each sequence
    longest: int             # tokens of the longest sequence


def pack(samples, device):
    """Samples -> Packed. Of no samples: one token that predicts nothing."""
    rows = [(s.prompt_ids, s.response_ids) for s in samples] or [(np.zeros(1, np.int64), np.zeros(0, np.int64))]
    prompts, lengths = (np.array([len(ids) for ids in column]) for column in zip(*rows))
    sizes, tokens = prompts + lengths, np.concatenate([ids for row in rows for ids in row])
    positions = np.concatenate([np.arange(size) for size in sizes])
    response = np.flatnonzero(positions >= prompts.repeat(sizes))
    arrays = (tokens, positions, np.cumsum([0, *sizes], dtype=np.int32), response - 1, tokens[response],
              lengths[:len(samples)])
    return Packed(*(torch.from_numpy(array).to(device) for array in arrays), int(sizes.max()))


def packed_attention(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, max_length_q,
                     sliding_window=None, softcap=None, s_aux=None, **_):
    """Causal attention within each packed sequence: (1, heads, T, d) -> (1, T, heads, d). transformers calls it by the
    name "packed"; its own attentions keep sequences apart only while neither a mask nor a cache is passed."""
    if (sliding_window or math.inf) < max_length_q or softcap is not None or s_aux is not None:
        fail("this model's attention has a sliding window below the sequence length, soft-capping or sinks: not built")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, d)
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda and q.dtype != torch.float32:  # the kernel knows half precision only
        from torch.nn.attention.varlen import varlen_attn
        return varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling,
                           window_size=(-1, 0), enable_gqa=grouped)[None], None
    out, start = [], 0
    for length, count in zip(*(x.tolist() for x in cu_seq_lens_q.diff().unique_consecutive(return_counts=True))):
        run = (x[start:start + length * count].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(*run, is_causal=True, scale=scaling, enable_gqa=grouped)
        out.append(attended.transpose(1, 2).flatten(0, 1))
        start += length * count
    return torch.cat(out)[None], None


def load_model(path, dtype):
    """A causal language model with `packed_attention`; only safetensors, and no code from the checkpoint."""
    from transformers import AttentionInterface, AutoModelForCausalLM
    AttentionInterface.register("packed", packed_attention)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="packed", use_safetensors=True, trust_remote_code=False,
            output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        fail(f"--model {path}: {one_line(error)}")
    if found["missing_keys"]:  # which transformers would draw at random
        fail(f"--model {path} lacks weights: {', '.join(sorted(found['missing_keys'])[:3])} ...")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # pi_old and pi_theta must be functions of their input
    return model


def policy_statistics(model, packed, K, temperature):
    """`token_statistics` of every response token. A method of the model, so that FSDP gathers the weights of body and
    head around it, and the head's weight is an ordinary tensor here."""
    body = model.base_model(input_ids=packed.tokens[None], position_ids=packed.positions[None], use_cache=False,
                            cu_seq_lens_q=packed.bounds, max_length_q=packed.longest)
    hidden = body.last_hidden_state[0, packed.predicts]
    return token_statistics(hidden, model.get_output_embeddings().weight, packed.targets, K, temperature)


# -------------------------------------------------------------------------------------------------------- rollout
def prompt_order(step, batch, count, seed):
    """Indices of a step's prompts, out of `count`: permutation after permutation, a function of (seed, step) alone."""
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), count)
    return np.concatenate([np.random.default_rng([seed, epoch]).permutation(count)[places[epochs == epoch]]
                           for epoch in np.unique(epochs)]).tolist()


@dataclass
class Sample:
    """One response. Arrays are numpy, so that gathering them over ranks is cheap."""
    prompt: int               # index of its prompt in the batch
    prompt_ids: np.ndarray    # (P,) int64
    response_ids: np.ndarray  # (L,) int64, as sampled, EOS included
    engine_logp: np.ndarray   # (L,) float32: what the engine sampled with; (0,) in evaluation
    truncated: bool           # met the length limit before EOS
    id: str = ""              # of its problem
    text: str = ""
    reward: float = 0.0
    advantage: float = 0.0
    weight: float = 1.0       # in the log's means
    old_logp: torch.Tensor | None = None  # (L,) log pi_old by the trainer
    ref_logp: torch.Tensor | None = None  # (L,) log pi_ref, with --kl-beta
    chosen: torch.Tensor | None = None    # (L,) bool, with kl-cov: the tokens it penalises


def seed_everything(*key):
    """Both engines draw from the process's global generators, and move them when they start: seed before each use."""
    value = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


class VLLMEngine:
    """vLLM inside the training process. max_tokens: of any response.

    cfg.tensor_parallel neighbouring ranks share an engine, each with a part of the model. Each schedules and samples
    for itself: they agree because `generate`, a collective then, hands all of them the same prompts in the same order,
    and because they draw from one random stream.

    weights "dummy": random until the first sync, so that a gap in it cannot pass unseen; "auto": those of cfg.model."""

    def __init__(self, cfg, stop_ids, device, dtype, weights, max_tokens):
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine in this process: its weights can be reached
                          VLLM_CPU_OMP_THREADS_BIND="nobind",  # else it pins the whole process to one core
                          VLLM_NO_USAGE_STATS="1")
        from tools.faults import keep_log
        keep_log()  # errors on screen, and the last lines where it fails
        from vllm import LLM
        self.cuda = device.type == "cuda"
        memory = ({"gpu_memory_utilization": cfg.engine_memory, "enable_sleep_mode": True} if self.cuda
                  else {"kv_cache_memory_bytes": int(cfg.engine_memory * 2**30)})
        self.llm = LLM(cfg.model, load_format=weights, dtype=dtype, skip_tokenizer_init=True,
                       max_model_len=cfg.max_prompt_tokens + max_tokens, tensor_parallel_size=cfg.tensor_parallel,
                       distributed_executor_backend="external_launcher",  # each rank its own GPU; default: all cuda:0
                       logprobs_mode="processed_logprobs",                # after temperature: those it sampled from
                       seed=cfg.seed, **memory)
        self.stop_ids, self.ranks = stop_ids, cfg.tensor_parallel

    def generate(self, prompts, n, temperature, top_p, max_tokens, progress, logprobs=True):
        """n Samples for each of the prompts (int arrays), one prompt after another."""
        from vllm import SamplingParams
        params = SamplingParams(n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, detokenize=False,
                                stop_token_ids=self.stop_ids, flat_logprobs=True,
                                logprobs=0 if logprobs else None)  # 0: the sampled token's alone
        everyone, skip = prompts, 0
        if self.ranks > 1:  # the engine's prompts are those of its ranks; this rank keeps the samples of its own
            place = dist.get_rank() % self.ranks
            shares = gather([prompts])[dist.get_rank() - place:][:self.ranks]
            everyone, skip = sum(shares, []), len(sum(shares[:place], []))
        outputs = self.llm.generate([{"prompt_token_ids": p.tolist()} for p in everyone], params,
                                    use_tqdm=False if progress.keywords["disable"] else progress)
        return [Sample(i, prompts[i], np.array(o.token_ids, np.int64),
                       np.array(o.logprobs.logprobs if logprobs else [], np.float32), o.finish_reason == "length")
                for i, output in enumerate(outputs[skip:skip + len(prompts)]) for o in output.outputs]

    def sleep(self):
        if self.cuda:
            self.llm.sleep(level=1)

    def sync(self, named_weights):
        """Takes the trainer's weights: (name, tensor) pairs under their Hugging Face names, each read once."""
        if self.cuda:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights})
        if self.cuda:
            self.llm.wake_up(tags=["kv_cache"])
        else:
            self.llm.apply_model(repack_heads)
        self.llm.reset_prefix_cache()  # it holds keys and values of the old weights

    def close(self):
        self.llm.llm_engine.engine_core.shutdown()


def repack_heads(model):
    """vllm-cpu keeps a packed copy of a tied output head that a reload leaves as it was: pack it again."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def make_engine(cfg, stop_ids, device, dtype, weights, max_tokens):
    """The engine --rollout names; auto is vLLM where it can be imported."""
    backend = cfg.rollout
    if backend != "hf":
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            if backend == "vllm" or cfg.tensor_parallel > 1:
                fail(f"rollouts by vLLM, which cannot be imported ({error}): install it, or choose --rollout hf")
            backend = "hf"
            print(f"rollouts by transformers' generate, since vLLM cannot be imported: {error}", flush=True)
    if backend == "hf":
        from tools.hf_rollout import HFEngine as Engine
    else:
        Engine = VLLMEngine
    return Engine(cfg, stop_ids, device, dtype, weights, max_tokens)


# --------------------------------------------------------------------------------------------------------- update
def micro_batches(samples, tokens):
    """Splits samples into lists of at most `tokens` prompt and response tokens (a longer sample stands alone), longest
    first, so that sequences of one length lie side by side."""
    batches, room = [], 0
    for sample in sorted(samples, key=lambda s: -len(s.prompt_ids) - len(s.response_ids)):
        size = len(sample.prompt_ids) + len(sample.response_ids)
        if size > room:
            batches.append([])
            room = max(tokens, size)
        batches[-1].append(sample)
        room -= size
    return batches


def deal(samples, rank, world):
    """This rank's share: longest first and to and fro over the ranks, so that each gets about as many tokens; first
    those with a gradient, then those without."""
    order = sorted(samples, key=lambda s: (s.advantage == 0, -len(s.prompt_ids) - len(s.response_ids)))
    return [s for i, s in enumerate(order) if (i % world if i // world % 2 == 0 else world - 1 - i % world) == rank]


def choose_by_covariance(samples, share):
    """Fills in `chosen` (KL-Cov): the `share` of all ranks' tokens, at least one, with the largest product of A and
    log pi_old, each less its mean. Of pi_old, so that neither micro-batches nor the updates before change it."""
    rows = [torch.stack([s.old_logp.cpu(), torch.full(s.old_logp.shape, s.advantage)]) for s in samples]
    everyone = torch.cat(gather(rows and [torch.cat(rows, 1)]), 1).double()
    means = everyone.mean(1, keepdim=True)
    least = (everyone - means).prod(0).topk(max(1, int(share * everyone.shape[1]))).values[-1]
    for sample, row in zip(samples, rows):
        sample.chosen = ((row - means).prod(0) >= least).to(sample.old_logp.device)


# What the paper compares with (Sec. 5.1), as changes of grpo; the numbers are their authors', and settings. Dispatched
# in the functions below; in `Trainer.update`, where psr and nsr leave responses out; in `train_step`, which finds the
# tokens of the batch for forking and kl-cov.
METHODS = {
    "simko": "Eq. 3: --alpha, --K, --lam, --q, --tau-scope",
    "grpo": "the same loop without Eq. 3",
    "psr": "correct responses only, A = 1 (Zhu et al., 2025)",
    "nsr": "incorrect responses only, A = -1 (Zhu et al., 2025)",
    "w-reinforce": "A = 0.1 or -1, no baseline (Zhu et al., 2025)",
    "forking": "loss on the fifth of all tokens that has the highest entropy (Wang et al., 2025)",
    "entropy-adv": "A + min(0.4 H, |A|/2) in place of A (Cheng et al., 2025)",
    "kl-cov": "no clip, + |log gamma| on the 0.002 of all tokens where A and log pi covary most (Cui et al., 2025)",
    "pass-at-k": "A of sets of k responses, right if one of them is (Chen et al., 2025a)",
}


def without_gradient(sample, cfg):
    """Whether the response adds nothing to the gradient: A = 0, and the loss has no term without A."""
    return sample.advantage == 0 and not cfg.kl_beta and cfg.method != "kl-cov"


def response_advantage(rewards, cfg):
    """cfg.method's advantage of each response. rewards: (N,), groups in a row. Returns (N,); 0 in PSR and NSR is a
    response to leave out."""
    right = rewards > 0
    if cfg.method in ("psr", "nsr"):
        return right.float() - float(cfg.method == "nsr")
    if cfg.method == "w-reinforce":
        return torch.where(right, cfg.positive_weight, -1.0)
    if cfg.method == "pass-at-k":
        return pass_at_k_advantage(right, cfg.group_size, cfg.pass_k)
    return group_advantage(rewards, cfg.group_size)


def token_losses(stats, old_logp, advantage, gate, cfg):
    """Per-token loss of the method, and where the clip took its gradient: (loss, clipped), each (N,)."""
    logp, topk_logp, entropy, is_top1 = stats
    gamma = (logp - old_logp).exp()
    if cfg.method == "kl-cov":  # where gamma is 1 up to rounding, chance decides the sign of its gradient
        penalty = torch.where(gate, cfg.kl_cov_weight * (logp - old_logp).abs(), 0)
        return penalty - gamma * advantage, torch.zeros_like(gate)
    if cfg.method == "simko":
        gamma = simko_ratio(logp, old_logp, topk_logp, is_top1, advantage, gate, cfg.alpha, cfg.lam)
    if cfg.method == "entropy-adv":  # H detached: it scales gamma's gradient, and is not itself driven up
        advantage = advantage + torch.minimum(cfg.entropy_weight * entropy.detach(), advantage.abs() / 2)
    loss = clipped_loss(gamma, advantage, cfg.clip_low, cfg.clip_high)
    clipped = loss > -gamma * advantage
    if cfg.method == "forking":  # the others still count in the denominator
        loss, clipped = torch.where(gate, loss, 0), clipped & gate
    return loss, clipped


ENTROPY_BINS = 41  # of the log's histogram: 0.1 nats wide, the last one open


class Trainer:
    """The policy under FSDP2 with its optimizer: old log-probs, updates, weights for the engine."""

    def __init__(self, cfg, device, dtype):
        self.cfg, self.device, self.dtype = cfg, device, dtype
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.policy = self.build()
        self.reference = self.build().requires_grad_(False) if cfg.kl_beta else None
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), cfg.lr, weight_decay=cfg.weight_decay, fused=True)
        self.updates = self.refused = 0  # refused: in a row, as not finite

    def build(self):
        """The checkpoint in float32 (bfloat16 would round an update of 1e-6 away), sharded, computing in self.dtype."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
        model = load_model(self.cfg.model, torch.float32)
        if self.cfg.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        local = int(os.environ["LOCAL_WORLD_SIZE"])  # several nodes: a replica each, sharded within
        mesh = (init_device_mesh(self.device.type, (self.world,)) if local == self.world else init_device_mesh(
            self.device.type, (self.world // local, local), mesh_dim_names=("replicate", "shard")))
        precision = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
        for layer in model.base_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(model, mesh=mesh, mp_policy=precision)
        model.policy_statistics = partial(policy_statistics, model)
        register_fsdp_forward_method(model, "policy_statistics")
        return model

    def named_weights(self):
        """(name, whole tensor in the engine's dtype), one at a time. Every rank must read it to the end."""
        for name, parameter in self.policy.named_parameters():
            yield name, parameter.detach().to(self.dtype).full_tensor()  # detached: the engine needs no gradient

    def passes(self, samples):
        """Micro-batches of this rank's samples, and empty ones up to the rank that has most: FSDP's gathers and
        reductions wait for every rank. At least one, so that a gradient of 0 is not a missing one."""
        batches = micro_batches(samples, self.cfg.micro_batch_tokens) or [[]]
        count = torch.tensor(len(batches), device=self.device)
        dist.all_reduce(count, dist.ReduceOp.MAX)
        return batches + [[]] * (int(count) - len(batches))

    @torch.no_grad()
    def old_statistics(self, samples, progress):
        """Fills in old_logp (and ref_logp). Returns (entropies (N,), sums for the log) of this rank's tokens. The sums:
        Lambda, Lambda^(k) and entropy of responses, by `weight`; gap to the engine; tokens; and, by `weight`, tokens in
        ENTROPY_BINS."""
        entropies = [torch.zeros(0, device=self.device)]
        sums = torch.zeros(self.cfg.K + 4 + ENTROPY_BINS, dtype=torch.float64)
        for batch in progress(self.passes(samples), desc="log-probs"):
            packed = pack(batch, self.device)
            logp, topk_logp, entropy, _ = self.policy.policy_statistics(packed, self.cfg.K, self.cfg.temperature)
            lengths = packed.lengths.tolist()
            for sample, part in zip(batch, logp.split(lengths)):
                sample.old_logp = part
            if self.reference is not None:
                ref_logp = self.reference.policy_statistics(packed, 1, self.cfg.temperature)[0]
                for sample, part in zip(batch, ref_logp.split(lengths)):
                    sample.ref_logp = part
            entropies.append(entropy)
            if batch:
                gap = (logp.cpu() - torch.from_numpy(np.concatenate([s.engine_logp for s in batch]))).abs()
                weight = torch.tensor([s.weight for s in batch], device=self.device).repeat_interleave(packed.lengths)
                length = packed.lengths.repeat_interleave(packed.lengths)
                rows = torch.stack([logp, *topk_logp.unbind(1), entropy]) / length
                bins = (entropy / 0.1).long().clamp(0, ENTROPY_BINS - 1)
                bins = torch.bincount(bins, weight, minlength=ENTROPY_BINS)
                sums += torch.cat([(rows * weight).sum(1).double().cpu(),  # Eq. 2: mean over L, then over responses
                                   torch.tensor([gap.sum(), len(gap)]), bins.cpu()])
        for model in filter(None, (self.policy, self.reference)):
            model.reshard()  # the root's weights, which a forward pass without a backward leaves whole
        return torch.cat(entropies), sums

    def update(self, samples, tau, progress):
        """One optimizer step on this rank's share of a mini-batch. tau: the batch's threshold, or None for each
        response's own. Returns the log's sums over ranks and the gradient norm before clipping. PSR and NSR remove
        responses; where none is left on any rank, nothing is stepped, nor where loss or gradient are not finite.

        The loss is a sum over tokens, divided once by a count over all ranks: how samples are split into micro-batches
        and over ranks changes nothing. FSDP averages gradients over ranks, hence the factor `world`."""
        cfg = self.cfg
        samples = [s for s in samples if s.advantage or cfg.method not in ("psr", "nsr")]
        count = torch.tensor([len(samples), sum(len(s.response_ids) for s in samples)], device=self.device)
        dist.all_reduce(count)
        denominator = count[0 if cfg.loss_norm == "response" else 1]
        self.updates += 1
        self.optimizer.param_groups[0]["lr"] = cfg.lr * min(1, self.updates / (cfg.lr_warmup + 1))
        if not count[0]:
            return torch.zeros(5), 0.0  # AdamW's momentum and weight decay would move the weights without a gradient
        samples = [s for s in samples if not without_gradient(s, cfg)]  # the others have been counted, and need no pass
        self.optimizer.zero_grad()
        sums, finite = torch.zeros(5, device=self.device), []
        for batch in progress(self.passes(samples), desc="update"):
            packed = pack(batch, self.device)
            stats = self.policy.policy_statistics(packed, cfg.K, cfg.temperature)
            logp, entropy, lengths = stats[0], stats[2], packed.lengths
            old_logp = torch.cat([logp.new_zeros(0), *(s.old_logp for s in batch)])
            advantage = torch.tensor([s.advantage for s in batch], device=self.device).repeat_interleave(lengths)
            gate = entropy_gate(entropy, lengths, cfg.q) if tau is None else entropy > tau
            if cfg.method == "kl-cov":
                gate = torch.cat([gate[:0], *(s.chosen for s in batch)])
            loss, clipped = token_losses(stats, old_logp, advantage, gate, cfg)
            if cfg.kl_beta:
                ref_logp = torch.cat([logp.new_zeros(0), *(s.ref_logp for s in batch)])
                loss = loss + cfg.kl_beta * kl_penalty(logp, ref_logp)
            if cfg.loss_norm == "response":
                loss = loss / lengths.repeat_interleave(lengths)
            # KL(pi_old || pi_theta) on pi_old's samples. This detach and the next leave no gradient: for the log only.
            moved = kl_penalty(old_logp, logp.detach())
            finite.append((batch, (loss + moved).isfinite()))
            loss = loss.sum() / denominator
            (loss * self.world).backward()
            tokens = lengths.sum()
            sums += torch.stack([loss.detach(), gate.sum(), clipped.sum(), moved.sum(), tokens]).to(sums)
        dist.all_reduce(sums)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), cfg.grad_clip).full_tensor()
        if not (torch.isfinite(norm) and torch.isfinite(sums[0])):  # both over all ranks: they agree
            from tools.faults import refuse_update
            refuse_update(self, finite, sums[0].item(), norm.item())
            return torch.zeros(5), math.nan
        self.refused = 0
        self.optimizer.step()
        return sums.cpu(), norm.item()


def score(samples, problems, tokenizer, verifier):
    """Fills in id, text and reward; `prompt` of each sample is its place in `problems`."""
    texts = [tokenizer.decode(s.response_ids, skip_special_tokens=True) for s in samples]
    own = [problems[s.prompt] for s in samples]
    rewards = verifier.score(texts, [problem["answer"] for problem in own], [problem["task"] for problem in own])
    for sample, problem, text, reward in zip(samples, own, texts, rewards):
        sample.id, sample.text, sample.reward = problem["id"], text, reward


def train_step(step, cfg, problems, tokenizer, engine, trainer, verifier, progress):
    """Rollouts, and batch // mini_batch updates on them. Returns the row for metrics.jsonl."""
    from tools.faults import check_gap
    from tools.log import Clock
    rank, world, clock = trainer.rank, trainer.world, Clock(trainer.device)
    cfg = trainer.cfg = dataclasses.replace(cfg, method="grpo" if step < cfg.grpo_steps else cfg.method)
    mine, rolled, most = range(cfg.batch)[rank::world], [], max(cfg.dynamic_sampling, 1)
    for attempt in range(most):
        order = prompt_order(step * most + attempt, cfg.batch, len(problems), cfg.seed)
        own = [problems[order[i]] for i in mine]
        seed_everything(cfg.seed, step, rank // cfg.tensor_parallel, 2 * attempt)  # evaluation's last number is odd
        samples = engine.generate([problem["prompt_ids"] for problem in own], cfg.group_size, cfg.temperature, 1.0,
                                  cfg.max_response_tokens, progress)
        clock.lap("rollout")
        score(samples, own, tokenizer, verifier)
        for sample in samples:
            sample.prompt = mine[sample.prompt]  # from its place in this rank's prompts to that in the batch
        rolled += sorted(gather(samples), key=lambda s: s.prompt)  # from here on every rank holds the whole batch
        groups = [rolled[i:i + cfg.group_size] for i in range(0, len(rolled), cfg.group_size)]
        if cfg.dynamic_sampling:
            groups = [group for group in groups if len({s.reward for s in group}) > 1][:cfg.batch]
        clock.lap("reward")
        if len(groups) == cfg.batch:
            break
    engine.sleep()
    clock.lap("rollout")
    if len(groups) < cfg.batch and rank == 0:
        tqdm.write(f"step {step + 1}: --dynamic-sampling {most} found {len(groups)} of {cfg.batch} groups with unequal "
                   f"rewards, {'updating on these' if groups else 'no update'}; raise it, or change --train-data")
    samples = [sample for group in groups for sample in group]
    advantages = response_advantage(torch.tensor([s.reward for s in samples]), cfg).tolist() if samples else []
    for sample, advantage in zip(samples, advantages):
        sample.advantage = advantage

    size = cfg.mini_batch * cfg.group_size
    shares = [deal(samples[i:i + size], rank, world) for i in range(0, cfg.batch * cfg.group_size, size)]
    dealt = [sample for share in shares for sample in share]
    q, scope = (1 - cfg.forking_share, "batch") if cfg.method == "forking" else (cfg.q, cfg.tau_scope)
    if scope == "response":  # of the responses without a gradient every fourth is looked at, for the log
        start = np.random.default_rng([cfg.seed, step, rank]).integers(4)
        for i, sample in enumerate(sample for sample in dealt if without_gradient(sample, cfg)):
            sample.weight = 4.0 * (i % 4 == start)
    entropies, sums = trainer.old_statistics([sample for sample in dealt if sample.weight], progress)
    dist.all_reduce(sums)
    *means, gap, tokens = sums[:-ENTROPY_BINS].tolist()
    gap /= tokens or 1
    check_gap(gap, trainer.dtype)
    tau = None
    if scope == "batch":  # of pi_old's entropies: pi_theta's exist for one micro-batch at a time
        everyone = torch.cat(gather([entropies.cpu()])).to(trainer.device)
        tau = entropy_threshold(everyone, torch.tensor([len(everyone)], device=trainer.device), q, scope)[:1]
    if cfg.method == "kl-cov" and samples:
        choose_by_covariance(dealt, cfg.kl_cov_share)
    clock.lap("logprobs")

    log, norms = zip(*(trainer.update(share, tau, progress) for share in shares))
    loss, gated, clipped, moved, trained = torch.stack(log).sum(0).tolist()
    trainer.optimizer.zero_grad()  # the engine gets the gradients' memory
    clock.lap("update")
    engine.sync(trainer.named_weights())
    clock.lap("sync")

    rewards, seconds = torch.tensor([s.reward for s in rolled]), clock.seconds
    right, sampled = (rewards > 0).view(-1, cfg.group_size), sum(len(s.response_ids) for s in rolled)
    names = ["Lambda", *(f"Lambda_{k}" for k in range(1, cfg.K + 1)), "entropy"]  # Lambda and Lambda^(k) of Eq. 2
    return {
        "step": step + 1, "method": cfg.method, "rollouts": attempt + 1, "groups": len(groups),
        "reward": rewards.mean().item(), f"pass@{cfg.group_size}": right.any(1).float().mean().item(),
        "mixed_groups": (right.any(1) & ~right.all(1)).float().mean().item(),
        **{name: total / len(samples) if samples else math.nan for name, total in zip(names, means)},
        **{name: total / (trained or 1)
           for name, total in (("gate_share", gated), ("clip_share", clipped), ("approx_kl", moved))},
        "loss": loss / len(shares), "grad_norm": sum(norms) / len(norms), "lr": trainer.optimizer.param_groups[0]["lr"],
        "response_tokens": sampled / len(rolled), "truncated": sum(s.truncated for s in rolled) / len(rolled),
        "logp_gap": gap, "entropy_histogram": sums[-ENTROPY_BINS:].tolist(),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        **{f"tokens_per_s_{name}": count / seconds[name]
           for name, count in (("rollout", sampled), ("logprobs", tokens), ("update", trained))},
        "peak_memory_gib": clock.peak_memory()}


# ----------------------------------------------------------------------------------------------------------- main
def printable(text):
    """The text with escapes for what is not one: a response or file must not command the terminal that shows it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(error):
    return printable(" ".join(str(error).split())[:300])


def fail(message):
    """Stop with one line for the user."""
    raise SystemExit(f"simko.py: error: {printable(message)}")


def write_whole(path, text):
    """The whole text or, if anything goes wrong, the file as it was."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def gather(items):
    """The lists of all ranks, one after another, on every rank."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


@contextmanager
def process_group():
    """torch.distributed, under torchrun or for this process alone: gives the device, and ends it whatever happened."""
    meeting = {}
    if os.environ.get("WORLD_SIZE", "1") == "1":
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # on a port that it finds free
        meeting = {"store": store, "rank": 0, "world_size": 1}
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **meeting,
                            timeout=timedelta(hours=2))  # ranks wait for the slowest rollout, and for rank 0 to export
    try:
        yield device
    finally:
        if dist.is_initialized():  # the end of vLLM's engine takes the process group with it
            dist.destroy_process_group()


def main(arguments):
    from tools import faults
    from tools.checkpoints import load_checkpoint, save_checkpoint, save_hf
    from tools.checks import prepare, run_settings
    from tools.evaluation import evaluate
    from tools.log import Log
    from verify import Verifier
    faults.check_restart()
    command, cfg, tokenizer, stop_ids, sets, tests = prepare(arguments)
    with process_group() as device, Verifier() as verifier, faults.explained(cfg):
        rank, world = dist.get_rank(), dist.get_world_size()
        automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
        dtype = automatic if cfg.dtype == "auto" else getattr(torch, cfg.dtype)
        progress = partial(tqdm, leave=False, dynamic_ncols=True, disable=rank > 0 or not sys.stderr.isatty())
        if progress.keywords["disable"]:
            transformers_logging.disable_progress_bar()
        folder = Path(cfg.output)
        if rank == 0:
            for source, (problems, dropped) in sets.items():
                print(f"{source}: {len(problems)} problems; {dropped} over {cfg.max_prompt_tokens} tokens dropped")
            what = cfg.method if command == "train" else "evaluation"
            print(f"{folder}: {what} on {world} x {device.type}, {dtype}", flush=True)
        run_eval = partial(evaluate, cfg, tests=tests, tokenizer=tokenizer, verifier=verifier, progress=progress)
        weights, limits = "auto", [test.max_tokens for test in tests]
        if command == "train":
            weights, limits = "dummy", limits + [cfg.max_response_tokens]
            problems, _ = sets[cfg.train_data]
        start = partial(make_engine, cfg, stop_ids, device, dtype, weights, max(limits))
        with (faults.claimed(folder),
              closing(faults.GuardedEngine(start, shared=cfg.tensor_parallel > 1)) as engine):
            if command == "train":
                engine.sleep()  # on a GPU the engine starts first, takes what memory it may have, and steps aside
                trainer = Trainer(cfg, device, dtype)
                if rank == 0:
                    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                    write_whole(folder / "config.json", json.dumps(run_settings(cfg, problems), indent=1))
                faults.check_shared(folder)
                first = load_checkpoint(folder / "checkpoints", trainer)
                if first > cfg.steps:
                    fail(f"{folder} has come to step {first} already: --steps {cfg.steps} is behind it")
                log = Log(folder, first, cfg) if rank == 0 else None
                if rank == 0:
                    faults.rewind(folder, first, cfg.steps)
                engine.sync(trainer.named_weights())
                try:
                    for step in range(first, cfg.steps):
                        if tests and cfg.eval_every and step % cfg.eval_every == 0:
                            run_eval(folder / f"eval_{step:06d}", engine=engine)
                        row = train_step(step, cfg, problems, tokenizer, engine, trainer, verifier, progress)
                        if rank == 0:
                            log(row)
                            faults.check_rewards(log.path)
                        if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                            save_checkpoint(folder / "checkpoints", step + 1, trainer)
                except faults.Stopped:  # in a rollout, on every rank: the weights are those after `step` steps
                    if step > first and step % cfg.save_every:
                        save_checkpoint(folder / "checkpoints", step, trainer)
                    raise
                if first < cfg.steps or not (folder / "hf").exists():
                    save_hf(folder / "hf", trainer, tokenizer, stop_ids)
                folder = folder / f"eval_{cfg.steps:06d}"
            if tests:
                run_eval(folder, engine=engine)
            dist.barrier()  # the end of an engine takes its process group along: not before every rank is done


if __name__ == "__main__":
    sys.modules["simko"] = sys.modules["__main__"]  # what tools/ import is this module, not another copy of it
    from torch.distributed.elastic.multiprocessing.errors import record
    try:
        record(main)(sys.argv[1:])  # torchrun shows the error of the rank that failed first
    except KeyboardInterrupt:
        sys.exit("simko.py: stopped; the same command goes on from the last checkpoint")
