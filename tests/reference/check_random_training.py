"""Trains adapters of random kinds and settings with ft, over random tiny models, and reads them with PEFT.

    python tests/reference/check_random_training.py FT [--seeds FIRST COUNT]

Run from the root of the repository. Each seed draws a model as check_random_adapters.py does, an adapter section and
three training steps. PEFT must load the folder, compute the logits of `ft logits` within 1e-5 of the largest (float32),
and save a file with the same names. `ft resume --verify` must repeat the last step with the same bits.

Written for torch 2.11, transformers 5.23, peft 0.21.2.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import check_random_adapters as adapters
import torch
from peft import PeftModel
from safetensors import safe_open

warnings.filterwarnings("ignore")
TOKENIZER = Path("tests/fixtures/tiny-tokenizer")
adapters.VOCABULARY = 400


def section_of(r, family, model):
    """Returns a random adapter section of a recipe."""
    linear = ["c_attn", "c_fc", "c_proj"] if family == "gpt2" else ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    embedding, tied, layers = ("wte" if family == "gpt2" else "embed_tokens"), model.config.tie_word_embeddings, model.config.num_hidden_layers
    targets = r.choice(["all-linear", adapters.some(r, linear), adapters.some(r, linear)])
    modules = {"targets": targets}
    if r.random() < 0.2 and layers > 1:
        modules["layers"] = [r.randrange(layers)]
    kind = r.choice(["lora"] * 4 + ["adalora", "vera", "loha", "lokr", "oft", "ia3", "ln_tuning", "bitfit", "trainable_tokens"] + ["prompt_tuning", "p_tuning", "prefix_tuning"])
    if kind == "lora":
        s = modules | {"rank": r.choice([1, 2, 4]), "alpha": r.choice([2, 5, 8])}
        for key, chance in (("rslora", 0.3), ("dora", 0.25), ("freeze_a", 0.2), ("bias", 0.2)):
            if r.random() < chance:
                s[key] = True
        if r.random() < 0.3:
            s["init"] = r.choice(["pissa", "olora", "eva"])
        if r.random() < 0.3:
            s["rank_pattern"] = {r.choice(linear): 3}
        if r.random() < 0.3:
            s["alpha_pattern"] = {r.choice(linear): 7}
        if r.random() < 0.3:
            s["b_lr_ratio"] = 4
        if r.random() < 0.2:
            s["token_rows"] = sorted(r.sample(range(400), 4))
        elif r.random() < 0.2 and not tied:
            s["modules_to_save"] = [r.choice([embedding, "lm_head"])]
        elif r.random() < 0.3 and targets != "all-linear":
            s["targets"] = targets + [embedding]
        return kind, s
    if kind == "adalora":
        return kind, modules | {"rank": 4, "target_rank": 2, "initial_steps": 1, "final_steps": 1, "every": 1}
    if kind == "vera":
        return kind, modules | {"rank": r.choice([4, 9]), "save_projection": r.random() < 0.5, "projection_seed": r.randrange(99)}
    if kind == "loha":
        return kind, modules | {"rank": 2, "alpha": r.choice([1, 6])}
    if kind == "lokr":
        s = modules | {"rank": r.choice([1, 3, 64]), "alpha": 4, "decompose_both": r.random() < 0.5}
        return kind, s | ({"factor": 4} if r.random() < 0.4 else {})
    if kind == "oft":
        return kind, modules | {"block": r.choice([2, 4]), "neumann_terms": r.choice([None, 5]), "block_share": r.random() < 0.3}
    if kind == "ia3":
        return kind, {} if r.random() < 0.5 else {"targets": targets if targets != "all-linear" else linear, "feedforward": [linear[-1]]}
    if kind in ("ln_tuning", "bitfit"):
        return kind, {}
    if kind == "trainable_tokens":
        return kind, {"tokens": sorted(r.sample(range(400), 6))}
    if kind == "p_tuning":
        return kind, {"virtual_tokens": r.choice([1, 6]), "encoder_hidden_size": 12}
    if kind == "prefix_tuning":
        return kind, {"virtual_tokens": r.choice([1, 6]), "projection": r.random() < 0.5}
    return kind, {"virtual_tokens": r.choice([1, 6])}


def names_in(file):
    with safe_open(file, "pt") as f:
        return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}


def check(ft, seed):
    """Trains, resumes and compares one random adapter; returns what is wrong, and nothing if all agrees or is refused."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    family, model = adapters.tiny_model(r)
    kind, section = section_of(r, family, model)
    title = f"{seed}: {family}, {kind} {section}"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        base, out = folder / "base", folder / "out"
        model.save_pretrained(base)
        for file in TOKENIZER.iterdir():
            if file.suffix in (".json", ".jinja") and file.name != "generation_config.json":
                shutil.copy(file, base)
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps({
            "model": {"path": str(base), "dtype": "f32"}, "method": {"sft": {}}, "adapter": {kind: section},
            "data": {"train": {"path": str(Path("datasets/chat.jsonl").resolve())}},
            "batch": {"tokens": 512, "max_len": 216, "examples": 2}, "optim": {"lr": 0.01},
            "run": {"steps": 3, "samples": 0, "save_every": 2, "out": str(out), "seed": seed},
        }))  # fmt: skip
        done = adapters.run(ft, "train", recipe)
        if done.returncode:
            print(f"{title}\n   ft refuses: {done.stderr.strip()[-500:]}")
            return None
        wrong = []
        rows = [[r.randrange(400) for _ in range(n)] for n in (9, 1, 23)]
        (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in rows]}))
        try:
            tuned = PeftModel.from_pretrained(model, out).eval()
        except Exception as e:  # whatever PEFT cannot load is a finding
            return f"{title}\n   PEFT does not load it: {type(e).__name__}: {str(e)[:300]}"
        with torch.no_grad():
            outputs = [tuned(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits[0] for row in rows]
        expected = [o[-len(row):] for o, row in zip(outputs, rows)]
        gap, error = adapters.gap_of(ft, ["--model", base, "--adapter", out, "--ids", folder / "rows.json"], rows, expected)
        if error or gap >= 1e-5:
            wrong.append(error or f"logits {gap:.1e} apart")
        tuned.save_pretrained(folder / "again")
        ours, theirs = names_in(out / "adapter_model.safetensors"), names_in(folder / "again" / "adapter_model.safetensors")
        if ours != theirs:
            wrong.append(f"names or shapes: only ft {sorted(set(ours.items()) - set(theirs.items()))[:4]}, only PEFT {sorted(set(theirs.items()) - set(ours.items()))[:4]}")
        done = adapters.run(ft, "resume", out, "--verify", "1")
        if done.returncode:
            wrong.append(f"resume --verify: {done.stderr.strip()[-300:]}")
        text = f"{title}\n   logits {gap if gap is None else f'{gap:.1e}'}"
        print(text + "".join(f"\n   WRONG {w}" for w in wrong), flush=True)
        return "\n".join(wrong) or None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ft")
    p.add_argument("--seeds", nargs=2, type=int, default=[0, 60], metavar=("FIRST", "COUNT"))
    args = p.parse_args()
    torch.set_num_threads(1)
    first, count = args.seeds
    wrong = [seed for seed in range(first, first + count) if check(args.ft, seed)]
    print(f"{count - len(wrong)} of {count} agree or are refused" + (f"; wrong: {wrong}" if wrong else ""))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
