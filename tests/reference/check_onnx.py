"""Writes models as ONNX with `ft export` and runs them in ONNX Runtime: logits, greedy answers, size and speed.

    pip install onnxruntime onnxruntime-genai
    python tests/reference/check_onnx.py FT [--family NAME]       random tiny models of every family, against transformers and ft
    python tests/reference/check_onnx.py FT --model DIR           a real model: greedy answers against ft's, size, speed, GenAI

Tiny models are made by transformers in float32, exported as f32, f16 and int8, and run on a batch that is padded on the left: a first pass,
then 16 tokens one after another. In f32 logits must be within 1e-4 of the largest of transformers' and of `ft logits`.

Written for torch 2.11, transformers 5.23, onnxruntime 1.32, onnxruntime-genai 0.18.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from check_llama_cpp import CASES, LOCAL, PROMPTS, SCALED, YARN, make
from onnx_run import Decoder, greedy, logits
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
warnings.filterwarnings("ignore")
ROWS = [[(7 * t + 3 * n) % 400 for t in range(n)] for n in (17, 24, 60, 41)]
CACHED = 16
LIMITS = dict(f32=1e-4, f16=2e-2, int8=0.3)
REFUSED = ("gpt_oss", "deepseek_v2")
# What llama.cpp does not compute.
MORE = [
    ("mistral, window", "mistral", dict(head_dim=32, sliding_window=8)),
    ("qwen2, window", "qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=2)),
    ("phi3, window", "phi3", dict(sliding_window=8, original_max_position_embeddings=256)),
    ("llama, dynamic", "llama", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=5000.0, factor=3.0))),
    ("llama, linear, tied", "llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=3.0), tie_word_embeddings=True)),
    ("llama, gelu", "llama", dict(hidden_act="gelu")),
    ("llama, tanh, 1 key head", "llama", dict(hidden_act="gelu_pytorch_tanh", num_key_value_heads=1)),
    ("gemma3_text, linear", "gemma3_text", dict(
        head_dim=32, query_pre_attn_scalar=32, sliding_window=8, num_hidden_layers=7, tie_word_embeddings=True,
        rope_parameters=dict(LOCAL, full_attention=dict(rope_type="linear", rope_theta=5000.0, factor=8.0)))),
    ("olmo3, yarn", "olmo3", dict(sliding_window=8, rope_parameters=YARN)),
    ("cohere, normalised", "cohere", dict(logit_scale=0.25, use_qk_norm=True)),
    ("falcon, alibi", "falcon", dict(alibi=True, multi_query=False)),
    ("falcon, sequential", "falcon", dict(parallel_attn=False, multi_query=True, bias=True)),
    ("gpt_neox, sequential", "gpt_neox", dict(use_parallel_residual=False)),
    ("gpt2, untied", "gpt2", dict(n_embd=64, n_layer=4, n_head=4, n_positions=256, scale_attn_by_inverse_layer_idx=True)),
    ("phi3, longrope, partial", "phi3", dict(sliding_window=None, original_max_position_embeddings=128, rope_parameters=dict(
        rope_type="longrope", rope_theta=5000.0, partial_rotary_factor=0.75, original_max_position_embeddings=128,
        short_factor=[1 + 0.1 * i for i in range(6)], long_factor=[2 + 0.1 * i for i in range(6)]))),
    ("smollm3, scaled, untied", "smollm3", dict(rope_parameters=SCALED)),
]  # fmt: skip


def run(ft, *line):
    done = subprocess.run([ft, *map(str, line)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def export(ft, model, out, kind):
    return json.loads(run(ft, "export", model, "--to", "onnx", "--type", kind, "--out", out, "--json"))


def ft_logits(ft, model, rows):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"rows": [{"ids": row} for row in rows]}, file)
        file.flush()
        return [torch.tensor(row["logits"]) for row in json.loads(run(ft, "logits", "--model", model, "--ids", file.name))["rows"]]


def transformers_logits(model):
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0] for row in ROWS]


def gap(found, expected):
    """Returns the largest difference as a share of the largest logit, over all rows."""
    return max(float((torch.as_tensor(a) - b).abs().max() / b.abs().max()) for a, b in zip(found, expected))


def families(args, folder):
    """Compares the random models; returns the number of differences."""
    wrong = 0
    print(f"{'case':24} {'operators':>9} {'f32: transformers':>18} {'ft':>8} {'f16':>8} {'int8':>8}")
    for title, family, more in [case for case in CASES + MORE if args.family in (None, case[1])]:
        model = folder / title.replace(", ", "-").replace(" ", "-")
        make(family, more, model)
        found, line = {}, ""
        try:
            for kind in LIMITS:
                summary = export(args.ft, model, folder / f"{model.name}-{kind}", kind)
                found[kind] = logits(folder / f"{model.name}-{kind}", ROWS, CACHED)
        except RuntimeError as e:
            refused = family in REFUSED and "no converter to ONNX" in str(e)
            wrong += not refused
            print(f"{title:24} {str(e).splitlines()[0].split(': ', 2)[-1][:110]}{'' if refused else '   WRONG'}", flush=True)
            continue
        ours = ft_logits(args.ft, model, ROWS)
        gaps = {kind: gap(found[kind], ours) for kind in LIMITS}
        # transformers 5.23 computes no ministral without a window.
        far = 0.0 if title == "ministral" else gap(found["f32"], transformers_logits(model))
        ok = far < LIMITS["f32"] and all(gaps[kind] < LIMITS[kind] for kind in LIMITS)
        wrong += not ok
        print(f"{title:24} {summary['operators']:>9} {far:18.1e} {gaps['f32']:8.1e} {gaps['f16']:8.1e} {gaps['int8']:8.1e}{'' if ok else '   DIFFERS'}", flush=True)
    return wrong


def generated(ft, model, prompts, count):
    """Returns the tokens of ft's greedy answers, and its time for each token after the first."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "timings"
        asked = [part for prompt in prompts for part in ("--prompt", prompt)]
        out = run(ft, "generate", "--model", model, "--dtype", "f32", "--greedy", "--max-new-tokens", count, "--batch-size", 1, "--json", "--logprobs",
                  "--timings", file, *asked)  # fmt: skip
        times = [json.loads(line) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in out.splitlines()], times


def genai(folder, prompt, count):
    """Returns the tokens that ONNX Runtime GenAI adds to a prompt, without a stop token, and those of the prompt."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    ids = tokenizer.encode(prompt)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + count, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)[len(ids) :]], [int(i) for i in ids]


def real(args, folder):
    """Compares a real model; returns the number of differences."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    ours, times = generated(args.ft, args.model, PROMPTS, args.tokens)
    ours = [answer["logprobs"]["token_ids"] for answer in ours]
    wrong = 0
    for kind in args.types.split(","):
        out = folder / kind
        began = time.time()
        summary = export(args.ft, args.model, out, kind)
        seconds = time.time() - began
        decoder = Decoder(out, args.threads)
        made, steps, first = [], [], []
        for prompt, answer in zip(prompts, ours):
            # The answer is ft's: what ONNX Runtime chooses after each of its tokens.
            decoder.past, mask = None, [1] * len(prompt)
            began = time.perf_counter()
            chosen = [int(decoder.read([prompt], [mask])[0, -1].argmax())]
            first.append((time.perf_counter() - began) / len(prompt))
            for token in answer[:-1]:
                mask = mask + [1]
                began = time.perf_counter()
                chosen.append(int(decoder.read([[token]], [mask])[0, -1].argmax()))
                steps.append(time.perf_counter() - began)
            made.append(chosen)
        same = sum(a == b for a, b in zip(made, ours))
        tokens = sum(x == y for a, b in zip(made, ours) for x, y in zip(a, b))
        total = sum(map(len, ours))
        steps.sort()
        print(f"{kind}: {summary['bytes'] / 1e6:.0f} MB, written and read back in {seconds:.0f} s; {same} of {len(ours)} answers equal, {tokens} of {total} tokens; "
              f"{1e3 * steps[len(steps) // 2]:.1f} ms for a token, {1e3 * sum(first) / len(first):.2f} ms for one of a prompt", flush=True)  # fmt: skip
        wrong += kind == "f32" and same != len(ours)
        if args.genai:
            equal = 0
            for text, prompt, answer in zip(PROMPTS, prompts, ours):
                found, ids = genai(out, text, args.tokens)
                ended = found == answer[:-1] and len(answer) < args.tokens  # ft's answer has its stop token
                equal += (found == answer or ended) and ids == prompt
            print(f"{kind}: in ONNX Runtime GenAI {equal} of {len(ours)} answers and token ids equal", flush=True)
            wrong += kind == "f32" and equal != len(ours)
        del decoder
    steps = sorted(line["seconds"] for line in times if line["kind"] == "decode")
    print(f"ft generate: {1e3 * steps[len(steps) // 2]:.1f} ms for a token")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ft")
    parser.add_argument("--family")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--types", default="f32,f16,int8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--genai", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = (real if args.model else families)(args, Path(folder))
    sys.exit(f"{wrong} differences" if wrong else 0)


if __name__ == "__main__":
    main()
