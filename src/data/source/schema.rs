//! The schemas of Arrow IPC files, in types that polars decodes.
//!
//! polars panics over a schema with run-end encoded columns or list views, also where nobody reads them, and over decimals of
//! 256 bits. The former are given to it as columns of other types that lie in as many nodes and buffers, so that they can be
//! stepped over, the latter as their bytes.

use super::cells;
use super::columnar::guarded;
use polars_arrow::io::ipc::read::{self as ipc_read, FileMetadata, StreamMetadata};
use polars_arrow_format::ipc::planus::{Builder, ReadAsRoot};
use polars_arrow_format::ipc::{
    Field, FixedSizeBinary, Footer, FooterRef, Int, IntervalUnit, KeyValue, Message, MessageHeader, MessageRef, Schema,
    Type, UnionMode,
};
use std::io::{Cursor, Read, Seek, SeekFrom};

/// What the name of a column begins with that can only be stepped over.
const MARK: char = '\u{F8FF}';

/// What a column of a schema is.
pub(super) enum Known<'a> {
    Column(&'a str),
    /// One that cannot be decoded.
    Foreign(&'a str),
    /// A further part of the one before it.
    Part,
}

/// What the column of this name is.
pub(super) fn known(name: &str) -> Known<'_> {
    match name.strip_prefix(MARK) {
        Some(rest) if rest.starts_with(MARK) => Known::Part,
        Some(name) => Known::Foreign(name),
        None => Known::Column(name),
    }
}

/// The metadata of an Arrow file.
pub(super) fn of_file(file: &mut (impl Read + Seek)) -> Result<FileMetadata, String> {
    let said = |e: std::io::Error| e.to_string();
    let end = file.seek(SeekFrom::End(-10)).map_err(said)? + 10;
    let mut tail = [0u8; 10];
    file.read_exact(&mut tail).map_err(said)?;
    let length = i32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    let length = u64::try_from(length).ok().filter(|n| n + 10 <= end && &tail[4..] == b"ARROW1");
    let length = length.ok_or("its end is not that of an Arrow file")?;
    file.seek(SeekFrom::Start(end - 10 - length)).map_err(said)?;
    let mut footer = vec![0; length as usize];
    file.read_exact(&mut footer).map_err(said)?;
    file.seek(SeekFrom::Start(0)).map_err(said)?;
    guarded(|| {
        let read = FooterRef::read_as_root(&footer).and_then(Footer::try_from);
        if let Ok(mut read) = read
            && read.schema.as_mut().is_some_and(|schema| plain(schema))
        {
            footer = Builder::new().finish(&read, None).to_vec();
        }
        ipc_read::deserialize_footer(&footer, end)
    })
}

/// The metadata of an Arrow stream, which is then at its first batch.
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
    guarded(|| {
        let read = MessageRef::read_as_root(&message).and_then(Message::try_from);
        if let Ok(mut read) = read
            && let Some(MessageHeader::Schema(schema)) = &mut read.header
            && plain(schema)
        {
            message = Builder::new().finish(&read, None).to_vec();
        }
        let length = (message.len() as i32).to_le_bytes();
        ipc_read::read_stream_metadata(&mut Cursor::new([&length[..], &message].concat()))
    })
}

/// Replaces what polars does not know; whether there was any of it.
fn plain(schema: &mut Schema) -> bool {
    let Some(fields) = &mut schema.fields else { return false };
    let wide = fields.iter_mut().fold(false, |found, field| wide_decimals(field) | found);
    if fields.iter().all(knows) {
        return wide;
    }
    let mut all = Vec::new();
    for field in std::mem::take(fields) {
        if knows(&field) {
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

/// Gives decimals of 256 bits as bytes of a type of our own, which has their scale; whether there were any.
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

/// Whether polars has a type for the field and for all in it.
fn knows(field: &Field) -> bool {
    let foreign = match &field.type_ {
        Some(Type::RunEndEncoded(_) | Type::ListView(_) | Type::LargeListView(_)) => true,
        Some(Type::Interval(interval)) => interval.unit == IntervalUnit::DayTime,
        // It reads them and cannot step over them.
        Some(Type::Union(union)) => union.mode == UnionMode::Sparse,
        _ => false,
    };
    !foreign && field.children.iter().flatten().all(knows)
}

/// The field as fields beside each other: for each node of it one of a type with as many buffers.
fn flatten(field: Field, into: &mut Vec<Field>) {
    let index = || Type::Int(Box::new(Int { bit_width: 32, is_signed: true }));
    // A dictionary's values lie elsewhere; here are its indices.
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
