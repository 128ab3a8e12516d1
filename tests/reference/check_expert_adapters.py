"""Reads adapters of experts with PEFT, as ft writes them (one A and B for each layer of each expert), and compares the logits
with those of weights merged by hand. Says which of them PEFT converts for the fused experts of transformers 5; the reasons in
src/convert/verify/expert_adapters.rs are from here.

    python tests/reference/check_expert_adapters.py     # from the root of the repository

Written for torch 2.11.0, transformers 5.23.0, peft 0.21.2.
"""

import json
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, logging, utils

sys.path.insert(0, "tests/fixtures")
from experts import ADAPTER_INPUT, ROOT, load, logits_of  # noqa: E402

EXPERTS = r"(?:.*\.)?(?:q_proj|experts\.(?:\d+\.)?(?:gate_proj|up_proj|w1|w3)|experts\.(?:\d+\.)?(?:down_proj|w2))"
CASES = [  # base, target_modules, whether PEFT computes the same
    ("tiny-mixtral", ["q_proj", "v_proj", "w1", "w2", "w3"], True),
    ("tiny-mixtral", ["w2"], True),
    ("tiny-mixtral", ["w1"], False),
    ("tiny-mixtral", "all-linear", True),
    ("tiny-mixtral", EXPERTS, True),
    ("tiny-qwen3-moe", ["q_proj", "gate_proj", "up_proj", "down_proj"], True),
    ("tiny-qwen3-moe", ["gate_proj", "up_proj"], False),
    ("tiny-qwen3-moe", "all-linear", True),
    ("tiny-qwen3-moe", EXPERTS, True),
    ("tiny-qwen2-moe", "all-linear", False),
    ("tiny-qwen2-moe", ["gate_proj", "up_proj", "down_proj"], False),
    ("tiny-olmoe", "all-linear", True),
]


def adapted(weights, targets):
    """Returns the modules that ft adapts."""
    matrices = [n.removesuffix(".weight") for n, t in weights.items() if t.dim() == 2]
    linear = [m for m in matrices if not m.endswith(("embed_tokens", "lm_head", "mlp.gate", "block_sparse_moe.gate"))]
    if targets == "all-linear":
        return linear
    if isinstance(targets, str):
        return [m for m in linear if re.fullmatch(targets, m)]
    return [m for m in linear if m.split(".")[-1] in targets]


def difference(base, targets):
    """Returns how far PEFT's logits are from those of the merged weights, relative to the effect of the adapter."""
    weights, g = load_file(ROOT / base / "model.safetensors"), torch.Generator().manual_seed(0)
    merged, tensors = {k: v.clone() for k, v in weights.items()}, {}
    for module in adapted(weights, targets):
        out, width = weights[f"{module}.weight"].shape
        a, b = torch.randn(2, width, generator=g) / width**0.5, 0.1 * torch.randn(out, 2, generator=g)
        tensors[f"base_model.model.{module}.lora_A.weight"], tensors[f"base_model.model.{module}.lora_B.weight"] = a, b
        merged[f"{module}.weight"] += 2 * b @ a
    adapter, model = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = dict(
        peft_type="LORA", task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.0, bias="none",
        target_modules=targets, base_model_name_or_path=base,
    )  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / base / "config.json", model)
    save_file(merged, model / "model.safetensors", {"format": "pt"})
    row, settings = {"ids": ADAPTER_INPUT}, dict(attn_implementation="eager", experts_implementation="eager")
    with torch.no_grad():
        expected = logits_of(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **settings).eval(), row)
        effect = (expected - logits_of(load(base), row)).abs().max()
        found = logits_of(PeftModel.from_pretrained(load(base), adapter).eval(), row)
    return ((found - expected).abs().max() / effect).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    utils.logging.disable_progress_bar()
    wrong = 0
    for base, targets, reads in CASES:
        try:
            gap = difference(base, targets)
            note, same = f"{gap:.1e} of its effect apart", gap < 1e-4
        except ValueError as e:
            note, same = str(e), False
        wrong += same != reads
        print(f"{'ok  ' if same == reads else 'WRONG'} {base} {targets}: {note}")
    sys.exit(wrong)
