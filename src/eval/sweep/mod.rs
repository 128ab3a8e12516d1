//! Searches the weights of a merge by the loss on held-out rows.
//!
//! grid: one weight of each adapter, by trials. trained: weights of each adapter by layer, module or component, by gradient.
//! groups: the layers, modules or components. gradient: that of a loss with respect to weights.

pub mod gradient;
pub mod grid;
pub mod groups;
pub mod trained;
