//! What merging changes for adapters that were trained over quantised weights.
//!
//! A merge adds such an adapter to the base's own weights, never to weights that are quantised again: that would round
//! the adapter away. The merged model then differs from the one that was trained by the error of the quantisation, which
//! is measured here.

use super::verify::logit_distance::{self, LogitDistance};
use super::verify::report::REPORT;
use crate::adapters::merge::WeightedAdapter;
use crate::error::{Error, Result};
use crate::fsutil::read_json;
use crate::models::Model;
use crate::nn::Quantisation;
use serde::{Deserialize, Serialize};

/// The distance between a merged model and the same adapters over the quantised weights that they were trained on.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QuantisationError {
    /// How the base was quantised in training.
    pub trained_over: Quantisation,
    /// Distance of the adapters over the base's own weights from the adapters over the quantised ones, on the fixed
    /// prompts.
    pub difference: LogitDistance,
}

/// Returns how the base was quantised when these adapters were trained; `None` if it was not. Fails if adapters were
/// trained over bases that were quantised in different ways: no model exists that all of them were trained on.
pub fn trained_over(parts: &[WeightedAdapter]) -> Result<Option<Quantisation>> {
    let mut found: Option<(Quantisation, &WeightedAdapter)> = None;
    for part in parts {
        let Some(format) = recorded(part)? else { continue };
        match found {
            Some((other, first)) if other != format => {
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
fn recorded(part: &WeightedAdapter) -> Result<Option<Quantisation>> {
    #[derive(Deserialize)]
    struct Recorded {
        #[serde(default)]
        quantised_base: Option<Quantisation>,
    }
    let path = part.folder.join(REPORT);
    if !path.exists() {
        return Ok(None);
    }
    Ok(read_json::<Recorded>(&path)?.quantised_base)
}

impl QuantisationError {
    /// Measures the distance between adapters over the base's own weights (`merged`) and over quantised ones.
    pub fn measure(trained_over: Quantisation, quantised: &Model, merged: &Model) -> Result<Self> {
        let prompts = logit_distance::prompts(merged, merged.folder())?;
        let [expected, found] = [quantised, merged].map(|m| logit_distance::logits(m, &prompts));
        Ok(Self { trained_over, difference: LogitDistance::between(&expected?, &found?) })
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
