//! Layers of experts: of many MLPs, a router chooses a few for each token (Shazeer et al. 2017, arXiv 1701.06538; Fedus
//! et al. 2021, arXiv 2101.03961).
//!
//! The (token, expert) pairs of a row are sorted by expert, so that an expert computes its tokens as one product. An
//! expert without tokens computes nothing: a decoding step of one sequence reads the weights of its k experts only.
//!
//! Every expert is a [`GatedMlp`](super::GatedMlp) of layers with their names in the checkpoint, and each of its weights
//! a tensor of its own, not a part of a stack (E, out, in). So adapters attach to an expert as to any other layer; a
//! weight may stay mapped in its file, be quantised when it is read, and be trained, merged and saved by itself. A stack
//! would save no product on the CPU, which has one per expert in any case, and its gradient would be as large as the
//! layer even if most experts have no tokens. Only where a GPU computes the products of all experts at once, frozen weights are moved side
//! by side in memory, and stay tensors of their own.
//!
//! router: which experts compute a token. dispatch: rows of tokens in the order of experts, and back. grouped: all experts at once. layer:
//! all of it.

mod dispatch;
mod grouped;
mod layer;
mod router;

pub use layer::ExpertLayer;
pub use router::{Router, RouterStatistics, RoutingRule};
