//! A whole model that is merged: its config and its tensors in their files.

use crate::error::{Error, Result};
use crate::models::{self, Config};
use crate::nn::Weights;
use std::path::{Path, PathBuf};
use tch::Kind;

/// A model that is merged.
pub(super) struct ModelInput {
    /// Its folder, or GGUF file.
    pub folder: PathBuf,
    /// Its config.json.
    pub config: Config,
    /// Its tensors in their files.
    pub weights: Weights,
}

impl ModelInput {
    /// Returns the three names of its tensors that are most similar to `name`.
    pub fn nearest_names(&self, name: &str) -> String {
        let mut names: Vec<(usize, &str)> =
            self.weights.names().map(|n| (strsim::damerau_levenshtein(name, n), n)).collect();
        names.sort_unstable();
        names.into_iter().take(3).map(|(_, n)| format!("`{n}`")).collect::<Vec<_>>().join(", ")
    }

    /// Opens a model. Fails if its weights are stored quantised, or in a format that is not merged.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = Config::read(folder)?;
        models::refuse_stacks(&config, "whole models are not merged into")?;
        let weights = models::weights(folder, &config)?;
        let hint = "name a directory with the model's full-precision weights";
        models::refuse_quantised(&weights, "merging would round every weight once more", hint)?;
        let no_number = weights.names().find(|name| {
            let kind = weights.kind(name);
            !matches!(kind, Some(Kind::Float | Kind::BFloat16 | Kind::Half))
        });
        if let Some(name) = no_number {
            let place = weights.file_of(name).unwrap_or(folder).display();
            return Err(Error::user(format!("{place}: `{name}` is in {:?}", weights.kind(name)))
                .hint("weights are merged from float32, bfloat16 and float16: save the model in one of them"));
        }
        Ok(Self { folder: folder.into(), config, weights })
    }
}
