"""Makes models of known shapes with random weights, and rows of an exact number of tokens. Standard library only.

Speed and memory of training depend on a model's shape, not on what it has learnt, so a machine without access to a
model hub can be measured with these. The weights are random bfloat16 numbers of the size that models are initialised
with: matrix units need less power, and so run faster, on zeros.
"""

import json
import math
import os
import random
import re
import shutil
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "datasets/stories/tokenizer"

# config.json of each shape. `tiny` is for checks of the programs themselves.
SHAPES = {
    "tiny": dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=640,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    ),
    "SmolLM2-135M": dict(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_theta=100000.0,
    ),
    "TinyLlama-1.1B": dict(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    ),
    "Llama-2-7B": dict(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
}
COMMON = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    hidden_act="silu",
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    initializer_range=0.02,
    attention_bias=False,
    mlp_bias=False,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=1,
    torch_dtype="bfloat16",
)
BLOCK = 64 << 20  # bytes of random numbers, from which all weights are cut


def tensors(config):
    """Yields (name, shape) of every weight of a llama model."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    key_values = width // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", [config["vocab_size"], width]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", [width]
        yield layer + "self_attn.q_proj.weight", [width, width]
        yield layer + "self_attn.k_proj.weight", [key_values, width]
        yield layer + "self_attn.v_proj.weight", [key_values, width]
        yield layer + "self_attn.o_proj.weight", [width, width]
        yield layer + "post_attention_layernorm.weight", [width]
        yield layer + "mlp.gate_proj.weight", [wide, width]
        yield layer + "mlp.up_proj.weight", [wide, width]
        yield layer + "mlp.down_proj.weight", [width, wide]
    yield "model.norm.weight", [width]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [config["vocab_size"], width]


def bytes_of(shape):
    """Returns the size of a shape's weights in bytes."""
    return sum(2 * math.prod(size) for _, size in tensors(SHAPES[shape]))


def random_block(size):
    """Returns `size` bytes of bfloat16 numbers of both signs, whose absolute values lie between 2^-7 and 2^-5."""
    chance = random.Random(7)
    block = bytearray(size)
    block[0::2] = chance.randbytes(size // 2)  # low bytes: the exponent's last bit and the mantissa
    block[1::2] = chance.randbytes(size // 2).translate(bytes(0x3C if b < 128 else 0xBC for b in range(256)))
    return block


def make(shape, folder):
    """Writes a model directory, unless it exists. Returns its path."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = COMMON | SHAPES[shape]
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, size in tensors(config):
        count = 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [at, at + count]}
        at += count
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    block = memoryview(random_block(min(BLOCK, at)))
    chance = random.Random(11)
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for name, size in tensors(config):
            left = 2 * math.prod(size)
            if len(size) == 1:
                f.write(struct.pack("<H", 0x3F80) * size[0])  # a norm's weights are 1
                continue
            offset = 2 * chance.randrange(len(block) // 2)
            while left:
                part = block[offset : offset + left]
                f.write(part)
                left, offset = left - len(part), 0
    # Written last: its presence says that the weights are complete.
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=1) + "\n")
    os.replace(partial, folder / "config.json")
    return folder


def words():
    """Returns the texts of the tokenizer that are one token each wherever they stand, by token id: a space and a
    word."""
    vocabulary = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    return {i: " " + text[1:] for text, i in vocabulary.items() if re.fullmatch("Ġ[a-z]+", text)}


def rows(lengths, seed=3):
    """Returns rows of exactly these numbers of tokens, as (text, ids). The last id is the end token, 0, which ft
    appends to the text."""
    chance, known = random.Random(seed), words()
    ids = sorted(known)
    made = []
    for length in lengths:
        row = [chance.choice(ids) for _ in range(length - 1)]
        made.append(("".join(known[i] for i in row), [*row, 0]))
    return made
