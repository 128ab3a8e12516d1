//! The keys of a LoRA in PEFT's adapter_config.json: reads them into a [`LoraSpec`] and writes them.

use super::spec::{LoraInit, LoraSpec, MAX_RANK};
use super::target_parameters;
use crate::adapters::kind::{AdapterKind, EMBEDDINGS, HEAD};
use crate::adapters::module_settings::ModuleSettings;
use crate::adapters::peft::{self, PeftConfig, number};
use crate::adapters::token_rows::{TokenName, of_ids};
use crate::error::Result;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

/// Keys of adapter_config.json that are read into a [`LoraSpec`], besides those that select modules.
const OWN_KEYS: &[&str] = &[
    "alpha_pattern",
    "ensure_weight_tying",
    "init_lora_weights",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "r",
    "rank_pattern",
    target_parameters::KEY,
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// Returns the content of adapter_config.json with the keys that every PEFT since 0.4 reads.
pub fn write(spec: &LoraSpec, base: &str) -> Value {
    let alphas: Map<_, _> = spec.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
    let mut own = json!({
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": spec.fan_in_fan_out,
        "init_lora_weights": match spec.init {
            // PEFT reads a bias behind B only with its default; how a trained adapter began does not matter.
            LoraInit::Gaussian if !spec.bias => json!("gaussian"),
            _ => json!(true),
        },
        "layer_replication": null,
        "layers_pattern": if spec.layers_pattern.is_empty() { Value::Null } else { json!(spec.layers_pattern) },
        "layers_to_transform": spec.layers,
        "loftq_config": {},
        "lora_alpha": number(spec.alpha),
        "lora_dropout": spec.dropout,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "r": spec.rank,
        "rank_pattern": spec.rank_pattern,
        "use_dora": spec.dora,
        "use_rslora": spec.rslora,
    });
    // Older PEFT versions do not know these keys: they are written only if they are set.
    if spec.bias {
        own["lora_bias"] = json!(true);
    }
    if !spec.head_rows.is_empty() {
        let embedding = if spec.fan_in_fan_out { "wte" } else { "embed_tokens" };
        let mut rows = json!({ HEAD: spec.head_rows });
        if !spec.token_rows.is_empty() {
            rows[embedding] = json!(spec.token_rows);
        }
        own["trainable_token_indices"] = rows;
    } else if !spec.token_rows.is_empty() {
        own["trainable_token_indices"] = json!(spec.token_rows);
    }
    if spec.tie {
        own["ensure_weight_tying"] = json!(true);
    }
    peft::config(spec, "LORA", base, own)
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(in crate::adapters) fn read(config: &PeftConfig) -> Result<LoraSpec> {
    if config.get("bias").is_some_and(|v| *v != "none") {
        let hint = "it also trained biases of the base: merge it with PEFT and use the merged model";
        return Err(config.unsupported("bias", hint));
    }
    config.check_keys(OWN_KEYS)?;
    let init = match config.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => LoraInit::Kaiming,
        Some(Value::String(s)) if s == "gaussian" => LoraInit::Gaussian,
        // These initialise A and B differently, but leave the base as it is.
        Some(Value::String(s)) if s == "eva" || s == "orthogonal" || s == "mica" => LoraInit::Kaiming,
        // pissa, olora, corda, loftq and others change the base's weights when training starts.
        Some(_) => {
            return Err(config.unsupported(
                "init_lora_weights",
                "convert it to plain LoRA with PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
            ));
        }
    };
    // PEFT's defaults: the first two for llama, mistral and qwen, the last for gpt2. No model has all of them.
    let ModuleSettings { targets, exclude, layers, layers_pattern, mut modules_to_save, from, fan_in_fan_out } =
        config.module_settings(&["q_proj", "v_proj", "c_attn", "query_key_value", "Wqkv"])?;
    // With `ensure_weight_tying` PEFT names the embedding in full beside the name that it was given.
    let named = modules_to_save.clone();
    modules_to_save.retain(|module| !named.iter().any(|other| module.ends_with(&format!(".{other}"))));
    let [token_rows, head_rows] = token_rows(config)?;
    let of_weights = target_parameters::read(config)?;
    let (mut rank_pattern, mut alpha_pattern): (IndexMap<String, i64>, IndexMap<String, f64>) =
        (config.read("rank_pattern")?.unwrap_or_default(), config.read("alpha_pattern")?.unwrap_or_default());
    if of_weights.is_some() {
        rank_pattern = target_parameters::patterns(config, "rank_pattern", rank_pattern)?;
        alpha_pattern = target_parameters::patterns(config, "alpha_pattern", alpha_pattern)?;
    }
    let spec = LoraSpec {
        rank: config.read("r")?.unwrap_or(8),
        alpha: config.read("lora_alpha")?.unwrap_or(8.0),
        dropout: config.read("lora_dropout")?.unwrap_or(0.0),
        targets: of_weights.or(targets).unwrap_or_default(),
        exclude,
        layers,
        layers_pattern,
        rslora: config.read("use_rslora")?.unwrap_or(false),
        dora: config.read("use_dora")?.unwrap_or(false),
        bias: config.read("lora_bias")?.unwrap_or(false),
        freeze_a: false,
        b_lr_ratio: None,
        token_rows,
        head_rows,
        tie: config.read("ensure_weight_tying")?.unwrap_or(false),
        rank_pattern,
        alpha_pattern,
        modules_to_save,
        init,
        eva_rho: None,
        from,
        fan_in_fan_out,
    };
    let ranks = spec.rank_pattern.values().chain([&spec.rank]);
    if let Some(rank) = ranks.copied().find(|r| !(1..=MAX_RANK).contains(r)) {
        let hint = format!("a rank is between 1 and {MAX_RANK}");
        return Err(config.unsupported_value("r", &json!(rank), &hint));
    }
    if !(0.0..1.0).contains(&spec.dropout) {
        let hint = "dropout is a probability: at least 0 and below 1";
        return Err(config.unsupported_value("lora_dropout", &json!(spec.dropout), hint));
    }
    if spec.dora && spec.bias {
        return Err(config.unsupported("lora_bias", "PEFT does not read a DoRA with a bias behind B either"));
    }
    config.check_head(spec.has_scalar_head())?;
    Ok(spec)
}

/// Returns the tokens whose rows of the embedding and of the output head were trained: a list for the embedding, or lists
/// by the names of modules.
fn token_rows(config: &PeftConfig) -> Result<[Vec<TokenName>; 2]> {
    const KEY: &str = "trainable_token_indices";
    let Some(Value::Object(lists)) = config.get(KEY) else {
        return Ok([of_ids(config.read(KEY)?.unwrap_or_default()), Vec::new()]);
    };
    let mut rows = [Vec::new(), Vec::new()];
    for (module, ids) in lists {
        let at = match module.rsplit('.').next().unwrap_or(module) {
            name if EMBEDDINGS.contains(&name) => 0,
            HEAD => 1,
            _ => {
                let hint = "only rows of the token embedding and of lm_head are read: merge the adapter with PEFT";
                return Err(config.unsupported(KEY, hint));
            }
        };
        rows[at] = of_ids(config.parse(KEY, ids.clone())?);
    }
    Ok(rows)
}
