//! The parser's position in the tokens, and its limits on depth.

use crate::jinja::ast::SharedName;
use crate::jinja::error::TemplateError;
use crate::jinja::lexer::TemplateToken;

/// Levels of nested statements and brackets.
pub(super) const MAX_NESTING: usize = 120;
/// Operators, filters and subscripts in one tag: each makes the tree one level deeper without a bracket.
pub(super) const MAX_LINKS: usize = 1000;

/// Tags of jinja2 that a chat template cannot use, as there is no loader of templates, or that no known template uses.
pub(super) const UNSUPPORTED: [&str; 7] = ["block", "extends", "include", "import", "from", "autoescape", "print"];

pub(super) type SyntaxResult<T> = Result<T, TemplateError>;

pub(super) struct Parser {
    pub tokens: Vec<(usize, TemplateToken)>,
    pub at: usize,
    pub depth: usize,
    /// Levels counted so far in the current tag.
    pub links: usize,
    /// For each macro around the current position: whether its body reads `caller`, `varargs`, `kwargs`.
    pub macros: Vec<[bool; 3]>,
    /// Loops around the current position, inside the same macro.
    pub loops: usize,
}

impl Parser {
    pub(super) fn peek(&self) -> &TemplateToken {
        &self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    pub(super) fn peek_second(&self) -> &TemplateToken {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].1
    }

    pub(super) fn line(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    pub(super) fn next(&mut self) -> TemplateToken {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> SyntaxResult<T> {
        Err(TemplateError::syntax(self.line(), message))
    }

    pub(super) fn unexpected<T>(&self, expected: &str) -> SyntaxResult<T> {
        let found = match self.peek() {
            TemplateToken::End => "the end of the template".to_string(),
            TemplateToken::BlockEnd | TemplateToken::VariableEnd => "the end of the tag".to_string(),
            TemplateToken::Name(name) => format!("'{name}'"),
            TemplateToken::Operator(operator) => format!("'{operator}'"),
            TemplateToken::Text(text) => format!("{text:?}"),
            TemplateToken::Int(n) => n.to_string(),
            TemplateToken::BigInt(n) => n.clone(),
            TemplateToken::Float(x) => x.to_string(),
            TemplateToken::Data(_) | TemplateToken::BlockBegin | TemplateToken::VariableBegin => "text".to_string(),
        };
        self.fail(format!("expected {expected}, found {found}"))
    }

    pub(super) fn is(&self, operator: &str) -> bool {
        matches!(self.peek(), TemplateToken::Operator(o) if *o == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), TemplateToken::Name(n) if n == name)
    }

    pub(super) fn skip(&mut self, operator: &str) -> bool {
        let there = self.is(operator);
        self.at += usize::from(there);
        there
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let there = self.is_name(name);
        self.at += usize::from(there);
        there
    }

    pub(super) fn expect(&mut self, operator: &str) -> SyntaxResult<()> {
        if self.skip(operator) { Ok(()) } else { self.unexpected(&format!("'{operator}'")) }
    }

    pub(super) fn expect_block_end(&mut self) -> SyntaxResult<()> {
        if *self.peek() == TemplateToken::BlockEnd {
            self.at += 1;
            return Ok(());
        }
        self.unexpected("the end of the statement")
    }

    pub(super) fn name(&mut self) -> SyntaxResult<SharedName> {
        match self.peek().clone() {
            TemplateToken::Name(name) => {
                self.at += 1;
                Ok(name.into())
            }
            _ => self.unexpected("a name"),
        }
    }

    pub(super) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> SyntaxResult<T>) -> SyntaxResult<T> {
        if self.depth >= MAX_NESTING {
            return self.fail(format!("nested more than {MAX_NESTING} deep"));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }
}
