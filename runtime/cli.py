"""The command line: its flags, the rules that they obey, and `prepare`,
which checks everything that they name before a model is loaded. What
cannot work is refused with one line that names the flag, file or row."""
import argparse
import dataclasses
import difflib
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from transformers.hf_argparser import HfArg, HfArgumentParser

from runtime.baselines import METHODS
from runtime.checkpoints import check_checkpoints, check_export
from runtime.common import (
    escape_unencodable, fail, fail_as, flag, one_line, print_once, printable)
from runtime.data import DATASETS, GROUPS, digest, load_problems, without_tests
from runtime.models import check_weights, context_left, fingerprint, load_config
from runtime.prompts import TEMPLATES, end_tokens, load_tokenizer, make_prompts
from runtime.ranks import check_launch, gather
from runtime.responses import check_evaluations, plan_benchmarks, set_name
from runtime.run_folder import check_run, check_writable, differences
from runtime.vllm_setup import find_vllm
from verify import TASKS


def setting(default, help):
    """A field of a settings class, with the text that --help shows."""
    if isinstance(default, list | dict):
        return HfArg(default_factory=default.copy, help=help)
    return HfArg(default=default, help=help)


@dataclasses.dataclass
class SystemConfig:
    """How a run uses its machine. These settings change only time and memory,
    apart from rounding, the engine's random streams and data_dir."""
    _argument_group_name = "system"
    rollout: str = setting(
        "auto", "rollout engine: vllm, hf (transformers' generate) or auto "
        "(vLLM if it can start)")
    dtype: str = setting("auto", "bfloat16, float32, or auto (bfloat16 on GPUs)")
    gpu_memory_utilization: float = setting(
        0.6, "share of a GPU's memory that vLLM takes while it generates; on CPUs, the "
        "environment variable VLLM_CPU_KVCACHE_SPACE sets its cache in whole GiB")
    tensor_parallel_size: int = setting(
        1, "number of neighbouring GPUs that share a vLLM engine")
    data_dir: str = setting(
        "", "folder of NAME.jsonl files to use instead of the hub")


@dataclasses.dataclass
class TrainSystemConfig:
    """The system settings that only a training run has."""
    _argument_group_name = "system, in training"
    micro_batch_tokens: int = setting(
        16384, "maximum tokens packed into one forward pass")
    gradient_checkpointing: bool = setting(
        True, "recompute each layer in the backward pass")
    save_steps: int = setting(
        20, "steps between checkpoints; the last two are kept")


# --------------------------------------------------- what a setting may be
CHOICES = {
    "rollout": ("auto", "vllm", "hf"),
    "dtype": ("auto", "bfloat16", "float32"),
    "method": tuple(METHODS),
    "tau_scope": ("response", "batch"),
    "loss_type": ("grpo", "dapo"),
    "task": tuple(TASKS),
    "prompt_template": ("chat", *TEMPLATES)}

# What a number must be, a test of it, and the settings that it applies to.
RANGES = (
    ("be above 0", lambda v: v > 0, (
        "K", "steps", "batch_size", "mini_batch_size", "max_prompt_length",
        "max_completion_length", "learning_rate", "temperature",
        "max_grad_norm", "lora_alpha", "micro_batch_tokens", "save_steps",
        "tensor_parallel_size", "eval_n", "eval_max_tokens")),
    ("be at least 0", lambda v: v >= 0, (
        "seed", "beta", "epsilon_high", "warmup_steps", "weight_decay",
        "eval_steps", "grpo_warmup_steps", "max_sampling_rounds", "lora_rank",
        "eval_temperature")),
    ("be at least 1", lambda v: v >= 1, ("lambda_top1",)),
    ("lie in [0, 1]", lambda v: 0 <= v <= 1, ("alpha", "q")),
    ("lie in [0, 1)", lambda v: 0 <= v < 1, ("epsilon",)),
    ("lie in (0, 1]", lambda v: 0 < v <= 1, (
        "gpu_memory_utilization", "eval_top_p")))

# The settings of the objective that only SimKO trains with. Those in GATE
# also change what the log counts as gated, unless a method has its own gate.
SIMKO_ONLY = ("alpha", "lambda_top1", "q", "tau_scope")
GATE = ("q", "tau_scope")


def check_values(cfg, parser):
    """Refuses values that no run can have."""
    for name, value in vars(cfg).items():
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, str):
                check_text(name, v, parser)
            elif isinstance(v, int | float):
                check_number(name, v, parser)
    for name, choices in CHOICES.items():
        if getattr(cfg, name) not in choices:
            parser.error(f"{flag(name)} {getattr(cfg, name)} is not one of "
                         f"{', '.join(choices)}")


def check_text(name, text, parser):
    if name in ("output_dir", "data_dir") and text.startswith("~"):
        parser.error(f"{flag(name)} {text} begins with ~, which the shell replaces only "
                     "after a space: write the whole path")
    empty = not text.strip() and name != "data_dir"
    if empty or not text.isprintable():
        parser.error(f"{flag(name)} {text!r} is empty, or has characters "
                     "that cannot be printed")


def check_number(name, number, parser):
    if not abs(number) < 2**31:  # nan is not below it either
        parser.error(f"{flag(name)} {number} is not a number below 2^31")
    for must, holds, names in RANGES:
        if name in names and not holds(number):
            parser.error(f"{flag(name)} must {must}, not {number}")


def check_together(command, cfg, parser):
    """Refuses settings that are each in range, but do not go together."""
    temperatures = cfg.eval_temperature or []
    names = [set_name(source) for source in cfg.eval_data]
    parts = cfg.tensor_parallel_size
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if cfg.num_generations < 2:
        parser.error("--num-generations must be at least 2: one response "
                     "alone has no baseline")
    if cfg.method == "pass-at-k" and cfg.num_generations <= 4:
        parser.error("--method pass-at-k needs --num-generations above 4: "
                     "a single set of 4 gives no advantage")
    if cfg.batch_size % cfg.mini_batch_size:
        parser.error(f"--mini-batch-size {cfg.mini_batch_size} does not "
                     f"divide --batch-size {cfg.batch_size}")
    if 0 in temperatures and cfg.eval_n != 1:
        parser.error("--eval-temperature 0 makes all samples the same: "
                     "choose --eval-n 1")
    if len(set(temperatures)) < len(temperatures):
        parser.error("--eval-temperature names a temperature twice")
    if not cfg.lora_rank and cfg.lora_alpha != type(cfg).lora_alpha:
        parser.error("--lora-alpha needs a --lora-rank")
    if cfg.chat_template_kwargs and cfg.prompt_template != "chat":
        parser.error("--chat-template-kwargs are for --prompt-template chat")
    if command == "eval" and not cfg.eval_data:
        parser.error("eval needs --eval-data")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        parser.error(f"two sets of --eval-data have the same name, {twice[0]}: "
                     "rename one of the files, or leave one out")
    if parts > 1 and cfg.rollout == "hf":
        parser.error(f"--tensor-parallel-size {parts} is for vLLM, and does "
                     "not work with --rollout hf")
    if ranks % parts:
        parser.error(f"--tensor-parallel-size {parts} does not divide the "
                     f"{ranks} processes of a node (torchrun's --nproc_per_node)")
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1").isdecimal():
        parser.error("VLLM_CPU_KVCACHE_SPACE must be a whole number of GiB")


def note_idle_flags(cfg):
    """Prints a note about flags that are set but that change nothing in this run."""
    method = METHODS[cfg.method]
    if cfg.method != "grpo" and cfg.grpo_warmup_steps >= cfg.steps:
        print_once(f"note: all {cfg.steps} steps use GRPO, because "
                   f"--grpo-warmup-steps is {cfg.grpo_warmup_steps}")
    if cfg.eval_steps and not cfg.eval_data:
        print_once("note: --eval-steps does nothing without --eval-data")
    idle = []
    if not method.uses_simko_ratio:
        idle = [name for name in SIMKO_ONLY
                if getattr(cfg, name) != getattr(type(cfg), name)]
    if idle:
        print_once(f"note: --method {cfg.method} does not train with "
                   f"{', '.join(map(flag, idle))}")
    own_gate = method.choose or method.batch_quantile is not None
    gate = [name for name in idle if name in GATE]
    if gate and (cfg.grpo_warmup_steps or not own_gate):
        print_once("note: which tokens the log counts as gated still "
                   f"depends on {', '.join(map(flag, gate))}")


def note_other_prompts(cfg):
    """Prints a note if --model is the export of a run whose prompts were made,
    or whose answers were checked, in another way than this command will."""
    file = Path(cfg.model).resolve().parent / "config.json"
    if not file.is_file():
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, RecursionError, TypeError, ValueError):  # it is not a run's file
        return
    names = "prompt_template", "chat_template_kwargs", "task"
    now = {name: getattr(cfg, name) for name in names if name in before}
    changes = [f"{flag(name)} {change}" for name, change in differences(before, now).items()]
    if changes:
        print_once(printable(f"note: --model {cfg.model} was trained with other settings: "
                             f"{'; '.join(changes)}. Unless you mean to change them, give the "
                             "old values"))


# -------------------------------------------------------------- the parser
COMMANDS = "train", "eval"


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

    def format_help(self):
        # HfArgumentParser lists "--eval_n EVAL_N, --eval-n EVAL_N". This
        # leaves only the second of the two.
        twin = r"--[a-z]+_\w*(?: [^-\s]\S*(?: \[.*\])?)?, (?=--)"
        return re.sub(twin, "", super().format_help())

    def error(self, message):
        command = self.command or "train"
        self.exit(2, f"simko.py: error: {printable(message)} "
                     f"(see: python simko.py {command} --help)\n")


def groups_of(command, Config):
    """Returns the classes of settings that a command has. `simko.py --help`,
    which names no command, shows none."""
    if not command:
        return ()
    if command == "train":
        return Config.__bases__
    names = "evaluation", "model and run", "system"
    return [group for group in Config.__bases__ if group._argument_group_name in names]


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
            f"  {name:13} {method.about}\n" for name, method in METHODS.items())
    parser = Parser(
        groups_of(command, Config), prog="simko.py",
        usage="simko.py {train,eval} [--flag value]", allow_abbrev=False,
        description="Each command has its own --help.", epilog=epilog,
        formatter_class=partial(Help, width=100))
    parser.command = command
    # HfArgumentParser gives the flag of a dict field the type dict.
    parser.register("type", dict, json_object)
    return parser


def split_temperatures(command, words):
    """Replaces --eval-temperature=0.2,0.4 by --eval-temperature 0.2 0.4. `eval`
    has only one kind of temperature, so --temperature is the same there."""
    names = ["--eval-temperature", "--eval_temperature"]
    if command == "eval":
        names.append("--temperature")
    done, in_list = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            in_list = name in names
        if not in_list:
            done.append(word)
        elif not word.startswith("--"):
            done += word.split(",")
        else:
            done.append("--eval-temperature")
            done += value.split(",") if equals else []
    return done


def parse_config(arguments, Config):
    """Command line -> (command, Config). An impossible setting ends the
    program with one line and status 2."""
    escape_unencodable()
    command = arguments[0] if arguments[:1] and arguments[0] in COMMANDS else None
    parser = make_parser(command, Config)
    words = split_temperatures(command, arguments[bool(command):])
    *parts, unknown = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False)
    if not command:
        parser.error("name a command: train or eval")
    if unknown:
        flags = re.findall(r"--[A-Za-z][\w-]*", parser.format_help())
        near = difflib.get_close_matches(
            unknown[0].partition("=")[0].replace("_", "-"), flags, n=1, cutoff=0.8)
        hint = f": did you mean {near[0]}?" if near else ""
        parser.error(f"unknown flag or value {unknown[0]!r}{hint}")
    values = {}
    for part in parts:
        values |= vars(part)
    cfg = Config(**values)
    check_values(cfg, parser)
    sources = [GROUPS.get(source, [source]) for source in cfg.eval_data]
    cfg.eval_data = [name for group in sources for name in group]
    if f"{cfg.train_data}-train" in DATASETS:
        cfg.train_data = f"{cfg.train_data}-train"
    check_together(command, cfg, parser)
    return command, cfg


# --------------------------------------------- what the command line names
class Job(NamedTuple):
    """A checked command line, and what it names."""
    command: str        # train or eval
    cfg: object
    tokenizer: object
    stop_ids: list      # token ids that end a response
    sets: dict          # source -> problems
    dropped: dict       # source -> number of problems whose prompt is too long
    benchmarks: list    # of Benchmark

    @property
    def problems(self):
        """The problems to train on."""
        return self.sets[self.cfg.train_data]

    @property
    def max_tokens(self):
        """The length of the longest response that will be requested."""
        limits = [benchmark.max_tokens for benchmark in self.benchmarks]
        if self.command == "train":
            limits.append(self.cfg.max_completion_length)
        return max(limits)


def resolve_auto(cfg):
    """Returns the settings with what `auto` stands for on this machine.

    config.json holds the result, so that a run cannot resume with another
    engine or dtype on a machine where `auto` stands for something else."""
    dtype, rollout = cfg.dtype, cfg.rollout
    if dtype == "auto":
        gpu = torch.cuda.is_available()
        fast = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if fast else "float32"
    if rollout in ("auto", "vllm"):
        rollout = "vllm" if find_vllm(cfg) else "hf"
    return dataclasses.replace(cfg, dtype=dtype, rollout=rollout)


def check_temperatures(cfg):
    """Refuses temperatures that vLLM would refuse only after its start, or
    would silently raise to 0.01."""
    if cfg.rollout != "vllm":
        return
    asked = {
        "temperature": [cfg.temperature],
        "eval_temperature": cfg.eval_temperature or []}
    for name, values in asked.items():
        for value in values:
            if value and not 0.01 <= value <= 2:
                fail(f"{flag(name)} {value:g} is not possible with vLLM, which "
                     "samples at temperatures from 0.01 to 2: change it, or "
                     "choose --rollout hf")


def prepare(arguments, Config):
    """Checks the command line and everything that it names. Returns a Job.

    Nothing is loaded on a device, and no file is changed."""
    if sys.flags.optimize > 1:
        fail("Python was started with -OO or PYTHONOPTIMIZE=2, which drops "
             "the docstrings that transformers reads: start Python without it")
    check_launch()
    command, cfg = parse_config(arguments, Config)
    cfg = resolve_auto(cfg)
    check_temperatures(cfg)
    model_config = load_config(command, cfg)
    vocab_size = model_config.vocab_size
    tokenizer = load_tokenizer(cfg, vocab_size)
    stop_ids = end_tokens(cfg, tokenizer, vocab_size)
    if Path(cfg.model).is_dir():
        check_weights(command, Path(cfg.model))
    room = context_left(command, cfg, model_config)
    if command == "train":
        check_export(cfg, tokenizer, stop_ids)

    training = command == "train"
    sources = [cfg.train_data, *cfg.eval_data] if training else cfg.eval_data
    rows = {s: load_problems(s, cfg.data_dir, cfg.task) for s in sources}
    if training:
        rows[cfg.train_data] = without_tests(cfg, rows)
    sets = {source: make_prompts(source, problems, tokenizer, vocab_size, cfg)
            for source, problems in rows.items()}
    dropped = {source: len(rows[source]) - len(sets[source]) for source in rows}
    benchmarks = plan_benchmarks(command, cfg, sets, dropped, room)
    job = Job(command, cfg, tokenizer, stop_ids, sets, dropped, benchmarks)

    folder = Path(cfg.output_dir)
    with fail_as(f"--output-dir {folder} cannot be used"):
        if training:
            check_checkpoints(folder)
            check_run(cfg, job.problems)
        elif (folder / "config.json").exists():
            fail(f"--output-dir {folder} is the folder of a training run: "
                 "name another one for this evaluation")
        check_writable(folder)
        check_evaluations(command, cfg, benchmarks)
    if training:
        note_idle_flags(cfg)
    note_other_prompts(cfg)
    return job


# Nodes may differ in these: paths on their own disks, and choices for their own GPUs.
OF_A_NODE = (
    "model", "output_dir", "data_dir", "train_data", "eval_data",
    "micro_batch_tokens", "gradient_checkpointing", "gpu_memory_utilization")


def identity(job):
    """Returns {name: value} of everything that must be the same on all ranks.
    Files are compared by their contents."""
    settings = dataclasses.asdict(job.cfg)
    mine = {"the command": job.command}
    mine |= {flag(name): value for name, value in settings.items() if name not in OF_A_NODE}
    mine["--model"] = fingerprint(job.cfg.model)
    if job.command == "train":
        mine["--train-data"] = digest(job.problems)
    mine["--eval-data"] = [benchmark.label for benchmark in job.benchmarks]
    for benchmark in job.benchmarks:
        mine[f"--eval-data {benchmark.label}"] = digest(benchmark.problems)
    return mine


def check_ranks_agree(job):
    """Ends the program if the ranks have different commands, models or data.
    This can happen if the run was started by hand on each node."""
    ranks = gather([identity(job)])
    for rank, other in enumerate(ranks):
        for name, value in other.items():
            if value != ranks[0].get(name):
                fail(f"rank {rank} has {name} {value!s:.80}, and rank 0 has "
                     f"{ranks[0].get(name)!s:.80}: give every node the same "
                     "command, model and data")


def announce(job, device, dtype):
    """Prints, on rank 0, what is about to run, and on which device."""
    if dist.get_rank() > 0:
        return
    cfg, world = job.cfg, dist.get_world_size()
    for source, problems in job.sets.items():
        print(f"{source}: {len(problems)} problems; dropped {job.dropped[source]} "
              f"with prompts longer than {cfg.max_prompt_length} tokens")
        prompt = repr(job.tokenizer.decode(problems[0]["prompt_ids"]))
        if len(prompt) > 400:
            prompt = f"{prompt[:250]} ... {prompt[-150:]}"
        print(f"  first prompt and answer: {prompt} -> {problems[0]['answer']!r:.100}")
    what = cfg.method if job.command == "train" else "evaluation"
    print(f"{cfg.output_dir}: {what} on {world} x {device.type}, {dtype}",
          flush=True)
