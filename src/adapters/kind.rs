//! The interface of the kinds of adapters ([`AdapterKind`]): everything that follows from a kind's settings, so that
//! the rest of ft need not distinguish kinds.
//!
//! How a kind computes is `nn::Adapter`, which its [`plan`](AdapterKind::plan) attaches to layers. A new kind is a
//! variant of [`AdapterSpec`], its settings, and one implementation of each of the two traits.

use super::file;
use super::lora::LoraPlan;
use super::spec::{AdapterSpec, LoraSpec, SCORE};
use crate::error::{Error, Result};
use crate::nn::{AdapterPlan, Param};
use serde_json::json;
use std::ops::{Deref, DerefMut};
use std::path::Path;

/// What an adapter adds to the activations that a layer keeps for its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdapterActivations {
    /// Width of the low-rank results of one linear layer.
    pub rank: u64,
    /// True if each linear layer keeps a dropout mask and a masked input.
    pub dropout: bool,
}

/// A kind of adapter, as its settings describe it.
pub trait AdapterKind {
    /// Returns the name of the kind's section in a recipe, such as `lora`.
    fn name(&self) -> &'static str;

    /// Returns a short description, such as `lora r16`.
    fn describe(&self) -> String;

    /// Returns the plan that attaches this adapter while a model is built. Fails for invalid patterns, and if the
    /// adapter to continue from cannot be read.
    fn plan(&self) -> Result<Box<dyn AdapterPlan>>;

    /// Returns the folder of the adapter that training continues; `None` for a new adapter.
    fn continues(&self) -> Option<&Path>;

    /// Copies the tensors of the adapter that training continues into the parameters built for this one. Does nothing
    /// for a new adapter. Fails if the two do not fit together.
    fn initialise(&self, params: &mut dyn Iterator<Item = &Param>) -> Result<()>;

    /// Returns the probability with which inputs are dropped in training; 0: none.
    fn dropout(&self) -> f64;

    /// Returns what the adapter adds to the activations of a layer, for the prediction of memory.
    fn activations(&self) -> AdapterActivations;

    /// Adds the scalar head to the modules that are trained and saved with the adapter, if it is not among them.
    fn add_scalar_head(&mut self);

    /// Returns the settings that PEFT's files are written from. PEFT's layout of LoRA is the only one that is written.
    fn peft(&self) -> &LoraSpec;
}

impl Deref for AdapterSpec {
    type Target = dyn AdapterKind;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Lora(spec) => spec,
        }
    }
}

impl DerefMut for AdapterSpec {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Lora(spec) => spec,
        }
    }
}

impl AdapterKind for LoraSpec {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn describe(&self) -> String {
        format!("lora r{}", self.rank)
    }

    fn plan(&self) -> Result<Box<dyn AdapterPlan>> {
        let plan = LoraPlan::new(self)?;
        Ok(Box::new(match &self.from {
            Some(folder) => plan.with_base_weights(&file::read(folder)?.tensors),
            None => plan,
        }))
    }

    fn continues(&self) -> Option<&Path> {
        self.from.as_deref()
    }

    fn initialise(&self, params: &mut dyn Iterator<Item = &Param>) -> Result<()> {
        let Some(folder) = self.continues() else { return Ok(()) };
        let file = file::read(folder)?;
        check_same_scales(self, &file.spec, folder)?;
        file::load_into(params, &file.tensors, folder)
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn activations(&self) -> AdapterActivations {
        AdapterActivations { rank: self.rank as u64, dropout: self.dropout > 0.0 }
    }

    fn add_scalar_head(&mut self) {
        if !self.has_scalar_head() {
            self.modules_to_save.push(SCORE.into());
        }
    }

    fn peft(&self) -> &LoraSpec {
        self
    }
}

/// Fails unless an adapter of `ours` can start from one of `theirs`, in `folder`: with the same rank, alpha and
/// scaling.
fn check_same_scales(ours: &LoraSpec, theirs: &LoraSpec, folder: &Path) -> Result<()> {
    let scales = |s: &LoraSpec| {
        [
            ("rank", json!(s.rank)),
            ("alpha", json!(s.alpha)),
            ("rslora", json!(s.rslora)),
            ("rank_pattern", json!(s.rank_pattern)),
            ("alpha_pattern", json!(s.alpha_pattern)),
        ]
    };
    let unlike = scales(ours).into_iter().zip(scales(theirs)).filter(|(a, b)| a != b);
    let unlike: Vec<String> = unlike.map(|((key, a), (_, b))| format!("{key}: {b}, not {a}")).collect();
    if !unlike.is_empty() {
        return Err(Error::user(format!("{}: the adapter was trained with {}", folder.display(), unlike.join("; ")))
            .hint("set adapter.lora to what it was trained with"));
    }
    Ok(())
}
