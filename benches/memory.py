"""Compares the memory that `ft check` predicts with what a run needs, with and without recomputing layers (replay).

The measured peak is that of all tensors, the weights of a frozen base included. Needs no Python package.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LORA = "adapter: { lora: { rank: 16, alpha: 32, targets: all-linear } }\n"


def cases(model):
    """Returns (title, adapter, examples a step, replay) of each line of the table."""
    half = json.loads((Path(model) / "config.json").read_text())["num_hidden_layers"] // 2
    return [
        (f"{name}, {examples} rows, replay {replay}", adapter, examples, replay)
        for name, adapter in (("LoRA", LORA), ("full", ""))
        for examples in (8, 32)
        for replay in ("none", f"{{ layers: {half} }}", "all")
    ]


def measure(ft, model, rows, device, case, dtype="bf16"):
    """Returns the predicted and the measured bytes of one case, over three steps."""
    title, adapter, examples, replay = case
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(
            f"model: {{ path: {Path(model).resolve()}, device: '{device}', dtype: {dtype} }}\nmethod: {{ sft: {{}} }}\n{adapter}"
            f"data: {{ train: {{ path: {Path(rows).resolve()}, rows: {examples * 3} }} }}\n"
            f"batch: {{ tokens: 4096, max_len: 512, examples: {examples} }}\n"
            f"run: {{ steps: 3, samples: 0, replay: {replay}, out: {folder}/out }}\n"
        )
        needs = json.loads(run(ft, "check", recipe, "--json"))["needs"]["memory"]
        run(ft, "train", recipe, "--overwrite")
        lines = [json.loads(line) for line in (Path(folder) / "out/metrics.jsonl").read_text().splitlines()]
        return {
            "case": title,
            "predicted": needs,
            "measured": max(line["memory"] for line in lines if "memory" in line),
        }


def run(*command):
    """Runs a command and returns its stdout; ends the program with its messages if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


HEAD = "| | predicted | measured | predicted / measured |\n|---|---|---|---|"


def line(found):
    """Formats a result as a line of the table."""
    predicted, measured = found["predicted"], found["measured"]
    return f"| {found['case']} | {predicted / 1e9:.2f} GB | {measured / 1e9:.2f} GB | {predicted / measured:.2f} |"


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--ft", default=ROOT / "target/release/ft")
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--rows", default=ROOT / "datasets/icd10/train.jsonl", type=Path)
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    p.add_argument("--dtype", default="bf16", help="bf16 or f32")
    p.add_argument("--only", default="", help="measure only the lines whose name has this text")
    args = p.parse_args()
    print(HEAD)
    for case in cases(args.model):
        if args.only in case[0]:
            print(line(measure(args.ft, args.model, args.rows, args.device, case, args.dtype)), flush=True)


if __name__ == "__main__":
    main()
