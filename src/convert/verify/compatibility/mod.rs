//! Says which other programs read an exported directory, the reason where one does not, and the command that makes what it reads.
//!
//! tests/reference runs PEFT, transformers, llama.cpp, mlx-lm and ONNX Runtime on our files. The answers for the servers (vLLM, Text
//! Generation Inference, SGLang, TensorRT-LLM) are derived from their code and issue trackers, not tested; what could not be
//! established there is "not known".
//!
//! runtime: the programs. adapter: answers for adapters of all kinds. lora: what the answers for a LoRA depend on. servers: what
//! each server reads of a LoRA. model: answers for whole models.

mod adapter;
mod lora;
mod model;
mod runtime;
mod servers;

pub use adapter::{of_adapter, require_quantised_base};
pub use model::{
    of_config, of_gguf_adapter, of_gguf_model, of_mlx_adapter, of_mlx_model, of_model, of_onnx_model, of_scorer,
};
pub use runtime::{Runtime, RuntimeFormat};
pub(in crate::convert) use servers::TGI_SMALLEST_RANK;

use crate::models::Config;
use serde::Serialize;

/// Whether one program (the consumer) reads an exported directory.
#[derive(Debug, Clone, Serialize)]
pub struct Compatibility {
    /// The program's name.
    pub consumer: &'static str,
    /// Whether it reads the directory; `None`: not known.
    pub reads: Option<bool>,
    /// The reason why not or why this is not known, or what the consumer needs in order to read it; may be empty.
    pub note: String,
    /// The command that writes what it reads; `None` if it reads the directory, or if there is no such command.
    pub command: Option<String>,
}

impl std::fmt::Display for Compatibility {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let colon = if self.note.is_empty() { "" } else { ": " };
        write!(f, "{}: {}{colon}{}", self.consumer, answer_name(self.reads), self.note)?;
        match &self.command {
            Some(command) => write!(f, " ({command})"),
            None => Ok(()),
        }
    }
}

/// Returns an answer in words.
pub fn answer_name(reads: Option<bool>) -> &'static str {
    match reads {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    }
}

/// Returns the command that writes what a program reads of `source`.
fn export_command(source: &str, runtime: Runtime) -> String {
    format!("ft export {source} --for {} --out OUT", runtime.name())
}

/// Returns the answer of one program.
pub fn answer_of(answers: &[Compatibility], runtime: Runtime) -> Option<&Compatibility> {
    answers.iter().find(|answer| answer.consumer == runtime.title())
}

/// What is found about one program before it becomes an answer.
#[derive(Debug, Default)]
struct Findings {
    /// Why it does not read the directory.
    refusals: Vec<String>,
    /// Why it is not known whether it does.
    unknowns: Vec<String>,
    /// What it needs in order to read it.
    needs: Option<String>,
}

impl Findings {
    fn needing(needs: impl Into<String>) -> Self {
        Self { needs: Some(needs.into()), ..Self::default() }
    }

    fn refused(reason: impl Into<String>) -> Self {
        Self { refusals: vec![reason.into()], ..Self::default() }
    }

    fn unknown(reason: impl Into<String>) -> Self {
        Self { unknowns: vec![reason.into()], ..Self::default() }
    }

    /// Returns the answer. `command`: what writes what the program reads, where it does not read this.
    fn answer(self, consumer: &'static str, command: Option<String>) -> Compatibility {
        let (reads, note) = match (self.refusals.is_empty(), self.unknowns.is_empty()) {
            (false, _) => (Some(false), self.refusals.join("; ")),
            (true, false) => (None, self.unknowns.join("; ")),
            (true, true) => (Some(true), self.needs.unwrap_or_default()),
        };
        Compatibility { consumer, reads, note, command: command.filter(|_| reads != Some(true)) }
    }
}

/// Changes the answers for a model, or for an adapter of one, that belongs to a family of ft's own. An ONNX export says itself how
/// it is computed.
fn refuse_own_family(answers: &mut [Compatibility], config: &Config) {
    let onnx = Runtime::OnnxRuntime.title();
    for answer in answers.iter_mut().filter(|answer| config.is_own_family() && answer.consumer != onnx) {
        answer.reads = Some(false);
        answer.note = format!("only ft computes {}", config.model_type);
        answer.command = None;
    }
}
