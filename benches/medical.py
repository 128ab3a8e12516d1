"""Compares one epoch of the medical task by ft and by TRL + PEFT on the same rows: time, and accuracy on held-out rows.

Both adapters are evaluated by `ft eval` on the same rows. Run by `make bench-medical`; `--help` lists the options.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import speed


def accuracy(args, adapter):
    command = [args.ft, "eval", "--model", args.model, "--adapter", adapter, "--data", args.test, "--json"]
    return json.loads(subprocess.check_output(command))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=speed.ROOT / "target/release/ft")
    p.add_argument("--python", default=speed.ROOT / ".bench/bin/python", help="the peers' Python")
    p.add_argument("--model", default=speed.ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--rows", default=speed.ROOT / "datasets/icd10/train.jsonl", type=Path)
    p.add_argument("--test", default=speed.ROOT / "datasets/icd10/test.jsonl", type=Path)
    p.add_argument("--threads", type=int, default=speed.os.cpu_count())
    p.add_argument("--device", default="cpu")
    args = p.parse_args()
    args.model = args.model.resolve()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        case = {"name": "medical", "method": "lora", "batch": 8, "packed": None, "lr": 5e-4, "shuffle": True}
        with open(args.rows) as f:
            case["steps"] = -(-sum(1 for _ in f) // case["batch"])
        rows = speed.rows_for(case, args.rows, folder)
        print("| | seconds of training | whole command | exact match, held-out | loss, held-out | products |")
        print("|---|---|---|---|---|---|")
        times = {}
        for side, run, saved in (("ft", speed.run_ft, folder / "ft"), ("TRL + PEFT", speed.run_peer, folder / "trl")):
            rate = speed.product_rate(args.python, args.threads)
            case["save"] = str(saved)
            result = run(args, case, rows, folder / side.split()[0].lower())
            found = accuracy(args, saved)
            times[side] = result["train"]
            print(
                f"| {side} | {result['train']:.0f} | {result['wall']:.0f} | {found['exact_match']:.3f} "
                f"| {found['loss']:.4f} | {rate:.0f} GFLOP/s |",
                flush=True,
            )
        print(f"\nTime of training, ft to TRL + PEFT: {times['ft'] / times['TRL + PEFT']:.2f}")


if __name__ == "__main__":
    main()
