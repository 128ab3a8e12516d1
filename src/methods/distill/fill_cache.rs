//! Fills a cache with teachers' distributions before any student is trained on them.

use super::cache::{self, PART, TeacherCacheOrigin, TeacherCacheWriter, TopTokens};
use super::spec::DistillSpec;
use super::teacher::{self, TeacherModels};
use crate::data::dataset::Dataset;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::methods::fixed::Split;
use crate::methods::rows::DataContext;
use crate::methods::sft::SupervisedBatch;
use crate::nn::chunked;
use crate::report;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::{Device, Kind, Tensor};

/// A summary of the cache that was filled.
#[derive(Debug, serde::Serialize)]
pub struct TeachSummary {
    /// Number of items.
    pub items: usize,
    /// Number of their supervised tokens.
    pub tokens: u64,
    /// Number of tokens stored of each distribution.
    pub k: i64,
    /// Size of the cache.
    pub bytes: u64,
    /// Number of parts that existed already.
    pub kept: usize,
}

/// Writes the distributions of the recipe's teachers over its rows into `folder`. Teachers run on `device`, in `kind`
/// unless they set a dtype of their own. Continues where an earlier call stopped; `stop` ends the call after the
/// current part, with an error.
pub fn fill_cache(
    spec: &DistillSpec,
    ground: &DataContext,
    (device, kind): (Device, Kind),
    k: i64,
    folder: &Path,
    stop: &AtomicBool,
) -> Result<TeachSummary> {
    if spec.universal() {
        return Err(Error::user(
            "loss: { universal: {} } compares sorted probabilities of another vocabulary, which a cache cannot store",
        )
        .hint("train without a cache (the teacher then runs during training), or write answers: ft teach RECIPE --generate"));
    }
    let vocabulary = ground.tokenizer.embedded_size() as i64;
    if k > vocabulary {
        return Err(Error::user(format!("--top {k}: the tokenizer has {vocabulary} tokens"))
            .hint(format!("use at most {vocabulary}, which stores every distribution completely")));
    }
    spec.teachers.iter().try_for_each(|t| teacher::check_vocabulary(&t.path, &ground.tokenizer))?;
    let teachers = TeacherModels::load(spec, &ground.tokenizer, device, kind)?;
    let (train, valid) = ground.open::<Example>(spec.supervise)?;
    let tokens = train.summary.supervised_tokens + valid.as_ref().map_or(0, |v| v.summary.supervised_tokens);
    let bytes = cache::bytes(tokens as u64, k);
    report::info(format!(
        "{}: about {} for {tokens} tokens, with the {k} most likely of {vocabulary} tokens stored for each",
        folder.display(),
        report::bytes(bytes)
    ));
    if let Some(free) = crate::machine::free_disk(folder).filter(|free| *free < bytes + (64 << 20)) {
        return Err(Error::user(format!("{}: only {} are free on the disk", folder.display(), report::bytes(free)))
            .hint("store fewer tokens with --top, or choose another folder with --out"));
    }
    let origin = TeacherCacheOrigin::of(spec, ground.tokenizer.fingerprint()?, k, vocabulary)?;
    let splits: Vec<(Split, &Dataset)> = [(Split::Train, Some(&train)), (Split::Valid, valid.as_ref())]
        .into_iter()
        .filter_map(|(s, d)| Some((s, d?)))
        .collect();
    let hashes: Vec<(Split, Vec<u64>)> = splits.iter().map(|(s, d)| (*s, d.hashes())).collect();
    let hashes: Vec<(Split, &[u64])> = hashes.iter().map(|(s, h)| (*s, h.as_slice())).collect();
    let writer = TeacherCacheWriter::open(folder, &origin, &hashes)?;
    let items: usize = splits.iter().map(|(_, d)| d.len()).sum();
    let bar = report::bar(items as u64, "rows taught");
    let mut taught = TeachSummary { items, tokens: tokens as u64, k, bytes, kept: 0 };
    for (split, rows) in splits {
        for part in 0..rows.len().div_ceil(PART) {
            let here: Vec<usize> = (part * PART..rows.len().min((part + 1) * PART)).collect();
            if writer.has(split, part) {
                taught.kept += 1;
            } else {
                let (stored, counts) = part_of(&teachers, rows, &here, ground.batch.tokens, &origin, device)?;
                writer.write(split, part, &stored, &counts)?;
            }
            bar.inc(here.len() as u64);
            if stop.load(Ordering::Relaxed) {
                bar.finish_and_clear();
                return Err(Error::interrupted("stopped by a signal; finished parts are kept")
                    .hint("run the same command again to continue from there"));
            }
        }
    }
    bar.finish_and_clear();
    Ok(taught)
}

/// Computes the distributions of some items, in their order, and the number of supervised tokens of each.
fn part_of(
    teachers: &TeacherModels,
    rows: &Dataset,
    items: &[usize],
    budget: usize,
    origin: &TeacherCacheOrigin,
    device: Device,
) -> Result<(TopTokens, Vec<i64>)> {
    let (mut all, mut counts) = (Vec::new(), Vec::new());
    let mut from = 0;
    while from < items.len() {
        let (mut to, mut tokens) = (from, 0);
        while to < items.len() && (to == from || tokens + rows.lengths()[items[to]] as usize <= budget) {
            tokens += rows.lengths()[items[to]] as usize;
            to += 1;
        }
        let examples = items[from..to].iter().map(|&i| rows.get(i)).collect::<Result<Vec<_>>>()?;
        counts.extend(examples.iter().map(|e| e.target_count() as i64));
        let outputs = teachers.outputs(&SupervisedBatch::new(&examples.iter().collect::<Vec<_>>(), device))?;
        for rows in chunked::chunks(outputs.each[0].hidden.size()[0], chunked::CHUNK) {
            all.push(cache::top_tokens(&outputs.log_probs(rows, origin.temperature), origin.k));
        }
        from = to;
    }
    Ok((joined(&all), counts))
}

/// Joins the distributions of consecutive tokens.
fn joined(parts: &[TopTokens]) -> TopTokens {
    let tails: Option<Vec<&Tensor>> = parts.iter().map(|p| p.tail.as_ref()).collect();
    TopTokens {
        ids: Tensor::cat(&parts.iter().map(|p| &p.ids).collect::<Vec<_>>(), 0),
        log_probs: Tensor::cat(&parts.iter().map(|p| &p.log_probs).collect::<Vec<_>>(), 0),
        tail: tails.map(|tails| Tensor::cat(&tails, 0)),
    }
}
