//! Reads files of rows in chunks, with the place of each row. The only folder that uses polars.
//!
//! Parquet, Arrow IPC and the fields of CSV are read by polars. JSON is not: polars infers the keys from the first rows
//! and gives them to every row, so a key that appears late (`tool_calls` in one message of many) is lost or becomes
//! null, and its errors name no line. Rows of JSON are passed on as text and parsed by the threads that tokenise them.
//! Invariant: one chunk of rows is in memory at a time, apart from what the caller keeps, whatever the size of the
//! file.

mod cells;
mod columnar;
mod csv;
mod decoder;
mod file;
mod file_list;
mod ipc;
mod layout;
mod lines;
mod parquet;
mod raw_row;
mod read;
mod schema;
mod segment;
mod tsv;
mod values;
mod write;

pub use file::{EXTENSIONS, FileKind};
pub use file_list::files;
pub use layout::layout;
pub use raw_row::{ChunkSink, ColumnSelection, RawRow, ReadCounts, RowColumns, RowPlace};
pub use read::{file_kind, for_each_chunk, for_each_selected_chunk, no_rows_error, read};
pub use segment::{FileLayout, FileSegment};
pub use write::{write_each, write_for_owner};
