//! How the weights of a model are stored, and what they take.

use super::checkpoint::expert_number;
use super::dtype::Storage;
use super::model::Model;
use crate::nn::quantised::TABLES;
use crate::nn::{LayerKind, Param, QuantisedParam};
use crate::report;
use std::collections::BTreeSet;
use tch::{Device, Kind};

impl Model {
    /// Returns how many of the base's parameters compute a token: all but those of the experts that it does not go to.
    pub fn active_parameters(&self) -> u64 {
        let Some(experts) = &self.config.experts else { return self.store.base().map(Param::count).sum() };
        let (mut everywhere, mut of_experts) = (0, 0);
        for p in self.store.base() {
            *(if expert_number(&p.name).is_some() { &mut of_experts } else { &mut everywhere }) += p.count();
        }
        everywhere + of_experts * experts.chosen as u64 / experts.count as u64
    }

    /// Returns the number format of the base's largest parameter that is not quantised, and the bytes of all the base's
    /// parameters.
    pub fn storage_summary(&self) -> (Kind, u64) {
        self.storage_summary_by(self.storage, |p| p.tensor.kind())
    }

    /// Returns what [`Model::storage_summary`] would return if this model were loaded on `device` with `storage`. This
    /// model itself must have been loaded with its weights as they are in their files.
    pub fn storage_summary_as(&self, storage: Storage, device: Device) -> (Kind, u64) {
        self.storage_summary_by(storage, |p| match p.tensor.kind() {
            own if p.tensor.dim() >= 2 && storage.keeps_kind(own, self.kind, device) => own,
            _ => self.kind,
        })
    }

    fn storage_summary_by(&self, storage: Storage, kind: impl Fn(&Param) -> Kind) -> (Kind, u64) {
        let quantised = |p: &Param| p.quantised_bytes(storage.quantisation());
        let plain = |p: &Param| (p.tensor.numel() * kind(p).elt_size_in_bytes()) as u64;
        let widest = self.store.base().filter(|p| quantised(p).is_none()).max_by_key(|p| p.tensor.numel());
        let bytes = self.store.base().map(|p| quantised(p).unwrap_or_else(|| plain(p))).sum();
        (widest.map_or(self.kind, &kind), bytes)
    }

    /// Returns the number of parameters in quantised layers, and their bytes; both are 0 if none is quantised.
    pub fn quantised_summary(&self) -> (u64, u64) {
        let weights = self.store.base().filter_map(|p| match &p.quantised {
            QuantisedParam::Done(weight) => Some((weight.count(), weight.bytes())),
            _ => None,
        });
        weights.fold((0, 0), |(count, bytes), (n, b)| (count + n, bytes + b))
    }

    /// Describes for people which weights are quantised, and how; `None` if none is.
    pub fn describe_quantisation(&self) -> Option<String> {
        // Those that were quantised when they were loaded, layers and tables, then those that are stored so.
        let mut formats = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
        for p in self.store.base() {
            let QuantisedParam::Done(weight) = &p.quantised else { continue };
            let table = matches!(p.layer, LayerKind::Embedding | LayerKind::Table | LayerKind::Head);
            let group = if weight.format().is_none() { 2 } else { usize::from(table) };
            formats[group].insert(weight.describe());
        }
        let listed = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let [layers, tables, stored] = formats.each_ref().map(|names| (!names.is_empty()).then(|| listed(names)));
        let layers = layers.map(|names| format!("linear layers quantised to {names}"));
        let tables = tables.map(|names| format!("{TABLES} to {names}"));
        let stored = stored.map(|names| format!("weights as stored in {names}"));
        let how = layers.into_iter().chain(tables).chain(stored).collect::<Vec<_>>().join(", ");
        let (numbers, bytes) = self.quantised_summary();
        let each = bytes as f64 / numbers.max(1) as f64;
        let (numbers, bytes) = (report::count(numbers), report::bytes(bytes));
        (!how.is_empty()).then(|| format!("{how}: {numbers} parameters in {bytes} ({each:.3} bytes each)"))
    }
}
