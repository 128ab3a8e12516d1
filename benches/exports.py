"""Exports a model in every format and runs each export elsewhere: size, seconds, perplexity in ft, greedy tokens.

GGUF is run in llama.cpp (node-llama-cpp), ONNX in ONNX Runtime, Hugging Face directories in transformers (in float32; FP8 is dequantised
on a CPU), models for mlx-lm in mlx-lm. Each program answers ten prompts greedily; of each answer those tokens count up to the first
that ft would not have chosen: over the same file where ft reads it (models in 4 and 8 bits for mlx-lm as `ft import` reads them), of ONNX over the
original in float32. Perplexity (by token) is that of ft over the file, on the validation texts of datasets/stories. With --imatrix, GGUF formats of fewer than 8 bits are also written with an importance
matrix of the first of these rows. Run by `make bench-exports`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/reference"))
FORMATS = {
    "gguf": ["f32", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "q3_k_m", "q2_k"],
    "onnx": ["f32", "f16", "int8"],
    "hf": ["bf16", "fp8", "nf4"],
    "mlx": ["bf16", "8bit", "4bit"],
}
WEIGHTED = ["q4_k_m", "q4_0", "q3_k_m", "q2_k"]
WEIGHTS = (".gguf", ".onnx", ".data", ".safetensors")
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


def onnx_runtime(args, folder, prompts):
    """Returns the greedy tokens of ONNX Runtime after each prompt."""
    from onnx_run import greedy

    return [greedy(folder, prompt, args.new) for prompt in prompts]


def by_transformers(args, folder, prompts):
    """Returns the greedy tokens of transformers after each prompt, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if not getattr(model, "is_loaded_in_4bit", False):
        model = model.float()  # what was dequantised from FP8 is in bfloat16
    answers = []
    for prompt in prompts:
        new, past, answer = prompt, None, []
        with torch.no_grad():
            while len(answer) < args.new:
                out = model(torch.tensor([new]), past_key_values=past, use_cache=True)
                past = out.past_key_values
                answer.append(int(out.logits[0, -1].argmax()))
                new = answer[-1:]
        answers.append(answer)
    return answers


def mlx_lm(args, folder, prompts):
    """Returns the greedy tokens of mlx-lm after each prompt, in float32."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    wide = {mx.bfloat16, mx.float16}
    model.update(tree_map(lambda t: t.astype(mx.float32) if t.dtype in wide else t, model.parameters()))
    return [[int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=args.new)] for prompt in prompts]


RUNTIMES = {
    "gguf": ("llama.cpp", llama_cpp),
    "onnx": ("ONNX Runtime", onnx_runtime),
    "hf": ("transformers", by_transformers),
    "mlx": ("mlx-lm", mlx_lm),
}


def agreeing(args, model, prompts, answers):
    """Returns how many tokens of each answer ft would have chosen over a model in float32, up to the first other one."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as ids:
        json.dump({"rows": [{"ids": (prompt + answer)[:-1]} for prompt, answer in zip(prompts, answers)]}, ids)
        ids.flush()
        rows = json.loads(run(args.ft, "logits", "--model", model, "--dtype", "f32", "--ids", ids.name))["rows"]
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


def measure(args, prompts, to, kind, rows):
    """Exports the model in a format and runs it; prints a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        out = folder / ("model.gguf" if to == "gguf" else "model")
        more = ["--imatrix", first_rows(rows, folder, args.imatrix_kb)] if rows else []
        began = time.time()
        run(args.ft, "export", args.model, "--to", to, "--type", kind, "--out", out, *more)
        seconds = time.time() - began
        files = [out] if out.is_file() else out.rglob("*")
        size = sum(file.stat().st_size for file in files if file.name.endswith(WEIGHTS))
        program, answers = RUNTIMES[to]
        in_ft = args.model if to == "onnx" else out
        if kind in ("4bit", "8bit"):
            in_ft = folder / "imported"
            run(args.ft, "import", out, "--dtype", "f32", "--out", in_ft)
        counts = agreeing(args, in_ft, prompts, answers(args, out, prompts))
        quality = "" if to == "onnx" else f"{perplexity(args, folder, in_ft):.3f}"
        whole = sum(count == args.new for count in counts)
        name = f"{to} {kind}" + (", importance" if rows else "")
        print(f"| {name} | {size / 1e6:.0f} | {seconds:.0f} | {quality} | {program} | {sum(counts)} | {whole} of {len(prompts)} |", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=ROOT / "target/release/ft", type=Path)
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--texts", default=ROOT / "datasets/stories/valid.jsonl", type=Path)
    p.add_argument("--imatrix", default=ROOT / "datasets/stories/train.jsonl", type=Path, help="rows of the importance matrix")
    p.add_argument("--imatrix-kb", type=int, default=40, help="how much of these rows is used")
    p.add_argument("--llama", default=ROOT / ".bench/node/node_modules", type=Path, help="where node-llama-cpp is installed")
    p.add_argument("--only", nargs="*", default=[], help="formats, such as gguf or gguf:q8_0")
    p.add_argument("--new", type=int, default=32)
    args = p.parse_args()
    every = [(to, kind) for to, kinds in FORMATS.items() for kind in kinds]
    known = {*FORMATS, *(f"{to}:{kind}" for to, kind in every)}
    if unknown := set(args.only) - known:
        p.error(f"no such formats: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    print(f"| file | MB | seconds | perplexity | run in | tokens as in ft, of {args.new * len(prompts)} | whole answers |")
    print("|---|---|---|---|---|---|---|")
    for to, kind in every:
        if not args.only or to in args.only or f"{to}:{kind}" in args.only:
            measure(args, prompts, to, kind, None)
            if to == "gguf" and kind in WEIGHTED:
                measure(args, prompts, to, kind, args.imatrix)


if __name__ == "__main__":
    main()
