"""Checks that transformers and PEFT read a reward model trained by `ft` and compute the same scores.

    ft score --model BASE [--adapter DIR] --dtype f32 --input ROWS.jsonl --out SCORES.jsonl
    python tests/reference/check_reward.py BASE SCORES.jsonl [--adapter DIR] [--tolerance 1e-4]

Without --adapter, BASE is a complete reward model. Every row of SCORES.jsonl (pairs, or prompts with completions, of
messages) is rendered with the reward model's tokenizer and scored alone, in a batch padded on the right and in
one padded on the left. Prints one JSON line; exit code 0 if all agree, 1 with the findings if not. Not run by the test
suite: it needs transformers and peft.
"""

import json
import sys
from pathlib import Path

import torch
from check_peft import Findings, arguments, conclude
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def read(options, findings):
    home = options.adapter or options.base
    tokenizer = AutoTokenizer.from_pretrained(home)
    known = {"dtype": torch.float32, "attn_implementation": "eager"}
    if not options.adapter:
        model, info = AutoModelForSequenceClassification.from_pretrained(options.base, output_loading_info=True, **known)
        if tokenizer.pad_token_id != model.config.pad_token_id:
            findings.said.append(f"tokenizer pads with {tokenizer.pad_token_id}, config.json says {model.config.pad_token_id}")
        findings.said += [f"{kind}: {sorted(map(str, names))[:5]}" for kind, names in info.items() if names]
        return tokenizer, model.eval()
    said = len(findings.said)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.base, num_labels=1, pad_token_id=tokenizer.pad_token_id, **known
    )
    del findings.said[said:]  # the warning about a missing head is expected: the adapter contains it
    model = PeftModel.from_pretrained(model, options.adapter).eval()
    head = model.base_model.model.score.modules_to_save["default"].weight
    stored = json.loads((Path(options.adapter) / "reward.json").read_text())
    for probe in stored["probes"]:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([probe["ids"]])).logits[0, 0].item()
        if stored["computed_in"] == "float" and abs(found - probe["score"]) > options.tolerance * max(1, abs(found)):
            findings.said.append(f"probe {probe['text']!r}: {found}, reward.json says {probe['score']}")
    if not head.abs().sum() > 0:
        findings.said.append("the head is zero")
    return tokenizer, model


def rows(path, tokenizer):
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        for key, score in (("chosen", "score_chosen"), ("rejected", "score_rejected"), ("completion", "score")):
            if key in row:
                ids = tokenizer.apply_chat_template(row["prompt"] + row[key], tokenize=True, return_dict=False)
                yield ids, row[score]


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("scores")
    parser.add_argument("--adapter")
    options = parser.parse_args()
    worst, count = {"alone": 0.0, "right": 0.0, "left": 0.0}, 0
    with Findings() as findings, torch.no_grad():
        tokenizer, model = read(options, findings)
        everything = list(rows(options.scores, tokenizer))
        for start in range(0, len(everything), 8):
            part = everything[start : start + 8]
            found = {"alone": [model(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids, _ in part]}
            for side in ("right", "left"):
                tokenizer.padding_side = side
                batch = tokenizer.pad({"input_ids": [ids for ids, _ in part]}, return_tensors="pt")
                found[side] = model(**batch).logits[:, 0].tolist()
            for how, scores in found.items():
                for (_, ours), theirs in zip(part, scores):
                    worst[how] = max(worst[how], abs(ours - theirs) / max(1.0, abs(theirs)))
            count += len(part)
        for how, difference in worst.items():
            if not difference <= options.tolerance:
                findings.said.append(f"scores differ by {difference:.2e} ({how}), over {options.tolerance:.0e}")
        if not count:
            findings.said.append(f"{options.scores}: no rows")
    conclude({"scores": count, "difference": worst}, findings)


if __name__ == "__main__":
    sys.exit(main())
