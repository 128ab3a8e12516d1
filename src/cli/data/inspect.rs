//! `ft data inspect`: shows a file's format, its rows as ft reads them, their tokens, and which tokens are trained on.

use super::ReadArgs;
use crate::cli::shared::model::TemplateArgs;
use clap::{Args, ValueEnum};
use ft::data::cache::{CacheChoice, TokenCache};
use ft::data::chat::ChatTokenizer;
use ft::data::dataset::{Dataset, DatasetItem, EncodeOptions, Overflow};
use ft::data::encode::{Example, PairExample, PromptExample, Supervise, UnpairedExample};
use ft::data::inspect::{self, FileSurvey, survey_file};
use ft::data::rows::{Record, RecordRow, RowFormat, SourceList, TargetFormat, convert_record};
use ft::data::source;
use ft::error::{Error, Result};
use ft::report;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct InspectArgs {
    /// A .jsonl, .json, .csv, .tsv, .parquet or .arrow/.ipc/.feather file, a folder of such files, or a quoted pattern.
    file: PathBuf,
    /// Model directory or GGUF file: also show the tokens, which of them are trained on, and the lengths of the rows.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// Which tokens are trained on: those of all the assistant's turns, of the last one, or all.
    #[arg(long, value_enum, default_value_t = SuperviseArg::Assistant, requires = "model")]
    supervise: SuperviseArg,
    /// Number of rows to show.
    #[arg(long, value_name = "N", default_value_t = 2)]
    show: usize,
    /// Neither read nor write the cache of token ids.
    #[arg(long, requires = "model")]
    no_cache: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
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

/// Runs `ft data inspect`.
pub fn run(args: InspectArgs) -> Result<()> {
    if args.model.is_none() && (args.template.template.is_some() || args.template.chat_template_kwargs.is_some()) {
        return Err(Error::user(
            "--template and --chat-template-kwargs need --model DIR, whose tokenizer renders the rows",
        ));
    }
    let spec = args.read.source(&args.file);
    let files = source::files(&args.file)?;
    let surveys = files.iter().map(|f| survey_file(f, &spec, args.show)).collect::<Result<Vec<_>>>()?;
    let bad: usize = surveys.iter().map(|s| s.bad).sum();
    let mut out = match surveys.as_slice() {
        [one] => as_json(one),
        several => json!({ "files": several.iter().map(as_json).collect::<Vec<_>>() }),
    };
    if !args.json {
        for survey in &surveys {
            println!("{}", overview(survey, surveys.len() > 1));
            for row in &survey.first {
                println!("\n-- row at line {}\n{}", row.line, report::for_stdout(&as_text(row)));
            }
        }
    }
    if args.model.is_some() && bad == 0 {
        let kinds = by_item(&surveys);
        out["tokens"] = match kinds.as_slice() {
            [(item, _)] => args.tokenise(*item, SourceList(vec![spec]))?,
            several => {
                let parts = several.iter().map(|(item, files)| {
                    let sources = files.iter().map(|file| args.read.source(file)).collect();
                    let mut tokens = args.tokenise(*item, SourceList(sources))?;
                    tokens["files"] = json!(files);
                    Ok(tokens)
                });
                parts.collect::<Result<Vec<_>>>()?.into()
            }
        };
    }
    if args.json {
        let text = serde_json::to_string_pretty(&out).map_err(|e| Error::bug(e.to_string()))?;
        println!("{}", ft::json::restore_numbers(text));
    }
    if bad == 0 {
        return Ok(());
    }
    surveys.iter().flat_map(|s| &s.bad_rows).take(20).for_each(report::warn);
    let rows: usize = surveys.iter().map(|s| s.rows).sum();
    Err(Error::user(format!("{}: {bad} of {rows} rows cannot be read", args.file.display()))
        .hint("correct or remove them; --json lists all, `ft data convert --drop-bad` leaves them out"))
}

/// What a row becomes when it is tokenised.
#[derive(Clone, Copy, PartialEq)]
enum RowItem {
    Example,
    Pair,
    Unpaired,
    Prompt,
}

/// Groups the files by what their rows become, because a data set holds items of one kind.
fn by_item(surveys: &[FileSurvey]) -> Vec<(RowItem, Vec<&Path>)> {
    let mut groups: Vec<(RowItem, Vec<&Path>)> = Vec::new();
    for survey in surveys {
        let item = match survey.format {
            RowFormat::Preference | RowFormat::Hh => RowItem::Pair,
            RowFormat::Unpaired => RowItem::Unpaired,
            RowFormat::Prompt => RowItem::Prompt,
            _ => RowItem::Example,
        };
        match groups.iter_mut().find(|(known, _)| *known == item) {
            Some((_, files)) => files.push(&survey.path),
            None => groups.push((item, vec![&survey.path])),
        }
    }
    groups
}

impl InspectArgs {
    /// Tokenises the rows of `sources` as `item`, prints the result and returns it as JSON.
    fn tokenise(&self, item: RowItem, sources: SourceList) -> Result<Value> {
        match item {
            RowItem::Example => inspect_tokens::<Example>(self, &sources),
            RowItem::Pair => inspect_tokens::<PairExample>(self, &sources),
            RowItem::Unpaired => inspect_tokens::<UnpairedExample>(self, &sources),
            RowItem::Prompt => inspect_tokens::<PromptExample>(self, &sources),
        }
    }
}

/// Tokenises the rows, prints the first ones and the summary, and returns the same as JSON.
fn inspect_tokens<T: DatasetItem>(args: &InspectArgs, sources: &SourceList) -> Result<Value> {
    let Some(model) = &args.model else { return Ok(Value::Null) };
    let tokenizer = ChatTokenizer::load_with(model, &args.template.rendering()?)?;
    let options = EncodeOptions {
        supervise: args.supervise.into(),
        max_len: u32::MAX as usize,
        on_overflow: Overflow::Error,
        overflow_tolerance: 0.0,
    };
    let cache = TokenCache::new(if args.no_cache { &CacheChoice::Off } else { &CacheChoice::Auto })?;
    let dataset: Dataset<T> = Dataset::open(sources, &tokenizer, &options, &cache)?;
    let same = inspect::find_duplicates(&dataset);
    let colour = console::colors_enabled() && !args.json;
    let items = dataset.iter().take(args.show).collect::<Result<Vec<T>>>()?;
    let examples: Vec<Example> = items.iter().flat_map(DatasetItem::to_examples).collect();
    let shown = examples.iter().map(|e| inspect::preview(e, &tokenizer, colour)).collect::<Result<Vec<_>>>()?;
    let summary = &dataset.summary;
    if !args.json {
        let mark = if colour { "green" } else { "between « and »" };
        for (example, text) in examples.iter().zip(&shown) {
            let (n, learnt) = (example.ids.len(), example.target_count());
            println!("\n-- example at line {}: {n} tokens, {learnt} trained on ({mark})\n{text}", example.line);
        }
        println!(
            "\n{}\n\nlength in tokens (longest: line {})\n{}",
            summary.line(),
            summary.longest_line,
            inspect::histogram(dataset.lengths(), None)
        );
        if let Some(group) = same.first.first() {
            let lines = group.join(", ");
            println!(
                "\n{} groups of duplicates ({} rows could be removed), first group: lines {lines}",
                same.groups, same.superfluous
            );
        }
    }
    summary.warnings().iter().for_each(report::warn);
    Ok(json!({ "summary": summary, "duplicates": same, "previews": shown }))
}

fn as_json(survey: &FileSurvey) -> Value {
    json!({
        "file": survey.path, "format": survey.format.name(), "found": survey.format_detected, "rows": survey.rows,
        "blank_lines": survey.blank_lines, "columns": survey.columns.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "used_columns": survey.used_columns, "unused_columns": survey.unused_columns,
        "filled": survey.columns.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "bad": survey.bad, "bad_rows": survey.bad_rows,
        "first_rows": survey.first.iter().map(canonical_row).collect::<Vec<_>>(),
    })
}

fn overview(survey: &FileSurvey, named: bool) -> String {
    let how = if survey.format_detected { "detected from the columns" } else { "given by --format" };
    let good = survey.rows - survey.bad;
    let column = |(name, filled): &(String, usize)| match good.saturating_sub(*filled) {
        0 => name.clone(),
        missing => format!("{name} (missing or null in {} rows)", report::count(missing as u64)),
    };
    let mut lines = vec![
        format!("format   {} ({how})", survey.format.name()),
        format!("rows     {}", report::count(survey.rows as u64)),
        format!("columns  {}", survey.columns.iter().map(column).collect::<Vec<_>>().join(", ")),
        format!("used     {}", survey.used_columns.join(", ")),
    ];
    if named {
        lines.insert(0, format!("\nfile     {}", survey.path.display()));
    }
    if survey.blank_lines > 0 {
        lines.push(format!("blank    {} empty lines", survey.blank_lines));
    }
    if !survey.unused_columns.is_empty() {
        lines.push(format!("unused   {}", survey.unused_columns.join(", ")));
    }
    lines.join("\n")
}

/// Returns a row under the column names of the format that it was read as.
fn canonical_row(row: &RecordRow) -> Value {
    let target = match &row.record {
        Record::Messages(_) | Record::Alpaca(_) => TargetFormat::Messages,
        Record::PromptCompletion { .. } => TargetFormat::PromptCompletion,
        Record::Prompt(_) => TargetFormat::Prompt,
        Record::Preference(_) => TargetFormat::Preference,
        Record::Unpaired(_) => TargetFormat::Unpaired,
        Record::Text(text) => return json!({ "text": text, "line": row.line }),
    };
    let mut value =
        convert_record(&row.record, target).ok().and_then(|rows| rows.into_iter().next()).unwrap_or_default();
    if let Record::Messages(talk) = &row.record {
        value["given"] = talk.prompt_len.into();
    }
    value["line"] = row.line.into();
    value
}

fn as_text(row: &RecordRow) -> String {
    let Value::Object(columns) = canonical_row(row) else { return String::new() };
    let turn = |m: &Value| {
        let Value::Object(mut m) = m.clone() else { return m.to_string() };
        let role = m.shift_remove("role").unwrap_or_default();
        let content = m.shift_remove("content").unwrap_or_default();
        let content = content.as_str().map_or_else(|| content.to_string(), str::to_string);
        let more = if m.is_empty() { String::new() } else { format!(" {}", Value::Object(m)) };
        format!("{:>10}: {content}{more}", role.as_str().unwrap_or_default())
    };
    let mut lines = Vec::new();
    for (name, value) in columns.iter().filter(|(name, _)| !matches!(name.as_str(), "line" | "given")) {
        match value {
            Value::Array(turns) if turns.iter().all(|t| t.get("role").is_some()) => {
                lines.extend((columns.len() > 3 || name != "messages").then(|| format!("  [{name}]")));
                lines.extend(turns.iter().map(turn));
            }
            Value::String(text) => lines.push(format!("{name:>10}: {text}")),
            other => lines.push(format!("{name:>10}: {other}")),
        }
    }
    ft::json::restore_numbers(lines.join("\n"))
}
