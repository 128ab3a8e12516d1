"""Compares speed and memory of ft and of TRL + PEFT on the same rows.

Both train the same model on the same rows in the same order, with the same rank, targets, dtype, batch and schedule.
They alternate, so that a change of the machine's speed affects both. Before each turn the machine's rate of bf16 matrix
products is measured. Run by `make bench`; `--help` lists the options.
"""

import argparse
import collections
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# name: method, rows per step, length of a packed row (None: not packed), steps
CASES = {
    "lora": dict(method="lora", batch=8, packed=None, steps=15, title="LoRA, 8 chat rows a step"),
    "full": dict(method="full", batch=8, packed=None, steps=10, title="full fine-tuning, 8 chat rows a step"),
    "lora-512": dict(method="lora", batch=4, packed=512, steps=6, title="LoRA, 4 rows packed to 512"),
    "lora-2048": dict(method="lora", batch=1, packed=2048, steps=6, title="LoRA, 1 row packed to 2,048"),
}
WARM = 2  # steps at the start that are not counted: both warm up caches in them


def product_rate(python, threads):
    """Returns the current GFLOP/s of bf16 products of 1024 x 1024 matrices."""
    code = (
        "import torch, time, sys; torch.set_num_threads(int(sys.argv[1])); a = torch.randn(1024, 1024).bfloat16();"
        "[a @ a for _ in range(5)]; t = time.time(); n = 0\n"
        "while time.time() - t < 1.5: a @ a; n += 1\n"
        "print(2 * 1024 ** 3 * n / (time.time() - t) / 1e9)"
    )
    return float(subprocess.check_output([python, "-c", code, str(threads)]))


def measured(command, env, on_line, on_talk=lambda line: None):
    """Runs a command; returns its wall seconds and peak resident bytes. Calls `on_line` and `on_talk` with lines of
    stdout and stderr."""
    began = time.time()
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tail = collections.deque(maxlen=40)

    def listen():
        for line in child.stderr:
            tail.append(line)
            on_talk(line)

    drain = threading.Thread(target=listen)
    drain.start()
    for line in child.stdout:
        on_line(line)
    drain.join()
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{' '.join(map(str, command))[:500]} failed:\n{''.join(tail)}")
    return time.time() - began, usage.ru_maxrss * 1024


def rates(steps):
    """Returns all and trained tokens per second over the counted steps, whose lines have tokens (of the step),
    supervised and seconds."""
    counted = steps[WARM:]
    seconds = sum(s["seconds"] for s in counted)
    return sum(s["tokens"] for s in counted) / seconds, sum(s["supervised"] for s in counted) / seconds


def peer_environment(threads, env):
    """Returns `env` with the variables that every Python peer gets."""
    return env | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_peer(args, case, rows, out, env=os.environ):
    settings = dict(
        model=str(args.model), rows=str(rows), out=str(out), device=args.device, threads=args.threads,
        method=case["method"], batch=case["batch"], packing=case["packed"] is not None,
        max_length=case["packed"] or 512, steps=case.get("steps"), lr=case.get("lr", 5e-4), weight_decay=0.0,
        save=case.get("save"), shuffle=case.get("shuffle", False), dtype=case.get("dtype", "bf16"),
    )
    steps, end = [], {}

    def on_line(line):
        if line.startswith("STEP "):
            steps.append(json.loads(line[5:]))
        elif line.startswith("END "):
            end.update(json.loads(line[4:]))

    command = [args.python, HERE / "peer.py", json.dumps(settings)]
    seconds, memory = measured(command, peer_environment(args.threads, env), on_line)
    seen = 0
    for s in steps:
        s["tokens"], seen = s["num_tokens"] - seen, s["num_tokens"]
        s["supervised"] = end["supervised"][s["step"] - 1]
    return dict(steps=steps, wall=seconds, memory=end.get("gpu_peak", memory), train=end["seconds"],
                first=steps[0]["since_start"])


def run_ft(args, case, rows, out, env=os.environ):
    batch = (
        f"{{ tokens: 16384, max_len: 512, examples: {case['batch']} }}" if case["packed"] is None
        else f"{{ tokens: {case['packed'] * case['batch']}, max_len: {case['packed']} }}"
    )
    adapter = "adapter: { lora: { rank: 16, alpha: 32, targets: all-linear } }\n" if case["method"] == "lora" else ""
    steps = f"steps: {case['steps']}" if case.get("steps") else "epochs: 1"
    recipe = out.with_suffix(".yaml")
    recipe.write_text(
        f"model: {{ path: {args.model}, dtype: {case.get('dtype', 'bf16')}, device: {args.device} }}\nmethod: {{ sft: {{}} }}\n{adapter}"
        f"data: {{ train: {{ path: {rows} }}, shuffle: {str(case.get('shuffle', False)).lower()} }}\nbatch: {batch}\n"
        f"optim: {{ lr: {case.get('lr', 5e-4)}, schedule: cosine, weight_decay: 0 }}\n"
        f"run: {{ {steps}, threads: {args.threads}, samples: 0, out: {out}{case.get('run', '')} }}\n"
    )
    began = time.time()
    first = []
    metrics = out / "metrics.jsonl"

    def watch():
        while not first and not done.is_set():
            if metrics.exists() and metrics.stat().st_size > 0:
                first.append(time.time() - began)
            time.sleep(0.02)

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    env = env | {"OMP_NUM_THREADS": str(args.threads)}
    said = []
    try:
        seconds, memory = measured([args.ft, "train", recipe, "--overwrite"], env, lambda line: None, said.append)
    finally:
        done.set()
        watcher.join()
    steps, seen = [], 0
    for line in metrics.read_text().splitlines():
        line = json.loads(line)
        if "loss" in line and "tokens" in line:
            line["tokens"], seen = line["tokens"] - seen, line["tokens"]
            line["supervised"] = line["items"]
            steps.append(line)
    summary = json.loads((out / "summary.json").read_text())
    return dict(steps=steps, wall=seconds, memory=memory if args.device == "cpu" else summary["memory"],
                tensors=summary["memory"], train=summary["seconds"], first=first[0], arithmetic=arithmetic(said))


def arithmetic(said):
    """Returns the number format that ft reports on stderr."""
    found = (re.search(r"arithmetic in (bfloat16|float32)", line) for line in said)
    return {"bfloat16": "bf16", "float32": "f32"}[next(m[1] for m in found if m)]


def rows_for(case, source, folder):
    """Writes the rows as prompt and completion; both programs then train on the completion only."""
    path = folder / f"rows-{case['name']}.jsonl"
    with open(source) as f:
        rows = [json.loads(line) for line in f]
    wanted = case["batch"] * case["steps"] if case["packed"] is None else None
    with open(path, "w") as f:
        for row in rows[:wanted]:
            turns = row["messages"]
            f.write(json.dumps({"prompt": turns[:-1], "completion": turns[-1:]}) + "\n")
    return path


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=ROOT / "target/release/ft")
    p.add_argument("--python", default=ROOT / ".bench/bin/python", help="the peers' Python, made by `make bench-peers`")
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--rows", default=ROOT / "datasets/icd10/train.jsonl", type=Path)
    p.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    p.add_argument("--rounds", type=int, default=2, help="turns of each side")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--device", default="cpu")
    p.add_argument("--json", type=Path, help="also write everything that was measured here")
    args = p.parse_args()
    args.model = args.model.resolve()

    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in args.cases.split(","):
            case = CASES[name] | {"name": name}
            rows = rows_for(case, args.rows, folder)
            turns = {"ft": [], "peer": []}
            for turn in range(args.rounds):
                for side, run in (("ft", run_ft), ("peer", run_peer)):
                    rate = product_rate(args.python, args.threads)
                    result = run(args, case, rows, folder / f"{name}-{side}-{turn}")
                    result["rate"] = rate
                    result["tokens_per_s"], result["supervised_per_s"] = rates(result["steps"])
                    turns[side].append(result)
                    print(
                        f"{name:10} {side:5} turn {turn + 1}: {result['tokens_per_s']:7.0f} tokens/s, "
                        f"{result['memory'] / 1e9:.2f} GB, first step after {result['first']:.1f} s, "
                        f"loss {result['steps'][0]['loss']:.4f} -> {result['steps'][-1]['loss']:.4f}, "
                        f"products {rate:.0f} GFLOP/s",
                        file=sys.stderr, flush=True,
                    )
            results.append((case, turns))

    speeds = lambda runs: f"{middle(runs, 'tokens_per_s'):.0f} ({middle(runs, 'supervised_per_s'):.0f})"
    middle = lambda runs, key: statistics.median(r[key] for r in runs)
    print("| | ft tokens/s (supervised) | TRL + PEFT | ratio | ft memory | TRL + PEFT | ratio | first step, ft | TRL + PEFT | loss of the first and last step, ft | TRL + PEFT |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case, turns in results:
        a, b = turns["ft"], turns["peer"]
        loss = lambda r: f"{r['steps'][0]['loss']:.3f}, {r['steps'][-1]['loss']:.3f}"
        ratio = statistics.median(x["tokens_per_s"] / y["tokens_per_s"] for x, y in zip(a, b))
        print(
            f"| {case['title']} | {speeds(a)} | {speeds(b)} | **{ratio:.1f}x** "
            f"| {middle(a, 'memory') / 1e9:.2f} GB | {middle(b, 'memory') / 1e9:.2f} GB "
            f"| **{middle(a, 'memory') / middle(b, 'memory'):.2f}** "
            f"| {middle(a, 'first'):.1f} s | {middle(b, 'first'):.1f} s | {loss(a[0])} | {loss(b[0])} |"
        )
    every = [r["rate"] for _, t in results for side in t.values() for r in side]
    print(f"\nbf16 products of 1024 during the run: {min(every):.0f} to {max(every):.0f} GFLOP/s, {args.threads} threads.")
    if args.json:
        args.json.write_text(json.dumps([{"case": c} | t for c, t in results], indent=1, default=str))


if __name__ == "__main__":
    main()
