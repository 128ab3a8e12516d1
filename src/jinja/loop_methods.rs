//! The methods of `loop` and of cyclers.

use super::call_arguments::CallArguments;
use super::error::{TemplateError, TemplateResult};
use super::value::{PyValue, equal};

/// Calls a method of Jinja's own objects, `loop` and `cycler`.
pub fn call_jinja_method(of: &PyValue, name: &str, args: CallArguments) -> TemplateResult<PyValue> {
    match (of, name) {
        (PyValue::Loop(state), "cycle") => match args.positional.len() {
            0 => Err(TemplateError::python("no items for cycling given")),
            n => Ok(args.positional[state.at.get() % n].clone()),
        },
        (PyValue::Loop(state), _) => {
            let mut last = state.changed.borrow_mut();
            let now = args.positional;
            let same = match &*last {
                Some(last) if last.len() == now.len() => {
                    let mut same = true;
                    for (a, b) in last.iter().zip(&now) {
                        same &= equal(a, b)?;
                    }
                    same
                }
                _ => false,
            };
            if !same {
                *last = Some(now);
            }
            Ok(PyValue::Bool(!same))
        }
        (PyValue::Cycler(cycler), "next") => {
            args.expect_none("next")?;
            let now = cycler.items[cycler.at.get()].clone();
            cycler.at.set((cycler.at.get() + 1) % cycler.items.len());
            Ok(now)
        }
        (PyValue::Cycler(cycler), _) => {
            args.expect_none("reset")?;
            cycler.at.set(0);
            Ok(PyValue::None)
        }
        (of, name) => Err(TemplateError::unsupported(format!("the method '{name}' of '{}'", of.type_name()))),
    }
}
