//! The folder that a command writes: what it may replace.

use crate::error::{Error, Result};
use crate::fsutil;
use crate::runs::folder::{CHECKPOINTS, METRICS};
use std::path::{Path, PathBuf};

/// A folder that is about to be written, named by `--out`.
pub struct Destination<'a> {
    /// The folder.
    pub out: &'a Path,
    /// What it will be, with its article: `a model directory`.
    pub kind: &'static str,
    /// Files of which such a folder has one.
    pub marks: &'a [&'static str],
    /// Files that such a folder never has: with one of them it is of another kind.
    pub others: &'a [&'static str],
    /// A name for it, as an example.
    pub example: &'static str,
}

/// Files that only folders for ONNX Runtime, adapters, and mlx-lm's adapters have.
const ONNX: &str = "model.onnx";
const ADAPTER: &str = "adapter_config.json";
const MLX_ADAPTER: &str = "adapters.safetensors";

impl<'a> Destination<'a> {
    /// Returns a folder that will be a model directory.
    pub fn model(out: &'a Path, example: &'static str) -> Self {
        Self { out, kind: "a model directory", marks: &["config.json"], others: &[ONNX, ADAPTER], example }
    }

    /// Returns a folder that will be an adapter in PEFT's files.
    pub fn adapter(out: &'a Path, example: &'static str) -> Self {
        Self { out, kind: "an adapter", marks: &[ADAPTER], others: &[MLX_ADAPTER, "config.json"], example }
    }
}

impl Destination<'_> {
    /// Fails if the folder exists and must not be replaced: without `force`, if it is of another kind, or if one of the files and
    /// folders in `read` is in it.
    pub fn check(&self, force: bool, read: &[&Path]) -> Result<()> {
        let Self { out, kind, marks, others, example } = *self;
        let named = |what: &str| Error::user(format!("--out {}: {what}", out.display()));
        if out.file_name().is_none() {
            return Err(named("a folder with a name of its own expected").hint(format!("for example --out {example}")));
        }
        if !out.exists() {
            return Ok(());
        }
        if !out.is_dir() {
            return Err(named(&format!("is a file, and {kind} is a folder")).hint("choose another name"));
        }
        let mut inside = std::fs::read_dir(out).map_err(|e| fsutil::io_error("reading folder", out, e))?;
        if inside.next().is_none() {
            return Ok(());
        }
        if !force {
            return Err(
                named("the folder exists and is not empty").hint("choose another folder, or replace it with --force")
            );
        }
        let has = |file: &&&str| out.join(file).is_file();
        if out.join(METRICS).is_file() || out.join(CHECKPOINTS).is_dir() {
            return Err(named(&format!(
                "this folder is a run's, and --force would remove {METRICS} and {CHECKPOINTS}"
            ))
            .hint("choose another folder, or remove this one yourself"));
        }
        let found = match others.iter().find(has) {
            Some(other) => Some(format!("has {other}")),
            None if marks.iter().any(|mark| has(&mark)) => None,
            None => Some(format!("has no {}", marks.join(" or "))),
        };
        if let Some(found) = found {
            return Err(named(&format!("--force replaces only {kind}, and this folder {found}"))
                .hint("choose another folder, or remove this one yourself"));
        }
        let real = |path: &Path| -> PathBuf { path.canonicalize().unwrap_or_else(|_| fsutil::absolute(path)) };
        match read.iter().find(|path| real(path).starts_with(real(out))) {
            Some(path) => Err(named(&format!("{} is in the folder that --force would replace", path.display()))
                .hint("choose another folder")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_of_the_kind_without_inputs_is_replaced() {
        let space = tempfile::tempdir().unwrap();
        let out = space.path().join("out");
        let (kind, example) = ("a tokenizer's folder", "models/tokenizer");
        let destination = Destination { out: &out, kind, marks: &["a.json", "b.json"], others: &["c.json"], example };
        let check = |force: bool, read: &[&Path]| destination.check(force, read).map_err(|e| e.to_string());
        let write = |file: &str| std::fs::write(out.join(file), "{}").unwrap();
        assert_eq!(check(false, &[]), Ok(()));
        std::fs::create_dir(&out).unwrap();
        assert_eq!(check(false, &[]), Ok(()));
        write("notes.txt");
        assert!(check(false, &[]).unwrap_err().contains("exists and is not empty"));
        assert!(check(true, &[]).unwrap_err().contains("has no a.json or b.json"));
        write("b.json");
        assert_eq!(check(true, &[space.path()]), Ok(()));
        assert!(check(true, &[&out.join("notes.txt")]).unwrap_err().contains("that --force would replace"));
        write("c.json");
        assert!(check(true, &[]).unwrap_err().contains("has c.json"));
        std::fs::remove_file(out.join("c.json")).unwrap();
        std::fs::create_dir(out.join(CHECKPOINTS)).unwrap();
        assert!(check(true, &[]).unwrap_err().contains("is a run's"));
    }
}
