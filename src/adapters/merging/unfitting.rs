//! Errors about updates that the base has no tensor for.

use crate::error::Error;
use crate::nn::Weights;
use std::path::Path;

/// Returns the error for an update of the tensor `name`, of this shape, that does not fit the base: the base has another
/// shape, or no tensor of this name; then the most similar names are listed.
pub(super) fn unfitting(base: &Weights, origin: &Path, name: &str, shape: &str) -> Error {
    let (file, from) = (origin.display(), base.origin().display());
    match base.shape(name) {
        Some(found) => Error::user(format!(
            "{file}: the update of `{name}` has shape {shape}, but the base {from} has {found:?}: a model of another size"
        )),
        None => Error::user(format!(
            "{file}: the update of `{name}` has shape {shape}, but the base {from} has no such tensor; its nearest names: {}",
            nearest(base, name).join(", ")
        )),
    }
}

/// Returns the three names of tensors of the base that are most similar to `name`.
fn nearest(base: &Weights, name: &str) -> Vec<String> {
    let mut names: Vec<(usize, &str)> = base.names().map(|n| (strsim::damerau_levenshtein(name, n), n)).collect();
    names.sort_unstable();
    names.into_iter().take(3).map(|(_, n)| format!("`{n}`")).collect()
}
