"""Checks that transformers loads what `ft export --to hf` writes in every number format, and computes what ft computes of it.

    python tests/reference/check_hf_export.py FT [--family NAME …] [--model DIR [--adapter DIR]] [--type NAME …]

Run from the root of the repository. For a random tiny model of every family, with a LoRA of PEFT and without, or for one model:

- transformers loads f32, bf16, f16, fp8 and nf4 without missing or unexpected tensors; of f32, fp8 (dequantised on a CPU, its
  kernels need a GPU) and nf4 (bitsandbytes on the CPU) the logits are those of `ft logits` within 1e-4 of the largest, in float32.
- the codes and scales of nf4 are those of `bitsandbytes.functional.quantize_4bit` to the bit, given the mean of the blocks' scales,
  which bitsandbytes sums in an order of its own.
- the codes and scales of fp8 are those of transformers' `Fp8Quantize` to the bit.

A refusal by ft is printed: it must be about something that transformers has no form for.

Written for torch 2.11, transformers 5.23, peft 0.21.2, bitsandbytes 0.50.2.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes.functional as bnb
import torch
import transformers
from check_random_adapters import gap_of, run, shake
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Quantize

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
VOCABULARY = 400
FORMATS = ["f32", "bf16", "f16", "fp8", "nf4"]
FAMILIES = [
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "olmo3", "smollm3",
    "granite", "cohere", "cohere2", "stablelm", "gpt_neox", "falcon", "bloom", "mpt", "gpt_oss", "deepseek_v2",
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt2",
]  # fmt: skip


def config_of(family):
    """Returns a config whose matrices have sides of 128, 256 and 64 (keys and values), most multiples of an FP8 block."""
    s = dict(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, head_dim=32,
    )  # fmt: skip
    match family:
        case "bloom" | "gpt2" | "mpt":
            names = dict(bloom=("hidden_size", "n_layer", "n_head"), gpt2=("n_embd", "n_layer", "n_head"), mpt=("d_model", "n_layers", "n_heads"))
            s = dict(zip(names[family], (128, 2, 4))) | dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        case "falcon":
            s = dict(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2)
        case "gpt_neox":
            del s["num_key_value_heads"], s["head_dim"]
        case "mixtral" | "gpt_oss":
            s |= dict(num_local_experts=4, num_experts_per_tok=2)
        case "qwen2_moe" | "qwen3_moe" | "olmoe":
            s |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128)
            s |= dict(shared_expert_intermediate_size=256) if family == "qwen2_moe" else {}
        case "deepseek_v2":
            del s["head_dim"]
            s |= dict(
                num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=None, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32,
                n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=128, first_k_dense_replace=1,
            )  # fmt: skip
    return AutoConfig.for_model(family, **s)


def make(family, folder):
    """Writes a random model and a LoRA of it."""
    torch.manual_seed(7)
    config = config_of(family)
    forms = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, **forms).float().eval()
    shake([(n, p) for n, p in model.named_parameters()], 0.3)
    model.save_pretrained(folder / "model")
    experts = any("experts" in name for name, _ in model.named_parameters())  # all-linear would adapt them and their routers, too
    targets = ["q_proj", "o_proj"] if experts else "all-linear"
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    shake([(n, p) for n, p in tuned.named_parameters() if p.requires_grad], 0.3)
    tuned.save_pretrained(folder / "adapter")
    return folder / "model", folder / "adapter"


def tensors_of(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def load(folder):
    """Returns the model and what transformers says is missing or unexpected."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
    )
    said = [f"{kind}: {sorted(map(str, names))[:4]}" for kind, names in info.items() if names]
    return model.eval(), said


def codes_of_nf4(out, base):
    """Compares every matrix with bitsandbytes' own quantisation. Returns the number of matrices and what differs."""
    found, count, wrong = tensors_of(out), 0, []
    table = bnb.create_dynamic_map()
    transposed = json.loads((out / "config.json").read_text())["model_type"] == "gpt2"
    for name in [n.removesuffix(".quant_state.bitsandbytes__nf4") for n in found if n.endswith("__nf4")]:
        weight = base[name].float()
        state = json.loads(bytes(found[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
        weight = (weight.T if transposed else weight).contiguous()
        codes, own = bnb.quantize_4bit(weight, quant_type="nf4")
        rest, nested = bnb.quantize_blockwise(own.absmax - torch.tensor(state["nested_offset"]), code=table, blocksize=256)
        same = dict(
            codes=torch.equal(codes, found[name]), absmax=torch.equal(rest, found[f"{name}.absmax"]),
            nested_absmax=torch.equal(nested.absmax, found[f"{name}.nested_absmax"]), map=torch.equal(own.code, found[f"{name}.quant_map"]),
            nested_map=(table - found[f"{name}.nested_quant_map"]).abs().max().item() < 1e-7,
            offset=abs(own.absmax.double().mean().item() - state["nested_offset"]) < 1e-6 * abs(state["nested_offset"]),
        )  # fmt: skip
        count += 1
        wrong += [f"{name}: {part}" for part, equal in same.items() if not equal]
    return count, wrong


def codes_of_fp8(out, base):
    """Compares every matrix with transformers' own quantisation."""
    found, count, wrong = tensors_of(out), 0, []
    block = json.loads((out / "config.json").read_text())["quantization_config"]["weight_block_size"]
    settings = SimpleNamespace(quantization_config=transformers.FineGrainedFP8Config(weight_block_size=block))
    for name in [n.removesuffix("_scale_inv") for n in found if n.endswith(".weight_scale_inv")]:
        made = Fp8Quantize(settings)._quantize_one("weight", base[name].float())
        count += 1
        for part, key in (("weight", name), ("weight_scale_inv", f"{name}_scale_inv")):
            a, b = made[part], found[key]
            if a.dtype != b.dtype or not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
                wrong.append(key)
    return count, wrong


def check(ft, title, model, adapter, folder, formats):
    """Exports a model in every format; returns true if all is as it should be."""
    r = random.Random(3)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    rows = [[r.randrange(vocabulary) for _ in range(n)] for n in (9, 1, 31)]
    (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in rows]}))
    base, good, told = tensors_of(model), True, []
    for form in formats:
        for more in [[], ["--adapter", adapter]] if adapter else [[]]:
            out, said = folder / "out", []
            shutil.rmtree(out, ignore_errors=True)
            done = run(ft, "export", model, *more, "--to", "hf", "--type", form, "--out", out, "--json")
            what = form + (" merged" if more else "")
            if done.returncode:
                told.append(f"{what} refused: {done.stderr.strip()[-400:]}")
                good &= "bug" not in done.stderr and "panicked" not in done.stderr
                continue
            try:
                read, said = load(out)
            except Exception as e:  # whatever transformers cannot load is a finding
                told.append(f"{what}: transformers does not load it: {type(e).__name__}: {str(e)[:500]}   <-- WRONG")
                good = False
                continue
            with torch.no_grad():
                expected = [read(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in rows]
            gap, error = gap_of(ft, ["--model", out, "--dtype", "f32", "--ids", folder / "rows.json"], rows, expected)
            if error:
                said.append(f"ft does not read it: {error[:300]}")
            elif not gap < 1e-4:
                said.append(f"logits differ by {gap:.1e}")
            count = ""
            if not more and form in ("nf4", "fp8"):
                number, wrong = (codes_of_nf4 if form == "nf4" else codes_of_fp8)(out, base)
                count, said = f", {number} matrices equal", said + wrong[:4] + ([] if number else ["no matrix is quantised"])
            told.append(f"{what} {gap if gap is not None else -1:.1e}{count}" + "".join(f"; {s}   <-- WRONG" for s in said))
            good &= not said
    print(f"{title}: " + ("\n   ".join([""] + told)))
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ft")
    parser.add_argument("--family", action="append")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--type", action="append", choices=FORMATS)
    options = parser.parse_args()
    wrong = 0
    for title in [str(options.model)] if options.model else options.family or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            model, adapter = (options.model, options.adapter) if options.model else make(title, folder)
            wrong += not check(options.ft, title, model, adapter, folder, options.type or FORMATS)
            sys.stdout.flush()
    print(f"{wrong} wrong")
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
