#!/usr/bin/env python3
"""Judges which of two answers names the right ICD-10-CM chapter, for `ft label judge --command`.

    ft label judge PROJECT --name right-chapter --command python3 datasets/judge_icd10.py datasets/icd10/train.jsonl

Reads lines of {"prompt": [...], "a": text, "b": text} and prints a, b, tie, both_bad or skip for each. The right
answers are those of the given rows; a prompt that is not among them is skipped. The exact title is best, the title
among other words second. Of other answers the one with more of the title's words and fewer others is better; two
without any of them are both bad. Python's standard library only.
"""

import json
import sys


# Words that many titles share, so they do not identify a chapter.
COMMON = set("diseases of the and certain other conditions disorders in not elsewhere classified with".split())


def grade(answer, right):
    """Returns 3 for the title alone, 2 for the title among other words, else the Jaccard index of the words (at most
    1)."""
    plain = " ".join(answer.lower().split()).strip(" .\"'")
    right = " ".join(right.lower().split())
    if right in plain:
        return 3 if plain == right else 2
    said, wanted = ({w.strip(".,;:") for w in text.split()} - COMMON for text in (plain, right))
    return len(said & wanted) / len(said | wanted) if said | wanted else 0


def main():
    answers = {}
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as rows:
            for row in map(json.loads, rows):
                *asked, answer = row["messages"]
                answers[json.dumps([[m["role"], m["content"]] for m in asked])] = answer["content"]
    for row in map(json.loads, sys.stdin):
        right = answers.get(json.dumps([[m["role"], m["content"]] for m in row["prompt"]]))
        if right is None:
            print("skip")
            continue
        a, b = grade(row["a"], right), grade(row["b"], right)
        print("both_bad" if a == b == 0 else "tie" if a == b else "a" if a > b else "b")


if __name__ == "__main__":
    main()
