//! Hash of everything in directories of models and adapters that determines their results.

use crate::error::Result;
use crate::fsutil::{hex, io_error, sha256};
use crate::model_files::{gguf_files, is_gguf};
use crate::report;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Returns the SHA-256, in hex, of all configs and weights in directories of models or adapters, and of GGUF files, in the
/// order given.
pub fn hash(folders: &[&Path]) -> Result<String> {
    let mut sum = Sha256::new();
    for folder in folders {
        if is_gguf(folder) {
            for file in gguf_files(folder) {
                sum.update(sha256(&file)?);
            }
            continue;
        }
        let entries = std::fs::read_dir(folder).map_err(|e| io_error("reading", folder, e))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.retain(|p| {
            p.extension().is_some_and(|e| e == "safetensors")
                || p.ends_with("config.json")
                || p.ends_with("adapter_config.json")
        });
        files.sort();
        let spinner = report::spinner(&format!("hashing {}", folder.display()));
        let sums: Result<Vec<String>> = files.iter().map(|file| sha256(file)).collect();
        spinner.finish_and_clear();
        sums?.iter().for_each(|s| sum.update(s));
    }
    Ok(hex(&sum.finalize()))
}
