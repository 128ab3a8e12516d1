"""Measures generation by transformers' `generate`; called by benches/processors.py.

Reads its settings as JSON from the first argument; prints one JSON line per repetition. Times are those of a loaded and
warmed-up model: from the start to the first token, and from the first to the last. The settings are the fastest of the
library without a compiler: padding on the left, a cache, no gradients, scaled dot product attention.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria

settings = json.loads(sys.argv[1])
torch.set_num_threads(settings["threads"])
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[settings["dtype"]]
model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).eval()
tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
# Without stop tokens, every program generates the same number of tokens.
model.generation_config.eos_token_id = None


class Clock(StoppingCriteria):
    """Records the time of each token; never stops generation."""

    def __init__(self):
        self.at = []

    def __call__(self, input_ids, scores, **kwargs):
        self.at.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def answer(inputs, new):
    clock = Clock()
    began = time.perf_counter()
    out = model.generate(
        **inputs, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=tokenizer.pad_token_id,
        stopping_criteria=[clock],
    )
    made = out.shape[1] - inputs["input_ids"].shape[1]
    assert made == new == len(clock.at), f"{made} tokens and {len(clock.at)} times instead of {new}"
    return clock.at[0] - began, clock.at[-1] - clock.at[0]


with torch.inference_mode():
    for case in settings["cases"]:
        inputs = tokenizer(case["prompts"], return_tensors="pt", padding=True, add_special_tokens=False)
        began = time.perf_counter()
        for _ in range(1 + case["repeats"]):
            first, rest = answer(inputs, case["new"])
            print("TIME " + json.dumps({
                "case": case["name"], "prompt_tokens": int(inputs["attention_mask"].sum()), "prompt_seconds": first,
                "new_tokens": case["new"] * len(case["prompts"]), "decode_seconds": rest,
            }), flush=True)
            if time.perf_counter() - began > settings["patience"]:
                break
