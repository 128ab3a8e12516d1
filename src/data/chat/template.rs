//! Renders conversations with a model's own chat templates, as transformers does.
//!
//! Of several named templates, `tool_use` renders rows with tools and `default` all others, as in transformers. Works
//! on text only, without tokens.

use super::tool_arguments;
use crate::data::rows::{ChatMessage, Conversation};
use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::jinja::{JinjaTemplate, RenderTime, TemplateError, TemplateErrorKind};
use jiff::civil::Date;
use serde_json::Value;

/// Maximum size of a template in bytes. The largest known ones have about 20,000 bytes.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;

/// The compiled chat templates of a model, with their variables.
#[derive(Debug)]
pub struct ChatTemplate {
    default: Option<NamedTemplate>,
    tool_use: Option<NamedTemplate>,
    specials: RowColumns,
    /// Variables for every row; a row's own variables have precedence.
    kwargs: RowColumns,
    /// The date that `strftime_now` returns; `None` for the time of each rendering.
    date: Option<Date>,
}

/// One template, its text, and where it was found (for errors).
#[derive(Debug)]
struct NamedTemplate {
    name: String,
    text: String,
    template: JinjaTemplate,
}

impl NamedTemplate {
    fn compile(name: &str, text: &str) -> Result<Self> {
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(Error::user(format!("{name}: {} bytes, at most {MAX_TEMPLATE_BYTES} expected", text.len()))
                .hint("is this a chat template? They have a few thousand bytes"));
        }
        let template = JinjaTemplate::compile(text)
            .map_err(|fault| template_error(name, &fault).context("the chat template does not compile"))?;
        Ok(Self { name: name.to_string(), text: text.to_string(), template })
    }
}

impl ChatTemplate {
    /// Compiles `source`. Errors name it `name` (a path); `specials` are variables such as `bos_token`.
    pub fn compile(name: &str, source: &str, specials: &RowColumns) -> Result<Self> {
        Self::of_named(Some((name, source)), None, specials)
    }

    /// Compiles the templates for rows without and with tools, each given as (place, text).
    pub fn of_named(
        default: Option<(&str, &str)>,
        tool_use: Option<(&str, &str)>,
        specials: &RowColumns,
    ) -> Result<Self> {
        let compile =
            |given: Option<(&str, &str)>| given.map(|(name, text)| NamedTemplate::compile(name, text)).transpose();
        let (default, tool_use) = (compile(default)?, compile(tool_use)?);
        Ok(Self { default, tool_use, specials: specials.clone(), kwargs: RowColumns::new(), date: None })
    }

    /// Sets variables for every row, and the date that `strftime_now` returns.
    pub fn with_variables(self, kwargs: &RowColumns, date: Option<Date>) -> Self {
        Self { kwargs: kwargs.clone(), date, ..self }
    }

    fn all(&self) -> impl Iterator<Item = &NamedTemplate> {
        self.default.iter().chain(&self.tool_use)
    }

    /// Returns the text of the template for rows without tools, or of the only template.
    pub fn source(&self) -> &str {
        self.all().next().map_or("", |source| &source.text)
    }

    /// Returns true if a template uses the current date (`strftime_now`).
    pub fn uses_date(&self) -> bool {
        self.all().any(|source| source.text.contains("strftime_now"))
    }

    /// Fixes the date to today, if a template uses the date and none is set.
    pub fn at_fixed_date(self) -> Self {
        let today = self.uses_date().then(|| jiff::Zoned::now().date());
        Self { date: self.date.or(today), ..self }
    }

    /// Returns the fixed date, if there is one and a template uses it.
    pub fn date(&self) -> Option<Date> {
        self.date.filter(|_| self.uses_date())
    }

    /// Returns everything that a rendering depends on except the conversation, as text; includes the date if a template
    /// uses it.
    pub(super) fn identity(&self) -> String {
        let texts: Vec<&str> = self.all().map(|source| source.text.as_str()).collect();
        let date = if self.uses_date() { self.clock().date().to_string() } else { String::new() };
        let variables = [&self.specials, &self.kwargs].map(|map| Value::Object(map.clone()).to_string());
        format!("{}\0{}\0{date}", texts.join("\0"), variables.join("\0"))
    }

    fn clock(&self) -> RenderTime {
        self.date.map_or_else(|| jiff::Zoned::now().datetime(), |date| date.at(0, 0, 0, 0))
    }

    /// Returns true if a template mentions this role in quotes.
    pub fn mentions(&self, role: &str) -> bool {
        let named = |text: &str| text.contains(&format!("'{role}'")) || text.contains(&format!("\"{role}\""));
        self.all().any(|source| named(&source.text))
    }

    /// Renders the first `upto` messages; with `prompt`, adds the generation prompt.
    pub fn render(&self, talk: &Conversation, upto: usize, prompt: bool) -> Result<String> {
        self.render_with(&talk.messages[..upto], talk.tools.as_ref(), &talk.kwargs, prompt)
    }

    /// Renders messages with tool definitions and further variables; with `prompt`, adds the generation prompt.
    pub fn render_with(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Value>,
        kwargs: &RowColumns,
        prompt: bool,
    ) -> Result<String> {
        let rendered = self.render_as_given(messages, tools, kwargs, prompt);
        // A template that refuses JSON text as arguments, or quotes it, expects the decoded object.
        if rendered.as_ref().is_ok_and(|text| !tool_arguments::quoted_in(messages, text)) {
            return rendered;
        }
        match tool_arguments::decode_arguments(messages) {
            Some(decoded) => {
                let again = self.render_as_given(&decoded, tools, kwargs, prompt);
                again.inspect(|_| tool_arguments::report_decoding_once()).or(rendered)
            }
            None => rendered,
        }
    }

    fn render_as_given(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Value>,
        kwargs: &RowColumns,
        prompt: bool,
    ) -> Result<String> {
        let tools = tools.filter(|tools| !tools.is_null());
        let chosen = tools.and(self.tool_use.as_ref()).or(self.default.as_ref()).ok_or_else(|| {
            Error::user("the model has several chat templates, none of them named `default`, and this row has no tools")
                .hint("choose one by name with data.template or --template")
        })?;
        let mut variables = self.specials.clone();
        for (name, value) in self.kwargs.iter().chain(kwargs) {
            variables.insert(name.clone(), value.clone());
        }
        variables.insert("messages".into(), messages.iter().map(seen_by_template).collect());
        variables.insert("tools".into(), tools.cloned().unwrap_or_default());
        variables.entry("documents").or_insert(Value::Null);
        variables.insert("add_generation_prompt".into(), prompt.into());
        chosen.template.render(&variables, self.clock()).map_err(|fault| template_error(&chosen.name, &fault))
    }
}

/// The keys of a message's reasoning, in the order in which transformers looks for them.
pub(super) const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Returns the message as the template gets it; as in transformers, reasoning is set under all keys that templates use.
fn seen_by_template(message: &ChatMessage) -> Value {
    let Value::Object(mut map) = message.to_json() else { return Value::Null };
    let reasoning = REASONING_KEYS.iter().find_map(|k| map.get(*k).filter(|v| !v.is_null()).cloned());
    if let Some(text) = reasoning {
        if !map.contains_key("thinking") {
            map.insert("thinking".into(), text.clone());
        }
        map.insert("reasoning_content".into(), text);
    }
    Value::Object(map)
}

fn template_error(name: &str, fault: &TemplateError) -> Error {
    let line = fault.line().map(|l| format!(":{l}")).unwrap_or_default();
    let error = Error::user(format!("{name}{line}: {fault}"));
    match fault.kind() {
        TemplateErrorKind::Raised => Error::user(format!("the chat template refuses this conversation: {fault}"))
            .hint("change the conversation, or set a template of your own with data.template or --template"),
        TemplateErrorKind::LimitReached | TemplateErrorKind::StackExhausted => error.hint(
            "the template is broken or hostile, or the row is far too long; set a template of your own with \
             data.template or --template",
        ),
        TemplateErrorKind::Unsupported => error.hint(
            "ft does not support this part of Python's Jinja; set data.template to a template that does not use it",
        ),
        TemplateErrorKind::Syntax | TemplateErrorKind::Python => {
            error.hint("you can set a template of your own with data.template")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        ChatTemplate::compile("test", source, &RowColumns::new())?.render_with(&[], None, &RowColumns::new(), false)
    }

    #[test]
    fn generation_tags_are_a_scope_and_keep_their_whitespace_marks() {
        let source = "{% set x = 1 %}a {%- generation -%} {% set x = 2 %} b{{ x }} {%- endgeneration %}{{ x }}";
        assert_eq!(render(source).unwrap(), "ab21".replace("ab", "a b"));
    }

    #[test]
    fn a_template_that_runs_away_ends_in_an_error() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        let doubling = "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}";
        let list = "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}";
        let nesting = "{% set n = namespace(s=1) %}{% for i in range(9999) %}{% set n.s = [n.s] %}{% endfor %}";
        let chain = "{% set n = namespace() %}{% for i in range(20000) %}\
                     {% set n.top = namespace(inner=n.top) %}{% endfor %}done";
        let e = |source: &str| render(source).unwrap_err().to_string();
        assert!(e(endless).contains("does not come to an end"), "{}", e(endless));
        for source in
            [doubling, list, "{{ 'a' * 9999999999 }}", "{{ '%999999999d' % 1 }}", "{{ 'a'.zfill(9999999999) }}"]
        {
            assert!(e(source).contains("more memory"), "{source}: {}", e(source));
        }
        assert!(e(nesting).contains("nests"), "{}", e(nesting));
        assert_eq!(render(chain).unwrap(), "done");
        for source in [
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
            "{% macro m() %}{% call m() %}{% endcall %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall %}",
        ] {
            assert!(e(source).contains("recurses too deeply"), "{source}: {}", e(source));
        }
        // Reasonable depth is allowed.
        let deep = "{% macro m(n) %}{% if n %}{{ n }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}";
        assert!(render(deep).unwrap().starts_with("605958"));
    }

    #[test]
    fn text_that_is_nested_too_deeply_does_not_compile() {
        for (open, close) in [("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("1 + ", ""), ("a.", "a"), ("x|e|", "e")]
        {
            let source = format!("{{{{ {}1{} }}}}", open.repeat(20_000), close.repeat(20_000));
            assert!(ChatTemplate::compile("test", &source, &RowColumns::new()).is_err(), "{open}");
        }
        let source = "{% if 1 %}".repeat(10_000);
        assert!(ChatTemplate::compile("test", &source, &RowColumns::new()).is_err());
    }

    #[test]
    fn the_templates_own_refusal_is_shown() {
        let e = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(e.message().ends_with("refuses this conversation: roles must alternate"), "{e}");
    }

    #[test]
    fn today_is_todays_date_or_the_given_one() {
        let year = jiff::Zoned::now().year().to_string();
        assert!(render("{{ strftime_now('%d %b %Y') }}").unwrap().ends_with(&year));
        let template = ChatTemplate::compile("test", "{{ strftime_now('%d %b %Y') }}", &RowColumns::new()).unwrap();
        let fixed = template.with_variables(&RowColumns::new(), Some(jiff::civil::date(2024, 2, 29)));
        assert_eq!(fixed.render_with(&[], None, &RowColumns::new(), false).unwrap(), "29 Feb 2024");
        assert!(fixed.identity().contains("2024-02-29"));
    }

    #[test]
    fn errors_name_the_line() {
        assert!(render("a\nb\n{% if %}").unwrap_err().to_string().contains("test:3"));
        assert!(render("a\n{{ x.y.z }}").unwrap_err().to_string().contains("test:2"));
    }
}
