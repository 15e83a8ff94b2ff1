"""Samples, and the packing of many of them into one row of tokens
without padding, which the policy reads in one forward pass."""
import inspect
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from runtime.common import fail


@dataclass
class Sample:
    """One response. The engine's arrays are numpy arrays,
    which are cheap to gather over ranks."""
    prompt: int               # index of its prompt among this rank's, and in
                              # the batch once train_step has gathered them
    prompt_ids: np.ndarray    # (P,) int64
    response_ids: np.ndarray  # (L,) int64, as sampled, EOS included
    engine_logp: np.ndarray   # (L,) float32 by the engine; (0,) in evaluation
    truncated: bool           # whether the length limit came before EOS
    id: str = ""              # the id of its problem
    text: str = ""
    reward: float = 0.0
    advantage: float = 0.0
    old_logp: torch.Tensor | None = None  # (L,) log pi_old by the trainer
    ref_logp: torch.Tensor | None = None  # (L,) log pi_ref, if beta > 0
    chosen: torch.Tensor | None = None    # (L,) bool, set only by kl-cov

    def size(self):
        """Returns the number of tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


class Packed(NamedTuple):
    """R prompts with their responses in one row of T tokens."""
    tokens: torch.Tensor     # (T,)
    positions: torch.Tensor  # (T,) from 0 in each sequence
    bounds: torch.Tensor     # (R + 1,) int32: the start of each sequence, then T
    predicts: torch.Tensor   # (N,) the index before each response token
    targets: torch.Tensor    # (N,) the response tokens
    lengths: torch.Tensor    # (R,) response tokens of each sequence
    longest: int             # tokens of the longest sequence


def pack(samples, device):
    """Packs Samples. Without any, the row is one token
    that predicts nothing."""
    nothing = [(np.zeros(1, np.int64), np.zeros(0, np.int64))]
    pairs = [(s.prompt_ids, s.response_ids) for s in samples] or nothing
    prompt_lengths = np.array([len(prompt) for prompt, _ in pairs])
    lengths = np.array([len(response) for _, response in pairs])
    tokens = np.concatenate([ids for pair in pairs for ids in pair])
    sizes = prompt_lengths + lengths
    positions = np.concatenate([np.arange(size) for size in sizes])
    bounds = np.cumsum([0, *sizes], dtype=np.int32)
    response = np.flatnonzero(positions >= prompt_lengths.repeat(sizes))
    arrays = (tokens, positions, bounds, response - 1,
              tokens[response], lengths[:len(samples)])
    tensors = [torch.from_numpy(array).to(device) for array in arrays]
    return Packed(*tensors, int(sizes.max()))


def join(parts, like):
    """Joins the parts, one tensor for each sample. If there are none, as in an
    empty micro-batch, the result is empty, with the dtype and device of `like`."""
    # A slice of `like` would carry its graph into the result, and whatever
    # the log sums up from it would keep every micro-batch's graph alive.
    return torch.cat([like.new_empty(0), *parts])


def micro_batches(samples, tokens):
    """Splits samples into lists of at most `tokens` tokens.

    A longer sample gets a list of its own. The longest samples come first, so
    that sequences of equal length lie side by side."""
    batches, room = [], 0
    for sample in sorted(samples, key=lambda s: -s.size()):
        if sample.size() > room:
            batches.append([])
            room = max(tokens, sample.size())
        batches[-1].append(sample)
        room -= sample.size()
    return batches


def groups_to_train_on(samples, cfg):
    """Returns at most batch_size groups of samples. With max_sampling_rounds,
    groups whose rewards are all equal are left out."""
    size = cfg.num_generations
    groups = [samples[i:i + size] for i in range(0, len(samples), size)]
    if cfg.max_sampling_rounds:
        groups = [group for group in groups if len({s.reward for s in group}) > 1]
    return groups[:cfg.batch_size]


def balance_across_ranks(samples, rank, world):
    """Returns this rank's share of the samples, with about as many tokens
    as the share of any other rank.

    Samples with a gradient are dealt first, the longest first. The
    ranks take turns, forwards and then backwards."""
    order = sorted(samples, key=lambda s: (s.advantage == 0, -s.size()))
    turns = [*range(world), *reversed(range(world))]
    return [s for i, s in enumerate(order) if turns[i % len(turns)] == rank]


def packed_attention(module, query, key, value, attention_mask, scaling,
                     cu_seq_lens_q=None, max_length_q=None, sliding_window=None,
                     softcap=None, s_aux=None, position_bias=None,
                     indices=None, block_indices=None, **_):
    """Causal attention within each packed sequence.

    query, key, value: (1, heads, T, d). Returns ((1, T, heads, d), None),
    where None stands for the attention's weights. transformers calls it by the
    name "packed". Its own attentions keep sequences apart only if neither a
    mask nor a cache is passed."""
    changes = attention_mask, position_bias, indices, block_indices
    refuse_other_attention(
        type(module).__name__, cu_seq_lens_q, max_length_q, changes,
        sliding_window, softcap, s_aux)
    # The heads move behind the tokens: (T, heads, d).
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if q.is_cuda and flash_can_do(q, v):
        return varlen_attention(q, k, v, cu_seq_lens_q, max_length_q, scaling)[None], None
    # Given fewer key heads than query heads, PyTorch's attention for other dtypes
    # would hold all scores of a sequence in a GPU's memory.
    queries_per_key = q.shape[1] // k.shape[1]
    if queries_per_key > 1:
        k, v = (x.repeat_interleave(queries_per_key, dim=1) for x in (k, v))
    # Neighbouring sequences of equal length form a batch.
    lengths, counts = cu_seq_lens_q.diff().unique_consecutive(return_counts=True)
    out, start = [], 0
    for length, count in zip(lengths.tolist(), counts.tolist()):
        end = start + length * count
        run = [x[start:end].unflatten(0, (count, length)).transpose(1, 2)
               for x in (q, k, v)]
        attended = F.scaled_dot_product_attention(*run, is_causal=True, scale=scaling)
        out.append(attended.transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(out)[None], None


def refuse_other_attention(
        layer, bounds, longest, changes, sliding_window, softcap, sinks):
    """Refuses what `packed_attention` does not compute. changes: tensors that
    would mask or change scores."""
    name = f"a {layer}"
    if bounds is None:
        fail(f"{name} does not pass on where sequences begin, so it cannot be "
             "trained here: choose another model")
    if any(change is not None for change in changes):
        fail(f"{name} masks or biases its scores, as sparse attention does, "
             "which is not implemented: choose another model")
    if softcap is not None:
        fail(f"{name} caps its scores (soft-capping), which is not implemented: "
             "choose another model")
    if sinks is not None:
        fail(f"{name} has attention sinks, which are not implemented: choose "
             "another model")
    if sliding_window and longest > sliding_window:
        fail(f"{name} has a sliding window of {sliding_window} tokens, and "
             "longer sequences are not implemented: lower --max-prompt-length "
             "and --max-completion-length until their sum is at most that")


def flash_can_do(q, v):
    """Returns whether PyTorch's flash attention takes tensors of this dtype and
    head size. SDPA takes all others, such as DeepSeek's narrower values."""
    size = q.shape[-1]
    half = q.dtype in (torch.bfloat16, torch.float16)
    return half and size == v.shape[-1] <= 256 and size % 8 == 0


def varlen_attention(q, k, v, bounds, longest, scaling):
    """PyTorch's flash attention on packed sequences, for half precision
    on GPUs. q, k, v: (T, heads, d). Returns (T, heads, d)."""
    from torch.nn.attention.varlen import varlen_attn
    grouped = {}
    # PyTorch 2.11 accepts fewer key heads than query heads without this option.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        grouped = {"enable_gqa": q.shape[1] != k.shape[1]}
    return varlen_attn(q, k, v, bounds, bounds, longest, longest,
                       scale=scaling, window_size=(-1, 0), **grouped)
