//! Arguments of beam search and of several answers to a prompt.

use super::generation_config::GenerationConfig;
use clap::{Args, ValueEnum};
use ft::error::{Error, Result};
use ft::generate::beam::{BeamEarlyStopping, BeamSettings};
use ft::generate::settings::GenerationSettings;
use serde_json::Value;

/// Options of beam search and of several answers to a prompt.
#[derive(Args)]
pub struct BeamArgs {
    /// Number of answers to each prompt: sampled, or the best beams
    #[arg(long, value_name = "N")]
    num_return_sequences: Option<usize>,
    /// Beam search with N beams
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// Beam search: values above 0 favour long answers, below 0 short ones [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// End beam search when there are as many answers as beams (true), when better ones are unlikely (false), or
    /// impossible (never)
    #[arg(long, value_enum)]
    early_stopping: Option<EarlyStoppingArg>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EarlyStoppingArg {
    True,
    False,
    Never,
}

impl BeamArgs {
    /// Returns the beams, or `None` without beam search, and the number of answers to each prompt.
    pub fn choose(
        &self,
        config: &mut GenerationConfig,
        settings: &GenerationSettings,
    ) -> Result<(Option<BeamSettings>, usize)> {
        let count = match self.num_beams {
            None => config.count("num_beams")?.unwrap_or(1),
            Some(n) => n,
        };
        let answers = match self.num_return_sequences {
            None => config.count("num_return_sequences")?.unwrap_or(1),
            Some(n) => n,
        };
        if count == 0 || answers == 0 {
            return Err(Error::user("--num-beams and --num-return-sequences must be 1 or more"));
        }
        if count == 1 {
            if self.length_penalty.is_some() || self.early_stopping.is_some() {
                return Err(
                    Error::user("--length-penalty and --early-stopping need beam search").hint("add --num-beams N")
                );
            }
            if answers > 1 && settings.is_greedy() {
                return Err(Error::user(format!("{answers} answers to a prompt would all be the same one"))
                    .hint("sample with --temperature T, or search with --num-beams N"));
            }
            return Ok((None, answers));
        }
        let length_penalty = match self.length_penalty {
            None => config.number("length_penalty")?.unwrap_or(1.0),
            Some(x) => x,
        };
        let early_stopping = match self.early_stopping {
            Some(EarlyStoppingArg::True) => BeamEarlyStopping::Yes,
            Some(EarlyStoppingArg::False) => BeamEarlyStopping::No,
            Some(EarlyStoppingArg::Never) => BeamEarlyStopping::Never,
            None => config
                .get("early_stopping", "true, false or \"never\"", |v| match v {
                    Value::Bool(true) => Some(BeamEarlyStopping::Yes),
                    Value::Bool(false) => Some(BeamEarlyStopping::No),
                    Value::String(s) if s == "never" => Some(BeamEarlyStopping::Never),
                    _ => None,
                })?
                .unwrap_or_default(),
        };
        let beams = BeamSettings { count, answers, length_penalty, early_stopping };
        beams.check(settings)?;
        Ok((Some(beams), answers))
    }
}
