//! Rewards for answers that are JSON and fit a JSON Schema.

use super::source::{RewardInput, RewardSource};
use super::spec::JsonSchemaSpec;
use crate::error::{Error, Result};
use crate::fsutil::read_json;
use crate::models::Model;
use jsonschema::Validator;
use serde_json::Value;

/// Reward by a schema: 1 if the answer fits it, `parsed` if it is other JSON, else 0.
pub(super) struct SchemaReward {
    validator: Validator,
    parsed: f64,
}

impl SchemaReward {
    /// Reads and compiles the schema. Fails for references to other files or addresses: nothing is fetched.
    pub fn open(spec: JsonSchemaSpec) -> Result<Self> {
        let schema: Value = read_json(&spec.path)?;
        let validator = jsonschema::validator_for(&schema).map_err(|e| {
            let at = e.instance_path().to_string();
            let at = if at.is_empty() { String::new() } else { format!(" at {at}") };
            Error::user(format!("{}: not a valid JSON Schema{at}: {e}", spec.path.display()))
                .hint("the file must contain the whole schema: references to other files are not followed")
        })?;
        Ok(Self { validator, parsed: spec.parsed })
    }
}

impl RewardSource for SchemaReward {
    fn score(&mut self, _: &Model, answers: &[RewardInput]) -> Result<Vec<f64>> {
        let one = |a: &RewardInput| match serde_json::from_str::<Value>(a.answer.trim()) {
            Ok(value) if self.validator.is_valid(&value) => 1.0,
            Ok(_) => self.parsed,
            Err(_) => 0.0,
        };
        Ok(answers.iter().map(one).collect())
    }
}
