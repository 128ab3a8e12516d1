//! The arguments of a call.

use super::error::{TemplateError, TemplateResult};
use super::value::PyValue;

/// The evaluated arguments of a call.
#[derive(Default)]
pub struct CallArguments {
    pub positional: Vec<PyValue>,
    pub named: Vec<(String, PyValue)>,
}

impl CallArguments {
    /// Returns the arguments in the order of `names`; a parameter with an empty name is positional only. Fails for
    /// arguments that are too many, unknown or repeated.
    pub fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> TemplateResult<[Option<PyValue>; N]> {
        if self.positional.len() > N {
            return Err(TemplateError::python(format!(
                "{function}() takes at most {N} arguments ({} given)",
                self.positional.len()
            )));
        }
        let mut bound: [Option<PyValue>; N] = std::array::from_fn(|_| None);
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let at = names.iter().position(|n| **n == *name && !n.is_empty()).ok_or_else(|| {
                TemplateError::python(format!("{function}() got an unexpected keyword argument '{name}'"))
            })?;
            if bound[at].replace(value).is_some() {
                return Err(TemplateError::python(format!("{function}() got multiple values for argument '{name}'")));
            }
        }
        Ok(bound)
    }

    /// Fails if there is any argument.
    pub fn expect_none(self, function: &str) -> TemplateResult<()> {
        self.bind(function, []).map(|_| ())
    }
}
