#!/usr/bin/env python3
"""Makes preference pairs from rows with one right answer: train.jsonl, valid.jsonl, test.jsonl.

    prepare_pairs.py datasets/icd10 --out datasets/icd10/pairs

Each row of the splits in the first folder is a conversation that ends in the right answer. Its pair has that answer as
`chosen`, and as `rejected` an answer that is right for other questions. The SHA-256 sum of the question decides which
one, so the same rows give the same files on every machine. Every answer is rejected about as often as it is chosen, so
the answers without the question do not reveal which one is chosen. Python's standard library only.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

SPLITS = ("train", "valid", "test")


def read(path):
    """Returns the (question, answer) of each row; the question is every message before the last one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        messages = json.loads(line)["messages"]
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            sys.exit(f"error: {path}:{number}: the row does not end in an answer")
        rows.append((messages[:-1], messages[-1]["content"]))
    return rows


def other(question, answer, answers):
    """Returns an answer other than the right one, chosen by the question."""
    wrong = [a for a in answers if a != answer]
    place = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()
    return wrong[int.from_bytes(place, "big") % len(wrong)]


def write(path, text):
    """Writes a file under a temporary name and renames it, so that a reader never sees a half-written file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with train.jsonl, valid.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    splits = {name: read(args.folder / f"{name}.jsonl") for name in SPLITS}
    answers = sorted({answer for rows in splits.values() for _, answer in rows})
    if len(answers) < 2:
        sys.exit(f"error: {args.folder}: every row has the same answer, so no other one can be rejected")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        said = lambda content: [{"content": content, "role": "assistant"}]
        pairs = [{"prompt": q, "chosen": said(a), "rejected": said(other(q, a, answers))} for q, a in rows]
        lines = (json.dumps(pair, ensure_ascii=False, sort_keys=True) for pair in pairs)
        write(args.out / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"{args.out}/{name}.jsonl: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
