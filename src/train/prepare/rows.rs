//! Loads what a method needs to read the recipe's rows: the tokenizer, and the settings of data and batches.

use crate::data::batch::BatchPlan;
use crate::data::cache::TokenCache;
use crate::data::chat::{ChatTokenizer, NewToken};
use crate::error::Result;
use crate::methods::rows::DataContext;
use crate::recipe::plan::Plan;
use crate::recipe::sections::ModelInit;
use crate::report;
use std::rc::Rc;

/// Loads the base's tokenizer (that of the adapter that is continued, if it has new tokens) with the recipe's chat template,
/// and adds the recipe's new tokens, which it returns. Warns about tokens without an embedding and about a stop token that
/// generation_config.json lacks. Tokens in a file become part of the plan.
pub fn load_tokenizer(plan: &mut Plan) -> Result<(Rc<ChatTokenizer>, Vec<NewToken>)> {
    let recipe = &mut plan.recipe;
    let continued = recipe.adapter.as_ref().and_then(|adapter| adapter.continues());
    let mut tokenizer = ChatTokenizer::load_for(&recipe.model.path, continued, &recipe.data.rendering()?)?;
    let added = match &mut recipe.model.new_tokens {
        Some(new) => {
            new.read_file()?;
            tokenizer.add_tokens(new)?
        }
        None => Vec::new(),
    };
    tokenizer.fix_date();
    let tokenizer = Rc::new(match recipe.model.init {
        ModelInit::Pretrained => tokenizer,
        ModelInit::Random => tokenizer.without_embedding_limit(),
    });
    let unknown = tokenizer.without_embedding();
    if let [(id, token), ..] = &unknown[..] {
        report::warn_once(format!(
            "{}: the tokenizer has {} more than the model has embeddings for: `{token}` (id {id}){}; a row that uses one is \
             refused",
            recipe.model.path.display(),
            match unknown.len() {
                1 => "a token".to_string(),
                n => format!("{n} tokens"),
            },
            if unknown.len() > 1 { ", …" } else { "" }
        ));
    }
    if let Some(id) = tokenizer.undeclared_stop().filter(|_| recipe.method.generates_text()) {
        report::warn(format!(
            "{}: the chat template ends turns with `{}`, but generation_config.json does not list it as a stop \
             token, so other programs would continue past it. The result's own file will list it (eos_token_id {id})",
            recipe.model.path.display(),
            tokenizer.token(id).unwrap_or_default(),
        ));
    }
    Ok((tokenizer, added))
}

/// Collects the settings that a method needs to open the recipe's rows.
pub fn data_context<'a>(plan: &'a Plan, tokenizer: Rc<ChatTokenizer>, cache: &'a TokenCache) -> DataContext<'a> {
    let recipe = &plan.recipe;
    DataContext {
        tokenizer,
        model: &recipe.model.path,
        train: &recipe.data.train,
        valid: recipe.data.valid.as_ref(),
        max_len: recipe.batch.max_len,
        on_overflow: recipe.data.on_overflow,
        overflow_tolerance: recipe.data.overflow_tolerance,
        cache,
        batch: BatchPlan {
            tokens: recipe.batch.tokens,
            accumulate: recipe.batch.accumulate,
            examples: recipe.batch.examples,
        },
        shuffle: recipe.data.shuffle,
        seed: recipe.run.seed,
        adapter: recipe.adapter.as_ref(),
    }
}
