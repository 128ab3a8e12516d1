//! Exports that cannot be: models without a place in a format, disks without room. Nothing is left behind.

use crate::support::command::{ft_binary, stderr};
use crate::support::families;
use crate::support::needs::{NAMESPACES, needs};
use crate::support::workspace::Workspace;
use crate::support::*;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use tch::Kind;

/// The formats, and a name to write in each.
const FORMATS: [(&str, &str); 2] = [("gguf", "out.gguf"), ("onnx", "onnx")];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn models_that_a_format_has_no_place_for_are_named_with_what_is_missing() {
    let space = Workspace::bare();
    let refused = |model: &str, to: &str, reason: &str| {
        let said = space.refused(&["export", model, "--to", to, "--out", if to == "gguf" { "x.gguf" } else { "x" }]);
        assert!(said.contains(reason), "{model} to {to}: {said}");
        assert!(!space.path("x.gguf").exists() && !space.path("x").exists());
    };
    copy(with_weights("own/rnn", "own/rnn").path(), &space.path("recurrent"));
    refused("recurrent", "gguf", "no table of llama.cpp's names for `ft_rnn`");
    refused("recurrent", "onnx", "ft_rnn: recurrent layers have no converter to ONNX");
    families::write("ft_decoder", json!({}), Kind::Float, &space.path("own"));
    refused("own", "gguf", "no table of llama.cpp's names for `ft_decoder`");
    families::write("llama", json!({}), Kind::Float, &space.path("scorer"));
    let file = space.path("scorer/model.safetensors");
    let mut tensors = tensors(&file);
    tensors.insert("score.weight".into(), noise(&[1, 64], "score"));
    save_tensors(&file, &tensors);
    for (to, _) in FORMATS {
        refused("scorer", to, "this is a reward model: it scores answers and generates no text");
    }
    // Files that are no models.
    std::fs::write(space.path("notes.txt"), "GG").unwrap();
    std::fs::create_dir(space.path("empty")).unwrap();
    for (to, _) in FORMATS {
        refused("notes.txt", to, "notes.txt: not a GGUF file");
        refused("empty", to, "empty/config.json");
    }
}

/// A model whose chat has a splitting of words that llama.cpp does not know: GGUF names it by a number of its own list, ONNX takes the files along.
#[test]
fn a_tokenizer_without_a_name_in_llama_cpp_is_refused_in_gguf_alone() {
    let space = Workspace::bare();
    families::write("llama", json!({}), Kind::Float, &space.path("model"));
    let file = space.path("model/tokenizer.json");
    let mut tokenizer: serde_json::Value = ft::fsutil::read_json(&file).unwrap();
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "[a-m]+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let said = space.refused(&["export", "model", "--to", "gguf", "--out", "x.gguf"]);
    assert!(said.contains("tokenizer.ggml.pre") && said.contains("[a-m]+"), "{said}");
    assert!(said.contains("none is written"), "{said}");
    assert!(!space.path("x.gguf").exists());
    space.ft(&["export", "model", "--to", "onnx", "--out", "onnx"]);
    assert_eq!(std::fs::read(space.path("onnx/tokenizer.json")).unwrap(), std::fs::read(&file).unwrap());
}

/// On a disk that is too small, nothing is begun.
#[test]
fn a_disk_without_room_is_told_before_anything_is_written() {
    needs!(NAMESPACES);
    let space = Workspace::bare();
    families::write("llama", json!({}), Kind::Float, &space.path("model"));
    std::fs::create_dir(space.path("small")).unwrap();
    for (to, name) in FORMATS {
        let line = format!(
            "mount -t tmpfs -o size=64m none small && {{ {} export model --to {to} --out small/{name}; code=$?; ls -A small >left; exit $code; }}",
            ft_binary().display()
        );
        let output =
            Command::new("unshare").args(["-rm", "sh", "-c", &line]).current_dir(space.path(".")).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{to}: {said}");
        assert!(
            said.contains("needed") && said.contains("67.1 MB free") && said.contains("free disk space"),
            "{to}: {said}"
        );
        assert_eq!(std::fs::read_to_string(space.path("left")).unwrap(), "", "{to}");
    }
}
