//! `ft data scrub`: personal data replaced by pseudonyms.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use ft::data::scrub::{Kind, Names, Report, Scrubber};
use ft::data::source;
use ft::error::{Context, Error, Result};
use ft::{fsutil, report};
use serde_json::Value;
use std::path::PathBuf;

/// What is looked for, and how it is replaced; shared with `ft label import --scrub`.
#[derive(Args)]
#[command(next_help_heading = "Personal data")]
pub struct ScrubOptions {
    /// Look for these kinds only.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = kinds())]
    kinds: Vec<Kind>,
    /// Leave these kinds as they are, such as `date`.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = kinds(), conflicts_with = "kinds")]
    keep: Vec<Kind>,
    /// A list of names to look for, one a line.
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// A file with a secret: the same value then has the same pseudonym in every file that is scrubbed with it.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl ScrubOptions {
    /// Whether any of them is given.
    pub fn given(&self) -> bool {
        !self.kinds.is_empty() || !self.keep.is_empty() || self.names.is_some() || self.key_file.is_some()
    }

    /// A scrubber as asked for.
    pub fn scrubber(&self) -> Result<Scrubber> {
        let wanted = if self.kinds.is_empty() { Kind::ALL.to_vec() } else { self.kinds.clone() };
        let kinds: Vec<Kind> = wanted.into_iter().filter(|k| !self.keep.contains(k)).collect();
        let names = match &self.names {
            Some(path) => Names::read(path)?,
            None if self.kinds.contains(&Kind::Name) => {
                return Err(Error::user("--kinds name: names are found by a list").hint("give one with --names FILE"));
            }
            None => Names::default(),
        };
        let key = self.key_file.as_deref().map(fsutil::read).transpose()?;
        if key.as_ref().is_some_and(|k| k.len() < 16) {
            return Err(Error::user("--key-file: the secret is shorter than 16 bytes, and could be guessed")
                .hint("make one with: head -c 32 /dev/urandom > key"));
        }
        Ok(Scrubber::new(&kinds, names, key.as_deref()))
    }
}

/// What was found, in a few lines.
pub fn said(found: &Report) -> Vec<String> {
    let n = report::count;
    let mut lines = vec![format!("{} of {} rows changed", n(found.rows_changed), n(found.rows))];
    lines.extend(found.found.iter().map(|(kind, found)| {
        let rules: Vec<String> = found.rules.iter().map(|(rule, times)| format!("{rule} {times}")).collect();
        let rules = if *kind == Kind::National { format!(" ({})", rules.join(", ")) } else { String::new() };
        format!("  {:<15} {} times, {} different{rules}", kind.name(), n(found.times), n(found.distinct))
    }));
    lines.push(format!("not looked for, and still there where rows hold them: {}", found.not_looked_for.join("; ")));
    if found.not_looked_for.iter().any(|kind| kind.starts_with("names of people (")) {
        lines.push("a list of names is given with --names FILE; somebody should read a sample of the rows".into());
    }
    lines
}

fn kinds() -> impl TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(Kind::ALL.map(Kind::name)).map(|name| Kind::named(&name).unwrap_or(Kind::Email))
}

#[derive(Args)]
pub struct ScrubArgs {
    /// A file of rows of any format, a folder of such files, or a pattern in quotes.
    file: PathBuf,
    /// Where the rows go: .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    options: ScrubOptions,
    /// Print what was found as JSON: counts, no values.
    #[arg(long)]
    json: bool,
}

/// Runs `ft data scrub`.
pub fn run(args: ScrubArgs) -> Result<()> {
    super::convert::not_the_input(&args.file, &args.out)?;
    let mut scrubber = args.options.scrubber()?;
    let files = source::files(&args.file)?;
    source::write_each(&args.out, |put| {
        files.iter().try_for_each(|path| {
            let passage = source::for_each_chunk(path, None, |chunk| {
                chunk.into_iter().try_for_each(|raw| {
                    let line = raw.line;
                    let mut row = raw.columns(path)?;
                    scrubber.row(&mut row).context(|| format!("{}:{line}", path.display()))?;
                    put(&Value::Object(row))
                })
            });
            passage.map(drop)
        })
    })?;
    if args.json {
        println!("{}", serde_json::to_string(scrubber.report()).map_err(|e| Error::bug(format!("counts: {e}")))?);
    } else {
        said(scrubber.report()).iter().for_each(report::info);
    }
    Ok(())
}
