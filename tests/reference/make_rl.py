"""Writes losses, gradients, advantages and metrics of GRPO (and variants) and RLOO to tests/fixtures/rl/losses.json.

    python tests/reference/make_rl.py

trl 1.16.0, torch 2.11.0, transformers 5.23.0. Every number comes from the trainers' own code: `_compute_loss` and
`_generate_and_score_completions` of `GRPOTrainer` and `RLOOTrainer` run on an object without a model, whose generation,
rewards and log-probabilities are fixed tensors. No formula is repeated here. The only assumption: each generation is
used for exactly one step, so TRL's token-level normaliser is the number of tokens of the step.
"""

import json
import warnings
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

warnings.filterwarnings("ignore")
import torch  # noqa: E402
from trl import GRPOTrainer, RLOOTrainer  # noqa: E402

PROMPTS, ANSWERS, WIDTH, LONGEST, STOP, PAD = 3, 4, 6, 8, 2, 0


class Alone:
    """Stands in for an accelerator with one process."""

    device, num_processes, process_index, sync_gradients = torch.device("cpu"), 1, 0, True

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        return x

    def unwrap_model(self, model):
        return model


def data():
    """Returns answers of unequal length: some truncated, one group with equal rewards, some ratios beyond every clip range."""
    g = torch.Generator().manual_seed(5)
    count = PROMPTS * ANSWERS
    lengths = [1, 6, 3, 4, 2, 6, 5, 6, 3, 1, 6, 4]
    ended = [True, False, True, True, True, True, True, False, True, True, False, True]
    mask = torch.zeros(count, WIDTH)
    for i, n in enumerate(lengths):
        mask[i, :n] = 1
    draw = lambda *size: torch.randn(*size, generator=g)
    new = -1.5 + 0.7 * draw(count, WIDTH)
    old = new + 0.25 * draw(count, WIDTH)
    reference = new + 0.4 * draw(count, WIDTH)
    entropy = torch.rand(count, WIDTH, generator=g) * 2
    rewards = draw(count, 2)
    rewards[ANSWERS : 2 * ANSWERS] = torch.tensor([0.5, -0.25])
    answers = [[5] * (n - 1) + [STOP if e else 7] for n, e in zip(lengths, ended)]
    return dict(mask=mask, new=new, old=old, reference=reference, entropy=entropy, rewards=rewards, answers=answers)


def trainer(cls, d, **options):
    t = cls.__new__(cls)
    args = dict(
        delta=None, use_bias_correction_kl=True, per_device_train_batch_size=64, per_device_eval_batch_size=64,
        gradient_checkpointing_kwargs=None, steps_per_generation=1, entropy_target=0.2,
    )
    args.update({k: options.pop(k) for k in list(options) if k in args})
    defaults = dict(
        args=SimpleNamespace(**args), accelerator=Alone(), _metrics={"train": defaultdict(list)},
        _logs=defaultdict(lambda: defaultdict(list)), _pending_extra_logs=defaultdict(list),
        _pending_metrics=defaultdict(list), model=torch.nn.Identity().train(), ref_model=None,
        reward_weights=torch.tensor([1.0, 0.5]), reward_func_names=["a", "b"], reward_funcs=[None, None],
        num_generations=ANSWERS, scale_rewards="group", multi_objective_aggregation="sum_then_normalize",
        mask_truncated_completions=False, eos_token_ids=[STOP], pad_to_multiple_of=None, tools=None, environments=None,
        environment_factories=None, use_vllm=False, vllm_importance_sampling_correction=False, num_iterations=2,
        beta=0.0, epsilon_low=0.2, epsilon_high=0.2, loss_type="dapo", importance_sampling_level="token",
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, aux_loss_enabled=False, max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, use_adaptive_entropy=False,
        entropy_coef=0.0, normalize_advantages=False, reward_clip_range=None, log_multimodal=False, _is_vlm=False,
        _tokenizer=SimpleNamespace(pad_token_id=PAD),
    )
    defaults["args"].gradient_accumulation_steps = 1
    defaults["_logs"] = {"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [],
                         "extra": defaultdict(list), "images": []}
    defaults.update(options)
    for k, v in defaults.items():
        object.__setattr__(t, k, v)
    prompts = [[3]] * (PROMPTS * ANSWERS)
    texts = [""] * len(prompts)
    drawn = (prompts, d["answers"], None, texts, None, {}, None, None)  # GRPO's tuple also has tools and images
    drawn = drawn if cls is GRPOTrainer else (prompts, d["answers"], texts)
    object.__setattr__(t, "_generate", lambda p: drawn)
    object.__setattr__(t, "_calculate_rewards", lambda *a: d["rewards"].clone())
    return t


def run(cls, d, **options):
    import trl.trainer.grpo_trainer as grpo_module
    import trl.trainer.rloo_trainer as rloo_module

    given = dict(options)
    t = trainer(cls, d, **options)
    # The trainer computes reference log-probabilities inside `use_adapter`, which would need a PEFT model.
    asked = {"reference": False}

    class Adapter:
        def __init__(self, *a, **k): ...
        def __enter__(self): asked["reference"] = True
        def __exit__(self, *a): asked["reference"] = False

    for module in (grpo_module, rloo_module):
        module.use_adapter = Adapter
        module.gather = lambda x: x
        module.gather_object = lambda x: x
        module.disable_gradient_checkpointing = lambda *a, **k: nullcontext()
    object.__setattr__(t.model, "peft_config", {})
    new = d["new"].clone().requires_grad_()
    entropy = d["entropy"].clone().requires_grad_()
    learning = {"now": False}

    def log_probs(*a, **k):
        if learning["now"]:
            return new, entropy, None
        return (d["reference"] if asked["reference"] else d["old"]), None, None

    object.__setattr__(t, "_get_per_token_logps_and_entropies", log_probs)
    batch = t._generate_and_score_completions([{"prompt": "x"}] * (PROMPTS * ANSWERS))
    learning["now"] = True
    loss = t._compute_loss(t.model, batch)
    loss.backward()
    keep = lambda x: [round(float(v), 8) for v in x.detach().flatten().double()]
    metrics = {k: v[-1] for k, v in t._metrics["train"].items()}
    return dict(options=given, loss=loss.item(), gradient=keep(new.grad), advantages=keep(batch["advantages"]),
                entropy_gradient=keep(entropy.grad) if entropy.grad is not None else None, metrics=metrics)


def main():
    d = data()
    grpo = [
        dict(loss_type="grpo"),
        dict(loss_type="grpo", beta=0.1),
        dict(loss_type="grpo", beta=0.1, use_bias_correction_kl=False),
        dict(loss_type="grpo", scale_rewards="batch", delta=1.3),
        dict(loss_type="grpo", _entropy_bonus_enabled=True, entropy_coef=0.03),
        dict(loss_type="dr_grpo", scale_rewards="none", beta=0.1),
        dict(loss_type="dapo", epsilon_high=0.28),
        dict(loss_type="dapo", epsilon_high=0.28, mask_truncated_completions=True, beta=0.1),
        dict(loss_type="grpo", mask_truncated_completions=True),
        dict(loss_type="grpo", importance_sampling_level="sequence", epsilon_low=0.03, epsilon_high=0.04),
        dict(loss_type="grpo", importance_sampling_level="sequence", epsilon_low=0.03, epsilon_high=0.04, beta=0.1),
    ]
    rloo = [dict(), dict(beta=0.05), dict(beta=0.05, normalize_advantages=True), dict(reward_clip_range=(-0.5, 0.5), epsilon_high=0.3)]
    keep = lambda x: [round(float(v), 7) for v in x.flatten().double()]
    out = dict(
        prompts=PROMPTS, answers=ANSWERS, width=WIDTH, longest=LONGEST, weights=[1.0, 0.5],
        lengths=[len(a) for a in d["answers"]], ended=[a[-1] == STOP for a in d["answers"]],
        **{k: keep(d[k]) for k in ("new", "old", "reference", "entropy", "rewards")},
        grpo=[run(GRPOTrainer, d, **o) for o in grpo], rloo=[run(RLOOTrainer, d, **o) for o in rloo],
    )
    path = Path(__file__).parents[1] / "fixtures/rl/losses.json"
    path.write_text(json.dumps(out, indent=None).replace('{"options"', '\n{"options"') + "\n")
    print(path, path.stat().st_size, "bytes")


main()
