//! Makes a PEFT adapter of an adapter of mlx-lm.

use super::families::refusal;
use super::{ADAPTER_TENSORS, MlxAdapterConfig};
use crate::adapters::file;
use crate::adapters::lora::LoraSpec;
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::adapters::{AdapterSpec, Targets};
use crate::convert::export::adapter_folder::{with_named_targets, write_adapter_folder};
use crate::convert::folder::destination::Destination;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{self, Config};
use crate::nn::Weights;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// What is imported, and to where.
pub struct MlxImportOptions<'a> {
    /// The folder of the adapter.
    pub adapter: &'a Path,
    /// The model that it belongs to, as a Hugging Face directory.
    pub base: &'a Path,
    /// The folder to write.
    pub out: &'a Path,
    /// Replace an existing adapter.
    pub force: bool,
}

/// Describes an imported adapter; printed as JSON by `ft import --json`.
#[derive(Debug, Serialize)]
pub struct MlxImportSummary {
    /// The folder of the adapter.
    pub adapter: PathBuf,
    /// The model that it belongs to.
    pub base: PathBuf,
    /// The folder that was written.
    pub out: PathBuf,
    /// `LoRA` or `DoRA`.
    pub kind: &'static str,
    /// The rank.
    pub rank: i64,
    /// The numerator of the scale.
    pub alpha: f64,
    /// Number of adapted weights.
    pub weights: usize,
}

/// Returns true for a folder with an adapter of mlx-lm.
pub fn is_mlx_adapter(folder: &Path) -> bool {
    folder.join(ADAPTER_TENSORS).is_file()
}

/// Writes the adapter as PEFT's. Fails if it does not belong to the base.
pub fn import_adapter(options: &MlxImportOptions) -> Result<MlxImportSummary> {
    let _no_grad = tch::no_grad_guard();
    let destination = Destination::adapter(options.out, "adapters/imported");
    destination.check(options.force, &[options.adapter, options.base])?;
    let path = options.adapter.join(file::CONFIG);
    let config: MlxAdapterConfig = fsutil::read_json(&path)?;
    let refuse = |what: &str, hint: &str| Err(Error::user(format!("{}: {what}", path.display())).hint(hint));
    let dora = match config.fine_tune_type.as_deref() {
        None | Some("lora") => false,
        Some("dora") => true,
        Some("full") => {
            return refuse(
                "`fine_tune_type` is full: the file has whole weights, and no adapter",
                "mlx_lm.fuse makes a model of it, which ft reads if it is not quantised",
            );
        }
        Some(other) => {
            return refuse(&format!("`fine_tune_type` {} is not read", fsutil::excerpt(other)), "lora and dora are");
        }
    };
    let parameters = &config.lora_parameters;
    if parameters.rank < 1 || !parameters.scale.is_finite() || parameters.scale < 0.0 {
        return refuse("`lora_parameters` has a rank below 1 or a scale that is no number from 0 on", "fetch it again");
    }
    let base_config = Config::read(options.base)?;
    if let Some(why) = refusal(&base_config) {
        return Err(Error::user(format!("{}: {why}", options.base.display()))
            .hint("merge the adapter with mlx_lm.fuse, and use the result"));
    }
    let weights = models::weights(options.base, &base_config)?;
    let tensors = peft_tensors(options, &weights, parameters.rank, dora)?;
    let adapted: BTreeSet<&str> =
        tensors.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")).collect::<BTreeSet<_>>();
    let spec = AdapterSpec::Lora(LoraSpec {
        rank: parameters.rank,
        alpha: parameters.scale * parameters.rank as f64,
        dropout: parameters.dropout,
        dora,
        targets: Targets::default(),
        ..LoraSpec::default()
    });
    let spec = with_named_targets(&spec, &adapted, weights.names());
    let base_name = options.base.to_string_lossy();
    let folder: PathBuf = options.out.components().collect(); // without a slash at the end
    fsutil::replace_dir(&folder, |temp| {
        write_adapter_folder(temp, &spec, &base_name, options.base, tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
        let read = WeightedAdapter::read(temp, 1.0)?;
        let same = |(name, t): (&String, &Tensor)| read.file.tensors.get(name).is_some_and(|found| found == t);
        if read.file.tensors.len() != tensors.len() || !tensors.iter().all(same) {
            return Err(Error::bug(format!("{} was not read back as it was written", file::TENSORS)));
        }
        MergedWeights::new(&weights, &[], std::slice::from_ref(&read)).map(|_| ())
    })?;
    Ok(MlxImportSummary {
        adapter: options.adapter.into(),
        base: options.base.into(),
        out: folder,
        kind: if dora { "DoRA" } else { "LoRA" },
        rank: parameters.rank,
        alpha: parameters.scale * parameters.rank as f64,
        weights: adapted.len(),
    })
}

/// Returns the tensors by PEFT's names. Fails for tensors of other names or shapes.
fn peft_tensors(options: &MlxImportOptions, base: &Weights, rank: i64, dora: bool) -> Result<BTreeMap<String, Tensor>> {
    let path = options.adapter.join(ADAPTER_TENSORS);
    let found = Weights::open_file(&path)?.all();
    let wrong = |what: String, hint: &str| Err(Error::user(format!("{}: {what}", path.display())).hint(hint));
    let mut tensors = BTreeMap::new();
    for name in found.keys() {
        let Some((module, part)) = name.rsplit_once('.').filter(|(_, part)| ["lora_a", "lora_b", "m"].contains(part))
        else {
            return wrong(format!("`{name}` is no factor of a LoRA"), "adapters of linear layers are read");
        };
        if part == "m" && !dora {
            return wrong(
                format!("`{name}` is a magnitude, and fine_tune_type is not dora"),
                "fetch the adapter again",
            );
        }
        let parts = if dora { &["lora_a", "lora_b", "m"][..] } else { &["lora_a", "lora_b"] };
        if let Some(lacks) = parts.iter().find(|part| !found.contains_key(&format!("{module}.{part}"))) {
            return wrong(format!("`{module}.{lacks}` is missing"), "the copy is incomplete");
        }
        let weight = format!("{module}.weight");
        let Some([outputs, inputs]) = base.shape(&weight).and_then(|shape| <[i64; 2]>::try_from(shape).ok()) else {
            return wrong(
                format!("it adapts `{module}`, which {} has no matrix for", options.base.display()),
                "was the adapter trained on another base? name it with --base",
            );
        };
        let [outputs, inputs] = if base.transposed(&weight) { [inputs, outputs] } else { [outputs, inputs] };
        let expected = match part {
            "lora_a" => vec![inputs, rank],
            "lora_b" => vec![rank, outputs],
            _ => vec![outputs],
        };
        let tensor = &found[name];
        if tensor.size() != expected || !tensor.is_floating_point() {
            return wrong(
                format!("`{name}` has shape {:?}, expected {expected:?} in floating-point numbers", tensor.size()),
                "was the adapter trained on another base? name it with --base",
            );
        }
        let tensor = tensor.to_kind(Kind::Float);
        let (ending, tensor) = match part {
            "lora_a" => ("lora_A.weight", tensor.tr().contiguous()),
            "lora_b" => ("lora_B.weight", tensor.tr().contiguous()),
            _ => ("lora_magnitude_vector", tensor.contiguous()),
        };
        tensors.insert(format!("{module}.{ending}"), tensor);
    }
    match tensors.is_empty() {
        true => wrong("it has no tensors".into(), "the copy is incomplete"),
        false => Ok(tensors),
    }
}
