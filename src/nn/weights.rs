//! Reads weights from safetensors files, one file or shards, by mapping them into memory; and writes them.

use crate::error::{Error, Result};
use crate::fsutil::{excerpt, io_error, parse_json, read_to_string, refuse_unfinished_move};
use crate::gguf::tensor_map::LayoutChange;
use crate::native;
use crate::nn::quantised::QuantisedWeight;
use crate::nn::safetensors;
use ::safetensors::tensor::{Dtype, SafeTensors, TensorView};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// The tensors of a checkpoint, by name. They can be viewed in the mapped files or read into allocated memory.
pub struct Weights {
    origin: PathBuf,
    files: Vec<File>,
    paths: Vec<PathBuf>, // of the files
    maps: Vec<Tensor>,   // one per file: (bytes) uint8, a copy-on-write mapping
    entries: BTreeMap<String, TensorLocation>,
    /// Tensors in memory that take the place of those in the files.
    replaced: BTreeMap<String, Tensor>,
    quantised: BTreeMap<String, QuantisedLocation>,
}

/// A quantised matrix, and whether the model's other checkpoints store it as (in, out).
#[derive(Clone)]
struct QuantisedLocation {
    matrix: Rc<dyn QuantisedEntry>,
    transposed: bool,
}

/// A matrix that a checkpoint contains in quantised form. It is read when a model is built.
pub trait QuantisedEntry {
    /// Returns the shape as a linear layer uses it: (out, in).
    fn shape(&self) -> [i64; 2];

    /// Returns the size on disk in bytes, scales included.
    fn bytes(&self) -> u64;

    /// Reads the numbers, which stay quantised, to `device`. Fails if they or their scales are damaged.
    fn read(&self, device: Device) -> Result<QuantisedWeight>;

    /// Returns a weight that has the shape and takes the bytes of what `read` returns on the CPU, for a model of which only
    /// the shapes matter. Its numbers may be left out where reading them takes memory. Fails as `read` does, or later.
    fn outline(&self) -> Result<QuantisedWeight> {
        self.read(Device::Cpu)
    }
}

/// File, offset, dtype and shape of a tensor on disk.
#[derive(Clone)]
pub struct TensorLocation {
    /// Index of the file in `Weights::maps`.
    file_index: usize,
    /// The dtype on disk.
    pub kind: Kind,
    /// The shape.
    pub shape: Vec<i64>,
    /// Bytes from the start of the file.
    pub offset: usize,
    /// The size in bytes.
    pub bytes: usize,
    /// How the values are arranged on disk.
    layout: LayoutChange,
    transposed: bool,
}

impl TensorLocation {
    /// Describes a tensor of dtype `kind` in the `place` of a file. `shape` is that after `layout` is undone.
    pub fn new(kind: Kind, shape: Vec<i64>, place: Range<usize>, layout: LayoutChange) -> Self {
        let (offset, bytes) = (place.start, place.len());
        Self { file_index: 0, kind, shape, offset, bytes, layout, transposed: false }
    }

    /// Returns the tensor from its values in the order of the file.
    fn arranged(&self, values: &Tensor) -> Tensor {
        if let Some(order) = self.shape.first().and_then(|rows| self.layout.row_order(*rows as usize)) {
            let rows = values.view([order.len() as i64, -1]).index_select(0, &Tensor::from_slice(&order));
            return rows.view(self.shape.as_slice());
        }
        match (self.layout, &self.shape[..]) {
            (LayoutChange::Transpose, &[rows, columns]) => values.view([columns, rows]).tr(),
            (LayoutChange::Centre, shape) => values.view(shape) - 1.0,
            _ => values.view(self.shape.as_slice()),
        }
    }
}

/// The parameter of the model that a tensor of a checkpoint belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamMapping {
    /// The parameter's name: the module's name, then `weight` or `bias`.
    pub name: String,
    /// True for a linear layer's weight that is stored as (in, out).
    pub transposed: bool,
}

impl Weights {
    /// Opens a model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(folder: &Path) -> Result<Self> {
        refuse_unfinished_move(folder)?;
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let mut weights = Self::empty(folder);
        if single.exists() {
            weights.map(&single)?;
        } else if index.exists() {
            let weight_map = read_index(&index, &read_to_string(&index)?)?;
            let files: std::collections::BTreeSet<&String> = weight_map.values().collect();
            for file in files {
                if !folder.join(file).exists() {
                    return Err(Error::user(format!("{}: the shard {} is missing", index.display(), excerpt(file)))
                        .hint("the download is incomplete: fetch the model again"));
                }
                weights.map(&folder.join(file))?;
            }
            if let Some((name, file)) = weight_map.iter().find(|(name, _)| !weights.entries.contains_key(*name)) {
                return Err(Error::user(format!("{}: `{name}` is not in {file}", index.display()))
                    .hint("the download is incomplete or mixed up: fetch the model again"));
            }
        } else {
            let err =
                Error::user(format!("{}: no model.safetensors and no model.safetensors.index.json", folder.display()));
            return Err(if folder.join("pytorch_model.bin").exists() {
                err.hint("pytorch_model.bin is a pickle, which ft never opens: convert it to safetensors first")
            } else {
                err.hint("a model is a Hugging Face directory, or a GGUF file: name the file itself")
            });
        }
        Ok(weights)
    }

    /// Opens one safetensors file. Fails for numbers of 8 bits, which mean nothing without their scales.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut weights = Self::empty(path);
        weights.map(path)?;
        if let Some(name) = weights.names().find(|name| weights.kind(name) == Some(Kind::Float8e4m3fn)) {
            return Err(unread_dtype(path, name, Dtype::F8_E4M3));
        }
        Ok(weights)
    }

    /// Begins a checkpoint without tensors, which comes from the file or folder `origin`.
    pub fn empty(origin: &Path) -> Self {
        let (entries, replaced, quantised) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (files, paths, maps) = (Vec::new(), Vec::new(), Vec::new());
        Self { origin: origin.into(), files, paths, maps, entries, replaced, quantised }
    }

    /// Puts `tensor`, which may have another shape, in the place of the one of this name. Fails if there is none.
    pub fn replace(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let Some(entry) = self.entries.get_mut(name) else {
            return Err(Error::bug(format!("{}: there is no `{name}` to replace", self.origin.display())));
        };
        (entry.kind, entry.shape) = (tensor.kind(), tensor.size());
        entry.bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        self.replaced.insert(name.into(), tensor);
        Ok(())
    }

    /// Adds a matrix that is stored quantised.
    pub fn add_quantised(&mut self, name: String, matrix: Rc<dyn QuantisedEntry>) {
        self.quantised.insert(name, QuantisedLocation { matrix, transposed: false });
    }

    /// Returns a matrix that is stored quantised; `None` if there is none of this name.
    pub fn quantised(&self, name: &str) -> Option<&Rc<dyn QuantisedEntry>> {
        self.quantised.get(name).map(|location| &location.matrix)
    }

    fn map(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|e| io_error("reading", path, e))?;
        // SAFETY: the mapping is only read. If the file is truncated while mapped, the process dies, as with every
        // loader.
        let header = unsafe { Mmap::map(&file) }.map_err(|e| io_error("mapping", path, e))?;
        let found = read_header(path, &header)?;
        self.add_file(path, found).map(|_| ())
    }

    /// Maps a file and adds tensors in it, by name. Returns the whole file as bytes: (size) uint8.
    pub fn add_file(&mut self, path: &Path, found: Vec<(String, TensorLocation)>) -> Result<Tensor> {
        let file = File::open(path).map_err(|e| io_error("reading", path, e))?;
        let size = file.metadata().map_err(|e| io_error("reading", path, e))?.len();
        let name = path.to_str().ok_or_else(|| Error::user(format!("{}: the path is not UTF-8", path.display())))?;
        let map = self.maps.len();
        for (tensor, entry) in found {
            if self.entries.contains_key(&tensor) {
                return Err(damaged_file(path, &format!("`{tensor}` is in two shards")));
            }
            self.entries.insert(tensor, TensorLocation { file_index: map, ..entry });
        }
        let bytes = Tensor::from_file(name, false, size as i64, (Kind::Uint8, Device::Cpu));
        self.maps.push(bytes.shallow_clone());
        self.files.push(file);
        self.paths.push(path.into());
        Ok(bytes)
    }

    /// Renames all tensors from the checkpoint's names to the model's parameters by `place`. Tensors for which it
    /// returns `None` are left out. Fails if two tensors get the same name.
    pub fn map_names(&mut self, place: impl Fn(&str) -> Option<ParamMapping>) -> Result<()> {
        let origin = self.origin.display().to_string();
        let two_tensors = |name: &str| {
            Error::user(format!("{origin}: two tensors for `{name}`")).hint("the file holds two checkpoints: keep one")
        };
        for (old, mut entry) in std::mem::take(&mut self.entries) {
            let Some(ParamMapping { name, transposed }) = place(&old) else { continue };
            entry.transposed = transposed;
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(two_tensors(&name));
            }
        }
        for (old, QuantisedLocation { matrix, .. }) in std::mem::take(&mut self.quantised) {
            let Some(ParamMapping { name, transposed }) = place(&old) else { continue };
            let location = QuantisedLocation { matrix, transposed };
            if self.entries.contains_key(&name) || self.quantised.insert(name.clone(), location).is_some() {
                return Err(two_tensors(&name));
            }
        }
        Ok(())
    }

    /// Replaces a tensor (n, …) by its n parts, which get the names that `name_of` returns. If `transpose` is true, each part is a
    /// matrix that is used transposed. Fails if there is no such tensor, or if it has another number of dimensions than `rank`
    /// or of parts than `count`.
    pub fn split(
        &mut self,
        name: &str,
        (rank, count): (usize, i64),
        transpose: bool,
        name_of: impl Fn(i64) -> String,
    ) -> Result<()> {
        let origin = self.origin.display().to_string();
        let fits = |e: &TensorLocation| e.shape.len() == rank && e.shape[0] == count && e.layout == LayoutChange::None;
        let Some(e) = self.entries.get(name).filter(|e| fits(e)).cloned() else {
            let found = self.shape(name).map_or("is missing".into(), |shape| format!("has shape {shape:?}"));
            return Err(Error::user(format!(
                "{origin}: `{name}` {found}, expected {rank} dimensions, the first of {count}"
            ))
            .hint("is config.json that of another checkpoint?"));
        };
        self.entries.remove(name);
        let bytes = e.bytes / count as usize;
        for i in 0..count {
            let mut part = TensorLocation { bytes, offset: e.offset + i as usize * bytes, ..e.clone() };
            part.shape.remove(0);
            if transpose {
                part.shape.reverse();
                part.layout = LayoutChange::Transpose;
            }
            if self.entries.insert(name_of(i), part).is_some() {
                return Err(Error::user(format!("{origin}: two tensors for `{}`", name_of(i)))
                    .hint("the file holds two checkpoints: keep one"));
            }
        }
        Ok(())
    }

    /// Takes a tensor out of the checkpoint: a view of the mapped file; `None` if there is none of this name.
    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        let tensor = self.get(name)?;
        self.entries.remove(name);
        Some(tensor)
    }

    /// Returns true if some matrices are stored quantised.
    pub fn has_quantised(&self) -> bool {
        !self.quantised.is_empty()
    }

    /// Returns true for a bias of zeros beside a quantised matrix. AutoGPTQ once wrote them for layers without a bias.
    pub fn is_idle_bias(&self, name: &str) -> bool {
        let Some(module) = name.strip_suffix(".bias") else { return false };
        let zeros = |t: Tensor| t.count_nonzero(None::<i64>).int64_value(&[]) == 0;
        self.quantised.contains_key(&format!("{module}.weight")) && self.get(name).is_some_and(zeros)
    }

    /// Gives the tensor `of` a second name, if it exists.
    pub fn alias(&mut self, name: &str, of: &str) {
        if let Some(entry) = self.entries.get(of).cloned() {
            self.entries.insert(name.into(), entry);
        }
        if let Some(tensor) = self.replaced.get(of).map(Tensor::shallow_clone) {
            self.replaced.insert(name.into(), tensor);
        }
        if let Some(matrix) = self.quantised.get(of).cloned() {
            self.quantised.insert(name.into(), matrix);
        }
    }

    /// Returns true for a linear layer's weight that is stored as (in, out), and for a quantised one of a family whose
    /// other checkpoints store it so.
    pub fn transposed(&self, name: &str) -> bool {
        let quantised = self.quantised.get(name).is_some_and(|location| location.transposed);
        quantised || self.entries.get(name).is_some_and(|e| e.transposed)
    }

    /// Returns the file or folder that the weights come from, for messages.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Returns the names of all tensors and quantised matrices.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().chain(self.quantised.keys()).map(String::as_str)
    }

    /// Returns the shape of a tensor that is not quantised; `None` if there is none of this name.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// Returns the number of parameters in a tensor or quantised matrix; 0 if there is none of this name.
    pub fn count(&self, name: &str) -> u64 {
        let product = |shape: &[i64]| shape.iter().product::<i64>() as u64;
        let quantised = self.quantised(name).map(|matrix| product(&matrix.shape()));
        quantised.or(self.shape(name).map(product)).unwrap_or(0)
    }

    /// Returns the dtype that a tensor has on disk.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.get(name).map(|e| e.kind)
    }

    /// Returns the size of all tensors on disk in bytes.
    pub fn total_bytes(&self) -> u64 {
        let quantised: u64 = self.quantised.values().map(|location| location.matrix.bytes()).sum();
        quantised + self.entries.values().map(|e| e.bytes as u64).sum::<u64>()
    }

    /// Returns a tensor as a view of the mapped file, or the one in its place, in its own dtype; `None` if there is none of
    /// this name. Rows that the file has in another order are copied.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let e = self.entries.get(name)?;
        if let Some(tensor) = self.replaced.get(name) {
            return Some(tensor.shallow_clone());
        }
        let bytes = self.maps[e.file_index].narrow(0, e.offset as i64, e.bytes as i64);
        // A view needs an aligned start. Most writers pad for that; files of others are copied.
        let bytes = if e.offset % e.kind.elt_size_in_bytes() == 0 { bytes } else { bytes.copy() };
        Some(e.arranged(&bytes.view_dtype(e.kind)))
    }

    /// Lets go of the memory that views of a tensor took when their numbers were read. Those that are read again come from the
    /// file.
    pub fn release(&self, name: &str) {
        if let Some(e) = self.entries.get(name).filter(|_| !self.replaced.contains_key(name)) {
            let bytes = self.maps[e.file_index].narrow(0, e.offset as i64, e.bytes as i64);
            // SAFETY: the maps are of files, and no tensor is written through them.
            unsafe { native::release_mapped(&bytes) };
        }
    }

    /// Reads a tensor into allocated memory on the CPU, in its own dtype; `None` if there is none of this name.
    /// Allocated memory has large pages and can be read up to three times as fast as the page cache behind a mapping.
    pub fn read(&self, name: &str) -> Option<Result<Tensor>> {
        let e = self.entries.get(name)?;
        if let Some(tensor) = self.replaced.get(name) {
            return Some(Ok(tensor.shallow_clone()));
        }
        let tensor = Tensor::empty((e.bytes / e.kind.elt_size_in_bytes()) as i64, (e.kind, Device::Cpu));
        let read = native::fill_bytes(&tensor, |bytes| self.files[e.file_index].read_exact_at(bytes, e.offset as u64));
        Some(read.map(|()| e.arranged(&tensor)).map_err(|error| io_error("reading", &self.origin, error)))
    }

    /// Returns the file that contains a tensor; `None` if there is none of this name.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.entries.get(name).map(|e| self.paths[e.file_index].as_path())
    }

    /// Returns a reader of parts of a tensor, which several threads can use; `None` if there is none of this name. Rows that the
    /// file has in another order, and tensors that were replaced, are copied into memory.
    pub fn entry_reader(&self, name: &str) -> Option<EntryReader<'_>> {
        let e = self.entries.get(name)?;
        let source = match self.replaced.contains_key(name) || e.layout != LayoutChange::None {
            true => EntrySource::Memory(bytes(&self.get(name)?)),
            false => EntrySource::File(&self.files[e.file_index], e.offset),
        };
        let (path, size) = (self.paths[e.file_index].as_path(), e.kind.elt_size_in_bytes());
        Some(EntryReader { source, kind: e.kind, size, path })
    }

    /// Returns the name of the tensor in this file that has bytes from this place on, or the next one.
    pub fn tensor_at(&self, path: &Path, place: u64) -> Option<&str> {
        let ends_after = |e: &TensorLocation| self.paths[e.file_index] == path && (e.offset + e.bytes) as u64 > place;
        let found = self.entries.iter().filter(|(_, e)| ends_after(e)).min_by_key(|(_, e)| e.offset);
        found.map(|(name, _)| name.as_str())
    }

    /// Returns all tensors that are not quantised as views of the mapped files.
    pub fn all(&self) -> BTreeMap<String, Tensor> {
        self.entries.keys().map(|n| (n.to_string(), self.get(n).expect("listed"))).collect()
    }
}

/// Reads parts of one tensor. Several threads can use it.
pub struct EntryReader<'w> {
    source: EntrySource<'w>,
    kind: Kind,
    /// Bytes of an entry.
    size: usize,
    path: &'w Path,
}

enum EntrySource<'w> {
    /// Bytes of a file from this place on.
    File(&'w File, usize),
    Memory(Vec<u8>),
}

impl EntryReader<'_> {
    /// Returns the dtype of the entries.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Reads entries, counted in row-major order from `first` on, into `bytes`, in the tensor's own dtype.
    pub fn read(&self, first: usize, bytes: &mut [u8]) -> Result<()> {
        let start = first * self.size;
        match &self.source {
            EntrySource::Memory(all) => bytes.copy_from_slice(&all[start..start + bytes.len()]),
            EntrySource::File(file, offset) => {
                let read = file.read_exact_at(bytes, (offset + start) as u64);
                read.map_err(|e| io_error("reading", self.path, e))?;
            }
        }
        Ok(())
    }
}

/// Returns the error for a tensor in a number format that is not read.
fn unread_dtype(path: &Path, tensor: &str, dtype: Dtype) -> Error {
    Error::user(format!("{}: `{tensor}` has dtype {dtype:?}, which ft does not read", path.display()))
        .hint("save the model in bf16, f16 or f32")
}

fn damaged_file(path: &Path, why: &str) -> Error {
    Error::user(format!("{}: not a whole safetensors file: {why}", path.display()))
        .hint("the download or copy is incomplete or damaged: fetch it again")
}

/// Parses the header of a safetensors file with content `bytes` and checks that each tensor is inside the file.
/// `path` is used in error messages.
pub fn read_header(path: &Path, bytes: &[u8]) -> Result<Vec<(String, TensorLocation)>> {
    let parsed = SafeTensors::deserialize(bytes).map_err(|e| damaged_file(path, &e.to_string()))?;
    let entry = |(tensor, view): (&str, TensorView)| {
        let kind = kind_of(view.dtype()).ok_or_else(|| unread_dtype(path, tensor, view.dtype()))?;
        let shape = view.shape().iter().map(|&n| i64::try_from(n)).collect::<std::result::Result<_, _>>();
        let shape = shape.map_err(|_| damaged_file(path, &format!("`{tensor}` has shape {:?}", view.shape())))?;
        let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        Ok((
            tensor.to_string(),
            TensorLocation::new(kind, shape, offset..offset + view.data().len(), LayoutChange::None),
        ))
    };
    parsed.iter().map(entry).collect()
}

/// Parses model.safetensors.index.json into the shard of each tensor. Fails if a shard's name points outside the
/// index's folder.
pub fn read_index(path: &Path, text: &str) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct ShardIndex {
        weight_map: BTreeMap<String, String>,
    }
    let ShardIndex { weight_map } = parse_json(path, text)?;
    for file in weight_map.values() {
        let mut parts = Path::new(file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None));
        if !plain || file.contains('\0') {
            return Err(Error::user(format!("{}: shard name `{}` leaves the folder", path.display(), excerpt(file)))
                .hint(
                    "a shard is a file in the same folder as its index; is this the index that came with the model?",
                ));
        }
    }
    Ok(weight_map)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        // Numbers packed into 32 bits, whose sign means nothing. torch has few operations for its own kind of this.
        Dtype::I32 | Dtype::U32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        Dtype::F8_E4M3 => Kind::Float8e4m3fn,
        _ => return None,
    })
}

/// Returns the safetensors name of a dtype.
pub fn dtype_of(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        Kind::Float8e4m3fn => Dtype::F8_E4M3,
        other => return Err(Error::bug(format!("safetensors has no dtype for {other:?}"))),
    })
}

/// Returns a tensor's bytes in the layout of a file, copied from its device.
pub fn bytes(tensor: &Tensor) -> Vec<u8> {
    let t = tensor.detach().to_device(Device::Cpu).contiguous();
    let length = t.numel() * t.kind().elt_size_in_bytes();
    let mut bytes = vec![0u8; length];
    t.flatten(0, -1).view_dtype(Kind::Uint8).copy_data_u8(&mut bytes, length);
    bytes
}

/// Writes tensors into one safetensors file, atomically.
pub fn save<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let tensors: BTreeMap<&str, &Tensor> = tensors.into_iter().collect();
    let entries = tensors
        .iter()
        .map(|(name, t)| {
            let shape: Vec<usize> = t.size().iter().map(|&n| n as usize).collect();
            Ok(safetensors::TensorHeader::new(*name, dtype_of(t.kind())?, shape))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::write_file(path, &entries, |e| Ok(bytes(tensors[e.name.as_str()])))
}
