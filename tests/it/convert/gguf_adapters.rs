//! LoRAs and GGUF files: merged into an exported model, and as GGUF adapters.

use super::gguf_export::{Exported, opened};
use crate::support::*;
use ft::adapters::merging::WeightedAdapter;
use ft::convert::gguf_export::adapter::{check, export_adapter};
use ft::convert::gguf_export::{FORMATS, FileFormat, GgufExportOptions, export};
use ft::convert::merge::adapters::merge_into_model;
use ft::convert::verify::compatibility::{Runtime, answer_of, of_adapter};
use ft::gguf::file::Gguf;
use ft::gguf::quant::{GgmlType, dequantise};
use ft::models::Config;
use ft::nn::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Writes a LoRA over the linear layers of a model of this family.
pub fn lora(made: &Exported, more: Value) -> PathBuf {
    let folder = made.folder.path().join("adapter");
    std::fs::create_dir_all(&folder).unwrap();
    let mut config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": made.model(), "r": 4, "lora_alpha": 8,
        "target_modules": "all-linear", "bias": "none",
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let rank = |module: &str| {
        let pattern =
            config["rank_pattern"].as_object().and_then(|map| map.iter().find(|(end, _)| module.ends_with(*end)));
        pattern.map_or(4, |(_, rank)| rank.as_i64().unwrap())
    };
    let mut tensors = BTreeMap::new();
    let weights = opened(&made.model());
    let base = Config::read(&made.model()).unwrap();
    let all = ft::models::weights(&made.model(), &base).unwrap();
    for (name, weight) in &weights {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let linear = weight.dim() == 2
            && !["embed", "lm_head", "wte", "wpe", "norm", ".gate", "_gate"]
                .iter()
                .any(|part| if part.ends_with("gate") { module.ends_with(part) } else { module.contains(part) });
        if !linear {
            continue;
        }
        let (mut outputs, mut inputs) = weight.size2().unwrap();
        if all.transposed(name) {
            (outputs, inputs) = (inputs, outputs);
        }
        let prefix = format!("base_model.model.{module}");
        tensors.insert(format!("{prefix}.lora_A.weight"), noise(&[rank(module), inputs], &format!("{name} a")) * 0.3);
        tensors.insert(format!("{prefix}.lora_B.weight"), noise(&[outputs, rank(module)], &format!("{name} b")) * 0.3);
    }
    assert!(tensors.len() > 20);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    save_tensors(&folder.join("adapter_model.safetensors"), &tensors);
    folder
}

#[test]
fn a_merged_adapter_gives_the_model_that_ft_merge_writes() {
    for model_type in ["llama", "gpt2", "gpt_neox", "qwen3_moe"] {
        let made = Exported::of(model_type, json!({}));
        let adapter = lora(&made, json!({}));
        let merged = made.folder.path().join("merged");
        let part = || WeightedAdapter::read(&adapter, 1.0).unwrap();
        merge_into_model(&made.model(), &[part()], &merged, None, 1 << 30).unwrap();
        let (model, out) = (made.model(), made.file());
        let format = Some(FORMATS[0]);
        let options = GgufExportOptions {
            model: &model,
            adapter: Some(part()),
            out: &out,
            format,
            force: false,
            split: Default::default(),
            imatrix: None,
            modelfile: false,
        };
        export(&options, |_, _| Ok(())).unwrap();
        let (expected, found) = (opened(&merged), opened(&made.imported()));
        for (name, tensor) in expected {
            assert!(tensor.equal(&found[&name]), "{model_type} {name}");
        }
    }
}

/// Returns the numbers of a tensor of a file, as (rows, columns).
fn matrix(gguf: &Gguf, name: &str) -> Tensor {
    let tensor = gguf.tensors().iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
    let shape: Vec<i64> = tensor.shape.iter().map(|n| *n as i64).collect();
    Tensor::from_slice(&dequantise(tensor.kind, gguf.data(tensor))).view(&shape[..])
}

#[test]
fn a_lora_adds_to_the_base_in_the_file_what_merging_adds() {
    for (model_type, more) in [
        ("llama", json!({})),
        ("llama", json!({"use_rslora": true})),
        ("llama", json!({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 3}})),
        ("gpt2", json!({"fan_in_fan_out": true})),
        ("gpt_neox", json!({})),
        ("qwen3_moe", json!({})),
    ] {
        let made = Exported::of(model_type, json!({}));
        let part = WeightedAdapter::read(&lora(&made, more.clone()), 1.0).unwrap();
        made.export(GgmlType::F32).unwrap();
        let (model, lora_file, merged) =
            (made.model(), made.folder.path().join("lora.gguf"), made.folder.path().join("merged.gguf"));
        let options = |out, adapter| GgufExportOptions {
            model: &model,
            adapter,
            out,
            format: Some(FORMATS[0]),
            force: false,
            split: Default::default(),
            imatrix: None,
            modelfile: false,
        };
        let summary = export_adapter(&options(&lora_file, None), &part).unwrap();
        let rescaled = more.get("rank_pattern").is_some();
        assert_eq!(summary.rescaled > 0, rescaled, "{model_type} {more}");
        export(&options(&merged, Some(part)), |_, _| Ok(())).unwrap();
        let [base, adapter, merged] = [&made.file(), &lora_file, &merged].map(|file| Gguf::open(file).unwrap());
        assert_eq!(adapter.text("general.type").unwrap(), Some("adapter"));
        assert_eq!(adapter.text("adapter.type").unwrap(), Some("lora"));
        let alpha = adapter.float("adapter.lora.alpha").unwrap().unwrap();
        let mut adapted = 0;
        for tensor in base.tensors() {
            let before = matrix(&base, &tensor.name);
            let after = matrix(&merged, &tensor.name);
            if !adapter.tensors().iter().any(|t| t.name == format!("{}.lora_a", tensor.name)) {
                assert!(before.equal(&after), "{model_type} {}", tensor.name);
                continue;
            }
            let [a, b] = ["lora_a", "lora_b"].map(|end| matrix(&adapter, &format!("{}.{end}", tensor.name)));
            let rank = *b.size().last().unwrap();
            let expected = before + b.matmul(&a) * (alpha / rank as f64);
            assert_close(&format!("{model_type} {more} {}", tensor.name), &after, &expected, 1e-5);
            adapted += 1;
        }
        assert_eq!(adapted, summary.weights);
        assert!(adapted > 10);
    }
}

#[test]
fn adapters_that_the_format_cannot_hold_are_refused_with_the_reason() {
    let made = Exported::of("llama", json!({}));
    let folder = lora(&made, json!({"use_dora": true}));
    let mut tensors = Weights::open_file(&folder.join("adapter_model.safetensors")).unwrap().all();
    let magnitudes: Vec<_> = tensors
        .iter()
        .filter_map(|(name, b)| Some((name.strip_suffix("lora_B.weight")?.to_string(), b.size()[0])))
        .map(|(module, rows)| (format!("{module}lora_magnitude_vector"), noise(&[rows], &module) + 2.0))
        .collect();
    tensors.extend(magnitudes);
    save_tensors(&folder.join("adapter_model.safetensors"), &tensors.into_iter().collect());
    let (model, out) = (made.model(), made.file());
    let refused = |folder: &Path, format| {
        let part = WeightedAdapter::read(folder, 1.0).unwrap();
        let options = GgufExportOptions {
            model: &model,
            adapter: None,
            out: &out,
            format,
            force: false,
            split: Default::default(),
            imatrix: None,
            modelfile: false,
        };
        let error = export_adapter(&options, &part).expect_err("refused");
        let merged = format!("ft export {} --adapter {} --to gguf", model.display(), folder.display());
        assert!(error.hints().iter().any(|hint| hint.contains(&merged)), "{error}");
        assert!(!out.exists());
        error.to_string()
    };
    assert!(refused(&folder, None).contains("DoRA cannot be a GGUF adapter"));
    // The command that is named works.
    let merged = made.folder.path().join("merged.gguf");
    let options = GgufExportOptions {
        model: &model,
        adapter: Some(WeightedAdapter::read(&folder, 1.0).unwrap()),
        out: &merged,
        format: None,
        force: false,
        split: Default::default(),
        imatrix: None,
        modelfile: false,
    };
    export(&options, |_, _| Ok(())).unwrap();
    let plain = lora(&made, json!({}));
    assert!(refused(&plain, FileFormat::named("q8_0")).contains("q8_0"));
    // One expert alone: those of a layer are one tensor.
    let made = Exported::of("qwen3_moe", json!({}));
    let folder = lora(&made, json!({}));
    let mut tensors = Weights::open_file(&folder.join("adapter_model.safetensors")).unwrap().all();
    tensors.retain(|name, _| !name.contains("layers.1.mlp.experts.2."));
    save_tensors(&folder.join("adapter_model.safetensors"), &tensors.into_iter().collect());
    let part = WeightedAdapter::read(&folder, 1.0).unwrap();
    let model = made.model();
    let options = GgufExportOptions {
        model: &model,
        adapter: None,
        out: &out,
        format: None,
        force: false,
        split: Default::default(),
        imatrix: None,
        modelfile: false,
    };
    let error = export_adapter(&options, &part).expect_err("refused").to_string();
    assert!(error.contains("3 of the 4 experts in blk.1.ffn"), "{error}");
}

/// Adds the factors of a LoRA on more modules, (outputs, inputs) each.
fn adapt(adapter: &Path, modules: &[(&str, [i64; 2])]) {
    let file = adapter.join("adapter_model.safetensors");
    let mut all = tensors(&file);
    for (module, [outputs, inputs]) in modules {
        let prefix = format!("base_model.model.{module}");
        let (a, b) = match module.contains("embed") || module.contains("wpe") {
            true => ("lora_embedding_A", "lora_embedding_B"),
            false => ("lora_A.weight", "lora_B.weight"),
        };
        all.insert(format!("{prefix}.{a}"), noise(&[4, *inputs], module) * 0.3);
        all.insert(format!("{prefix}.{b}"), noise(&[*outputs, 4], module) * 0.3);
    }
    save_tensors(&file, &all);
}

/// llama.cpp adds no update to a head that is the embedding, nor to what an architecture multiplies without looking for one; the
/// verdict says so, too.
#[test]
fn updates_that_llama_cpp_would_not_add_are_refused() {
    for (family, more, modules, reason) in [
        ("llama", json!({"tie_word_embeddings": true}), vec![("model.embed_tokens", [64, 512])], "for the output head"),
        ("llama", json!({"tie_word_embeddings": true}), vec![("lm_head", [512, 64])], "the output head alone"),
        ("gpt2", json!({}), vec![("transformer.wpe", [64, 256])], "no update to positions"),
        ("deepseek_v2", json!({}), vec![], "no update to it in this architecture"),
    ] {
        let made = Exported::of(family, more.clone());
        let settings = if family == "gpt2" { json!({ "fan_in_fan_out": true }) } else { json!({}) };
        let adapter = lora(&made, settings);
        adapt(&adapter, &modules);
        let part = WeightedAdapter::read(&adapter, 1.0).unwrap();
        let error = check(&made.model(), &part).expect_err(family);
        assert!(error.to_string().contains(reason) && error.hints()[0].contains("merge it"), "{family}: {error:?}");
        let config = Config::read(&made.model()).unwrap();
        let answers = of_adapter(&part.file, &adapter, Some(&config)).unwrap();
        let answer = answer_of(&answers, Runtime::LlamaCpp).unwrap();
        assert!(answer.reads == Some(false) && answer.note.contains(reason), "{family}: {answer}");
    }
    // A head of its own, and an embedding beside it, are updated.
    let made = Exported::of("llama", json!({"tie_word_embeddings": false}));
    let adapter = lora(&made, json!({}));
    adapt(&adapter, &[("lm_head", [512, 64]), ("model.embed_tokens", [64, 512])]);
    check(&made.model(), &WeightedAdapter::read(&adapter, 1.0).unwrap()).unwrap();
    // A copy of the base's weight beside an update must be the base's.
    let file = adapter.join("adapter_model.safetensors");
    let mut all = tensors(&file);
    let head = opened(&made.model())["lm_head.weight"].shallow_clone();
    for (change, accepted) in [(0.0, true), (0.5, false)] {
        all.insert("base_model.model.lm_head.base_layer.weight".into(), &head + change);
        save_tensors(&file, &all);
        let checked = check(&made.model(), &WeightedAdapter::read(&adapter, 1.0).unwrap());
        assert_eq!(checked.is_ok(), accepted, "{:?}", checked.err());
    }
}

/// Importance is that of the model with the adapter: the file has the bytes of the merged model's.
#[test]
fn importance_is_measured_with_the_adapter() {
    let made = Exported::of("llama", json!({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}));
    let rows = made.folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"The patient sleeps. The doctor reads a letter.\"}\n").unwrap();
    let adapter = lora(&made, json!({}));
    let part = || WeightedAdapter::read(&adapter, 1.0).unwrap();
    let merged = made.folder.path().join("merged");
    merge_into_model(&made.model(), &[part()], &merged, None, 1 << 30).unwrap();
    let file = |model: &Path, adapter: Option<WeightedAdapter>| {
        let out = made.file();
        let options = GgufExportOptions {
            model,
            adapter,
            out: &out,
            format: FileFormat::named("q4_0"),
            force: true,
            split: Default::default(),
            imatrix: Some(&rows),
            modelfile: false,
        };
        let summary = export(&options, |_, _| Ok(())).unwrap();
        assert!(!summary.notes.iter().any(|note| note.contains("saw no token")), "{:?}", summary.notes);
        let gguf = Gguf::open(&out).unwrap();
        let values = gguf.tensors().iter().find(|t| t.name == "blk.1.ffn_down.weight").unwrap();
        gguf.data(values).to_vec()
    };
    let (found, expected) = (file(&made.model(), Some(part())), file(&merged, None));
    let equal = found.chunks(18).zip(expected.chunks(18)).filter(|(a, b)| a == b).count();
    // Sums in another order may change the last bit of an importance, and that a choice between two scales.
    assert!(equal as f64 > 0.95 * (expected.len() / 18) as f64, "{equal} of {} blocks", expected.len() / 18);
}

/// Adapters that PEFT wrote: what the format has is written, every other kind refused by its name with what works.
#[test]
fn every_kind_of_adapter_is_written_or_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("lora.gguf");
    let mut seen = BTreeMap::new();
    for group in ["kinds", "adapters", "virtual-tokens"] {
        let entries = std::fs::read_dir(fixture(group)).unwrap().flatten();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        for case in folders {
            let name = case.file_name().unwrap().to_string_lossy().into_owned();
            // ft does not read it.
            if format!("{group}/{name}") == "adapters/bias" {
                continue;
            }
            let adapter = if group == "virtual-tokens" { case.join("initial") } else { case.clone() };
            let part = WeightedAdapter::read(&adapter, 1.0).unwrap();
            let base = case.join("expected.json");
            let base = if base.is_file() { json::<Value>(base)["model"].as_str().map(fixture) } else { None };
            let base = base.unwrap_or_else(|| fixture("biased-llama"));
            let (split, title) = (Default::default(), part.file.spec.title());
            let options = GgufExportOptions {
                model: &base,
                adapter: None,
                out: &out,
                format: None,
                force: true,
                split,
                imatrix: None,
                modelfile: false,
            };
            let told = match export_adapter(&options, &part) {
                Ok(summary) => format!("{} weights", summary.weights),
                Err(error) => {
                    assert!(
                        error.to_string().contains(&format!("{title} cannot be a GGUF adapter")),
                        "{name}: {error}"
                    );
                    let expected = if group == "virtual-tokens" { "ft generate --model" } else { "ft export " };
                    assert!(error.hints()[0].contains(expected), "{name}: {:?}", error.hints());
                    "refused".into()
                }
            };
            seen.insert(format!("{group}/{name}"), told);
        }
    }
    for written in ["adapters/plain", "adapters/rslora", "adapters/patterns", "adapters/all-linear"] {
        assert!(seen[written].ends_with("weights"), "{written}: {}", seen[written]);
    }
    for kind in ["dora", "lora-bias", "saved-embedding", "saved-head", "token-rows"].map(|k| format!("adapters/{k}")) {
        assert_eq!(seen[&kind], "refused", "{kind}");
    }
    for kind in
        ["ia3", "loha", "lokr", "oft", "bias", "ln-tuning", "tokens", "vera", "vera-head"].map(|k| format!("kinds/{k}"))
    {
        assert_eq!(seen[&kind], "refused", "{kind}");
    }
    assert!(seen.iter().filter(|(name, _)| name.starts_with("virtual")).all(|(_, told)| told == "refused"));
}
