//! `ft data`: what is in a file of rows, before anything is trained on it.

use clap::{Args, Subcommand, ValueEnum};
use ft::data::{self, ChatTokenizer, EncodeOptions, Overflow, Record, Row, RowFormat, Supervise, quality};
use ft::error::{Error, Result};
use ft::report;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Subcommand)]
enum DataVerb {
    /// Show which format a file has, its first rows as they will be read, and every bad row with line and key.
    Inspect(InspectArgs),
}

#[derive(Args)]
struct InspectArgs {
    /// A .jsonl, .json, .csv, .parquet or .arrow/.ipc/.feather file.
    file: PathBuf,
    /// A model directory: also show the tokens, what of them is learnt, and how long the rows are.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A Jinja chat template to use instead of the model's own.
    #[arg(long, value_name = "FILE", requires = "model")]
    template: Option<PathBuf>,
    /// How rows are read; left out, it is found out.
    #[arg(long, value_enum, default_value_t = FormatArg::Auto)]
    format: FormatArg,
    /// Which tokens are learnt.
    #[arg(long, value_enum, default_value_t = SuperviseArg::Assistant, requires = "model")]
    supervise: SuperviseArg,
    /// Read only the first so many rows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rows: Option<u64>,
    /// How many rows to show.
    #[arg(long, value_name = "N", default_value_t = 2)]
    show: usize,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum FormatArg {
    Auto,
    Messages,
    Sharegpt,
    Alpaca,
    PromptCompletion,
    Text,
}

impl From<FormatArg> for RowFormat {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Auto => RowFormat::Auto,
            FormatArg::Messages => RowFormat::Messages,
            FormatArg::Sharegpt => RowFormat::Sharegpt,
            FormatArg::Alpaca => RowFormat::Alpaca,
            FormatArg::PromptCompletion => RowFormat::PromptCompletion,
            FormatArg::Text => RowFormat::Text,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum SuperviseArg {
    Assistant,
    Last,
    All,
}

impl From<SuperviseArg> for Supervise {
    fn from(arg: SuperviseArg) -> Self {
        match arg {
            SuperviseArg::Assistant => Supervise::Assistant,
            SuperviseArg::Last => Supervise::Last,
            SuperviseArg::All => Supervise::All,
        }
    }
}

/// Runs `ft data …`.
pub fn run(args: DataArgs) -> Result<()> {
    match args.verb {
        DataVerb::Inspect(args) => inspect(args),
    }
}

fn inspect(args: InspectArgs) -> Result<()> {
    let limit = args.rows.map(|n| n as usize);
    let survey = data::survey(&args.file, args.format.into(), limit, args.show)?;
    let mut out = json!({
        "file": args.file, "format": survey.format.name(), "found": survey.found, "rows": survey.rows, "blank_lines": survey.blank_lines,
        "columns": survey.columns, "unused_columns": survey.unused_columns, "bad_rows": survey.bad_rows,
        "first_rows": survey.first.iter().map(mapped).collect::<Vec<_>>(),
    });
    if !args.json {
        println!("{}", overview(&survey));
        for row in &survey.first {
            println!("\n-- row at line {}\n{}", row.line, as_text(row));
        }
    }
    if let (Some(model), true) = (&args.model, survey.bad_rows.is_empty()) {
        let tokenizer = ChatTokenizer::load(model, args.template.as_deref())?;
        let options = EncodeOptions {
            supervise: args.supervise.into(),
            max_len: usize::MAX,
            on_overflow: Overflow::Error,
            overflow_tolerance: 0.0,
        };
        let dataset = data::load(&args.file, survey.format, limit, &tokenizer, &options)?;
        let lengths: Vec<usize> = dataset.examples.iter().map(|e| e.ids.len()).collect();
        let same = quality::duplicates(&dataset.examples);
        let colour = console::colors_enabled() && !args.json;
        let shown = dataset
            .examples
            .iter()
            .take(args.show)
            .map(|e| quality::preview(e, &tokenizer, colour))
            .collect::<Result<Vec<_>>>()?;
        if args.json {
            out["tokens"] = json!({ "summary": dataset.summary, "duplicates": same, "previews": shown });
        } else {
            let mark = if colour { "green" } else { "between « and »" };
            for (example, text) in dataset.examples.iter().zip(&shown) {
                println!(
                    "\n-- example at line {}: {} tokens, {} learnt ({mark})\n{text}",
                    example.line,
                    example.ids.len(),
                    example.targets()
                );
            }
            println!(
                "\n{}\n\nlength in tokens (longest: line {})\n{}",
                dataset.summary.line(),
                dataset.summary.longest_line,
                quality::histogram(&lengths, None)
            );
            if let Some(group) = same.first() {
                println!(
                    "\n{} groups of equal rows, the first at lines {:?} ({} in all)",
                    same.len(),
                    &group[..group.len().min(5)],
                    group.len()
                );
            }
        }
        for warning in dataset.summary.warnings() {
            report::warn(warning);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&out).map_err(|e| Error::bug(e.to_string()))?);
    }
    match survey.bad_rows.as_slice() {
        [] => Ok(()),
        bad => {
            for line in bad.iter().take(20) {
                report::warn(line);
            }
            Err(Error::user(format!("{}: {} of {} rows cannot be read", args.file.display(), bad.len(), survey.rows))
                .hint("mend or remove them; --json lists them all"))
        }
    }
}

fn overview(survey: &data::Survey) -> String {
    let how = if survey.found { "found out from the columns" } else { "as asked for" };
    let mut lines = vec![
        format!("format   {} ({how})", survey.format.name()),
        format!("rows     {}", report::count(survey.rows as u64)),
        format!("columns  {}", survey.columns.join(", ")),
    ];
    if survey.blank_lines > 0 {
        lines.push(format!("blank    {} empty lines", survey.blank_lines));
    }
    if !survey.unused_columns.is_empty() {
        lines.push(format!("unused   {}", survey.unused_columns.join(", ")));
    }
    lines.join("\n")
}

/// A row as the rest of ft sees it.
fn mapped(row: &Row) -> Value {
    let mut value = match &row.record {
        Record::Messages(talk) => {
            json!({ "messages": talk.messages.iter().map(|m| m.to_json()).collect::<Vec<_>>(), "given": talk.given })
        }
        Record::Alpaca(task) => {
            json!({ "messages": task.conversation().messages.iter().map(|m| m.to_json()).collect::<Vec<_>>() })
        }
        Record::PromptCompletion { prompt, completion } => json!({ "prompt": prompt, "completion": completion }),
        Record::Text(text) => json!({ "text": text }),
    };
    if let Record::Messages(talk) = &row.record
        && let Some(tools) = &talk.tools
    {
        value["tools"] = tools.clone();
    }
    value["line"] = row.line.into();
    value
}

fn as_text(row: &Row) -> String {
    let turns = |messages: &[data::Message]| {
        let turn = |m: &data::Message| {
            let more = if m.extra.is_empty() { String::new() } else { format!(" {}", Value::Object(m.extra.clone())) };
            format!("{:>10}: {}{more}", m.role, m.content)
        };
        messages.iter().map(turn).collect::<Vec<_>>().join("\n")
    };
    match &row.record {
        Record::Messages(talk) => turns(&talk.messages),
        Record::Alpaca(task) => turns(&task.conversation().messages),
        Record::PromptCompletion { prompt, completion } => format!("    prompt: {prompt}\ncompletion: {completion}"),
        Record::Text(text) => format!("      text: {text}"),
    }
}
