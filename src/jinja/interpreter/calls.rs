//! Calls macros, methods and the global functions.

use super::state::Interpreter;
use crate::jinja::call_arguments::CallArguments;
use crate::jinja::error::{TemplateError, TemplateErrorKind, TemplateResult};
use crate::jinja::format::strftime;
use crate::jinja::value::{Cycler, DictKey, Joiner, MacroValue, PyDict, PyValue, VariableScope};
use crate::jinja::{limits, methods, value};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The most numbers that a `range` may have, as in jinja2's sandbox.
pub(super) const LONGEST_RANGE: i128 = 100_000;

impl Interpreter {
    /// Calls a macro, method, function, loop or joiner.
    pub fn call(&mut self, callee: &PyValue, args: CallArguments) -> TemplateResult<PyValue> {
        limits::check_depth()?;
        match callee.check_defined()? {
            PyValue::Macro(called) => self.call_macro(&called.clone(), args),
            PyValue::Method(method) => methods::call(&method.0, method.1, args),
            PyValue::Function(name) => self.call_function(name, args),
            PyValue::Loop(looping) => {
                let [over] = args.bind("loop", ["iterable"])?;
                let over = over.ok_or_else(|| TemplateError::python("loop() needs something to loop over"))?;
                let Some((each, scope)) = &looping.recursion else {
                    return Err(TemplateError::python(
                        "The loop must have the 'recursive' marker to be called recursively.",
                    ));
                };
                let mut text = String::new();
                self.run_loop(each, over, scope, looping.depth + 1, &mut text)?;
                PyValue::text(text)
            }
            PyValue::Joiner(joiner) => {
                args.expect_none("joiner")?;
                Ok(if joiner.used.replace(true) { joiner.separator.clone() } else { PyValue::text("")? })
            }
            other => Err(TemplateError::python(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    /// Calls a macro: binds its parameters and returns the text of its body.
    pub(super) fn call_macro(&mut self, called: &MacroValue, args: CallArguments) -> TemplateResult<PyValue> {
        let definition = &called.definition;
        let (scope, mut named) = (VariableScope::new(Some(&called.scope)), args.named);
        let mut positional: VecDeque<PyValue> = args.positional.into();
        let mut take = |name: &str| named.iter().position(|(n, _)| n == name).map(|at| named.remove(at).1);
        let mut missing = Vec::new();
        for (name, default) in &definition.parameters {
            match positional.pop_front().or_else(|| take(name)) {
                Some(value) => scope.set(name, value),
                None => missing.push((name, default)),
            }
        }
        if definition.uses_caller {
            let caller = take("caller").filter(|c| !matches!(c, PyValue::None));
            scope.set(&"caller".into(), caller.unwrap_or_else(|| PyValue::undefined("No caller defined")));
        }
        if definition.uses_kwargs {
            let dict: TemplateResult<PyDict> =
                named.drain(..).map(|(name, value)| Ok((DictKey::of(PyValue::text(name)?)?, value))).collect();
            scope.set(&"kwargs".into(), PyValue::dict(dict?)?);
        } else if let Some((name, _)) = named.first() {
            return Err(TemplateError::python(format!(
                "macro '{}' takes no keyword argument '{name}'",
                definition.name
            )));
        }
        if definition.uses_varargs {
            scope.set(&"varargs".into(), PyValue::tuple(positional.into())?);
        } else if !positional.is_empty() {
            let most = definition.parameters.len();
            return Err(TemplateError::python(format!(
                "macro '{}' takes not more than {most} argument(s)",
                definition.name
            )));
        }
        for (name, default) in missing {
            let value = match default {
                Some(default) => self.evaluate(default, &scope)?,
                None => PyValue::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        let mut text = String::new();
        let line = self.line;
        self.run_statements(&definition.body, &scope, &mut text)?;
        self.line = line;
        PyValue::text(text)
    }

    /// Calls a global function.
    pub(super) fn call_function(&mut self, name: &str, args: CallArguments) -> TemplateResult<PyValue> {
        match name {
            "range" => {
                let [a, b, step] = args.bind("range", ["", "", ""])?;
                let a = a
                    .ok_or_else(|| TemplateError::python("range expected at least 1 argument, got 0"))?
                    .expect_int("range()")?;
                let (start, stop) = match b {
                    Some(b) => (a, b.expect_int("range()")?),
                    None => (0, a),
                };
                let step = step.map_or(Ok(1), |s| s.expect_int("range()"))?;
                if step == 0 {
                    return Err(TemplateError::python("range() arg 3 must not be zero"));
                }
                if [start, stop, step].iter().any(|n| n.unsigned_abs() > 1 << 62) {
                    return Err(TemplateError::unsupported("a range beyond 62 bits"));
                }
                let range = PyValue::Range(start, stop, step);
                if range.length()? as i128 > LONGEST_RANGE {
                    return Err(TemplateError::python(format!(
                        "Range too big. The sandbox blocks ranges larger than {LONGEST_RANGE}."
                    )));
                }
                Ok(range)
            }
            "dict" => PyValue::dict(self.mapping("dict", args)?),
            "namespace" => {
                limits::spend_steps(50)?;
                let namespace = Rc::new(RefCell::new(self.mapping("namespace", args)?));
                self.namespaces.push(namespace.clone());
                Ok(PyValue::Namespace(namespace))
            }
            "cycler" => {
                if !args.named.is_empty() || args.positional.is_empty() {
                    return Err(TemplateError::python("cycler() takes the values to go round, and at least one"));
                }
                let nesting = limits::check_nesting(value::container_depth(args.positional.iter()))?;
                Ok(PyValue::Cycler(Rc::new(Cycler { items: args.positional, at: Cell::new(0), nesting })))
            }
            "joiner" => {
                let [separator] = args.bind("joiner", ["sep"])?;
                let separator = separator.map_or_else(|| PyValue::text(", "), Ok)?;
                if separator.as_str().is_none() {
                    return Err(TemplateError::unsupported("a joiner with something other than text"));
                }
                Ok(PyValue::Joiner(Rc::new(Joiner { separator, used: Cell::new(false) })))
            }
            "raise_exception" => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = message.ok_or_else(|| TemplateError::python("raise_exception() needs a message"))?;
                Err(TemplateError::new(TemplateErrorKind::Raised, message.py_str()?))
            }
            "strftime_now" => {
                let [format] = args.bind("strftime_now", ["format"])?;
                match format.as_ref().and_then(PyValue::as_str) {
                    Some(format) => PyValue::text(strftime(format, self.clock)?),
                    None => Err(TemplateError::python("strftime_now() needs a format as text")),
                }
            }
            name => Err(TemplateError::python(format!("'{name}' is no function"))),
        }
    }

    /// Builds the dict of `dict(…)` and `namespace(…)`: from a mapping or pairs, and named arguments.
    pub(super) fn mapping(&mut self, function: &str, args: CallArguments) -> TemplateResult<PyDict> {
        let mut dict = PyDict::new();
        if args.positional.len() > 1 {
            return Err(TemplateError::python(format!(
                "{function} expected at most 1 argument, got {}",
                args.positional.len()
            )));
        }
        match args.positional.first() {
            None => {}
            Some(PyValue::Dict(other)) => dict.extend(other.iter().map(|(k, v)| (k.clone(), v.clone()))),
            Some(other) => {
                for pair in other.check_defined()?.items()? {
                    match pair.items()?.as_slice() {
                        [key, value] => dict.insert(DictKey::of(key.clone())?, value.clone()),
                        _ => return Err(TemplateError::python("dictionary update sequence needs pairs")),
                    };
                }
            }
        }
        for (name, value) in args.named {
            dict.insert(DictKey::of(PyValue::text(name)?)?, value);
        }
        Ok(dict)
    }
}
