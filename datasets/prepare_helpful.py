#!/usr/bin/env python3
"""Makes preference pairs from the ICD-10 chapter task: train.jsonl and valid.jsonl for a reward model.

    prepare_helpful.py datasets/icd10 --out datasets/helpful [--pairs 1] [--valid-pairs 2]

A helpful answer is right and says nothing else: the chosen answer is the chapter's title. The rejected one is another
chapter's title, the right or another chapter within a polite sentence, the right title cut short, or an evasion. The
kind and the words are chosen by SHA-256 sums of the descriptions: the same rows give the same pairs on every machine.
The kinds are mixed so that length predicts little: the script prints how often the longer and the shorter answer is
chosen.

The card is datasets/helpful.md. Python's standard library only.
"""

import argparse
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

WRAPPINGS = [
    "This diagnosis belongs to the ICD-10-CM chapter \"{}\".",
    "Sure! The diagnosis you gave belongs to the chapter {}. I hope this helps!",
    "{} is the chapter that this diagnosis belongs to. Please note that I am not a doctor.",
    "The answer is: {}. Let me know if you have any further questions.",
    "The ICD-10-CM chapter for this diagnosis is {}, which covers a range of related conditions.",
    "That is a good question. The diagnosis belongs to {}.",
]
EVASIONS = [
    "I am not sure.",
    "That depends on the patient.",
    "Please ask a doctor.",
    "There are many chapters in ICD-10-CM.",
    "I cannot answer that.",
    "It could be one of several chapters.",
]
KINDS = ["another chapter"] * 5 + ["talk"] * 2 + ["talk, another chapter", "broken off", "evasion"]


def number(*parts):
    """Returns a pseudo-random number that depends on `parts` only."""
    return int(hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:15], 16)


def rejected(description, title, titles, i):
    """Returns a worse answer to a description, and the kind of its fault."""
    kind = KINDS[number("kind", description, i) % len(KINDS)]
    others = [t for t in titles if t != title]
    other = others[number("other", description, i) % len(others)]
    pick = lambda choices: choices[number("words", description, i) % len(choices)]  # noqa: E731
    if kind == "another chapter":
        return other, kind
    if kind == "talk":
        return pick(WRAPPINGS).format(title), kind
    if kind == "talk, another chapter":
        return pick(WRAPPINGS).format(other), kind
    words = title.split()
    if kind == "broken off" and len(words) > 1:
        return " ".join(words[: 1 + number("words", description, i) % (len(words) - 1)]), kind
    return pick(EVASIONS), "evasion"


def turn(role, content):
    return {"role": role, "content": content}


def pairs(rows, titles, each):
    made, kinds, lengths = [], Counter(), Counter()
    for row in rows:
        question, title = (m["content"] for m in row["messages"])
        seen = {title}
        for i in range(each * 8):
            if len(seen) > each:
                break
            worse, kind = rejected(question, title, titles, i)
            if worse in seen:
                continue
            seen.add(worse)
            kinds[kind] += 1
            lengths["longer" if len(title) > len(worse) else "shorter" if len(title) < len(worse) else "equal"] += 1
            made.append({
                "prompt": [turn("user", question)],
                "chosen": [turn("assistant", title)],
                "rejected": [turn("assistant", worse)],
            })  # fmt: skip
    made.sort(key=lambda pair: number("order", json.dumps(pair)))
    return made, kinds, lengths


def write(path, text):
    """Writes a file under a temporary name and renames it, so that a reader never sees a half-written file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("icd10", type=Path, help="folder with train.jsonl and valid.jsonl of the ICD-10 task")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1, help="pairs per training row (default 1)")
    parser.add_argument("--valid-pairs", type=int, default=2, help="pairs per validation row (default 2)")
    args = parser.parse_args()
    rows = {
        name: [json.loads(line) for line in (args.icd10 / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "valid")
    }
    titles = sorted({row["messages"][1]["content"] for row in rows["train"]})
    args.out.mkdir(parents=True, exist_ok=True)
    for name, each in (("train", args.pairs), ("valid", args.valid_pairs)):
        made, kinds, lengths = pairs(rows[name], titles, each)
        write(args.out / f"{name}.jsonl", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in made))
        share = lambda n: f"{n / len(made):.3f}"  # noqa: E731
        print(f"{args.out}/{name}.jsonl: {len(made)} pairs")
        print("  rejected: " + ", ".join(f"{kind} {share(n)}" for kind, n in sorted(kinds.items())))
        print("  the chosen answer is " + ", ".join(f"{word} in {share(n)}" for word, n in sorted(lengths.items())))


if __name__ == "__main__":
    main()
