#!/usr/bin/env bash
# make demo-labeling: two adapters answer prompts, programs vote on the answers, report, export, train a reward model.
#
# A stage is skipped if it was completed before with the same command and the same content of its inputs; $RUNS/NAME.done has a
# hash of both. A stage that was interrupted continues where it stopped.
set -euo pipefail

FT=${FT:-target/release/ft}
MODEL=${MODEL:-models/smollm2-135m-instruct}
DATA=${DATA:-datasets/icd10}
EARLY=${EARLY:-adapters/labeling-early}
LATE=${LATE:-adapters/labeling-late}
REWARD=${REWARD:-adapters/labeling-reward}
RUNS=${RUNS:-runs/demo-labeling}
PROMPTS=${PROMPTS:-240}
# The program that judges all pairs, and the number of pairs that a language model judges as well.
read -ra JUDGE <<<"${JUDGE:-python3 datasets/judge_icd10.py $DATA/train.jsonl}"
JUDGED=${JUDGED:-40}
# Further arguments of the trainings and of generation.
read -ra MORE_EARLY <<<"${MORE_EARLY:---set run.steps=24 --set run.eval_every=0}"
read -ra MORE_LATE <<<"${MORE_LATE:---set run.steps=100 --set run.eval_every=0}"
read -ra MORE_REWARD <<<"${MORE_REWARD:-}"
read -ra MORE_ANSWERS <<<"${MORE_ANSWERS:---max-new-tokens 24}"

source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
PROJECT=$RUNS/project.label

adapter() { # NAME FOLDER ARGUMENTS of ft train
    training "$1" "$2" "$MODEL" recipes/lora-medical.yaml "$DATA/train.jsonl" "$DATA/valid.jsonl" -- \
        recipes/lora-medical.yaml --set model.path="$MODEL" --set data.train.path="$DATA/train.jsonl" \
        --set data.valid.path="$DATA/valid.jsonl" "${@:3}"
}

# If prompts or models changed, the project is created anew; otherwise answers and votes are added to the existing one.
project() {
    rm -f "$PROJECT" "$PROJECT"-* "$RUNS"/{answers-early,answers-late,pairs,judges}.done
    "$FT" label new "$PROJECT" --prompts "$RUNS/prompts.jsonl" --title "Which answer names the right chapter?"
}
answers() { "$FT" label candidates "$PROJECT" --model "$MODEL" --adapter "$1" --source "$2" --temperature 0.7 -n 2 "${MORE_ANSWERS[@]}"; }
pairs() { "$FT" label pairs "$PROJECT" --strategy informative --budget $((2 * PROMPTS)); }
judges() {
    "$FT" label judge "$PROJECT" --name right-chapter --command "${JUDGE[@]}"
    "$FT" label judge "$PROJECT" --name smollm2 --model "$MODEL" --limit "$JUDGED"
}
report() { "$FT" label report "$PROJECT" --votes right-chapter --out "$RUNS/report.html" --out "$RUNS/report.json"; }
export_pairs() {
    "$FT" label export "$PROJECT" --votes right-chapter --out "$RUNS/pairs.jsonl" --valid-out "$RUNS/valid.jsonl" --valid 0.2
}

mkdir -p "$RUNS"
adapter early "$EARLY" "${MORE_EARLY[@]}"
adapter late "$LATE" "${MORE_LATE[@]}"
head -n "$PROMPTS" "$DATA/train.jsonl" >"$RUNS/prompts.jsonl"
# The judging program is an input of the project, too: votes of another program must not be mixed with its votes.
stage project "$PROJECT" "$RUNS/prompts.jsonl" {"$EARLY","$LATE"}/adapter_model.safetensors "${JUDGE[1]}" -- project
stage answers-early "$PROJECT" "$RUNS/project.done" -- answers "$EARLY" early
stage answers-late "$PROJECT" "$RUNS/project.done" -- answers "$LATE" late
stage pairs "$PROJECT" "$RUNS/answers-early.done" "$RUNS/answers-late.done" -- pairs
stage judges "$PROJECT" "$RUNS/pairs.done" -- judges
stage report "$RUNS/report.html" "$RUNS/judges.done" -- report
stage export "$RUNS/pairs.jsonl" "$RUNS/judges.done" -- export_pairs
training reward "$REWARD" "$MODEL" recipes/reward-helpful.yaml "$RUNS/pairs.jsonl" "$RUNS/valid.jsonl" -- \
    recipes/reward-helpful.yaml --set model.path="$MODEL" --set data.train.path="$RUNS/pairs.jsonl" \
    --set data.valid.path="$RUNS/valid.jsonl" "${MORE_REWARD[@]}"
"$FT" label report "$PROJECT" --votes right-chapter
"$FT" runs show "$REWARD"
echo "report: $RUNS/report.html"
