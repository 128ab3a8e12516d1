//! Opens the models of a merge, and refuses those that do not belong together.

use crate::convert::merge::model_input::ModelInput;
use crate::error::{Error, Result};
use crate::models;
use crate::recipe::merge_file::ModelMergeFile;

/// Opens the models. Fails if one cannot be merged, or if they have unlike architectures. If only some of them share one weight
/// between embedding and output head, the others' get a head of their own, with equal values.
pub(super) fn open(file: &ModelMergeFile) -> Result<Vec<ModelInput>> {
    let mut inputs = file.models.iter().map(|folder| ModelInput::open(folder)).collect::<Result<Vec<_>>>()?;
    let first = &inputs[0];
    if let Some(other) = inputs.iter().find(|input| input.config.model_type != first.config.model_type) {
        return Err(Error::user(format!(
            "{} is a {} model, {} is a {} model: models of unlike architectures cannot be merged",
            first.folder.display(),
            first.config.model_type,
            other.folder.display(),
            other.config.model_type
        ))
        .hint("merge models that were trained from the same base"));
    }
    if inputs.iter().any(|input| !input.config.tie_word_embeddings) {
        for input in inputs.iter_mut().filter(|input| input.config.tie_word_embeddings) {
            models::untie_head(&mut input.config, &mut input.weights)?;
        }
    }
    Ok(inputs)
}

/// Returns what is suspicious about merging these models, as sentences: settings in config.json that change what weights mean.
/// `aligned`: whether their vocabularies are aligned.
pub(super) fn unlike(file: &ModelMergeFile, inputs: &[ModelInput], aligned: bool) -> Vec<String> {
    let first = &inputs[file.base.unwrap_or(0)];
    let merged = |model: &usize| file.slices.iter().any(|s| s.sources.iter().any(|s| s.model == *model));
    let mut notes = Vec::new();
    for input in (0..inputs.len()).filter(merged).map(|model| &inputs[model]) {
        let (one, two) = (&first.config, &input.config);
        let differ = [
            ("rope_theta", one.rope_theta != two.rope_theta),
            ("num_attention_heads", one.num_attention_heads != two.num_attention_heads),
            ("head_dim", one.head_dim != two.head_dim),
            ("rms_norm_eps", one.norm_eps != two.norm_eps),
            ("hidden_act", one.hidden_act != two.hidden_act),
        ];
        let keys: Vec<&str> = differ.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
        if !keys.is_empty() {
            notes.push(format!(
                "{} and {} differ in config.json ({}); the result has the settings of the first",
                first.folder.display(),
                input.folder.display(),
                keys.join(", ")
            ));
        }
    }
    if !aligned {
        notes.extend(super::tokenizer::unlike_tokens(inputs, &first.folder));
    }
    notes
}
