//! Compares the tool calls of an answer with expected ones, in any order.

use super::json_answer::{equal, read};
use super::words::{FScore, split_whitespace};
use fancy_regex::Regex;
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// A call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Name of the tool.
    pub name: String,
    /// Its arguments by name.
    pub arguments: Map<String, Value>,
}

/// How the calls of an answer compare with the expected ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ToolCallScore {
    /// Whether the same tools are called, each as often.
    pub same_tools: bool,
    /// Whether the same calls are made: names and all arguments.
    pub exact: bool,
    /// Precision, recall and F1 of whole calls.
    pub calls: FScore,
}

/// Reads the tool calls of an answer; `None` if it has something like one that cannot be read. Known forms: JSON of one call or a list
/// of calls, each `{"name": …, "arguments": {…}}` (or `parameters`, or within `function`, and arguments as JSON text); the same
/// within `{"tool_calls": […]}`; and any number of `<tool_call>…</tool_call>` with text around them. An answer in other
/// words makes no call.
pub fn calls(answer: &str) -> Option<Vec<ToolCall>> {
    static TAGGED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?s)<tool_call>(.*?)</tool_call>").expect("a valid pattern"));
    if answer.contains("<tool_call>") {
        let tagged = TAGGED.captures_iter(answer).filter_map(|found| found.ok()?.get(1)).map(|inside| inside.as_str());
        let found: Option<Vec<Vec<ToolCall>>> = tagged.map(|text| calls_of(&read(text)?)).collect();
        // A tag that is not closed was cut off.
        let opened = answer.matches("<tool_call>").count();
        return found.filter(|found| found.len() == opened).map(|found| found.concat());
    }
    match read(answer) {
        Some(value) => calls_of(&value),
        None if split_whitespace(answer).next().is_some_and(|word| word.starts_with(['{', '['])) => None,
        None => Some(Vec::new()),
    }
}

/// Reads calls from JSON; `None` if it is none.
pub fn calls_of(value: &Value) -> Option<Vec<ToolCall>> {
    match value {
        Value::Array(list) => list.iter().map(call).collect(),
        Value::Object(map) => match map.get("tool_calls") {
            Some(Value::Array(list)) => list.iter().map(call).collect(),
            Some(_) => None,
            None => Some(vec![call(value)?]),
        },
        _ => None,
    }
}

fn call(value: &Value) -> Option<ToolCall> {
    let map = value.get("function").and_then(Value::as_object).or_else(|| value.as_object())?;
    let name = map.get("name")?.as_str()?.to_string();
    let arguments = match map.get("arguments").or_else(|| map.get("parameters")) {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(Value::String(text)) => read(text)?.as_object()?.clone(),
        Some(_) => return None,
    };
    Some(ToolCall { name, arguments })
}

impl ToolCall {
    fn is(&self, other: &Self) -> bool {
        let all = |(key, value): (&String, &Value)| other.arguments.get(key).is_some_and(|v| equal(value, v));
        self.name == other.name && self.arguments.len() == other.arguments.len() && self.arguments.iter().all(all)
    }
}

impl ToolCallScore {
    /// Compares calls. No calls where none are expected are right.
    pub fn of(made: &[ToolCall], expected: &[ToolCall]) -> Self {
        let mut open: Vec<&ToolCall> = expected.iter().collect();
        let mut common = 0;
        for call in made {
            if let Some(place) = open.iter().position(|other| call.is(other)) {
                open.swap_remove(place);
                common += 1;
            }
        }
        let names = |calls: &[ToolCall]| {
            let mut names: Vec<String> = calls.iter().map(|call| call.name.clone()).collect();
            names.sort();
            names
        };
        let exact = common == made.len() && common == expected.len();
        let calls = match made.is_empty() && expected.is_empty() {
            true => FScore { precision: 1.0, recall: 1.0, f1: 1.0 },
            false => FScore::of(common, made.len(), expected.len()),
        };
        Self { same_tools: names(made) == names(expected), exact, calls }
    }

    /// Compares an answer with expected calls. Calls that cannot be read are as wrong as none where some are expected.
    pub fn of_answer(answer: &str, expected: &[ToolCall]) -> Self {
        match calls(answer) {
            Some(made) => Self::of(&made, expected),
            None => Self { same_tools: false, exact: false, calls: FScore::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expected() -> Vec<ToolCall> {
        calls_of(&json!([
            {"name": "dose", "arguments": {"drug": "aspirin", "mg": 100}},
            {"name": "stop", "arguments": {}}
        ]))
        .unwrap()
    }

    #[test]
    fn every_known_form_is_read() {
        for answer in [
            r#"[{"name": "stop"}, {"name": "dose", "arguments": {"mg": 100.0, "drug": "aspirin"}}]"#,
            r#"{"tool_calls": [{"type": "function", "function": {"name": "dose", "arguments": "{\"drug\": \"aspirin\", \"mg\": 100}"}},
                {"function": {"name": "stop", "arguments": null}}]}"#,
            "I stop.\n<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>\n\
             <tool_call>{\"name\": \"dose\", \"parameters\": {\"drug\": \"aspirin\", \"mg\": 100}}</tool_call>",
            "```json\n[{\"name\": \"dose\", \"arguments\": {\"drug\": \"aspirin\", \"mg\": 100}}, {\"name\": \"stop\"}]\n```",
        ] {
            assert!(ToolCallScore::of_answer(answer, &expected()).exact, "{answer}");
        }
    }

    #[test]
    fn wrong_arguments_missing_and_repeated_calls_are_told_apart() {
        let score = |answer: &str| ToolCallScore::of_answer(answer, &expected());
        let wrong = score(r#"[{"name": "dose", "arguments": {"drug": "aspirin", "mg": 10}}, {"name": "stop"}]"#);
        assert!(wrong.same_tools && !wrong.exact && wrong.calls.f1 == 0.5);
        let extra =
            score(r#"[{"name": "dose", "arguments": {"drug": "aspirin", "mg": 100, "x": 1}}, {"name": "stop"}]"#);
        assert!(!extra.exact && extra.calls.f1 == 0.5, "an argument too many");
        let twice = score(r#"[{"name": "stop"}, {"name": "stop"}]"#);
        assert!(!twice.same_tools && twice.calls == FScore { precision: 0.5, recall: 0.5, f1: 0.5 });
        let none = score("I would rather not.");
        assert!(!none.same_tools && none.calls.f1 == 0.0);
    }

    #[test]
    fn answers_without_calls_are_right_where_none_are_expected() {
        assert!(ToolCallScore::of_answer("All is well.", &[]).exact);
        assert!(!ToolCallScore::of_answer(r#"{"name": "stop"}"#, &[]).exact);
        for damaged in
            ["<tool_call>{\"name\": \"stop\"}", "{\"name\": \"st", r#"{"name": 3}"#, "<tool_call>x</tool_call>"]
        {
            assert_eq!(calls(damaged), None, "{damaged}");
            assert!(!ToolCallScore::of_answer(damaged, &[]).exact);
        }
    }
}
