//! Models in several GGUF files: what each has, that all together are the model, and sets that do not belong together.

use super::gguf_export::{Exported, logits, opened};
use crate::support::command::{ft_binary, stderr};
use crate::support::families;
use crate::support::workspace::Workspace;
use ft::convert::gguf_export::{FileFormat, GgufExportOptions, GgufExportSummary, export};
use ft::error::Result;
use ft::gguf::file::Gguf;
use ft::gguf::quant::GgmlType;
use ft::gguf::split::SplitLimits;
use ft::models::content_hash;
use ft::runs::hash::{FileHasher, HashTrust};
use ft::runs::inputs::model_files;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::Kind;

/// Exports a model to `out.gguf`, or to parts with this name.
pub fn split(made: &Exported, format: GgmlType, split: SplitLimits) -> Result<GgufExportSummary> {
    let (model, out, format) = (made.model(), made.file(), Some(FileFormat::of_kind(format)));
    let adapter = None;
    let options = GgufExportOptions {
        model: &model,
        adapter,
        out: &out,
        format,
        split,
        imatrix: None,
        force: true,
        modelfile: false,
    };
    export(&options, |_, _| Ok(()))
}

fn tensors(most: usize) -> SplitLimits {
    SplitLimits { tensors: Some(most), bytes: None }
}

/// Opens a part by itself.
fn part(path: &Path) -> Gguf {
    Gguf::from_bytes(path, std::fs::read(path).unwrap()).unwrap()
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn all_parts_together_are_the_model() {
    for (model_type, format) in
        [("llama", GgmlType::Q8_0), ("qwen3_moe", GgmlType::F32), ("deepseek_v2", GgmlType::F16)]
    {
        let made = Exported::of(model_type, json!({}));
        made.export(format).unwrap();
        let whole = Gguf::open(&made.file()).unwrap();
        let summary = split(&made, format, tensors(7)).unwrap();
        let count = whole.tensors().len().div_ceil(7);
        let expected = (1..=count).map(|i| format!("out-{i:05}-of-{count:05}.gguf")).collect::<Vec<_>>();
        assert_eq!((names(&summary.files), &summary.out), (expected, &summary.files[0]));
        for (i, path) in summary.files.iter().enumerate() {
            let part = part(path);
            let number = |key: &str| part.unsigned(key).unwrap().unwrap() as usize;
            let found = [number("split.no"), number("split.count"), number("split.tensors.count")];
            assert_eq!(found, [i, count, whole.tensors().len()]);
            // The first has what the file in one piece has, the others nothing but their place.
            let more = if i == 0 { whole.keys().count() } else { 0 };
            assert_eq!(part.keys().count(), 3 + more, "{model_type}: part {i}");
        }
        let parts = Gguf::open(&summary.out).unwrap();
        assert_eq!(parts.files().count(), count);
        for (one, other) in whole.tensors().iter().zip(parts.tensors()) {
            assert_eq!((&one.name, &one.shape, whole.data(one)), (&other.name, &other.shape, parts.data(other)));
        }
        let bytes: u64 = summary.files.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
        assert_eq!(summary.bytes, bytes);
        assert!(logits(&made.file()).equal(&logits(&summary.out)), "{model_type}");
    }
}

#[test]
fn an_import_of_the_first_part_is_that_of_the_whole_file() {
    let made = Exported::of("gpt2", json!({}));
    made.export(GgmlType::F32).unwrap();
    let whole = opened(&made.imported());
    let summary = split(&made, GgmlType::F32, tensors(3)).unwrap();
    std::fs::rename(&summary.out, made.file()).unwrap();
    let renamed = Gguf::open(&made.file()).err().unwrap().to_string();
    assert!(renamed.contains("its name should end in -00001-of-"), "{renamed}");
    std::fs::rename(made.file(), &summary.out).unwrap();
    let out = made.folder.path().join("of parts");
    let space = made.folder.path();
    let line = ["import", summary.out.to_str().unwrap(), "--out", out.to_str().unwrap(), "--dtype", "f32"];
    crate::support::command::succeed(&mut crate::support::command::ft(space, &line));
    let parts = opened(&out);
    assert!(whole.iter().all(|(name, tensor)| parts[name].equal(tensor)) && whole.len() == parts.len());
}

#[test]
fn files_are_no_larger_than_asked_for() {
    let made = Exported::of("llama", json!({}));
    let summary = split(&made, GgmlType::F32, SplitLimits { bytes: Some(150_000), tensors: None }).unwrap();
    let sizes: Vec<u64> = summary.files.iter().map(|path| std::fs::metadata(path).unwrap().len()).collect();
    assert!(sizes.len() > 3 && sizes.iter().all(|size| *size <= 150_000), "{sizes:?}");
    assert!(!made.file().exists());
    // One file is enough: it has the plain name and no keys of parts.
    let summary = split(&made, GgmlType::F32, SplitLimits { bytes: Some(1 << 30), tensors: Some(1000) }).unwrap();
    assert_eq!(summary.files, [made.file()]);
    assert_eq!(Gguf::open(&made.file()).unwrap().unsigned("split.count").unwrap(), None);
    let error = split(&made, GgmlType::F32, SplitLimits { bytes: Some(100_000), tensors: None }).expect_err("refused");
    assert!(error.to_string().contains("tensor token_embd.weight makes a file of"), "{error}");
    assert!(error.hints()[0].contains("choose at least"), "{error}");
}

/// What reads hashes of a model reads those of all parts.
#[test]
fn hashes_cover_every_part() {
    let made = Exported::of("llama", json!({}));
    let summary = split(&made, GgmlType::F32, tensors(20)).unwrap();
    let first = summary.out.as_path();
    let hash = || content_hash::hash(&[first]).unwrap();
    let files = || model_files(first, &mut FileHasher::open(HashTrust::Bytes)).unwrap().base;
    let (before, recorded) = (hash(), files());
    assert_eq!(recorded.keys().cloned().collect::<Vec<_>>(), names(&summary.files));
    let last = summary.files.last().unwrap();
    let mut bytes = std::fs::read(last).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(last, bytes).unwrap();
    assert_ne!(hash(), before);
    assert_ne!(files(), recorded);
}

#[test]
fn parts_that_do_not_belong_together_are_refused_with_the_reason() {
    let made = Exported::of("llama", json!({}));
    let files = split(&made, GgmlType::F32, tensors(14)).unwrap().files;
    assert_eq!(files.len(), 3);
    #[track_caller]
    fn refused(file: &Path, what: &str, hint: &str) {
        let error = Gguf::open(file).err().expect("refused");
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.hints().iter().any(|said| said.contains(hint)), "{error}: {:?}", error.hints());
    }
    let again = "fetch all parts again";
    refused(&files[1], "part 2 of the 3 parts of a model", "name the first part: ");
    assert!(Gguf::open(&files[1]).err().unwrap().hints()[0].contains("out-00001-of-00003.gguf"));

    let keep = std::fs::read(&files[1]).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    refused(&files[0], "out-00002-of-00003.gguf is missing", "incomplete");
    std::fs::copy(&files[2], &files[1]).unwrap();
    refused(&files[0], "part 2 of 3 with 39 tensors expected, by its metadata it is part 3 of 3", again);
    std::fs::write(&files[1], &keep[..keep.len() - 9]).unwrap();
    refused(&files[0], "out-00002-of-00003.gguf: tensor blk.", "cut short");
    // A part of another model, of one in another number of parts, and a model in one file.
    let other = Exported::of("llama", json!({"num_hidden_layers": 3}));
    let others = split(&other, GgmlType::F32, tensors(10)).unwrap().files;
    assert_eq!(others.len(), 3);
    std::fs::copy(&others[1], &files[1]).unwrap();
    refused(&files[0], "by its metadata it is part 2 of 3 with 30 tensors", again);
    let others = split(&other, GgmlType::F32, tensors(20)).unwrap().files;
    std::fs::copy(&others[1], &files[1]).unwrap();
    refused(&files[0], "by its metadata it is part 2 of 2", again);
    other.export(GgmlType::F32).unwrap();
    std::fs::copy(other.file(), &files[1]).unwrap();
    refused(&files[0], "by its metadata it is a model in one file", again);
    // A set whose parts are divided elsewhere: as many tensors in all, but some twice.
    let divided = split(&other, GgmlType::F32, tensors(12)).unwrap().files;
    let names = ["mixed-00001-of-00003.gguf", "mixed-00002-of-00003.gguf", "mixed-00003-of-00003.gguf"];
    let mixed = names.map(|name| made.folder.path().join(name));
    for (part, copy) in divided.iter().zip(&mixed) {
        std::fs::copy(part, copy).unwrap();
    }
    Gguf::open(&mixed[0]).unwrap();
    let otherwise = split(&other, GgmlType::F32, tensors(10)).unwrap().files;
    std::fs::copy(&otherwise[1], &mixed[1]).unwrap();
    refused(&mixed[0], "is in part 1 and in part 2", again);
    std::fs::copy(&otherwise[0], &mixed[0]).unwrap();
    refused(&mixed[0], "tensors in all parts, 30 by split.tensors.count", again);

    // Names and metadata that say different things.
    let lonely = made.folder.path().join("plain-00001-of-00002.gguf");
    std::fs::copy(other.file(), &lonely).unwrap();
    refused(&lonely, "part 1 of 2 by its name, but its metadata has no split.count", again);
    let renamed = made.folder.path().join("other-00001-of-00004.gguf");
    std::fs::copy(&files[0], &renamed).unwrap();
    refused(&renamed, "part 1 of 3 by its metadata, so its name should end in -00001-of-00003.gguf", "their own names");
}

#[test]
fn the_command_writes_reads_and_replaces_parts() {
    let space = Workspace::bare();
    families::write("qwen2", json!({}), Kind::BFloat16, &space.path("Tiny-Qwen-0.1M-Chat"));
    let line = ["export", "Tiny-Qwen-0.1M-Chat", "--to", "gguf", "--out", "out/"];
    let report = |more: &[&str]| -> Value {
        serde_json::from_slice(&space.ft(&[&line[..], more, &["--json"]].concat()).stdout).unwrap()
    };
    let made = report(&["--split-size", "100kB"]);
    let files: Vec<PathBuf> = serde_json::from_value(made["files"].clone()).unwrap();
    assert!(files.len() > 2);
    let ending = format!("-Chat-v1.0-BF16-00001-of-{:05}.gguf", files.len());
    assert!(made["out"].as_str().unwrap().ends_with(&ending), "{}", made["out"]);
    let first = made["out"].as_str().unwrap();
    let answer = |model: &str| {
        space.ft(&[
            "generate",
            "--model",
            model,
            "--prompt",
            "The",
            "--max-new-tokens",
            "6",
            "--greedy",
            "--dtype",
            "f32",
        ])
    };
    assert_eq!(answer(first).stdout, answer("Tiny-Qwen-0.1M-Chat").stdout);
    let said = space.refused(&["generate", "--model", files[1].to_str().unwrap(), "--prompt", "The"]);
    assert!(said.contains("name the first part") && said.contains(first), "{said}");

    let said = space.refused(&[&line[..], &["--split-size", "200kB"]].concat());
    assert!(said.contains("the file exists"), "{said}");
    let replaced = report(&["--split-size", "200kB", "--force"]);
    let left = std::fs::read_dir(space.path("out")).unwrap().count();
    assert_eq!(replaced["files"].as_array().unwrap().len(), left, "parts of the model before are removed");
    for (more, said) in [
        (&["--split-size", "10kB", "--force"][..], "makes a file of"),
        (&["--split-size", "much"], "`much` is not a size"),
        (&["--split-size", "1MB", "--modelfile"], "Ollama"),
        (&["--split-tensors", "5", "--out", "x-00001-of-00002.gguf"], "name of a part"),
    ] {
        let line: Vec<&str> = match more.contains(&"--out") {
            true => [&line[..4], more].concat(),
            false => [&line[..], more].concat(),
        };
        let found = space.refused(&line);
        assert!(found.contains(said), "{found}");
    }
    let onnx = ["export", "Tiny-Qwen-0.1M-Chat", "--to", "onnx", "--out", "onnx", "--split-size", "1MB"];
    assert!(space.refused(&onnx).contains("only a model in GGUF"));
    assert_eq!(std::fs::read_dir(space.path("out")).unwrap().count(), left);
    assert!(!space.path("onnx").exists() && !space.path("x-00001-of-00002.gguf").exists());
}

/// Simulates a full disk: every write beyond a file size fails (`ulimit -f`), here in the second part.
#[test]
fn a_full_disk_leaves_no_part() {
    let made = Exported::of("llama", json!({}));
    let line = "export model --to gguf --out out.gguf --split-tensors 1";
    let script = format!("trap '' XFSZ; ulimit -f 100; exec {} {line}", ft_binary().display());
    let output = Command::new("bash").args(["-c", &script]).current_dir(made.folder.path()).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert_eq!(std::fs::read_dir(made.folder.path()).unwrap().count(), 1, "the model alone");
}
