//! Runs statements.

use super::state::{Interpreter, LOOP, StatementFlow};
use crate::jinja::ast::{AssignTarget, Expr, ForLoop, Stmt, StmtKind};
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::value::{DictKey, LoopState, MacroValue, PyValue, VariableScope};
use crate::jinja::{limits, value};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

impl Interpreter {
    pub(super) fn run_statements(
        &mut self,
        body: &[Stmt],
        scope: &Rc<VariableScope>,
        out: &mut String,
    ) -> TemplateResult<StatementFlow> {
        for statement in body {
            self.line = statement.line;
            let flow = self.run_statement(statement, scope, out).map_err(|fault| fault.at_line(self.line))?;
            if flow != StatementFlow::Next {
                return Ok(flow);
            }
        }
        Ok(StatementFlow::Next)
    }

    pub(super) fn run_statement(
        &mut self,
        statement: &Stmt,
        scope: &Rc<VariableScope>,
        out: &mut String,
    ) -> TemplateResult<StatementFlow> {
        limits::spend_steps(1)?;
        limits::check_depth()?;
        match &statement.kind {
            StmtKind::Text(text) => self.write(text, out)?,
            StmtKind::Print(expr) => {
                let value = self.evaluate_used(expr, scope)?;
                match value.as_str() {
                    Some(text) => self.write(text, out)?,
                    None => self.write(&value.py_str()?, out)?,
                }
            }
            StmtKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.evaluate_used(test, scope)?.is_truthy() {
                        return self.run_statements(body, scope, out);
                    }
                }
                return self.run_statements(otherwise, scope, out);
            }
            StmtKind::For(each) => {
                let over = self.evaluate_used(&each.over, scope)?;
                return self.run_loop(each, over, scope, 0, out);
            }
            StmtKind::Set(target, expr) => {
                let value = self.evaluate(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let text = self.capture_block(body, scope)?;
                let value = match filter {
                    Some(filter) => self.apply_filter_chain(filter, text, scope)?,
                    None => text,
                };
                self.assign(target, value, scope)?;
            }
            StmtKind::With(values, body) => {
                let inner = VariableScope::new(Some(scope));
                for (target, expr) in values {
                    let value = self.evaluate(expr, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.run_statements(body, &inner, out);
            }
            StmtKind::Macro(definition) => {
                limits::spend_steps(10)?;
                let made = MacroValue { definition: definition.clone(), scope: scope.clone() };
                scope.set(&definition.name, PyValue::Macro(Rc::new(made)));
                self.macro_scopes.push(scope.clone());
            }
            StmtKind::CallBlock(call, definition) => {
                limits::spend_steps(10)?;
                self.macro_scopes.push(scope.clone());
                let caller = Rc::new(MacroValue { definition: definition.clone(), scope: scope.clone() });
                let Expr::Call(callee, arguments) = call else { return Err(TemplateError::python("expected call")) };
                let callee = self.evaluate(callee, scope)?;
                let mut args = self.arguments(arguments, scope)?;
                args.named.push(("caller".into(), PyValue::Macro(caller)));
                let text = self.call(&callee, args)?.py_str()?;
                self.write(&text, out)?;
            }
            StmtKind::FilterBlock(filter, body) => {
                let text = self.capture_block(body, scope)?;
                let text = self.apply_filter_chain(filter, text, scope)?.py_str()?;
                self.write(&text, out)?;
            }
            StmtKind::Generation(body) => {
                let inner = VariableScope::new(Some(scope));
                self.run_statements(body, &inner, out)?;
            }
            StmtKind::Break => return Ok(StatementFlow::Break),
            StmtKind::Continue => return Ok(StatementFlow::Continue),
        }
        Ok(StatementFlow::Next)
    }

    /// Returns the text that a block writes, as a value.
    pub(super) fn capture_block(&mut self, body: &[Stmt], scope: &Rc<VariableScope>) -> TemplateResult<PyValue> {
        let inner = VariableScope::new(Some(scope));
        let mut text = String::new();
        match self.run_statements(body, &inner, &mut text)? {
            StatementFlow::Next => PyValue::text(text),
            _ => Err(TemplateError::unsupported("a break or continue out of a block whose text is kept")),
        }
    }

    /// Runs a loop over the items of `over`. Returns how its `else` block ended: a `break` there belongs to the loop
    /// around this one. `depth` is the level of a recursive loop.
    pub(super) fn run_loop(
        &mut self,
        each: &Arc<ForLoop>,
        over: PyValue,
        scope: &Rc<VariableScope>,
        depth: usize,
        out: &mut String,
    ) -> TemplateResult<StatementFlow> {
        limits::check_depth()?;
        let mut items = over.items()?;
        if let Some(test) = &each.test {
            let mut kept = Vec::new();
            for item in items {
                let inner = VariableScope::new(Some(scope));
                self.assign(&each.target, item.clone(), &inner)?;
                if self.evaluate(test, &inner)?.is_truthy() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        let again = each.recursive.then(|| (each.clone(), scope.clone()));
        let nesting = limits::check_nesting(value::container_depth(items.iter()))?;
        let looping = Rc::new(LoopState {
            items,
            at: Cell::new(0),
            depth,
            changed: RefCell::default(),
            recursion: again,
            nesting,
        });
        for at in 0..looping.items.len() {
            limits::spend_steps(1)?;
            looping.at.set(at);
            let inner = VariableScope::new(Some(scope));
            self.assign(&each.target, looping.items[at].clone(), &inner)?;
            inner.set(&LOOP, PyValue::Loop(looping.clone()));
            if self.run_statements(&each.body, &inner, out)? == StatementFlow::Break {
                break;
            }
        }
        if looping.items.is_empty() {
            let inner = VariableScope::new(Some(scope));
            return self.run_statements(&each.otherwise, &inner, out);
        }
        Ok(StatementFlow::Next)
    }

    pub(super) fn assign(
        &mut self,
        target: &AssignTarget,
        value: PyValue,
        scope: &Rc<VariableScope>,
    ) -> TemplateResult<()> {
        match target {
            AssignTarget::Name(name) => scope.set(name, value),
            AssignTarget::Tuple(targets) => {
                let items = value.check_defined()?.items()?;
                if items.len() != targets.len() {
                    let words = if items.len() < targets.len() { "not enough" } else { "too many" };
                    return Err(TemplateError::python(format!(
                        "{words} values to unpack (expected {})",
                        targets.len()
                    )));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
            AssignTarget::Attribute(name, attribute) => match self.lookup(name, scope) {
                PyValue::Namespace(dict) => {
                    let key = DictKey::of(PyValue::text(&**attribute)?)?;
                    dict.borrow_mut().insert(key, value);
                }
                _ => return Err(TemplateError::python("cannot assign attribute on non-namespace object")),
            },
        }
        Ok(())
    }
}
