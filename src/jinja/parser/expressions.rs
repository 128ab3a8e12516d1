//! Parses expressions, from the weakest operator to the strongest.

use super::cursor::{MAX_LINKS, Parser, SyntaxResult};
use crate::jinja::ast::{BinaryOperator, CompareOperator, Expr};
use crate::jinja::lexer::TemplateToken;

impl Parser {
    pub(super) fn expression(&mut self) -> SyntaxResult<Expr> {
        self.nested(Self::conditional)
    }

    pub(super) fn conditional(&mut self) -> SyntaxResult<Expr> {
        let mut value = self.or()?;
        while self.skip_name("if") {
            self.count_link()?;
            let test = Box::new(self.or()?);
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            value = Expr::If { test, then: Box::new(value), otherwise };
        }
        Ok(value)
    }

    /// Counts one level that the tree becomes deeper without a bracket; fails beyond the limit.
    pub(super) fn count_link(&mut self) -> SyntaxResult<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return self.fail(format!("an expression of more than {MAX_LINKS} parts"));
        }
        Ok(())
    }

    pub(super) fn or(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.count_link()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    pub(super) fn and(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.count_link()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    pub(super) fn not(&mut self) -> SyntaxResult<Expr> {
        let mut count = 0;
        while self.skip_name("not") {
            self.count_link()?;
            count += 1;
        }
        let mut value = self.compare()?;
        for _ in 0..count {
            value = Expr::Not(Box::new(value));
        }
        Ok(value)
    }

    pub(super) fn compare(&mut self) -> SyntaxResult<Expr> {
        let left = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let operator = match self.peek() {
                TemplateToken::Operator("==") => CompareOperator::Eq,
                TemplateToken::Operator("!=") => CompareOperator::Ne,
                TemplateToken::Operator("<") => CompareOperator::Lt,
                TemplateToken::Operator("<=") => CompareOperator::Le,
                TemplateToken::Operator(">") => CompareOperator::Gt,
                TemplateToken::Operator(">=") => CompareOperator::Ge,
                TemplateToken::Name(word) if word == "in" => CompareOperator::In,
                TemplateToken::Name(word)
                    if word == "not" && matches!(self.peek_second(), TemplateToken::Name(w) if w == "in") =>
                {
                    self.at += 1;
                    CompareOperator::NotIn
                }
                _ => break,
            };
            self.at += 1;
            rest.push((operator, self.sum()?));
        }
        Ok(if rest.is_empty() { left } else { Expr::Compare(Box::new(left), rest) })
    }

    pub(super) fn sum(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.concat()?;
        loop {
            let operator = match self.peek() {
                TemplateToken::Operator("+") => BinaryOperator::Add,
                TemplateToken::Operator("-") => BinaryOperator::Sub,
                _ => return Ok(left),
            };
            self.at += 1;
            self.count_link()?;
            left = Expr::Binary(operator, Box::new(left), Box::new(self.concat()?));
        }
    }

    pub(super) fn concat(&mut self) -> SyntaxResult<Expr> {
        let first = self.product()?;
        if !self.is("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    pub(super) fn product(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.power()?;
        loop {
            let operator = match self.peek() {
                TemplateToken::Operator("*") => BinaryOperator::Mul,
                TemplateToken::Operator("/") => BinaryOperator::Div,
                TemplateToken::Operator("//") => BinaryOperator::FloorDiv,
                TemplateToken::Operator("%") => BinaryOperator::Mod,
                _ => return Ok(left),
            };
            self.at += 1;
            self.count_link()?;
            left = Expr::Binary(operator, Box::new(left), Box::new(self.power()?));
        }
    }

    pub(super) fn power(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.unary(true)?;
        while self.skip("**") {
            self.count_link()?;
            left = Expr::Binary(BinaryOperator::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    /// Reads an operand with its signs, subscripts and calls, and with its filters and tests if `filters` is set.
    pub(super) fn unary(&mut self, filters: bool) -> SyntaxResult<Expr> {
        let value = if self.skip("-") {
            Expr::Negative(Box::new(self.nested(|p| p.unary(false))?))
        } else if self.skip("+") {
            Expr::Positive(Box::new(self.nested(|p| p.unary(false))?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if filters { self.filters_and_tests(value) } else { Ok(value) }
    }

    pub(super) fn primary(&mut self) -> SyntaxResult<Expr> {
        Ok(match self.peek().clone() {
            TemplateToken::Name(name) => {
                self.at += 1;
                match name.as_str() {
                    "true" | "True" => Expr::Bool(true),
                    "false" | "False" => Expr::Bool(false),
                    "none" | "None" => Expr::None,
                    _ => {
                        for asked in &mut self.macros {
                            for (asked, special) in asked.iter_mut().zip(["caller", "varargs", "kwargs"]) {
                                *asked |= name == special;
                            }
                        }
                        Expr::Name(name.into())
                    }
                }
            }
            TemplateToken::Text(mut text) => {
                self.at += 1;
                while let TemplateToken::Text(more) = self.peek().clone() {
                    text.push_str(&more);
                    self.at += 1;
                }
                Expr::Text(text.into())
            }
            TemplateToken::Int(n) => {
                self.at += 1;
                Expr::Int(n)
            }
            TemplateToken::BigInt(digits) => {
                self.at += 1;
                Expr::BigInt(digits.into())
            }
            TemplateToken::Float(x) => {
                self.at += 1;
                Expr::Float(x)
            }
            TemplateToken::Operator("(") => {
                self.at += 1;
                let inner =
                    self.nested(|p| if p.is(")") { Ok(Expr::Tuple(Vec::new())) } else { p.tuple(true, &[]) })?;
                self.expect(")")?;
                inner
            }
            TemplateToken::Operator("[") => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.skip("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    if self.skip("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                Expr::List(items)
            }
            TemplateToken::Operator("{") => {
                self.at += 1;
                let mut pairs = Vec::new();
                while !self.skip("}") {
                    if !pairs.is_empty() {
                        self.expect(",")?;
                    }
                    if self.skip("}") {
                        break;
                    }
                    let key = self.expression()?;
                    self.expect(":")?;
                    pairs.push((key, self.expression()?));
                }
                Expr::Dict(pairs)
            }
            _ => return self.unexpected("an expression"),
        })
    }

    /// Reads one expression, or several between commas as a tuple, up to a name in `ends`. Without `conditional`, an
    /// `if` ends the expression.
    pub(super) fn tuple(&mut self, conditional: bool, ends: &[&str]) -> SyntaxResult<Expr> {
        let (mut items, mut tuple) = (Vec::new(), false);
        loop {
            let ended = matches!(
                self.peek(),
                TemplateToken::VariableEnd | TemplateToken::BlockEnd | TemplateToken::Operator(")")
            ) || ends.iter().any(|end| self.is_name(end));
            if ended {
                break;
            }
            items.push(if conditional { self.expression()? } else { self.nested(Self::or)? });
            if !self.skip(",") {
                break;
            }
            tuple = true;
        }
        if tuple {
            return Ok(Expr::Tuple(items));
        }
        match items.pop() {
            Some(one) => Ok(one),
            None => self.unexpected("an expression"),
        }
    }
}
