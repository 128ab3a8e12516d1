//! Tests models that are initialised randomly: their initial values, their config, and recipes that start from one.

use crate::support::*;
use ft::convert::export;
use ft::models::new_config::{self, VocabularyInfo};
use ft::models::{Config, Heads, LoadOptions, Model, Storage, TrainedPart};
use ft::nn::{LayerKind, Tokens, Weights};
use ft::recipe;
use serde_json::{Map, Value, json as value};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Kind, Tensor};

const VOCABULARY: VocabularyInfo = VocabularyInfo { size: 400, bos: Some(0), eos: Some(2), pad: None };

/// Families whose layers a test below knows by name.
const OLDER: [&str; 9] = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "falcon", "mixtral", "qwen3_moe"];

/// Families whose default rotary embeddings and windows a config may leave out.
const NEWER: [&str; 11] =
    ["gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "olmo3", "smollm3", "granite", "cohere", "cohere2", "stablelm"];

/// Returns a small incomplete config for a family.
fn given(model_type: &str) -> Map<String, Value> {
    let sizes = match model_type {
        "gpt2" => value!({"n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 64}),
        "qwen3" => {
            value!({"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": true})
        }
        "gpt_neox" => {
            value!({"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4})
        }
        "falcon" => value!({"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}),
        _ if NEWER.contains(&model_type) => {
            value!({"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 24, "initializer_range": 0.05})
        }
        "mixtral" => {
            value!({"hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_local_experts": 4, "initializer_range": 0.05})
        }
        "qwen3_moe" => {
            value!({"hidden_size": 96, "intermediate_size": 160, "moe_intermediate_size": 64, "num_experts": 3,
            "num_experts_per_tok": 2, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "initializer_range": 0.05, "mlp_only_layers": [1]})
        }
        _ => value!({"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
    };
    let Value::Object(mut map) = sizes else { unreachable!() };
    map.insert("model_type".into(), model_type.into());
    map
}

fn whole_config(model_type: &str) -> Config {
    new_config::config(&given(model_type), VOCABULARY, Path::new("model.config")).unwrap()
}

fn initialise(model_type: &str, seed: u64, folder: &Path) -> Model {
    let load = LoadOptions {
        device: device(),
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: Some(&TrainedPart::All),
        adapters: Vec::new(),
        vocabulary: None,
        heads: Heads::Tokens,
    };
    Model::initialise(whole_config(model_type), folder, seed, load).unwrap()
}

#[test]
fn initial_values_are_distributed_as_in_transformers() {
    for model_type in OLDER.into_iter().chain(NEWER) {
        let model = initialise(model_type, 5, Path::new("."));
        let usual = if ["qwen3", "gpt2", "gpt_neox", "falcon"].contains(&model_type) { 0.02 } else { 0.05 };
        let mut seen = 0;
        for p in model.params().base() {
            let (mean, spread) = (p.tensor.mean(Kind::Double).double_value(&[]), p.tensor.std(false).double_value(&[]));
            if p.name.ends_with("bias") {
                assert_eq!((mean, spread), (0.0, 0.0), "{}", p.name);
            } else if p.layer == LayerKind::Norm {
                let scale = if model_type.starts_with("gemma") { 0.0 } else { 1.0 };
                assert_eq!((mean, spread), (scale, 0.0), "{}", p.name);
            } else {
                // GPT-2 initialises the projections that add to the residual stream (two per layer) with a smaller
                // deviation.
                let wanted = if p.name.ends_with("c_proj.weight") { usual / 6f64.sqrt() } else { usual };
                // A router has so few values that they may differ by chance: by three standard errors.
                let n = p.tensor.numel() as f64;
                let (of_spread, of_mean) = ((3.0 / (2.0 * n).sqrt()).max(0.03), (3.0 / n.sqrt()).max(0.1));
                assert!(
                    (spread / wanted - 1.0).abs() < of_spread && mean.abs() < of_mean * wanted,
                    "{}: {mean} {spread}",
                    p.name
                );
                seen += 1;
            }
        }
        assert!(seen > 12);
        let same = initialise(model_type, 5, Path::new("."));
        model.params().base().zip(same.params().base()).for_each(|(a, b)| assert_same(&a.name, &a.tensor, &b.tensor));
        let other = initialise(model_type, 6, Path::new("."));
        assert!(model.params().base().zip(other.params().base()).any(|(a, b)| !a.tensor.equal(&b.tensor)));
    }
}

#[test]
fn a_fresh_model_is_saved_as_a_directory_like_any_other() {
    for model_type in OLDER.into_iter().chain(NEWER) {
        let temp = tempfile::tempdir().unwrap();
        let tokenizer = fixture("tiny-tokenizer");
        let model = initialise(model_type, 1, &tokenizer);
        let out = temp.path().join("model");
        export::save_model(&model, &out, Kind::Float).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            assert!(std::fs::read(out.join(name)).unwrap() == std::fs::read(tokenizer.join(name)).unwrap(), "{name}");
        }
        let config: Value = ft::fsutil::read_json(&out.join("config.json")).unwrap();
        assert_eq!((&config["vocab_size"], &config["eos_token_id"]), (&400.into(), &2.into()), "{model_type}");
        assert!(
            config["architectures"][0].as_str().unwrap().ends_with("Model")
                || config["architectures"][0].as_str().unwrap().ends_with("ForCausalLM")
        );
        let names = ["hidden_act", "activation_function", "hidden_activation", "activation"];
        assert_eq!(names.iter().filter(|name| !config[**name].is_null()).count(), 1, "{config}");
        let ids: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
        let all = |m: &Model| {
            let rows = Tensor::arange(40, (Kind::Int64, device()));
            m.infer(&Tokens::pack(&[&ids], device()), |out| out.logits(&rows)).unwrap()
        };
        assert_same(model_type, &all(&frozen(&out, Kind::Float)), &all(&model));
        // The written config is complete: reading it gives the same model, although the given one left out keys.
        let again = Config::read(&out).unwrap();
        let first = whole_config(model_type);
        let shape = |c: &Config| (c.head_dim, c.num_key_value_heads, c.max_position_embeddings, c.tie_word_embeddings);
        assert_eq!((shape(&again), &again.rope_scaling), (shape(&first), &first.rope_scaling));
        assert_eq!(
            (&again.windows, &again.local_rope, again.rotary_size),
            (&first.windows, &first.local_rope, first.rotary_size)
        );
    }
    // Tensors have the names of the family's checkpoints.
    let names: BTreeSet<String> =
        initialise("gpt2", 1, Path::new(".")).params().base().map(|p| p.name.replace(".2.", ".0.")).collect();
    let theirs = Weights::open(&fixture("tiny-gpt2")).unwrap();
    assert!(theirs.names().all(|n| names.contains(n)), "{names:?}");
}

#[test]
fn a_config_that_does_not_fit_the_tokenizer_is_refused() {
    let mut small = given("llama");
    small.insert("vocab_size".into(), value!(399));
    let refuse = |given: &Map<String, Value>| {
        new_config::config(given, VOCABULARY, Path::new("tiny.json")).unwrap_err().to_string()
    };
    assert!(refuse(&small).contains("399") && refuse(&small).contains("400 tokens"));
    small.insert("vocab_size".into(), value!(512));
    assert_eq!(new_config::config(&small, VOCABULARY, Path::new("tiny.json")).unwrap().vocab_size, 512);
    let mut nameless = given("llama");
    nameless.remove("model_type");
    assert!(refuse(&nameless).contains("tiny.json") && refuse(&nameless).contains("model_type"));
    let mut sizeless = given("gpt2");
    sizeless.remove("n_layer");
    assert!(refuse(&sizeless).contains("`n_layer`"));
}

/// Reads a recipe with this `model` section.
fn read(model: &str, more: &str) -> Result<recipe::plan::Plan, String> {
    let text = format!(
        "model: {model}\nmethod: {{ sft: {{}} }}\ndata: {{ train: {{ path: a.jsonl }} }}\nrun: {{ out: o }}\n{more}"
    );
    recipe::plan::parse("recipe.yaml", &text, &[]).map_err(|e| e.to_string())
}

#[test]
fn a_recipe_names_the_config_or_model_to_start_from() {
    let absolute = |p: &str| ft::fsutil::absolute(Path::new(p));
    let plan = read("{ init: random, tokenizer: t, config: { model_type: llama, hidden_size: 8, rope_parameters: { rope_theta: 5.5 } } }", "").unwrap();
    let model = &plan.recipe.model;
    assert_eq!((&model.path, model.tokenizer.as_ref()), (&absolute("t"), Some(&absolute("t"))));
    let recipe::sections::ModelConfig::Keys(keys) = model.config.as_ref().unwrap() else { panic!("keys") };
    assert_eq!((&keys["hidden_size"], &keys["rope_parameters"]["rope_theta"]), (&8.into(), &5.5.into()));
    assert_eq!(plan.recipe.optim.lr, Some(6e-4));
    let plan = read("{ init: random, config: shapes/config.json }", "").unwrap();
    assert_eq!(plan.recipe.model.path, absolute("shapes"), "the tokenizer is in the folder of the config");
    let plan = read("{ init: random, path: base }", "").unwrap();
    assert_eq!(plan.recipe.model.config, Some(recipe::sections::ModelConfig::File(absolute("base/config.json"))));
    // `ft recipe show` prints a recipe that can be read again.
    let again = recipe::plan::parse("shown.yaml", &plan.to_yaml().unwrap(), &[]).unwrap();
    assert_eq!(again.recipe, plan.recipe);

    for (model, more, expected) in [
        ("{}", "", "`model.path` is missing"),
        ("{ init: random }", "", "`model.config` is missing"),
        ("{ init: random, config: { model_type: llama } }", "", "`model.tokenizer` is missing"),
        ("{ path: b, config: { model_type: llama } }", "", "`model.config` has no effect"),
        ("{ path: b, tokenizer: t }", "", "`model.tokenizer` has no effect"),
        ("{ init: random, path: b, config: c.json, tokenizer: t }", "", "`model.path` has no effect"),
        ("{ init: randm, path: b }", "", "unknown choice `randm`"),
        ("{ init: random, config: [1], tokenizer: t }", "", "`model.config`"),
        ("{ init: random, config: c.json }", "adapter: { lora: {} }\n", "`adapter` needs a trained model"),
    ] {
        let said = read(model, more).expect_err(model);
        assert!(said.contains(expected), "{model}: {said}");
    }
    let said = read("{ pth: b }", "").unwrap_err();
    assert!(said.contains("`pth`") && !said.contains("is missing"), "{said}");
}
