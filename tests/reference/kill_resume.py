"""Kills runs of the tiny model with SIGKILL at random moments, resumes each, and compares the results with a full run.

    python tests/reference/kill_resume.py [--ft target/release/ft] [--kills 20] [--seed 7]

Needs only Python's standard library and a built ft. The run uses LoRA with dropout, NEFTune and averaged weights. It saves
after every step, so that many kills hit a save. The final adapter must have the same bytes as that of an uninterrupted
run, and metrics.jsonl the same numbers. Prints one line per kill; exit code 1 if one differs.
"""

import argparse
import hashlib
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = """
model:   { path: model, dtype: f32, device: cpu }
method:  { sft: {} }
adapter: { lora: { rank: 8, dropout: 0.1 } }
data:    { train: { path: train.jsonl }, valid: { path: valid.jsonl } }
batch:   { tokens: 2048, max_len: 512, examples: 6 }
optim:   { lr: 1e-3, weight_decay: 0.1, ema: 0.9, neftune: 5 }
run:     { epochs: 12, eval_every: 7, save_every: 1, threads: 1, out: OUT }
"""


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ft", default=str(ROOT / "target/release/ft"))
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=7)
    options = options.parse_args()
    ft = str(pathlib.Path(options.ft).resolve())
    with tempfile.TemporaryDirectory() as space:
        space = pathlib.Path(space)
        (space / "model").mkdir()
        for part in ("tiny-llama", "tiny-tokenizer"):
            for file in (ROOT / "tests/fixtures" / part).iterdir():
                if file.suffix != ".py":
                    shutil.copy(file, space / "model")
        rows = (ROOT / "datasets/chat.jsonl").read_text().splitlines()
        (space / "train.jsonl").write_text("\n".join(rows[:24]))
        (space / "valid.jsonl").write_text("\n".join(rows[24:28]))
        sys.exit(trial(ft, space, options))


def trial(ft, space, options):
    def recipe(out):
        (space / f"{out}.yaml").write_text(RECIPE.replace("OUT", out))
        return [ft, "train", f"{out}.yaml"]

    def finish(command, out):
        done = subprocess.run(command, cwd=space, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        adapter = hashlib.sha256((space / out / "adapter_model.safetensors").read_bytes()).hexdigest()
        return adapter, numbers(space / out / "metrics.jsonl"), done.stderr

    began = time.monotonic()
    adapter, metrics, _ = finish(recipe("straight"), "straight")
    life = time.monotonic() - began
    print(f"uninterrupted: {len(metrics)} lines of metrics, adapter sha256 {adapter[:16]}, {life:.2f} s")
    random.seed(options.seed)
    wrong = 0
    for kill in range(1, options.kills + 1):
        out, moment = f"killed-{kill}", random.uniform(0, life)
        run = subprocess.Popen(recipe(out), cwd=space, stderr=subprocess.DEVNULL)
        time.sleep(moment)
        run.kill()
        ended = run.wait() == 0
        folder = space / out / "checkpoints"
        names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        steps = sorted(int(n[5:]) for n in names if n.startswith("step-"))
        half = [n for n in names if n.startswith(".step-")]
        where = "had ended" if ended else f"step {steps[-1]} saved" if steps else "nothing saved"
        where += f", {len(half)} half-done" if half else ""
        started = (space / out / "plan.json").exists()
        again, numbers_again, said = finish([ft, "resume", out] if started else recipe(out), out)
        left = [p.name for p in (space / out / "checkpoints").iterdir() if not p.name.startswith("step-")]
        verdict = "same bytes, same metrics"
        if again != adapter or numbers_again != metrics or left or "damaged" in said:
            wrong += 1
            verdict = f"DIFFERS: adapter {again[:16]}, metrics equal {numbers_again == metrics}, left {left}"
        print(f"kill {kill:2d} at {moment:5.2f} s ({where}): {'resumed' if started else 'started anew'}, {verdict}", flush=True)
    print(f"{options.kills - wrong} of {options.kills} give the result of the uninterrupted run")
    return int(wrong > 0)


def numbers(path):
    """Returns the lines of metrics.jsonl without times, speed and memory, which differ from run to run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timeless = lambda line: {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s", "memory")}
    return [timeless(line) for line in lines]


if __name__ == "__main__":
    main()
