//! Where the value function is, and how it is computed.

use crate::models::Output;
use tch::Tensor;

/// The name of the adapter that holds the value function.
pub const VALUE: &str = "value";

/// Where the value function is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFunction {
    /// A head on the policy's hidden states.
    Head {
        /// The adapter that it is stored in; `None`: the base, which is trained itself.
        adapter: Option<&'static str>,
        /// True if its gradient does not reach the policy.
        detach: bool,
    },
    /// An adapter of its own.
    Adapter(&'static str),
}

impl ValueFunction {
    /// Computes the values of the states `at`: (N), from the output of the pass that carries the value function.
    pub fn values(self, out: &Output, at: &Tensor) -> Tensor {
        match self {
            Self::Head { adapter, detach: true } => Self::Head { adapter, detach: false }.values(&out.detached(), at),
            Self::Head { adapter: Some(name), .. } => out.scalar_of_adapter(name, at),
            Self::Head { adapter: None, .. } | Self::Adapter(_) => out.scalar(at),
        }
    }
}
