//! `ft label judge`: votes by machines.

use crate::cli::model::Dtype;
use clap::{Args, ValueEnum};
use ft::data::ChatTokenizer;
use ft::error::{Error, Result};
use ft::label::ballot::Judges;
use ft::label::bias::habits;
use ft::label::judge::{self, CommandJudge, Judge, LanguageJudge, Orders, RewardJudge};
use ft::label::record::Kind;
use ft::label::{Project, Store};
use ft::models::{device, open, open_scorer};
use ft::rewards::spec::CommandSpec;
use ft::{fsutil, models, report};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Let a machine judge the project's pairs
///
/// A reward model (--reward), a language model with a rubric (--model), or a program (--command). It votes under a name
/// of its own and never sees what others said. A language model and a program are asked in both orders of the answers,
/// and where these differ the vote is a tie. Votes are kept as they come: the same command goes on.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("machine").required(true).multiple(true).args(["reward", "model", "command"])))]
pub struct JudgeArgs {
    /// The project.
    project: String,
    /// A reward model: an adapter over --model, or a whole model.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    reward: Option<PathBuf>,
    /// A language model that judges; beside --reward, the base of its adapter.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    model: Option<PathBuf>,
    /// An adapter on the language model.
    #[arg(long, value_name = "DIR", requires = "model", conflicts_with = "reward")]
    adapter: Option<PathBuf>,
    /// A program and its arguments, after all other options; no shell reads them. It reads {"prompt", "a", "b"} a line
    /// and prints a, b, tie, both_bad or skip a line.
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
    command: Vec<String>,
    /// What the language model is told to look at: a file of text [default: a short rubric of ft's]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reward", "command"])]
    rubric: Option<PathBuf>,
    /// Let the language model write up to so many tokens of reasons before its verdict.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["reward", "command"])]
    reasoning: usize,
    /// Scores of a reward model closer than this are a tie.
    #[arg(long, value_name = "X", default_value_t = 0.0, requires = "reward")]
    tie_margin: f64,
    /// In which order answers are shown [default: both; a reward model looks at each alone]
    #[arg(long, value_enum, conflicts_with = "reward")]
    orders: Option<Order>,
    /// Under which name it votes [default: that of its folder or program]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// So many pairs at most.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seconds that the program may take for a batch.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, requires = "command")]
    timeout: f64,
    /// Pairs judged together.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Where a model runs: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Number format of a model
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// Print what came of it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    /// Each pair twice; opinions that differ are a tie.
    Both,
    /// Each pair once, in a drawn order.
    Drawn,
}

/// Runs `ft label judge`.
pub fn run(args: &JudgeArgs) -> Result<()> {
    let store = Store::open(&args.project)?;
    let device = device(&args.device)?;
    if let Some(reward) = &args.reward {
        let base = args.model.as_deref().unwrap_or(reward);
        let adapter = args.model.as_ref().map(|_| reward.as_path());
        let tokenizer = ChatTokenizer::load(base, None)?;
        let (model, scoring) = open_scorer(base, adapter, device, args.dtype.begin(device, base)?)?;
        scoring.check_texts(reward, |text| tokenizer.encode_plain(text))?;
        let name = json!(fsutil::absolute(reward));
        let mut judge =
            RewardJudge { model: &model, scoring: &scoring, tokenizer: &tokenizer, margin: args.tie_margin, name };
        return args.vote(&store, &mut judge, folder(reward), Orders::One);
    }
    if let Some(base) = &args.model {
        let tokenizer = ChatTokenizer::load(base, None)?;
        let model = open(base, args.adapter.as_slice(), device, args.dtype.begin(device, base)?)?;
        models::open::need_finite_adapters(&model, args.adapter.as_slice())?;
        let rubric = args.rubric.as_deref().map(fsutil::read_to_string).transpose()?;
        let name = json!({ "base": fsutil::absolute(base), "adapter": args.adapter.as_deref().map(fsutil::absolute) });
        let mut judge = LanguageJudge::new(&model, &tokenizer, rubric, args.reasoning, name)?;
        return args.vote(&store, &mut judge, folder(args.adapter.as_deref().unwrap_or(base)), args.orders(&store)?);
    }
    let spec = CommandSpec { run: args.command.clone(), timeout: args.timeout };
    let name = args.command.iter().map(|w| folder(Path::new(w))).collect::<Vec<_>>().join(" ");
    args.vote(&store, &mut CommandJudge::new(spec)?, name, args.orders(&store)?)
}

fn folder(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

impl JudgeArgs {
    fn orders(&self, store: &Store) -> Result<Orders> {
        Ok(match self.orders {
            Some(Order::Drawn) => Orders::Drawn(store.settings()?.seed),
            _ => Orders::Both,
        })
    }

    fn vote(&self, store: &Store, judge: &mut dyn Judge, name: String, orders: Orders) -> Result<()> {
        let name = self.name.clone().unwrap_or(name);
        let annotator = store.annotator(&name, judge.kind(), &judge.detail())?;
        if annotator.kind != judge.kind() || annotator.detail != judge.detail() {
            return Err(Error::user(format!("{}: `{name}` judges here already, and is something else", store.place()))
                .hint(format!("it is a {}, {}", annotator.kind, fsutil::shortened(&annotator.detail.to_string())))
                .hint("give another name: --name NAME"));
        }
        let before = Project::read(store)?;
        let mut tasks = judge::open(&before, annotator.id);
        tasks.truncate(self.limit.unwrap_or(usize::MAX));
        if tasks.is_empty() {
            report::info(format!("{}: `{name}` has judged every pair", store.place()));
        }
        let stopped = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGINT, stopped.clone())
            .map_err(|e| Error::user(format!("listening for Ctrl-C: {e}")))?;
        let bar = report::bar(tasks.len() as u64, "pairs");
        let mut done = 0;
        for part in tasks.chunks(self.batch_size as usize) {
            if stopped.load(Ordering::Relaxed) {
                bar.finish_and_clear();
                return Err(Error::interrupted(format!(
                    "`{name}`: {done} of {} pairs are judged and kept",
                    tasks.len()
                ))
                .hint("the same command goes on from there"));
            }
            store.add_votes(&judge::votes(judge, part, orders, annotator.id)?)?;
            done += part.len();
            bar.inc(part.len() as u64);
        }
        bar.finish_and_clear();
        let after = Project::read(store)?;
        let ballots = after.ballots(&Judges::Named(vec![name.clone()]));
        let Some(habits) = habits(&after, &ballots).into_iter().find(|h| h.kind != Kind::Person) else {
            return Ok(());
        };
        if self.json {
            println!("{}", json!({ "project": store.place(), "judged": tasks.len(), "judge": habits }));
            return Ok(());
        }
        let percent = |x: f64| format!("{:.0} %", 100.0 * x);
        let mut said = vec![
            format!("{} ties", habits.ties),
            format!("{} both bad", habits.both_bad),
            format!("{} skipped", habits.skips),
        ];
        said.extend(habits.order.map(|o| format!("{} changed with the order", percent(o.flipped.share))));
        said.extend(habits.longer.map(|r| format!("the longer answer in {}", percent(r.share))));
        report::info(format!("`{name}`: {} votes in all: {}", habits.votes, said.join(", ")));
        Ok(())
    }
}
