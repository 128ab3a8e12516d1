//! Conversations as text and as token ids: the chat template and the tokenizer of a model.
//!
//! `template` renders messages (`template_files` finds its text, `tool_arguments` decodes what it expects as objects).
//! `answer_text` finds an answer in the rendered text, and `omissions` what the template left out. [`ChatTokenizer`]
//! (`tokenizer`, built by `load`, completed by `new_tokens`) has both, and encodes text; `turns` splits token ids back into turns. `notes` counts
//! what happened to rows that the user should know about.

mod answer_text;
mod load;
mod new_tokens;
mod notes;
mod omissions;
mod template;
mod template_files;
mod tokenizer;
mod tool_arguments;
mod turns;

pub(in crate::data) use answer_text::{RenderedAnswer, common_prefix, render_answer};
pub use new_tokens::{NewToken, NewTokens, RowInit, tokenizer_folder};
pub use notes::{NoteCounts, RowNote};
pub use omissions::check_nothing_dropped;
pub(in crate::data) use omissions::{check_roles, omitted_parts};
pub use template::ChatTemplate;
pub use template_files::{TemplateOptions, is_template_name};
pub use tokenizer::{ChatTokenizer, DecodeStream};
pub use turns::ChatTurn;
