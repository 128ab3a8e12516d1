#!/usr/bin/env bash
# make demo-rlhf: supervised fine-tuning, preference pairs, reward model with its report card, PPO, before and after.
# With the argument `start`, only the first: a policy that is right about half the time, from which there is much to learn.
#
# A stage is skipped when it was done with the same command on the same content of its inputs; what it was done with stands
# in $RUNS/NAME.done. A training that was broken off goes on where it stood.
set -euo pipefail

FT=${FT:-target/release/ft}
MODEL=${MODEL:-models/smollm2-135m-instruct}
DATA=${DATA:-datasets/icd10}
PAIRS=${PAIRS:-datasets/helpful}
SFT=${SFT:-adapters/icd10-start}
BASE=${BASE:-models/icd10-start}
REWARD=${REWARD:-adapters/reward-helpful}
PPO=${PPO:-adapters/ppo-helpful}
RUNS=${RUNS:-runs/demo-rlhf}
# Further arguments of each training.
read -ra MORE_SFT <<<"${MORE_SFT:---set run.steps=72 --set run.eval_every=0}"
read -ra MORE_REWARD <<<"${MORE_REWARD:-}"
read -ra MORE_PPO <<<"${MORE_PPO:-}"

# What a command and the files that it reads come to.
key() {
    local inputs=() file
    while [ "$1" != -- ]; do
        if [ -d "$1" ]; then
            while IFS= read -r file; do inputs+=("$file"); done < <(find "$1" -maxdepth 1 -type f ! -name export_report.json | sort)
        else
            inputs+=("$1")
        fi
        shift
    done
    { printf '%s\n' "$@"; sha256sum "${inputs[@]}"; } | sha256sum | cut -d' ' -f1
}

# stage NAME RESULT INPUT... -- COMMAND...
stage() {
    local name=$1 result=$2 now
    shift 2
    now=$(key "$@")
    if [ -e "$result" ] && [ "$(cat "$RUNS/$name.done" 2>/dev/null)" = "$now" ]; then
        echo "$name: unchanged, $result"
        return
    fi
    while [ "$1" != -- ]; do shift; done
    shift
    echo "$name: $*"
    rm -f "$RUNS/$name.done"
    "$@"
    echo "$now" >"$RUNS/$name.done"
}

# training NAME FOLDER INPUT... -- ARGUMENTS of ft train
training() {
    local name=$1 folder=$2 now how=--overwrite
    now=$(key "${@:3}")
    # Broken off with the same inputs: go on.
    if [ "$(cat "$RUNS/$name.begun" 2>/dev/null)" = "$now" ] && compgen -G "$folder/checkpoints/step-*" >/dev/null; then
        how=--resume
    fi
    local inputs=()
    shift 2
    while [ "$1" != -- ]; do inputs+=("$1"); shift; done
    shift
    local arguments=("$@")
    train() {
        echo "$now" >"$RUNS/$name.begun"
        "$FT" train "${arguments[@]}" --set run.out="$folder" "$how"
    }
    # `--resume` is no other work: the key is that of the arguments.
    stage "$name" "$folder/summary.json" "${inputs[@]}" -- train "${arguments[@]}"
}

mkdir -p "$RUNS"
training sft "$SFT" "$MODEL" recipes/lora-medical.yaml "$DATA/train.jsonl" "$DATA/valid.jsonl" -- \
    recipes/lora-medical.yaml --set model.path="$MODEL" --set data.train.path="$DATA/train.jsonl" \
    --set data.valid.path="$DATA/valid.jsonl" "${MORE_SFT[@]}"
stage merge "$BASE/model.safetensors" "$MODEL" "$SFT/adapter_model.safetensors" -- \
    "$FT" merge "$MODEL" "$SFT" --out "$BASE" --force
[ "${1:-}" != start ] || exit 0
stage pairs "$PAIRS/train.jsonl" datasets/prepare_helpful.py "$DATA/train.jsonl" "$DATA/valid.jsonl" -- \
    python3 datasets/prepare_helpful.py "$DATA" --out "$PAIRS"
training reward "$REWARD" "$BASE" recipes/reward-helpful.yaml "$PAIRS/train.jsonl" "$PAIRS/valid.jsonl" -- \
    recipes/reward-helpful.yaml --set model.path="$BASE" --set data.train.path="$PAIRS/train.jsonl" \
    --set data.valid.path="$PAIRS/valid.jsonl" "${MORE_REWARD[@]}"
training ppo "$PPO" "$BASE" "$REWARD/adapter_model.safetensors" "$REWARD/report_card.json" recipes/ppo-helpful.yaml \
    "$DATA/train.jsonl" "$DATA/valid.jsonl" -- \
    recipes/ppo-helpful.yaml --set model.path="$BASE" --set "method.ppo.rewards=[{\"model\":{\"path\":\"$REWARD\"}}]" \
    --set data.train.path="$DATA/train.jsonl" --set data.valid.path="$DATA/valid.jsonl" "${MORE_PPO[@]}"
python3 setup/rlhf.py "$REWARD/report_card.json" "$PPO/held_out.json" "$BASE" "$PPO"
