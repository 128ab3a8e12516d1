#!/usr/bin/env python3
"""Writes the hostile inputs of this folder. Python 3.11, standard library only: `python3 tests/hostile/make.py`.

Each file <kind>/<name> replaces a valid file of its kind; tests/it/hostile_files.rs does this and checks the error. All files
are small; large inputs are generated while the tests run.
"""

import json
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"


def put(name: str, data: bytes | str) -> None:
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


# ---- safetensors: each becomes model.safetensors of a directory whose config.json is valid


def header(text: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(name: str, start: int, end: int, shape="[4]", dtype="F32") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


A, B = entry("a", 0, 16), entry("b", 16, 32)
SAFETENSORS = {
    "overlap": header("{%s,%s}" % (A, entry("b", 8, 24)), bytes(24)),
    "hole": header("{%s,%s}" % (A, entry("b", 32, 48)), bytes(48)),
    "starts-late": header("{%s}" % entry("a", 16, 32), bytes(32)),
    "end-before-start": header("{%s}" % entry("a", 16, 0), bytes(16)),
    "duplicate-key": header("{%s,%s}" % (A, entry("a", 16, 32)), bytes(32)),
    "not-utf8": header(b'{"\xff\xfe":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
    "lone-surrogate": header('{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
    "deep": header('{"a":' + "[" * 20000 + "]" * 20000 + "}"),
    "array": header("[1, 2, 3]"),
    "negative-shape": header("{%s}" % entry("a", 0, 16, "[-4]"), bytes(16)),
    "fraction-shape": header("{%s}" % entry("a", 0, 16, "[4.0]"), bytes(16)),
    "overflow-shape": header("{%s}" % entry("a", 0, 16, "[4294967296,4294967296,4294967296]"), bytes(16)),
    "product-overflow": header("{%s}" % entry("a", 0, 0, "[9223372036854775807,2]"), b""),
    "zero-and-huge": header("{%s}" % entry("a", 0, 0, "[0,18446744073709551615]"), b""),
    "offset-overflow": header("{%s}" % entry("a", 18446744073709551600, 18446744073709551615), bytes(16)),
    "no-offsets": header('{"a":{"dtype":"F32","shape":[4]}}', bytes(16)),
    "null-dtype": header('{"a":{"dtype":null,"shape":[4],"data_offsets":[0,16]}}', bytes(16)),
    "metadata-number": header('{"__metadata__":{"a":1},%s}' % A, bytes(16)),
    "length-2-63": header("{}", b"", 1 << 63),
    "length-100mb": header("{}", b"", 100_000_001),
    "no-tensors": header("{}"),
    "nul-name": header("{%s}" % entry("a\\u0000b", 0, 16), bytes(16)),
    "escape-name": header("{%s}" % entry("\\u001b[31mred", 0, 16), bytes(16)),
    "long-name": header("{%s}" % entry("a" * 60000, 0, 16), bytes(16)),
    "bool-shape": header("{%s}" % entry("a", 0, 16, "[true]"), bytes(16)),
    "many-dimensions": header("{%s}" % entry("a", 0, 4, "[" + ",".join(["1"] * 5000) + "]"), bytes(4)),
    "pickle": b"\x80\x02}q\x00X\x06\x00\x00\x00weightq\x01cos\nsystem\nq\x02X\x02\x00\x00\x00lsq\x03\x85q\x04Rq\x05s.",
}
for name, data in SAFETENSORS.items():
    put(f"safetensors/{name}.safetensors", data)

# ---- model.safetensors.index.json of a directory without model.safetensors

INDEX = {
    "parent": {"weight_map": {"a": "../model.safetensors"}},
    "deep-parent": {"weight_map": {"a": "x/../../model.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "dot": {"weight_map": {"a": "."}},
    "nothing": {"weight_map": {"a": ""}},
    "nul": {"weight_map": {"a": "model\x00.safetensors"}},
    "missing-shard": {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
    "config": {"weight_map": {"a": "config.json"}},
    "itself": {"weight_map": {"a": "model.safetensors.index.json"}},
    "number": {"weight_map": {"a": 1}},
    "list": {"weight_map": ["a"]},
    "no-map": {"metadata": {}},
    "empty-map": {"weight_map": {}},
    "long-name": {"weight_map": {"a": "s" * 5000 + ".safetensors"}},
}
for name, value in INDEX.items():
    put(f"index/{name}.json", json.dumps(value))
put("index/deep.json", '{"weight_map":' + "[" * 20000)
put("index/duplicate.json", '{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}')
put("index/empty.json", "")
put("index/not-utf8.json", b'{"weight_map":{"\xff":"one.safetensors"}}')

# ---- config.json of a directory whose weights are valid (tiny-llama)

SOUND = json.loads((FIXTURES / "tiny-llama/config.json").read_text())


def config(name: str, **changes) -> None:
    put(f"config/{name}.json", json.dumps({**SOUND, **changes}))


config("zero-heads", num_attention_heads=0)
config("zero-kv-heads", num_key_value_heads=0)
config("heads-do-not-divide", num_attention_heads=3, num_key_value_heads=2)
config("negative-layers", num_hidden_layers=-1)
config("zero-layers", num_hidden_layers=0)
config("huge-layers", num_hidden_layers=2**62)
config("huge-width", hidden_size=2**40)
config("huge-heads", num_attention_heads=2**24, num_key_value_heads=2**24, head_dim=2**24)
config("huge-vocabulary", vocab_size=10**18)
config("fraction", hidden_size=64.5)
config("number-as-text", hidden_size="64")
config("null-width", hidden_size=None)
config("head-dim-odd", head_dim=7)
config("head-dim-zero", head_dim=0)
config("negative-eps", rms_norm_eps=-1.0)
ROPE = SOUND["rope_parameters"]
config("theta-zero", rope_parameters={**ROPE, "rope_theta": 0})
config("theta-negative", rope_parameters={**ROPE, "rope_theta": -10000.0})
config("theta-text", rope_parameters={**ROPE, "rope_theta": "10000"})
config("rope-list", rope_scaling=[1, 2])
config("rope-unknown", rope_parameters={**ROPE, "rope_type": "moebius", "factor": 2.0})
config("rope-factor-zero", rope_parameters={**ROPE, "rope_type": "linear", "factor": 0})
config("rope-factor-negative", rope_parameters={**ROPE, "rope_type": "linear", "factor": -2.0})
config("positions-negative", max_position_embeddings=-5)
config("positions-zero", max_position_embeddings=0)
config("window-negative", sliding_window=-4)
config("window-zero", sliding_window=0)
config("tie-text", tie_word_embeddings="yes")
config("quantised", quantization_config={"quant_method": "gptq", "bits": 4})
config("type-number", model_type=3)
config("type-unknown", model_type="llama-9000")
config("type-path", model_type="../../llama")
config("act-unknown", hidden_act="relu2")
put("config/list.json", "[]")
put("config/empty.json", "")
put("config/deep.json", '{"a":' * 20000)
put("config/truncated.json", json.dumps(SOUND)[:100])
put("config/nan.json", json.dumps({**SOUND, "rms_norm_eps": float("nan")}))
put("config/huge-number.json", json.dumps(SOUND).replace('"hidden_size": 64', '"hidden_size": 1e999'))
put("config/duplicate.json", json.dumps(SOUND)[:-1] + ', "hidden_size": 48}')
put("config/not-utf8.json", b'{"model_type": "\xff"}')
put("config/bom.json", b"\xef\xbb\xbf" + json.dumps(SOUND).encode()[:-1])

# ---- GGUF

TEXT, U32, U64, ARRAY, F32 = 8, 4, 10, 9, 6


def gguf_text(s: bytes | str, length: int | None = None) -> bytes:
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s) if length is None else length) + s


def gguf(keys: list[bytes] = [], tensors: list[bytes] = [], data=b"", n_keys=None, n_tensors=None, version=3, magic=b"GGUF"):
    counts = struct.pack("<QQ", len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    body = magic + struct.pack("<I", version) + counts + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + data


def key(name: str, kind: int, raw: bytes) -> bytes:
    return gguf_text(name) + struct.pack("<I", kind) + raw


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    n = len(dims) if n_dims is None else n_dims
    return gguf_text(name) + struct.pack("<I", n) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)


LLAMA = key("general.architecture", TEXT, gguf_text("llama"))


def with_sizes(**sizes: int) -> list[bytes]:
    full = {"context_length": 128, "embedding_length": 64, "block_count": 3, "feed_forward_length": 160, "attention.head_count": 4, "attention.head_count_kv": 2, **sizes}
    return [LLAMA] + [key(f"llama.{k}", U32, struct.pack("<I", v)) for k, v in full.items()]


GGUF = {
    "empty": b"",
    "magic-only": b"GGUF",
    "wrong-magic": gguf(magic=b"GGML"),
    "version-1": gguf(version=1),
    "version-9": gguf(version=9),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "nothing-inside": gguf(),
    "absurd-tensors": gguf(n_tensors=2**63),
    "absurd-keys": gguf(n_keys=2**61),
    "one-key-too-many": gguf([LLAMA], n_keys=2),
    "absurd-string": gguf([gguf_text("general.name", 2**62)]),
    "absurd-text-value": gguf([key("general.name", TEXT, struct.pack("<Q", 2**64 - 1))]),
    "absurd-array": gguf([key("a", ARRAY, struct.pack("<IQ", TEXT, 2**60))]),
    "array-wraps": gguf([key("a", ARRAY, struct.pack("<IQ", U64, 2**61))]),
    "nested-arrays": gguf([key("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 2000 + struct.pack("<IQ", U32, 0))]),
    "unknown-value-type": gguf([key("a", 77, b"")]),
    "bool-two": gguf([key("a", 7, b"\x02")]),
    "key-not-utf8": gguf([gguf_text(b"\xff\xff") + struct.pack("<II", U32, 0)]),
    "key-twice": gguf([LLAMA, LLAMA]),
    "alignment-zero": gguf([LLAMA, key("general.alignment", U32, struct.pack("<I", 0))]),
    "alignment-three": gguf([LLAMA, key("general.alignment", U32, struct.pack("<I", 3))]),
    "alignment-2-31": gguf([LLAMA, key("general.alignment", U32, struct.pack("<I", 2**31))]),
    "alignment-text": gguf([LLAMA, key("general.alignment", TEXT, gguf_text("32"))]),
    "dimensions-five": gguf([LLAMA], [tensor("t", [1] * 5)]),
    "dimensions-absurd": gguf([LLAMA], [tensor("t", [1], n_dims=2**32 - 1)]),
    "dimension-overflow": gguf([LLAMA], [tensor("t", [2**32, 2**32, 2**32])]),
    "dimension-2-64": gguf([LLAMA], [tensor("t", [2**64 - 1])]),
    "dimension-zero": gguf([LLAMA], [tensor("t", [0, 4])]),
    "type-unknown": gguf([LLAMA], [tensor("t", [32], kind=999)]),
    "type-removed": gguf([LLAMA], [tensor("t", [32], kind=4)]),
    "type-unsupported": gguf([LLAMA], [tensor("t", [256], kind=16)]),
    "row-no-block": gguf([LLAMA], [tensor("t", [33], kind=8)], bytes(64)),
    "offset-beyond": gguf([LLAMA], [tensor("t", [8], offset=4096)], bytes(32)),
    "offset-wraps": gguf([LLAMA], [tensor("t", [8], offset=2**64 - 32)], bytes(32)),
    "offset-unaligned": gguf([LLAMA], [tensor("t", [8], offset=4)], bytes(64)),
    "tensors-overlap": gguf([LLAMA], [tensor("t", [16]), tensor("u", [16], offset=32)], bytes(96)),
    "tensor-twice": gguf([LLAMA], [tensor("t", [8]), tensor("t", [8], offset=32)], bytes(64)),
    "name-empty": gguf(with_sizes(), [tensor("", [8])], bytes(32)),
    "no-architecture": gguf([key("general.name", TEXT, gguf_text("x"))]),
    "architecture-number": gguf([key("general.architecture", U32, struct.pack("<I", 1))]),
    "architecture-unknown": gguf([key("general.architecture", TEXT, gguf_text("mamba"))]),
    "zero-heads": gguf(with_sizes(**{"attention.head_count": 0})),
    "zero-blocks": gguf(with_sizes(block_count=0)),
    "huge-blocks": gguf(with_sizes(block_count=2**32 - 1)),
    "huge-width": gguf(with_sizes(embedding_length=2**32 - 1)),
    "no-vocabulary": gguf(with_sizes(), [tensor("token_embd.weight", [64, 512], kind=1)], bytes(65536)),
}
for name, data in GGUF.items():
    put(f"gguf/{name}.gguf", data)
whole = (FIXTURES / "gguf/llama-spm.gguf").read_bytes()
for cut in (30, 200, 3000):
    put(f"gguf/cut-{cut}.gguf", whole[:cut])

# ---- rows

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
GOOD = json.dumps(ROW) + "\n"
ROWS = {
    "bad-line.jsonl": GOOD * 2 + '{"messages": [{"role": "user"\n' + GOOD,
    "lone-surrogate.jsonl": GOOD + GOOD.replace("Hello", "\\ud83d"),
    "raw-surrogate.jsonl": GOOD.encode() + GOOD.encode().replace(b"Hello", b"\xed\xa0\xbd"),
    "nul-byte.jsonl": GOOD.encode() + GOOD.encode().replace(b"Hello", b"He\x00llo"),
    "nul-bytes-only.jsonl": bytes(200),
    "not-utf8.jsonl": GOOD.encode() + GOOD.encode().replace(b"Hello", b"\xe9t\xe9"),
    "utf16.jsonl": b"\xff\xfe" + GOOD.encode("utf-16-le"),
    "empty.jsonl": "",
    "blank.jsonl": "\n\n  \n",
    "bom-only.jsonl": b"\xef\xbb\xbf",
    "array-line.jsonl": GOOD + "[1, 2]\n",
    "number-line.jsonl": GOOD + "3\n",
    "two-objects.jsonl": GOOD.strip() + GOOD,
    "nan.jsonl": GOOD.replace('"Hello"', "NaN"),
    "deep.jsonl": '{"messages":' + "[" * 100_000 + "]" * 100_000 + "}\n",
    "number-1e999.jsonl": '{"messages": [{"role": "user", "content": 1e999}]}\n',
    "role-number.jsonl": GOOD.replace('"user"', "7"),
    "content-object.jsonl": GOOD.replace('"Hello"', '{"a": 1}'),
    "messages-text.jsonl": '{"messages": "Hi"}\n',
    "messages-empty.jsonl": '{"messages": []}\n',
    "keys-unknown.jsonl": '{"foo": "bar", "baz": 1}\n',
    "array-cut.json": "[" + GOOD.strip() + ",",
    "array-deep.json": "[" * 100_000,
    "array-of-numbers.json": "[1, 2, 3]",
    "array-then-more.json": "[" + GOOD.strip() + "]" + GOOD,
    "ragged.csv": "prompt,completion\na,b\nc\nd,e,f\n",
    "open-quote.csv": 'prompt,completion\n"a,b\nc,d\n',
    "not-utf8.csv": b"prompt,completion\na,\xff\xfe\n",
    "header-only.csv": "prompt,completion\n",
    "header-twice.csv": "prompt,prompt\na,b\n",
    "empty.csv": "",
    "cut.parquet": b"PAR1" + bytes(60),
    "footer-lies.parquet": b"PAR1" + bytes(60) + struct.pack("<I", 2**31 - 1) + b"PAR1",
    "footer-garbage.parquet": b"PAR1" + bytes(range(60)) + struct.pack("<I", 40) + b"PAR1",
    "empty.parquet": b"",
    "cut.arrow": b"ARROW1\x00\x00" + bytes(40),
    "footer-lies.arrow": b"ARROW1\x00\x00" + bytes(40) + struct.pack("<i", 2**31 - 1) + b"ARROW1",
    "empty.arrow": b"",
    "text.parquet": GOOD,
    "rows.exe": GOOD,
    "rows.jsonl.gz": b"\x1f\x8b" + bytes(20),
}
for name, data in ROWS.items():
    put(f"rows/{name}", data)

# ---- chat templates: each becomes chat_template.jinja next to a valid tokenizer

TEMPLATES = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "recurses": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recurses-twice": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 2) }}{% endmacro %}{{ f(0) }}",
    "huge-string": "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "huge-repeat": "{{ 'a' * 100000000000 }}",
    "huge-list": "{{ ([0] * 1000000000) | length }}",
    "huge-range": "{{ range(1000000000000) | list | length }}",
    "huge-join": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join(ns.s) %}{% endfor %}{{ ns.s | length }}",
    "huge-replace": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(30) %}{% set ns.s = ns.s.replace('a', 'aaaaaaaa') %}{% endfor %}{{ ns.s | length }}",
    "huge-indent": "{% set ns = namespace(s='a\\nb') %}{% for i in range(40) %}{% set ns.s = ns.s | indent(1000000000) %}{% endfor %}{{ ns.s | length }}",
    "huge-format": "{{ '%100000000000d' | format(1) }}",
    "deep-sum": "{{ 1" + "+1" * 100000 + " }}{{ raise_exception('reached the end') }}",
    "deep-filters": "{{ 1" + "|int" * 50000 + " }}{{ raise_exception('reached the end') }}",
    "deep-attributes": "{{ a" + ".b" * 100000 + " }}",
    "deep-elif": "{% if a %}" + "{% elif a %}" * 20000 + "{% endif %}{{ raise_exception('reached the end') }}",
    "deep-if": "{{ 1 " + "if a else 1 " * 20000 + "}}{{ raise_exception('reached the end') }}",
    "deep-power": "{{ 1" + "**1" * 50000 + " }}{{ raise_exception('reached the end') }}",
    "too-long": "{# " + "a" * 300000 + " #}",
    "huge-power": "{{ 10 ** 10 ** 10 }}",
    "huge-output": "{% for a in range(100000) %}{% for b in range(100000) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "no-such-function": "{{ open('/etc/passwd') }}",
    "no-such-filter": "{{ messages | shell }}",
    "no-such-method": "{{ messages[0].content.encode('utf-8') }}",
    "no-such-attribute": "{{ messages[0].author.name }}",
    "dunder": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "refuses": "{{ raise_exception('only Latin is spoken here') }}",
    "includes": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}{{ os.system('ls') }}",
    "extends": "{% extends 'chat' %}",
    "includes-itself": "{% include 'chat' %}",
    "unclosed": "{% for m in messages %}{{ m.content }}",
    "deep-brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep-blocks": "{% if true %}" * 5000 + "{% endif %}" * 5000,
    "deep-minus": "{{ " + "-" * 50000 + "1 }}{{ raise_exception('reached the end') }}",
    "deep-not": "{{ " + "not " * 20000 + "1 }}{{ raise_exception('reached the end') }}",
    "divides-by-zero": "{{ 1 // 0 }}",
    "index-beyond": "{{ messages[99].content }}",
    "not-utf8": b"{{ messages[0].content }}\xff",
}
for name, data in TEMPLATES.items():
    put(f"template/{name}.jinja", data)

# ---- tokenizer.json of an otherwise valid directory

TOKENIZER = json.loads((FIXTURES / "tiny-tokenizer/tokenizer.json").read_text())


def tokenizer(name: str, change) -> None:
    changed = json.loads(json.dumps(TOKENIZER))
    change(changed)
    put(f"tokenizer/{name}.json", json.dumps(changed, separators=(",", ":")))


def shift(t):
    t["model"]["vocab"] = {token: id + 5000 for token, id in t["model"]["vocab"].items()}


tokenizer("beyond-the-model", shift)
tokenizer("id-beyond-u32", lambda t: t["model"]["vocab"].update({list(t["model"]["vocab"])[-1]: 4294967296}))
tokenizer("negative-id", lambda t: t["model"]["vocab"].update({list(t["model"]["vocab"])[-1]: -1}))
tokenizer("merge-unknown", lambda t: t["model"].update(merges=[["no such", "token"]]))
tokenizer("no-model", lambda t: t.pop("model"))
tokenizer("model-unknown", lambda t: t["model"].update(type="Oracle"))
tokenizer("no-vocabulary", lambda t: t["model"].update(vocab={}, merges=[]))
tokenizer("bad-regex", lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False}))
put("tokenizer/empty.json", "")
put("tokenizer/truncated.json", json.dumps(TOKENIZER)[:2000])
put("tokenizer/list.json", "[]")
put("tokenizer/deep.json", '{"model":' * 20000)
put("tokenizer/not-utf8.json", b'{"version":"\xff"}')

# ---- adapter_config.json next to valid tensors

ADAPTER = json.loads((FIXTURES / "adapters/plain/adapter_config.json").read_text())


def adapter(name: str, **changes) -> None:
    put(f"adapter_config/{name}.json", json.dumps({**ADAPTER, **changes}))


adapter("rank-wrong", r=ADAPTER["r"] + 1)
adapter("rank-zero", r=0)
adapter("rank-negative", r=-8)
adapter("rank-huge", r=2**40)
adapter("rank-text", r="8")
adapter("rank-fraction", r=8.5)
adapter("alpha-text", lora_alpha="16")
adapter("dropout-two", lora_dropout=2.0)
adapter("targets-number", target_modules=3)
adapter("targets-empty", target_modules=[])
adapter("targets-unknown", target_modules=["no_such_proj"])
adapter("targets-bad-regex", target_modules="((((")
adapter("targets-slow-regex", target_modules="(.*a*)*(.*a*)*(.*a*)*x$")
adapter("type-ia3", peft_type="IA3")
adapter("type-missing", peft_type=None)
adapter("dora", use_dora=True)
adapter("fan-in-text", fan_in_fan_out="yes")
adapter("task-other", task_type="SEQ_CLS")
adapter("unknown-key", quantum_entanglement=True)
adapter("layers-text", layers_to_transform="all")
adapter("rank-pattern-list", rank_pattern=[1])
adapter("rank-pattern-text", rank_pattern={"q_proj": "8"})
put("adapter_config/empty.json", "")
put("adapter_config/list.json", "[]")
put("adapter_config/deep.json", '{"a":' * 20000)
put("adapter_config/nan.json", json.dumps({**ADAPTER, "lora_alpha": float("nan")}))

# ---- recipes

RECIPE = """model: { path: model, dtype: f32 }
method: { sft: {} }
adapter: { lora: { rank: 4, alpha: 8, targets: all-linear } }
data: { train: { path: rows.jsonl } }
batch: { tokens: 256, max_len: 64 }
optim: { lr: 1e-3 }
run: { steps: 2, out: out }
"""


def recipe(name: str, old: str, new: str) -> None:
    assert old in RECIPE, old
    put(f"recipe/{name}.yaml", RECIPE.replace(old, new))


recipe("unknown-key", "lr: 1e-3", "lr: 1e-3, momentun: 0.9")
recipe("unknown-section", "optim:", "optimiser:")
recipe("unknown-method", "sft: {}", "telepathy: {}")
recipe("two-methods", "{ sft: {} }", "{ sft: {}, dpo: {} }")
recipe("no-method", "{ sft: {} }", "{}")
recipe("method-tag", "{ sft: {} }", "!sft {}")
recipe("duplicate-key", "optim:", "optim: { lr: 1 }\noptim:")
recipe("tabs", "optim: { lr: 1e-3 }", "optim:\n\tlr: 1e-3")
recipe("lr-nan", "1e-3", ".nan")
recipe("lr-infinite", "1e-3", ".inf")
recipe("lr-negative", "1e-3", "-1e-3")
recipe("lr-1e999", "1e-3", "1e999")
recipe("lr-text", "1e-3", '"a lot"')
recipe("lr-list", "1e-3", "[1, 2]")
recipe("lr-map", "1e-3", "{ a: 1 }")
recipe("rank-zero", "rank: 4", "rank: 0")
recipe("rank-huge", "rank: 4", "rank: 99999999999999999999")
recipe("rank-2-40", "rank: 4", "rank: 1099511627776")
recipe("rank-fraction", "rank: 4", "rank: 4.5")
recipe("alpha-nan", "alpha: 8", "alpha: .nan")
recipe("targets-bad-regex", "all-linear", '"(((("')
recipe("tokens-zero", "tokens: 256", "tokens: 0")
recipe("tokens-huge", "tokens: 256", "tokens: 18446744073709551616")
recipe("max-len-above-tokens", "max_len: 64", "max_len: 100000")
recipe("steps-zero", "steps: 2", "steps: 0")
recipe("steps-negative", "steps: 2", "steps: -2")
recipe("steps-huge", "steps: 2", "steps: 1e30")
recipe("epochs-nan", "steps: 2", "epochs: .nan")
recipe("dtype-unknown", "f32", "f8")
recipe("no-model", "model: { path: model, dtype: f32 }\n", "")
recipe("model-missing", "path: model", "path: no/such/model")
recipe("data-missing", "rows.jsonl", "no-such.jsonl")
recipe("out-number", "out: out", "out: 3.5")
recipe("path-nul", "rows.jsonl", '"rows\\0.jsonl"')
recipe("alias-to-itself", "optim: { lr: 1e-3 }", "optim: &a { lr: *a }")
recipe("alias-unknown", "1e-3", "*nowhere")
recipe("merge-key", "optim: { lr: 1e-3 }", "optim: { <<: { lr: 1e-3 } }")
recipe("two-documents", "run:", "---\nrun:")
recipe("key-list", "optim:", "[a, b]: 1\noptim:")
recipe("key-empty", "optim:", '"": 1\noptim:')
recipe("unclosed", "optim: { lr: 1e-3 }", "optim: { lr: 1e-3")
recipe("unclosed-quote", "1e-3", '"1e-3')
recipe("percent", "optim:", "%YAML 9.9\noptim:")
put("recipe/empty.yaml", "")
put("recipe/comment-only.yaml", "# nothing\n")
put("recipe/list.yaml", "- 1\n- 2\n")
put("recipe/text.yaml", "hello")
put("recipe/not-utf8.yaml", RECIPE.encode().replace(b"rows.jsonl", b"r\xffws.jsonl"))
put("recipe/utf16.yaml", b"\xff\xfe" + RECIPE.encode("utf-16-le"))
put("recipe/nul.yaml", RECIPE.encode() + bytes(10))
put("recipe/deep-flow.yaml", "[" * 10000)
put("recipe/deep-map.yaml", "{a: " * 3000)
put("recipe/deep-block.yaml", "".join("  " * i + f"a{i}:\n" for i in range(200)))
put("recipe/deep-sequence.yaml", "- " * 5000 + "1\n")
bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
for i in range(1, 12):
    bomb += f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]\n"
put("recipe/aliases.yaml", bomb)
put("recipe/alias-maps.yaml", "a: &a {k: 1}\n" + "".join(f"m{i}: [{', '.join(['*a'] * 500)}]\n" for i in range(20)))
put("recipe/long-key.yaml", "k" * 100_000 + ": 1\n")
put("recipe/gguf.yaml", gguf([LLAMA]))
