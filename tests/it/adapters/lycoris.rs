//! Tests the dropouts of LoHa and LoKr: by their formulas, in PEFT's files and in runs.

use crate::support::resumed::resumed_equals_straight;
use crate::support::workspace::Workspace;
use crate::support::{alone, assert_close, fixture, noise};
use ft::adapters::{AdapterSpec, file};
use ft::nn::{Adapter, AdapterSite, Dense, LayerKind, ParamRole};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// An adapter of one layer (out 6, in 8) with random parameters, by their names.
fn attached(settings: Value, base: &Dense) -> (Box<dyn Adapter>, BTreeMap<String, Tensor>) {
    let spec: AdapterSpec = serde_json::from_value(settings).unwrap();
    let (plan, mut leaves) = (spec.plan().unwrap(), BTreeMap::new());
    let site = AdapterSite {
        name: "up_proj",
        layer: LayerKind::Linear,
        weight: &base.weight,
        unquantised: None,
        bias: base.bias.as_ref(),
        tied: false,
    };
    let add = &mut |name: &str, t: Tensor, _: ParamRole| {
        let t = (&t + noise(&t.size(), name) * 0.3).detach().set_requires_grad(true);
        leaves.insert(name.to_string(), t.shallow_clone());
        t
    };
    (plan.attach(&site, add).unwrap().unwrap(), leaves)
}

/// Whole outputs of the update are dropped, the same for every token, and whole updates; gradients follow.
#[test]
fn outputs_and_updates_are_dropped_in_training_alone() {
    alone("adapters::lycoris::outputs_and_updates_are_dropped_in_training_alone", || {
        let options = (Kind::Float, Device::Cpu);
        let base = Dense { weight: Tensor::randn([6, 8], options).into(), bias: Some(Tensor::randn([6], options)) };
        let x = Tensor::randn([5, 8], options).set_requires_grad(true);
        for (kind, scaled) in [("loha", true), ("lokr", true), ("lokr", false)] {
            let mut settings = json!({ "rank": 2, "rank_dropout": 0.4, "module_dropout": 0.2 });
            if kind == "lokr" {
                settings["rank_dropout_scale"] = scaled.into();
            }
            let (adapter, leaves) = attached(json!({ kind: settings }), &base);
            let of_base = x.linear(&base.weight.dense(Kind::Float), base.bias.as_ref());
            let whole = tch::no_grad(|| adapter.forward(&x, &base, false)) - of_base.detach();
            let (mut dropped, mut updates) = (0.0, 0);
            for seed in 0..40 {
                tch::manual_seed(seed);
                let y = adapter.forward(&x, &base, true);
                tch::manual_seed(seed);
                let kept = Tensor::empty([1], options).bernoulli_float_(0.8);
                let outputs = Tensor::empty([6], options).bernoulli_float_(0.6);
                let share = if scaled { outputs.mean(Kind::Float).clamp_min(1e-6) } else { Tensor::from(1.0f32) };
                let mask = &kept * &outputs / share;
                assert_close(&format!("{kind} {seed}"), &y, &(&of_base + &whole * &mask), 1e-5);
                dropped += 1.0 - outputs.mean(Kind::Float).double_value(&[]);
                updates += i64::from(kept.double_value(&[0]) == 1.0);
                // A gradient that reaches a dropped output reaches no parameter.
                if kept.double_value(&[0]) == 0.0 {
                    y.sum(Kind::Float).backward();
                    let sizes = leaves.values().map(|t| t.grad().abs().max().double_value(&[]));
                    assert_eq!(sizes.fold(0.0, f64::max), 0.0, "{kind} {seed}");
                }
            }
            assert!((10.0..22.0).contains(&dropped) && (24..40).contains(&updates), "{dropped} {updates}");
            let again = adapter.forward(&x, &base, false) - &of_base;
            assert!(again.equal(&whole), "{kind}: without training nothing is dropped");
        }
    });
}

/// PEFT's settings are read, kept and written again.
#[test]
fn dropouts_of_a_file_are_kept() {
    for (kind, own) in [("loha", json!({})), ("lokr", json!({ "rank_dropout_scale": true }))] {
        let mut config: Value = crate::support::json(format!("kinds/{kind}/adapter_config.json"));
        let set = json!({ "rank_dropout": 0.25, "module_dropout": 0.5 });
        for (key, value) in set.as_object().unwrap().iter().chain(own.as_object().unwrap()) {
            config[key] = value.clone();
        }
        let path = fixture(format!("kinds/{kind}/adapter_config.json"));
        let (spec, _) = file::parse_config(&path, &config.to_string()).unwrap();
        assert_eq!(spec.dropout(), 0.5);
        let written = spec.config("base");
        for key in ["rank_dropout", "module_dropout", "rank_dropout_scale"] {
            assert_eq!(config.get(key), written.get(key), "{kind}: {key}");
        }
        config["rank_dropout"] = json!(1.5);
        let e = file::parse_config(&path, &config.to_string()).err().unwrap();
        assert!(e.message().contains("`rank_dropout` is 1.5"), "{e}");
    }
}

#[test]
fn a_resumed_run_with_dropped_updates_equals_a_straight_one() {
    let adapter = "adapter={lokr: {rank_dropout: 0.2, module_dropout: 0.1, rank_dropout_scale: true}}";
    resumed_equals_straight(&Workspace::new(), "recipes/lora-medical.yaml", &[adapter, "run.replay=all"]);
}

#[test]
fn answers_are_not_sampled_with_another_model_than_is_trained() {
    let set = "adapter={loha: {rank_dropout: 0.1}}";
    let said = Workspace::new().refused(&["train", "recipes/grpo-icd10.yaml", "--set", set]);
    assert!(said.contains("adapter.loha has a dropout of 0.1"), "{said}");
}
