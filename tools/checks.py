"""What simko.py does before it loads a model: reads the command line, problems, tokenizer and run folder, and refuses
what cannot work with one line that names the flag, file or row.
"""
import argparse
import dataclasses
import glob
import io
import json
import math
import os
import pickle
import re
import sys
import tempfile
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as MEMORY_FORMATS
from transformers.hf_argparser import HfArgumentParser

from simko import METHODS, Config, EvalConfig, ObjectiveConfig, RunConfig, TrainConfig, fail, one_line, printable
from tools.data import DATASETS, GROUPS, PROTOCOL, load_problems, without_tests
from tools.evaluation import Test, digest, read_response
from tools.prompts import TEMPLATES, encode_prompts
from verify import TASKS


NUMBERS = re.compile(r"[0-9.]+(,[0-9.]+)+")
OWN = {"alpha": "simko", "lam": "simko", "q": "simko", "tau_scope": "simko", "positive_weight": "w-reinforce",
       "forking_share": "forking", "entropy_weight": "entropy-adv", "kl_cov_share": "kl-cov", "kl_cov_weight": "kl-cov",
       "pass_k": "pass-at-k"}  # settings of one method alone; the others log with some, but do not learn by them
PICKLED = {"torch.Size", "torch.serialization._get_layout", "pathlib.PosixPath", "pathlib._local.PosixPath"} | {
    f"torch.distributed.checkpoint.{name}" for name in (
        "filesystem._StorageInfo", "metadata.Metadata", "metadata.MetadataIndex", "metadata.StorageMeta",
        "metadata.TensorStorageMetadata", "metadata.BytesStorageMetadata", "metadata.ChunkStorageMetadata",
        "metadata.TensorProperties", "metadata._MEM_FORMAT_ENCODING")}  # with dtypes, all that a .metadata names
MEMORY_FORMAT_NAMES = frozenset(MEMORY_FORMATS.__members__)  # as they are before any pickle could change the class


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the epilog's lines as they are."""


class Parser(HfArgumentParser):
    """Knows each flag with - and with _, and shows the first alone; complains in one line."""
    command = None

    def format_help(self):
        return re.sub(r"--[a-z]+_\w*(?: [^-\s]\S*(?: \[.*\])?)?, (?=--)", "", super().format_help())

    def error(self, message):
        print(f"simko.py: error: {printable(message)} (see: python simko.py {self.command or 'train'} --help)",
              file=sys.stderr)
        raise SystemExit(2)


def parse_config(arguments):
    """Command line -> (command, Config). What is impossible gets one line and exit status 2, before anything loads."""
    groups = {"train": (RunConfig, ObjectiveConfig, TrainConfig, EvalConfig), "eval": (RunConfig, EvalConfig)}
    command = arguments[0] if arguments and arguments[0] in groups else None
    parser = Parser(
        groups.get(command, ()), prog="simko.py", usage="simko.py {train,eval} [--flag value]", allow_abbrev=False,
        description="Both commands have their own --help.", formatter_class=partial(Help, width=120),
        epilog="methods:\n" + "".join(f"  {name:14}{what}\n" for name, what in METHODS.items()))
    parser.command = command
    if command == "eval":  # which has but one temperature: --temperature 0.2,0.4 is --eval-temperature 0.2 0.4
        arguments = ["--eval-temperature" if word == "--temperature" else word for word in arguments]
        arguments = [part for word in arguments for part in (word.split(",") if NUMBERS.fullmatch(word) else [word])]
    *parts, unknown = parser.parse_args_into_dataclasses(arguments[bool(command):], return_remaining_strings=True,
                                                         look_for_args_file=False)
    if unknown or not command:
        parser.error(f"unknown flag or value {unknown[0]!r}" if command else "say what to do: train or eval")
    cfg = Config(**{name: value for part in parts for name, value in vars(part).items()})
    for name, value in vars(cfg).items():
        for value in value if isinstance(value, list) else [value]:
            if isinstance(value, str) and not (value.isprintable() and (value.strip() or name == "data_dir")):
                parser.error(f"{flag(name)} {value!r} is empty, or has characters that cannot be printed")
            if isinstance(value, int | float) and not abs(value) < 2**31:
                parser.error(f"{flag(name)} {value} is no number below 2^31")
    cfg.eval_data = [name for source in cfg.eval_data for name in GROUPS.get(source, [source])]
    cfg.train_data = f"{cfg.train_data}-train" if f"{cfg.train_data}-train" in DATASETS else cfg.train_data
    above_0 = ("K", "steps", "batch", "group_size", "mini_batch", "max_prompt_tokens", "max_response_tokens", "lr",
               "temperature", "grad_clip", "micro_batch_tokens", "save_every", "engine_memory", "pass_k",
               "tensor_parallel")
    not_below_0 = ("seed", "kl_beta", "clip_high", "lr_warmup", "weight_decay", "eval_every", "grpo_steps",
                   "dynamic_sampling", "positive_weight", "entropy_weight", "kl_cov_weight")
    shares = ("alpha", "q", "forking_share", "kl_cov_share")
    temperatures = cfg.eval_temperature or []
    parts, ranks = cfg.tensor_parallel, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    checks = [(f"{flag(name)} must be above 0", getattr(cfg, name) > 0) for name in above_0] + [
        (f"{flag(name)} must be at least 0", getattr(cfg, name) >= 0) for name in not_below_0] + [
        (f"{flag(name)} must lie in [0, 1]", 0 <= getattr(cfg, name) <= 1) for name in shares] + [
        (f"--pass-k {cfg.pass_k} is more than --group-size {cfg.group_size}",
         cfg.pass_k <= cfg.group_size or cfg.method != "pass-at-k"),
        ("--eval-n must be above 0", cfg.eval_n is None or cfg.eval_n > 0),
        ("--eval-max-tokens must be above 0", cfg.eval_max_tokens is None or cfg.eval_max_tokens > 0),
        ("--eval-temperature must be at least 0", all(t >= 0 for t in temperatures)),
        ("--eval-temperature 0 makes all samples the same: --eval-n 1", 0 not in temperatures or cfg.eval_n == 1),
        ("--eval-temperature names one twice", len(set(temperatures)) == len(temperatures)),
        ("--lam must be at least 1", cfg.lam >= 1), ("--clip-low must lie in [0, 1)", 0 <= cfg.clip_low < 1),
        ("--eval-top-p must lie in (0, 1]", cfg.eval_top_p is None or 0 < cfg.eval_top_p <= 1),
        ("--group-size must be at least 2: one response alone has no baseline", cfg.group_size > 1),
        (f"--mini-batch {cfg.mini_batch} does not divide --batch {cfg.batch}", cfg.batch % max(cfg.mini_batch, 1) == 0),
        (f"--task {cfg.task} is none of {', '.join(TASKS)}", cfg.task in TASKS),
        (f"--prompt-template {cfg.prompt_template} is none of chat, {', '.join(TEMPLATES)}",
         cfg.prompt_template in ("chat", *TEMPLATES)),
        ("two sets of --eval-data have the same name", len({set_name(s) for s in cfg.eval_data}) == len(cfg.eval_data)),
        ("eval needs --eval-data", command == "train" or cfg.eval_data),
        (f"--tensor-parallel {parts} is for vLLM's engine: not with --rollout hf", parts == 1 or cfg.rollout != "hf"),
        (f"--tensor-parallel {parts} does not divide the processes of a node: {ranks} (torchrun's --nproc_per_node)",
         ranks % max(parts, 1) == 0)]
    for message, holds in checks:
        if not holds:
            parser.error(message)
    return command, cfg


def flag(name):
    return f"--{name.replace('_', '-')}"


def idle_flags(cfg):
    """The flags given, with another value than their default, that cfg.method does not learn by."""
    return [flag(name) for name, method in OWN.items()
            if cfg.method != method and getattr(cfg, name) != getattr(Config, name)]


def set_name(source):
    return Path(source.split(",")[0]).stem


@contextmanager
def reading(what):
    """Of a damaged file, the library that reads it raises what it likes: here, one line with `what` in front."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        fail(f"{what}: {one_line(error) or repr(error)}")


def check_weights(folder):
    """Refuses a model's folder without weights in safetensors, or with damaged ones. Other formats can hold code."""
    index = folder / "model.safetensors.index.json"
    files = {*folder.glob("*.safetensors")}
    if index.exists():
        with reading(index):
            files = {folder / file for file in json.loads(index.read_bytes())["weight_map"].values()}
    if not files:
        fail(f"--model {folder} has no weights in .safetensors, and others are not read, since they can hold code: "
             "save the model with save_pretrained")
    for file in files:
        with reading(f"{file} is damaged, or not there: fetch it again"), safe_open(file, "pt"):
            pass  # the header is read, and the file has the size that it says


def load_tokenizer(command, cfg):
    """(tokenizer, ids that end a response, tokens that the model's context leaves for one, the vocabulary's size)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    own = "its config.json is missing, damaged or asks for code of its own (auto_map), which is never run"
    no_code = {"trust_remote_code": False}  # None, the default: transformers asks at a terminal whether to run it
    with reading(f"--model {cfg.model}: {own}"), torch.device("meta"):
        config = AutoConfig.from_pretrained(cfg.model, **no_code)
        body = AutoModelForCausalLM.from_config(config, **no_code).base_model
        config = config.get_text_config()
    if command == "train" and not hasattr(body, "layers"):
        fail(f"--model {cfg.model}: no training of a {type(body).__name__} is built; one that has .layers is needed")
    with reading(f"--model {cfg.model}: {own.replace('config.json', 'tokenizer')}"):
        tokenizer = AutoTokenizer.from_pretrained(cfg.model, **no_code)
        tokenizer.decode([config.vocab_size - 1])  # padded beyond the tokenizer's tokens, it may be sampled
    with reading(f"--model {cfg.model}"):
        try:
            ends = GenerationConfig.from_pretrained(cfg.model).eos_token_id
        except OSError:  # the file is optional
            if Path(cfg.model, "generation_config.json").exists():
                raise
            ends = None
    if Path(cfg.model).is_dir():
        check_weights(Path(cfg.model))
    context = getattr(config, "max_position_embeddings", None) or math.inf
    room, parts = context - cfg.max_prompt_tokens, cfg.tensor_parallel
    if room < (cfg.max_response_tokens if command == "train" else 1):
        fail(f"the model's context of {context} tokens is too short for --max-prompt-tokens {cfg.max_prompt_tokens}"
             + f" and --max-response-tokens {cfg.max_response_tokens}" * (command == "train"))
    if cfg.K > config.vocab_size:
        fail(f"--K {cfg.K} is more than the {config.vocab_size} tokens of the model's vocabulary")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, name, None)
        if isinstance(size, int) and size % parts and (name != "num_key_value_heads" or parts % size):
            fail(f"--tensor-parallel {parts} does not divide the model's {name}, {size}")
    if cfg.prompt_template == "chat" and not tokenizer.chat_template:
        fail(f"{cfg.model} has no chat template: choose --prompt-template {', '.join(TEMPLATES)}")
    stops = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
    if cfg.prompt_template in ("chat", "qwen-math"):  # Qwen's base models end a turn so, though not their text
        stops.append(tokenizer.get_vocab().get("<|im_end|>"))
    stops = [stop for stop in stops if stop is not None]
    if bad := [stop for stop in stops if not isinstance(stop, int) or not 0 <= stop < config.vocab_size]:
        fail(f"{cfg.model}: the end-of-text token {bad[0]!r} is none of the {config.vocab_size} of the model's "
             "vocabulary: model and tokenizer, or generation_config.json, do not belong together")
    if not stops:
        fail(f"{cfg.model} names no end-of-text token, so nothing would end: give its tokenizer an eos_token")
    return tokenizer, sorted(set(stops)), room, config.vocab_size


def encode(source, rows, tokenizer, vocabulary, cfg):
    """encode_prompts, whose prompts the model can read."""
    with reading(f"{cfg.model}: its chat template or tokenizer cannot make a prompt of {source}; another "
                 "--prompt-template may do"):
        problems, dropped = encode_prompts(rows, tokenizer, cfg)
    for problem in problems:
        ids = problem["prompt_ids"]
        if not len(ids) or ids.max() >= vocabulary:
            what = f"has a token of id {ids.max()}, beyond the model's {vocabulary}" if len(ids) else "has no tokens"
            fail(f"{source}: the prompt of {problem['id']!r:.80} {what}: is {cfg.model}'s tokenizer its own, and does "
                 f"--prompt-template {cfg.prompt_template} hold the problem?")
    return problems, dropped


def plan_tests(command, cfg, sets, room):
    """The Tests of --eval-data: each set as the flags say or else the paper, in no more tokens than the model has room
    for behind a prompt."""
    tests, written = [], [file.stat().st_mtime for file in Path(cfg.model).glob("*.safetensors")]
    of = str(datetime.fromtimestamp(max(written))) if written and command == "eval" else ""
    for source in cfg.eval_data:
        temperature, top_p, tokens = PROTOCOL["logic" if source in GROUPS["logic"] else "math"]
        name, temperatures = set_name(source), cfg.eval_temperature or [temperature]
        n = cfg.eval_n or (DATASETS[source].n if source in DATASETS else 256)
        tests += [Test(f"{name}@T{t}" if len(temperatures) > 1 else name, name, sets[source][0], n, t,
                       cfg.eval_top_p or top_p, min(cfg.eval_max_tokens or tokens, room), of) for t in temperatures]
    return tests


def run_settings(cfg, problems):
    """What config.json says of a run, and so of one that goes on with it."""
    return {**dataclasses.asdict(cfg), "train_data_sha256": digest(problems)}


def check_run(cfg, problems):
    """Refuses a run folder that holds another run, or damage."""
    folder = Path(cfg.output)
    check_checkpoints(folder)
    if (folder / "metrics.jsonl").exists():
        check_log(folder / "metrics.jsonl")
    if not (folder / "config.json").exists():
        if [*folder.glob("checkpoints/step_??????")]:
            fail(f"{folder} holds checkpoints but no config.json that says of which settings: choose another --output")
    else:
        if not cfg.resume:
            fail(f"{folder} holds a run already: choose another --output, or leave out --no-resume to go on with it")
        free = ("output", "steps", "resume", "save_every", "micro_batch_tokens", "gradient_checkpointing",
                "engine_memory", "tensor_parallel", "data_dir",
                "eval_every", "eval_n", "eval_temperature", "eval_top_p", "eval_max_tokens")
        changed = differences(folder / "config.json", (folder / "config.json").read_bytes(),
                              {name: value for name, value in run_settings(cfg, problems).items() if name not in free})
        if changed:
            changed = [f"{flag(name)} {change}" for name, change in changed.items()]
            fail(f"{folder} holds a run with other settings: {'; '.join(changed)}. Choose another --output")


def check_writable(folder):
    """Refuses an --output that is no folder, and raises OSError where nothing can be written; leaves nothing there."""
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        fail(f"--output {folder} is a file, or lies in one: name a folder")
    with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.parents) if path.exists())):
        pass


def check_checkpoints(folder):
    """Refuses checkpoints that would run code when they are loaded: .metadata, which torch.distributed.checkpoint reads
    without a question, is a pickle. A damaged one holds as little of it, and is the loader's to name."""
    class Names(pickle.Unpickler):
        def find_class(self, module, name):
            if f"{module}.{name}" in PICKLED or module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype):
                return super().find_class(module, name)
            return member if (module, name) == ("builtins", "getattr") else refuse(f"{module}.{name}")

    def member(*arguments):
        """getattr, as which some Pythons (Debian 12's 3.11.2) pickle a member of an enumeration."""
        match arguments:
            case (owner, str(name)) if owner is MEMORY_FORMATS and name in MEMORY_FORMAT_NAMES:
                return getattr(owner, name)
        return refuse("getattr")

    def refuse(name):
        fail(f"{path} calls {name}, as no checkpoint of this program does: delete its folder, or choose another "
             "--output")

    for path in folder.glob("checkpoints/step_??????/.metadata"):
        try:
            Names(io.BytesIO(path.read_bytes())).load()
        except Exception:  # noqa: BLE001, S110
            pass


def check_log(path):
    """Refuses a metrics.jsonl with a damaged line; the last may have been cut off."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            fail(f"{path}, line {number}, is damaged ({error!r}): remove it")


def differences(path, text, settings):
    """{name: "was this, is that"} of the settings that the object in `text`, of the file `path`, has otherwise."""
    try:
        before = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        fail(f"{path} is damaged ({error}): put it right, or choose another --output")
    return {name: f"was {before.get(name)}, is {value}" for name, value in settings.items()
            if before.get(name) != value}


def check_responses(path, settings):
    """Refuses to go on with responses that were made otherwise, as a file's first line says, or that are damaged."""
    with path.open("rb") as file:
        changed = differences(path, file.readline(), settings)
        if changed:
            changed = "; ".join(f"{name} {change}" for name, change in changed.items())
            fail(f"{path} was evaluated with other settings: {changed}. Choose another --output, or delete it")
        if not (path.parent / "eval.json").exists():  # else it is complete
            for number, line in enumerate(file, 2):
                read_response(path, number, line)


def prepare(arguments):
    """Finds what can be wrong with the command line and the data it names, before processes start or files change."""
    command, cfg = parse_config(arguments)
    tokenizer, stop_ids, room, vocabulary = load_tokenizer(command, cfg)
    problems = {source: load_problems(source, cfg.data_dir, cfg.task)
                for source in [cfg.train_data] * (command == "train") + cfg.eval_data}
    if command == "train":
        problems[cfg.train_data] = without_tests(cfg, problems)
    sets = {source: encode(source, rows, tokenizer, vocabulary, cfg) for source, rows in problems.items()}
    tests = plan_tests(command, cfg, sets, room)
    with reading(f"--output {cfg.output} cannot be used"):
        if command == "train":
            check_run(cfg, sets[cfg.train_data][0])
        elif Path(cfg.output, "config.json").exists():
            fail(f"--output {cfg.output} is the folder of a training run: name another for this evaluation")
        check_writable(Path(cfg.output))
        for test in tests:
            for path in Path(cfg.output).glob("eval_*/" * (command == "train") + f"{glob.escape(test.label)}.jsonl"):
                check_responses(path, test.settings(cfg))
    if (idle := idle_flags(cfg)) and command == "train" and os.environ.get("RANK", "0") == "0":
        print(f"note: --method {cfg.method} does not learn by {', '.join(idle)}", flush=True)
    return command, cfg, tokenizer, stop_ids, sets, tests
