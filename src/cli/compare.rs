//! `ft compare`: shows two results of `ft eval --json` next to each other.

use clap::Args;
use console::style;
use ft::error::{Error, Result};
use ft::eval::run::Evaluation;
use ft::fsutil::read_json;
use ft::report;
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Compare two results of `ft eval --json` on the same rows
///
/// Shows the numbers of both and their differences, such as those of a base model and of the same model with an
/// adapter.
#[derive(Args)]
pub struct CompareArgs {
    /// The first result, such as the base model's
    before: PathBuf,
    /// The second result
    after: PathBuf,
    /// Print the differences as one JSON object
    #[arg(long)]
    json: bool,
}

/// A result as `ft eval --json` prints it.
#[derive(Deserialize)]
struct RecordedEvaluation {
    #[serde(flatten)]
    numbers: Evaluation,
    model: PathBuf,
    adapter: Option<PathBuf>,
    data: PathBuf,
}

/// A number of both results; `None`: the rows have no answers to compare.
struct ComparedNumber {
    key: &'static str,
    name: &'static str,
    digits: usize,
    values: [Option<f64>; 2],
}

/// Runs `ft compare`. Fails for results on different rows.
pub fn run(args: &CompareArgs) -> Result<()> {
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    if (before.numbers.rows, &before.data) != (after.numbers.rows, &after.data) {
        let rows = |e: &RecordedEvaluation| format!("{} rows of {}", e.numbers.rows, e.data.display());
        return Err(Error::user(format!(
            "{} is a result on {}, {} on {}",
            args.before.display(),
            rows(&before),
            args.after.display(),
            rows(&after)
        ))
        .hint("evaluate both models on the same rows"));
    }
    let numbers = compared(&before.numbers, &after.numbers);
    if args.json {
        let difference = |n: &ComparedNumber| (n.key.to_string(), json!(n.difference()));
        let differences: serde_json::Map<_, _> = numbers.iter().map(difference).collect();
        println!("{}", json!({ "rows": after.numbers.rows, "data": after.data, "differences": differences }));
        return Ok(());
    }
    println!("{} rows of {}\n", report::count(after.numbers.rows as u64), after.data.display());
    let title = |text: String| style(text).dim().to_string();
    let mut table = vec![["".into(), before.who(), after.who(), "difference".into()].map(title).to_vec()];
    table.extend(numbers.iter().map(ComparedNumber::row));
    println!("{}", report::table(&table));
    Ok(())
}

fn read(path: &Path) -> Result<RecordedEvaluation> {
    let found: Result<RecordedEvaluation> = read_json(path);
    found.map_err(|e| e.hint("such a file is made by: ft eval --model MODEL --data ROWS --json > FILE"))
}

fn compared(before: &Evaluation, after: &Evaluation) -> Vec<ComparedNumber> {
    let number = |key, name, digits, of: fn(&Evaluation) -> Option<f64>| ComparedNumber {
        key,
        name,
        digits,
        values: [of(before), of(after)],
    };
    vec![
        number("exact_match", "exact match", 4, |e| e.exact_match),
        number("exact_match_ignoring_case", "ignoring case", 4, |e| e.exact_match_ignoring_case),
        number("stopped", "ended by itself", 4, |e| e.stopped),
        number("loss", "loss", 4, |e| Some(e.loss)),
        number("perplexity", "perplexity", 3, |e| Some(e.perplexity)),
    ]
}

impl RecordedEvaluation {
    /// Returns the name of what was evaluated: the adapter, or the model if there is none.
    fn who(&self) -> String {
        self.adapter.as_ref().unwrap_or(&self.model).display().to_string()
    }
}

impl ComparedNumber {
    fn difference(&self) -> Option<f64> {
        let [before, after] = self.values;
        Some(after? - before?)
    }

    fn row(&self) -> Vec<String> {
        let digits = self.digits;
        let shown = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.digits$}"));
        let difference = self.difference().map_or("-".into(), |x| format!("{x:+.digits$}"));
        vec![self.name.into(), shown(self.values[0]), shown(self.values[1]), difference]
    }
}
