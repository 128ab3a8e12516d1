//! Reads from config.json what a GGUF file says of a model ([`Shape`]). What llama.cpp computes in another way is refused, with
//! the reason.

use crate::error::{Error, Result};
use crate::gguf::config_json::{attention_scalar, rotated_layers};
use crate::gguf::families;
use crate::gguf::layout::{BiasUse, ExpertUse, Family, FamilyKeyType, HeadUse, Presence, RopeUse, WindowUse};
use crate::gguf::metadata::window_period;
use crate::gguf::rope_scaling::{RopeKeys, Scaling};
use crate::gguf::shape::{ExpertShape, LatentShape, Shape};
use crate::models::Config;
use crate::nn::RopeScaling;
use serde_json::{Map, Value};

/// Returns the sizes and settings of a model as its GGUF file has them, and what the user should know about them. `has`: the
/// model has a tensor of this name. Fails for what llama.cpp does not compute.
pub fn of(config: &Config, has: &dyn Fn(&str) -> bool) -> Result<(Shape, Vec<String>)> {
    let reader = ShapeReader { config };
    let family = families::of_model_type(&config.model_type)
        .ok_or_else(|| reader.refuse(format!("ft has no table of llama.cpp's names for `{}`", config.model_type)))?;
    let mut notes = Vec::new();
    let shape = reader.shape(family, has, &mut notes)?;
    reader.check(&shape)?;
    Ok((shape, notes))
}

/// Says why a model with this config.json cannot be written to GGUF, as far as that alone tells; `None` if it can.
pub fn refusal(config: &Config) -> Option<String> {
    // Which of the tensors that only some models have are there is not known.
    let [with_all, with_none] = [true, false].map(|has| of(config, &|_| has).err());
    let (Some(error), Some(_)) = (with_none, with_all) else { return None };
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default();
    Some(line.split_once(CANNOT).map_or(line, |(_, why)| why).into())
}

/// What the reason follows in errors.
const CANNOT: &str = "this model cannot be written to GGUF: ";

/// The context length of BLOOM models, in tokens, if config.json does not name it.
const BLOOM_CONTEXT: f64 = 2048.0;

struct ShapeReader<'a> {
    config: &'a Config,
}

impl ShapeReader<'_> {
    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        self.config
            .refuse(format!("{CANNOT}{what}"))
            .hint("which models can be, and which settings, is in docs/export.md")
    }

    fn shape(&self, family: &'static Family, has: &dyn Fn(&str) -> bool, notes: &mut Vec<String>) -> Result<Shape> {
        let c = self.config;
        // BLOOM's files may say how long the texts of its training were; transformers does not read it.
        let stated = c.max_position_embeddings.or_else(|| match family.model_type {
            "bloom" => Some(c.number(family.config_key("max_position_embeddings"), BLOOM_CONTEXT) as i64),
            _ => None,
        });
        let mut context = stated.unwrap_or(0).max(0) as u64;
        if context == 0 {
            return Err(self.refuse("`max_position_embeddings`, the context length, is missing"));
        }
        let windows = self.windows(family, &mut context, notes)?;
        let read_as =
            family.activations.first().filter(|name| **name != c.hidden_act && family.activations.contains(&"gelu"));
        if let Some(name) = read_as.filter(|_| family.activations.contains(&c.hidden_act.as_str())) {
            notes.push(format!(
                "the file is read as one of a model with `{name}`, not `{}`: it has no place for it",
                c.hidden_act
            ));
        }
        let exact_gelu = c.hidden_act == "gelu" && !family.activations.is_empty();
        if exact_gelu || family.model_type == "mpt" {
            notes.push("llama.cpp computes GELU in its tanh form, and this model by the error function".into());
        }
        let present = family.variable_parts().into_iter().filter(|part| {
            // Of a tensor that layers may have under one of several names, any.
            let of_part = family
                .layer_rules()
                .filter(|rule| rule.gguf == *part && !matches!(rule.presence, Presence::Without(_)));
            of_part.into_iter().any(|rule| has(&format!("{}.0.{}.weight", family.layers, rule.hf)))
        });
        let settings = family.settings.iter().map(|setting| {
            let found = match setting.config.split_once('.') {
                Some((section, key)) => c.settings.get(section).and_then(|section| section.get(key)),
                None => c.settings.get(setting.config),
            };
            let value = found.cloned().unwrap_or(Value::Null);
            let fits = match setting.kind {
                FamilyKeyType::Float => value.is_number(),
                FamilyKeyType::Optional => value.is_number() || value.is_null(),
                FamilyKeyType::Fixed(x) => value.is_null() || value.as_f64() == Some(x),
                FamilyKeyType::Flag => value.is_boolean(),
            };
            let value = match (setting.kind, fits) {
                (_, true) => value,
                (FamilyKeyType::Fixed(x), false) => {
                    return Err(self.refuse(format!("`{}` is {value}, and ft computes with {x}", setting.config)));
                }
                // transformers' default of the families that have it.
                (FamilyKeyType::Flag, false) => Value::Bool(family.model_type == "gpt_neox"),
                _ => return Err(self.refuse(format!("`{}` is {value}, and llama.cpp needs a number", setting.config))),
            };
            Ok((setting.config.to_string(), value))
        });
        Ok(Shape {
            family,
            layers: c.num_hidden_layers as u64,
            hidden: c.hidden_size as u64,
            inner: c.intermediate_size as u64,
            heads: c.num_attention_heads as u64,
            kv_heads: c.num_key_value_heads as u64,
            head_dim: c.head_dim as u64,
            vocab: c.vocab_size as u64,
            context,
            norm_eps: c.norm_eps,
            rope: self.rope(family, notes)?,
            windows,
            qkv_bias: family.biases.qkv.with(|| self.has_qkv_bias(family)),
            output_bias: family.biases.output.with(|| c.attention_bias),
            mlp_bias: family.biases.mlp.with(|| c.mlp_bias),
            tied: c.tie_word_embeddings,
            experts: self.experts(family)?,
            latent: self.latent(family),
            present: present.collect(),
            settings: settings.collect::<Result<Map<String, Value>>>()?,
        })
    }

    fn has_qkv_bias(&self, family: &Family) -> bool {
        match family.model_type {
            "qwen2_moe" => self.config.flag("qkv_bias", true),
            _ => self.config.attention_bias,
        }
    }

    fn rope(&self, family: &Family, notes: &mut Vec<String>) -> Result<Option<RopeKeys>> {
        let c = self.config;
        if !family.rope.is_rotary() {
            return Ok(None);
        }
        let whole = |x: f64| x as u64;
        let scaling = match &c.rope_scaling {
            RopeScaling::None => Scaling::None,
            RopeScaling::Linear { factor } => Scaling::Linear { factor: *factor },
            RopeScaling::Yarn { factor, original, attention, fast, slow, truncate } => {
                let usual = if *factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                let oss = family.model_type == "gpt_oss";
                let log_multiplier = if family.latent { Some(self.log_multiplier()?) } else { None };
                let usual = if family.latent { 1.0 } else { usual };
                if (attention - usual).abs() > 1e-6 || *truncate == oss {
                    return Err(self
                        .refuse("YaRN with its own `attention_factor`, `mscale` or `truncate` is not in the format"));
                }
                if oss {
                    notes.push("YaRN: llama.cpp rounds the bounds of its frequencies, as with `truncate: true`".into());
                }
                let (factor, original, fast, slow) = (*factor, whole(*original), *fast, *slow);
                Scaling::Yarn { factor, original, fast, slow, log_multiplier }
            }
            RopeScaling::Llama3 { factor, low, high, original } if family.rope == RopeUse::Llama3 => {
                Scaling::Llama3 { factor: *factor, low: *low, high: *high, original: whole(*original) }
            }
            RopeScaling::Long { short, long, original, attention } if family.rope == RopeUse::Long => {
                let original = whole(*original);
                notes.push(format!(
                    "LongRoPE: llama.cpp uses the long factors in every sequence if its context has more than {original} tokens"
                ));
                Scaling::Long { short: short.clone(), long: long.clone(), original, attention: *attention }
            }
            RopeScaling::Llama3 { .. } => {
                return Err(self.refuse("llama3 rotary scaling, which llama.cpp reads for llama and granite only"));
            }
            RopeScaling::Long { .. } => {
                return Err(self.refuse("longrope rotary scaling, which llama.cpp reads for phi3 only"));
            }
            RopeScaling::Dynamic { .. } => return Err(self.refuse("dynamic rotary scaling is not in the format")),
        };
        let local_theta = match (family.rope, &c.local_rope) {
            (RopeUse::Local, Some((theta, RopeScaling::None))) => Some(*theta),
            (RopeUse::Local, None) if scaling == Scaling::None => Some(c.rope_theta),
            (RopeUse::LocalUnscaled, Some((theta, RopeScaling::None))) if *theta == c.rope_theta => Some(*theta),
            (RopeUse::LocalUnscaled, None) if scaling == Scaling::None => Some(c.rope_theta),
            (RopeUse::Local | RopeUse::LocalUnscaled, _) | (_, Some(_)) => {
                return Err(self.refuse("llama.cpp computes another rotary embedding in layers with a window"));
            }
            (_, None) => None,
        };
        Ok(Some(RopeKeys { rotary: c.rotary_size as u64, theta: c.rope_theta, local_theta, scaling }))
    }

    /// Returns the window and which layers have it. Where the architecture has none, the context is cut to the window, within
    /// which both compute the same.
    fn windows(&self, family: &Family, context: &mut u64, notes: &mut Vec<String>) -> Result<Option<(u64, Vec<bool>)>> {
        let c = self.config;
        let layers: Vec<bool> = c.windows.iter().map(Option::is_some).collect();
        let Some(window) = c.windows.iter().flatten().min().map(|n| *n as u64) else {
            return match family.windows {
                WindowUse::Period { always: true, .. } => {
                    Err(self.refuse("no layer has a window, and llama.cpp computes some with one"))
                }
                _ => Ok(None),
            };
        };
        match family.windows {
            WindowUse::None => {
                if window < *context {
                    notes.push(format!(
                        "llama.cpp has no window in this architecture: the file's context is {window} tokens instead of {context}, up to \
                         which a window of {window} changes nothing"
                    ));
                    *context = window;
                }
                Ok(None)
            }
            WindowUse::Ignored => {
                if window < *context {
                    notes.push(format!("llama.cpp computes without the window of {window} tokens: longer texts differ"));
                }
                Ok(Some((window, layers)))
            }
            WindowUse::Period { period, .. } => match window_period(&layers, period) {
                Some(_) => Ok(Some((window, layers))),
                None => Err(self.refuse(
                    "its layers with a window do not follow a period, and llama.cpp knows only every n-th layer without one",
                )),
            },
        }
    }

    fn latent(&self, family: &Family) -> Option<LatentShape> {
        let size = |key: &str| self.config.settings.get(key).and_then(Value::as_u64);
        family.latent.then(|| LatentShape {
            query_rank: size("q_lora_rank"),
            key_value_rank: size("kv_lora_rank").unwrap_or(0),
            rotated: self.config.rotary_size as u64,
            value: size("v_head_dim").unwrap_or(0),
        })
    }

    /// Returns what YaRN's factor on attention grows by in DeepSeek-V2. Fails where llama.cpp computes another factor.
    fn log_multiplier(&self) -> Result<f64> {
        let sections = ["rope_scaling", "rope_parameters"].iter().filter_map(|key| self.config.settings.get(*key));
        let given = |key: &str| sections.clone().find_map(|section| section.get(key).and_then(Value::as_f64));
        match (given("mscale"), given("mscale_all_dim")) {
            (Some(one), Some(all)) if one == all && one > 0.0 => Ok(0.1 * all),
            _ => {
                Err(self
                    .refuse("YaRN without `mscale` and `mscale_all_dim` of one value, with which llama.cpp computes"))
            }
        }
    }

    fn experts(&self, family: &Family) -> Result<Option<ExpertShape>> {
        let ExpertUse::Experts { own_width, renormalised, later, .. } = family.experts else { return Ok(None) };
        let Some(experts) = &self.config.experts else { return Err(self.refuse("it has no experts")) };
        let first = if later { experts.sparse.iter().take_while(|sparse| !**sparse).count() } else { 0 };
        if let Some(layer) = experts.sparse.iter().skip(first).position(|sparse| !sparse) {
            return Err(self.refuse(format!("layer {layer} has no experts, and llama.cpp expects them in every layer")));
        }
        if experts.renormalise != renormalised {
            return Err(self.refuse(format!(
                "`norm_topk_prob` is {}, and llama.cpp computes this architecture with {renormalised}",
                experts.renormalise
            )));
        }
        let inner = self.config.intermediate_size;
        if !own_width && experts.width != inner {
            return Err(self.refuse(format!("experts of width {}, {inner} expected", experts.width)));
        }
        Ok(Some(ExpertShape {
            count: experts.count as u64,
            chosen: experts.chosen as u64,
            width: experts.width as u64,
            shared: experts.shared_width.map(|width| width as u64),
            first: first as u64,
            scale: experts.scale,
        }))
    }

    /// Fails for what llama.cpp has in its code and the model does otherwise.
    fn check(&self, shape: &Shape) -> Result<()> {
        let (c, family) = (self.config, shape.family);
        let refuse_if = |wrong: bool, what: String| if wrong { Err(self.refuse(what)) } else { Ok(()) };
        refuse_if(
            !family.activations.is_empty() && !family.activations.contains(&c.hidden_act.as_str()),
            format!("its activation is `{}`, and llama.cpp computes {}", c.hidden_act, family.activations.join(", ")),
        )?;
        let derived = shape.hidden / shape.heads;
        refuse_if(
            !family.free_head_size && shape.head_dim != derived,
            format!("its heads have {} numbers, and llama.cpp expects {derived}", shape.head_dim),
        )?;
        if let Some(rope) = &shape.rope {
            refuse_if(
                !family.partial_rotary && rope.rotary != shape.head_dim,
                "rotary embedding of a part of each head, which llama.cpp does not compute in this architecture".into(),
            )?;
        }
        refuse_if(
            family.head == HeadUse::Embedding && !shape.tied,
            "its output head has a weight of its own, and llama.cpp always takes the embedding".into(),
        )?;
        let biased = family.biases.qkv == BiasUse::Never && c.attention_bias;
        refuse_if(biased, "its attention has biases, which llama.cpp does not read".into())?;
        refuse_if(
            family.biases.mlp == BiasUse::Never && c.mlp_bias,
            "its MLP has biases, which llama.cpp does not read".into(),
        )?;
        self.check_family(shape)
    }

    fn check_family(&self, shape: &Shape) -> Result<()> {
        let c = self.config;
        let refuse_if = |wrong: bool, what: String| if wrong { Err(self.refuse(what)) } else { Ok(()) };
        let number = |key: &str| c.settings.get(key).and_then(Value::as_f64);
        match shape.family.model_type {
            "qwen3" => refuse_if(shape.output_bias, "its attention has biases, which llama.cpp does not read".into()),
            "gemma2" | "gemma3_text" => {
                let (wanted, found) = (attention_scalar(shape) as f64, c.number("query_pre_attn_scalar", 256.0));
                refuse_if(
                    wanted != found,
                    format!("`query_pre_attn_scalar` is {found}, and llama.cpp computes with {wanted}"),
                )?;
                refuse_if(
                    shape.family.model_type == "gemma3_text" && number("final_logit_softcapping").is_some(),
                    "`final_logit_softcapping`, which llama.cpp does not read for Gemma 3".into(),
                )
            }
            "smollm3" => {
                let rotates = c.settings.get("no_rope_layers").and_then(Value::as_array);
                let found = rotates.into_iter().flatten().map(|n| n.as_i64() != Some(0));
                refuse_if(
                    !found.eq(rotated_layers(shape.layers)),
                    "`no_rope_layers`: llama.cpp leaves rotation out in every fourth layer".into(),
                )
            }
            "cohere" => {
                let normed = shape.present.contains("attn_q_norm");
                refuse_if(
                    normed != (shape.layers >= 64),
                    format!(
                        "`use_qk_norm` is {normed} in a model of {} layers, and llama.cpp reads these norms from 64 layers on",
                        shape.layers
                    ),
                )
            }
            "gpt_neox" => refuse_if(!c.attention_bias, "attention without biases, which llama.cpp expects".into()),
            "falcon" => {
                refuse_if(
                    !c.flag("parallel_attn", true),
                    "`parallel_attn` is false, and llama.cpp computes in parallel".into(),
                )?;
                refuse_if(
                    c.flag("alibi", false),
                    "ALiBi, which llama.cpp does not compute in this architecture".into(),
                )?;
                refuse_if(c.attention_bias, "its linear layers have biases, which llama.cpp does not read".into())
            }
            "gpt_oss" => {
                let bounds = (c.number("swiglu_alpha", 1.702), c.number("swiglu_limit", 7.0));
                refuse_if(
                    bounds != (1.702, 7.0),
                    format!(
                        "`swiglu_alpha` and `swiglu_limit` are {bounds:?}, and llama.cpp computes with 1.702 and 7"
                    ),
                )?;
                refuse_if(!c.attention_bias, "attention without biases, which llama.cpp expects".into())
            }
            "deepseek_v2" => {
                refuse_if(
                    c.experts.as_ref().is_some_and(|experts| experts.groups.is_some()),
                    "groups of experts, which llama.cpp does not know in this architecture".into(),
                )?;
                // llama.cpp knows the models without low-rank queries by their number of layers.
                refuse_if(
                    (shape.latent.is_some_and(|latent| latent.query_rank.is_none())) != (shape.layers == 27),
                    format!(
                        "{} layers with `q_lora_rank` {}: llama.cpp expects null in 27 layers, and only there",
                        shape.layers,
                        c.settings.get("q_lora_rank").unwrap_or(&Value::Null)
                    ),
                )
            }
            "bloom" => refuse_if(
                c.flag("apply_residual_connection_post_layernorm", false),
                "`apply_residual_connection_post_layernorm`, which llama.cpp does not compute".into(),
            ),
            "mpt" => {
                let scale = c.settings.get("attn_config").and_then(|section| section.get("softmax_scale"));
                let usual = (shape.head_dim as f64).powf(-0.5);
                refuse_if(
                    scale.and_then(Value::as_f64).is_some_and(|scale| (scale - usual).abs() > 1e-6 * usual),
                    format!("`attn_config.softmax_scale`, and llama.cpp computes with {usual:.4}"),
                )
            }
            "gpt2" => {
                let plain = |key: &str, usual: bool| c.flag(key, usual) == usual;
                refuse_if(
                    !plain("scale_attn_weights", true) || !plain("scale_attn_by_inverse_layer_idx", false),
                    "its scores are scaled in another way than llama.cpp's".into(),
                )
            }
            "olmoe" => {
                refuse_if(number("clip_qkv").is_some(), "`clip_qkv`, which llama.cpp does not read".into())?;
                refuse_if(
                    shape.kv_heads != shape.heads,
                    "fewer key heads than query heads, which llama.cpp does not read in this architecture".into(),
                )
            }
            _ => Ok(()),
        }
    }
}
