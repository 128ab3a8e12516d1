//! Rewrites the schemas of Arrow IPC files to types that polars can decode.
//!
//! polars panics on schemas with run-end encoded columns, list views or decimals of 256 bits, even if such columns are
//! not read. Columns of the first two types are therefore declared as other types with the same number of nodes and
//! buffers, so that polars can skip them. Wide decimals are declared as bytes, which `cells` converts.

use super::cells;
use super::decoder::catch_decoder_panic;
use polars_arrow::io::ipc::read::{self as ipc_read, FileMetadata, StreamMetadata};
use polars_arrow_format::ipc::planus::{Builder, ReadAsRoot};
use polars_arrow_format::ipc::{
    Field, FixedSizeBinary, Footer, FooterRef, Int, IntervalUnit, KeyValue, Message, MessageHeader, MessageRef, Schema,
    Type, UnionMode,
};
use std::io::{Cursor, Read, Seek, SeekFrom};

/// Prefix of the names of columns that can only be skipped.
const MARK: char = '\u{F8FF}';

/// A column of a rewritten schema, as its name says.
pub(super) enum SchemaColumn<'a> {
    Column(&'a str),
    /// A column that cannot be decoded.
    Foreign(&'a str),
    /// A further part of the column before it.
    Part,
}

/// Classifies a column by its name in the rewritten schema.
pub(super) fn classify_column(name: &str) -> SchemaColumn<'_> {
    match name.strip_prefix(MARK) {
        Some(rest) if rest.starts_with(MARK) => SchemaColumn::Part,
        Some(name) => SchemaColumn::Foreign(name),
        None => SchemaColumn::Column(name),
    }
}

/// Reads the metadata of an Arrow file, with a rewritten schema. Leaves the file at its beginning.
pub(super) fn of_file(file: &mut (impl Read + Seek)) -> Result<FileMetadata, String> {
    let said = |e: std::io::Error| e.to_string();
    let end = file.seek(SeekFrom::End(-10)).map_err(said)? + 10;
    let mut tail = [0u8; 10];
    file.read_exact(&mut tail).map_err(said)?;
    let length = i32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    let length = u64::try_from(length).ok().filter(|n| n + 10 <= end && &tail[4..] == b"ARROW1");
    let length = length.ok_or("it does not end like an Arrow file")?;
    file.seek(SeekFrom::Start(end - 10 - length)).map_err(said)?;
    let mut footer = vec![0; length as usize];
    file.read_exact(&mut footer).map_err(said)?;
    file.seek(SeekFrom::Start(0)).map_err(said)?;
    catch_decoder_panic(|| {
        let read = FooterRef::read_as_root(&footer).and_then(Footer::try_from);
        if let Ok(mut read) = read
            && read.schema.as_mut().is_some_and(|schema| replace_unsupported(schema))
        {
            footer = Builder::new().finish(&read, None).to_vec();
        }
        ipc_read::deserialize_footer(&footer, end)
    })
}

/// Reads the metadata of an Arrow stream, with a rewritten schema. Leaves the stream at its first batch.
pub(super) fn of_stream(stream: &mut impl Read) -> Result<StreamMetadata, String> {
    let said = |e: std::io::Error| e.to_string();
    let mut word = [0u8; 4];
    stream.read_exact(&mut word).map_err(said)?;
    if word == [0xff; 4] {
        stream.read_exact(&mut word).map_err(said)?;
    }
    let length = u64::try_from(i32::from_le_bytes(word)).map_err(|_| "its first message has no length")?;
    let mut message = Vec::new();
    stream.take(length).read_to_end(&mut message).map_err(said)?;
    catch_decoder_panic(|| {
        let read = MessageRef::read_as_root(&message).and_then(Message::try_from);
        if let Ok(mut read) = read
            && let Some(MessageHeader::Schema(schema)) = &mut read.header
            && replace_unsupported(schema)
        {
            message = Builder::new().finish(&read, None).to_vec();
        }
        let length = (message.len() as i32).to_le_bytes();
        ipc_read::read_stream_metadata(&mut Cursor::new([&length[..], &message].concat()))
    })
}

/// Replaces the types that polars does not support. Returns true if there were any.
fn replace_unsupported(schema: &mut Schema) -> bool {
    let Some(fields) = &mut schema.fields else { return false };
    let wide = fields.iter_mut().fold(false, |found, field| wide_decimals(field) | found);
    if fields.iter().all(is_supported) {
        return wide;
    }
    let mut all = Vec::new();
    for field in std::mem::take(fields) {
        if is_supported(&field) {
            all.push(field);
            continue;
        }
        let (first, name) = (all.len(), field.name.clone().unwrap_or_default());
        flatten(field, &mut all);
        for (i, part) in all.iter_mut().enumerate().skip(first) {
            part.name = Some(if i == first { format!("{MARK}{name}") } else { format!("{MARK}{MARK}{i}") });
        }
    }
    *fields = all;
    true
}

/// Declares decimals of 256 bits as bytes of ft's own extension type, which stores their scale. Returns true if there
/// were any.
fn wide_decimals(field: &mut Field) -> bool {
    let inside = field.children.iter_mut().flatten().fold(false, |found, child| wide_decimals(child) | found);
    let Some(Type::Decimal(decimal)) = &field.type_ else { return inside };
    if decimal.bit_width != 256 {
        return inside;
    }
    let word = |key: &str, value: String| KeyValue { key: Some(key.into()), value: Some(value) };
    if field.dictionary.is_none() {
        field.custom_metadata = Some(vec![
            word("ARROW:extension:name", cells::DECIMAL256.into()),
            word("ARROW:extension:metadata", decimal.scale.to_string()),
        ]);
    }
    field.type_ = Some(Type::FixedSizeBinary(Box::new(FixedSizeBinary { byte_width: 32 })));
    true
}

/// Returns true if polars supports the field and all its children.
fn is_supported(field: &Field) -> bool {
    let foreign = match &field.type_ {
        Some(Type::RunEndEncoded(_) | Type::ListView(_) | Type::LargeListView(_)) => true,
        Some(Type::Interval(interval)) => interval.unit == IntervalUnit::DayTime,
        // polars can read sparse unions but cannot skip them.
        Some(Type::Union(union)) => union.mode == UnionMode::Sparse,
        _ => false,
    };
    !foreign && field.children.iter().flatten().all(is_supported)
}

/// Flattens a field to a list of fields: for each of its nodes, one of a type with the same number of buffers.
fn flatten(field: Field, into: &mut Vec<Field>) {
    let index = || Type::Int(Box::new(Int { bit_width: 32, is_signed: true }));
    // The values of a dictionary are stored elsewhere; the column has only their indices.
    let dictionary = field.dictionary.is_some();
    let type_ = match field.type_ {
        _ if dictionary => Some(index()),
        Some(Type::RunEndEncoded(_)) => Some(Type::Null(Box::default())),
        Some(Type::ListView(_) | Type::LargeListView(_)) => Some(Type::Binary(Box::default())),
        Some(Type::List(_) | Type::LargeList(_) | Type::Map(_) | Type::Interval(_)) => Some(index()),
        Some(Type::Union(union)) if union.mode == UnionMode::Dense => Some(index()),
        Some(Type::FixedSizeList(_) | Type::Struct(_) | Type::Union(_)) => Some(Type::Struct(Box::default())),
        plain => plain,
    };
    into.push(Field { type_, nullable: true, children: Some(Vec::new()), ..Field::default() });
    if !dictionary {
        field.children.into_iter().flatten().for_each(|child| flatten(child, into));
    }
}
