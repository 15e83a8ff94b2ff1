"""The command line, and what is checked before a model is loaded:
settings, problems, tokenizer, run folder. What cannot work is refused
with one line that names the flag, file or row."""
import argparse
import dataclasses
import glob
import inspect
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
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from huggingface_hub import get_session, is_offline_mode
from huggingface_hub.constants import ENDPOINT
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING as MEMORY_FORMATS)
from transformers import (
    AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig,
    PreTrainedConfig)
from transformers.hf_argparser import HfArg, HfArgumentParser
from transformers.utils.peft_utils import find_adapter_config_file

from runtime.baselines import METHODS
from runtime.common import fail, one_line, printable
from runtime.data import (
    DATASETS, GROUPS, PROTOCOL, load_problems, without_tests)
from runtime.prompts import TEMPLATES, encode_prompts
from runtime.responses import Benchmark, digest, read_row
from verify import TASKS


def setting(default, help):
    """A field of a settings class, with the text that --help shows."""
    if isinstance(default, list | dict):
        return HfArg(default_factory=default.copy, help=help)
    return HfArg(default=default, help=help)


@dataclasses.dataclass
class SystemConfig:
    """How a run uses its machine. Apart from rounding, the engine's random
    streams and data_dir, these settings change time and memory alone."""
    _argument_group_name = "system"
    rollout: Literal["auto", "vllm", "hf"] = setting(
        "auto", "engine that generates; auto: vLLM if it is installed, "
        "else transformers' generate (hf)")
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "dtype of the computation; auto: bfloat16 on GPUs")
    gpu_memory_utilization: float = setting(
        0.6, "vLLM's share of a GPU's memory while it generates; on "
        "CPUs VLLM_CPU_KVCACHE_SPACE is its cache in whole GiB")
    tensor_parallel_size: int = setting(
        1, "number of neighbouring GPUs that share a vLLM engine")
    data_dir: str = setting(
        "", "folder of NAME.jsonl files to use instead of the hub")


@dataclasses.dataclass
class TrainSystemConfig:
    """Settings of the machine that only a training run has."""
    _argument_group_name = "system, in training"
    micro_batch_tokens: int = setting(
        16384, "maximum packed tokens in a forward pass")
    gradient_checkpointing: bool = setting(
        True, "recompute each layer in the backward pass")
    save_steps: int = setting(
        20, "steps between checkpoints; the last two are kept")
    resume: bool = setting(
        True, "resume from the last checkpoint in the run folder")


COMMANDS = "train", "eval"

# The choices of text settings that have no Literal type.
CHOICES = {
    "method": tuple(METHODS),
    "tau_scope": ("response", "batch"),
    "loss_type": ("grpo", "dapo"),
    "task": tuple(TASKS),
    "prompt_template": ("chat", *TEMPLATES)}

ABOVE_0 = (
    "K", "steps", "batch_size", "mini_batch_size", "max_prompt_length",
    "max_completion_length", "learning_rate", "temperature",
    "max_grad_norm", "lora_alpha", "micro_batch_tokens", "save_steps",
    "tensor_parallel_size", "eval_n", "eval_max_tokens")
AT_LEAST_0 = (
    "seed", "beta", "epsilon_high", "warmup_steps", "weight_decay",
    "eval_steps", "grpo_warmup_steps", "max_sampling_rounds", "lora_rank",
    "eval_temperature")
SHARES = ("alpha", "q")

# A run may resume with other values of these.
CHANGEABLE = (
    "output_dir", "steps", "resume", "save_steps", "micro_batch_tokens",
    "gradient_checkpointing", "gpu_memory_utilization",
    "tensor_parallel_size", "data_dir", "eval_steps", "eval_n",
    "eval_temperature", "eval_top_p", "eval_max_tokens")

# The objective's settings that only SimKO learns by.
SIMKO_ONLY = ("alpha", "lambda_top1", "q", "tau_scope")

NUMBERS = re.compile(r"[0-9.]+(,[0-9.]+)+")


# ------------------------------------------------------------ command line
class Job(NamedTuple):
    """A checked command line, and what it names."""
    command: str        # train or eval
    cfg: object
    tokenizer: object
    stop_ids: list      # token ids that end a response
    sets: dict          # source -> (problems, number dropped as too long)
    benchmarks: list    # of Benchmark

    @property
    def problems(self):
        """The problems to train on."""
        return self.sets[self.cfg.train_data][0]

    @property
    def max_tokens(self):
        """The length of the longest response that will be requested."""
        limits = [benchmark.max_tokens for benchmark in self.benchmarks]
        if self.command == "train":
            limits.append(self.cfg.max_completion_length)
        return max(limits)


class Help(argparse.ArgumentDefaultsHelpFormatter,
           argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the epilog."""

    def _get_help_string(self, action):
        if action.option_strings[-1].startswith("--no-"):
            return f"do not {action.help}"
        if action.default in (None, "", [], {}):
            return action.help  # the text says what applies
        return super()._get_help_string(action)


class Parser(HfArgumentParser):
    """Accepts each flag with - and with _, and shows the former. Reports a
    mistake in one line."""
    command = None

    def format_help(self):
        twin = r"--[a-z]+_\w*(?: [^-\s]\S*(?: \[.*\])?)?, (?=--)"
        return re.sub(twin, "", super().format_help())

    def error(self, message):
        command = self.command or "train"
        print(f"simko.py: error: {printable(message)} "
              f"(see: python simko.py {command} --help)", file=sys.stderr)
        raise SystemExit(2)


def flag(name):
    return f"--{name.replace('_', '-')}"


def groups_of(command, Config):
    """The classes of settings that a command has."""
    groups = Config.__bases__
    if command == "eval":
        names = "evaluation", "model and run", "system"
        groups = [g for g in groups if g._argument_group_name in names]
    return groups if command in COMMANDS else ()


def json_object(text):
    """The type of a flag whose value is a JSON object."""
    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r:.80} is not JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r:.80} is not a JSON object, such as "
            """'{"enable_thinking": false}'""")
    return value


def make_parser(command, Config):
    epilog = ""
    if command != "eval":
        epilog = "methods:\n" + "".join(
            f"  {name:14}{method.about}\n" for name, method in METHODS.items())
    parser = Parser(
        groups_of(command, Config), prog="simko.py",
        usage="simko.py {train,eval} [--flag value]", allow_abbrev=False,
        description="Both commands have their own --help.", epilog=epilog,
        formatter_class=partial(Help, width=100))
    parser.command = command
    parser.register("type", dict, json_object)
    return parser


def parse_config(arguments, Config):
    """Command line -> (command, Config). An impossible setting ends the
    program with one line and status 2."""
    command = arguments[0] if arguments[:1] and arguments[0] in COMMANDS else None
    parser = make_parser(command, Config)
    if command == "eval":
        # There is only one kind of temperature here.
        # --temperature 0.2,0.4 means --eval-temperature 0.2 0.4.
        words = ["--eval-temperature" if word == "--temperature" else word
                 for word in arguments]
        arguments = []
        for word in words:
            arguments += word.split(",") if NUMBERS.fullmatch(word) else [word]
    *parts, unknown = parser.parse_args_into_dataclasses(
        arguments[bool(command):], return_remaining_strings=True,
        look_for_args_file=False)
    if not command:
        parser.error("say what to do: train or eval")
    if unknown:
        parser.error(f"unknown flag or value {unknown[0]!r}")
    values = {}
    for part in parts:
        values |= vars(part)
    cfg = Config(**values)
    check_values(cfg, parser)
    sources = [GROUPS.get(source, [source]) for source in cfg.eval_data]
    cfg.eval_data = [name for group in sources for name in group]
    if f"{cfg.train_data}-train" in DATASETS:
        cfg.train_data = f"{cfg.train_data}-train"
    for message, holds in conditions(command, cfg):
        if not holds:
            parser.error(message)
    return command, cfg


def check_values(cfg, parser):
    """Refuses texts that cannot be printed, numbers out of range, and
    texts that are not among the choices."""
    for name, value in vars(cfg).items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, str):
                if name in ("output_dir", "data_dir") and v.startswith("~"):
                    parser.error(f"{flag(name)} {v}: the shell replaces ~ only "
                                 "after a space: write the whole path")
                empty = not v.strip() and name != "data_dir"
                if empty or not v.isprintable():
                    parser.error(f"{flag(name)} {v!r} is empty, or has "
                                 "characters that cannot be printed")
            elif isinstance(v, int | float):
                if not abs(v) < 2**31:
                    parser.error(f"{flag(name)} {v} is not a number below 2^31")
                if name in ABOVE_0 and not v > 0:
                    parser.error(f"{flag(name)} must be above 0")
                if name in AT_LEAST_0 and not v >= 0:
                    parser.error(f"{flag(name)} must be at least 0")
                if name in SHARES and not 0 <= v <= 1:
                    parser.error(f"{flag(name)} must lie in [0, 1]")
    for name, choices in CHOICES.items():
        if getattr(cfg, name) not in choices:
            parser.error(f"{flag(name)} {getattr(cfg, name)} is not one of "
                         f"{', '.join(choices)}")


def conditions(command, cfg):
    """Returns (message, whether it holds) for each rule that is more than
    a range."""
    temperatures = cfg.eval_temperature or []
    names = [set_name(source) for source in cfg.eval_data]
    parts = cfg.tensor_parallel_size
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return [
        ("--lambda-top1 must be at least 1", cfg.lambda_top1 >= 1),
        ("--epsilon must lie in [0, 1)", 0 <= cfg.epsilon < 1),
        ("VLLM_CPU_KVCACHE_SPACE must be a whole number of GiB",
         os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1").isdigit()),
        ("--gpu-memory-utilization must lie in (0, 1]",
         0 < cfg.gpu_memory_utilization <= 1),
        ("--num-generations must be at least 2: one response alone has "
         "no baseline", cfg.num_generations > 1),
        ("--method pass-at-k needs --num-generations above 4: with one set "
         "of 4 there is no advantage",
         cfg.method != "pass-at-k" or cfg.num_generations > 4),
        (f"--mini-batch-size {cfg.mini_batch_size} does not divide "
         f"--batch-size {cfg.batch_size}",
         cfg.batch_size % cfg.mini_batch_size == 0),
        ("--eval-temperature 0 makes all samples the same: choose "
         "--eval-n 1", 0 not in temperatures or cfg.eval_n == 1),
        ("--eval-temperature names one twice",
         len(set(temperatures)) == len(temperatures)),
        ("--lora-alpha needs a --lora-rank",
         cfg.lora_rank or cfg.lora_alpha == type(cfg).lora_alpha),
        ("--chat-template-kwargs are for --prompt-template chat",
         not cfg.chat_template_kwargs or cfg.prompt_template == "chat"),
        ("--eval-top-p must lie in (0, 1]",
         cfg.eval_top_p is None or 0 < cfg.eval_top_p <= 1),
        ("two sets of --eval-data have the same name",
         len(set(names)) == len(names)),
        ("eval needs --eval-data", command == "train" or cfg.eval_data),
        (f"--tensor-parallel-size {parts} is for vLLM, and does not work "
         "with --rollout hf", parts == 1 or cfg.rollout != "hf"),
        (f"--tensor-parallel-size {parts} does not divide the {ranks} "
         "processes of a node (torchrun's --nproc_per_node)",
         ranks % parts == 0)]


def set_name(source):
    return Path(source.split(",")[0]).stem


def idle_flags(cfg):
    """Returns the flags of SimKO that were given, if the method is another."""
    if cfg.method == "simko":
        return []
    return [flag(name) for name in SIMKO_ONLY
            if getattr(cfg, name) != getattr(type(cfg), name)]


def compute_dtype(cfg, device):
    if cfg.dtype != "auto":
        return getattr(torch, cfg.dtype)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def uses_vllm(cfg):
    """Returns whether vLLM generates."""
    if cfg.rollout == "hf":
        return False
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        if cfg.rollout == "vllm" or cfg.tensor_parallel_size > 1:
            fail(f"vLLM cannot be imported ({one_line(error)}). Install "
                 "it, or choose --rollout hf")
        print("vLLM cannot be imported, so transformers' generate makes "
              f"the rollouts: {one_line(error)}", flush=True)
        return False
    return True


# --------------------------------------------------------------- the model
@contextmanager
def fail_as(what):
    """Turns any error of a library, such as that of a damaged file, into
    one line that begins with `what`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        fail(f"{what}: {one_line(error) or repr(error)}")


def check_finite(model, tensors):
    """Refuses weights, pairs of name and tensor, with NaN or infinity."""
    for name, tensor in tensors:
        if not tensor.isfinite().all():
            fail(f"--model {model}: its weights are not finite: {name} has "
                 "NaN or infinity in it. The training that saved them has "
                 "diverged, or the file is damaged: choose another checkpoint")


def check_weights(command, folder):
    """Refuses a model's folder unless it has sound .safetensors files.

    An evaluation reads the weights for that. A training run does not: it
    checks the weights when its trainer has loaded them."""
    index = folder / "model.safetensors.index.json"
    files = {*folder.glob("*.safetensors")}
    if index.exists():
        with fail_as(index):
            names = json.loads(index.read_bytes())["weight_map"].values()
            files = {folder / name for name in names}
    if not files:
        fail(f"--model {folder} has no weights in .safetensors. Other "
             "formats are not read, since they can hold code. Save the "
             "model with save_pretrained")
    for file in files:
        with fail_as(f"{file} is damaged or missing, fetch it again"):
            # Reads the header and compares it with the file's size.
            with safe_open(file, "pt") as weights:
                if command == "eval":
                    check_finite(folder, (
                        (name, weights.get_tensor(name))
                        for name in weights.keys()))  # noqa: SIM118


def find_model(model):
    """Refuses a --model that is not a folder, if the hub cannot be asked for
    it either. The hub's own client would first retry for minutes."""
    if os.path.isdir(model):  # unlike Path's, it takes names of any length
        return
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        fail(f"--model {model}: there is no such folder")
    if is_offline_mode():
        return
    with fail_as(f"--model {model} is not a folder here, and {ENDPOINT} cannot "
                 "be reached. Name a folder, or set HF_HUB_OFFLINE=1 to use "
                 "what was downloaded before"):
        get_session().head(ENDPOINT, timeout=10)


def refuse_adapter(model):
    """Refuses a LoRA adapter, alone or beside a full model. The trainer
    and vLLM would not both apply it."""
    with fail_as(f"--model {model}"):
        adapter = find_adapter_config_file(model)
    if adapter:
        fail(f"--model {model} has an adapter_config.json. Adapters (LoRA) "
             "are not applied here: merge the adapter into its base model "
             "(PEFT's merge_and_unload), and name the merged model's folder")


def refuse_quantised(model, fields):
    """Refuses a checkpoint whose config.json says that it is quantised."""
    text = fields.get("text_config") or {}
    settings = (fields.get("quantization_config")
                or text.get("quantization_config"))
    if settings:
        kind = dict(settings).get("quant_method", "its method is not named")
        fail(f"--model {model} is quantised ({kind}), as the "
             "quantization_config of its config.json says. Only checkpoints "
             "that are not quantised are read: name the original model")


def load_config(command, cfg):
    """Checks the model's config. Returns that of its text part."""
    find_model(cfg.model)
    refuse_adapter(cfg.model)
    name = f"--model {cfg.model}"
    file = os.path.join(cfg.model, "config.json")
    if os.path.isdir(cfg.model) and not os.path.exists(file):
        fail(f"{name} has no config.json: is it the folder of a model? "
             "A run of this program exports its model to hf")
    with fail_as(f"{name}: its config.json cannot be read"):
        fields, _ = PreTrainedConfig.get_config_dict(cfg.model)
        refuse_quantised(cfg.model, fields)

    # With None, the default, transformers would ask at a terminal
    # whether to run the checkpoint's code.
    no_code = {"trust_remote_code": False}
    failure = "transformers cannot build the model of its config.json"
    if fields.get("auto_map"):
        failure += (", which asks for code of its own (auto_map), and such "
                    "code is never run")
    with fail_as(f"{name}: {failure}"):
        config = AutoConfig.from_pretrained(cfg.model, **no_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **no_code)
        body = model.base_model
        config = config.get_text_config()
    if command == "train" and not hasattr(body, "layers"):
        fail(f"--model {cfg.model}: a {type(body).__name__} cannot be "
             "trained here, since it has no .layers")
    if cfg.K > config.vocab_size:
        fail(f"--K {cfg.K} is more than the {config.vocab_size} tokens of "
             "the model's vocabulary")
    experts = any("experts" in name for name in config.to_dict())
    if command == "train" and experts and (cfg.lora_rank or uses_vllm(cfg)):
        fail(f"--model {cfg.model} is a mixture of experts, which vLLM packs "
             "when it first loads them and does not replace at a sync, and "
             "which --lora-rank does not adapt. Use --rollout hf without it")
    parts = cfg.tensor_parallel_size
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, name, None)
        # vLLM copies key heads where there are fewer than GPUs.
        copied = name == "num_key_value_heads" and size and parts % size == 0
        if isinstance(size, int) and size % parts and not copied:
            fail(f"--tensor-parallel-size {parts} does not divide the "
                 f"model's {name}, {size}")
    return config


def context_left(command, cfg, config):
    """Returns how many tokens the model's context leaves for a response."""
    context = getattr(config, "max_position_embeddings", None) or math.inf
    left = context - cfg.max_prompt_length
    needed = cfg.max_completion_length if command == "train" else 1
    if left < needed:
        lengths = f"--max-prompt-length {cfg.max_prompt_length}"
        if command == "train":
            lengths += f" and --max-completion-length {needed}"
        fail(f"the model's context of {context} tokens is too short for "
             + lengths)
    return left


def load_tokenizer(cfg, vocabulary):
    with fail_as(f"--model {cfg.model}: its tokenizer is missing, damaged "
                 "or asks for code of its own (auto_map), which is never run"):
        tokenizer = AutoTokenizer.from_pretrained(
            cfg.model, trust_remote_code=False)
        # The vocabulary may be padded beyond the tokenizer's tokens,
        # and the padding may be sampled.
        tokenizer.decode([vocabulary - 1])
    has_turns = "<|im_end|>" in tokenizer.get_vocab()
    if cfg.prompt_template == "qwen-math" and not has_turns:
        fail(f"--prompt-template qwen-math needs the token <|im_end|>, which "
             f"{cfg.model} lacks: choose chat, plain or raw")
    if cfg.prompt_template == "chat" and not tokenizer.chat_template:
        known = [name for name in TEMPLATES if name != "qwen-math" or has_turns]
        fail(f"{cfg.model} has no chat template: choose --prompt-template "
             f"{', '.join(known)}")
    check_template_kwargs(cfg, tokenizer)
    return tokenizer


def check_template_kwargs(cfg, tokenizer):
    """Refuses --chat-template-kwargs that the template would ignore, or
    that are not for it."""
    if not cfg.chat_template_kwargs:
        return
    with fail_as(f"--model {cfg.model}: its chat template"):
        template = tokenizer.get_chat_template()
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in cfg.chat_template_kwargs:
        if name in {*taken, "messages"}:
            fail(f"--chat-template-kwargs: {name!r:.80} cannot be passed to "
                 "the template: leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            fail(f"--chat-template-kwargs: the chat template of {cfg.model} "
                 f"does not know {name!r:.80}: look for a misspelling")


def end_tokens(cfg, tokenizer, vocabulary):
    """Returns the sorted ids of the tokens that end a response: those that
    the tokenizer, generation_config.json or config.json names."""
    stops = [tokenizer.eos_token_id, *model_ends(cfg.model, vocabulary)]
    if cfg.prompt_template in ("chat", "qwen-math"):
        # Qwen's base models end a turn with it, though not their text.
        stops.append(tokenizer.get_vocab().get("<|im_end|>"))
    stops = [stop for stop in stops if stop is not None]
    for stop in stops:
        if not isinstance(stop, int) or not 0 <= stop < vocabulary:
            fail(f"{cfg.model}: the end-of-text token {stop!r} is not one of "
                 f"the {vocabulary} of the model's vocabulary: model and "
                 "tokenizer, or config.json and generation_config.json, do "
                 "not belong together")
    if not stops:
        fail(f"{cfg.model} names no end-of-text token, so no response "
             "would end: give its tokenizer an eos_token")
    return sorted(set(stops))


def model_ends(model, vocabulary):
    """Returns the end-of-text ids that a model's generation_config.json and
    config.json name."""
    def ids(settings):
        named = settings.get("eos_token_id")
        return named if isinstance(named, list) else [named]

    with fail_as(f"--model {model}"):
        config, _ = PreTrainedConfig.get_config_dict(model)
        parts = [config, config.get("text_config") or {}]
        try:
            ends = ids(GenerationConfig.from_pretrained(model).to_dict())
        except OSError:
            if Path(model, "generation_config.json").exists():
                raise
            ends = []
            # The file is optional. Without it vLLM also ends at the ids
            # that are the defaults of the config's class.
            defaults = GenerationConfig.from_model_config(
                AutoConfig.from_pretrained(model, trust_remote_code=False))
            parts.append(defaults.to_dict())
    # A config.json often keeps the ids of the model it was copied from.
    # What is beyond the vocabulary cannot be sampled, and does no harm.
    named = [i for part in parts for i in ids(part)]
    return ends + [i for i in named if i in range(vocabulary)]


def encode(source, rows, tokenizer, vocabulary, cfg):
    """Calls encode_prompts, and checks that the model knows all tokens."""
    with fail_as(f"{cfg.model}: its chat template or tokenizer cannot make "
                 f"a prompt of {source}; another --prompt-template may work"):
        problems, dropped = encode_prompts(rows, tokenizer, cfg)
    texts = {problem["problem"].strip() for problem in problems}
    prompts = {problem["prompt_ids"].tobytes() for problem in problems}
    if len(texts) > 1 and len(prompts) == 1:
        fail(f"{source}: all prompts are the same, so the tokenizer of {cfg.model} "
             f"or --prompt-template {cfg.prompt_template} leaves the problem out: "
             "choose another template")
    for problem in problems:
        ids = problem["prompt_ids"]
        what = None
        if not len(ids):
            what = "has no tokens"
        elif ids.max() >= vocabulary:
            what = (f"has a token of id {ids.max()}, beyond the model's "
                    f"{vocabulary}")
        if what:
            fail(f"{source}: the prompt of {problem['id']!r:.80} {what}: check "
                 f"that the tokenizer belongs to {cfg.model}, and that "
                 f"--prompt-template {cfg.prompt_template} contains the problem")
    return problems, dropped


def plan_benchmarks(command, cfg, sets, room):
    """Returns the Benchmarks of --eval-data. What the flags leave open is
    as in the paper. Responses must fit into the room after a prompt."""
    weights_written = ""
    if command == "eval":
        files = Path(cfg.model).glob("*.safetensors")
        written = [file.stat().st_mtime for file in files]
        if written:
            weights_written = str(datetime.fromtimestamp(max(written)))
    benchmarks = []
    for source in cfg.eval_data:
        kind = "logic" if source in GROUPS["logic"] else "math"
        temperature, top_p, tokens = PROTOCOL[kind]
        n = DATASETS[source].n if source in DATASETS else 256
        temperatures = cfg.eval_temperature or [temperature]
        for t in temperatures:
            name = set_name(source)
            benchmarks.append(Benchmark(
                label=f"{name}@T{t}" if len(temperatures) > 1 else name,
                set=name, problems=sets[source][0], n=cfg.eval_n or n,
                temperature=t, top_p=cfg.eval_top_p or top_p,
                max_tokens=min(cfg.eval_max_tokens or tokens, room),
                weights_written=weights_written))
    return benchmarks


# ---------------------------------------------------------- the run folder
def run_settings(cfg, problems):
    """Returns the settings that config.json holds, which a run that resumes
    must share."""
    settings = dataclasses.asdict(cfg)
    return {**settings, "train_data_sha256": digest(problems)}


def check_run(cfg, problems):
    """Refuses a run folder that holds another run, or damage."""
    folder = Path(cfg.output_dir)
    check_checkpoints(folder)
    if (folder / "metrics.jsonl").exists():
        check_log(folder / "metrics.jsonl")
    file = folder / "config.json"
    if not file.exists():
        if [*folder.glob("checkpoints/step_??????")]:
            fail(f"{folder} holds checkpoints but no config.json that names "
                 "their settings: choose another --output-dir")
        return
    if not cfg.resume:
        fail(f"{folder} holds a run already: choose another --output-dir, "
             "or leave out --no-resume to go on with it")
    settings = run_settings(cfg, problems)
    fixed = {name: v for name, v in settings.items() if name not in CHANGEABLE}
    before = read_settings(file, file.read_bytes())
    if "output_dir" not in before:
        fail(f"{file} is of an earlier version of this program, whose runs "
             "cannot be continued: choose another --output-dir")
    changes = differences(before, fixed)
    if "train_data_sha256" in changes:
        fail(f"{folder} holds a run on other training data than --train-data "
             f"{cfg.train_data} has now: choose another --output-dir")
    changed = [f"{flag(name)} {change}" for name, change in changes.items()]
    if changed:
        fail(f"{folder} holds a run with other settings: "
             f"{'; '.join(changed)}. Choose another --output-dir")


def check_writable(folder):
    """Refuses an --output-dir that is not a folder. Raises OSError if
    nothing can be written there. Leaves nothing behind."""
    paths = [folder, *folder.parents]
    if any(path.exists() and not path.is_dir() for path in paths):
        fail(f"--output-dir {folder} is a file, or lies in one: name a folder")
    nearest = next(path for path in paths if path.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


# All that the .metadata file of a checkpoint names, apart from dtypes.
PICKLED = {
    "torch.Size", "torch.serialization._get_layout",
    "pathlib.PosixPath", "pathlib._local.PosixPath",
    *(f"torch.distributed.checkpoint.{name}" for name in (
        "filesystem._StorageInfo", "metadata.Metadata",
        "metadata.MetadataIndex", "metadata.StorageMeta",
        "metadata.TensorStorageMetadata", "metadata.BytesStorageMetadata",
        "metadata.ChunkStorageMetadata", "metadata.TensorProperties",
        "metadata._MEM_FORMAT_ENCODING"))}
# Fixed before any pickle could change the class.
MEMORY_FORMAT_NAMES = frozenset(MEMORY_FORMATS.__members__)


class UnsafePickle(Exception):
    """A pickle calls something that no checkpoint of simko.py contains."""


class MetadataUnpickler(pickle.Unpickler):
    """Loads the names of PICKLED and dtypes, and nothing else."""

    def find_class(self, module, name):
        if (module, name) == ("builtins", "getattr"):
            return self.member
        is_dtype = (module == "torch" and
                    isinstance(getattr(torch, name, None), torch.dtype))
        if is_dtype or f"{module}.{name}" in PICKLED:
            return super().find_class(module, name)
        raise UnsafePickle(f"{module}.{name}")

    @staticmethod
    def member(*arguments):
        """getattr, as which some Pythons (3.11.2 of Debian 12) pickle a
        member of an enumeration."""
        match arguments:
            case (owner, str(name)):
                if owner is MEMORY_FORMATS and name in MEMORY_FORMAT_NAMES:
                    return getattr(owner, name)
        raise UnsafePickle("getattr")


def check_checkpoints(folder):
    """Refuses checkpoints that would run code when they are loaded.

    torch.distributed.checkpoint unpickles .metadata without a question.
    A damaged one is left to the loader, which names it."""
    for path in folder.glob("checkpoints/step_??????/.metadata"):
        try:
            MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        except UnsafePickle as error:
            fail(f"{path} calls {error}, as no checkpoint of this program "
                 "does: delete its folder, or choose another --output-dir")
        except Exception:  # noqa: BLE001, S110
            pass


def check_log(path):
    """Refuses a metrics.jsonl with a damaged line, apart from a last line
    that was cut off."""
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            fail(f"{path}, line {number}, is damaged ({error!r}): remove it")


def read_settings(path, text):
    """Returns the JSON object in `text`, which comes from the file `path`."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        fail(f"{path} is damaged ({error}): repair it, or choose another "
             "--output-dir")


def differences(before, settings):
    """Returns {name: "was this, is that"} for each setting that has changed."""
    # Older runs and evaluations do not have these settings.
    before = {"chat_template_kwargs": {}, "lora_rank": 0, "lora_alpha": 32.0, **before}
    return {name: f"was {before.get(name)}, is {value}"
            for name, value in settings.items()
            if before.get(name) != value}


RENAMED = {"weights_of": "weights_written", "problems": "problems_sha256"}


def check_responses(path, settings):
    """Refuses responses that are damaged, or that were made with other
    settings according to the first line of the file."""
    with path.open("rb") as file:
        before = read_settings(path, file.readline())
        # An older file has other names, and leaves dtype and rollout open.
        before = {RENAMED.get(name, name): value for name, value in before.items()}
        for name in ("dtype", "rollout"):
            before.setdefault(name, settings.get(name))
        changed = [f"{name} {change}"
                   for name, change in differences(before, settings).items()]
        if changed:
            fail(f"{path} was evaluated with other settings: "
                 f"{'; '.join(changed)}. Repeat these settings, choose another "
                 "--output-dir, or delete the file")
        if not (path.parent / "eval.json").exists():
            for number, line in enumerate(file, 2):
                read_row(path, number, line)


def check_sets(file, benchmarks):
    """Refuses to replace an eval.json that has the results of other sets."""
    if not file.exists():
        return
    sets = read_settings(file, file.read_bytes()).get("sets", {})
    lost = sets.keys() - {benchmark.label for benchmark in benchmarks}
    if lost:
        fail(f"{file} has the results of {', '.join(sorted(lost))}, which this "
             "command would remove: choose another --output-dir")


# ------------------------------------------------------------- all of them
def prepare(arguments, Config):
    """Checks the command line and everything that it names. Returns a Job.

    Nothing is loaded on a device, and no file is changed."""
    if sys.flags.optimize > 1:
        fail("Python was started with -OO or PYTHONOPTIMIZE=2, which drops "
             "the docstrings that transformers reads: start it without")
    command, cfg = parse_config(arguments, Config)
    config = load_config(command, cfg)
    vocabulary = config.vocab_size
    tokenizer = load_tokenizer(cfg, vocabulary)
    stop_ids = end_tokens(cfg, tokenizer, vocabulary)
    if Path(cfg.model).is_dir():
        check_weights(command, Path(cfg.model))
    room = context_left(command, cfg, config)

    training = command == "train"
    sources = [cfg.train_data, *cfg.eval_data] if training else cfg.eval_data
    rows = {s: load_problems(s, cfg.data_dir, cfg.task) for s in sources}
    if training:
        rows[cfg.train_data] = without_tests(cfg, rows)
    sets = {source: encode(source, problems, tokenizer, vocabulary, cfg)
            for source, problems in rows.items()}
    benchmarks = plan_benchmarks(command, cfg, sets, room)
    job = Job(command, cfg, tokenizer, stop_ids, sets, benchmarks)

    folder = Path(cfg.output_dir)
    with fail_as(f"--output-dir {folder} cannot be used"):
        if training:
            check_run(cfg, job.problems)
        elif (folder / "config.json").exists():
            fail(f"--output-dir {folder} is the folder of a training run: "
                 "name another one for this evaluation")
        check_writable(folder)
        for benchmark in benchmarks:
            name = f"{glob.escape(benchmark.label)}.jsonl"
            for path in folder.glob(f"eval_*/{name}" if training else name):
                check_responses(path, benchmark.settings(cfg))
        last = folder / f"eval_{cfg.steps:06d}" if training else folder
        check_sets(last / "eval.json", benchmarks)
    if training and os.environ.get("RANK", "0") == "0":
        if idle := idle_flags(cfg):
            print(f"note: --method {cfg.method} does not use "
                  f"{', '.join(idle)}", flush=True)
    return job


def announce(job, device, dtype):
    """Prints, on rank 0, what is about to run, and on which device."""
    if dist.get_rank() > 0:
        return
    cfg, world = job.cfg, dist.get_world_size()
    for source, (problems, dropped) in job.sets.items():
        print(f"{source}: {len(problems)} problems; {dropped} longer than "
              f"{cfg.max_prompt_length} tokens dropped")
    what = cfg.method if job.command == "train" else "evaluation"
    print(f"{cfg.output_dir}: {what} on {world} x {device.type}, {dtype}",
          flush=True)
