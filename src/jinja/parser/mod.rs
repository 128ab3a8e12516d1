//! Parses tokens into the tree, by jinja2's grammar. Recursive descent with limits on depth, because a template may be
//! hostile.

mod cursor;
mod expressions;
mod postfix;
mod statements;

use super::ast::Stmt;
use super::lexer::TemplateToken;
use cursor::{Parser, SyntaxResult};

/// Returns the statements of a template.
pub fn parse(tokens: Vec<(usize, TemplateToken)>) -> SyntaxResult<Vec<Stmt>> {
    let mut parser = Parser { tokens, at: 0, depth: 0, links: 0, macros: Vec::new(), loops: 0 };
    parser.statements(&[]).map(|(body, _)| body)
}
