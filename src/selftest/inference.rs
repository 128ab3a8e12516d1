//! Checks of the model's outputs: adapter switched off, independence of packed rows, cache, merged weights.

use super::compare::{CheckResult, CheckTitle, LargestDifference, check_result, compare_rows};
use super::saving::save;
use super::test_model::{TestModel, logits, temporary_folder};
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::error::{Error, Result};
use crate::models::QuantisedBase;
use crate::nn::Tokens;
use std::time::Instant;
use tch::Tensor;

const BASE: CheckTitle = ("base", "the adapter switched off against a model that never had one: logits");
pub const ISOLATION: CheckTitle =
    ("isolation", "one token changed: logits before it and of the other rows, which must not move");
pub const CACHE: CheckTitle = ("cache", "prefill and decoding token by token over a cache against one pass: logits");
/// Title of the check of merged weights.
pub const MERGED: CheckTitle = ("merged", "the adapter folded into the weights against the adapted model: logits");

/// Checks that a model whose adapter is switched off gives the logits of one that never had it, `bare`.
pub fn base(trial: &TestModel, bare: Tensor) -> Result<CheckResult> {
    let began = Instant::now();
    let off = trial.model.with_adapter(None, |_| trial.logits())?;
    let gap = compare_rows(&off, &bare);
    // If the adapter had no effect, this check and the others could not fail.
    let effect = compare_rows(&trial.logits()?, &bare);
    let gap = if effect.relative == 0.0 {
        LargestDifference { relative: f64::NAN, at: "the adapter changes nothing, switched on or off".into() }
    } else {
        gap
    };
    Ok(check_result(BASE, gap, trial.rounding().exact("the same operations"), began))
}

/// Changes one token in the middle of a row and checks that only logits at and after it, in the same row, change.
pub fn isolation(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let before = trial.logits()?;
    let changed = (0..trial.rows.len()).max_by_key(|&i| trial.rows[i].len()).expect("there are rows");
    let middle = trial.rows[changed].len() / 2;
    let mut rows = trial.rows.clone();
    rows[changed][middle] = rows[changed][0];
    if rows == trial.rows {
        rows[changed][middle] = rows[changed][middle].saturating_sub(1);
    }
    let after = logits(&trial.model, &Tokens::pack(&rows, trial.model.device()))?;
    let start: usize = trial.rows[..changed].iter().map(Vec::len).sum();
    let (from, to) = (start + middle, start + trial.rows[changed].len());
    let gap = difference_outside(&before, &after, from, to);
    let tolerance = match trial.model.config().experts {
        None => trial.rounding().exact("no operation joins two rows"),
        Some(_) => trial.rounding().logits("an expert's product has more or fewer rows beside a token's"),
    };
    Ok(check_result(ISOLATION, gap, tolerance, began))
}

/// Returns the largest change of logits outside `from..to`; NaN if those inside did not change.
fn difference_outside(before: &Tensor, after: &Tensor, from: usize, to: usize) -> LargestDifference {
    let total = before.size()[0];
    let part = |t: &Tensor, start: usize, end: i64| t.narrow(0, start as i64, end - start as i64);
    let inside = compare_rows(&part(after, from, to as i64), &part(before, from, to as i64));
    if inside.relative == 0.0 {
        return LargestDifference { relative: f64::NAN, at: "the changed token changes nothing".into() };
    }
    let mut worst = compare_rows(&part(after, 0, from as i64), &part(before, 0, from as i64));
    if (to as i64) < total {
        let mut behind = compare_rows(&part(after, to, total), &part(before, to, total));
        behind.at = format!("{} counted from position {to}", behind.at);
        worst = worst.larger(behind);
    }
    worst
}

/// Checks decoding over a cache: reads the first half of each row at once, the rest token by token. Rows that end leave
/// the batch.
pub fn cache(trial: &TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    let full = trial.logits()?;
    let gap = decoding_difference(trial, &full, 0)?;
    Ok(check_result(CACHE, gap, trial.rounding().logits("attention and products run over other shapes"), began))
}

/// Returns the largest difference of logits while decoding. `off` shifts the positions that the model gets; it is 0
/// except in tests of this check.
fn decoding_difference(trial: &TestModel, full: &Tensor, off: i64) -> Result<LargestDifference> {
    let (model, device) = (&trial.model, trial.model.device());
    let starts: Vec<i64> = trial
        .rows
        .iter()
        .scan(0, |at, r| {
            let start = *at;
            *at += r.len() as i64;
            Some(start)
        })
        .collect();
    let mut live = trial.all_rows();
    let mut done: Vec<usize> = trial.rows.iter().map(|r| r.len().div_ceil(2)).collect();
    let mut cache = model.cache(live.len());
    let first: Vec<&[u32]> = live.iter().map(|&i| &trial.rows[i][..done[i]]).collect();
    let mut tokens = Tokens::pack(&first, device);
    let mut worst = LargestDifference::default();
    loop {
        let found = model.extend(&tokens, &mut cache, |out| out.logits(&tokens.segments.last_rows()))?;
        let at: Vec<i64> = live.iter().map(|&i| starts[i] + done[i] as i64 - 1).collect();
        let gap = compare_rows(&found, &full.index_select(0, &Tensor::from_slice(&at).to_device(device)));
        worst = worst.larger(LargestDifference { at: format!("after {} tokens by cache", found.size()[0]), ..gap });
        let keep: Vec<usize> =
            (0..live.len()).filter(|&slot| done[live[slot]] < trial.rows[live[slot]].len()).collect();
        if keep.is_empty() {
            return Ok(worst);
        }
        if keep.len() < live.len() {
            cache.retain_slots(&keep);
            live = keep.iter().map(|&slot| live[slot]).collect();
        }
        let next: Vec<&[u32]> = live.iter().map(|&i| &trial.rows[i][done[i]..done[i] + 1]).collect();
        let past: Vec<i64> = cache.lengths.iter().map(|n| n + off).collect();
        tokens = Tokens::pack_after(&next, &past, device);
        live.iter().for_each(|&i| done[i] += 1);
    }
}

/// Checks merging: saves the adapter, merges the file into the model's weights as `ft merge` does, and compares the
/// logits without the adapter. Consumes the model, because its weights are changed.
pub fn merged(trial: TestModel) -> Result<CheckResult> {
    let began = Instant::now();
    if let Some(why) = trial.spec.why_not_merged() {
        return Ok(CheckResult::skipped(MERGED, &why));
    }
    if matches!(QuantisedBase::of(&trial.model), Some(QuantisedBase::Stored { .. })) {
        return Ok(CheckResult::skipped(
            MERGED,
            "the weights are stored quantised, and no adapter is merged into such",
        ));
    }
    let adapted = trial.logits()?;
    let folded = merged_logits(&trial, 1.0)?;
    let tolerance = trial.rounding().weights("the weights are rounded after the update is added");
    Ok(check_result(MERGED, compare_rows(&folded, &adapted), tolerance, began))
}

/// Returns logits of the merged weights; `weight` scales the adapter (1 except in tests of this check).
fn merged_logits(trial: &TestModel, weight: f64) -> Result<Tensor> {
    let folder = temporary_folder()?;
    save(trial, folder.path())?;
    let base = crate::models::weights(&trial.base, trial.model.config())?;
    let merge = MergedWeights::new(
        &base,
        &trial.model.config().tied_weights(),
        &[WeightedAdapter::read(folder.path(), weight)?],
    )?;
    for name in merge.changed() {
        let p = trial
            .model
            .params()
            .base()
            .find(|p| p.name == name)
            .ok_or_else(|| Error::bug(format!("the merge changes `{name}`, which the model does not have")))?;
        let new = merge.tensor(name)?.to_device(p.tensor.device()).to_kind(p.tensor.kind());
        // Copies into the storage that the layer reads, which may be a transposed view. A memory-mapped file stays
        // unchanged, because it is mapped privately.
        let _no_grad = tch::no_grad_guard();
        p.tensor.shallow_clone().copy_(&new);
    }
    trial.model.with_adapter(None, |_| trial.logits())
}

#[cfg(test)]
mod tests {
    use super::super::test_model::tests::tiny;
    use super::*;
    use tch::Kind;

    #[test]
    fn a_scale_off_by_a_hundredth_is_seen() {
        let limit = |trial: &TestModel| trial.rounding().logits("").limit;
        let trial = tiny(Kind::Float, 0.0);
        let adapted = trial.logits().unwrap();
        let (right, wrong) = (
            compare_rows(&merged_logits(&trial, 1.0).unwrap(), &adapted),
            compare_rows(&merged_logits(&trial, 1.01).unwrap(), &adapted),
        );
        assert!(right.relative <= limit(&trial) && wrong.relative > 10.0 * limit(&trial), "{right:?} {wrong:?}");
        // In bf16 rounding hides such an error, but not an update that is missing altogether.
        let trial = tiny(Kind::BFloat16, 0.0);
        let adapted = trial.logits().unwrap();
        let (right, wrong) = (
            compare_rows(&merged_logits(&trial, 1.0).unwrap(), &adapted),
            compare_rows(&merged_logits(&trial, 0.0).unwrap(), &adapted),
        );
        assert!(right.relative <= limit(&trial) && wrong.relative > limit(&trial), "{right:?} {wrong:?}");
    }

    #[test]
    fn positions_off_by_one_are_seen() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let trial = tiny(kind, 0.0);
            let full = trial.logits().unwrap();
            let (right, wrong) =
                (decoding_difference(&trial, &full, 0).unwrap(), decoding_difference(&trial, &full, 1).unwrap());
            let limit = trial.rounding().logits("").limit;
            // One position changes the logits of a model of three layers little, but by more than the rounding of
            // float32.
            assert!(right.relative <= limit, "{right:?}");
            assert!(kind == Kind::BFloat16 || wrong.relative > limit, "{wrong:?}");
        }
    }

    #[test]
    fn rows_that_see_each_other_are_seen() {
        let trial = tiny(Kind::Float, 0.0);
        let device = trial.model.device();
        let both = |last: u32| {
            let first = [&trial.rows[0][..], &[last]].concat();
            let read = |packed: &[&[u32]]| logits(&trial.model, &Tokens::pack(packed, device)).unwrap();
            let joined = [&first[..], &trial.rows[1]].concat();
            (read(&[&first, &trial.rows[1]]), read(&[&joined]), first.len())
        };
        let ((apart, joined, end), (other_apart, other_joined, _)) = (both(3), both(4));
        assert_eq!(difference_outside(&apart, &other_apart, end - 1, end).relative, 0.0);
        assert!(difference_outside(&joined, &other_joined, end - 1, end).relative > 0.0);
        assert!(
            difference_outside(&apart, &apart, end - 1, end).relative.is_nan(),
            "a change that changes nothing proves nothing"
        );
    }

    #[test]
    fn an_adapter_left_on_and_an_idle_one_are_seen() {
        let trial = tiny(Kind::Float, 0.0);
        let bare = trial.model.with_adapter(None, |_| trial.logits()).unwrap();
        assert_eq!(base(&trial, bare.copy()).unwrap().verdict, crate::selftest::compare::CheckVerdict::Passed);
        let line = base(&trial, trial.logits().unwrap()).unwrap();
        assert_eq!(line.verdict, crate::selftest::compare::CheckVerdict::Failed, "{line:?}");
        let _no_grad = tch::no_grad_guard();
        trial.model.params().adapter(0).for_each(|p| {
            let _ = p.tensor.shallow_clone().zero_();
        });
        let line = base(&trial, bare).unwrap();
        assert!(
            line.verdict == crate::selftest::compare::CheckVerdict::Failed && line.at.contains("changes nothing"),
            "{line:?}"
        );
    }
}
