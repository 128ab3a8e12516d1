//! What `doc_to_text`, `doc_to_target` and `doc_to_choice` name: a column, a template, a number or texts
//! (`ConfigurableTask.doc_to_text` and so on in lm-evaluation-harness).

use crate::data::rows::RowTemplate;
use crate::data::source::RowColumns;
use crate::recipe::lm_eval_file::TaskValue;
use serde_json::Value;

/// What a key names.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// A column of the row.
    Column(String),
    /// A Jinja template over the columns.
    Template(String),
    /// A number.
    Number(i64),
    /// Texts as they are.
    Texts(Vec<String>),
    /// A Python function.
    Function(String),
    /// Something else.
    Other,
}

impl Field {
    /// Decides what a value names for rows with these columns.
    pub fn of(value: &TaskValue, columns: &RowColumns) -> Self {
        let literal = |value: &TaskValue| match value {
            TaskValue::Scalar(Value::String(text)) => Some(text.clone()),
            TaskValue::Scalar(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        match value {
            _ if value.function().is_some() => Self::Function(value.function().unwrap_or_default().into()),
            TaskValue::Scalar(Value::String(text)) if columns.contains_key(text) => Self::Column(text.clone()),
            TaskValue::Scalar(Value::String(text)) => Self::Template(text.clone()),
            TaskValue::Scalar(Value::Number(number)) => number.as_i64().map_or(Self::Other, Self::Number),
            TaskValue::List(items) => items.iter().map(literal).collect::<Option<_>>().map_or(Self::Other, Self::Texts),
            TaskValue::Map(entries) => {
                let values = entries.iter().map(|(_, value)| literal(value));
                values.collect::<Option<_>>().map_or(Self::Other, Self::Texts)
            }
            TaskValue::Scalar(_) | TaskValue::Function(_) => Self::Other,
        }
    }

    /// Returns it as a template.
    pub fn template(&self) -> Option<String> {
        match self {
            Self::Column(name) => Some(format!("{{{{ {} }}}}", variable(name)?)),
            Self::Template(text) => Some(text.clone()),
            Self::Number(number) => Some(number.to_string()),
            Self::Texts(_) => Some(format!("{{{{ {} }}}}", self.expression()?)),
            Self::Function(_) | Self::Other => None,
        }
    }

    /// Returns it as an expression, without `{{` and `}}`.
    pub fn expression(&self) -> Option<String> {
        match self {
            Self::Column(name) => variable(name).map(str::to_string),
            Self::Template(text) => {
                let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
                let inner = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
                RowTemplate::compile(&format!("{{{{ ({inner}) }}}}")).is_ok().then(|| format!("({inner})"))
            }
            Self::Number(number) => Some(number.to_string()),
            Self::Texts(texts) => serde_json::to_string(texts).ok(),
            Self::Function(_) | Self::Other => None,
        }
    }

    /// Returns the value for a row, if it can be computed.
    pub fn value(&self, columns: &RowColumns) -> Option<Value> {
        match self {
            Self::Column(name) => columns.get(name).cloned(),
            Self::Template(text) => RowTemplate::compile(text).ok()?.value(columns).ok(),
            Self::Number(number) => Some((*number).into()),
            Self::Texts(texts) => Some(texts.iter().map(|text| Value::from(text.as_str())).collect()),
            Self::Function(_) | Self::Other => None,
        }
    }
}

/// Returns a column's name if a template can name it.
fn variable(name: &str) -> Option<&str> {
    let first = name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
    (first && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
}

/// Returns a template that writes this text.
pub fn quoted(text: &str) -> String {
    match ["{{", "{%", "{#"].iter().any(|tag| text.contains(tag)) {
        true => format!("{{{{ {} }}}}", Value::from(text)),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_is_a_column_if_the_row_has_it() {
        let row = json!({"question": "2 + 2?", "a b": 1}).as_object().unwrap().clone();
        let of = |value: Value| Field::of(&TaskValue::Scalar(value), &row);
        assert_eq!(of(json!("question")), Field::Column("question".into()));
        assert_eq!(of(json!("{{ question }}")).expression().unwrap(), "(question)");
        assert_eq!(of(json!("answer")), Field::Template("answer".into()));
        assert_eq!(of(json!("answer")).expression(), None);
        assert_eq!(of(json!("a b")).template(), None, "no template can name it");
        assert_eq!(of(json!(3)).template().unwrap(), "3");
        let list = TaskValue::List(vec![TaskValue::Scalar(json!("no")), TaskValue::Scalar(json!("it's \"so\""))]);
        assert_eq!(Field::of(&list, &row).value(&row), Some(json!(["no", "it's \"so\""])));
        assert_eq!(quoted("a {{b}}"), "{{ \"a {{b}}\" }}");
    }
}
