"""Compares the next tokens of one answer over weights in several formats, and by llama.cpp over the same GGUF file.

Milliseconds for each token, the median over an answer and over rounds, in which all sides take turns. ft: `ft generate
--timings`. llama.cpp: benches/llama.mjs, whose tokens pass through JavaScript. Run by `make bench-decoding`; `--help` lists the
options.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT = (
    "Explain to a patient, in simple words, what it means that the doctor has found a small fracture in the wrist, how "
    "long it usually takes to heal, and what should be avoided in the meantime."
)
NEW = 128


def ft_token(args, threads, model, options):
    """Returns the median seconds of a forward pass for the next token."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        command = [args.ft, "generate", "--model", model, "--chat", "--prompt", PROMPT, "--max-new-tokens", str(NEW)]
        command += ["--temperature", "0", "--timings", file.name, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
        passes = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
    return statistics.median(p["seconds"] for p in passes if p["kind"] != "prompt")


def llama_token(args, threads):
    """Returns the mean seconds of a token after the first."""
    case = {"name": "answer", "prompts": [PROMPT], "repeats": 1, "new": NEW}
    settings = {"modules": str(args.llama), "model": str(args.gguf), "threads": threads, "patience": 60, "cases": [case]}
    command = ["node", ROOT / "benches/llama.mjs", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line[5:] for line in done.stdout.splitlines() if line.startswith("TIME ")]
    if done.returncode or not lines:
        sys.exit(f"llama.cpp failed:\n{done.stderr[-2000:]}")
    measured = json.loads(lines[-1])
    return measured["decode_seconds"] / (measured["new_tokens"] - 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=ROOT / "target/release/ft", type=Path)
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--gguf", default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf", type=Path)
    p.add_argument("--llama", default=ROOT / ".bench/node/node_modules", type=Path, help="where node-llama-cpp is installed")
    p.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    p.add_argument("--rounds", type=int, default=4)
    args = p.parse_args()
    sides = {
        "directory, bf16 or f32": lambda threads: ft_token(args, threads, args.model, []),
        "GGUF file": lambda threads: ft_token(args, threads, args.gguf, []),
        **{
            f"--quantize {name}": lambda threads, name=name: ft_token(args, threads, args.model, ["--quantize", name])
            for name in ("nf4", "int8")
        },
    }
    if (args.llama / "node-llama-cpp").is_dir():
        sides["llama.cpp, GGUF file"] = lambda threads: llama_token(args, threads)
    else:
        print(f"llama.cpp is left out: there is no node-llama-cpp in {args.llama}", file=sys.stderr)

    print("| ms for each token | " + " | ".join(f"{n} thread{'s' if n > 1 else ''}" for n in args.threads) + " |")
    print("|---" * (1 + len(args.threads)) + "|")
    measured = {(name, threads): [] for name in sides for threads in args.threads}
    for _ in range(args.rounds):
        for threads in args.threads:
            for name, token in sides.items():
                measured[name, threads].append(1000 * token(threads))
    for name in sides:
        print(f"| {name} | " + " | ".join(f"{statistics.median(measured[name, n]):.1f}" for n in args.threads) + " |")


if __name__ == "__main__":
    main()
