//! Trainable tokens: trains rows of the embedding in full, and nothing else (TRAINABLE_TOKENS of PEFT).

use super::kind::{AdapterKind, EMBEDDINGS, HEAD};
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::targets::Targets;
use super::token_rows::{self, AttachTokenRows, FindToken, ROWS, TokenName, TokenRowsUpdate, TrainedRows, of_ids};
use super::update::WeightUpdate;
use crate::error::{Error, Result};
use crate::nn::{Adapter, AdapterSite, LayerKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tch::Tensor;

/// Selects every layer; those that are no table of tokens are then passed over.
static USUAL: LazyLock<Targets> = LazyLock::new(|| Targets::Pattern(".*".into()));

/// Trains the rows of a few tokens in full, in the embedding and in the output head.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainableTokensSpec {
    /// The tokens, by id or text. Those of `model.new_tokens` are added by themselves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<TokenName>,
    /// Also train their rows of an output head with a weight of its own. A head that shares the embedding's weight always follows it. On by itself with `model.new_tokens`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub head: bool,
    /// Folder of an adapter to continue training from, with the same base and tokens. It is then also the reference model of
    /// methods that need one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub from: Option<PathBuf>,
    /// The modules that a file names; none in a recipe.
    #[serde(skip)]
    pub modules: ModuleSettings,
}

impl ModuleKind for TrainableTokensSpec {
    const NAME: &'static str = "trainable_tokens";

    fn modules(&self) -> &ModuleSettings {
        &self.modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.modules
    }

    fn usual_targets() -> &'static Targets {
        &USUAL
    }

    fn continues_from(&self) -> Option<&Path> {
        self.from.as_deref()
    }
}

impl AdapterKind for TrainableTokensSpec {
    fn title(&self) -> &'static str {
        "trainable tokens"
    }

    fn describe(&self) -> String {
        format!("trainable_tokens {}", self.tokens.len())
    }

    fn has_named_targets(&self) -> bool {
        matches!(self.modules.targets, Some(Targets::Names(_)))
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        let TrainedRows { embedding, head } = self.trained_rows()?;
        if embedding.is_empty() {
            return Err(Error::user("adapter.trainable_tokens: names no token to train")
                .hint("list them under `tokens`, or add tokens with model.new_tokens"));
        }
        let rows = AttachTokenRows::new(embedding, head, ROWS, "adapter.trainable_tokens.tokens");
        Ok(Box::new(AttachTrainableTokens { rows, head: self.head || self.modules.targets.is_some() }))
    }

    fn usual_lr(&self) -> f64 {
        2e-3
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![("tokens", json!(self.tokens))]
    }

    fn resolve_tokens(&mut self, find: &FindToken) -> Result<()> {
        token_rows::resolve(&mut self.tokens, "adapter.trainable_tokens.tokens", find)
    }

    fn train_token_rows(&mut self, embedding: &[i64], head: &[i64]) -> bool {
        token_rows::add(&mut self.tokens, embedding);
        token_rows::add(&mut self.tokens, head);
        self.head |= !head.is_empty();
        true
    }

    fn trained_rows(&self) -> Result<TrainedRows> {
        let ids = token_rows::ids(&self.tokens)?;
        Ok(TrainedRows { embedding: ids.clone(), head: ids })
    }

    fn ties_head(&self) -> bool {
        true
    }

    fn config(&self, base: &str) -> Value {
        let own = json!({ "init_weights": true, "token_indices": self.tokens });
        let mut config = peft::config(self, "TRAINABLE_TOKENS", base, own);
        // PEFT's class has no such key.
        config.as_object_mut().map(|keys| keys.remove("modules_to_save"));
        config
    }

    fn tensor_prefix(&self) -> &'static str {
        "trainable_tokens_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[ROWS]
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let (file, trained) = (ModuleTensors { tensors, origin }, self.trained_rows()?);
        let update = |module: &&str| {
            let ids = trained.of(module).to_vec();
            let rows = file.get(module, ROWS, &[ids.len() as i64, -1])?;
            Ok((format!("{module}.weight"), Box::new(TokenRowsUpdate { ids, rows }) as _))
        };
        modules.iter().map(update).collect()
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<TrainableTokensSpec> {
    config.check_keys(&["init_weights", "token_indices"])?;
    let targets = config.module_settings(&EMBEDDINGS)?.targets;
    let spec = TrainableTokensSpec {
        tokens: of_ids(config.read("token_indices")?.unwrap_or_default()),
        head: matches!(&targets, Some(Targets::Names(names)) if names.iter().any(|name| name.ends_with(HEAD))),
        modules: ModuleSettings { targets, ..ModuleSettings::default() },
        ..TrainableTokensSpec::default()
    };
    config.check_head(spec.has_scalar_head())?;
    Ok(spec)
}

/// Attaches the rows to the tables of tokens.
struct AttachTrainableTokens {
    rows: AttachTokenRows,
    /// True if an output head with a weight of its own is adapted, if the rules select it.
    head: bool,
}

impl AdaptLayer for AttachTrainableTokens {
    fn adapts(&self, site: &AdapterSite) -> bool {
        site.layer == LayerKind::Embedding || (site.layer == LayerKind::Head && (site.tied || self.head))
    }

    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        self.rows.attach(layer)?.ok_or_else(|| {
            layer.refusal("rows of this head cannot be trained without the embedding's", "name the embedding, too")
        })
    }

    fn adapt_unselected(&self, layer: &mut AdaptedLayer) -> Result<Option<Box<dyn Adapter>>> {
        // A head that shares the embedding's weight follows it, whether it is named or not.
        if layer.site.layer == LayerKind::Head && layer.site.tied { self.rows.attach(layer) } else { Ok(None) }
    }
}
