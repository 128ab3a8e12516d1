"""Trains an adapter on each half of the chapters of the medical task, merges the two, and compares exact match on held-out rows.

Weights are searched on valid.jsonl (`ft merge --sweep`) by adapter, layer, module and component; the rows of held_out.jsonl are
used for nothing else. Every row is answered by the base and by each adapter in one run of `ft generate`, which decodes them in
the same batches. Intervals are 95 % paired bootstrap intervals of the difference from the merge of the last search. Run by
`make bench-halves`; what exists in the output folder is not made again.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESAMPLES = 10_000
SEARCHES = ["layer", "module", "component"]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def chapter(row):
    return row["messages"][-1]["content"]


def ft(args, *command):
    print("ft " + " ".join(map(str, command)), flush=True)
    done = subprocess.run([args.ft, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"ft {command[0]} failed")
    return done.stdout


def split(args, halves):
    """Writes the training and validation rows of each half, and the rows of the comparison: some of each chapter."""
    for name in ["train", "valid"]:
        rows = read(args.data / f"{name}.jsonl")
        for half, chapters in halves.items():
            write(args.out / f"{half}-{name}.jsonl", [row for row in rows if chapter(row) in chapters])
    taken, kept = {}, []
    for row in read(args.data / "held_out.jsonl"):
        taken[chapter(row)] = taken.get(chapter(row), 0) + 1
        if taken[chapter(row)] <= args.per_chapter:
            kept.append(row)
    return kept


def train(args, half):
    out = args.out / half
    if not (out / "adapter_model.safetensors").exists():
        sets = {
            "model.path": args.model,
            "model.device": args.device,
            "data.train.path": args.out / f"{half}-train.jsonl",
            "data.valid.path": args.out / f"{half}-valid.jsonl",
            "run.out": out,
            "run.samples": 0,
        }
        more = [word for key, value in sets.items() for word in ["--set", f"{key}={value}"]]
        ft(args, "train", ROOT / "recipes/lora-medical.yaml", "--overwrite", *more)


def merge(args, name, *more):
    """Merges both adapters into one, unless that is done."""
    out = args.out / name
    if not (out / "adapter_model.safetensors").exists():
        told = ft(args, "merge", args.model, args.out / "first", args.out / "second", *more, "--as", "adapter", "--out", out, "--json")
        (args.out / f"{name}.json").write_text(told)
    return json.loads((args.out / f"{name}.json").read_text())


def answers(args, rows, names):
    """Returns for each adapter, and None for the base, which rows it answers exactly."""
    asked = [
        {"messages": row["messages"][:-1], "adapter": name} for name in [None, *names] for row in rows
    ]
    write(args.out / "asked.jsonl", asked)
    adapters = [word for name in names for word in ["--adapter", f"{name}={args.out / name}"]]
    common = ["--model", args.model, *adapters, "--device", args.device, "--greedy", "--max-new-tokens", 40]
    (args.out / "answers.jsonl").unlink(missing_ok=True)
    ft(args, "generate", *common, "--input", args.out / "asked.jsonl", "--out", args.out / "answers.jsonl")
    found = {}
    for i, answer in enumerate(read(args.out / "answers.jsonl")):
        right = answer["text"].strip() == chapter(rows[i % len(rows)]).strip()
        found.setdefault(answer["adapter"], []).append(right)
    return found


def share(hits):
    return sum(hits) / len(hits)


def interval(ours, theirs):
    """Returns the 95 % bootstrap interval of the mean difference over rows."""
    differences, draw = [int(a) - int(b) for a, b in zip(ours, theirs)], random.Random(1)
    means = sorted(sum(draw.choices(differences, k=len(differences))) / len(differences) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=ROOT / "target/release/ft", type=Path)
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--data", default=ROOT / "datasets/icd10", type=Path)
    p.add_argument("--out", default=ROOT / "runs/halves", type=Path)
    p.add_argument("--device", default="auto")
    p.add_argument("--per-chapter", default=50, type=int, help="held-out rows of each chapter")
    p.add_argument("--sweep-rows", type=int, help="search by adapter on the first N validation rows (default all)")
    args = p.parse_args()
    args.ft, args.model, args.data, args.out = (path.resolve() for path in (args.ft, args.model, args.data, args.out))
    args.out.mkdir(parents=True, exist_ok=True)

    titles = sorted({chapter(row) for row in read(args.data / "train.jsonl")})
    halves = {"first": set(titles[::2]), "second": set(titles[1::2])}
    rows = split(args, halves)
    for half in halves:
        train(args, half)
    merge(args, "sum")
    merge(args, "soup", "--method", "soup")
    first_rows = ["--sweep-rows", args.sweep_rows] if args.sweep_rows else []
    searched = merge(args, "searched", "--sweep", args.data / "valid.jsonl", *first_rows)
    best = searched["sweep"]["best"]
    print(f"weights {best['weights']}, loss {best['loss']:.4f}, {len(searched['sweep']['trials'])} trials")

    for by in SEARCHES:
        trained = merge(args, by, "--sweep", args.data / "valid.jsonl", "--sweep-by", by)["sweep"]
        kept = f"{trained['steps'][0]['kept_loss']:.4f} -> {trained['loss']:.4f} at step {trained['best_step']}"
        print(f"weights by {by}: loss of the {trained['kept_rows']} rows kept back {kept}")

    names = ["first", "second", "sum", "soup", "searched", *SEARCHES]
    found = answers(args, rows, names)
    sides = [[chapter(row) in halves[half] for row in rows] for half in halves]
    print(f"\n{len(rows)} held-out rows, {sum(sides[0])} of the first half of the chapters\n")
    print(f"| adapter | first half | second half | both | {names[-1]} minus this (95 %) |\n|---|---|---|---|---|")
    table = []
    for name in [None, *names]:
        hits = found[name]
        parts = [share([hit for hit, here in zip(hits, side) if here]) for side in sides]
        low, high = interval(found[names[-1]], hits)
        difference = share(found[names[-1]]) - share(hits)
        table.append({"adapter": name, "halves": parts, "all": share(hits), "difference": difference, "interval": [low, high]})
        print(f"| {name or 'none'} | {parts[0]:.3f} | {parts[1]:.3f} | {share(hits):.3f} | {difference:+.3f} ({low:+.3f} to {high:+.3f}) |")
    (args.out / "halves.json").write_text(json.dumps({"rows": len(rows), "best": best, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
