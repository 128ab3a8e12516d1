//! Runs the tree of a template: scopes, statements, expressions, calls, and the global functions.

use super::fault::{Fault, FaultKind};
use super::tree::*;
use super::value::{self, Dict, Key, Named, Result, Value};
use super::{Clock, filters, limits, methods, tests_of_values};
use serde_json::{Map, Value as Json};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

/// The most numbers that a `range` may have, as in jinja2's sandbox.
const LONGEST_RANGE: i128 = 100_000;

/// Returns the text that `body` writes, using at most `stack` bytes of this thread's stack.
pub fn render(body: &[Stmt], variables: &Map<String, Json>, clock: Clock, stack: usize) -> Result<String> {
    limits::start(stack);
    let context = variables.iter().map(|(name, value)| (name.clone(), Value::from_json(value))).collect();
    let mut run = Run { context, clock, line: 0, cyclic: Vec::new(), namespaces: Vec::new() };
    let root = Scope::new(None);
    let mut out = String::new();
    let done = run.statements(body, &root, &mut out);
    // A macro refers to its scope and the scope to its macros, and namespaces may refer to each other. Such cycles
    // would never be freed, and a long chain would overflow the stack when dropped. So they are emptied one by one
    // here, while this list still refers to all of them.
    run.cyclic.iter().for_each(|scope| drop(scope.variables.take()));
    run.namespaces.iter().for_each(|namespace| drop(namespace.take()));
    done.map(|_| out)
}

/// The variables of a block by name. Those of the outer scopes can be read but not assigned, as in Jinja.
pub struct Scope {
    variables: RefCell<Vec<(Name, Value)>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    fn new(outer: Option<&Rc<Scope>>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), outer: outer.cloned() })
    }

    fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some((_, value)) = scope.variables.borrow().iter().rfind(|(n, _)| **n == *name) {
                return Some(value.clone());
            }
            scope = scope.outer.as_deref()?;
        }
    }

    fn set(&self, name: &Name, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1 = value,
            None => variables.push((name.clone(), value)),
        }
    }
}

/// A macro, or the block of a `call`, with the scope in which it was defined.
pub struct MacroValue {
    definition: Arc<Macro>,
    scope: Rc<Scope>,
}

impl MacroValue {
    pub fn name(&self) -> &str {
        &self.definition.name
    }
}

/// The variable `loop` in the body of a loop.
pub struct Loop {
    items: Vec<Value>,
    at: Cell<usize>,
    depth: usize,
    changed: RefCell<Option<Vec<Value>>>,
    /// For `loop(…)` in a recursive loop: the statement and the scope around it.
    again: Option<(Arc<For>, Rc<Scope>)>,
    nesting: usize,
}

impl Loop {
    /// Returns the levels of values nested in its items.
    pub fn depth_of_values(&self) -> usize {
        self.nesting
    }

    pub fn length(&self) -> usize {
        self.items.len()
    }
}

/// The result of `cycler(…)`, which goes round its values.
pub struct Cycler {
    items: Vec<Value>,
    at: Cell<usize>,
    nesting: usize,
}

impl Cycler {
    /// Returns the levels of values nested in its items.
    pub fn depth_of_values(&self) -> usize {
        self.nesting
    }
}

/// The result of `joiner(…)`: empty text at its first call, then the separator.
pub struct Joiner {
    separator: Value,
    used: Cell<bool>,
}

/// The evaluated arguments of a call.
#[derive(Default)]
pub struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl Args {
    /// Returns the arguments in the order of `names`; a parameter with an empty name is positional only. Fails for
    /// arguments that are too many, unknown or repeated.
    pub fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            return Err(Fault::python(format!(
                "{function}() takes at most {N} arguments ({} given)",
                self.positional.len()
            )));
        }
        let mut bound: [Option<Value>; N] = std::array::from_fn(|_| None);
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let at = names
                .iter()
                .position(|n| **n == *name && !n.is_empty())
                .ok_or_else(|| Fault::python(format!("{function}() got an unexpected keyword argument '{name}'")))?;
            if bound[at].replace(value).is_some() {
                return Err(Fault::python(format!("{function}() got multiple values for argument '{name}'")));
            }
        }
        Ok(bound)
    }

    /// Fails if there is any argument.
    pub fn none(self, function: &str) -> Result<()> {
        self.bind(function, []).map(|_| ())
    }
}

/// How the run continues after a statement.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// The state of one rendering.
pub struct Run {
    context: HashMap<String, Value>,
    clock: Clock,
    line: usize,
    /// Scopes that a macro refers to: emptied at the end, as they may be cycles.
    cyclic: Vec<Rc<Scope>>,
    /// All namespaces: emptied at the end, as they may be cycles.
    namespaces: Vec<Rc<RefCell<Dict>>>,
}

static LOOP: LazyLock<Name> = LazyLock::new(|| "loop".into());

/// The global functions.
const FUNCTIONS: [&str; 7] = ["range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"];

impl Run {
    fn write(&self, text: &str, out: &mut String) -> Result<()> {
        limits::spend_bytes(text.len())?;
        limits::check_length(out.len() + text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn statements(&mut self, body: &[Stmt], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        for statement in body {
            self.line = statement.line;
            let flow = self.statement(statement, scope, out).map_err(|fault| fault.at(self.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        limits::spend(1)?;
        limits::check_depth()?;
        match &statement.kind {
            StmtKind::Text(text) => self.write(text, out)?,
            StmtKind::Print(expr) => {
                let value = self.value(expr, scope)?;
                match value.as_str() {
                    Some(text) => self.write(text, out)?,
                    None => self.write(&value.print()?, out)?,
                }
            }
            StmtKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.value(test, scope)?.truth() {
                        return self.statements(body, scope, out);
                    }
                }
                return self.statements(otherwise, scope, out);
            }
            StmtKind::For(each) => {
                let over = self.value(&each.over, scope)?;
                return self.each(each, over, scope, 0, out);
            }
            StmtKind::Set(target, expr) => {
                let value = self.value(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let text = self.captured(body, scope)?;
                let value = match filter {
                    Some(filter) => self.filtered(filter, text, scope)?,
                    None => text,
                };
                self.assign(target, value, scope)?;
            }
            StmtKind::With(values, body) => {
                let inner = Scope::new(Some(scope));
                for (target, expr) in values {
                    let value = self.value(expr, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.statements(body, &inner, out);
            }
            StmtKind::Macro(definition) => {
                limits::spend(10)?;
                let made = MacroValue { definition: definition.clone(), scope: scope.clone() };
                scope.set(&definition.name, Value::Macro(Rc::new(made)));
                self.cyclic.push(scope.clone());
            }
            StmtKind::CallBlock(call, definition) => {
                limits::spend(10)?;
                self.cyclic.push(scope.clone());
                let caller = Rc::new(MacroValue { definition: definition.clone(), scope: scope.clone() });
                let Expr::Call(callee, arguments) = call else { return Err(Fault::python("expected call")) };
                let callee = self.value(callee, scope)?;
                let mut args = self.arguments(arguments, scope)?;
                args.named.push(("caller".into(), Value::Macro(caller)));
                let text = self.call(&callee, args)?.print()?;
                self.write(&text, out)?;
            }
            StmtKind::FilterBlock(filter, body) => {
                let text = self.captured(body, scope)?;
                let text = self.filtered(filter, text, scope)?.print()?;
                self.write(&text, out)?;
            }
            StmtKind::Generation(body) => {
                let inner = Scope::new(Some(scope));
                self.statements(body, &inner, out)?;
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    /// Returns the text that a block writes, as a value.
    fn captured(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Result<Value> {
        let inner = Scope::new(Some(scope));
        let mut text = String::new();
        match self.statements(body, &inner, &mut text)? {
            Flow::Next => Value::text(text),
            _ => Err(Fault::unsupported("a break or continue out of a block whose text is kept")),
        }
    }

    /// Runs a loop over the items of `over`. Returns how its `else` block ended: a `break` there belongs to the loop
    /// around this one. `depth` is the level of a recursive loop.
    fn each(
        &mut self,
        each: &Arc<For>,
        over: Value,
        scope: &Rc<Scope>,
        depth: usize,
        out: &mut String,
    ) -> Result<Flow> {
        limits::check_depth()?;
        let mut items = over.items()?;
        if let Some(test) = &each.test {
            let mut kept = Vec::new();
            for item in items {
                let inner = Scope::new(Some(scope));
                self.assign(&each.target, item.clone(), &inner)?;
                if self.value(test, &inner)?.truth() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        let again = each.recursive.then(|| (each.clone(), scope.clone()));
        let nesting = limits::check_nesting(value::deeper(items.iter()))?;
        let looping = Rc::new(Loop { items, at: Cell::new(0), depth, changed: RefCell::default(), again, nesting });
        for at in 0..looping.items.len() {
            limits::spend(1)?;
            looping.at.set(at);
            let inner = Scope::new(Some(scope));
            self.assign(&each.target, looping.items[at].clone(), &inner)?;
            inner.set(&LOOP, Value::Loop(looping.clone()));
            if self.statements(&each.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        if looping.items.is_empty() {
            let inner = Scope::new(Some(scope));
            return self.statements(&each.otherwise, &inner, out);
        }
        Ok(Flow::Next)
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Tuple(targets) => {
                let items = value.defined()?.items()?;
                if items.len() != targets.len() {
                    let words = if items.len() < targets.len() { "not enough" } else { "too many" };
                    return Err(Fault::python(format!("{words} values to unpack (expected {})", targets.len())));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
            Target::Attribute(name, attribute) => match self.named(name, scope) {
                Value::Namespace(dict) => {
                    let key = Key::of(Value::text(&**attribute)?)?;
                    dict.borrow_mut().insert(key, value);
                }
                _ => return Err(Fault::python("cannot assign attribute on non-namespace object")),
            },
        }
        Ok(())
    }

    /// Returns the variable, or the global function, of this name; undefined if there is none.
    fn named(&self, name: &str, scope: &Scope) -> Value {
        if let Some(value) = scope.get(name).or_else(|| self.context.get(name).cloned()) {
            return value;
        }
        match FUNCTIONS.iter().find(|f| **f == name) {
            Some(function) => Value::Function(*function),
            None => Value::undefined(format!("'{name}' is undefined")),
        }
    }

    /// Evaluates an expression.
    fn value(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        limits::spend(1)?;
        limits::check_depth()?;
        Ok(match expr {
            Expr::Text(text) => Value::text(&**text)?,
            Expr::Int(n) => Value::Int(*n),
            Expr::Long(digits) => Value::Long((**digits).into()),
            Expr::Float(x) => Value::Float(*x),
            Expr::Bool(b) => Value::Bool(*b),
            Expr::None => Value::None,
            Expr::Name(name) => match &**name {
                "lipsum" | "self" | "super" if scope.get(name).is_none() && !self.context.contains_key(&**name) => {
                    return Err(Fault::unsupported(format!("'{name}'")));
                }
                name => self.named(name, scope),
            },
            Expr::List(items) => Value::list(self.values(items, scope)?)?,
            Expr::Tuple(items) => Value::tuple(self.values(items, scope)?)?,
            Expr::Dict(pairs) => {
                let mut dict = Dict::new();
                for (key, value) in pairs {
                    let key = Key::of(self.value(key, scope)?)?;
                    dict.insert(key, self.value(value, scope)?);
                }
                Value::dict(dict)?
            }
            Expr::Attr(of, name) => {
                let of = self.value(of, scope)?;
                attribute(&of, name)?
            }
            Expr::Item(of, index) => {
                let of = self.value(of, scope)?;
                let index = self.value(index, scope)?;
                subscript(&of, &index)?
            }
            Expr::Slice(of, parts) => {
                let of = self.value(of, scope)?;
                let [a, b, c] = &**parts;
                let mut part = |e: &Option<Expr>| e.as_ref().map(|e| self.value(e, scope)).transpose();
                value::slice(&of, [part(a)?, part(b)?, part(c)?])?
            }
            Expr::Call(callee, arguments) => {
                let callee = self.value(callee, scope)?;
                let args = self.arguments(arguments, scope)?;
                self.call(&callee, args)?
            }
            Expr::Filter(subject, name, arguments) => {
                let subject = match subject {
                    Some(subject) => self.value(subject, scope)?,
                    None => return Err(Fault::python("a filter without a subject")),
                };
                let args = self.arguments(arguments, scope)?;
                filters::apply(self, name, subject, args)?
            }
            Expr::Test(subject, name, arguments) => {
                let subject = self.value(subject, scope)?;
                let args = self.arguments(arguments, scope)?;
                Value::Bool(tests_of_values::holds(name, &subject, args)?)
            }
            Expr::Negative(of) => value::negative(&self.value(of, scope)?)?,
            Expr::Positive(of) => value::positive(&self.value(of, scope)?)?,
            Expr::Not(of) => Value::Bool(!self.value(of, scope)?.truth()),
            Expr::Binary(operator, a, b) => {
                let a = self.value(a, scope)?;
                let b = self.value(b, scope)?;
                value::binary(*operator, &a, &b)?
            }
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let value = self.value(part, scope)?;
                    match value.as_str() {
                        Some(part) => self.write(part, &mut text)?,
                        None => self.write(&value.print()?, &mut text)?,
                    }
                }
                Value::text(text)?
            }
            Expr::Compare(first, rest) => {
                let mut left = self.value(first, scope)?;
                for (operator, right) in rest {
                    let right = self.value(right, scope)?;
                    if !value::compare(*operator, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expr::And(a, b) => {
                let a = self.value(a, scope)?;
                if a.truth() { self.value(b, scope)? } else { a }
            }
            Expr::Or(a, b) => {
                let a = self.value(a, scope)?;
                if a.truth() { a } else { self.value(b, scope)? }
            }
            Expr::If { test, then, otherwise } => match (self.value(test, scope)?.truth(), otherwise) {
                (true, _) => self.value(then, scope)?,
                (false, Some(otherwise)) => self.value(otherwise, scope)?,
                (false, None) => Value::undefined("the inline if-expression evaluated to false and has no else"),
            },
        })
    }

    fn values(&mut self, exprs: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        exprs.iter().map(|e| self.value(e, scope)).collect()
    }

    fn arguments(&mut self, arguments: &Arguments, scope: &Rc<Scope>) -> Result<Args> {
        let mut args = Args { positional: self.values(&arguments.positional, scope)?, named: Vec::new() };
        for (name, expr) in &arguments.named {
            args.named.push((name.to_string(), self.value(expr, scope)?));
        }
        if let Some(list) = &arguments.list {
            args.positional.extend(self.value(list, scope)?.items()?);
        }
        if let Some(dict) = &arguments.dict {
            match self.value(dict, scope)? {
                Value::Dict(dict) => {
                    for (key, value) in dict.iter() {
                        let name = key.0.as_str().ok_or_else(|| Fault::python("keywords must be strings"))?;
                        args.named.push((name.to_string(), value.clone()));
                    }
                }
                other => {
                    return Err(Fault::python(format!(
                        "argument after ** must be a mapping, not {}",
                        other.type_name()
                    )));
                }
            }
        }
        Ok(args)
    }

    /// Applies a filter, or a chain of them, to the text of a block.
    fn filtered(&mut self, filter: &Expr, text: Value, scope: &Rc<Scope>) -> Result<Value> {
        let Expr::Filter(subject, name, arguments) = filter else { return Err(Fault::python("expected a filter")) };
        let subject = match subject {
            Some(inner) => self.filtered(inner, text, scope)?,
            None => text,
        };
        let args = self.arguments(arguments, scope)?;
        filters::apply(self, name, subject, args)
    }

    /// Calls a macro, method, function, loop or joiner.
    pub fn call(&mut self, callee: &Value, args: Args) -> Result<Value> {
        limits::check_depth()?;
        match callee.defined()? {
            Value::Macro(called) => self.invoke(&called.clone(), args),
            Value::Method(method) => methods::call(&method.0, method.1, args),
            Value::Function(name) => self.function(name, args),
            Value::Loop(looping) => {
                let [over] = args.bind("loop", ["iterable"])?;
                let over = over.ok_or_else(|| Fault::python("loop() needs something to loop over"))?;
                let Some((each, scope)) = &looping.again else {
                    return Err(Fault::python("The loop must have the 'recursive' marker to be called recursively."));
                };
                let mut text = String::new();
                self.each(each, over, scope, looping.depth + 1, &mut text)?;
                Value::text(text)
            }
            Value::Joiner(joiner) => {
                args.none("joiner")?;
                Ok(if joiner.used.replace(true) { joiner.separator.clone() } else { Value::text("")? })
            }
            other => Err(Fault::python(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    /// Calls a macro: binds its parameters and returns the text of its body.
    fn invoke(&mut self, called: &MacroValue, args: Args) -> Result<Value> {
        let definition = &called.definition;
        let (scope, mut named) = (Scope::new(Some(&called.scope)), args.named);
        let mut positional: VecDeque<Value> = args.positional.into();
        let mut take = |name: &str| named.iter().position(|(n, _)| n == name).map(|at| named.remove(at).1);
        let mut missing = Vec::new();
        for (name, default) in &definition.parameters {
            match positional.pop_front().or_else(|| take(name)) {
                Some(value) => scope.set(name, value),
                None => missing.push((name, default)),
            }
        }
        if definition.caller {
            let caller = take("caller").filter(|c| !matches!(c, Value::None));
            scope.set(&"caller".into(), caller.unwrap_or_else(|| Value::undefined("No caller defined")));
        }
        if definition.kwargs {
            let dict: Result<Dict> =
                named.drain(..).map(|(name, value)| Ok((Key::of(Value::text(name)?)?, value))).collect();
            scope.set(&"kwargs".into(), Value::dict(dict?)?);
        } else if let Some((name, _)) = named.first() {
            return Err(Fault::python(format!("macro '{}' takes no keyword argument '{name}'", definition.name)));
        }
        if definition.varargs {
            scope.set(&"varargs".into(), Value::tuple(positional.into())?);
        } else if !positional.is_empty() {
            let most = definition.parameters.len();
            return Err(Fault::python(format!("macro '{}' takes not more than {most} argument(s)", definition.name)));
        }
        for (name, default) in missing {
            let value = match default {
                Some(default) => self.value(default, &scope)?,
                None => Value::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        let mut text = String::new();
        let line = self.line;
        self.statements(&definition.body, &scope, &mut text)?;
        self.line = line;
        Value::text(text)
    }

    /// Calls a global function.
    fn function(&mut self, name: &str, args: Args) -> Result<Value> {
        match name {
            "range" => {
                let [a, b, step] = args.bind("range", ["", "", ""])?;
                let a = a.ok_or_else(|| Fault::python("range expected at least 1 argument, got 0"))?.int("range()")?;
                let (start, stop) = match b {
                    Some(b) => (a, b.int("range()")?),
                    None => (0, a),
                };
                let step = step.map_or(Ok(1), |s| s.int("range()"))?;
                if step == 0 {
                    return Err(Fault::python("range() arg 3 must not be zero"));
                }
                if [start, stop, step].iter().any(|n| n.unsigned_abs() > 1 << 62) {
                    return Err(Fault::unsupported("a range beyond 62 bits"));
                }
                let range = Value::Range(start, stop, step);
                if range.length()? as i128 > LONGEST_RANGE {
                    return Err(Fault::python(format!(
                        "Range too big. The sandbox blocks ranges larger than {LONGEST_RANGE}."
                    )));
                }
                Ok(range)
            }
            "dict" => Value::dict(self.mapping("dict", args)?),
            "namespace" => {
                limits::spend(50)?;
                let namespace = Rc::new(RefCell::new(self.mapping("namespace", args)?));
                self.namespaces.push(namespace.clone());
                Ok(Value::Namespace(namespace))
            }
            "cycler" => {
                if !args.named.is_empty() || args.positional.is_empty() {
                    return Err(Fault::python("cycler() takes the values to go round, and at least one"));
                }
                let nesting = limits::check_nesting(value::deeper(args.positional.iter()))?;
                Ok(Value::Cycler(Rc::new(Cycler { items: args.positional, at: Cell::new(0), nesting })))
            }
            "joiner" => {
                let [separator] = args.bind("joiner", ["sep"])?;
                let separator = separator.map_or_else(|| Value::text(", "), Ok)?;
                if separator.as_str().is_none() {
                    return Err(Fault::unsupported("a joiner with something other than text"));
                }
                Ok(Value::Joiner(Rc::new(Joiner { separator, used: Cell::new(false) })))
            }
            "raise_exception" => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = message.ok_or_else(|| Fault::python("raise_exception() needs a message"))?;
                Err(Fault::new(FaultKind::Raised, message.print()?))
            }
            "strftime_now" => {
                let [format] = args.bind("strftime_now", ["format"])?;
                match format.as_ref().and_then(Value::as_str) {
                    Some(format) => Value::text(super::format::time(format, self.clock)?),
                    None => Err(Fault::python("strftime_now() needs a format as text")),
                }
            }
            name => Err(Fault::python(format!("'{name}' is no function"))),
        }
    }

    /// Builds the dict of `dict(…)` and `namespace(…)`: from a mapping or pairs, and named arguments.
    fn mapping(&mut self, function: &str, args: Args) -> Result<Dict> {
        let mut dict = Dict::new();
        if args.positional.len() > 1 {
            return Err(Fault::python(format!(
                "{function} expected at most 1 argument, got {}",
                args.positional.len()
            )));
        }
        match args.positional.first() {
            None => {}
            Some(Value::Dict(other)) => dict.extend(other.iter().map(|(k, v)| (k.clone(), v.clone()))),
            Some(other) => {
                for pair in other.defined()?.items()? {
                    match pair.items()?.as_slice() {
                        [key, value] => dict.insert(Key::of(key.clone())?, value.clone()),
                        _ => return Err(Fault::python("dictionary update sequence needs pairs")),
                    };
                }
            }
        }
        for (name, value) in args.named {
            dict.insert(Key::of(Value::text(name)?)?, value);
        }
        Ok(dict)
    }
}

/// Attributes of Python's numbers that are not reproduced: their use is an error, as they are not undefined in Python.
const OTHER_ATTRIBUTES: [&str; 12] = [
    "real",
    "imag",
    "numerator",
    "denominator",
    "bit_length",
    "bit_count",
    "conjugate",
    "is_integer",
    "as_integer_ratio",
    "to_bytes",
    "from_bytes",
    "hex",
];

/// Returns `object.name`: its attribute, else its item, else undefined.
pub fn attribute(of: &Value, name: &str) -> Result<Value> {
    of.defined()?;
    if let Some(found) = own_attribute(of, name)? {
        return Ok(found);
    }
    match of {
        Value::Dict(dict) => {
            if let Some(found) = dict.get(&Named(name)) {
                return Ok(found.clone());
            }
        }
        Value::Int(_) | Value::Bool(_) | Value::Float(_) | Value::Long(_) if OTHER_ATTRIBUTES.contains(&name) => {
            return Err(Fault::unsupported(format!("the attribute '{name}' of a number")));
        }
        _ => {}
    }
    Ok(missing(of, name))
}

/// Returns `object[index]`: its item, else its attribute, else undefined.
pub fn subscript(of: &Value, index: &Value) -> Result<Value> {
    of.defined()?;
    if let Some(found) = value::item(of, index)? {
        return Ok(found);
    }
    match index.as_str() {
        Some(name) => Ok(own_attribute(of, name)?.unwrap_or_else(|| missing(of, name))),
        None => Ok(Value::undefined(format!("{} has no element {}", kind_name(of), index.print().unwrap_or_default()))),
    }
}

fn kind_name(of: &Value) -> String {
    match of {
        Value::None => "'None'".into(),
        other => format!("'{} object'", other.type_name().to_lowercase()),
    }
}

fn missing(of: &Value, name: &str) -> Value {
    Value::undefined(format!("{} has no attribute '{name}'", kind_name(of)))
}

/// Returns what Python's `getattr` would: methods, and the attributes of Jinja's own objects (`loop`, `cycler`,
/// namespaces). Names with two leading underscores are undefined, as in the sandbox.
pub fn own_attribute(of: &Value, name: &str) -> Result<Option<Value>> {
    if name.starts_with("__") {
        return Ok(Some(Value::undefined(format!(
            "access to attribute '{name}' of '{}' object is refused by the sandbox.",
            of.type_name()
        ))));
    }
    let index = |n: usize| Ok(Some(Value::Int(n as i128)));
    Ok(match of {
        Value::Namespace(dict) => dict.borrow().get(&Named(name)).cloned(),
        Value::Group(parts) => match name {
            "grouper" => parts.first().cloned(),
            "list" => parts.get(1).cloned(),
            _ => methods::bound(of, name)?,
        },
        Value::Loop(state) => {
            let (at, length) = (state.at.get(), state.items.len());
            match name {
                "index" => return index(at + 1),
                "index0" => return index(at),
                "revindex" => return index(length - at),
                "revindex0" => return index(length - at - 1),
                "length" => return index(length),
                "depth" => return index(state.depth + 1),
                "depth0" => return index(state.depth),
                "first" => Some(Value::Bool(at == 0)),
                "last" => Some(Value::Bool(at + 1 == length)),
                "previtem" => Some(match at.checked_sub(1) {
                    Some(before) => state.items[before].clone(),
                    None => Value::undefined("there is no previous item"),
                }),
                "nextitem" => Some(match state.items.get(at + 1) {
                    Some(next) => next.clone(),
                    None => Value::undefined("there is no next item"),
                }),
                "cycle" => Some(Value::Method(Rc::new((of.clone(), "cycle")))),
                "changed" => Some(Value::Method(Rc::new((of.clone(), "changed")))),
                _ => None,
            }
        }
        Value::Cycler(cycler) => match name {
            "current" => Some(cycler.items[cycler.at.get()].clone()),
            "next" => Some(Value::Method(Rc::new((of.clone(), "next")))),
            "reset" => Some(Value::Method(Rc::new((of.clone(), "reset")))),
            _ => None,
        },
        Value::Macro(_) => match name {
            "name" | "arguments" | "catch_kwargs" | "catch_varargs" | "caller" => {
                return Err(Fault::unsupported(format!("the attribute '{name}' of a macro")));
            }
            _ => None,
        },
        other => methods::bound(other, name)?,
    })
}

/// Calls a method of Jinja's own objects, `loop` and `cycler`.
pub fn own_method(of: &Value, name: &str, args: Args) -> Result<Value> {
    match (of, name) {
        (Value::Loop(state), "cycle") => match args.positional.len() {
            0 => Err(Fault::python("no items for cycling given")),
            n => Ok(args.positional[state.at.get() % n].clone()),
        },
        (Value::Loop(state), _) => {
            let mut last = state.changed.borrow_mut();
            let now = args.positional;
            let same = match &*last {
                Some(last) if last.len() == now.len() => {
                    let mut same = true;
                    for (a, b) in last.iter().zip(&now) {
                        same &= value::equal(a, b)?;
                    }
                    same
                }
                _ => false,
            };
            if !same {
                *last = Some(now);
            }
            Ok(Value::Bool(!same))
        }
        (Value::Cycler(cycler), "next") => {
            args.none("next")?;
            let now = cycler.items[cycler.at.get()].clone();
            cycler.at.set((cycler.at.get() + 1) % cycler.items.len());
            Ok(now)
        }
        (Value::Cycler(cycler), _) => {
            args.none("reset")?;
            cycler.at.set(0);
            Ok(Value::None)
        }
        (of, name) => Err(Fault::unsupported(format!("the method '{name}' of '{}'", of.type_name()))),
    }
}
