"""Compares ft's token ids with those of transformers on texts that tokenizers often treat differently.

    python tests/reference/token_ids.py FT [DIR ...]

FT is the binary, DIR a folder with a tokenizer; without one, those of tests/fixtures. Each text is encoded as transformers
does by default, including special tokens that the tokenizer adds. tests/fixtures/added-tokens/make.py and
sentencepiece/make.py write the ids of more kinds of folders (added tokens, tokenizer.model alone) for tests/it/data/tokenizer.rs.

Written for transformers 5.23; sentencepiece and protobuf are needed for a tokenizer.model.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import transformers

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDERS = ["tiny-tokenizer", "spm-tokenizer", "sentencepiece/llama"]
TEXTS = [
    "", " ", "  ", "a", " a", "a ", "the river", "the  river", "the ", " the river ", "\n", "\n\n", "a\nb", "a\n\nb\n", "\ta\tb",
    "Hello, world!", "don't I'll we've", "1234567", "3.14159", "x=1;y=2", "a_b-c/d\\e", "((()))", "....", "—", "naïve", "e\u0301",
    "Straße", "漢字かな", "日本語のテキスト", "한국어", "مرحبا بالعالم", "محمد علی", "हिन्दी", "ภาษาไทย", "😀", "👩\u200d⚕️", "🇩🇪", "ﬁne", "½ Ⅷ ①",
    "\u00a0nbsp", "\u200bzero", "\u202eturned", "ａｂ", "x" * 200, "ab" * 100, "<s>", "</s>", "<|im_start|>user\nhi<|im_end|>\n",
    "a<|im_end|>b", "<|im_end|> a", "<unk>", "[INST] one [/INST]", "UPPER lower Title", "if (a) {\n    return b;\n}",
    "https://example.org/a?b=c&d=e", "{\"a\": [1, 2.5, null]}", "$x^2$ \\frac{1}{2}", "a\u0000b", "\ufeffbom", "é" * 30, "1 2  3   4",
]  # fmt: skip


def ours(ft, folder, text):
    """Returns the ids of ft. The text goes to standard input: an argument cannot contain every character."""
    done = subprocess.run(
        [ft, "tokenizer", "show", "--json", "--model", str(folder)], input=text.encode(), capture_output=True, check=False
    )
    if done.returncode:
        return done.stderr.decode(errors="replace").strip()
    return json.loads(done.stdout)["ids"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ft")
    parser.add_argument("folders", nargs="*", type=Path)
    args = parser.parse_args()
    wrong = compared = 0
    for folder in args.folders or [FIXTURES / name for name in FOLDERS]:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda text: ours(args.ft, folder, text), TEXTS))
        for text, ids in zip(TEXTS, found):
            expected = theirs(text)["input_ids"]
            compared += 1
            if ids != expected:
                wrong += 1
                print(f"{folder}: {text[:60]!r}\n  transformers {expected[:40]}\n  ft           {str(ids)[:200]}")
    print(f"{compared} encodings, {wrong} differ")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
