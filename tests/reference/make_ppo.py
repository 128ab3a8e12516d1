"""Writes tests/fixtures/ppo/: the reference numbers of proximal policy optimisation on fixed tensors.

    python tests/reference/make_ppo.py             # from the root of the repository, a few seconds

`full.json` is computed by TRL's own code: the statements of `PPOTrainer.train` between two of its comments are run on
our own tensors. All answers there have full length, so that padding and the position of the score do not matter.
`ragged.json` has answers of different lengths: numbers that TRL defines independently of padding come from the same
statements, the others (rewards, advantages, returns, value loss, mean over real tokens) from the formulas written out
below, one loop per formula. Everything is float64 on one CPU thread. Needs trl 0.2x, which still has the trainer, and torch,
transformers, accelerate and datasets: `pip install trl==0.24.0`.
"""

import inspect
import json
import math
import textwrap
import types
from pathlib import Path

import torch
import transformers
import trl
from trl.core import masked_mean, masked_whiten
from trl.trainer import ppo_trainer

OUT = Path("tests/fixtures/ppo")
VERSIONS = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "trl": trl.__version__}
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
SOURCE = inspect.getsource(ppo_trainer.PPOTrainer.train).split("\n")


def statements(first, last):
    """Returns TRL's lines from the one that begins with `first` to the next one that begins with `last`."""
    begin = next(i for i, line in enumerate(SOURCE) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(SOURCE) if i >= begin and line.strip().startswith(last))
    return compile(textwrap.dedent("\n".join(SOURCE[begin : end + 1])), "ppo_trainer.py", "exec")


ADVANTAGES = statements("# 4. compute rewards", "advantages = torch.masked_fill(")
UPDATE = statements("mb_advantage = advantages[micro_batch_inds]", "loss = pg_loss + args.vf_coef * vf_loss")
STATISTICS = statements("mean_kl = kl.sum(1).mean()", "rlhf_reward = mean_non_score_reward")
INVALID = ppo_trainer.INVALID_LOGPROB


def numbers(seed, lengths, width, vocabulary=11):
    """Returns the tensors of one iteration before its update, and the model's outputs during the update."""
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width)
    normal = lambda *size, spread=1.0: torch.randn(*size, generator=g) * spread  # noqa: E731
    old = -normal(*shape).abs() - 0.2
    return {
        "lengths": lengths,
        "log_probs": old,
        "reference": old + normal(*shape, spread=0.3),
        "values": normal(*shape, spread=0.7),
        "scores": normal(len(lengths)),
        "new_log_probs": old + normal(*shape, spread=0.25),
        "new_values": normal(*shape, spread=0.7),
        "logits": normal(*shape, vocabulary, spread=2.0),
    }


def real(lengths, t):
    """Returns one list per answer, without padding."""
    return [row[:n].tolist() for n, row in zip(lengths, t, strict=True)]


# ---------------------------------------------------------------------------------------- TRL's statements on tensors


def by_trl(x, settings):
    lengths, width = x["lengths"], x["log_probs"].shape[1]
    count = len(lengths)
    index = torch.arange(width).repeat(count, 1)
    last = torch.tensor(lengths) - 1
    mask, mask_p1 = index > last.unsqueeze(1), index > (last + 1).unsqueeze(1)
    args = types.SimpleNamespace(
        kl_estimator=settings["estimator"],
        kl_coef=settings["kl_coef"],
        whiten_rewards=settings["whiten_rewards"],
        gamma=settings["gamma"],
        lam=settings["lambda"],
        cliprange=settings["clip"],
        cliprange_value=settings["clip_value"],
        vf_coef=settings["value_coef"],
        temperature=1.0,
    )
    space = {
        "torch": torch,
        "args": args,
        "masked_mean": masked_mean,
        "masked_whiten": masked_whiten,
        "INVALID_LOGPROB": INVALID,
        "logprobs": x["log_probs"].masked_fill(mask, INVALID),
        "ref_logprobs": x["reference"].masked_fill(mask, INVALID),
        "values": x["values"].masked_fill(mask_p1, 0),
        "scores": x["scores"],
        "sequence_lengths": last,
        "sequence_lengths_p1": last + 1,
        "padding_mask": mask,
        "padding_mask_p1": mask_p1,
        "responses": index,
        "empty_cache": lambda: None,
    }
    exec(ADVANTAGES, space)
    exec(STATISTICS, space)
    new, predicted = x["new_log_probs"].clone().requires_grad_(), x["new_values"].clone().requires_grad_()
    output = types.SimpleNamespace(logits=torch.cat([x["logits"], x["logits"][:, :1]], 1).clone())
    ahead = torch.cat([predicted, predicted[:, :1]], 1)
    space |= {
        "micro_batch_inds": torch.arange(count),
        "query_responses": None,
        "mb_query_responses": None,
        "model": None,
        "processing_class": types.SimpleNamespace(pad_token_id=0),
        "context_length": 1,
        "forward": lambda *_: (output, ahead.unsqueeze(-1)),
        "selective_log_softmax": lambda *_: new,
    }
    space["query_responses"] = torch.zeros(count, width + 1)
    exec(UPDATE, space)
    space["loss"].backward()
    space["new"], space["predicted"] = new, predicted
    return space


SETTINGS = {
    "usual": {},
    "k3_whitened": {"estimator": "k3", "whiten_rewards": True},
    "discounted": {"gamma": 0.9, "lambda": 0.7, "kl_coef": 0.3, "clip": 0.1, "clip_value": 0.5, "value_coef": 0.4},
}
USUAL = {
    "estimator": "k1",
    "kl_coef": 0.05,
    "whiten_rewards": False,
    "gamma": 1.0,
    "lambda": 0.95,
    "clip": 0.2,
    "clip_value": 0.2,
    "value_coef": 0.1,
}


def full():
    x = numbers(1, [6, 6, 6, 6], 6)
    lengths, cases = x["lengths"], {}
    for name, changed in SETTINGS.items():
        settings = USUAL | changed
        s = by_trl(x, settings)
        cases[name] = {
            **settings,
            "rewards": real(lengths, s["rewards"]),
            "returns": real(lengths, s["returns"]),
            "advantages": real(lengths, s["advantages"]),
            "objective/kl": s["mean_kl"].item(),
            "objective/entropy": s["mean_entropy"].item(),
            "objective/non_score_reward": s["mean_non_score_reward"].item(),
            "objective/rlhf_reward": s["rlhf_reward"].item(),
            "loss": s["loss"].item(),
            "loss/policy_avg": s["pg_loss"].item(),
            "loss/value_avg": s["vf_loss"].item(),
            "val/clipfrac_avg": s["vf_clipfrac"].item(),
            "policy/clipfrac_avg": (s["pg_losses2"] > s["pg_losses"]).double().mean().item(),
            "policy/approxkl_avg": 0.5 * (s["logprobs_diff"] ** 2).mean().item(),
            "val/ratio": s["ratio"].mean().item(),
            "gradient_log_probs": real(lengths, s["new"].grad),
            "gradient_values": real(lengths, s["predicted"].grad),
        }
    write("full.json", x, cases)


# ------------------------------------------------------------------------------------- the formulas, one loop per formula


def mean(x):
    return sum(x) / len(x)


def whitened(answers, shift):
    flat = [x for a in answers for x in a]
    m = mean(flat)
    var = sum((x - m) ** 2 for x in flat) / (len(flat) - 1)
    return [[(x - m) / math.sqrt(var + 1e-8) + (0 if shift else m) for x in a] for a in answers]


def estimate(name, d):
    return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[name]


def by_hand(x, s):
    n = x["lengths"]
    old, ref, values = (real(n, x[k]) for k in ("log_probs", "reference", "values"))
    kl = [[estimate(s["estimator"], p - r) for p, r in zip(a, b, strict=True)] for a, b in zip(old, ref, strict=True)]
    weight = 0.0 if s["kl_in"] == "loss" else s["kl_coef"]
    rewards = [[-weight * k for k in a] for a in kl]
    for a, score in zip(rewards, x["scores"].tolist(), strict=True):
        a[-1] += score
    if s["whiten_rewards"]:
        rewards = whitened(rewards, False)
    advantages = []
    for r, v in zip(rewards, values, strict=True):
        v = v + [0.0]
        delta = [r[t] + s["gamma"] * v[t + 1] - v[t] for t in range(len(r))]
        discount = s["gamma"] * s["lambda"]
        advantages.append([sum(discount ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))])
    returns = [[a + v for a, v in zip(x, y, strict=True)] for x, y in zip(advantages, values, strict=True)]
    flat_returns, flat_values = sum(returns, []), sum(values, [])
    left = [r - v for r, v in zip(flat_returns, flat_values, strict=True)]
    spread = lambda xs: sum((x - mean(xs)) ** 2 for x in xs)  # noqa: E731
    advantages = whitened(advantages, True)

    leaf = lambda key: [torch.tensor(v, requires_grad=True) for v in sum(real(n, x[key]), [])]  # noqa: E731
    new, predicted = leaf("new_log_probs"), leaf("new_values")
    logits = [row for k, rows in zip(n, x["logits"], strict=True) for row in rows[:k]]
    policy, value, entropy, terms = [], [], [], []
    for i, (a, o, v, r, f) in enumerate(
        zip(sum(advantages, []), sum(old, []), flat_values, flat_returns, sum(ref, []), strict=True)
    ):
        ratio = torch.exp(new[i] - o)
        policy.append(torch.maximum(-a * ratio, -a * ratio.clamp(1 - s["clip"], 1 + s["clip"])))
        near = predicted[i].clamp(v - s["clip_value"], v + s["clip_value"])
        value.append(0.5 * torch.maximum((predicted[i] - r) ** 2, (near - r) ** 2))
        p = logits[i].softmax(-1)
        entropy.append(-(p * p.log()).sum())
        d = new[i] - f
        terms.append({"k1": ratio * d, "k2": d * d / 2, "k3": torch.exp(-d) - 1 + d}[s["estimator"]])
    loss = mean(policy) + s["value_coef"] * mean(value) - s["entropy_coef"] * mean(entropy)
    if s["kl_in"] == "loss":
        loss = loss + s["kl_coef"] * mean(terms)
    loss.backward()
    change = [(a - b).item() for a, b in zip(new, sum(old, []), strict=True)]
    per_answer = lambda rows: mean([sum(a) for a in rows])  # noqa: E731
    return {
        "rewards": rewards,
        "advantages": advantages,
        "returns": returns,
        "explained_variance": 1 - spread(left) / spread(flat_returns),
        "objective/kl": per_answer(kl),
        "objective/entropy": per_answer([[-p for p in a] for a in old]),
        "loss": loss.item(),
        "loss/policy_avg": mean(policy).item(),
        "loss/value_avg": mean(value).item(),
        "policy/entropy_avg": mean(entropy).item(),
        "policy/approxkl_avg": mean([c * c / 2 for c in change]),
        "val/ratio": mean([math.exp(c) for c in change]),
        "val/ratio_var": mean([(math.exp(c) - 1) ** 2 for c in change]),
        "entropies": [e.item() for e in entropy],
        "gradient_log_probs": [t.grad.item() for t in new],
        "gradient_values": [t.grad.item() for t in predicted],
    }


RAGGED = {
    "usual": {},
    "k2_reward": {"estimator": "k2", "whiten_rewards": True, "gamma": 0.95},
    "k3_reward": {"estimator": "k3", "kl_coef": 0.2, "entropy_coef": 0.01},
    "k1_loss": {"estimator": "k1", "kl_in": "loss", "kl_coef": 0.1},
    "k2_loss": {"estimator": "k2", "kl_in": "loss", "kl_coef": 0.1, "entropy_coef": 0.02},
    "k3_loss": {"estimator": "k3", "kl_in": "loss", "kl_coef": 0.1, "clip": 0.05, "lambda": 0.6},
}


def ragged():
    x = numbers(2, [6, 3, 1, 5], 6)
    cases = {}
    for name, changed in RAGGED.items():
        settings = {**USUAL, "entropy_coef": 0.0, "kl_in": "reward", **changed}
        found = by_hand(x, settings)
        if settings["kl_in"] == "reward" and settings["estimator"] != "k2":
            # Given the same advantages, TRL's masked means over real tokens must give the same policy loss.
            width = x["log_probs"].shape[1]
            mask = torch.arange(width).repeat(len(x["lengths"]), 1) < torch.tensor(x["lengths"]).unsqueeze(1)
            padded = torch.zeros(mask.shape)
            padded[mask] = torch.tensor(sum(found["advantages"], []))
            ratio = torch.exp(x["new_log_probs"] - x["log_probs"])
            clipped = torch.clamp(ratio, 1 - settings["clip"], 1 + settings["clip"])
            policy = masked_mean(torch.max(-padded * ratio, -padded * clipped), mask)
            assert abs(policy.item() - found["loss/policy_avg"]) < 1e-14
            s = by_trl(x, settings)
            assert abs(s["mean_kl"].item() - found["objective/kl"]) < 1e-14  # padding has zero divergence there
        cases[name] = {**settings, **found}
    write("ragged.json", x, cases)


def write(name, x, cases):
    OUT.mkdir(parents=True, exist_ok=True)
    lengths = x["lengths"]
    given = {k: real(lengths, v) for k, v in x.items() if k not in ("lengths", "scores", "logits")}
    content = {"versions": VERSIONS, "lengths": lengths, "scores": x["scores"].tolist(), **given}
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()]
    inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in cases.items())
    (OUT / name).write_text("{\n" + ",\n".join(lines) + ',\n  "cases": {\n' + inner + "\n  }\n}\n")


if __name__ == "__main__":
    full()
    ragged()
