//! Imports existing prompts, answers and judgements from data files and from exports of other tools.
//!
//! `file` reads each line into an [`row::ImportedRow`], with the reader of the tool that wrote it (`rows`, `argilla`,
//! `label_studio`); `insert` adds all rows of a file to a store. A row that cannot be read is an error that names its
//! line, and nothing of the file is imported.

mod argilla;
mod fields;
pub mod file;
pub mod insert;
mod label_studio;
mod pick;
pub mod row;
mod rows;
