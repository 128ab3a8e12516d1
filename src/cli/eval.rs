//! `ft eval`: runs the tasks of a suite, or measures exact match and perplexity of a model on a file of rows.

mod suite;

use super::shared::model::{ModelArgs, QuantizeArgs, TemplateArgs};
use super::shared::named_adapters::{AdaptedModel, AdapterArg, NamedAdapters};
use super::shared::suite::estimate;
use clap::Args;
use ft::error::{Error, Result};
use ft::eval::answer_metrics::AnswerMetric;
use ft::eval::match_test::MatchTest;
use ft::eval::rows::EvalRow;
use ft::eval::run::{EvalAnswer, EvalResult, EvalSubject, Evaluation, PairedDifference, evaluate_each};
use ft::generate::answering_adapter::AnsweringAdapter;
use ft::stats::bootstrap::Estimate;
use ft::{fsutil, report};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Run the tasks of a suite, or measure exact match and perplexity of a model on rows with answers
///
/// A suite is a YAML file that names tasks: choices by log-likelihood, generated answers, perplexity (docs/evaluation.md). With
/// --out DIR, every answer is kept there, and an evaluation that was interrupted goes on where it stopped.
///
/// With --data, the model generates an answer greedily where each row has its last one; the two are compared after trimming. Loss
/// and perplexity are over the tokens that `ft train` would train on. Rows of plain text have a perplexity only.
///
/// With --adapter NAME=DIR, the base and all these adapters answer every row, in the same batches; differences from the base are
/// means over rows, with 95 % paired bootstrap intervals; p is that of McNemar's exact test, corrected for the number of adapters (Holm).
#[derive(Args)]
pub struct EvalArgs {
    /// The file of a suite
    #[arg(value_name = "SUITE", required_unless_present = "data", conflicts_with_all = ["data", "rows", "max_new_tokens", "metrics"])]
    suite: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs<NamedAdapters>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// Rows in any format that training reads
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rows: Option<u32>,
    /// Longest answer in tokens [default: that of the longest expected answer, plus 16]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Further metrics of the answers: f1 and squad_em (SQuAD's words), rouge1, rouge2, rougeL, rougeLsum, bleu, chrf, chrf++, ter,
    /// edit_distance, number (the last one of the answer), and with the expected answers as classes macro_f1, weighted_f1,
    /// mcc, balanced_accuracy; pearson and spearman of the last numbers
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse_metric)]
    metrics: Vec<AnswerMetric>,
    /// Print the numbers as one JSON object
    #[arg(long)]
    json: bool,
    /// Write each row's prompt, expected answer and generated answer, one JSON object per line; of a suite results and answers, into
    /// a folder
    #[arg(long, value_name = "FILE|DIR")]
    out: Option<PathBuf>,
}

/// Runs `ft eval`.
pub fn run(args: EvalArgs) -> Result<()> {
    match (&args.suite, &args.data) {
        (Some(suite), _) => suite::run(&args, suite),
        (None, Some(data)) => run_on_rows(&args, data),
        (None, None) => Err(Error::bug("neither a suite nor rows")),
    }
}

/// Measures exact match and perplexity on the rows of a file.
fn run_on_rows(args: &EvalArgs, data: &Path) -> Result<()> {
    let adapted = args.model.open_adapted(&args.template, &args.quantize)?;
    let read = |tokenizer| EvalRow::read(data, args.rows.map(|n| n as usize), tokenizer);
    let mut rows = vec![read(&adapted.tokenizer)?];
    for number in 0..adapted.named.len() {
        rows.push(read(adapted.tokenizer_of(Some(number)))?);
    }
    let asked = rows[0].iter().filter(|r| r.question.is_some()).count();
    if args.out.is_some() && asked == 0 {
        return Err(Error::user(format!(
            "{}: rows of plain text have no answers to compare, so --out would be empty",
            data.display()
        ))
        .hint("leave out --out; loss and perplexity are printed"));
    }
    if !args.metrics.is_empty() && asked == 0 {
        return Err(Error::user(format!(
            "{}: rows of plain text have no answers, so --metrics has nothing to compare",
            data.display()
        ))
        .hint("leave out --metrics; loss and perplexity are printed"));
    }
    if let Some(n) = args.max_new_tokens {
        let long = rows[0].iter().filter_map(|r| r.question.as_ref()).filter(|a| a.expected_tokens > n).count();
        if long > 0 {
            report::warn(format!(
                "{long} of {asked} expected answers are longer than --max-new-tokens {n} and cannot be matched"
            ));
        }
    }
    let subjects: Vec<EvalSubject> = rows.iter().enumerate().map(|(i, rows)| subject(&adapted, i, rows)).collect();
    let results = evaluate_each(&adapted.model, &subjects, args.max_new_tokens)?;
    if let Some(path) = &args.out {
        write_answers(path, &adapted, &results)?;
    }
    match &results[..] {
        [result] if args.json => println!("{}", args.one_as_json(result)?),
        [(result, answers)] => {
            let mut lines = table(result);
            lines.extend(args.measured(answers).map(|(name, found)| vec![name.to_string(), estimate(found)]));
            println!("{}", report::table(&lines));
        }
        several if args.json => println!("{}", args.several_as_json(several)?),
        several => println!("{}", report::table(&args.table_of_several(&adapted, several))),
    }
    Ok(())
}

fn parse_metric(name: &str) -> std::result::Result<AnswerMetric, String> {
    AnswerMetric::named(name).ok_or_else(|| {
        let known: Vec<&str> = AnswerMetric::ALL.iter().map(|(name, _)| *name).collect();
        format!("there is no metric `{name}`; there are {}", known.join(", "))
    })
}

/// Returns what is evaluated at place `i`: the base, then the named adapters; without such, the model as it was opened.
fn subject<'a>(adapted: &'a AdaptedModel, i: usize, rows: &'a [EvalRow]) -> EvalSubject<'a> {
    let number = i.checked_sub(1);
    let adapter = match adapted.named.is_empty() {
        true => AnsweringAdapter::Active,
        false => AnsweringAdapter::Chosen(number),
    };
    EvalSubject { adapter, tokenizer: adapted.tokenizer_of(number), rows }
}

/// Writes each row's answer, one JSON object per line, with the name of its adapter if there are several.
fn write_answers(path: &Path, adapted: &AdaptedModel, results: &[EvalResult]) -> Result<()> {
    let named = |i: usize, answer: &EvalAnswer| {
        let mut row = json!(answer);
        if !adapted.named.is_empty() {
            row["adapter"] = json!(i.checked_sub(1).map(|number| &adapted.named[number].name));
        }
        row
    };
    fsutil::write_atomic(path, |w| {
        results.iter().enumerate().flat_map(|(i, (_, answered))| answered.iter().map(move |a| (i, a))).try_for_each(
            |(i, answer)| {
                serde_json::to_writer(&mut *w, &named(i, answer))?;
                writeln!(w)
            },
        )
    })
}

impl EvalArgs {
    /// Computes the metrics of --metrics.
    fn measured(&self, answers: &[EvalAnswer]) -> impl Iterator<Item = (&'static str, Option<Estimate>)> {
        let pairs: Vec<(&str, &str)> = answers.iter().map(|a| (a.text.as_str(), a.expected.as_str())).collect();
        self.metrics.iter().map(move |metric| (metric.name(), metric.measure(&pairs)))
    }

    fn result_as_json(&self, (result, answers): &EvalResult) -> Result<Value> {
        let mut value = as_json(result)?;
        if !self.metrics.is_empty() {
            value["metrics"] = self.measured(answers).map(|(name, found)| (name.to_string(), json!(found))).collect();
        }
        Ok(value)
    }

    fn one_as_json(&self, result: &EvalResult) -> Result<Value> {
        let mut value = self.result_as_json(result)?;
        value["model"] = json!(self.model.model);
        value["adapter"] = json!(self.model.adapters().first().map(|AdapterArg { folder, .. }| folder));
        value["data"] = json!(self.data);
        Ok(value)
    }

    fn several_as_json(&self, results: &[EvalResult]) -> Result<Value> {
        let (mut list, tests) = (Vec::new(), match_tests(results));
        for (i, result) in results.iter().enumerate() {
            let (mut value, answered) = (self.result_as_json(result)?, &result.1);
            let given = i.checked_sub(1).map(|number| &self.model.adapters()[number]);
            value["name"] = json!(given.and_then(|AdapterArg { name, .. }| name.as_ref()));
            value["adapter"] = json!(given.map(|AdapterArg { folder, .. }| folder));
            if i > 0 && !answered.is_empty() {
                let [exact_match, loss] = PairedDifference::between(answered, &results[0].1);
                value["difference"] = json!({ "exact_match": exact_match, "loss": loss, "test": tests[i - 1] });
            }
            list.push(value);
        }
        Ok(json!({ "model": self.model.model, "data": self.data, "results": list }))
    }

    fn table_of_several(&self, adapted: &AdaptedModel, results: &[EvalResult]) -> Vec<Vec<String>> {
        let titles = ["adapter", "exact match", "loss", "perplexity", "exact match - base", "p", "loss per row - base"];
        let mut table = vec![titles.map(String::from).to_vec()];
        table[0].extend(self.metrics.iter().map(|metric| metric.name().to_string()));
        let paired = |d: PairedDifference| format!("{:+.4}  ({:+.4} to {:+.4})", d.mean, d.interval[0], d.interval[1]);
        let tests = match_tests(results);
        for (i, (result, answered)) in results.iter().enumerate() {
            let name = i.checked_sub(1).map_or("none", |number| &adapted.named[number].name);
            let mut row = vec![
                name.to_string(),
                exact_match(result),
                format!("{:.4}", result.loss),
                format!("{:.3}", result.perplexity),
            ];
            match i > 0 && !answered.is_empty() {
                true => {
                    let [exact_match, loss] = PairedDifference::between(answered, &results[0].1).map(paired);
                    row.extend([exact_match, format!("{:.2e}", tests[i - 1].p_corrected), loss]);
                }
                false => row.extend([const { String::new() }; 3]),
            }
            row.extend(self.measured(answered).map(|(_, found)| estimate(found)));
            table.push(row);
        }
        if results.iter().all(|(_, answered)| answered.is_empty()) {
            table.iter_mut().for_each(|row| row.truncate(4));
        }
        table
    }
}

/// Tests each adapter's exact match against the base's, the first result.
fn match_tests(results: &[EvalResult]) -> Vec<MatchTest> {
    let [(_, base), others @ ..] = results else { return Vec::new() };
    MatchTest::of_each(&others.iter().map(|(_, answers)| answers.as_slice()).collect::<Vec<_>>(), base)
}

fn as_json(result: &Evaluation) -> Result<Value> {
    serde_json::to_value(result).map_err(|e| Error::bug(format!("numbers as JSON: {e}")))
}

fn share(x: Option<f64>) -> String {
    x.map_or("-".to_string(), |x| format!("{x:.4}"))
}

fn exact_match(e: &Evaluation) -> String {
    share(e.exact_match) + &e.exact_match_ci.map_or(String::new(), |[a, b]| format!("  (95 % {a:.4} to {b:.4})"))
}

fn table(e: &Evaluation) -> Vec<Vec<String>> {
    let line = |name: &str, value: String| vec![name.to_string(), value];
    vec![
        line("exact match", exact_match(e)),
        line("ignoring case", share(e.exact_match_ignoring_case)),
        line("ended by itself", share(e.stopped)),
        line("loss", format!("{:.4}", e.loss)),
        line("perplexity", format!("{:.3}", e.perplexity)),
        line("rows", format!("{} ({:.2} per second)", report::count(e.rows as u64), e.rows_per_s)),
    ]
}
