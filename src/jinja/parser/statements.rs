//! Parses statements: tags and the text between them.

use super::cursor::{Parser, SyntaxResult, UNSUPPORTED};
use crate::jinja::ast::{AssignTarget, Expr, ForLoop, MacroDefinition, SharedName, Stmt, StmtKind};
use crate::jinja::error::TemplateError;
use crate::jinja::lexer::TemplateToken;
use std::sync::Arc;

impl Parser {
    /// Reads statements up to one of the tags in `ends`, skips the name of that tag and returns it. No `ends`: reads to
    /// the end of the template.
    pub(super) fn statements(&mut self, ends: &[&str]) -> SyntaxResult<(Vec<Stmt>, String)> {
        let begun = self.line();
        let mut body = Vec::new();
        loop {
            let line = self.line();
            self.links = 0;
            match self.next() {
                TemplateToken::End if ends.is_empty() => return Ok((body, String::new())),
                TemplateToken::End => {
                    self.at -= 1;
                    let expected = ends.last().copied().unwrap_or_default();
                    return self
                        .fail(format!("unexpected end of template: the block of line {begun} has no '{expected}'"));
                }
                TemplateToken::Data(text) => body.push(Stmt { line, kind: StmtKind::Text(text) }),
                TemplateToken::VariableBegin => {
                    let value = self.tuple(true, &[])?;
                    if *self.peek() != TemplateToken::VariableEnd {
                        return self.unexpected("the end of the print statement");
                    }
                    self.at += 1;
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                }
                TemplateToken::BlockBegin => {
                    let word = match self.peek() {
                        TemplateToken::Name(word) => word.clone(),
                        _ => return self.fail("tag name expected"),
                    };
                    self.at += 1;
                    if ends.contains(&word.as_str()) {
                        return Ok((body, word));
                    }
                    let kind = self.nested(|p| p.statement(&word))?;
                    self.expect_block_end()?;
                    body.push(Stmt { line, kind });
                }
                _ => {
                    self.at -= 1;
                    return self.unexpected("text or a tag");
                }
            }
        }
    }

    /// Reads a statement after its first word, up to but not including the end of its last tag.
    pub(super) fn statement(&mut self, word: &str) -> SyntaxResult<StmtKind> {
        match word {
            "if" => self.if_statement(),
            "for" => self.for_statement(),
            "set" => self.set_statement(),
            "with" => {
                let mut values = Vec::new();
                while *self.peek() != TemplateToken::BlockEnd {
                    if !values.is_empty() {
                        self.expect(",")?;
                    }
                    let target = self.target(false, false)?;
                    self.expect("=")?;
                    values.push((target, self.expression()?));
                }
                Ok(StmtKind::With(values, self.block(&["endwith"])?.0))
            }
            "macro" => {
                let name = self.name()?;
                self.expect("(")?;
                let parameters = self.signature()?;
                Ok(StmtKind::Macro(self.macro_body(name, parameters, "endmacro")?))
            }
            "call" => {
                let parameters = if self.skip("(") { self.signature()? } else { Vec::new() };
                let line = self.line();
                let call = self.expression()?;
                if !matches!(call, Expr::Call(..)) {
                    return Err(TemplateError::syntax(line, "expected call"));
                }
                Ok(StmtKind::CallBlock(call, self.macro_body("caller".into(), parameters, "endcall")?))
            }
            "filter" => {
                let filter = self.filter_chain()?;
                Ok(StmtKind::FilterBlock(filter, self.block(&["endfilter"])?.0))
            }
            "generation" => {
                let loops = std::mem::take(&mut self.loops);
                let body = self.block(&["endgeneration"])?.0;
                self.loops = loops;
                Ok(StmtKind::Generation(body))
            }
            "break" | "continue" if self.loops == 0 => self.fail(format!("'{word}' outside loop")),
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            word if UNSUPPORTED.contains(&word) => {
                Err(TemplateError::unsupported(format!("the tag '{word}'")).at_line(self.line()))
            }
            word => self.fail(format!("unknown tag '{word}'")),
        }
    }

    /// Reads the end of a tag, then statements up to one of `ends`.
    pub(super) fn block(&mut self, ends: &[&str]) -> SyntaxResult<(Vec<Stmt>, String)> {
        self.expect_block_end()?;
        self.statements(ends)
    }

    pub(super) fn if_statement(&mut self) -> SyntaxResult<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match end.as_str() {
                "elif" => {}
                "else" => return Ok(StmtKind::If { branches, otherwise: self.block(&["endif"])?.0 }),
                _ => return Ok(StmtKind::If { branches, otherwise: Vec::new() }),
            }
        }
    }

    pub(super) fn for_statement(&mut self) -> SyntaxResult<StmtKind> {
        let target = self.target(false, true)?;
        if !self.skip_name("in") {
            return self.unexpected("'in'");
        }
        let over = self.tuple(false, &["recursive"])?;
        let test = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let (body, end) = self.block(&["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if end == "else" { self.block(&["endfor"])?.0 } else { Vec::new() };
        Ok(StmtKind::For(Arc::new(ForLoop { target, over, test, recursive, body, otherwise })))
    }

    pub(super) fn set_statement(&mut self) -> SyntaxResult<StmtKind> {
        let target = self.target(true, false)?;
        if self.skip("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filter = if self.is("|") { self.filters(None)? } else { None };
        Ok(StmtKind::SetBlock(target, filter, self.block(&["endset"])?.0))
    }

    pub(super) fn macro_body(
        &mut self,
        name: SharedName,
        parameters: Vec<(SharedName, Option<Expr>)>,
        end: &str,
    ) -> SyntaxResult<Arc<MacroDefinition>> {
        let loops = std::mem::take(&mut self.loops);
        self.macros.push([false; 3]);
        let body = self.block(&[end])?.0;
        self.loops = loops;
        let [caller, varargs, kwargs] = self.macros.pop().unwrap_or_default();
        let free = |asked: bool, name: &str| asked && !parameters.iter().any(|(p, _)| **p == *name);
        let (caller, varargs, kwargs) = (free(caller, "caller"), free(varargs, "varargs"), free(kwargs, "kwargs"));
        Ok(Arc::new(MacroDefinition {
            name,
            parameters,
            body,
            uses_caller: caller,
            uses_varargs: varargs,
            uses_kwargs: kwargs,
        }))
    }

    /// Reads the parameters of a macro up to the closing bracket, each with its default.
    pub(super) fn signature(&mut self) -> SyntaxResult<Vec<(SharedName, Option<Expr>)>> {
        let mut parameters: Vec<(SharedName, Option<Expr>)> = Vec::new();
        while !self.skip(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            let name = self.name()?;
            let default = if self.skip("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.iter().any(|(_, d)| d.is_some()) {
                return self.fail("non-default argument follows default argument");
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    /// Reads the target of an assignment. `namespace` allows `name.attribute`; `until_in` ends the target at `in`.
    pub(super) fn target(&mut self, namespace: bool, until_in: bool) -> SyntaxResult<AssignTarget> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            let ends = self.is("=")
                || self.is(")")
                || *self.peek() == TemplateToken::BlockEnd
                || until_in && self.is_name("in");
            if ends && !targets.is_empty() {
                break;
            }
            if self.skip("(") {
                let inner = self.nested(|p| p.target(false, false))?;
                self.expect(")")?;
                targets.push(inner);
            } else {
                let line = self.line();
                let name = self.name()?;
                if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
                    return Err(TemplateError::syntax(line, format!("can't assign to '{name}'")));
                }
                targets.push(match namespace && self.skip(".") {
                    true => AssignTarget::Attribute(name, self.name()?),
                    false => AssignTarget::Name(name),
                });
            }
            if !self.skip(",") {
                break;
            }
            tuple = true;
        }
        Ok(match targets.pop() {
            Some(one) if !tuple => one,
            last => AssignTarget::Tuple(targets.into_iter().chain(last).collect()),
        })
    }
}
