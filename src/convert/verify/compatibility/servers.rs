//! What each server reads of a LoRA in PEFT's files, as their code says it.

use super::Findings;
use super::lora::LoraFacts;

/// The values that vLLM accepts for max_lora_rank; its default is 16.
const VLLM_RANKS: [i64; 8] = [8, 16, 32, 64, 128, 256, 320, 512];

/// The default of TensorRT-LLM's max_lora_rank.
const TENSORRT_RANK: i64 = 64;

/// The rank that TGI fills smaller factors up to, on one GPU.
pub const TGI_SMALLEST_RANK: i64 = 8;

/// The linear layers of a llama by name.
const LLAMA_LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Families whose layers TGI gives adapters to.
const TGI_FAMILIES: [&str; 5] = ["llama", "mistral", "gemma", "gemma2", "qwen2"];

const DORA: &str = "DoRA";
const VOCABULARY: &str = "the output head or the embedding is adapted";
const UNLIKE: &str = "patterns give some modules another alpha / rank, and it uses one value for all";
const QUERY: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// vLLM scales every module by the config's lora_alpha and r, and ignores rank and alpha patterns.
pub(super) fn vllm(lora: &LoraFacts) -> Findings {
    let rank = lora.largest_rank();
    let (too_large, flag) = match VLLM_RANKS.iter().find(|r| **r >= rank) {
        Some(r) if *r > 16 => (None, Some(format!("with --max-lora-rank {r}"))),
        Some(_) => (None, None),
        None => (Some(format!("rank {rank} is above its largest, 512")), None),
    };
    let mut refusals = lora.beside_factors();
    refusals.extend(lora.adapts_vocabulary().then(|| VOCABULARY.into()));
    refusals.extend(lora.has_other_scales().then(|| UNLIKE.into()));
    refusals.extend(too_large);
    // gpt2's weights are stored as (in, out).
    refusals.extend(lora.spec.fan_in_fan_out.then(|| "it supports no adapters of gpt2".into()));
    refusals.extend(lora.spec.dora.then(|| DORA.into()));
    refusals.extend(lora.adapts_experts().then(|| "experts are adapted one by one".into()));
    Findings { refusals, needs: flag, ..Findings::default() }
}

/// Text Generation Inference stacks the factors of a kind of module over all layers, and skips the kind, with a warning, if one
/// layer has none. It honours rsLoRA. It fills factors up to rank 8 for each GPU, and from then on scales by the larger rank.
/// Magnitudes of a DoRA are left out without a word.
pub(super) fn tgi(lora: &LoraFacts) -> Findings {
    let rank = lora.largest_rank();
    let mut refusals = lora.beside_factors();
    refusals.extend(lora.spec.dora.then(|| "DoRA, whose magnitudes it leaves out".into()));
    if lora.adapts_vocabulary() {
        refusals.push(VOCABULARY.into());
    } else if let Some(name) = lora.other_than(&LLAMA_LAYERS) {
        refusals.push(format!("{name} is adapted, and it gives adapters to {} only", LLAMA_LAYERS.join(", ")));
    }
    refusals.extend(lora.adapts_experts().then(|| "experts are adapted".into()));
    refusals.extend(
        (lora.has_other_ranks() || lora.has_other_scales())
            .then(|| "patterns give some modules another rank or alpha, and it uses one of each for all".into()),
    );
    refusals.extend((rank < TGI_SMALLEST_RANK).then(|| {
        format!("rank {rank}: it fills factors up to rank {TGI_SMALLEST_RANK}, and scales other modules by that rank")
    }));
    let absent = lora.absent_somewhere();
    refusals
        .extend(absent.map(|name| {
            format!("{name} is not adapted in every layer, and it then leaves out all adapters of {name}")
        }));
    let unknowns = match lora.base {
        None => vec!["the base is not there, and it needs adapters in every layer".into()],
        Some(base) if !TGI_FAMILIES.contains(&base.model_type.as_str()) => {
            vec![format!("which layers of {} it gives adapters to", base.model_type)]
        }
        Some(_) => Vec::new(),
    };
    Findings { refusals, unknowns, needs: Some("with --lora-adapters NAME=DIR, on up to RANK / 8 GPUs".into()) }
}

/// SGLang scales all modules by lora_alpha / r, also with use_rslora. It refuses DoRA and adapters with new tokens, and skips
/// tensors that are no factors.
pub(super) fn sglang(lora: &LoraFacts) -> Findings {
    let mut refusals = lora.beside_factors();
    refusals.extend(lora.spec.dora.then(|| DORA.into()));
    refusals.extend(lora.needs_rslora().then(|| "rsLoRA: it scales by alpha / rank".into()));
    refusals.extend(
        (lora.has_other_ranks() || lora.has_other_alphas())
            .then(|| "patterns give some modules another rank or alpha, and it uses one of each for all".into()),
    );
    let mut unknowns = Vec::new();
    if lora.adapts_vocabulary() {
        unknowns.push(format!("{VOCABULARY}, which only newer versions read"));
    } else if lora.adapts_experts() {
        unknowns.push("experts are adapted, which only newer versions read".into());
    } else if let Some(name) = lora.other_than(&LLAMA_LAYERS) {
        unknowns.push(format!("{name} is adapted, which it has adapters for in some versions and families"));
    }
    // It joins keys and values to the queries', and up to the gate's.
    if lora.adapts_some(&QUERY, &["q_proj"]) || lora.adapts_some(&["gate_proj", "up_proj"], &["gate_proj"]) {
        unknowns.push("keys and values are adapted without queries, or up_proj without gate_proj".into());
    }
    Findings { refusals, unknowns, needs: Some("with --lora-paths NAME=DIR".into()) }
}

/// TensorRT-LLM (PyTorch backend) takes each module's rank from its factors and one lora_alpha for all, and honours rsLoRA. An
/// adapted head or embedding, and modules in full, are left out without a word; other names are errors.
pub(super) fn tensorrt_llm(lora: &LoraFacts) -> Findings {
    let mut refusals = lora.beside_factors();
    if lora.adapts_vocabulary() {
        refusals.push(VOCABULARY.into());
    } else if !lora.adapts_experts()
        && let Some(name) = lora.other_than(&known_to_tensorrt())
    {
        refusals.push(format!("{name} is adapted, which is none of the modules that it knows"));
    }
    refusals.extend(
        lora.has_other_alphas()
            .then(|| "alpha_pattern gives some modules another alpha, and it uses one for all".into()),
    );
    let mut unknowns = Vec::new();
    match (lora.spec.dora, lora.adapts_experts()) {
        (true, true) => refusals.push("DoRA of experts".into()),
        (true, false) => unknowns.push(
            "DoRA: it wants magnitudes divided by the norms of the updated weights, and whether the PyTorch backend applies them is not known"
                .into(),
        ),
        (false, true) => unknowns.push("experts are adapted, which it reads in some families".into()),
        (false, false) => {}
    }
    if lora.adapts_some(&QUERY, &QUERY) {
        unknowns.push("some of q_proj, k_proj and v_proj are adapted, and the sizes that it fills the others up with differ between versions".into());
    }
    let rank = lora.largest_rank();
    let needs = (rank > TENSORRT_RANK).then(|| format!("with max_lora_rank {rank}"));
    Findings { refusals, unknowns, needs }
}

fn known_to_tensorrt() -> Vec<&'static str> {
    LLAMA_LAYERS.into_iter().chain(["gate_up_proj"]).collect()
}
