//! Starts an adapter: attaches it while a model is built, and gives it the tensors of the adapter that it continues.

use super::file;
use super::spec::AdapterSpec;
use crate::error::{Error, Result};
use crate::nn::{AdapterPlan, Param};
use std::path::Path;

impl AdapterSpec {
    /// Returns the plan that attaches this adapter while a model is built. Fails for invalid patterns, and if the
    /// adapter to continue from cannot be read.
    pub fn plan(&self) -> Result<Box<dyn AdapterPlan>> {
        let start = self.continues().map(file::read).transpose()?;
        self.plan_from(start.as_ref().map(|file| &file.tensors))
    }

    /// Copies the tensors of the adapter that training continues into the parameters built for this one. Does nothing
    /// for a new adapter. Fails if the two do not fit together.
    pub fn initialise(&self, params: &mut dyn Iterator<Item = &Param>) -> Result<()> {
        let Some(folder) = self.continues() else { return Ok(()) };
        let file = file::read(folder)?;
        self.check_continues(&file.spec, folder)?;
        file::load_into(params, &file.tensors, folder)
    }

    /// Fails unless this adapter can continue `from`, the one in `folder`: it has the same kind and scales.
    fn check_continues(&self, from: &AdapterSpec, folder: &Path) -> Result<()> {
        let section = self.name();
        if from.name() != section {
            let (kind, other) = (self.title(), from.title());
            return Err(Error::user(format!("{}: the adapter is {other}, not {kind}", folder.display()))
                .hint(format!("continue it under adapter.{}", from.name())));
        }
        let unlike = self.fixed_settings().into_iter().zip(from.fixed_settings()).filter(|(a, b)| a != b);
        let unlike: Vec<String> = unlike.map(|((key, a), (_, b))| format!("{key}: {b}, not {a}")).collect();
        if !unlike.is_empty() {
            return Err(Error::user(format!(
                "{}: the adapter was trained with {}",
                folder.display(),
                unlike.join("; ")
            ))
            .hint(format!("set adapter.{section} to what it was trained with")));
        }
        Ok(())
    }
}
