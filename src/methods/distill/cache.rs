//! Teacher distributions on disk: for each supervised token the k most likely tokens with their log-probabilities, and
//! the probability of all others together.
//!
//! A folder contains `teaching.json` (what the cache was made from, k, the hash of every item) and, per split, parts
//! of 256 items: `train-00000.safetensors` with `ids` (N, k) int32, `log_probs` (N, k) float32, `tail` (N) float32 and
//! `counts` (supervised tokens of each item). Each part is written atomically, so filling a cache can be continued
//! after a stop. Invariant: a cache is read only if its items equal those of the run, in every token and every mark.

use super::spec::{DistillSpec, TeacherSpec};
use crate::error::{Context, Error, Result};
use crate::fsutil::{self, hex, read_json, write_json};
use crate::methods::fixed::Split;
use crate::models::content_hash;
use crate::native::upload;
use crate::nn::{Weights, weights};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Number of items in a part.
pub const PART: usize = 256;
const FILE: &str = "teaching.json";

/// Everything that a cache was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherCacheOrigin {
    /// SHA-256 of each teacher's files, with its weight in the mean.
    pub teachers: Vec<(String, f64)>,
    /// Fingerprint of tokenizer and chat template.
    pub tokenizer: String,
    /// The temperature of the distributions.
    pub temperature: f64,
    /// Number of tokens stored of each distribution.
    pub k: i64,
    /// Number of tokens in the vocabulary.
    pub vocabulary: i64,
}

/// The contents of `teaching.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TeacherCacheContents {
    origin: TeacherCacheOrigin,
    /// The hash of each split's items, and their number.
    splits: BTreeMap<String, (String, usize)>,
}

/// The distributions of N supervised tokens.
pub struct TopTokens {
    /// (N, k) the most likely tokens.
    pub ids: Tensor,
    /// (N, k) their log-probabilities, float32.
    pub log_probs: Tensor,
    /// (N) the log-probability of all other tokens together; `None` if there are no others.
    pub tail: Option<Tensor>,
}

/// An open cache.
pub struct TeacherCache {
    folder: PathBuf,
    contents: TeacherCacheContents,
    parts: BTreeMap<(Split, usize), Weights>,
}

fn name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Valid => "valid",
    }
}

/// Computes the SHA-256 of a teacher's files, including its adapter.
pub fn teacher_hash(spec: &TeacherSpec) -> Result<String> {
    let folders: Vec<&Path> = [Some(&spec.path), spec.adapter.as_ref()].into_iter().flatten().map(|p| &**p).collect();
    content_hash::hash(&folders)
}

/// Computes one hash over the hashes of all items.
pub fn items_hash(hashes: &[u64]) -> String {
    let mut hash = Sha256::new();
    hashes.iter().for_each(|h| hash.update(h.to_le_bytes()));
    hex(&hash.finalize())
}

impl TeacherCacheOrigin {
    /// Describes a cache for the teachers of a recipe. Reads their files to hash them.
    pub fn of(spec: &DistillSpec, tokenizer: String, k: i64, vocabulary: i64) -> Result<Self> {
        let total: f64 = spec.teachers.iter().map(|t| t.weight).sum();
        let teachers = spec.teachers.iter().map(|t| Ok((teacher_hash(t)?, t.weight / total)));
        Ok(Self {
            teachers: teachers.collect::<Result<_>>()?,
            tokenizer,
            temperature: spec.temperature,
            k: k.min(vocabulary),
            vocabulary,
        })
    }

    /// Describes each difference for an error message.
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut differ = |what: &str, a: String, b: String| {
            if a != b {
                found.push(format!("{what}: was {a}, is {b}"));
            }
        };
        let teachers =
            |o: &Self| o.teachers.iter().map(|(h, w)| format!("{h:.12} x {w}")).collect::<Vec<_>>().join(", ");
        differ("teachers", teachers(self), teachers(other));
        differ("tokenizer and template", format!("{:.12}", self.tokenizer), format!("{:.12}", other.tokenizer));
        differ("temperature", self.temperature.to_string(), other.temperature.to_string());
        differ("tokens kept", self.k.to_string(), other.k.to_string());
        differ("vocabulary", self.vocabulary.to_string(), other.vocabulary.to_string());
        found
    }
}

/// Returns the size in bytes of a cache for `tokens` supervised tokens.
pub fn bytes(tokens: u64, k: i64) -> u64 {
    tokens * (8 * k as u64 + 4)
}

/// Fills a cache part by part.
pub struct TeacherCacheWriter {
    folder: PathBuf,
}

impl TeacherCacheWriter {
    /// Starts a cache, or continues one with the same origin and items. An error if the folder has a cache of
    /// something else.
    pub fn open(folder: &Path, origin: &TeacherCacheOrigin, splits: &[(Split, &[u64])]) -> Result<Self> {
        fsutil::create_private_dir(folder)?;
        let splits = splits.iter().map(|(s, hashes)| (name(*s).to_string(), (items_hash(hashes), hashes.len())));
        let contents = TeacherCacheContents { origin: origin.clone(), splits: splits.collect() };
        let file = folder.join(FILE);
        if file.exists() && read_json::<TeacherCacheContents>(&file)? != contents {
            return Err(Error::user(format!(
                "{}: the folder has distributions that were made from something else",
                folder.display()
            ))
            .hint("choose another folder, or remove this one"));
        }
        write_json(&file, &contents)?;
        Ok(Self { folder: folder.into() })
    }

    /// Returns true if the part exists already.
    pub fn has(&self, split: Split, part: usize) -> bool {
        path(&self.folder, split, part).exists()
    }

    /// Writes a part: the distributions of its items' supervised tokens, and the number of supervised tokens of each
    /// item.
    pub fn write(&self, split: Split, part: usize, stored: &TopTokens, counts: &[i64]) -> Result<()> {
        let cpu = |t: &Tensor, kind: Kind| t.to_device(tch::Device::Cpu).to_kind(kind).contiguous();
        let (ids, log_probs) = (cpu(&stored.ids, Kind::Int), cpu(&stored.log_probs, Kind::Float));
        let tail = stored.tail.as_ref().map(|t| cpu(t, Kind::Float));
        let counts = Tensor::from_slice(counts);
        let mut tensors = vec![("ids", &ids), ("log_probs", &log_probs), ("counts", &counts)];
        tensors.extend(tail.as_ref().map(|t| ("tail", t)));
        weights::save(&path(&self.folder, split, part), tensors)
    }
}

fn path(folder: &Path, split: Split, part: usize) -> PathBuf {
    folder.join(format!("{}-{part:05}.safetensors", name(split)))
}

impl TeacherCache {
    /// Opens the cache for a run with this origin and these items. An error if the cache was made from anything else
    /// or is not finished.
    pub fn open(folder: &Path, origin: &TeacherCacheOrigin, splits: &[(Split, &[u64])]) -> Result<Self> {
        let file = folder.join(FILE);
        let remake = "make it with: ft teach RECIPE";
        if !file.exists() {
            return Err(
                Error::user(format!("{}: no teacher distributions in this folder", folder.display())).hint(remake)
            );
        }
        let contents: TeacherCacheContents = read_json(&file)?;
        // The run accepts whatever number of tokens the cache stores.
        let differences = contents.origin.differences(&TeacherCacheOrigin { k: contents.origin.k, ..origin.clone() });
        if !differences.is_empty() {
            return Err(Error::user(format!(
                "{}: these distributions were made from something else:\n  {}",
                folder.display(),
                differences.join("\n  ")
            ))
            .hint(remake));
        }
        let mut parts = BTreeMap::new();
        for (split, hashes) in splits {
            match contents.splits.get(name(*split)) {
                Some((hash, _)) if *hash == items_hash(hashes) => {}
                Some((_, count)) => {
                    return Err(Error::user(format!(
                        "{}: made from other {} rows ({count} items, the run has {}, or their tokens differ)",
                        folder.display(),
                        name(*split),
                        hashes.len()
                    ))
                    .hint(remake));
                }
                None => {
                    return Err(Error::user(format!("{}: the cache has no {} rows", folder.display(), name(*split)))
                        .hint(remake));
                }
            }
            for part in 0..hashes.len().div_ceil(PART) {
                let file = path(folder, *split, part);
                if !file.exists() {
                    return Err(Error::user(format!("{}: is missing, the cache is not finished", file.display()))
                        .hint("continue with: ft teach RECIPE"));
                }
                parts.insert((*split, part), Weights::open_file(&file)?);
            }
        }
        Ok(Self { folder: folder.into(), contents, parts })
    }

    /// Returns the distributions of the supervised tokens of some items, one item after the other.
    pub fn get(&self, split: Split, items: &[usize], device: tch::Device) -> Result<TopTokens> {
        let (mut ids, mut log_probs, mut tails) = (Vec::new(), Vec::new(), Vec::new());
        for &item in items {
            let part = &self.parts[&(split, item / PART)];
            let tensor = |key: &str| {
                part.get(key).ok_or_else(|| Error::user(format!("{}: `{key}` is missing", part.origin().display())))
            };
            let counts = tensor("counts")?;
            let at = (item % PART) as i64;
            let from = counts.narrow(0, 0, at).sum(Kind::Int64).int64_value(&[]);
            let n = counts.int64_value(&[at]);
            let slice = |key: &str| -> Result<Tensor> { Ok(tensor(key)?.f_narrow(0, from, n)?) };
            let named = || format!("{}, item {item}", self.folder.display());
            ids.push(slice("ids").context(named)?.to_kind(Kind::Int64));
            log_probs.push(slice("log_probs").context(named)?);
            if self.contents.origin.k < self.contents.origin.vocabulary {
                tails.push(slice("tail").context(named)?);
            }
        }
        let tail = (!tails.is_empty()).then(|| Tensor::cat(&tails, 0));
        let ids = Tensor::cat(&ids, 0);
        let vocabulary = self.contents.origin.vocabulary;
        if ids.numel() > 0 && (ids.min().int64_value(&[]) < 0 || ids.max().int64_value(&[]) >= vocabulary) {
            return Err(Error::user(format!(
                "{}: token ids beyond the vocabulary of {vocabulary}",
                self.folder.display()
            ))
            .hint("the cache is damaged: remove it and make it again with: ft teach RECIPE"));
        }
        let [ids, log_probs] = upload([ids, Tensor::cat(&log_probs, 0)], device);
        let tail = tail.map(|tail| upload([tail], device)).map(|[tail]| tail);
        Ok(TopTokens { ids, log_probs, tail })
    }
}

/// Selects the k most likely tokens of log-probabilities (n, V), and the probability of the others.
pub fn top_tokens(log_probs: &Tensor, k: i64) -> TopTokens {
    let (values, ids) = log_probs.topk(k, -1, true, true);
    let others = k < log_probs.size()[1];
    let tail = others.then(|| log_remainder(&values));
    TopTokens { ids, log_probs: values, tail }
}

/// Computes log(1 - sum exp) of each row: the log-probability of everything else. The probability is at least 1e-7,
/// which float32 can distinguish from 0.
pub fn log_remainder(log_probs: &Tensor) -> Tensor {
    let taken = log_probs.exp().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    (-taken).f_add_scalar(1.0).expect("a float tensor").clamp_min(1e-7).log()
}
