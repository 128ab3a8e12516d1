//! Lists which other programs can read an exported directory, and the reason where one cannot.
//!
//! tests/reference runs PEFT and transformers on our files. The answers for the other programs are derived from their
//! code and issue trackers, not tested.

use super::expert_adapters;
use crate::adapters::lora::{self, LoraModules, LoraSpec};
use crate::adapters::{AdapterFile, EMBEDDINGS, HEAD};
use crate::convert::onnx_export;
use crate::fsutil::excerpt;
use crate::gguf::file::Gguf;
use crate::model_files::{CONFIG, is_gguf};
use crate::models::{Config, ExpertFiles, StoredFormat, expert_number};
use crate::nn::{Quantisation, QuantisedFormat};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Whether one program (the consumer) reads an exported directory.
#[derive(Debug, Clone, Serialize)]
pub struct Compatibility {
    /// The program's name.
    pub consumer: &'static str,
    /// Whether it reads the directory.
    pub reads: bool,
    /// The reason why not, or what the consumer needs in order to read it; may be empty.
    pub note: String,
}

impl std::fmt::Display for Compatibility {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let answer = if self.reads { "yes" } else { "no" };
        let colon = if self.note.is_empty() { "" } else { ": " };
        write!(f, "{}: {answer}{colon}{}", self.consumer, self.note)
    }
}

fn answer(consumer: &'static str, reasons: Vec<String>, needs: Option<String>) -> Compatibility {
    Compatibility {
        consumer,
        reads: reasons.is_empty(),
        note: if reasons.is_empty() { needs.unwrap_or_default() } else { reasons.join("; ") },
    }
}

/// Runs models that `ft export --to onnx` writes, and no directory of another program.
const ONNX: &str = "ONNX Runtime";

/// Returns the answer of ONNX Runtime for an adapter of a base with this config, if that is known.
pub fn of_onnx_runtime(adapter: &AdapterFile, config: Option<&Config>) -> Compatibility {
    let reason = match config.and_then(onnx_export::refusal) {
        Some(refused) => refused,
        None if adapter.spec.has_scalar_head() => NO_SCORES.into(),
        None if adapter.spec.why_not_merged().is_some() => format!("it reads no {}", adapter.spec.title()),
        None => "it reads no adapters: ft export MODEL --adapter DIR --to onnx makes a model it reads".into(),
    };
    answer(ONNX, vec![reason], None)
}

/// The values that vLLM accepts for max_lora_rank; its default is 16.
const VLLM_RANKS: [i64; 8] = [8, 16, 32, 64, 128, 256, 320, 512];

/// Returns the answers for an adapter directory. `rows`: the size to which the base's vocabulary has to be enlarged;
/// `experts`: how the base's files have those of a layer.
pub fn of_adapter(adapter: &AdapterFile, rows: Option<i64>, experts: ExpertFiles) -> Vec<Compatibility> {
    let mut answers = of_adapter_files(adapter, rows, experts);
    let Some(original) = adapter.base.as_deref().and_then(|base| original_of_gguf(Path::new(base))) else {
        return answers;
    };
    for answer in &mut answers {
        let why = match answer.consumer {
            "PEFT" => {
                answer.reads = false;
                format!("its base is a GGUF file, which PEFT cannot open: load the adapter over {original}")
            }
            "llama.cpp" if answer.reads => format!("--base the directory of {original}"),
            _ => continue,
        };
        answer.note = if answer.note.is_empty() { why } else { format!("{} {why}", answer.note) };
    }
    answers
}

/// Says, for an adapter that corrects the error of a base in `format` (LoftQ), which base other programs have to use it over:
/// over another one the correction is an error.
pub fn require_quantised_base(answers: &mut [Compatibility], format: Quantisation) {
    let same = format!("over a base that is quantised to {} only, which it corrects", format.describe());
    for answer in answers.iter_mut().filter(|answer| answer.reads) {
        let (reads, why) = match (answer.consumer, format.format) {
            ("vLLM", QuantisedFormat::Nf4) => (true, format!("{same}: with --quantization bitsandbytes")),
            ("vLLM", _) => (false, format!("it would be used {same}, and bitsandbytes in vLLM quantises to NF4")),
            ("llama.cpp", _) => (false, format!("it is used {same}, and GGUF files have other formats")),
            _ => (true, format!("{same}: load it with BitsAndBytesConfig")),
        };
        answer.reads = reads;
        answer.note = if reads && !answer.note.is_empty() { format!("{}; {why}", answer.note) } else { why };
    }
}

/// Says which model a GGUF file was made from; `None` if the base at this path is no GGUF file.
fn original_of_gguf(base: &Path) -> Option<String> {
    if !is_gguf(base) {
        return None;
    }
    let name = Gguf::open(base).ok().and_then(|gguf| {
        let keys = ["general.source.huggingface.repository", "general.source.url", "general.repo_url", "general.name"];
        keys.iter().find_map(|key| gguf.text(key).ok().flatten().map(str::to_string))
    });
    Some(name.map_or("the model that the file was made from".into(), |name| {
        format!("the model that the file was made from ({})", excerpt(&name))
    }))
}

fn of_adapter_files(adapter: &AdapterFile, rows: Option<i64>, experts: ExpertFiles) -> Vec<Compatibility> {
    let (spec, lora) = (&adapter.spec, adapter.spec.as_lora());
    let resize = rows.map(|rows| format!("after model.resize_token_embeddings({rows}), as README.md beside it says"));
    if spec.has_scalar_head() {
        let how = "with AutoModelForSequenceClassification, as README.md beside it says";
        let how = resize.as_ref().map_or(how.to_string(), |resize| format!("{how}, {resize}"));
        let whole = "modules_to_save holds score: train without `adapter` for a model it reads";
        return vec![
            answer("PEFT", Vec::new(), Some(how)),
            answer("vLLM", vec![whole.into()], None),
            answer("llama.cpp", vec![NO_HEAD.into()], None),
            answer("MLX", vec![OWN_FORMAT.into()], None),
        ];
    }
    match lora {
        Some(lora) => of_lora(adapter, lora, resize, experts),
        None => {
            let merged = spec.why_not_merged().map_or(": ft merge makes a model it reads", |_| "");
            let other = format!("it reads no {}{merged}", spec.title());
            let no = |consumer| answer(consumer, vec![other.clone()], None);
            let modules = adapter.tensors.keys().filter_map(|n| spec.module_of(n)).collect();
            let peft = spec.peft_refusal(&modules).into_iter().collect();
            vec![answer("PEFT", peft, resize), no("vLLM"), no("llama.cpp"), no("MLX")]
        }
    }
}

fn of_lora(adapter: &AdapterFile, spec: &LoraSpec, resize: Option<String>, experts: ExpertFiles) -> Vec<Compatibility> {
    let modules: BTreeSet<&str> = adapter.tensors.keys().filter_map(|n| adapter.spec.module_of(n)).collect();
    // (rank, alpha, scale)
    let numbers: Vec<(i64, f64, f64)> = match LoraModules::new(spec) {
        Ok(lora) => modules.iter().map(|m| (lora.rank(m), lora.alpha(m), lora.scale(m))).collect(),
        Err(_) => Vec::new(),
    };
    let whole = (!spec.modules_to_save.is_empty())
        .then(|| format!("modules_to_save holds {}: ft merge makes a model it reads", spec.modules_to_save.join(", ")));
    let head = modules.iter().any(|m| EMBEDDINGS.iter().chain([&HEAD]).any(|e| m.ends_with(e)));
    let head = head.then(|| "the output head or the embedding is adapted: ft merge makes a model it reads".to_string());
    let more = [
        (spec.dora, "DoRA: ft merge makes a model it reads"),
        (spec.bias, "a bias behind B: ft merge makes a model it reads, if the layers have a bias"),
        (
            !spec.token_rows.is_empty() || !spec.head_rows.is_empty(),
            "trained rows of the embedding: ft merge makes a model it reads",
        ),
        (
            modules.iter().any(|m| expert_number(m).is_some()),
            "experts are adapted one by one: ft merge makes a model it reads",
        ),
    ];
    let more: Vec<String> = more.into_iter().filter(|(set, _)| *set).map(|(_, why)| why.to_string()).collect();
    let peft = expert_adapters::peft_refusals(spec, &modules, experts).into_iter().map(str::to_string).collect();

    // vLLM scales every module by the config's lora_alpha and r, and ignores rank and alpha patterns.
    let common = lora::scale(spec.alpha, spec.rank, spec.rslora);
    let unlike = numbers.iter().any(|(_, _, scale)| (scale - common).abs() > 1e-9 * common.abs());
    let unlike =
        unlike.then(|| "patterns give some modules another alpha / rank, and it uses one value for all".to_string());
    let rank = numbers.iter().map(|(rank, ..)| *rank).max().unwrap_or(spec.rank);
    let (too_large, flag) = match VLLM_RANKS.iter().find(|r| **r >= rank) {
        Some(r) if *r > 16 => (None, Some(format!("with --max-lora-rank {r}"))),
        Some(_) => (None, None),
        None => (Some(format!("rank {rank} is above its largest, 512")), None),
    };
    // gpt2's weights are stored as (in, out). vLLM supports no adapters of such a model, and llama.cpp's converter
    // would transpose A and B as well.
    let turned =
        spec.fan_in_fan_out.then(|| "it supports no adapters of gpt2: ft merge makes a model it reads".to_string());
    let vllm = [whole.clone(), head.clone(), unlike, too_large, turned.clone()];
    let vllm = vllm.into_iter().flatten().chain(more.clone()).collect();

    // llama.cpp's converter writes lora_alpha, and its runtime divides it by each tensor's own rank.
    let rslora = (spec.rslora && numbers.iter().any(|(rank, ..)| *rank != 1))
        .then(|| "rsLoRA: its converter scales by alpha / rank".to_string());
    let alphas = numbers
        .iter()
        .any(|(_, alpha, _)| *alpha != spec.alpha)
        .then(|| "alpha_pattern: it uses one alpha for all modules".to_string());
    let llama = [whole, head, rslora, alphas, turned].into_iter().flatten().chain(more).collect();
    vec![
        answer("PEFT", peft, resize),
        answer("vLLM", vllm, flag),
        answer("llama.cpp", llama, Some("with convert_lora_to_gguf.py".into())),
        answer(
            "MLX",
            vec![format!("{OWN_FORMAT}: ft export ADAPTER --to mlx writes most, and ft merge makes a model it reads")],
            None,
        ),
    ]
}

/// Returns the answers for a whole reward model.
pub fn of_scorer(folder: &Path) -> Vec<Compatibility> {
    let tokenizer = !["tokenizer.json", "tokenizer.model", "vocab.json"].iter().any(|f| folder.join(f).exists());
    let reasons: Vec<String> =
        tokenizer.then(|| "the base folder has no tokenizer files to copy".into()).into_iter().collect();
    vec![
        answer("transformers", Vec::new(), Some("with AutoModelForSequenceClassification".into())),
        answer(
            "vLLM",
            reasons,
            Some("as a pooling model; scores are raw with its softmax or sigmoid switched off".into()),
        ),
        answer("llama.cpp", vec![NO_HEAD.into()], None),
        answer(ONNX, vec![NO_SCORES.into()], None),
    ]
}

/// mlx-lm reads adapters.safetensors with factors transposed and named its own way, and no folder of PEFT's.
const OWN_FORMAT: &str = "it reads adapters in a format of its own, not PEFT's";

const NO_HEAD: &str = "GGUF files of these families hold no scalar head";

const NO_SCORES: &str = "ft export --to onnx writes language models only";

/// Changes the answers for a model, or for an adapter of one, that belongs to a family of ft's own. An ONNX export says itself how
/// it is computed.
pub fn refuse_own_family(answers: &mut [Compatibility], config: &Config) {
    for answer in answers.iter_mut().filter(|answer| config.is_own_family() && answer.consumer != ONNX) {
        answer.reads = false;
        answer.note = format!("only ft computes {}", config.model_type);
    }
}

/// Returns the answers for a model directory.
pub fn of_model(folder: &Path) -> Vec<Compatibility> {
    let tokenizer = !["tokenizer.json", "tokenizer.model", "vocab.json"].iter().any(|f| folder.join(f).exists());
    let tokenizer = tokenizer.then(|| "the base folder has no tokenizer files to copy".to_string());
    let reasons: Vec<String> = tokenizer.into_iter().collect();
    let config = Config::read_file(&folder.join(CONFIG)).ok();
    if let Some(format) = config.as_ref().and_then(|config| config.stored) {
        return of_quantised_model(format, reasons);
    }
    let refused = config.and_then(|config| onnx_export::refusal(&config));
    vec![
        answer("transformers", Vec::new(), None),
        answer("vLLM", reasons.clone(), None),
        answer("llama.cpp", reasons, Some("with convert_hf_to_gguf.py".into())),
        answer(ONNX, refused.into_iter().collect(), Some("after ft export DIR --to onnx".into())),
    ]
}

/// Returns the answers for a model directory whose matrices are stored in `format`. `reasons`: why programs that need a tokenizer do
/// not read it.
fn of_quantised_model(format: StoredFormat, reasons: Vec<String>) -> Vec<Compatibility> {
    let needs = match format {
        StoredFormat::FourBits { .. } | StoredFormat::Int8 => "with accelerate and bitsandbytes",
        StoredFormat::Fp8 { .. } => {
            "with accelerate; in FP8 on a GPU from compute capability 8.9, dequantised elsewhere"
        }
        _ => "with the library of its quantisation",
    };
    let whole = |to: &str| {
        vec![format!("its weights are in {}: ft export --to {to} of the full-precision model", format.describe())]
    };
    vec![
        answer("transformers", Vec::new(), Some(needs.into())),
        answer("vLLM", reasons, None),
        answer("llama.cpp", whole("gguf"), None),
        answer(ONNX, whole("onnx"), None),
    ]
}
