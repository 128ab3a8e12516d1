//! Tensors that are read, changed and written in blocks: entries in float32, the bytes that are written, and the comparison of the
//! written files with them.

use crate::convert::verify::report::WeightFile;
use crate::error::{Error, Result};
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage};
use crate::native::merging::best;
use crate::nn::safetensors::WrittenFile;
use crate::nn::weights::EntryReader;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind};

thread_local! {
    /// Bytes as they are in a file.
    static BYTES: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// Reads entries from `first` on in float32.
pub(super) fn read_entries(reader: &EntryReader, first: usize, numbers: &mut [f32]) -> Result<()> {
    if reader.kind() == Kind::Float {
        return reader.read(first, bytemuck::cast_slice_mut(numbers));
    }
    BYTES.with_borrow_mut(|halves| {
        halves.resize(numbers.len(), 0);
        reader.read(first, bytemuck::cast_slice_mut(halves))?;
        match reader.kind() {
            Kind::BFloat16 => best().widen(halves, numbers),
            Kind::Half => bytemuck::cast_slice::<u16, f16>(halves).convert_to_f32_slice(numbers),
            other => return Err(Error::bug(format!("merge: a tensor in {other:?}"))),
        }
        Ok(())
    })
}

/// Rounds numbers to the format that is written, and returns their bytes, two by two; `None` if one is NaN or infinite then.
pub(super) fn written_bytes(numbers: &mut [f32], kind: Kind) -> Option<Vec<u16>> {
    if kind == Kind::Float {
        return best().finite(numbers).then(|| bytemuck::cast_slice(numbers).to_vec());
    }
    let mut halves = vec![0u16; numbers.len()];
    let finite = match kind {
        Kind::Half => {
            let halves: &mut [f16] = bytemuck::cast_slice_mut(&mut halves);
            halves.convert_from_f32_slice(numbers);
            halves.iter().all(|half| half.is_finite())
        }
        _ => {
            best().narrow(numbers, &mut halves);
            // What is rounded takes the place of what it was rounded from.
            best().widen(&halves, numbers);
            best().finite(numbers)
        }
    };
    finite.then_some(halves)
}

/// A tensor as it was to be written.
pub(super) struct PlannedTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [i64],
    /// Its number format.
    pub kind: Kind,
}

/// Reads a model directory back: the files must have the bytes that were written, the tensors the names, formats and shapes that
/// were planned, and a model of this config must consist of exactly these tensors. Its weights stay in their files. Returns the
/// config.
pub(super) fn check_written(folder: &Path, files: &[WrittenFile], planned: &[PlannedTensor]) -> Result<Config> {
    let back = |e: Error| e.context("reading back what was just written");
    let config = Config::read(folder).map_err(back)?;
    let read = models::weights(folder, &config).map_err(back)?;
    let differs = |name: &str| {
        Error::user(format!("`{name}` in the written files differs from what was merged"))
            .hint("the disk or the memory of this machine is faulty, or another program changed the files")
    };
    let names: BTreeSet<&str> = read.names().collect();
    let wanted: BTreeSet<&str> = planned.iter().map(|tensor| tensor.name).collect();
    if let Some(name) = names.symmetric_difference(&wanted).next() {
        return Err(differs(name));
    }
    let unlike = |t: &&PlannedTensor| read.shape(t.name) != Some(t.shape) || read.kind(t.name) != Some(t.kind);
    if let Some(tensor) = planned.iter().find(unlike) {
        return Err(differs(tensor.name));
    }
    for file in files {
        if let Some(place) = file.fingerprint.first_difference(&file.path).map_err(back)? {
            return Err(differs(read.tensor_at(&file.path, place).unwrap_or("the header")));
        }
    }
    let options = LoadOptions {
        device: Device::Cpu,
        kind: Kind::Float,
        storage: Storage::File,
        train_base: None,
        adapters: Vec::new(),
        vocabulary: None,
        heads: Heads::Tokens,
    };
    Model::load(folder, options).map_err(back)?;
    Ok(config)
}

/// Returns size and hash of each written file, by name.
pub(in crate::convert) fn weight_files(files: &[WrittenFile]) -> BTreeMap<String, WeightFile> {
    let described = |file: &WrittenFile| {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, WeightFile { bytes: file.fingerprint.bytes, sha256: file.fingerprint.sha256.clone() })
    };
    files.iter().map(described).collect()
}
