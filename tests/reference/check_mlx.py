"""Checks that mlx-lm computes with models and adapters that `ft export --to mlx` wrote what ft computes with the originals.

    pip install mlx[cpu] mlx-lm
    python tests/reference/check_mlx.py FT [--family NAME …]
    python tests/reference/check_mlx.py FT --model DIR          # a real model, in float32 and in 4 bits

Run from the root of the repository, on a CPU. For a random tiny model of each family that --to mlx knows, as transformers 5 writes it:

- the logits of mlx-lm over the exported model are those of `ft logits` over the original within 1e-4 of the largest;
- in 4 and 8 bits, of a model in float32 and in bfloat16, codes, scales and biases of every matrix are those of mlx.core.quantize, bit
  for bit, and mlx-lm's logits are those of ft over what `ft import` makes of the folder;
- with a LoRA of PEFT (with patterns of ranks and alphas) and a DoRA, the logits of mlx-lm are those of `ft logits`, and those of the
  adapter that `ft import` makes of mlx-lm's are, too.

mlx-lm computes gemma's GELU by the error function, transformers and ft in its tanh form. With random models that makes up to 1e-3 of the
largest logit. So gemma is checked twice: as it is within 1e-3, and with mlx's GELU replaced within 1e-4 as all others.

Written for torch 2.11, transformers 5.23, peft 0.21.2, mlx 0.32.4, mlx-lm 0.32.2.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import torch
import transformers
from check_hf_export import config_of
from check_random_adapters import gap_of, run, shake
from mlx_lm.utils import load_adapters, load_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "smollm3", "mixtral", "olmoe"]
ROWS = [[3, 17, 25, 8, 99, 300, 5, 2, 64, 31], [7, 9, 11]]


def wrote(ft, *line):
    """Runs ft; prints its message if it refuses."""
    done = run(ft, *line)
    if done.returncode:
        print(f"refused: {' '.join(map(str, line))}: {done.stderr.strip()[-300:]}")
    return done.returncode == 0


def logits_of(read):
    read.eval()
    return [torch.tensor(read(mx.array([row]))[0].astype(mx.float32).tolist()) for row in ROWS]


def random_model(family, folder, kind):
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager").float().eval()
    shake(list(model.named_parameters()), 0.3)
    model.to(kind).save_pretrained(folder / "model")
    (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in ROWS]}))
    return model


def compare(name, ft, folder, model, expected, bound):
    line = ["--model", model, "--dtype", "f32", "--ids", folder / "rows.json"]
    gap, error = gap_of(ft, line, ROWS, expected)
    if error:
        print(f"{name}: {error[:300]}")
        return False
    print(f"{name}: {gap:.1e}" + ("" if gap < bound else "   <-- WRONG"))
    return gap < bound


def check_model(ft, family, folder, bound):
    random_model(family, folder, torch.float32)
    if not wrote(ft, "export", folder / "model", "--to", "mlx", "--out", folder / "plain"):
        return False
    read, _ = load_model(folder / "plain")
    return compare(f"{family} model", ft, folder, folder / "model", logits_of(read), bound)


def check_quantised(ft, family, bits, kind, folder, bound):
    """Compares the tensors with mlx's own, and the logits with ft's over the imported folder."""
    random_model(family, folder, kind)
    to, back = folder / "quantised", folder / "back"
    if not wrote(ft, "export", folder / "model", "--to", "mlx", "--type", f"{bits}bit", "--out", to):
        return False
    if not wrote(ft, "import", to, "--dtype", "f32", "--out", back):
        return False
    found, original = mx.load(str(to / "model.safetensors")), mx.load(str(folder / "model" / "model.safetensors"))
    unlike = 0
    quantised = [name.removesuffix(".scales") for name in found if name.endswith(".scales")]
    for module in quantised:
        codes, scales, biases = mx.quantize(original[f"{module}.weight"], group_size=64, bits=bits)
        for part, own in (("weight", codes), ("scales", scales), ("biases", biases)):
            mine = found[f"{module}.{part}"]
            unlike += mine.dtype != own.dtype or not mx.array_equal(mine, own).item()
    name = f"{family} {bits} bits {str(kind)[6:]}, {len(quantised)} matrices"
    if unlike or not quantised:
        print(f"{name}: {unlike} tensors are not mlx.core.quantize's   <-- WRONG")
        return False
    if kind != torch.float32:
        print(f"{name}: equal to mlx.core.quantize's")
        return True
    read, _ = load_model(to)
    return compare(name, ft, folder, back, logits_of(read), bound)


def check_adapter(ft, family, kind, folder, bound):
    model = random_model(family, folder, torch.float32)
    more = dict(use_dora=True) if kind == "dora" else dict(use_rslora=True, rank_pattern={"o_proj": 2}, alpha_pattern={"down_proj": 3})
    experts = family in ("mixtral", "olmoe")  # all-linear would adapt them, too
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if experts else "all-linear"
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **more))
    shake([(n, p) for n, p in tuned.named_parameters() if p.requires_grad], 0.3)
    tuned.save_pretrained(folder / "adapter")
    for line in (
        ["export", folder / "model", "--to", "mlx", "--out", folder / "plain"],
        ["export", folder / "adapter", "--base", folder / "model", "--to", "mlx", "--out", folder / "mlx"],
        ["import", folder / "mlx", "--base", folder / "model", "--out", folder / "again"],
    ):
        if not wrote(ft, *line):
            return False
    read, _ = load_model(folder / "plain")
    expected = logits_of(load_adapters(read, str(folder / "mlx")))
    gaps = {}
    for adapter in ("adapter", "again"):
        line = ["--model", folder / "model", "--adapter", folder / adapter, "--dtype", "f32", "--ids", folder / "rows.json"]
        gaps[adapter], error = gap_of(ft, line, ROWS, expected)
        if error:
            print(f"{family} {kind}: {error[:300]}")
            return False
    good = all(gap < bound for gap in gaps.values())
    print(f"{family} {kind}: {gaps['adapter']:.1e}, imported {gaps['again']:.1e}" + ("" if good else "   <-- WRONG"))
    return good


def check_real(ft, model, folder):
    """Compares a model on disk, in float32 and in 4 bits."""
    (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in ROWS]}))
    if not wrote(ft, "export", model, "--to", "mlx", "--type", "f32", "--out", folder / "plain"):
        return False
    if not wrote(ft, "export", folder / "plain", "--to", "mlx", "--type", "4bit", "--out", folder / "quantised"):
        return False
    if not wrote(ft, "import", folder / "quantised", "--dtype", "f32", "--out", folder / "back"):
        return False
    good = True
    for name, ours in (("plain", "plain"), ("quantised", "back")):
        read, _ = load_model(folder / name)
        good &= compare(f"{model} {name}", ft, folder, folder / ours, logits_of(read), 1e-4)
    return good


def checks_of(ft, family, bound):
    """Returns the checks of a family, each of which gets a folder."""
    yield lambda folder: check_model(ft, family, folder, bound)
    for bits in (4, 8):
        for kind in (torch.float32, torch.bfloat16):
            yield lambda folder, bits=bits, kind=kind: check_quantised(ft, family, bits, kind, folder, bound)
    for kind in ("lora", "dora"):
        yield lambda folder, kind=kind: check_adapter(ft, family, kind, folder, bound)


def in_folder(check):
    with tempfile.TemporaryDirectory() as folder:
        good = check(Path(folder))
    sys.stdout.flush()
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ft")
    parser.add_argument("--family", action="append")
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    wrong = 0
    if options.model:
        sys.exit(not in_folder(lambda folder: check_real(options.ft, options.model, folder)))
    families = options.family or FAMILIES
    checks = [check for family in families for check in checks_of(options.ft, family, 1e-3 if family == "gemma" else 1e-4)]
    for check in checks:
        wrong += not in_folder(check)
    if "gemma" in families:
        print("with GELU in its tanh form:")
        exact, nn.gelu = nn.gelu, nn.gelu_approx
        wrong += sum(not in_folder(check) for check in checks_of(options.ft, "gemma", 1e-4))
        nn.gelu = exact
    print(f"{wrong} wrong")
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
