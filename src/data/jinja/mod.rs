//! Jinja as Python runs it: jinja2's immutable sandbox with the settings, filters and functions that transformers adds.
//!
//! A chat template is a program from a model's repository, written against Python. It must give the same text here, or an
//! error that says what is not supported; other text in silence would be learnt. So values, operators, methods, filters
//! and number formatting are Python's, and what is not reproduced ends in [`Fault::unsupported`].
//!
//! syntax (lexer, parser) -> tree -> run (scopes, statements, expressions) -> value, methods, filters, format.
//! A template may be hostile: steps, bytes and depth are bounded (`limits`), and beyond a bound the rendering ends with
//! an error. Knows no conversations and no tokens.

mod fault;
mod filters;
mod format;
mod json;
mod lexer;
mod limits;
mod methods;
mod parser;
mod run;
mod strings;
mod tests_of_values;
mod tree;
mod value;

pub use fault::{Fault, FaultKind};
use serde_json::{Map, Value as Json};
use std::sync::Arc;

/// A template, compiled.
#[derive(Debug)]
pub struct Template {
    body: Arc<[tree::Stmt]>,
}

/// What `strftime_now` answers.
pub type Clock = jiff::civil::DateTime;

impl Template {
    /// Reads the source; `trim_blocks`, `lstrip_blocks`, loop controls and the `generation` tag are on.
    pub fn compile(source: &str) -> Result<Self, Fault> {
        let tokens = lexer::tokens(source)?;
        Ok(Self { body: parser::parse(tokens)?.into() })
    }

    /// The text that the template writes with these variables at this time.
    pub fn render(&self, variables: &Map<String, Json>, clock: Clock) -> Result<String, Fault> {
        match run::render(&self.body, variables, clock, SHALLOW) {
            // Deep recursion is rare: it gets a stack of its own, and a second try.
            Err(fault) if fault.kind() == FaultKind::Deep => std::thread::scope(|scope| {
                let again = || run::render(&self.body, variables, clock, DEEP);
                let builder = std::thread::Builder::new().name("template".into()).stack_size(DEEP + (1 << 20));
                match builder.spawn_scoped(scope, again) {
                    Ok(thread) => thread.join().unwrap_or(Err(fault)),
                    Err(_) => Err(fault),
                }
            }),
            done => done,
        }
    }
}

/// Bytes of stack that a rendering may use on the thread that asks for it.
const SHALLOW: usize = 512 << 10;
/// Bytes of stack of a rendering that needs more.
const DEEP: usize = 64 << 20;
