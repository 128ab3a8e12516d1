//! Parses tokens into the tree, by jinja2's grammar. Recursive descent with limits on depth, because a template may be
//! hostile.

use super::ast::*;
use super::error::TemplateError;
use super::lexer::TemplateToken;
use std::sync::Arc;

/// Levels of nested statements and brackets.
const MAX_NESTING: usize = 120;
/// Operators, filters and subscripts in one tag: each makes the tree one level deeper without a bracket.
const MAX_LINKS: usize = 1000;

/// Tags of jinja2 that a chat template cannot use, as there is no loader of templates, or that no known template uses.
const UNSUPPORTED: [&str; 7] = ["block", "extends", "include", "import", "from", "autoescape", "print"];

type SyntaxResult<T> = Result<T, TemplateError>;

/// Returns the statements of a template.
pub fn parse(tokens: Vec<(usize, TemplateToken)>) -> SyntaxResult<Vec<Stmt>> {
    let mut parser = Parser { tokens, at: 0, depth: 0, links: 0, macros: Vec::new(), loops: 0 };
    parser.statements(&[]).map(|(body, _)| body)
}

struct Parser {
    tokens: Vec<(usize, TemplateToken)>,
    at: usize,
    depth: usize,
    /// Levels counted so far in the current tag.
    links: usize,
    /// For each macro around the current position: whether its body reads `caller`, `varargs`, `kwargs`.
    macros: Vec<[bool; 3]>,
    /// Loops around the current position, inside the same macro.
    loops: usize,
}

impl Parser {
    fn peek(&self) -> &TemplateToken {
        &self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn peek_second(&self) -> &TemplateToken {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].1
    }

    fn line(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn next(&mut self) -> TemplateToken {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn fail<T>(&self, message: impl Into<String>) -> SyntaxResult<T> {
        Err(TemplateError::syntax(self.line(), message))
    }

    fn unexpected<T>(&self, expected: &str) -> SyntaxResult<T> {
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

    fn is(&self, operator: &str) -> bool {
        matches!(self.peek(), TemplateToken::Operator(o) if *o == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), TemplateToken::Name(n) if n == name)
    }

    fn skip(&mut self, operator: &str) -> bool {
        let there = self.is(operator);
        self.at += usize::from(there);
        there
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let there = self.is_name(name);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, operator: &str) -> SyntaxResult<()> {
        if self.skip(operator) { Ok(()) } else { self.unexpected(&format!("'{operator}'")) }
    }

    fn expect_block_end(&mut self) -> SyntaxResult<()> {
        if *self.peek() == TemplateToken::BlockEnd {
            self.at += 1;
            return Ok(());
        }
        self.unexpected("the end of the statement")
    }

    fn name(&mut self) -> SyntaxResult<SharedName> {
        match self.peek().clone() {
            TemplateToken::Name(name) => {
                self.at += 1;
                Ok(name.into())
            }
            _ => self.unexpected("a name"),
        }
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> SyntaxResult<T>) -> SyntaxResult<T> {
        if self.depth >= MAX_NESTING {
            return self.fail(format!("nested more than {MAX_NESTING} deep"));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Reads statements up to one of the tags in `ends`, skips the name of that tag and returns it. No `ends`: reads to
    /// the end of the template.
    fn statements(&mut self, ends: &[&str]) -> SyntaxResult<(Vec<Stmt>, String)> {
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
    fn statement(&mut self, word: &str) -> SyntaxResult<StmtKind> {
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
    fn block(&mut self, ends: &[&str]) -> SyntaxResult<(Vec<Stmt>, String)> {
        self.expect_block_end()?;
        self.statements(ends)
    }

    fn if_statement(&mut self) -> SyntaxResult<StmtKind> {
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

    fn for_statement(&mut self) -> SyntaxResult<StmtKind> {
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

    fn set_statement(&mut self) -> SyntaxResult<StmtKind> {
        let target = self.target(true, false)?;
        if self.skip("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filter = if self.is("|") { self.filters(None)? } else { None };
        Ok(StmtKind::SetBlock(target, filter, self.block(&["endset"])?.0))
    }

    fn macro_body(
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
    fn signature(&mut self) -> SyntaxResult<Vec<(SharedName, Option<Expr>)>> {
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
    fn target(&mut self, namespace: bool, until_in: bool) -> SyntaxResult<AssignTarget> {
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

    fn expression(&mut self) -> SyntaxResult<Expr> {
        self.nested(Self::conditional)
    }

    fn conditional(&mut self) -> SyntaxResult<Expr> {
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
    fn count_link(&mut self) -> SyntaxResult<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return self.fail(format!("an expression of more than {MAX_LINKS} parts"));
        }
        Ok(())
    }

    fn or(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.count_link()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.count_link()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> SyntaxResult<Expr> {
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

    fn compare(&mut self) -> SyntaxResult<Expr> {
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

    fn sum(&mut self) -> SyntaxResult<Expr> {
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

    fn concat(&mut self) -> SyntaxResult<Expr> {
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

    fn product(&mut self) -> SyntaxResult<Expr> {
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

    fn power(&mut self) -> SyntaxResult<Expr> {
        let mut left = self.unary(true)?;
        while self.skip("**") {
            self.count_link()?;
            left = Expr::Binary(BinaryOperator::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    /// Reads an operand with its signs, subscripts and calls, and with its filters and tests if `filters` is set.
    fn unary(&mut self, filters: bool) -> SyntaxResult<Expr> {
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

    fn primary(&mut self) -> SyntaxResult<Expr> {
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
    fn tuple(&mut self, conditional: bool, ends: &[&str]) -> SyntaxResult<Expr> {
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

    fn postfix(&mut self, mut value: Expr) -> SyntaxResult<Expr> {
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

    fn subscript(&mut self, value: Expr) -> SyntaxResult<Expr> {
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
    fn arguments(&mut self) -> SyntaxResult<ArgumentExprs> {
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

    fn filters_and_tests(&mut self, mut value: Expr) -> SyntaxResult<Expr> {
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

    fn dotted(&mut self) -> SyntaxResult<SharedName> {
        let mut name = self.name()?.to_string();
        while self.skip(".") {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name.into())
    }

    /// Reads a filter after its `|`.
    fn filter(&mut self, subject: Option<Expr>) -> SyntaxResult<Expr> {
        let name = self.dotted()?;
        let arguments = if self.skip("(") { self.arguments()? } else { ArgumentExprs::default() };
        Ok(Expr::Filter(subject.map(Box::new), name, arguments))
    }

    /// Reads filters, each after a `|`, if there are any.
    fn filters(&mut self, mut subject: Option<Expr>) -> SyntaxResult<Option<Expr>> {
        while self.skip("|") {
            subject = Some(self.filter(subject)?);
            self.count_link()?;
        }
        Ok(subject)
    }

    /// Reads the filters of a filter block, of which the first has no `|`.
    fn filter_chain(&mut self) -> SyntaxResult<Expr> {
        let first = self.filter(None)?;
        match self.filters(Some(first))? {
            Some(chain) => Ok(chain),
            None => self.unexpected("a filter"),
        }
    }

    fn test(&mut self, value: Expr) -> SyntaxResult<Expr> {
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
