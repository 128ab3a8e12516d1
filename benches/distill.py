"""Compares a student distilled from the medical teacher with the same student after as many steps of cross-entropy
alone.

The recipe's student is trained on labelled rows and on the teacher's answers to unlabelled diagnoses. The second
student is trained with cross-entropy on the labelled rows, the third with cross-entropy on both. So the effect of the
teacher's probabilities can be distinguished from that of its answers. All results are those of the last step.

Prints a Markdown table: parameters, held-out loss and exact match with the paired 95 % bootstrap interval of the
difference, tokens per second of generation, and seconds per epoch with the teacher loaded next to the student and with
cached probabilities. Needs models/medical (`make medical`), its answers (`make taught`) and no Python package. Steps
that an interrupted call has finished are not repeated, unless --overwrite is given.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--ft", default=ROOT / "target/release/ft")
p.add_argument("--recipe", default=ROOT / "recipes/distill-medical.yaml", type=Path)
p.add_argument("--teacher", default=ROOT / "models/medical", type=Path)
p.add_argument("--data", default=ROOT / "datasets/icd10", type=Path)
p.add_argument("--held-out", default="held_out.jsonl", help="file in --data with the rows that teacher and students are evaluated on")
p.add_argument("--out", default=ROOT / "runs/bench-distill", type=Path)
p.add_argument("--steps", type=int, help="optimiser steps of every student [default: the recipe's]")
p.add_argument("--timed-steps", type=int, default=12, help="steps of the runs that are only timed; the first 2 are ignored")
p.add_argument("--turns", type=int, default=3, help="timings of each kind, in alternation, because machines are noisy")
p.add_argument("--top", type=int, default=64, help="tokens kept of each cached distribution")
p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to every training")
p.add_argument("--overwrite", action="store_true")
args = p.parse_args()
args.out.mkdir(parents=True, exist_ok=True)

student = args.out / "student"
sets = [
    f"model.path={student}",
    f"model.cut.from={args.teacher}",
    f"data.valid.path={args.data / 'valid.jsonl'}",
    *args.set,
]
labelled = f"data.train={{path: {args.data / 'train.jsonl'}}}"
both = f"data.train=[{{path: {args.data / 'train.jsonl'}}}, {{path: {args.data / 'taught.jsonl'}}}]"
teachers = f"method.distill.teachers=[{{path: {args.teacher}}}]"
alone = "method={sft: {}}"


def ft(*arguments, capture=False):
    command = [str(a) for a in (args.ft, *arguments)]
    print("+", " ".join(command), file=sys.stderr)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE if capture else None, text=True)
    return done.stderr if capture else done.stdout


def train(name, more, finished="summary.json"):
    out = args.out / name
    if (out / finished).exists() and not args.overwrite:
        return out
    given = [x for s in (*sets, f"run.out={out}", *more) for x in ("--set", s)]
    ft("train", args.recipe, "--overwrite", *given)
    return out


def evaluate(name, model):
    summary, rows = args.out / f"{name}.json", args.out / f"{name}.rows.jsonl"
    if not summary.exists() or args.overwrite:
        found = ft("eval", "--model", model, "--data", args.data / args.held_out, "--json", "--out", rows)
        summary.write_text(found)
    return json.loads(summary.read_text()), [json.loads(line) for line in rows.read_text().splitlines()]


def speed(model):
    """Returns tokens per second of greedy answers of 64 tokens, one prompt at a time."""
    rows = [json.loads(line) for line in (args.data / args.held_out).read_text().splitlines()[:8]]
    prompts = args.out / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": r["messages"][:-1]}) + "\n" for r in rows))
    answers = args.out / "answers.jsonl"
    said = ft(
        "generate", "--model", model, "--input", prompts, "--out", answers, "--temperature", 0, "--batch-size", 1,
        "--max-new-tokens", 64, "--min-new-tokens", 64, capture=True,
    )  # fmt: skip
    return float(re.findall(r"\(([\d.]+) tokens/s\)", said)[-1])


def parameters(model):
    """Returns the number of parameters, from the headers of the weight files."""
    total = 0
    for file in model.glob("*.safetensors"):
        with file.open("rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                numbers = 1
                for n in tensor["shape"]:
                    numbers *= n
                total += numbers
    return total


def epoch_seconds(runs):
    """Returns the seconds of an epoch: median seconds per step, without the first two of each run, times the steps of
    an epoch."""
    taken = []
    for out in runs:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        taken += [s["seconds"] for s in steps[2:]]
    return statistics.median(taken) * steps[0]["step"] / steps[0]["epoch"]


def interval(differences, draws=10_000):
    """Returns the mean and its 95 % bootstrap interval (percentile) over rows."""
    chance, n = random.Random(7), len(differences)
    means = sorted(sum(chance.choices(differences, k=n)) / n for _ in range(draws))
    return sum(differences) / n, means[int(0.025 * draws)], means[int(0.975 * draws)]


length = [f"run.steps={args.steps}"] if args.steps else []
models = {
    "teacher": args.teacher,
    "student, distilled": train("distilled", [teachers, both, *length]),
    "student, cross-entropy on the teacher's answers too": train("cross-entropy-taught", [alone, both, *length]),
    "student, cross-entropy": train("cross-entropy", [alone, labelled, *length]),
}
found = {name: evaluate(re.sub("[ ,']+", "-", name), model) for name, model in models.items()}
sizes = {name: parameters(model) for name, model in models.items()}
spoken = [{name: speed(model) for name, model in models.items()} for _ in range(args.turns)]
speeds = {name: statistics.median(turn[name] for turn in spoken) for name in models}

timed = [f"run.steps={args.timed_steps}", "run.eval_every=0", "run.save_every=0", "run.samples=0", "run.eval_at_start=false"]
cache = args.out / "teaching"
given = [x for s in (*sets, teachers, labelled) for x in ("--set", s)]
ft("teach", args.recipe, *given, "--top", args.top, "--out", cache)
turns = {"online": [], "cached": [f"method.distill.cache={cache}"]}
runs = {name: [] for name in turns}
for turn in range(args.turns):
    for name, more in turns.items():
        runs[name].append(train(f"timed-{name}-{turn}", [teachers, labelled, *timed, *more]))
online, cached = (epoch_seconds(runs[name]) for name in turns)

print("| | parameters | held-out loss | exact match | generates |")
print("|---|---|---|---|---|")
for name, (numbers, _) in found.items():
    print(
        f"| {name} | {sizes[name] / 1e6:.1f} M ({sizes[name] / sizes['teacher']:.0%}) | {numbers['loss']:.3f} "
        f"| {numbers['exact_match']:.3f} ({numbers['exact_match'] / found['teacher'][0]['exact_match']:.0%} of the teacher's) "
        f"| {speeds[name]:.0f} tokens/s |"
        if found["teacher"][0]["exact_match"]
        else f"| {name} | {sizes[name] / 1e6:.1f} M | {numbers['loss']:.3f} | {numbers['exact_match']:.3f} | {speeds[name]:.0f} tokens/s |"
    )
ours = found["student, distilled"][1]
for name in list(found)[2:]:
    theirs = found[name][1]
    print(f"\nDistilled, less {name.removeprefix('student, ')}, over the same {len(ours)} rows (paired bootstrap, 95 %):\n")
    for what, of in (("loss", lambda r: r["loss"]), ("exact match", lambda r: float(r["match"]))):
        mean, low, high = interval([of(a) - of(b) for a, b in zip(ours, theirs)])
        print(f"- {what}: {mean:+.4f} ({low:+.4f} to {high:+.4f})")
print(f"\nAn epoch: {online:.0f} s with the teacher next to the student, {cached:.0f} s from the cache: {online / cached:.2f} times as fast.")
