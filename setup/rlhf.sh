#!/usr/bin/env bash
# make demo-rlhf: supervised fine-tuning, preference pairs, reward model with its report card, PPO, comparison before and after.
# With the argument `start`, only the first stage: a policy that is right about half the time and has much to improve.
#
# A stage is skipped if it was completed before with the same command and the same content of its inputs; $RUNS/NAME.done has a
# hash of both. A training that was interrupted is resumed.
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

source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

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
"$FT" runs show "$REWARD"
"$FT" runs show "$PPO"
echo "the policy is in $PPO; talk to it with: $FT chat --model $BASE --adapter $PPO"
