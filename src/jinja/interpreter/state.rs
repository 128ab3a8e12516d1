//! The state of one rendering, and the variables that it reads.

use crate::jinja::ast::SharedName;
use crate::jinja::error::TemplateResult;
use crate::jinja::format::RenderTime;
use crate::jinja::limits;
use crate::jinja::value::{PyDict, PyValue, VariableScope};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::LazyLock;

/// How the run continues after a statement.
#[derive(PartialEq)]
pub(super) enum StatementFlow {
    Next,
    Break,
    Continue,
}

/// The state of one rendering.
pub struct Interpreter {
    pub(super) context: HashMap<String, PyValue>,
    pub(super) clock: RenderTime,
    /// Whether the use of an undefined value is an error.
    pub(super) strict: bool,
    pub(super) line: usize,
    /// Scopes that a macro refers to: emptied at the end, as they may be cycles.
    pub(super) macro_scopes: Vec<Rc<VariableScope>>,
    /// All namespaces: emptied at the end, as they may be cycles.
    pub(super) namespaces: Vec<Rc<RefCell<PyDict>>>,
}

pub(super) static LOOP: LazyLock<SharedName> = LazyLock::new(|| "loop".into());

/// The global functions.
pub(super) const FUNCTIONS: [&str; 7] =
    ["range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"];

impl Interpreter {
    pub(super) fn write(&self, text: &str, out: &mut String) -> TemplateResult<()> {
        limits::spend_copy_steps(text.len())?;
        limits::check_output_length(out.len() + text.len())?;
        out.push_str(text);
        Ok(())
    }

    /// Returns the variable, or the global function, of this name; undefined if there is none.
    pub(super) fn lookup(&self, name: &str, scope: &VariableScope) -> PyValue {
        if let Some(value) = scope.get(name).or_else(|| self.context.get(name).cloned()) {
            return value;
        }
        match FUNCTIONS.iter().find(|f| **f == name) {
            Some(function) => PyValue::Function(*function),
            None => PyValue::undefined(format!("'{name}' is undefined")),
        }
    }
}
