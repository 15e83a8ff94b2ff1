"""What simko.py does before it loads a model: reads the command line, problems, tokenizer and run folder, and refuses
what cannot work with one line that names the flag, file or row.
"""
import argparse
import dataclasses
import json
import math
import re
import sys
from functools import partial
from pathlib import Path

from transformers.hf_argparser import HfArgumentParser

from simko import (DATASETS, GROUPS, METHODS, PROTOCOL, TEMPLATES, Config, EvalConfig, ObjectiveConfig, RunConfig, Test,
                   TrainConfig, encode_prompts, fail)
from verify import TASKS, extract_answer


NUMBERS = re.compile(r"[0-9.]+(,[0-9.]+)+")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the epilog's lines as they are."""


def parse_config(arguments):
    """Command line -> (command, Config). What is impossible gets one line and exit status 2, before anything loads."""
    groups = {"train": (RunConfig, ObjectiveConfig, TrainConfig, EvalConfig), "eval": (RunConfig, EvalConfig)}
    command = arguments[0] if arguments and arguments[0] in groups else None
    parser = HfArgumentParser(
        groups.get(command, ()), prog="simko.py", usage="simko.py {train,eval} [--flag value]", allow_abbrev=False,
        description="Both commands have their own --help.", formatter_class=partial(Help, width=120),
        epilog="methods:\n" + "".join(f"  {name:14}{what}\n" for name, what in METHODS.items()))

    def refuse(message):
        print(f"simko.py: error: {message} (see: python simko.py {command or 'train'} --help)", file=sys.stderr)
        raise SystemExit(2)

    parser.error = refuse  # instead of a screen full of usage
    if command == "eval":  # which has but one temperature: --temperature 0.2,0.4 is --eval-temperature 0.2 0.4
        arguments = ["--eval-temperature" if word == "--temperature" else word for word in arguments]
        arguments = [part for word in arguments for part in (word.split(",") if NUMBERS.fullmatch(word) else [word])]
    *parts, unknown = parser.parse_args_into_dataclasses(arguments[bool(command):], return_remaining_strings=True,
                                                         look_for_args_file=False)
    if unknown or not command:
        refuse(f"unknown flag or value {unknown[0]!r}" if command else "say what to do: train or eval")
    cfg = Config(**{name: value for part in parts for name, value in vars(part).items()})
    cfg.eval_data = [name for source in cfg.eval_data for name in GROUPS.get(source, [source])]
    cfg.train_data = f"{cfg.train_data}-train" if f"{cfg.train_data}-train" in DATASETS else cfg.train_data
    above_0 = ("K", "steps", "batch", "group_size", "mini_batch", "max_prompt_tokens", "max_response_tokens", "lr",
               "temperature", "grad_clip", "micro_batch_tokens", "save_every", "engine_memory", "pass_k")
    not_below_0 = ("seed", "kl_beta", "clip_high", "lr_warmup", "weight_decay", "eval_every", "grpo_steps",
                   "dynamic_sampling", "positive_weight", "entropy_weight", "kl_cov_weight")
    shares = ("alpha", "q", "forking_share", "kl_cov_share")
    temperatures = cfg.eval_temperature or []
    checks = [(f"--{name.replace('_', '-')} must be above 0", getattr(cfg, name) > 0) for name in above_0] + [
        (f"--{name.replace('_', '-')} must be at least 0", getattr(cfg, name) >= 0) for name in not_below_0] + [
        (f"--{name.replace('_', '-')} must lie in [0, 1]", 0 <= getattr(cfg, name) <= 1) for name in shares] + [
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
        ("eval needs --eval-data", command == "train" or cfg.eval_data)]
    for message, holds in checks:
        if not holds:
            refuse(message)
    return command, cfg


def set_name(source):
    return Path(source.split(",")[0]).stem


def load_tokenizer(command, cfg):
    """(tokenizer, ids that end a response, tokens that the model's context leaves for one)."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    try:
        config, tokenizer = AutoConfig.from_pretrained(cfg.model), AutoTokenizer.from_pretrained(cfg.model)
    except (OSError, ValueError) as error:
        fail(f"--model {cfg.model}: {' '.join(str(error).split())[:300]}")
    context = getattr(config, "max_position_embeddings", None) or math.inf
    room = context - cfg.max_prompt_tokens
    if room < (cfg.max_response_tokens if command == "train" else 1):
        fail(f"the model's context of {context} tokens is too short for --max-prompt-tokens {cfg.max_prompt_tokens}"
             + f" and --max-response-tokens {cfg.max_response_tokens}" * (command == "train"))
    if cfg.K > config.vocab_size:
        fail(f"--K {cfg.K} is more than the {config.vocab_size} tokens of the model's vocabulary")
    if cfg.prompt_template == "chat" and not tokenizer.chat_template:
        fail(f"{cfg.model} has no chat template: choose --prompt-template {', '.join(TEMPLATES)}")
    stops = [tokenizer.eos_token_id]
    if cfg.prompt_template in ("chat", "qwen-math"):  # Qwen's base models end a turn so, though not their text
        stops.append(tokenizer.get_vocab().get("<|im_end|>"))
    try:
        ids = GenerationConfig.from_pretrained(cfg.model).eos_token_id
        stops += ids if isinstance(ids, list) else [ids]
    except OSError:
        pass  # generation_config.json is optional
    stops = sorted(set(stops) - {None}) or fail(f"{cfg.model} names no end-of-text token: nothing would end")
    return tokenizer, stops, room


def final_answer(solution):
    """What counts of a worked solution: what is behind "####" (GSM8K), else in the last box (MATH), else all of it; ""
    for an empty box."""
    return (extract_answer(solution) or "") if "\\boxed" in solution else solution.split("####")[-1].strip()


def load_problems(source, data_dir="", task="math"):
    """[{"id", "problem", "answer"}, some with a "task" of their own] of a .jsonl file with these fields (id and task
    optional), of a name in DATASETS or of a hub data set `hub/id,config=NAME,split=train,problem=COLUMN,answer=COLUMN`.

    data_dir: a folder of NAME.jsonl that stands in for the hub; task: of rows that name none. An answer may be a worked
    solution."""
    rows, where = [], str(Path(data_dir, f"{source}.jsonl") if data_dir and source in DATASETS else source)
    if where.endswith(".jsonl"):
        try:
            for number, line in enumerate(Path(path := where).read_text(encoding="utf-8-sig").split("\n"), 1):
                where = f"{path}, line {number}"
                if line.strip():
                    rows.append((where, {"id": number, **json.loads(line)}))
        except (OSError, ValueError, TypeError) as error:  # ValueError: of JSON and UTF-8 alike
            fail(f"{where} cannot be read: {' '.join(str(error).split())[:300]}")
    else:
        from tools.data import fetch
        rows = [(f"{source}, row {row['id']}", row) for row in fetch(source)]
    problems = {}
    for where, row in rows:
        problem, answer = row.get("problem"), row.get("answer")
        if isinstance(answer, str) and row.get("task", task) == "math":
            answer = final_answer(answer)
        for name, text in (("problem", problem), ("answer", answer)):
            if not isinstance(text, str) or not text.strip():
                fail(f"{where}: '{name}' must be a text and not empty, got {text!r}; the row has {list(row)}")
        if row.get("task", "math") not in [*TASKS]:
            fail(f"{where}: the task {row['task']!r} is none of {', '.join(TASKS)}")
        try:
            TASKS[row.get("task", task)]("", answer, False)
            f"{problem}{answer}".encode()
        except (ValueError, TypeError) as error:
            fail(f"{where}: {answer!r} is no answer of the task {row.get('task', task)}, or not a text: {error}")
        id = str(row["id"])
        if id in problems:
            fail(f"{where}: the id {id!r} stands in an earlier row already")
        problems[id] = {"id": id, "problem": problem, "answer": answer}
        if "task" in row:
            problems[id]["task"] = row["task"]
    return list(problems.values()) or fail(f"{source} holds no problems")


def outside(rows, tests):
    """The rows whose problem is none of the tests', but for case, spacing, dollars and punctuation."""
    def plain(row):
        text = re.sub(r"[\s$]", "", row["problem"].casefold())
        return re.sub(r"[;:!?]|[.,](?!\d)|(?<!\d)[.,]", "", text)
    known = {plain(row) for row in tests}
    return [row for row in rows if plain(row) not in known]


def without_tests(cfg, problems):
    """The training problems that are in none of the sets to evaluate on."""
    rows = problems[cfg.train_data]
    for source in cfg.eval_data:
        kept = outside(rows, problems[source])
        if len(kept) < len(rows):
            print(f"{cfg.train_data}: {len(rows) - len(kept)} problems are in {source} too: not trained on", flush=True)
        rows = kept
    return rows or fail(f"all problems of --train-data {cfg.train_data} are in the sets of --eval-data")


def plan_tests(cfg, sets, room):
    """The Tests of --eval-data: each set as the flags say or else the paper, in no more tokens than the model has room
    for behind a prompt."""
    tests = []
    for source in cfg.eval_data:
        temperature, top_p, tokens = PROTOCOL["logic" if source in GROUPS["logic"] else "math"]
        name, temperatures = set_name(source), cfg.eval_temperature or [temperature]
        n = cfg.eval_n or (DATASETS[source].n if source in DATASETS else 256)
        tests += [Test(f"{name}@T{t}" if len(temperatures) > 1 else name, name, sets[source][0], n, t,
                       cfg.eval_top_p or top_p, min(cfg.eval_max_tokens or tokens, room)) for t in temperatures]
    return tests


def open_run(cfg):
    """The run folder, refused if it holds another run; and the line that says what it will hold."""
    folder, settings = Path(cfg.output), dataclasses.asdict(cfg)
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        fail(f"--output {folder} is a file, or lies in one: name a folder")
    if (folder / "config.json").exists():
        if not cfg.resume:
            fail(f"{folder} holds a run already: choose another --output, or leave out --no-resume to go on with it")
        free = ("output", "steps", "resume", "save_every", "micro_batch_tokens", "gradient_checkpointing",
                "engine_memory", "data_dir",
                "eval_every", "eval_n", "eval_temperature", "eval_top_p", "eval_max_tokens")
        changed = differences(folder / "config.json", (folder / "config.json").read_text(encoding="utf-8"),
                              {name: value for name, value in settings.items() if name not in free})
        if changed:
            changed = [f"--{name.replace('_', '-')} {change}" for name, change in changed.items()]
            fail(f"{folder} holds a run with other settings: {'; '.join(changed)}. Choose another --output")
    return folder, json.dumps(settings, indent=1)


def differences(path, text, settings):
    """{name: "was this, is that"} of the settings that the object in `text`, of the file `path`, has otherwise."""
    try:
        before = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        fail(f"{path} is damaged ({error}): move it away, or choose another --output")
    return {name: f"was {before.get(name)}, is {value}" for name, value in settings.items()
            if before.get(name) != value}


def check_head(path, settings):
    """Refuses to go on with responses that were made otherwise: a file's first line says how."""
    with path.open(encoding="utf-8") as file:
        changed = differences(path, file.readline(), settings)
    if changed:
        changed = "; ".join(f"{name} {change}" for name, change in changed.items())
        fail(f"{path} was evaluated with other settings: {changed}. Choose another --output, or delete it")


def prepare(arguments):
    """Finds what can be wrong with the command line and the data it names, before processes start or files change."""
    command, cfg = parse_config(arguments)
    tokenizer, stop_ids, room = load_tokenizer(command, cfg)
    problems = {source: load_problems(source, cfg.data_dir, cfg.task)
                for source in [cfg.train_data] * (command == "train") + cfg.eval_data}
    if command == "train":
        problems[cfg.train_data] = without_tests(cfg, problems)
    sets = {source: encode_prompts(rows, tokenizer, cfg) for source, rows in problems.items()}
    tests = plan_tests(cfg, sets, room)
    if command == "train":
        open_run(cfg)
    elif Path(cfg.output, "config.json").exists():
        fail(f"--output {cfg.output} is the folder of a training run: name another for this evaluation")
    for test in tests:
        for path in Path(cfg.output).glob("eval_*/" * (command == "train") + f"{test.label}.jsonl"):
            check_head(path, test.settings(cfg))
    return command, cfg, tokenizer, stop_ids, sets, tests
