//! `ft label judge`: lets a model or a program vote on pairs.

use crate::cli::shared::interrupt::flag_on_interrupt;
use crate::cli::shared::model::DtypeArg;
use clap::{Args, ValueEnum};
use ft::data::chat::{ChatTokenizer, TemplateOptions};
use ft::error::{Error, Result};
use ft::label::machines::command::CommandJudge;
use ft::label::machines::judge;
use ft::label::machines::judge::{JudgingOrder, PairJudge};
use ft::label::machines::language::LanguageJudge;
use ft::label::machines::reward::RewardJudge;
use ft::label::project::snapshot::Project;
use ft::label::project::votes::JudgeFilter;
use ft::label::record::annotator::AnnotatorKind;
use ft::label::results::bias::habits;
use ft::label::store::Store;
use ft::models::{device, open, open_scorer};
use ft::rewards::spec::CommandSpec;
use ft::{fsutil, models, report};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Let a model or a program judge the project's pairs
///
/// The judge is a reward model (--reward), a language model with a rubric (--model), or a program (--command). It votes
/// under its own name and never sees other votes. A language model or a program is asked in both orders of the answers;
/// if it contradicts itself, the vote is a tie. Votes are stored as they come; to continue an interrupted command, run
/// it again.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("machine").required(true).multiple(true).args(["reward", "model", "command"])))]
pub struct JudgeArgs {
    /// The project.
    project: String,
    /// Reward model: an adapter on --model, or a whole model.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    reward: Option<PathBuf>,
    /// Language model that judges; with --reward, the base model of its adapter.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    model: Option<PathBuf>,
    /// Adapter on the language model.
    #[arg(long, value_name = "DIR", requires = "model", conflicts_with = "reward")]
    adapter: Option<PathBuf>,
    /// Program and its arguments, after all other options; no shell interprets them. It reads one {"prompt", "a", "b"}
    /// per line and prints a, b, tie, both_bad or skip per line.
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
    command: Vec<String>,
    /// Text file with the criteria for the language model [default: a short built-in rubric]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reward", "command"])]
    rubric: Option<PathBuf>,
    /// Let the language model write up to N tokens of reasons before its verdict.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["reward", "command"])]
    reasoning: usize,
    /// Count scores of a reward model that differ by less than X as a tie.
    #[arg(long, value_name = "X", default_value_t = 0.0, requires = "reward")]
    tie_margin: f64,
    /// Order in which the answers are shown [default: both; a reward model scores each alone]
    #[arg(long, value_enum, conflicts_with = "reward")]
    orders: Option<JudgeOrderArg>,
    /// Name of the judge [default: that of its folder or program]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Judge at most N pairs.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Time limit of the program for a batch, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, requires = "command")]
    timeout: f64,
    /// Number of pairs judged together.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Device of the model: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Number format of the model
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    dtype: DtypeArg,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum JudgeOrderArg {
    /// Show each pair in both orders; a contradiction is a tie.
    Both,
    /// Show each pair once, in a random order.
    Drawn,
}

/// Runs `ft label judge`.
pub fn run(args: &JudgeArgs) -> Result<()> {
    let store = Store::open(&args.project)?;
    let device = device(&args.device)?;
    if let Some(reward) = &args.reward {
        let base = args.model.as_deref().unwrap_or(reward);
        let adapter = args.model.as_ref().map(|_| reward.as_path());
        let tokenizer = ChatTokenizer::load_for(base, adapter, &TemplateOptions::default())?;
        let (model, scoring) = open_scorer(base, adapter, device, args.dtype.choose_kind(device, base)?)?;
        scoring.check_texts(reward, |text| tokenizer.encode_plain(text))?;
        let name = json!(fsutil::absolute(reward));
        let mut judge =
            RewardJudge { model: &model, scoring: &scoring, tokenizer: &tokenizer, margin: args.tie_margin, name };
        return args.judge_pairs(&store, &mut judge, folder_name(reward), JudgingOrder::One);
    }
    if let Some(base) = &args.model {
        let tokenizer = ChatTokenizer::load_for(base, args.adapter.as_deref(), &TemplateOptions::default())?;
        let model = open(base, args.adapter.as_slice(), device, args.dtype.choose_kind(device, base)?)?;
        models::open::require_finite_adapters(&model, args.adapter.as_slice())?;
        let rubric = args.rubric.as_deref().map(fsutil::read_to_string).transpose()?;
        let name = json!({ "base": fsutil::absolute(base), "adapter": args.adapter.as_deref().map(fsutil::absolute) });
        let mut judge = LanguageJudge::new(&model, &tokenizer, rubric, args.reasoning, name)?;
        return args.judge_pairs(
            &store,
            &mut judge,
            folder_name(args.adapter.as_deref().unwrap_or(base)),
            args.orders(&store)?,
        );
    }
    let spec = CommandSpec { run: args.command.clone(), timeout: args.timeout };
    let name = args.command.iter().map(|w| folder_name(Path::new(w))).collect::<Vec<_>>().join(" ");
    args.judge_pairs(&store, &mut CommandJudge::new(spec)?, name, args.orders(&store)?)
}

/// Returns the last part of a path.
fn folder_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

impl JudgeArgs {
    /// Returns the orders in which a language model or program is asked.
    fn orders(&self, store: &Store) -> Result<JudgingOrder> {
        Ok(match self.orders {
            Some(JudgeOrderArg::Drawn) => JudgingOrder::Random(store.settings()?.seed),
            _ => JudgingOrder::Both,
        })
    }

    /// Lets the judge vote on every open pair, a batch at a time, and reports its ties, errors of order and length
    /// bias.
    fn judge_pairs(&self, store: &Store, judge: &mut dyn PairJudge, name: String, orders: JudgingOrder) -> Result<()> {
        let name = self.name.clone().unwrap_or(name);
        let annotator = store.annotator(&name, judge.kind(), &judge.detail())?;
        if annotator.kind != judge.kind() || annotator.detail != judge.detail() {
            return Err(Error::user(format!("{}: another judge is already called `{name}`", store.location()))
                .hint(format!("it is a {}, {}", annotator.kind, fsutil::excerpt(&annotator.detail.to_string())))
                .hint("give another name: --name NAME"));
        }
        let before = Project::read(store)?;
        let mut tasks = judge::open_tasks(&before, annotator.id);
        tasks.truncate(self.limit.unwrap_or(usize::MAX));
        if tasks.is_empty() {
            report::info(format!("{}: `{name}` has judged every pair", store.location()));
        }
        let stopped = flag_on_interrupt()?;
        let bar = report::bar(tasks.len() as u64, "pairs");
        let mut done = 0;
        for part in tasks.chunks(self.batch_size as usize) {
            if stopped.load(Ordering::Relaxed) {
                bar.finish_and_clear();
                return Err(Error::interrupted(format!(
                    "`{name}`: {done} of {} pairs are judged and stored",
                    tasks.len()
                ))
                .hint("run the same command again to continue from there"));
            }
            store.add_votes(&judge::collect_votes(judge, part, orders, annotator.id)?)?;
            done += part.len();
            bar.inc(part.len() as u64);
        }
        bar.finish_and_clear();
        let after = Project::read(store)?;
        let ballots = after.resolved_votes(&JudgeFilter::Named(vec![name.clone()]));
        // `None` if the judge has no vote, because the project has no pairs.
        let habits = habits(&after, &ballots).into_iter().find(|h| h.kind != AnnotatorKind::Person);
        if self.json {
            println!("{}", json!({ "project": store.location(), "judged": tasks.len(), "judge": habits }));
            return Ok(());
        }
        let Some(habits) = habits else { return Ok(()) };
        let percent = |x: f64| format!("{:.0} %", 100.0 * x);
        let mut said = vec![
            format!("{} ties", habits.ties),
            format!("{} both bad", habits.both_bad),
            format!("{} skipped", habits.skips),
        ];
        said.extend(habits.order.map(|o| format!("{} contradicted in the other order", percent(o.flipped.share))));
        said.extend(habits.longer.map(|r| format!("the longer answer in {}", percent(r.share))));
        report::info(format!("`{name}`: {} votes in all: {}", habits.votes, said.join(", ")));
        Ok(())
    }
}
