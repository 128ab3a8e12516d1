//! Methods that merge whole models, tensor by tensor and block by block, so that a tensor need not be in memory.
//!
//! The names and parameters of the methods, and what they compute, are those of mergekit 0.1; everything is computed in
//! float32, sums over entries in float64. [`spec`] has the table of methods, `layered_value` the values of parameters over layers
//! and tensor names. [`prepare`](prepare::prepare) measures what a method has to know of a whole tensor (inner products,
//! thresholds) by reading it once or a few times; what it returns merges any block of the tensor.
//!
//! `blocks` is how a tensor is divided and read: on several threads (`in_order`), whose number changes no result, because sums of
//! blocks are added up in the order of the blocks. A block fits the cache, so that the loops over it (`native::merging`) can be
//! many and simple. Methods whose result is a linear combination of the inputs are in `combination`,
//! with coefficients that follow from inner products: `linear`, `spherical`, `model_stock`. `task_arithmetic` and `sce` merge
//! changes of a base entry by entry; `sparsify` and `select` choose the entries.

pub mod blocks;
mod combination;
mod in_order;
mod inner_products;
pub mod layered_value;
mod linear;
mod model_stock;
pub mod prepare;
mod sce;
mod select;
mod sparsify;
pub mod spec;
mod spherical;
mod task_arithmetic;

pub use blocks::{Buffer, TensorBlocks, TensorParts, slices};
pub use in_order::in_order;
pub use layered_value::{FilteredValue, LayeredValue};
pub use prepare::{MergedBlocks, prepare};
pub use spec::{BasePolicy, ModelMethod, ParameterKind, ParameterScope, ParameterSpec, ParameterValues};
