//! Answers for whole models, as directories and as files of other programs.

use super::{Compatibility, Findings, Runtime, export_command, refuse_own_family};
use crate::convert::folder::config_file::lacks_older_rope_keys;
use crate::convert::{gguf_export, mlx, onnx_export};
use crate::gguf::families;
use crate::model_files::CONFIG;
use crate::models::{Config, StoredFormat};
use std::path::Path;

pub(super) const NO_HEAD: &str = "GGUF files of these families hold no scalar head";

pub(super) const NO_PLACE: &str = "its files have no place for this family's layers";

pub(super) const NO_SCORES: &str = "ft export --to onnx writes language models only";

/// Families that TGI has code of its own for.
const TGI_FAMILIES: [&str; 15] = [
    "bloom",
    "cohere",
    "deepseek_v2",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "mpt",
    "qwen2",
];

/// Families that SGLang has code of its own for.
const SGLANG_FAMILIES: [&str; 18] = [
    "cohere",
    "deepseek_v2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
];

/// Families that TensorRT-LLM's PyTorch backend has code for.
const TENSORRT_FAMILIES: [&str; 8] =
    ["gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"];

/// The block of FP8 that every server has kernels for.
const FP8_BLOCK: [i64; 2] = [128, 128];

/// Returns the answers for a whole reward model.
pub fn of_scorer(folder: &Path) -> Vec<Compatibility> {
    let vllm = Findings {
        refusals: tokenizer_missing(folder).into_iter().collect(),
        needs: Some("as a pooling model; scores are raw with its softmax or sigmoid switched off".into()),
        ..Findings::default()
    };
    let unknown = || Findings::unknown("reward models are served in some families");
    let mut answers = vec![
        Findings::needing("with AutoModelForSequenceClassification").answer(TRANSFORMERS, None),
        vllm.answer(Runtime::Vllm.title(), None),
        Findings::refused("it serves no scores of reward models").answer(Runtime::Tgi.title(), None),
        unknown().answer(Runtime::SgLang.title(), None),
        unknown().answer(Runtime::TensorRtLlm.title(), None),
        Findings::refused(NO_HEAD).answer(Runtime::LlamaCpp.title(), None),
        Findings::refused("mlx-lm has no scalar heads").answer(Runtime::Mlx.title(), None),
        Findings::refused(NO_SCORES).answer(Runtime::OnnxRuntime.title(), None),
    ];
    if let Ok(config) = Config::read_file(&folder.join(CONFIG)) {
        refuse_own_family(&mut answers, &config);
    }
    answers
}

const TRANSFORMERS: &str = "transformers";

/// The programs that models are read by besides transformers, in the order of the answers.
const READERS: [Runtime; 7] = [
    Runtime::Vllm,
    Runtime::Tgi,
    Runtime::SgLang,
    Runtime::TensorRtLlm,
    Runtime::LlamaCpp,
    Runtime::Mlx,
    Runtime::OnnxRuntime,
];

/// Returns the answers for a model directory.
pub fn of_model(folder: &Path) -> Vec<Compatibility> {
    let tokenizer = tokenizer_missing(folder);
    let config = Config::read_file(&folder.join(CONFIG)).ok();
    let needs = config.as_ref().and_then(|config| config.stored).map(transformers_needs);
    let transformers = Findings { needs: needs.map(str::to_string), ..Findings::default() };
    let mut answers = vec![transformers.answer(TRANSFORMERS, None)];
    answers.extend(READERS.map(|runtime| {
        let mut findings = config.as_ref().map_or_else(Findings::default, |config| of_directory(config, runtime));
        if runtime.serves_directories() || runtime == Runtime::LlamaCpp {
            findings.refusals.extend(tokenizer.clone());
        }
        let command = command(config.as_ref(), &findings, tokenizer.is_some(), runtime);
        findings.answer(runtime.title(), command)
    }));
    if let Some(config) = &config {
        refuse_own_family(&mut answers, config);
    }
    answers
}

/// Returns the answer for what `ft export --for` would write of a full-precision model with this config and a tokenizer.
pub fn of_config(config: &Config, runtime: Runtime) -> Compatibility {
    let mut answers = [of_family(config, runtime).answer(runtime.title(), None)];
    refuse_own_family(&mut answers, config);
    let [answer] = answers;
    answer
}

/// Returns the answers for a GGUF file of a model.
pub fn of_gguf_model() -> Vec<Compatibility> {
    of_file("GGUF files", |runtime| match runtime {
        Runtime::LlamaCpp => Some(Findings::default()),
        Runtime::Vllm | Runtime::SgLang => Some(Findings::unknown("it reads GGUF files of some families and formats")),
        _ => None,
    })
}

/// Returns the answers for an adapter in a GGUF file.
pub fn of_gguf_adapter() -> Vec<Compatibility> {
    of_adapter_file("adapters in GGUF", Runtime::LlamaCpp)
}

/// Returns the answers for an export for ONNX Runtime.
pub fn of_onnx_model() -> Vec<Compatibility> {
    of_file("ONNX folders of language models", |runtime| (runtime == Runtime::OnnxRuntime).then(Findings::default))
}

/// Returns the answers for an adapter in the format of mlx-lm.
pub fn of_mlx_adapter() -> Vec<Compatibility> {
    of_adapter_file("adapters of mlx-lm", Runtime::Mlx)
}

/// Returns the answers for an adapter in a format that only `reader` reads.
fn of_adapter_file(what: &str, reader: Runtime) -> Vec<Compatibility> {
    let answer = |runtime: Runtime| {
        let other = || Findings::refused(format!("it reads no {what}"));
        let findings = if runtime == reader { Findings::default() } else { other() };
        findings.answer(runtime.title(), Some(export_command("ADAPTER", runtime)))
    };
    std::iter::once(Runtime::Peft).chain(READERS).map(answer).collect()
}

/// Returns the answers for a model in the folder of mlx-lm's: those for a directory, unless its matrices are in mlx's own format.
pub fn of_mlx_model(folder: &Path, quantised: bool) -> Vec<Compatibility> {
    match quantised {
        false => of_model(folder),
        true => of_file("matrices in mlx's format", |runtime| (runtime == Runtime::Mlx).then(Findings::default)),
    }
}

/// Returns the answers for files that few programs read: `find` says what is found about those, `what` is what others do not read.
fn of_file(what: &str, find: impl Fn(Runtime) -> Option<Findings>) -> Vec<Compatibility> {
    let answer = |runtime: Runtime| {
        let findings = find(runtime).unwrap_or_else(|| Findings::refused(format!("it reads no {what}")));
        findings.answer(runtime.title(), Some(export_command("MODEL", runtime)))
    };
    let transformers = Findings::refused(format!("it reads no {what}"));
    std::iter::once(transformers.answer(TRANSFORMERS, Some("ft export MODEL --to hf --out OUT".into())))
        .chain(READERS.map(answer))
        .collect()
}

/// Returns the command that writes what a program reads of a model; `None` if there is none.
fn command(config: Option<&Config>, findings: &Findings, lacks_tokenizer: bool, runtime: Runtime) -> Option<String> {
    let config = config?;
    if lacks_tokenizer || findings.refusals.is_empty() || of_config(config, runtime).reads != Some(true) {
        return None;
    }
    // Of quantised weights nothing is written again: the command is for the model that they were made from.
    let model = if config.stored.is_some() { "MODEL" } else { "DIR" };
    Some(export_command(model, runtime))
}

fn tokenizer_missing(folder: &Path) -> Option<String> {
    let there = ["tokenizer.json", "tokenizer.model", "vocab.json"].iter().any(|f| folder.join(f).exists());
    (!there).then(|| "the base folder has no tokenizer files to copy".into())
}

/// Returns what is found about a directory with this config.json.
fn of_directory(config: &Config, runtime: Runtime) -> Findings {
    if let Some(format) = config.stored {
        return of_quantised(config, format, runtime);
    }
    let mut findings = of_family(config, runtime);
    match runtime {
        Runtime::LlamaCpp => findings.needs = Some("after ft export DIR --to gguf".into()),
        Runtime::OnnxRuntime => findings.needs = Some("after ft export DIR --to onnx".into()),
        _ => {}
    }
    // These were made with transformers 4, which knows no rope_parameters and takes 10,000 for the base of the rotation then.
    if lacks_older_rope_keys(config) {
        match runtime {
            Runtime::Tgi | Runtime::Mlx => findings
                .refusals
                .push("config.json has rope_parameters, and it reads rope_theta and rope_scaling".into()),
            Runtime::SgLang | Runtime::TensorRtLlm => findings
                .unknowns
                .push("config.json has rope_parameters, which versions with transformers 4 do not read".into()),
            _ => {}
        }
    }
    findings
}

/// Returns what is found about a program and the family of a model in full precision.
fn of_family(config: &Config, runtime: Runtime) -> Findings {
    let known = |families: &[&str]| families.contains(&config.model_type.as_str());
    let through = |known: bool| match known {
        true => Findings::default(),
        false => Findings::unknown(format!(
            "it has no code of its own for {}, and computes it through transformers in some versions",
            config.model_type
        )),
    };
    match runtime {
        Runtime::Peft | Runtime::Vllm => Findings::default(),
        Runtime::LlamaCpp if families::of_model_type(&config.model_type).is_none() => Findings::refused(NO_PLACE),
        Runtime::LlamaCpp => {
            Findings { refusals: gguf_export::refusal(config).into_iter().collect(), ..Findings::default() }
        }
        Runtime::Tgi => through(known(&TGI_FAMILIES)),
        Runtime::SgLang => through(known(&SGLANG_FAMILIES)),
        Runtime::TensorRtLlm if known(&TENSORRT_FAMILIES) => Findings::default(),
        Runtime::TensorRtLlm => Findings::unknown(format!("which versions compute {}", config.model_type)),
        Runtime::Mlx if mlx::is_known(config) => {
            Findings { refusals: mlx::difference(config).into_iter().collect(), ..Findings::default() }
        }
        Runtime::Mlx => {
            Findings::unknown(format!("whether mlx-lm computes {} as ft does was not compared", config.model_type))
        }
        Runtime::OnnxRuntime => {
            Findings { refusals: onnx_export::refusal(config).into_iter().collect(), ..Findings::default() }
        }
    }
}

fn transformers_needs(format: StoredFormat) -> &'static str {
    match format {
        StoredFormat::FourBits { .. } | StoredFormat::Int8 => "with accelerate and bitsandbytes",
        StoredFormat::Fp8 { .. } => {
            "with accelerate; in FP8 on a GPU from compute capability 8.9, dequantised elsewhere"
        }
        _ => "with the library of its quantisation",
    }
}

/// Returns what is found about a directory whose matrices are stored in `format`.
fn of_quantised(config: &Config, format: StoredFormat, runtime: Runtime) -> Findings {
    let weights = || format!("its weights are in {}", format.describe());
    match runtime {
        Runtime::Peft | Runtime::Vllm => return Findings::default(),
        Runtime::LlamaCpp | Runtime::Mlx | Runtime::OnnxRuntime => return Findings::refused(weights()),
        Runtime::Tgi | Runtime::SgLang | Runtime::TensorRtLlm => {}
    }
    let mut findings = of_family(config, runtime);
    let unknown = || format!("{}, which it reads in some versions and families", weights());
    match (format, runtime) {
        (StoredFormat::Fp8 { block }, _) if block == FP8_BLOCK => findings.needs = Some("on a GPU with FP8".into()),
        (StoredFormat::Fp8 { block }, Runtime::TensorRtLlm) => findings.refusals.push(format!(
            "FP8 in blocks of {} x {}, and it reads blocks of {} x {}",
            block[0], block[1], FP8_BLOCK[0], FP8_BLOCK[1]
        )),
        (StoredFormat::FourBits { .. } | StoredFormat::Int8, Runtime::Tgi) => findings.refusals.push(format!(
            "{}, and it quantises with bitsandbytes itself: --quantize bitsandbytes-nf4 over full-precision weights",
            weights()
        )),
        (StoredFormat::FourBits { .. } | StoredFormat::Int8, Runtime::TensorRtLlm) => findings.refusals.push(weights()),
        (StoredFormat::Gptq { .. } | StoredFormat::Awq { .. }, Runtime::Tgi) => {}
        _ => findings.unknowns.push(unknown()),
    }
    findings
}
