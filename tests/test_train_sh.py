"""Tests of train.sh on simulated machines. `box` is a clone of the project that
is set up with a fake nvidia-smi, PyTorch and torchrun. These answer as a test
wants, and record how they are called.

    python -m pytest tests/test_train_sh.py
"""
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from runtime import cli, hardware
from runtime.baselines import METHODS
from simko import Config
from tests.conftest import handled
from tests.workers import ROOT

LINKED = ("train.sh", "pyproject.toml", "runtime", "tools", "simko.py",
          "verify.py")

# Each is a shell script. The real Python runs when train.sh calls
# runtime/hardware.py and, if the test wants it, for the check of the flags.
PYTHON = """
case "$*" in
  *runtime.hardware*) PYTHONPATH="$BOX/pretended" exec "$PYTHON" "$@" ;;
  *"cli.$REFUSES("*) exit 1 ;;
  -c*) [ -z "$REAL_CHECK" ] || exec "$PYTHON" "$@" ;;
  *) echo "python $*" >>"$BOX/log"
     echo "visible ${CUDA_VISIBLE_DEVICES-all}" >>"$BOX/log"
     run=${*#* --output-dir }
     case "$* " in *"--method $STOPPED "*) ;; *" simko.py "*) mkdir -p "${run%% *}/hf" ;; esac ;;
esac
"""
TORCHRUN = """
echo "torchrun $*" >>"$BOX/log"
echo "visible ${CUDA_VISIBLE_DEVICES-all}" >>"$BOX/log"
"""
NVIDIA_SMI = """
[ -n "$SMI_CARDS" ] || exit 9
for gb in $SMI_CARDS; do
  case $1 in
    -L) echo "GPU 0: NVIDIA ($gb GB)" ;;
    *) echo "$((gb * 1000000000 / 1048576)), 580.159" ;;
  esac
done
"""
PYTORCH = """
import os
import sysconfig
from types import SimpleNamespace

cards = [float(gb) * 1e9 for gb in os.environ["TORCH_CARDS"].split()]
__version__ = "2.13.0"
version = SimpleNamespace(cuda="13.0")
cuda = SimpleNamespace(
    is_available=lambda: bool(cards), device_count=lambda: len(cards),
    get_device_properties=lambda i: SimpleNamespace(total_memory=cards[i]),
    get_device_capability=lambda i: (int(os.environ["CAPABILITY"]), 0),
    get_device_name=lambda i: "a card")
headers = {"include": os.environ["BOX"]}  # where the box's Python.h is
sysconfig.get_paths = lambda scheme: headers
"""
HUB = "def get_token(): return 'a token'"


class Box:
    """A clone of the project with fake programs."""

    def __init__(self, folder):
        self.folder = folder
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        self.program(".venv/bin/python", PYTHON)
        self.program(".venv/bin/torchrun", TORCHRUN)
        self.program("programs/nvidia-smi", NVIDIA_SMI)
        self.program("programs/gcc", "")
        (folder / "pretended").mkdir()
        (folder / "pretended/torch.py").write_text(PYTORCH)
        (folder / "pretended/huggingface_hub.py").write_text(HUB)
        (folder / "Python.h").touch()

    def program(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def run(self, *words, cards=(), smi=None, stamp=None, nohup=False,
            screen=None, **environment):
        """Runs train.sh with these words. cards: GB of each GPU that PyTorch
        sees. smi: GB of each GPU that nvidia-smi sees, if they differ.
        stamp: what an earlier set-up wrote, if not what this one would.
        screen: a file for all output, which is then not waited for."""
        smi = cards if smi is None else smi
        with (self.folder / "pyproject.toml").open() as file:
            checksum = subprocess.check_output(["cksum"], stdin=file, text=True)
        installed = self.folder / ".venv/installed"
        installed.write_text(stamp or f"{'gpu' if smi else 'cpu'} {checksum}")
        inherited = {name: value for name, value in os.environ.items()
                     if name not in ("CC", "CUDA_VISIBLE_DEVICES")}
        path = f"{self.folder / 'programs'}{os.pathsep}{os.environ['PATH']}"
        environment = {
            **inherited,
            "PATH": path,
            "BOX": str(self.folder),
            "PYTHON": sys.executable,
            "REAL_CHECK": "",
            "REFUSES": "",
            "STOPPED": "none",
            "HF_HUB_OFFLINE": "1",
            "CAPABILITY": "9",
            "TORCH_CARDS": " ".join(map(str, cards)),
            "SMI_CARDS": " ".join(map(str, smi)),
            **environment}
        hang_up = signal.SIG_IGN if nohup else signal.SIG_DFL
        with handled(signal.SIGHUP, hang_up), handled(signal.SIGINT, signal.SIG_DFL):
            return subprocess.run(
                ["bash", self.folder / "train.sh", *map(str, words)],
                stdout=screen or subprocess.PIPE,
                stderr=subprocess.STDOUT if screen else subprocess.PIPE,
                text=True, env=environment, check=False, start_new_session=True)

    def log(self):
        """Returns the commands that were started."""
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def started(self):
        """Returns (number of processes, words after `simko.py train`) of the
        only run."""
        line, = self.runs()
        before, _, after = line.partition(" simko.py train ")
        if before == "python -u":
            return 1, after.split()
        assert before.startswith("torchrun")
        return int(before.split()[-1]), after.split()

    def runs(self):
        """Returns the commands that started simko.py."""
        return [line for line in self.log() if " simko.py train " in line]


@pytest.fixture
def box(tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    return Box(folder)


def listed(*words):
    """Returns the words of `train.sh --list` on this machine."""
    return subprocess.check_output(
        ["bash", ROOT / "train.sh", "--list", *words], text=True).split()


def refused(done):
    """Returns the one-line message of a refusal."""
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("train.sh: error: ")
    return done.stderr


def value(words, flag):
    """Returns the flag's value, the last one if the flag occurs twice."""
    places = [i for i, word in enumerate(words) if word == flag]
    return words[places[-1] + 1] if places else None


# --------------------------------------------------------------- the recipes
def test_help_and_list_name_the_recipes(box):
    names = ["laptop", *(recipe.name for recipe in hardware.RECIPES)]
    usage = box.run("-h").stdout
    assert f"Recipes: {', '.join(names)}." in usage
    assert "bash train.sh [RECIPE]" in usage and "--force" in usage
    table = box.run("--list").stdout.splitlines()
    assert [line.split()[0] for line in table[1:-1]] == names
    assert box.log() == []


@pytest.mark.parametrize("recipe", hardware.RECIPES, ids=lambda r: r.name)
def test_flags_of_a_recipe_are_those_its_estimate_is_for(recipe):
    _, cfg = cli.parse_config(["train", *listed(recipe.name)], Config)
    assert cfg.model == recipe.model
    assert cfg.train_data.removesuffix("-train") == recipe.train_data
    assert cfg.steps == recipe.steps
    assert cfg.batch_size * cfg.num_generations == recipe.responses
    assert cfg.gpu_memory_utilization == hardware.ENGINE_MEMORY


def test_list_laptop_is_what_its_simko_run_gets(box):
    box.run("laptop", "--method", "simko")
    _, words = box.started()
    words = [word for word in words if word not in (
        "--output-dir", "runs/laptop/simko", "--method", "simko")]
    assert words == listed("laptop", "simko")
    assert [value(words, flag) for flag in ("--alpha", "--lambda-top1", "--q")] == [
        "0.05", "1.5", "0.5"]
    assert "--alpha" not in listed("laptop", "psr")


@pytest.mark.parametrize("recipe", ["logic", "logic-lora"])
def test_only_simko_has_the_grpo_warm_up_of_the_logic_recipe(box, recipe):
    warmed = []
    for method in ([], ["--method", "simko"], ["--method=simko"], ["--method", "psr"]):
        box.run(recipe, *method, cards=[80] * 8)
        warmed.append(value(box.runs()[-1].split(), "--grpo-warmup-steps"))
    assert warmed == ["50", "50", "50", None]
    assert listed(recipe) == listed(recipe, "simko") != listed(recipe, "psr")


@pytest.mark.parametrize("recipe, alpha, lambda_top1", [
    ("qwen2.5-math-7b", 0.01, 1.1), ("qwen2.5-7b", 0.01, 1.05), ("logic", 0.005, 1.05)])
@pytest.mark.parametrize("variant", ["", "-lora"])
def test_only_simko_has_the_alpha_and_the_lambda_of_a_recipe(recipe, alpha, lambda_top1, variant):
    _, cfg = cli.parse_config(["train", *listed(recipe + variant)], Config)
    assert (cfg.alpha, cfg.lambda_top1) == (alpha, lambda_top1)
    _, cfg = cli.parse_config(["train", *listed(recipe + variant, "psr")], Config)
    assert (cfg.alpha, cfg.lambda_top1) == (Config.alpha, Config.lambda_top1)


def test_list_laptop_has_a_line_for_each_method_that_the_recipe_trains(box):
    box.run("laptop")
    lines = dict(line.split(": ", 1) for line in
                 box.run("--list", "laptop").stdout.splitlines())
    assert sorted(lines) == ["grpo", "simko"]
    for method, line in lines.items():
        started, = (run for run in box.runs() if f"--method {method}" in run)
        words = started.partition(" simko.py train ")[2].split()
        output = words.index("--output-dir")
        del words[output:output + 2]
        assert words == line.split()


@pytest.mark.parametrize("name", ["nosuch", "nosuch-lora", "laptop-lora", "laptop logic"])
@pytest.mark.parametrize("words", [[], ["--list"]])
def test_unknown_recipe(box, words, name):
    assert f"no recipe '{name}': choose one of laptop" in refused(
        box.run(*words, name))


@pytest.mark.parametrize("recipe", ["laptop", "logic"])
def test_list_refuses_an_unknown_method(box, recipe):
    assert refused(box.run("--list", recipe, "nosuch")) == (
        "train.sh: error: no method 'nosuch': choose one of "
        f"{' '.join(METHODS)}\n"), "methods= of train.sh has the names and the order of METHODS"


# ----------------------------------------------------- without a GPU, laptop
def test_without_gpus_the_laptop_s_two_runs(box):
    done = box.run("--seed", "1")
    assert done.returncode == 0, done.stderr
    assert "The recipe is laptop, since PyTorch sees no GPU" in done.stdout
    shared = " ".join(listed("laptop", "psr"))
    start = f"python -u simko.py train {shared} --output-dir runs/laptop"
    assert {*box.runs()} == {
        f"{start}/grpo --method grpo --eval-steps 500 --seed 1",
        f"{start}/simko --method simko --alpha 0.05 --lambda-top1 1.5 --q 0.5 --seed 1"}
    others = [line.split()[2] for line in box.log() if "python -m" in line]
    assert others == ["tools.laptop", "tools.tables", "tools.plots"]


def test_after_ctrl_c_the_laptop_s_runs_save_before_it_ends(box):
    """SIGINT goes to the whole process group, as it does from a terminal."""
    box.program(".venv/bin/python", """
case "$*" in *simko.py*) ;; *) exit ;; esac
trap 'sleep 0.2; echo saved; exit' INT
echo started
case "$*" in *"--method simko"*)
  until [ "$(grep -c started "$BOX/screen")" = 2 ]; do sleep 0.1; done
  kill -INT 0 ;;
esac
while :; do sleep 0.1; done
""")
    screen = box.folder / "screen"
    with screen.open("w") as file:
        assert box.run("laptop", screen=file).returncode == 130
    assert sorted(screen.read_text().splitlines()) == [
        "grpo | saved", "grpo | started", "simko | saved", "simko | started"]


@pytest.mark.parametrize("words", [[], ["--method", "simko"]])
def test_after_a_signal_to_a_laptop_run_nothing_is_shown(box, words):
    """The run ends with status 0."""
    message = refused(box.run("laptop", *words, STOPPED="simko"))
    assert "runs/laptop/simko was stopped: the same command resumes it" in message
    assert not [line for line in box.log() if "tools.tables" in line]


@pytest.mark.parametrize("nohup, signals", [
    (False, "SIGTERM,SIGINT,SIGQUIT,SIGHUP"), (True, "SIGTERM,SIGINT,SIGQUIT")])
def test_torchrun_leaves_sighup_ignored_under_nohup(box, nohup, signals):
    box.run("qwen2.5-0.5b", cards=[80, 80], nohup=nohup)
    line, = box.runs()
    assert line.startswith("torchrun --standalone --local-addr localhost "
                           f"--signals-to-handle {signals} --nproc_per_node 2 simko.py train --")


def test_the_laptop_leaves_gpus_alone(box):
    done = box.run("laptop", "--method=psr", cards=[80] * 8)
    assert done.returncode == 0, done.stderr
    processes, words = box.started()
    assert processes == 1
    assert value(words, "--rollout") == "hf"
    assert "visible " in box.log()  # none


def test_a_laptop_run_of_another_command_is_refused_before_any_run_starts(box):
    run = box.folder / "runs/laptop/simko"
    run.mkdir(parents=True)
    (run / "config.json").touch()
    message = refused(box.run("laptop", "--alpha", "0.1", REFUSES="prepare"))
    remedy = "repeat the command that started it, or move it away"
    assert f"runs/laptop/simko exists: {remedy}" in message
    assert not box.runs()
    # There is no run of GRPO yet.
    done = box.run("laptop", "--method", "grpo", REFUSES="prepare")
    assert done.returncode == 0, done.stderr


def test_the_laptop_names_its_folders(box):
    assert "leave out --output-dir" in refused(box.run("laptop", "--output-dir", "x"))


# ------------------------------------------------------------- with GPUs
def test_a_process_for_each_gpu_that_pytorch_sees(box):
    done = box.run("qwen2.5-0.5b", cards=[80, 80], smi=[80] * 8)
    assert done.returncode == 0, done.stderr
    processes, words = box.started()
    assert processes == 2
    assert value(words, "--output-dir") == "runs/qwen2.5-0.5b"
    assert "visible all" in box.log()


def test_a_run_on_one_gpu_takes_the_place_of_train_sh(box):
    """So a signal to train.sh is one to the run."""
    box.program(".venv/bin/python", PYTHON + 'echo "$2 $PPID" >>"$BOX/log"')
    box.run("qwen2.5-0.5b", cards=[80])
    assert f"simko.py {os.getpid()}" in box.log()


def test_hidden_gpus_are_none(box):
    done = box.run(smi=[80] * 8, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "The recipe is laptop" in done.stdout
    assert len(box.runs()) == 2
    assert all("--rollout hf" in line for line in box.runs())


def test_a_driver_that_pytorch_cannot_use(box):
    line = refused(box.run(smi=[80] * 8))
    for part in ("8 GPUs but PyTorch sees none", "driver is 580.159",
                 "built for CUDA 13.0"):
        assert part in line
    assert box.log() == []


@pytest.mark.parametrize("cards, name", [
    ([80] * 4, "qwen2.5-math-7b"),
    ([80] * 8, "qwen2.5-math-7b")])
def test_the_default_is_the_largest_that_fits(box, cards, name):
    done = box.run("--method", "grpo", cards=cards)
    assert done.returncode == 0, done.stderr
    line, = done.stdout.splitlines()
    assert f"The recipe is {name}, the largest that fits" in line
    assert "It is estimated to take" in line and "hours" in line
    processes, words = box.started()
    assert processes == len(cards)
    assert value(words, "--output-dir") == f"runs/{name}"
    assert value(words, "--method") == "grpo"
    assert value(words, "--lora-rank") is None


@pytest.mark.parametrize("gb, name", [(24, "qwen2.5-1.5b-lora"), (80, "qwen2.5-math-7b-lora")])
def test_one_gpu_trains_with_lora_and_the_user_is_told(box, gb, name):
    done = box.run(cards=[gb])
    assert done.returncode == 0, done.stderr
    plan, note = done.stdout.splitlines()
    assert f"The recipe is {name}, the largest that fits 1 GPU of {gb} GB" in plan
    ours = ("LoRA is our addition, not the paper's. The recipe has "
            "--lora-rank 32 --learning-rate 1e-5")
    assert note.startswith(ours)
    _, words = box.started()
    assert value(words, "--output-dir") == f"runs/{name}"
    assert value(words, "--lora-rank") == "32"
    assert value(words, "--learning-rate") == "1e-5"


def test_the_flags_of_a_lora_recipe_are_the_recipe_s_and_those_of_lora():
    for recipe in hardware.RECIPES:
        if recipe.name.endswith("-lora"):
            full = listed(recipe.name.removesuffix("-lora"), "grpo")
            assert listed(recipe.name, "grpo") == [
                *full, "--lora-rank", "32", "--learning-rate", "1e-5"]


def test_a_rank_of_one_s_own(box):
    done = box.run("qwen2.5-math-7b-lora", "--lora-rank", "8", cards=[80])
    assert done.returncode == 0, done.stderr
    assert "The recipe has --lora-rank 32 --learning-rate 1e-5" in done.stdout
    assert "your own flags win" in done.stdout
    _, words = box.started()
    assert value(words, "--lora-rank") == "8"  # the user's flag comes last and wins
    assert value(words, "--learning-rate") == "1e-5"


@pytest.mark.parametrize("words, message", [
    (["qwen2.5-0.5b", "--lora-rank", "8"], "--lora-rank 8 contradicts qwen2.5-0.5b"),
    (["qwen2.5-math-7b-lora", "--lora-rank=0"], "--lora-rank 0 contradicts qwen2.5-math-7b-lora"),
    (["--lora-rank", "0"], "--lora-rank 0 contradicts qwen2.5-math-7b-lora")])
def test_a_rank_that_contradicts_the_recipe(box, words, message):
    assert message in refused(box.run(*words, cards=[80]))


def test_the_engine_takes_what_the_trainer_leaves(box):
    box.run("llama3.2-3b", "--gpu-memory-utilization", "0.3", cards=[80])
    _, words = box.started()
    given = [words[i + 1] for i, word in enumerate(words)
             if word == "--gpu-memory-utilization"]
    assert given == ["0.46", "0.3"]  # the user's flag comes last and wins


def test_a_recipe_that_cannot_fit(box):
    line = refused(box.run("qwen2.5-math-7b", cards=[24]))
    assert "149 GB on one GPU (16 x 7.6 / 1 + 2 x 7.6 + 12)" in line
    assert "1 GPU of 24 GB" in line
    assert box.log() == []


@pytest.mark.parametrize("words", [
    ["--force", "qwen2.5-math-7b"],
    ["qwen2.5-math-7b", "--force"]])
def test_force(box, words):
    done = box.run(*words, cards=[24], CC="/no/compiler")
    assert done.returncode == 0, done.stderr
    processes, words = box.started()
    assert processes == 1 and "--force" not in words


def test_a_model_of_one_s_own_is_not_judged_by_the_recipe_s_size(box):
    done = box.run("qwen2.5-math-7b", "--model", "my/model", cards=[24])
    assert done.returncode == 0, done.stderr
    assert "my/model is not known" in done.stdout
    assert value(box.started()[1], "--model") == "my/model"


def test_what_cannot_fit_is_refused_before_set_up(box):
    """If train.sh began to set up, the fake Python would fail to create a virtual environment."""
    box.program("programs/python", f"""
[ "$2" != venv ] || exit 1
exec "{sys.executable}" "$@"
""")
    python = {"PYTHON": str(box.folder / "programs/python")}
    for smi in ([24], []):
        line = refused(box.run("logic", smi=smi, stamp="another", **python))
        assert "logic needs about" in line
    for words in (["qwen2.5-0.5b"], ["logic", "--force"], []):
        done = box.run(*words, smi=[24], stamp="another", **python)
        assert "could not make a virtual environment, see" in refused(done)


@pytest.mark.parametrize("version, refused", [
    ((3, 10, 12, "final", 0), True),
    ((3, 11, 0, "candidate", 1), True),
    ((3, 11, 0, "final", 0), False),
    ((3, 12, 3, "final", 0), False),
])
def test_a_python_is_new_enough_from_3_11_0_on(monkeypatch, version, refused):
    (program,) = re.findall(r"^new_enough='(.*)'$", (ROOT / "train.sh").read_text(), re.M)
    fake = SimpleNamespace(version_info=version, exit=sys.exit)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setitem(sys.modules, "sys", fake)
        exec(program, {})
    assert end.value.code == refused


@pytest.mark.parametrize("failing, error, message", [
    ("*version_info*", "", "is older than 3.11.0: install that or a newer one"),
    ("*lzma*", "Traceback\nImportError: No _lzma", "(ImportError: No _lzma): rebuild it"),
])
def test_a_python_that_cannot_be_used_is_refused_before_set_up(box, failing, error, message):
    box.program("programs/python", f"""
case $2 in {failing}) printf "{error}" >&2; exit 1 ;; esac
exec "{sys.executable}" "$@"
""")
    python = str(box.folder / "programs/python")
    done = box.run("laptop", stamp="another", PYTHON=python)
    assert message in refused(done)
    assert "Set-up" not in done.stdout


@pytest.mark.parametrize("stamp, smi, message", [
    ("gpu 1 2", [], "use another clone on this machine, or delete .venv"),
    ("cpu 1 2", [80], ".venv is for a machine without GPUs: delete it"),
])
def test_packages_for_gpus_and_for_cpus_do_not_mix(box, stamp, smi, message):
    """A login node without a GPU may share the folder with the nodes that have some."""
    assert message in refused(box.run("laptop", smi=smi, stamp=stamp))
    assert box.log() == []


@pytest.mark.parametrize("fails, message", [
    ("-c", ".venv has a Python older than 3.11.0: delete it"),
    ("-m", "the packages could not be installed"),
])
def test_a_set_up_for_gpus_that_fails_is_tried_again(box, fails, message):
    box.program("programs/python", f"""
[ "$2" = venv ] || exec "{sys.executable}" "$@"
""")
    box.program(".venv/bin/python", f"""
[ "$1" != {fails} ] || exit 1
""")
    python = str(box.folder / "programs/python")
    done = box.run("qwen2.5-0.5b", smi=[80], stamp="another", PYTHON=python)
    assert done.returncode == 2
    assert message in done.stderr
    assert (box.folder / ".venv/installed").read_text() == "another"


def set_up_with(box, pip, **environment):
    """Runs a set-up in which `python -m ...` of the new .venv is this shell script."""
    box.program("programs/python", f"""
[ "$2" = venv ] || exec "{sys.executable}" "$@"
""")
    box.program(".venv/bin/python", f"[ $1 = -c ] && exit\n{pip}")
    python = str(box.folder / "programs/python")
    return box.run("laptop", stamp="another", PYTHON=python, **environment)


@pytest.mark.parametrize("works, shown", [
    ("first", []),  # pip knows an index with a +cpu build of PyTorch
    ("second", []),
    ("third", ["second", "by transformers' generate"]),
    ("none", ["second", "by transformers' generate", "third", "packages could not be"])])
def test_a_set_up_for_cpus_shows_a_try_s_messages_if_vllm_cannot_be_installed(box, works, shown):
    """`python -m pip` is a script that prints which try it is and installs nothing."""
    done = set_up_with(box, f"""
case "$*" in
  *"pip install"*download.pytorch.org*) try=second ;;
  *"pip install"*cpu,test*) try=first ;;
  *"pip install"*) try=third ;;
  *) exit 0 ;;
esac
echo $try >>"$BOX/tries"
[ $try = {works} ] && exit 0
echo "ERROR: the $try try" >&2
exit 1
""")
    tries = ["first", "second", "third"]
    if works in tries:
        tries = tries[:tries.index(works) + 1]
    assert (box.folder / "tries").read_text().splitlines() == tries
    output = done.stdout + done.stderr
    for text in ("first", "second", "by transformers' generate", "third", "packages could not be"):
        assert (text in output) == (text in shown), text
    stamp = (box.folder / ".venv/installed").read_text()
    assert (stamp == "another") == (works == "none")


@pytest.mark.parametrize("name, noted", [
    ("my clone", True), ("Ann's", True), ('a"b', True), ("a\\b", True), ("ü(1)[]*$~&:", False)])
def test_a_path_that_vllm_cannot_compile_in_is_noted_before_set_up(tmp_path, name, noted):
    folder = tmp_path / name
    folder.mkdir()
    done = set_up_with(Box(folder), "exit 1")
    assert (f"vLLM cannot compile code in {folder}. To use it, move" in done.stdout) == noted
    assert "Set-up (once)" in done.stdout


def test_ctrl_c_ends_the_set_up(box):
    """pip itself ends with status 1 and not by the signal."""
    done = set_up_with(box, 'echo "$*" >>"$BOX/log"; kill -INT $PPID; exit 1')
    assert done.returncode == 130
    assert len(box.log()) == 1 and "vLLM could not" not in done.stdout


def test_pip_s_settings_for_other_environments_are_not_those_of_the_venv(box):
    pip = 'echo "$PIP_USER,$PIP_TARGET,$PIP_PREFIX,$PIP_CONSTRAINT" >>"$BOX/log"'
    set_up_with(box, pip, PIP_USER="1", PIP_TARGET="/elsewhere", PIP_PREFIX="/elsewhere",
                PIP_CONSTRAINT="/etc/pip/constraint.txt")
    assert box.log()[0] == "0,,,"


def test_variables_for_other_programs_do_not_reach_the_run(box):
    names = {"PYTHONPATH": "/elsewhere", "WORLD_SIZE": "16", "RANK": "3"}
    seen = " ".join(f"${{{name}-unset}}" for name in names)
    box.program(".venv/bin/python", f'echo "$2 {seen}" >>"$BOX/log"')
    box.run("laptop", **names)
    assert "simko.py unset unset unset" in box.log()


def test_cards_without_bfloat16(box):
    recipe = "qwen2.5-0.5b-lora"
    line = refused(box.run(recipe, cards=[16], CAPABILITY="7"))
    assert "a card cannot compute in bfloat16" in line
    assert box.log() == []
    assert box.run(recipe, "--force", cards=[16], CAPABILITY="7").returncode == 0

    done = box.run(cards=[16], CAPABILITY="7")
    assert done.stdout.startswith(
        "The recipe is laptop, since the others compute in bfloat16, which a card does not "
        "support.")
    done = box.run("--force", cards=[16], CAPABILITY="7")
    assert done.stdout.startswith(f"The recipe is {recipe}")


def test_packages_that_triton_needs(box):
    (box.folder / "Python.h").unlink()
    line = refused(box.run("qwen2.5-0.5b", cards=[80], CC="/no/compiler"))
    major, minor = sys.version_info[:2]
    assert f"apt install gcc python{major}.{minor}-dev" in line
    assert box.log() == []


# ------------------------------------------------ the check of simko.py's flags
def test_tensor_parallel_is_checked_against_the_number_of_gpus(box, tiny):
    words = ["qwen2.5-0.5b", "--model", tiny / "base", "--train-data",
             tiny / "train.jsonl", "--eval-data", tiny / "test.jsonl",
             "--task", "countdown", "--prompt-template", "raw",
             "--max-prompt-length", "16", "--max-completion-length", "12"]
    real = {"cards": [80] * 4, "REAL_CHECK": "yes"}
    done = box.run(*words, "--tensor-parallel-size", "3", **real)
    assert "--tensor-parallel-size 3 does not divide the 4 processes" in done.stderr
    assert done.returncode == 2 and box.log() == []
    done = box.run(*words, "--tensor-parallel-size", "2", **real)
    assert done.returncode == 0, done.stderr
    processes, words = box.started()
    assert processes == 4 and value(words, "--tensor-parallel-size") == "2"


# --------------------------------------------------------------- other uses
def test_flags_of_the_tests_reach_pytest(box):
    box.run("test", "-x", "-k", "gpu")
    box.run("laptop-study", "tune")
    assert box.log() == [
        "python -m pytest -n 3 --dist loadfile -x -k gpu",
        "visible all",
        "python -m tools.study tune",
        "visible ",
    ]


def test_with_gpus_only_the_tests_for_them_see_them(box):
    done = box.run("test", "-x", cards=[80])
    assert done.returncode == 0, done.stderr
    assert box.log() == [
        "python -m pytest -n 3 --dist loadfile -x -m not gpu",
        "visible ",
        "python -m pytest -x -m gpu -n 0",
        "visible all",
    ]


def test_a_failed_test_does_not_keep_those_for_gpus_from_running(box):
    box.program(".venv/bin/python", PYTHON + """
case "$*" in *"not gpu"*) exit 1 ;; esac
""")
    assert box.run("test", cards=[80]).returncode == 1
    assert "python -m pytest -m gpu -n 0" in box.log()


def test_help_after_a_recipe_is_simko_s(box):
    done = box.run("logic", "--help")
    assert done.returncode == 0, done.stderr
    assert box.log()[0] == "python simko.py train --help"
