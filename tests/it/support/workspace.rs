//! A project folder with a tiny model, in which tests run the real binary.

use super::command::{ft, stderr};
use super::files::copy_files;
use super::gguf::tiny_gguf;
use ft::gguf::quant::GgmlType;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The GGUF file of a [`Workspace`]: a tiny model with the tokenizer of the other ones.
pub const GGUF: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// A folder laid out as the project is after `make demo`, with a tiny model and a few rows.
pub struct Workspace {
    folder: tempfile::TempDir,
    /// Hides the GPU from commands even if `FT_TEST_DEVICE` asks for it.
    cpu_only: bool,
}

impl Workspace {
    /// Makes a folder with the recipes, models and data that README's commands use.
    pub fn new() -> Self {
        let space = Self { cpu_only: false, ..Self::bare() };
        for folder in ["recipes", "eval", "datasets", "datasets/stories", "datasets/stories/tokenizer"] {
            let kept = |name: &str| [".yaml", ".jsonl", ".json"].iter().any(|e| name.ends_with(e));
            copy_files(Path::new(folder), &space.path(folder), kept);
        }
        let model = space.path("models/smollm2-135m-instruct");
        // Some recipes start from the result of an earlier recipe; the same tiny model stands in for it.
        for model in [model, space.path("models/icd10-start"), space.path("models/medical")] {
            copy_files(Path::new("tests/fixtures/tiny-llama"), &model, |_| true);
            copy_files(Path::new("tests/fixtures/tiny-tokenizer"), &model, |name| !name.ends_with(".py"));
        }
        tiny_gguf("llama", GgmlType::Q4_1).write(&space.path(GGUF));
        let rows = std::fs::read_to_string("datasets/chat.jsonl").unwrap();
        let rows: Vec<&str> = rows.lines().collect();
        std::fs::create_dir_all(space.path("datasets/icd10")).unwrap();
        let parts =
            [("train", &rows[..24]), ("valid", &rows[24..28]), ("test", &rows[28..32]), ("taught", &rows[32..40])];
        for (name, part) in parts {
            std::fs::write(space.path(&format!("datasets/icd10/{name}.jsonl")), part.join("\n")).unwrap();
        }
        let pairs = std::fs::read_to_string("datasets/preference.jsonl").unwrap();
        let pairs: Vec<&str> = pairs.lines().collect();
        for (name, part) in [
            ("helpful/train", &pairs[..36]),
            ("helpful/valid", &pairs[36..]),
            ("icd10/pairs/train", &pairs[..24]),
            ("icd10/pairs/valid", &pairs[24..28]),
            ("icd10/pairs/test", &pairs[28..32]),
        ] {
            let path = space.path(&format!("datasets/{name}.jsonl"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, part.join("\n")).unwrap();
        }
        space
    }

    /// Makes an empty folder, in which every command runs on the CPU.
    pub fn bare() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), cpu_only: true }
    }

    /// Returns the path of a file or folder in the workspace.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a command that runs ft in the folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ft(self.folder.path(), arguments);
        // Runs are reproducible bit for bit on the CPU only, so the GPU is hidden. FT_TEST_DEVICE=cuda runs the same
        // commands on the GPU that `auto` finds.
        if self.cpu_only || !std::env::var("FT_TEST_DEVICE").is_ok_and(|d| d.starts_with("cuda")) {
            command.env("CUDA_VISIBLE_DEVICES", "");
        }
        // Token ids are cached per workspace, not in the user's cache.
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// Runs ft and expects success.
    pub fn ft(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "ft {}\n{}", arguments.join(" "), stderr(&output));
        output
    }

    /// Runs ft, expects that it refuses its input (exit code 1), and returns its stderr.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    }

    /// Reads a JSON file of the folder.
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// Returns the lines of a run's metrics.jsonl without times, speed and memory, which differ from run to run.
    pub fn steps(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(&format!("{out}/metrics.jsonl"))).unwrap();
        let timeless = |line: &str| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            for key in ["seconds", "tokens_per_s", "memory"] {
                value.as_object_mut().unwrap().remove(key);
            }
            value
        };
        text.lines().map(timeless).collect()
    }

    /// Returns the bytes of a run's result.
    pub fn weights(&self, out: &str) -> Vec<u8> {
        let folder = self.path(out);
        let adapter = folder.join("adapter_model.safetensors");
        std::fs::read(if adapter.exists() { adapter } else { folder.join("model.safetensors") }).unwrap()
    }
}
