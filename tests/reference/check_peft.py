"""Checks that PEFT reads an adapter directory written by `ft` and computes the same logits.

    python tests/reference/check_peft.py BASE_DIR ADAPTER_DIR LOGITS.json [--tolerance 1e-4] [--dtype float32] [--rows N]

LOGITS.json: {"rows": [{"ids": [...], "logits": [[one list of V a position]]}]}; a flat list of V stands for the last
position alone; `ft logits --model BASE_DIR --adapter ADAPTER_DIR --ids IDS.json` prints it, with IDS.json holding
{"rows": [{"ids": [...]}]}. --rows resizes the base's vocabulary first, for an adapter with new tokens. Prints one JSON line; exit code 0 if everything agrees, 1 with the findings if not. Not run by the test
suite: it needs transformers and peft.
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


class Findings(logging.Handler):
    """Collects Python warnings and log messages of the libraries from level warning up."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage().strip())

    def __enter__(self):
        transformers.logging.set_verbosity_warning()
        transformers.utils.logging.disable_progress_bar()
        for name in ("transformers", "peft"):
            logging.getLogger(name).addHandler(self)
        self.caught = warnings.catch_warnings(record=True)
        self.raised = self.caught.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *exc):
        self.caught.__exit__(*exc)
        # Deprecation warnings are the libraries' notes about each other, not about our files.
        ours = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
        self.said += [str(w.message).strip() for w in self.raised if not issubclass(w.category, ours)]
        for name in ("transformers", "peft"):
            logging.getLogger(name).removeHandler(self)


def read_base(folder, dtype, findings):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True
    )
    for kind, names in info.items():
        if names:
            findings.said.append(f"{folder}: {kind}: {sorted(map(str, names))[:5]}")
    return model.eval()


def compare(model, path, tolerance, findings):
    """Returns the largest relative difference: |a - b| divided by the largest |b| of the row."""
    rows = json.loads(Path(path).read_text())["rows"]
    if not rows:
        findings.said.append(f"{path}: no rows")
    worst = 0.0
    for i, row in enumerate(rows):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([row["ids"]], device=model.device)).logits[0].double().cpu()
        expected = expected[-len(row["ids"]) :]  # PEFT also returns the logits of virtual tokens
        found = torch.tensor(row["logits"], dtype=torch.float64)
        expected = expected[-1] if found.dim() == 1 else expected
        if found.shape != expected.shape:
            findings.said.append(f"{path}: row {i}: shape {list(found.shape)}, expected {list(expected.shape)}")
            continue
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        worst = max(worst, difference)
        if not difference <= tolerance:
            findings.said.append(f"{path}: row {i}: logits differ by {difference:.2e} (relative), over {tolerance:.0e}")
    return {"rows": len(rows), "difference": worst}


def same_after_saving(model, folder, findings, grown=False):
    """Checks that PEFT saves the loaded adapter with the same keys and bytes; over a `grown` base, whose tables it saves, too, with
    more keys. Returns the number of tensors."""
    with tempfile.TemporaryDirectory() as again, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(again)
        saved = load_file(Path(again) / "adapter_model.safetensors")
    ours = load_file(Path(folder) / "adapter_model.safetensors")
    for key in sorted(ours.keys() - saved.keys() if grown else saved.keys() ^ ours.keys()):
        findings.said.append(f"{folder}: {key} only {'in ours' if key in ours else 'after PEFT saved it'}")
    for key in sorted(saved.keys() & ours.keys()):
        if saved[key].dtype != ours[key].dtype or not torch.equal(saved[key], ours[key]):
            findings.said.append(f"{folder}: {key} changes when PEFT loads and saves it")
    return len(ours)


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference of logits")
    parser.add_argument("--dtype", default="float32", help="the number format the reference computes in")
    return parser


def conclude(result, findings):
    print(json.dumps({**result, "findings": findings.said}))
    sys.exit(1 if findings.said else 0)


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("logits")
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    with Findings() as findings:
        base = read_base(options.base, options.dtype, findings)
        if options.rows:
            base.resize_token_embeddings(options.rows, mean_resizing=False)
        model = PeftModel.from_pretrained(base, options.adapter).eval()
        result = compare(model, options.logits, options.tolerance, findings)
        result["tensors"] = same_after_saving(model, options.adapter, findings, bool(options.rows))
    conclude(result, findings)


if __name__ == "__main__":
    main()
