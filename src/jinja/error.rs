//! Errors of compiling and rendering a template, with their kind and the line of the template.

use std::fmt;

/// A result that fails with the error of a template.
pub type TemplateResult<T> = std::result::Result<T, TemplateError>;

/// The kind of a failure. Callers choose the hint and the retry by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateErrorKind {
    /// The source is not valid Jinja.
    Syntax,
    /// An error that Python would raise as well.
    Python,
    /// The template called `raise_exception`.
    Raised,
    /// Python supports it, ft does not.
    Unsupported,
    /// The limit on steps, bytes or nested values was reached.
    LimitReached,
    /// The limit on the stack was reached.
    StackExhausted,
}

/// A failure of a template, with its line where that is known. Displays as its message.
#[derive(Debug)]
pub struct TemplateError(Box<TemplateErrorData>);

#[derive(Debug)]
struct TemplateErrorData {
    kind: TemplateErrorKind,
    message: String,
    line: Option<usize>,
}

impl TemplateError {
    pub(super) fn new(kind: TemplateErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(TemplateErrorData { kind, message: message.into(), line: None }))
    }

    /// Makes an error that Python would raise, with Python's message where that helps.
    pub(super) fn python(message: impl Into<String>) -> Self {
        Self::new(TemplateErrorKind::Python, message)
    }

    /// Makes the error for `what`, which exists in Python's Jinja and is not reproduced.
    pub(super) fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(TemplateErrorKind::Unsupported, format!("not supported: {what}"))
    }

    /// Makes a syntax error at a 1-based line.
    pub(super) fn syntax(line: usize, message: impl Into<String>) -> Self {
        Self::new(TemplateErrorKind::Syntax, message).at_line(line)
    }

    /// Sets the line, unless one is set already: the innermost statement sets it first.
    pub(super) fn at_line(mut self, line: usize) -> Self {
        self.0.line.get_or_insert(line);
        self
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> TemplateErrorKind {
        self.0.kind
    }

    /// Returns the 1-based line of the template, if known.
    pub fn line(&self) -> Option<usize> {
        self.0.line
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}
