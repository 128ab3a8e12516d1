//! A model ready to answer: base, adapters from disk, device and dtype.

use super::{Heads, Load, Model};
use crate::adapters::{LoraPlan, file};
use crate::error::{Error, Result};
use crate::nn::{Attach, Param};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// Loads a base with adapters from disk, for inference. The first adapter, named by its folder's number (`0`, `1`, …),
/// is switched on.
pub fn open(base: &Path, adapters: &[PathBuf], device: Device, kind: Kind) -> Result<Model> {
    let files = adapters.iter().map(|folder| file::read(folder)).collect::<Result<Vec<_>>>()?;
    let plans = files.iter().zip(adapters).map(|(f, folder)| LoraPlan::of_file(&f.spec, &folder.join(file::CONFIG)));
    let plans = plans.collect::<Result<Vec<_>>>()?;
    let named = plans.iter().enumerate().map(|(i, p)| (i.to_string(), p as &dyn Attach)).collect();
    let model = Model::load(base, Load { device, kind, train_base: false, adapters: named, heads: Heads::Tokens })?;
    for (i, (file, folder)) in files.iter().zip(adapters).enumerate() {
        file::load_into(model.params().adapter(i), &file.tensors, folder)?;
    }
    Ok(model)
}

/// Refuses adapters that `open` put on the model where they hold NaN or infinite values: whatever they answer is nonsense.
pub fn need_finite_adapters(model: &Model, adapters: &[PathBuf]) -> Result<()> {
    for (i, folder) in adapters.iter().enumerate() {
        let broken = |p: &&Param| p.tensor.isfinite().all().int64_value(&[]) == 0;
        if let Some(p) = model.params().adapter(i).find(broken) {
            return Err(Error::user(format!(
                "{}: `{}` has NaN or infinite values",
                folder.join(file::TENSORS).display(),
                p.name
            ))
            .hint("the training run was not stable, or the file is damaged: use an earlier checkpoint"));
        }
    }
    Ok(())
}

/// `auto` (CUDA where there is one, else CPU), `cpu`, `cuda` or `cuda:N`.
pub fn device(name: &str) -> Result<Device> {
    let cuda = |index: usize| {
        let count = tch::Cuda::device_count() as usize;
        if tch::Cuda::is_available() && index < count {
            Ok(Device::Cuda(index))
        } else {
            Err(Error::user(format!("device {name}: {count} CUDA devices are there"))
                .hint("see what is missing with: ft doctor; or use cpu"))
        }
    };
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(if tch::Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu }),
        "cuda" => cuda(0),
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(index) => cuda(index),
            None => Err(Error::user(format!("device `{other}` is not known")).hint("one of: auto, cpu, cuda, cuda:N")),
        },
    }
}
