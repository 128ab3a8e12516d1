//! Prompt tuning (Lester et al. 2021, arXiv 2104.08691): trained vectors before the embedded tokens of every sequence.

use super::{VirtualContext, VirtualKind};
use crate::error::{Error, Result};
use crate::nn::{ModelSizes, RegisterParam, VirtualPlace, VirtualTokens, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tch::kind::{FLOAT_CPU, INT64_CPU};
use tch::{Device, Kind, Tensor};

/// Prompt tuning: trained vectors before the embedded tokens of every sequence. They take positions, and are no text:
/// losses, token counts and `batch.max_len` leave them out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PromptTuningSpec {
    /// Number of virtual tokens before every sequence.
    #[schemars(range(min = 1, max = 65536))] // MAX_VIRTUAL_TOKENS
    pub virtual_tokens: i64,
    /// What the virtual tokens start as, unless there is a `text`.
    pub init: PromptInit,
    /// Text whose embedded tokens the virtual tokens start as. It is repeated or cut to their number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Folder of an adapter to continue training from, with the same base and number of virtual tokens. It is then also
    /// the reference model of methods that need one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub from: Option<PathBuf>,
    /// What follows from a file or from the base.
    #[serde(skip)]
    pub context: VirtualContext,
}

/// What virtual tokens start as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptInit {
    /// Normal with standard deviation 1, as in PEFT.
    #[default]
    Random,
    /// Embeddings of random tokens of the vocabulary.
    Vocabulary,
}

impl Default for PromptTuningSpec {
    fn default() -> Self {
        Self {
            virtual_tokens: 20,
            init: PromptInit::Random,
            text: None,
            from: None,
            context: VirtualContext::default(),
        }
    }
}

impl VirtualKind for PromptTuningSpec {
    const NAME: &'static str = "prompt_tuning";
    const TITLE: &'static str = "prompt tuning";
    const PEFT_TYPE: &'static str = "PROMPT_TUNING";
    const PLACE: VirtualPlace = VirtualPlace::Input;

    fn count(&self) -> i64 {
        self.virtual_tokens
    }

    fn continues_from(&self) -> Option<&Path> {
        self.from.as_deref()
    }

    fn context(&self) -> &VirtualContext {
        &self.context
    }

    fn context_mut(&mut self) -> &mut VirtualContext {
        &mut self.context
    }

    fn start_text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    fn has_encoder(&self) -> bool {
        false
    }

    /// Says nothing of a start by text: PEFT would look for the tokenizer.
    fn own_config(&self) -> Value {
        json!({ "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null, "tokenizer_name_or_path": null })
    }

    fn attach(&self, model: ModelSizes, table: &Weight, add: &mut RegisterParam) -> Result<VirtualTokens> {
        let (count, vocabulary) = (self.virtual_tokens, table.outputs());
        let ids = match (&self.context.text_ids[..], self.init) {
            ([], PromptInit::Random) => return Ok(self.plain(Tensor::randn([count, model.width], FLOAT_CPU), add)),
            ([], PromptInit::Vocabulary) => Tensor::randint(vocabulary, [count], INT64_CPU),
            (text, _) => {
                if let Some(id) = text.iter().find(|id| **id >= vocabulary) {
                    return Err(Error::user(format!(
                        "adapter.prompt_tuning.text: token {id} is out of range: the model has a vocabulary of {vocabulary}"
                    ))
                    .hint("the tokenizer belongs to another model"));
                }
                Tensor::from_slice(&text.iter().cycle().take(count as usize).copied().collect::<Vec<_>>())
            }
        };
        let rows = table.rows(&ids.to_device(table.device()));
        Ok(self.plain(rows.to_device(Device::Cpu).to_kind(Kind::Float), add))
    }
}
