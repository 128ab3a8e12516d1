"""Exports a model in every format of GGUF and runs each file: size, seconds, perplexity in ft, greedy tokens in llama.cpp.

Perplexity (by token) is that of ft over the file, on the validation texts of datasets/stories. llama.cpp (node-llama-cpp) answers ten
prompts greedily from the file; of each answer those tokens count up to the first that ft, over the same file, would not have chosen.
With --imatrix, formats of fewer than 8 bits are also written with an importance matrix of the first of these rows. Run by `make bench-exports`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ["f32", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "q3_k_m", "q2_k"]
WEIGHTED = ["q4_k_m", "q4_0", "q3_k_m", "q2_k"]
PROMPTS = [
    "The capital of France is", "Once upon a time there was a", "The three primary colours are", "def fibonacci(n):\n",
    "<|im_start|>user\nWhat is type 2 diabetes?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at a temperature of", "In 1969, the first", "Q: What is 12 times 12?\nA:", "To make bread, you first",
]  # fmt: skip


def run(*line):
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, line))} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def llama_cpp(args, file, prompts):
    """Returns the greedy tokens of llama.cpp after each prompt (token ids)."""
    with tempfile.TemporaryDirectory() as folder:
        settings, out = Path(folder) / "settings.json", Path(folder) / "out.jsonl"
        case = {"model": str(file), "texts": [], "rows": [], "prompts": prompts, "new": args.new, "context": 512}
        settings.write_text(json.dumps({"modules": str(args.llama.resolve()), "out": str(out), "cases": [case]}))
        run("node", ROOT / "tests/reference/llama_cpp.mjs", settings)
        found = json.loads(out.read_text())
    if "error" in found:
        sys.exit(f"{file}: llama.cpp: {found['error']}")
    return found["greedy"]


def agreeing(args, file, prompts, answers):
    """Returns how many tokens of each answer ft would have chosen, up to the first other one."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as ids:
        json.dump({"rows": [{"ids": (prompt + answer)[:-1]} for prompt, answer in zip(prompts, answers)]}, ids)
        ids.flush()
        rows = json.loads(run(args.ft, "logits", "--model", file, "--ids", ids.name))["rows"]
    counts = []
    for prompt, answer, row in zip(prompts, answers, rows):
        chosen = [max(range(len(line)), key=line.__getitem__) for line in row["logits"][len(prompt) - 1 :]]
        counts.append(next((i for i, (a, b) in enumerate(zip(answer, chosen)) if a != b), len(answer)))
    return counts


def perplexity(args, folder, model):
    """Returns ft's perplexity by token over a model."""
    suite = folder / "texts.yaml"
    suite.write_text(f"tasks:\n- {{ name: texts, data: {args.texts}, perplexity: {{ per: [token] }} }}\n")
    out = folder / "evaluation"
    run(args.ft, "eval", suite, "--model", model, "--out", out)
    results = json.loads((out / "results.json").read_text())["tasks"][0]["results"][0]
    return results["estimates"]["token_perplexity"]["value"]


def first_rows(rows, folder, kilobytes):
    """Writes the first rows of a file to another, up to this size, and returns its path."""
    lines, size = [], 0
    for line in rows.read_text().splitlines():
        size += len(line)
        if size > kilobytes * 1000:
            break
        lines.append(line)
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=ROOT / "target/release/ft", type=Path)
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--texts", default=ROOT / "datasets/stories/valid.jsonl", type=Path)
    p.add_argument("--imatrix", default=ROOT / "datasets/stories/train.jsonl", type=Path, help="rows of the importance matrix")
    p.add_argument("--imatrix-kb", type=int, default=40, help="how much of these rows is used")
    p.add_argument("--llama", default=ROOT / ".bench/node/node_modules", type=Path, help="where node-llama-cpp is installed")
    p.add_argument("--only", nargs="*", default=FORMATS)
    p.add_argument("--new", type=int, default=32)
    args = p.parse_args()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    print("| file | MB | seconds | perplexity | tokens as in ft, of " + f"{args.new * len(prompts)} | whole answers |")
    print("|---|---|---|---|---|---|")
    for kind in args.only:
        for rows in [None] + [args.imatrix] * (kind in WEIGHTED):
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                file = folder / "model.gguf"
                began = time.time()
                more = ["--imatrix", first_rows(rows, folder, args.imatrix_kb)] if rows else []
                run(args.ft, "export", args.model, "--to", "gguf", "--type", kind, "--out", file, *more)
                seconds = time.time() - began
                counts = agreeing(args, file, prompts, llama_cpp(args, file, prompts))
                whole = sum(count == args.new for count in counts)
                name = kind + (", importance" if rows else "")
                line = f"| {name} | {file.stat().st_size / 1e6:.0f} | {seconds:.0f} | {perplexity(args, folder, file):.3f}"
                print(f"{line} | {sum(counts)} | {whole} of {len(prompts)} |", flush=True)


if __name__ == "__main__":
    main()
