#!/usr/bin/env python3
"""Prints the results of `make demo-rlhf`: the reward model's report card, and rewards before and after PPO on held-out
prompts."""

import json
import sys

card, found = (json.load(open(path)) for path in sys.argv[1:3])
base, policy = sys.argv[3:5]
low, high = card["accuracy"]["interval"]
length = max(card["length"]["longer_wins"], card["length"]["shorter_wins"])
print(f"\n  reward model: correct on {card['accuracy']['share']:.3f} of {card['pairs']} held-out pairs"
      f" (95 % {low:.3f} to {high:.3f}), {length:.3f} by length alone")
low, high = found["interval"]
print(f"  PPO, {found['prompts']} held-out prompts: mean reward {found['reward_before']:.3f} -> {found['reward_after']:.3f},"
      f" {found['difference']:+.3f} (95 % {low:+.3f} to {high:+.3f})")
print(f"  win rate {found['win_rate']:.3f}: {found['better']} better, {found['worse']} worse")
for sample in found["samples"][:3]:
    print("\n  " + sample["asked"][-100:])
    for when in ("before", "after"):
        answer = sample[when]
        print(f"    {when:6} {answer['reward']:+.2f}  {' '.join(answer['text'].split())[:90]}")
print(f"\n  the policy is in {policy}; talk to it with:")
print(f"  target/release/ft chat --model {base} --adapter {policy}\n")
