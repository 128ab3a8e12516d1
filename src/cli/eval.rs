//! `ft eval`: measures exact match and perplexity of a model on a file of rows.

use super::shared::model::{ModelArgs, QuantizeArgs, TemplateArgs};
use clap::Args;
use ft::error::{Error, Result};
use ft::eval::rows::EvalRow;
use ft::eval::run::{Evaluation, evaluate};
use ft::{fsutil, report};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Measure exact match and perplexity of a model on rows with answers
///
/// The model generates an answer greedily where each row has its last one; the two are compared after trimming. Loss
/// and perplexity are over the tokens that `ft train` would train on. Rows of plain text have a perplexity only.
#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// Rows in any format that training reads
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// Longest answer in tokens [default: that of the longest expected answer, plus 16]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Print the numbers as one JSON object
    #[arg(long)]
    json: bool,
    /// Write each row's prompt, expected answer and generated answer, one JSON object per line
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `ft eval`.
pub fn run(args: EvalArgs) -> Result<()> {
    let (model, tokenizer) = args.model.open(&args.template, &args.quantize)?;
    let rows = EvalRow::read(&args.data, args.rows.map(|n| n as usize), &tokenizer)?;
    let asked = rows.iter().filter(|r| r.question.is_some()).count();
    if args.out.is_some() && asked == 0 {
        return Err(Error::user(format!(
            "{}: rows of plain text have no answers to compare, so --out would be empty",
            args.data.display()
        ))
        .hint("leave out --out; loss and perplexity are printed"));
    }
    if let Some(n) = args.max_new_tokens {
        let long = rows.iter().filter_map(|r| r.question.as_ref()).filter(|a| a.expected_tokens > n).count();
        if long > 0 {
            report::warn(format!(
                "{long} of {asked} expected answers are longer than --max-new-tokens {n} and cannot be matched"
            ));
        }
    }
    let (result, answered) = evaluate(&model, &tokenizer, &rows, args.max_new_tokens)?;
    if let Some(path) = &args.out {
        fsutil::write_atomic(path, |w| {
            answered.iter().try_for_each(|a| {
                serde_json::to_writer(&mut *w, a)?;
                writeln!(w)
            })
        })?;
    }
    if args.json {
        let mut value = serde_json::to_value(&result).map_err(|e| Error::bug(format!("numbers as JSON: {e}")))?;
        value["model"] = json!(args.model.model);
        value["adapter"] = json!(args.model.adapter.folder);
        value["data"] = json!(args.data);
        println!("{value}");
    } else {
        println!("{}", report::table(&table(&result)));
    }
    Ok(())
}

fn table(e: &Evaluation) -> Vec<Vec<String>> {
    let line = |name: &str, value: String| vec![name.to_string(), value];
    let share = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.4}"));
    let interval = e.exact_match_ci.map_or(String::new(), |[a, b]| format!("  (95 % {a:.4} to {b:.4})"));
    vec![
        line("exact match", share(e.exact_match) + &interval),
        line("ignoring case", share(e.exact_match_ignoring_case)),
        line("ended by itself", share(e.stopped)),
        line("loss", format!("{:.4}", e.loss)),
        line("perplexity", format!("{:.3}", e.perplexity)),
        line("rows", format!("{} ({:.2} per second)", report::count(e.rows as u64), e.rows_per_s)),
    ]
}
