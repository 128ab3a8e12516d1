#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own reader and compares them with metrics.jsonl.

    pip install tensorboard "setuptools<81"        # tensorboard 2.21.0 when this was written
    python tests/reference/check_tensorboard.py RUN
"""

import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

run = pathlib.Path(sys.argv[1])
folders = [p for p in (run / "runs").iterdir() if p.is_dir()]
assert len(folders) == 1, folders
board = EventAccumulator(str(folders[0]), size_guidance={"scalars": 0, "tensors": 0})
board.Reload()

lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
steps = [line for line in lines if "loss" in line]
evals = [line for line in lines if "eval_loss" in line]


def series(tag):
    if tag in board.Tags()["scalars"]:
        return [(e.step, e.value) for e in board.Scalars(tag)]
    return [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in board.Tensors(tag)]


def compare(tag, rows, key):
    found = series(tag)
    assert [s for s, _ in found] == [r["step"] for r in rows], f"{tag}: steps {[s for s, _ in found]}"
    for (step, value), row in zip(found, rows):
        expected = float(row[key])
        same = math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-4 if key == "epoch" else 0.0) or (math.isnan(value) and math.isnan(expected))
        assert same, f"{tag}, step {step}: {value}, metrics.jsonl has {expected}"


for tag, key in [
    ("train/loss", "loss"),
    ("train/learning_rate", "lr"),
    ("train/grad_norm", "grad_norm"),
    ("train/epoch", "epoch"),
]:
    compare(tag, steps, key)
if evals:
    compare("eval/loss", evals, "eval_loss")
texts = [t for t in board.Tags()["tensors"] if t.endswith("/text_summary")]
assert sorted(texts) == ["args/text_summary", "model_config/text_summary"], texts
args = tensor_util.make_ndarray(board.Tensors("args/text_summary")[0].tensor_proto)[0].decode()
assert "model:" in args, args
files = len(list(folders[0].iterdir()))
print(f"{len(steps)} steps and {len(evals)} validations in {files} event files agree; tags: {sorted(board.Tags()['scalars'])}")
