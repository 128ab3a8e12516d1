#!/usr/bin/env python3
"""Prints the results of `make demo`: exact match and perplexity of base model and trained adapter on the same held-out
rows."""

import json
import sys

before, after = (json.load(open(path)) for path in sys.argv[1:3])
print(f"\n  held-out ICD-10 diagnoses: {after['rows']} rows, name the chapter")
print(f"  {'':22}{'exact match':>12}{'perplexity':>12}")
for name, result in (("base model", before), ("with the adapter", after)):
    print(f"  {name:22}{result['exact_match']:>12.3f}{result['perplexity']:>12.2f}")
print("\n  the adapter is in adapters/lora-medical; talk to it with:")
print("  target/release/ft chat --model models/smollm2-135m-instruct --adapter adapters/lora-medical\n")
