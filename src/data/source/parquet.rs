//! Reads Parquet files, a part of a row group at a time and only the selected columns.

use super::cells;
use super::columnar::{DecodedColumn, choose, emit_rows};
use super::decoder::{catch_decoder_panic, unreadable};
use super::file::open;
use super::raw_row::{ChunkSink, ColumnSelection, ReadCounts};
use super::segment::FileSegment;
use crate::error::{Error, Result};
use polars::io::mmap::ReaderBytes;
use polars_arrow::array::Array;
use polars_arrow::datatypes::{ArrowDataType, ExtensionType, Field};
use polars_buffer::Buffer;
use polars_parquet::parquet::schema::types::PrimitiveType;
use polars_parquet::read::schema::parquet_to_arrow_schema;
use polars_parquet::read::{
    BasicDecompressor, Filter, PageReader, PhysicalType, PrimitiveConvertedType, PrimitiveLogicalType,
    RowGroupMetadata, column_iter_to_arrays, read_metadata,
};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

/// Number of bytes of decompressed Parquet columns to read at a time.
const SLICE_BYTES: usize = 32 << 20;

/// Returns the number of rows in a Parquet file, from its metadata.
pub(super) fn parquet_rows(path: &Path) -> Result<usize> {
    let mut file = open(path)?;
    catch_decoder_panic(|| read_metadata(&mut file)).map(|m| m.num_rows).map_err(|e| unreadable(path, &e))
}

/// Reads the rows of a part of a Parquet file; `start` and `end` of the part count rows.
pub(super) fn read(
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
