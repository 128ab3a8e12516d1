//! On CUDA: the factors of low-rank updates in the dtype of the products, kept until an optimiser step changes them.
//!
//! A cast is a launch, and a layer would need one for each of its inputs. Here the first layer that finds its factors changed has
//! those of all layers cast, as many in one launch as its table holds; further micro-batches of a step cast nothing.

use crate::native::cuda::{Cast, Kernels};
use crate::nn::weight::Weight;
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The cast factors of a model's updates.
#[derive(Default)]
pub struct FactorCasts {
    groups: RefCell<Vec<CastGroup>>,
    /// Matrices of weights with room for cast factors below them, by the address of their first number.
    matrices: RefCell<BTreeMap<usize, Tensor>>,
}

/// A factor of an update, and the number that its cast is multiplied by.
type Source = (Tensor, f64);

/// Tensors for cast factors, and the place of each: a tensor and the column in it of the factor's first.
pub(super) struct CastLayout {
    pub results: Vec<Tensor>,
    pub places: Vec<(Tensor, i64)>,
}

/// Factors that are used together.
struct CastGroup {
    kind: Kind,
    sources: Vec<Source>,
    /// Where the factors lay, and which state of theirs was cast.
    stamps: Vec<(usize, i64)>,
    layout: CastLayout,
}

fn stamp(t: &Tensor) -> (usize, i64) {
    (t.data_ptr() as usize, t.internal_version())
}

impl CastGroup {
    fn is(&self, kind: Kind, sources: &[Source]) -> bool {
        let same = |((own, scale), (t, wanted)): (&Source, &Source)| own.data_ptr() == t.data_ptr() && scale == wanted;
        self.kind == kind && self.sources.len() == sources.len() && self.sources.iter().zip(sources).all(same)
    }

    fn is_current(&self) -> bool {
        self.sources.iter().map(|(t, _)| stamp(t)).eq(self.stamps.iter().copied())
    }
}

impl FactorCasts {
    /// Returns frozen weights of one input as the first rows of a matrix (out of all + room, in); `None` if they cannot be joined. The
    /// first call moves their numbers, and the rows below them are zero then.
    pub(super) fn weights_above_room(&self, weights: &[&Weight], room: i64) -> Option<Tensor> {
        let mut matrices = self.matrices.borrow_mut();
        let rows = room + weights.iter().map(|weight| weight.outputs()).sum::<i64>();
        let known = matrices.get(&(weights[0].matrix()?.data_ptr() as usize));
        if let Some(matrix) = known.filter(|m| m.size()[0] == rows && Weight::are_parts_of(weights, m)) {
            return Some(matrix.shallow_clone());
        }
        let matrix = Weight::above_zeros(weights, room)?;
        matrices.insert(matrix.data_ptr() as usize, matrix.shallow_clone());
        Some(matrix)
    }

    /// Has all factors cast again by the layer that asks for some next.
    pub fn forget(&self) {
        self.groups.borrow_mut().iter_mut().for_each(|group| group.stamps.clear());
    }

    /// Returns the factors, which must be parameters, cast to dtype `kind` as `lay_out` placed them when it was called first.
    pub(super) fn get(
        &self,
        kernels: &Kernels,
        kind: Kind,
        sources: Vec<Source>,
        lay_out: impl FnOnce() -> CastLayout,
    ) -> Vec<Tensor> {
        let mut groups = self.groups.borrow_mut();
        let at = groups.iter().position(|group| group.is(kind, &sources)).unwrap_or_else(|| {
            let sources = sources.into_iter().map(|(t, scale)| (t.detach(), scale)).collect();
            groups.push(CastGroup { kind, sources, stamps: Vec::new(), layout: lay_out() });
            groups.len() - 1
        });
        if !groups[at].is_current() {
            let stale = || groups.iter().filter(|group| group.kind == kind && !group.is_current());
            let casts: Vec<Cast> = stale().flat_map(|group| casts(&group.sources, &group.layout)).collect();
            kernels.narrow_all(&casts);
            for group in groups.iter_mut().filter(|group| group.kind == kind) {
                group.stamps = group.sources.iter().map(|(t, _)| stamp(t)).collect();
            }
        }
        groups[at].layout.results.iter().map(Tensor::shallow_clone).collect()
    }
}

/// Returns the casts of factors to their places.
fn casts<'a>(sources: &'a [Source], layout: &'a CastLayout) -> impl Iterator<Item = Cast<'a>> {
    let cast = |((from, factor), (to, column)): (&'a Source, &'a (Tensor, i64))| Cast {
        from,
        to,
        factor: *factor,
        column: *column,
    };
    sources.iter().zip(&layout.places).map(cast)
}

/// Casts factors that are computed anew at each call.
pub(super) fn cast_once(kernels: &Kernels, sources: &[(Tensor, f64)], layout: CastLayout) -> Vec<Tensor> {
    kernels.narrow_all(&casts(sources, &layout).collect::<Vec<_>>());
    layout.results
}
