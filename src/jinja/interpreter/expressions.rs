//! Evaluates expressions.

use super::state::Interpreter;
use crate::jinja::arithmetic::{apply_binary, negative, positive};
use crate::jinja::ast::{ArgumentExprs, Expr};
use crate::jinja::attributes::{attribute_or_item, item_or_attribute};
use crate::jinja::call_arguments::CallArguments;
use crate::jinja::comparison::compare;
use crate::jinja::error::{TemplateError, TemplateResult};
use crate::jinja::subscript::slice;
use crate::jinja::value::{DictKey, PyDict, PyValue, VariableScope};
use crate::jinja::{filters, is_tests, limits};
use std::rc::Rc;

/// Filters that say what an undefined value becomes.
const OF_UNDEFINED: [&str; 2] = ["default", "d"];

impl Interpreter {
    /// Evaluates an expression whose value is printed, compared, tested or iterated over. Fails for an undefined value if the
    /// template is strict.
    pub(super) fn evaluate_used(&mut self, expr: &Expr, scope: &Rc<VariableScope>) -> TemplateResult<PyValue> {
        match self.evaluate(expr, scope)? {
            PyValue::Undefined(message) if self.strict => Err(TemplateError::python(&*message)),
            value => Ok(value),
        }
    }

    /// Evaluates an expression.
    pub(super) fn evaluate(&mut self, expr: &Expr, scope: &Rc<VariableScope>) -> TemplateResult<PyValue> {
        limits::spend_steps(1)?;
        limits::check_depth()?;
        Ok(match expr {
            Expr::Text(text) => PyValue::text(&**text)?,
            Expr::Int(n) => PyValue::Int(*n),
            Expr::BigInt(digits) => PyValue::BigNumber((**digits).into()),
            Expr::Float(x) => PyValue::Float(*x),
            Expr::Bool(b) => PyValue::Bool(*b),
            Expr::None => PyValue::None,
            Expr::Name(name) => match &**name {
                "lipsum" | "self" | "super" if scope.get(name).is_none() && !self.context.contains_key(&**name) => {
                    return Err(TemplateError::unsupported(format!("'{name}'")));
                }
                name => self.lookup(name, scope),
            },
            Expr::List(items) => PyValue::list(self.evaluate_all(items, scope)?)?,
            Expr::Tuple(items) => PyValue::tuple(self.evaluate_all(items, scope)?)?,
            Expr::Dict(pairs) => {
                let mut dict = PyDict::new();
                for (key, value) in pairs {
                    let key = DictKey::of(self.evaluate(key, scope)?)?;
                    dict.insert(key, self.evaluate(value, scope)?);
                }
                PyValue::dict(dict)?
            }
            Expr::Attr(of, name) => {
                let of = self.evaluate(of, scope)?;
                attribute_or_item(&of, name)?
            }
            Expr::Item(of, index) => {
                let of = self.evaluate(of, scope)?;
                let index = self.evaluate(index, scope)?;
                item_or_attribute(&of, &index)?
            }
            Expr::Slice(of, parts) => {
                let of = self.evaluate(of, scope)?;
                let [a, b, c] = &**parts;
                let mut part = |e: &Option<Expr>| e.as_ref().map(|e| self.evaluate(e, scope)).transpose();
                slice(&of, [part(a)?, part(b)?, part(c)?])?
            }
            Expr::Call(callee, arguments) => {
                let callee = self.evaluate(callee, scope)?;
                let args = self.arguments(arguments, scope)?;
                self.call(&callee, args)?
            }
            Expr::Filter(subject, name, arguments) => {
                let subject = match subject {
                    Some(subject) if OF_UNDEFINED.contains(&&**name) => self.evaluate(subject, scope)?,
                    Some(subject) => self.evaluate_used(subject, scope)?,
                    None => return Err(TemplateError::python("a filter without a subject")),
                };
                let args = self.arguments(arguments, scope)?;
                filters::apply(name, subject, args)?
            }
            Expr::Test(subject, name, arguments) => {
                let subject = self.evaluate(subject, scope)?;
                let args = self.arguments(arguments, scope)?;
                PyValue::Bool(is_tests::test_holds(name, &subject, args)?)
            }
            Expr::Negative(of) => negative(&self.evaluate(of, scope)?)?,
            Expr::Positive(of) => positive(&self.evaluate(of, scope)?)?,
            Expr::Not(of) => PyValue::Bool(!self.evaluate_used(of, scope)?.is_truthy()),
            Expr::Binary(operator, a, b) => {
                let a = self.evaluate(a, scope)?;
                let b = self.evaluate(b, scope)?;
                apply_binary(*operator, &a, &b)?
            }
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let value = self.evaluate_used(part, scope)?;
                    match value.as_str() {
                        Some(part) => self.write(part, &mut text)?,
                        None => self.write(&value.py_str()?, &mut text)?,
                    }
                }
                PyValue::text(text)?
            }
            Expr::Compare(first, rest) => {
                let mut left = self.evaluate_used(first, scope)?;
                for (operator, right) in rest {
                    let right = self.evaluate_used(right, scope)?;
                    if !compare(*operator, &left, &right)? {
                        return Ok(PyValue::Bool(false));
                    }
                    left = right;
                }
                PyValue::Bool(true)
            }
            Expr::And(a, b) => {
                let a = self.evaluate_used(a, scope)?;
                if a.is_truthy() { self.evaluate(b, scope)? } else { a }
            }
            Expr::Or(a, b) => {
                let a = self.evaluate_used(a, scope)?;
                if a.is_truthy() { a } else { self.evaluate(b, scope)? }
            }
            Expr::If { test, then, otherwise } => match (self.evaluate_used(test, scope)?.is_truthy(), otherwise) {
                (true, _) => self.evaluate(then, scope)?,
                (false, Some(otherwise)) => self.evaluate(otherwise, scope)?,
                (false, None) => PyValue::undefined("the inline if-expression evaluated to false and has no else"),
            },
        })
    }

    pub(super) fn evaluate_all(&mut self, exprs: &[Expr], scope: &Rc<VariableScope>) -> TemplateResult<Vec<PyValue>> {
        exprs.iter().map(|e| self.evaluate(e, scope)).collect()
    }

    pub(super) fn arguments(
        &mut self,
        arguments: &ArgumentExprs,
        scope: &Rc<VariableScope>,
    ) -> TemplateResult<CallArguments> {
        let mut args =
            CallArguments { positional: self.evaluate_all(&arguments.positional, scope)?, named: Vec::new() };
        for (name, expr) in &arguments.named {
            args.named.push((name.to_string(), self.evaluate(expr, scope)?));
        }
        if let Some(list) = &arguments.list_splat {
            args.positional.extend(self.evaluate(list, scope)?.items()?);
        }
        if let Some(dict) = &arguments.dict_splat {
            match self.evaluate(dict, scope)? {
                PyValue::Dict(dict) => {
                    for (key, value) in dict.iter() {
                        let name = key.0.as_str().ok_or_else(|| TemplateError::python("keywords must be strings"))?;
                        args.named.push((name.to_string(), value.clone()));
                    }
                }
                other => {
                    return Err(TemplateError::python(format!(
                        "argument after ** must be a mapping, not {}",
                        other.type_name()
                    )));
                }
            }
        }
        Ok(args)
    }

    /// Applies a filter, or a chain of them, to the text of a block.
    pub(super) fn apply_filter_chain(
        &mut self,
        filter: &Expr,
        text: PyValue,
        scope: &Rc<VariableScope>,
    ) -> TemplateResult<PyValue> {
        let Expr::Filter(subject, name, arguments) = filter else {
            return Err(TemplateError::python("expected a filter"));
        };
        let subject = match subject {
            Some(inner) => self.apply_filter_chain(inner, text, scope)?,
            None => text,
        };
        let args = self.arguments(arguments, scope)?;
        filters::apply(name, subject, args)
    }
}
