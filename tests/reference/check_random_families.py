"""Compares random tiny models of every family, as transformers and PEFT compute them, with ft reading the same files.

    python tests/reference/check_random_families.py FT [--seeds FIRST COUNT] [--family NAME] [--only CHECK …]

Run from the root of the repository. Each seed draws a family, sizes, ties, biases, windows (most shorter than the longest
sequence) and the rotary embedding. The checks:

- `logits`: those of `ft logits` must be transformers' within 1e-5 of the largest (float32).
- `gradients`: one step of SGD with rate 1 on all weights must change every tensor as transformers' gradients do.
- `selftest`: cached passes, replay, packing and more agree (`ft selftest`).
- `peft`: logits with an adapter of PEFT on all linear layers (and, of some seeds, on experts), as adapter and merged.
- `trained`: PEFT loads an adapter that ft trained for three steps, and computes ft's logits.
- `gguf`: a file that `ft export` writes gives the same logits, as a file and imported.

A refusal by ft is printed: it must be about something that ft says it does not support.

Written for torch 2.11, transformers 5.23, peft 0.21.2.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from check_random_adapters import gap_of, run, shake
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

warnings.filterwarnings("ignore")
VOCABULARY = 400
TOKENIZER = Path("tests/fixtures/tiny-tokenizer")
CHECKS = ["logits", "gradients", "selftest", "peft", "trained", "gguf"]
FAMILIES = [
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "phi3", "olmo2", "olmo3", "smollm3",
    "granite", "cohere", "cohere2", "stablelm", "gpt_neox", "falcon", "bloom", "mpt", "gpt_oss", "deepseek_v2",
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt2",
]  # fmt: skip
CENTRED = ["gemma", "gemma2", "gemma3_text"]


def kinds(r, layers):
    """Returns random kinds of attention."""
    return [r.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]


def rope_of(r, rotary, context):
    """Returns a random rotary embedding of `rotary` dimensions."""
    rope = dict(rope_type="default", rope_theta=r.choice([50.0, 500.0, 10000.0]))
    match r.choice(["default", "default", "linear", "yarn", "llama3"]):
        case "linear":
            rope |= dict(rope_type="linear", factor=r.choice([2.0, 3.5]))
        case "yarn":
            rope |= dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=context // 4)
        case "llama3":
            rope |= dict(
                rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=context // 4
            )
    return rope


def settings_of(r, family):
    """Returns a random config of a family."""
    heads, kv = r.choice([(4, 2), (3, 1), (6, 3), (4, 4), (6, 2)])
    head = r.choice([6, 8, 10, 16])
    free = family in ["llama", "mistral", "ministral", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "cohere2", "mixtral", "qwen3_moe"]
    width = heads * (r.choice([5, 7, 9]) if free else head)
    layers, context, window = r.choice([1, 2, 3, 5]), r.choice([64, 128]), r.choice([1, 2, 7, 12, 20, 90])
    rope = rope_of(r, head, context)
    s = dict(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=context,
        intermediate_size=r.choice([21, 36, 40]), bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=r.random() < 0.5, rope_parameters=rope, num_key_value_heads=kv,
    )  # fmt: skip
    if free:
        s["head_dim"] = head
    if family in ["llama", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "granite", "cohere", "cohere2"]:
        s["attention_bias"] = r.random() < 0.4
    if family in ["llama", "smollm3", "granite"]:
        s["mlp_bias"] = r.random() < 0.4
    activation = r.choice(["silu", "silu", "silu", "gelu_pytorch_tanh", "gelu"])
    if family in ["gemma2", "gemma3_text"]:
        s["hidden_activation"] = activation
    elif family == "falcon":
        s["activation"] = r.choice(["gelu", "gelu_pytorch_tanh"])
    elif family != "gemma":
        s["hidden_act"] = activation
    match family:
        case "mistral" | "mixtral":
            s["sliding_window"] = r.choice([None, window])
        case "phi3":
            s["sliding_window"] = r.choice([None, window])
            s["original_max_position_embeddings"] = context // 4
            part = r.choice([1.0, 0.5]) if head % 4 == 0 else 1.0
            pairs = int(head * part) // 2
            rope["partial_rotary_factor"] = part
            if r.random() < 0.5:
                s["rope_parameters"] = dict(
                    rope_type="longrope", rope_theta=500.0, partial_rotary_factor=part, original_max_position_embeddings=context // 4,
                    short_factor=[1 + 0.2 * r.random() for _ in range(pairs)], long_factor=[1 + 4 * r.random() for _ in range(pairs)],
                )  # fmt: skip
        case "ministral" | "olmo3" | "cohere2" | "gemma2" | "gemma3_text":
            s |= dict(sliding_window=window, layer_types=r.choice([None, kinds(r, layers)]))
        case "qwen2" | "qwen3":
            s |= dict(use_sliding_window=r.random() < 0.7, sliding_window=window, max_window_layers=r.randrange(layers + 1))
            if r.random() < 0.4:
                s["layer_types"] = kinds(r, layers)
        case "smollm3":
            s |= dict(use_sliding_window=r.random() < 0.5, sliding_window=window)
            s |= r.choice([dict(no_rope_layer_interval=2), dict(no_rope_layers=[r.randrange(2) for _ in range(layers)])])
        case "granite":
            s |= dict(
                embedding_multiplier=r.choice([1.0, 7.3]), attention_multiplier=r.choice([0.2, 1.0]), residual_multiplier=r.choice([0.3, 1.0]),
                logits_scaling=r.choice([1.0, 6.0]),
            )  # fmt: skip
    if family in ["gemma2", "gemma3_text"]:
        s |= dict(
            query_pre_attn_scalar=r.choice([7, head, 50]), final_logit_softcapping=r.choice([None, 3.0]), attn_logit_softcapping=r.choice([None, 2.0])
        )
    if family == "gemma3n_text":
        kv_shared, streams = r.randrange(layers), r.choice([1, 2, 3, 4])
        own = layers - kv_shared
        first = kinds(r, own)
        s |= dict(
            head_dim=head, hidden_size=heads * r.choice([5, 7, 9]), attention_bias=r.random() < 0.4, hidden_activation=activation, sliding_window=window,
            layer_types=first + [r.choice(first) for _ in range(kv_shared)], num_kv_shared_layers=kv_shared, altup_num_inputs=streams,
            altup_active_idx=r.randrange(streams), altup_correct_scale=r.random() < 0.7,
            laurel_rank=r.choice([2, 5]), hidden_size_per_layer_input=r.choice([3, 8]), vocab_size_per_layer_input=VOCABULARY,
            activation_sparsity_pattern=r.choice([None, [r.choice([0.0, 0.3, 0.8]) for _ in range(layers)]]),
            intermediate_size=r.choice([36, [r.choice([21, 40]) for _ in range(layers)]]), final_logit_softcapping=r.choice([3.0, 30.0]),
            rope_parameters=dict(full_attention=rope, sliding_attention=rope_of(r, head, context)),
        )  # fmt: skip
        s.pop("hidden_act", None)
    if family in ["gemma3_text"]:
        s["rope_parameters"] = dict(full_attention=rope, sliding_attention=rope_of(r, head, context))
    if family in ["cohere", "cohere2"]:
        s["logit_scale"] = r.choice([0.25, 1.0])
    if family == "cohere":
        s["use_qk_norm"] = r.random() < 0.5
    if family in ["stablelm", "gpt_neox"]:
        rope["partial_rotary_factor"] = r.choice([0.25, 0.5, 1.0]) if head in (8, 16) else 1.0
        s["use_parallel_residual"] = r.random() < 0.5
    if family == "stablelm":
        s["use_qkv_bias"] = r.random() < 0.5
    if family == "gpt_neox":
        del s["num_key_value_heads"]
        s["attention_bias"] = r.random() < 0.7
    if family in ["gpt_oss", "deepseek_v2"]:
        experts = r.choice([2, 4, 6])
        s |= dict(num_experts_per_tok=r.randrange(1, experts + 1), attention_bias=r.random() < 0.5, hidden_act="silu")
    if family == "gpt_oss":
        s |= dict(
            head_dim=head, hidden_size=heads * r.choice([5, 7, 9]), num_local_experts=experts, sliding_window=window,
            swiglu_limit=r.choice([0.5, 7.0]), layer_types=r.choice([None, kinds(r, layers)]),
        )  # fmt: skip
        rope |= dict(truncate=False) if rope["rope_type"] == "yarn" else {}
    if family == "deepseek_v2":
        rotated, plain = r.choice([2, 4, 8]), r.choice([2, 4, 6])  # transformers rotates even strides only
        rope = rope_of(r, rotated, context)
        if rope["rope_type"] == "yarn":
            rope |= dict(mscale=r.choice([0.707, 1.0]), mscale_all_dim=r.choice([0.0, 0.707]))
        groups = r.choice([n for n in (1, 2, 3) if experts % n == 0])
        some = next(n for n in range(1, groups + 1) if n * experts // groups >= s["num_experts_per_tok"])
        s |= dict(
            rope_parameters=rope, num_key_value_heads=heads, kv_lora_rank=r.choice([6, 10]), q_lora_rank=r.choice([None, 4, 7]),
            qk_rope_head_dim=rotated, qk_nope_head_dim=plain, v_head_dim=r.randrange(1, plain + rotated + 1), n_routed_experts=experts,
            n_shared_experts=r.choice([1, 2]), moe_intermediate_size=r.choice([5, 8]), first_k_dense_replace=r.randrange(layers + 1),
            routed_scaling_factor=r.choice([1.0, 2.5]),
        )  # fmt: skip
        s |= r.choice([dict(topk_method="greedy"), dict(topk_method="group_limited_greedy", n_group=groups, topk_group=some)])
    if family in ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]:
        experts = r.choice([2, 4, 7])
        name = "num_local_experts" if family == "mixtral" else "num_experts"
        s |= {name: experts, "num_experts_per_tok": r.randrange(1, experts + 1), "hidden_act": "silu"}
        if family != "mixtral":
            s["norm_topk_prob"] = r.random() < 0.5
        if family in ["qwen2_moe", "qwen3_moe"]:
            s |= dict(moe_intermediate_size=r.choice([5, 12]), decoder_sparse_step=r.choice([1, 1, 2]), mlp_only_layers=r.choice([[], [0]]))
            s |= dict(use_sliding_window=r.random() < 0.4, sliding_window=window, max_window_layers=r.randrange(layers + 1))
        if family == "qwen2_moe":
            s |= dict(shared_expert_intermediate_size=r.choice([7, 20]), qkv_bias=r.random() < 0.5)
        if family == "olmoe":
            s["clip_qkv"] = r.choice([None, 1.5])
        if family in ["qwen3_moe", "olmoe"]:
            s["attention_bias"] = r.random() < 0.4
    if family == "falcon":
        new = r.random() < 0.5
        s = {k: v for k, v in s.items() if k not in ("num_key_value_heads", "intermediate_size")}
        s |= dict(new_decoder_architecture=new, bias=r.random() < 0.5, alibi=r.random() < 0.4)
        s |= dict(num_kv_heads=kv) if new else dict(multi_query=r.random() < 0.5, parallel_attn=r.random() < 0.6)
        if r.random() < 0.5:
            s["ffn_hidden_size"] = 44
        if new and r.random() < 0.3:
            s["num_ln_in_parallel_attn"] = 1
    common = {k: s[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
    heads = r.choice([1, 3, 4, 5, 6, 8, 12])  # slopes differ where they are no power of two
    if family == "bloom":
        s = dict(**common, hidden_size=heads * head, n_layer=layers, n_head=heads)
    if family == "gpt2":
        s = dict(
            **common, n_embd=heads * head, n_layer=layers, n_head=heads, n_positions=context, n_inner=r.choice([None, 36]),
            scale_attn_weights=r.random() < 0.7, scale_attn_by_inverse_layer_idx=r.random() < 0.3, layer_norm_epsilon=r.choice([1e-5, 1e-3]),
        )  # fmt: skip
    if family == "mpt":
        attention = dict(clip_qkv=r.choice([None, 1.5]), softmax_scale=r.choice([None, 0.4]))
        s = dict(**common, d_model=heads * head, n_layers=layers, n_heads=heads, max_seq_len=context, attn_config=attention)
    return s


class Case:
    """A random model in a folder, what transformers computes of it, and what was found."""

    def __init__(self, ft, seed, family, folder):
        self.ft, self.seed, self.folder, self.found, self.good, self.noise = ft, seed, folder, [], True, 0.0
        self.r, self.family = random.Random(f"{seed} checks"), family
        self.rows = [[self.r.randrange(VOCABULARY) for _ in range(n)] for n in (9, 1, 31, 50)]
        (folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in self.rows]}))

    def note(self, what, good=True):
        self.good &= good
        self.found.append(what + ("" if good else "   <-- WRONG"))

    def compare(self, what, bound, expected, *arguments):
        """Compares ft's logits; returns true if ft computed some."""
        gap, error = gap_of(self.ft, [*arguments, "--ids", self.folder / "rows.json"], self.rows, expected)
        # Some models multiply rounding errors: both sides may be as far from the true numbers as transformers is.
        self.note(f"{what} refused: {error[:600]}") if error else self.note(f"{what} {gap:.1e}", gap < max(bound, 4 * self.noise))
        return error is None

    def tool(self, what, *arguments):
        """Runs ft; returns true if it succeeded."""
        done = run(self.ft, *arguments)
        if done.returncode:
            self.note(f"{what} refused: {done.stderr.strip()[-500:]}", "bug" not in done.stderr and "panicked" not in done.stderr)
        return done if done.returncode == 0 else None

    def load(self, folder=None):
        attention = "sdpa" if getattr(self.config, "alibi", False) else "eager"  # the eager form adds Falcon's bias twice
        forms = {"attn_implementation": attention, "experts_implementation": "eager"}
        if folder is None:
            return AutoModelForCausalLM.from_config(self.config, **forms).float().eval()
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **forms).eval()

    def logits(self, model):
        with torch.no_grad():
            return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in self.rows]

    def train(self, steps, texts, more):
        """Trains with ft; returns the folder of the result, or None if it refuses."""
        data, out, recipe = (self.folder / name for name in ("texts.jsonl", "out", "recipe.yaml"))
        shutil.rmtree(out, ignore_errors=True)
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        settings = {"model": {"path": str(self.folder / "model"), "dtype": "f32"}, "method": {"sft": {}}, "data": {"train": {"path": str(data)}}}
        batch = {"tokens": 1024, "max_len": 60, "examples": len(texts)}
        settings |= {"batch": batch, "run": {"steps": steps, "samples": 0, "out": str(out)}} | more
        recipe.write_text(json.dumps(settings))
        return out if self.tool("train", "train", recipe) else None


TEXTS = ["Lungs and heart are clear. No effusion seen today.", "A", "Give 20 mg twice daily, then stop and see what happens next"]


def check_gradients(case):
    ids = [Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).encode(text).ids + [2] for text in TEXTS]
    optim = {"kind": {"sgd": {"momentum": 0}}, "lr": 1.0, "max_norm": 0, "warmup": 0, "schedule": "constant"}
    optim |= {"router_balance": 0} if hasattr(case.config, "num_experts_per_tok") else {}
    out = case.train(1, TEXTS, {"optim": optim})
    if out is None:
        return
    model, count = case.load(case.folder / "model"), sum(len(row) - 1 for row in ids)
    for row in ids:
        row = torch.tensor([row])
        logits = model(input_ids=row, use_cache=False).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum") / count).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= p.grad
    model.save_pretrained(case.folder / "expected")
    before, theirs, ours = (load_file(case.folder / part / "model.safetensors") for part in ("model", "expected", "out"))
    for saved in (before, theirs):  # the head of GPT-NeoX, which transformers reads by both names
        if "embed_out.weight" in saved:
            saved["lm_head.weight"] = saved.pop("embed_out.weight")
    if missing := set(theirs) ^ set(ours):
        case.note(f"tensors {sorted(missing)[:4]}", False)
    worst, name = 0.0, ""
    for key in set(theirs) & set(ours):
        wanted, found = theirs[key] - before[key], ours[key] - before[key]
        # A step is rounded as the weights are.
        gap = ((found - wanted).abs().max() - 3e-7 * (1 + before[key].abs().max())).item() / max(wanted.abs().max().item(), 1e-9)
        worst, name = max((worst, name), (gap, key))
    bound = max(1e-4, 300 * case.noise)
    case.note(f"gradients {worst:.1e}" + (f" {name}" if worst >= 1e-4 else ""), worst < bound)


def check_selftest(case):
    if done := case.tool("selftest", "selftest", "--model", case.folder / "model", "--json"):
        found = json.loads(done.stdout)
        case.note(f"selftest {found['passed']} passed, {found['skipped']} skipped", found["failed"] == 0)
    else:
        case.good = False


def check_peft(case):
    model, settings = case.load(case.folder / "model"), dict(r=2, lora_alpha=5, target_modules="all-linear")
    experts = any("experts.gate_up_proj" in name for name, _ in model.named_parameters())
    if experts and case.r.random() < 0.6:
        settings["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    tuned = get_peft_model(model, LoraConfig(**settings))
    shake([(n, p) for n, p in tuned.named_parameters() if p.requires_grad], 0.3)
    tuned.save_pretrained(case.folder / "adapter")
    expected = case.logits(tuned.eval())
    what = "peft with experts" if "target_parameters" in settings else "peft"
    if case.compare(what, 1e-5, expected, "--model", case.folder / "model", "--adapter", case.folder / "adapter"):
        line = ["merge", case.folder / "model", case.folder / "adapter", "--out", case.folder / "merged", "--dtype", "f32"]
        if case.tool("merge", *line):
            case.compare("merged", 3e-5, expected, "--model", case.folder / "merged")


def check_trained(case):
    out = case.train(3, TEXTS, {"adapter": {"lora": {"rank": 2, "alpha": 4, "targets": "all-linear"}}, "optim": {"lr": 0.01}})
    if out is None:
        return
    report = json.loads((out / "export_report.json").read_text())
    peft = next(c for c in report["compatibility"] if c["consumer"] == "PEFT")
    if not peft["reads"]:
        case.note(f"trained: {json.dumps(peft)[:200]}")
        return
    try:
        tuned = PeftModel.from_pretrained(case.load(case.folder / "model"), out).eval()
    except Exception as e:  # whatever PEFT cannot load is a finding
        case.note(f"trained: PEFT does not load it: {type(e).__name__}: {str(e)[:300]}", False)
        return
    case.compare("trained", 1e-5, case.logits(tuned), "--model", case.folder / "model", "--adapter", out)


def check_gguf(case):
    file, imported = case.folder / "model.gguf", case.folder / "imported"
    done = case.tool("gguf", "export", case.folder / "model", "--to", "gguf", "--type", "f32", "--out", file, "--json")
    if done is None or case.tool("import", "import", file, "--out", imported, "--dtype", "f32") is None:
        return
    if any("is read as" in note for note in json.loads(done.stdout)["notes"]):
        return
    # A window that the format cannot hold bounds the file's context.
    config = json.loads((imported / "config.json").read_text())
    most = next((config[key] for key in ("max_position_embeddings", "n_positions", "max_seq_len") if key in config), 1 << 20)
    kept = [(row, logits) for row, logits in zip(case.rows, case.expected) if len(row) <= most]
    case.rows, expected = [row for row, _ in kept], [logits for _, logits in kept]
    (case.folder / "rows.json").write_text(json.dumps({"rows": [{"ids": row} for row in case.rows]}))
    case.compare("gguf", 1e-5, expected, "--model", file)
    case.compare("imported", 1e-5, expected, "--model", imported)


def check(ft, seed, wanted, checks):
    """Compares one random model; returns true if it is equal or refused."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    family = r.choice(FAMILIES)
    family = wanted or family
    settings = settings_of(r, family)
    title = f"{seed}: {family} {settings}"
    with tempfile.TemporaryDirectory() as folder:
        case = Case(ft, seed, family, Path(folder))
        try:
            case.config = AutoConfig.for_model(family, **settings)
            model = case.load()
        except Exception as e:
            print(f"{title}\n   transformers refuses: {str(e)[-200:]}", flush=True)
            return True
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() >= 2:
                    p.mul_(20 if "embed" in name else 30 / p.shape[-1] ** 0.5)  # so that attention and windows matter
        shake(model.named_parameters(), 0.3)
        model.save_pretrained(case.folder / "model")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(TOKENIZER / file, case.folder / "model")
        try:
            case.expected = case.logits(model)
            exact = case.logits(model.double())
            case.noise = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(case.expected, exact))
        except ValueError as e:
            print(f"{title}\n   transformers refuses: {str(e)[-200:]}", flush=True)
            return True
        if case.compare("logits", 1e-5, case.expected, "--model", case.folder / "model"):
            for part in checks:
                if part != "logits":
                    globals()[f"check_{part}"](case)
        print(title + "".join(f"\n   {line}" for line in case.found), flush=True)
        if not case.good:
            kept = Path(tempfile.gettempdir()) / f"random-family-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept)
        return case.good


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ft")
    p.add_argument("--seeds", nargs=2, type=int, default=[0, 90], metavar=("FIRST", "COUNT"))
    p.add_argument("--family", choices=FAMILIES)
    p.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS)
    args = p.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    first, count = args.seeds
    wrong = [seed for seed in range(first, first + count) if not check(args.ft, seed, args.family, args.only)]
    print(f"{count - len(wrong)} of {count} agree or are refused" + (f"; wrong: {wrong}" if wrong else ""))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
