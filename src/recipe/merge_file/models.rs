//! A merge of whole models as its file describes it.

use crate::merging::models::{LayeredValue, ModelMethod, ParameterScope, ParameterSpec, ParameterValues};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Parameters by name.
pub type Settings = BTreeMap<String, LayeredValue>;

/// A merge of whole models. Models are named by their position in `models`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelMergeFile {
    /// The method.
    pub method: ModelMethod,
    /// The folders of all models.
    pub models: Vec<PathBuf>,
    /// The base.
    pub base: Option<usize>,
    /// The slices that the merged model consists of, from its first layer on.
    pub slices: Vec<OutputSlice>,
    /// Parameters of the whole merge.
    pub parameters: Settings,
    /// The number format of the merged weights; `None`: that of the inputs.
    pub format: Option<MergeFormat>,
    /// Whose tokens the result has; `None`: the models have the same.
    pub vocabulary: Option<VocabularyPlan>,
    /// The chat template of the result; `None`: that of its tokenizer.
    pub chat_template: Option<ChatTemplateChoice>,
    /// What the file says that is ignored or done in another way, as sentences.
    pub notes: Vec<String>,
}

/// Consecutive layers of the merged model.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSlice {
    /// The models that are merged into them.
    pub sources: Vec<SliceSource>,
    /// The base of this slice.
    pub base: Option<usize>,
    /// Parameters of this slice.
    pub parameters: Settings,
}

/// Layers of one model in a slice.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceSource {
    /// The model.
    pub model: usize,
    /// The first layer, and the one after the last; `None`: all layers.
    pub layers: Option<(usize, usize)>,
    /// Parameters of this model in this slice.
    pub parameters: Settings,
}

/// A number format of merged weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeFormat {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
}

/// How the vocabularies of the models become one.
#[derive(Debug, Clone, PartialEq)]
pub struct VocabularyPlan {
    /// Which tokens there are.
    pub source: TokenizerSource,
    /// Tokens whose rows are chosen.
    pub tokens: BTreeMap<String, TokenChoice>,
    /// The number of rows is a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
}

/// Which tokens a merged model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSource {
    /// Those of the base.
    Base,
    /// Those of any model: first those of the base.
    Union,
    /// Those of the tokenizer in this folder.
    Folder(PathBuf),
}

/// Where the row of a token comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenChoice {
    /// The row.
    pub source: TokenRowSource,
    /// Whether it is used in models that have a row of their own, too.
    pub force: bool,
}

/// A row for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRowSource {
    /// Zeros.
    Zero,
    /// The row that this model has for the token.
    Model(usize),
    /// The row that this model has for another token, given as text.
    Token(usize, String),
    /// The row of this model with this number.
    Row(usize, usize),
}

/// The chat template of a merged model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatTemplateChoice {
    /// The one that most models have.
    Auto,
    /// This one.
    Text(String),
}

impl ModelMergeFile {
    /// Resolves the parameters of a tensor of a slice. `output`: its name in the merged model; `inputs`: its name in each source;
    /// `depth`: 0 in the first layer of the slice, 1 in the last. The error is a sentence.
    pub fn values(
        &self,
        slice: &OutputSlice,
        output: &str,
        inputs: &[String],
        depth: f64,
    ) -> Result<ParameterValues, String> {
        let mut values = ParameterValues { shared: BTreeMap::new(), parts: vec![BTreeMap::new(); inputs.len()] };
        for parameter in self.method.parameters() {
            let above = [&slice.parameters, &self.parameters];
            if parameter.scope == ParameterScope::Shared {
                let found = resolve(parameter, above, output, depth)
                    .ok_or_else(|| format!("no `{}` for `{output}`: no filter fits it", parameter.name))?;
                values.shared.extend(found.map(|value| (parameter.name, value)));
                continue;
            }
            for (i, source) in slice.sources.iter().enumerate() {
                if parameter.scope == ParameterScope::NonBase && Some(source.model) == slice.base {
                    continue;
                }
                let found = resolve(parameter, [&source.parameters, above[0], above[1]], &inputs[i], depth)
                    .ok_or_else(|| {
                        let model = self.models[source.model].display();
                        format!("no `{}` for `{}` of {model}: no filter fits it", parameter.name, inputs[i])
                    })?;
                values.parts[i].extend(found.map(|value| (parameter.name, value)));
            }
        }
        values.check(self.method).map_err(|why| format!("`{output}`: {why}"))?;
        Ok(values)
    }
}

/// Returns the value of a parameter from the first settings that have one, or its default, which may be none. `None` if one must
/// be given.
fn resolve<const N: usize>(
    parameter: &ParameterSpec,
    settings: [&Settings; N],
    name: &str,
    depth: f64,
) -> Option<Option<f64>> {
    let discrete = matches!(parameter.kind, crate::merging::models::ParameterKind::Truth);
    let found = settings.iter().find_map(|settings| settings.get(parameter.name)?.at(name, depth, discrete));
    match found.or(parameter.default) {
        None if parameter.required => None,
        value => Some(value),
    }
}
