//! What a row says: from the columns of a raw row to a [`Record`], whatever the format of the row.
//!
//! `row_reader` is the entry point: it detects the format of a file once (`detect`, from the columns that each `format`
//! reads) and then reads every row as a record (`read`). `record_reader` reads single columns by name and type;
//! `messages`, `answers`, `dialogue`, `verdict` and `json_text` read the parts that several formats share. `record` and
//! `conversation` have the types of the results. `convert` writes a record as a row of another format. `source_spec`
//! has the sources of a recipe, `row_template` texts made of columns, for evaluation. Nothing here depends on tokens.

mod answers;
mod conversation;
mod convert;
mod detect;
mod dialogue;
mod format;
mod json_text;
mod messages;
mod read;
mod record;
mod record_reader;
mod row_reader;
mod row_template;
mod source_spec;
mod verdict;

pub use conversation::{ChatMessage, Conversation};
pub use convert::{TargetFormat, convert_record};
pub use detect::{RowPurpose, detect_format};
pub use format::{RowFormat, unused_columns, used_columns};
pub use read::read_record;
pub use record::{AlpacaRow, AnswerContent, JudgedAnswer, Preference, PromptContent, Record, RecordRow};
pub use row_reader::{RowReader, read_rows};
pub use row_template::RowTemplate;
pub use source_spec::{SourceList, SourceSpec};
