//! Copies of trained parameters in the dtype of the arithmetic, for a GPU: made for all parameters of an adapter at
//! once, when the first of them is needed after an optimiser step.
//!
//! Casting each factor where it is used takes three launches per layer and micro-batch: more than a small model's
//! products. All together take three per step. On the CPU, where a launch costs nothing, factors are cast where they
//! are used: small tensors that are kept between large ones that are freed would fragment its memory.

use crate::native;
use std::cell::RefCell;
use tch::{Kind, Tensor};

/// The copies of an adapter's parameters.
#[derive(Default)]
pub struct ComputeCopies {
    entries: RefCell<Vec<Entry>>,
}

/// A parameter and its copy.
struct Entry {
    master: Tensor,
    copy: Option<Copy>,
}

/// `scale` times a parameter, as the parameter was at `version`.
struct Copy {
    numbers: Tensor,
    scale: f64,
    version: i64,
}

impl Entry {
    /// Returns true if the copy is older than the parameter.
    fn is_stale(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| copy.version != self.master.internal_version())
    }
}

impl ComputeCopies {
    /// Adds a parameter; returns its number.
    pub fn add(&self, master: &Tensor) -> usize {
        let mut entries = self.entries.borrow_mut();
        entries.push(Entry { master: master.shallow_clone(), copy: None });
        entries.len() - 1
    }

    /// Returns `scale` times a parameter in dtype `kind`, without gradient. The next optimiser step overwrites the
    /// result.
    pub fn get(&self, number: usize, kind: Kind, scale: f64) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let mut entries = self.entries.borrow_mut();
        let entry = &mut entries[number];
        if scale == 1.0 && entry.master.kind() == kind {
            return entry.master.detach();
        }
        let fits = |copy: &Copy| copy.scale == scale && copy.numbers.kind() == kind;
        if !entry.copy.as_ref().is_some_and(fits) {
            // New memory, because a graph may still need a copy of another scale.
            let numbers = Tensor::empty(entry.master.size(), (kind, entry.master.device()));
            entry.copy = Some(Copy { numbers, scale, version: -1 });
        }
        if entry.is_stale() {
            refresh(&mut entries);
        }
        entries[number].copy.as_ref().expect("made above").numbers.shallow_clone()
    }
}

/// Makes all stale copies again.
fn refresh(entries: &mut [Entry]) {
    let mut stale: Vec<(Tensor, &mut Copy)> = entries
        .iter_mut()
        .filter(|entry| entry.is_stale())
        .filter_map(|entry| Some((entry.master.detach(), entry.copy.as_mut()?)))
        .collect();
    while let Some(scale) = stale.first().map(|(_, copy)| copy.scale) {
        let (same, others): (Vec<_>, Vec<_>) = stale.into_iter().partition(|(_, copy)| copy.scale == scale);
        let from: Vec<Tensor> = same.iter().map(|(master, _)| master.shallow_clone()).collect();
        let to: Vec<Tensor> = same.iter().map(|(_, copy)| copy.numbers.shallow_clone()).collect();
        let written = if scale == 1.0 { native::copy_all(&to, &from) } else { native::scale_into(&to, &from, scale) };
        written.expect("a copy has its parameter's shape");
        same.into_iter().for_each(|(master, copy)| copy.version = master.internal_version());
        stale = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn near(t: &Tensor, numbers: &[f64]) -> bool {
        Vec::<f64>::try_from(t.to_kind(Kind::Double)).unwrap() == numbers
    }

    #[test]
    fn copies_follow_their_parameters() {
        let leaf = |x: &[f32]| Tensor::from_slice(x).set_requires_grad(true);
        let (a, b) = (leaf(&[1.0, 2.0]), leaf(&[0.5]));
        let copies = ComputeCopies::default();
        let (i, j) = (copies.add(&a), copies.add(&b));
        let (first, second) = (copies.get(i, Kind::BFloat16, 1.0), copies.get(j, Kind::BFloat16, 3.0));
        assert!(near(&first, &[1.0, 2.0]) && near(&second, &[1.5]) && !second.requires_grad());
        tch::no_grad(|| [&a, &b].iter().for_each(|t| drop(t.shallow_clone().g_add_scalar_(1.0))));
        // Asking for one makes both again, in their places.
        assert!(near(&copies.get(i, Kind::BFloat16, 1.0), &[2.0, 3.0]) && near(&second, &[4.5]));
        assert!(near(&copies.get(j, Kind::BFloat16, 2.0), &[3.0]), "another scale");
        assert!(near(&second, &[4.5]), "the copy of the earlier scale is left as it was");
        assert!(near(&copies.get(i, Kind::Float, 1.0), &[2.0, 3.0]));
        assert_eq!(a.device(), Device::Cpu);
    }
}
