//! The keys of virtual tokens in PEFT's adapter_config.json: reads and writes them.

use super::{
    DeclaredSizes, MAX_VIRTUAL_TOKENS, PTuningSpec, PrefixTuningSpec, PromptTuningSpec, VirtualKind, VirtualSettings,
};
use crate::adapters::kind::{AdapterKind, SCORE};
use crate::adapters::peft::PeftConfig;
use crate::adapters::spec::AdapterSpec;
use crate::error::Result;
use serde_json::{Value, json};

/// Keys that all these kinds have.
const COMMON_KEYS: [&str; 5] =
    ["num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"];

/// Keys that say how training started, or what encoder it had: a file holds the encoded result.
const TRAINING_KEYS: [&str; 9] = [
    "encoder_dropout",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "init_weights",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
];

/// Returns the content of adapter_config.json; `base` is the path or id of the base.
pub(super) fn write<K: VirtualKind>(kind: &K, base: &str) -> Value {
    let declared = kind.settings().declared;
    let mut config = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "inference_mode": true,
        "num_attention_heads": declared.map(|sizes| sizes.heads),
        "num_layers": declared.map(|sizes| sizes.layers),
        "num_transformer_submodules": 1,
        "num_virtual_tokens": kind.count(),
        "peft_type": K::PEFT_TYPE,
        "revision": null,
        "task_type": if kind.has_scalar_head() { "SEQ_CLS" } else { "CAUSAL_LM" },
        "token_dim": declared.map(|sizes| sizes.width),
    });
    if let (Some(config), Value::Object(own)) = (config.as_object_mut(), kind.own_config()) {
        config.extend(own);
        if kind.has_scalar_head() {
            config.insert("modules_to_save".into(), json!([SCORE]));
        }
        config.sort_keys();
    }
    config
}

/// Reads the settings of a kind of virtual tokens; `None` for other kinds. Fails for options and values that ft does not
/// support.
pub(in crate::adapters) fn read_config(config: &PeftConfig) -> Result<Option<AdapterSpec>> {
    let kinds = [PromptTuningSpec::PEFT_TYPE, PTuningSpec::PEFT_TYPE, PrefixTuningSpec::PEFT_TYPE];
    let Some(kind) = config.kind().filter(|kind| kinds.contains(kind)) else { return Ok(None) };
    config.check_keys(&[COMMON_KEYS.as_slice(), &TRAINING_KEYS, &["tokenizer_kwargs"]].concat())?;
    // PEFT names all that a scalar head may be called.
    let saved: Vec<String> = config.read("modules_to_save")?.unwrap_or_default();
    if saved.iter().any(|module| ![SCORE, "classifier"].contains(&module.as_str())) {
        let hint = "only the virtual tokens of such an adapter are read, and the head of a reward model";
        return Err(config.unsupported("modules_to_save", hint));
    }
    let scalar_head = saved.iter().any(|module| module == SCORE);
    config.check_head(scalar_head)?;
    if config.get("num_transformer_submodules").is_some_and(|v| *v != 1) {
        return Err(config.unsupported("num_transformer_submodules", "decoder-only models have one"));
    }
    let count = config.read("num_virtual_tokens")?.unwrap_or(0);
    if !(1..=MAX_VIRTUAL_TOKENS).contains(&count) {
        let hint = format!("the number of virtual tokens is between 1 and {MAX_VIRTUAL_TOKENS}");
        return Err(config.unsupported("num_virtual_tokens", &hint));
    }
    let sizes = (config.read("token_dim")?, config.read("num_attention_heads")?, config.read("num_layers")?);
    let declared = match sizes {
        (Some(width), Some(heads), Some(layers)) => Some(DeclaredSizes { width, heads, layers }),
        _ => None,
    };
    let mut settings = VirtualSettings { declared, encoded: true, ..VirtualSettings::new(count) };
    if scalar_head {
        settings.modules.modules_to_save.push(SCORE.into());
    }
    let encoder_hidden_size = config.read("encoder_hidden_size")?;
    Ok(Some(match kind {
        PTuningSpec::PEFT_TYPE => {
            if config.get("encoder_reparameterization_type").is_some_and(|v| v != "MLP") {
                let hint = "only the encoder of linear layers (MLP) is supported: train with it";
                return Err(config.unsupported("encoder_reparameterization_type", hint));
            }
            AdapterSpec::PTuning(PTuningSpec { settings, encoder_hidden_size })
        }
        PrefixTuningSpec::PEFT_TYPE => AdapterSpec::PrefixTuning(PrefixTuningSpec {
            projection: config.read("prefix_projection")?.unwrap_or(false),
            encoder_hidden_size,
            settings,
            ..PrefixTuningSpec::default()
        }),
        _ => AdapterSpec::PromptTuning(PromptTuningSpec { settings, ..PromptTuningSpec::default() }),
    }))
}
