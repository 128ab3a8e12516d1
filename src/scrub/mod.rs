//! Finds personal data in the texts of rows and replaces it by pseudonyms.
//!
//! Personal data is found by its form (an e-mail address, a valid check digit, a word next to a number) or in a list of
//! names. The same value gets the same pseudonym everywhere. Pseudonyms depend on a key, so that without the key nobody
//! can test which value belongs to a pseudonym. Invariant: the result contains no value that was found, the report
//! contains no values at all, and scrubbing a result again changes nothing. Limit: not all personal data is found;
//! names outside the list stay.

mod check;
mod find;
mod kind;
mod names;
mod rules;
mod scrubber;

pub use kind::PersonalDataKind;
pub use names::NameList;
pub use scrubber::{FindingCounts, ScrubReport, Scrubber};

use crate::error::{Error, Result};

/// Returns the personal data of these kinds that is in a text, as kind and value; all spellings of a value are equal.
///
/// Errors: a pattern gives up on the text.
pub fn personal_data(text: &str, kinds: &[PersonalDataKind]) -> Result<Vec<(PersonalDataKind, String)>> {
    let found = find::find(text, kinds, &NameList::default())
        .map_err(|e| Error::user(format!("a text cannot be searched for personal data: {e}")))?;
    Ok(found.into_iter().map(|finding| (finding.kind, finding.value)).collect())
}
