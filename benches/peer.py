"""Runs one training with TRL + PEFT + transformers; called by benches/speed.py.

Reads its settings as JSON from the first argument; prints one JSON line per step and one at the end. The training is
set up as the libraries' users do: SFTTrainer, LoraConfig, weights in `dtype`, no gradient checkpointing.
"""

import json
import sys
import time

began = time.time()
settings = json.loads(sys.argv[1])

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from torch.utils.data import SequentialSampler
from trl import SFTConfig, SFTTrainer

torch.set_num_threads(settings["threads"])
with open(settings["rows"]) as f:
    rows = [json.loads(line) for line in f]

device = settings["device"]
model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype={"bf16": torch.bfloat16, "f32": torch.float32}[settings["dtype"]])
tokenizer = AutoTokenizer.from_pretrained(settings["model"])
lora = None
if settings["method"] == "lora":
    from peft import LoraConfig

    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
config = SFTConfig(
    output_dir=settings["out"],
    per_device_train_batch_size=settings["batch"],
    num_train_epochs=1,
    max_steps=settings.get("steps") or -1,
    learning_rate=settings["lr"],
    lr_scheduler_type="cosine",
    max_grad_norm=1.0,
    weight_decay=settings["weight_decay"],
    bf16=settings["dtype"] == "bf16",
    use_cpu=device == "cpu",
    logging_steps=1,
    report_to=[],
    save_strategy="no",
    gradient_checkpointing=False,
    max_length=settings["max_length"],
    packing=settings["packing"],
    padding_free=False,
    completion_only_loss=True,
    disable_tqdm=True,
    seed=7,
)


class Clock(TrainerCallback):
    """Prints the seconds of each step with the values that the trainer logs."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.at = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        if device != "cpu":
            torch.cuda.synchronize()
        self.seconds = time.time() - self.at

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            line = {"step": state.global_step, "seconds": self.seconds, "since_start": time.time() - began}
            line |= {k: logs[k] for k in ("loss", "grad_norm", "num_tokens") if k in logs}
            print("STEP " + json.dumps(line), flush=True)


class InOrder(SFTTrainer):
    """Trains on the rows in the order of the file, as ft does, unless both shuffle."""

    def _get_train_sampler(self, *args, **kwargs):
        if settings.get("shuffle"):
            return super()._get_train_sampler(*args, **kwargs)
        return SequentialSampler(self.train_dataset)


trainer = InOrder(
    model=model,
    args=config,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=lora,
    callbacks=[Clock()],
)
# Trained tokens of each step; valid only if rows are not shuffled.
masks = [sum(label != -100 for label in labels) for labels in trainer.train_dataset["labels"]]
start = time.time()
trainer.train()
seconds = time.time() - start
if settings.get("save"):
    trainer.save_model(settings["save"])
end = {"seconds": seconds, "supervised": [sum(masks[i : i + settings["batch"]]) for i in range(0, len(masks), settings["batch"])]}
if device != "cpu":
    end["gpu_peak"] = torch.cuda.max_memory_allocated()
print("END " + json.dumps(end), flush=True)
