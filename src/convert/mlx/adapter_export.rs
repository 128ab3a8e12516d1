//! Writes a LoRA or DoRA as an adapter of mlx-lm.
//!
//! mlx-lm computes `y + scale · (x A) B` with A (in, r) and B (r, out), r and scale equal in all modules. An adapter with other
//! ranks or scales in some modules is written exactly: factors of a smaller rank are filled up with zeros, and B is multiplied by
//! the ratio of the scales.

use super::families::refusal;
use super::{ADAPTER_TENSORS, MlxAdapterConfig, MlxLoraParameters};
use crate::adapters::file;
use crate::adapters::merging::WeightedAdapter;
use crate::adapters::update::LowRankUpdate;
use crate::convert::folder::companions::write_text;
use crate::convert::folder::destination::Destination;
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
}

/// Writes the adapter of `part`. Fails for what the format cannot hold, with the reason.
pub fn export_adapter(options: &MlxAdapterOptions, part: &WeightedAdapter) -> Result<MlxAdapterSummary> {
    let _no_grad = tch::no_grad_guard();
    let (kind, example) = ("an adapter of mlx-lm", "exported/icd10-mlx");
    let destination = Destination { out: options.out, kind, mark: ADAPTER_TENSORS, example };
    destination.check(options.force, &[options.base, &part.folder])?;
    let config = Config::read(options.base)?;
    if let Some(why) = refusal(&config) {
        return Err(refuse(part, why));
    }
    let weights = models::weights(options.base, &config)?;
    let updates = updates_of(part, &weights)?;
    let Some((_, (first, magnitude))) = updates.iter().next() else {
        return Err(refuse(part, "it changes no weight".into()));
    };
    // The scale of the first module is that of nearly all.
    let (scale, dora) = (first.scale, magnitude.is_some());
    let rank = updates.values().map(|(update, _)| update.a.size()[0]).max().unwrap_or(1);
    let (mut tensors, mut keys) = (BTreeMap::new(), BTreeSet::new());
    let (mut padded, mut rescaled) = (0, 0);
    for (module, (update, magnitude)) in &updates {
        keys.insert(key_of(part, module)?.to_string());
        let ratio = if update.scale == scale { 1.0 } else { update.scale / scale };
        if !ratio.is_finite() {
            return Err(refuse(part, format!("the scale of {module} is {}, that of others {scale}", update.scale)));
        }
        let own = update.a.size()[0];
        padded += usize::from(own < rank);
        rescaled += usize::from(ratio != 1.0);
        let a = update.a.to_kind(Kind::Float).tr().constant_pad_nd([0, rank - own].as_slice());
        let b = (update.b.to_kind(Kind::Float) * ratio).tr().constant_pad_nd([0, 0, 0, rank - own].as_slice());
        tensors.insert(format!("{module}.lora_a"), a.contiguous());
        tensors.insert(format!("{module}.lora_b"), b.contiguous());
        if let Some(magnitude) = magnitude {
            tensors.insert(format!("{module}.m"), magnitude.to_kind(Kind::Float).contiguous());
        }
    }
    if let Some((name, _)) = tensors.iter().find(|(_, t)| t.isfinite().all().int64_value(&[]) == 0) {
        return Err(Error::user(format!("{}: {name} is not finite", part.folder.display()))
            .hint("the adapter is damaged, or its training diverged: use an earlier checkpoint"));
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
    })
}

fn refuse(part: &WeightedAdapter, why: String) -> Error {
    let folder = part.folder.display();
    Error::user(format!("{folder}: this adapter cannot be an adapter of mlx-lm: {why}"))
        .hint(format!("merge it into the model instead: ft export MODEL --adapter {folder} --to hf --out DIR"))
}

/// Returns the changes of an adapter by the modules that they belong to, with the magnitudes of a DoRA. Fails if one is no product of
/// two factors, or does not fit the base.
fn updates_of(part: &WeightedAdapter, base: &Weights) -> Result<BTreeMap<String, (LowRankUpdate, Option<Tensor>)>> {
    let (spec, tensors) = (&part.file.spec, &part.file.tensors);
    if let Some(why) = spec.why_not_merged() {
        return Err(refuse(part, why));
    }
    if spec.has_scalar_head() {
        return Err(refuse(part, "it is a reward model's, and has a head".into()));
    }
    let modules: BTreeSet<&str> = tensors.keys().filter_map(|name| spec.module_of(name)).collect();
    if let Some(name) = tensors.keys().find(|name| spec.module_of(name).is_none()) {
        return Err(refuse(part, format!("it has {name}, and the format has factors and magnitudes only")));
    }
    let mut found = BTreeMap::new();
    for (name, update) in spec.updates_on(base, &modules, tensors, &part.folder.join(file::TENSORS))? {
        let (module, magnitude) = (name.strip_suffix(".weight").unwrap_or(&name), update.magnitudes());
        let Some(factors) = update.low_rank().or(magnitude.map(|(factors, _)| factors)) else {
            return Err(refuse(part, format!("its change of {name} is no product of two factors")));
        };
        if factors.table {
            return Err(refuse(part, format!("it adapts {module}, a table of tokens")));
        }
        if expert_number(module).is_some() {
            return Err(refuse(
                part,
                format!("it adapts {module}, and mlx-lm has the experts of a layer in one tensor"),
            ));
        }
        if !base.shape(&name).is_some_and(|shape| update.fits(shape, base.transposed(&name))) {
            return Err(Error::user(format!(
                "{}: the change of {name} has the shape {}, the base's weight {:?}",
                part.folder.display(),
                update.shape(),
                base.shape(&name)
            ))
            .hint("was the adapter trained on another base? name it with --base"));
        }
        let factors = LowRankUpdate {
            a: factors.a.shallow_clone(),
            b: factors.b.shallow_clone(),
            scale: factors.scale,
            table: false,
        };
        found.insert(module.to_string(), (factors, magnitude.map(|(_, m)| m.shallow_clone())));
    }
    Ok(found)
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
