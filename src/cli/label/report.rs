//! `ft label report`: shows agreement, the judges' biases, a ranking of the sources, and problems with the labels.

use super::{AggregationArg, parse_judges};
use clap::Args;
use ft::error::{Error, Result};
use ft::fsutil::{write_atomic, write_json};
use ft::label::project::snapshot::Project;
use ft::label::report::contents::LabelReport;
use ft::label::report::page::render;
use ft::label::store::Store;
use ft::report;
use ft::stats::bootstrap::{Bootstrap, Estimate};
use std::io::Write;
use std::path::PathBuf;

/// Show how reliable the project's labels are
#[derive(Args)]
pub struct ReportArgs {
    /// The project.
    project: String,
    /// Write the report as a page (.html) or as numbers (.json); may be given twice.
    #[arg(long, value_name = "FILE")]
    out: Vec<PathBuf>,
    /// Votes to use: people, machines, all, or names of judges [default: people, or all if no person has voted]
    #[arg(long, value_name = "WHO,…", value_delimiter = ',')]
    votes: Vec<String>,
    /// How votes become verdicts.
    #[arg(long, value_enum, default_value_t = AggregationArg::Majority)]
    aggregate: AggregationArg,
    /// Number of bootstrap replicates for the confidence intervals.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..))]
    replicates: u64,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `ft label report`.
pub fn run(args: &ReportArgs) -> Result<()> {
    let ending = |path: &PathBuf| path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if let Some(path) = args.out.iter().find(|p| !matches!(ending(p).as_str(), "html" | "json")) {
        return Err(Error::user(format!("{}: unknown format of a report", path.display()))
            .hint("give a name that ends in .html or .json"));
    }
    let project = Project::read(&Store::open(&args.project)?)?;
    let bootstrap = Bootstrap { replicates: args.replicates, seed: project.settings.seed };
    let judges = (!args.votes.is_empty()).then(|| parse_judges(&args.votes));
    let found = LabelReport::of(&project, judges.as_ref(), args.aggregate.into(), &bootstrap);
    for path in &args.out {
        match ending(path).as_str() {
            "json" => write_json(path, &found)?,
            _ => write_atomic(path, |out| out.write_all(render(&found).as_bytes()))?,
        }
        report::info(format!("{}: written", path.display()));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found).map_err(|e| Error::bug(format!("numbers as JSON: {e}")))?);
    } else {
        println!("{}", report::table(&table(&found)));
        for finding in &found.findings {
            report::warn(format!("{} {}", finding.what, finding.next));
        }
    }
    Ok(())
}

fn table(found: &LabelReport) -> Vec<Vec<String>> {
    let line = |name: &str, value: String| vec![name.to_string(), value];
    let estimate = |e: Estimate| {
        let interval = e.interval.map_or(String::new(), |[low, high]| format!("  (95 % {low:.3} to {high:.3})"));
        format!("{:.3}{interval}", e.value)
    };
    let (c, a) = (&found.counts, &found.agreement);
    let n = |x: usize| report::count(x as u64);
    let verdicts: Vec<String> = found.verdicts.iter().map(|(name, times)| format!("{name} {times}")).collect();
    let mut lines = vec![
        line("votes", format!("{} by {} people and {} machines", n(c.votes), c.people, c.machines)),
        line("pairs", format!("{} of {} prompts, {} judged by two or more", n(c.pairs), n(c.prompts), n(c.shared))),
        line("verdicts", verdicts.join(", ")),
    ];
    lines.extend(a.alpha_nominal.map(|e| line("alpha", estimate(e))));
    lines.extend(a.fleiss.map(|f| line("Fleiss' kappa", estimate(f.kappa))));
    lines.extend(a.raw.map(|e| line("equal votes", estimate(e))));
    lines.extend(a.self_consistency.map(|r| line("with oneself", format!("{:.3}", r.share))));
    lines.extend(found.length.map(|l| {
        let (longer, shorter) = (l.longer.share, l.shorter.share);
        line("length alone", format!("longer wins {longer:.3}, shorter wins {shorter:.3}"))
    }));
    lines.extend(found.ranking.sources.iter().map(|s| {
        line(&s.source, {
            let range =
                s.bradley_terry.interval.map_or(String::new(), |[low, high]| format!("  (95 % {low:.0} to {high:.0})"));
            format!("strength {:.0}{range}, {} wins, {} losses", s.bradley_terry.value, s.wins, s.losses)
        })
    }));
    lines.extend(found.judges.iter().filter_map(|judge| {
        let with = judge.with_verdicts?;
        let order = judge.habits.order.map_or(String::new(), |order| {
            format!(", and changes its vote with the order in {:.3}", order.flipped.share)
        });
        let agrees = format!("agrees with the verdict in {:.3} of {} pairs{order}", with.same.share, n(with.pairs));
        Some(line(&judge.habits.name, agrees))
    }));
    lines
}
