//! Layers and the operations they are made of.
//!
//! Letters in shapes, everywhere: T tokens of a packed row, S segments or cache slots, D model width, H query heads,
//! K key/value heads, E head size, G = H / K, V vocabulary, R adapter rank, F feed-forward width. In `experts`, E is
//! the number of experts and k that of a token. A trailing `// (T, H, E)` is the shape of the line's result.
//!
//! Invariants: a trainable parameter is a float32 leaf, a frozen one has the run's dtype, and layers cast as they
//! compute; so bf16 runs keep exact float32 parameters. Parameters have the checkpoint's own names.

pub mod adapter;
pub mod attention;
pub mod autograd;
mod awaited_update;
pub mod builder;
pub mod cache;
pub mod chunked;
mod clipped_swiglu;
mod cuda_attention;
pub mod embedding;
pub mod experts;
pub mod gated_mlp;
mod gradient_room;
pub mod handed_on;
pub mod head;
pub mod initial;
pub mod joint_linear;
pub mod layer_input;
pub mod layer_norm;
pub mod linear;
pub mod norm;
pub mod ops;
pub mod params;
pub mod pass;
pub mod quantised;
pub mod randomness;
pub mod recomputed;
pub mod recurrence;
pub mod rope;
pub mod row_adapters;
pub mod safetensors;
pub mod scale;
mod state_cache;
pub mod tiled;
pub mod tokens;
pub mod virtual_tokens;
pub mod weight;
pub mod weights;

pub use adapter::{Adapter, AdapterPlan, AdapterSite, AdapterSwitches, JointForm, ParamRole, RegisterParam};
pub use attention::{Alibi, Attention, RelativeBias, RelativeBuckets};
pub use awaited_update::AwaitedUpdates;
pub use builder::{BuildResult, ModelBuilder, ModuleScope, WeightSource};
pub use cache::{CacheLayout, KvCache, TensorPlace, attends_cached};
pub use clipped_swiglu::ClippedSwiglu;
pub use cuda_attention::{AttentionMemory, AttentionRow, attends_whole_rows};
pub use embedding::Embedding;
pub use experts::{ExpertLayer, Router, RouterStatistics, RoutingRule};
pub use gated_mlp::{GATED_MLP_NAMES, GatedMlp, GatedMlpForm};
pub use handed_on::{CachedKeys, Producer};
pub use initial::InitialWeights;
pub use joint_linear::CollectedGradients;
pub use layer_input::{KeptInputs, LayerInput};
pub use layer_norm::LayerNorm;
pub use linear::{Linear, LogitChange};
pub use norm::RmsNorm;
pub use params::{LayerKind, Param, ParamStore, QuantisedParam};
pub use pass::{ForwardPass, QueriesAndKeys, RecurrenceOptions};
pub use quantised::{BaseQuantisation, Quantisation, QuantisedFormat, QuantisedWeight, TableFormat};
pub use recurrence::{Cell, GradientReach, RecurrentLayer};
pub use rope::{Rope, RopeScaling};
pub use row_adapters::RowAdapters;
pub use tiled::by_tiles;
pub use tokens::{Segments, Tokens};
pub use virtual_tokens::{ModelSizes, VirtualPlace, VirtualRow, VirtualTokens};
pub use weight::{DecodingGuard, Dense, Weight};
pub use weights::{ParamMapping, QuantisedEntry, Weights};
