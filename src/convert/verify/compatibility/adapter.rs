//! Answers for adapters.

use super::lora::LoraFacts;
use super::{Compatibility, Findings, Runtime, export_command, model, refuse_own_family, servers};
use crate::adapters::AdapterFile;
use crate::adapters::lora::LoraSpec;
use crate::convert::{gguf_export, onnx_export};
use crate::error::Result;
use crate::fsutil::excerpt;
use crate::gguf::families;
use crate::gguf::file::Gguf;
use crate::model_files::is_gguf;
use crate::models::{Config, VocabularyRows};
use crate::nn::{Quantisation, QuantisedFormat};
use std::path::Path;

/// The programs that serve adapters in PEFT's files, in the order of the answers.
const SERVERS: [Runtime; 4] = [Runtime::Vllm, Runtime::Tgi, Runtime::SgLang, Runtime::TensorRtLlm];

/// mlx-lm reads adapters.safetensors with factors transposed and named its own way, and no folder of PEFT's.
const OWN_FORMAT: &str = "it reads adapters in a format of its own, not PEFT's";

/// Returns the answers for the adapter in `folder`. `base`: the config of the model that it belongs to, if that is there. Fails if the
/// adapter's new tokens do not fit the base.
pub fn of_adapter(adapter: &AdapterFile, folder: &Path, base: Option<&Config>) -> Result<Vec<Compatibility>> {
    let rows = match base {
        Some(config) => VocabularyRows::of_adapters(config, &[(adapter, folder)])?.and_then(|rows| rows.grown(config)),
        None => None,
    };
    let resize = rows.map(|rows| format!("after model.resize_token_embeddings({rows}), as README.md beside it says"));
    let mut answers = match adapter.spec.as_lora() {
        _ if adapter.spec.has_scalar_head() => of_scorer_adapter(resize),
        Some(lora) => of_lora(adapter, &LoraFacts::of(adapter, lora, base), resize),
        None => of_other_kind(adapter, resize),
    };
    answers.push(Findings::refused(onnx_reason(adapter, base)).answer(Runtime::OnnxRuntime.title(), None));
    for answer in answers.iter_mut().filter(|answer| answer.reads != Some(true)) {
        answer.command = Runtime::named_title(answer.consumer).and_then(|runtime| command(adapter, base, runtime));
    }
    if let Some(original) = adapter.base.as_deref().and_then(|base| original_of_gguf(Path::new(base))) {
        name_original(&mut answers, &original);
    }
    if let Some(config) = base {
        refuse_own_family(&mut answers, config);
    }
    Ok(answers)
}

/// Returns the command that writes what a program reads; `None` if ft has none, or if it is not known whether the program would read
/// the result.
fn command(adapter: &AdapterFile, base: Option<&Config>, runtime: Runtime) -> Option<String> {
    let merges = adapter.spec.why_not_merged().is_none() && !adapter.spec.has_scalar_head();
    let readable = match base {
        Some(config) => config.stored.is_none() && model::of_config(config, runtime).reads == Some(true),
        None => true,
    };
    match runtime {
        Runtime::Peft => (merges && readable).then(|| "ft merge MODEL ADAPTER --out DIR".into()),
        _ => (merges && readable).then(|| export_command("ADAPTER", runtime)),
    }
}

/// Returns why ONNX Runtime does not read an adapter of a base with this config.
fn onnx_reason(adapter: &AdapterFile, base: Option<&Config>) -> String {
    match base.and_then(onnx_export::refusal) {
        Some(refused) => refused,
        None if adapter.spec.has_scalar_head() => model::NO_SCORES.into(),
        None if adapter.spec.why_not_merged().is_some() => format!("it reads no {}", adapter.spec.title()),
        None => "it reads no adapters".into(),
    }
}

fn of_scorer_adapter(resize: Option<String>) -> Vec<Compatibility> {
    let how = "with AutoModelForSequenceClassification, as README.md beside it says";
    let how = resize.map_or(how.to_string(), |resize| format!("{how}, {resize}"));
    let whole = || Findings::refused("modules_to_save holds score: train without `adapter` for a model it reads");
    let no_scores = || Findings::refused("it serves no scores of reward models");
    vec![
        Findings::needing(how).answer(Runtime::Peft.title(), None),
        whole().answer(Runtime::Vllm.title(), None),
        no_scores().answer(Runtime::Tgi.title(), None),
        whole().answer(Runtime::SgLang.title(), None),
        Findings::unknown("reward models are served in some families").answer(Runtime::TensorRtLlm.title(), None),
        Findings::refused(model::NO_HEAD).answer(Runtime::LlamaCpp.title(), None),
        Findings::refused(OWN_FORMAT).answer(Runtime::Mlx.title(), None),
    ]
}

fn of_other_kind(adapter: &AdapterFile, resize: Option<String>) -> Vec<Compatibility> {
    let spec = &adapter.spec;
    let modules = adapter.tensors.keys().filter_map(|n| spec.module_of(n)).collect();
    let peft =
        Findings { refusals: spec.peft_refusal(&modules).into_iter().collect(), needs: resize, ..Findings::default() };
    let no =
        |runtime: Runtime| Findings::refused(format!("it reads no {}", spec.title())).answer(runtime.title(), None);
    let peft = peft.answer(Runtime::Peft.title(), None);
    std::iter::once(peft).chain(SERVERS.into_iter().chain([Runtime::LlamaCpp, Runtime::Mlx]).map(no)).collect()
}

fn of_lora(adapter: &AdapterFile, lora: &LoraFacts, resize: Option<String>) -> Vec<Compatibility> {
    let peft = Findings { refusals: lora.peft_refusals(), needs: resize.clone(), ..Findings::default() };
    let mut found = vec![
        (Runtime::Peft, peft),
        (Runtime::Vllm, servers::vllm(lora)),
        (Runtime::Tgi, servers::tgi(lora)),
        (Runtime::SgLang, servers::sglang(lora)),
        (Runtime::TensorRtLlm, servers::tensorrt_llm(lora)),
        (Runtime::LlamaCpp, llama_cpp(adapter, lora)),
        (Runtime::Mlx, Findings::refused(OWN_FORMAT)),
    ];
    // Rows of new tokens that no setting names, as PEFT saves them for a base that was resized.
    if resize.is_some() {
        let servers = found.iter_mut().filter(|(runtime, _)| SERVERS.contains(runtime));
        for (_, findings) in servers.filter(|(_, findings)| findings.refusals.is_empty()) {
            findings.refusals.push("it has new tokens, whose rows the base lacks".into());
        }
    }
    found.into_iter().map(|(runtime, findings)| findings.answer(runtime.title(), None)).collect()
}

/// `ft export ADAPTER --to gguf` writes factors of linear layers and tables, whatever their scales.
fn llama_cpp(adapter: &AdapterFile, lora: &LoraFacts) -> Findings {
    let LoraSpec { dora, .. } = lora.spec;
    let mut refusals = lora.beside_factors();
    refusals.extend(dora.then(|| "DoRA".into()));
    refusals.extend(
        lora.adapts_some_experts().then(|| "some experts of a layer are adapted, and it has them in one tensor".into()),
    );
    match lora.base {
        Some(base) if families::of_model_type(&base.model_type).is_none() => refusals.push(model::NO_PLACE.into()),
        Some(base) => {
            refusals.extend(gguf_export::refusal(base));
            refusals.extend(gguf_export::adapter::refusals_of_modules(base, &lora.modules));
        }
        None => {}
    }
    let base = adapter.base.as_deref().unwrap_or_default();
    let needs = match base.is_empty() {
        true => "after ft export ADAPTER --base MODEL --to gguf",
        false => "after ft export ADAPTER --to gguf",
    };
    Findings { refusals, needs: Some(needs.into()), ..Findings::default() }
}

/// Says, for an adapter that corrects the error of a base in `format` (LoftQ), which base other programs have to use it over:
/// over another one the correction is an error.
pub fn require_quantised_base(answers: &mut [Compatibility], format: Quantisation) {
    let same = format!("over a base that is quantised to {} only, which it corrects", format.describe());
    for answer in answers.iter_mut() {
        answer.command = None; // merging would make an error of the correction
        if answer.reads == Some(false) {
            continue;
        }
        let (reads, why) = match (Runtime::named_title(answer.consumer), format.format) {
            (Some(Runtime::Vllm), QuantisedFormat::Nf4) => {
                (answer.reads, format!("{same}: with --quantization bitsandbytes"))
            }
            (Some(Runtime::Vllm), QuantisedFormat::Fp4 | QuantisedFormat::Int8) => {
                (Some(false), format!("it would be used {same}, and bitsandbytes in vLLM quantises to NF4"))
            }
            (Some(Runtime::LlamaCpp), _) => {
                (Some(false), format!("it is used {same}, and GGUF files have other formats"))
            }
            (Some(Runtime::Peft), QuantisedFormat::Nf4 | QuantisedFormat::Fp4 | QuantisedFormat::Int8) => {
                (answer.reads, format!("{same}: load it with BitsAndBytesConfig"))
            }
            _ => (None, format!("it is used {same}, and whether its quantised weights are the same is not known")),
        };
        let joins = reads == Some(true) && !answer.note.is_empty();
        answer.note = if joins { format!("{}; {why}", answer.note) } else { why };
        answer.reads = reads;
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

/// Says that PEFT and the servers need the model that the base, a GGUF file, was made from.
fn name_original(answers: &mut [Compatibility], original: &str) {
    for answer in answers {
        let runtime = Runtime::named_title(answer.consumer);
        answer.command = None; // nothing is merged into weights that are stored quantised
        let why = match runtime {
            Some(Runtime::Peft) => {
                answer.reads = Some(false);
                format!("its base is a GGUF file, which PEFT cannot open: load the adapter over {original}")
            }
            Some(runtime) if SERVERS.contains(&runtime) && answer.reads == Some(true) => format!("over {original}"),
            Some(Runtime::LlamaCpp) if answer.reads == Some(true) => format!("with --base the directory of {original}"),
            _ => continue,
        };
        answer.note = if answer.note.is_empty() { why } else { format!("{}, {why}", answer.note) };
    }
}
