//! Adapters that consist of virtual tokens: prompt tuning, P-tuning and prefix tuning.
//!
//! They change no layer. `nn::virtual_tokens` says how virtual tokens are computed; the kinds say how many there are,
//! where they enter the model and which parameters they are computed from ([`VirtualKind`]). As in PEFT, a file holds the
//! virtual tokens themselves (`prompt_embeddings`), never the encoder that they were trained through.

mod encoder;
mod p_tuning;
mod peft;
mod prefix_tuning;
mod prompt_tuning;

pub use p_tuning::PTuningSpec;
pub use prefix_tuning::{PrefixInit, PrefixTuningSpec};
pub use prompt_tuning::{PromptInit, PromptTuningSpec};

use super::kind::{AdapterActivations, AdapterKind, EncodeText, SCORE_WEIGHT};
use super::module_settings::{ModuleKind, ModuleSettings};
use super::plan::AdaptLayer;
use super::saved_module;
use super::targets::Targets;
use super::update::WeightUpdate;
use crate::error::{Error, Result};
use crate::nn::virtual_tokens::PROMPT_EMBEDDINGS;
use crate::nn::{
    Adapter, AdapterPlan, AdapterSite, LayerKind, ModelSizes, ParamRole, RegisterParam, VirtualPlace, VirtualTokens,
    Weight,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

/// Largest number of virtual tokens that is accepted. Sequences have thousands of tokens, so a larger number is a typing
/// error; it would allocate huge tensors before anything else could refuse it.
pub const MAX_VIRTUAL_TOKENS: i64 = 1 << 16;

/// Virtual tokens adapt no module.
static NO_TARGETS: Targets = Targets::Names(Vec::new());

/// The settings that the kinds of virtual tokens have in common, and what follows from a file or from the base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VirtualSettings {
    /// Number of virtual tokens before every sequence.
    #[schemars(range(min = 1, max = 65536))] // MAX_VIRTUAL_TOKENS
    pub virtual_tokens: i64,
    /// Selects no module.
    #[serde(skip)]
    modules: ModuleSettings,
    /// The sizes that PEFT's file names; `None` before the base is known.
    #[serde(skip)]
    declared: Option<DeclaredSizes>,
    /// True if the virtual tokens themselves are parameters, as those from a file are, whatever the settings of an
    /// encoder.
    #[serde(skip)]
    encoded: bool,
    /// The tokens of the text that training starts from.
    #[serde(skip)]
    text_ids: Vec<i64>,
}

impl Default for VirtualSettings {
    fn default() -> Self {
        Self::new(20)
    }
}

impl VirtualSettings {
    /// Returns the settings of this many virtual tokens.
    pub fn new(virtual_tokens: i64) -> Self {
        let modules = ModuleSettings { targets: Some(NO_TARGETS.clone()), ..ModuleSettings::default() };
        Self { virtual_tokens, modules, declared: None, encoded: false, text_ids: Vec::new() }
    }
}

/// Sizes of the base that PEFT's file names. A virtual token has `width` numbers in each of its vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeclaredSizes {
    width: i64,
    heads: i64,
    layers: i64,
}

/// Registers parameters for a model of these sizes, with this table of tokens (V, D), and returns the virtual tokens.
type Attach = dyn Fn(ModelSizes, &Weight, &mut RegisterParam) -> Result<VirtualTokens>;

/// A kind of virtual tokens.
trait VirtualKind: Clone + 'static {
    /// Name of the section in a recipe.
    const SECTION: &'static str;
    /// Name in texts.
    const TITLE: &'static str;
    /// Name in PEFT's files.
    const PEFT_TYPE: &'static str;
    /// Where the virtual tokens enter the model.
    const PLACE: VirtualPlace;

    fn settings(&self) -> &VirtualSettings;
    fn settings_mut(&mut self) -> &mut VirtualSettings;
    /// Returns the folder of the adapter that training continues; `None` for a kind whose files lack what it trains.
    fn from(&self) -> Option<&Path> {
        None
    }
    /// Returns the number of virtual tokens.
    fn count(&self) -> i64 {
        self.settings().virtual_tokens
    }
    /// Returns the text that training starts from.
    fn start_text(&self) -> Option<&str> {
        None
    }
    /// Returns true if training computes the virtual tokens by an encoder.
    fn has_encoder(&self) -> bool {
        false
    }
    /// Returns the keys of PEFT's file that only this kind has.
    fn own_config(&self) -> Value;
    /// Registers the parameters that are trained, and returns the virtual tokens computed from them.
    fn attach(&self, model: ModelSizes, table: &Weight, add: &mut RegisterParam) -> Result<VirtualTokens>;

    /// Returns the virtual tokens whose parameters they are themselves. They start as `first`.
    fn plain(&self, first: Tensor, add: &mut RegisterParam) -> VirtualTokens {
        let own = add(PROMPT_EMBEDDINGS, first, ParamRole::Trained);
        VirtualTokens::new(self.count(), Self::PLACE, move || own.shallow_clone())
    }
}

/// Adds virtual tokens to a model. Adapts no layer, but for a reward model's head, which is trained in full.
struct VirtualPlan {
    attach: Box<Attach>,
    /// True if the adapter contains a scalar head.
    scalar_head: bool,
}

impl AdapterPlan for VirtualPlan {
    fn attach(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        let trained = self.scalar_head && site.layer == LayerKind::Score;
        Ok(trained.then(|| saved_module::attach(site, add)))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn virtual_tokens(
        &self,
        model: ModelSizes,
        embedding: &Weight,
        add: &mut RegisterParam,
    ) -> Result<Option<VirtualTokens>> {
        (self.attach)(model, embedding, add).map(Some)
    }
}

/// Plans virtual tokens: those of a file as they are, others as the settings say.
fn plan<K: VirtualKind>(kind: &K) -> Box<dyn AdapterPlan> {
    let (kind, scalar_head) = (kind.clone(), kind.has_scalar_head());
    let attach: Box<Attach> = Box::new(move |model, table, add| {
        if kind.settings().encoded {
            let shape = [kind.count(), model.numbers(K::PLACE)];
            return Ok(kind.plain(Tensor::zeros(shape, tch::kind::FLOAT_CPU), add));
        }
        kind.attach(model, table, add)
    });
    Box::new(VirtualPlan { attach, scalar_head })
}

impl<K: VirtualKind> ModuleKind for K {
    const NAME: &'static str = K::SECTION;

    fn modules(&self) -> &ModuleSettings {
        &self.settings().modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.settings_mut().modules
    }

    fn usual_targets() -> &'static Targets {
        &NO_TARGETS
    }

    fn continues_from(&self) -> Option<&Path> {
        self.from()
    }
}

impl<K: VirtualKind> AdapterKind for K {
    fn title(&self) -> &'static str {
        K::TITLE
    }

    fn describe(&self) -> String {
        format!("{} n{}", K::SECTION, self.count())
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Err(Error::bug(format!("{} adapts no layer", K::TITLE)))
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![("virtual_tokens", json!(self.count()))]
    }

    fn usual_lr(&self) -> f64 {
        if self.has_encoder() { 1e-3 } else { 1e-2 }
    }

    fn activations(&self) -> AdapterActivations {
        let inputs = K::PLACE == VirtualPlace::Input;
        let virtual_rows = if inputs { self.count() as u64 } else { 0 };
        AdapterActivations { virtual_tokens: self.count() as u64, virtual_rows, ..AdapterActivations::default() }
    }

    fn config(&self, base: &str) -> Value {
        peft::write(self, base)
    }

    fn tensor_prefix(&self) -> &'static str {
        PROMPT_EMBEDDINGS
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[PROMPT_EMBEDDINGS]
    }

    /// Returns a name for what is trained: no tensor belongs to a module but that of a scalar head.
    fn module_of<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        (tensor != SCORE_WEIGHT).then_some(K::SECTION)
    }

    fn updates(
        &self,
        _modules: &BTreeSet<&str>,
        _tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        Err(Error::user(format!("{}: {}", origin.display(), self.why_not_merged().unwrap_or_default()))
            .hint("use the adapter as it is, with --adapter"))
    }

    fn why_not_merged(&self) -> Option<String> {
        Some(format!("{} has no update of weights: its virtual tokens stand before every sequence", K::TITLE))
    }

    fn set_base_sizes(&mut self, sizes: ModelSizes) {
        let (width, heads) = match K::PLACE {
            VirtualPlace::Input => (sizes.width, sizes.heads),
            VirtualPlace::KeysAndValues => (sizes.kv_heads * sizes.head_dim, sizes.kv_heads),
        };
        self.settings_mut().declared = Some(DeclaredSizes { width, heads, layers: sizes.depth });
    }

    fn start_from_text(&mut self, encode: &EncodeText) -> Result<()> {
        if let Some(text) = self.start_text() {
            let ids = encode(text)?;
            if ids.is_empty() {
                return Err(Error::user(format!("adapter.{}.text: the text has no tokens", K::SECTION))
                    .hint("write a text that describes the task, or remove `text`"));
            }
            self.settings_mut().text_ids = ids.into_iter().map(i64::from).collect();
        }
        Ok(())
    }

    fn plan_from(&self, start: Option<&BTreeMap<String, Tensor>>) -> Result<Box<dyn AdapterPlan>> {
        match start {
            // The encoder that the file's virtual tokens were trained through is not in the file.
            Some(_) if self.has_encoder() => Err(Error::user(format!(
                "adapter.{}.from: an adapter's file holds virtual tokens and not the encoder they were trained through",
                K::SECTION
            ))
            .hint("continue without the encoder, or start a new adapter without `from`")),
            _ => Ok(plan(self)),
        }
    }

    fn plan_of_file(&self, _config: &Path, _tensors: &BTreeMap<String, Tensor>) -> Result<Box<dyn AdapterPlan>> {
        Ok(plan(self))
    }
}

pub(super) use peft::read_config;
