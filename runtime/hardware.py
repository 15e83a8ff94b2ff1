"""Finds out what this machine has, what each recipe needs, and which fits.

train.sh calls this program to list the recipes, to check a recipe before
anything is installed, and to plan a run before it starts:

    python -m runtime.hardware list
    python -m runtime.hardware check --recipe qwen2.5-0.5b
    python -m runtime.hardware plan --recipe qwen2.5-0.5b

A GB is 10^9 bytes. A card is a GPU: `cards` lists the GB of each, and `count`
is their number. `list` and `check` run before PyTorch is installed, so only
the standard library is imported at the top of this file.
"""
import argparse
import ctypes
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

DRIVER = 580  # the first for CUDA 13, for which vLLM 0.32 and its PyTorch are built
ENGINE_MEMORY = 0.6  # simko.py's default of --gpu-memory-utilization


@dataclass(frozen=True)
class Recipe:
    """What the estimates of a recipe's memory and hours depend on.

    train.sh holds the recipe's flags; a test compares them with this table.
    """
    name: str
    model: str
    train_data: str
    parameters: float    # billions
    cards: int           # the number of GPUs that its row in the list assumes
    steps: int
    responses: int       # per step, over all GPUs
    tokens: int          # mean length of a response, a guess
    gated: bool = False  # whether its download needs a login
    full: str = ""       # for a -lora recipe: the one that trains all weights
    update_bytes: float = 16   # per parameter in the update, sharded over the GPUs
    rollout_bytes: float = 12  # the same in the rollout


RECIPES = (
    Recipe("qwen2.5-math-7b", "Qwen/Qwen2.5-Math-7B", "math",
           parameters=7.6, cards=8, steps=140, responses=8192, tokens=700),
    Recipe("qwen2.5-7b", "Qwen/Qwen2.5-7B", "math",
           parameters=7.6, cards=8, steps=140, responses=8192, tokens=700),
    Recipe("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", "gsm8k-math1",
           parameters=3.2, cards=8, steps=140, responses=8192, tokens=300,
           gated=True),
    Recipe("logic", "Qwen/Qwen2.5-7B", "synlogic",
           parameters=7.6, cards=8, steps=150, responses=2048, tokens=1500),
    Recipe("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "gsm8k",
           parameters=0.5, cards=1, steps=100, responses=512, tokens=300),
    Recipe("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "gsm8k",
           parameters=1.5, cards=1, steps=100, responses=512, tokens=300),
)
# Frozen weights take 2 bytes. Adapters of rank 32 have 1 % (7B) to 4 % (0.5B)
# as many parameters as the model, at 16 bytes each. 2.5 is about the sum.
RECIPES += tuple(
    replace(recipe, name=f"{recipe.name}-lora", full=recipe.name, cards=1,
            update_bytes=2.5, rollout_bytes=2.5)
    for recipe in RECIPES)


# ------------------------------------------------------------- the formula
def memory_gb(recipe, count):
    """Estimates the GB that a recipe needs on each of `count` cards.

    If all weights are trained, what must fit changes during a step:

    - In the update a card holds its shard of the float32 weights, gradients
      and AdamW's two moments: 16 bytes per parameter, divided by `count`.
      The engine sleeps. Beside the shard lie the layers that FSDP has
      gathered, activations and a chunk of logits (together 3.3 GB at 0.5B and
      5.0 GB at 1.5B on an H100), and CUDA's and NCCL's buffers.
    - In the rollout the gradients are gone. The engine holds all weights in
      bfloat16 (2 bytes per parameter) and its cache of keys and values, which
      `engine_memory` limits to what the trainer leaves.

    With P billion parameters, 16 P / count + 2 P + 12 is above both. With
    LoRA, 2.5 replaces 16.
    """
    return (recipe.update_bytes / count + 2) * recipe.parameters + 12


def engine_memory(recipe, count, card_gb):
    """Returns the share of a card that the engine may take in the rollout:
    the default, or what the trainer leaves if that is less.

    The trainer's bytes are sharded over the cards. CUDA, NCCL and the tensors
    that a sync gathers do not count as the engine's, and get 4 GB.
    """
    free = card_gb - recipe.rollout_bytes * recipe.parameters / count - 4
    return min(ENGINE_MEMORY, math.floor(100 * free / card_gb) / 100)


def hours(recipe, count):
    """Estimates the hours of training on `count` H100s.

    A token takes the sum of three times:

    - 10 FLOP per parameter for old log-probs, forward pass, recomputation and
      backward pass, at 4e14 FLOP per second;
    - its generation, at 4e13 / parameters tokens per second;
    - 45 microseconds that do not depend on the size. One H100 took that much
      beyond the other two at 0.4B (8.5 s for a step of 131,072 tokens).

    Evaluations are not included.
    """
    seconds_a_token = recipe.parameters * 1e9 * (10 / 4e14 + 1 / 4e13) + 45e-6
    tokens = recipe.steps * recipe.responses * recipe.tokens
    return tokens * seconds_a_token / count / 3600


def arithmetic(recipe, count):
    """Returns the result and the formula of `memory_gb`, for a message."""
    size = recipe.parameters
    where = "one GPU" if count == 1 else f"each of {count} GPUs"
    return (f"about {memory_gb(recipe, count):.0f} GB on {where} "
            f"({recipe.update_bytes} x {size} / {count} + 2 x {size} + 12)")


# ------------------------------------------------- what is in the machine
def fail(message):
    """Stops with one line for the user."""
    print(f"train.sh: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def nvidia_smi():
    """Returns (GB of each card that nvidia-smi sees, the driver's version).

    A card of unknown size counts as infinite, so that nothing is refused
    before PyTorch has been asked.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total,driver_version",
               "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [], None  # there is no nvidia-smi, or no driver
    cards, driver = [], None
    for line in done.stdout.splitlines():
        mib, _, driver = line.partition(", ")
        cards.append(int(mib) * 2**20 / 1e9 if mib.isdigit() else math.inf)
    return cards, driver


def pytorch_cards():
    """Returns the GB of each card that PyTorch sees. CUDA_VISIBLE_DEVICES may
    hide some. Stops if PyTorch should see cards and sees none."""
    import torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # check_driver says it in one line
        available = torch.cuda.is_available()
    if not available:
        check_driver(torch)
        return []
    return [torch.cuda.get_device_properties(card).total_memory / 1e9
            for card in range(torch.cuda.device_count())]


def check_driver(torch):
    """Stops if nvidia-smi sees cards that nobody has hidden."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards, driver = nvidia_smi()
    if not cards or visible in ("", "-1"):
        return
    seen = f"nvidia-smi sees {gpus(len(cards))} but PyTorch sees none"
    if visible is not None:
        seen += f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        numbers = [int(name) for name in visible.split(",") if name.strip().isdecimal()]
        if max(numbers, default=0) >= len(cards):
            fail(f"{seen}: unset the variable, or use numbers below {len(cards)}")
    if torch.version.cuda is None:
        fail(f"{seen}: PyTorch {torch.__version__} was built only for CPUs. "
             "Delete .venv, and the same command installs it for GPUs")
    fail(f"{seen}: the driver is {driver}, and PyTorch {torch.__version__} "
         f"was built for CUDA {torch.version.cuda}. Install a driver that "
         "supports this CUDA")


def too_old():
    """Returns the names of the cards that cannot compute in bfloat16."""
    import torch
    return [torch.cuda.get_device_name(card)
            for card in range(torch.cuda.device_count())
            if torch.cuda.get_device_capability(card) < (8, 0)]


def check_bfloat16():
    """Stops if a card cannot compute in bfloat16."""
    if names := too_old():
        fail(f"{names[0]} cannot compute in bfloat16, for which the compute "
             "capability must be 8.0 or more. Choose laptop, hide the card "
             "with CUDA_VISIBLE_DEVICES, or add --force to start in float32")


def missing_to_compile(compilers, package):
    """Returns the Debian packages that this machine lacks to compile code for
    Python: `package` if it has none of the compilers, and the package of
    Python.h if that is missing."""
    packages = []
    if not any(map(shutil.which, compilers)):
        packages.append(package)
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's, where compilers look in /usr
        scheme = "posix_prefix"
    headers = Path(sysconfig.get_paths(scheme)["include"])
    if not (headers / "Python.h").exists():
        version = ".".join(map(str, sys.version_info[:2]))
        packages.append(f"python{version}-dev")
    return packages


def missing_for_triton():
    """Returns the Debian packages that Triton lacks here. vLLM's kernels for
    GPUs use it, and it compiles C with $CC, gcc or clang."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return missing_to_compile(compilers, "gcc")


def missing_for_torch_compile():
    """Returns the Debian packages that torch.compile lacks here. On CPUs it
    compiles C++ with $CXX, or else with g++ (on macOS clang++)."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return missing_to_compile([os.environ.get("CXX", default)], "g++")


def missing_for_vllm_on_cpus():
    """Returns the Debian packages that vLLM for CPUs lacks here. It uses
    torch.compile, and on Linux its own kernels use libnuma."""
    packages = missing_for_torch_compile()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            packages.append("libnuma1")
    return packages


# ---------------------------------------------------------------- the plan
def gpus(count):
    return f"{count} GPU{'s' if count > 1 else ''}"


def describe(cards):
    text = f"{gpus(len(cards))} of {min(cards):.0f} GB"
    if max(cards) > 1.5 * min(cards):
        text += (f" (the smallest decides; the largest has {max(cards):.0f} GB, and "
                 "CUDA_VISIBLE_DEVICES can hide the others)")
    return text


def fits(recipe, cards):
    """Returns whether the recipe fits these cards."""
    return bool(cards) and memory_gb(recipe, len(cards)) <= min(cards)


def largest(recipes):
    """Returns the recipe with the largest model, the first if several are
    equal, or None if there are none."""
    return max(recipes, key=lambda recipe: recipe.parameters, default=None)


def choose(cards, login, old=()):
    """Chooses the recipe to train if the user names none.

    login: whether gated models can be downloaded. old: the names of the cards
    that cannot compute in bfloat16.
    Returns (Recipe or None for the laptop's, the reason in a sentence).
    """
    if not cards:
        return None, "The recipe is laptop, since PyTorch sees no GPU here."
    if len(old) == len(cards):
        return None, ("The recipe is laptop, since the others compute in "
                      f"bfloat16, which {old[0]} does not support.")
    fitting = [recipe for recipe in RECIPES if fits(recipe, cards)]
    allowed = [recipe for recipe in fitting if login or not recipe.gated]
    best, chosen = largest(fitting), largest(allowed)
    if chosen is None:
        smallest = min(RECIPES, key=lambda recipe: memory_gb(recipe, len(cards)))
        return None, (f"The recipe is laptop, since no other fits "
                      f"{describe(cards)}: {smallest.name} needs "
                      f"{arithmetic(smallest, len(cards))}.")
    reason = (f"The recipe is {chosen.name}, the largest that fits "
              f"{describe(cards)}")
    if chosen is not best:
        reason += (f" and needs no login ({best.name} would fit after "
                   "`hf auth login`)")
    full = largest(recipe for recipe in allowed if not recipe.full)
    if full and full is not chosen:
        reason += f"; to train all weights, choose {full.name}"
    return chosen, reason + "."


def prediction(recipe, cards):
    """Returns the memory and hours that the recipe will take, in a sentence."""
    count = len(cards)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    # For the export, one process holds the model in float32, or with LoRA in bfloat16.
    export = (2 if recipe.full else 4) * recipe.parameters
    return (f"It is estimated to take {arithmetic(recipe, count)}, "
            f"{export:.0f} GB of main memory "
            f"for the export (this machine has {machine:.0f}), and "
            f"{hours(recipe, count):.1f} hours at the speed of H100s.")


def check_fit(recipe, cards):
    """Stops, with the arithmetic, if the recipe does not fit."""
    if fits(recipe, cards):
        return
    others = [other for other in RECIPES if fits(other, cards)]
    adapted = [other for other in others if other.full == recipe.name]
    best = largest(adapted or others)
    advice = f"Choose {best.name}, which fits" if best else (
        "Choose laptop, a tiny model with puzzles of its own, or see docs/forking.md "
        "for a small model and your own data")
    needs = arithmetic(recipe, len(cards) or recipe.cards)
    here = describe(cards) if cards else "no GPU that can be used"
    fail(f"{recipe.name} needs {needs}, and this machine has {here}. {advice}, "
         "or add --force to start it anyway")


def check_compiler():
    """Stops if Triton could not compile its kernels."""
    if packages := missing_for_triton():
        fail("Triton compiles C when a model runs on a GPU, and this machine "
             "lacks packages for that. On Debian and Ubuntu, run apt install "
             f"{' '.join(packages)}, or add --force to start anyway")


def print_plan(recipe, reason, cards, model, force):
    """Prints two lines. The first is for train.sh: the recipe, the number of
    GPUs and, if the default is too much, the engine's share of their memory.
    The second tells the user which recipe was chosen and what it will take.

    recipe: None for the laptop's. model: the value of --model, or None.
    Only the size of the recipe's own model is known.
    """
    if recipe is None:
        print("laptop", len(cards))
        print(reason)
        return
    known = model in (None, recipe.model)
    if known and not force:
        check_fit(recipe, cards)
    if cards and not force:
        check_bfloat16()
        check_compiler()
    share = ENGINE_MEMORY
    if known and fits(recipe, cards):
        share = engine_memory(recipe, len(cards), min(cards))
    print(recipe.name, len(cards), share if share < ENGINE_MEMORY else "")
    if not known:
        takes = f"The size of {model} is not known, so nothing is predicted."
    elif cards:
        takes = prediction(recipe, cards)
    else:
        takes = "PyTorch sees no GPU here, so nothing is predicted."
    print(reason, takes)


def print_list():
    """Prints the recipes with what they take on the GPUs meant for them."""
    rows = [("recipe", "model", "data", "GB a GPU", "training"),
            ("laptop", "172k-parameter Llama", "Countdown", "no GPU",
             "minutes on 2 CPU cores")]
    for recipe in RECIPES:
        rows.append((recipe.name, recipe.model, recipe.train_data,
                     f"{memory_gb(recipe, recipe.cards):.0f} on {recipe.cards}",
                     f"{hours(recipe, recipe.cards):.1f} hours"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join(cells).rstrip())
    print("GB and hours are estimates for H100s (docs/cost.md). "
          "LoRA is our addition, not the paper's.")


def main(arguments):
    parser = argparse.ArgumentParser(prog="train.sh", allow_abbrev=False)
    parser.add_argument("command", choices=("list", "check", "plan"))
    parser.add_argument("--recipe", help="with plan, the default is the largest that fits")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--model", nargs="?", help="simko.py's flag")
    parser.add_argument("--lora-rank", nargs="?", help="simko.py's flag")
    options, _ = parser.parse_known_args(arguments)  # simko.py has others
    recipes = {recipe.name: recipe for recipe in RECIPES}
    recipe = recipes.get(options.recipe)
    if options.command == "list":
        print_list()
    elif options.command == "check":  # before there is a PyTorch to ask
        cards, driver = nvidia_smi()
        known = recipe and options.model in (None, recipe.model)
        if known and not options.force:
            check_fit(recipe, cards)
        major = (driver or "").partition(".")[0]
        if major.isdigit() and int(major) < DRIVER:
            print(f"note: the driver is {driver}. PyTorch for CUDA 13 needs {DRIVER} "
                  "or later, or NVIDIA's cuda-compat")
    else:
        cards = pytorch_cards()
        reason = f"The recipe is {options.recipe}."
        if recipe is None:
            from huggingface_hub import get_token
            login = get_token() is not None
            old = () if options.force else too_old()
            recipe, reason = choose(cards, login, old)
        rank = options.lora_rank
        if recipe and rank and (rank != "0") != bool(recipe.full):
            fail(f"--lora-rank {rank} contradicts {recipe.name}: recipes whose name "
                 "ends in -lora train adapters, the others all weights")
        print_plan(recipe, reason, cards, options.model, options.force)


if __name__ == "__main__":
    main(sys.argv[1:])
