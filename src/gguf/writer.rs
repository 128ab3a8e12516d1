//! Writes a GGUF file (version 3) one tensor at a time, so that a model larger than memory can be written.

use super::quant::GgmlType;
use crate::error::{Error, Result};
use crate::fsutil;
use std::io::Write;
use std::path::Path;

const ALIGNMENT: u64 = 32;

/// A metadata value to write.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue {
    /// A whole number of 16 bits.
    Short(u16),
    /// A whole number of 32 bits.
    Unsigned(u32),
    /// A whole number of 32 bits with a sign.
    Signed(i32),
    /// A float32.
    Float(f32),
    /// A truth value.
    Flag(bool),
    /// A string.
    Text(String),
    /// A list of strings.
    Texts(Vec<String>),
    /// A list of whole numbers.
    Integers(Vec<i32>),
    /// A list of float32.
    Floats(Vec<f32>),
    /// A list of truth values.
    Flags(Vec<bool>),
}

impl From<&str> for MetaValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl MetaValue {
    /// Returns the number of the type in files.
    fn kind(&self) -> u32 {
        match self {
            Self::Short(_) => 2,
            Self::Unsigned(_) => 4,
            Self::Signed(_) => 5,
            Self::Float(_) => 6,
            Self::Flag(_) => 7,
            Self::Text(_) => 8,
            Self::Texts(_) | Self::Integers(_) | Self::Floats(_) | Self::Flags(_) => 9,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Short(n) => out.extend(n.to_le_bytes()),
            Self::Unsigned(n) => out.extend(n.to_le_bytes()),
            Self::Signed(n) => out.extend(n.to_le_bytes()),
            Self::Float(x) => out.extend(x.to_le_bytes()),
            Self::Flag(b) => out.push((*b).into()),
            Self::Text(text) => put_text(out, text),
            Self::Texts(list) => put_array(out, 8, list, |out, text| put_text(out, text)),
            Self::Integers(list) => put_array(out, 5, list, |out, n| out.extend(n.to_le_bytes())),
            Self::Floats(list) => put_array(out, 6, list, |out, x| out.extend(x.to_le_bytes())),
            Self::Flags(list) => put_array(out, 7, list, |out, b| out.push((*b).into())),
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_array<T>(out: &mut Vec<u8>, element: u32, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(element.to_le_bytes());
    out.extend((list.len() as u64).to_le_bytes());
    list.iter().for_each(|item| put(out, item));
}

/// Name, shape and format of a tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    /// The name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// The format.
    pub kind: GgmlType,
}

impl TensorEntry {
    /// Returns the number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Returns the size of the data in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements() / self.kind.block_elements() as u64 * self.kind.block_bytes() as u64
    }
}

/// Takes the bytes of a tensor that is written, in one or several parts.
pub struct TensorSink<'w> {
    out: &'w mut dyn Write,
    written: u64,
    failed: Option<std::io::Error>,
}

impl TensorSink<'_> {
    /// Writes the next bytes of the tensor.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| {
            let error = Error::user(format!("a tensor could not be written: {e}"));
            self.failed = Some(e);
            error
        })
    }
}

/// Returns what precedes the tensors' data.
fn header(metadata: &[(String, MetaValue)], tensors: &[TensorEntry]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        out.extend(value.kind().to_le_bytes());
        value.put(&mut out);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_entry(&mut out, tensor, offset);
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

fn put_entry(out: &mut Vec<u8>, tensor: &TensorEntry, offset: u64) {
    put_text(out, &tensor.name);
    out.extend((tensor.shape.len() as u32).to_le_bytes());
    tensor.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(tensor.kind.id().to_le_bytes());
    out.extend(offset.to_le_bytes());
}

/// The size of a file to which tensors are added one at a time.
#[derive(Debug, Clone, Copy)]
pub struct FileSize {
    /// Without padding.
    header: u64,
    data: u64,
}

impl FileSize {
    /// Returns that of a file without tensors.
    pub fn of(metadata: &[(String, MetaValue)]) -> Self {
        let pairs = metadata.iter().map(|(key, value)| {
            let mut out = Vec::new();
            put_text(&mut out, key);
            out.extend(value.kind().to_le_bytes());
            value.put(&mut out);
            out.len() as u64
        });
        Self { header: 24 + pairs.sum::<u64>(), data: 0 }
    }

    /// Returns the size with one tensor more.
    pub fn with(self, tensor: &TensorEntry) -> Self {
        let mut entry = Vec::new();
        put_entry(&mut entry, tensor, 0);
        let data = tensor.bytes().next_multiple_of(ALIGNMENT);
        Self { header: self.header + entry.len() as u64, data: self.data + data }
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u64 {
        self.header.next_multiple_of(ALIGNMENT) + self.data
    }
}

/// Returns the size of a file in bytes.
pub fn file_size(metadata: &[(String, MetaValue)], tensors: &[TensorEntry]) -> u64 {
    tensors.iter().fold(FileSize::of(metadata), FileSize::with).bytes()
}

/// Writes a file, atomically. `fill` is called once per tensor, in order, and gives its bytes to a sink.
pub fn write(
    path: &Path,
    metadata: &[(String, MetaValue)],
    tensors: &[TensorEntry],
    mut fill: impl FnMut(&TensorEntry, &mut TensorSink) -> Result<()>,
) -> Result<()> {
    let mut failed = None;
    let written = fsutil::write_atomic(path, |out| {
        out.write_all(&header(metadata, tensors))?;
        for tensor in tensors {
            let mut sink = TensorSink { out, written: 0, failed: None };
            let made = fill(tensor, &mut sink);
            let (found, expected) = (sink.written, tensor.bytes());
            if let Some(e) = sink.failed {
                return Err(e);
            }
            let made = made.and_then(|()| match found == expected {
                true => Ok(()),
                false => Err(Error::bug(format!("tensor {}: {expected} bytes expected, {found} given", tensor.name))),
            });
            if let Err(e) = made {
                failed = Some(e);
                return Err(std::io::Error::other("a tensor could not be made"));
            }
            let padding = expected.next_multiple_of(ALIGNMENT) - expected;
            out.write_all(&vec![0; padding as usize])?;
        }
        Ok(())
    });
    match failed {
        Some(e) => Err(e),
        None => written,
    }
}
