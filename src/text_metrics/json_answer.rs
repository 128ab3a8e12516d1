//! Reads JSON from answers of models.

use serde_json::Value;

/// Removes the marks of a fenced block of Markdown around a text, if there are any: ```` ```json ````.
pub fn without_fence(answer: &str) -> &str {
    let text = answer.trim();
    let inner = ["```json", "```Json", "```JSON", "```"].iter().find_map(|fence| text.strip_prefix(fence));
    let inner = inner.unwrap_or(text);
    inner.strip_suffix("```").unwrap_or(inner).trim()
}

/// Reads an answer that is one JSON value, in a fenced block or not; `None` for any other answer. Numbers keep their digits.
pub fn read(answer: &str) -> Option<Value> {
    crate::json::parse(without_fence(answer)).ok()
}

/// Returns true if two JSON values are equal: numbers by their values (1 and 1.0 are), objects in any order of their keys.
pub fn equal(a: &Value, b: &Value) -> bool {
    let digits = |v: &Value| crate::json::long_number(v).map(String::from);
    match (a, b) {
        _ if digits(a).is_some() || digits(b).is_some() => digits(a) == digits(b),
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64().is_some_and(|x| y.as_f64() == Some(x)),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(key, x)| y.get(key).is_some_and(|y| equal(x, y)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_read_with_and_without_a_fence() {
        assert_eq!(read("```json\n{\"a\": 1}\n```"), Some(json!({"a": 1})));
        assert_eq!(read(" [1, 2] "), Some(json!([1, 2])));
        assert_eq!((read("Here: {}"), read(""), read("```\n```")), (None, None, None));
    }

    #[test]
    fn values_are_equal_whatever_their_order_and_form_of_numbers() {
        assert!(equal(&json!({"a": 1, "b": [2.0]}), &json!({"b": [2], "a": 1.0})));
        assert!(!equal(&json!([1, 2]), &json!([2, 1])) && !equal(&json!("1"), &json!(1)));
        let long = |text: &str| read(text).unwrap();
        assert!(!equal(&long("12345678901234567890123"), &long("12345678901234567890124")));
        assert!(equal(&long("12345678901234567890123"), &long("12345678901234567890123")));
    }
}
