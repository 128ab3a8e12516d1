"""Compares the time and the memory of merging whole models in ft and in mergekit, on one thread each.

    python benches/merging.py --mergekit python   # a Python that has mergekit 0.1.5; without it ft alone is measured

Models of TinyLlama-1.1B's shape with random bfloat16 weights, whose changes of a base are random, too. Each program merges them in
turn, several times, and the fastest run counts: its seconds, and those that the processor worked for it. Peaks are those of resident memory; mergekit maps its inputs, ft reads them. Takes
about 10 GB of disk while it runs.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import random_model

ROOT = Path(__file__).resolve().parent.parent
MODELS = "models: [{model: one, parameters: {weight: 0.6}}, {model: two, parameters: {weight: 0.4}}]\n"
CASES = {
    "linear": f"merge_method: linear\n{MODELS}dtype: bfloat16\n",
    "slerp": "merge_method: slerp\nbase_model: one\nmodels: [{model: one}, {model: two}]\nparameters: {t: 0.4}\ndtype: bfloat16\n",
    "task_arithmetic": f"merge_method: task_arithmetic\nbase_model: base\n{MODELS}dtype: bfloat16\n",
    "ties": f"merge_method: ties\nbase_model: base\n{MODELS}parameters: {{density: 0.5}}\ndtype: bfloat16\n",
    "dare_ties": f"merge_method: dare_ties\nbase_model: base\n{MODELS}parameters: {{density: 0.5}}\ndtype: bfloat16\n",
}


def changed(base, folder, seed):
    """Writes a model whose weights are those of another with the low bits of most entries changed."""
    shutil.copytree(base, folder)
    chance = random.Random(seed)
    noise = bytes(chance.randrange(64) for _ in range(1 << 20))
    with open(folder / "model.safetensors", "r+b") as f:
        start = 8 + int.from_bytes(f.read(8), "little")
        size = (folder / "model.safetensors").stat().st_size
        f.seek(start)
        while (at := f.tell()) < size:
            block = f.read(2 << 20)
            low = int.from_bytes(block[0::2], "little") ^ int.from_bytes(noise[: len(block[0::2])], "little")
            mixed = bytearray(block)
            mixed[0::2] = low.to_bytes(len(block[0::2]), "little")
            f.seek(at)
            f.write(mixed)
    return folder


def measured(command, folder):
    """Runs a command on one thread. Returns its seconds, those of the processor, and its peak of resident memory in bytes."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    started = time.time()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | threads, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command}\n{(folder / 'log').read_text()}")
    return time.time() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ft", default=ROOT / "target/release/ft")
    parser.add_argument("--mergekit", help="a Python that has mergekit")
    parser.add_argument("--shape", default="TinyLlama-1.1B", choices=random_model.SHAPES)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    programs = {"ft": [str(Path(arguments.ft).resolve()), "merge", "merge.yaml", "--out", "out"]}
    if arguments.mergekit:
        run = "from mergekit.scripts.run_yaml import main; main()"
        programs["mergekit"] = [arguments.mergekit, "-c", run, "merge.yaml", "out", "--no-write-model-card", "--quiet"]
    largest = max(2 * size[0] * size[-1] for _, size in random_model.tensors(random_model.SHAPES[arguments.shape]))
    print(f"{arguments.shape}: {random_model.bytes_of(arguments.shape) / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        base = random_model.make(arguments.shape, folder / "base")
        for seed, name in enumerate(["one", "two"]):
            changed(base, folder / name, seed)
        for case, text in CASES.items():
            (folder / "merge.yaml").write_text(text)
            best = {}
            for _ in range(arguments.repeats):
                for program, command in programs.items():
                    run = measured(command, folder)
                    shutil.rmtree(folder / "out")
                    best[program] = min(best.get(program, run), run)
            for program, (seconds, busy, peak) in best.items():
                print(f"{case:16} {program:9} {seconds:7.1f} s {busy:7.1f} s busy {peak / 1e6:8.0f} MB", flush=True)
                found.append(dict(case=case, program=program, seconds=seconds, busy=busy, peak=peak))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
