//! Tests of instructions, against lm-eval's (tests/fixtures/instructions.py).

use super::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct CheckedInstructions {
    /// Instruction, arguments, answer, whether it follows strictly and loosely.
    rows: Vec<(String, Map<String, Value>, String, bool, bool)>,
}

/// The fixture's stand-in for a detector of languages.
fn language(text: &str) -> Option<String> {
    let english = text.to_lowercase().split_whitespace().any(|word| word == "the");
    Some(if english { "en" } else { "de" }.to_string())
}

#[test]
fn answers_follow_what_they_follow_in_the_original() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/instructions.json");
    let fixture: CheckedInstructions = crate::fsutil::read_json(&path).unwrap();
    assert!(fixture.rows.len() > 400);
    let mut wrong = Vec::new();
    for (name, arguments, answer, strictly, loosely) in &fixture.rows {
        let instruction = [Instruction::read(name, arguments).unwrap()];
        let found = [follow_strictly, follow_loosely].map(|follow| follow(&instruction, answer, &language)[0]);
        if found != [*strictly, *loosely] {
            wrong.push(format!("{name} {arguments:?}: {found:?} instead of {strictly}, {loosely}: {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), fixture.rows.len(), wrong.join("\n"));
}

#[test]
fn sentences_are_counted_and_keywords_are_no_patterns() {
    let read = |name: &str, arguments: Value| Instruction::read(name, arguments.as_object().unwrap()).unwrap();
    let three = read("length_constraints:number_sentences", json!({"num_sentences": 3.0, "relation": "at least"}));
    assert_eq!(follow_strictly(&[three.clone()], "One. Two. Three.", &language), [true]);
    assert_eq!(follow_strictly(&[three], "Dr. Who. Two.", &language), [false]);
    let pattern = read("keywords:existence", json!({"keywords": ["c++ (fast)"], "num_words": null}));
    assert_eq!(follow_strictly(&[pattern], "Use C++ (Fast) here", &language), [true]);
    let unknown = |_: &str| None;
    let german = read("language:response_language", json!({"language": "de"}));
    assert_eq!(follow_strictly(&[german], "1 2 3", &unknown), [true]);
}

#[test]
fn an_instruction_that_cannot_be_read_says_what_is_missing() {
    let refused =
        |name: &str, arguments: Value| Instruction::read(name, arguments.as_object().unwrap()).unwrap_err().to_string();
    assert_eq!(refused("keywords:rhyme", json!({})), "there is no instruction `keywords:rhyme`");
    assert_eq!(
        refused("length_constraints:number_words", json!({"num_words": 3, "relation": "exactly"})),
        "length_constraints:number_words: `relation` must be `less than` or `at least`"
    );
    for (name, arguments, words) in [
        ("keywords:existence", json!({"keywords": []}), "a list of texts"),
        ("keywords:letter_frequency", json!({"letter": "ab"}), "one character"),
        ("detectable_format:number_bullet_lists", json!({"num_bullets": 1.5}), "a whole number"),
        ("startend:end_checker", json!({"end_phrase": null}), "a text"),
    ] {
        assert!(refused(name, arguments).contains(words), "{name}");
    }
}
