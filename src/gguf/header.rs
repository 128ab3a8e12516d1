//! Parses the header of a GGUF file: metadata keys, tensor entries and the byte range of each tensor's data.
//!
//! The file may be damaged or hostile. Counts, string lengths, shapes and offsets are checked against the file's length
//! before they are used; the error names the place of the damage.

use super::quant::GgmlType;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions that a ggml tensor can have.
const MAX_DIMENSIONS: u32 = 4;

/// A scalar or an array of the file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    Unsigned(u64),
    Signed(i64),
    Float32(f32),
    Float64(f64),
    Bool(bool),
    Text(String),
    Array(GgufArray),
}

/// An array that was not decoded yet: element type, number of elements and their byte range in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufArray {
    pub(super) element: GgufType,
    pub(super) count: usize,
    pub(super) bytes: Range<usize>,
}

/// A tensor as the file lists it; its byte range was checked to be inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub kind: GgmlType,
    /// Outermost dimension first, as Hugging Face writes shapes (the file has them reversed).
    pub shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
    /// Index of its file among the parts of a model.
    pub(super) part: usize,
}

impl TensorInfo {
    /// Returns the index of the file that has the tensor, among those of a model in several files.
    pub fn part(&self) -> usize {
        self.part
    }

    /// Returns the place of the tensor's data in its file, in bytes.
    pub fn place(&self) -> Range<usize> {
        self.bytes.clone()
    }

    /// Returns the matrix `i` of a tensor of three dimensions, as a tensor of its own with the whole one's name.
    pub(super) fn matrix(&self, i: usize) -> Self {
        let size = self.bytes.len() / self.shape[0];
        let start = self.bytes.start + i * size;
        Self { shape: self.shape[1..].to_vec(), bytes: start..start + size, ..self.clone() }
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// GGUF's value types, in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GgufType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl GgufType {
    fn from_id(id: u32) -> Option<Self> {
        use GgufType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64].get(id as usize).copied()
    }

    /// Returns the size of one value in bytes; of a text or an array the smallest possible size (its fixed-size
    /// fields).
    pub(super) fn least_bytes(self) -> usize {
        use GgufType::*;
        match self {
            U8 | I8 | Bool => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            U64 | I64 | F64 | Text => 8,
            Array => 12,
        }
    }
}

pub(super) fn not_gguf(path: &Path, why: &str) -> Error {
    Error::user(format!("{}: not a GGUF file: {why}", path.display()))
        .hint("a model is a Hugging Face directory or a .gguf file of llama.cpp")
}

/// Reads from `data` at `at`, never past its end.
pub(super) struct HeaderReader<'a> {
    pub(super) path: &'a Path,
    pub(super) data: &'a [u8],
    pub(super) at: usize,
}

impl<'a> HeaderReader<'a> {
    fn damaged(&self, what: &str, why: &str) -> Error {
        Error::user(format!("{}: at byte {}: {what}: {why}", self.path.display(), self.at))
            .hint("the file is damaged or cut short; download it again and compare its size or checksum")
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let left = self.data.len() - self.at;
        if n > left {
            return Err(self.damaged(what, &format!("{n} bytes expected, {left} left in the file")));
        }
        let bytes = &self.data[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Reads a count of items that take at least `least` bytes each. Fails if the rest of the file is too short for
    /// them.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let n = self.u64(what)?;
        let left = self.data.len() - self.at;
        if n > (left / least) as u64 {
            return Err(self.damaged(what, &format!("{n} announced, but only {left} bytes are left in the file")));
        }
        Ok(n as usize)
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str> {
        let length = self.count(1, what)?;
        let start = self.at;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|e| {
            self.at = start + e.valid_up_to();
            self.damaged(what, "not UTF-8")
        })
    }

    fn value_type(&mut self, what: &str) -> Result<GgufType> {
        let id = self.u32(what)?;
        GgufType::from_id(id).ok_or_else(|| self.damaged(what, &format!("value type 0 to 12 expected, found {id}")))
    }

    fn value(&mut self, what: &str) -> Result<GgufValue> {
        use GgufType as T;
        Ok(match self.value_type(what)? {
            T::U8 => GgufValue::Unsigned(u8::from_le_bytes(self.array(what)?) as u64),
            T::I8 => GgufValue::Signed(i8::from_le_bytes(self.array(what)?) as i64),
            T::U16 => GgufValue::Unsigned(u16::from_le_bytes(self.array(what)?) as u64),
            T::I16 => GgufValue::Signed(i16::from_le_bytes(self.array(what)?) as i64),
            T::U32 => GgufValue::Unsigned(u32::from_le_bytes(self.array(what)?) as u64),
            T::I32 => GgufValue::Signed(i32::from_le_bytes(self.array(what)?) as i64),
            T::F32 => GgufValue::Float32(f32::from_le_bytes(self.array(what)?)),
            T::U64 => GgufValue::Unsigned(u64::from_le_bytes(self.array(what)?)),
            T::I64 => GgufValue::Signed(i64::from_le_bytes(self.array(what)?)),
            T::F64 => GgufValue::Float64(f64::from_le_bytes(self.array(what)?)),
            T::Bool => match self.array::<1>(what)? {
                [0] => GgufValue::Bool(false),
                [1] => GgufValue::Bool(true),
                [n] => return Err(self.damaged(what, &format!("a boolean is 0 or 1, found {n}"))),
            },
            T::Text => GgufValue::Text(self.text(what)?.to_string()),
            T::Array => GgufValue::Array(self.array_value(what)?),
        })
    }

    /// Reads an array's type and count and skips its elements. Only texts must be visited one by one to find the end.
    fn array_value(&mut self, what: &str) -> Result<GgufArray> {
        let element = self.value_type(what)?;
        if element == GgufType::Array {
            return Err(self.damaged(what, "an array of arrays, which no model needs"));
        }
        let count = self.count(element.least_bytes(), what)?;
        let start = self.at;
        if element == GgufType::Text {
            for _ in 0..count {
                let length = self.count(1, what)?;
                self.take(length, what)?;
            }
        } else {
            self.take(count * element.least_bytes(), what)?;
        }
        Ok(GgufArray { element, count, bytes: start..self.at })
    }
}

pub(super) type Header = (HashMap<String, GgufValue>, Vec<TensorInfo>);

/// Reads everything that precedes the tensors' data.
pub(super) fn read_header(path: &Path, data: &[u8]) -> Result<Header> {
    let mut c = HeaderReader { path, data, at: 0 };
    if data.get(..4) != Some(MAGIC) {
        return Err(not_gguf(path, "it does not start with the letters GGUF"));
    }
    c.at = 4;
    match c.u32("version")? {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 1..=3) => {
            return Err(not_gguf(path, "it is big-endian; a little-endian file is expected"));
        }
        v => return Err(not_gguf(path, &format!("version 2 or 3 expected, found {v}"))),
    }
    // A tensor entry has at least a name length, a dimension count, a type and an offset; a key has a length, type and
    // value.
    let tensor_count = c.count(24, "number of tensors")?;
    let key_count = c.count(13, "number of metadata keys")?;

    let mut metadata = HashMap::with_capacity(key_count);
    for i in 0..key_count {
        let key = c.text(&format!("metadata key {i}"))?;
        let value = c.value(&format!("metadata {key}"))?;
        if metadata.insert(key.to_string(), value).is_some() {
            return Err(c.damaged(&format!("metadata {key}"), "the key appears twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(GgufValue::Unsigned(n)) if n.is_power_of_two() && *n >= 8 && *n <= 1 << 20 => *n,
        Some(other) => {
            return Err(c.damaged("general.alignment", &format!("a power of two from 8 on expected, found {other:?}")));
        }
    };

    let mut listed = Vec::with_capacity(tensor_count);
    for i in 0..tensor_count {
        listed.push(tensor_entry(&mut c, i)?);
    }
    let start = (c.at as u64).next_multiple_of(alignment);
    let tensors = locate_tensors(path, listed, start, alignment, data.len() as u64)?;
    Ok((metadata, tensors))
}

/// Reads a tensor entry; returns it with its offset from the start of the data. The caller turns it into a byte range.
fn tensor_entry(c: &mut HeaderReader, i: usize) -> Result<(TensorInfo, u64)> {
    let name = c.text(&format!("name of tensor {i}"))?.to_string();
    let what = format!("tensor {name}");
    let dimensions = c.u32(&what)?;
    if dimensions > MAX_DIMENSIONS {
        return Err(c.damaged(&what, &format!("at most {MAX_DIMENSIONS} dimensions expected, found {dimensions}")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let n = c.u64(&what)?;
        shape.push(usize::try_from(n).map_err(|_| c.damaged(&what, &format!("a dimension of {n} elements")))?);
    }
    shape.reverse();
    let id = c.u32(&what)?;
    let kind = GgmlType::from_id(id).map_err(|name| {
        Error::user(format!("{}: {what}: quantisation type {name} is not supported", c.path.display()))
            .hint(format!("ft reads {}", GgmlType::names()))
            .hint("choose another quantisation of the same model, such as Q8_0, Q6_K, Q4_K_M or F16")
    })?;
    let offset = c.u64(&what)?;
    let row = shape.last().copied().unwrap_or(1);
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let bytes = elements.and_then(|n| (n / kind.block_elements()).checked_mul(kind.block_bytes()));
    let Some(bytes) = bytes.filter(|&b| b > 0 && row % kind.block_elements() == 0) else {
        return Err(c.damaged(&what, &format!("shape {shape:?} cannot be stored as {}", kind.name())));
    };
    Ok((TensorInfo { name, kind, shape, bytes: 0..bytes, part: 0 }, offset))
}

/// Turns offsets into byte ranges of the file. Fails if one is not aligned or not inside the file, if two overlap, or
/// if a name is a duplicate.
fn locate_tensors(
    path: &Path,
    listed: Vec<(TensorInfo, u64)>,
    start: u64,
    alignment: u64,
    length: u64,
) -> Result<Vec<TensorInfo>> {
    let damaged = |name: &str, why: String| {
        Error::user(format!("{}: tensor {name}: {why}", path.display()))
            .hint("the file is damaged or cut short; download it again and compare its size or checksum")
    };
    let mut names = HashSet::with_capacity(listed.len());
    let mut tensors = Vec::with_capacity(listed.len());
    for (mut tensor, offset) in listed {
        if !names.insert(tensor.name.clone()) {
            return Err(damaged(&tensor.name, "the name appears twice".into()));
        }
        if offset % alignment != 0 {
            return Err(damaged(&tensor.name, format!("offset {offset} is no multiple of the alignment {alignment}")));
        }
        let bytes = tensor.bytes.len() as u64;
        match start.checked_add(offset).and_then(|from| Some((from, from.checked_add(bytes)?))) {
            Some((from, to)) if to <= length => tensor.bytes = from as usize..to as usize,
            _ => {
                let why = format!(
                    "{bytes} bytes expected at offset {offset} of the data, but the file has {length} bytes in all"
                );
                return Err(damaged(&tensor.name, why));
            }
        }
        tensors.push(tensor);
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.bytes.start);
    if let Some(w) = order.windows(2).find(|w| w[0].bytes.end > w[1].bytes.start) {
        return Err(damaged(&w[1].name, format!("its data overlaps that of tensor {}", w[0].name)));
    }
    Ok(tensors)
}
