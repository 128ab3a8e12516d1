"""Compares training, prompts and generation by ft and by its peers on several kinds of processors, in one run.

A kind is the machine's own instruction set (native) or a smaller one that all programs are limited to (avx2: like a
desktop processor without AVX-512 and without bfloat16 products). The machine's limits are measured before each turn, so
that a speed can be stated as a share of what was possible at that time. All programs alternate. Times do not include
loading the model. Run by `make bench-processors`; `--help` lists the options.
"""

import argparse
import copy
import json
import math
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import speed

# The kinds in ascending order, as FT_CPU names them: for each, the values with the same meaning for ATen, oneDNN and
# MKL (native/isa.cpp), and the names in /proc/cpuinfo of the instructions that it adds.
KINDS = {
    "avx2": ("avx2", "AVX2", "AVX2", ["avx2", "fma", "bmi2"]),
    "avx512": ("avx512", "AVX512_CORE", "AVX512", ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
    "avx512_bf16": ("avx512", "AVX512_CORE_BF16", "AVX512", ["avx512_bf16"]),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
# llama.cpp uses the best of its builds that the processor can run; these are removed to limit it to a kind.
LLAMA_BEYOND = {"avx512_bf16": ["sapphirerapids"]}
LLAMA_BEYOND["avx512"] = [*LLAMA_BEYOND["avx512_bf16"], "zen4", "cooperlake", "icelake", "cascadelake", "cannonlake"]
LLAMA_BEYOND["avx2"] = [*LLAMA_BEYOND["avx512"], "skylakex", "alderlake"]

TRAINERS = {"ft": "auto", "TRL f32": "f32", "TRL bf16": "bf16"}
WRITERS = {
    "ft": "auto", "ft f32": "f32", "ft bf16": "bf16",
    "transformers f32": "f32", "transformers bf16": "bf16", "llama.cpp": "Q4_1",
}
LONG = 1000  # tokens of the long prompt
PATIENCE = 30  # seconds after which a case is not repeated: bfloat16 can take minutes on a processor without bfloat16 products


def processor():
    """Returns the processor's name and its flags in /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    value = lambda key: next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
    return value("model name"), set(value("flags").split())


def is_more(flags, kind):
    """Returns true if a processor with `flags` supports `kind` and more, so that limiting it to `kind` has an
    effect."""
    later = list(KINDS)[list(KINDS).index(kind) + 1 :]
    beyond = [set(KINDS[k][3]) for k in later] + [{"amx_bf16"}]
    return set(KINDS[kind][3]) <= flags and any(needed <= flags for needed in beyond)


def has_bf16(flags, kind):
    """Returns true if `kind` has bfloat16 products."""
    return kind == "avx512_bf16" or kind == "native" and bool(flags & {"avx512_bf16", "amx_bf16"})


def environment(kind):
    """Returns environment variables that limit every program to `kind`."""
    env = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "FT_CPU", "DNNL_MAX_CPU_ISA")}
    if kind != "native":
        env |= dict(zip(VARIABLES, KINDS[kind])) | {"FT_CPU": kind}
    return env


@dataclass
class Shape:
    """Numbers of weights of a model, from which operations and bytes are computed."""

    layers: int  # weights of the layers
    head: int  # weights of the head
    adapter: int  # weights of a LoRA of rank 16 on all linear layers

    @classmethod
    def read(cls, model):
        layers = head = adapter = 0
        for file in model.glob("*.safetensors"):
            with open(file, "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            for name, tensor in header.items():
                if name == "__metadata__":
                    continue
                shape = tensor["shape"]
                if "embed_tokens" in name or "lm_head" in name:
                    head = math.prod(shape)
                else:
                    layers += math.prod(shape)
                    adapter += 16 * sum(shape) if len(shape) == 2 else 0
        return cls(layers, head, adapter)

    def prompt(self, tokens, rows):
        """Returns the operations of running prompts: two per weight and token, the head on last tokens only; attention
        is not counted."""
        return 2 * self.layers * tokens + 2 * self.head * rows

    def training(self, tokens, supervised):
        """Returns the operations of a LoRA step: forward and the input's gradient, the head on trained tokens only, all
        three of adapters."""
        return (4 * self.layers + 6 * self.adapter) * tokens + 4 * self.head * supervised

    def held(self, side, arithmetic, gguf):
        """Returns the bytes of weights that `side` reads for each generated token."""
        if side == "llama.cpp":
            return gguf.stat().st_size
        # ft keeps weights of a bfloat16 file in bfloat16, also if it computes in float32.
        return (self.layers + self.head) * (2 if side.startswith("ft") or arithmetic == "bf16" else 4)


def prompts(model, rows):
    """Returns 16 prompts of 52 to 68 tokens and one of LONG, as plain text that has the same tokens in every
    program."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    with open(rows) as f:
        texts = [json.loads(line)["text"] for line in f]
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    def cut(text, length):
        short = tokenizer.decode(ids(text)[:length], skip_special_tokens=False)
        return short if len(ids(short)) == length else None

    lengths = [52 + (i * 7 + 8) % 17 for i in range(16)]
    short, texts = [], iter(texts)
    while len(short) < 16:
        text = cut(next(texts), lengths[len(short)])
        if text:
            short.append(text)
    long, body = None, ""
    while not long:
        body += next(texts) + "\n"
        long = cut(body, LONG)
    total = [sum(len(ids(p)) for p in some) for some in (short[:1], short, [long])]
    return short, long, total


def limits(args, threads, env, sizes):
    settings = json.dumps({"threads": threads, "seconds": args.seconds, "sizes": sizes})
    command = [args.python, speed.HERE / "limits.py", settings]
    found = json.loads(subprocess.check_output(command, env=speed.peer_environment(threads, env)))
    found["read"] = {int(size): rate for size, rate in found["read"].items()}
    return found


def write_ft(args, side, cases, env, folder, at):
    """Measures generation by `ft generate`: one process per case, whose first batch warms it up."""
    times, memory, said = [], 0, []
    env = env | {"OMP_NUM_THREADS": str(at["threads"])}
    for case in cases:
        asked, timings = folder / "prompts.jsonl", folder / "timings.jsonl"
        rows = [json.dumps({"prompt": p}) + "\n" for p in case["prompts"]]
        asked.write_text("".join(rows * (1 + case["repeats"])))
        command = [
            args.ft, "generate", "--model", args.model, "--dtype", WRITERS[side], "--device", "cpu", "--input", asked, "--json",
            "--batch-size", str(len(rows)), "--greedy", "--max-new-tokens", str(case["new"]),
            "--min-new-tokens", str(case["new"]), "--timings", timings,
        ]
        _, peak = speed.measured(command, env, lambda line: None, said.append)
        memory = max(memory, peak)
        batch = None
        for line in timings.read_text().splitlines():
            line = json.loads(line)
            if batch is None:
                batch = {"case": case["name"], "prompt_tokens": 0, "prompt_seconds": 0, "new_tokens": 0, "decode_seconds": 0}
            batch["new_tokens"] += line["rows"]
            batch[f"{line['kind']}_seconds"] += line["seconds"]
            batch["prompt_tokens"] += line["tokens"] if line["kind"] == "prompt" else 0
            if batch["new_tokens"] == len(rows) * case["new"]:
                times.append(batch)
                batch = None
        assert batch is None, "ft generated another number of tokens than requested"
    return times, memory, speed.arithmetic(said)


def write_peer(args, side, cases, env, folder, at):
    """Measures generation by transformers or llama.cpp: one process for all cases."""
    settings = {"threads": at["threads"], "patience": PATIENCE, "cases": cases, "dtype": WRITERS[side]}
    if side == "llama.cpp":
        settings["cases"] = [c for c in cases if len(c["prompts"]) == 1]
        kind = at["kind"]
        modules = args.llama if kind == "native" else folder / f"llama-{kind}/node_modules"
        settings |= {"modules": str(modules), "model": str(args.gguf)}
        command = ["node", speed.HERE / "llama.mjs", json.dumps(settings)]
    else:
        settings["model"] = str(args.model)
        command = [args.python, speed.HERE / "answers.py", json.dumps(settings)]
    times = []
    hear = lambda line: times.append(json.loads(line[5:])) if line.startswith("TIME ") else None
    _, memory = speed.measured(command, speed.peer_environment(at["threads"], env), hear)
    return times, memory, WRITERS[side]


def limit_llama(modules, kind, folder):
    """Copies llama.cpp's module without the builds that need more than `kind`."""
    shutil.copytree(modules, folder, symlinks=True)
    for name in LLAMA_BEYOND[kind]:
        for file in (folder / "@node-llama-cpp").glob(f"*/bins/*/libggml-cpu-{name}.so"):
            file.unlink()
    assert any((folder / "@node-llama-cpp").glob("*/bins/*/libggml-cpu-haswell.so")), "llama.cpp has no build for AVX2"


def median_times(times, cases):
    """Returns the medians of each case's repetitions. The first one only warms up, unless it took so long that there is
    no other."""
    found = {}
    for case in cases:
        repeated = [t for t in times if t["case"] == case["name"]]
        repeated = repeated[1:] or repeated
        if repeated:
            found[case["name"]] = {k: statistics.median(t[k] for t in repeated) for k in repeated[0] if k != "case"}
    return found


class Bench:
    """All measurements, as records of turn, kind, threads, part, case and side, and notes on what was not measured."""

    def __init__(self, args, shape):
        self.args, self.shape, self.records, self.limits, self.notes = args, shape, [], [], []

    def add(self, at, part, case, side, rate, possible, memory, **more):
        record = {**at, "part": part, "case": case, "side": side, "tokens_per_s": rate,
                  "share": rate / possible if possible else None, "memory": memory, **more}
        self.records.append(record)
        share = f", {record['share']:.0%} of the possible" if possible else ""
        what = ", ".join(filter(None, (f"turn {at['turn'] + 1}", at["kind"], plural(at["threads"]), part, case, side)))
        print(f"{what}: {rate:.1f} tokens/s{share}", file=sys.stderr, flush=True)

    def save(self, processor):
        if self.args.json:
            whole = {"processor": processor, "cores": os.cpu_count(), "settings": vars(self.args), "notes": self.notes,
                     "limits": self.limits, "records": self.records}
            self.args.json.write_text(json.dumps(whole, indent=1, default=str))

    def find(self, **wanted):
        return [r for r in self.records if all(r[k] == v for k, v in wanted.items())]

    def cells(self, wanted, first):
        """Returns tokens/s, the speed of `first` as a multiple of it, share of the limit, peak memory: medians over
        the turns."""
        own, other = self.find(**wanted), self.find(**wanted | {"side": first})
        if not own:
            return ["", "", "", ""]
        middle = lambda values: statistics.median(list(values))
        shares = [r["share"] for r in own if r["share"]]
        ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a in other for b in own if a["turn"] == b["turn"]]
        word = own[0]["arithmetic"]
        name = f" ({word})" if wanted["side"] == "ft" else ""  # ft chose it; the others were given it
        return [
            f"{middle(r['tokens_per_s'] for r in own):.{1 if own[0]['tokens_per_s'] < 20 else 0}f}{name}",
            f"**{middle(ratios):.2f}x**" if ratios and wanted["side"] != first else "",
            f"{middle(shares):.0%}" if shares else "",
            f"{middle(r['memory'] for r in own) / 1e9:.2f} GB",
        ]


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def spread(values, digits):
    """Formats the median, with the range if there are several values: a wide range shows that the machine was not
    idle."""
    text = f"{statistics.median(values):.{digits}f}"
    return text + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")


def print_limits(bench, kinds, counts, sizes):
    print("### The machine's limits\n")
    head = ["", *(f"{d} products, GFLOP/s, {s}" for d in ("f32", "bf16") for s in ("1024 x 1024 x 1024", "512 x 576 x 1536")),
            *(f"reading {size / 1e9:.2f} GB, GB/s" for size in sizes)]
    rows = []
    for kind in kinds:
        for threads in counts:
            found = [l for l in bench.limits if (l["kind"], l["threads"]) == (kind, threads)]
            rates = [spread([l["products"][d][s] for l in found], 0) for d in ("f32", "bf16") for s in ("square", "rows")]
            reads = [spread([l["read"][size] for l in found], 1) for size in sizes]
            rows.append([f"{kind}, {plural(threads)}", *rates, *reads])
    table(head, rows)


def plural(threads):
    return f"{threads} thread" + "s" * (threads != 1)


def print_part(bench, title, possible, part, kinds, counts, sides):
    cases = list(dict.fromkeys(r["case"] for r in bench.find(part=part)))
    for case in cases:
        print(f"### {title}{', ' + case if case else ''}\n")
        head = [""]
        for kind in kinds:
            head += [f"{kind}: tokens/s", f"{sides[0]} to this", f"of the {possible}", "memory"]
        rows = []
        for threads in counts:
            for side in sides:
                wanted = {"part": part, "case": case, "threads": threads, "side": side}
                if bench.find(**wanted):
                    cells = [c for kind in kinds for c in bench.cells(wanted | {"kind": kind}, sides[0])]
                    rows.append([f"{side}, {plural(threads)}", *cells])
        # A column that no row fills is left out, such as the share of answers in batches.
        filled = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
        table([head[i] for i in filled], [[row[i] for i in filled] for row in rows])


def going_on(bench, at, sides):
    """Yields each side with a function to run it: if a side fails, this is noted and the others are still measured."""
    for side in sides:
        def attempt(act, *args):
            try:
                return act(*args)
            except SystemExit as e:
                note = f"{side} failed on {at['kind']} with {plural(at['threads'])}: {e}"
                print(note, file=sys.stderr, flush=True)
                bench.notes.append(note.splitlines()[0])
        yield side, attempt


def train(bench, at, sides, rows, folder, env, found):
    args = copy.copy(bench.args)
    args.threads, args.device = at["threads"], "cpu"
    for side, attempt in going_on(bench, at, sides):
        case = speed.CASES["lora"] | {"steps": args.steps, "dtype": TRAINERS[side]}
        out = folder / "-".join(["train", side.replace(" ", "-"), at["kind"], str(at["threads"]), str(at["turn"])])
        run = speed.run_ft if side == "ft" else speed.run_peer
        result = attempt(run, args, case, rows, out, env)
        if result is None:
            continue
        tokens, supervised = speed.rates(result["steps"])
        arithmetic = result.get("arithmetic", case["dtype"])
        operations = bench.shape.training(1, supervised / tokens)
        possible = max(found["products"][arithmetic].values()) * 1e9 / operations
        bench.add(at, "train", "", side, tokens, possible, result["memory"], arithmetic=arithmetic, operations=operations,
                  losses=[s["loss"] for s in result["steps"]])


def write(bench, at, sides, cases, folder, env, found):
    args = bench.args
    for side, attempt in going_on(bench, at, sides):
        run = write_ft if side.startswith("ft") else write_peer
        answers = attempt(run, args, side, cases, env, folder, at)
        if answers is None:
            continue
        times, memory, arithmetic = answers
        middle = median_times(times, cases)
        for case in cases:
            time = middle.get(case["name"])
            if not time:
                continue
            if time["prompt_tokens"] != case["tokens"]:
                sys.exit(f"{side} reads {case['name']} as {time['prompt_tokens']:.0f} tokens, not {case['tokens']}")
            batch, more = len(case["prompts"]), {"arithmetic": arithmetic, "seconds": time}
            products = found["products"].get(arithmetic)
            operations = bench.shape.prompt(case["tokens"], batch) / case["tokens"]
            possible = max(products.values()) * 1e9 / operations if products else None
            bench.add(at, "prompts", case["name"], side, case["tokens"] / time["prompt_seconds"], possible, memory, **more)
            if case["new"] > 1:
                made = batch * (case["new"] - 1)
                size = bench.shape.held(side, arithmetic, args.gguf)
                possible = found["read"][size] * 1e9 / size if batch == 1 else None
                bench.add(at, "next", case["name"], side, made / time["decode_seconds"], possible, memory, **more)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ft", default=speed.ROOT / "target/release/ft", type=Path)
    p.add_argument("--python", default=speed.ROOT / ".bench/bin/python", help="the peers' Python, made by `make bench-peers`")
    p.add_argument("--llama", default=speed.ROOT / ".bench/node/node_modules", type=Path, help="where node-llama-cpp is installed")
    p.add_argument("--model", default=speed.ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--gguf", default=speed.ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf", type=Path)
    p.add_argument("--rows", default=speed.ROOT / "datasets/icd10/train.jsonl", type=Path, help="chat rows to train on")
    p.add_argument("--texts", default=speed.ROOT / "datasets/stories/train.jsonl", type=Path, help="texts that prompts are cut from")
    p.add_argument("--kinds", default="avx2,native", help=f"of {', '.join(KINDS)}, native")
    p.add_argument("--threads", help="numbers of threads [default: 1 and all]")
    p.add_argument("--parts", default="train,answers", help="of train, answers; the limits are always measured")
    p.add_argument("--writers", default="ft,transformers f32,transformers bf16,llama.cpp", help=f"of {', '.join(WRITERS)}")
    p.add_argument("--all", action="store_true", help="also train in bf16 if the processor has no bf16 products")
    p.add_argument("--turns", type=int, default=3, help="turns of each side")
    p.add_argument("--steps", type=int, default=8, help=f"steps of training a turn; the first {speed.WARM} do not count")
    p.add_argument("--new", type=int, default=64, help="new tokens of an answer")
    p.add_argument("--repeats", type=int, default=3, help="repetitions of prompts and answers within a turn, after one to warm up")
    p.add_argument("--seconds", type=float, default=1.0, help="seconds for each of the machine's limits")
    p.add_argument("--json", type=Path, help="also write everything that was measured here")
    args = p.parse_args()
    args.model, args.ft, args.llama, args.gguf = (x.resolve() for x in (args.model, args.ft, args.llama, args.gguf))
    args.turns, args.steps = max(1, args.turns), max(speed.WARM + 1, args.steps)

    name, flags = processor()
    kinds = []
    for kind in args.kinds.split(","):
        if kind != "native" and kind not in KINDS:
            sys.exit(f"--kinds: {kind} is not one of {', '.join(KINDS)}, native")
        if kind == "native" or is_more(flags, kind):
            kinds.append(kind)
        else:
            print(f"{kind} is left out: this processor has no instructions beyond it", file=sys.stderr)
    counts = [int(n) for n in args.threads.split(",")] if args.threads else sorted({1, os.cpu_count()})
    parts, writers = args.parts.split(","), args.writers.split(",")
    for word, known in [(w, WRITERS) for w in writers] + [(w, ("train", "answers")) for w in parts]:
        if word not in known:
            sys.exit(f"{word} is not one of {', '.join(known)}")
    shape = Shape.read(args.model)
    bench = Bench(args, shape)
    if "llama.cpp" in writers and not ((args.llama / "node-llama-cpp").is_dir() and args.gguf.is_file() and shutil.which("node")):
        writers.remove("llama.cpp")
        bench.notes.append("llama.cpp was left out: node-llama-cpp, node or the GGUF file is missing.")

    short, long, tokens = prompts(args.model, args.texts)
    cases = [
        {"name": "1 prompt of about 60 tokens", "prompts": short[:1], "new": args.new, "tokens": tokens[0]},
        {"name": "16 prompts of about 60 tokens", "prompts": short, "new": args.new, "tokens": tokens[1]},
        {"name": f"1 prompt of {LONG:,} tokens", "prompts": [long], "new": 1, "tokens": tokens[2]},
    ]
    cases = [case | {"repeats": args.repeats} for case in cases]
    sizes = sorted({shape.held(*pair, args.gguf) for pair in (("ft", "bf16"), ("transformers", "f32"))} | {1 << 30})
    if "llama.cpp" in writers:
        sizes = sorted({*sizes, shape.held("llama.cpp", "", args.gguf)})

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if "train" in parts:
            rows = speed.rows_for(speed.CASES["lora"] | {"name": "train", "steps": args.steps}, args.rows, folder)
        if "llama.cpp" in writers and "answers" in parts:
            for kind in kinds:
                if kind != "native":
                    limit_llama(args.llama, kind, folder / f"llama-{kind}/node_modules")
        for turn in range(args.turns):
            for kind in kinds:
                for threads in counts:
                    env, at = environment(kind), {"turn": turn, "kind": kind, "threads": threads}
                    found = limits(args, threads, env, sizes)
                    bench.limits.append(at | found)
                    if "train" in parts:
                        sides = [s for s in TRAINERS if s != "TRL bf16" or has_bf16(flags, kind) or args.all]
                        train(bench, at, sides, rows, folder, env, found)
                    if "answers" in parts:
                        write(bench, at, writers, cases, folder, env, found)
                    bench.save(name)

    print(f"{name}, {os.cpu_count()} cores; medians of {args.turns} turns; {args.model.name}\n")
    print_limits(bench, kinds, counts, sizes)
    print_part(bench, "LoRA of rank 16, 8 chat rows a step", "floor", "train", kinds, counts, list(TRAINERS))
    print_part(bench, "Prompts", "products", "prompts", kinds, counts, writers)
    print_part(bench, f"Answers of {args.new} tokens", "reading", "next", kinds, counts, writers)
    trained = bench.find(part="train", side="ft")
    if trained:
        print(f"Floor of training: {trained[0]['operations'] / 1e9:.2f} GFLOP a token at the better of the two product rates.")
    print(
        "Of the products: two operations for each weight and token of a prompt, the head on its last token, attention not counted.\n"
        "Of the reading: every weight once a token, in the format that the program holds it in, at the rate for that size.\n"
        "Memory: the resident peak of the process, over all cases of answers; of ft and llama.cpp with the mapped file."
    )
    if "llama.cpp" in writers and kinds != ["native"]:
        bench.notes.append("llama.cpp chooses among its builds; those beyond a kind were taken away (avx2: its Haswell build is left).")
    print("\n".join(dict.fromkeys(bench.notes)))
    bench.save(name)


if __name__ == "__main__":
    main()
