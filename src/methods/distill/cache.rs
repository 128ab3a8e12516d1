//! Teacher distributions on disk: for each supervised token the k most likely tokens with their log-probabilities, and
//! the mass of all others.
//!
//! A folder holds `teaching.json` (what it was made of, k, the hash of every item) and, per split, parts of so many
//! items: `train-00000.safetensors` with `ids` (N, k) int32, `log_probs` (N, k) float32, `tail` (N) float32 and
//! `counts` (supervised tokens of each item). Parts are written whole, so making one goes on where it stopped. Invariant:
//! nothing is read whose items are not, token by token and mark by mark, those of the run.

use super::spec::{DistillSpec, TeacherSpec};
use crate::error::{Context, Error, Result};
use crate::fsutil::{self, hex, read_json, write_json};
use crate::methods::Split;
use crate::models::content;
use crate::nn::{Weights, weights};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Items in a part.
pub const PART: usize = 256;
const FILE: &str = "teaching.json";

/// What a cache was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// SHA-256 of each teacher's files, with its share.
    pub teachers: Vec<(String, f64)>,
    /// Of tokenizer and chat template.
    pub tokenizer: String,
    pub temperature: f64,
    /// Tokens kept of each distribution.
    pub k: i64,
    /// Tokens there are.
    pub vocabulary: i64,
}

/// What a cache holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    origin: Origin,
    /// The hash of each split's items, and how many there are.
    splits: BTreeMap<String, (String, usize)>,
}

/// The distributions of some tokens.
pub struct Stored {
    /// (N, k) the most likely tokens.
    pub ids: Tensor,
    /// (N, k) their log-probabilities, float32.
    pub log_probs: Tensor,
    /// (N) the log-probability of all others together; `None` where there are no others.
    pub tail: Option<Tensor>,
}

/// A folder of distributions.
pub struct Cache {
    folder: PathBuf,
    contents: Contents,
    parts: BTreeMap<(Split, usize), Weights>,
}

fn name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Valid => "valid",
    }
}

/// The SHA-256 of what a teacher computes with.
pub fn teacher_hash(spec: &TeacherSpec) -> Result<String> {
    let folders: Vec<&Path> = [Some(&spec.path), spec.adapter.as_ref()].into_iter().flatten().map(|p| &**p).collect();
    content::hash(&folders)
}

/// One hash of all items.
pub fn items_hash(hashes: &[u64]) -> String {
    let mut hash = Sha256::new();
    hashes.iter().for_each(|h| hash.update(h.to_le_bytes()));
    hex(&hash.finalize())
}

impl Origin {
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

    /// What differs, in words.
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

/// Bytes of a cache for so many supervised tokens.
pub fn bytes(tokens: u64, k: i64) -> u64 {
    tokens * (8 * k as u64 + 4)
}

/// Makes a cache, part by part.
pub struct Writer {
    folder: PathBuf,
}

impl Writer {
    /// Begins, or goes on with one of the same origin and items.
    pub fn open(folder: &Path, origin: &Origin, splits: &[(Split, &[u64])]) -> Result<Self> {
        fsutil::create_owners_dir(folder)?;
        let splits = splits.iter().map(|(s, hashes)| (name(*s).to_string(), (items_hash(hashes), hashes.len())));
        let contents = Contents { origin: origin.clone(), splits: splits.collect() };
        let file = folder.join(FILE);
        if file.exists() && read_json::<Contents>(&file)? != contents {
            return Err(Error::user(format!("{}: holds the distributions of something else", folder.display()))
                .hint("give another folder, or remove this one"));
        }
        write_json(&file, &contents)?;
        Ok(Self { folder: folder.into() })
    }

    /// Whether a part is there already.
    pub fn has(&self, split: Split, part: usize) -> bool {
        path(&self.folder, split, part).exists()
    }

    /// Writes a part: the distributions of its items' supervised tokens, and how many each item has.
    pub fn write(&self, split: Split, part: usize, stored: &Stored, counts: &[i64]) -> Result<()> {
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

impl Cache {
    /// Opens the cache for a run of this origin and these items; one of anything else is refused.
    pub fn open(folder: &Path, origin: &Origin, splits: &[(Split, &[u64])]) -> Result<Self> {
        let file = folder.join(FILE);
        let remake = "make it with: ft teach RECIPE";
        if !file.exists() {
            return Err(Error::user(format!("{}: no teacher distributions are here", folder.display())).hint(remake));
        }
        let contents: Contents = read_json(&file)?;
        // How many tokens are kept is the cache's to say.
        let differences = contents.origin.differences(&Origin { k: contents.origin.k, ..origin.clone() });
        if !differences.is_empty() {
            return Err(Error::user(format!(
                "{}: these distributions were made of something else:\n  {}",
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
                        "{}: made of other {} rows ({count} items, the run has {}, or their tokens differ)",
                        folder.display(),
                        name(*split),
                        hashes.len()
                    ))
                    .hint(remake));
                }
                None => {
                    return Err(
                        Error::user(format!("{}: holds no {} rows", folder.display(), name(*split))).hint(remake)
                    );
                }
            }
            for part in 0..hashes.len().div_ceil(PART) {
                let file = path(folder, *split, part);
                if !file.exists() {
                    return Err(Error::user(format!("{}: the cache is not finished", file.display()))
                        .hint("go on with: ft teach RECIPE"));
                }
                parts.insert((*split, part), Weights::open_file(&file)?);
            }
        }
        Ok(Self { folder: folder.into(), contents, parts })
    }

    /// The distributions of the supervised tokens of some items, one after the other.
    pub fn get(&self, split: Split, items: &[usize], device: tch::Device) -> Result<Stored> {
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
            let slice = |key: &str| -> Result<Tensor> { Ok(tensor(key)?.f_narrow(0, from, n)?.to_device(device)) };
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
        Ok(Stored { ids, log_probs: Tensor::cat(&log_probs, 0), tail })
    }
}

/// The k most likely of log-probabilities (n, V), and the mass of the others.
pub fn top(log_probs: &Tensor, k: i64) -> Stored {
    let (values, ids) = log_probs.topk(k, -1, true, true);
    let others = k < log_probs.size()[1];
    let tail = others.then(|| rest(&values));
    Stored { ids, log_probs: values, tail }
}

/// log(1 - sum exp) of each row: the log-probability of everything else. At least 1e-7, which float32 can tell from 0.
pub fn rest(log_probs: &Tensor) -> Tensor {
    let taken = log_probs.exp().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    (-taken).f_add_scalar(1.0).expect("a float tensor").clamp_min(1e-7).log()
}
