//! Writes a LoRA or DoRA as an adapter of mlx-lm.
//!
//! mlx-lm computes `y + scale · (x A) B` with A (in, r) and B (r, out), r and scale equal in all modules. An adapter with other
//! ranks or scales in some modules is written exactly: factors of a smaller rank are filled up with zeros, and B is multiplied by
//! the ratio of the scales.

use super::families::refusal;
use super::model_config::difference;
use super::{ADAPTER_TENSORS, MlxAdapterConfig, MlxLoraParameters};
use crate::adapters::file;
use crate::adapters::merging::WeightedAdapter;
use crate::convert::folder::companions::write_text;
use crate::convert::folder::destination::Destination;
use crate::convert::module_factors::{self, ModuleFactors};
use crate::convert::quantised_base;
use crate::convert::verify::compatibility::{self, Compatibility};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{self, Config, expert_number};
use crate::nn::Weights;
use crate::nn::weights::save;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// What is exported, and to where.
pub struct MlxAdapterOptions<'a> {
    /// The model that the adapter belongs to.
    pub base: &'a Path,
    /// The folder to write.
    pub out: &'a Path,
    /// Replace an existing adapter of mlx-lm.
    pub force: bool,
}

/// Describes a written adapter; printed as JSON by `ft export --json`.
#[derive(Debug, Serialize)]
pub struct MlxAdapterSummary {
    /// The adapter.
    pub adapter: PathBuf,
    /// The model that it belongs to.
    pub base: PathBuf,
    /// The folder.
    pub out: PathBuf,
    /// The model's family.
    pub architecture: String,
    /// `lora` or `dora`.
    pub fine_tune_type: &'static str,
    /// The rank of all modules.
    pub rank: i64,
    /// The factor on A B of all modules.
    pub scale: f64,
    /// The names of the adapted modules, within a layer.
    pub keys: Vec<String>,
    /// Number of adapted weights.
    pub weights: usize,
    /// Number of those whose factors were filled up with zeros.
    pub padded: usize,
    /// Number of those whose B was multiplied because their scale is another one.
    pub rescaled: usize,
    /// Size of the tensors.
    pub bytes: u64,
    /// Which programs read the folder.
    pub compatibility: Vec<Compatibility>,
}

/// Writes the adapter of `part`. Fails for what the format cannot hold, with the reason.
pub fn export_adapter(options: &MlxAdapterOptions, part: &WeightedAdapter) -> Result<MlxAdapterSummary> {
    let _no_grad = tch::no_grad_guard();
    let (kind, example) = ("an adapter of mlx-lm", "exported/icd10-mlx");
    let destination = Destination {
        out: options.out,
        kind,
        marks: &[ADAPTER_TENSORS],
        others: &["adapter_model.safetensors"],
        example,
    };
    destination.check(options.force, &[options.base, &part.folder])?;
    let config = Config::read(options.base)?;
    let updates = prepare(options.base, &config, part)?;
    // The scale of the first module is that of nearly all.
    let first = updates.values().next().ok_or_else(|| Error::bug("an adapter without factors was prepared"))?;
    let (scale, dora) = (first.factors.scale, first.magnitude.is_some());
    let rank = updates.values().map(|update| update.factors.a.size()[0]).max().unwrap_or(1);
    let (mut tensors, mut keys) = (BTreeMap::new(), BTreeSet::new());
    let (mut padded, mut rescaled) = (0, 0);
    for (module, ModuleFactors { factors, magnitude }) in &updates {
        keys.insert(key_of(part, module)?.to_string());
        let ratio = if factors.scale == scale { 1.0 } else { factors.scale / scale };
        if !ratio.is_finite() {
            return Err(refuse(part, format!("the scale of {module} is {}, that of others {scale}", factors.scale)));
        }
        let own = factors.a.size()[0];
        padded += usize::from(own < rank);
        rescaled += usize::from(ratio != 1.0);
        let a = factors.a.to_kind(Kind::Float).tr().constant_pad_nd([0, rank - own].as_slice());
        let b = (factors.b.to_kind(Kind::Float) * ratio).tr().constant_pad_nd([0, 0, 0, rank - own].as_slice());
        tensors.insert(format!("{module}.lora_a"), a.contiguous());
        tensors.insert(format!("{module}.lora_b"), b.contiguous());
        if let Some(magnitude) = magnitude {
            tensors.insert(format!("{module}.m"), magnitude.to_kind(Kind::Float).contiguous());
        }
    }
    let keys: Vec<String> = keys.into_iter().collect();
    let fine_tune_type = if dora { "dora" } else { "lora" };
    let written = MlxAdapterConfig {
        fine_tune_type: Some(fine_tune_type.into()),
        num_layers: Some(config.num_hidden_layers),
        lora_parameters: MlxLoraParameters { rank, scale, dropout: part.file.spec.dropout(), keys: keys.clone() },
    };
    let folder: PathBuf = options.out.components().collect(); // without a slash at the end
    fsutil::replace_dir(&folder, |temp| {
        save(&temp.join(ADAPTER_TENSORS), tensors.iter().map(|(name, t)| (name.as_str(), t)))?;
        fsutil::write_json(&temp.join(file::CONFIG), &written)?;
        write_text(&temp.join("README.md"), &card(part, options.base))?;
        read_back(temp, &tensors)
    })?;
    Ok(MlxAdapterSummary {
        adapter: part.folder.clone(),
        base: options.base.into(),
        out: folder,
        architecture: config.model_type.clone(),
        fine_tune_type,
        rank,
        scale,
        keys,
        weights: updates.len(),
        padded,
        rescaled,
        bytes: tensors.values().map(|t| 4 * t.numel() as u64).sum(),
        compatibility: compatibility::of_mlx_adapter(),
    })
}

/// Fails if the adapter cannot be one of mlx-lm's, with the reason.
pub fn check(base: &Path, part: &WeightedAdapter) -> Result<()> {
    let updates = prepare(base, &Config::read(base)?, part)?;
    updates.keys().try_for_each(|module| key_of(part, module).map(drop))
}

/// Returns the factors of an adapter of a model with this config. Fails for what the format cannot hold.
fn prepare(base: &Path, config: &Config, part: &WeightedAdapter) -> Result<BTreeMap<String, ModuleFactors>> {
    quantised_base::trained_over(base, std::slice::from_ref(part))?;
    match refusal(config).or_else(|| difference(config)) {
        Some(why) => Err(refuse(part, why)),
        None => factors_of(part, &models::weights(base, config)?),
    }
}

fn refuse(part: &WeightedAdapter, why: String) -> Error {
    let folder = part.folder.display();
    Error::user(format!("{folder}: this adapter cannot be an adapter of mlx-lm: {why}"))
        .hint(format!("merge it into the model instead: ft export MODEL --adapter {folder} --to hf --out DIR"))
}

/// Returns the factors of an adapter by module. Fails for what the format cannot hold.
fn factors_of(part: &WeightedAdapter, base: &Weights) -> Result<BTreeMap<String, ModuleFactors>> {
    let found = module_factors::of(part, base)?.map_err(|why| refuse(part, why))?;
    match found.keys().find(|module| expert_number(module).is_some()) {
        Some(module) => {
            Err(refuse(part, format!("it adapts {module}, and mlx-lm has the experts of a layer in one tensor")))
        }
        None => Ok(found),
    }
}

/// Returns the name of a module within its layer.
fn key_of<'m>(part: &WeightedAdapter, module: &'m str) -> Result<&'m str> {
    let inside = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    inside.map(|(_, key)| key).ok_or_else(|| refuse(part, format!("it adapts {module}, outside of the layers")))
}

/// Compares the written tensors with those in memory.
fn read_back(folder: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let found = Weights::open_file(&folder.join(ADAPTER_TENSORS))?.all();
    match found.len() == tensors.len() && tensors.iter().all(|(name, t)| found.get(name).is_some_and(|f| f == t)) {
        true => Ok(()),
        false => Err(Error::bug(format!("{ADAPTER_TENSORS} was not read back as it was written"))),
    }
}

/// Returns the README.md.
fn card(part: &WeightedAdapter, base: &Path) -> String {
    let (title, base) = (part.file.spec.title(), base.display());
    format!(
        "---\nlibrary_name: mlx\ntags:\n- mlx\n- lora\n---\n\nA {title} of `{base}` in the format of mlx-lm, written by ft {}:\n\n\
         ```\nmlx_lm.generate --model {base} --adapter-path DIR --prompt TEXT\n```\n\n\
         `ft import DIR --base {base} --out OUT` makes a PEFT adapter of it again.\n",
        env!("CARGO_PKG_VERSION")
    )
}
