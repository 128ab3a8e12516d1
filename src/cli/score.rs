//! `ft score`: scores answers or pairs of answers with a reward model.

use super::shared::model::{ModelArgs, OneAdapter};
use clap::Args;
use ft::data::chat::{ChatTokenizer, TemplateOptions};
use ft::error::{Error, Result};
use ft::eval::score::{ScoreRow, ScoreSummary, score};
use ft::{fsutil, models, report};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Score answers, or pairs of answers, with a reward model
///
/// The reward model is a directory with a scalar head, or a base model and an adapter with such a head. Before anything
/// else, texts stored with known scores (probes) are scored: the command fails if head, adapter or base is not the
/// trained one. Each row is written with its score, or with both scores of a pair. For pairs, the accuracy is printed
/// together with the accuracy of choosing by length alone.
#[derive(Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows with answers, labelled answers or pairs, in any format that `ft train` reads
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Write each row with its score to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// Print the statistics over all rows as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `ft score`.
pub fn run(args: ScoreArgs) -> Result<()> {
    if args.out.is_dir() {
        return Err(Error::user(format!(
            "{}: is a folder, but the scores are written to one file",
            args.out.display()
        ))
        .hint("give a file, such as scores.jsonl"));
    }
    let ModelArgs { model: base, adapter: OneAdapter { folder: adapter }, device, dtype } = &args.model;
    let tokenizer = ChatTokenizer::load_for(base, adapter.as_deref(), &TemplateOptions::default())?;
    let rows = ScoreRow::read(&args.input, args.rows.map(|n| n as usize), &tokenizer)?;
    let device = models::device(device)?;
    let (model, scoring) = models::open_scorer(base, adapter.as_deref(), device, dtype.choose_kind(device, base)?)?;
    let folder = adapter.as_deref().unwrap_or(base);
    scoring.check_texts(folder, |text| tokenizer.encode_plain(text))?;
    models::open::require_finite_adapters(&model, adapter.as_slice())?;
    if scoring.probes.is_empty() {
        report::info(format!(
            "{}: has no {}, so it is not checked whether the head is the trained one",
            folder.display(),
            models::reward::FILE
        ));
    }
    if let Some(pad) = scoring.pad_token_id.filter(|id| tokenizer.stop_ids().contains(id)) {
        report::warn(format!(
            "{}: padding is `{}`, which also ends answers: scores are read at the token before it, as in transformers",
            folder.display(),
            tokenizer.token(pad).unwrap_or_default()
        ));
    }
    let bar = report::bar(rows.len() as u64, "rows");
    let (summary, lines) = score(&model, &scoring, &rows, &args.input, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    fsutil::write_atomic(&args.out, |w| lines.iter().try_for_each(|line| writeln!(w, "{line}")))?;
    if args.json {
        let mut value = serde_json::to_value(&summary).map_err(|e| Error::bug(format!("numbers as JSON: {e}")))?;
        value["model"] = json!(base);
        value["adapter"] = json!(adapter);
        value["input"] = json!(args.input);
        println!("{value}");
    } else {
        println!("{}", report::table(&table(&summary)));
    }
    Ok(())
}

fn table(s: &ScoreSummary) -> Vec<Vec<String>> {
    let line = |name: &str, value: String| vec![name.to_string(), value];
    let mut lines = Vec::new();
    if let (Some(accuracy), Some([low, high])) = (s.accuracy, s.accuracy_ci) {
        lines.push(line("accuracy", format!("{accuracy:.4}  (95 % {low:.4} to {high:.4}, {} pairs)", s.pairs)));
    }
    if let (Some(longer), Some(shorter)) = (s.longer_wins, s.shorter_wins) {
        lines.push(line("length alone", format!("longer wins {longer:.4}, shorter wins {shorter:.4}")));
    }
    if let Some(ece) = s.ece {
        lines.push(line("calibration error", format!("{ece:.4}")));
    }
    if let Some(auc) = s.auc {
        lines.push(line("good above bad", format!("{auc:.4}")));
    }
    lines.push(line("scores", format!("{:.4} ± {:.4}, {:.4} to {:.4}", s.mean, s.std, s.min, s.max)));
    lines.push(line("rows", report::count(s.rows as u64)));
    lines
}
