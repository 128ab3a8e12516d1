//! `ft generate`: answers prompts from the command line or from a file.

mod job;
mod prompts;
mod timings;

use super::shared::beams::BeamArgs;
use super::shared::cuda_graphs::CudaGraphsArgs;
use super::shared::model::{ModelArgs, QuantizeArgs, TemplateArgs, require_template};
use super::shared::model_files::hash_files;
use super::shared::named_adapters::{AdapterArg, NamedAdapters};
use super::shared::sampling::{GenerationChoice, SamplingArgs, report_choices};
use clap::Args;
use ft::data::chat::is_template_name;
use ft::error::{Error, Result};
use ft::fsutil;
use ft::generate::engine::BatchLimits;
use job::GenerationJob;
use prompts::PromptReader;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use timings::PassTimings;

/// Continue prompts, or answer a file of prompts
///
/// Settings that are not given come from the model's generation_config.json. With --out FILE, answers are appended to
/// FILE.partial as they finish, and FILE is written at the end; to continue an interrupted command, run it again.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("question").required(true).args(["prompt", "input"])))]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs<NamedAdapters>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// The text to continue; may be given several times
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File of rows with `prompt` (text or messages) or `messages`. With --adapter NAME=DIR, the column `adapter` names the one
    /// that answers a row; a row without it is answered by the base
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Write the answers to --input to this file, one JSON object per line
    #[arg(long, visible_alias = "output", value_name = "FILE", requires = "input", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// In rows that end with the assistant's turn, drop that turn and generate another
    #[arg(long, requires = "input")]
    drop_answer: bool,
    /// Send each text prompt as a user's turn, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// System message before each text prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Text that every answer begins with
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    beams: BeamArgs,
    #[command(flatten)]
    graphs: CudaGraphsArgs,
    /// Largest number of rows decoded together [default: as memory allows, at most 64 on the CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Print one JSON object per answer
    #[arg(long)]
    json: bool,
    /// Add each token and its log-probability to the JSON
    #[arg(long)]
    logprobs: bool,
    /// Write the duration of each forward pass (prompts, next tokens), one JSON object per line; totals go to stderr
    #[arg(long, value_name = "FILE")]
    timings: Option<PathBuf>,
}

/// Runs `ft generate`.
pub fn run(args: GenerateArgs) -> Result<()> {
    if args.input.is_some() && args.out.is_none() && !args.json {
        return Err(Error::user("--input needs --out FILE, or --json to print the answers"));
    }
    if args.logprobs && !args.json && args.out.is_none() {
        return Err(Error::user("--logprobs adds to the JSON output").hint("add --json, or --input FILE --out FILE"));
    }
    if args.input.is_none() && args.model.adapters().iter().any(|adapter| adapter.name.is_some()) {
        return Err(Error::user("--adapter NAME=DIR needs --input, whose rows name their adapter")
            .hint("for --prompt give one adapter without a name: --adapter DIR"));
    }
    let adapted = args.model.open_adapted(&args.template, &args.quantize)?;
    let mut chosen = args.sampling.choose(&args.model.model, &adapted.tokenizer, Some(&args.beams))?;
    chosen.settings.log_probs = args.logprobs;
    report_choices(&chosen);
    if args.timings.is_some() && chosen.beams.is_some() {
        return Err(Error::user("--timings cannot be combined with beam search")
            .hint("leave out --timings, or set --num-beams 1"));
    }
    if args.graphs.asked() && chosen.beams.is_some() {
        return Err(Error::user("--cuda-graphs cannot be combined with beam search: beams come and go at every step")
            .hint("leave out --cuda-graphs, or set --num-beams 1"));
    }
    let _stream = args.graphs.begin(&adapted.model)?;
    if args.chat {
        adapted.tokenizers().try_for_each(|tokenizer| require_template(tokenizer, &args.model.model))?;
    }
    let reader = PromptReader {
        adapted: &adapted,
        tokenizer: &adapted.tokenizer,
        chat: args.chat,
        system: args.system.as_deref(),
        prefix: args.prefix.as_deref(),
        drop_answer: args.drop_answer,
    };
    let questions = match &args.input {
        Some(path) => reader.read_file(path)?,
        None => args.prompt.iter().map(|text| reader.read_text(text)).collect::<Result<_>>()?,
    };
    let mut limits = BatchLimits::of(&adapted.model)?;
    if let Some(n) = args.batch_size {
        limits.rows = n as usize;
    }
    let answers = chosen.answers;
    let timings = RefCell::new(PassTimings::default());
    let work =
        GenerationJob { adapted: &adapted, questions: &questions, chosen: &chosen, limits, answers, timings: &timings };
    match (&args.input, &args.out) {
        (Some(input), Some(out)) => work.write_answers(out, &args.fingerprint(input, &chosen)?),
        _ if args.json => work.print_json(),
        _ => work.print_text(),
    }?;
    args.timings.as_ref().map_or(Ok(()), |path| timings.borrow().finish(path))
}

impl GenerateArgs {
    /// Returns everything that the answers depend on, including the contents of model and adapter. A partial file is
    /// continued only if all of it is equal.
    fn fingerprint(&self, input: &Path, chosen: &GenerationChoice) -> Result<Value> {
        let adapters = match self.model.adapters() {
            [] => Value::Null,
            [AdapterArg { name: None, folder }] => json!(fsutil::absolute(folder)),
            several => several
                .iter()
                .map(|AdapterArg { name, folder }| (name.clone().unwrap_or_default(), json!(fsutil::absolute(folder))))
                .collect(),
        };
        let mut all = json!({
            "model": fsutil::absolute(&self.model.model),
            "adapter": adapters,
            "dtype": format!("{:?}", self.model.dtype()?),
            "input": fsutil::sha256(input)?,
            "chat": self.chat,
            "system": self.system,
            "prefix": self.prefix,
            "template": self.template.template.as_deref().filter(|t| !is_template_name(t)).map(fsutil::sha256).transpose()?
                .or_else(|| self.template.template.as_ref().map(|name| name.display().to_string())),
            "chat_template_kwargs": self.template.chat_template_kwargs,
            "settings": format!("{:?}", chosen.settings),
            "beams": format!("{:?}", chosen.beams),
            "answers": chosen.answers,
        });
        if let Some(format) = self.quantize.storage().quantisation() {
            all["quantize"] = format!("{:?}", format.linear).into();
            if let Some(tables) = format.embeddings {
                all["quantize_embeddings"] = tables.name().into();
            }
        }
        if self.drop_answer {
            all["drop_answer"] = true.into();
        }
        let named = |AdapterArg { name, folder }: &AdapterArg| match name {
            Some(name) => (format!("adapter {name}"), folder.clone()),
            None => ("adapter".to_string(), folder.clone()),
        };
        let model = ("model".to_string(), self.model.model.clone());
        for (kind, folder) in std::iter::once(model).chain(self.model.adapters().iter().map(named)) {
            for (name, sha256) in hash_files(&folder)? {
                all[format!("{kind}/{name}")] = sha256.into();
            }
        }
        Ok(all)
    }
}
