//! Tensors of a method in a checkpoint (method.safetensors), and how they are read back.
//!
//! The names and the order of numbers in these tensors are a file format: checkpoints written by earlier versions must
//! stay readable. Whatever is missing or does not fit is one error, [`damaged`].

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The tensors of a checkpoint, by name.
pub type StateTensors = BTreeMap<String, Tensor>;

/// Creates the error for a method.safetensors in which `what` is wrong.
pub fn damaged(what: impl std::fmt::Display) -> Error {
    Error::user(format!("method.safetensors: {what}"))
        .hint("the checkpoint is damaged: go back to an earlier one, or start anew with --overwrite")
}

/// Returns the tensor `name`. An error if there is none.
pub fn tensor<'a>(state: &'a StateTensors, name: &str) -> Result<&'a Tensor> {
    state.get(name).ok_or_else(|| damaged(format_args!("no tensor `{name}`")))
}

/// Returns the numbers of the float64 tensor `name`. An error if it is missing or of another kind.
pub fn numbers(state: &StateTensors, name: &str) -> Result<Vec<f64>> {
    values(state, name, Kind::Double)
}

/// Returns the N numbers of the float64 tensor `name`. An error if it is missing, of another kind or of another length.
pub fn exactly<const N: usize>(state: &StateTensors, name: &str) -> Result<[f64; N]> {
    let found = numbers(state, name)?;
    let length = found.len();
    found.try_into().map_err(|_| damaged(format_args!("`{name}` has {length} numbers, expected {N}")))
}

/// Returns the `length` numbers of the float32 tensor `name`. An error if it is missing, of another kind or of another
/// length.
pub fn column(state: &StateTensors, name: &str, length: usize) -> Result<Vec<f32>> {
    let found: Vec<f32> = values(state, name, Kind::Float)?;
    match found.len() == length {
        true => Ok(found),
        false => {
            Err(damaged(format_args!("`{name}` has {} numbers for the {length} tokens of its answers", found.len())))
        }
    }
}

/// Returns the elements of the tensor `name` in their order. An error if it is missing or not of `kind`, which must be
/// the kind of `T`.
pub fn values<T: tch::kind::Element>(state: &StateTensors, name: &str, kind: Kind) -> Result<Vec<T>>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    let tensor = tensor(state, name)?;
    if tensor.kind() != kind {
        return Err(damaged(format_args!("`{name}` has the wrong kind of numbers ({:?})", tensor.kind())));
    }
    Ok(Vec::<T>::try_from(tensor.reshape([-1]))?)
}

/// Adds numbers to the state, as a float64 tensor.
pub fn put(state: &mut StateTensors, name: &str, numbers: &[f64]) {
    state.insert(name.into(), Tensor::from_slice(numbers));
}
