//! Why a template does not compile, or does not render.

use std::fmt;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The text is no Jinja.
    Syntax,
    /// Python would raise here too.
    Python,
    /// The template's own `raise_exception`.
    Raised,
    /// Python's Jinja has it and this one has not.
    Unsupported,
    /// A bound on steps or bytes was reached.
    Runaway,
    /// The stack is used up.
    Deep,
}

/// A failure with its line, where it is known.
#[derive(Debug)]
pub struct Fault(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: FaultKind,
    message: String,
    line: Option<usize>,
}

impl Fault {
    pub(super) fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), line: None }))
    }

    pub(super) fn python(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Python, message)
    }

    pub(super) fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(FaultKind::Unsupported, format!("not supported: {what}"))
    }

    pub(super) fn syntax(line: usize, message: impl Into<String>) -> Self {
        Self::new(FaultKind::Syntax, message).at(line)
    }

    /// Notes the line, unless an inner one is known.
    pub(super) fn at(mut self, line: usize) -> Self {
        self.0.line.get_or_insert(line);
        self
    }

    pub fn kind(&self) -> FaultKind {
        self.0.kind
    }

    /// 1-based line of the template.
    pub fn line(&self) -> Option<usize> {
        self.0.line
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}
