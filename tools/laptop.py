"""Make the laptop experiment from a seed: a tiny base model and its problems.

    python tools/laptop.py DIR [--seed 0] [--steps 2500] [--wordy]
    bash train.sh laptop                                      # makes it, then trains GRPO and SimKO from it

DIR/base is an ordinary Hugging Face checkpoint (Llama, 172 224 parameters, fp32) with its tokenizer, one token a word.
DIR/train.jsonl (4000 draws), valid.jsonl and test.jsonl (200 each) hold {"id", "problem", "answer"}. The task is
Countdown with three numbers: use each number once, reach the target, write every step down.

    problem  "7 20 4 > 48 :"    answer  "48 = 7 20 4"    right response  "7 * 4 = 28 28 + 20 = 48"

Why this regime. The base is warmed up on demonstrations of which 30 % reach the target and 70 % are any legal chain of
the same numbers. So it is weak at one try and complete at many (seed 0, test.jsonl, 256 samples at T = 1: pass@1 24.1,
@4 57.6, @16 89.7, @64 99.6, @256 100 %; 93 % of the samples are legal chains): what a method later loses at pass@256 it
had before. With 20 % instead of 30, pass@1 was 19.6 against 23.4 % on another split; with 1500 steps it was 20.8; with
20 % and targets drawn evenly instead of as ends of random chains, 12.8: the model is too small to search well.
The test and valid problems are in neither the warm-up nor train.jsonl, in any order of their numbers; those two share
theirs. Same seed, same bytes, on one machine. It takes 132 s of one core.

--wordy makes the same problems with responses in which few tokens are decisions, as in text: a token a digit, and
phrases that never change: "first we take two of them : 7 * 4 = 28 . then we take what is left : 28 + 20 = 48 ."
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
from pathlib import Path

RECIPE = {
    "numbers": 3, "largest_number": 20, "smallest_target": 40, "largest_value": 83,
    "train": 4000, "valid": 200, "test": 200,
    "hidden": 64, "layers": 3, "heads": 2, "feed_forward": 192, "context": 32,
    "batch": 128, "lr": 4e-3, "warmup": 100, "solving": 0.3,
}
PHRASES = "first we take two of them :", ". then we take what is left :", "."
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def vocabulary(wordy=False):
    """{token: id}; in wordy responses a digit that continues a number begins with ##, as in WordPiece."""
    words = [PAD, BOS, EOS, *">:=+-*/"]
    if wordy:
        words += [*"0123456789", *(f"##{digit}" for digit in "0123456789"), *" ".join(PHRASES).split()]
    else:
        words += map(str, range(RECIPE["largest_value"] + 1))
    return {token: i for i, token in enumerate(dict.fromkeys(words))}


def response(chain, wordy):
    """The text of a chain of two steps, without its last value."""
    first, second = " ".join(chain[:5]), " ".join(chain[5:])
    return " ".join([PHRASES[0], first, PHRASES[1], second, PHRASES[2]] if wordy else [first, second])


def chains(numbers):
    """All legal chains that use up the tuple `numbers`: a set of (token, ..., token, last value).

    No x1, /1 or zero: such steps change nothing, and the base model would only learn to waste them.
    """
    if len(numbers) == 1:
        return {numbers}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        results = {"+": a + b, "-": a - b, "*": a * b if a > 1 < b else 0, "/": a // b if b > 1 and a % b == 0 else 0}
        for op, c in results.items():
            if 0 < c <= RECIPE["largest_value"]:
                found |= {(str(a), op, str(b), "=", str(c), *chain) for chain in chains((*rest, c))}
    return found


def all_chains():
    """{sorted numbers: their chains}. Sorted: the order of a set of strings changes from run to run."""
    values = range(1, RECIPE["largest_number"] + 1)
    return {n: sorted(chains(n)) for n in itertools.combinations_with_replacement(values, RECIPE["numbers"])}


def key(numbers, target):
    """What two problems share when they are the same one: the order of the numbers does not matter."""
    return tuple(sorted(numbers)), target


def draw(rng, legal, held_out=()):
    """A problem not among the keys `held_out`: (numbers, target, a chain that solves it).

    The numbers come first, then the target as the end of one of their chains.
    """
    while True:
        numbers = rng.choices(range(1, RECIPE["largest_number"] + 1), k=RECIPE["numbers"])
        *chain, target = rng.choice(legal[tuple(sorted(numbers))])
        if target >= RECIPE["smallest_target"] and target not in numbers and key(numbers, target) not in held_out:
            return numbers, target, chain


def prompt(numbers, target):
    return f"{' '.join(map(str, numbers))} > {target} :"


def demonstrations(rng, legal, held_out, tokenizer, wordy):
    """A batch of token ids (B, L), of labels (B, L), -100 where nothing is to be learnt, and the shortest prompt's
    length. A share `solving` of the responses reach the target, the others are any legal chain of the numbers."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    prompts, responses, ids, labels = [], [], [], []
    for _ in range(RECIPE["batch"]):
        numbers, target, chain = draw(rng, legal, held_out)
        if rng.random() >= RECIPE["solving"]:
            *chain, _ = rng.choice(legal[tuple(sorted(numbers))])
        prompts.append(prompt(numbers, target))
        responses.append(f"{response(chain, wordy)} {EOS}")
    for given, answer in zip(tokenizer(prompts).input_ids, tokenizer(responses, add_special_tokens=False).input_ids):
        ids.append(torch.tensor(given + answer))
        labels.append(torch.tensor([-100] * len(given) + answer))
    shortest = min((row == -100).sum().item() for row in labels)
    return pad_sequence(ids, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=-100), shortest


def make_tokenizer(wordy=False):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary(wordy)
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=PAD) if wordy else models.WordLevel(ids))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    if wordy:
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=RECIPE["context"] * (1 + wordy))


def train_base(rng, legal, held_out, steps, seed, wordy):
    """A LlamaForCausalLM trained on `steps` batches of demonstrations; the loss is on the response tokens alone."""
    import torch
    import torch.nn.functional as F
    from tqdm import trange
    from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

    torch.manual_seed(seed)
    vocab, tokenizer = vocabulary(wordy), make_tokenizer(wordy)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(vocab), hidden_size=RECIPE["hidden"], intermediate_size=RECIPE["feed_forward"],
        num_hidden_layers=RECIPE["layers"], num_attention_heads=RECIPE["heads"],
        max_position_embeddings=RECIPE["context"] * (1 + wordy), tie_word_embeddings=False,
        pad_token_id=vocab[PAD], bos_token_id=vocab[BOS], eos_token_id=vocab[EOS]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["lr"])
    scheduler = get_cosine_schedule_with_warmup(optimizer, RECIPE["warmup"], steps)
    progress = trange(steps, desc="base model", unit="step", mininterval=1)
    for _ in progress:
        ids, labels, shortest = demonstrations(rng, legal, held_out, tokenizer, wordy)
        logits = model(ids[:, :-1], use_cache=False).logits[:, shortest - 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, shortest:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model


def build(out, seed, steps, wordy):
    import torch

    torch.set_num_threads(1)  # the sums, and so the weights, depend on the number of threads
    rng, legal = random.Random(seed), all_chains()
    held_out = {}
    while len(held_out) < RECIPE["test"] + RECIPE["valid"]:
        numbers, target, _ = draw(rng, legal)
        held_out[key(numbers, target)] = numbers, target
    problems = list(held_out.values())
    rng.shuffle(problems)  # a problem with many solutions is drawn early
    splits = {"test": problems[:RECIPE["test"]], "valid": problems[RECIPE["test"]:],
              "train": [draw(rng, legal, held_out)[:2] for _ in range(RECIPE["train"])]}
    for name, rows in splits.items():
        with (out / f"{name}.jsonl").open("w") as file:
            for i, (numbers, target) in enumerate(rows):
                row = {"id": f"{name}-{i}", "problem": prompt(numbers, target),
                       "answer": f"{target} = {' '.join(map(str, numbers))}"}
                file.write(json.dumps(row) + "\n")
    train_base(rng, legal, held_out, steps, seed, wordy).save_pretrained(out / "base")
    make_tokenizer(wordy).save_pretrained(out / "base")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the problems, demonstrations and weights (default 0)")
    parser.add_argument("--steps", type=int, default=2500, help="of training the base model (default 2500)")
    parser.add_argument("--wordy", action="store_true", help="responses in which few tokens are decisions")
    args = parser.parse_args()
    if args.seed < 0 or args.steps < 1:
        parser.error("--seed must be at least 0 and --steps at least 1")
    settings = {"seed": args.seed, "steps": args.steps, "wordy": args.wordy, **RECIPE}
    made = args.dir / "laptop.json"
    if made.is_file():
        try:
            old = dict(json.loads(made.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            sys.exit(f"{made} is damaged ({error}): name another DIR or remove this one")
        differences = [f"{name!r} is {old.get(name)!r} there and {settings.get(name)} here"
                       for name in {**settings, **old} if old.get(name) != settings.get(name)]
        if differences:
            sys.exit(f"{args.dir} has other settings ({', '.join(differences)}): name another DIR or remove this one")
        print(f"{args.dir} is complete (seed {args.seed}, {args.steps} steps)")
        return
    if args.dir.exists() and not (args.dir.is_dir() and not any(args.dir.iterdir())):
        sys.exit(f"{args.dir} exists and was not made by this script: name another DIR or remove this one")
    try:
        args.dir.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f"{args.dir.name}.tmp", dir=args.dir.parent)
    except OSError as error:
        sys.exit(f"{args.dir} cannot be made ({error.strerror}): name another DIR")
    with scratch as scratch:
        out = Path(scratch, "out")
        out.mkdir()
        build(out, args.seed, args.steps, args.wordy)
        (out / made.name).write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(out, args.dir)  # the rename commits: a DIR that exists is complete
    print(f"made {args.dir}: base/, train.jsonl, valid.jsonl, test.jsonl")


if __name__ == "__main__":
    main()
