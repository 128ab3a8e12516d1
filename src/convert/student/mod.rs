//! Cuts a smaller model (the student) out of a larger one and writes an ordinary model directory (`ft student`).
//!
//! The layers to keep are listed, evenly spread, or chosen by removing the block of layers that changes its input least
//! (Gromov et al. 2024, arXiv 2403.17887). Neurons of the MLP and groups of heads with the largest activations are kept
//! (Minitron, Muralidharan et al. 2024, arXiv 2407.14679). Kept weights are copied bit for bit. The student is verified
//! before its folder is moved into place.

pub mod activations;
mod slice;

use super::export::publish::tensor_entry;
use super::folder::companions::{MODEL_FILES, copy_companion_files};
use super::folder::config_file::{choose_layers, own_key};
use super::folder::destination::Destination;
use super::folder::disk_space::check_disk_space;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage, content_hash};
use crate::nn::safetensors::{SHARD_BYTES, write_model};
use crate::nn::{Tokens, weights};
use activations::BlockAngle;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slice::TensorSlices;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// The file in a student's folder that records which model it was cut from, and how.
pub const STUDENT_FILE: &str = "student.json";

/// Where a student comes from: the contents of student.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentOrigin {
    /// SHA-256 of the larger model.
    pub from_sha256: String,
    /// The sizes that were asked for.
    pub cut: StudentCut,
    /// The kept layers, by their number in the larger model.
    pub kept_layers: Vec<usize>,
}

/// The sizes that the student keeps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentCut {
    /// Which layers are kept.
    pub layers: KeptLayers,
    /// Neurons of each MLP; `None` keeps all.
    pub mlp: Option<i64>,
    /// Query heads of each layer; `None` keeps all.
    pub heads: Option<i64>,
}

/// Which layers are kept.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptLayers {
    /// All layers.
    #[default]
    All,
    /// The listed layers, counted from 0.
    List(Vec<usize>),
    /// This number of layers, evenly spread, the first and the last included.
    Even(usize),
    /// This number of layers: the block with the smallest angle between input and output is removed.
    Angular(usize),
}

/// Describes the student that was written.
#[derive(Debug, Clone, Serialize)]
pub struct StudentSummary {
    /// The student's folder.
    pub out: PathBuf,
    /// The kept layers, by their number in the larger model.
    pub kept_layers: Vec<usize>,
    /// Layers of the larger model.
    pub layers_before: usize,
    /// Neurons of each MLP.
    pub mlp: i64,
    /// Query heads of each layer.
    pub heads: i64,
    /// Key/value heads of each layer.
    pub key_value_heads: i64,
    /// Weights of the student.
    pub parameters: u64,
    /// Weights of the larger model.
    pub parameters_before: u64,
    /// Every block that could have been removed, with its angle; empty if layers were not chosen by angle.
    pub turns: Vec<BlockAngle>,
}

/// Cuts a student out of the model in `from` and writes it to `out`. `calibration`: token ids of texts like those the
/// student will be used for; required if activations decide what is kept. `force`: replace a model directory at `out`. Fails if
/// the model cannot be cut so, if `out` must not be replaced, or if the student does not pass verification.
pub fn cut_student(
    from: &Path,
    cut: &StudentCut,
    calibration: &[Vec<u32>],
    out: &Path,
    force: bool,
    device: Device,
) -> Result<StudentSummary> {
    destination(out).check(force, &[from])?;
    let config = Config::read(from)?;
    models::refuse_stacks(&config, "no student is cut out of")?;
    let depth = config.num_hidden_layers as usize;
    let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
    check_cut(cut, &config)?;
    let chosen = matches!(cut.layers, KeptLayers::Angular(_)) || cut.mlp.is_some() || cut.heads.is_some();
    if chosen && calibration.iter().all(|c| c.is_empty()) {
        return Err(Error::user("choosing layers, neurons or heads by their activations needs calibration texts")
            .hint("give rows with --data FILE"));
    }
    let measured = match chosen {
        true => Some(activations::measure(from, calibration, device)?),
        false => None,
    };
    let (kept, turns) = match (&cut.layers, &measured) {
        (KeptLayers::All, _) => ((0..depth).collect(), Vec::new()),
        (KeptLayers::List(list), _) => (list.clone(), Vec::new()),
        (KeptLayers::Even(n), _) => (evenly_spread(depth, *n), Vec::new()),
        (KeptLayers::Angular(n), Some(m)) => {
            let turns = m.block_angles(depth - n);
            let least = turns.iter().min_by(|a, b| a.distance.total_cmp(&b.distance)).expect("a block of every start");
            let gone = least.from..least.from + least.layers;
            ((0..depth).filter(|i| !gone.contains(i)).collect(), turns)
        }
        (KeptLayers::Angular(_), None) => {
            return Err(Error::bug("layers should be chosen by angle, but nothing was measured"));
        }
    };
    let (mlp, query) = (cut.mlp.unwrap_or(config.intermediate_size), cut.heads.unwrap_or(heads));
    let important = measured.map(|m| m.importance).unwrap_or_default();
    let slices = TensorSlices::new(&config, &kept, mlp, query, &important)?;

    let weights = models::weights(from, &config)?;
    models::refuse_quantised(
        &weights,
        "no student can be cut out of them",
        "cut it out of the model's original weights",
    )?;
    let written = slices.student_names(&weights);
    let count = |sizes: &[i64]| sizes.iter().product::<i64>() as u64;
    let parameters_before = weights.names().map(|n| count(weights.shape(n).unwrap_or_default())).sum();
    let made = |name: &str| {
        weights.get(name).map(|t| slices.apply(name, &t)).ok_or_else(|| Error::bug(format!("`{name}` was listed")))
    };
    let mut entries = Vec::new();
    for (name, old) in &written {
        let t = made(old)?;
        entries.push(tensor_entry(name, &t.size(), t.kind())?);
    }
    let parameters = entries.iter().map(|e| e.elements()).sum();
    let folder: PathBuf = out.components().collect();
    fsutil::replace_dir(&folder, |temp| {
        check_disk_space(temp, entries.iter().map(|e| e.bytes()).sum())?;
        write_model(temp, &entries, SHARD_BYTES, |e| Ok(weights::bytes(&made(&written[&e.name])?)))?;
        fsutil::write_json(&temp.join("config.json"), &student_config(&config, &kept, mlp, query))?;
        copy_companion_files(from, temp, MODEL_FILES)?;
        let origin =
            StudentOrigin { from_sha256: content_hash::hash(&[from])?, cut: cut.clone(), kept_layers: kept.clone() };
        fsutil::write_json(&temp.join(STUDENT_FILE), &origin)?;
        verify(from, temp, &kept, mlp == config.intermediate_size && query == heads)
    })?;
    Ok(StudentSummary {
        out: folder,
        layers_before: depth,
        kept_layers: kept,
        mlp,
        heads: query,
        key_value_heads: query / (heads / groups),
        parameters,
        parameters_before,
        turns,
    })
}

/// Returns `out` as the folder that a student is written to.
pub fn destination(out: &Path) -> Destination<'_> {
    Destination::model(out, "models/student")
}

/// Cuts the student unless `out` contains it already; then returns `None`. Fails if `out` contains something else, or a model that
/// was not cut from this model in this way.
pub fn cut_student_if_missing(
    from: &Path,
    cut: &StudentCut,
    calibration: impl FnOnce() -> Result<Vec<Vec<u32>>>,
    out: &Path,
    device: Device,
) -> Result<Option<StudentSummary>> {
    if !out.join("config.json").exists() {
        return cut_student(from, cut, &calibration()?, out, false, device).map(Some);
    }
    let file = out.join(STUDENT_FILE);
    let same = match file.exists() {
        true => {
            let origin: StudentOrigin = fsutil::read_json(&file)?;
            origin.cut == *cut && origin.from_sha256 == content_hash::hash(&[from])?
        }
        false => false,
    };
    match same {
        true => Ok(None),
        false => Err(Error::user(format!(
            "{}: contains a model that was not cut from {} with these settings",
            out.display(),
            from.display()
        ))
        .hint("remove it, or give another model.path")),
    }
}

/// Fails if the model cannot be cut to these sizes.
fn check_cut(cut: &StudentCut, config: &Config) -> Result<()> {
    config.require_separate_layers("a student cut from it")?;
    if cut.heads.is_some() && config.has_latent_attention() {
        return Err(config
            .refuse(format!(
                "the heads of a {} model share the vector that keys and values are made of",
                config.model_type
            ))
            .hint("leave --heads out"));
    }
    let depth = config.num_hidden_layers as usize;
    let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
    if !config.has_attention() && (cut.mlp.is_some() || cut.heads.is_some()) {
        return Err(Error::user(format!("a {} model has neither MLPs nor heads", config.model_type))
            .hint("leave out --mlp and --heads; --layers cuts layers"));
    }
    let most = |what: &str, n: i64, most: i64| match (1..=most).contains(&n) {
        true => Ok(()),
        false => Err(Error::user(format!("{what} {n}: the model has {most}")).hint(format!("from 1 to {most}"))),
    };
    match &cut.layers {
        KeptLayers::List(list) => {
            if let Some(i) = list.iter().find(|i| **i >= depth) {
                return Err(Error::user(format!("layer {i}: the model has layers 0 to {}", depth - 1)));
            }
            if list.is_empty() || !list.windows(2).all(|w| w[0] < w[1]) {
                return Err(Error::user(format!("layers {list:?}: expected each once, in order, at least one")));
            }
        }
        KeptLayers::Even(n) | KeptLayers::Angular(n) => most("--layers", *n as i64, depth as i64)?,
        KeptLayers::All => {}
    }
    cut.mlp.map_or(Ok(()), |n| most("--mlp", n, config.intermediate_size))?;
    let Some(n) = cut.heads else { return Ok(()) };
    most("--heads", n, heads)?;
    match n % (heads / groups) {
        0 => Ok(()),
        _ => Err(Error::user(format!("--heads {n}: each key/value head serves {} query heads", heads / groups))
            .hint(format!("a multiple of {}", heads / groups))),
    }
}

/// Returns `n` of `depth` layers, evenly spread, the first and the last included.
fn evenly_spread(depth: usize, n: usize) -> Vec<usize> {
    match n {
        1 => vec![0],
        _ => (0..n).map(|i| (i * (depth - 1) + (n - 1) / 2) / (n - 1)).collect(),
    }
}

/// Returns config.json with the new sizes, under the family's own keys.
fn student_config(config: &Config, kept: &[usize], mlp: i64, heads: i64) -> Value {
    let mut raw = config.raw.clone();
    let own = |key| own_key(config, key);
    choose_layers(config, &mut raw, kept);
    let Some(map) = raw.as_object_mut() else { return raw };
    if mlp != config.intermediate_size {
        map.insert(own("intermediate_size").into(), json!(mlp));
    }
    if heads != config.num_attention_heads {
        let groups = heads / (config.num_attention_heads / config.num_key_value_heads);
        map.insert(own("num_attention_heads").into(), json!(heads));
        map.insert("num_key_value_heads".into(), json!(groups));
        // With fewer heads it can no longer be derived as hidden size / heads.
        map.insert("head_dim".into(), json!(config.head_dim));
    }
    raw
}

/// Loads the student and checks that its outputs are finite. If only layers were removed, they must equal, bit for bit,
/// the outputs of the larger model with these layers skipped.
fn verify(from: &Path, folder: &Path, kept: &[usize], only_layers: bool) -> Result<()> {
    let load = |folder: &Path| {
        let load = LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        };
        Model::load(folder, load)
    };
    let student = load(folder).map_err(|e| e.context("reading back the student"))?;
    let n = student.config().vocab_size.min(64);
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 1) % n as u32).collect();
    let tokens = Tokens::pack(&[&ids], Device::Cpu);
    let all: Vec<usize> = (0..kept.len()).collect();
    let found = student.logits_of_layers(&tokens, &all)?;
    if found.isfinite().all().int64_value(&[]) == 0 {
        return Err(Error::user("the student's outputs are NaN or infinite")
            .hint("check the larger model with: ft selftest --model DIR"));
    }
    if only_layers && !found.equal(&load(from)?.logits_of_layers(&tokens, kept)?) {
        return Err(Error::bug(
            "the student's outputs differ from those of the larger model without the removed layers",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::evenly_spread;

    #[test]
    fn layers_are_spread_from_the_first_to_the_last() {
        assert_eq!(evenly_spread(30, 30), (0..30).collect::<Vec<_>>());
        assert_eq!(evenly_spread(5, 3), [0, 2, 4]);
        assert_eq!(evenly_spread(4, 2), [0, 3]);
        assert_eq!(evenly_spread(30, 1), [0]);
        for n in 2..30 {
            let kept = evenly_spread(30, n);
            assert!(kept.windows(2).all(|w| w[0] < w[1]) && kept[0] == 0 && kept[n - 1] == 29, "{n}: {kept:?}");
        }
    }
}
