//! `ft adapter diff`: how two adapters differ, in settings and in what they change.

use super::updates::OpenAdapter;
use crate::adapters::file;
use crate::error::Result;
use crate::fsutil;
use crate::merging::{Delta, on_one_thread};
use crate::models::layer_number;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How two adapters A and B differ.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterDiff {
    /// True if all settings and tensors are equal.
    pub equal: bool,
    /// The settings that differ, by key of adapter_config.json: those of A and of B.
    pub settings: BTreeMap<String, [Value; 2]>,
    /// Tensors of the files that are in A or B only.
    pub only_in: [Vec<String>; 2],
    /// Tensors of both files that differ in shape or in a value.
    pub different_tensors: Vec<String>,
    /// All changes that both make to the base, as if they were one long vector; `null` if one is not known without a base.
    pub total: Option<DeltaDiff>,
    /// The same by layer, in order; `other`: outside of layers.
    pub layers: Vec<(String, DeltaDiff)>,
    /// The same by tensor of the base.
    pub weights: Vec<(String, DeltaDiff)>,
}

/// How two changes differ.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DeltaDiff {
    /// Frobenius norms of the changes of A and B.
    pub norms: [f64; 2],
    /// Cosine between the changes; `null` if one of them is zero.
    pub cosine: Option<f64>,
    /// Norm of the difference of the changes over the larger of their norms.
    pub distance: f64,
}

/// The squared norms of two changes and their inner product, which add up over tensors.
#[derive(Clone, Copy, Default)]
struct Products {
    squares: [f64; 2],
    dot: f64,
}

impl Products {
    fn of(a: Option<&Delta>, b: Option<&Delta>) -> Self {
        on_one_thread(|| {
            let square = |d: Option<&Delta>| d.map_or(0.0, |d| d.dot(d).max(0.0));
            Self { squares: [square(a), square(b)], dot: a.zip(b).map_or(0.0, |(a, b)| a.dot(b)) }
        })
    }

    fn add(&mut self, other: Self) {
        self.squares = [0, 1].map(|i| self.squares[i] + other.squares[i]);
        self.dot += other.dot;
    }

    fn compared(self) -> DeltaDiff {
        let norms = self.squares.map(f64::sqrt);
        let (larger, both) = (norms[0].max(norms[1]), norms[0] * norms[1]);
        let apart = (self.squares[0] + self.squares[1] - 2.0 * self.dot).max(0.0).sqrt();
        DeltaDiff {
            norms,
            cosine: (both > 0.0).then(|| (self.dot / both).clamp(-1.0, 1.0)),
            distance: if larger > 0.0 { apart / larger } else { 0.0 },
        }
    }
}

/// Compares the adapters in two folders. Changes that depend on the base are compared only if it is given.
pub fn diff(a: &Path, b: &Path, base: Option<&Path>) -> Result<AdapterDiff> {
    let (one, two) = (OpenAdapter::read(a, base)?, OpenAdapter::read(b, base)?);
    let (first, second) = (&one.part.file.tensors, &two.part.file.tensors);
    let only = |x: &BTreeMap<String, tch::Tensor>, y: &BTreeMap<String, tch::Tensor>| {
        x.keys().filter(|name| !y.contains_key(*name)).cloned().collect::<Vec<_>>()
    };
    let differs = |name: &&String| {
        second.get(*name).is_some_and(|t| t.size() != first[*name].size() || !t.equal(&first[*name].to_kind(t.kind())))
    };
    let settings = settings(a, b)?;
    let only_in = [only(first, second), only(second, first)];
    let different_tensors: Vec<String> = first.keys().filter(differs).cloned().collect();

    let (x, y) = (one.changes()?, two.changes()?);
    let (mine, yours): (BTreeSet<&str>, BTreeSet<&str>) =
        (x.names().into_iter().collect(), y.names().into_iter().collect());
    let (mut weights, mut layers, mut total) = (Vec::new(), BTreeMap::<usize, Products>::new(), Products::default());
    let mut all_known = true;
    for name in mine.union(&yours) {
        let (left, right) =
            (x.get(name).map_err(|e| e.context(a.display()))?, y.get(name).map_err(|e| e.context(b.display()))?);
        if left.is_none() && mine.contains(name) || right.is_none() && yours.contains(name) {
            all_known = false;
            continue;
        }
        let products = Products::of(left.as_ref(), right.as_ref());
        weights.push((name.to_string(), products.compared()));
        layers.entry(layer_number(name).unwrap_or(usize::MAX)).or_default().add(products);
        total.add(products);
    }
    let layer = |(number, products): (usize, Products)| {
        let name = if number == usize::MAX { "other".to_string() } else { number.to_string() };
        (name, products.compared())
    };
    Ok(AdapterDiff {
        equal: settings.is_empty() && only_in.iter().all(Vec::is_empty) && different_tensors.is_empty(),
        settings,
        only_in,
        different_tensors,
        total: (all_known && !weights.is_empty()).then(|| total.compared()),
        layers: layers.into_iter().map(layer).collect(),
        weights,
    })
}

/// Returns the keys of the adapters' configs that differ, with both values. Lists of targets are compared as sets.
fn settings(a: &Path, b: &Path) -> Result<BTreeMap<String, [Value; 2]>> {
    let read = |folder: &Path| fsutil::read_json::<Map<String, Value>>(&folder.join(file::CONFIG));
    let (one, two) = (read(a)?, read(b)?);
    let sorted = |value: Option<&Value>| match value {
        Some(Value::Array(list)) => {
            let mut list = list.clone();
            list.sort_by_key(Value::to_string);
            Value::Array(list)
        }
        value => value.cloned().unwrap_or_default(),
    };
    // A key that is missing means the same as one without a value.
    let empty = |v: &Value| matches!(v, Value::Null | Value::Bool(false)) || *v == Value::Object(Map::new());
    let keys: BTreeSet<&String> = one.keys().chain(two.keys()).collect();
    let pair = |key: &String| [sorted(one.get(key)), sorted(two.get(key))];
    let differs = |[x, y]: &[Value; 2]| x != y && !(empty(x) && empty(y));
    Ok(keys.into_iter().map(|key| (key.clone(), pair(key))).filter(|(_, values)| differs(values)).collect())
}
