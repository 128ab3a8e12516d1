"""Checks that transformers reads a model directory written by `ft` without a warning and with the same logits.

    python tests/reference/check_merged.py MODEL_DIR LOGITS.json [--base BASE_DIR --adapter ADAPTER_DIR]

With --base and --adapter every weight is also compared with PEFT's own merge in float32, cast once to the type of the
directory. LOGITS.json is described in check_peft.py. Prints one JSON line; exit code 0 if everything agrees, 1 with the
findings if not.
"""

from pathlib import Path

import torch
from check_peft import Findings, arguments, compare, conclude, read_base
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer


def compare_weights(folder, base, adapter, findings):
    """Returns the largest difference from PEFT's merge, in units of the last place of the directory's type."""
    merged = PeftModel.from_pretrained(read_base(base, "float32", findings), adapter).merge_and_unload().state_dict()
    worst = 0.0
    ours = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        ours.update(load_file(file))
    for key, tensor in ours.items():
        if key not in merged:
            findings.said.append(f"{folder}: {key} is not in PEFT's merge")
            continue
        expected = merged[key].to(tensor.dtype).double()
        step = torch.finfo(tensor.dtype).eps * expected.abs().max()
        difference = ((tensor.double() - expected).abs().max() / step).item()
        worst = max(worst, difference)
        if not difference <= 4.0:
            findings.said.append(f"{folder}: {key} is {difference:.1f} units in the last place from PEFT's merge")
    for key in merged.keys() - ours.keys() - {"lm_head.weight"}:
        findings.said.append(f"{folder}: {key} is missing")
    return {"weights": len(ours), "weights_ulp": worst}


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("logits")
    parser.add_argument("--base")
    parser.add_argument("--adapter")
    options = parser.parse_args()
    if bool(options.base) != bool(options.adapter):
        parser.error("--base and --adapter belong together")
    with Findings() as findings:
        model = read_base(options.model, options.dtype, findings)
        result = compare(model, options.logits, options.tolerance, findings)
        if (Path(options.model) / "tokenizer.json").exists():
            AutoTokenizer.from_pretrained(options.model)
        if options.base:
            result |= compare_weights(options.model, options.base, options.adapter, findings)
    conclude(result, findings)


if __name__ == "__main__":
    main()
