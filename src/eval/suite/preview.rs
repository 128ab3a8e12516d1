//! Shows what a task asks without a model.

use super::cache::AnswerCache;
use super::items::ChoicePrompts;
use super::prompts::PromptParts;
use super::{Items, PreparedTask, form_of};
use crate::error::Result;
use crate::eval::results::ItemInfo;
use crate::recipe::suite_file::{RowLimit, SuiteTask};

/// Returns what is asked of the first rows of a task, with prompts in plain text. Of rows that are conversations, and of kinds
/// that ask about training, nothing is shown: they depend on a model's tokenizer.
///
/// Errors: as those of running it, as far as rows and templates are concerned.
pub fn preview(task: &SuiteTask, rows: usize) -> Result<Vec<ItemInfo>> {
    let mut first = task.clone();
    first.limit = Some(match first.limit {
        Some(limit) => RowLimit { rows: limit.rows.min(rows), ..limit },
        None => RowLimit { rows, seed: None },
    });
    let prepared = PreparedTask::read(&first, &[], &mut AnswerCache::in_memory())?;
    let form = form_of(task, false);
    let plain = |parts: &[PromptParts]| parts.iter().map(|parts| form.plain(parts)).collect::<Vec<_>>().join("\n---\n");
    let categories = prepared.categories()?;
    let info = |i: usize, prompt: String, expected: Vec<String>, choices: Vec<String>| ItemInfo {
        line: prepared.rows[i].line,
        prompt,
        expected,
        category: categories[i].clone(),
        group: None,
        choices,
    };
    Ok(match &prepared.items {
        Items::Conversations | Items::Pairs(_) | Items::Trained(_) | Items::Members(_) | Items::Canaries(..) => {
            Vec::new()
        }
        Items::Texts(texts) => {
            texts.iter().enumerate().map(|(i, text)| info(i, text.clone(), vec![], vec![])).collect()
        }
        Items::Asked(items) => {
            let shown = |(i, item): (usize, &super::AskedItem)| {
                info(i, plain(std::slice::from_ref(&item.prompt)), item.expected.clone(), Vec::new())
            };
            items.iter().enumerate().map(shown).collect()
        }
        Items::Choices(items) => {
            let shown = |(i, item): (usize, &super::ChoiceItem)| {
                let ChoicePrompts { prompts, .. } = &item.orders[0];
                let right = item.right.iter().map(|right| item.choices[*right].clone()).collect();
                info(i, plain(prompts), right, item.choices.clone())
            };
            items.iter().enumerate().map(shown).collect()
        }
    })
}
