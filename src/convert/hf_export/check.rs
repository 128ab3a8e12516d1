//! Reads a written directory back, as models are opened, and compares it with the model that it was made from.

use super::tensors::ExportTensors;
use crate::convert::gguf_export::source::floats;
use crate::error::{Error, Result};
use crate::models::{self, Config};
use crate::nn::Weights;
use crate::nn::safetensors::WrittenFile;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct HfReadBack {
    /// Number of tensors of the model that were compared.
    pub tensors: u64,
    /// By format: how far the numbers are from the model's, as the root of the mean square divided by that of the numbers.
    pub relative_error: BTreeMap<String, f64>,
}

/// Compares a directory with what was to be written. Fails if its files have other bytes than were written, if a tensor that ft
/// reads from them is not exactly what its format makes of the model's, or if no model can be built of it.
pub(super) fn check(
    folder: &Path,
    files: &[WrittenFile],
    tensors: &ExportTensors,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<HfReadBack> {
    let back = |e: Error| e.context("reading back what was just written");
    let config = Config::read(folder).map_err(back)?;
    let read = models::weights(folder, &config).map_err(back)?;
    let (wanted, found): (BTreeSet<&str>, BTreeSet<&str>) = (tensors.names().collect(), read.names().collect());
    if let Some(name) = wanted.symmetric_difference(&found).next() {
        return Err(Error::bug(format!("`{name}` is written or read alone")));
    }
    let differs = |name: &str| {
        Error::user(format!("`{name}` in the written files differs from what was made of the model"))
            .hint("the disk or the memory of this machine is faulty, or another program changed the files")
    };
    for file in files {
        if let Some(place) = file.fingerprint.first_difference(&file.path).map_err(back)? {
            return Err(differs(read.tensor_at(&file.path, place).unwrap_or("the header")));
        }
    }
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for name in tensors.names() {
        step()?;
        let exact = tensors.exact(name)?;
        let numbers = match tensors.quantised_matrices(name) {
            None => {
                let (found, expected) = (read.get(name).ok_or_else(|| differs(name))?, tensors.rounded(name)?);
                if found.kind() != expected.kind() || !found.equal(&expected) {
                    return Err(differs(name));
                }
                found
            }
            Some(matrices) => {
                let expected = matrices.quantise(name, &exact)?.dense(Kind::Float);
                let found = dense(&read, name)?.filter(|found| found.equal(&expected)).ok_or_else(|| differs(name))?;
                if read.transposed(name) { found.tr() } else { found }
            }
        };
        let sums = sums.entry(tensors.format_of(name)).or_default();
        for (found, exact) in floats(&numbers).iter().zip(floats(&exact)) {
            sums.0 += f64::from(found - exact).powi(2);
            sums.1 += f64::from(exact).powi(2);
        }
        tensors.release(name);
        read.release(name);
    }
    super::outline(folder).map_err(back)?;
    let relative = |(error, norm): (f64, f64)| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    Ok(HfReadBack {
        tensors: wanted.len() as u64,
        relative_error: sums.into_iter().map(|(kind, sums)| (kind, relative(sums))).collect(),
    })
}

/// Returns the numbers (out, in) of a matrix that is stored quantised; `None` if there is none of this name.
fn dense(read: &Weights, name: &str) -> Result<Option<Tensor>> {
    read.quantised(name).map(|matrix| Ok(matrix.read(Device::Cpu)?.dense(Kind::Float))).transpose()
}
