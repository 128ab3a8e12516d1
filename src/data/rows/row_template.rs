//! Texts and values made of the columns of a row by a Jinja template.

use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::jinja::{JinjaTemplate, RenderTime, TemplateError, TemplateErrorKind};
use crate::json;
use serde_json::Value;
use std::sync::Arc;

/// A Jinja template whose variables are the columns of a row. Every character outside of tags is kept, and the use of a
/// column that the row lacks is an error.
#[derive(Debug, Clone)]
pub struct RowTemplate {
    text: String,
    template: Arc<JinjaTemplate>,
    /// The expression of a template `{{ … }}`, with the statements before it, written as JSON.
    expression: Option<Arc<JinjaTemplate>>,
}

impl PartialEq for RowTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// The time that templates of rows see: a text must not depend on the day of the evaluation.
const CLOCK: RenderTime = RenderTime::constant(2000, 1, 1, 0, 0, 0, 0);

impl RowTemplate {
    /// Compiles a template. Fails if it is not valid Jinja.
    pub fn compile(text: &str) -> Result<Self, TemplateError> {
        let template = Arc::new(JinjaTemplate::compile_strict(text)?);
        // Two tags, as in `{{ a }} {{ b }}`, do not compile as one expression.
        let expression = text.trim().strip_suffix("}}").and_then(|open| {
            let after_statements = open.rfind("{{").filter(|at| writes_nothing(&open[..*at]));
            let candidates = open.starts_with("{{").then_some(0).into_iter().chain(after_statements);
            candidates.map(|at| as_json(&open[..at], &open[at + 2..])).find_map(Result::ok)
        });
        Ok(Self { text: text.into(), template, expression: expression.map(Arc::new) })
    }

    /// Returns its source.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Renders the template. Fails where Python would raise.
    pub fn render(&self, columns: &RowColumns) -> Result<String> {
        self.template.render(columns, CLOCK).map_err(|fault| self.error(&fault, columns))
    }

    /// Returns the value of a template that is one expression, `{{ … }}`, such as a list or a number; of others the text.
    pub fn value(&self, columns: &RowColumns) -> Result<Value> {
        let Some(expression) = &self.expression else { return self.render(columns).map(Value::String) };
        let text = expression.render(columns, CLOCK).map_err(|fault| self.error(&fault, columns))?;
        json::parse(&text).map_err(|e| Error::bug(format!("the value of `{}` as JSON: {e}", self.text)))
    }

    fn error(&self, fault: &TemplateError, columns: &RowColumns) -> Error {
        let line =
            fault.line().filter(|_| self.text.contains('\n')).map_or(String::new(), |line| format!(", line {line}"));
        let error = Error::user(format!("the template `{}`{line}: {fault}", self.text.trim()));
        match fault.kind() {
            TemplateErrorKind::Python
                if ["undefined", "no attribute"].iter().any(|w| fault.to_string().contains(w)) =>
            {
                let names = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
                error.hint(format!("the row has the columns {names}"))
            }
            TemplateErrorKind::Python => {
                error.hint("look at the row with `ft data inspect`: does each row have such values?")
            }
            TemplateErrorKind::Unsupported => error.hint("write it in another way: ft does not run this part of Jinja"),
            _ => error,
        }
    }
}

/// Compiles an expression after statements so that its value is written as JSON.
fn as_json(statements: &str, expression: &str) -> Result<JinjaTemplate, TemplateError> {
    let inner = expression.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
    JinjaTemplate::compile_strict(&format!("{statements}{{{{ ({inner}) | tojson }}}}"))
}

/// Returns true if the text is nothing but whitespace, comments and statements without text between them, such as `{% set … %}`.
fn writes_nothing(text: &str) -> bool {
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = match rest.get(..2) {
            Some("{#") => rest.find("#}").map(|at| at + 2),
            Some("{%") => rest.find("%}").map(|at| at + 2).and_then(|end| {
                let tag = rest[2..end - 2].trim_matches(['-', '+', ' ', '\n']);
                let closing = match tag.split_whitespace().next() {
                    Some("macro") => "endmacro",
                    // A block: `{% set name %}…{% endset %}`.
                    Some("set") if !tag.contains('=') => "endset",
                    _ => return Some(end),
                };
                let at = end + rest[end..].find(closing)?;
                rest[at..].find("%}").map(|to| at + to + 2)
            }),
            _ => None,
        };
        let Some(end) = end else { return false };
        rest = rest[end..].trim_start();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row() -> RowColumns {
        json!({"question": "2 + 2?", "label": 1, "options": ["3", "4"], "n": {"text": "x"}})
            .as_object()
            .unwrap()
            .clone()
    }

    #[test]
    fn texts_keep_every_character() {
        let template = RowTemplate::compile("Q: {{ question }}\n{% if label %}\n  yes\n{% endif %}\nA: \n").unwrap();
        assert_eq!(template.render(&row()).unwrap(), "Q: 2 + 2?\n\n  yes\n\nA: \n");
    }

    #[test]
    fn an_expression_has_a_value() {
        let value = |text: &str| RowTemplate::compile(text).unwrap().value(&row()).unwrap();
        assert_eq!(value("{{ options }}"), json!(["3", "4"]));
        assert_eq!(value(" {{- [n.text, 'b'] -}} "), json!(["x", "b"]));
        assert_eq!(value("{{ label }}"), json!(1));
        assert_eq!(value("{{ label }}{{ label }}"), json!("11"));
        assert_eq!(value("plain"), json!("plain"));
        assert_eq!(value("{% set i = label %}\n{# the other #}{{ [options[i], i] }}"), json!(["4", 1]));
        let shout = "{% macro shout(x) %}{{ x | upper }}!{% endmacro %}{{ [shout('a'), shout(n.text)] }}";
        assert_eq!(value(shout), json!(["A!", "X!"]));
        assert_eq!(value("{% set i = 2 %}no {{ i }}"), json!("no 2"));
        assert_eq!(value("{% for o in options %}{{ o }}{% endfor %}{{ label }}"), json!("341"));
    }

    #[test]
    fn a_missing_column_is_an_error_unless_the_template_asks_for_it() {
        let render = |text: &str| RowTemplate::compile(text).unwrap().render(&row()).map_err(|e| e.to_string());
        for text in [
            "{{ answr }}",
            "{{ answr | upper }}",
            "{% if answr %}{% endif %}",
            "{% for a in answr %}{% endfor %}",
            "{{ 'a' ~ answr }}",
            "{{ answr == 1 }}",
            "{{ not answr }}",
            "{{ n.txt }}",
        ] {
            let told = render(text).unwrap_err();
            assert!(told.contains("undefined") || told.contains("no attribute"), "{text}: {told}");
            assert!(told.contains("`question`, `label`"), "{text}: {told}");
        }
        assert_eq!(render("{{ answr | default('-') }}{{ answr is defined }}").unwrap(), "-False");
        let value = RowTemplate::compile("{{ answr }}").unwrap().value(&row()).unwrap_err();
        assert!(value.to_string().contains("'answr' is undefined"), "{value}");
        assert!(RowTemplate::compile("{{ a").is_err());
    }
}
