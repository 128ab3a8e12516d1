//! `ft logits`: prints a model's logits, so that tests/reference can compare them with those of other programs. Hidden
//! from `ft --help`.

use clap::{Args, ValueEnum};
use ft::error::{Error, Result};
use ft::fsutil;
use ft::models;
use ft::nn::Tokens;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tch::{Kind, Tensor};

/// Print the logits after every token of given sequences as JSON
#[derive(Args)]
pub struct LogitsArgs {
    /// Hugging Face directory, or GGUF file
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Adapter directory
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// JSON file: {"rows": [{"ids": [...]}]}
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    #[arg(long, value_enum, default_value_t = LogitsDtypeArg::F32)]
    dtype: LogitsDtypeArg,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogitsDtypeArg {
    F32,
    Bf16,
}

#[derive(Deserialize)]
struct LogitsRequest {
    rows: Vec<TokenIdRow>,
}

#[derive(Deserialize)]
struct TokenIdRow {
    ids: Vec<u32>,
}

#[derive(Serialize)]
struct LogitsRow {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

/// Runs `ft logits`.
pub fn run(args: &LogitsArgs) -> Result<()> {
    let LogitsRequest { rows } = fsutil::read_json(&args.ids)?;
    let kind = match args.dtype {
        LogitsDtypeArg::F32 => Kind::Float,
        LogitsDtypeArg::Bf16 => Kind::BFloat16,
    };
    let model = models::open(&args.model, args.adapter.as_slice(), models::device(&args.device)?, kind)?;
    let vocabulary = model.config().vocab_size;
    let mut answers = Vec::new();
    for TokenIdRow { ids } in rows {
        if ids.is_empty() || ids.iter().any(|id| *id as i64 >= vocabulary) {
            return Err(Error::user(format!("{}: every row needs token ids below {vocabulary}", args.ids.display())));
        }
        let tokens = Tokens::pack(&[&ids], model.device());
        let all = Tensor::arange(ids.len() as i64, (Kind::Int64, model.device()));
        let logits: Vec<Vec<f32>> =
            model.infer(&tokens, |out| Vec::try_from(out.logits(&all).to_device(tch::Device::Cpu)))??;
        answers.push(LogitsRow { ids, logits });
    }
    let text = serde_json::to_string(&serde_json::json!({ "rows": answers }))
        .map_err(|e| Error::bug(format!("logits: {e}")))?;
    println!("{text}");
    Ok(())
}
