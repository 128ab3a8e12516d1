#!/usr/bin/env python3
"""Writes tests/fixtures/agreement.json: agreement, aggregation and ranking by their reference implementations.

    pip install krippendorff==0.9.0 scikit-learn==1.9.1 statsmodels==0.15.0 crowd-kit==1.4.2 choix==0.4.1
    python tests/reference/make_agreement.py

Published examples: Krippendorff's four observers and twelve units ("Computing Krippendorff's Alpha-Reliability", 2011),
the psychiatric diagnoses of Fleiss (1971, table 1; kappa 0.430) and the worked example of fourteen raters and ten
subjects that is often shown (kappa 0.210). The others are sampled with a fixed seed.
"""

import json
import math
import random
from importlib.metadata import version
from pathlib import Path

import choix
import krippendorff
import numpy as np
import pandas as pd
from crowdkit.aggregation import DawidSkene
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

OUT = Path(__file__).parent.parent / "fixtures" / "agreement.json"

KRIPPENDORFF = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""

FLEISS_1971 = """
0 0 0 6 0 | 0 3 0 0 3 | 0 1 4 0 1 | 0 0 0 0 6 | 0 3 0 3 0 | 2 0 4 0 0 | 0 0 4 0 2 | 2 0 3 1 0 | 2 0 0 4 0 | 0 0 0 0 6
1 0 0 5 0 | 1 1 0 4 0 | 0 3 3 0 0 | 1 0 0 5 0 | 0 2 0 3 1 | 0 0 5 0 1 | 3 0 0 1 2 | 5 1 0 0 0 | 0 2 0 4 0 | 1 0 2 0 3
0 0 0 0 6 | 0 1 0 5 0 | 0 2 0 1 3 | 2 0 0 4 0 | 1 0 0 4 1 | 0 5 0 1 0 | 4 0 0 0 2 | 0 2 0 4 0 | 1 0 5 0 0 | 0 0 0 0 6
"""

FOURTEEN_RATERS = """
0 0 0 0 14 | 0 2 6 4 2 | 0 0 3 5 6 | 0 3 9 2 0 | 2 2 8 1 1 | 7 7 0 0 0 | 3 2 6 3 0 | 2 5 3 2 2 | 6 5 2 1 0 | 0 2 2 3 7
"""


def counts(text):
    return [[int(n) for n in row.split()] for line in text.strip().splitlines() for row in line.split("|")]


def alphas(rows):
    """Computes alpha for each scale. One row per rater, one column per unit; None is a missing rating."""
    data = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float)
    scales = {"nominal": "nominal", "ordinal": "ordinal", "interval": "interval"}
    return {name: float(krippendorff.alpha(reliability_data=data, level_of_measurement=scale)) for name, scale in scales.items()}


def drawn(seed, raters, units, values, noise, missing):
    chance = random.Random(seed)
    rows = [[] for _ in range(raters)]
    for _ in range(units):
        truth = chance.choice(values)
        for row in rows:
            if chance.random() < missing:
                row.append(None)
            else:
                row.append(chance.choice(values) if chance.random() < noise else truth)
    return rows


def table(name, rows):
    cohen = []
    for a in range(len(rows)):
        for b in range(a + 1, len(rows)):
            both = [(x, y) for x, y in zip(rows[a], rows[b]) if x is not None and y is not None]
            # scikit-learn accepts class labels, not real numbers.
            left, right = ([str(v) for v in side] for side in zip(*both))
            cohen.append({"a": a, "b": b, "units": len(both), "kappa": float(cohen_kappa_score(left, right))})
    return {"name": name, "rows": rows, "alpha": alphas(rows), "cohen": cohen}


def dawid_skene(name, votes):
    """Votes are (unit, rater, label); the classes are sorted."""
    frame = pd.DataFrame(votes, columns=["task", "worker", "label"])
    model = DawidSkene(n_iter=5000, tol=-1.0)
    found = model.fit_predict_proba(frame)
    classes = sorted(frame.label.unique().tolist())
    return {
        "name": name,
        "votes": votes,
        "classes": classes,
        "posterior": [[float(found.loc[u, c]) for c in classes] for u in sorted(frame.task.unique().tolist())],
        "prior": [float(model.priors_[c]) for c in classes],
    }


def crowd(seed, skill, classes):
    """Simulates raters who are right with the probability in `skill`; 120 units, a fifth of the ratings missing."""
    chance = random.Random(seed)
    votes = []
    for unit in range(120):
        truth = chance.choices(range(classes), [0.5, 0.3, 0.2][:classes])[0]
        for rater, right in enumerate(skill):
            if chance.random() < 0.2 and rater > 0:
                continue
            label = truth if chance.random() < right else chance.choice([c for c in range(classes) if c != truth])
            votes.append((unit, rater, label))
    return votes


def bradley_terry(name, models, outcomes, deviation):
    """Outcomes are (winner, loser, times); the prior is a Gaussian of mean 0."""
    data = [(w, l) for w, l, n in outcomes for _ in range(n)]
    # choix' penalty is `alpha |theta|^2`, a Gaussian of variance 1 / (2 alpha).
    alpha = 1 / (2 * deviation**2)
    found = choix.opt_pairwise(models, data, alpha=alpha, method="BFGS", tol=1e-10)
    return {"name": name, "models": models, "outcomes": outcomes, "deviation": deviation, "strengths": [float(x) for x in found]}


def main():
    parse = lambda v: None if v == "." else int(v)  # noqa: E731
    published = [[parse(v) for v in line.split()] for line in KRIPPENDORFF.strip().splitlines()]
    tables = [
        table("Krippendorff 2011", published),
        table("two raters, three values", drawn(1, 2, 40, [-1, 0, 1], 0.4, 0.0)),
        table("five raters, missing", drawn(2, 5, 60, [-3, -2, -1, 0, 1, 2, 3], 0.5, 0.4)),
        table("three raters, no agreement", drawn(3, 3, 30, [0, 1, 5, 20], 1.0, 0.1)),
    ]
    fleiss = [
        {"name": name, "counts": c, "kappa": float(fleiss_kappa(np.array(c)))}
        for name, c in [("Fleiss 1971", counts(FLEISS_1971)), ("fourteen raters", counts(FOURTEEN_RATERS))]
    ]
    chance = random.Random(4)
    strengths = [0.0, 0.5, 1.2, -0.7]
    drawn_outcomes = {}
    for _ in range(400):
        i, j = chance.sample(range(4), 2)
        won = chance.random() < 1 / (1 + math.exp(strengths[j] - strengths[i]))
        key = (i, j) if won else (j, i)
        drawn_outcomes[key] = drawn_outcomes.get(key, 0) + 1
    rankings = [
        bradley_terry("drawn", 4, [(w, l, n) for (w, l), n in sorted(drawn_outcomes.items())], 10.0),
        bradley_terry("one wins all", 3, [(0, 1, 5), (0, 2, 5), (1, 2, 3), (2, 1, 2)], 10.0),
    ]
    packages = ["krippendorff", "scikit-learn", "statsmodels", "crowd-kit", "choix", "numpy"]
    found = {
        "versions": {p: version(p) for p in packages},
        "tables": tables,
        "fleiss": fleiss,
        "dawid_skene": [
            dawid_skene("three classes", crowd(5, [0.92, 0.8, 0.7, 0.45], 3)),
            dawid_skene("two classes, one rater mostly wrong", crowd(6, [0.9, 0.85, 0.8, 0.2], 2)),
        ],
        "bradley_terry": rankings,
    }
    OUT.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    for t in tables:
        print(t["name"], t["alpha"])
    print([(f["name"], f["kappa"]) for f in fleiss], [r["strengths"] for r in rankings])


if __name__ == "__main__":
    main()
