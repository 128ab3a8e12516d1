//! A project folder with a tiny model, in which tests run the real binary.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder laid out as the project is after `make demo`, with a tiny model and a few rows.
pub struct Workspace(tempfile::TempDir);

impl Workspace {
    pub fn new() -> Self {
        let space = Self(tempfile::tempdir().unwrap());
        for folder in ["recipes", "datasets", "datasets/stories", "datasets/stories/tokenizer"] {
            let kept = |name: &str| [".yaml", ".jsonl", ".json"].iter().any(|e| name.ends_with(e));
            copy(Path::new(folder), &space.path(folder), kept);
        }
        let model = space.path("models/smollm2-135m-instruct");
        // Some recipes start from the result of an earlier recipe; the same tiny model stands in for it.
        for model in [model, space.path("models/icd10-start"), space.path("models/medical")] {
            copy(Path::new("tests/fixtures/tiny-llama"), &model, |_| true);
            copy(Path::new("tests/fixtures/tiny-tokenizer"), &model, |name| !name.ends_with(".py"));
        }
        std::fs::copy("tests/fixtures/gguf/llama-spm.gguf", space.path("models/SmolLM2-135M-Instruct.Q4_1.gguf"))
            .unwrap();
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ft"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        // Runs are reproducible bit for bit on the CPU only, so the GPU is hidden. FT_TEST_DEVICE=cuda runs the same
        // commands on the GPU that `auto` finds.
        if !std::env::var("FT_TEST_DEVICE").is_ok_and(|d| d.starts_with("cuda")) {
            command.env("CUDA_VISIBLE_DEVICES", "");
        }
        command
    }

    /// Runs ft and expects success.
    pub fn ft(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "ft {}\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        output
    }

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

    pub fn weights(&self, out: &str) -> Vec<u8> {
        let folder = self.path(out);
        let adapter = folder.join("adapter_model.safetensors");
        std::fs::read(if adapter.exists() { adapter } else { folder.join("model.safetensors") }).unwrap()
    }
}

fn copy(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && wanted(&entry.file_name().to_string_lossy()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
