//! `ft label new`: creates a labelling project from prompts.

use clap::Args;
use ft::error::{Error, Result};
use ft::fsutil::read_to_string;
use ft::label::project::import::file::prompts;
use ft::label::record::answer::InsertCounts;
use ft::label::record::settings::{Criterion, ProjectSettings};
use ft::label::store::Store;
use ft::report;
use serde_json::json;
use std::path::PathBuf;

/// Create a labelling project from files of prompts.
#[derive(Args)]
pub struct NewArgs {
    /// File to create, or the URL of a PostgreSQL database: postgres://USER:PASSWORD@HOST/DATABASE.
    project: String,
    /// Rows with a prompt in any format that ft reads (.jsonl, .json, .csv, .tsv, .parquet, .arrow). A row's `id`
    /// identifies its prompt; without one, the content does.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    prompts: Vec<PathBuf>,
    /// Title shown above every task.
    #[arg(long)]
    title: Option<String>,
    /// Markdown file that says what makes an answer better.
    #[arg(long, value_name = "FILE.md")]
    guidelines: Option<PathBuf>,
    /// Criterion on which each answer is rated from 1 to BEST (default 5), such as `helpful:7`; may be given several
    /// times.
    #[arg(long, value_name = "NAME[:BEST]", value_parser = parse_criterion)]
    criterion: Vec<Criterion>,
    /// Also ask how much better the chosen answer is.
    #[arg(long)]
    strength: bool,
    /// Do not let people write a better answer.
    #[arg(long)]
    no_edit: bool,
    /// Number of people who judge each pair.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=1000))]
    overlap: i64,
    /// Seconds without activity after which a task is given to somebody else.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(i64).range(10..=86400))]
    lease: i64,
    /// Random seed of the project: which answer is on the left, which pairs are repeated, which pairs are chosen.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Parses NAME or NAME:BEST.
fn parse_criterion(text: &str) -> Result<Criterion, String> {
    let (name, best) = text.rsplit_once(':').unwrap_or((text, "5"));
    match best.parse() {
        Ok(best @ 2..=10) if !name.trim().is_empty() => Ok(Criterion { name: name.trim().into(), best }),
        _ => Err("expected NAME or NAME:BEST with BEST from 2 to 10".into()),
    }
}

/// Runs `ft label new`.
pub fn run(args: &NewArgs) -> Result<()> {
    if let Some(twice) =
        args.criterion.iter().enumerate().find(|(i, c)| args.criterion[..*i].iter().any(|d| d.name == c.name))
    {
        return Err(Error::user(format!("--criterion {}: given twice", twice.1.name)));
    }
    // Read all files before creating the project, so that a bad file leaves nothing behind.
    let mut rows = Vec::new();
    for path in &args.prompts {
        rows.extend(prompts(path)?);
    }
    let defaults = ProjectSettings::default();
    let settings = ProjectSettings {
        title: args.title.clone().unwrap_or(defaults.title),
        guidelines: args.guidelines.as_deref().map(read_to_string).transpose()?.unwrap_or_default(),
        criteria: args.criterion.clone(),
        strength: args.strength,
        edit: !args.no_edit,
        overlap: args.overlap,
        lease: args.lease,
        seed: args.seed,
    };
    let store = Store::create(&args.project, &settings)?;
    let InsertCounts { new, known } = store.add_prompts(&rows)?;
    if args.json {
        println!("{}", json!({ "project": store.location(), "prompts": new, "duplicates": known }));
        return Ok(());
    }
    let twice =
        if known > 0 { format!(" ({} duplicates left out)", report::count(known as u64)) } else { String::new() };
    report::info(format!("{}: {} prompts{twice}", store.location(), report::count(new as u64)));
    report::info(format!("next: ft label import {} ANSWERS, or ft label candidates", store.location()));
    Ok(())
}
