#!/usr/bin/env python3
"""A judge for `ft label judge --command`: which of two answers names the right ICD-10-CM chapter.

    ft label judge PROJECT --name right-chapter --command python3 datasets/judge_icd10.py datasets/icd10/train.jsonl

It reads {"prompt": [...], "a": text, "b": text} a line and prints a, b, tie or both_bad a line. The right answers are those
of the rows that the prompts came from. The exact title is best, the title within more words is second; of other answers
the one with more of the title's words and fewer of others is better, and two without any of them are both bad.
Python's standard library only.
"""

import json
import sys


# Words that many titles share: naming them names no chapter.
COMMON = set("diseases of the and certain other conditions disorders in not elsewhere classified with".split())


def grade(answer, right):
    """3: nothing but the title; 2: the title among other words; below 1: Jaccard's index of what words say."""
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
