//! Parses what follows a value: attributes, subscripts, calls, filters and tests.

use super::cursor::{Parser, SyntaxResult};
use crate::jinja::ast::{ArgumentExprs, Expr, SharedName};
use crate::jinja::error::TemplateError;
use crate::jinja::lexer::TemplateToken;

impl Parser {
    pub(super) fn postfix(&mut self, mut value: Expr) -> SyntaxResult<Expr> {
        loop {
            if self.skip(".") {
                value = match self.next() {
                    TemplateToken::Name(name) => Expr::Attr(Box::new(value), name.into()),
                    TemplateToken::Int(n) => Expr::Item(Box::new(value), Box::new(Expr::Int(n))),
                    _ => {
                        self.at -= 1;
                        return self.unexpected("name or number");
                    }
                };
            } else if self.skip("[") {
                value = self.subscript(value)?;
            } else if self.skip("(") {
                value = Expr::Call(Box::new(value), self.arguments()?);
            } else {
                return Ok(value);
            }
            self.count_link()?;
        }
    }

    pub(super) fn subscript(&mut self, value: Expr) -> SyntaxResult<Expr> {
        let first = if self.is(":") { None } else { Some(self.expression()?) };
        if !self.is(":") {
            let Some(index) = first else { return self.unexpected("an expression") };
            if self.is(",") {
                return Err(TemplateError::unsupported("a subscript of several parts").at_line(self.line()));
            }
            self.expect("]")?;
            return Ok(Expr::Item(Box::new(value), Box::new(index)));
        }
        let mut parts = [first, None, None];
        for part in parts.iter_mut().skip(1) {
            if !self.skip(":") {
                break;
            }
            if !self.is(":") && !self.is("]") {
                *part = Some(self.expression()?);
            }
        }
        self.expect("]")?;
        Ok(Expr::Slice(Box::new(value), Box::new(parts)))
    }

    /// Reads arguments up to the closing bracket.
    pub(super) fn arguments(&mut self) -> SyntaxResult<ArgumentExprs> {
        let mut arguments = ArgumentExprs::default();
        let mut first = true;
        while !self.skip(")") {
            if !first {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            first = false;
            if self.skip("**") {
                arguments.dict_splat = Some(Box::new(self.expression()?));
            } else if self.skip("*") {
                arguments.list_splat = Some(Box::new(self.expression()?));
            } else if matches!(
                (self.peek(), self.peek_second()),
                (TemplateToken::Name(_), TemplateToken::Operator("="))
            ) {
                let name = self.name()?;
                self.expect("=")?;
                let value = self.expression()?;
                if arguments.named.iter().any(|(n, _)| *n == name) {
                    return self.fail(format!("keyword argument repeated: {name}"));
                }
                arguments.named.push((name, value));
            } else {
                if !arguments.named.is_empty() || arguments.list_splat.is_some() || arguments.dict_splat.is_some() {
                    return self.fail("invalid syntax for function call expression");
                }
                arguments.positional.push(self.expression()?);
            }
        }
        Ok(arguments)
    }

    pub(super) fn filters_and_tests(&mut self, mut value: Expr) -> SyntaxResult<Expr> {
        loop {
            if self.is("|") {
                self.at += 1;
                value = self.filter(Some(value))?;
            } else if self.is_name("is") {
                self.at += 1;
                value = self.test(value)?;
            } else if self.skip("(") {
                value = Expr::Call(Box::new(value), self.arguments()?);
            } else {
                return Ok(value);
            }
            self.count_link()?;
        }
    }

    pub(super) fn dotted(&mut self) -> SyntaxResult<SharedName> {
        let mut name = self.name()?.to_string();
        while self.skip(".") {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name.into())
    }

    /// Reads a filter after its `|`.
    pub(super) fn filter(&mut self, subject: Option<Expr>) -> SyntaxResult<Expr> {
        let name = self.dotted()?;
        let arguments = if self.skip("(") { self.arguments()? } else { ArgumentExprs::default() };
        Ok(Expr::Filter(subject.map(Box::new), name, arguments))
    }

    /// Reads filters, each after a `|`, if there are any.
    pub(super) fn filters(&mut self, mut subject: Option<Expr>) -> SyntaxResult<Option<Expr>> {
        while self.skip("|") {
            subject = Some(self.filter(subject)?);
            self.count_link()?;
        }
        Ok(subject)
    }

    /// Reads the filters of a filter block, of which the first has no `|`.
    pub(super) fn filter_chain(&mut self) -> SyntaxResult<Expr> {
        let first = self.filter(None)?;
        match self.filters(Some(first))? {
            Some(chain) => Ok(chain),
            None => self.unexpected("a filter"),
        }
    }

    pub(super) fn test(&mut self, value: Expr) -> SyntaxResult<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let mut arguments = ArgumentExprs::default();
        if self.skip("(") {
            arguments = self.arguments()?;
        } else {
            let takes = match self.peek() {
                TemplateToken::Name(word) if word == "is" => {
                    return self.fail("You cannot chain multiple tests with is");
                }
                TemplateToken::Name(word) => !matches!(word.as_str(), "else" | "or" | "and"),
                TemplateToken::Text(_) | TemplateToken::Int(_) | TemplateToken::BigInt(_) | TemplateToken::Float(_) => {
                    true
                }
                TemplateToken::Operator(o) => matches!(*o, "[" | "{"),
                _ => false,
            };
            if takes {
                let argument = self.nested(Self::primary)?;
                arguments.positional.push(self.postfix(argument)?);
            }
        }
        let test = Expr::Test(Box::new(value), name, arguments);
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }
}
