//! Which adapter answers a request.

use super::prompt_check::max_sequence_tokens;
use crate::models::Model;

/// The adapter that answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnsweringAdapter {
    /// The one that is active in the model, which the caller must keep the same in every step.
    #[default]
    Active,
    /// The one with this number, whichever is active; `None`: the bare base.
    Chosen(Option<usize>),
}

impl AnsweringAdapter {
    /// Returns the adapter's number; `None`: the bare base.
    pub fn number(self, model: &Model) -> Option<usize> {
        match self {
            Self::Active => model.active_adapter_id(),
            Self::Chosen(number) => number,
        }
    }

    /// Returns the number of virtual tokens that the adapter puts before every sequence.
    pub(super) fn virtual_tokens(self, model: &Model) -> usize {
        model.with_adapter_id(self.number(model), Model::virtual_tokens) as usize
    }

    /// Returns the most tokens that a sequence may have under the adapter, without its virtual ones.
    pub(super) fn context(self, model: &Model) -> usize {
        model.with_adapter_id(self.number(model), max_sequence_tokens)
    }
}
