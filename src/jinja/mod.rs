//! Renders chat templates as Python does: jinja2's immutable sandbox with the settings, filters and functions that
//! transformers adds.
//!
//! A chat template is a program from a model's repository, written against Python. It must give the same text here, or
//! an error that names what is not supported: a model would silently be trained on any other text. So values,
//! operators, methods, filters and number formatting are Python's, and everything that is not reproduced is an error of
//! kind `Unsupported`.
//!
//! The source becomes tokens (lexer) and a tree (parser), which the interpreter runs: scopes, statements, expressions.
//! It calls Python's operators, built-in functions, methods, filters, tests and formatting, a file or folder each. A template may be hostile: the
//! steps, the bytes and the stack depth of one rendering are limited (`limits`), and a rendering that reaches a limit
//! ends with an error. Conversations and tokenizers are elsewhere.

mod arithmetic;
mod ast;
mod attributes;
mod builtins;
mod call_arguments;
mod comparison;
mod error;
mod filter_names;
mod filters;
mod format;
mod interpreter;
mod is_tests;
mod json;
mod lexer;
mod limits;
mod loop_methods;
mod method_names;
mod methods;
mod parser;
mod strings;
mod subscript;
mod value;

pub use error::{TemplateError, TemplateErrorKind};
pub use format::RenderTime;
use serde_json::{Map, Value as Json};
use std::sync::Arc;

/// A compiled template.
#[derive(Debug)]
pub struct JinjaTemplate {
    body: Arc<[ast::Stmt]>,
    /// Whether the use of an undefined value is an error.
    strict: bool,
}

impl JinjaTemplate {
    /// Compiles the source with `trim_blocks`, `lstrip_blocks`, loop controls and the `generation` tag, as transformers
    /// does.
    ///
    /// Errors: a syntax error, or a tag or literal that is not supported.
    pub fn compile(source: &str) -> Result<Self, TemplateError> {
        Ok(Self { body: parser::parse(lexer::tokenize(source, true)?)?.into(), strict: false })
    }

    /// Compiles the source of a text of which every character counts: whitespace around tags and at the end stays, and the use
    /// of a variable that does not exist is an error (`StrictUndefined`), except in `default` and `is defined`.
    ///
    /// Errors: a syntax error, or a tag or literal that is not supported.
    pub fn compile_strict(source: &str) -> Result<Self, TemplateError> {
        Ok(Self { body: parser::parse(lexer::tokenize(source, false)?)?.into(), strict: true })
    }

    /// Renders the template with these variables at this time. Fails where Python would raise, and at a limit.
    pub fn render(&self, variables: &Map<String, Json>, clock: RenderTime) -> Result<String, TemplateError> {
        match self.render_within(variables, clock, DEFAULT_STACK) {
            // Deep recursion is rare, so a large stack is allocated only after the small one was used up.
            Err(fault) if fault.kind() == TemplateErrorKind::StackExhausted => std::thread::scope(|scope| {
                let again = || self.render_within(variables, clock, LARGE_STACK);
                let builder = std::thread::Builder::new().name("template".into()).stack_size(LARGE_STACK + (1 << 20));
                match builder.spawn_scoped(scope, again) {
                    Ok(thread) => thread.join().unwrap_or(Err(fault)),
                    Err(_) => Err(fault),
                }
            }),
            done => done,
        }
    }

    fn render_within(
        &self,
        variables: &Map<String, Json>,
        clock: RenderTime,
        stack: usize,
    ) -> Result<String, TemplateError> {
        interpreter::render(&self.body, variables, clock, stack, self.strict)
    }
}

/// Bytes of stack that a rendering may use on the caller's thread.
const DEFAULT_STACK: usize = 512 << 10;
/// Bytes of stack of the second try, on a thread of its own.
const LARGE_STACK: usize = 64 << 20;
