//! Turns decoded columns into rows. Shared by the files that have columns: Parquet, Arrow IPC, CSV.
//!
//! Columns are decoded to Arrow arrays, which `cells` converts to JSON. polars' own column type is not used: without
//! features that multiply its build time it panics on categories, decimals, dates and small integers, and it does not
//! keep which text is JSON. Columns that are not selected are never decoded, whatever their type.

use super::cells::cell_to_json;
use super::decoder::catch_decoder_panic;
use super::raw_row::{CHUNK_ROWS, ChunkSink, ColumnSelection, RawRow, RowBody, RowColumns, RowPlace};
use crate::error::{Error, Result};
use polars_arrow::array::Array;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// A decoded column: its cells in one or more arrays, or the reason why it cannot be decoded.
pub(super) struct DecodedColumn {
    /// The name of the column.
    pub name: String,
    /// The cells in one or more arrays, or the reason why they cannot be decoded.
    pub cells: Result<Vec<Box<dyn Array>>, String>,
}

/// Returns the names of the selected columns.
///
/// Errors: two selected columns have the same name; no column is selected.
pub(super) fn choose<'a>(path: &Path, names: &[&'a str], wanted: ColumnSelection) -> Result<Vec<&'a str>> {
    let mut seen = BTreeSet::new();
    let chosen: Vec<&str> = names.iter().copied().filter(|name| wanted.has(name)).collect();
    if let Some(twice) = chosen.iter().find(|name| !seen.insert(**name)) {
        return Err(Error::user(format!("{}: two columns have the name `{twice}`", path.display()))
            .hint("give each column a name of its own"));
    }
    if chosen.is_empty() {
        let found = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        let found = if found.is_empty() { "none".into() } else { found };
        return Err(Error::user(format!("{}: none of the expected columns; found {found}", path.display()))
            .hint("rename the columns to those of a known format, or map them with `columns`"));
    }
    Ok(chosen)
}

/// Passes `height` rows, converted from columns, to `take` in chunks. The first of them is row `before + 1` of the
/// file.
///
/// Errors: a cell or column cannot be decoded, unless `wanted` allows that.
pub(super) fn emit_rows(
    path: &Path,
    columns: &[DecodedColumn],
    before: usize,
    height: usize,
    wanted: ColumnSelection,
    take: ChunkSink,
) -> Result<()> {
    let mut start = 0;
    while start < height {
        let size = CHUNK_ROWS.min(height - start);
        let mut rows: Vec<RowColumns> = vec![Map::new(); size];
        for column in columns {
            let name = &column.name;
            let refused = |i: usize, why: &str| {
                let place = RowPlace { path, line: before + start + i + 1 };
                Error::user(format!("{place}: column `{name}` cannot be read: {why}"))
                    .hint("write the column as text, numbers, lists or structs, or remove it")
            };
            let arrays = match &column.cells {
                Ok(arrays) => arrays.as_slice(),
                Err(_) if wanted.skips_unreadable() => &[],
                Err(why) => return Err(refused(0, why)),
            };
            let places = arrays.iter().flat_map(|array| (0..array.len()).map(move |i| (array.as_ref(), i)));
            let mut places = places.skip(start);
            for (i, row) in rows.iter_mut().enumerate() {
                let value = match places.next() {
                    Some((array, at)) => catch_decoder_panic(|| cell_to_json(array, at)),
                    None => Ok(Value::Null),
                };
                let value = match value {
                    Err(_) if wanted.skips_unreadable() => Value::Null,
                    value => value.map_err(|kind| refused(i, &format!("unsupported type of values: {kind}")))?,
                };
                row.insert(name.clone(), value);
            }
        }
        let line = |i: usize| before + start + i + 1;
        let chunk = rows.into_iter().enumerate();
        take(chunk.map(|(i, columns)| RawRow { line: line(i), body: RowBody::Columns(columns) }).collect())?;
        start += size;
    }
    Ok(())
}
