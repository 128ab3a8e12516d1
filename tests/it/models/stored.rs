//! Checkpoints whose matrices are stored quantised (fixtures/stored): they compute what transformers computes with the
//! dequantised weights, and damaged ones are refused by the name of the tensor.

use crate::support::files::copied;
use crate::support::stored::{FORMATS, stored_model, write_stored};
use crate::support::*;
use ft::adapters::{LoraSpec, ModulePlan};
use ft::generate::engine::complete;
use ft::generate::settings::GenerationSettings;
use ft::models::{self, Config, Heads, LayerReplay, LoadOptions, Model, Storage, TrainedPart};
use ft::nn::{AdapterPlan, Quantisation, QuantisedFormat, QuantisedParam, Tokens, weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

fn load(folder: &Path, kind: Kind, plan: Option<&ModulePlan>) -> ft::error::Result<Model> {
    load_as(folder, kind, Storage::Auto, plan)
}

fn load_as(folder: &Path, kind: Kind, storage: Storage, plan: Option<&ModulePlan>) -> ft::error::Result<Model> {
    let adapters = plan.iter().map(|plan| ("a".to_string(), *plan as &dyn AdapterPlan)).collect();
    let heads = Heads::Tokens;
    let device = if storage == Storage::Outline { Device::Cpu } else { device() };
    Model::load(folder, LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary: None, heads })
}

/// A table that has grown is no longer a range of its file.
#[test]
fn pages_of_replaced_tensors_are_left_alone() {
    let base = fixture("tiny-gpt2");
    let mut weights = models::weights(&base, &Config::read(&base).unwrap()).unwrap();
    let names: Vec<String> = weights.names().map(str::to_string).collect();
    for name in names {
        weights.release(&name);
        let grown = Tensor::ones([1 << 16], (Kind::Float, Device::Cpu));
        weights.replace(&name, grown.shallow_clone()).unwrap();
        weights.release(&name);
        assert!(weights.get(&name).unwrap().equal(&grown), "{name}");
    }
}

#[test]
fn logits_are_those_of_transformers_with_the_dequantised_weights() {
    let fixture = tensors("stored/logits.safetensors");
    let ids: Vec<u32> = Vec::<i64>::try_from(&fixture["ids"]).unwrap().iter().map(|id| *id as u32).collect();
    for format in FORMATS {
        let folder = stored_model(format);
        let model = load(folder.path(), Kind::Float, None).unwrap();
        let tokens = Tokens::pack(&[&ids[..10], &ids[10..]], device());
        let places = Tensor::arange(11, (Kind::Int64, device()));
        let logits = model.infer(&tokens, |out| out.logits(&places)).unwrap();
        assert_close(format, &logits, &fixture[format], 1e-5);
        let quantised = model.params().base().filter(|p| matches!(p.quantised, QuantisedParam::Done(_))).count();
        assert_eq!(quantised, 21, "{format}: seven matrices in each of three layers");
    }
}

/// Losses, gradients and answers are those of a model with the dequantised weights; those with an order of the inputs sum
/// in another order.
#[test]
fn stored_weights_compute_what_their_numbers_compute() {
    let spec = LoraSpec { rank: 4, alpha: 8.0, ..LoraSpec::default() };
    let plan = ModulePlan::new(&spec).unwrap();
    let prompts: Vec<Vec<u32>> = (1..6).map(|i| (0..7 * i).map(|t| (t * 5 + i) % 60).collect()).collect();
    for format in FORMATS {
        let ordered = format == "gptq";
        for kind in [Kind::Float, Kind::BFloat16].into_iter().take(2 - usize::from(ordered)) {
            let folder = stored_model(format);
            let stored = load(folder.path(), kind, Some(&plan)).unwrap();
            fill_adapter(&stored, 0.1);
            let dense = copied(&fixture("tiny-llama"));
            let mut numbers = tensors("tiny-llama/model.safetensors");
            for p in stored.params().base() {
                if let QuantisedParam::Done(weight) = &p.quantised {
                    numbers.insert(p.name.clone(), weight.dense(Kind::Float).to_device(Device::Cpu));
                }
            }
            save_tensors(&dense.path().join("model.safetensors"), &numbers);
            let dense = load(dense.path(), kind, Some(&plan)).unwrap();
            fill_adapter(&dense, 0.1);
            let row = Row::pack(&(1..5).map(|n| Sequence::random(9 * n, 60, n as u64)).collect::<Vec<_>>());
            let step = |model: &Model| {
                let metrics = model.learn(&row, row.items, LayerReplay::None).unwrap();
                (metrics.means()["loss"], take_gradients(model))
            };
            let ((a, ours), (b, theirs)) = (step(&stored), step(&dense));
            assert!(if ordered { (a - b).abs() < 1e-5 } else { a == b }, "{format} {kind:?}: loss {a} {b}");
            for (parameter, gradient) in &ours {
                let (case, expected) = (format!("{format} {kind:?}: {parameter}"), &theirs[parameter]);
                match ordered {
                    true => drop(assert_close(&case, gradient, expected, 1e-4)),
                    false => assert_same(&case, gradient, expected),
                }
            }
            let settings = GenerationSettings { log_probs: true, ..GenerationSettings::greedy(12, &[]) };
            let answer = |model: &Model| complete(model, &prompts, &settings, &mut |_, _| ()).unwrap();
            for (a, b) in answer(&stored).iter().zip(&answer(&dense)) {
                assert_eq!(a.tokens, b.tokens, "{format} {kind:?}: answers");
                let same = |(a, b): (&f32, &f32)| if ordered { (a - b).abs() < 1e-5 } else { a == b };
                assert!(a.log_probs.iter().zip(&b.log_probs).all(same), "{format} {kind:?}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn decoding_equals_the_full_forward() {
    for format in FORMATS {
        let folder = stored_model(format);
        let model = load(folder.path(), Kind::Float, None).unwrap();
        let prompt: Vec<u32> = (0..11).map(|t| (t * 7 + 3) % 60).collect();
        let settings = GenerationSettings { log_probs: true, ..GenerationSettings::greedy(12, &[]) };
        let answer = complete(&model, std::slice::from_ref(&prompt), &settings, &mut |_, _| ()).unwrap().remove(0);
        let all = [&prompt[..], &answer.tokens].concat();
        let tokens = Tokens::pack(&[&all], device());
        let places = Tensor::arange(all.len() as i64, (Kind::Int64, device()));
        let expected = model.infer(&tokens, |out| out.logits(&places).log_softmax(-1, Kind::Float)).unwrap();
        for (i, (token, found)) in answer.tokens.iter().zip(&answer.log_probs).enumerate() {
            let at = [(prompt.len() + i - 1) as i64, i64::from(*token)];
            let gap = (expected.double_value(&at) - f64::from(*found)).abs();
            assert!(gap < 2e-5, "{format}: token {i}: {gap}");
        }
    }
}

/// Writes one matrix as q_proj of the first layer of tiny-llama, which need not have its shape, and returns the numbers
/// that are read, or the error about the shape.
fn read_layout(name: &str, quantization: Value) -> Tensor {
    let fixture = tensors("stored/layouts.safetensors");
    let dense = &fixture[&format!("{name}.dense")];
    let parts = fixture.iter().filter_map(|(key, t)| Some((key.strip_prefix(&format!("{name}."))?, t)));
    let found = read_matrix(parts.filter(|(part, _)| *part != "dense"), quantization);
    assert_eq!(found.size(), dense.size(), "{name}");
    found
}

/// Writes the tensors of one matrix as q_proj of the first layer of tiny-llama, whose shape it need not have, and returns the
/// numbers that are read.
fn read_matrix<'t>(parts: impl Iterator<Item = (&'t str, &'t Tensor)>, quantization: Value) -> Tensor {
    let folder = tempfile::tempdir().unwrap();
    let named: Vec<(String, &Tensor)> =
        parts.map(|(part, t)| (format!("model.layers.0.self_attn.q_proj.{part}"), t)).collect();
    let file = folder.path().join("model.safetensors");
    weights::save(&file, named.iter().map(|(name, t)| (name.as_str(), *t))).unwrap();
    let mut config: Value = json("tiny-llama/config.json");
    config["quantization_config"] = quantization;
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let config = ft::models::Config::read(folder.path()).unwrap();
    let weights = ft::models::weights(folder.path(), &config).unwrap();
    let matrix = weights.quantised("model.layers.0.self_attn.q_proj.weight").unwrap();
    matrix.read(device()).unwrap().dense(Kind::Float).to_device(Device::Cpu)
}

#[test]
fn variants_of_gptq_and_awq_are_unpacked_exactly() {
    let expected = tensors("stored/layouts.safetensors");
    let gptq = |bits: i64, group: i64| json!({ "quant_method": "gptq", "bits": bits, "group_size": group });
    let second = json!({ "quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2" });
    for (name, quantization) in [
        ("gptq2", gptq(2, 32)),
        ("gptq3", gptq(3, 48)),
        ("gptq8", gptq(8, 32)),
        ("gptq4-v2", second),
        ("gptq4-short", gptq(4, 64)),
        ("awq-whole", json!({ "quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM" })),
    ] {
        assert_same(name, &read_layout(name, quantization), &expected[&format!("{name}.dense")]);
    }
}

/// The first version of GPTQ's files has zeros less one. gptqmodel takes the ones from whole words and adds them to whole
/// words, so that a zero of 0, which borrows from its neighbour, is read back.
#[test]
fn zeros_less_one_are_read_as_they_were_written() {
    tch::manual_seed(9);
    let int = (Kind::Int64, Device::Cpu);
    for bits in [2, 3, 4, 8] {
        let zeros = Tensor::randint(1 << 32, [4, 2 * bits], int); // of 64 outputs: some are 0
        let ones: i64 = (0..32 / bits).map(|i| 1 << (i * bits)).sum();
        let less = match bits {
            // Numbers that lie in two words are taken one from by themselves.
            3 => packed_3(&(unpacked_3(&zeros) + 7).bitwise_and(7)),
            _ => (&zeros - ones).bitwise_and(0xffff_ffff_i64),
        };
        let numbers = |zeros: &Tensor, version: &str| {
            let quantization =
                json!({ "quant_method": "gptq", "bits": bits, "group_size": 24, "checkpoint_format": version });
            let words = (Tensor::arange(3 * bits * 64, int) * 977_777_777).remainder(1_000_000_007).view([-1, 64]);
            let [words, zeros] = [words.to_kind(Kind::Int), signed_words(zeros)];
            let scales = Tensor::ones([4, 64], (Kind::Half, Device::Cpu));
            read_matrix([("qweight", &words), ("qzeros", &zeros), ("scales", &scales)].into_iter(), quantization)
        };
        let expected = numbers(&zeros, "gptq_v2");
        assert!(expected.std(true).double_value(&[]) > 0.5, "{bits}");
        assert_same(&format!("{bits} bits"), &numbers(&less, "gptq"), &expected);
    }
}

/// Returns words as int32 with the same bits.
fn signed_words(words: &Tensor) -> Tensor {
    (words - words.ge(1_i64 << 31).to_kind(Kind::Int64) * (1_i64 << 32)).to_kind(Kind::Int)
}

/// Unpacks words (n, m) into numbers of 3 bits (n, 32 m / 3).
fn unpacked_3(words: &Tensor) -> Tensor {
    let bits: Vec<Tensor> = (0..32).map(|i| words.bitwise_right_shift_tensor_scalar(i).bitwise_and(1)).collect();
    let bits = Tensor::stack(&bits, -1).view([words.size()[0], -1, 3]);
    bits.select(2, 0) + bits.select(2, 1) * 2 + bits.select(2, 2) * 4
}

/// Packs numbers of 3 bits (n, 32 m / 3) into words (n, m).
fn packed_3(numbers: &Tensor) -> Tensor {
    let bits: Vec<Tensor> = (0..3).map(|i| numbers.bitwise_right_shift_tensor_scalar(i).bitwise_and(1)).collect();
    let bits = Tensor::stack(&bits, -1).view([numbers.size()[0], -1, 32]);
    let values: Vec<i64> = (0..32).map(|i| 1 << i).collect();
    (bits * Tensor::from_slice(&values)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64)
}

/// bitsandbytes' own codes of matrices that are no whole number of blocks or groups of scales (tests/fixtures/quantised), in
/// the layout of a checkpoint: rows begin in the middle of blocks, the last block is short, the last byte has one number.
#[test]
fn matrices_of_odd_sizes_are_read_as_bitsandbytes_made_them() {
    let fixture = tensors("quantised/weights.safetensors");
    let values = tensors("stored/nf4/quantised.safetensors");
    let value_of = |part: &str| values[&format!("model.layers.0.self_attn.q_proj.{part}")].shallow_clone();
    for (name, format) in [("odd", "nf4"), ("odd", "fp4"), ("groups", "nf4"), ("zeros", "fp4"), ("whole", "nf4")] {
        let part = |part: &str| fixture[&format!("{name}.{format}.double.{part}")].shallow_clone();
        let weight = fixture[&format!("{name}.weight")].to_kind(Kind::Float);
        // bitsandbytes takes the mean of the blocks' scales from them; the numbers are such that it is exact.
        let numbers = Vec::<f32>::try_from(weight.view([-1])).unwrap();
        let largest = numbers.chunks(64).map(|block| block.iter().fold(0f32, |most, x| most.max(x.abs())));
        let offset = largest.clone().sum::<f32>() / largest.count() as f32;
        let state = json!({ "quant_type": format, "blocksize": 64, "dtype": "float32", "shape": weight.size(),
            "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset });
        let table = match format {
            "nf4" => value_of("weight.quant_map"),
            _ => tensors("stored/fp4/quantised.safetensors")["model.layers.0.self_attn.q_proj.weight.quant_map"].copy(),
        };
        let state_name = format!("weight.quant_state.bitsandbytes__{format}");
        let tensors = [
            ("weight", part("codes").view([-1, 1])),
            ("weight.absmax", part("scales")),
            ("weight.nested_absmax", part("scale_scales")),
            ("weight.nested_quant_map", value_of("weight.nested_quant_map")),
            ("weight.quant_map", table),
            (state_name.as_str(), Tensor::from_slice(state.to_string().as_bytes())),
        ];
        let quantization = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": format,
            "bnb_4bit_use_double_quant": true });
        let found = read_matrix(tensors.iter().map(|(part, t)| (*part, t)), quantization);
        assert_same(&format!("{name} in {format}"), &found, &part("f32"));
    }
}

/// Returns what loading says about a model with changed tensors.
fn refused(format: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    write_stored(format, folder.path(), change);
    said(folder.path())
}

fn said(folder: &Path) -> String {
    let error = load(folder, Kind::Float, None).err().expect("it is refused");
    assert!(!error.hints().is_empty(), "{error}");
    error.to_string()
}

const Q: &str = "model.layers.1.self_attn.q_proj";

/// Changes the description of a matrix in 4 bits.
fn with_state(change: impl Fn(&str) -> String) -> String {
    refused("nf4", |tensors| {
        let name = format!("{Q}.weight.quant_state.bitsandbytes__nf4");
        let text = String::from_utf8(Vec::<u8>::try_from(&tensors[&name]).unwrap()).unwrap();
        tensors.insert(name, Tensor::from_slice(change(&text).as_bytes()));
    })
}

#[test]
fn damaged_matrices_are_refused_by_name() {
    let lacks =
        |format, part: &str| refused(format, |tensors| assert!(tensors.remove(&format!("{Q}{part}")).is_some()));
    let cut = |format, part: &str, n: i64| {
        refused(format, |tensors| {
            let t = tensors.get_mut(&format!("{Q}{part}")).unwrap();
            *t = t.narrow(0, 0, t.size()[0] - n).contiguous();
        })
    };
    let broken = |format, part: &str, value: f64| {
        refused(format, |tensors| drop(tensors.get_mut(&format!("{Q}{part}")).unwrap().view([-1]).get(0).fill_(value)))
    };
    let replaced = |from: &'static str, to: &'static str| with_state(move |text| text.replace(from, to));
    for (said, expected) in [
        (lacks("nf4", ".weight.absmax"), "q_proj.weight.absmax` is missing"),
        (lacks("nf4", ".weight.nested_absmax"), "q_proj.weight.nested_absmax` is missing"),
        (lacks("fp4", ".weight"), "q_proj.weight` is missing"),
        (lacks("fp4", ".weight.quant_state.bitsandbytes__fp4"), "a part of a quantised weight whose other tensors"),
        (lacks("int8", ".SCB"), "a part of a quantised weight whose other tensors"),
        (lacks("gptq", ".qweight"), "a part of a quantised weight whose other tensors"),
        (lacks("gptq", ".scales"), "q_proj.scales` is missing"),
        (cut("nf4", ".weight", 1), "has shape [2047], expected [2048]"),
        (cut("fp4", ".weight.absmax", 1), "has shape [63], expected [64]"),
        (cut("int8", ".SCB", 1), "has shape [63], expected [64]"),
        (cut("gptq", ".qweight", 1), "q_proj.g_idx` has shape [64], expected [56] for 56 inputs"),
        (cut("gptq", ".g_idx", 1), "has shape [63], expected [64] for 64 inputs"),
        (cut("awq", ".qzeros", 1), "has shape [1, 8], expected [2, 8]"),
        (cut("awq", ".qweight", 1), "ft reads even numbers only"),
        (lacks("fp8", ".weight_scale_inv"), "a part of a quantised weight whose other tensors"),
        (lacks("fp8", ".weight"), "q_proj.weight` is missing"),
        (
            cut("fp8", ".weight_scale_inv", 1),
            "has shape [1, 2], expected [2, 2] for a weight of 64 x 64 in blocks of 48 x 40",
        ),
        (cut("fp8", ".weight", 40), "has shape [2, 2], expected [1, 2] for a weight of 24 x 64"),
        (broken("fp8", ".weight_scale_inv", f64::NAN), "have NaN or infinite values"),
        (broken("fp4", ".weight.absmax", f64::NAN), "have NaN or infinite values"),
        (broken("int8", ".SCB", f64::INFINITY), "have NaN or infinite values"),
        (broken("gptq", ".scales", f64::NAN), "have NaN or infinite values"),
        (broken("gptq", ".g_idx", 7.0), "puts input 0 into group 7; there are 2 groups"),
        (broken("gptq", ".g_idx", -1.0), "puts input 0 into group -1"),
        (broken("nf4", ".weight.quant_map", 0.3), "has other values than the format has"),
        (broken("int8", ".weight_format", 2.0), "the rows lie in an order for old GPUs"),
        (replaced("[64, 64]", "[64, 65]"), "expected [2080] for the bytes of a weight of 64 x 65"),
        (replaced("[64, 64]", "[-64, -64]"), "expected (out, in)"),
        (replaced("[64, 64]", "[9223372036854775807, 64]"), "expected (out, in)"),
        (replaced("[64, 64]", "[4096]"), "expected (out, in)"),
        (replaced("\"nf4\"", "\"fp4\""), "has the quant_type `fp4`"),
        (replaced("\"blocksize\": 64", "\"blocksize\": 128"), "has blocks of 128"),
        (replaced("\"nested_offset\": ", "\"offset\": "), "has no nested_offset"),
        (replaced("\"nested_offset\": 0", "\"nested_offset\": 1e300, \"more\": 0"), "have NaN or infinite values"),
        (with_state(|text| text[..40].into()), "is not the description of a quantised weight"),
        (with_state(|_| "[".repeat(4000)), "is not the description of a quantised weight"),
        (with_state(|_| " ".repeat(5000)), "is not a short text"),
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    // The shapes of the model are compared as well.
    let all = with_state(|text| text.replace("[64, 64]", "[32, 128]"));
    assert!(all.contains("has shape [32, 128], expected [64, 64]"), "{all}");
    // A group of another size: one input moves to the other group.
    let moved = refused("gptq", |tensors| {
        let groups = tensors.get_mut(&format!("{Q}.g_idx")).unwrap();
        let first = Vec::<i32>::try_from(&*groups).unwrap()[0];
        let _ = groups.get(0).fill_(i64::from(1 - first) as f64);
    });
    assert!(moved.contains("inputs into group 0, expected 32"), "{moved}");
}

#[test]
fn config_and_tensors_that_contradict_each_other_are_refused() {
    let with = |format: &str, change: &dyn Fn(&mut Value)| {
        let folder = stored_model(format);
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
        said(folder.path())
    };
    let key = |format: &str, key: &str, value: Value| {
        with(format, &|config| config["quantization_config"][key] = value.clone())
    };
    let none = |config: &mut Value| drop(config.as_object_mut().unwrap().remove("quantization_config"));
    for (said, expected) in [
        (with("nf4", &none), "has no `quantization_config`"),
        (with("int8", &none), "has no `quantization_config`"),
        (with("gptq", &none), "has no `quantization_config`"),
        (with("fp8", &none), "is in F8_E4M3, but"),
        (key("fp8", "weight_block_size", json!([40, 48])), "has shape [2, 3], expected [2, 2]"),
        (
            key("fp8", "weight_block_size", json!(null)),
            "`quantization_config.weight_block_size` must be two whole numbers",
        ),
        (key("fp8", "weight_block_size", json!([128])), "[128] must be two whole numbers"),
        (key("fp8", "weight_block_size", json!([0, 128])), "[0,128] must be two whole numbers"),
        (key("fp8", "activation_scheme", json!("static")), "\"static\" is not read; dynamic is"),
        (key("fp8", "scale_fmt", json!("ue8m0")), "\"ue8m0\" is not read; float is"),
        (key("nf4", "bnb_4bit_quant_type", json!("fp4")), "bitsandbytes__fp4` is missing"),
        (key("nf4", "bnb_4bit_use_double_quant", json!(false)), "absmax` has dtype Uint8, expected Float"),
        (key("fp4", "bnb_4bit_use_double_quant", json!(true)), "has no nested_offset"),
        (key("nf4", "load_in_8bit", json!(true)), "contradict each other"),
        (key("nf4", "quant_method", json!("awq")), "`quantization_config.bits` must be a whole number"),
        (key("nf4", "quant_method", json!("compressed-tensors")), "\"compressed-tensors\" is not read"),
        (key("gptq", "bits", json!(5)), "`quantization_config.bits` 5 must be 2, 3, 4 or 8"),
        (key("gptq", "bits", json!(8)), "for a weight of 64 x 48 in 8 bits and groups of 32, as config.json says"),
        (key("gptq", "group_size", json!(16)), "has shape [3, 64], expected [6, 64]"),
        (key("gptq", "group_size", json!(0)), "must be a number above 0"),
        (key("gptq", "checkpoint_format", json!("marlin")), "\"marlin\" is not read"),
        (key("awq", "version", json!("gemv")), "\"gemv\" is not read"),
        (key("awq", "bits", json!(3)), "must be 4 for AWQ"),
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let plain = copied(&fixture("tiny-llama"));
    std::fs::copy(fixture("stored/awq/config.json"), plain.path().join("config.json")).unwrap();
    assert!(said(plain.path()).contains("contains no tensor `….qweight`"));
}

/// What is predicted from the files is what the loaded model takes; every number of the matrices is counted once.
#[test]
fn memory_is_that_of_the_stored_numbers() {
    // Per matrix: 4 bits a number; for a group of an output a scale of 4 bytes and a zero of 1; GPTQ's orders of the inputs.
    let shapes = [[64, 64], [32, 64], [32, 64], [64, 64], [96, 64], [96, 64], [64, 96]];
    let numbers: i64 = shapes.iter().map(|[out, inputs]| 3 * out * inputs).sum();
    let groups: i64 = shapes.iter().map(|[out, inputs]| 3 * out * inputs / 32).sum();
    let orders: i64 = shapes.iter().map(|[_, inputs]| 3 * 2 * 8 * inputs).sum();
    for (format, bytes) in [("awq", numbers / 2 + 5 * groups), ("gptq", numbers / 2 + 5 * groups + orders)] {
        let folder = stored_model(format);
        let model = load(folder.path(), Kind::Float, None).unwrap();
        assert_eq!(model.quantised_summary(), (numbers as u64, bytes as u64), "{format}");
        let plain: u64 = model
            .params()
            .base()
            .filter(|p| !matches!(p.quantised, QuantisedParam::Done(_)))
            .map(|p| 4 * p.tensor.numel() as u64)
            .sum();
        assert_eq!(model.storage_summary(), (Kind::Float, plain + bytes as u64), "{format}");
        assert_eq!(model.storage_summary_as(Storage::Auto, device()), model.storage_summary(), "{format}");
        let said = model.describe_quantisation().unwrap();
        assert!(said.contains(if format == "awq" { "AWQ int4" } else { "GPTQ int4" }), "{said}");
    }
}

/// A model of which only the shapes matter has the sizes of the loaded one, in every format.
#[test]
fn an_outline_has_the_sizes_of_the_model() {
    for format in FORMATS {
        let folder = stored_model(format);
        let [outline, model] = [Storage::Outline, Storage::Auto]
            .map(|storage| load_as(folder.path(), Kind::Float, storage, None).unwrap());
        assert_eq!(outline.quantised_summary(), model.quantised_summary(), "{format}");
        assert_eq!(outline.storage_summary_as(Storage::Auto, device()), model.storage_summary(), "{format}");
        let unpacked = ["gptq", "awq"].contains(&format);
        for p in outline.params().base().filter(|p| unpacked && matches!(p.quantised, QuantisedParam::Done(_))) {
            assert_eq!(p.tensor.stride(), [0, 0], "{format}: {} has numbers", p.name);
        }
    }
}

/// AutoGPTQ once wrote biases of zeros for layers that have none.
#[test]
fn a_bias_of_zeros_beside_a_quantised_matrix_is_left_out() {
    let with = |value: f64| {
        let folder = tempfile::tempdir().unwrap();
        write_stored("gptq", folder.path(), |tensors| {
            let bias = Tensor::full([64], value, (Kind::Half, Device::Cpu));
            assert!(tensors.insert(format!("{Q}.bias"), bias).is_none());
        });
        load(folder.path(), Kind::Float, None).map(|model| model.params().base().any(|p| p.name.ends_with(".bias")))
    };
    assert!(!with(0.0).unwrap());
    let refused = with(0.5).unwrap_err().to_string();
    assert!(refused.contains("q_proj.bias`"), "{refused}");
}

#[test]
fn stored_weights_are_neither_trained_nor_quantised_once_more() {
    let folder = stored_model("awq");
    let load = |storage, train_base| {
        let load = LoadOptions {
            device: device(),
            kind: Kind::Float,
            storage,
            train_base,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        };
        Model::load(folder.path(), load).err().expect("it is refused").to_string()
    };
    let format = Quantisation::new(QuantisedFormat::Nf4, true);
    assert!(load(Storage::Quantised(format.into()), None).contains("cannot be quantised once more"));
    assert!(load(Storage::Auto, Some(&TrainedPart::LastLayers(1))).contains("cannot be trained"));
}
