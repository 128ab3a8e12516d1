#!/usr/bin/env python3
"""Prints the results of `make demo-labeling`: votes and agreement of the judges, and accuracy of the reward model."""

import json
import sys

report, card = (json.load(open(path)) for path in sys.argv[1:3])
verdicts = ", ".join(f"{name} {n}" for name, n in report["verdicts"].items())
print(f"\n  {report['counts']['pairs']} pairs judged by {', '.join(report['judged_by'])}: {verdicts}")
for source in report["ranking"]["sources"]:
    strength = source["bradley_terry"]
    low, high = strength["interval"] or (float("nan"),) * 2
    print(f"  {source['source']:8} strength {strength['value']:.0f} (95 % {low:.0f} to {high:.0f}),"
          f" {source['wins']} wins, {source['losses']} losses")
for judge in report["judges"]:
    if judge["with_verdicts"]:
        same, order = judge["with_verdicts"]["same"]["share"], judge["order"]
        print(f"  {judge['name']} agrees with the verdict in {same:.3f} of {judge['with_verdicts']['pairs']} pairs,"
              f" and changes its vote with the order in {order['flipped']['share']:.3f}")
low, high = card["accuracy"]["interval"]
length = max(card["length"]["longer_wins"], card["length"]["shorter_wins"])
print(f"  reward model: correct on {card['accuracy']['share']:.3f} of {card['pairs']} held-out pairs"
      f" (95 % {low:.3f} to {high:.3f}), {length:.3f} by length alone")
print(f"\n  report: {sys.argv[3]}\n")
