//! Runs the tree of a template: scopes, statements, expressions, calls, and the global functions.

use super::arithmetic::{apply_binary, negative, positive};
use super::ast::*;
use super::attributes::{attribute_or_item, item_or_attribute};
use super::call_arguments::CallArguments;
use super::comparison::compare;
use super::error::{TemplateError, TemplateErrorKind, TemplateResult};
use super::format::{RenderTime, strftime};
use super::subscript::slice;
use super::value::{self, Cycler, DictKey, Joiner, LoopState, MacroValue, PyDict, PyValue, VariableScope};
use super::{filters, is_tests, limits, methods};
use serde_json::{Map, Value as Json};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

/// The most numbers that a `range` may have, as in jinja2's sandbox.
const LONGEST_RANGE: i128 = 100_000;

/// Returns the text that `body` writes, using at most `stack` bytes of this thread's stack.
pub fn render(body: &[Stmt], variables: &Map<String, Json>, clock: RenderTime, stack: usize) -> TemplateResult<String> {
    limits::start_rendering(stack);
    let context = variables.iter().map(|(name, value)| (name.clone(), PyValue::from_json(value))).collect();
    let mut run = Interpreter { context, clock, line: 0, macro_scopes: Vec::new(), namespaces: Vec::new() };
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

/// How the run continues after a statement.
#[derive(PartialEq)]
enum StatementFlow {
    Next,
    Break,
    Continue,
}

/// The state of one rendering.
pub struct Interpreter {
    context: HashMap<String, PyValue>,
    clock: RenderTime,
    line: usize,
    /// Scopes that a macro refers to: emptied at the end, as they may be cycles.
    macro_scopes: Vec<Rc<VariableScope>>,
    /// All namespaces: emptied at the end, as they may be cycles.
    namespaces: Vec<Rc<RefCell<PyDict>>>,
}

static LOOP: LazyLock<SharedName> = LazyLock::new(|| "loop".into());

/// The global functions.
const FUNCTIONS: [&str; 7] = ["range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"];

impl Interpreter {
    fn write(&self, text: &str, out: &mut String) -> TemplateResult<()> {
        limits::spend_copy_steps(text.len())?;
        limits::check_output_length(out.len() + text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn run_statements(
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

    fn run_statement(
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
                let value = self.evaluate(expr, scope)?;
                match value.as_str() {
                    Some(text) => self.write(text, out)?,
                    None => self.write(&value.py_str()?, out)?,
                }
            }
            StmtKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.evaluate(test, scope)?.is_truthy() {
                        return self.run_statements(body, scope, out);
                    }
                }
                return self.run_statements(otherwise, scope, out);
            }
            StmtKind::For(each) => {
                let over = self.evaluate(&each.over, scope)?;
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
    fn capture_block(&mut self, body: &[Stmt], scope: &Rc<VariableScope>) -> TemplateResult<PyValue> {
        let inner = VariableScope::new(Some(scope));
        let mut text = String::new();
        match self.run_statements(body, &inner, &mut text)? {
            StatementFlow::Next => PyValue::text(text),
            _ => Err(TemplateError::unsupported("a break or continue out of a block whose text is kept")),
        }
    }

    /// Runs a loop over the items of `over`. Returns how its `else` block ended: a `break` there belongs to the loop
    /// around this one. `depth` is the level of a recursive loop.
    fn run_loop(
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

    fn assign(&mut self, target: &AssignTarget, value: PyValue, scope: &Rc<VariableScope>) -> TemplateResult<()> {
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

    /// Returns the variable, or the global function, of this name; undefined if there is none.
    fn lookup(&self, name: &str, scope: &VariableScope) -> PyValue {
        if let Some(value) = scope.get(name).or_else(|| self.context.get(name).cloned()) {
            return value;
        }
        match FUNCTIONS.iter().find(|f| **f == name) {
            Some(function) => PyValue::Function(*function),
            None => PyValue::undefined(format!("'{name}' is undefined")),
        }
    }

    /// Evaluates an expression.
    fn evaluate(&mut self, expr: &Expr, scope: &Rc<VariableScope>) -> TemplateResult<PyValue> {
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
                    Some(subject) => self.evaluate(subject, scope)?,
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
            Expr::Not(of) => PyValue::Bool(!self.evaluate(of, scope)?.is_truthy()),
            Expr::Binary(operator, a, b) => {
                let a = self.evaluate(a, scope)?;
                let b = self.evaluate(b, scope)?;
                apply_binary(*operator, &a, &b)?
            }
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let value = self.evaluate(part, scope)?;
                    match value.as_str() {
                        Some(part) => self.write(part, &mut text)?,
                        None => self.write(&value.py_str()?, &mut text)?,
                    }
                }
                PyValue::text(text)?
            }
            Expr::Compare(first, rest) => {
                let mut left = self.evaluate(first, scope)?;
                for (operator, right) in rest {
                    let right = self.evaluate(right, scope)?;
                    if !compare(*operator, &left, &right)? {
                        return Ok(PyValue::Bool(false));
                    }
                    left = right;
                }
                PyValue::Bool(true)
            }
            Expr::And(a, b) => {
                let a = self.evaluate(a, scope)?;
                if a.is_truthy() { self.evaluate(b, scope)? } else { a }
            }
            Expr::Or(a, b) => {
                let a = self.evaluate(a, scope)?;
                if a.is_truthy() { a } else { self.evaluate(b, scope)? }
            }
            Expr::If { test, then, otherwise } => match (self.evaluate(test, scope)?.is_truthy(), otherwise) {
                (true, _) => self.evaluate(then, scope)?,
                (false, Some(otherwise)) => self.evaluate(otherwise, scope)?,
                (false, None) => PyValue::undefined("the inline if-expression evaluated to false and has no else"),
            },
        })
    }

    fn evaluate_all(&mut self, exprs: &[Expr], scope: &Rc<VariableScope>) -> TemplateResult<Vec<PyValue>> {
        exprs.iter().map(|e| self.evaluate(e, scope)).collect()
    }

    fn arguments(&mut self, arguments: &ArgumentExprs, scope: &Rc<VariableScope>) -> TemplateResult<CallArguments> {
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
    fn apply_filter_chain(
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
    fn call_macro(&mut self, called: &MacroValue, args: CallArguments) -> TemplateResult<PyValue> {
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
    fn call_function(&mut self, name: &str, args: CallArguments) -> TemplateResult<PyValue> {
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
    fn mapping(&mut self, function: &str, args: CallArguments) -> TemplateResult<PyDict> {
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
