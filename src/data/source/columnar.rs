//! Reads Parquet and Arrow IPC files, a group of rows at a time and only the selected columns.
//!
//! Columns are decoded to Arrow arrays, which `cells` converts to JSON. polars' own column type is not used: without
//! features that multiply its build time it panics on categories, decimals, dates and small integers, and it does not
//! keep which text is JSON. Columns that are not selected are never decoded, whatever their type.

use super::cells::{self, cell_to_json};
use super::schema::{self, SchemaColumn};
use super::{
    CHUNK_ROWS, ChunkSink, ColumnSelection, FileSegment, RawRow, ReadCounts, RowBody, RowColumns, RowPlace, open,
};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use polars::io::mmap::ReaderBytes;
use polars::prelude::PolarsError;
use polars_arrow::array::Array;
use polars_arrow::datatypes::{ArrowDataType, ArrowSchema, ExtensionType, Field};
use polars_arrow::io::ipc::read as ipc_read;
use polars_buffer::Buffer;
use polars_parquet::parquet::schema::types::PrimitiveType;
use polars_parquet::read::schema::parquet_to_arrow_schema;
use polars_parquet::read::{
    BasicDecompressor, Filter, PageReader, PhysicalType, PrimitiveConvertedType, PrimitiveLogicalType,
    RowGroupMetadata, column_iter_to_arrays, read_metadata,
};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{BufReader, Cursor, Read, Seek};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

/// Number of bytes of decompressed Parquet columns to read at a time.
const SLICE_BYTES: usize = 32 << 20;

/// A decoded column: its cells in one or more arrays, or the reason why it cannot be decoded.
pub(super) struct DecodedColumn {
    pub name: String,
    pub cells: Result<Vec<Box<dyn Array>>, String>,
}

pub(super) fn polars_error(path: &Path, e: PolarsError) -> Error {
    unreadable(path, &e.to_string())
}

fn unreadable(path: &Path, why: &str) -> Error {
    Error::user(format!("{}: {}", path.display(), why.lines().next().unwrap_or_default()))
        .hint("is the file complete, and of the kind that its extension says?")
}

thread_local! {
    /// Whether panics of this thread are being converted to errors and must not be printed.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder and converts panics to errors: decoders may panic on the content of a damaged file.
pub(super) fn catch_decoder_panic<T, E: ToString>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                print(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(outer);
    done.map(|result| result.map_err(|e| e.to_string())).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        Err(format!("not a file that can be decoded ({said})"))
    })
}

/// Returns the number of rows in a Parquet file, from its metadata.
pub(super) fn parquet_rows(path: &Path) -> Result<usize> {
    let mut file = open(path)?;
    catch_decoder_panic(|| read_metadata(&mut file)).map(|m| m.num_rows).map_err(|e| unreadable(path, &e))
}

/// Returns the names of the selected columns.
///
/// Errors: two selected columns have the same name; no column is selected.
fn choose<'a>(path: &Path, names: &[&'a str], wanted: ColumnSelection) -> Result<Vec<&'a str>> {
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

/// Reads the rows of a part of a Parquet file; `start` and `end` of the part count rows.
pub(super) fn parquet(
    path: &Path,
    part: &FileSegment,
    wanted: ColumnSelection,
    limit: usize,
    take: ChunkSink,
) -> Result<ReadCounts> {
    let mut file = open(path)?;
    let wrong = |e: String| unreadable(path, &e);
    let metadata = catch_decoder_panic(|| read_metadata(&mut file)).map_err(wrong)?;
    let total = metadata.num_rows;
    let end = usize::try_from(part.end).unwrap_or(usize::MAX).min(total);
    let (first, mut passage) = (part.start as usize, ReadCounts::default());
    let rows = end.saturating_sub(first).min(limit);
    if rows == 0 {
        return Ok(passage);
    }
    let types = metadata.schema().fields();
    let names: Vec<&str> = types.iter().map(|t| t.name()).collect();
    let chosen = choose(path, &names, wanted)?;
    let types: Vec<_> = types.iter().filter(|t| chosen.contains(&t.name())).cloned().collect();
    let schema = catch_decoder_panic(|| Ok::<_, String>(parquet_to_arrow_schema(&types))).map_err(wrong)?;
    let fields: Vec<Field> = schema.iter_values().cloned().collect();
    let bytes = catch_decoder_panic(|| match ReaderBytes::from(&mut file) {
        ReaderBytes::Owned(bytes) => Ok(bytes),
        ReaderBytes::Borrowed(bytes) => Err(format!("{} bytes in memory, expected a file", bytes.len())),
    })
    .map_err(wrong)?;
    while passage.rows < rows {
        let at = first + passage.rows;
        let Some((group, begins)) = group_of(&metadata.row_groups, at) else {
            return Err(Error::user(format!("{}: the file ends after {at} of {total} rows", path.display())));
        };
        // Slices end where a row group ends, so that no group is decompressed more often than its size requires.
        let unpacked: usize = chosen.iter().flat_map(|n| group.columns_under_root_iter(n)).flatten().map(size).sum();
        let row_bytes = (unpacked / group.num_rows().max(1)).max(1);
        let left = begins + group.num_rows() - at;
        let height = (rows - passage.rows).min(left).min((SLICE_BYTES / row_bytes).max(64));
        let here = at - begins..at - begins + height;
        // Decoded one by one: the threads of the pool may all be waiting for these rows.
        let column = |field: &Field| DecodedColumn {
            name: field.name.to_string(),
            cells: catch_decoder_panic(|| decode(&bytes, group, field, here.clone())),
        };
        let columns: Vec<DecodedColumn> = fields.iter().map(column).collect();
        emit_rows(path, &columns, at, height, wanted, take)?;
        passage.rows += height;
    }
    Ok(passage)
}

fn size(column: &polars_parquet::read::ColumnChunkMetadata) -> usize {
    usize::try_from(column.uncompressed_size()).unwrap_or(0)
}

/// Returns the row group of row `at`, and the number of rows before the group.
fn group_of(groups: &[RowGroupMetadata], at: usize) -> Option<(&RowGroupMetadata, usize)> {
    let mut begins = 0;
    groups.iter().find_map(|group| {
        let before = begins;
        begins += group.num_rows();
        (before..begins).contains(&at).then_some((group, before))
    })
}

/// Decodes some rows of a column of a row group.
fn decode(
    file: &Buffer<u8>,
    group: &RowGroupMetadata,
    field: &Field,
    rows: Range<usize>,
) -> Result<Vec<Box<dyn Array>>, String> {
    let chunks = group.columns_under_root_iter(&field.name).ok_or("a row group does not have it")?;
    let (mut pages, mut types) = (Vec::new(), Vec::new());
    for chunk in chunks {
        let at = chunk.byte_range();
        let at = at.start as usize..at.end as usize;
        if at.start > at.end || at.end > file.len() {
            return Err("its pages lie outside the file".into());
        }
        let reader = PageReader::new(Cursor::new(file.clone().sliced(at)), chunk, Vec::new(), usize::MAX);
        pages.push(BasicDecompressor::new(reader, Vec::new()));
        types.push(&chunk.descriptor().descriptor.primitive_type);
    }
    let mut field = field.clone();
    field.dtype = refined(field.dtype, &mut types.iter().copied());
    let height = rows.len();
    let (arrays, _) =
        column_iter_to_arrays(pages, types, field, Some(Filter::Range(rows))).map_err(|e| e.to_string())?;
    match arrays.iter().map(|a| a.len()).sum::<usize>() {
        found if found == height => Ok(arrays),
        found => Err(format!("it has {found} cells for {height} rows")),
    }
}

/// Completes the Arrow type with information from Parquet's types that polars ignores (JSON, enums, small floats, wide
/// decimals); `leaves` are the leaf types of the column, in order.
fn refined<'a>(dtype: ArrowDataType, leaves: &mut dyn Iterator<Item = &'a PrimitiveType>) -> ArrowDataType {
    use ArrowDataType::*;
    let mut inside = |field: Box<Field>| {
        let mut field = *field;
        field.dtype = refined(field.dtype, &mut *leaves);
        Box::new(field)
    };
    match dtype {
        LargeList(item) => LargeList(inside(item)),
        List(item) => List(inside(item)),
        FixedSizeList(item, n) => FixedSizeList(inside(item), n),
        Map(item, sorted) => Map(inside(item), sorted),
        Struct(fields) => Struct(fields.into_iter().map(|f| *inside(Box::new(f))).collect()),
        plain => {
            let Some(leaf) = leaves.next() else { return plain };
            let logical = (leaf.logical_type, leaf.converted_type);
            match (plain, leaf.physical_type, logical) {
                (
                    _,
                    PhysicalType::ByteArray,
                    (Some(PrimitiveLogicalType::Json), _) | (_, Some(PrimitiveConvertedType::Json)),
                ) => Extension(Box::new(ExtensionType { name: cells::JSON.into(), inner: Utf8View, metadata: None })),
                (
                    _,
                    PhysicalType::ByteArray,
                    (Some(PrimitiveLogicalType::Enum), _) | (_, Some(PrimitiveConvertedType::Enum)),
                ) => Utf8View,
                (_, PhysicalType::FixedLenByteArray(2), (Some(PrimitiveLogicalType::Float16), _)) => Float16,
                (Decimal(precision, scale), PhysicalType::FixedLenByteArray(17..), _) => Decimal256(precision, scale),
                (plain, ..) => plain,
            }
        }
    }
}

/// Reads the rows of an Arrow IPC file or stream (`datasets` writes streams), a record batch at a time.
pub(super) fn ipc(path: &Path, wanted: ColumnSelection, limit: usize, take: ChunkSink) -> Result<ReadCounts> {
    let mut file = open(path)?;
    let mut magic = [0u8; 6];
    let n = file.read(&mut magic).map_err(|e| io_error("reading", path, e))?;
    file.rewind().map_err(|e| io_error("reading", path, e))?;
    let wrong = |e: String| unreadable(path, &e);
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut passage = ReadCounts::default();
    let mut batch = |schema: &IpcColumns, arrays: Vec<Box<dyn Array>>| -> Result<bool> {
        let height = arrays.first().map_or(0, |a| a.len()).min(limit - passage.rows);
        let column =
            |(name, cells): (&String, Box<dyn Array>)| DecodedColumn { name: name.clone(), cells: Ok(vec![cells]) };
        let foreign = |name: &String| DecodedColumn { name: name.clone(), cells: Err(UNDECODABLE_TYPES.into()) };
        let columns = schema.names.iter().zip(arrays).map(column).chain(schema.foreign.iter().map(foreign));
        emit_rows(path, &columns.collect::<Vec<_>>(), passage.rows, height, wanted, take)?;
        passage.rows += height;
        Ok(passage.rows < limit)
    };
    if n == 6 && &magic == b"ARROW1" {
        let metadata = schema::of_file(&mut file).map_err(wrong)?;
        let columns = IpcColumns::of(path, &metadata.schema, wanted)?;
        let places = Some(columns.places.clone());
        let reader = catch_decoder_panic(|| Ok::<_, String>(ipc_read::FileReader::new(file, metadata, places, None)));
        let mut reader = reader.map_err(wrong)?;
        while let Some(chunk) = catch_decoder_panic(|| reader.next().transpose()).map_err(wrong)? {
            if !batch(&columns, chunk.into_arrays())? {
                break;
            }
        }
    } else {
        let metadata = schema::of_stream(&mut file).map_err(wrong)?;
        let columns = IpcColumns::of(path, &metadata.schema, wanted)?;
        let places = Some(columns.places.clone());
        let reader = catch_decoder_panic(|| Ok::<_, String>(ipc_read::StreamReader::new(file, metadata, places)));
        let mut reader = reader.map_err(wrong)?;
        while let Some(state) = catch_decoder_panic(|| reader.next().transpose()).map_err(wrong)? {
            let ipc_read::StreamState::Some(chunk) = state else { break };
            if !batch(&columns, chunk.into_arrays())? {
                break;
            }
        }
    }
    Ok(passage)
}

/// The reason for columns of types that polars does not support.
const UNDECODABLE_TYPES: &str =
    "it is run-end encoded, a list view, a sparse union or an interval of days and milliseconds";

/// The selected columns of an Arrow file.
struct IpcColumns {
    names: Vec<String>,
    /// Their indices in the schema.
    places: Vec<usize>,
    /// Selected columns that cannot be decoded.
    foreign: Vec<String>,
}

impl IpcColumns {
    fn of(path: &Path, schema: &ArrowSchema, wanted: ColumnSelection) -> Result<Self> {
        let all: Vec<SchemaColumn> = schema.iter_values().map(|f| schema::classify_column(&f.name)).collect();
        let names = |foreign: bool| {
            all.iter().enumerate().filter_map(move |(i, column)| match column {
                SchemaColumn::Column(name) if !foreign => Some((i, *name)),
                SchemaColumn::Foreign(name) if foreign => Some((i, *name)),
                _ => None,
            })
        };
        let every: Vec<&str> = names(false).chain(names(true)).map(|(_, name)| name).collect();
        let chosen = choose(path, &every, wanted)?;
        let is_chosen = |(_, name): &(usize, &str)| chosen.contains(name);
        let (places, names_) = names(false).filter(is_chosen).map(|(i, name)| (i, name.to_string())).unzip();
        let foreign = names(true).filter(is_chosen).map(|(_, name)| name.to_string()).collect();
        let columns = Self { places, names: names_, foreign };
        match columns.places.is_empty() {
            true => Err(unreadable(path, &format!("none of its columns can be decoded: {UNDECODABLE_TYPES}"))),
            false => Ok(columns),
        }
    }
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
