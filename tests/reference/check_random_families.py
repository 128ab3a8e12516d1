"""Compares random tiny models of every dense family, and of those with particular layers of experts, as transformers computes them, with ft reading the same files.

    python tests/reference/check_random_families.py FT [--seeds FIRST COUNT] [--family NAME]

Each seed draws a family, sizes, ties, biases, windows (most shorter than the longest sequence) and the rotary embedding.
The logits of `ft logits` must be those of transformers within 1e-5 of the largest (float32). A refusal by ft is printed:
it must be about something that ft says it does not support.

Written for torch 2.11, transformers 5.23.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from check_random_adapters import gap_of, shake
from transformers import AutoConfig, AutoModelForCausalLM

warnings.filterwarnings("ignore")
VOCABULARY = 64
FAMILIES = [
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "olmo3", "smollm3",
    "granite", "cohere", "cohere2", "stablelm", "gpt_neox", "falcon", "bloom", "mpt", "gpt_oss", "deepseek_v2",
]  # fmt: skip
CENTRED = ["gemma", "gemma2", "gemma3_text"]


def kinds(r, layers):
    """Returns random kinds of attention."""
    return [r.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]


def rope_of(r, rotary, context):
    """Returns a random rotary embedding of `rotary` dimensions."""
    rope = dict(rope_type="default", rope_theta=r.choice([50.0, 500.0, 10000.0]))
    match r.choice(["default", "default", "linear", "yarn", "llama3"]):
        case "linear":
            rope |= dict(rope_type="linear", factor=r.choice([2.0, 3.5]))
        case "yarn":
            rope |= dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=context // 4)
        case "llama3":
            rope |= dict(
                rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=context // 4
            )
    return rope


def settings_of(r, family):
    """Returns a random config of a family."""
    heads, kv = r.choice([(4, 2), (3, 1), (6, 3), (4, 4), (6, 2)])
    head = r.choice([6, 8, 10, 16])
    free = family in ["llama", "mistral", "ministral", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "cohere2"]
    width = heads * (r.choice([5, 7, 9]) if free else head)
    layers, context, window = r.choice([1, 2, 3, 5]), r.choice([64, 128]), r.choice([1, 2, 7, 12, 20, 90])
    rope = rope_of(r, head, context)
    s = dict(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=context,
        intermediate_size=r.choice([21, 36, 40]), bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=r.random() < 0.5, rope_parameters=rope, num_key_value_heads=kv,
    )  # fmt: skip
    if free:
        s["head_dim"] = head
    if family in ["llama", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "granite", "cohere", "cohere2"]:
        s["attention_bias"] = r.random() < 0.4
    if family in ["llama", "smollm3", "granite"]:
        s["mlp_bias"] = r.random() < 0.4
    activation = r.choice(["silu", "gelu_pytorch_tanh", "gelu"])
    if family in ["gemma2", "gemma3_text"]:
        s["hidden_activation"] = activation
    elif family == "falcon":
        s["activation"] = r.choice(["gelu", "gelu_pytorch_tanh"])
    elif family != "gemma":
        s["hidden_act"] = activation
    match family:
        case "mistral":
            s["sliding_window"] = r.choice([None, window])
        case "phi3":
            s["sliding_window"] = r.choice([None, window])
            s["original_max_position_embeddings"] = context // 4
            part = r.choice([1.0, 0.5]) if head % 4 == 0 else 1.0
            pairs = int(head * part) // 2
            rope["partial_rotary_factor"] = part
            if r.random() < 0.5:
                s["rope_parameters"] = dict(
                    rope_type="longrope", rope_theta=500.0, partial_rotary_factor=part, original_max_position_embeddings=context // 4,
                    short_factor=[1 + 0.2 * r.random() for _ in range(pairs)], long_factor=[1 + 4 * r.random() for _ in range(pairs)],
                )  # fmt: skip
        case "ministral" | "olmo3" | "cohere2" | "gemma2" | "gemma3_text":
            s |= dict(sliding_window=window, layer_types=r.choice([None, kinds(r, layers)]))
        case "qwen2" | "qwen3":
            s |= dict(use_sliding_window=r.random() < 0.7, sliding_window=window, max_window_layers=r.randrange(layers + 1))
            if r.random() < 0.4:
                s["layer_types"] = kinds(r, layers)
        case "smollm3":
            s |= dict(use_sliding_window=r.random() < 0.5, sliding_window=window)
            s |= r.choice([dict(no_rope_layer_interval=2), dict(no_rope_layers=[r.randrange(2) for _ in range(layers)])])
        case "granite":
            s |= dict(
                embedding_multiplier=r.choice([1.0, 7.3]), attention_multiplier=r.choice([0.2, 1.0]), residual_multiplier=r.choice([0.3, 1.0]),
                logits_scaling=r.choice([1.0, 6.0]),
            )  # fmt: skip
    if family in ["gemma2", "gemma3_text"]:
        s |= dict(
            query_pre_attn_scalar=r.choice([7, head, 50]), final_logit_softcapping=r.choice([None, 3.0]), attn_logit_softcapping=r.choice([None, 2.0])
        )
    if family in ["gemma3_text"]:
        s["rope_parameters"] = dict(full_attention=rope, sliding_attention=rope_of(r, head, context))
    if family in ["cohere", "cohere2"]:
        s["logit_scale"] = r.choice([0.25, 1.0])
    if family == "cohere":
        s["use_qk_norm"] = r.random() < 0.5
    if family in ["stablelm", "gpt_neox"]:
        rope["partial_rotary_factor"] = r.choice([0.25, 0.5, 1.0]) if head in (8, 16) else 1.0
        s["use_parallel_residual"] = r.random() < 0.5
    if family == "stablelm":
        s["use_qkv_bias"] = r.random() < 0.5
    if family == "gpt_neox":
        del s["num_key_value_heads"]
        s["attention_bias"] = r.random() < 0.7
    if family in ["gpt_oss", "deepseek_v2"]:
        experts = r.choice([2, 4, 6])
        s |= dict(num_experts_per_tok=r.randrange(1, experts + 1), attention_bias=r.random() < 0.5, hidden_act="silu")
    if family == "gpt_oss":
        s |= dict(
            head_dim=head, hidden_size=heads * r.choice([5, 7, 9]), num_local_experts=experts, sliding_window=window,
            swiglu_limit=r.choice([0.5, 7.0]), layer_types=r.choice([None, kinds(r, layers)]),
        )  # fmt: skip
        rope |= dict(truncate=False) if rope["rope_type"] == "yarn" else {}
    if family == "deepseek_v2":
        rotated, plain = r.choice([2, 4, 8]), r.choice([2, 4, 6])  # transformers rotates even strides only
        rope = rope_of(r, rotated, context)
        if rope["rope_type"] == "yarn":
            rope |= dict(mscale=r.choice([0.707, 1.0]), mscale_all_dim=r.choice([0.0, 0.707]))
        groups = r.choice([n for n in (1, 2, 3) if experts % n == 0])
        some = next(n for n in range(1, groups + 1) if n * experts // groups >= s["num_experts_per_tok"])
        s |= dict(
            rope_parameters=rope, num_key_value_heads=heads, kv_lora_rank=r.choice([6, 10]), q_lora_rank=r.choice([None, 4, 7]),
            qk_rope_head_dim=rotated, qk_nope_head_dim=plain, v_head_dim=r.randrange(1, plain + rotated + 1), n_routed_experts=experts,
            n_shared_experts=r.choice([1, 2]), moe_intermediate_size=r.choice([5, 8]), first_k_dense_replace=r.randrange(layers + 1),
            routed_scaling_factor=r.choice([1.0, 2.5]),
        )  # fmt: skip
        s |= r.choice([dict(topk_method="greedy"), dict(topk_method="group_limited_greedy", n_group=groups, topk_group=some)])
    if family == "falcon":
        new = r.random() < 0.5
        s = {k: v for k, v in s.items() if k not in ("num_key_value_heads", "intermediate_size")}
        s |= dict(new_decoder_architecture=new, bias=r.random() < 0.5, alibi=r.random() < 0.4)
        s |= dict(num_kv_heads=kv) if new else dict(multi_query=r.random() < 0.5, parallel_attn=r.random() < 0.6)
        if r.random() < 0.5:
            s["ffn_hidden_size"] = 44
        if new and r.random() < 0.3:
            s["num_ln_in_parallel_attn"] = 1
    common = {k: s[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
    heads = r.choice([1, 3, 4, 5, 6, 8, 12])  # slopes differ where they are no power of two
    if family == "bloom":
        s = dict(**common, hidden_size=heads * head, n_layer=layers, n_head=heads)
    if family == "mpt":
        attention = dict(clip_qkv=r.choice([None, 1.5]), softmax_scale=r.choice([None, 0.4]))
        s = dict(**common, d_model=heads * head, n_layers=layers, n_heads=heads, max_seq_len=context, attn_config=attention)
    return s


def check(ft, seed, wanted):
    """Compares one random model; returns true if it is equal or refused."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    family = r.choice(FAMILIES)
    family = wanted or family
    settings = settings_of(r, family)
    title = f"{seed}: {family} {settings}"
    try:
        config = AutoConfig.for_model(family, **settings)
    except Exception as e:
        print(f"{title}\n   transformers refuses: {str(e)[-200:]}", flush=True)
        return True
    attention = "sdpa" if settings.get("alibi") else "eager"  # the eager form adds Falcon's bias twice
    forms = {"attn_implementation": attention, "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, **forms).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                p.mul_(20 if "embed" in name else 30 / p.shape[-1] ** 0.5)  # so that attention and windows matter
    shake(model.named_parameters(), 0.3)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.save_pretrained(folder / "model")
        rows = [[r.randrange(VOCABULARY) for _ in range(n)] for n in (9, 1, 31, 50)]
        with torch.no_grad():
            expected = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]
        (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in rows]}))
        gap, error = gap_of(ft, ["--model", folder / "model", "--ids", folder / "rows.json"], rows, expected)
        if error:
            print(f"{title}\n   ft refuses: {error[:600]}", flush=True)
            return True
        good = gap < 1e-5
        print(f"{title}\n   logits {gap:.1e}" + ("" if good else "   <-- WRONG"), flush=True)
        if not good:
            kept = Path(tempfile.gettempdir()) / f"random-family-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept)
        return good


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ft")
    p.add_argument("--seeds", nargs=2, type=int, default=[0, 90], metavar=("FIRST", "COUNT"))
    p.add_argument("--family", choices=FAMILIES)
    args = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    first, count = args.seeds
    wrong = [seed for seed in range(first, first + count) if not check(args.ft, seed, args.family)]
    print(f"{count - len(wrong)} of {count} agree or are refused" + (f"; wrong: {wrong}" if wrong else ""))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
