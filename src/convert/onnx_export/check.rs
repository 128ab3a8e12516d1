//! Reads a written folder back and compares it with the model that it was made from.

use super::weights::{DATA_FILE, WeightPlan};
use super::{MODEL_FILE, SourceWeights};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::onnx::{self, Graph, Initializer, InitializerData};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct OnnxReadBack {
    /// Number of tensors of the model that were compared.
    pub tensors: u64,
    /// By type: how far the numbers are from the model's, as the root of the mean square divided by that of the numbers.
    pub relative_error: BTreeMap<String, f64>,
}

/// Compares the folder with the graph that it must contain, and its weights with the model's. Fails if a tensor is not exactly
/// what its form makes of the model's.
pub fn check(
    folder: &Path,
    graph: &Graph,
    plan: &WeightPlan,
    source: &SourceWeights,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<OnnxReadBack> {
    let found = onnx::decode(&fsutil::read(&folder.join(MODEL_FILE))?)
        .ok_or_else(|| Error::bug(format!("{MODEL_FILE} was written and cannot be read")))?;
    if found != *graph {
        return Err(Error::bug(format!("{MODEL_FILE} has another graph than was written")));
    }
    let path = folder.join(DATA_FILE);
    let failed = |e| fsutil::io_error("reading", &path, e);
    let file = File::open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size != plan.bytes {
        return Err(Error::bug(format!("{DATA_FILE} has {size} bytes, {} were written", plan.bytes)));
    }
    let by_name: HashMap<&str, &Initializer> =
        found.initializers.iter().map(|initializer| (initializer.value.name(), initializer)).collect();
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for weight in &plan.list {
        step()?;
        let values = source.values(&weight.source, &weight.shape)?;
        source.release(&weight.source);
        let expected = weight.form.encode(&weight.source, values.clone(), &weight.shape)?;
        let mut kind = "";
        for (i, ((value, _), expected)) in weight.placed.iter().zip(&expected).enumerate() {
            let initializer = by_name[value.name()];
            let InitializerData::Beside { offset, .. } = initializer.data else {
                return Err(Error::bug(format!("{value} is not in {DATA_FILE}")));
            };
            let mut bytes = vec![0; initializer.bytes() as usize];
            file.read_exact_at(&mut bytes, offset).map_err(failed)?;
            if bytes != *expected {
                return Err(Error::bug(format!("{value} in {DATA_FILE} is not what was made of {}", weight.source)));
            }
            if i == 0 {
                kind = initializer.kind.name();
            }
        }
        let (error, norm) = weight.form.loss(&values, &weight.shape, &expected);
        let sums = sums.entry(kind).or_default();
        *sums = (sums.0 + error, sums.1 + norm);
    }
    let relative = |(error, norm): (f64, f64)| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    Ok(OnnxReadBack {
        tensors: plan.list.len() as u64,
        relative_error: sums.into_iter().map(|(kind, sums)| (kind.into(), relative(sums))).collect(),
    })
}
