"""Compares files that `ft export` quantises with those that llama.cpp's own quantiser makes: the format and the bytes of every tensor.

    npm install --prefix DIR --ignore-scripts node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
    python tests/reference/check_quantisers.py FT --modules DIR/node_modules
    python tests/reference/check_quantisers.py FT --modules DIR/node_modules --model models/smollm2-135m-instruct

Random models of some families with many layers are exported as F32, and that file is quantised by `llama_model_quantize` of libllama,
called by ctypes, into every format; ft exports the model in the same formats. Formats without a mix are made with `pure`. The seconds
of both are told. Importance matrices are compared in the tests (quantisers.safetensors).

Written for transformers 5.23, gguf 0.19, node-llama-cpp 3.22.1 (llama.cpp v0.5.0).
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_llama_cpp import make  # noqa: E402

# Formats: llama.cpp's number, and whether every matrix has the same.
FORMATS = {
    "q4_0": (2, True), "q4_1": (3, True), "iq4_nl": (25, True), "q5_0": (8, True), "q5_1": (9, True), "q8_0": (7, True), "q6_k": (18, True),
    "q2_k": (10, False), "q3_k_s": (11, False), "q3_k_m": (12, False), "q3_k_l": (13, False), "q4_k_s": (14, False), "q4_k_m": (15, False),
    "q5_k_s": (16, False), "q5_k_m": (17, False),
}  # fmt: skip
WIDE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=18)
CASES = [
    ("llama", "llama", dict(**WIDE, num_attention_heads=8, num_key_value_heads=2, head_dim=32)),
    ("llama, two heads a key, tied", "llama", dict(**WIDE, num_attention_heads=8, num_key_value_heads=4, head_dim=32, tie_word_embeddings=True)),
    ("llama, narrow rows", "llama", dict(hidden_size=96, intermediate_size=256, num_hidden_layers=9, num_attention_heads=4, head_dim=24)),
    ("llama, rows of no block", "llama", dict(hidden_size=64, intermediate_size=72, num_hidden_layers=3)),
    ("qwen3", "qwen3", dict(**WIDE, head_dim=32, num_attention_heads=8, num_key_value_heads=1)),
    ("phi3", "phi3", dict(**WIDE, num_attention_heads=8, sliding_window=None, original_max_position_embeddings=256)),
    ("gpt2", "gpt2", dict(n_embd=256, n_layer=18, n_head=4, n_positions=256, tie_word_embeddings=True)),
    ("falcon", "falcon", dict(hidden_size=256, num_hidden_layers=18, multi_query=True)),
    ("mixtral of 8", "mixtral", dict(**WIDE, num_local_experts=8, num_experts_per_tok=2, sliding_window=None)),
    ("mixtral of 4", "mixtral", dict(**WIDE, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
]  # fmt: skip


class Params(ctypes.Structure):
    """llama_model_quantize_params, as far as it is set here; the rest keeps its defaults."""

    _fields_ = [
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("output", ctypes.c_int32), ("embedding", ctypes.c_int32),
        ("allow_requantize", ctypes.c_bool), ("quantize_output", ctypes.c_bool), ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool),
        ("rest", ctypes.c_uint8 * 108),
    ]  # fmt: skip


class Llama:
    def __init__(self, modules):
        folder = next(Path(modules).glob("@node-llama-cpp/*/bins/*/libggml-base.so")).parent
        for name in ("libggml-base.so", "libggml-cpu-x64.so", "libggml.*so*", "libllama.*so*"):
            for file in sorted(folder.glob(name)):
                self.library = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        self.library.llama_model_quantize_default_params.restype = Params
        self.library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
        self.callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self.library.llama_log_set(self.callback, None)

    def quantise(self, source, out, number, pure, threads):
        params = self.library.llama_model_quantize_default_params()
        params.ftype, params.pure, params.nthread = number, pure, threads
        if self.library.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
            sys.exit(f"llama.cpp could not quantise {source}")


def ft_export(ft, model, out, kind):
    done = subprocess.run([ft, "export", model, "--to", "gguf", "--type", kind, "--out", out, "--force"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def tensors(path):
    return {t.name: (t.tensor_type.name, t.data.tobytes(), t.n_elements) for t in gguf.GGUFReader(path).tensors}


def compare(args, llama, title, model):
    """Compares every format of one model; returns the number of differences."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source, ours, theirs = (folder / f"{name}.gguf" for name in ("source", "ours", "theirs"))
        ft_export(args.ft, model, source, "f32")
        for kind, (number, pure) in FORMATS.items():
            if args.only and kind not in args.only:
                continue
            began = time.time()
            ft_export(args.ft, model, ours, kind)
            made = time.time()
            llama.quantise(source, theirs, number, pure, args.threads)
            seconds = (made - began, time.time() - made)
            a, b = tensors(ours), tensors(theirs)
            formats = [(n, a[n][0], b[n][0]) for n in a if a[n][0] != b[n][0]]
            bytes_ = [n for n in a if a[n][0] == b[n][0] and a[n][1] != b[n][1]]
            wrong += len(formats) + len(bytes_) + (set(a) != set(b))
            told = f"{len(formats)} formats and the bytes of {len(bytes_)} tensors differ" if formats or bytes_ else "equal"
            print(f"{title}, {kind}: {len(a)} tensors, {told} {formats[:4]} {bytes_[:4]}; seconds: {seconds[0]:.1f}, llama.cpp {seconds[1]:.1f}", flush=True)
    return wrong


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ft")
    p.add_argument("--modules", required=True)
    p.add_argument("--model", help="a model's directory instead of random ones")
    p.add_argument("--only", nargs="*", help="formats")
    p.add_argument("--family", help="only random models of this family")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    llama = Llama(args.modules)
    if args.model:
        return sys.exit(compare(args, llama, args.model, args.model) > 0)
    wrong = 0
    for title, family, more in [case for case in CASES if args.family in (None, case[1])]:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            make(family, more, model)
            wrong += compare(args, llama, title, str(model))
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
