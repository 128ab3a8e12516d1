//! Looks at data before a run: the rows of a file, lengths, duplicates, overlap of splits, examples with their mask.

mod duplicates;
mod histogram;
mod preview;
mod survey;

pub use duplicates::{Duplicates, HashedItems, SplitOverlap, find_duplicates, find_overlap};
pub use histogram::histogram;
pub use preview::preview;
pub use survey::{FileSurvey, survey_file};
