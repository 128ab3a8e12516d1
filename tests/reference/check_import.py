"""Compares a directory written by `ft import` with transformers loading the same GGUF file.

    ft import FILE.gguf --out DIR --dtype f32
    ft import FILE.gguf --out DIR2 --dtype f32 --pre-tokenizer gpt-2      (optional, see below)
    python tests/reference/check_import.py FILE.gguf DIR [--generic DIR2] [--lines N] [--write LINES.json]
    python tests/reference/check_import.py --fixtures FT         imports the tiny models of tests/fixtures/gguf with the binary FT

Checks that the logits are equal within 1e-3 and that token ids are equal on some thousand varied lines.

transformers reads the pre-tokenizer name `smollm` of SmolLM2 files as GPT-2's split, while the models' own tokenizer
and llama.cpp isolate every digit first. Ids differ where two or more white-space characters, or a space and a
non-ASCII number such as ½, precede a number. So DIR is compared with transformers' tokenizer after its
pre-tokenizer was set to the model's own, and DIR2, if given, with transformers' tokenizer as it is.

Written for torch 2.11, transformers 5.23, tokenizers 0.23, gguf 0.19.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

PIECES = {
    "english": "the quick brown fox isn't what I'd've thought, they'll say; WE'RE don't DON'T it's fine".split(" "),
    "numbers": "0 7 42 123 1234 12345678901 3.14159 1e-5 -273.15 1,000,000 0x1F 2024-05-17 12:30 50% $9.99 #1 v2.0".split(" ")
    + ["½", "²", "Ⅳ", "٣", "१२३", "５", "①", "৪৫"],
    "code": ["def f(x):", "\treturn x**2", "if (a != b) {", "};", "//", "/* c */", "<div class=\"x\">", "a[i++]", "->", "::", "=>",
             "#include <stdio.h>", "self.x_1", "__init__", "`cmd`", "$HOME", "\\n", "%s", "&&", "||", "0b1010", "    ", "        "],
    "cjk": ["你好", "世界", "日本語", "こんにちは", "カタカナ", "한국어", "안녕하세요", "漢字", "，", "。", "「", "」", "𠮷"],
    "emoji": ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "🏳️‍🌈", "✅", "🤷🏻‍♀️"],
    "scripts": ["Привет", "мир", "γειά", "σου", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "გამარჯობა", "Ünïcödé", "naïve", "Straße", "ﬁ", "Ａ"],
    "marks": ["e\u0301", "a\u0308\u0323", "n\u0303", "Z\u0351\u036b\u0343", "ก็", "क्षि", "\u0301", "\u200d", "\u200b", "\ufeff", "\u00a0", "\u3000"],
    "space": [" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\n    ", "      ", "\v", "\f", "\u2028", "\x85"],
    "control": ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<jupyter_code>", "<|im_start", "|>",
                "<|IM_START|>", "<|im_start|>user\n", "<s>", "</s>", "[INST]", "<unk>"],
    "odd": ["\x00", "\x01", "\x7f", "\ufffd", "\U0010ffff", "'", "''", "'S", "'ll", "…", "—", "“q”", "ſ", "İ", "ß"],
}


def lines(count, seed=0):
    """Returns hand-picked lines, then random mixtures. Deterministic for the same arguments."""
    chosen = ["", " ", "  ", "\n", "a", " a", "  a", "a ", "a  ", "Hello world! 123", "x  5", "\n  12 34", "  <|im_start|>  x",
              "a" * 3000, "ab" * 2000, "9" * 1000, " " * 500, "\n" * 200, "é" * 500, "漢" * 500, "😀" * 200,
              "<|im_start|>user\nHow much is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
              "ICD-10-CM E11.65: Type 2 diabetes mellitus with hyperglycemia", "don't 'tis I'VE'd", "https://example.org/a?b=c&d=%20#e"]
    draw = random.Random(seed)
    groups = list(PIECES)
    while len(chosen) < count:
        of = draw.choices(groups, k=draw.randint(1, 3))
        words = [draw.choice(PIECES[draw.choice(of)]) for _ in range(draw.randint(1, 14))]
        glue = draw.choice([" ", " ", "", "  ", "\n", "\t"])
        chosen.append(glue.join(words))
    for _ in range(count // 10):  # any code point except surrogates
        chosen.append("".join(chr(c) for c in (draw.randrange(0x110000) for _ in range(12)) if not 0xD800 <= c < 0xE000))
    return chosen


def compare(what, texts, expected, found):
    wrong = [(t, e, f) for t, e, f in zip(texts, expected, found) if e != f]
    print(f"{what}: {len(texts) - len(wrong)} of {len(texts)} lines equal")
    for text, e, f in wrong[:5]:
        print(f"  {text!r}\n    expected {e}\n    found    {f}")
    return not wrong


def fixtures(binary, folder="tests/fixtures/gguf"):
    """Imports every tiny model; transformers must compute the logits of the model that the GGUF file was made from."""
    good = True
    for name in sorted(f[: -len(".gguf")] for f in os.listdir(folder) if f.endswith(".gguf")):
        expected = json.load(open(os.path.join(folder, name + ".json")))
        with tempfile.TemporaryDirectory() as temp:
            out = os.path.join(temp, "out")
            subprocess.run([binary, "import", os.path.join(folder, name + ".gguf"), "--out", out, "--dtype", "f32", "--json"], check=True, capture_output=True)
            model, tokenizer = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), AutoTokenizer.from_pretrained(out)
            with torch.no_grad():
                logits = model.eval()(torch.tensor([expected["ids"]])).logits[0, -1]
            off = (logits - torch.tensor(expected["logits"])).abs().max().item()
            print(f"{name}: {type(model).__name__}, logits differ by {off:.1e} of {logits.abs().max():.2f}")
            texts = [line[0] for line in expected["lines"]]
            good &= off < 1e-4
            good &= compare(f"{name}: tokens", texts, [line[1] for line in expected["lines"]], [tokenizer(t)["input_ids"] for t in texts])
    print("equal" if good else "NOT equal")
    sys.exit(not good)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("gguf", nargs="?")
    args.add_argument("dir", nargs="?")
    args.add_argument("--fixtures", metavar="FT", help="check the tiny models with this binary instead")
    args.add_argument("--generic", help="directory imported with --pre-tokenizer gpt-2")
    args.add_argument("--lines", type=int, default=4000)
    args.add_argument("--write", help="write the lines and expected ids for the ignored Rust test")
    args = args.parse_args()
    if args.fixtures:
        fixtures(args.fixtures)
    if not args.dir:
        sys.exit("FILE.gguf and DIR expected")

    folder, name = os.path.split(os.path.abspath(args.gguf))
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    texts = lines(args.lines)
    as_read = [theirs(t)["input_ids"] for t in texts]
    own = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    expected = [own.encode(t).ids for t in texts]
    differing = [t for t, a, b in zip(texts, as_read, expected) if a != b]
    print(f"transformers' GPT-2 split differs from the model's own on {len(differing)} of {len(texts)} lines, e.g. {differing[:3]}")

    ours = AutoTokenizer.from_pretrained(args.dir)
    plain = Tokenizer.from_file(os.path.join(args.dir, "tokenizer.json"))
    good = compare("tokens, transformers loading DIR", texts, expected, [ours(t)["input_ids"] for t in texts])
    good &= compare("tokens, tokenizers loading DIR", texts, expected, [plain.encode(t).ids for t in texts])
    if args.generic:
        generic = AutoTokenizer.from_pretrained(args.generic)
        good &= compare("tokens, --pre-tokenizer gpt-2", texts, as_read, [generic(t)["input_ids"] for t in texts])
    text = [own.decode(i, skip_special_tokens=False) for i in expected]
    good &= compare("decoding", texts, text, [ours.decode(i) for i in expected])
    for role in ["bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"]:
        if getattr(ours, role) != getattr(theirs, role):
            print(f"{role}: expected {getattr(theirs, role)}, found {getattr(ours, role)}")
            good = False
    if set(ours.all_special_ids) != set(theirs.all_special_ids):
        print(f"special ids: expected {theirs.all_special_ids}, found {ours.all_special_ids}")
        good = False
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 12"}, {"role": "user", "content": "x"}]
    if theirs.chat_template is not None:
        a, b = (t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (theirs, ours))
        good &= compare("chat template", [a], [a], [b])

    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
        imported = AutoModelForCausalLM.from_pretrained(args.dir, dtype=torch.float32).eval()
        for text in ["The capital of France is Paris. 12 + 30 =", chat[0]["content"], "def f(x):\n    return x"]:
            ids = torch.tensor([own.encode(text).ids])
            a, b = reference(ids).logits, imported(ids).logits
            print(f"logits: greatest difference {(a - b).abs().max():.2e}, greatest value {a.abs().max():.1f}")
            good &= bool((a - b).abs().max() < 1e-3)
        mine, other = imported.state_dict(), reference.state_dict()
        same = mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)
        print(f"weights bit-equal in float32: {same}")
        good &= same
    if args.write:
        with open(args.write, "w") as f:
            json.dump(list(zip(texts, expected)), f)
    print("equal" if good else "NOT equal")
    sys.exit(not good)


if __name__ == "__main__":
    main()
