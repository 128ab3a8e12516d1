"""Trains LoRA with transformers' Trainer and PEFT; called by benches/gpu_check.py.

Reads its settings as JSON from the first argument; prints one JSON line per step and one at the end, as benches/peer.py
does with TRL, which needs more packages than a machine with PyTorch usually has. All rows have the same length, so that
nothing is padded and attention needs no mask: the fastest case of these libraries.
"""

import json
import sys
import time

began = time.time()
settings = json.loads(sys.argv[1])

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from torch.utils.data import SequentialSampler

cuda = settings["device"] != "cpu"
torch.set_num_threads(settings["threads"])
with open(settings["ids"]) as f:
    rows = [torch.tensor(json.loads(line)) for line in f]

model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16, attn_implementation="sdpa")
model.config.use_cache = False
lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, lora)
config = TrainingArguments(
    output_dir=settings["out"],
    per_device_train_batch_size=settings["batch"],
    max_steps=settings["steps"],
    learning_rate=settings["lr"],
    lr_scheduler_type="cosine",
    max_grad_norm=1.0,
    weight_decay=0.0,
    optim="adamw_torch_fused",
    bf16=True,
    use_cpu=not cuda,
    logging_steps=1,
    report_to=[],
    save_strategy="no",
    dataloader_pin_memory=cuda,
    remove_unused_columns=False,
    disable_tqdm=True,
    seed=7,
)


class Clock(TrainerCallback):
    """Prints the seconds of each step with the loss that the trainer logs."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.at = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        if cuda:
            torch.cuda.synchronize()
        self.seconds = time.time() - self.at

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            line = {
                "step": state.global_step,
                "loss": logs["loss"],
                "seconds": self.seconds,
                "since_start": time.time() - began,
                "tokens": settings["batch"] * len(rows[0]),
                "supervised": settings["batch"] * (len(rows[0]) - 1),
            }
            print("STEP " + json.dumps(line), flush=True)


class InOrder(Trainer):
    """Trains on the rows in the order of the file, as ft does."""

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def collate(batch):
    ids = torch.stack(batch)
    return {"input_ids": ids, "labels": ids}


trainer = InOrder(model=model, args=config, train_dataset=rows, data_collator=collate, callbacks=[Clock()])
start = time.time()
trainer.train()
end = {"seconds": time.time() - start}
if cuda:
    end["gpu_peak"] = torch.cuda.max_memory_allocated()
print("END " + json.dumps(end), flush=True)
