"""Checks that mlx-lm computes with an adapter that `ft export --to mlx` wrote what ft computes with the original.

    pip install mlx[cpu] mlx-lm
    python tests/reference/check_mlx.py FT [--family NAME …]

Run from the root of the repository, on a CPU. For a random tiny model of each family that --to mlx knows, with a LoRA of PEFT (with
patterns of ranks and alphas) and a DoRA: the logits of mlx-lm are those of `ft logits` within 1e-4 of the largest (of gemma 1e-3), and
those of the adapter that `ft import` makes of mlx-lm's are, too.

Written for torch 2.11, transformers 5.23, peft 0.21.2, mlx 0.32.4, mlx-lm 0.32.2.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import mlx.core as mx
import torch
import transformers
from check_hf_export import config_of
from check_random_adapters import gap_of, run, shake
from mlx_lm.utils import load_adapters, load_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "smollm3", "mixtral", "olmoe"]
ROWS = [[3, 17, 25, 8, 99, 300, 5, 2, 64, 31], [7, 9, 11]]


def older_config(folder):
    """Gives config.json the keys of transformers 4 as well, which mlx-lm reads."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"rope_theta": config.get("rope_parameters", {}).get("rope_theta", 10000.0), "rope_scaling": None}
    path.write_text(json.dumps(config, indent=2))


def check(ft, family, kind, folder):
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager").float().eval()
    shake(list(model.named_parameters()), 0.3)
    model.save_pretrained(folder / "model")
    older_config(folder / "model")
    more = dict(use_dora=True) if kind == "dora" else dict(use_rslora=True, rank_pattern={"o_proj": 2}, alpha_pattern={"down_proj": 3})
    experts = family in ("mixtral", "olmoe")  # all-linear would adapt them, too
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if experts else "all-linear"
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **more))
    shake([(n, p) for n, p in tuned.named_parameters() if p.requires_grad], 0.3)
    tuned.save_pretrained(folder / "adapter")
    for line in (
        ["export", folder / "adapter", "--base", folder / "model", "--to", "mlx", "--out", folder / "mlx"],
        ["import", folder / "mlx", "--base", folder / "model", "--out", folder / "again"],
    ):
        done = run(ft, *line)
        if done.returncode:
            print(f"{family} {kind}: refused: {done.stderr.strip()[-300:]}")
            return False
    read, _ = load_model(folder / "model")
    read = load_adapters(read, str(folder / "mlx"))
    read.eval()
    expected = [torch.tensor(read(mx.array([row]))[0].astype(mx.float32).tolist()) for row in ROWS]
    (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in ROWS]}))
    gaps = {}
    for adapter in ("adapter", "again"):
        line = ["--model", folder / "model", "--adapter", folder / adapter, "--dtype", "f32", "--ids", folder / "rows.json"]
        gaps[adapter], error = gap_of(ft, line, ROWS, expected)
        if error:
            print(f"{family} {kind}: {error[:300]}")
            return False
    bound = 1e-3 if family == "gemma" else 1e-4  # mlx-lm's logits of the base alone differ by 7e-6
    good = all(gap < bound for gap in gaps.values())
    print(f"{family} {kind}: {gaps['adapter']:.1e}, imported {gaps['again']:.1e}" + ("" if good else "   <-- WRONG"))
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ft")
    parser.add_argument("--family", action="append")
    options = parser.parse_args()
    wrong = 0
    for family in options.family or FAMILIES:
        for kind in ("lora", "dora"):
            with tempfile.TemporaryDirectory() as folder:
                wrong += not check(options.ft, family, kind, Path(folder))
                sys.stdout.flush()
    print(f"{wrong} wrong")
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
