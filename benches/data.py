"""Measures rows per second from a file of conversations to token ids: ft against `datasets.map` with the same
tokenizer.

    python benches/data.py --model models/smollm2-135m-instruct            # 20,000 generated rows
    python benches/data.py --model DIR --file rows.jsonl --rounds 3

Run it with a Python that has the peers (`make bench-peers`). Both sides read the same JSON Lines file, render each
conversation with the model's own template and tokenise it, without any cache. They alternate within one run, because
only their ratio under the same load is meaningful. `datasets.map` works in two processes (num_proc=2), row by row as
TRL's preparation does, and batched, which is its faster form. The token counts must agree.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """
import json, sys, time
import datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
datasets.disable_caching()
model, path, batched = sys.argv[1], sys.argv[2], sys.argv[3] == "batched"
tok = AutoTokenizer.from_pretrained(model)
begun = time.time()
rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=sys.argv[4])
def ids(example):
    out = tok.apply_chat_template(example["messages"], tokenize=True, return_dict=True)
    return {"input_ids": out["input_ids"]}
done = rows.map(ids, batched=batched, num_proc=2, remove_columns=rows.column_names)
seconds = time.time() - begun
print(json.dumps({"rows": len(done), "seconds": seconds, "tokens": sum(len(r) for r in done["input_ids"])}))
"""


def make(path, rows):
    """Writes conversations of two turns and about 80 words each, made of words from datasets/text.jsonl."""
    rng = random.Random(7)
    words = Path("datasets/text.jsonl").read_text(encoding="utf-8").split()
    words = [w for w in words if w.isalpha()]
    say = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(10, 70)))  # noqa: E731
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(rows):
            talk = [{"role": "user", "content": say()}, {"role": "assistant", "content": say()}]
            f.write(json.dumps({"messages": talk}) + "\n")


def ours(ft, model, path):
    out = subprocess.run([ft, "data", "inspect", path, "--model", model, "--no-cache", "--show", "0", "--json"],
                         check=True, capture_output=True, text=True)
    summary = json.loads(out.stdout)["tokens"]["summary"]
    return {"rows": summary["rows"], "seconds": summary["seconds"], "tokens": summary["tokens"]}


def peer(model, path, how):
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        out = subprocess.run([sys.executable, "-c", PEER, model, path, how, cache], check=True, capture_output=True,
                             text=True, env=env)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", help="JSON Lines with `messages` [default: generated rows]")
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ft", default="target/release/ft")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or str(Path(folder) / "rows.jsonl")
        if not args.file:
            make(path, args.rows)
        sides = {
            "ft": lambda: ours(args.ft, args.model, path),
            "datasets.map, row by row": lambda: peer(args.model, path, "single"),
            "datasets.map, batched": lambda: peer(args.model, path, "batched"),
        }
        rates, tokens = {name: [] for name in sides}, {}
        for _ in range(args.rounds):
            for name, run in sides.items():
                got = run()
                rates[name].append(got["rows"] / got["seconds"])
                tokens[name] = got["tokens"]
        if len(set(tokens.values())) != 1:
            sys.exit(f"the token counts differ: {tokens}")
        own = statistics.median(rates["ft"])
        print(f"{next(iter(tokens.values())):,} tokens, medians of {args.rounds} rounds")
        for name, values in rates.items():
            middle = statistics.median(values)
            print(f"{name:>25}  {middle:>9,.0f} rows/s  {own / middle:>5.2f}x")


if __name__ == "__main__":
    main()
