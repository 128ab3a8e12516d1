"""Measures training on one long row: predicted and measured memory of a step, its time, and the time of attention in a layer.

The model gets positions for its rows by YaRN (arXiv 2309.00071): a folder with links to its files and a config.json of its own.
Memory is that of all tensors. Times of attention are those of the operations in a profile of a model with one layer of the same
shape and random weights; beside them are the operations of their products per second. Rows must be longer than 1,024 tokens:
the backward of shorter ones is composed of other operations. Needs no Python package.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from memory import ROOT, run

WORDS = "the nurse wrote a short note about the patient in room seven and asked for a second opinion before noon".split()


def write_rows(folder, tokens, rows):
    """Writes rows of text that have at least this number of tokens; all words are different by their neighbours."""
    lines = []
    for row in range(rows):
        words = [f"{WORDS[(i * 7 + row) % len(WORDS)]} {i * i % 9973}" for i in range(tokens // 2)]
        lines.append(json.dumps({"text": " ".join(words)}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def write_model(folder, base, tokens):
    """Makes a folder with the base's files and positions for rows of this length."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    for file in Path(base).iterdir():
        if file.name != "config.json" and not (model / file.name).exists():
            (model / file.name).symlink_to(file.resolve())
    config = json.loads((Path(base) / "config.json").read_text())
    original = config["max_position_embeddings"]
    if tokens > original:
        factor = -(-tokens // original)
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": original,
        }
        config["max_position_embeddings"] = factor * original
    (model / "config.json").write_text(json.dumps(config, indent=1))
    return config


def recipe(folder, tokens, steps, dtype, model, adapter, settings=""):
    """Writes a recipe whose steps have one row of this length."""
    (folder / "recipe.yaml").write_text(
        f"model: {{ {model}, device: cpu, dtype: {dtype} }}\nmethod: {{ sft: {{}} }}\n{adapter}"
        f"data: {{ train: {{ path: {folder}/rows.jsonl }}, on_overflow: truncate, cache: false }}\n"
        f"batch: {{ tokens: {tokens}, max_len: {tokens}, accumulate: 1 }}\n"
        f"run: {{ steps: {steps}, samples: 0, eval_at_start: false, out: {folder}/out, threads: 1{settings} }}\n"
    )
    return folder / "recipe.yaml"


def memory(args, tokens):
    """Measures one step of LoRA on the whole model, with the memory that it may take; returns a line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, tokens, 1)
        write_model(folder, args.model, tokens)
        lora = "adapter: { lora: { rank: 16, alpha: 32, targets: all-linear } }\n"
        at = recipe(folder, tokens, 1, args.dtype, f"path: {folder}/model", lora, args.settings)
        fit = [f"--fit={args.fit}"] if args.fit else []
        needs = json.loads(run(args.ft, "check", at, "--json", *fit))["needs"]["memory"]
        run(args.ft, "train", at, "--overwrite", *fit)
        line = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
        found = max(step["memory"] for step in line if "memory" in step)
        seconds = line[0].get("seconds", 0)
        return f"| {tokens:,} | {needs / 1e9:.2f} GB | {found / 1e9:.2f} GB | {needs / found:.2f} | {seconds:.0f} s |"


def attention(args, tokens):
    """Returns the milliseconds of attention's forward and backward in one layer, for a row of this length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, tokens, 3)
        shape = write_model(folder, args.model, tokens)
        keys = "model_type vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads rope_theta".split()
        config = ", ".join(f"{key}: {shape[key]}" for key in keys if key != "vocab_size")
        model = (
            f"init: random, tokenizer: {folder}/model, config: {{ {config}, num_hidden_layers: 1, "
            f"max_position_embeddings: {tokens} }}"
        )
        at = recipe(folder, tokens, 3, args.dtype, model, "")
        run(args.ft, "train", at, "--overwrite", "--profile", f"{folder}/trace.json")
        trace = json.loads((folder / "trace.json").read_text())
        events = trace["traceEvents"] if isinstance(trace, dict) else trace
        names = ["aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu_backward"]
        times = [sum(e.get("dur", 0) for e in events if e.get("name") == name) / 1e3 for name in names]
        heads, size = shape["num_attention_heads"], shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        # Two products forward and five backward, of which causal attention computes half.
        operations = [2 * tokens**2 * heads * size, 5 * tokens**2 * heads * size]
        return times, operations


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--ft", default=ROOT / "target/release/ft")
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--dtype", default="f32", help="bf16 or f32")
    p.add_argument("--tokens", default="1024,2048,4096,8192", help="lengths of rows")
    p.add_argument("--fit", default="", help="memory that the run may take, such as 8GB; without it the settings below are used")
    p.add_argument("--settings", default=", replay: all, mlp_tile: 2048", help="more keys of the recipe's section `run`")
    p.add_argument("--attention", action="store_true", help="measure attention instead of memory")
    args = p.parse_args()
    lengths = [int(n) for n in args.tokens.split(",")]
    if args.attention:
        print("| tokens | forward | backward | rate forward | rate backward |\n|---|---|---|---|---|")
        for tokens in lengths:
            times, operations = attention(args, tokens)
            rates = [n / max(t, 1e-9) / 1e6 for n, t in zip(operations, times)]
            print(f"| {tokens:,} | {times[0]:.0f} ms | {times[1]:.0f} ms | {rates[0]:.0f} GFLOP/s | {rates[1]:.0f} GFLOP/s |", flush=True)
        return
    print("| tokens | predicted | measured | predicted / measured | step |\n|---|---|---|---|---|")
    for tokens in lengths:
        print(memory(args, tokens), flush=True)


if __name__ == "__main__":
    main()
