//! Reads Arrow IPC files and streams, a record batch at a time and only the selected columns.

use super::columnar::{DecodedColumn, choose, emit_rows};
use super::decoder::{catch_decoder_panic, unreadable};
use super::file::open;
use super::raw_row::{ChunkSink, ColumnSelection, ReadCounts};
use super::schema::{self, SchemaColumn};
use crate::error::Result;
use crate::fsutil::io_error;
use polars_arrow::array::Array;
use polars_arrow::datatypes::ArrowSchema;
use polars_arrow::io::ipc::read as ipc_read;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// Reads the rows of an Arrow IPC file or stream (`datasets` writes streams), a record batch at a time.
pub(super) fn read(path: &Path, wanted: ColumnSelection, limit: usize, take: ChunkSink) -> Result<ReadCounts> {
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
