//! Compares `ft import` with how the reference libraries read the same files, and tests it on damaged files.

use crate::support::fixture;
use ft::convert::gguf_import::{GgufImportOptions, GgufImportSummary, import};
use ft::error::{Error, ErrorKind, Result};
use ft::gguf::file::Gguf;
use ft::gguf::quant::{GgmlType, dequantise};
use ft::nn::safetensors::Dtype;
use half::f16;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tokenizers::Tokenizer;

const MODELS: [&str; 6] = ["llama", "llama3", "llama-spm", "qwen2", "qwen3", "gpt2"];

fn gguf_file(name: &str) -> PathBuf {
    fixture("gguf").join(name)
}

fn run(file: &Path, out: &Path, dtype: Dtype) -> Result<GgufImportSummary> {
    import(&GgufImportOptions { file, out, dtype, force: false, pre_tokenizer: None }, |_, _| Ok(()))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn every_format_is_dequantised_bit_for_bit() {
    let data = std::fs::read(gguf_file("quants.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    let mut seen = 0;
    for id in 0..64 {
        let Ok(kind) = GgmlType::from_id(id) else { continue };
        let found = dequantise(kind, tensors.tensor(&kind.name()).unwrap().data());
        let expected = floats(tensors.tensor(&format!("{}.expected", kind.name())).unwrap().data());
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected), "{}", kind.name());
        seen += 1;
    }
    assert_eq!((seen, tensors.len()), (15, 30));
}

#[test]
fn every_architecture_gives_the_original_names_shapes_and_values() {
    for model in MODELS {
        let temp = TempDir::new().unwrap();
        let out = temp.path().join("model");
        let summary = run(&gguf_file(&format!("{model}.gguf")), &out, Dtype::F32).unwrap();
        let (written, original) = (
            std::fs::read(out.join("model.safetensors")).unwrap(),
            std::fs::read(gguf_file(&format!("{model}.safetensors"))).unwrap(),
        );
        let (written, original) =
            (SafeTensors::deserialize(&written).unwrap(), SafeTensors::deserialize(&original).unwrap());
        let sorted = |t: &SafeTensors| {
            let mut names: Vec<String> = t.names().into_iter().map(String::from).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&written), sorted(&original), "{model}");
        for (name, expected) in original.tensors() {
            let found = written.tensor(&name).unwrap();
            assert_eq!(found.shape(), expected.shape(), "{model} {name}");
            let values: Vec<f32> =
                expected.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
            assert_eq!(floats(found.data()), values, "{model} {name}");
        }
        let elements: usize = original.tensors().iter().map(|(_, t)| t.shape().iter().product::<usize>()).sum();
        assert_eq!(summary.parameters, elements as u64);
        assert_eq!(summary.license.as_deref(), Some("apache-2.0"));
    }
}

#[test]
fn config_json_has_the_values_of_the_gguf_metadata() {
    let temp = TempDir::new().unwrap();
    let read = |model: &str| {
        let out = temp.path().join(model);
        run(&gguf_file(&format!("{model}.gguf")), &out, Dtype::BF16).unwrap();
        (json(&out.join("config.json")), json(&out.join("generation_config.json")))
    };
    let (llama, generation) = read("llama");
    for (key, value) in [
        ("architectures", serde_json::json!(["LlamaForCausalLM"])),
        ("attention_bias", false.into()),
        ("head_dim", 4.into()),
        ("num_key_value_heads", 1.into()),
        ("rms_norm_eps", 1e-5.into()),
        ("rope_scaling", Value::Null),
        ("rope_theta", 100000.0.into()),
        ("tie_word_embeddings", true.into()),
        ("torch_dtype", "bfloat16".into()),
        ("eos_token_id", 2.into()),
    ] {
        assert_eq!(llama[key], value, "{key}");
    }
    assert_eq!(generation["eos_token_id"], 2);
    assert_eq!(generation["pad_token_id"], 2);

    let (llama3, generation) = read("llama3");
    assert_eq!(llama3["rope_scaling"]["rope_type"], "llama3");
    assert_eq!(llama3["rope_scaling"]["factor"], 8.0);
    assert_eq!(llama3["rope_scaling"]["original_max_position_embeddings"], 8192);
    assert_eq!(
        (&llama3["head_dim"], &llama3["attention_bias"], &llama3["mlp_bias"]),
        (&8.into(), &true.into(), &true.into())
    );
    assert_eq!(llama3["tie_word_embeddings"], false);
    // The template ends turns with <|eot_id|> (2), not with the end of text (1): both must stop generation.
    assert_eq!(generation["eos_token_id"], serde_json::json!([1, 2]));

    let (qwen2, generation) = read("qwen2");
    assert_eq!((&qwen2["model_type"], &qwen2["use_sliding_window"]), (&"qwen2".into(), &false.into()));
    assert_eq!(generation["eos_token_id"], serde_json::json!([0, 2]));
    let (qwen3, _) = read("qwen3");
    assert_eq!((&qwen3["head_dim"], &qwen3["attention_bias"]), (&8.into(), &false.into()));
    let (gpt2, _) = read("gpt2");
    assert_eq!((&gpt2["n_embd"], &gpt2["n_inner"], &gpt2["n_positions"]), (&8.into(), &Value::Null, &64.into()));
}

#[test]
fn the_rebuilt_tokenizer_gives_the_reference_ids() {
    let temp = TempDir::new().unwrap();
    for model in MODELS {
        let out = temp.path().join(model);
        run(&gguf_file(&format!("{model}.gguf")), &out, Dtype::BF16).unwrap();
        let tokenizer = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
        let expected = json(&gguf_file(&format!("{model}.json")));
        let lines = expected["lines"].as_array().unwrap();
        assert!(lines.len() > 30);
        for line in lines {
            let text = line[0].as_str().unwrap();
            let ids: Vec<u64> = tokenizer.encode(text, true).unwrap().get_ids().iter().map(|&i| i as u64).collect();
            assert_eq!(serde_json::json!(ids), line[1], "{model} {text:?}");
        }
    }
}

#[test]
fn placeholder_tokens_are_left_out_and_template_and_special_tokens_kept() {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("spm");
    run(&gguf_file("llama-spm.gguf"), &out, Dtype::BF16).unwrap();
    let tokenizer = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    let size = json(&out.join("config.json"))["vocab_size"].as_u64().unwrap() as usize;
    assert_eq!(tokenizer.get_vocab_size(true), size - 1, "the last row of the embedding is a placeholder");
    assert!(!out.join("chat_template.jinja").exists());

    let out = temp.path().join("llama");
    run(&gguf_file("llama.gguf"), &out, Dtype::BF16).unwrap();
    assert!(std::fs::read_to_string(out.join("chat_template.jinja")).unwrap().contains("<|im_end|>"));
    let config = json(&out.join("tokenizer_config.json"));
    assert_eq!(
        (&config["eos_token"], &config["unk_token"], &config["add_bos_token"]),
        (&"<|im_end|>".into(), &"<|endoftext|>".into(), &false.into())
    );
}

#[test]
fn bf16_and_f16_are_rounded_from_the_same_values() {
    let temp = TempDir::new().unwrap();
    for (dtype, round) in [
        (Dtype::BF16, (|x: f32| half::bf16::from_f32(x).to_bits()) as fn(f32) -> u16),
        (Dtype::F16, |x: f32| f16::from_f32(x).to_bits()),
    ] {
        let out = temp.path().join(format!("{dtype:?}"));
        run(&gguf_file("qwen2.gguf"), &out, dtype).unwrap();
        let data = std::fs::read(out.join("model.safetensors")).unwrap();
        let wide = temp.path().join(format!("wide-{dtype:?}"));
        run(&gguf_file("qwen2.gguf"), &wide, Dtype::F32).unwrap();
        let reference = std::fs::read(wide.join("model.safetensors")).unwrap();
        let name = "model.layers.1.mlp.down_proj.weight";
        let found = SafeTensors::deserialize(&data).unwrap().tensor(name).unwrap().data().to_vec();
        let expected = SafeTensors::deserialize(&reference).unwrap().tensor(name).unwrap().data().to_vec();
        let expected: Vec<u8> = floats(&expected).into_iter().flat_map(|x| round(x).to_le_bytes()).collect();
        assert_eq!(found, expected);
    }
}

// ------------------------------------------------------------------------------------------------- damaged files

/// Imports damaged bytes and returns the error. It must be a user error with a hint, and only the input file may
/// remain.
fn refuse(bytes: &[u8], what: &str) -> Error {
    let temp = TempDir::new().unwrap();
    let file = temp.path().join("in.gguf");
    std::fs::write(&file, bytes).unwrap();
    let e = run(&file, &temp.path().join("out"), Dtype::BF16).expect_err(what);
    assert_eq!(e.kind(), ErrorKind::User, "{what}: {e}");
    assert!(!e.hints().is_empty(), "{what}: no hint: {e}");
    assert!(e.message().contains("in.gguf"), "{what}: does not name the file: {e}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "{what}: something was left behind");
    e
}

fn refused_with(bytes: &[u8], part: &str) {
    let e = refuse(bytes, part);
    assert!(e.message().contains(part), "{part:?} expected in: {e}");
}

fn llama() -> Vec<u8> {
    std::fs::read(gguf_file("llama.gguf")).unwrap()
}

/// Returns the offset of the first `needle`.
fn find(data: &[u8], needle: &str) -> usize {
    data.windows(needle.len())
        .position(|w| w == needle.as_bytes())
        .unwrap_or_else(|| panic!("{needle} not in the fixture"))
}

/// Returns the file with its content at offset `at` replaced by `bytes`.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut data = llama();
    data[at..at + bytes.len()].copy_from_slice(bytes);
    data
}

/// Returns the offset of the dimension count in a tensor's entry. Dimensions, type and data offset follow it.
fn entry(name: &str) -> usize {
    find(&llama(), name) + name.len()
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let whole = llama();
    let dense = (0..200).chain((200..whole.len()).step_by(97));
    for length in dense.chain([whole.len() - 64, whole.len() - 33]) {
        refuse(&whole[..length], &format!("cut to {length} bytes"));
    }
}

#[test]
fn one_wrong_byte_never_panics() {
    let whole = llama();
    let first_data = whole.len() - tail_from_first(&Gguf::open(&gguf_file("llama.gguf")).unwrap());
    let temp = TempDir::new().unwrap();
    let file = temp.path().join("in.gguf");
    let out = temp.path().join("out");
    let options = GgufImportOptions { file: &file, out: &out, dtype: Dtype::BF16, force: false, pre_tokenizer: None };
    let (mut passed, mut failed) = (0, 0);
    for at in (0..first_data).step_by(7) {
        for flip in [0x01, 0x80, 0xFF] {
            let mut data = whole.clone();
            data[at] ^= flip;
            std::fs::write(&file, &data).unwrap();
            // Some bytes are names or numbers that may have any value: then the import reaches the first tensor.
            let e = import(&options, |_, _| Err(Error::interrupted("read"))).unwrap_err();
            match e.kind() {
                ErrorKind::Interrupted => passed += 1,
                ErrorKind::User => failed += 1,
                ErrorKind::Bug => panic!("byte {at} ^ {flip}: {e}"),
            }
            assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "byte {at} ^ {flip}");
        }
    }
    assert!(passed > 100 && failed > 1000, "{passed} passed, {failed} failed");
}

#[test]
fn wrong_header_values_are_named() {
    refused_with(b"", "empty");
    refused_with(b"PK\x03\x04 a zip file", "letters GGUF");
    refused_with(&patched(4, &1u32.to_le_bytes()), "version 2 or 3 expected, found 1");
    refused_with(&patched(4, &3u32.to_be_bytes()), "big-endian");
    refused_with(&patched(8, &u64::MAX.to_le_bytes()), "number of tensors");
    refused_with(&patched(16, &(1u64 << 60).to_le_bytes()), "number of metadata keys");
    refused_with(&patched(24, &u64::MAX.to_le_bytes()), "metadata key 0");
    let key = find(&llama(), "general.name");
    refused_with(&patched(key, &[0xFF]), "not UTF-8");
    refused_with(&patched(key + 12, &77u32.to_le_bytes()), "value type 0 to 12");
    refused_with(&patched(key + 12, &9u32.to_le_bytes()), "general.name");
    // The header of the token list: element type, then number of tokens.
    let tokens = find(&llama(), "tokenizer.ggml.tokens") + 21 + 4;
    refused_with(&patched(tokens, &9u32.to_le_bytes()), "array of arrays");
    refused_with(&patched(tokens + 4, &(1u64 << 40).to_le_bytes()), "tokenizer.ggml.tokens");
    refused_with(&patched(tokens + 12 + 8, &[0xFF]), "not UTF-8");
}

#[test]
fn wrong_tensor_entries_are_named() {
    let at = entry("blk.0.attn_q.weight");
    refused_with(&patched(at, &9u32.to_le_bytes()), "at most 4 dimensions");
    refused_with(&patched(at + 4, &0u64.to_le_bytes()), "blk.0.attn_q.weight");
    refused_with(&patched(at + 4, &u64::MAX.to_le_bytes()), "blk.0.attn_q.weight");
    refused_with(&patched(at + 4, &7u64.to_le_bytes()), "shape [8, 8] expected, found [8, 7]");
    refused_with(&patched(at + 20, &23u32.to_le_bytes()), "IQ4_XS is not supported");
    refused_with(&patched(at + 20, &4711u32.to_le_bytes()), "4711");
    refused_with(&patched(at + 20, &12u32.to_le_bytes()), "cannot be stored as Q4_K");
    refused_with(&patched(at + 24, &u64::MAX.to_le_bytes()), "alignment");
    refused_with(&patched(at + 24, &(u64::MAX - 31).to_le_bytes()), "but the file has");
    refused_with(&patched(at + 24, &0u64.to_le_bytes()), "overlaps");
    refused_with(&patched(at - 3, b"xht"), "tensor blk.0.attn_q.weight is missing");
    refused_with(&patched(find(&llama(), "blk.1.attn_q.weight") + 4, b"0"), "the name appears twice");
    // The last bytes belong to the last tensor: a NaN there is detected.
    let mut broken = llama();
    let norm = Gguf::open(&gguf_file("llama.gguf")).unwrap();
    let tensor = norm.tensors().iter().find(|t| t.name == "output_norm.weight").unwrap();
    let start = norm.data(tensor).as_ptr() as usize - norm.data(&norm.tensors()[0]).as_ptr() as usize;
    let first = broken.len() - tail_from_first(&norm);
    broken[first + start..first + start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    refused_with(&broken, "1 of 8 values are not finite");
}

/// Returns the number of bytes from the first tensor's data to the end of the fixture.
fn tail_from_first(gguf: &Gguf) -> usize {
    let starts = gguf.tensors().iter().map(|t| gguf.data(t).as_ptr() as usize);
    let end = gguf.tensors().iter().map(|t| gguf.data(t).as_ptr() as usize + gguf.data(t).len()).max().unwrap();
    let padded = (end - starts.min().unwrap()).next_multiple_of(32);
    padded
        - (gguf.data(&gguf.tensors()[0]).as_ptr() as usize
            - gguf.tensors().iter().map(|t| gguf.data(t).as_ptr() as usize).min().unwrap())
}

#[test]
fn missing_or_unknown_metadata_is_named() {
    let without = |key: &str| patched(find(&llama(), key), b"x");
    refused_with(&without("general.architecture"), "general.architecture is missing");
    refused_with(&without("llama.block_count"), "llama.block_count is missing");
    refused_with(&without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon is missing");
    refused_with(&without("tokenizer.ggml.model"), "tokenizer.ggml.model is missing");
    refused_with(&without("tokenizer.ggml.pre"), "does not name its pre-tokenizer");
    refused_with(&without("tokenizer.ggml.merges"), "without merges");
    refused_with(&without("tokenizer.ggml.token_type"), "token_type is missing");
    let value = |key: &str| find(&llama(), key) + key.len() + 4;
    refused_with(&patched(value("llama.block_count"), &3u32.to_le_bytes()), "tensor blk.2.attn_norm.weight is missing");
    refused_with(
        &patched(value("llama.block_count"), &1u32.to_le_bytes()),
        "9 tensors are unknown to a llama model, the first is",
    );
    refused_with(
        &patched(value("llama.attention.head_count"), &0u32.to_le_bytes()),
        "attention.head_count: a number from 1",
    );
    refused_with(
        &patched(value("llama.rope.dimension_count"), &8u32.to_le_bytes()),
        "blk.0.attn_q.weight: shape [16, 8] expected",
    );
    refused_with(&patched(value("tokenizer.ggml.eos_token_id"), &9999u32.to_le_bytes()), "eos_token_id is 9999");
    refused_with(&patched(value("general.architecture") + 8, b"llamb"), "architecture `llamb` is not supported");
    refused_with(&patched(value("tokenizer.ggml.pre") + 8, b"smallm"), "pre-tokenizer `smallm` is not known");
    refused_with(&patched(find(&llama(), "t h"), b"zzz"), "two tokens that join into a third expected");
}

#[test]
fn an_existing_folder_is_kept_unless_it_is_a_model_and_may_be_replaced() {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("out");
    let file = gguf_file("llama.gguf");
    let with = |force| {
        import(&GgufImportOptions { file: &file, out: &out, dtype: Dtype::BF16, force, pre_tokenizer: None }, |_, _| {
            Ok(())
        })
    };
    std::fs::create_dir(&out).unwrap();
    with(false).expect("an empty folder is no obstacle");
    assert!(with(false).unwrap_err().message().contains("not empty"));
    std::fs::write(out.join("stale.safetensors"), "x").unwrap();
    with(true).expect("a model directory is replaced");
    assert!(!out.join("stale.safetensors").exists());
    std::fs::remove_file(out.join("config.json")).unwrap();
    assert!(with(true).unwrap_err().message().contains("no config.json"));
    assert!(out.join("model.safetensors").exists());
}

#[test]
fn a_stopped_import_leaves_nothing() {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("out");
    let options = GgufImportOptions {
        file: &gguf_file("llama.gguf"),
        out: &out,
        dtype: Dtype::BF16,
        force: false,
        pre_tokenizer: None,
    };
    let stop = |done, _| if done == 3 { Err(Error::interrupted("stopped")) } else { Ok(()) };
    assert_eq!(import(&options, stop).unwrap_err().exit_code(), 130);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn another_pre_tokenizer_can_be_asked_for_and_is_reported() {
    let temp = TempDir::new().unwrap();
    let file = gguf_file("llama.gguf");
    let ids = |name: &str, pre_tokenizer: Option<&str>| {
        let out = temp.path().join(name);
        let summary = import(
            &GgufImportOptions { file: &file, out: &out, dtype: Dtype::BF16, force: false, pre_tokenizer },
            |_, _| Ok(()),
        )
        .unwrap();
        let tokenizer = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
        (tokenizer.encode("x  5", false).unwrap().get_tokens().to_vec(), summary.warnings.len())
    };
    // If digits are split off first, the two spaces become one token; GPT-2's split puts the second space with the
    // number.
    assert_eq!(ids("own", None), (vec!["x".into(), "ĠĠ".into(), "5".into()], 0));
    assert_eq!(ids("gpt2", Some("gpt-2")).1, 1);
    assert_ne!(ids("own2", None).0, ids("gpt2b", Some("gpt-2")).0);
}

#[test]
fn the_binary_prints_json_and_exits_with_one_on_a_bad_file() {
    let temp = TempDir::new().unwrap();
    let ft = || std::process::Command::new(env!("CARGO_BIN_EXE_ft"));
    let out = temp.path().join("m");
    let good = ft()
        .args(["import", "--json", "--dtype", "f16", "--out"])
        .arg(&out)
        .arg(gguf_file("qwen3.gguf"))
        .output()
        .unwrap();
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let summary: Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!((&summary["architecture"], &summary["dtype"]), (&"qwen3".into(), &"float16".into()));
    let bad = ft().args(["import", "--out"]).arg(temp.path().join("n")).arg(gguf_file("llama.json")).output().unwrap();
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("not a GGUF file"));
}

/// Tests a whole model, which is not in the repository. `tests/reference/check_import.py --write LINES.json` writes the
/// expected ids.
#[test]
#[ignore = "needs FT_IMPORTED, a directory written by ft import, and FT_LINES, lines with their ids"]
fn a_whole_model_gives_the_reference_ids() {
    let var = |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")));
    let tokenizer = Tokenizer::from_file(var("FT_IMPORTED").join("tokenizer.json")).unwrap();
    for line in json(&var("FT_LINES")).as_array().unwrap() {
        let ids = tokenizer.encode(line[0].as_str().unwrap(), true).unwrap().get_ids().to_vec();
        assert_eq!(serde_json::json!(ids), line[1], "{}", line[0]);
    }
}
