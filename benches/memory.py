"""Compares the memory that `ft check` predicts with what a run needs, with and without recomputing layers (replay).

The measured peak is that of all tensors, the weights of a frozen base included. Needs no Python package.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--ft", default=ROOT / "target/release/ft")
p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
p.add_argument("--rows", default=ROOT / "datasets/icd10/train.jsonl", type=Path)
p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
p.add_argument("--dtype", default="bf16", help="bf16 or f32")
p.add_argument("--steps", default=3, type=int)
p.add_argument("--only", default="", help="measure only lines whose name has this text")
args = p.parse_args()

print("| | predicted | measured | predicted / measured |")
print("|---|---|---|---|")
with tempfile.TemporaryDirectory() as folder:
    for kind, adapter in (("LoRA", "adapter: { lora: { rank: 16, alpha: 32, targets: all-linear } }\n"), ("full", "")):
        for examples in (8, 32):
            for replay in ("none", "{ layers: 15 }", "all"):
                name = f"{kind}, {examples} rows, replay {replay}"
                if args.only not in name:
                    continue
                recipe = Path(folder) / "recipe.yaml"
                recipe.write_text(
                    f"model: {{ path: {args.model.resolve()}, device: '{args.device}', dtype: {args.dtype} }}\nmethod: {{ sft: {{}} }}\n{adapter}"
                    f"data: {{ train: {{ path: {args.rows.resolve()}, rows: {examples * args.steps} }} }}\n"
                    f"batch: {{ tokens: 4096, max_len: 512, examples: {examples} }}\n"
                    f"run: {{ steps: {args.steps}, samples: 0, replay: {replay}, out: {folder}/out }}\n"
                )
                check = subprocess.run([args.ft, "check", recipe, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                needs = json.loads(check.stdout)["needs"]["memory"]
                subprocess.run([args.ft, "train", recipe, "--overwrite"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                lines = [json.loads(l) for l in (Path(folder) / "out/metrics.jsonl").read_text().splitlines()]
                peak = max(l["memory"] for l in lines if "memory" in l)
                print(f"| {name} | {needs / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {needs / peak:.2f} |", flush=True)
