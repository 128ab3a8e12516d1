//! Tokenizers from the files of a model directory, in the form of tokenizer.json; and new ones trained on text.
//!
//! `bpe` and `sentencepiece` build from older files what tokenizer.json says; `added_tokens` adds the
//! tokens that tokenizer_config.json lists; `bpe_training` trains a tokenizer. Only token ids and their texts: templates
//! and conversations are in `chat`.

pub mod added_tokens;
pub mod bpe;
mod bpe_training;
pub mod sentencepiece;

pub use bpe_training::{BpeTraining, TrainedBpe, train_bpe};
