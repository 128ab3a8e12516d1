"""Compares the kinds of adapters on the medical task: trained parameters, memory, speed beside LoRA, held-out exact match.

Speed: a few steps of each kind directly after as many of LoRA, so that both see the same machine; the ratio of the
medians of their steps. Accuracy: the whole recipe, one epoch, evaluated by `ft eval` on the test rows. Run by
`make bench-adapters`, which takes hours; what the file of `--json` has is not measured again, so that a run that was
stopped goes on. `--help` lists the options.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LORA = "lora: { rank: 16, alpha: 32, targets: all-linear }"
# Name, adapter section, learning rate, further settings of model.
KINDS = [
    ("LoRA", LORA, 5e-4, ""),
    ("QLoRA (NF4)", LORA, 5e-4, "quantize: nf4"),
    ("rsLoRA", "lora: { rank: 16, alpha: 8, rslora: true }", 5e-4, ""),
    ("DoRA", "lora: { rank: 16, alpha: 32, dora: true }", 5e-4, ""),
    ("PiSSA", "lora: { rank: 16, alpha: 16, init: pissa }", 2e-4, ""),
    ("OLoRA", "lora: { rank: 16, alpha: 16, init: olora }", 2e-4, ""),
    ("EVA", "lora: { rank: 16, alpha: 32, init: eva }", 5e-4, ""),
    ("LoRA+", "lora: { rank: 16, alpha: 32, b_lr_ratio: 8 }", 1e-4, ""),
    ("LoRA-FA", "lora: { rank: 16, alpha: 32, freeze_a: true }", 1e-3, ""),
    ("AdaLoRA", "adalora: { rank: 12, target_rank: 8, alpha: 32 }", 2e-3, ""),
    ("VeRA", "vera: { rank: 256 }", 1e-2, ""),
    ("LoHa", "loha: { rank: 8, alpha: 8 }", 1e-2, ""),
    ("LoKr", "lokr: { rank: 32, alpha: 64, factor: 4 }", 3e-3, ""),
    ("OFT", "oft: { block: 32 }", 1e-3, ""),
    ("IA3", "ia3: {}", 1e-2, ""),
    ("LayerNorm tuning", "ln_tuning: {}", 2e-3, ""),
    ("prompt tuning", "prompt_tuning: { virtual_tokens: 20 }", 1e-2, ""),
    ("prefix tuning", "prefix_tuning: { virtual_tokens: 20 }", 1e-2, ""),
]


def recipe(folder, kind, args, run):
    """Writes the recipe of one kind and returns its path."""
    _, adapter, lr, model = kind
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{ path: {args.model}, device: '{args.device}'{model and ', ' + model} }}\n"
        f"method: {{ sft: {{}} }}\nadapter: {{ {adapter} }}\n"
        f"data: {{ train: {{ path: {args.rows} }} }}\n"
        "batch: { tokens: 4096, max_len: 512, examples: 8 }\n"
        f"optim: {{ lr: {lr}, schedule: cosine }}\n"
        f"run: {{ samples: 0, save_every: 0, {run}, out: {folder / 'out'} }}\n"
    )
    return path


def ft(args, *command):
    done = subprocess.run([args.ft, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ft {' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def short_run(args, kind):
    """Returns the median seconds of a step, the median of its tokens per second, and the largest memory of tensors."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        ft(args, "train", recipe(folder, kind, args, f"steps: {args.steps}"))
        lines = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "grad_norm" in line]
        median = lambda key: statistics.median(s[key] for s in steps[2:])
        return median("seconds"), median("tokens_per_s"), max(s["memory"] for s in steps)


def whole_run(args, kind):
    """Returns the results of `ft eval` after one epoch."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        ft(args, "train", recipe(folder, kind, args, "epochs: 1"))
        base = [args.ft, "eval", "--model", args.model, "--adapter", folder / "out"]
        return json.loads(ft(args, *base[1:], "--data", args.test, "--json"))


def measure(args, kind, found):
    """Measures what `found` does not have of one kind, and writes the file after each part."""
    row = found.setdefault(kind[0], {})
    if row.get("settings") != [*kind[1:]]:
        row.clear()
        row["settings"] = [*kind[1:]]
    if "tokens_per_s" not in row and not args.no_speed:
        lora, *_ = short_run(args, KINDS[0])
        seconds, rate, memory = short_run(args, kind)
        with tempfile.TemporaryDirectory() as folder:
            checked = json.loads(ft(args, "check", recipe(Path(folder), kind, args, "steps: 1"), "--json"))
        row |= {"trained": checked["trained"], "memory": memory, "tokens_per_s": rate, "time_to_lora": seconds / lora}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if "exact_match" not in row and not args.no_accuracy:
        result = whole_run(args, kind)
        row |= {"exact_match": result["exact_match"], "loss": result["loss"]}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(line(kind[0], row), file=sys.stderr, flush=True)


HEAD = """| kind | trained parameters | peak of tensors | tokens/s | time of a step, to LoRA's | exact match | loss |
|---|---|---|---|---|---|---|"""


def line(name, row):
    """Formats a result as a line of the table; what was not measured stays empty."""
    speed = " | | | "
    if "tokens_per_s" in row:
        speed = f"{row['trained']:,} | {row['memory'] / 1e9:.2f} GB | {row['tokens_per_s']:.0f} | {row['time_to_lora']:.2f}"
    accuracy = f"{row['exact_match']:.3f} | {row['loss']:.4f}" if "exact_match" in row else " | "
    return f"| {name} | {speed} | {accuracy} |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=ROOT / "target/release/ft")
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--rows", default=ROOT / "datasets/icd10/train.jsonl", type=Path)
    p.add_argument("--test", default=ROOT / "datasets/icd10/test.jsonl", type=Path)
    p.add_argument("--device", default="cpu")
    p.add_argument("--only", nargs="*", help="names of kinds")
    p.add_argument("--steps", type=int, default=12, help="steps of the runs that are timed")
    p.add_argument("--no-accuracy", action="store_true", help="leave out the runs of a whole epoch")
    p.add_argument("--no-speed", action="store_true", help="leave out the runs that are timed")
    p.add_argument("--json", type=Path, default=ROOT / "runs/bench-adapters.json", help="where the numbers are kept")
    args = p.parse_args()
    args.model, args.rows, args.test = (path.resolve() for path in (args.model, args.rows, args.test))
    unknown = set(args.only or []) - {name for name, *_ in KINDS}
    if unknown:
        sys.exit(f"no such kinds: {', '.join(sorted(unknown))}; there are {', '.join(name for name, *_ in KINDS)}")

    args.json.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    for kind in KINDS:
        if not args.only or kind[0] in args.only:
            measure(args, kind, found)
    print(HEAD)
    for name, *_ in KINDS:
        if name in found:
            print(line(name, found[name]))


if __name__ == "__main__":
    main()
