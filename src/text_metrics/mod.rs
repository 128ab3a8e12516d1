//! Compares texts: an answer with one or several references. Pure functions over strings, no model, no file.
//!
//! `words`: how texts become words, and counts of their n-grams. `rouge`, `bleu`, `chrf`: the three families of overlap,
//! as `rouge-score` and `sacrebleu` compute them, and `ter`: words that have to be changed or moved. `question_answering`: SQuAD's exact match and F1. `edit_distance`: changes
//! of characters. `numbers`: the number that an answer says. `instructions` (a folder): instructions whose observance a program can
//! verify. `json_answer`, `tool_calls`: answers that are JSON, calls of tools. `agreement`: of several answers to one question.
//! `support`: what of an answer stands in a given context. `sentiment`, `word_list`, `refusal`: what a text is searched for.

pub mod agreement;
pub mod bleu;
pub mod chrf;
pub mod edit_distance;
pub mod instructions;
pub mod json_answer;
pub mod numbers;
pub mod question_answering;
pub mod refusal;
pub mod rouge;
pub mod sentiment;
pub mod support;
pub mod ter;
pub mod tool_calls;
pub mod word_list;
pub mod words;
