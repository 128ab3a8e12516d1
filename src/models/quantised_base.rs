//! How the frozen base below an adapter was quantised, as it is recorded beside the adapter.

use super::model::Model;
use crate::nn::{Quantisation, QuantisedParam};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How the matrices of a frozen base were quantised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QuantisedBase {
    /// When the base was loaded (`model.quantize`).
    Loaded {
        /// The settings.
        #[serde(flatten)]
        format: Quantisation,
        /// True for an adapter that began as a correction of the error of the quantisation (LoftQ): it belongs to the
        /// quantised weights only.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        corrected: bool,
    },
    /// In the base's files.
    Stored {
        /// The format, for people.
        stored: String,
    },
}

impl QuantisedBase {
    /// Returns how the base of a model is quantised; `None` if it is not.
    pub fn of(model: &Model) -> Option<Self> {
        if let Some(format) = model.storage().quantisation() {
            return Some(Self::Loaded { format, corrected: false });
        }
        let format = |quantised: &QuantisedParam| match quantised {
            QuantisedParam::Done(weight) => Some(weight.describe()),
            QuantisedParam::Never | QuantisedParam::Possible => None,
        };
        let formats: BTreeSet<String> = model.params().base().filter_map(|p| format(&p.quantised)).collect();
        let stored = formats.into_iter().collect::<Vec<_>>().join(" and ");
        (!stored.is_empty()).then_some(Self::Stored { stored })
    }

    /// Returns how the base's own weights are to be quantised when they are loaded; `None` if they are stored quantised.
    pub fn at_load(&self) -> Option<Quantisation> {
        match self {
            Self::Loaded { format, .. } => Some(*format),
            Self::Stored { .. } => None,
        }
    }

    /// Returns a description for people, such as `NF4 with 8-bit scales`.
    pub fn describe(&self) -> String {
        match self {
            Self::Loaded { format, .. } => format.describe(),
            Self::Stored { stored } => stored.clone(),
        }
    }
}
