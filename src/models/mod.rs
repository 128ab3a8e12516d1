//! Models: a decoder with its parameters and adapters, run on packed rows for training, inference and decoding.
//!
//! A family provides embedding, layers, final norm and output head. [`Model`] runs them layer by layer, so that
//! activation checkpointing ("replay"), chunked heads and adapter switching are written once for all families and
//! methods. The layers without output head are called the trunk.
//!
//! From bottom to top: `family` (what a family provides), `families` (the table of them), `config` (reading
//! config.json), `checkpoint` (weights under a family's names; `gguf_weights` for a GGUF file), `model` (building),
//! `inference` (running), `learning` (training), `open` (from disk, for inference), `reward` (scores of reward models).
//!
//! Next to these: `adapter_choice` (which adapter is active), `sequence_limit`, `storage_summary` (how weights are held),
//! `trained_part`, `spectrum` and `lisa` (which weights are trained without an adapter), `vocabulary` (rows of new tokens),
//! `loss` and `activations` (what a loss gets from the model), `replayed_inputs` (of layers that run again), `router_terms` (terms of the loss for layers of experts), `gradient_reach` (gradients of recurrent models by distance), `dtype` (number formats), `stored` (checkpoints that are
//! quantised), `quantised_base` (what is recorded about a quantised base), `new_config`
//! and `noise` (new models; noise on embeddings), `content_hash` (identity of a model's files), `non_finite` (finds the
//! first NaN or infinity).

pub mod activations;
mod adapter_choice;
pub mod blocks;
mod checkpoint;
pub mod config;
pub mod content_hash;
pub mod dtype;
pub mod families;
pub mod family;
mod gguf_weights;
pub mod gradient_reach;
mod inference;
mod layer_row;
pub mod learning;
pub mod lisa;
pub mod loss;
pub mod model;
pub mod new_config;
pub mod noise;
pub mod non_finite;
pub mod open;
mod quantised_base;
mod recorded;
mod replayed_inputs;
pub mod reward;
pub mod router_terms;
mod sequence_limit;
mod spectrum;
mod stacks;
mod storage_summary;
pub mod stored;
mod trained_part;
pub mod vocabulary;

pub use activations::{Activations, ExposedLayers};
pub use checkpoint::{SCORE, expert_number, layer_number, refuse_quantised, untie_head, weights, with_layer_number};
pub use dtype::{Dtype, Storage};
pub use families::FAMILIES;
pub use family::{Config, Decoder, ExpertFiles, ExpertSizes, Family, FamilyLayers, MoreNumbers};
pub use learning::{LayerReplay, MicroBatch};
pub use lisa::LayerSampling;
pub use loss::{Loss, Metrics, Output};
pub use model::{Heads, LoadOptions, Model};
pub use noise::EmbeddingNoise;
pub use non_finite::FirstNonFinite;
pub use open::{device, open, open_scorer, open_stored};
pub use quantised_base::QuantisedBase;
pub use recorded::{RecordedLearning, RecordedStep, padded_length, padded_segments, padded_targets};
pub use reward::RewardScorer;
pub use router_terms::RouterTerms;
pub use stacks::{FileTensor, file_tensors, refuse_stacks, split as split_stacks};
pub use stored::StoredFormat;
pub use trained_part::TrainedPart;
pub use vocabulary::{RowStart, VocabularyRows};
