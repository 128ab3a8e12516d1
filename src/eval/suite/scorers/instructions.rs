//! Instructions of IFEval: whether a program finds them followed.

use super::{add_estimate, add_mean, add_scores};
use crate::error::{Error, Result};
use crate::eval::results::SubjectResults;
use crate::eval::suite::answers::ItemTexts;
use crate::eval::suite::rows::{TaskRow, at};
use crate::eval::suite::scores::joint_estimate;
use crate::recipe::suite_file::SuiteTask;
use crate::text_metrics::instructions::{Instruction, follow_loosely, follow_strictly};
use serde_json::{Map, Value};
use whatlang::Lang;

/// The columns of IFEval's file.
const NAMES: &str = "instruction_id_list";
const ARGUMENTS: &str = "kwargs";

/// The instructions of each row.
pub struct RowInstructions(Vec<Vec<Instruction>>);

/// Reads the instructions of each row.
pub fn read(task: &SuiteTask, rows: &[TaskRow]) -> Result<RowInstructions> {
    let each = rows.iter().map(|row| at(&task.data, row.line, of_row(row)));
    each.collect::<Result<_>>().map(RowInstructions)
}

fn of_row(row: &TaskRow) -> Result<Vec<Instruction>> {
    let (names, arguments) = (list(row, NAMES)?, list(row, ARGUMENTS)?);
    if names.is_empty() {
        return Err(Error::user(format!("`{NAMES}` is empty")).hint("leave the row out"));
    }
    if names.len() != arguments.len() {
        return Err(Error::user(format!(
            "`{NAMES}` has {} instructions and `{ARGUMENTS}` {} maps of arguments",
            names.len(),
            arguments.len()
        )));
    }
    let instruction = |(name, arguments): (&Value, &Value)| {
        let name = name.as_str().ok_or_else(|| Error::user(format!("`{NAMES}`: {name} is no name")))?;
        let empty = Map::new();
        let arguments = match arguments {
            Value::Object(map) => map,
            Value::Null => &empty,
            other => return Err(Error::user(format!("`{ARGUMENTS}`: {other} is no map"))),
        };
        Instruction::read(name, arguments).map_err(|e| Error::user(e.to_string()))
    };
    names.iter().zip(&arguments).map(instruction).collect()
}

/// Reads a column with a list, or with one as JSON text, as in CSV.
fn list(row: &TaskRow, column: &str) -> Result<Vec<Value>> {
    let wrong = |what: &str| {
        let names = row.columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
        Error::user(format!("the metric `instructions` reads the column `{column}`, {what}"))
            .hint(format!("the row has the columns {names}"))
    };
    match row.columns.get(column) {
        None | Some(Value::Null) => Err(wrong("which the row lacks")),
        Some(Value::Array(items)) => Ok(items.clone()),
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|_| wrong("which is text that is no list in JSON"))
        }
        Some(_) => Err(wrong("which is no list")),
    }
}

impl RowInstructions {
    /// Adds the four accuracies of IFEval: of prompts whose instructions are all followed, and of instructions.
    pub fn score(&self, answers: &[ItemTexts], results: &mut SubjectResults) {
        for (loosely, name) in [(false, "strict"), (true, "loose")] {
            let followed: Vec<Vec<Vec<bool>>> =
                self.0.iter().zip(answers).map(|(own, a)| follow(own, a, loosely)).collect();
            let mean = |of: &dyn Fn(&Vec<bool>) -> f64| -> Vec<f64> {
                followed.iter().map(|each| each.iter().map(of).sum::<f64>() / each.len() as f64).collect()
            };
            let share = |all: &Vec<bool>| all.iter().filter(|ok| **ok).count() as f64 / all.len() as f64;
            add_mean(
                results,
                &format!("prompt_level_{name}_acc"),
                mean(&|all| f64::from(u8::from(all.iter().all(|ok| *ok)))),
            );
            let (shares, instructions) = (mean(&share), format!("inst_level_{name}_acc"));
            let estimate = joint_estimate(&instructions, shares.len(), |drawn| {
                let weights = || drawn.iter().zip(&self.0).map(|(times, own)| times * own.len() as f64);
                Some(weights().zip(&shares).map(|(weight, share)| weight * share).sum::<f64>() / weights().sum::<f64>())
            });
            add_scores(results, &instructions, shares);
            add_estimate(results, &instructions, estimate);
        }
    }
}

/// Returns for each answer of an item which instructions it follows.
fn follow(instructions: &[Instruction], answers: &ItemTexts, loosely: bool) -> Vec<Vec<bool>> {
    let unknown = instructions.iter().any(|one| matches!(one, Instruction::Language(code) if !is_known(code)));
    let language = |text: &str| if unknown { None } else { language_of(text) };
    let follows = |text: &String| match loosely {
        false => follow_strictly(instructions, text, &language),
        true => follow_loosely(instructions, text, &language),
    };
    answers.scored.iter().map(follows).collect()
}

/// Returns the code of ISO 639-1 of a text's language, as far as it can be told.
fn language_of(text: &str) -> Option<String> {
    whatlang::detect_lang(text).and_then(two_letters).map(str::to_string)
}

fn is_known(code: &str) -> bool {
    Lang::all().iter().any(|lang| two_letters(*lang) == Some(code))
}

/// Returns the code of ISO 639-1 of the languages that IFEval asks for, and of those next to them.
fn two_letters(language: Lang) -> Option<&'static str> {
    Some(match language {
        Lang::Eng => "en",
        Lang::Spa => "es",
        Lang::Por => "pt",
        Lang::Ara => "ar",
        Lang::Hin => "hi",
        Lang::Fra => "fr",
        Lang::Rus => "ru",
        Lang::Deu => "de",
        Lang::Jpn => "ja",
        Lang::Ita => "it",
        Lang::Ben => "bn",
        Lang::Ukr => "uk",
        Lang::Tha => "th",
        Lang::Urd => "ur",
        Lang::Tam => "ta",
        Lang::Tel => "te",
        Lang::Bul => "bg",
        Lang::Kor => "ko",
        Lang::Pol => "pl",
        Lang::Heb => "he",
        Lang::Pes => "fa",
        Lang::Vie => "vi",
        Lang::Nep => "ne",
        Lang::Kan => "kn",
        Lang::Mar => "mr",
        Lang::Guj => "gu",
        Lang::Pan => "pa",
        Lang::Mal => "ml",
        Lang::Fin => "fi",
        Lang::Cmn => "zh",
        Lang::Nld => "nl",
        Lang::Swe => "sv",
        Lang::Dan => "da",
        Lang::Nob => "no",
        Lang::Tur => "tr",
        Lang::Ces => "cs",
        Lang::Slk => "sk",
        Lang::Hun => "hu",
        Lang::Ron => "ro",
        Lang::Ell => "el",
        Lang::Hrv => "hr",
        Lang::Srp => "sr",
        Lang::Slv => "sl",
        Lang::Mkd => "mk",
        Lang::Bel => "be",
        Lang::Lit => "lt",
        Lang::Lav => "lv",
        Lang::Est => "et",
        Lang::Ind => "id",
        Lang::Cat => "ca",
        Lang::Afr => "af",
        Lang::Lat => "la",
        _ => "other",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::suite_file::{TaskKind, parse};
    use serde_json::json;

    fn row(columns: Value) -> TaskRow {
        TaskRow { line: 3, columns: columns.as_object().unwrap().clone() }
    }

    #[test]
    fn languages_are_recognised_as_far_as_they_are_known() {
        assert_eq!(
            language_of("Das Haus ist heute leider geschlossen, kommen Sie morgen wieder.").as_deref(),
            Some("de")
        );
        assert_eq!(language_of("यह एक छोटा वाक्य है और इसका अर्थ सरल है।").as_deref(), Some("hi"));
        assert_eq!(language_of("12 34"), None);
        assert!(is_known("pa") && !is_known("sw"), "Swahili cannot be told, and counts as followed");
    }

    #[test]
    fn rows_without_instructions_are_told_with_their_place() {
        let suite = parse(
            "s.yaml",
            "tasks:\n- { name: i, data: rows.jsonl, prompt: \"{{ prompt }}\", generate: { metrics: [instructions] } }\n",
        );
        let suite = suite.unwrap();
        assert!(matches!(&suite.tasks[0].kind, TaskKind::Generate(g) if !g.needs_answer()));
        let told = |columns: Value| match read(&suite.tasks[0], &[row(columns)]) {
            Ok(_) => panic!("it was read"),
            Err(e) => e.to_string(),
        };
        let missing = told(json!({"prompt": "x", "kwargs": []}));
        assert!(
            missing.starts_with("rows.jsonl:3: the metric `instructions` reads the column `instruction_id_list`"),
            "{missing}"
        );
        assert!(missing.contains("`prompt`, `kwargs`"), "{missing}");
        let one = json!(["punctuation:no_comma"]);
        assert!(told(json!({"instruction_id_list": one, "kwargs": []})).contains("1 instructions and `kwargs` 0 maps"));
        assert!(
            told(json!({"instruction_id_list": ["a:b"], "kwargs": [{}]})).contains("there is no instruction `a:b`")
        );
        assert!(told(json!({"instruction_id_list": 3, "kwargs": [{}]})).contains("is no list"));
        let as_text = row(json!({"instruction_id_list": "[\"punctuation:no_comma\"]", "kwargs": "[null]"}));
        assert_eq!(read(&suite.tasks[0], &[as_text]).ok().unwrap().0, [[Instruction::NoComma]]);
    }
}
