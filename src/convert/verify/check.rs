//! Compares a directory with a model in memory: every tensor bit for bit, and the outputs of both models.

use super::kind::{ExportKind, saved_kind, written_tensors};
use super::logit_distance::{self, LogitDistance};
use super::report::{ExportReport, ExportVerdict, weight_file};
use super::thresholds::{LogitThresholds, WeightChange};
use crate::adapters::file;
use crate::error::{Error, Result};
use crate::models::{Heads, Model, QuantisedBase};
use crate::native::{self, Arithmetic};
use crate::nn::Param;
use crate::nn::weight::cast;
use crate::report;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Reads a directory into a fresh model and compares it with the model in memory, its active adapter included.
/// Differences are reported, not returned as errors; a directory that cannot be read is an error.
pub fn verify(reference: &Model, folder: &Path, export: ExportKind) -> Result<ExportReport> {
    match export {
        ExportKind::Adapter { base } => {
            let name = reference.active_adapter().ok_or_else(|| Error::bug("verify: no adapter is switched on"))?;
            let id =
                reference.adapter_id(name).ok_or_else(|| Error::bug("verify: the active adapter has no number"))?;
            let tensors = file::read(folder)?.spec.publish(reference.adapter_tensors(id));
            verify_adapter(reference, folder, base, &tensors)
        }
        ExportKind::Model => {
            let tensors = written_tensors(reference);
            let expected = |name: &str| Ok(tensors.get(name).map(|t| (*t).shallow_clone()));
            // If the run computes in bf16, rounding its float32 master weights to bf16 changes no product: layers round
            // them too.
            let rounded = reference.kind() == Kind::Float && saved_kind(folder)? != Some(Kind::Float);
            let change = if rounded { WeightChange::Rounded } else { WeightChange::None };
            let names = tensors.keys().map(|n| n.to_string()).collect();
            let tied = reference.config().tie_word_embeddings;
            ExportCheck { reference, folder, export, change, names, tied }.run(expected)
        }
    }
}

/// Does the same for an adapter's directory, which must contain these tensors.
pub fn verify_adapter(
    reference: &Model,
    folder: &Path,
    base: &Path,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<ExportReport> {
    let expected = |name: &str| Ok(tensors.get(name).map(Tensor::shallow_clone));
    ExportCheck {
        reference,
        folder,
        export: ExportKind::Adapter { base },
        change: WeightChange::None,
        names: tensors.keys().cloned().collect(),
        tied: reference.config().tie_word_embeddings,
    }
    .run(expected)
}

/// Compares a directory with a model in memory.
pub(in crate::convert) struct ExportCheck<'a> {
    pub reference: &'a Model,
    pub folder: &'a Path,
    pub export: ExportKind<'a>,
    pub change: WeightChange,
    /// The names of exactly those tensors that the folder must contain.
    pub names: BTreeSet<String>,
    /// Whether embedding and output head of a whole model are expected to share one weight.
    pub tied: bool,
}

impl ExportCheck<'_> {
    /// Runs the comparison. `expected` returns the value of a tensor by name; the tensor in the folder must equal it,
    /// rounded once to the folder's dtype.
    pub fn run(&self, expected: impl FnMut(&str) -> Result<Option<Tensor>>) -> Result<ExportReport> {
        let _no_grad = tch::no_grad_guard();
        let written = self.export.read_tensors(self.folder)?;
        let missing: Vec<String> = self.names.iter().filter(|n| !written.contains_key(*n)).cloned().collect();
        let unexpected: Vec<String> = written.keys().filter(|n| !self.names.contains(*n)).cloned().collect();
        let mut problems: Vec<String> =
            missing.iter().map(|n| format!("tensor `{n}` is missing in the folder")).collect();
        problems.extend(unexpected.iter().map(|n| format!("tensor `{n}` should not be in the folder")));
        problems.extend(self.changed_tensors(&written, expected)?);

        let prompts = logit_distance::prompts(self.reference, self.export.tokenizer_folder(self.folder))?;
        let device = second_device(self.reference)?;
        let elsewhere = device != self.reference.device();
        let _exact = elsewhere.then(ExactProducts::begin).transpose()?;
        let ours = logit_distance::logits(self.reference, &prompts)?;
        let adapter_effect = match self.reference.active_adapter() {
            Some(_) => {
                let base = self.reference.with_adapter(None, |m| logit_distance::logits(m, &prompts))?;
                Some(LogitDistance::between(&ours, &base))
            }
            None => None,
        };
        let fresh = self.export.open(self.folder, self.reference, device);
        let fresh = fresh.map_err(|e| e.context("reading back what was just written"))?;
        let difference = LogitDistance::between(&ours, &logit_distance::logits(&fresh, &prompts)?);
        let kind = self.reference.kind();
        let thresholds = LogitThresholds::new(kind, self.change);
        problems.extend(thresholds.problems(&difference));

        // A reward model has no output head that could be tied.
        let scores = self.reference.heads() == Heads::Score;
        let whole = matches!(self.export, ExportKind::Model) && !scores;
        let tied = whole && fresh.config().tie_word_embeddings;
        if tied && written.contains_key("lm_head.weight") {
            problems.push("config.json ties head and embedding, but lm_head.weight is written".into());
        }
        if tied != (whole && self.tied) {
            problems.push("the tie between embedding and head changed".into());
        }
        let files = self.export.weight_files(self.folder)?;
        Ok(ExportReport {
            verdict: if problems.is_empty() { ExportVerdict::Passed } else { ExportVerdict::Failed },
            export: self.export.name(),
            problems,
            notes: self.notes(&difference, adapter_effect.as_ref(), elsewhere),
            computed_in: format!("{kind:?}").to_lowercase(),
            prompts: prompts.len(),
            positions: prompts.iter().map(Vec::len).sum(),
            difference,
            thresholds,
            adapter_effect,
            quantised_base: QuantisedBase::of(self.reference),
            quantisation_error: None,
            merge: None,
            tensors: written.len(),
            tied,
            missing,
            unexpected,
            files: files.iter().map(|f| weight_file(f)).collect::<Result<_>>()?,
            compatibility: self.export.compatibility(self.folder, scores)?,
            ft_version: env!("CARGO_PKG_VERSION"),
        })
    }

    /// Returns a sentence for each tensor in the folder that differs from its expected value.
    fn changed_tensors(
        &self,
        written: &BTreeMap<String, Tensor>,
        mut expected: impl FnMut(&str) -> Result<Option<Tensor>>,
    ) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for (name, tensor) in written.iter().filter(|(n, _)| self.names.contains(*n)) {
            let Some(wanted) = expected(name)? else { continue };
            let wanted = cast(&wanted.to_device(Device::Cpu), tensor.kind());
            if wanted.size() != tensor.size() || !wanted.equal(tensor) {
                problems.push(format!("tensor `{name}` in the folder differs from the value in memory, rounded once"));
            }
        }
        Ok(problems)
    }

    /// Returns hints for the user. A merge into a narrow dtype can lose a weak adapter: although every weight is
    /// rounded correctly, the rounding is as large as the update.
    fn notes(&self, difference: &LogitDistance, effect: Option<&LogitDistance>, elsewhere: bool) -> Vec<String> {
        let place = elsewhere.then(|| "read back on the CPU: the GPU has no room for a second model".to_string());
        let of_effect = match effect {
            Some(effect)
                if self.change != WeightChange::None
                    && difference.mean_kl > 0.25 * effect.mean_kl
                    && effect.mean_kl > 0.0 =>
            {
                vec![format!(
                    "rounding changes the answers by {:.0} % of the adapter's effect (mean KL {:.1e} against {:.1e}): --dtype f32 avoids it",
                    100.0 * difference.mean_kl / effect.mean_kl,
                    difference.mean_kl,
                    effect.mean_kl
                )]
            }
            Some(effect) if effect.max_abs == 0.0 => vec!["the adapter changes no answer: was it trained?".into()],
            _ => Vec::new(),
        };
        place.into_iter().chain(of_effect).collect()
    }
}

/// Returns the device for a second model like `reference`, which is compared with it: the same one, or the CPU if a GPU has no
/// room for it.
fn second_device(reference: &Model) -> Result<Device> {
    let Device::Cuda(index) = reference.device() else { return Ok(reference.device()) };
    let (_, held) = reference.storage_summary_as(reference.storage(), reference.device());
    let adapters: u64 = reference.params().iter().filter(|p| p.adapter.is_some()).map(|p| 4 * p.count()).sum();
    // The largest weight while it is read, in both formats, or logits.
    let largest = reference.params().base().map(Param::count).max().unwrap_or(0);
    let passing = (8 * largest).max(logit_distance::DEVICE_ROWS as u64 * reference.config().vocab_size as u64 * 8);
    let (free, _) = native::cuda_capacity(index)?;
    if held + adapters + passing <= free {
        return Ok(reference.device());
    }
    report::info("the GPU has no room for a second model: the result is read back and compared on the CPU");
    Ok(Device::Cpu)
}

/// While a value of this type exists, float32 products on a GPU are not rounded to TF32, so that they can be compared with
/// those of the CPU.
struct ExactProducts(Arithmetic);

impl ExactProducts {
    fn begin() -> Result<Self> {
        let before = native::arithmetic()?;
        native::set_arithmetic(Arithmetic { tf32: false, ..before })?;
        Ok(Self(before))
    }
}

impl Drop for ExactProducts {
    fn drop(&mut self) {
        native::set_arithmetic(self.0).expect("settings that were in use before");
    }
}
