//! Arguments that name a model, its device, number format and chat template; shared by the commands that run a model.

use clap::{Args, ValueEnum};
use ft::convert::folder::template;
use ft::data::chat::{ChatTokenizer, TemplateOptions};
use ft::error::{Error, Result};
use ft::models::dtype::{self, ChosenDtype};
use ft::models::{self, Model, Storage};
use ft::nn::{BaseQuantisation, Quantisation, QuantisedFormat, TableFormat};
use ft::report;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// Names a base model and what is loaded on top of it: an adapter, or several
/// ([`NamedAdapters`](super::named_adapters::NamedAdapters)).
#[derive(Args)]
pub struct ModelArgs<A: Args = OneAdapter> {
    /// Hugging Face model directory, or GGUF file
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// What is loaded on top of it.
    #[command(flatten)]
    pub adapter: A,
    /// Device: auto (CUDA if there is a usable GPU, else CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Number format to compute in: auto takes bf16 if the device has fast bf16 products, f16 on
    /// GPUs before them, else f32; f16 needs CUDA
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub dtype: DtypeArg,
}

/// Names an adapter, if there is one.
#[derive(Args)]
pub struct OneAdapter {
    /// Adapter directory (PEFT layout) to load on top of the model
    #[arg(id = "adapter", long = "adapter", value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// Whether the base is held in 4 or 8 bits, for the commands that answer with it.
#[derive(Args, Default)]
pub struct QuantizeArgs {
    /// Quantise the linear layers while the model is loaded, for a quarter or half of the memory; answers change slightly.
    /// For an adapter: the format that it was trained over (`model.quantize` of its recipe)
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub quantize: Option<QuantizeArg>,
    /// Also quantise the embeddings and the output head, with a scale for each token (`model.quantize_embeddings`)
    #[arg(long, value_enum, value_name = "FORMAT", requires = "quantize")]
    pub quantize_embeddings: Option<QuantizeEmbeddingsArg>,
}

/// Values of --quantize.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum QuantizeArg {
    Nf4,
    Fp4,
    Int8,
    Fp8,
}

/// Values of --quantize-embeddings.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum QuantizeEmbeddingsArg {
    Int8,
}

impl QuantizeArgs {
    /// Returns how the model's weights are held. 4-bit formats are used with 8-bit scales.
    pub fn storage(&self) -> Storage {
        let format = |arg| match arg {
            QuantizeArg::Nf4 => QuantisedFormat::Nf4,
            QuantizeArg::Fp4 => QuantisedFormat::Fp4,
            QuantizeArg::Int8 => QuantisedFormat::Int8,
            QuantizeArg::Fp8 => QuantisedFormat::Fp8,
        };
        let embeddings = self.quantize_embeddings.map(|arg| match arg {
            QuantizeEmbeddingsArg::Int8 => TableFormat::Int8,
        });
        self.quantize.map_or(Storage::Auto, |arg| {
            Storage::Quantised(BaseQuantisation { linear: Quantisation::new(format(arg), true), embeddings })
        })
    }
}

/// Names the chat template and its variables.
#[derive(Args, Default)]
pub struct TemplateArgs {
    /// Chat template (Jinja) to use instead of the model's default: a file, or the name of one of the model's templates
    #[arg(long, value_name = "FILE|NAME")]
    pub template: Option<PathBuf>,
    /// Variables of the chat template, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON")]
    pub chat_template_kwargs: Option<String>,
}

impl TemplateArgs {
    /// Returns the template and variables to load the tokenizer with. Fails if the variables are not a JSON object.
    pub fn rendering(&self) -> Result<TemplateOptions> {
        let kwargs = match &self.chat_template_kwargs {
            None => Default::default(),
            Some(text) => serde_json::from_str(text).map_err(|e| {
                Error::user(format!("--chat-template-kwargs: {e}"))
                    .hint(r#"write one JSON object in single quotes: '{"enable_thinking": false}'"#)
            })?,
        };
        Ok(TemplateOptions { template: self.template.clone(), kwargs, date: None })
    }
}

/// Values of --dtype for commands that run a model.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DtypeArg {
    Auto,
    Bf16,
    F16,
    F32,
}

impl ModelArgs {
    /// Loads model and tokenizer, and reports the number format. Without --template, an adapter's own chat template is
    /// used.
    pub fn open(&self, writing: &TemplateArgs, quantize: &QuantizeArgs) -> Result<(Model, ChatTokenizer)> {
        let _loading = report::spinner(&format!("loading {}", self.model.display()));
        let tokenizer = self.tokenizer(writing, self.adapter.folder.as_deref())?;
        Ok((self.open_model(self.adapter.folder.as_slice(), quantize)?, tokenizer))
    }
}

impl<A: Args> ModelArgs<A> {
    /// Loads the tokenizer with which an adapter answers, or the base without one. Without --template, the adapter's own
    /// chat template is used.
    pub fn tokenizer(&self, writing: &TemplateArgs, adapter: Option<&Path>) -> Result<ChatTokenizer> {
        let mut rendering = writing.rendering()?;
        if let (None, Some(adapter)) = (&rendering.template, adapter) {
            rendering.template = template::adapter_template(adapter, &self.model)?;
            if let Some(own) = &rendering.template {
                report::info(format!("using the adapter's own chat template: {}", own.display()));
            }
        }
        ChatTokenizer::load_for(&self.model, adapter, &rendering)
    }

    /// Loads the model with these adapters, and reports the number format.
    pub fn open_model(&self, adapters: &[PathBuf], quantize: &QuantizeArgs) -> Result<Model> {
        let device = models::device(&self.device)?;
        let kind = self.dtype.choose_kind(device, &self.model)?;
        let model = models::open_stored(&self.model, adapters, device, kind, quantize.storage())?;
        if let Some(text) = model.describe_quantisation() {
            report::info(text);
        }
        models::open::require_finite_adapters(&model, adapters)?;
        Ok(model)
    }

    /// Returns the number format that `open` computes in.
    pub fn dtype(&self) -> Result<models::Dtype> {
        Ok(self.dtype.choose(models::device(&self.device)?, &self.model)?.dtype)
    }
}

impl DtypeArg {
    fn choose(self, device: Device, folder: &Path) -> Result<ChosenDtype> {
        let asked = match self {
            DtypeArg::Auto => models::Dtype::Auto,
            DtypeArg::Bf16 => models::Dtype::Bf16,
            DtypeArg::F16 => models::Dtype::F16,
            DtypeArg::F32 => models::Dtype::F32,
        };
        asked.choose(device, Some(folder))
    }

    /// Chooses the format to compute in with the model in `folder`, reports the choice, and warns if it is slow here.
    pub fn choose_kind(self, device: Device, folder: &Path) -> Result<Kind> {
        let ChosenDtype { dtype, why } = self.choose(device, folder)?;
        dtype::warn_of_slow_products(dtype, device)?;
        report::info(format!("arithmetic in {} ({why})", dtype::kind_name(dtype.kind())));
        Ok(dtype.kind())
    }
}

/// Fails if the tokenizer has no chat template, which conversations need.
pub fn require_template(tokenizer: &ChatTokenizer, model: &Path) -> Result<()> {
    if tokenizer.has_template() {
        return Ok(());
    }
    Err(Error::user(format!("{}: the model has no chat template, which conversations need", model.display())).hint(
        "use an instruct model, give a template with --template, or continue plain text: ft generate --prompt TEXT",
    ))
}
