//! Completes README.md of a run's result, the model card that hubs show, with what the run's records say.
//!
//! The export begins the file: what the result is and how it is loaded. A mark divides that text, which people may edit and
//! which is kept, from the sections here, which are written anew. header: the block of keys that hubs read. sections: the
//! text. energy: an estimate of the energy used.

mod energy;
#[cfg(test)]
mod example;
mod header;
mod sections;

use super::folder::{RunFolder, RunStatus};
use crate::error::{Error, Result};
use crate::fsutil;
use std::io::Write;
use std::path::PathBuf;

/// The file's name in a run folder.
pub const FILE: &str = "README.md";

/// Divides the text that is kept from the sections that are written anew.
const MARK: &str = "<!-- Written by ft from the records of the run. Text above this line is kept. -->";

/// Writes the model card of a finished run's result and returns its path. Fails for a run without a result.
pub fn write(run: &RunFolder) -> Result<PathBuf> {
    if run.state != RunStatus::Finished {
        return Err(Error::user(format!(
            "{}: the run is {}, so it has no result to describe",
            run.path.display(),
            run.state.name()
        ))
        .hint(format!("ft resume {}", run.path.display())));
    }
    let path = run.path.join(FILE);
    let existing = if path.exists() { fsutil::read_to_string(&path)? } else { String::new() };
    let text = complete(run, &existing);
    fsutil::write_atomic(&path, |w| w.write_all(text.as_bytes()))?;
    Ok(path)
}

/// Returns the card made of the existing text and of the records of the run.
fn complete(run: &RunFolder, existing: &str) -> String {
    let kept = existing.split(MARK).next().unwrap_or_default();
    let (keys, body) = header::split(kept);
    let body = match body.trim() {
        "" => sections::opening(run),
        body => body.to_string(),
    };
    format!("{}\n{body}\n\n{MARK}\n\n{}", header::header(run, keys), sections::sections(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_above_the_mark_is_kept_and_the_rest_written_anew() {
        let run = example::finished();
        let first = complete(&run, "---\nlibrary_name: peft\nbase_model: \"m\"\n---\n\nA LoRA adapter.\n");
        assert!(first.starts_with("---\nlibrary_name: peft\nbase_model: \"m\"\n"), "{first}");
        assert!(first.contains("\n---\n\nA LoRA adapter.\n"), "{first}");
        let edited =
            first.replace("A LoRA adapter.", "Our adapter, for the clinic.").replace("## Results", "## Nonsense");
        let again = complete(&run, &edited);
        assert_eq!(again, first.replace("A LoRA adapter.", "Our adapter, for the clinic."));
        assert_eq!(again.matches("model-index:").count(), 1);
    }

    #[test]
    fn a_result_without_text_gets_a_beginning() {
        let card = complete(&example::finished(), "");
        assert!(card.contains("library_name: ") && card.contains("pipeline_tag: text-generation"), "{card}");
        assert!(!card.contains("\n\n\n"), "{card}");
    }
}
