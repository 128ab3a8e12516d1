//! `ft data scrub`: replaces personal data in rows with pseudonyms.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use ft::data::source;
use ft::error::{Context, Error, Result};
use ft::scrub::{NameList, PersonalDataKind, ScrubReport, Scrubber};
use ft::{fsutil, report};
use serde_json::Value;
use std::path::PathBuf;

/// Options that say what is searched for and how it is replaced; shared with `ft label import --scrub`.
#[derive(Args)]
#[command(next_help_heading = "Personal data")]
pub struct ScrubRuleArgs {
    /// Search for these kinds only.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = kinds())]
    kinds: Vec<PersonalDataKind>,
    /// Do not replace these kinds, such as `date`.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = kinds(), conflicts_with = "kinds")]
    keep: Vec<PersonalDataKind>,
    /// File with names to search for, one per line.
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// File with a secret key (at least 16 bytes): with the same key, a value has the same pseudonym in every file.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl ScrubRuleArgs {
    /// Returns true if any of these options is given.
    pub fn any_given(&self) -> bool {
        !self.kinds.is_empty() || !self.keep.is_empty() || self.names.is_some() || self.key_file.is_some()
    }

    /// Builds the scrubber that the options describe. Fails if --kinds name has no --names, or the key is too short.
    pub fn scrubber(&self) -> Result<Scrubber> {
        let wanted = if self.kinds.is_empty() { PersonalDataKind::ALL.to_vec() } else { self.kinds.clone() };
        let kinds: Vec<PersonalDataKind> = wanted.into_iter().filter(|k| !self.keep.contains(k)).collect();
        let names = match &self.names {
            Some(path) => NameList::read(path)?,
            None if self.kinds.contains(&PersonalDataKind::Name) => {
                return Err(
                    Error::user("--kinds name: names can be found only by a list").hint("give one with --names FILE")
                );
            }
            None => NameList::default(),
        };
        let key = self.key_file.as_deref().map(fsutil::read).transpose()?;
        if key.as_ref().is_some_and(|k| k.len() < 16) {
            return Err(Error::user("--key-file: the key is shorter than 16 bytes and could be guessed")
                .hint("make one with: head -c 32 /dev/urandom > key"));
        }
        Ok(Scrubber::new(&kinds, names, key.as_deref()))
    }
}

/// Returns the lines that report what was found and what was not searched for.
pub fn report_lines(found: &ScrubReport) -> Vec<String> {
    let n = report::count;
    let mut lines = vec![format!("{} of {} rows changed", n(found.rows_changed), n(found.rows))];
    lines.extend(found.found.iter().map(|(kind, found)| {
        let rules: Vec<String> = found.rules.iter().map(|(rule, times)| format!("{rule} {times}")).collect();
        let rules =
            if *kind == PersonalDataKind::National { format!(" ({})", rules.join(", ")) } else { String::new() };
        format!("  {:<15} {} times, {} different{rules}", kind.name(), n(found.times), n(found.distinct))
    }));
    lines.push(format!(
        "not looked for, and still in the rows if they contain any: {}",
        found.not_looked_for.join("; ")
    ));
    if found.not_looked_for.iter().any(|kind| kind.starts_with("names of people (")) {
        lines.push("give a list of names with --names FILE, and have somebody read a sample of the rows".into());
    }
    lines
}

fn kinds() -> impl TypedValueParser<Value = PersonalDataKind> {
    PossibleValuesParser::new(PersonalDataKind::ALL.map(PersonalDataKind::name))
        .map(|name| PersonalDataKind::named(&name).unwrap_or(PersonalDataKind::Email))
}

#[derive(Args)]
pub struct ScrubArgs {
    /// A data file of any format, a folder of data files, or a quoted pattern.
    file: PathBuf,
    /// File to write: .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    options: ScrubRuleArgs,
    /// Print what was found as JSON: counts only, no values.
    #[arg(long)]
    json: bool,
}

/// Runs `ft data scrub`.
pub fn run(args: ScrubArgs) -> Result<()> {
    super::convert::check_not_input(&args.file, &args.out)?;
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
        report_lines(scrubber.report()).iter().for_each(report::info);
    }
    Ok(())
}
