"""Countdown in plain words, for the study of tools/smollm2.py: the problems,
the fine-tuning of a model on them, and a probe of its candidates.

The problems are those of tools.laptop, asked and answered as a person would:

    Use 12, 20 and 18 once each to reach 50. Show both steps.

    To begin, I add a pair of numbers:
    12 + 20 = 32
    Next I add what remains:
    18 + 32 = 50

An answer has 32 to 48 of SmolLM2's tokens. Its words vary.
"""
import torch

from runtime.log import distinct_tokens
from runtime.models import load_model
from runtime.packing import pack
from simko import entropy_threshold, policy_forward
from tools import laptop

VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
WORDS = (
    ("First I", "To begin, I", "I start here and"),
    ("two of the numbers", "two of them", "a pair of numbers"),
    ("Then I", "After that I", "Next I"),
    ("the number that is left", "the last number", "what remains"),
)
GIVES = ", which gives", ", and get", ":"
# SmolLM2's own template adds a system prompt of 30 tokens to every problem.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


# --------------------------------------------------------------- problems
def question(numbers, target):
    a, b, c = numbers
    return f"Use {a}, {b} and {c} once each to reach {target}. Show both steps."


def in_words(rng, chain):
    """Returns a chain of two steps as a person would write it."""
    opening, pair, then, rest = map(rng.choice, WORDS)
    gives = rng.choice(GIVES)
    first, second = chain[:5], chain[5:]
    return (
        f"{opening} {VERBS[first[1]]} {pair}{gives}\n{' '.join(first)}\n"
        f"{then} {VERBS[second[1]]} {rest}{gives}\n{' '.join(second)}")


def demonstration(rng, legal, solving, held_out):
    """Returns (question, answer) of a problem whose key is not in held_out.
    The answer solves it with probability `solving`."""
    numbers, target, chain = laptop.demonstrated(rng, legal, held_out, solving)
    return question(numbers, target), in_words(rng, chain)


def held_out_rows(rng, legal, sizes):
    """Returns ({set: rows}, the keys of all rows). sizes: {set: number of
    problems}. No two problems are the same up to the order of their numbers."""
    rows, held_out = {name: [] for name in sizes}, set()
    for name, size in sizes.items():
        for i in range(size):
            numbers, target, _ = laptop.draw(rng, legal, held_out)
            held_out.add(laptop.key(numbers, target))
            problem = question(numbers, target)
            rows[name].append(laptop.problem_row(f"{name}-{i}", problem, numbers, target))
    return rows, held_out


def train_rows(rng, legal, size, held_out):
    """Returns rows without the problems of held_out."""
    drawn = [laptop.draw(rng, legal, held_out)[:2] for _ in range(size)]
    return [
        laptop.problem_row(f"train-{i}", question(*problem), *problem)
        for i, problem in enumerate(drawn)]


# ------------------------------------------------------------ fine-tuning
def encode(tokenizer, question, answer):
    """Returns (prompt ids, answer ids with the end of the turn)."""
    message = {"role": "user", "content": question}
    text = tokenizer.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True)
    given = tokenizer.encode(text, add_special_tokens=False)
    wanted = tokenizer.encode(answer, add_special_tokens=False)
    return given, [*wanted, tokenizer.eos_token_id]


def fine_tune(model, tokenizer, demonstrations, batch, lr, log):
    """Trains the model on each demonstration once. The learning rate rises for
    ten steps, and falls to zero over the last third. log(step, loss) is called
    after each step."""
    steps, device = len(demonstrations) // batch, model.device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 10, 1, (steps - step) / (steps / 3)))
    for step in range(steps):
        shown = demonstrations[step * batch:(step + 1) * batch]
        pairs = [encode(tokenizer, *pair) for pair in shown]
        with torch.autocast(device, torch.bfloat16):
            loss = laptop.supervised_loss(model, pairs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        log(step, loss.item())


# ------------------------------------------------------------------ probe
@torch.no_grad()
def statistics(folder, contexts, K, device):
    """Returns topk_logp (T, K) and entropy (T,) of a model, in float32, at the
    T response tokens of contexts, which are Samples."""
    model = load_model(folder, torch.float32).to(device).eval()
    parts = []
    for i in range(0, len(contexts), 32):
        packed = pack(contexts[i:i + 32], device)
        _, topk_logp, entropy, _ = policy_forward(model, packed, K, temperature=1.0)
        parts.append((topk_logp.cpu(), entropy.cpu()))
    topk_logp, entropy = (torch.cat(part) for part in zip(*parts))
    return topk_logp, entropy


def gate_of(entropy, contexts, q):
    """Returns the gate of Eq. 3, bool (T,): whether the entropy is above its
    q-quantile in the response."""
    lengths = torch.tensor([len(s.response_ids) for s in contexts])
    return entropy > entropy_threshold(entropy, lengths, q)


def summary(topk_logp, entropy, gate, G):
    """Returns what the study compares, {name: mean over the gated tokens} and
    {name_all: mean over all tokens} in one dict."""
    values = {f"Lambda_{k + 1}": column for k, column in enumerate(topk_logp.T)}
    values["entropy"] = entropy
    values["distinct"] = distinct_tokens(topk_logp, G)
    means = {name: value[gate].mean().item() for name, value in values.items()}
    return means | {f"{name}_all": value.mean().item() for name, value in values.items()}
