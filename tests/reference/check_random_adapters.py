"""Compares adapters that PEFT makes with random settings, over random tiny models, with ft reading the same files.

    python tests/reference/check_random_adapters.py FT [--seeds FIRST COUNT] [--merge]

Each seed draws a model (family, sizes, ties, biases), a kind of adapter with its settings, and random values for
everything that PEFT would train. The logits of `ft logits` must be those of PEFT within 1e-5 of the largest (float32);
with --merge, also those of the model that `ft merge` writes. A refusal by ft is printed: it must be about something
that ft says it does not support.

Written for torch 2.11, transformers 5.23, peft 0.21.2.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import get_peft_model

warnings.filterwarnings("ignore")
VOCABULARY = 64


def tiny_model(r):
    """Returns a random model of a random family."""
    heads, kv, head = r.choice([(4, 2, 8), (2, 1, 12), (6, 3, 6), (4, 4, 8)])
    family = r.choice(["llama", "mistral", "qwen2", "qwen3", "gpt2"])
    width = heads * head
    common = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, tie_word_embeddings=r.random() < 0.5)
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=width, n_head=heads, n_layer=r.choice([1, 3]), n_positions=256, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2
        )
    else:
        sizes = dict(
            hidden_size=width, intermediate_size=r.choice([40, 52, 64]), num_hidden_layers=r.choice([1, 2, 3]),
            num_attention_heads=heads, num_key_value_heads=kv, head_dim=head, max_position_embeddings=256,
        )  # fmt: skip
        if family == "llama" and r.random() < 0.4:
            sizes |= dict(attention_bias=True, mlp_bias=True)
        config = transformers.AutoConfig.for_model(family, **sizes, **common)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    shake(model.named_parameters(), 0.3)
    return family, model


def shake(parameters, size):
    """Adds noise to parameters, so that none keeps the value it began with."""
    with torch.no_grad():
        for _, p in parameters:
            p.add_(torch.randn_like(p) * size / max(1, p.shape[-1] if p.dim() > 1 else 4) ** 0.5)


def some(r, names):
    """Returns a random non-empty part of some names."""
    return r.sample(names, r.randint(1, len(names)))


def settings_of(r, family, model):
    """Returns PEFT's config class and random settings for it."""
    linear = ["c_attn", "c_fc", "c_proj"] if family == "gpt2" else ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    layers = model.config.num_hidden_layers
    targets = r.choice(["all-linear", some(r, linear), some(r, linear)])
    embedding, head = ("wte" if family == "gpt2" else "embed_tokens"), "lm_head"
    tied = model.config.tie_word_embeddings
    kind = r.choice(["lora"] * 4 + ["ia3", "ln", "beft", "vera", "loha", "lokr", "oft", "adalora", "tokens", "prompt", "prefix", "p"])
    if kind == "lora":
        s = dict(r=r.choice([1, 3, 8]), lora_alpha=r.choice([2, 5, 16]), target_modules=targets)
        if r.random() < 0.3:
            s["use_rslora"] = True
        if r.random() < 0.3:
            s["use_dora"] = True
        if r.random() < 0.3:
            s["rank_pattern"] = {r.choice(linear): r.choice([2, 5])}
        if r.random() < 0.3:
            s["alpha_pattern"] = {rf"\.{r.randrange(layers)}\..*{r.choice(linear)}": 7}
        if r.random() < 0.25 and targets != "all-linear":
            s["layers_to_transform"] = sorted(some(r, list(range(layers))))
        if r.random() < 0.2:
            s["exclude_modules"] = [r.choice(linear)]
        if r.random() < 0.2 and not s.get("use_dora"):
            s["lora_bias"] = True
        if r.random() < 0.2:
            s["modules_to_save"] = some(r, [embedding, head]) if not tied else [embedding]
        elif r.random() < 0.3 and targets != "all-linear":
            s["target_modules"] = targets + ([embedding] if tied or r.random() < 0.5 else [head])
        elif r.random() < 0.3:
            s["trainable_token_indices"] = sorted(r.sample(range(VOCABULARY), 5))
        if r.random() < 0.15:
            s["bias"] = r.choice(["all", "lora_only"])
        return peft.LoraConfig, s
    if kind == "ia3":
        s = {}
        if r.random() < 0.6:
            s["target_modules"] = some(r, linear)
            s["feedforward_modules"] = r.sample(s["target_modules"], r.randint(0, len(s["target_modules"])))
        return peft.IA3Config, s
    if kind == "ln":
        return peft.LNTuningConfig, {}
    if kind == "beft":
        return peft.BeftConfig, dict(target_modules=some(r, linear))
    if kind == "vera":
        return peft.VeraConfig, dict(
            r=r.choice([4, 16]), target_modules=some(r, linear), projection_prng_key=r.randrange(100), save_projection=r.random() < 0.5
        )
    if kind == "loha":
        return peft.LoHaConfig, dict(r=r.choice([1, 4]), alpha=r.choice([1, 6]), target_modules=targets)
    if kind == "lokr":
        return peft.LoKrConfig, dict(
            r=r.choice([1, 4, 64]), alpha=r.choice([1, 6]), target_modules=targets, decompose_both=r.random() < 0.5,
            decompose_factor=r.choice([-1, 4]),
        )  # fmt: skip
    if kind == "oft":
        return peft.OFTConfig, dict(
            oft_block_size=r.choice([4, 2, 3]), target_modules=some(r, linear), use_cayley_neumann=r.random() < 0.5,
            block_share=r.random() < 0.3,
        )  # fmt: skip
    if kind == "adalora":
        return peft.AdaLoraConfig, dict(
            init_r=r.choice([2, 6]), target_r=2, lora_alpha=r.choice([4, 9]), target_modules=some(r, linear), tinit=1, tfinal=1, deltaT=1, total_step=10
        )
    if kind == "tokens":
        return peft.TrainableTokensConfig, dict(token_indices=sorted(r.sample(range(VOCABULARY), 7)))
    task = dict(task_type="CAUSAL_LM", num_virtual_tokens=r.choice([1, 5, 9]))
    if kind == "prompt":
        return peft.PromptTuningConfig, task
    if kind == "prefix":
        return peft.PrefixTuningConfig, task | dict(prefix_projection=r.random() < 0.4, encoder_hidden_size=14)
    return peft.PromptEncoderConfig, task | dict(
        encoder_reparameterization_type=r.choice(list(peft.PromptEncoderReparameterizationType)), encoder_hidden_size=r.choice([10, 24])
    )


def run(ft, *arguments):
    return subprocess.run([ft, *map(str, arguments)], capture_output=True, text=True)


def gap_of(ft, arguments, rows, expected):
    """Returns ft's largest difference, as a share of the largest logit, or its error."""
    done = run(ft, "logits", *arguments)
    if done.returncode:
        return None, done.stderr.strip()
    ours = [torch.tensor(row["logits"]) for row in json.loads(done.stdout)["rows"]]
    return max(((o - e).abs().max() / e.abs().max()).item() for o, e in zip(ours, expected)), None


def check(ft, seed, merge):
    """Compares one random adapter; returns true if it is equal or refused."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    family, model = tiny_model(r)
    kind, settings = settings_of(r, family, model)
    title = f"{seed}: {family}, {kind.__name__} {settings}"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.save_pretrained(folder / "base")
        try:
            tuned = get_peft_model(model, kind(**settings))
        except (ValueError, NotImplementedError, TypeError) as e:
            print(f"{title}\n   PEFT refuses: {str(e)[:120]}")
            return True
        shake([(n, p) for n, p in tuned.named_parameters() if p.requires_grad], 0.3)
        tuned.eval()
        rows = [[r.randrange(VOCABULARY) for _ in range(n)] for n in (9, 1, 23)]
        # PEFT writes a prompt's rows as its encoder gives them, and a prefix likewise.
        tuned.save_pretrained(folder / "adapter")
        with torch.no_grad():
            outputs = [tuned(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits[0] for row in rows]
        expected = [o[-len(row):] for o, row in zip(outputs, rows)]
        (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in rows]}))
        gap, error = gap_of(ft, ["--model", folder / "base", "--adapter", folder / "adapter", "--ids", folder / "rows.json"], rows, expected)
        if error:
            print(f"{title}\n   ft refuses: {error[:600]}")
            return True
        good = gap < 1e-5
        line = f"{title}\n   logits {gap:.1e}"
        if merge and kind not in (peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig):
            done = run(ft, "merge", folder / "base", folder / "adapter", "--out", folder / "merged", "--dtype", "f32")
            if done.returncode:
                line += f"; merge refused: {done.stderr.strip()[:600]}"
            else:
                gap, error = gap_of(ft, ["--model", folder / "merged", "--ids", folder / "rows.json"], rows, expected)
                line += f", merged {error or f'{gap:.1e}'}"
                good = good and error is None and gap < 3e-5
        print(line + ("" if good else "   <-- WRONG"), flush=True)
        if not good:
            kept = Path(tempfile.gettempdir()) / f"random-adapter-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept)
        return good


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ft")
    p.add_argument("--seeds", nargs=2, type=int, default=[0, 60], metavar=("FIRST", "COUNT"))
    p.add_argument("--merge", action="store_true", help="also compare the merged model")
    args = p.parse_args()
    torch.set_num_threads(1)
    first, count = args.seeds
    wrong = [seed for seed in range(first, first + count) if not check(args.ft, seed, args.merge)]
    print(f"{count - len(wrong)} of {count} agree or are refused" + (f"; wrong: {wrong}" if wrong else ""))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
