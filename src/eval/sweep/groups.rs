//! What has a weight of its own: layers, modules, or components of changes.

use crate::adapters::merging::{MergedWeights, PartWeights, WeightedAdapter};
use crate::models::layer_number;
use crate::recipe::merge_file::SweepBy;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The weights of each adapter, in the order of layers.
pub struct WeightGroups {
    /// Layer numbers, or names of modules; `other`: tensors outside of layers. A component's name is that of its module and its
    /// number.
    pub names: Vec<String>,
    /// The weights of each changed tensor: one, or those of components.
    of_tensor: BTreeMap<String, Range<usize>>,
    /// For each adapter and changed tensor, how many of these weights are the adapter's.
    used: Vec<BTreeMap<String, usize>>,
}

/// Returns the key of a tensor's group: its order, and its name.
fn key(by: SweepBy, tensor: &str) -> (usize, String) {
    let layer = layer_number(tensor);
    let name = match by {
        SweepBy::Adapter => "all".to_string(),
        SweepBy::Layer => layer.map_or("other".to_string(), |layer| layer.to_string()),
        SweepBy::Module => tensor.rsplit_once('.').map_or(tensor, |(module, _)| module).to_string(),
        SweepBy::Component => tensor.to_string(),
    };
    (layer.unwrap_or(usize::MAX), name)
}

impl WeightGroups {
    /// Groups the tensors that `merge` changes.
    pub fn new(by: SweepBy, merge: &MergedWeights) -> Self {
        let count = |tensor: &str, part: usize| match by {
            SweepBy::Component => merge.components(tensor, part).unwrap_or(1),
            _ => 1,
        };
        let parts = 0..merge.parts().len();
        let used_by = |part: usize| merge.changed_by(part).map(|t| (t.to_string(), count(t, part))).collect();
        let used: Vec<BTreeMap<String, usize>> = parts.map(used_by).collect();
        let keys: BTreeSet<(usize, String)> = merge.changed().map(|tensor| key(by, tensor)).collect();
        let (mut names, mut places) = (Vec::new(), BTreeMap::new());
        for group in &keys {
            let first = names.len();
            let components = used.iter().filter_map(|own| own.get(&group.1)).max().copied();
            match components.filter(|_| by == SweepBy::Component) {
                Some(count) => names.extend((0..count).map(|r| format!("{} {r}", group.1))),
                None => names.push(group.1.clone()),
            }
            places.insert(group, first..names.len());
        }
        let of_tensor = merge.changed().map(|tensor| (tensor.to_string(), places[&key(by, tensor)].clone())).collect();
        Self { of_tensor, used, names }
    }

    /// Returns the number of adapters.
    pub fn parts(&self) -> usize {
        self.used.len()
    }

    /// Returns the places of an adapter's weights of a tensor of the base; `None` if it does not change the tensor.
    pub fn places(&self, part: usize, tensor: &str) -> Option<Range<usize>> {
        let (all, count) = (self.of_tensor.get(tensor)?, self.used[part].get(tensor)?);
        Some(all.start..all.start + count)
    }

    /// Returns the weights of an adapter, `None` in places that are no weight of its.
    pub fn own(&self, part: usize, weights: &[f64]) -> Vec<Option<f64>> {
        let mut own = vec![None; weights.len()];
        for place in self.used[part].keys().filter_map(|tensor| self.places(part, tensor)).flatten() {
            own[place] = Some(weights[place]);
        }
        own
    }

    /// Gives the adapters these weights, (adapter, place).
    pub fn assign(&self, parts: &mut [WeightedAdapter], weights: &[Vec<f64>]) {
        for (i, (part, weights)) in parts.iter_mut().zip(weights).enumerate() {
            let of = |tensor: &String| Some((tensor.clone(), weights[self.places(i, tensor)?].to_vec()));
            part.weights = PartWeights::by_tensor(self.used[i].keys().filter_map(of).collect());
        }
    }
}
