"""Writes random tiny models of every family as GGUF files with `ft export` and runs them in llama.cpp: token ids, logits, greedy tokens.

    npm install --prefix DIR --ignore-scripts node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
    python tests/reference/check_llama_cpp.py FT --modules DIR/node_modules [--family NAME]
    python tests/reference/check_llama_cpp.py FT --modules DIR/node_modules --model models/smollm2-135m-instruct

Models are made by transformers in float32, exported as F32 (and as Q8_0, whose file both programs read), and must have equal token ids in llama.cpp, equal
greedy tokens, and logits within 1e-3 of the largest: llama.cpp computes GELU from a table in float16, and sums in another order. With
--lora, LoRAs as GGUF adapters over such files. With --model, a real model: ids of 500 varied lines, and 64 greedy tokens after ten prompts, from files in F32 and BF16.

Written for torch 2.11, transformers 5.23, node-llama-cpp 3.22.1 (llama.cpp v0.5.0).
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from check_import import lines
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

warnings.filterwarnings("ignore")
TOKENIZER = Path("tests/fixtures/tiny-tokenizer")
ROWS = [[(7 * t + 3 * n) % 400 for t in range(n)] for n in (1, 5, 24, 60)]
COMMON = dict(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=None, eos_token_id=2, pad_token_id=3, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="default", rope_theta=5000.0),
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LOCAL = dict(sliding_attention=dict(rope_type="default", rope_theta=1000.0), full_attention=dict(rope_type="default", rope_theta=5000.0))
SCALED = dict(rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", rope_theta=5000.0, factor=4.0, original_max_position_embeddings=64)
LATENT = dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=2, moe_intermediate_size=32, first_k_dense_replace=1, q_lora_rank=32,
              kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, num_key_value_heads=4, routed_scaling_factor=2.5, topk_method="greedy")
# Title of each case, family, and what its config has besides the sizes above.
CASES = [
    ("llama", "llama", dict(head_dim=32)),
    ("llama, llama3 scaling", "llama", dict(rope_parameters=SCALED, tie_word_embeddings=True)),
    ("llama, yarn", "llama", dict(rope_parameters=YARN)),
    ("llama, biases", "llama", dict(attention_bias=True, mlp_bias=True)),
    ("mistral", "mistral", dict(head_dim=32, sliding_window=None)),
    ("ministral", "ministral", dict(head_dim=32, sliding_window=None)),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", dict(head_dim=32)),
    ("gemma", "gemma", dict(head_dim=32, tie_word_embeddings=True)),
    ("gemma2", "gemma2", dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=16, tie_word_embeddings=True)),
    ("gemma3_text", "gemma3_text", dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=16, num_hidden_layers=7,
                                        rope_parameters=LOCAL, tie_word_embeddings=True)),
    ("phi3", "phi3", dict(sliding_window=None, original_max_position_embeddings=256)),
    ("phi3, longrope", "phi3", dict(sliding_window=None, original_max_position_embeddings=128, rope_parameters=dict(
        rope_type="longrope", rope_theta=5000.0, original_max_position_embeddings=128,
        short_factor=[1 + 0.1 * i for i in range(8)], long_factor=[1 + 0.1 * i for i in range(8)]))),
    ("olmo2", "olmo2", {}),
    ("olmo3", "olmo3", dict(sliding_window=16)),
    ("smollm3", "smollm3", {}),
    ("granite", "granite", dict(embedding_multiplier=3.0, attention_multiplier=0.25, residual_multiplier=0.7, logits_scaling=2.5)),
    ("cohere", "cohere", dict(logit_scale=0.25, tie_word_embeddings=True)),
    ("cohere2", "cohere2", dict(logit_scale=0.25, sliding_window=16, tie_word_embeddings=True)),
    ("stablelm", "stablelm", dict(use_qkv_bias=True, rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5))),
    ("stablelm, parallel", "stablelm", dict(use_parallel_residual=True)),
    ("gpt_neox", "gpt_neox", dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5))),
    ("falcon", "falcon", dict(multi_query=True)),
    ("falcon, new decoder", "falcon", dict(new_decoder_architecture=True, num_kv_heads=2)),
    ("gpt2", "gpt2", dict(n_embd=64, n_layer=4, n_head=4, n_positions=256, tie_word_embeddings=True)),
    ("bloom", "bloom", {}),
    ("mpt", "mpt", {}),
    ("mpt, limited", "mpt", dict(attn_config=dict(clip_qkv=1.0))),
    ("gpt_oss", "gpt_oss", dict(num_local_experts=4, num_experts_per_tok=2, head_dim=64, intermediate_size=32, sliding_window=16)),
    # With YaRN it differs: llama.cpp rounds the bounds of frequencies (docs/export.md).
    ("deepseek_v2", "deepseek_v2", LATENT),
    ("deepseek_v2, yarn", "deepseek_v2", dict(**LATENT, rope_parameters=dict(**YARN, mscale=0.707, mscale_all_dim=0.707))),
    ("deepseek_v2, lite", "deepseek_v2", {**LATENT, "q_lora_rank": None, "num_hidden_layers": 27}),
    ("mixtral", "mixtral", dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    ("qwen2_moe", "qwen2_moe", dict(**EXPERTS, shared_expert_intermediate_size=64, norm_topk_prob=False)),
    ("qwen3_moe", "qwen3_moe", dict(**EXPERTS, head_dim=32, norm_topk_prob=True)),
    ("olmoe", "olmoe", dict(num_experts=4, num_experts_per_tok=2, num_key_value_heads=4, norm_topk_prob=False)),
]  # fmt: skip


def make(family, more, folder):
    """Saves a random model with the tests' tokenizer."""
    torch.manual_seed(1)
    settings = copy.deepcopy({**COMMON, **more})  # transformers adds keys to dictionaries that it gets
    if family == "gpt2":
        settings = {k: v for k, v in settings.items() if k not in ("hidden_size", "intermediate_size", "num_key_value_heads", "rope_parameters")}
    if family in ("gpt_neox",):
        del settings["num_key_value_heads"]
    small = {k: settings[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    if family == "bloom":
        settings = dict(**small, hidden_size=48, n_layer=4, n_head=6, **more)
    if family == "mpt":
        settings = dict(**small, d_model=48, n_layers=4, n_heads=6, max_seq_len=256, **more)
    if family == "falcon":
        settings = {k: v for k, v in settings.items() if k not in ("num_key_value_heads", "intermediate_size")}
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = 2 * torch.rand_like(tensor) - 1
            if "norm" in name or "ln_" in name:
                tensor.add_(noise * 0.4)
            else:
                tensor.copy_(noise * (0.2 if tensor.dim() == 1 else 0.25))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((TOKENIZER / file).read_bytes())


def ft_logits(ft, model, rows, adapter=None):
    """Returns ft's logits after the last token of each row."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"rows": [{"ids": row} for row in rows]}, file)
        file.flush()
        line = [ft, "logits", "--model", str(model), "--ids", file.name] + (["--adapter", str(adapter)] if adapter else [])
        out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return [torch.tensor(row["logits"][-1]) for row in json.loads(out)["rows"]]


def greedy(ft, model, prompt, count, adapter=None):
    """Returns the tokens that ft chooses, one full pass each."""
    made = []
    while len(made) < count:
        made.append(int(ft_logits(ft, model, [prompt + made], adapter)[0].argmax()))
    return made


def llama_cpp(modules, cases):
    """Runs cases in llama.cpp."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, tempfile.NamedTemporaryFile("r") as out:
        json.dump({"modules": str(Path(modules).resolve()), "out": out.name, "cases": cases}, file)
        file.flush()
        done = subprocess.run(["node", "tests/reference/llama_cpp.mjs", file.name], capture_output=True, text=True)
        found = [json.loads(line) for line in out]
    if len(found) != len(cases):
        sys.exit(f"llama.cpp stopped at case {len(found)}\n{done.stderr[-2000:]}")
    return found, done.stderr


def export(ft, model, out, *more):
    done = subprocess.run([ft, "export", str(model), "--to", "gguf", "--out", str(out), "--json", *more], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ft export {model}\n{done.stderr}")
    return json.loads(done.stdout)


def texts_of(count):
    """Returns varied lines; without NUL, which ends a text in llama.cpp's interface."""
    return [line for line in lines(2 * count) if line and "\0" not in line][:count]


def real(args, folder):
    """Compares a real model; returns the number of differences."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = texts_of(500)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    wrong = 0
    for kind in ("f32", "bf16"):
        file = folder / f"{kind}.gguf"
        export(args.ft, args.model, file, "--type", kind)
        (found,), _ = llama_cpp(args.modules, [dict(model=str(file), texts=texts, rows=prompts, prompts=prompts, new=64, context=1024)])
        ids = [a == tokenizer(text, add_special_tokens=False).input_ids for a, text in zip(found["ids"], texts)]
        # One pass over prompt and answer: the choice after each token must be llama.cpp's.
        rows = [prompt + made for prompt, made in zip(prompts, found["greedy"])]
        equal = sum(chosen(args.ft, args.model, row, len(prompt)) == made for row, prompt, made in zip(rows, prompts, found["greedy"]))
        print(f"{kind}: ids equal on {sum(ids)} of {len(ids)} lines; 64 greedy tokens equal after {equal} of {len(prompts)} prompts", flush=True)
        for text, same in zip(texts, ids):
            if not same:
                print("   ", repr(text)[:100])
        wrong += len(ids) - sum(ids) + len(prompts) - equal
    return wrong


PROMPTS = [
    "The capital of France is", "Once upon a time there was a", "The three primary colours are", "def fibonacci(n):\n",
    "<|im_start|>user\nWhat is type 2 diabetes?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at a temperature of", "In 1969, the first", "Q: What is 12 times 12?\nA:", "To make bread, you first",
]  # fmt: skip


def chosen(ft, model, row, prompt):
    """Returns the most likely token after each token of a row from the end of the prompt on."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"rows": [{"ids": row[:-1]}]}, file)
        file.flush()
        out = subprocess.run([ft, "logits", "--model", str(model), "--ids", file.name], capture_output=True, text=True, check=True).stdout
    return [max(range(len(line)), key=line.__getitem__) for line in json.loads(out)["rows"][0]["logits"][prompt - 1 :]]


def families(args, folder):
    """Compares the random models; returns the number of differences."""
    chosen = [case for case in CASES if args.family in (None, case[1])]
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    texts = texts_of(200)
    wrong = 0
    print(f"{'case':24} {'type':5} {'ids':>9} {'greedy':>7} {'logits':>8}")
    for title, family, more in chosen:
        model = folder / title.replace(", ", "-").replace(" ", "-")
        make(family, more, model)
        for kind in ("f32", "q8_0"):
            file = folder / f"{model.name}.{kind}.gguf"
            export(args.ft, model, file, "--type", kind)
            (found,), _ = llama_cpp(args.modules, [dict(model=str(file), texts=texts, rows=ROWS, prompts=[ROWS[2]], new=12, context=256)])
            if "error" in found:
                print(f"{title:24} {kind:5} {found['error'][:90]}")
                wrong += 1
                continue
            ours = ft_logits(args.ft, file if kind != "f32" else model, ROWS)
            gap = max(float((torch.tensor(a) - b).abs().max() / b.abs().max()) for a, b in zip(found["logits"], ours))
            ids = sum(a == tokenizer(text, add_special_tokens=False).input_ids for a, text in zip(found["ids"], texts))
            same = found["greedy"][0] == greedy(args.ft, file if kind != "f32" else model, ROWS[2], 12)
            limit = 1e-3 if kind == "f32" else 3e-2
            ok = gap < limit and ids == len(texts) and (same or kind != "f32")
            wrong += not ok
            print(f"{title:24} {kind:5} {ids:>4}/{len(texts)} {'equal' if same else 'differ':>7} {gap:8.1e}{'' if ok else '   DIFFERS'}", flush=True)
    return wrong


def loras(args, folder):
    """Compares LoRAs as GGUF adapters over models in F32; returns the number of differences."""
    from peft import LoraConfig, get_peft_model

    wrong = 0
    for title, family, more in [case for case in CASES if case[0] in ("llama", "qwen2", "gemma2", "gpt_neox", "gpt2") and args.family in (None, case[1])]:
        for kind, settings in {"plain": {}, "rslora": dict(use_rslora=True), "ranks": dict(rank_pattern={".*1.*": 2}, alpha_pattern={".*2.*": 3})}.items():
            model, adapter, base, file = (folder / f"{family}-{kind}{end}" for end in ("", "-adapter", ".gguf", "-lora.gguf"))
            make(family, more, model)
            torch.manual_seed(2)
            peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **settings))
            with torch.no_grad():
                for name, tensor in peft.named_parameters():
                    if "lora_" in name:
                        tensor.copy_((2 * torch.rand_like(tensor) - 1) * 0.2)
            peft.save_pretrained(adapter)
            export(args.ft, model, base, "--type", "f32")
            export(args.ft, adapter, file, "--base", str(model))
            cases = [dict(model=str(base), lora=lora, texts=[], rows=ROWS, prompts=[ROWS[2]], new=12, context=256) for lora in (None, str(file))]
            (alone, found), _ = llama_cpp(args.modules, cases)
            if "error" in found:
                print(f"{title} {kind}: {found['error'][:90]}")
                wrong += 1
                continue
            ours = ft_logits(args.ft, model, ROWS, adapter)
            gap = max(float((torch.tensor(a) - b).abs().max() / b.abs().max()) for a, b in zip(found["logits"], ours))
            moved = max(float((torch.tensor(a) - b).abs().max() / b.abs().max()) for a, b in zip(alone["logits"], ours))
            same = found["greedy"][0] == greedy(args.ft, model, ROWS[2], 12, adapter)
            ok = gap < 1e-3 and same and moved > 20 * gap
            wrong += not ok
            print(f"LoRA {title:12} {kind:7} {'equal' if same else 'differ'} {gap:8.1e}, without it {moved:.1e}{'' if ok else '   DIFFERS'}", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ft")
    parser.add_argument("--modules", required=True)
    parser.add_argument("--family")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--lora", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check = real if args.model else loras if args.lora else families
        wrong = check(args, Path(folder))
    sys.exit(f"{wrong} differences" if wrong else 0)


if __name__ == "__main__":
    main()
