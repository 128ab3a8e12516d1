//! What merging changes for adapters that were trained over quantised weights.
//!
//! A merge adds such an adapter to the base's own weights, never to weights that are quantised again: that would round
//! the adapter away. The merged model then differs from the one that was trained by the error of the quantisation, which
//! is measured here.

use super::verify::logit_distance::{self, LogitDistance};
use super::verify::report::REPORT;
use crate::adapters::merging::WeightedAdapter;
use crate::error::{Error, Result};
use crate::fsutil::read_json;
use crate::models::{Model, QuantisedBase};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// The distance between a merged model and the same adapters over the quantised weights that they were trained on.
#[derive(Debug, Clone, Serialize)]
pub struct QuantisationError {
    /// How the base was quantised in training.
    pub trained_over: QuantisedBase,
    /// Distance of the adapters over the base's own weights from the adapters over the quantised ones, on the fixed
    /// prompts.
    pub difference: LogitDistance,
}

/// Returns how the base was quantised when these adapters were trained; `None` if it was not. Fails if adapters were
/// trained over bases that were quantised in different ways: no model exists that all of them were trained on. Fails also
/// for adapters that belong to the quantised weights only, not to those of `base`.
pub fn trained_over(base: &Path, parts: &[WeightedAdapter]) -> Result<Option<QuantisedBase>> {
    let mut found: Option<(QuantisedBase, &WeightedAdapter)> = None;
    for part in parts {
        let Some(format) = recorded(&part.companions)? else { continue };
        if let QuantisedBase::Loaded { format, corrected: true } = &format {
            return Err(Error::user(format!(
                "{}: the adapter began as a correction of a base in {} (init: loftq); in the base's own weights it would be an error",
                part.folder.display(),
                format.describe()
            ))
            .hint(format!(
                "use it over the quantised base: ft generate --model {} --quantize {}{} --adapter {}",
                base.display(),
                format.linear.format.name(),
                format.embeddings.map(|f| format!(" --quantize-embeddings {}", f.name())).unwrap_or_default(),
                part.folder.display()
            )));
        }
        match &found {
            Some((other, first)) if *other != format => {
                return Err(Error::user(format!(
                    "{} was trained over a base in {}, {} over one in {}",
                    first.folder.display(),
                    other.describe(),
                    part.folder.display(),
                    format.describe()
                ))
                .hint("merge each of them by itself"));
            }
            _ => found = Some((format, part)),
        }
    }
    Ok(found.map(|(format, _)| format))
}

/// Reads how the base was quantised from the report beside an adapter. An adapter without such a report was not trained
/// by ft.
pub fn recorded(adapter: &Path) -> Result<Option<QuantisedBase>> {
    #[derive(Deserialize)]
    struct Recorded {
        #[serde(default)]
        quantised_base: Option<QuantisedBase>,
    }
    let path = adapter.join(REPORT);
    if !path.exists() {
        return Ok(None);
    }
    Ok(read_json::<Recorded>(&path)?.quantised_base)
}

/// Returns true if the adapter in a folder belongs to quantised weights only, because it began as a correction of their
/// error.
pub fn is_correction(adapter: &Path) -> Result<bool> {
    Ok(matches!(recorded(adapter)?, Some(QuantisedBase::Loaded { corrected: true, .. })))
}

/// Returns the model with stored quantised weights that adapters were trained over, as they name it. Fails if it is not
/// there any more, or if they name several.
pub fn stored_base(parts: &[WeightedAdapter]) -> Result<&Path> {
    let named: BTreeSet<&Path> = parts.iter().filter_map(|part| Some(Path::new(part.file.base.as_deref()?))).collect();
    match named.iter().collect::<Vec<_>>()[..] {
        [base] if base.exists() => Ok(base),
        [base] => Err(Error::user(format!("{} is not there", base.display()))),
        _ => Err(Error::user("the adapters name several bases, or none")),
    }
}

/// Returns the sentence for a merge whose change could not be measured.
pub fn unmeasured(trained_over: &QuantisedBase, why: &Error) -> String {
    format!(
        "trained over a base in {}, merged into full-precision weights: how much this changes the answers was not measured ({why})",
        trained_over.describe()
    )
}

impl QuantisationError {
    /// Measures the distance between adapters over the base's own weights (`merged`) and over quantised ones.
    pub fn measure(trained_over: &QuantisedBase, quantised: &Model, merged: &Model) -> Result<Self> {
        let [was, is] = [quantised, merged].map(|m| m.config().vocab_size);
        if was != is {
            return Err(Error::user(format!("it has a vocabulary of {was}, the merged model of {is}")));
        }
        let prompts = logit_distance::prompts(merged, merged.folder())?;
        let [expected, found] = [quantised, merged].map(|m| logit_distance::logits(m, &prompts));
        Ok(Self { trained_over: trained_over.clone(), difference: LogitDistance::between(&expected?, &found?) })
    }

    /// Returns a sentence for people. `effect`: the distance that the adapters make.
    pub fn note(&self, effect: Option<&LogitDistance>) -> String {
        let effect = effect.filter(|e| e.mean_kl > 0.0).map_or(String::new(), |effect| {
            format!(
                ", {:.0} % of the adapter's effect ({:.1e})",
                100.0 * self.difference.mean_kl / effect.mean_kl,
                effect.mean_kl
            )
        });
        format!(
            "trained over a base in {}, merged into the base's own weights: this changes the answers by mean KL {:.1e}{effect}",
            self.trained_over.describe(),
            self.difference.mean_kl
        )
    }
}
