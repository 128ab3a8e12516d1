//! How the frozen base below an adapter was quantised, as it is recorded beside the adapter.

use super::config::tied_head::HEAD;
use super::model::Model;
use crate::error::{Error, Result};
use crate::nn::params::TOKEN_ROWS;
use crate::nn::{BaseQuantisation, LayerKind, Param, QuantisedParam};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

impl Model {
    /// Fails if an adapter adapts or trains a table of tokens or the output head as a whole, which a base with quantised
    /// embeddings does not allow. Trained rows of single tokens lie beside the table.
    pub fn require_untouched_tables(&self) -> Result<()> {
        let is_table = |p: &&Param| match &p.quantised {
            QuantisedParam::PossibleTable => true,
            QuantisedParam::Done(_) => matches!(p.layer, LayerKind::Embedding | LayerKind::Table | LayerKind::Head),
            QuantisedParam::Never | QuantisedParam::Possible => false,
        };
        // A head that shares the embedding's weight has no parameter of its own.
        let modules: Vec<&str> =
            self.params().base().filter(is_table).filter_map(|p| p.name.strip_suffix(".weight")).collect();
        let below = |p: &Param, module: &str| p.name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        let touched = |p: &Param| match modules.iter().find(|module| below(p, module)) {
            _ if p.adapter.is_none() || p.name.ends_with(TOKEN_ROWS) => None,
            Some(module) => Some(*module),
            None => (p.layer == LayerKind::Head).then_some(HEAD.trim_end_matches(".weight")),
        };
        let Some(module) = self.params().iter().find_map(touched) else { return Ok(()) };
        Err(Error::user(format!(
            "quantize_embeddings: an adapter adapts or trains `{module}`, which is to be quantised"
        ))
        .hint("leave embedding and output head out of targets and modules_to_save, or leave out quantize_embeddings"))
    }
}

/// How the matrices of a frozen base were quantised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QuantisedBase {
    /// When the base was loaded (`model.quantize`, `model.quantize_embeddings`).
    Loaded {
        /// The settings.
        #[serde(flatten)]
        format: BaseQuantisation,
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
            QuantisedParam::Never | QuantisedParam::Possible | QuantisedParam::PossibleTable => None,
        };
        let formats: BTreeSet<String> = model.params().base().filter_map(|p| format(&p.quantised)).collect();
        let stored = formats.into_iter().collect::<Vec<_>>().join(" and ");
        (!stored.is_empty()).then_some(Self::Stored { stored })
    }

    /// Returns how the base's own weights are to be quantised when they are loaded; `None` if they are stored quantised.
    pub fn at_load(&self) -> Option<BaseQuantisation> {
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
