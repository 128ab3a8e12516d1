//! Answers that are JSON and fit a JSON Schema, and rewards for them.

use super::source::{RewardInput, RewardSource};
use super::spec::JsonSchemaSpec;
use crate::error::{Error, Result};
use crate::fsutil::read_json;
use crate::models::Model;
use jsonschema::Validator;
use serde_json::Value;

/// A compiled JSON Schema for answers.
pub struct AnswerSchema(Validator);

/// How an answer relates to a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaFit {
    /// It is JSON that fits the schema.
    Fits,
    /// It is other JSON.
    OtherJson,
    /// It is not JSON.
    NotJson,
}

impl AnswerSchema {
    /// Compiles a schema; `place` names its file in errors. Fails for references to other files or addresses: nothing is fetched.
    pub fn of(schema: &Value, place: &str) -> Result<Self> {
        let validator = jsonschema::validator_for(schema).map_err(|e| {
            let at = e.instance_path().to_string();
            let at = if at.is_empty() { String::new() } else { format!(" at {at}") };
            Error::user(format!("{place}: not a valid JSON Schema{at}: {e}"))
                .hint("the file must contain the whole schema: references to other files are not followed")
        })?;
        Ok(Self(validator))
    }

    /// Returns how an answer relates to the schema.
    pub fn fit(&self, answer: &str) -> SchemaFit {
        match serde_json::from_str::<Value>(answer.trim()) {
            Ok(value) if self.0.is_valid(&value) => SchemaFit::Fits,
            Ok(_) => SchemaFit::OtherJson,
            Err(_) => SchemaFit::NotJson,
        }
    }
}

/// Reward by a schema: 1 if the answer fits it, `parsed` if it is other JSON, else 0.
pub(super) struct SchemaReward {
    schema: AnswerSchema,
    parsed: f64,
}

impl SchemaReward {
    /// Reads and compiles the schema.
    pub fn open(spec: JsonSchemaSpec) -> Result<Self> {
        let schema: Value = read_json(&spec.path)?;
        Ok(Self { schema: AnswerSchema::of(&schema, &spec.path.display().to_string())?, parsed: spec.parsed })
    }
}

impl RewardSource for SchemaReward {
    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        let one = |a: &RewardInput| match self.schema.fit(&a.answer) {
            SchemaFit::Fits => 1.0,
            SchemaFit::OtherJson => self.parsed,
            SchemaFit::NotJson => 0.0,
        };
        Ok(answers.iter().map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_fit_are_other_json_or_no_json() {
        let schema = json!({
            "type": "object",
            "required": ["code"],
            "properties": { "code": { "type": "string", "pattern": "^[A-Z][0-9]{2}$" } },
            "additionalProperties": false
        });
        let schema = AnswerSchema::of(&schema, "schema.json").unwrap();
        let fits = ["{\"code\": \"J45\"}", "{\"code\": \"asthma\"}", "J45"].map(|answer| schema.fit(answer));
        assert_eq!(fits, [SchemaFit::Fits, SchemaFit::OtherJson, SchemaFit::NotJson]);
        let message = AnswerSchema::of(&json!({ "type": "text" }), "schema.json").err().unwrap().to_string();
        assert!(message.contains("schema.json: not a valid JSON Schema"), "{message}");
    }
}
