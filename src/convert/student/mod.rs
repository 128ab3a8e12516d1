//! `ft student`: a smaller model cut out of a larger one, as an ordinary model directory.
//!
//! Layers are kept by list, evenly, or so that the block that changes its input least goes (Gromov et al. 2024, arXiv
//! 2403.17887); neurons of the MLP and groups of heads stay by the size of their activations (Minitron, Muralidharan et
//! al. 2024, arXiv 2407.14679). What is kept is kept bit for bit; the cut is checked before the folder is moved in.

mod measure;
mod slice;

use super::export::{self, MODEL_FILES};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{self, Config, Heads, Load, Model, Storage, content};
use crate::nn::safetensors::{SHARD_BYTES, write_model};
use crate::nn::{Tokens, weights};
use measure::Importance;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slice::Slices;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What a folder that was cut says about itself.
pub const FILE: &str = "student.json";

/// Where a student comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// SHA-256 of the larger model.
    pub from_sha256: String,
    pub cut: Cut,
    /// The layers that were kept.
    pub kept_layers: Vec<usize>,
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    pub layers: Layers,
    /// Neurons of each MLP.
    pub mlp: Option<i64>,
    /// Query heads of each layer.
    pub heads: Option<i64>,
}

/// Which layers are kept.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layers {
    #[default]
    All,
    /// These, from 0.
    List(Vec<usize>),
    /// So many, evenly spread, the first and the last among them.
    Even(usize),
    /// So many: the block that turns its input least goes.
    Angular(usize),
}

/// How far a block of layers turns its input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Turn {
    /// The first layer of the block.
    pub from: usize,
    /// Layers in it.
    pub layers: usize,
    /// Mean angle between what goes in and what comes out, as a share of a half turn.
    pub distance: f64,
}

/// What was made.
#[derive(Debug, Clone, Serialize)]
pub struct Student {
    pub out: PathBuf,
    pub kept_layers: Vec<usize>,
    pub layers_before: usize,
    pub mlp: i64,
    pub heads: i64,
    pub key_value_heads: i64,
    pub parameters: u64,
    pub parameters_before: u64,
    /// Every block of the length that had to go, where layers were chosen by it.
    pub turns: Vec<Turn>,
}

/// Cuts a student out of the model in `from`. `calibration`: token ids of texts like those it will see; needed where
/// activations choose.
pub fn student(from: &Path, cut: &Cut, calibration: &[Vec<u32>], out: &Path, device: Device) -> Result<Student> {
    let config = Config::read(from)?;
    let depth = config.num_hidden_layers as usize;
    let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
    check(cut, &config)?;
    let chosen = matches!(cut.layers, Layers::Angular(_)) || cut.mlp.is_some() || cut.heads.is_some();
    if chosen && calibration.iter().all(|c| c.is_empty()) {
        return Err(Error::user("choosing by activations needs texts to look at").hint("give rows with --data FILE"));
    }
    let measured = match chosen {
        true => Some(measure::measure(from, calibration, device)?),
        false => None,
    };
    let (kept, turns) = match (&cut.layers, &measured) {
        (Layers::All, _) => ((0..depth).collect(), Vec::new()),
        (Layers::List(list), _) => (list.clone(), Vec::new()),
        (Layers::Even(n), _) => (even(depth, *n), Vec::new()),
        (Layers::Angular(n), Some(m)) => {
            let turns = m.turns(depth - n);
            let least = turns.iter().min_by(|a, b| a.distance.total_cmp(&b.distance)).expect("a block of every start");
            let gone = least.from..least.from + least.layers;
            ((0..depth).filter(|i| !gone.contains(i)).collect(), turns)
        }
        (Layers::Angular(_), None) => return Err(Error::bug("layers were to be chosen and nothing was measured")),
    };
    let (mlp, query) = (cut.mlp.unwrap_or(config.intermediate_size), cut.heads.unwrap_or(heads));
    let important = measured.map(|m| m.importance).unwrap_or_default();
    let slices = Slices::new(&config, &kept, mlp, query, &important)?;

    let weights = models::weights(from, &config)?;
    let written = slices.names(&weights);
    let count = |sizes: &[i64]| sizes.iter().product::<i64>() as u64;
    let parameters_before = weights.names().map(|n| count(weights.shape(n).unwrap_or_default())).sum();
    let made = |name: &str| {
        weights.get(name).map(|t| slices.apply(name, &t)).ok_or_else(|| Error::bug(format!("`{name}` was listed")))
    };
    let mut entries = Vec::new();
    for (name, old) in &written {
        let t = made(old)?;
        entries.push(export::entry(name, &t.size(), t.kind())?);
    }
    let parameters = entries.iter().map(|e| e.elements()).sum();
    let folder: PathBuf = out.components().collect();
    fsutil::replace_dir(&folder, |temp| {
        export::check_disk(temp, entries.iter().map(|e| e.bytes()).sum())?;
        write_model(temp, &entries, SHARD_BYTES, |e| Ok(weights::bytes(&made(&written[&e.name])?)))?;
        fsutil::write_json(&temp.join("config.json"), &patched(&config, &kept, mlp, query))?;
        export::copy_beside(from, temp, MODEL_FILES)?;
        let origin = Origin { from_sha256: content::hash(&[from])?, cut: cut.clone(), kept_layers: kept.clone() };
        fsutil::write_json(&temp.join(FILE), &origin)?;
        verify(from, temp, &kept, mlp == config.intermediate_size && query == heads)
    })?;
    Ok(Student {
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

/// Makes the student in `out` where it is not there yet; one that was cut otherwise is refused.
pub fn need_student(
    from: &Path,
    cut: &Cut,
    calibration: impl FnOnce() -> Result<Vec<Vec<u32>>>,
    out: &Path,
    device: Device,
) -> Result<Option<Student>> {
    if !out.join("config.json").exists() {
        return student(from, cut, &calibration()?, out, device).map(Some);
    }
    let file = out.join(FILE);
    let same = match file.exists() {
        true => {
            let origin: Origin = fsutil::read_json(&file)?;
            origin.cut == *cut && origin.from_sha256 == content::hash(&[from])?
        }
        false => false,
    };
    match same {
        true => Ok(None),
        false => {
            Err(Error::user(format!("{}: holds a model that was not cut so out of {}", out.display(), from.display()))
                .hint("remove it, or give another model.path"))
        }
    }
}

/// Refuses what cannot be cut.
fn check(cut: &Cut, config: &Config) -> Result<()> {
    let depth = config.num_hidden_layers as usize;
    let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
    let most = |what: &str, n: i64, most: i64| match (1..=most).contains(&n) {
        true => Ok(()),
        false => Err(Error::user(format!("{what} {n}: the model has {most}")).hint(format!("from 1 to {most}"))),
    };
    match &cut.layers {
        Layers::List(list) => {
            if let Some(i) = list.iter().find(|i| **i >= depth) {
                return Err(Error::user(format!("layer {i}: the model has layers 0 to {}", depth - 1)));
            }
            if list.is_empty() || !list.windows(2).all(|w| w[0] < w[1]) {
                return Err(Error::user(format!("layers {list:?}: each once, in order, at least one")));
            }
        }
        Layers::Even(n) | Layers::Angular(n) => most("--layers", *n as i64, depth as i64)?,
        Layers::All => {}
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

/// So many of `depth` layers, evenly spread, the first and the last among them.
fn even(depth: usize, n: usize) -> Vec<usize> {
    match n {
        1 => vec![0],
        _ => (0..n).map(|i| (i * (depth - 1) + (n - 1) / 2) / (n - 1)).collect(),
    }
}

/// config.json with the new sizes under the family's own names.
fn patched(config: &Config, kept: &[usize], mlp: i64, heads: i64) -> Value {
    let mut raw = config.raw.clone();
    let own =
        |key: &'static str| config.family().keys.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| own);
    let Some(map) = raw.as_object_mut() else { return raw };
    map.insert(own("num_hidden_layers").into(), json!(kept.len()));
    if mlp != config.intermediate_size {
        map.insert(own("intermediate_size").into(), json!(mlp));
    }
    if heads != config.num_attention_heads {
        let groups = heads / (config.num_attention_heads / config.num_key_value_heads);
        map.insert(own("num_attention_heads").into(), json!(heads));
        map.insert("num_key_value_heads".into(), json!(groups));
        // It can no longer be told from the width and the heads.
        map.insert("head_dim".into(), json!(config.head_dim));
    }
    if let Some(Value::Array(kinds)) = map.get("layer_types") {
        let kinds: Vec<Value> = kept.iter().filter_map(|i| kinds.get(*i).cloned()).collect();
        map.insert("layer_types".into(), kinds.into());
    }
    if let Some(first) = map.get("max_window_layers").and_then(Value::as_u64) {
        map.insert("max_window_layers".into(), json!(kept.iter().filter(|i| (**i as u64) < first).count()));
    }
    raw
}

/// The folder loads and answers; where only layers went, with the bits of the old model without them.
fn verify(from: &Path, folder: &Path, kept: &[usize], only_layers: bool) -> Result<()> {
    let load = |folder: &Path| {
        let load = Load {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: Storage::Auto,
            train_base: false,
            adapters: Vec::new(),
            heads: Heads::Tokens,
        };
        Model::load(folder, load)
    };
    let student = load(folder).map_err(|e| e.context("reading back the student"))?;
    let n = student.config().vocab_size.min(64);
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 1) % n as u32).collect();
    let tokens = Tokens::pack(&[&ids], Device::Cpu);
    let all: Vec<usize> = (0..kept.len()).collect();
    let found = student.through(&tokens, &all)?;
    if found.isfinite().all().int64_value(&[]) == 0 {
        return Err(Error::user("the student's answers are not finite numbers")
            .hint("is the model itself whole? ft selftest --model DIR"));
    }
    if only_layers && !found.equal(&load(from)?.through(&tokens, kept)?) {
        return Err(Error::bug("the student does not compute what the old model does without the layers"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::even;

    #[test]
    fn layers_are_spread_from_the_first_to_the_last() {
        assert_eq!(even(30, 30), (0..30).collect::<Vec<_>>());
        assert_eq!(even(5, 3), [0, 2, 4]);
        assert_eq!(even(4, 2), [0, 3]);
        assert_eq!(even(30, 1), [0]);
        for n in 2..30 {
            let kept = even(30, n);
            assert!(kept.windows(2).all(|w| w[0] < w[1]) && kept[0] == 0 && kept[n - 1] == 29, "{n}: {kept:?}");
        }
    }
}
