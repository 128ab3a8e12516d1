//! Takes the tensors that one quantised matrix consists of out of a checkpoint.

use crate::error::{Error, Result};
use crate::nn::Weights;
use tch::{Kind, Tensor};

/// The tensors of a checkpoint whose names begin with that of one module.
pub struct MatrixTensors<'a> {
    weights: &'a mut Weights,
    module: &'a str,
}

impl<'a> MatrixTensors<'a> {
    /// Looks at the tensors of `module`.
    pub fn new(weights: &'a mut Weights, module: &'a str) -> Self {
        Self { weights, module }
    }

    /// Returns the name of a tensor of the module.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.module)
    }

    /// Returns the error for a tensor of the module that contradicts config.json or the other tensors.
    pub fn error(&self, part: &str, what: &str) -> Error {
        let hint = "the file is damaged, or config.json is that of another checkpoint: fetch the model again";
        self.refusal(part, what, hint)
    }

    /// Returns an error about a tensor of the module, with the next step.
    pub fn refusal(&self, part: &str, what: &str, hint: &str) -> Error {
        Error::user(format!("{}: `{}` {what}", self.weights.origin().display(), self.name(part))).hint(hint)
    }

    /// Takes a tensor, a view of the mapped file; `None` if the module has none of this name.
    pub fn take_if_there(&mut self, part: &str) -> Option<Tensor> {
        self.weights.take(&self.name(part))
    }

    /// Takes a tensor. Fails if there is none.
    pub fn take(&mut self, part: &str) -> Result<Tensor> {
        self.take_if_there(part).ok_or_else(|| self.error(part, "is missing"))
    }

    /// Takes a tensor of this dtype and shape. `why` says what the shape follows from.
    pub fn take_exactly(&mut self, part: &str, kind: Kind, shape: &[i64], why: &str) -> Result<Tensor> {
        let tensor = self.take(part)?;
        self.require(part, &tensor, &[kind], shape, why)?;
        Ok(tensor)
    }

    /// Fails unless a tensor has one of these dtypes and this shape.
    pub fn require(&self, part: &str, tensor: &Tensor, kinds: &[Kind], shape: &[i64], why: &str) -> Result<()> {
        if tensor.size() != shape {
            let found = tensor.size();
            return Err(self.error(part, &format!("has shape {found:?}, expected {shape:?} for {why}")));
        }
        if !kinds.contains(&tensor.kind()) {
            return Err(self.error(part, &format!("has dtype {:?}, expected {:?}", tensor.kind(), kinds[0])));
        }
        Ok(())
    }
}
