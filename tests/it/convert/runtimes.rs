//! What `ft export --for` writes for a program.

use super::gguf_adapters::lora;
use super::gguf_export::Exported;
use crate::support::families;
use crate::support::workspace::Workspace;
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::hf_export::{HfExportOptions, HfFormat, export};
use ft::convert::runtime::{RuntimeAdapterOptions, RuntimeForm, choose, write_adapter};
use ft::convert::verify::compatibility::{Runtime, answer_of};
use ft::models;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Changes the tensors of an adapter.
pub fn change(adapter: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let file = adapter.join("adapter_model.safetensors");
    let mut all = tensors(&file);
    change(&mut all);
    save_tensors(&file, &all);
}

/// Gives every factor the rank 8.
fn of_rank_8(adapter: &Path) {
    change(adapter, |all| {
        for (name, tensor) in all.iter_mut() {
            let more = if name.contains("lora_A") { [0, 0, 0, 4] } else { [0, 4, 0, 0] };
            *tensor = tensor.constant_pad_nd(more.as_slice());
        }
    });
}

/// Writes a LoRA of rank 8 over the linear layers of a model.
pub fn lora8(made: &Exported, more: Value) -> PathBuf {
    let mut settings = json!({ "r": 8 });
    settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let folder = lora(made, settings);
    of_rank_8(&folder);
    folder
}

fn logits(base: &Path, adapter: Option<&Path>) -> Tensor {
    let adapters: Vec<PathBuf> = adapter.iter().map(|a| a.to_path_buf()).collect();
    let model = models::open(base, &adapters, Device::Cpu, Kind::Float).unwrap();
    let row: Vec<u32> = (0..40).map(|t| (t * 7 + 3) % 400).collect();
    let tokens = ft::nn::Tokens::pack(&[&row], Device::Cpu);
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, Device::Cpu));
    model.infer(&tokens, |out| out.logits(&all)).unwrap()
}

/// config.json also has the rotary embedding in the keys of transformers 4, in which ft reads the same.
#[test]
fn a_directory_for_a_server_has_the_keys_of_transformers_4() {
    let kinds = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    });
    let part = json!({"rope_type": "default", "rope_theta": 9000.0, "partial_rotary_factor": 0.5});
    for (family, section, expected) in [
        (
            "gemma3_text",
            kinds,
            json!({"rope_theta": 50000.0, "rope_local_base_freq": 1000.0,
                "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 8.0}}),
        ),
        (
            "gpt_neox",
            part,
            json!({"rope_theta": 9000.0, "partial_rotary_factor": 0.5, "rotary_emb_base": 9000.0, "rotary_pct": 0.5,
                "rope_scaling": null}),
        ),
    ] {
        let made = Exported::of(family, json!({}));
        let path = made.model().join("config.json");
        let mut config: Value = ft::fsutil::read_json(&path).unwrap();
        let map = config.as_object_mut().unwrap();
        map.retain(|key, _| !key.starts_with("rope_") && !key.starts_with("rotary") && key != "partial_rotary_factor");
        map.insert("rope_parameters".into(), section);
        ft::fsutil::write_json(&path, &config).unwrap();
        let (model, out) = (made.model(), made.folder.path().join("out"));
        let (adapter, format, shard_bytes) = (None, HfFormat::Own, 1 << 30);
        let options = HfExportOptions {
            model: &model,
            adapter,
            out: &out,
            format,
            shard_bytes,
            reader: Some(Runtime::Tgi),
            force: false,
        };
        export(&options, |_, _| Ok(())).unwrap();
        let config: Value = ft::fsutil::read_json(&out.join("config.json")).unwrap();
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&config[key], value, "{family} {key}");
        }
        assert_same(family, &logits(&out, None), &logits(&model, None));
    }
}

/// Writes an adapter for a program and returns its folder and form.
fn written(made: &Exported, adapter: &Path, runtime: Runtime) -> (PathBuf, RuntimeForm) {
    let (base, out) = (made.model(), made.folder.path().join(runtime.name()));
    let part = WeightedAdapter::read(adapter, 1.0).unwrap();
    let options = RuntimeAdapterOptions { runtime, base: &base, out: &out, force: true };
    let summary = write_adapter(&options, &part).unwrap_or_else(|e| panic!("{}: {e}", runtime.name()));
    assert_eq!(answer_of(&summary.compatibility, runtime).unwrap().reads, Some(true));
    (summary.out, summary.choice.form)
}

/// The plain LoRA changes every answer as the adapter did that it was made of.
#[test]
fn what_a_program_cannot_read_is_folded_into_a_plain_lora() {
    let made = Exported::of("qwen2", json!({}));
    let settings = json!({
        "use_rslora": true, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"up_proj": 3},
        "exclude_modules": ["model.layers.1.self_attn.o_proj"],
    });
    let adapter = lora(&made, settings);
    change(&adapter, |all| all.retain(|name, _| !name.contains("layers.1.self_attn.o_proj")));
    let expected = logits(&made.model(), Some(&adapter));
    for (runtime, rank, tensors_of_o) in
        [(Runtime::Vllm, 4, 6), (Runtime::SgLang, 4, 6), (Runtime::TensorRtLlm, 4, 6), (Runtime::Tgi, 8, 8)]
    {
        let (folder, form) = written(&made, &adapter, runtime);
        assert_eq!(form, RuntimeForm::PlainLora, "{runtime:?}");
        let config: Value = ft::fsutil::read_json(&folder.join("adapter_config.json")).unwrap();
        assert_eq!(
            (
                &config["r"],
                &config["lora_alpha"],
                &config["use_rslora"],
                &config["rank_pattern"],
                &config["alpha_pattern"]
            ),
            (&json!(rank), &json!(rank), &json!(false), &json!({}), &json!({})),
            "{runtime:?}"
        );
        let of_o = tensors(folder.join("adapter_model.safetensors"));
        assert_eq!(of_o.keys().filter(|name| name.contains("o_proj")).count(), tensors_of_o, "{runtime:?}");
        assert_close(runtime.name(), &logits(&made.model(), Some(&folder)), &expected, 1e-5);
        let report: Value = ft::fsutil::read_json(&folder.join("export_report.json")).unwrap();
        assert_eq!((&report["verdict"], &report["for"]["form"]), (&json!("passed"), &json!("plain_lora")));
    }
    // What servers compute together is adapted together.
    for (runtime, left_out, added) in [
        (Runtime::TensorRtLlm, "k_proj", "self_attn.k_proj"),
        (Runtime::SgLang, "q_proj", "self_attn.q_proj"),
        (Runtime::SgLang, "gate_proj", "mlp.gate_proj"),
    ] {
        let partly = lora(&made, json!({ "exclude_modules": [left_out] }));
        change(&partly, |all| all.retain(|name, _| !name.contains(left_out)));
        let expected = logits(&made.model(), Some(&partly));
        let (folder, form) = written(&made, &partly, runtime);
        assert_eq!(form, RuntimeForm::PlainLora, "{runtime:?} {left_out}");
        let all = tensors(folder.join("adapter_model.safetensors"));
        let b = &all[&format!("base_model.model.model.layers.3.{added}.lora_B.weight")];
        assert_eq!(b.abs().max().double_value(&[]), 0.0, "{left_out}");
        assert_close(left_out, &logits(&made.model(), Some(&folder)), &expected, 1e-5);
    }
    let settings = json!({ "use_rslora": true, "rank_pattern": {"k_proj": 2} });
    let adapter = lora(&made, settings);
    let (folder, form) = written(&made, &adapter, Runtime::Peft);
    assert_eq!(form, RuntimeForm::Adapter);
    let before = tensors(adapter.join("adapter_model.safetensors"));
    let after = tensors(folder.join("adapter_model.safetensors"));
    assert!(before.len() == after.len() && before.iter().all(|(name, t)| after[name].equal(t)));
    // AdaLoRA is a product of two factors, too.
    let base = fixture("biased-llama");
    let part = WeightedAdapter::read(&fixture("kinds/adalora"), 1.0).unwrap();
    let choice = choose(Runtime::Vllm, &base, &part).unwrap();
    assert_eq!(choice.form, RuntimeForm::PlainLora, "{choice:?}");
}

#[test]
fn the_form_follows_from_adapter_and_program() {
    let made = Exported::of("llama", json!({}));
    let plain = WeightedAdapter::read(&lora8(&made, json!({})), 1.0).unwrap();
    let of = |runtime| choose(runtime, &made.model(), &plain).unwrap();
    for runtime in [Runtime::Peft, Runtime::Vllm, Runtime::Tgi, Runtime::SgLang, Runtime::TensorRtLlm] {
        assert_eq!(of(runtime).form, RuntimeForm::Adapter, "{runtime:?}");
    }
    for runtime in [Runtime::LlamaCpp, Runtime::Mlx] {
        assert_eq!(of(runtime).form, RuntimeForm::OwnAdapter, "{runtime:?}");
    }
    let onnx = of(Runtime::OnnxRuntime);
    assert!(onnx.form == RuntimeForm::Model && onnx.why.contains("reads no adapters"), "{onnx:?}");
    // A family that is not known to be read is written with that said.
    let other = Exported::of("qwen3", json!({}));
    let small = WeightedAdapter::read(&lora(&other, json!({})), 1.0).unwrap();
    let choice = choose(Runtime::Tgi, &other.model(), &small).unwrap();
    assert!(
        choice.form == RuntimeForm::Model && choice.why.contains("whether it reads this model is not known"),
        "{choice:?}"
    );
    let other = Exported::of("llama", json!({}));
    let whole = lora(&other, json!({ "modules_to_save": ["lm_head"] }));
    change(&whole, |all| {
        all.insert("base_model.model.lm_head.weight".into(), noise(&[512, 64], "head"));
    });
    let whole = WeightedAdapter::read(&whole, 1.0).unwrap();
    for runtime in [Runtime::Vllm, Runtime::LlamaCpp, Runtime::Tgi] {
        let choice = choose(runtime, &other.model(), &whole).unwrap();
        assert!(choice.form == RuntimeForm::Model && choice.why.contains("lm_head"), "{choice:?}");
    }
}

/// What a form would leave out is merged or refused: tables of tokens that PEFT saves, a reward model's head, LoftQ's correction.
#[test]
fn nothing_that_an_adapter_has_is_left_out() {
    let base = fixture("tiny-qwen3");
    for tables in ["plain", "plain-tied"] {
        let part = WeightedAdapter::read(&fixture(format!("vocabulary/{tables}")), 1.0).unwrap();
        assert!(!part.file.tables.is_empty());
        for runtime in [Runtime::Vllm, Runtime::LlamaCpp, Runtime::Mlx] {
            assert_eq!(choose(runtime, &base, &part).unwrap().form, RuntimeForm::Model, "{tables} {runtime:?}");
        }
        let refused = choose(Runtime::Peft, &base, &part).unwrap_err().to_string();
        assert!(refused.contains("whole tables of tokens"), "{refused}");
    }
    let part = WeightedAdapter::read(&fixture("reward/adapter"), 1.0).unwrap();
    let refused = choose(Runtime::Peft, &fixture("tiny-llama"), &part).unwrap_err().to_string();
    assert!(refused.contains("the records of a reward model"), "{refused}");

    let made = Exported::of("llama", json!({}));
    let adapter = lora8(&made, json!({}));
    let quantised = json!({ "quantised_base": { "format": "nf4", "double": true, "corrected": true } });
    ft::fsutil::write_json(&adapter.join("export_report.json"), &quantised).unwrap();
    let part = WeightedAdapter::read(&adapter, 1.0).unwrap();
    for runtime in [Runtime::LlamaCpp, Runtime::Mlx, Runtime::Tgi] {
        let refused = choose(runtime, &made.model(), &part).unwrap_err().to_string();
        assert!(refused.contains("correction of a base"), "{runtime:?}: {refused}");
    }
}

#[test]
fn an_adapter_of_another_base_is_not_written() {
    let (base, space) = (fixture("tiny-llama"), tempfile::tempdir().unwrap());
    let part = WeightedAdapter::read(&fixture("adapters/rslora"), 1.0).unwrap();
    let out = space.path().join("out");
    let options = RuntimeAdapterOptions { runtime: Runtime::Vllm, base: &base, out: &out, force: false };
    let refused = write_adapter(&options, &part).unwrap_err().to_string();
    assert!(refused.contains("was the adapter trained on another base?"), "{refused}");
    assert!(!out.exists());
}

#[test]
fn the_command_writes_what_a_program_reads_or_says_why_not() {
    let space = Workspace::bare();
    let made = Exported::of("llama", json!({}));
    std::fs::rename(lora(&made, json!({ "use_rslora": true })), space.path("adapter")).unwrap();
    let newer = json!({ "rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0} });
    families::write("llama", newer, Kind::Float, &space.path("model"));
    let report = |line: &[&str]| -> Value {
        let line = [&["export"], line, &["--json"]].concat();
        serde_json::from_slice(&space.ft(&line).stdout).unwrap()
    };
    let answer = |report: &Value, program: &str| {
        let all = report["compatibility"].as_array().unwrap();
        all.iter().find(|one| one["consumer"] == program).unwrap()["reads"].clone()
    };
    let found = report(&["adapter", "--base", "model", "--for", "sglang", "--out", "out/sglang"]);
    assert_eq!((&found["for"]["form"], answer(&found, "SGLang")), (&json!("plain_lora"), json!(true)), "{found}");
    let found = report(&["model", "--adapter", "adapter", "--for", "vllm", "--out", "out/vllm"]);
    assert_eq!((&found["for"]["form"], answer(&found, "vLLM")), (&json!("adapter"), json!(true)), "{found}");
    // Options of a whole model ask for one, whose config.json has the keys that servers read.
    for (line, program) in [
        (&["model", "--adapter", "adapter", "--for", "tgi", "--type", "f32", "--out", "out/whole"][..], "TGI"),
        (&["model", "--for", "tensorrt-llm", "--out", "out/alone"], "TensorRT-LLM"),
    ] {
        let found = report(line);
        assert_eq!((&found["for"]["form"], answer(&found, program)), (&json!("model"), json!(true)), "{found}");
        let config = space.json(&format!("{}/config.json", line.last().unwrap()));
        assert_eq!((&config["rope_theta"], &config["rope_scaling"]), (&json!(5000.0), &Value::Null));
        assert_eq!(config["rope_parameters"]["rope_theta"], json!(5000.0));
    }
    assert_close(
        "merged",
        &logits(&space.path("out/whole"), None),
        &logits(&space.path("model"), Some(&space.path("adapter"))),
        1e-4,
    );
    let found = report(&["adapter", "--base", "model", "--for", "llama.cpp", "--out", "out/lora.gguf"]);
    assert_eq!((&found["for"]["form"], answer(&found, "llama.cpp")), (&json!("own_adapter"), json!(true)), "{found}");
    let found =
        report(&["adapter", "--base", "model", "--for", "llama.cpp", "--type", "q8_0", "--out", "out/whole.gguf"]);
    assert_eq!((&found["for"]["form"], answer(&found, "vLLM")), (&json!("model"), Value::Null), "{found}");
    let found = report(&["adapter", "--base", "model", "--for", "mlx", "--out", "out/mlx"]);
    assert_eq!((&found["for"]["form"], answer(&found, "MLX")), (&json!("own_adapter"), json!(true)), "{found}");
    let found = report(&["model", "--adapter", "adapter", "--for", "onnx-runtime", "--out", "out/onnx"]);
    assert_eq!((&found["for"]["form"], answer(&found, "ONNX Runtime")), (&json!("model"), json!(true)), "{found}");
    let shown =
        space.ft(&["export", "model", "--adapter", "adapter", "--for", "sglang", "--out", "out/sglang", "--force"]);
    let shown = [shown.stdout, shown.stderr].concat();
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("SGLang does not read it as it is: rsLoRA") && shown.contains("SGLang: yes"), "{shown}");
    assert!(
        shown.contains("ONNX Runtime: no: it reads no adapters (ft export ADAPTER --for onnx-runtime --out OUT)"),
        "{shown}"
    );

    for (line, reason) in [
        (&["export", "model", "--for", "vlm", "--out", "x"][..], "a similar value exists: 'vllm'"),
        (&["export", "model", "--for", "vllm", "--to", "gguf", "--out", "x"], "--to contradicts --for vllm"),
        (&["export", "model", "--for", "peft", "--out", "x"], "PEFT reads adapters"),
        (&["export", "model", "--out", "x"], "--to"),
        (&["export", "adapter", "--base", "model", "--for", "vllm", "--out", "out/sglang"], "exists and is not empty"),
        (
            &["export", "adapter", "--base", "model", "--for", "vllm", "--out", "model", "--force"],
            "this folder has config.json",
        ),
        (&["export", "model", "--for", "tensorrt-llm", "--type", "fp8", "--out", "x"], "blocks of 32 x 32"),
        (&["export", "model", "--to", "hf", "--out", "out/onnx", "--force"], "this folder has model.onnx"),
        (
            &["export", "adapter", "--base", "model", "--for", "vllm", "--out", "out/mlx", "--force"],
            "this folder has adapters.safetensors",
        ),
        (
            &["merge", "model", "adapter", "--as", "adapter", "--shard-size", "1", "--out", "x"],
            "an adapter is one file",
        ),
    ] {
        let said = space.refused(line);
        assert!(said.contains(reason), "{line:?}: {said}");
        assert!(!space.path("x").exists(), "{line:?}");
    }
    // An adapter that is no change of weights.
    let prompt = fixture("virtual-tokens/p_tuning");
    let prompt = if prompt.join("adapter_config.json").exists() { prompt } else { prompt.join("initial") };
    let (prompt, base) = (prompt.display().to_string(), fixture("tiny-llama").display().to_string());
    let said = space.refused(&["export", &prompt, "--base", &base, "--for", "vllm", "--out", "x"]);
    assert!(said.contains("vLLM: it reads no") && said.contains("ft generate"), "{said}");
}
