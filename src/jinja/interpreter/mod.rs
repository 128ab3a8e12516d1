//! Runs the tree of a template: scopes, statements, expressions, calls, and the global functions.

mod calls;
mod expressions;
mod state;
mod statements;

use super::ast::Stmt;
use super::error::TemplateResult;
use super::format::RenderTime;
use super::limits;
use super::value::{PyValue, VariableScope};
use serde_json::{Map, Value as Json};
pub use state::Interpreter;

/// Returns the text that `body` writes, using at most `stack` bytes of this thread's stack. With `strict`, the use of an
/// undefined value is an error.
pub fn render(
    body: &[Stmt],
    variables: &Map<String, Json>,
    clock: RenderTime,
    stack: usize,
    strict: bool,
) -> TemplateResult<String> {
    limits::start_rendering(stack);
    let context = variables.iter().map(|(name, value)| (name.clone(), PyValue::from_json(value))).collect();
    let mut run = Interpreter { context, clock, strict, line: 0, macro_scopes: Vec::new(), namespaces: Vec::new() };
    let root = VariableScope::new(None);
    let mut out = String::new();
    let done = run.run_statements(body, &root, &mut out);
    // A macro refers to its scope and the scope to its macros, and namespaces may refer to each other. Such cycles
    // would never be freed, and a long chain would overflow the stack when dropped. So they are emptied one by one
    // here, while this list still refers to all of them.
    run.macro_scopes.iter().for_each(|scope| drop(scope.variables.take()));
    run.namespaces.iter().for_each(|namespace| drop(namespace.take()));
    done.map(|_| out)
}
