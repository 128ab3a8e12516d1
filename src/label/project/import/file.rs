//! Reads a file into rows, whatever tool wrote it.

use super::row::{ImportedRow, LabelImportFormat, LabelImportOptions};
use super::{argilla, label_studio, rows};
use crate::data::source::{self, ColumnSelection, RowPlace};
use crate::error::{Error, Result};
use crate::label::record::answer::{JsonMap, NewPrompt};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Reads the prompts of a file. If a row ends in an answer, the prompt is the part before it.
///
/// Errors: a row without a prompt (names file and line); two prompts with the same id; an empty file.
pub fn prompts(path: &Path) -> Result<Vec<NewPrompt>> {
    let options = LabelImportOptions { format: LabelImportFormat::Rows, ..LabelImportOptions::default() };
    Ok(read(path, &options)?.into_iter().map(|item| item.prompt).collect())
}

/// Reads the items of a file in order.
pub fn read(path: &Path, options: &LabelImportOptions) -> Result<Vec<ImportedRow>> {
    let mut items: Vec<ImportedRow> = Vec::new();
    let mut format = options.format;
    let mut lines: HashMap<String, (usize, Value)> = HashMap::new();
    source::for_each_selected_chunk(ColumnSelection::Readable, path, None, |chunk| {
        for raw in chunk {
            let line = raw.line;
            let place = RowPlace { path, line };
            let columns = raw.columns(path)?;
            if format == LabelImportFormat::Auto {
                format = detect(&columns);
            }
            let item = match format {
                LabelImportFormat::Argilla => argilla::item(&columns, options),
                LabelImportFormat::LabelStudio => label_studio::item(&columns, options),
                LabelImportFormat::Rows | LabelImportFormat::Auto => rows::item(columns, options, place),
            };
            let item = item.map_err(|e| if e.message().contains(&place.to_string()) { e } else { e.context(place) })?;
            let NewPrompt { key, messages, .. } = &item.prompt;
            let (first, known) = lines.entry(key.clone()).or_insert_with(|| (line, messages.clone()));
            if known != messages {
                return Err(Error::user(format!(
                    "{place}: the id `{key}` is already used by another prompt, in line {first}"
                ))
                .hint("give each prompt its own id, or no id: then ft derives one from the content"));
            }
            items.push(item);
        }
        Ok(())
    })?;
    Ok(items)
}

/// Detects the layout from the columns of a row.
fn detect(columns: &JsonMap) -> LabelImportFormat {
    if argilla::is_record(columns) {
        LabelImportFormat::Argilla
    } else if label_studio::is_task(columns) {
        LabelImportFormat::LabelStudio
    } else {
        LabelImportFormat::Rows
    }
}
