//! Mixtures of experts made of dense models, against mergekit-moe (fixtures of expert_merges.py).

use crate::support::command::{ft, stderr, stdout, succeed};
use crate::support::*;
use ft::convert::merge::experts::ExpertMerge;
use ft::models::Config;
use ft::nn::{Tokens, Weights};
use ft::recipe::merge_file::{self, MergeFile};
use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct ExpertCase {
    name: String,
    text: String,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<ExpertCase>,
    ids: Vec<u32>,
}

fn open(text: &str, seed: u64) -> ExpertMerge {
    let folder = fixture("expert-merges");
    let text = text.replace("DIR", folder.parent().unwrap().to_str().unwrap());
    match merge_file::parse("experts.yaml", &text).unwrap() {
        MergeFile::Experts(file) => ExpertMerge::open(file, seed).unwrap(),
        _ => panic!("another kind of merge"),
    }
}

/// Returns a router of the result, or the gate of its shared expert.
fn gate(weights: &Weights, layer: usize, shared: bool) -> Tensor {
    let module = if shared { "shared_expert_gate" } else { "gate" };
    let name = |block: &str| format!("model.layers.{layer}.{block}.{module}.weight");
    weights.get(&name("mlp")).or_else(|| weights.get(&name("block_sparse_moe"))).unwrap()
}

/// The routers are those of mergekit for every gate mode that depends on prompts, and the results compute the same logits.
#[test]
fn routers_and_logits_are_those_of_mergekit() {
    let Cases { cases, ids } = json("expert-merges/expected.json");
    let expected = tensors("expert-merges/expected.safetensors");
    assert_eq!(cases.len(), 5);
    for ExpertCase { name, text } in &cases {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("out");
        let report = open(text, 0).write(&folder, u64::MAX).unwrap();
        let weights = Weights::open(&folder).unwrap();
        for layer in 0..2 {
            let (ours, theirs) = (gate(&weights, layer, false), &expected[&format!("{name}/router/{layer}")]);
            assert_close(&format!("{name} {layer}"), &ours, theirs, 1e-5);
            if let Some(theirs) = expected.get(&format!("{name}/shared/{layer}")) {
                assert_close(&format!("{name} {layer} shared"), &gate(&weights, layer, true), theirs, 1e-5);
            }
        }
        let model = whole(&folder, Kind::Float);
        let tokens = Tokens::pack(&[&ids], device());
        let logits = model.infer(&tokens, |output| output.all_logits()).unwrap();
        assert_close(&format!("{name} logits"), &logits, &expected[&format!("{name}/logits")], 1e-5);
        assert_eq!(report.routers.len(), 2);
        assert_eq!(report.shared_expert.is_some(), name == "qwen2");
    }
}

/// Everything but the routers has the bits of the models that it comes from.
#[test]
fn experts_are_the_mlps_of_their_models() {
    let Cases { cases, .. } = json("expert-merges/expected.json");
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("out");
    open(&cases[0].text, 0).write(&folder, 3000).unwrap();
    let merged = Weights::open(&folder).unwrap().all();
    assert!(!folder.join("model.safetensors").exists(), "shards");
    let [base, one, two] =
        ["letters", "one", "two"].map(|name| Weights::open(&fixture("model-merges").join(name)).unwrap().all());
    let mut seen = 0;
    for (name, tensor) in &merged {
        let dense = name.replace(".w1.", ".gate_proj.").replace(".w3.", ".up_proj.").replace(".w2.", ".down_proj.");
        let expected = match name {
            name if name.ends_with("block_sparse_moe.gate.weight") => continue,
            name if name.contains(".experts.0.") => &one[&dense.replace("block_sparse_moe.experts.0", "mlp")],
            name if name.contains(".experts.1.") => &two[&dense.replace("block_sparse_moe.experts.1", "mlp")],
            name => &base[name],
        };
        assert_same(name, tensor, expected);
        seen += 1;
    }
    assert_eq!(seen, base.len() + 2 * 3);
    let config = Config::read(&folder).unwrap();
    assert_eq!((config.model_type.as_str(), config.experts.is_some()), ("mixtral", true));
}

/// Random gates and noise follow from the seed, and have the size that they should have.
#[test]
fn random_gates_and_noise_follow_from_the_seed() {
    let text = "base_model: DIR/model-merges/letters\ngate_mode: MODE\nexperts:\n\
                - {source_model: DIR/model-merges/one, noise_scale: 0.5}\n- {source_model: DIR/model-merges/two}\n";
    let out = tempfile::tempdir().unwrap();
    let make = |mode: &str, seed: u64, name: &str| {
        let folder = out.path().join(name);
        open(&text.replace("MODE", mode), seed).write(&folder, u64::MAX).unwrap();
        Weights::open(&folder).unwrap().all()
    };
    let (normal, again, other) = (make("random", 1, "a"), make("random", 1, "b"), make("random", 2, "c"));
    let uniform = make("uniform_random", 1, "d");
    let router = "model.layers.1.block_sparse_moe.gate.weight";
    let square = |t: &Tensor| t.square().mean(Kind::Double).double_value(&[]);
    for name in normal.keys() {
        assert_same(name, &normal[name], &again[name]);
    }
    assert!(!normal[router].equal(&other[router]));
    // The mean of 32 squares of normal numbers has the standard deviation 0.25; uniform ones are at most 1 / sqrt(16).
    assert!((square(&normal[router]) - 1.0).abs() < 0.8, "{}", square(&normal[router]));
    assert!(uniform[router].abs().max().double_value(&[]) <= 0.25 && square(&uniform[router]) > 0.005);
    let dense = Weights::open(&fixture("model-merges/one")).unwrap().all();
    let noise =
        &normal["model.layers.0.block_sparse_moe.experts.0.w2.weight"] - &dense["model.layers.0.mlp.down_proj.weight"];
    // 384 entries: the standard deviation of the mean square is 0.018.
    assert!((square(&noise) - 0.25).abs() < 0.08, "{}", square(&noise));
}

#[test]
fn the_command_writes_reports_and_refuses() {
    let project = tempfile::tempdir().unwrap();
    let folder = project.path();
    for name in ["letters", "one", "two", "words"] {
        std::os::unix::fs::symlink(fixture("model-merges").join(name), folder.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(fixture("tiny-qwen2"), folder.join("qwen")).unwrap();
    let write = |text: &str| std::fs::write(folder.join("experts.yaml"), text).unwrap();
    let text = "base_model: letters\ndtype: bfloat16\nexperts:\n- {source_model: one, positive_prompts: [abc]}\n\
                - {source_model: two, positive_prompts: [mno]}\n- {source_model: two, positive_prompts: [mno q]}\n";
    write(text);
    let told = succeed(&mut ft(folder, &["merge", "experts.yaml", "--json", "--out", "out"]));
    let report: Value = serde_json::from_str(&stdout(&told)).unwrap();
    assert_eq!(report, ft::fsutil::read_json::<Value>(&folder.join("out/export_report.json")).unwrap());
    assert_eq!((&report["architecture"], &report["verdict"]), (&"mixtral".into(), &"passed".into()));
    assert!(folder.join("out/tokenizer.json").is_file());
    let seen = stderr(&told);
    assert!(seen.contains("mixtral with 3 experts in 2 layers") && seen.contains("powers of 2"), "{seen}");
    let kinds = Weights::open(&folder.join("out")).unwrap();
    assert!(kinds.names().all(|name| kinds.kind(name) == Some(Kind::BFloat16)));
    let dry = succeed(&mut ft(folder, &["merge", "experts.yaml", "--json", "--dry-run"]));
    assert_eq!(serde_json::from_str::<Value>(&stdout(&dry)).unwrap(), report["routers"]);

    let refused = |text: &str, more: &[&str]| {
        write(text);
        let output = ft(folder, &[&["merge", "experts.yaml", "--out", "x"], more].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(!folder.join("x").exists());
        stderr(&output)
    };
    for (text, more, part) in [
        (text.to_string(), &["--seed", "1"][..], "neither gates nor noise are random"),
        (text.to_string(), &["--density", "0.5"], "--density cannot be combined"),
        (
            text.replace("source_model: one", "source_model: qwen"),
            &[],
            "letters is a llama model, qwen is a qwen2 model",
        ),
        (text.replace("dtype", "architecture: qwen3\ndtype"), &[], "llama models become mixtral, not qwen3_moe"),
        (text.replace("base_model: letters", "base_model: one"), &[], "one: no tokenizer"),
        (
            text.replace("dtype", "shared_experts: [{source_model: one, positive_prompts: [a]}]\ndtype"),
            &[],
            "no shared expert",
        ),
    ] {
        let told = refused(&text, more);
        assert!(told.contains(part), "{part}\n{told}");
    }
}
