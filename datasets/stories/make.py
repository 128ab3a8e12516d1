"""Writes train.jsonl and valid.jsonl: short invented stories of an office day, from a few patterns and lists of words.

Run from the root of the repository: python datasets/stories/make.py (standard library only; the same files every time).

A story repeats facts or derives one from another (who forgot what and came back for it, a count that continues, a
colour named again), so that a small model's loss keeps falling after it knows the words.
"""

import json
import random
from pathlib import Path

PEOPLE = "Ada Ben Carla Dov Edda Femi Greta Hugo Ines Jakob Kim Lena Mara Nils Olga Pavel Rosa Sven Tilda Uwe".split()
THINGS = "umbrella scarf hat glove bag book key letter bottle pencil phone watch basket jacket ticket".split()
COLOURS = "red blue green yellow white black brown grey".split()
PLACES = ["the front desk", "the waiting room", "the small kitchen", "the garden", "the long corridor", "the store room",
          "the window", "the stairs"]  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday".split()
WEATHER = ["It rained all morning.", "The sun was shining.", "There was snow on the roof.", "The wind was strong.",
           "It was a quiet morning.", "The street was full of people."]  # fmt: skip
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
ANSWERS = ["Thank you", "How kind of you", "I looked for it everywhere", "I thought that it was gone"]


def lost(r):
    a, b = r.sample(PEOPLE, 2)
    thing, colour, place = r.choice(THINGS), r.choice(COLOURS), r.choice(PLACES)
    return (
        f"On {r.choice(DAYS)} {a} came without the {colour} {thing}. {r.choice(WEATHER)} {b} had found a {colour} {thing} "
        f'at {place} and asked whose it was. "It is mine," said {a}. "{r.choice(ANSWERS)}, {b}." '
        f"Then {a} took the {thing} and went home."
    )


def count(r):
    a = r.choice(PEOPLE)
    n, step = r.randint(1, 5), r.choice([1, 2])
    place = r.choice(PLACES)
    numbers = [NUMBERS[n + i * step] for i in range(4)]
    return (
        f"{a} counted the chairs in {place}. There were {numbers[0]}. Every day {a} carried in {NUMBERS[step]} more. "
        f"On the second day there were {numbers[1]}, on the third day {numbers[2]}, on the fourth day {numbers[3]}. "
        f'"{numbers[3].capitalize()} chairs are enough," said {a}.'
    )


def paint(r):
    a, b = r.sample(PEOPLE, 2)
    old, new = r.sample(COLOURS, 2)
    thing, place = r.choice(["door", "wall", "shelf", "table", "bench", "box"]), r.choice(PLACES)
    return (
        f"The {thing} at {place} was {old}. {a} did not like {old}, and {b} had a pot of {new} paint. {r.choice(WEATHER)} "
        f"They worked until noon. Now the {thing} is {new}, and nobody remembers that it was ever {old}."
    )


def days(r):
    i = r.randrange(4)
    a, b = r.sample(PEOPLE, 2)
    thing = r.choice(THINGS)
    return (
        f'"Can you come on {DAYS[i]}?" asked {a}. "Not on {DAYS[i]}," said {b}, "but the day after." So {b} came on '
        f"{DAYS[i + 1]} and brought a {thing}. {r.choice(WEATHER)} {a} put the {thing} on the shelf beside the others."
    )


def write(path, count_, seed):
    r = random.Random(seed)
    patterns = [lost, count, paint, days]
    lines = [json.dumps({"text": " ".join(r.choice(patterns)(r) for _ in range(r.randint(1, 3)))}) for _ in range(count_)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


here = Path(__file__).parent
write(here / "train.jsonl", 700, 1)
write(here / "valid.jsonl", 60, 2)
