//! Compares rotary position embeddings with transformers: frequencies and attention factors of many settings, and a
//! model that decodes a sequence beyond its context length.

use crate::support::*;
use ft::models::Config;
use ft::nn::{Rope, Tokens};
use serde_json::Value;
use std::path::Path;
use tch::{Device, Kind, Tensor};

#[derive(serde::Deserialize)]
struct Table {
    table: Vec<RopeAngles>,
}

#[derive(serde::Deserialize)]
struct RopeAngles {
    config: Value,
    length: i64,
    attention_factor: f64,
    inv_freq: Vec<f64>,
}

fn parse(config: &Value) -> ft::error::Result<Config> {
    Config::parse(Path::new("config.json"), &config.to_string())
}

#[test]
fn frequencies_equal_transformers_for_old_and_new_keys() {
    let Table { table } = json("ropes.json");
    assert!(table.len() >= 15);
    for case in &table {
        let config = parse(&case.config).unwrap();
        let rope = Rope::new(config.head_dim, config.rope_theta, &config.rope_scaling, Device::Cpu);
        // At position 1 the angle equals the frequency. The segment is said to have `case.length` tokens, because some
        // frequencies depend on the length.
        let at = Tensor::from_slice(&[1i64]);
        let (cos, sin) = rope.angles(&at, &[1], Some(&[case.length - 1]), Kind::Float);
        let (cos, sin) = (cos.to_kind(Kind::Double), sin.to_kind(Kind::Double));
        let found = Vec::<f64>::try_from(sin.atan2(&cos).flatten(0, -1)).unwrap();
        let factor = Vec::<f64>::try_from(sin.hypot(&cos).flatten(0, -1)).unwrap();
        assert_eq!(found.len(), case.inv_freq.len());
        for (i, (ours, theirs)) in found.iter().zip(&case.inv_freq).enumerate() {
            assert!((ours / theirs - 1.0).abs() < 1e-6, "{}: frequency {i}: {ours}, {theirs}", case.config);
            assert!((factor[i] / case.attention_factor - 1.0).abs() < 1e-6, "{}: {}", case.config, factor[i]);
        }
    }
}

#[test]
fn a_packed_row_gives_each_sequence_the_frequencies_of_its_own_length() {
    let config = parse(&json::<Value>("dynamic-rope/config.json")).unwrap();
    let rope = Rope::new(config.head_dim, config.rope_theta, &config.rope_scaling, Device::Cpu);
    let angles = |lengths: &[i64]| {
        let positions: Vec<i64> = lengths.iter().flat_map(|n| 0..*n).collect();
        rope.angles(&Tensor::from_slice(&positions), lengths, None, Kind::Float).0
    };
    let together = angles(&[40, 0, 7, 33]);
    for (from, n) in [(0, 40), (40, 7), (47, 33)] {
        assert_same("alone", &together.narrow(0, from, n).contiguous(), &angles(&[n]));
    }
    assert!(
        !angles(&[40]).narrow(0, 0, 33).equal(&angles(&[33])),
        "beyond 32 tokens the frequencies must depend on the length"
    );
    assert!(angles(&[32]).narrow(0, 0, 20).equal(&angles(&[20])), "up to 32 tokens they must not");
}

#[test]
fn a_sequence_that_outgrows_its_context_decodes_as_in_transformers() {
    #[derive(serde::Deserialize)]
    struct Decoding {
        ids: Vec<u32>,
        begin: usize,
    }
    let Decoding { ids, begin } = json("logits/dynamic-rope-decoding.json");
    let expected = &tensors("logits/dynamic-rope-decoding.safetensors")["logits"];
    let folder = with_weights("dynamic-rope", "wide-head-llama");
    let model = frozen(folder.path(), Kind::Float);
    let mut cache = model.cache(1);
    let mut got = Vec::new();
    let mut past = 0;
    for end in begin..=ids.len() {
        let tokens = Tokens::pack_after(&[&ids[past..end]], &[past as i64], device());
        let last = tokens.segments.last_rows();
        got.push(model.extend(&tokens, &mut cache, |out| out.logits(&last)).unwrap());
        past = end;
    }
    let gap = assert_close("decoding", &Tensor::cat(&got, 0), expected, 1e-4);
    println!("{gap:?}");
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    let refused = |rope: Value| {
        let mut config: Value = json("yarn-rope/config.json");
        config["rope_parameters"] = rope;
        let e = parse(&config).expect_err("refused").to_string();
        assert!(e.contains("config.json"), "{e}");
        e
    };
    assert!(refused(serde_json::json!({"rope_type": "longrope", "factor": 2.0})).contains("`short_factor`"));
    assert!(refused(serde_json::json!({"rope_type": "linear"})).contains("`factor`"));
    assert!(refused(serde_json::json!({"rope_type": "yarn", "factor": -1.0})).contains("found -1"));
    assert!(refused(serde_json::json!({"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0})).contains("alpha"));
    let llama3 =
        serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0});
    assert!(refused(llama3).contains("high_freq_factor"));
}
