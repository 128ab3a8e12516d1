//! A model's own Jinja chat template, rendered as transformers renders it.
//!
//! Whitespace (`trim_blocks`, `lstrip_blocks`), `tojson`, `raise_exception`, `strftime_now`, Python's string methods and
//! Python's way of printing values are reproduced; a template that never ends is stopped by its fuel.
//! Knows no tokens.

use super::arguments;
use super::json;
use super::pyjson::{self, Dumps};
use super::record::{Columns, Conversation, Message};
use crate::budget::Budget;
use crate::error::{Error, Result};
use minijinja::value::{Kwargs, ObjectRepr, Serde, Tuple, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, Value as Jinja};
use serde_json::Value;

/// Instructions one rendering may use: some 10,000 turns of a large template, and a second or two of an endless loop.
const FUEL: u64 = 20_000_000;

/// The largest known templates have some 20,000 bytes.
const LARGEST: usize = 256 << 10;
/// A byte of a template can be one operator, and costs the parser so much stack.
const STACK_PER_BYTE: usize = 2 << 10;

/// A chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    name: String,
    source: String,
    specials: Columns,
}

impl ChatTemplate {
    /// Compiles `source`; `name` (a path) stands in errors, `specials` are variables such as `bos_token`.
    pub fn compile(name: &str, source: &str, specials: &Columns) -> Result<Self> {
        if source.len() > LARGEST {
            return Err(Error::user(format!("{name}: {} bytes, at most {LARGEST} expected", source.len()))
                .hint("is it a chat template at all? They have some thousand bytes"));
        }
        // The parser recurses over chains of operators without an end, so the stack grows with the text.
        let stack = (16 << 20) + source.len() * STACK_PER_BYTE;
        std::thread::scope(|scope| {
            let compile = || Self::compile_here(name, source, specials);
            let thread = std::thread::Builder::new().name("template".into()).stack_size(stack);
            let started = thread.spawn_scoped(scope, compile);
            let started = started.map_err(|e| {
                Error::user(format!("{name}: no thread with a stack of {stack} bytes to compile it: {e}"))
                    .hint("free some memory")
            })?;
            started.join().unwrap_or_else(|_| Err(Error::bug(format!("{name}: compiling the chat template failed"))))
        })
    }

    fn compile_here(name: &str, source: &str, specials: &Columns) -> Result<Self> {
        let _budget = Budget::start(name);
        let mut env = environment();
        for (key, value) in specials {
            env.add_global(key.clone(), Jinja::from(Serde(value)));
        }
        let code = without_generation_tags(source);
        env.add_template_owned("chat", code)
            .map_err(|e| template_error(name, &e).context("the chat template does not compile"))?;
        Ok(Self { env, name: name.to_string(), source: source.to_string(), specials: specials.clone() })
    }

    /// The template's text, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// All that a rendering depends on beside the conversation; today's date where the template asks for it.
    pub(super) fn identity(&self) -> String {
        let dated = self.source.contains("strftime_now");
        let today = if dated { jiff::Zoned::now().date().to_string() } else { String::new() };
        format!("{}\0{}\0{today}", self.source, Value::Object(self.specials.clone()))
    }

    /// Whether the template treats this role by name.
    pub fn mentions(&self, role: &str) -> bool {
        self.source.contains(&format!("'{role}'")) || self.source.contains(&format!("\"{role}\""))
    }

    /// The first `upto` messages as text, ready for an answer where `prompt` asks for it.
    pub fn render(&self, talk: &Conversation, upto: usize, prompt: bool) -> Result<String> {
        self.render_with(&talk.messages[..upto], talk.tools.as_ref(), &talk.kwargs, prompt)
    }

    /// Messages as text, with tool definitions and further variables.
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        kwargs: &Columns,
        prompt: bool,
    ) -> Result<String> {
        let rendered = self.render_as_given(messages, tools, kwargs, prompt);
        // A template that refuses text as arguments, or quotes it, wants the object that it spells.
        if rendered.as_ref().is_ok_and(|text| !arguments::quoted_in(messages, text)) {
            return rendered;
        }
        match arguments::decoded(messages) {
            Some(decoded) => {
                let again = self.render_as_given(&decoded, tools, kwargs, prompt);
                again.inspect(|_| arguments::say_decoded()).or(rendered)
            }
            None => rendered,
        }
    }

    fn render_as_given(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        kwargs: &Columns,
        prompt: bool,
    ) -> Result<String> {
        let mut variables = kwargs.clone();
        variables.insert("messages".into(), messages.iter().map(seen_by_template).collect());
        variables.insert("tools".into(), tools.cloned().unwrap_or_default());
        variables.insert("documents".into(), kwargs.get("documents").cloned().unwrap_or_default());
        variables.insert("add_generation_prompt".into(), prompt.into());
        let _budget = Budget::start(&self.name);
        let template = self.env.get_template("chat").map_err(|e| template_error(&self.name, &e))?;
        template.render(Serde(&variables)).map_err(|e| template_error(&self.name, &e))
    }
}

/// The message as JSON; reasoning stands under each of the names that templates know, as in transformers.
fn seen_by_template(message: &Message) -> Value {
    let Value::Object(mut map) = message.to_json() else { return Value::Null };
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|k| map.get(*k).filter(|v| !v.is_null()).cloned());
    if let Some(text) = reasoning {
        if !map.contains_key("thinking") {
            map.insert("thinking".into(), text.clone());
        }
        map.insert("reasoning_content".into(), text);
    }
    Value::Object(map)
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("these delimiters are the usual ones"));
    env.set_fuel(Some(FUEL));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(print);
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.add_filter("tojson", to_json);
    env.add_filter("string", python_str);
    env.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    env.add_function("strftime_now", |format: String| -> Result<String, minijinja::Error> {
        jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
    });
    env
}

/// Marks an error as the template's own words.
const RAISED: &str = "raise_exception: ";

fn template_error(name: &str, e: &minijinja::Error) -> Error {
    let detail = e.detail().map(str::to_string).unwrap_or_else(|| e.kind().to_string());
    if let Some(words) = detail.strip_prefix(RAISED) {
        return Error::user(format!("the chat template refuses this conversation: {words}"))
            .hint("change the conversation, or give a template of your own with data.template or --template");
    }
    let line = e.line().map(|l| format!(":{l}")).unwrap_or_default();
    let error = Error::user(format!("{name}{line}: {}: {detail}", e.kind()));
    match e.kind() {
        ErrorKind::OutOfFuel => error.hint("the template does not come to an end"),
        _ => error.hint("a template of your own can be given with data.template"),
    }
}

/// `{% generation %}` marks what the assistant says. minijinja has no tags of ours, and the mask comes from the structure
/// of the messages, so the tag becomes `{% with %}`: a scope of its own, as in Jinja, with the same whitespace control.
fn without_generation_tags(source: &str) -> String {
    // Jinja reads every line end as a line feed.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let end = start + length + 2;
        let inside = &rest[start + 2..end - 2];
        let word = inside.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        match word {
            "generation" | "endgeneration" => {
                let (open, close) = (inside.starts_with(['-', '+']), inside.ends_with(['-', '+']) && inside.len() > 1);
                let mark = |there: bool, at: usize| if there { &inside[at..at + 1] } else { "" };
                let tag = if word == "generation" { "with" } else { "endwith" };
                out.push_str(&format!("{{%{} {tag} {}%}}", mark(open, 0), mark(close, inside.len() - 1)));
            }
            _ => out.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Prints as Python does: text as it is, lists and dicts as `repr`, floats with Python's digits.
fn print(out: &mut Output, _: &mut State, value: &Jinja) -> Result<(), minijinja::Error> {
    Ok(out.write_str(&python_str(value)?)?)
}

fn python_str(value: &Jinja) -> Result<String, minijinja::Error> {
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::Map if exact_digits(value).is_some() => exact_digits(value).unwrap_or_default(),
        ValueKind::Map | ValueKind::Seq => python_repr(value)?,
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map(pyjson::float).unwrap_or_else(|_| value.to_string())
        }
        _ => value.to_string(),
    })
}

/// The digits of a number that is too long for a number of minijinja.
fn exact_digits(value: &Jinja) -> Option<String> {
    if value.len() != Some(1) {
        return None;
    }
    json::digits(&as_json(value).ok()?).map(String::from)
}

/// What Python prints for a list, tuple or dict, and for what lies in one.
fn python_repr(value: &Jinja) -> Result<String, minijinja::Error> {
    let items = || value.try_iter()?.map(|item| python_repr(&item)).collect::<Result<Vec<_>, _>>();
    Ok(match value.kind() {
        ValueKind::Seq if value.downcast_object_ref::<Tuple>().is_some() => match items()?.as_slice() {
            [one] => format!("({one},)"),
            several => format!("({})", several.join(", ")),
        },
        ValueKind::Seq => format!("[{}]", items()?.join(", ")),
        ValueKind::Map if exact_digits(value).is_some() => exact_digits(value).unwrap_or_default(),
        ValueKind::Map if value.as_object().is_some_and(|o| o.repr() == ObjectRepr::Map) => {
            let pair = |key: Jinja| Ok(format!("{}: {}", python_repr(&key)?, python_repr(&value.get_item(&key)?)?));
            let pairs = value.try_iter()?.map(pair).collect::<Result<Vec<_>, minijinja::Error>>()?;
            format!("{{{}}}", pairs.join(", "))
        }
        ValueKind::String => pyjson::repr(value.as_str().unwrap_or_default()),
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::Map => value.to_string(),
        _ => python_str(value)?,
    })
}

/// Jinja's test: what `iter()` takes. minijinja also counts none, and templates tell a missing value apart by this.
fn is_iterable(value: &Jinja) -> bool {
    !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
}

/// Jinja's test: what has a length and items; texts and mappings too.
fn is_sequence(value: &Jinja) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

fn as_json(value: &Jinja) -> Result<Value, minijinja::Error> {
    serde_json::to_value(value).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// transformers' `tojson`: `json.dumps` with non-ASCII kept and nothing escaped for HTML.
fn to_json(value: &Jinja, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    if value.is_undefined() {
        return Err(minijinja::Error::new(ErrorKind::BadSerialization, "an undefined value has no JSON form"));
    }
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two texts"));
        }
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let dumps = Dumps {
        indent,
        item_separator: item,
        key_separator: key,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    Ok(dumps.write(&as_json(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        ChatTemplate::compile("test", source, &Columns::new())?.render_with(&[], None, &Columns::new(), false)
    }

    #[test]
    fn generation_tags_keep_their_whitespace_marks() {
        assert_eq!(
            without_generation_tags("a {%- generation -%} b {% endgeneration %}"),
            "a {%- with -%} b {% endwith %}"
        );
        assert_eq!(without_generation_tags("{%generation%}x{%-endgeneration%}"), "{% with %}x{%- endwith %}");
        assert_eq!(
            render("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}").unwrap(),
            "21"
        );
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let e =
            render("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}").unwrap_err();
        assert!(e.to_string().contains("does not come to an end"), "{e}");
    }

    #[test]
    fn the_templates_own_refusal_is_shown() {
        let e = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(e.message().ends_with("refuses this conversation: roles must alternate"), "{e}");
    }

    #[test]
    fn today_is_todays_date() {
        let year = jiff::Zoned::now().year().to_string();
        assert!(render("{{ strftime_now('%d %b %Y') }}").unwrap().ends_with(&year));
    }

    #[test]
    fn errors_name_the_line() {
        assert!(render("a\nb\n{% if %}").unwrap_err().to_string().contains("test:3"));
        assert!(render("a\n{{ x.y.z }}").unwrap_err().to_string().contains("test:2"));
    }
}
