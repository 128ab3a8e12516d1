//! Proximal policy optimisation: its numbers against TRL's own statements and against the formulas by hand
//! (tests/reference/make_ppo.py), and whole runs on tiny models.

use crate::support::*;
use ft::methods::ppo::advantage::{explained_variance, gae, rewards, whiten};
use ft::methods::ppo::kl::Estimator;
use ft::methods::ppo::loss::{Before, Weights};
use ft::models::Loss;
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Answers of an iteration, a list of tokens each.
type Answers = Vec<Vec<f64>>;

#[derive(Deserialize)]
struct Fixture {
    scores: Vec<f64>,
    log_probs: Answers,
    reference: Answers,
    values: Answers,
    new_log_probs: Answers,
    new_values: Answers,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    estimator: Estimator,
    kl_coef: f64,
    #[serde(default)]
    kl_in: String,
    whiten_rewards: bool,
    gamma: f64,
    lambda: f64,
    clip: f64,
    clip_value: f64,
    value_coef: f64,
    #[serde(default)]
    entropy_coef: f64,
    rewards: Answers,
    returns: Answers,
    advantages: Answers,
    loss: f64,
    explained_variance: Option<f64>,
    entropies: Option<Vec<f64>>,
    gradient_log_probs: serde_json::Value,
    gradient_values: serde_json::Value,
    /// The metrics by name.
    #[serde(flatten)]
    metrics: BTreeMap<String, serde_json::Value>,
}

fn flat(answers: &Answers) -> Vec<f64> {
    answers.concat()
}

/// The numbers of a list, however deep they lie.
fn all(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(list) => list.iter().flat_map(all).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

#[track_caller]
fn assert_all(name: &str, ours: &[f64], theirs: &[f64], allowed: f64) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let far = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far <= allowed, "{name}: {far:e} apart, allowed {allowed:e}");
}

/// Rewards, advantages, returns, losses, metrics and gradients of every case.
fn check(file: &str) {
    let f: Fixture = json(format!("ppo/{file}"));
    for (name, case) in &f.cases {
        let name = |what: &str| format!("{file} {name}: {what}");
        let divergence: Answers = f.log_probs.iter().zip(&f.reference).map(|(p, r)| {
            p.iter().zip(r).map(|(p, r)| case.estimator.of(p - r)).collect()
        }).collect();
        let in_loss = case.kl_in == "loss";
        let weight = if in_loss { 0.0 } else { case.kl_coef };
        let mut given: Answers = divergence.iter().zip(&f.scores).map(|(d, score)| {
            rewards(&d.iter().map(|k| weight * k).collect::<Vec<_>>(), *score)
        }).collect();
        if case.whiten_rewards {
            whiten(&mut given, false);
        }
        assert_all(&name("rewards"), &flat(&given), &flat(&case.rewards), 1e-12);
        let mut advantages: Answers =
            given.iter().zip(&f.values).map(|(r, v)| gae(r, v, case.gamma, case.lambda)).collect();
        let returns: Answers = advantages.iter().zip(&f.values).map(|(a, v)| {
            a.iter().zip(v).map(|(a, v)| a + v).collect()
        }).collect();
        assert_all(&name("returns"), &flat(&returns), &flat(&case.returns), 1e-12);
        if let Some(theirs) = case.explained_variance {
            let ours = explained_variance(&flat(&f.values), &flat(&returns)).unwrap();
            assert_number(&name("explained variance"), ours, theirs, 1e-12);
        }
        whiten(&mut advantages, true);
        assert_all(&name("advantages"), &flat(&advantages), &flat(&case.advantages), 1e-12);

        let tensor = |x: &Answers| Tensor::from_slice(&flat(x)).to_device(device());
        let before = Before {
            log_probs: tensor(&f.log_probs),
            advantages: tensor(&advantages),
            values: tensor(&f.values),
            returns: tensor(&returns),
            reference: in_loss.then(|| tensor(&f.reference)),
        };
        let weights = Weights {
            clip: case.clip,
            clip_value: case.clip_value,
            value: case.value_coef,
            entropy: case.entropy_coef,
            kl: in_loss.then_some((case.estimator, case.kl_coef)),
        };
        let (new, predicted) =
            (tensor(&f.new_log_probs).set_requires_grad(true), tensor(&f.new_values).set_requires_grad(true));
        let entropy = case.entropies.as_ref().map(|e| Tensor::from_slice(e).to_device(device()));
        let Loss { sum, mut metrics } = weights.policy(&new, entropy.as_ref(), &before);
        let value = weights.value(&predicted, &before);
        metrics.merge(value.metrics);
        let n = flat(&f.log_probs).len() as f64;
        let sum = (sum + value.sum) / n;
        sum.backward();
        // A scalar loss is float32; everything else here is float64.
        assert_number(&name("loss"), sum.double_value(&[]), case.loss, 1e-6);
        let means = metrics.means();
        assert_number(&name("logged loss"), means["loss"], case.loss, 1e-6);
        let known = ["policy/", "loss/", "val/"];
        let mut checked = 0;
        for (key, theirs) in case.metrics.iter().filter(|(k, _)| known.iter().any(|p| k.starts_with(p))) {
            assert_number(&name(key), means[key.as_str()], theirs.as_f64().unwrap(), 1e-6);
            checked += 1;
        }
        assert!(checked >= 6, "{checked} metrics");
        let gradient = |t: &Tensor| Vec::<f64>::try_from(t.grad().to_kind(Kind::Double)).unwrap();
        assert_all(&name("gradient of log-probs"), &gradient(&new), &all(&case.gradient_log_probs), 1e-8);
        assert_all(&name("gradient of values"), &gradient(&predicted), &all(&case.gradient_values), 1e-8);
        // What a run logs of an iteration.
        let mean = |answers: &Answers| answers.iter().flatten().sum::<f64>() / answers.len() as f64;
        assert_number(&name("kl"), mean(&divergence), case.metrics["objective/kl"].as_f64().unwrap(), 1e-12);
    }
}

/// Decoding keeps casts of an adapter's tensors; a step must make them stale, or rollouts come from an earlier policy.
#[test]
fn decoding_sees_every_update_of_an_adapter() {
    use ft::adapters::{LoraPlan, LoraSpec};
    use ft::nn::Tokens;
    use ft::recipe::{OptimKind, OptimSection};
    use ft::train::optim::Optimiser;
    let plan = LoraPlan::new(&LoraSpec::default()).unwrap();
    let kinds = [r#""adamw""#, r#"{"adamw8":{}}"#, r#"{"adafactor":{}}"#, r#"{"lion":{}}"#, r#"{"muon":{}}"#, r#"{"sgd":{}}"#];
    for kind in kinds {
        let model = adapted(&fixture("tiny-llama"), Kind::Float, &plan);
        let kind: OptimKind = serde_json::from_str(kind).unwrap();
        let mut optimiser = Optimiser::new(model.params(), &OptimSection { kind, ..OptimSection::default() }, 0).unwrap();
        let row = Row::pack(&[Sequence::random(12, 512, 1)]);
        let whole = || model.infer(&row.tokens, |out| out.logits(&row.tokens.segments.last_rows())).unwrap();
        let decoded = || {
            let mut cache = model.cache(1);
            let ids: Vec<u32> = Sequence::random(12, 512, 1).ids;
            let mut last = None;
            for part in [&ids[..11], &ids[11..]] {
                let tokens = Tokens::pack_after(&[part], &cache.lengths, device());
                last = Some(model.extend(&tokens, &mut cache, |out| out.logits(&tokens.segments.last_rows())).unwrap());
            }
            last.unwrap()
        };
        let before = decoded();
        for _ in 0..2 {
            model.learn(&row.tokens, row.items, ft::models::Replay::None, |out| row.loss(out)).unwrap();
            optimiser.step(0.05).unwrap();
            optimiser.zero_gradients();
            assert_close("decoded", &decoded(), &whole(), 1e-4);
        }
        assert!(Gap::between(&decoded(), &before).norm > 1e-3, "the steps move nothing");
    }
}

#[test]
fn numbers_equal_those_of_trl_where_nothing_is_padded() {
    check("full.json");
}

#[test]
fn numbers_of_unlike_answers_equal_the_masked_formulas() {
    check("ragged.json");
}
