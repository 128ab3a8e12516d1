//! `ft label candidates`: generates answers to the project's prompts with a model.

use crate::cli::shared::interrupt::flag_on_interrupt;
use crate::cli::shared::model::{ModelArgs, QuantizeArgs, TemplateArgs, require_template};
use crate::cli::shared::sampling::{SamplingArgs, generation_settings};
use clap::Args;
use ft::error::{Error, Result};
use ft::generate::engine::BatchLimits;
use ft::label::project::candidates::{self, CandidateCounts, CandidatePlan};
use ft::label::project::snapshot::Project;
use ft::label::store::Store;
use ft::report;
use serde_json::json;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Let a model answer the project's prompts
///
/// Answers are stored prompt by prompt. Run the command again to continue after an interruption, or after prompts were
/// added. Run it once for each model or adapter that is to be compared.
#[derive(Args)]
pub struct CandidatesArgs {
    /// The project.
    project: String,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// Number of answers to each prompt at each temperature.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    answers: u32,
    /// Answer at each of these temperatures; each counts as a source.
    #[arg(long, value_name = "T,…", value_delimiter = ',', conflicts_with_all = ["temperature", "greedy"])]
    temperatures: Vec<f64>,
    /// Name of the source [default: model, adapter and temperature].
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Leave out answers at least this similar to another one (Jaccard index of runs of four characters, 0 to 1).
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    alike: f64,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Largest number of rows decoded together [default: as memory allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `ft label candidates`.
pub fn run(args: &CandidatesArgs) -> Result<()> {
    if !(args.alike > 0.0 && args.alike <= 1.0) {
        return Err(Error::user(format!("--alike {}: expected a share above 0, at most 1", args.alike)));
    }
    let store = Store::open(&args.project)?;
    let (model, tokenizer) = args.model.open(&args.template, &args.quantize)?;
    require_template(&tokenizer, &args.model.model)?;
    let settings = generation_settings(&args.sampling, &args.model, &tokenizer)?;
    let mut limits = BatchLimits::of(&model)?;
    limits.rows = args.batch_size.map_or(limits.rows, |n| n as usize);
    let temperatures =
        if args.temperatures.is_empty() { vec![settings.temperature] } else { args.temperatures.clone() };
    let stopped = flag_on_interrupt()?;
    let mut all = Vec::new();
    for temperature in temperatures {
        let mut settings = settings.clone();
        settings.temperature = temperature;
        settings.check()?;
        if settings.is_greedy() && args.answers > 1 {
            return Err(Error::user(format!("{} answers to a prompt would all be the same one", args.answers))
                .hint("sample with --temperature 1, or ask for one answer: -n 1"));
        }
        let source = args.source_name(temperature);
        let answers = args.answers as usize;
        let plan = CandidatePlan { source: source.clone(), answers, settings, limits, alike: args.alike };
        let project = Project::read(&store)?;
        let open = candidates::unanswered_prompts(&project, &plan).len();
        let (whole, mut done) = (project.prompts.len(), 0);
        report::info(format!("{source}: {open} of {whole} prompts to answer"));
        let bar = report::bar(open as u64, "prompts");
        let made = candidates::generate(&model, &tokenizer, &project, &plan, &mut |kept| {
            store.add_candidates(&kept)?;
            done += 1;
            bar.inc(1);
            match stopped.load(Ordering::Relaxed) {
                true => Err(Error::interrupted(format!("{source}: {done} of {open} prompts are answered and stored"))
                    .hint("run the same command again to continue from there")),
                false => Ok(()),
            }
        })?;
        bar.finish_and_clear();
        let CandidateCounts { answers, kept, empty, alike, .. } = made;
        report::info(format!(
            "{source}: {kept} of {answers} answers kept, {alike} too similar to another, {empty} empty"
        ));
        all.push(json!({ "source": source, "made": made }));
    }
    if args.json {
        println!("{}", json!({ "project": store.location(), "sources": all }));
    }
    Ok(())
}

impl CandidatesArgs {
    /// Returns the name of the source: --source, or the folders of model and adapter; then the temperature.
    fn source_name(&self, temperature: f64) -> String {
        let name = |path: &Path| path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let base = self.source.clone().unwrap_or_else(|| match &self.model.adapter.folder {
            Some(adapter) => format!("{} + {}", name(&self.model.model), name(adapter)),
            None => name(&self.model.model),
        });
        match self.source.is_some() && self.temperatures.len() < 2 {
            true => base,
            false if temperature == 0.0 => format!("{base}, greedy"),
            false => format!("{base}, T={temperature}"),
        }
    }
}
