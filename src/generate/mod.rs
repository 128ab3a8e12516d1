//! Generates answers: sampling and batched decoding with a key/value cache.
//!
//! settings: all options of generation. engine: continuous batching, which takes requests and returns answers as they
//! finish. beam: beam search. session: one conversation that keeps its cache. sampler: chooses the next token from
//! logits. logit_rules: penalties, forbidden and forced tokens. stop: stop texts. sequence: one sequence as it grows.
//! prefill: prompts in parts of limited length. next_token: logits of growing sequences. answer: the answer and why it
//! ended. answering_adapter: which adapter answers a request. prompt_check: whether a model can answer a prompt.
//!
//! Prompts and answers are token ids; to find stop texts, the caller gives a function that decodes them. Nothing here
//! prints. Invariant: a row's answer does not depend on the rows decoded together with it.

pub mod answer;
pub mod answering_adapter;
pub mod beam;
pub mod engine;
mod logit_rules;
mod next_token;
pub mod prefill;
pub mod prompt_check;
pub mod sampler;
mod sequence;
pub mod session;
pub mod settings;
pub mod stop;
