//! `ft label pairs`: chooses the pairs of answers to compare.

use crate::cli::shared::model::DtypeArg;
use clap::{Args, ValueEnum};
use ft::data::chat::{ChatTokenizer, TemplateOptions};
use ft::error::{Error, Result};
use ft::label::machines::reward::reward_scores;
use ft::label::project::pairs::{RewardScores, SelectionOptions, Strategy, select};
use ft::label::project::snapshot::Project;
use ft::label::store::Store;
use ft::models::{device, open_scorer};
use ft::report;
use serde_json::json;
use std::path::PathBuf;

/// Choose the pairs of answers to compare
///
/// New pairs are added to the project's; no pair is added a second time.
#[derive(Args)]
pub struct PairsArgs {
    /// The project.
    project: String,
    /// Method of choosing pairs.
    #[arg(long, value_enum, default_value = "random")]
    strategy: PairStrategyArg,
    /// Largest number of new pairs [default: random and informative: one per prompt; all: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    budget: Option<u32>,
    /// Number of people who judge each pair [default: the project's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    overlap: Option<i64>,
    /// Share of the new pairs that is shown to the same person a second time, unmarked, to measure consistency.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    repeats: f64,
    /// Informative: reward model that finds uncertain pairs, an adapter on --model or a whole model. Several times:
    /// pairs on which the models disagree count as uncertain.
    #[arg(long, value_name = "DIR")]
    reward: Vec<PathBuf>,
    /// Base model of reward models that are adapters.
    #[arg(long, value_name = "DIR", requires = "reward")]
    model: Option<PathBuf>,
    /// Device of the reward models: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Number format of the reward models
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    dtype: DtypeArg,
    /// Seed of the choice [default: the project's]
    #[arg(long)]
    seed: Option<u64>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PairStrategyArg {
    /// Random pairs, one prompt after the other.
    Random,
    /// All pairs of answers to a prompt.
    All,
    /// Pairs on which reward models are uncertain, with answers of similar length, spread over different prompts.
    Informative,
}

/// Runs `ft label pairs`.
pub fn run(args: &PairsArgs) -> Result<()> {
    if !(0.0..=1.0).contains(&args.repeats) {
        return Err(Error::user(format!("--repeats {}: expected a share from 0 to 1", args.repeats)));
    }
    if !args.reward.is_empty() && args.strategy != PairStrategyArg::Informative {
        return Err(Error::user("--reward works only with --strategy informative").hint("add --strategy informative"));
    }
    let store = Store::open(&args.project)?;
    let project = Project::read(&store)?;
    let mut said: RewardScores = Vec::new();
    for folder in &args.reward {
        let tokenizer_of = args.model.as_deref().unwrap_or(folder);
        let adapter = args.model.as_ref().map(|_| folder.as_path());
        let tokenizer = ChatTokenizer::load_for(tokenizer_of, adapter, &TemplateOptions::default())?;
        let device = device(&args.device)?;
        let kind = args.dtype.choose_kind(device, tokenizer_of)?;
        let (model, scoring) = open_scorer(tokenizer_of, adapter, device, kind)?;
        scoring.check_texts(folder, |text| tokenizer.encode_plain(text))?;
        let prompts = project.prompts_by_id();
        let answers = project.candidates.iter().filter_map(|c| Some((*prompts.get(&c.prompt)?, c)));
        said.push(reward_scores(&model, &scoring, &tokenizer, answers)?);
    }
    let strategy = match args.strategy {
        PairStrategyArg::Random => Strategy::Random,
        PairStrategyArg::All => Strategy::All,
        PairStrategyArg::Informative => Strategy::Informative,
    };
    let budget = args.budget.map(|n| n as usize);
    let wanted = SelectionOptions {
        strategy,
        budget: if strategy == Strategy::All { budget } else { budget.or(Some(project.prompts.len())) },
        overlap: args.overlap.unwrap_or(project.settings.overlap),
        repeats: args.repeats,
        seed: args.seed.unwrap_or(project.settings.seed),
    };
    let chosen = select(&project, &wanted, &said);
    if chosen.pairs.is_empty() {
        return Err(Error::user(format!("{}: there is no new pair to choose", store.location()))
            .hint("a pair needs two different answers to one prompt: ft label candidates PROJECT --model DIR -n 2"));
    }
    let added = store.add_pairs(&chosen.pairs)?;
    let repeats = store.add_pairs(&chosen.repeats(&store.pairs()?))?;
    let all = store.pairs()?.len();
    match args.json {
        true => println!(
            "{}",
            json!({ "project": store.location(), "pairs": added.new, "repeats": repeats.new, "overlap": wanted.overlap, "all": all })
        ),
        false => report::info(format!(
            "{}: {} new pairs for {} each, {} hidden repeats; {all} pairs in total",
            store.location(),
            report::count(added.new as u64),
            if wanted.overlap == 1 { "one person".into() } else { format!("{} people", wanted.overlap) },
            repeats.new,
        )),
    }
    Ok(())
}
