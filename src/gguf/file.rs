//! Reads memory-mapped GGUF files (version 2 or 3): their metadata and the byte ranges of their tensors. A model may be in several
//! files ([`super::split`]); the first has its metadata.
//!
//! Arrays are not copied until they are requested, so a damaged file cannot make this reader allocate more memory than
//! the file is long. Knows nothing of architectures or tokenizers.

use super::header::{GgufArray, GgufType, GgufValue, HeaderReader, TensorInfo, not_gguf, read_header};
use super::split;
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use memmap2::{Mmap, UncheckedAdvice};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The file's bytes, memory-mapped or owned.
enum GgufBytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for GgufBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            GgufBytes::Mapped(map) => map,
            GgufBytes::Owned(bytes) => bytes,
        }
    }
}

/// An open GGUF file, or the files of one model.
pub struct Gguf {
    path: PathBuf,
    map: GgufBytes,
    metadata: HashMap<String, GgufValue>,
    tensors: Vec<TensorInfo>,
    /// The parts after the first: path and bytes.
    more: Vec<(PathBuf, GgufBytes)>,
}

impl Gguf {
    /// Maps the file and reads its header, but not the tensors' data. If it is the first part of a model in several files, also opens
    /// the others. Fails if a header is damaged, or if the parts do not belong together.
    pub fn open(path: &Path) -> Result<Self> {
        let mut gguf = Self::open_file(path)?;
        for (i, path) in split::other_parts(&gguf)?.into_iter().enumerate() {
            if !path.exists() {
                let first = gguf.path.display();
                return Err(Error::user(format!("{first}: of its parts, {} is missing", path.display()))
                    .hint("the download is incomplete: fetch all parts into one folder"));
            }
            let part = Self::open_file(&path)?;
            split::check_part(&gguf, &part, i + 2)?;
            gguf.tensors.extend(part.tensors.into_iter().map(|tensor| TensorInfo { part: i + 1, ..tensor }));
            gguf.more.push((path, part.map));
        }
        split::check_tensors(&gguf)?;
        Ok(gguf)
    }

    fn open_file(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| io_error("opening", path, e))?;
        let kind = file.metadata().map_err(|e| io_error("opening", path, e))?;
        if !kind.is_file() {
            return Err(Error::user(format!("{}: expected a GGUF file, found a folder or device", path.display()))
                .hint("name the .gguf file itself; a model directory needs no import"));
        }
        if kind.len() == 0 {
            return Err(not_gguf(path, "the file is empty"));
        }
        // SAFETY: the map is read-only; as with every memory-mapped model, changing the file meanwhile is the user's
        // risk.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| io_error("mapping", path, e))?;
        Self::read(path, GgufBytes::Mapped(map))
    }

    /// Reads a file from memory; `path` is only used in error messages.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::read(path, GgufBytes::Owned(bytes))
    }

    fn read(path: &Path, map: GgufBytes) -> Result<Self> {
        let (metadata, tensors) = read_header(path, &map)?;
        Ok(Self { path: path.to_path_buf(), map, metadata, tensors, more: Vec::new() })
    }

    /// Returns the path, for error messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the paths of all files, in the order of [`TensorInfo::part`].
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [self.path()].into_iter().chain(self.more.iter().map(|(path, _)| path.as_path()))
    }

    /// Returns all tensors, in the order of the files.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the stored bytes of a tensor, still quantised.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let map = tensor.part.checked_sub(1).map_or(&self.map, |i| &self.more[i].1);
        &map[tensor.bytes.clone()]
    }

    /// Lets go of the memory that the bytes of a tensor took when they were read. Bytes that are read again come from the file.
    pub fn release(&self, tensor: &TensorInfo) {
        let map = tensor.part.checked_sub(1).map_or(&self.map, |i| &self.more[i].1);
        if let GgufBytes::Mapped(map) = map {
            let bytes = &tensor.bytes;
            // SAFETY: the map is read-only, so that its pages are as they are in the file.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        }
    }

    /// Returns the metadata value of a key, of any type.
    pub fn metadata_value(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// Returns all metadata keys, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// Returns a string. Fails if the value has another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong_type(key, "a string", other)),
        }
    }

    /// Returns a non-negative integer. Fails if the value has another type.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(GgufValue::Unsigned(n)) => Ok(Some(*n)),
            Some(GgufValue::Signed(n)) if *n >= 0 => Ok(Some(*n as u64)),
            Some(other) => Err(self.wrong_type(key, "a non-negative integer", other)),
        }
    }

    /// Returns a boolean. Fails if the value has another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong_type(key, "a boolean", other)),
        }
    }

    /// Returns a finite number. A 32-bit float is converted through its shortest decimal form, so that 1e-5 stays 1e-5.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        let number = match self.metadata.get(key) {
            None => return Ok(None),
            Some(GgufValue::Float32(x)) => x.to_string().parse().unwrap_or(*x as f64),
            Some(GgufValue::Float64(x)) => *x,
            Some(GgufValue::Unsigned(n)) => *n as f64,
            Some(other) => return Err(self.wrong_type(key, "a number", other)),
        };
        if !number.is_finite() {
            return Err(Error::user(format!(
                "{}: metadata {key}: a finite number expected, found {number}",
                self.path.display()
            )));
        }
        Ok(Some(number))
    }

    /// Returns an array of strings, borrowed from the file's bytes.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(array) = self.array(key, "an array of strings", |t| t == GgufType::Text)? else { return Ok(None) };
        let mut cursor = HeaderReader { path: &self.path, data: &self.map[..array.bytes.end], at: array.bytes.start };
        (0..array.count).map(|i| cursor.text(&format!("{key}[{i}]"))).collect::<Result<_>>().map(Some)
    }

    /// Returns an array of integers; the file may store them in any width.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        use GgufType::*;
        let Some(array) =
            self.array(key, "an array of integers", |t| matches!(t, U8 | I8 | U16 | I16 | U32 | I32 | I64))?
        else {
            return Ok(None);
        };
        let width = array.element.least_bytes();
        let one = |b: &[u8]| {
            let mut wide = [0; 8];
            wide[..width].copy_from_slice(b);
            let raw = i64::from_le_bytes(wide);
            let unused = 64 - 8 * width as u32;
            if matches!(array.element, I8 | I16 | I32) { (raw << unused) >> unused } else { raw }
        };
        Ok(Some(self.map[array.bytes.clone()].chunks_exact(width).map(one).collect()))
    }

    /// Returns an array of booleans.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let Some(array) = self.array(key, "an array of booleans", |t| t == GgufType::Bool)? else { return Ok(None) };
        Ok(Some(self.map[array.bytes.clone()].iter().map(|b| *b != 0).collect()))
    }

    /// Returns an array of 32-bit floats.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(array) = self.array(key, "an array of floats", |t| t == GgufType::F32)? else { return Ok(None) };
        let one = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(Some(self.map[array.bytes.clone()].chunks_exact(4).map(one).collect()))
    }

    fn array(&self, key: &str, expected: &str, fits: impl Fn(GgufType) -> bool) -> Result<Option<&GgufArray>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(GgufValue::Array(a)) if fits(a.element) => Ok(Some(a)),
            Some(other) => Err(self.wrong_type(key, expected, other)),
        }
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &GgufValue) -> Error {
        let found = match found {
            GgufValue::Array(a) => format!("an array of {:?}", a.element),
            GgufValue::Text(s) => format!("{:?}", s.chars().take(40).collect::<String>()),
            other => format!("{other:?}"),
        };
        Error::user(format!("{}: metadata {key}: {expected} expected, found {found}", self.path.display()))
            .hint("the file is damaged or was written by a nonstandard program: try another GGUF of the model")
    }
}
