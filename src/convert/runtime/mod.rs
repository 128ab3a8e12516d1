//! Chooses the form in which a program reads a model with an adapter (`ft export --for`): the adapter as it is, made a plain LoRA, in
//! the program's own format, or merged into the model.
//!
//! The choice follows from the answers in [`compatibility`]. plain: the adapter as a plain LoRA. written: its folder.

mod plain;
mod written;

pub use written::{AdapterFolderSummary, RuntimeAdapterOptions, write_adapter};

use super::gguf_export;
use super::merge::inputs::refuse_unmergeable;
use super::mlx;
use super::quantised_base;
use super::verify::compatibility::{self, Compatibility, Runtime, RuntimeFormat, answer_of};
use crate::adapters::AdapterFile;
use crate::adapters::merging::WeightedAdapter;
use crate::error::{Error, Result};
use crate::models::{self, Config, QuantisedBase};
use serde::Serialize;
use std::path::Path;

/// The form in which a program gets a model or an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeForm {
    /// The adapter as it is.
    Adapter,
    /// A plain LoRA that changes the model as the adapter does.
    PlainLora,
    /// The adapter in the program's own format.
    OwnAdapter,
    /// A whole model, with the adapter merged into it if there is one.
    Model,
}

/// What is written for a program, and why.
#[derive(Debug, Clone, Serialize)]
pub struct RuntimeChoice {
    /// The program.
    pub runtime: Runtime,
    /// The form that it gets.
    pub form: RuntimeForm,
    /// Why it gets this form.
    pub why: String,
}

/// What an adapter is written from: its settings and tensors, and its base.
struct ChosenAdapter {
    choice: RuntimeChoice,
    file: Option<AdapterFile>,
}

/// Chooses the form in which `runtime` reads the adapter `part` of the model `base`. Fails if it reads none, with the reason.
pub fn choose(runtime: Runtime, base: &Path, part: &WeightedAdapter) -> Result<RuntimeChoice> {
    Ok(choose_adapter(runtime, base, part)?.choice)
}

/// Returns the choice for a model without an adapter. Fails if the program does not read it, with the reason.
pub fn choose_model(runtime: Runtime, model: &Path) -> Result<RuntimeChoice> {
    if runtime == Runtime::Peft {
        return Err(Error::user(format!("--for peft: {} is a model, and PEFT reads adapters", model.display()))
            .hint("name an adapter, or write what transformers reads: ft export MODEL --to hf"));
    }
    let doubt = require_model(runtime, &Config::read(model)?, &model.display().to_string())?;
    let why = format!("{} reads whole models{doubt}", runtime.title());
    Ok(RuntimeChoice { runtime, form: RuntimeForm::Model, why })
}

fn choose_adapter(runtime: Runtime, base: &Path, part: &WeightedAdapter) -> Result<ChosenAdapter> {
    let config = Config::read(base)?;
    if runtime == Runtime::Peft {
        refuse_records(part)?;
    }
    let chosen = |form, why: String, file| Ok(ChosenAdapter { choice: RuntimeChoice { runtime, form, why }, file });
    let name = runtime.title();
    // Formats of their own are tried: what they cannot hold is merged.
    let own = match runtime {
        Runtime::LlamaCpp => Some(gguf_export::adapter::check(base, part)),
        Runtime::Mlx => Some(mlx::adapter_export::check(base, part)),
        _ => None,
    };
    let reason = match own {
        Some(Ok(())) => {
            let why = format!("{name} reads the factors of a LoRA in a format of its own");
            return chosen(RuntimeForm::OwnAdapter, why, None);
        }
        Some(Err(refused)) => refused.to_string(),
        None => {
            let answer = answer(runtime, &part.file, part, &config)?;
            if answer.reads == Some(true) && part.file.tables.is_empty() {
                return chosen(RuntimeForm::Adapter, format!("{name} reads the adapter as it is"), None);
            }
            // A correction of quantised weights belongs to these, in whatever form.
            let folds = runtime.serves_directories()
                && config.stored.is_none()
                && !quantised_base::is_correction(&part.companions)?;
            if folds && let Ok(file) = plain::of(runtime, part, &models::weights(base, &config)?)? {
                let plain = self::answer(runtime, &file, part, &config)?;
                if plain.reads == Some(true) {
                    let why = format!("{name} does not read it as it is: {}", answer.note);
                    return chosen(RuntimeForm::PlainLora, why, Some(file));
                }
            }
            match answer.reads {
                Some(true) => "it brings whole tables of tokens".into(),
                _ => answer.note,
            }
        }
    };
    refuse_unmergeable(base, std::slice::from_ref(part)).map_err(|e| e.context(format!("{name}: {reason}")))?;
    quantised_base::trained_over(base, std::slice::from_ref(part))
        .map_err(|e| e.context(format!("{name}: {reason}")))?;
    if runtime == Runtime::Peft {
        return Err(Error::user(format!("{}: PEFT does not read this adapter: {reason}", part.folder.display())).hint(
            format!(
                "merge it, for transformers: ft export {} --adapter {} --to hf --out OUT",
                base.display(),
                part.folder.display()
            ),
        ));
    }
    let doubt = require_model(runtime, &config, &base.display().to_string())?;
    let what = if runtime == Runtime::OnnxRuntime { "it reads no adapters" } else { &reason };
    chosen(RuntimeForm::Model, format!("{name} reads it merged only: {what}{doubt}"), None)
}

/// Fails for an adapter in PEFT's files with more than its tensors and settings, of which a copy would lack a part.
fn refuse_records(part: &WeightedAdapter) -> Result<()> {
    let more = match () {
        _ if part.file.spec.has_scalar_head() => "the records of a reward model",
        _ if !part.file.tables.is_empty() => "whole tables of tokens",
        _ => return Ok(()),
    };
    let folder = part.folder.display();
    Err(Error::user(format!("{folder}: PEFT reads this folder as it is, with {more}, which --for does not write"))
        .hint("copy the folder"))
}

/// Returns the answer of a program for the adapter `file`, which `part` is or is made of.
fn answer(runtime: Runtime, file: &AdapterFile, part: &WeightedAdapter, config: &Config) -> Result<Compatibility> {
    let mut answers = compatibility::of_adapter(file, &part.companions, Some(config))?;
    if let Some(QuantisedBase::Loaded { format, corrected: true }) = quantised_base::recorded(&part.companions)? {
        compatibility::require_quantised_base(&mut answers, format.linear);
    }
    answer_of(&answers, runtime)
        .cloned()
        .ok_or_else(|| Error::bug(format!("no answer for {} about an adapter", runtime.title())))
}

/// Fails if a program does not read models of this family. Returns what is to be said if it is not known; empty if it reads them.
fn require_model(runtime: Runtime, config: &Config, model: &str) -> Result<String> {
    let answer = compatibility::of_config(config, runtime);
    match answer.reads {
        Some(true) => return Ok(String::new()),
        None => return Ok(format!("; whether it reads this model is not known: {}", answer.note)),
        Some(false) => {}
    }
    let hint = match runtime.format() {
        RuntimeFormat::Onnx => "docs/export.md says which models are written for ONNX Runtime",
        _ => "ft reads it: ft generate --model MODEL",
    };
    Err(Error::user(format!("{model}: {} does not read this model: {}", runtime.title(), answer.note)).hint(hint))
}
