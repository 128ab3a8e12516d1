//! From a row to token ids and a mask of the tokens to train on.
//!
//! `row` encodes a row of any format for supervised fine-tuning, `answers` the rows of prompts, pairs and labelled
//! answers; `example` has the types of the results. `mask` decides which tokens are trained on; `special` checks BOS
//! and appends EOS. Nothing is stored here.

mod answers;
mod example;
mod mask;
mod row;
mod special;

pub(in crate::data) use answers::{RenderedPrompt, render_prompt};
pub use answers::{encode_pair, encode_prompt, encode_unpaired};
pub use example::{EncodedRow, Example, PairExample, PromptExample, UnpairedExample};
pub use row::{Supervise, encode_row};
