//! Writes safetensors files one tensor at a time, so that a model larger than memory can be written.
//!
//! Decides the order of tensors in a file, the header, and the split into shards with their index.
//! The caller's closure is called once per tensor, in file order; only one tensor is in memory at a time, or a part of one
//! ([`write_model_in_parts`]).

use crate::error::{Error, Result};
use crate::fsutil::{self, FileFingerprint, FingerprintWriter};
pub use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Largest size of a shard in bytes, unless one tensor alone is larger.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Name, dtype and shape of one tensor in a file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// The name of the tensor.
    pub name: String,
    /// The dtype in the file.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<usize>,
}

impl TensorHeader {
    /// Describes a tensor that is to be written.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Returns the size of the data in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bitsize() as u64 / 8
    }
}

/// Takes the bytes of a tensor that is written, in one or several parts.
pub struct TensorSink<'w> {
    out: &'w mut dyn Write,
    written: u64,
    failed: Option<std::io::Error>,
}

impl TensorSink<'_> {
    /// Writes the next bytes of the tensor: little-endian, row-major.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| {
            let error = Error::user(format!("a tensor could not be written: {e}"));
            self.failed = Some(e);
            error
        })
    }
}

/// Writes one safetensors file, atomically, with `{"format": "pt"}` as metadata.
///
/// `bytes(entry)` is called once per tensor, in the file's order (widest dtype first, then by name, as the
/// reference writer orders them), and must return exactly `entry.bytes()` little-endian bytes, row-major.
pub fn write_file<B: AsRef<[u8]>>(
    path: &Path,
    entries: &[TensorHeader],
    mut bytes: impl FnMut(&TensorHeader) -> Result<B>,
) -> Result<()> {
    write_file_in_parts(path, entries, false, |entry, out| out.put(bytes(entry)?.as_ref())).map(|_| ())
}

/// Does the same with tensors that are written in parts: `fill` gives the bytes of a tensor to a sink. With `fingerprint`, the
/// file's fingerprint is taken and returned.
fn write_file_in_parts(
    path: &Path,
    entries: &[TensorHeader],
    fingerprint: bool,
    mut fill: impl FnMut(&TensorHeader, &mut TensorSink) -> Result<()>,
) -> Result<Option<FileFingerprint>> {
    let mut order: Vec<&TensorHeader> = entries.iter().collect();
    order.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let header = header(path, &order)?;

    let (mut failed, mut taken) = (None, None);
    let mut write_all = |out: &mut dyn Write| -> std::io::Result<()> {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for entry in &order {
            let mut sink = TensorSink { out: &mut *out, written: 0, failed: None };
            let made = fill(entry, &mut sink);
            let (found, expected) = (sink.written, entry.bytes());
            if let Some(e) = sink.failed {
                return Err(e);
            }
            let made = made.and_then(|()| match found == expected {
                true => Ok(()),
                false => Err(Error::bug(format!(
                    "tensor {}: {expected} bytes expected, {found} given to the writer",
                    entry.name
                ))),
            });
            if let Err(e) = made {
                failed = Some(e);
                return Err(std::io::Error::other("a tensor could not be made"));
            }
        }
        Ok(())
    };
    let written = fsutil::write_atomic(path, |out| {
        if !fingerprint {
            return write_all(out);
        }
        let mut out = FingerprintWriter::new(out);
        write_all(&mut out)?;
        taken = Some(out.finish());
        Ok(())
    });
    match failed {
        Some(e) => Err(e.context(format!("writing {}", path.display()))),
        None => written.map(|()| taken),
    }
}

/// Writes `model.safetensors` into `folder`, or numbered shards of at most `shard_bytes` with
/// `model.safetensors.index.json`. Returns the files written, in order.
///
/// Shards are filled in the order of `entries`; the folder must not hold older weights.
pub fn write_model<B: AsRef<[u8]>>(
    folder: &Path,
    entries: &[TensorHeader],
    shard_bytes: u64,
    mut bytes: impl FnMut(&TensorHeader) -> Result<B>,
) -> Result<Vec<PathBuf>> {
    let fill = |entry: &TensorHeader, out: &mut TensorSink| out.put(bytes(entry)?.as_ref());
    let files = write_shards(folder, entries, shard_bytes, false, fill)?;
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// A weight file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Where it is.
    pub path: PathBuf,
    /// What was written into it.
    pub fingerprint: FileFingerprint,
}

/// Does the same with tensors that are written in parts: `fill` gives the bytes of a tensor to a sink, so that not even one
/// tensor has to be in memory. Returns the files with their fingerprints.
pub fn write_model_in_parts(
    folder: &Path,
    entries: &[TensorHeader],
    shard_bytes: u64,
    fill: impl FnMut(&TensorHeader, &mut TensorSink) -> Result<()>,
) -> Result<Vec<WrittenFile>> {
    let files = write_shards(folder, entries, shard_bytes, true, fill)?;
    Ok(files
        .into_iter()
        .filter_map(|(path, fingerprint)| Some(WrittenFile { path, fingerprint: fingerprint? }))
        .collect())
}

fn write_shards(
    folder: &Path,
    entries: &[TensorHeader],
    shard_bytes: u64,
    fingerprint: bool,
    mut fill: impl FnMut(&TensorHeader, &mut TensorSink) -> Result<()>,
) -> Result<Vec<(PathBuf, Option<FileFingerprint>)>> {
    let shards = shards(entries, shard_bytes);
    if let [_] = shards[..] {
        let path = folder.join("model.safetensors");
        let taken = write_file_in_parts(&path, entries, fingerprint, fill)?;
        return Ok(vec![(path, taken)]);
    }
    let mut files = Vec::new();
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let path = folder.join(&file);
        let taken = write_file_in_parts(&path, shard, fingerprint, &mut fill)?;
        weight_map.extend(shard.iter().map(|e| (e.name.clone(), file.clone())));
        files.push((path, taken));
    }
    let index = serde_json::json!({
        "metadata": {
            "total_parameters": entries.iter().map(TensorHeader::elements).sum::<u64>(),
            "total_size": entries.iter().map(TensorHeader::bytes).sum::<u64>(),
        },
        "weight_map": weight_map,
    });
    fsutil::write_json(&folder.join("model.safetensors.index.json"), &index)?;
    Ok(files)
}

/// Returns the JSON header, padded with spaces so that the data starts at a multiple of eight bytes.
fn header(path: &Path, order: &[&TensorHeader]) -> Result<Vec<u8>> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(order.len());
    for entry in order {
        let start = end;
        end += entry.bytes() as usize;
        infos.push((
            entry.name.clone(),
            TensorInfo { dtype: entry.dtype, shape: entry.shape.clone(), data_offsets: (start, end) },
        ));
    }
    let refuse = |e: &dyn std::fmt::Display| Error::bug(format!("{}: safetensors header: {e}", path.display()));
    if let Some(pair) = infos.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(refuse(&format!("tensor {} appears twice", pair[0].0)));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(metadata), infos).map_err(|e| refuse(&e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| refuse(&e))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok(json)
}

/// Splits `entries`, in order, into shards of at most `limit` bytes; a larger tensor gets a shard of its own.
fn shards(entries: &[TensorHeader], limit: u64) -> Vec<&[TensorHeader]> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, entry) in entries.iter().enumerate() {
        if i > start && size + entry.bytes() > limit {
            shards.push(&entries[start..i]);
            (start, size) = (i, 0);
        }
        size += entry.bytes();
    }
    shards.push(&entries[start..]);
    shards
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::safetensors::SafeTensors;

    fn entries() -> Vec<TensorHeader> {
        vec![
            TensorHeader::new("b.weight", Dtype::BF16, [2, 3]),
            TensorHeader::new("a.weight", Dtype::F32, [4]),
            TensorHeader::new("a.bias", Dtype::F32, [2]),
        ]
    }

    fn filled(entry: &TensorHeader) -> Result<Vec<u8>> {
        Ok(vec![entry.name.len() as u8; entry.bytes() as usize])
    }

    #[test]
    fn one_file_reads_back_with_aligned_data_and_reference_order() {
        let folder = tempfile::tempdir().unwrap();
        let files = write_model(folder.path(), &entries(), SHARD_BYTES, filled).unwrap();
        assert_eq!(files, [folder.path().join("model.safetensors")]);
        let data = std::fs::read(&files[0]).unwrap();
        let (length, metadata) = SafeTensors::read_metadata(&data).unwrap();
        assert_eq!(length % 8, 0);
        assert_eq!(metadata.offset_keys(), ["a.bias", "a.weight", "b.weight"]);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let b = SafeTensors::deserialize(&data).unwrap();
        assert_eq!(b.tensor("b.weight").unwrap().data(), [8; 12]);
        assert_eq!(b.tensor("b.weight").unwrap().shape(), [2, 3]);
    }

    #[test]
    fn shards_respect_the_limit_and_the_index_names_every_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let files = write_model(folder.path(), &entries(), 16, filled).unwrap();
        assert_eq!(files.len(), 3);
        assert!(files[2].ends_with("model-00003-of-00003.safetensors"));
        let index: serde_json::Value = fsutil::read_json(&folder.path().join("model.safetensors.index.json")).unwrap();
        assert_eq!(index["metadata"]["total_size"], 36);
        assert_eq!(index["metadata"]["total_parameters"], 12);
        assert_eq!(index["weight_map"]["a.weight"], "model-00002-of-00003.safetensors");
    }

    #[test]
    fn wrong_length_or_failing_producer_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let short = write_file(&path, &entries(), |_| Ok(vec![0u8; 3])).unwrap_err();
        assert!(short.message().contains("a.bias: 8 bytes expected, 3 given"), "{short}");
        let told = write_file(&path, &entries(), |_| Err::<Vec<u8>, _>(Error::user("no such block"))).unwrap_err();
        assert!(told.message().contains("no such block"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let twice = [TensorHeader::new("a", Dtype::F32, [1]), TensorHeader::new("a", Dtype::F32, [1])];
        assert!(write_file(&folder.path().join("x"), &twice, filled).unwrap_err().message().contains("twice"));
    }
}
