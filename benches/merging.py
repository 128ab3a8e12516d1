"""Compares the time and the memory of merging whole models in ft and in mergekit, on the same number of cores.

    python benches/merging.py --mergekit python   # a Python that has mergekit 0.1.5; without it ft alone is measured

Models of TinyLlama-1.1B's shape with random bfloat16 weights, whose changes of a base are random, too. The programs merge them in
turn, several times, pinned to the same cores and with as many threads. Medians are printed: of seconds, of the seconds that the
processors worked, of peaks of resident memory (mergekit maps its inputs, ft reads them), and of the ratio of the seconds of each
pair of runs. Takes about 10 GB of disk while it runs.
"""

import argparse
import json
import os
import random
import shutil
import statistics
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


def measured(command, folder, threads):
    """Runs a command on the first cores. Returns its seconds, those of the processors, and its peak of resident memory in bytes."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | {name: str(threads) for name in variables}
    pin = lambda: os.sched_setaffinity(0, range(threads))  # noqa: E731
    started = time.time()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, preexec_fn=pin)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command}\n{(folder / 'log').read_text()}")
    return time.time() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ft", default=ROOT / "target/release/ft")
    parser.add_argument("--mergekit", help="a Python that has mergekit")
    parser.add_argument("--shape", default="TinyLlama-1.1B", choices=random_model.SHAPES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="number of cores, and of threads")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--folder", type=Path, help="where the models are, or are made and left; else in a temporary folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    programs = {"ft": [str(Path(arguments.ft).resolve()), "merge", "merge.yaml", "--out", "out"]}
    if arguments.mergekit:
        run = "from mergekit.scripts.run_yaml import main; main()"
        programs["mergekit"] = [arguments.mergekit, "-c", run, "merge.yaml", "out", "--no-write-model-card", "--quiet"]
    largest = max(2 * size[0] * size[-1] for _, size in random_model.tensors(random_model.SHAPES[arguments.shape]))
    print(f"{arguments.shape}: {random_model.bytes_of(arguments.shape) / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        base = random_model.make(arguments.shape, folder / "base")
        for seed, name in enumerate(["one", "two"]):
            if not (folder / name).exists():
                changed(base, folder / name, seed)
        for case in arguments.cases:
            (folder / "merge.yaml").write_text(CASES[case])
            runs = {program: [] for program in programs}
            for _ in range(arguments.repeats):
                for program, command in programs.items():
                    runs[program].append(measured(command, folder, arguments.threads))
                    shutil.rmtree(folder / "out")
            for program, times in runs.items():
                seconds, busy, peak = (statistics.median(column) for column in zip(*times))
                print(f"{case:16} {program:9} {seconds:7.1f} s {busy:7.1f} s busy {peak / 1e6:8.0f} MB", flush=True)
                found.append(dict(case=case, program=program, seconds=seconds, busy=busy, peak=peak, runs=times))
            if len(runs) == 2:
                ratios = [theirs[0] / ours[0] for ours, theirs in zip(*runs.values())]
                print(f"{case:16} ft is {statistics.median(ratios):.2f} times as fast as mergekit ({sorted(ratios)})", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
