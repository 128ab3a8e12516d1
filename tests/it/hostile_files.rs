//! Tests the hostile inputs of tests/hostile. Each must quickly give one clear error with exit code 1 that names the
//! file and a next step, and must leave no files behind. Inputs that could crash the process run in a separate one.

use crate::support::*;
use ft::convert::gguf_import::{GgufImportOptions, import};
use ft::data::chat::ChatTokenizer;
use ft::error::{Error, Result};
use ft::models::{self, Heads, LoadOptions, Model, Storage};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tch::{Device, Kind};

/// Returns the files of a kind, sorted. Fails if there are fewer than `least`.
fn cases(kind: &str, least: usize) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile").join(kind);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= least, "{kind}: {} files", files.len());
    files
}

/// Creates a valid model directory from the given weights, their config and a tokenizer.
fn model(weights: &str) -> tempfile::TempDir {
    let folder = with_weights(weights, weights);
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        std::fs::copy(fixture("tiny-tokenizer").join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn load(folder: &Path) -> Result<Model> {
    Model::load(
        folder,
        LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        },
    )
}

/// Returns path and size of everything below a folder.
fn listing(folder: &Path) -> BTreeSet<(PathBuf, u64)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        found.insert((entry.path(), if kind.is_file() { entry.metadata().unwrap().len() } else { 0 }));
        if kind.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found
}

/// Checks that an error has exit code 1, contains one of `named` and a hint, is short, and came within 20 seconds.
#[track_caller]
fn fair(case: &Path, error: &Error, named: &[&str], began: Instant) {
    let text = error.to_string();
    let case = case.display();
    println!("{case}: {text}");
    assert_eq!(error.exit_code(), 1, "{case}: {text}");
    assert!(named.iter().any(|n| text.contains(n)), "{case}: none of {named:?} is named in: {text}");
    let marked = text.contains("  | "); // an error in a recipe quotes the line, which may need no hint
    assert!(marked || text.contains("hint: "), "{case}: no next step: {text}");
    assert!(text.len() < 5000 && !text.contains('\0') && !text.contains('\x1b'), "{case}: not readable: {text}");
    assert!(began.elapsed() < Duration::from_secs(20), "{case}: {:?}", began.elapsed());
}

/// Copies each file of a kind to `place` in a valid model directory and expects `try_it` to fail.
fn refused<T>(
    kind: &str,
    least: usize,
    weights: &str,
    place: &str,
    named: &[&str],
    try_it: impl Fn(&Path) -> Result<T>,
) {
    let folder = model(weights);
    assert!(try_it(folder.path()).is_ok(), "{kind}: the unchanged directory is refused");
    if kind == "index" {
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    }
    for case in cases(kind, least) {
        std::fs::copy(&case, folder.path().join(place)).unwrap();
        let (before, began) = (listing(folder.path()), Instant::now());
        let error = try_it(folder.path()).err().unwrap_or_else(|| panic!("{}: accepted", case.display()));
        fair(&case, &error, named, began);
        assert_eq!(listing(folder.path()), before, "{}: left something behind", case.display());
    }
}

#[test]
fn weights_files() {
    // Some files are valid but lack the model's tensors: then the error names the tensors instead of the file.
    let named = ["model.safetensors", "`model.embed_tokens.weight`"];
    refused("safetensors", 25, "tiny-llama", "model.safetensors", &named, load);
}

#[test]
fn indexes() {
    let named = ["model.safetensors.index.json", "config.json: not a whole", "`model.embed_tokens.weight`"];
    refused("index", 15, "tiny-llama", "model.safetensors.index.json", &named, load);
}

#[test]
fn configs() {
    refused("config", 35, "tiny-llama", "config.json", &["config.json", "`lm_head.weight`"], load);
}

#[test]
fn tokenizers() {
    let answer = |folder: &Path| {
        let tokenizer = ChatTokenizer::load(folder, None)?;
        let model = load(folder)?;
        let settings = ft::generate::settings::GenerationSettings::greedy(1, &[]);
        ft::generate::engine::complete(&model, &[tokenizer.encode("Hi there")?], &settings, &mut |_, _| ())
    };
    let named = ["tokenizer.json", "vocabulary", "prompt 1 is empty"];
    refused("tokenizer", 10, "tiny-llama", "tokenizer.json", &named, answer);
}

#[test]
fn adapter_configs() {
    let folder = tempfile::tempdir().unwrap();
    let sound = fixture("adapters/plain");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(sound.join(file), folder.path().join(file)).unwrap();
    }
    let base = model("biased-llama");
    let open = || models::open(base.path(), &[folder.path().to_path_buf()], Device::Cpu, Kind::Float);
    assert!(open().is_ok());
    for case in cases("adapter_config", 20) {
        std::fs::copy(&case, folder.path().join("adapter_config.json")).unwrap();
        let began = Instant::now();
        let error = open().err().unwrap_or_else(|| panic!("{}: accepted", case.display()));
        fair(&case, &error, &["adapter_config.json", "lora_A.weight", "lora_B.weight"], began);
    }
}

#[test]
fn recipes() {
    let folder = tempfile::tempdir().unwrap();
    for case in cases("recipe", 55) {
        let began = Instant::now();
        // Whether the paths in a recipe exist is checked when it runs, not when it is read.
        let later = ["model-missing", "data-missing", "path-nul"].iter().any(|n| case.ends_with(format!("{n}.yaml")));
        match ft::recipe::plan::load(&case, &[]) {
            Ok(_) if later => {}
            Ok(_) => panic!("{}: accepted", case.display()),
            Err(e) => fair(&case, &e, &[case.file_name().unwrap().to_str().unwrap()], began),
        }
    }
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    for case in cases("gguf", 45) {
        let (began, out) = (Instant::now(), folder.path().join("out"));
        let options = GgufImportOptions {
            file: &case,
            out: &out,
            dtype: ft::nn::safetensors::Dtype::F32,
            force: false,
            pre_tokenizer: None,
        };
        let error = import(&options, |_, _| Ok(())).err().unwrap_or_else(|| panic!("{}: accepted", case.display()));
        fair(&case, &error, &[case.file_name().unwrap().to_str().unwrap()], began);
        assert!(listing(folder.path()).is_empty(), "{}: left something behind", case.display());
    }
}

// ---- with the real binary: inputs that could crash the process, and operations that the operating system refuses

/// A folder with a model, rows and a recipe, in which commands are run.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let copy = |from: &Path, to: &str| {
            std::fs::create_dir_all(place.path(to)).unwrap();
            for entry in std::fs::read_dir(from).unwrap().flatten() {
                std::fs::copy(entry.path(), place.path(to).join(entry.file_name())).unwrap();
            }
        };
        copy(model("tiny-llama").path(), "model");
        let row = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]}"#;
        std::fs::write(place.path("rows.jsonl"), format!("{row}\n").repeat(8)).unwrap();
        std::fs::write(place.path("recipe.yaml"), RECIPE).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ft"));
        command.args(line.split(' ')).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("CUDA_VISIBLE_DEVICES", "").env("OMP_NUM_THREADS", "1");
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Expects exit code 1, one error that contains one of `named` and a hint, and no changed files.
    #[track_caller]
    fn refuses(&self, line: &str, named: &[&str]) {
        let before = listing(self.0.path());
        self.refused(line, self.run(line), named);
        let after = listing(self.0.path());
        assert_eq!(after, before, "ft {line} created, changed or removed files");
    }

    #[track_caller]
    fn refused(&self, line: &str, output: Output, named: &[&str]) {
        let text = String::from_utf8(output.stderr).expect("readable");
        println!("ft {line}: {text}");
        assert_eq!(output.status.code(), Some(1), "ft {line}: {:?} {text}", output.status);
        assert!(text.contains("error: ") && !text.contains("panicked"), "ft {line}: {text}");
        assert!(text.contains("hint: "), "ft {line}: no next step: {text}");
        assert!(named.iter().any(|n| text.contains(n)), "ft {line}: none of {named:?} is named in: {text}");
        assert!(text.len() < 5000, "ft {line}: not readable: {text}");
    }
}

const RECIPE: &str = "model: { path: model, dtype: f32 }
method: { sft: {} }
adapter: { lora: { rank: 4, alpha: 8 } }
data: { train: { path: rows.jsonl } }
batch: { tokens: 256, max_len: 64 }
optim: { lr: 1e-3 }
run: { steps: 2, out: out }
";

#[test]
fn rows() {
    let place = Place::new();
    for case in cases("rows", 35) {
        let name = case.file_name().unwrap().to_str().unwrap();
        std::fs::copy(&case, place.path(name)).unwrap();
        let line = format!("data inspect {name}");
        let (before, output) = (listing(place.0.path()), place.run(&line));
        let text = String::from_utf8(output.stderr).expect("readable");
        println!("{line}: {text}");
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        assert!(text.contains("error: ") && text.contains(name) && !text.contains("panicked"), "{line}: {text}");
        assert!(text.len() < 5000 && listing(place.0.path()) == before, "{line}: {text}");
        std::fs::remove_file(place.path(name)).unwrap();
    }
}

#[test]
fn chat_templates() {
    let place = Place::new();
    for case in cases("template", 30) {
        std::fs::copy(&case, place.path("model/chat_template.jinja")).unwrap();
        let named = ["chat_template.jinja", "only Latin is spoken here", "reached the end"];
        place.refuses("data inspect rows.jsonl --model model", &named);
    }
}

#[test]
fn a_line_of_100_mb_is_refused_quickly() {
    let place = Place::new();
    let mut line = String::with_capacity(101 << 20);
    line.push_str(r#"{"messages": [{"role": "user", "content": ""#);
    line.extend(std::iter::repeat_n('a', 100 << 20));
    std::fs::write(place.path("long.jsonl"), &line).unwrap(); // the JSON string is never closed
    let began = Instant::now();
    place.refuses("data inspect long.jsonl", &["long.jsonl:1"]);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn paths_of_the_wrong_kind() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    std::os::unix::fs::symlink("loop", place.path("loop")).unwrap();
    std::fs::write(place.path("file"), "text").unwrap();
    std::fs::copy(fixture("gguf/llama-spm.gguf"), place.path("tiny.gguf")).unwrap();
    let adapter = place.path("adapter");
    place.run("train recipe.yaml --set run.out=adapter");
    assert!(adapter.join("adapter_model.safetensors").exists());

    let generate = "--prompt Hi --max-new-tokens 1 --device cpu";
    for what in ["empty", "loop", "file", "no/such", "rows.jsonl"] {
        place.refuses(&format!("generate --model {what} {generate}"), &[what]);
        place.refuses(&format!("generate --model model --adapter {what} {generate}"), &[what]);
        place.refuses(&format!("merge {what} adapter --out new"), &[what]);
        place.refuses(&format!("check recipe.yaml --set model.path={what}"), &[what]);
    }
    for what in ["empty", "loop", "no/such"] {
        place.refuses(&format!("import {what} --out new"), &[what]);
        place.refuses(&format!("data inspect {what}"), &[what]);
        place.refuses(&format!("train {what}"), &[what]);
    }
    // Output paths: an existing file, a path below a file, and a folder in which not even root can create files.
    for out in ["file", "file/below", "/proc/ft/out", "loop"] {
        place.refuses(&format!("merge model adapter --out {out}"), &[out, "creating folder"]);
        place.refuses(&format!("import tiny.gguf --out {out}"), &[out, "creating folder"]);
        place.refuses(&format!("train recipe.yaml --set run.out={out}"), &[out, "creating folder"]);
    }
    std::fs::write(place.path("prompts.jsonl"), "{\"prompt\": \"Hi\"}\n").unwrap();
    for out in ["empty", "file/below", "/proc/ft/out"] {
        let line = format!("generate --model model --input prompts.jsonl --out {out} --max-new-tokens 1 --device cpu");
        place.refuses(&line, &[out, "creating folder"]);
    }
}

/// Runs ft with a limit on the size of files. Stands in for a full disk, which a test cannot make without privileges.
fn without_room(place: &Place, line: &str, kilobytes: u32) -> Output {
    let ft = env!("CARGO_BIN_EXE_ft");
    let script = format!("ulimit -f {kilobytes}; trap '' XFSZ; exec {ft} {line}");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(place.0.path()).stdin(Stdio::null());
    command.env("CUDA_VISIBLE_DEVICES", "").env("OMP_NUM_THREADS", "1").output().unwrap()
}

#[test]
fn a_full_disk() {
    let place = Place::new();
    std::fs::copy(fixture("gguf/llama-spm.gguf"), place.path("tiny.gguf")).unwrap();
    place.run("train recipe.yaml --set run.out=adapter");
    let before = listing(place.0.path());
    for (line, kilobytes) in [
        ("merge model adapter --out merged", 100),
        ("merge model adapter --out merged --as adapter", 10),
        ("import tiny.gguf --out imported", 4),
    ] {
        place.refused(line, without_room(&place, line, kilobytes), &["File too large"]);
        assert_eq!(listing(place.0.path()), before, "ft {line} left files behind");
    }
    // A run keeps the files that were complete; no part of the checkpoint or result that did not fit remains.
    for kilobytes in [10, 40] {
        let line = "train recipe.yaml --set run.out=tried --overwrite";
        place.refused(line, without_room(&place, line, kilobytes), &["File too large"]);
        let names: Vec<String> = listing(&place.path("tried"))
            .iter()
            .map(|(p, _)| p.file_name().unwrap().to_string_lossy().into())
            .collect();
        assert!(["plan.json", "run.json", "metrics.jsonl"].iter().all(|f| names.iter().any(|n| n == f)), "{names:?}");
        let half = names.iter().find(|n| n.contains(".tmp") || n.ends_with(".new") || n.contains("adapter_model"));
        assert!(half.is_none(), "{names:?}");
    }
}

#[test]
fn an_adapter_with_nan_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let sound = fixture("adapters/plain");
    std::fs::copy(sound.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let mut all = tensors("adapters/plain/adapter_model.safetensors");
    let name = all.keys().next().unwrap().clone();
    let broken = all[&name].copy();
    let _ = broken.get(0).fill_(f64::NAN);
    all.insert(name.clone(), broken);
    let file = folder.path().join("adapter_model.safetensors");
    save_tensors(&file, &all);
    let base = model("biased-llama");
    let adapters = [folder.path().to_path_buf()];
    let model = models::open(base.path(), &adapters, Device::Cpu, Kind::Float).unwrap();
    let error = models::open::require_finite_adapters(&model, &adapters).unwrap_err();
    let short = name.strip_prefix("base_model.model.").unwrap();
    fair(&file, &error, &[&format!("`{short}` has NaN or infinite values")], Instant::now());
}
