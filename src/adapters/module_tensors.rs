//! The tensors of an adapter's file, as merging reads them: by module, with their shapes checked.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The tensors of an adapter's file.
pub(super) struct ModuleTensors<'a> {
    /// By name, without prefix.
    pub tensors: &'a BTreeMap<String, Tensor>,
    /// The file.
    pub origin: &'a Path,
}

impl ModuleTensors<'_> {
    /// Returns a tensor of a module; `None` if the file lacks it.
    pub fn find(&self, module: &str, name: &str) -> Option<Tensor> {
        self.tensors.get(&format!("{module}.{name}")).map(Tensor::shallow_clone)
    }

    /// Returns a tensor of a module, which must have this shape; -1 stands for any size. Fails if it is missing or has
    /// another shape.
    pub fn get(&self, module: &str, name: &str, shape: &[i64]) -> Result<Tensor> {
        let full = format!("{module}.{name}");
        self.check(self.tensors.get(&full), &full, shape)
    }

    /// Returns a tensor that modules share, which must have this shape, as [`get`](Self::get) does.
    pub fn shared(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.check(self.tensors.get(name), name, shape)
    }

    fn check(&self, found: Option<&Tensor>, name: &str, shape: &[i64]) -> Result<Tensor> {
        let shown: Vec<String> = shape.iter().map(|n| if *n < 0 { "any".to_string() } else { n.to_string() }).collect();
        let expected = format!("expected shape [{}]", shown.join(", "));
        match found {
            Some(t) if fits(&t.size(), shape) => Ok(t.shallow_clone()),
            Some(t) => {
                Err(Error::user(format!("{}: `{name}` has shape {:?}, {expected}", self.origin.display(), t.size()))
                    .hint("config and tensors belong to different adapters"))
            }
            None => Err(Error::user(format!("{}: `{name}` is missing, {expected}", self.origin.display()))
                .hint("the file is incomplete")),
        }
    }
}

fn fits(size: &[i64], shape: &[i64]) -> bool {
    size.len() == shape.len() && size.iter().zip(shape).all(|(n, wanted)| *wanted < 0 || n == wanted)
}
