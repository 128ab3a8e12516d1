//! The tokenizer's files and the chat template of a merged model, and whether the models' tokens are the same.

use super::ModelMerge;
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files, write_companion};
use crate::convert::folder::new_tokens::write_new_tokens;
use crate::convert::folder::template::write_template;
use crate::convert::merge::model_input::ModelInput;
use crate::data::chat::ChatTokenizer;
use crate::error::Result;
use crate::model_files::ModelFiles;
use crate::recipe::merge_file::ChatTemplateChoice;
use std::path::Path;

/// Returns what is suspicious about merging models by the numbers of their rows: unlike tokens.
pub(super) fn unlike_tokens(inputs: &[ModelInput], first: &Path) -> Vec<String> {
    let read = |folder: &Path| {
        let there = ChatTokenizer::in_directory(folder);
        there.then(|| ChatTokenizer::load(folder, None).ok()).flatten().map(|tokenizer| tokenizer.vocabulary())
    };
    let Some(of_first) = read(first) else { return Vec::new() };
    let others = inputs.iter().filter(|input| input.folder != first);
    let differs = |input: &ModelInput| {
        let tokens = read(&input.folder)?;
        let unlike = tokens.iter().filter(|(text, id)| of_first.get(*text) != Some(*id)).count();
        (unlike > 0).then(|| {
            format!(
                "{} and {} have unlike tokens ({unlike} of {}), and rows of embeddings are merged by their numbers: \
                 `tokenizer_source: base` or `union` aligns them",
                first.display(),
                input.folder.display(),
                tokens.len()
            )
        })
    };
    others.filter_map(differs).collect()
}

/// Writes the files of the tokenizer, the chat template and the model's other files into `folder`. Returns notes for the user.
pub(super) fn write(merge: &ModelMerge, folder: &Path) -> Result<Vec<String>> {
    let leading = &merge.inputs[merge.leading()].folder;
    let mut notes = Vec::new();
    match &merge.vocabulary {
        Some(vocabulary) if vocabulary.folder != *leading => {
            copy_companion_files(&vocabulary.folder, folder, &[])?;
            let files = ModelFiles::open(leading)?;
            MODEL_FILES.iter().try_for_each(|name| write_companion(&files, folder, name))?;
            notes.push(format!(
                "config.json has the ids of bos, eos and pad tokens of {}, the tokenizer is that of {}: compare them",
                leading.display(),
                vocabulary.folder.display()
            ));
        }
        _ => copy_companion_files(leading, folder, MODEL_FILES)?,
    }
    if let Some(vocabulary) = &merge.vocabulary {
        write_new_tokens(folder, &vocabulary.added, &vocabulary.tokenizer)?;
    }
    match &merge.file.chat_template {
        None => {}
        Some(ChatTemplateChoice::Text(text)) => write_template(folder, text)?,
        Some(ChatTemplateChoice::Auto) => match most_common_template(&merge.inputs) {
            Some(text) => write_template(folder, &text)?,
            None => notes.push("`chat_template: auto`: no model has a chat template".into()),
        },
    }
    Ok(notes)
}

/// Returns the chat template that most models have; of equally many, the first.
fn most_common_template(inputs: &[ModelInput]) -> Option<String> {
    let template = |input: &ModelInput| {
        let tokenizer =
            ChatTokenizer::in_directory(&input.folder).then(|| ChatTokenizer::load(&input.folder, None).ok());
        tokenizer.flatten()?.template().map(|template| template.source().trim().to_string())
    };
    let mut counts: Vec<(String, usize)> = Vec::new();
    for text in inputs.iter().filter_map(template) {
        match counts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => counts.push((text, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(text, _)| text)
}
