//! Which programs read an adapter or a model, and the reasons given.

use super::gguf_adapters::lora;
use super::gguf_export::Exported;
use super::runtimes::{change, lora8};
use crate::support::families::FAMILIES;
use crate::support::*;
use ft::adapters::file;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::runtime::choose;
use ft::convert::verify::compatibility::{Compatibility, Runtime, answer_of, of_adapter, of_model};
use ft::gguf::quant::GgmlType;
use ft::models::Config;
use serde_json::{Value, json};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Returns answers in short: `+` yes, `-` no, `?` not known.
fn short(answers: &[Compatibility]) -> String {
    let sign = |answer: &Compatibility| match answer.reads {
        Some(true) => '+',
        Some(false) => '-',
        None => '?',
    };
    answers.iter().map(sign).collect()
}

fn of_folder(made: &Exported, adapter: &Path) -> Vec<Compatibility> {
    let config = Config::read(&made.model()).unwrap();
    of_adapter(&file::read(adapter).unwrap(), adapter, Some(&config)).unwrap()
}

#[test]
fn each_program_has_an_answer_with_a_reason_and_a_command() {
    let llama = Exported::of("llama", json!({}));
    for (settings, program, reason) in [
        (json!({}), Runtime::Mlx, "in a format of its own"),
        (json!({ "use_rslora": true }), Runtime::SgLang, "rsLoRA: it scales by alpha / rank"),
        (json!({ "alpha_pattern": {"q_proj": 3} }), Runtime::TensorRtLlm, "it uses one for all"),
        (json!({ "alpha_pattern": {"q_proj": 3} }), Runtime::Vllm, "one value for all"),
    ] {
        let adapter = lora8(&llama, settings.clone());
        let answers = of_folder(&llama, &adapter);
        let found = answer_of(&answers, program).unwrap();
        assert_eq!(found.reads, Some(false), "{settings}: {found}");
        assert!(found.note.contains(reason), "{settings}: {found}");
        assert_eq!(
            found.command.as_deref(),
            Some(&*format!("ft export ADAPTER --for {} --out OUT", program.name())),
            "{found}"
        );
    }
    // PEFT, vLLM, TGI, SGLang, TensorRT-LLM, llama.cpp, MLX, ONNX Runtime.
    let table = |settings: Value| short(&of_folder(&llama, &lora8(&llama, settings)));
    assert_eq!(table(json!({})), "++++++--");
    assert_eq!(table(json!({ "use_rslora": true })), "+++-++--");
    assert_eq!(table(json!({ "alpha_pattern": {"q_proj": 3} })), "+----+--");
    let dora = lora8(&llama, json!({ "use_dora": true }));
    change(&dora, |all| {
        let names: Vec<String> =
            all.keys().filter_map(|n| Some(n.strip_suffix("lora_B.weight")?.to_string())).collect();
        for name in names {
            let rows = all[&format!("{name}lora_B.weight")].size()[0];
            all.insert(format!("{name}lora_magnitude_vector"), Tensor::ones([rows], (Kind::Float, Device::Cpu)));
        }
    });
    let answers = of_folder(&llama, &dora);
    assert_eq!(short(&answers), "+---?---");
    assert!(answer_of(&answers, Runtime::Tgi).unwrap().note.contains("leaves out"));

    // A rank below 8, and a layer without adapters.
    let small = of_folder(&llama, &lora(&llama, json!({})));
    assert_eq!(short(&small), "++-+++--");
    assert!(answer_of(&small, Runtime::Tgi).unwrap().note.contains("up to rank 8"));
    let adapter = lora8(&llama, json!({}));
    change(&adapter, |all| all.retain(|name, _| !name.contains("layers.2.mlp.up_proj")));
    let answers = of_folder(&llama, &adapter);
    assert_eq!(short(&answers), "++-+++--");
    assert!(answer_of(&answers, Runtime::Tgi).unwrap().note.contains("up_proj is not adapted in every layer"));

    // Keys and values without queries; none of a server's names; other families.
    let adapter = lora8(&llama, json!({}));
    change(&adapter, |all| all.retain(|name, _| !name.contains("q_proj")));
    assert_eq!(short(&of_folder(&llama, &adapter)), "+++??+--");
    for (family, expected) in
        [("qwen3", "++?+++--"), ("gpt_neox", "++-?-+-"), ("gpt2", "+--?-+-"), ("olmo3", "++?+++-")]
    {
        let made = Exported::of(family, json!({}));
        let settings = if family == "gpt2" { json!({ "fan_in_fan_out": true }) } else { json!({}) };
        let answers = of_folder(&made, &lora8(&made, settings));
        assert!(short(&answers).starts_with(expected), "{family}: {}", short(&answers));
    }
    let made = Exported::of("mixtral", json!({}));
    let answers = of_folder(&made, &lora(&made, json!({})));
    assert_eq!(short(&answers).chars().nth(5), Some('+'), "all experts: {answers:?}");
    change(&made.folder.path().join("adapter"), |all| all.retain(|name, _| !name.contains("experts.1.")));
    let answers = of_folder(&made, &made.folder.path().join("adapter"));
    assert!(answer_of(&answers, Runtime::LlamaCpp).unwrap().note.contains("some experts of a layer"), "{answers:?}");
    assert_eq!(answer_of(&answers, Runtime::TensorRtLlm).unwrap().reads, None);
}

#[test]
fn other_kinds_of_adapters_name_the_command_where_there_is_one() {
    let base = Config::read(&fixture("tiny-llama")).unwrap();
    for (kind, merges) in [("loha", true), ("vera", true), ("ia3", true), ("tokens", true), ("oft", true)] {
        let folder = fixture(format!("kinds/{kind}"));
        let answers = of_adapter(&file::read(&folder).unwrap(), &folder, Some(&base)).unwrap();
        assert!(short(&answers).ends_with("-------"), "{kind}: {}", short(&answers));
        let command = answer_of(&answers, Runtime::Vllm).unwrap().command.clone();
        assert_eq!(command.as_deref(), merges.then_some("ft export ADAPTER --for vllm --out OUT"), "{kind}");
    }
    let folder = fixture("virtual-tokens/p_tuning");
    let folder = if folder.join("adapter_config.json").exists() { folder } else { folder.join("initial") };
    let answers = of_adapter(&file::read(&folder).unwrap(), &folder, Some(&base)).unwrap();
    assert!(answers.iter().all(|answer| answer.command.is_none()), "{answers:?}");
    assert_eq!(answer_of(&answers, Runtime::Tgi).unwrap().reads, Some(false));
}

#[test]
fn models_are_answered_for_by_family_and_format() {
    let answers = |family: &str, more: Value| {
        let made = Exported::of(family, more);
        of_model(&made.model())
    };
    // transformers, vLLM, TGI, SGLang, TensorRT-LLM, llama.cpp, MLX, ONNX Runtime.
    for (family, expected) in [
        ("llama", "++++++++"),
        ("qwen3", "++?+++++"),
        ("gpt2", "++++?+?+"),
        ("mpt", "+++??+?+"),
        ("gpt_oss", "++?+?+?-"),
    ] {
        let found = answers(family, json!({}));
        assert_eq!(short(&found), expected, "{family}: {found:?}");
    }
    // The rotary embedding as transformers 5 writes it, and only so.
    let newer = json!({ "rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0} });
    let found = answers("llama", newer);
    assert_eq!(short(&found), "++-??+-+", "{found:?}");
    let tgi = answer_of(&found, Runtime::Tgi).unwrap();
    assert!(tgi.note.contains("rope_parameters"), "{tgi}");
    assert_eq!(tgi.command.as_deref(), Some("ft export DIR --for tgi --out OUT"));

    // What ft export --to gguf refuses is no yes, and no other model is refused.
    let found = answers("llama", json!({ "rope_scaling": {"rope_type": "dynamic", "factor": 2.0} }));
    let llama_cpp = answer_of(&found, Runtime::LlamaCpp).unwrap();
    assert!(llama_cpp.reads == Some(false) && llama_cpp.note.contains("dynamic"), "{llama_cpp}");
    for family in FAMILIES {
        let made = Exported::of(family, json!({}));
        let found = of_model(&made.model());
        let llama_cpp = answer_of(&found, Runtime::LlamaCpp).unwrap();
        let exported = made.export(GgmlType::F16);
        assert_eq!(llama_cpp.reads, Some(exported.is_ok()), "{family}: {llama_cpp}, {:?}", exported.err());
    }

    let made = Exported::of("llama", json!({ "hidden_size": 128, "intermediate_size": 128 }));
    let file = made.model().join("config.json");
    let stored = |section: Value| {
        let mut config: Value = ft::fsutil::read_json(&file).unwrap();
        config["quantization_config"] = section;
        ft::fsutil::write_json(&file, &config).unwrap();
        of_model(&made.model())
    };
    let fp8 = |block: i64| json!({"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"});
    let found = stored(fp8(128));
    assert_eq!(short(&found), "+++++---", "{found:?}");
    assert_eq!(
        answer_of(&found, Runtime::LlamaCpp).unwrap().command.as_deref(),
        Some("ft export MODEL --for llama.cpp --out OUT")
    );
    let found = stored(fp8(32));
    assert_eq!(short(&found), "++??----", "{found:?}");
    assert!(answer_of(&found, Runtime::TensorRtLlm).unwrap().note.contains("blocks of 32 x 32"));
    let nf4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true});
    let found = stored(nf4);
    assert_eq!(short(&found), "++-?----", "{found:?}");
    assert!(answer_of(&found, Runtime::Tgi).unwrap().note.contains("--quantize bitsandbytes-nf4"));
}

/// What mlx-lm computes otherwise is said of models and of adapters of them.
#[test]
fn a_model_that_mlx_computes_otherwise_is_no_yes() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let made = Exported::of("llama", json!({ "rope_scaling": yarn }));
    let found = of_model(&made.model());
    let mlx = answer_of(&found, Runtime::Mlx).unwrap();
    assert!(mlx.reads == Some(false) && mlx.note.contains("YaRN") && mlx.command.is_none(), "{mlx}");
    let part = WeightedAdapter::read(&lora8(&made, json!({})), 1.0).unwrap();
    let refused = choose(Runtime::Mlx, &made.model(), &part).unwrap_err().to_string();
    assert!(refused.contains("YaRN"), "{refused}");
}
