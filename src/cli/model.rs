//! The arguments that name a model, shared by the verbs that answer with one.

use clap::{Args, ValueEnum};
use ft::convert::template;
use ft::data::{ChatTokenizer, Rendering};
use ft::error::{Error, Result};
use ft::models::dtype::{self, Chosen};
use ft::models::{self, Model};
use ft::report;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

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
    /// Number format of the arithmetic: auto takes bf16 where the device multiplies it, else f32
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
}

/// How conversations are written for the model.
#[derive(Args, Default)]
pub struct TemplateArgs {
    /// A Jinja chat template to use instead of the model's own: a file, or the name of one that the model brings
    #[arg(long, value_name = "FILE|NAME")]
    pub template: Option<PathBuf>,
    /// Variables of the chat template, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON")]
    pub chat_template_kwargs: Option<String>,
}

impl TemplateArgs {
    /// What the tokenizer is loaded with.
    pub fn rendering(&self) -> Result<Rendering> {
        let kwargs = match &self.chat_template_kwargs {
            None => Default::default(),
            Some(text) => serde_json::from_str(text).map_err(|e| {
                Error::user(format!("--chat-template-kwargs: {e}"))
                    .hint(r#"write one JSON object in single quotes: '{"enable_thinking": false}'"#)
            })?,
        };
        Ok(Rendering { template: self.template.clone(), kwargs, date: None })
    }
}

/// Number formats a model can answer in.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Dtype {
    Auto,
    Bf16,
    F32,
}

impl ModelArgs {
    /// Loads tokenizer and model.
    pub fn open(&self, writing: &TemplateArgs) -> Result<(Model, ChatTokenizer)> {
        let _loading = report::spinner(&format!("loading {}", self.model.display()));
        let mut rendering = writing.rendering()?;
        if let (None, Some(adapter)) = (&rendering.template, &self.adapter) {
            rendering.template = template::own(adapter, &self.model)?;
            if let Some(own) = &rendering.template {
                report::info(format!("the adapter's own chat template is used: {}", own.display()));
            }
        }
        let tokenizer = ChatTokenizer::load_with(&self.model, &rendering)?;
        let device = models::device(&self.device)?;
        let kind = self.dtype.begin(device, &self.model)?;
        let model = models::open(&self.model, self.adapter.as_slice(), device, kind)?;
        models::open::need_finite_adapters(&model, self.adapter.as_slice())?;
        Ok((model, tokenizer))
    }

    /// The number format that `open` computes in.
    pub fn dtype(&self) -> Result<models::Dtype> {
        Ok(self.dtype.choose(models::device(&self.device)?, &self.model)?.dtype)
    }
}

impl Dtype {
    fn choose(self, device: Device, folder: &Path) -> Result<Chosen> {
        let asked = match self {
            Dtype::Auto => models::Dtype::Auto,
            Dtype::Bf16 => models::Dtype::Bf16,
            Dtype::F32 => models::Dtype::F32,
        };
        asked.choose(device, Some(folder))
    }

    /// The format to compute in with the model in `folder`; says what was chosen, and warns where it is a slow one.
    pub fn begin(self, device: Device, folder: &Path) -> Result<Kind> {
        let Chosen { dtype, why } = self.choose(device, folder)?;
        dtype::warn_of_slow_products(dtype, device)?;
        report::info(format!("arithmetic in {} ({why})", dtype::word(dtype.kind())));
        Ok(dtype.kind())
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
    .hint("use an instruct model, give a template with --template, or give plain text with: ft generate --prompt TEXT"))
}
