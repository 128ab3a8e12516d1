//! Models: a decoder with its parameters and adapters, run on packed rows for training, inference and decoding.
//!
//! A family provides embedding, layers, final norm and output head. [`Model`] runs them layer by layer, so that
//! activation checkpointing ("replay"), chunked heads and adapter switching are written once for all families and
//! methods. The layers without output head are called the trunk.
//!
//! From bottom to top: `family` (what a family provides), `families` (the table of them), `config` (reading
//! config.json), `checkpoint` (weights under a family's names), `model` (running), `learning` (training), `open`
//! (from disk, for inference), `reward` (scores of reward models).
//!
//! Next to these: `trained_part` and `spectrum` (which weights are trained without an adapter), `vocabulary` (rows of new
//! tokens), `loss` and
//! `activations` (what a loss gets from the model), `dtype` (number formats), `new_config`
//! and `noise` (new models; noise on embeddings), `content_hash` (identity of a model's files), `non_finite` (finds the
//! first NaN or infinity).

pub mod activations;
pub mod checkpoint;
pub mod config;
pub mod content_hash;
pub mod dtype;
pub mod families;
pub mod family;
mod layer_row;
pub mod learning;
pub mod loss;
pub mod model;
pub mod new_config;
pub mod noise;
pub mod non_finite;
pub mod open;
pub mod reward;
mod spectrum;
mod trained_part;
pub mod vocabulary;

pub use activations::{Activations, ExposedLayers};
pub use checkpoint::{SCORE, layer_number, untie_head, weights};
pub use dtype::{Dtype, Storage};
pub use families::FAMILIES;
pub use family::{Config, Decoder, Family};
pub use learning::{LayerReplay, MicroBatch};
pub use loss::{Loss, Metrics, Output};
pub use model::{Heads, LoadOptions, Model};
pub use noise::EmbeddingNoise;
pub use non_finite::FirstNonFinite;
pub use open::{device, open, open_scorer, open_stored};
pub use reward::RewardScorer;
pub use trained_part::TrainedPart;
pub use vocabulary::{RowStart, VocabularyRows};
