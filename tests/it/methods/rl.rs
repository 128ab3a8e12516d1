//! Tests GRPO, its variants and RLOO: losses, gradients, advantages and metrics against TRL's trainers on fixed
//! tensors, and whole runs through the real binary.

use crate::support::command::stderr;
use crate::support::files::copy_folder;
use crate::support::workspace::Workspace;
use crate::support::{assert_within, json};
use ft::methods::grpo::spec::{GrpoLoss, ScaleRewards};
use ft::methods::grpo::{Grpo, GrpoSpec};
use ft::methods::rloo::{Rloo, RlooSpec};
use ft::methods::rollout::advantages::RolloutRewards;
use ft::methods::rollout::answer::SampledAnswer;
use ft::methods::rollout::objective::{LossUnit, PolicyLossInputs, PolicyObjective, SkippedAnswers};
use ft::methods::rollout::stats;
use ft::models::Loss;
use ft::nn::head::TargetScores;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct Cases {
    answers: usize,
    width: usize,
    longest: usize,
    weights: Vec<f64>,
    lengths: Vec<usize>,
    ended: Vec<bool>,
    new: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    entropy: Vec<f64>,
    rewards: Vec<f64>,
    grpo: Vec<RlStep>,
    rloo: Vec<RlStep>,
}

#[derive(Deserialize)]
struct RlStep {
    options: Map<String, Value>,
    loss: f64,
    gradient: Vec<f64>,
    entropy_gradient: Option<Vec<f64>>,
    advantages: Vec<f64>,
    metrics: BTreeMap<String, f64>,
}

impl Cases {
    /// Returns the flat indices of the tokens of `answers` in a padded matrix with `width` columns.
    fn places(&self, answers: &[usize]) -> Vec<i64> {
        let places = answers.iter().flat_map(|i| (0..self.lengths[*i]).map(move |t| (i * self.width + t) as i64));
        places.collect()
    }

    fn total(&self) -> Vec<f64> {
        self.rewards.chunks(2).map(|r| r[0] * self.weights[0] + r[1] * self.weights[1]).collect()
    }

    /// Compares advantages, loss, gradients and metrics of a rule with those of TRL's trainer.
    fn check(&self, name: &str, rule: &dyn PolicyObjective, case: &RlStep, mask: bool, entropy_bonus: bool) {
        let name = format!("{name} {:?}", case.options);
        let everything: Vec<usize> = (0..self.lengths.len()).collect();
        let learnt: Vec<usize> = everything.iter().copied().filter(|i| !mask || self.ended[*i]).collect();
        let float = |x: &[f64]| Tensor::from_slice(x).to_kind(Kind::Float);
        let at = Tensor::from_slice(&self.places(&learnt));
        let kl: Vec<f64> = everything
            .iter()
            .map(|i| {
                let places = self.places(&[*i]).into_iter().filter(|_| !mask || self.ended[*i]);
                places.map(|p| self.old[p as usize] - self.reference[p as usize]).sum()
            })
            .collect();
        let lengths: Vec<f64> = self.lengths.iter().map(|n| *n as f64).collect();
        let total = self.total();
        let drawn =
            RolloutRewards { rewards: &total, answers_per_prompt: self.answers, lengths: &lengths, kl: Some(&kl) };
        let advantages = rule.advantages(&drawn);
        assert_within(&format!("{name}: advantages"), &float(&advantages.values), &float(&case.advantages), 1e-5);
        let same = |what: &str, ours: f64| {
            let theirs = case.metrics[what];
            assert!((ours - theirs).abs() < 1e-5, "{name}: {what} is {ours}, TRL's {theirs}");
        };
        same("frac_reward_zero_std", advantages.uniform_share);
        advantages.more.iter().for_each(|(k, v)| same(k, *v));

        let new = float(&self.new).set_requires_grad(true);
        let entropy = float(&self.entropy).set_requires_grad(true);
        let pick = |x: &Tensor| x.index_select(0, &at);
        let owner: Vec<i64> = learnt.iter().enumerate().flat_map(|(s, i)| vec![s as i64; self.lengths[*i]]).collect();
        let tokens = owner.len() as f64;
        let items = if rule.items() == LossUnit::Tokens { tokens } else { everything.len() as f64 };
        let chosen: Vec<f64> = learnt.iter().map(|i| advantages.values[*i]).collect();
        let chosen_lengths: Vec<f64> = learnt.iter().map(|i| lengths[*i]).collect();
        let terms = PolicyLossInputs {
            old: &pick(&float(&self.old)),
            reference: Some(&pick(&float(&self.reference))),
            advantages: &float(&chosen),
            owner: &Tensor::from_slice(&owner),
            lengths: &float(&chosen_lengths),
            per_token: items / tokens,
            skipped: SkippedAnswers::default(),
        };
        let scores = TargetScores {
            log_probs: pick(&new),
            hits: pick(&float(&self.old)),
            entropy: entropy_bonus.then(|| pick(&entropy)),
        };
        let Loss { sum, metrics } = rule.loss(&scores, &terms);
        let loss = sum / items;
        assert!((loss.double_value(&[]) - case.loss).abs() < 1e-5, "{name}: loss {loss:?}, TRL's {}", case.loss);
        loss.backward();
        assert_within(&format!("{name}: gradient"), &new.grad(), &float(&case.gradient), 1e-5);
        match &case.entropy_gradient {
            Some(theirs) => drop(assert_within(&format!("{name}: entropy"), &entropy.grad(), &float(theirs), 1e-5)),
            None => assert!(!entropy.grad().defined(), "{name}: the entropy must have no gradient"),
        }
        let means = metrics.means();
        assert!(means.len() >= 5, "{name}: {means:?}");
        means.iter().for_each(|(k, v)| same(k, *v));
    }
}

/// Translates TRL's options into a spec of ours.
fn grpo(options: &Map<String, Value>, longest: usize) -> GrpoSpec {
    let mut spec: GrpoSpec = serde_json::from_value(json!({ "rewards": [] })).unwrap();
    spec.sampling.max_new_tokens = longest;
    (spec.epsilon, spec.epsilon_high) = (Some(0.2), Some(0.2));
    for (key, value) in options {
        let number = || value.as_f64();
        match key.as_str() {
            "loss_type" => spec.loss = serde_json::from_value(value.clone()).unwrap(),
            "importance_sampling_level" => spec.loss = GrpoLoss::Gspo,
            "beta" => spec.beta = number().unwrap(),
            "use_bias_correction_kl" => spec.kl_correction = value.as_bool().unwrap(),
            "scale_rewards" => spec.scale_rewards = serde_json::from_value(value.clone()).unwrap(),
            "delta" => spec.delta = number(),
            "epsilon_low" => spec.epsilon = number(),
            "epsilon_high" => spec.epsilon_high = number(),
            "mask_truncated_completions" => spec.mask_truncated = true,
            "_entropy_bonus_enabled" => {}
            "entropy_coef" => spec.entropy = number().unwrap(),
            other => panic!("an option of TRL that this test does not know: {other}"),
        }
    }
    spec
}

#[test]
fn grpo_and_its_variants_equal_trl() {
    let cases: Cases = json("rl/losses.json");
    assert!(cases.grpo.len() >= 11);
    for case in &cases.grpo {
        let spec = grpo(&case.options, cases.longest);
        let (mask, bonus) = (spec.mask_truncated, spec.entropy != 0.0);
        cases.check("grpo", &Grpo(spec), case, mask, bonus);
    }
}

#[test]
fn rloo_equals_trl() {
    let cases: Cases = json("rl/losses.json");
    assert!(cases.rloo.len() >= 4);
    for case in &cases.rloo {
        let number = |key: &str| case.options.get(key).and_then(Value::as_f64);
        let spec = RlooSpec {
            beta: number("beta").unwrap_or(0.0),
            epsilon_high: number("epsilon_high"),
            normalize_advantages: case.options.contains_key("normalize_advantages"),
            reward_clip: case.options.get("reward_clip_range").map(|r| serde_json::from_value(r.clone()).unwrap()),
            ..serde_json::from_value(json!({ "rewards": [] })).unwrap()
        };
        cases.check("rloo", &Rloo(spec), case, false, false);
    }
}

#[test]
fn statistics_of_a_rollout_have_the_definitions_of_trl() {
    let cases: Cases = json("rl/losses.json");
    let sample = |i: usize| SampledAnswer {
        prompt: i / cases.answers,
        ids: vec![5; cases.lengths[i] + 1],
        answer_start: 1,
        log_probs: vec![-1.0; cases.lengths[i]],
        ended: cases.ended[i],
        text: String::new(),
        rewards: cases.rewards[2 * i..2 * i + 2].to_vec(),
        reward: cases.total()[i],
    };
    let samples: Vec<SampledAnswer> = (0..cases.lengths.len()).map(sample).collect();
    let numbers =
        stats::completions(&samples).into_iter().chain(stats::reward_metrics(&samples, ["a", "b"].into_iter()));
    for (name, ours) in numbers {
        // TRL logs these in `_generate`, which the fixture did not run; the expected numbers follow from the fixture's
        // lengths.
        let by_hand = match name.as_str() {
            "completions/mean_length" => 47.0 / 12.0,
            "completions/min_length" | "completions/min_terminated_length" => 1.0,
            "completions/max_length" | "completions/max_terminated_length" => 6.0,
            "completions/clipped_ratio" => 3.0 / 12.0,
            "completions/mean_terminated_length" => 29.0 / 9.0,
            other => cases.grpo[0].metrics[other],
        };
        assert!((ours - by_hand).abs() < 1e-5, "{name}: {ours}, expected {by_hand}");
    }
    assert_eq!(
        stats::drift_metrics(&samples, &samples.iter().map(|s| s.log_probs.clone()).collect::<Vec<_>>())[0].1,
        0.0
    );
}

#[test]
fn defaults_are_those_of_the_papers() {
    let spec = |loss| GrpoSpec { loss, ..serde_json::from_value(json!({ "rewards": [] })).unwrap() };
    let found = |loss| (spec(loss).clip(), spec(loss).scale());
    assert_eq!(found(GrpoLoss::Grpo), ((0.2, 0.2), ScaleRewards::Group));
    assert_eq!(found(GrpoLoss::Dapo), ((0.2, 0.28), ScaleRewards::Group));
    assert_eq!(found(GrpoLoss::DrGrpo), ((0.2, 0.2), ScaleRewards::None));
    assert_eq!(found(GrpoLoss::Gspo), ((3e-4, 4e-4), ScaleRewards::Group));
    // `use_bias_correction_kl` of TRL 1.16.
    assert!(spec(GrpoLoss::Grpo).kl_correction);
}

const RECIPE: &str = "\
model:   { path: models/smollm2-135m-instruct, dtype: f32 }
method:
  grpo:
    rewards:
      - length: { max: 6, falloff: 12 }
      - regex: { pattern: '^[a-m]' }
        weight: 0.5
    sampling: { prompts: 3, max_new_tokens: 16 }
    answers: 4
    loss: gspo
    beta: 0.05
    passes: 2
    mini_batches: 2
adapter: { lora: { rank: 4 } }
data:    { train: { path: datasets/icd10/train.jsonl }, valid: { path: datasets/icd10/valid.jsonl } }
batch:   { tokens: 512, max_len: 256 }
optim:   { lr: 1e-3 }
run:     { steps: 8, eval_every: 4, save_every: 1, keep: 20, samples: 0, out: straight }
";

#[test]
fn a_run_interrupted_inside_a_rollout_resumes_bit_for_bit() {
    let space = Workspace::new();
    std::fs::write(space.path("rl.yaml"), RECIPE).unwrap();
    space.ft(&["train", "rl.yaml"]);
    copy_folder(&space.path("straight"), &space.path("broken"));
    // After step 6, half of the steps of the second rollout are done.
    for step in 7..=8 {
        std::fs::remove_dir_all(space.path(&format!("broken/checkpoints/step-{step}"))).unwrap();
    }
    ["adapter_model.safetensors", "summary.json", "held_out.json"]
        .iter()
        .for_each(|name| std::fs::remove_file(space.path("broken").join(name)).unwrap());
    space.ft(&["resume", "broken"]);
    assert_eq!(space.weights("straight"), space.weights("broken"));
    assert_eq!(space.steps("straight"), space.steps("broken"));
    assert_eq!(space.json("straight/held_out.json"), space.json("broken/held_out.json"));

    let steps = space.steps("straight");
    let draws: Vec<&Value> = steps.iter().filter(|s| s.get("reward").is_some()).collect();
    assert_eq!(draws.len(), 2, "eight steps need two rollouts");
    for key in [
        "num_tokens",
        "completions/mean_length",
        "completions/max_terminated_length",
        "completions/clipped_ratio",
        "reward_std",
        "rewards/length/mean",
        "rewards/regex/std",
        "frac_reward_zero_std",
        "entropy",
        "kl",
        "objective/kl",
        "clip_ratio/region_mean",
        "clip_ratio/low_min",
        "clip_ratio/high_max",
        "sampling/sampling_logp_difference/mean",
        "sampling/importance_sampling_ratio/max",
    ] {
        assert!(draws[0][key].is_f64() || draws[0][key].is_u64(), "{key}: {}", draws[0]);
    }
    assert!(draws[0]["sampling/sampling_logp_difference/max"].as_f64().unwrap() < 1e-4);
    assert_eq!(draws[0]["objective/kl"], 0.0, "before the first step the policy equals the reference");
    assert!(draws[1]["objective/kl"].as_f64().unwrap() != 0.0);
    let validation = steps.iter().find(|s| s.get("eval_reward").is_some()).unwrap();
    assert!(validation["eval_rewards/length/mean"].is_number(), "{validation}");
    assert_eq!(space.json("straight/summary.json")["best_metric"], "reward");
    assert_eq!(space.json("straight/held_out.json")["prompts"], 4);
}

#[test]
fn rloo_runs_with_every_weight_trained_and_a_copy_as_its_reference() {
    let space = Workspace::new();
    let recipe = RECIPE
        .replace("  grpo:", "  rloo:")
        .replace("    loss: gspo\n", "")
        .replace("adapter: { lora: { rank: 4 } }\n", "")
        .replace("lr: 1e-3", "lr: 1e-4")
        .replace("steps: 8", "steps: 5");
    std::fs::write(space.path("rl.yaml"), recipe).unwrap();
    // The predicted memory includes the copy: 125,376 float32 numbers. With `beta` 0 there is no KL term and no copy.
    let weights = |beta: &str| {
        let check = space.ft(&["check", "rl.yaml", "--json", "--set", &format!("method.rloo.beta={beta}")]);
        serde_json::from_slice::<Value>(&check.stdout).unwrap()["needs"]["weights"].as_u64().unwrap()
    };
    assert_eq!(weights("0.05") - weights("0"), 125_376 * 4);
    space.ft(&["train", "rl.yaml"]);
    let steps = space.steps("straight");
    let draws: Vec<&Value> = steps.iter().filter(|s| s.get("reward").is_some()).collect();
    assert_eq!((draws.len(), &draws[0]["kl"]), (2, &json!(0.0)));
    assert!(draws[1]["kl"].as_f64().unwrap() != 0.0, "the copy must not change with the policy");
}

#[test]
fn a_reward_that_fails_ends_the_run_with_its_reason() {
    let space = Workspace::new();
    let fails = |rewards: &str, said: &[&str]| {
        let begin = RECIPE.find("      - length").unwrap();
        let end = RECIPE.find("    sampling").unwrap();
        let recipe = format!("{}      - {rewards}\n{}", &RECIPE[..begin], &RECIPE[end..]);
        std::fs::write(space.path("rl.yaml"), recipe).unwrap();
        let output = space.command(&["train", "rl.yaml", "--overwrite"]).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        said.iter().for_each(|s| assert!(text.contains(s), "no {s:?} in {text}"));
    };
    fails("exact: { column: gold }", &["reward `exact`", "train.jsonl:1: no column `gold`", "`answer`"]);
    fails("regex: { pattern: '(' }", &["is not a regular expression"]);
    fails("command: { run: [sh, -c, 'echo no idea >&2; exit 9'] }", &["exit status: 9", "no idea"]);
    fails("json_schema: { path: none.json }", &["none.json"]);
}

/// A run that starts from a trained adapter has that adapter as its reference, whatever the method: at its first step
/// the KL is zero.
#[test]
fn a_run_started_from_an_adapter_has_it_as_its_reference() {
    let space = Workspace::new();
    std::fs::write(space.path("rl.yaml"), RECIPE).unwrap();
    let sft = "\
model:   { path: models/smollm2-135m-instruct, dtype: f32 }
method:  { sft: {} }
adapter: { lora: { rank: 4 } }
data:    { train: { path: datasets/icd10/train.jsonl } }
batch:   { tokens: 512, max_len: 256 }
optim:   { lr: 3e-2 }
run:     { steps: 4, samples: 0, out: begun }
";
    std::fs::write(space.path("sft.yaml"), sft).unwrap();
    space.ft(&["train", "sft.yaml"]);
    let ppo = RECIPE
        .replace("  grpo:", "  ppo:")
        .replace("    loss: gspo\n    beta: 0.05\n    passes: 2\n", "    epochs: 2\n");
    assert_ne!(ppo, RECIPE);
    let value = "    value: { adapter: { rank: 2 } }\nadapter:";
    let recipes = [
        ("grpo", RECIPE.to_string()),
        ("rloo", RECIPE.replace("  grpo:", "  rloo:").replace("    loss: gspo\n", "")),
        ("ppo", ppo.clone()),
        ("ppo-adapter", ppo.replace("adapter:", value)),
    ];
    for (name, recipe) in recipes {
        let recipe = recipe
            .replace("rank: 4 }", "rank: 4, from: begun }")
            .replace("steps: 8", "steps: 2")
            .replace("out: straight", &format!("out: {name}"));
        std::fs::write(space.path("rl.yaml"), recipe).unwrap();
        space.ft(&["train", "rl.yaml"]);
        let steps = space.steps(name);
        let first = steps.iter().find(|s| s.get("reward").is_some() || s.get("objective/scores").is_some()).unwrap();
        let kl = first.get("objective/kl").or(first.get("kl")).and_then(Value::as_f64);
        assert_eq!(kl, Some(0.0), "{name}: {first}");
        assert_ne!(space.weights(name), space.weights("begun"), "{name}: the run did not change the adapter");
    }
}
