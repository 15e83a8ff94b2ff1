"""Make the laptop experiment from a seed: a tiny base model and its problems.

    python tools/laptop.py DIR [--seed 0] [--steps 2500]
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
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
ID = {token: i for i, token in enumerate([PAD, BOS, EOS, *">:=+-*/", *map(str, range(RECIPE["largest_value"] + 1))])}


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


def demonstrations(rng, legal, held_out):
    """A batch (B, 18) of token ids: a share `solving` of the responses reach the target, the others are any legal chain
    of the numbers. All have one length: nothing is padded, and no mask is needed."""
    import torch

    batch = []
    for _ in range(RECIPE["batch"]):
        numbers, target, chain = draw(rng, legal, held_out)
        if rng.random() >= RECIPE["solving"]:
            *chain, _ = rng.choice(legal[tuple(sorted(numbers))])
        batch.append([ID[token] for token in (BOS, *prompt(numbers, target).split(), *chain, EOS)])
    return torch.tensor(batch)


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(ID))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ID[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=RECIPE["context"])


def train_base(rng, legal, held_out, steps, seed):
    """A LlamaForCausalLM trained on `steps` batches of demonstrations; the loss is on the response tokens alone."""
    import torch
    import torch.nn.functional as F
    from tqdm import trange
    from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(ID), hidden_size=RECIPE["hidden"], intermediate_size=RECIPE["feed_forward"],
        num_hidden_layers=RECIPE["layers"], num_attention_heads=RECIPE["heads"],
        max_position_embeddings=RECIPE["context"], tie_word_embeddings=False,
        pad_token_id=ID[PAD], bos_token_id=ID[BOS], eos_token_id=ID[EOS]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["lr"])
    scheduler = get_cosine_schedule_with_warmup(optimizer, RECIPE["warmup"], steps)
    prompt_length = RECIPE["numbers"] + 4  # <bos>, the numbers, >, the target, :
    progress = trange(steps, desc="base model", unit="step", mininterval=1)
    for _ in progress:
        ids = demonstrations(rng, legal, held_out)
        logits = model(ids[:, :-1], use_cache=False).logits[:, prompt_length - 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, prompt_length:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model


def build(out, seed, steps):
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
    train_base(rng, legal, held_out, steps, seed).save_pretrained(out / "base")
    make_tokenizer().save_pretrained(out / "base")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the problems, demonstrations and weights (default 0)")
    parser.add_argument("--steps", type=int, default=2500, help="of training the base model (default 2500)")
    args = parser.parse_args()
    if args.seed < 0 or args.steps < 1:
        parser.error("--seed must be at least 0 and --steps at least 1")
    settings = {"seed": args.seed, "steps": args.steps, **RECIPE}
    made = args.dir / "laptop.json"
    if made.is_file():
        old = json.loads(made.read_text())
        differences = [f"{name} is {old.get(name)} there and {settings.get(name)} here"
                       for name in {**settings, **old} if old.get(name) != settings.get(name)]
        if differences:
            sys.exit(f"{args.dir} has other settings ({', '.join(differences)}): name another DIR or remove this one")
        print(f"{args.dir} is complete (seed {args.seed}, {args.steps} steps)")
        return
    if args.dir.exists() and not (args.dir.is_dir() and not any(args.dir.iterdir())):
        sys.exit(f"{args.dir} exists and was not made by this script: name another DIR or remove this one")
    args.dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{args.dir.name}.tmp", dir=args.dir.parent) as scratch:
        out = Path(scratch, "out")
        out.mkdir()
        build(out, args.seed, args.steps)
        (out / made.name).write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(out, args.dir)  # the rename commits: a DIR that exists is complete
    print(f"made {args.dir}: base/, train.jsonl, valid.jsonl, test.jsonl")


if __name__ == "__main__":
    main()
