//! The share of each source in an epoch.

use super::summary::{DatasetSummary, SourceShare};
use crate::data::batch::SourceMix;
use crate::data::rows::SourceList;
use crate::error::{Error, Result};

/// Returns how often each source occurs in an epoch, and writes the shares into the summary. `counts` are the items
/// that are left of each source, `total` of all, and `noun` names an item in errors.
///
/// Errors: a source has a weight, but no item is left of it.
pub(super) fn source_mix(
    sources: &SourceList,
    counts: Vec<usize>,
    total: usize,
    noun: &str,
    summary: &mut DatasetSummary,
) -> Result<SourceMix> {
    if !sources.weighted() {
        return Ok(SourceMix::unweighted(total));
    }
    let weights: Vec<f64> = sources.0.iter().map(|s| s.weight.unwrap_or(1.0)).collect();
    if let Some((source, _)) = sources.0.iter().zip(&counts).find(|(_, n)| **n == 0) {
        let path = source.path.display();
        return Err(Error::user(format!("{path}: no {noun} of this source is left, but it has a weight")));
    }
    let mix = SourceMix::new(counts.clone(), Some(weights.clone()));
    let shares = sources.0.iter().zip(weights).zip(counts).zip(mix.quotas());
    summary.mix = shares
        .map(|(((source, weight), examples), per_epoch)| SourceShare {
            path: source.path.clone(),
            weight,
            examples,
            per_epoch,
        })
        .collect();
    Ok(mix)
}
