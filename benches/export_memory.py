"""Measures memory and time of exports to GGUF of a random llama with a billion weights in bfloat16, beside the `gguf` package.

For each format: the highest memory of the process's own (RssAnon of /proc/PID/status, read every 10 ms), that with the pages of
mapped files (VmHWM), the first in multiples of the largest tensor in float32, and seconds, by the clock and of all processors together. ft reads the file back, rounds the model again
and compares; the package (`gguf.quants.quantize`, one tensor at a time) only rounds and writes. Formats that the package does not write
are left out for it. Run by `make bench-exports-memory`; needs numpy, gguf and 6 GB of disk.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPANIONS = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json"]
FORMATS = ["q4_k_m", "q8_0", "q4_0"]


def shapes(args):
    """Returns the shape of each tensor of a llama whose head is its embedding."""
    d, f, kv = args.hidden, args.inner, args.hidden // 4
    found = {"model.embed_tokens.weight": (args.vocabulary, d), "model.norm.weight": (d,)}
    for i in range(args.layers):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.{norm}.weight": (d,) for norm in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{layer}.self_attn.{name}.weight": size for name, size in dict(q_proj=(d, d), k_proj=(kv, d), v_proj=(kv, d), o_proj=(d, d)).items()}
        found |= {f"{layer}.mlp.{name}.weight": size for name, size in dict(gate_proj=(f, d), up_proj=(f, d), down_proj=(d, f)).items()}
    return found


def size(shape):
    n = 1
    for length in shape:
        n *= length
    return n


def write_model(args, folder):
    """Writes a model of random numbers, one tensor in memory at a time."""
    import numpy as np

    heads = args.hidden // 64
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=args.hidden, intermediate_size=args.inner, num_hidden_layers=args.layers,
        num_attention_heads=heads, num_key_value_heads=heads // 4, vocab_size=args.vocabulary, max_position_embeddings=4096, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=True, torch_dtype="bfloat16", hidden_act="silu", bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in COMPANIONS:
        if (args.model / name).is_file():
            shutil.copy(args.model / name, folder)
    header, at = {}, 0
    for name, shape in shapes(args).items():
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[at, at + 2 * size(shape)])
        at += 2 * size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(1)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes(args).values():
            left = size(shape)
            while left:
                values = random.standard_normal(min(left, 1 << 22), dtype=np.float32) * np.float32(0.02)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= len(values)


def by_package(folder, kind, out):
    """Rounds each matrix of a model with the `gguf` package and writes the bytes one after another."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[kind]
    file = folder / "model.safetensors"
    with open(file, "rb") as header:
        length = int.from_bytes(header.read(8), "little")
        tensors = json.loads(header.read(length))
    data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + length)
    with open(out, "wb") as written:
        for entry in tensors.values():
            start, end = entry["data_offsets"]
            values = (data[start:end].view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
            written.write((gguf.quants.quantize(values, kind) if values.ndim == 2 else values).tobytes())


def measure(line):
    """Runs a command; returns its seconds, those of processors, and the highest RssAnon and VmHWM in bytes; None if it cannot write the format."""
    began, peak, before = time.time(), [0, 0], processor_seconds()
    process = subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for i, key in enumerate(("RssAnon:", "VmHWM:")):
            found = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key)]
            peak[i] = max([peak[i], *found])
        time.sleep(0.01)
    said = process.communicate()[1]
    if "NotImplementedError" in said:
        return None
    if process.returncode:
        sys.exit(f"{' '.join(map(str, line))} failed:\n{said[-2000:]}")
    return time.time() - began, processor_seconds() - before, *peak


def processor_seconds():
    """Returns the time that processors have worked for all commands that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=ROOT / "target/release/ft", type=Path)
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path, help="whose tokenizer is used")
    p.add_argument("--work", type=Path, help="where the files are written [default: a temporary folder]")
    p.add_argument("--hidden", type=int, default=2048)
    p.add_argument("--inner", type=int, default=8192)
    p.add_argument("--layers", type=int, default=16)
    p.add_argument("--vocabulary", type=int, default=49152)
    p.add_argument("--only", nargs="*", default=FORMATS)
    p.add_argument("--package", nargs=3, metavar=("MODEL", "TYPE", "FILE"), help="round a model with the package, and nothing else")
    args = p.parse_args()
    if args.package:
        folder, kind, out = args.package
        return by_package(Path(folder), kind, Path(out))
    every = shapes(args)
    largest = max(every, key=lambda name: size(every[name]))
    bound = 4 * size(every[largest])
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        model, out = Path(folder) / "model", Path(folder) / "out.gguf"
        model.mkdir()
        write_model(args, model)
        parameters = sum(map(size, every.values()))
        print(f"{parameters / 1e9:.2f} billion weights; the largest tensor, {largest}, has {bound / 1e6:.0f} MB in float32\n")
        print("| format | program | seconds | of processors | own memory, MB | of the largest tensor | with mapped files, MB |\n|---|---|---|---|---|---|---|")
        for kind in args.only:
            name = {"q4_k_m": "Q4_K"}.get(kind, kind.upper())
            lines = {
                "ft": [args.ft, "export", model, "--to", "gguf", "--type", kind, "--out", out, "--force"],
                "gguf": [sys.executable, __file__, "--package", model, name, out],
            }
            for program, line in lines.items():
                found = measure(line)
                if found is None:
                    print(f"| {kind} | {program} | not written | | | | |", flush=True)
                    continue
                seconds, busy, own, whole = found
                print(f"| {kind} | {program} | {seconds:.1f} | {busy:.1f} | {own / 1e6:.0f} | {own / bound:.2f} | {whole / 1e6:.0f} |", flush=True)
                out.unlink()


if __name__ == "__main__":
    main()
