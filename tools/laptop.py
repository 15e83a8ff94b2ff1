"""Makes a tiny base model and its problems for the laptop experiment.

    python -m tools.laptop DIR [--seed 0] [--steps 2500] [--wordy]
    bash train.sh laptop           also trains GRPO and SimKO

DIR/base is an ordinary Hugging Face checkpoint (Llama, 172,224 parameters,
float32) with a tokenizer that makes each word a token. DIR/train.jsonl (4000
rows), valid.jsonl and test.jsonl (200 each) have rows {"id", "problem",
"answer"}. The task is Countdown with three numbers: use each number once,
reach the target, and write down every step.

    problem   7 20 4 > 48 :
    answer    48 = 7 20 4
    response  7 * 4 = 28 28 + 20 = 48

The base model learns from demonstrations, 30 % of which reach the target.
The others are random legal chains of the same numbers. The model therefore
solves few problems with one sample and all of them with many, so a method
that has a lower pass@256 has lost solutions. On seed 0's test problems,
with 256 samples at T = 1 from transformers' `generate` (README.md's table
has vLLM's), its pass@1 is 24.3, @4 57.6, @16 89.6, @64 99.5 and @256 100 %,
and 93 % of the samples are legal chains.

Neither the demonstrations nor train.jsonl contain a problem of valid.jsonl or
test.jsonl, not even with its numbers in another order, but they may share
problems with each other. On the same machine, a seed always gives the same
bytes. Making the folder takes 132 s on one core.

--wordy makes the same problems with responses in which few tokens are
decisions, as in prose. Each digit is a token, and the phrases never change:
"first we take two of them : 7 * 4 = 28 . then we take what is left : 28 +
20 = 48 ."
"""
import itertools
import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from runtime.common import fail
from tools import command_line

RECIPE = {
    "numbers": 3, "largest_number": 20, "smallest_target": 40, "largest_value": 83,
    "train": 4000, "valid": 200, "test": 200,
    "hidden": 64, "layers": 3, "heads": 2, "feed_forward": 192, "context": 32,
    "batch": 128, "lr": 4e-3, "warmup": 100, "solving": 0.3,
}
PHRASES = "first we take two of them :", ". then we take what is left :", "."
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
NUMBERS = range(1, RECIPE["largest_number"] + 1)


# --------------------------------------------------------------- problems
def chains(numbers):
    """Returns all legal chains that use each of the tuple `numbers`, as a
    set of (token, ..., token, last value).

    Steps that give 0, or multiply or divide by 1, are not legal, because they
    would only teach the model to waste steps."""
    if len(numbers) == 1:
        return {numbers}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        results = {"+": a + b, "-": a - b}
        if a > 1 and b > 1:
            results["*"] = a * b
        if b > 1 and a % b == 0:
            results["/"] = a // b
        for op, c in results.items():
            if 0 < c <= RECIPE["largest_value"]:
                step = str(a), op, str(b), "=", str(c)
                found |= {(*step, *chain) for chain in chains((*rest, c))}
    return found


def all_chains():
    """Returns {sorted numbers: their chains}. The chains are sorted too, because
    Python iterates over a set of texts in an order that changes from process
    to process."""
    choices = itertools.combinations_with_replacement(NUMBERS, RECIPE["numbers"])
    return {numbers: sorted(chains(numbers)) for numbers in choices}


def key(numbers, target):
    """Returns a key that does not depend on the order of the numbers."""
    return tuple(sorted(numbers)), target


def draw(rng, legal, held_out=()):
    """Draws a problem whose key is not in `held_out`. Returns (numbers,
    target, a chain that solves it). The target is a random chain's last
    value."""
    while True:
        numbers = rng.choices(NUMBERS, k=RECIPE["numbers"])
        *chain, target = rng.choice(legal[tuple(sorted(numbers))])
        if (target >= RECIPE["smallest_target"] and target not in numbers
                and key(numbers, target) not in held_out):
            return numbers, target, chain


def demonstrated(rng, legal, held_out, solving):
    """Draws what a demonstration shows: a problem and a chain. With probability
    `solving` the chain solves the problem. Otherwise it is any legal chain of
    the problem's numbers."""
    numbers, target, chain = draw(rng, legal, held_out)
    if rng.random() >= solving:
        *chain, _ = rng.choice(legal[tuple(sorted(numbers))])
    return numbers, target, chain


def prompt(numbers, target):
    return f"{' '.join(map(str, numbers))} > {target} :"


def response(chain, wordy):
    """Returns the text of a chain of two steps, given without its last value."""
    first, second = " ".join(chain[:5]), " ".join(chain[5:])
    parts = [PHRASES[0], first, PHRASES[1], second, PHRASES[2]]
    return " ".join(parts if wordy else [first, second])


def problem_row(id, problem, numbers, target):
    """Returns a problem of the task countdown."""
    answer = f"{target} = {' '.join(map(str, numbers))}"
    return {"id": id, "problem": problem, "answer": answer}


def write_problems(rng, legal, folder):
    """Writes the three sets. Returns {key: problem} of valid and test."""
    held_out = {}
    while len(held_out) < RECIPE["test"] + RECIPE["valid"]:
        numbers, target, _ = draw(rng, legal)
        held_out[key(numbers, target)] = numbers, target
    problems = list(held_out.values())
    rng.shuffle(problems)  # problems with many solutions tend to be drawn first
    sets = {"test": problems[:RECIPE["test"]], "valid": problems[RECIPE["test"]:],
            "train": [draw(rng, legal, held_out)[:2] for _ in range(RECIPE["train"])]}
    for name, rows in sets.items():
        with (folder / f"{name}.jsonl").open("w") as file:
            for i, (numbers, target) in enumerate(rows):
                row = problem_row(f"{name}-{i}", prompt(numbers, target), numbers, target)
                file.write(json.dumps(row) + "\n")
    return held_out


# -------------------------------------------------------------- the model
def vocabulary(wordy=False):
    """Returns {token: id}. In wordy responses, a digit that continues a
    number begins with ##, as in WordPiece."""
    words = [PAD, BOS, EOS, *">:=+-*/"]
    if wordy:
        words += [*"0123456789", *(f"##{digit}" for digit in "0123456789")]
        words += " ".join(PHRASES).split()
    else:
        words += map(str, range(RECIPE["largest_value"] + 1))
    return {token: i for i, token in enumerate(dict.fromkeys(words))}


def make_tokenizer(wordy=False):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary(wordy)
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=PAD) if wordy else models.WordLevel(ids))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    if wordy:
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS,
        padding_side="left", clean_up_tokenization_spaces=False,
        model_max_length=RECIPE["context"] * (1 + wordy))


def demonstrations(rng, legal, held_out, tokenizer, wordy):
    """Returns a batch of (prompt ids, answer ids)."""
    prompts, responses = [], []
    for _ in range(RECIPE["batch"]):
        numbers, target, chain = demonstrated(rng, legal, held_out, RECIPE["solving"])
        prompts.append(prompt(numbers, target))
        responses.append(f"{response(chain, wordy)} {EOS}")
    prompts = tokenizer(prompts).input_ids
    responses = tokenizer(responses, add_special_tokens=False).input_ids
    return list(zip(prompts, responses))


def supervised_loss(model, pairs):
    """Returns the mean cross-entropy of the answers' tokens. pairs: a list of
    (prompt ids, answer ids)."""
    ids = [torch.tensor(given + wanted) for given, wanted in pairs]
    labels = [torch.tensor([-100] * len(given) + wanted) for given, wanted in pairs]
    ids = pad_sequence(ids, batch_first=True).to(model.device)
    labels = pad_sequence(labels, batch_first=True, padding_value=-100).to(model.device)
    shortest = min(len(given) for given, _ in pairs)
    logits = model(ids[:, :-1], use_cache=False).logits[:, shortest - 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, shortest:].flatten())


def train_base(rng, legal, held_out, steps, seed, wordy):
    """Trains a Llama on `steps` batches of demonstrations and returns it."""
    from tqdm import trange
    from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup
    from transformers.utils.logging import disable_progress_bar

    torch.manual_seed(seed)
    vocab, tokenizer = vocabulary(wordy), make_tokenizer(wordy)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(vocab), hidden_size=RECIPE["hidden"],
        intermediate_size=RECIPE["feed_forward"],
        num_hidden_layers=RECIPE["layers"], num_attention_heads=RECIPE["heads"],
        max_position_embeddings=RECIPE["context"] * (1 + wordy), tie_word_embeddings=False,
        pad_token_id=vocab[PAD], bos_token_id=vocab[BOS], eos_token_id=vocab[EOS]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["lr"])
    scheduler = get_cosine_schedule_with_warmup(optimizer, RECIPE["warmup"], steps)
    shown = {"mininterval": 1}
    if not sys.stderr.isatty():  # a file or a pipe gets one line per minute
        disable_progress_bar()  # the progress bar of transformers
        # Without maxinterval=inf, tqdm's own thread would print each line twice.
        shown = {"mininterval": 60, "maxinterval": math.inf,
                 "bar_format": "{desc}: step {n} of {total}{postfix}\n"}
    progress = trange(steps, desc="base model", unit="step", **shown)
    for _ in progress:
        loss = supervised_loss(model, demonstrations(rng, legal, held_out, tokenizer, wordy))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model


def build(folder, seed, steps, wordy):
    torch.set_num_threads(1)  # the rounding of sums, and so the weights, depend on it
    rng, legal = random.Random(seed), all_chains()
    held_out = write_problems(rng, legal, folder)
    model = train_base(rng, legal, held_out, steps, seed, wordy)
    model.save_pretrained(folder / "base")
    make_tokenizer(wordy).save_pretrained(folder / "base")


def main():
    parser = command_line(__file__, __doc__)
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder to make")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of problems and weights (default: 0)")
    parser.add_argument(
        "--steps", type=int, default=2500, help="number of training steps (default: 2500)")
    parser.add_argument(
        "--wordy", action="store_true",
        help="make responses in which few tokens are decisions")
    args = parser.parse_args()
    if args.seed < 0 or args.steps < 1:
        parser.error("--seed must be at least 0 and --steps at least 1")
    settings = {"seed": args.seed, "steps": args.steps, "wordy": args.wordy, **RECIPE}
    settings = json.dumps(settings, indent=2) + "\n"
    made, remedy = args.dir / "laptop.json", "name another DIR or remove this one"
    try:
        if made.is_file():
            if made.read_bytes() != settings.encode():
                fail(f"{args.dir} was made with other settings, see {made}: {remedy}")
            print(f"{args.dir} is complete (seed {args.seed}, {args.steps} steps)")
            return
        if args.dir.exists() and (args.dir.is_file() or any(args.dir.iterdir())):
            fail(f"{args.dir} exists and was not made by this program: {remedy}")
        args.dir.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f"{args.dir.name}.tmp", dir=args.dir.parent)
    except OSError as error:
        fail(f"{args.dir} cannot be made ({error.strerror}): name another DIR")
    with scratch as scratch:
        out = Path(scratch, "out")
        out.mkdir()
        build(out, args.seed, args.steps, args.wordy)
        (out / made.name).write_text(settings)
        os.replace(out, args.dir)  # so a DIR that exists is complete
    print(f"made {args.dir}: base/, train.jsonl, valid.jsonl, test.jsonl")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
