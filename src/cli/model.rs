//! The arguments that name a model, shared by the verbs that answer with one.

use clap::{Args, ValueEnum};
use ft::data::ChatTokenizer;
use ft::error::{Error, Result};
use ft::models::{self, Model};
use ft::report;
use std::path::PathBuf;

/// A base model and perhaps an adapter on it.
#[derive(Args)]
pub struct ModelArgs {
    /// Hugging Face model directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter directory in PEFT layout, on top of the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Where to run: auto (CUDA where there is one, else CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Number format of weights and arithmetic
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,
}

/// Number formats a model can answer in.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Dtype {
    Bf16,
    F32,
}

impl ModelArgs {
    /// Loads tokenizer and model.
    pub fn open(&self) -> Result<(Model, ChatTokenizer)> {
        let _loading = report::spinner(&format!("loading {}", self.model.display()));
        let tokenizer = ChatTokenizer::load(&self.model, None)?;
        let device = models::device(&self.device)?;
        let model = models::open(&self.model, self.adapter.as_slice(), device, self.kind())?;
        models::open::need_finite_adapters(&model, self.adapter.as_slice())?;
        Ok((model, tokenizer))
    }

    /// The number format asked for.
    pub fn kind(&self) -> tch::Kind {
        self.dtype.kind()
    }
}

impl Dtype {
    /// As libtorch calls it.
    pub fn kind(self) -> tch::Kind {
        match self {
            Dtype::Bf16 => tch::Kind::BFloat16,
            Dtype::F32 => tch::Kind::Float,
        }
    }
}

/// Conversations need the model's chat template.
pub fn need_template(tokenizer: &ChatTokenizer, args: &ModelArgs) -> Result<()> {
    if tokenizer.has_template() {
        return Ok(());
    }
    Err(Error::user(format!(
        "{}: the model has no chat template, so it cannot be asked in turns",
        args.model.display()
    ))
    .hint("use an instruct model, or give plain text with: ft generate --prompt TEXT"))
}
