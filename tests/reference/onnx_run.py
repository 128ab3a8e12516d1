"""Runs exported models in ONNX Runtime: cached decoding of a padded batch, greedy answers.

    python onnx_run.py CASES.json     {"cases": [{"folder": DIR, "rows": [[ids]], "cached": N, "out": FILE}]}

Of each case, all rows but their last N tokens are computed together, padded on the left, and then the last N one after another, with
the keys and values of earlier tokens. FILE gets the logits after every token of every row, one after another, in float32.
Needs onnxruntime and numpy only.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder:
    """An exported model with the keys and values of the tokens that it has read."""

    def __init__(self, folder, threads=1):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.names = {port.name for port in self.session.get_inputs()}
        self.past_ports = [port for port in self.session.get_inputs() if port.name.startswith("past_key_values.")]
        self.past = None

    def read(self, ids, mask):
        """Returns the logits (batch, new tokens, vocabulary). ids: the new tokens of each sequence; mask: 1 for each token so far that
        is no padding."""
        ids, mask = np.asarray(ids, np.int64), np.asarray(mask, np.int64)
        if self.past is None:
            empty = lambda port: np.zeros((len(ids), port.shape[1], 0, port.shape[3]), TYPES[port.type])
            self.past = {port.name: empty(port) for port in self.past_ports}
        feed = {"input_ids": ids, "attention_mask": mask, **self.past}
        if "position_ids" in self.names:
            feed["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        outputs = [port.name for port in self.session.get_outputs()]
        found = dict(zip(outputs, self.session.run(outputs, feed)))
        self.past = {name: found[name.replace("past_key_values", "present")] for name in self.past}
        return found["logits"]


def padded(rows):
    """Returns rows of one length, padded on the left, and their mask."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return ids, mask


def logits(folder, rows, cached):
    """Returns the logits after every token of each row: (tokens, vocabulary) each."""
    decoder = Decoder(folder)
    ids, mask = padded([row[: len(row) - cached] for row in rows])
    first = decoder.read(ids, mask)
    found = [[first[i, len(ids[0]) - (len(row) - cached) :]] for i, row in enumerate(rows)]
    for step in range(cached):
        mask = [line + [1] for line in mask]
        new = decoder.read([[row[len(row) - cached + step]] for row in rows], mask)
        for i in range(len(rows)):
            found[i].append(new[i])
    return [np.concatenate(parts) for parts in found]


def greedy(folder, prompt, count, threads=1, stops=()):
    """Returns the most likely tokens after a prompt, one after another, until one of `stops`."""
    decoder, made = Decoder(folder, threads), []
    new, mask = prompt, [1] * len(prompt)
    while len(made) < count:
        made.append(int(decoder.read([new], [mask])[0, -1].argmax()))
        if made[-1] in stops:
            break
        new, mask = made[-1:], mask + [1]
    return made


def main():
    for case in json.loads(Path(sys.argv[1]).read_text())["cases"]:
        found = logits(case["folder"], case["rows"], case["cached"])
        np.concatenate(found).astype("<f4").tofile(case["out"])


if __name__ == "__main__":
    main()
