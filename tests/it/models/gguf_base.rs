//! A model in a GGUF file, whose quantised matrices stay as they lie there, computes what the model that `ft import`
//! makes of the same file computes.

use crate::support::gguf::tiny_gguf;
use crate::support::*;
use ft::adapters::{LoraSpec, ModulePlan};
use ft::convert::gguf_import::{GgufImportOptions, import};
use ft::data::chat::ChatTokenizer;
use ft::generate::engine::complete;
use ft::generate::settings::GenerationSettings;
use ft::gguf::quant::GgmlType;
use ft::models::{Config, Dtype, Heads, LayerReplay, LoadOptions, Model, Storage, dtype};
use ft::nn::safetensors;
use ft::nn::{AdapterPlan, QuantisedParam, Tokens};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gpt2"];

/// A GGUF file, and the directory that `ft import --dtype f32` makes of it.
struct Pair {
    folder: TempDir,
}

impl Pair {
    fn new(arch: &str, kind: GgmlType) -> Self {
        let made = Self { folder: tempfile::tempdir().unwrap() };
        tiny_gguf(arch, kind).write(&made.gguf());
        let dtype = safetensors::Dtype::F32;
        let (file, out) = (made.gguf(), made.imported());
        let options = GgufImportOptions { file: &file, out: &out, dtype, force: false, pre_tokenizer: None };
        import(&options, |_, _| Ok(())).unwrap();
        made
    }

    fn gguf(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    fn imported(&self) -> PathBuf {
        self.folder.path().join("imported")
    }
}

fn load(model: &Path, storage: Storage, plan: Option<&ModulePlan>) -> Model {
    tch::set_num_threads(1);
    let adapters = plan.iter().map(|plan| ("a".to_string(), *plan as &dyn AdapterPlan)).collect();
    let (device, kind, heads) = (device(), Kind::Float, Heads::Tokens);
    let load = LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads };
    let model = Model::load(model, load).unwrap();
    fill_adapter(&model, 0.1);
    model
}

fn logits(model: &Model) -> Tensor {
    let rows: Vec<Vec<u32>> = (1..5).map(|i| (0..9 * i).map(|t| (t * 7 + i) % 400).collect()).collect();
    let tokens = Tokens::pack(&rows, device());
    let all = Tensor::arange(tokens.len() as i64, (Kind::Int64, device()));
    model.infer(&tokens, |out| out.logits(&all).to_device(Device::Cpu)).unwrap()
}

/// Number of quantised matrices.
fn quantised(model: &Model) -> usize {
    model.params().base().filter(|p| matches!(p.quantised, QuantisedParam::Done(_))).count()
}

#[test]
fn logits_and_gradients_over_a_gguf_file_equal_those_of_the_imported_model() {
    for arch in ARCHITECTURES {
        for kind in [GgmlType::Q4_1, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::F16, GgmlType::F32, GgmlType::BF16] {
            let (pair, case) = (Pair::new(arch, kind), format!("{arch} {}", kind.name()));
            let spec = LoraSpec { rank: 4, alpha: 8.0, ..LoraSpec::default() };
            let plan = ModulePlan::new(&spec).unwrap();
            let gguf = load(&pair.gguf(), Storage::Auto, Some(&plan));
            let imported = load(&pair.imported(), Storage::Copy, Some(&plan));
            assert_eq!(quantised(&gguf) > 0, !kind.is_float(), "{case}");
            let (found, expected) = (logits(&gguf), logits(&imported));
            assert!(expected.std(true).double_value(&[]) > 0.05, "{case}: the logits are all alike");
            assert_close(&case, &found, &expected, 1e-5);
            let row = Row::pack(&(1..4).map(|n| Sequence::random(9 * n, 400, n as u64)).collect::<Vec<_>>());
            let step = |model: &Model| {
                model.learn(&row, row.items, LayerReplay::None).unwrap();
                take_gradients(model)
            };
            let (ours, theirs) = (step(&gguf), step(&imported));
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{case}");
            for (name, gradient) in &ours {
                assert_close(&format!("{case}: {name}"), gradient, &theirs[name], 1e-4);
            }
        }
    }
}

#[test]
fn answers_over_a_gguf_file_are_those_of_its_full_forward() {
    for arch in ARCHITECTURES {
        let pair = Pair::new(arch, GgmlType::Q4_0);
        let model = load(&pair.gguf(), Storage::Auto, None);
        let prompt: Vec<u32> = (0..11).map(|t| (t * 7 + 3) % 400).collect();
        let settings = GenerationSettings { log_probs: true, ..GenerationSettings::greedy(12, &[]) };
        let answer = complete(&model, std::slice::from_ref(&prompt), &settings, &mut |_, _| ()).unwrap().remove(0);
        let all = [&prompt[..], &answer.tokens].concat();
        let tokens = Tokens::pack(&[&all], device());
        let places = Tensor::arange(all.len() as i64, (Kind::Int64, device()));
        let expected = model.infer(&tokens, |out| out.logits(&places).log_softmax(-1, Kind::Float)).unwrap();
        for (i, (token, found)) in answer.tokens.iter().zip(&answer.log_probs).enumerate() {
            let at = [(prompt.len() + i - 1) as i64, i64::from(*token)];
            let gap = (expected.double_value(&at) - f64::from(*found)).abs();
            assert!(gap < 2e-5, "{arch}: token {i}: {gap}");
        }
    }
}

#[test]
fn config_and_tokenizer_are_those_of_the_imported_model() {
    for arch in ARCHITECTURES {
        let pair = Pair::new(arch, GgmlType::Q8_0);
        let configs = [pair.gguf(), pair.imported()].map(|path| {
            let mut raw = Config::read(&path).unwrap().raw;
            raw.as_object_mut().unwrap().remove("torch_dtype");
            raw
        });
        assert_eq!(configs[0], configs[1], "{arch}");
        let [ours, theirs] = [pair.gguf(), pair.imported()].map(|path| ChatTokenizer::load(&path, None).unwrap());
        let text = "<|im_start|>user\nWie viele Tage? 366 – naïve\n<|im_end|>";
        assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{arch}");
        assert_eq!((ours.stop_ids(), ours.pad(), ours.vocab_size()), (theirs.stop_ids(), theirs.pad(), 400), "{arch}");
        assert_eq!(ours.template().map(|t| t.source()), theirs.template().map(|t| t.source()), "{arch}");
        assert!(ours.has_template(), "{arch}");
    }
}

/// The matrices take as many bytes as in the file, embeddings included, and all of them but queries and keys of a Llama are
/// views of its mapping.
#[test]
fn quantised_matrices_are_not_unpacked() {
    let pair = Pair::new("llama", GgmlType::Q4_K);
    let model = load(&pair.gguf(), Storage::Auto, None);
    let (mut bytes, mut unpacked, mut copied) = (0, 0, Vec::new());
    let mut addresses: Vec<usize> = Vec::new();
    for p in model.params().base() {
        let QuantisedParam::Done(weight) = &p.quantised else {
            assert!(p.name.contains("norm"), "{}", p.name);
            continue;
        };
        (bytes, unpacked) = (bytes + weight.bytes(), unpacked + 4 * weight.count());
        addresses.push(weight.tensors()[0].data_ptr() as usize);
        copied.push(p.name.contains("q_proj") || p.name.contains("k_proj"));
    }
    assert_eq!(bytes * 4 * 256, unpacked * 144, "256 numbers take 144 bytes");
    let size = std::fs::metadata(pair.gguf()).unwrap().len() as usize;
    let mapped: Vec<usize> = addresses.iter().zip(&copied).filter(|(_, copied)| !**copied).map(|(a, _)| *a).collect();
    let (first, last) = (mapped.iter().min().unwrap(), mapped.iter().max().unwrap());
    assert!(device().is_cuda() || last - first < size, "the matrices do not lie in one mapping");
}

/// Norms are in float32 in every GGUF file; they do not decide what a quantised model computes in.
#[test]
fn the_number_format_of_a_quantised_file_is_that_of_the_machine() {
    let choice = |kind| {
        let pair = Pair::new("llama", kind);
        Dtype::Auto.choose(Device::Cpu, Some(&pair.gguf())).unwrap().dtype
    };
    let machine = if dtype::bf16_multiplier(Device::Cpu).is_some() { Dtype::Bf16 } else { Dtype::F32 };
    assert_eq!((choice(GgmlType::Q4_1), choice(GgmlType::F32)), (machine, Dtype::F32));
}

/// A GPT-2 adapter is saved as over any other checkpoint of GPT-2, whose linear weights are stored as (in, out).
#[test]
fn matrices_of_gpt2_count_as_transposed() {
    for kind in [GgmlType::Q8_0, GgmlType::F16] {
        let pair = Pair::new("gpt2", kind);
        let transposed = |path: &Path| -> Vec<(String, bool)> {
            let model = load(path, Storage::Auto, None);
            let mut all: Vec<_> = model.params().base().map(|p| (p.name.clone(), p.transposed)).collect();
            all.sort();
            all
        };
        let (ours, theirs) = (transposed(&pair.gguf()), transposed(&pair.imported()));
        assert!(ours.iter().any(|(_, transposed)| *transposed));
        assert_eq!(ours, theirs, "{}", kind.name());
    }
}
