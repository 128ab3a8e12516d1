//! What is particular to DeepSeek-V2: sizes of latent attention and groups of experts that cannot be. Logits, gradients, training
//! steps and decoding are tested with those of the other families.

use crate::support::*;
use ft::adapters::{AdapterSpec, PrefixTuningSpec};
use ft::models::{Config, Heads, LoadOptions, Model, Storage};
use ft::nn::{AdapterPlan, LayerKind};
use serde_json::{Value, json as value};
use std::path::{Path, PathBuf};
use tch::Kind;

const BASE: &str = "tiny-deepseek-v2";
const GROUPS: &str = "deepseek-v2-groups";

fn try_load(folder: &Path, plan: Option<&dyn AdapterPlan>) -> ft::error::Result<Model> {
    let adapters = plan.iter().map(|plan| ("a".to_string(), *plan)).collect();
    let (device, kind, storage, heads) = (device(), Kind::Float, Storage::Auto, Heads::Tokens);
    Model::load(folder, LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads })
}

fn settings(name: &str) -> (PathBuf, Value) {
    let file = fixture(name).join("config.json");
    let config = ft::fsutil::read_json(&file).unwrap();
    (file, config)
}

#[test]
fn settings_that_change_its_numbers_are_refused_by_name() {
    let refused = |base: &str, key: &str, found: Value| {
        let folder = with_weights(base, base);
        let file = folder.path().join("config.json");
        let (_, mut config) = settings(base);
        config[key] = found;
        ft::fsutil::write_json(&file, &config).unwrap();
        let e = try_load(folder.path(), None).err().expect("refused");
        assert!(e.exit_code() == 1 && e.to_string().contains("hint:"), "{key}: {e}");
        e.to_string()
    };
    let e = refused(BASE, "topk_method", value!("noaux_tc"));
    assert!(e.contains("`topk_method` is \"noaux_tc\"") && e.contains("group_limited_greedy"), "{e}");
    let e = refused(BASE, "scoring_func", value!("sigmoid"));
    assert!(e.contains("`scoring_func` is \"sigmoid\""), "{e}");
    for (key, found) in [
        ("norm_topk_prob", value!(true)),
        ("moe_layer_freq", value!(2)),
        ("kv_lora_rank", Value::Null),
        ("qk_rope_head_dim", value!(0)),
        ("first_k_dense_replace", value!("one")),
    ] {
        let e = refused(BASE, key, found);
        assert!(e.contains("config.json") && e.contains(&format!("`{key}`")), "{e}");
    }
    let e = refused(BASE, "v_head_dim", value!(11));
    assert!(e.contains("more than the 10 of a key"), "{e}");
    let e = refused(BASE, "num_key_value_heads", value!(1));
    assert!(e.contains("each of the 3 heads"), "{e}");
    let e = refused(BASE, "n_routed_experts", value!(6));
    assert!(e.contains("mlp.gate.weight` has shape [5, 18], expected [6, 18]"), "{e}");
    let e = refused(GROUPS, "n_group", value!(4));
    assert!(e.contains("a divisor of the 6 experts"), "{e}");
    let e = refused(GROUPS, "topk_group", value!(4));
    assert!(e.contains("at most the 3 groups"), "{e}");
    let e = refused(GROUPS, "topk_group", value!(1));
    assert!(e.contains("the 3 experts of a token"), "{e}");
}

/// The files of other families may have its keys: they change nothing there.
#[test]
fn its_keys_mean_nothing_elsewhere() {
    let parse = |name: &str, change: &dyn Fn(&mut Value)| {
        let (file, mut config) = settings(name);
        change(&mut config);
        Config::parse(&file, &config.to_string()).unwrap()
    };
    let keys = |config: &mut Value| {
        for (key, n) in [
            ("routed_scaling_factor", 2),
            ("first_k_dense_replace", 1),
            ("n_shared_experts", 1),
            ("qk_rope_head_dim", 4),
        ] {
            config[key] = n.into();
        }
    };
    let (plain, changed) = (parse("tiny-qwen3-moe", &|_| ()), parse("tiny-qwen3-moe", &keys));
    assert_eq!(plain.experts, changed.experts);
    assert_eq!(plain.rotary_size, changed.rotary_size);
    let own = parse(BASE, &keys);
    assert_eq!((own.experts.unwrap().scale, own.rotary_size, own.head_dim), (2.0, 4, 10));
}

#[test]
fn experts_shared_and_dense_layers_are_those_of_the_config() {
    let model = frozen(&fixture(BASE), Kind::Float);
    let names: Vec<&str> = model.params().base().map(|p| p.name.as_str()).collect();
    assert!(names.contains(&"model.layers.0.mlp.gate_proj.weight"));
    assert!(names.contains(&"model.layers.1.mlp.shared_experts.gate_proj.weight"));
    assert!(!names.iter().any(|n| n.contains("layers.0.mlp.experts") || n.contains("shared_expert_gate")));
    let routers = model.params().base().filter(|p| p.layer == LayerKind::Router).count();
    assert_eq!(routers, 1);
    let all: u64 = model.params().base().map(|p| p.count()).sum();
    assert_eq!(model.active_parameters(), all - 3 * 3 * 6 * 18, "three of five experts do not compute a token");
}

#[test]
fn prefix_tuning_is_refused() {
    let plan = AdapterSpec::PrefixTuning(PrefixTuningSpec::default()).plan().unwrap();
    let e = try_load(&fixture(BASE), Some(&*plan)).err().expect("refused").to_string();
    assert!(e.contains("prefix tuning") && e.contains("prompt_tuning"), "{e}");
}
