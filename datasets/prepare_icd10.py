#!/usr/bin/env python3
"""Makes the ICD-10 chapter task from the ICD-10-CM tabular list: train.jsonl, valid.jsonl, test.jsonl.

    prepare_icd10.py TABULAR.xml --out DIR [--train 60] [--valid 5] [--test 5] [--held-out 0] [--more 0]
                     [--prompts 0] [--by-family]

A row is a conversation: the question with one diagnosis, and the title of its chapter without the code range. The
diagnoses are the leaves of the list; chapters with fewer than --least of them are left out; every other chapter gives
the same number of rows to each split. The rows and their order are chosen by SHA-256 sums of the descriptions: the same
list gives the same files on every machine. No description is in two splits, ignoring case. With --by-family
descriptions that differ only after their last comma or in the side of the body ("…, right eye", "…, left eye") go to
one split together. With --held-out, --more and --prompts further splits, held_out.jsonl, more.jsonl and prompts.jsonl,
get rows from the remaining ones, so the first three splits do not change. Rows of prompts.jsonl have no answer; a small
chapter may have fewer of them than requested.

The card is datasets/icd10.md. Python's standard library only.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

# Optional splits, filled after the first three, in this order.
FURTHER = ["held_out", "more", "prompts"]
QUESTION = "Which ICD-10-CM chapter does this diagnosis belong to?\n\n"


def order(text):
    """Returns the sort key of a description: a pseudo-random order that is the same on every machine."""
    return hashlib.sha256(text.casefold().encode()).hexdigest()


def family(description):
    """Returns what siblings share: the description up to its last comma, without the side of the body."""
    stem = description.casefold().rpartition(",")[0] or description.casefold()
    return " ".join(re.sub(r"\b(right|left|bilateral|unspecified)\b", " ", stem).split())


def leaves(path):
    """Returns the diagnoses without subdivisions, by chapter: {title: [description, …]}, without duplicates in the
    whole list."""
    chapters, seen = {}, set()
    for chapter in ET.parse(path).getroot().iter("chapter"):
        title = re.sub(r"\s*\([A-Z0-9]+-[A-Z0-9]+\)$", "", " ".join(chapter.findtext("desc", "").split()))
        found = chapters.setdefault(title, [])
        for diagnosis in chapter.iter("diag"):
            description = " ".join(diagnosis.findtext("desc", "").split())
            if diagnosis.find("diag") is None and description and description.casefold() not in seen:
                seen.add(description.casefold())
                found.append(description)
    return chapters


def split(descriptions, sizes, by_family):
    """Distributes descriptions to the splits, the smallest first; with by_family, a family stays in one split."""
    groups = {}
    for description in descriptions:
        groups.setdefault(family(description) if by_family else description, []).append(description)
    queue = [sorted(groups[key], key=order) for key in sorted(groups, key=order)]
    dealt = {}
    for name in sorted(sizes, key=lambda name: (FURTHER.index(name) + 1 if name in FURTHER else 0, sizes[name])):
        dealt[name] = []
        while len(dealt[name]) < sizes[name] and queue:
            # Members of a family that exceed the split's size are left out of all splits.
            dealt[name] += queue.pop(0)[: sizes[name] - len(dealt[name])]
    return dealt


def row(description, title, name):
    asked = {"role": "user", "content": QUESTION + description}
    if name == "prompts":
        return {"prompt": [asked]}
    return {"messages": [asked, {"role": "assistant", "content": title}]}


def write(path, text):
    """Writes a file under a temporary name and renames it, so that a reader never sees a half-written file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tabular", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=60, help="rows per chapter (default 60)")
    parser.add_argument("--valid", type=int, default=5, help="rows per chapter (default 5)")
    parser.add_argument("--test", type=int, default=5, help="rows per chapter (default 5)")
    parser.add_argument("--held-out", type=int, default=0, help="rows per chapter of a fourth split, for narrow confidence intervals (default 0)")
    parser.add_argument("--more", type=int, default=0, help="rows per chapter of a fifth split, additional training rows (default 0)")
    parser.add_argument("--prompts", type=int, default=0, help="rows per chapter, at most, of a split without answers (default 0)")
    parser.add_argument("--least", type=int, default=200, help="leave out chapters with fewer diagnoses (default 200)")
    parser.add_argument("--by-family", action="store_true", help="keep siblings in one split")
    args = parser.parse_args()

    sizes = {"test": args.test, "valid": args.valid, "train": args.train}
    sizes |= {name: getattr(args, name) for name in FURTHER if getattr(args, name)}
    splits = {name: [] for name in sizes}
    chapters = leaves(args.tabular)
    kept = {title: found for title, found in chapters.items() if len(found) >= args.least}
    if not kept:
        sys.exit(f"error: {args.tabular}: no chapter with {args.least} diagnoses or more; is it the ICD-10-CM tabular list?")
    for title, descriptions in kept.items():
        for name, dealt in split(descriptions, sizes, args.by_family).items():
            if len(dealt) < sizes[name] and name != "prompts":
                sys.exit(f"error: chapter {title!r} has too few diagnoses for {sizes[name]} {name} rows")
            splits[name] += [(description, title) for description in dealt]

    args.out.mkdir(parents=True, exist_ok=True)
    total = sum(map(len, chapters.values()))
    print(f"{total} diagnoses in {len(chapters)} chapters, {len(kept)} of them with {args.least} or more")
    for name, rows in splits.items():
        rows.sort(key=lambda pair: order(pair[0]))
        lines = (json.dumps(row(*pair, name), ensure_ascii=False, sort_keys=True) for pair in rows)
        write(args.out / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"{args.out}/{name}.jsonl: {len(rows)} rows")
    trained = {family(description) for description, _ in splits["train"]}
    siblings = sum(family(description) in trained for description, _ in splits["test"])
    print(f"{siblings} of {len(splits['test'])} test rows have a sibling in train (equal except for the side or the part after the last comma)")


if __name__ == "__main__":
    main()
