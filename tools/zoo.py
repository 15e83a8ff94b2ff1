"""Tests which architectures simko.py can train, on tiny models with random
weights.

    python -m tools.zoo                  # all architectures, about ten minutes
    python -m tools.zoo qwen3 lfm2       # only these
    python -m tools.zoo --rollout hf

Each model trains two steps with each rollout backend. About half of its
responses, which are random, are right. A run that succeeds has passed the
probe of its log-probs (runtime/probe.py) and, at both steps, the comparison
with the engine's log-probs, the second time with weights that have changed.
The program prints a markdown table, from which the one in docs/models.md is
made.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tools import ROOT, command_line

SHARED = {
    "vocab_size": 80, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    "tie_word_embeddings": False}
HEADS = {"head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
LONGROPE = {
    "original_max_position_embeddings": 48, "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0,
        "short_factor": [1.0] * 16, "long_factor": [4.0] * 16,
        "original_max_position_embeddings": 48}}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"]}

MODELS = {  # name: (transformers' model type, settings that differ from SHARED)
    "llama": ("llama", HEADS),
    "llama-tied": ("llama", HEADS | {"tie_word_embeddings": True}),
    "llama-dropout": ("llama", HEADS | {"attention_dropout": 0.3}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", HEADS),
    "qwen3-moe": ("qwen3_moe", HEADS | EXPERTS),
    "mistral": ("mistral", HEADS | {"sliding_window": None}),
    "mistral-window": ("mistral", HEADS | {"sliding_window": 24}),
    "gemma": ("gemma", HEADS),
    "gemma2": ("gemma2", HEADS | {"sliding_window": 256}),
    "gemma3": ("gemma3_text", HEADS | WINDOW | {"sliding_window": 256}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-longrope": ("phi3", LONGROPE),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", WINDOW | {"sliding_window": 256}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "glm4": ("glm4", HEADS),
    "granite": ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    "cohere": ("cohere", {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "seed-oss": ("seed_oss", HEADS | {"residual_dropout": 0.3}),
    "nemotron": ("nemotron", HEADS),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "falcon-h1": ("falcon_h1", HEADS | MAMBA | {"mamba_d_ssm": 128}),
}
ONE_BY_ONE = "--micro-batch-tokens", "1"


def save(name, folder):
    """Saves a model of MODELS to `folder`, with a tokenizer of the same vocabulary size."""
    kind, changes = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHARED | changes))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):  # dropping a zero bias would change nothing
                parameter.normal_()
    model.save_pretrained(folder)
    save_tokenizer(folder, SHARED["vocab_size"])
    return folder


def save_tokenizer(folder, vocabulary):
    """Saves a tokenizer whose words are <pad>, <eos>, numbers, and twenty boxed answers: `right`
    and `wrong`, each with ten different numbers of spaces before it."""
    boxes = [f"\\boxed{{{answer:>{n}}}}" for answer in ("right", "wrong") for n in range(5, 15)]
    numbers = map(str, range(2, vocabulary - len(boxes)))
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *numbers, *boxes])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def outcome(name, rollout, *flags):
    """Trains two steps. Returns "right" and the largest gap to the engine's log-probs, or what
    went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        model = save(name, Path(folder, "model"))
        data = Path(folder, "train.jsonl")
        rows = [{"problem": f"{i} {i + 1}", "answer": "right"} for i in range(2, 10)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = """
            --prompt-template raw --steps 2 --batch-size 4 --mini-batch-size 4
            --num-generations 4 --max-prompt-length 30 --max-completion-length 30
            --learning-rate 1e-3"""
        done = subprocess.run(
            [sys.executable, "simko.py", "train", "--model", str(model), "--rollout", rollout,
             "--train-data", str(data), "--output-dir", f"{folder}/run", *settings.split(),
             *flags],
            cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            log = Path(folder, "run", "metrics.jsonl").read_text()
            steps = [json.loads(line) for line in log.splitlines()]
            norms = [step["grad_norm"] for step in steps]
            if None in norms:  # null in the log
                return "wrong: a step's gradient was not finite"
            if not all(norms):
                return "not tried, because a step had no gradient"
            return f"right, gap {max(step['logp_gap'] for step in steps):.0e}"
        lines = (done.stdout + done.stderr).splitlines()
        errors = [line for line in lines if "Error: " in line or "error: " in line]
        found = errors[-1] if errors else f"ended with status {done.returncode}"
        found = found.partition("simko.py: error: ")[2] or found
        return found.replace(f"--model {model}", "--model MODEL").replace("|", r"\|")


def row(name, rollouts):
    """Returns a model's outcomes. If a run's error advises --micro-batch-tokens 1, follows it."""
    cells = []
    for rollout in rollouts:
        found = outcome(name, rollout)
        if ONE_BY_ONE[0] in found:
            found = f"with {' '.join(ONE_BY_ONE)}: " + outcome(name, rollout, *ONE_BY_ONE)
        cells.append(found)
    return cells


def main(arguments):
    parser = command_line(__file__, __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL",
                        help=f"The models to try, any of {', '.join(MODELS)}. Default: all.")
    parser.add_argument("--rollout", nargs="+", choices=["hf", "vllm"], default=["hf", "vllm"],
                        help="The rollout backends to try. Default: both.")
    options = parser.parse_args(arguments)
    unknown = set(options.models) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {min(unknown)!r}: choose from {', '.join(MODELS)}")
    print("| model |", " | ".join(f"--rollout {name}" for name in options.rollout), "|")
    print("| --- " * (1 + len(options.rollout)) + "|")
    for name in options.models or MODELS:
        print("|", name, "|", " | ".join(row(name, options.rollout)), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
