//! Models whose matrices are stored quantised: tests/fixtures/stored.

use super::files::copy_files;
use super::{fixture, tensors};
use ft::nn::weights;
use std::collections::BTreeMap;
use std::path::Path;
use tch::kind::FLOAT_CPU;
use tch::{Device, Kind, Tensor};

/// The formats that the fixtures have a model in.
pub const FORMATS: [&str; 6] = ["nf4", "fp4", "int8", "gptq", "awq", "fp8"];

/// Returns the tensors of the model in a format: tiny-llama's, with the quantised ones for its matrices.
pub fn stored_tensors(format: &str) -> BTreeMap<String, Tensor> {
    let mut all = tensors("tiny-llama/model.safetensors");
    all.retain(|name, _| !name.ends_with("_proj.weight"));
    all.extend(quantised_tensors(&fixture(format!("stored/{format}/quantised.safetensors"))));
    all
}

/// Returns the tensors of a file, also those in FP8, which mean nothing alone.
pub fn quantised_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let mut file = ft::nn::Weights::empty(path);
    let header = weights::read_header(path, &std::fs::read(path).unwrap()).unwrap();
    let _ = file.add_file(path, header).unwrap();
    file.all()
}

/// Writes the model in a format, with changed tensors, and a tokenizer.
pub fn write_stored(format: &str, folder: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    std::fs::create_dir_all(folder).unwrap();
    copy_files(&fixture(format!("stored/{format}")), folder, |name| name == "config.json");
    copy_files(&fixture("tiny-tokenizer"), folder, |name| !name.ends_with(".py"));
    let mut tensors = stored_tensors(format);
    change(&mut tensors);
    let file = folder.join("model.safetensors");
    let _ = std::fs::remove_file(&file);
    weights::save(&file, tensors.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
}

/// Returns a folder with the model in a format.
pub fn stored_model(format: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_stored(format, folder.path(), |_| ());
    folder
}

/// Writes a model of four layers with random weights, wide enough that its tensors are most of a run's memory: `plain` in
/// float32, or with its matrices in a format. Its tokenizer is that of the tests.
pub fn write_wide(format: &str, folder: &Path) {
    const SIZES: [(&str, i64); 4] =
        [("hidden_size", 256), ("intermediate_size", 512), ("num_hidden_layers", 4), ("head_dim", 64)];
    let plain = format == "plain";
    let from = if plain { fixture("tiny-llama") } else { fixture(format!("stored/{format}")) };
    std::fs::create_dir_all(folder).unwrap();
    copy_files(&from, folder, |name| name == "config.json");
    copy_files(&fixture("tiny-tokenizer"), folder, |name| !name.ends_with(".py"));
    let path = folder.join("config.json");
    let mut config: serde_json::Value = ft::fsutil::read_json(&path).unwrap();
    SIZES.iter().for_each(|(key, size)| config[*key] = (*size).into());
    ft::fsutil::write_json(&path, &config).unwrap();
    tch::manual_seed(31);
    let mut tensors = BTreeMap::new();
    let mut vector = |name: String, t: Tensor| drop(tensors.insert(name, t));
    vector("model.embed_tokens.weight".into(), Tensor::randn([512, 256], FLOAT_CPU) * 0.05);
    vector("model.norm.weight".into(), Tensor::ones([256], FLOAT_CPU));
    for layer in 0..4 {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
            vector(name(norm), Tensor::ones([256], FLOAT_CPU));
        }
        for (part, shape) in [
            ("self_attn.q_proj", [256, 256]),
            ("self_attn.k_proj", [128, 256]),
            ("self_attn.v_proj", [128, 256]),
            ("self_attn.o_proj", [256, 256]),
            ("mlp.gate_proj", [512, 256]),
            ("mlp.up_proj", [512, 256]),
            ("mlp.down_proj", [256, 512]),
        ] {
            for (ending, t) in random_matrix(format, shape) {
                vector(name(part) + &ending, t);
            }
        }
    }
    weights::save(&folder.join("model.safetensors"), tensors.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
}

/// Returns the tensors of a random matrix in a format, by the endings of their names.
fn random_matrix(format: &str, [outputs, inputs]: [i64; 2]) -> Vec<(String, Tensor)> {
    let n = outputs * inputs;
    let bytes = |shape: &[i64]| Tensor::randint(256, shape, (Kind::Uint8, Device::Cpu));
    let words = |shape: [i64; 2]| Tensor::randint_low(-(1 << 31), 1 << 31, shape, (Kind::Int, Device::Cpu));
    let grouped = |codes: [i64; 2]| {
        let groups = inputs / 32;
        let scales = Tensor::full([groups, outputs], 0.01, (Kind::Half, Device::Cpu));
        vec![(".qweight", words(codes)), (".qzeros", words([groups, outputs / 8])), (".scales", scales)]
    };
    let like = |part: &str| tensors(format!("stored/{format}/quantised.safetensors"))[&format!("{Q}{part}")].copy();
    let parts = match format {
        "plain" => vec![(".weight", Tensor::randn([outputs, inputs], FLOAT_CPU) * 0.05)],
        "int8" => {
            let codes = Tensor::randint_low(-127, 128, [outputs, inputs], (Kind::Int8, Device::Cpu));
            vec![(".weight", codes), (".SCB", Tensor::full([outputs], 5.0, FLOAT_CPU))]
        }
        "nf4" => {
            const STATE: &str = ".weight.quant_state.bitsandbytes__nf4";
            let text = String::from_utf8(Vec::<u8>::try_from(like(STATE)).unwrap()).unwrap();
            let text = text.replace("[64, 64]", &format!("[{outputs}, {inputs}]"));
            vec![
                (".weight", bytes(&[n / 2, 1])),
                (".weight.absmax", bytes(&[n / 64])),
                (".weight.nested_absmax", Tensor::full([n / 64 / 256 + i64::from(n / 64 % 256 > 0)], 0.01, FLOAT_CPU)),
                (".weight.quant_map", like(".weight.quant_map")),
                (".weight.nested_quant_map", like(".weight.nested_quant_map")),
                (STATE, Tensor::from_slice(text.as_bytes())),
            ]
        }
        "gptq" => {
            let order = Tensor::arange(inputs, (Kind::Int64, Device::Cpu)).remainder(inputs / 32).to_kind(Kind::Int);
            let mut parts = grouped([inputs / 8, outputs]);
            parts.push((".g_idx", order));
            parts
        }
        _ => grouped([inputs, outputs / 8]),
    };
    parts.into_iter().map(|(ending, t)| (ending.to_string(), t)).collect()
}

const Q: &str = "model.layers.0.self_attn.q_proj";
