//! Reads from config.json what a GGUF file says of a model ([`Shape`]). What llama.cpp computes in another way is refused, with
//! the reason.

use crate::error::{Error, Result};
use crate::gguf::config_json::{attention_scalar, rotated_layers};
use crate::gguf::families;
use crate::gguf::layout::{BiasUse, ExpertUse, Family, FamilyKeyType, HeadUse, Presence, RopeUse, WindowUse};
use crate::gguf::metadata::window_period;
use crate::gguf::rope_scaling::{RopeKeys, Scaling};
use crate::gguf::shape::{ExpertShape, Shape};
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

struct ShapeReader<'a> {
    config: &'a Config,
}

impl ShapeReader<'_> {
    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        self.config
            .refuse(format!("this model cannot be written to GGUF: {what}"))
            .hint("which models can be, and which settings, is in docs/export.md")
    }

    fn shape(&self, family: &'static Family, has: &dyn Fn(&str) -> bool, notes: &mut Vec<String>) -> Result<Shape> {
        let c = self.config;
        let mut context = c.max_position_embeddings.unwrap_or(0).max(0) as u64;
        if context == 0 {
            return Err(self.refuse("`max_position_embeddings`, the context length, is missing"));
        }
        let windows = self.windows(family, &mut context, notes)?;
        let present = family.variable_parts().into_iter().filter(|part| {
            // Of a tensor that layers may have under one of several names, any.
            let of_part = family
                .layer_rules()
                .filter(|rule| rule.gguf == *part && !matches!(rule.presence, Presence::Without(_)));
            of_part.into_iter().any(|rule| has(&format!("{}.0.{}.weight", family.layers, rule.hf)))
        });
        let settings = family.settings.iter().map(|setting| {
            let value = c.settings.get(setting.config).cloned().unwrap_or(Value::Null);
            let fits = match setting.kind {
                FamilyKeyType::Float => value.is_number(),
                FamilyKeyType::Flag => value.is_boolean(),
            };
            let value = match (setting.kind, fits) {
                (_, true) => value,
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
        if family.rope == RopeUse::Learnt {
            return Ok(None);
        }
        let whole = |x: f64| x as u64;
        let scaling = match &c.rope_scaling {
            RopeScaling::None => Scaling::None,
            RopeScaling::Linear { factor } => Scaling::Linear { factor: *factor },
            RopeScaling::Yarn { factor, original, attention, fast, slow, truncate } => {
                let usual = if *factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                if (attention - usual).abs() > 1e-6 || !truncate {
                    return Err(self
                        .refuse("YaRN with its own `attention_factor`, `mscale` or `truncate` is not in the format"));
                }
                Scaling::Yarn { factor: *factor, original: whole(*original), fast: *fast, slow: *slow }
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

    fn experts(&self, family: &Family) -> Result<Option<ExpertShape>> {
        let ExpertUse::Experts { own_width, renormalised, .. } = family.experts else { return Ok(None) };
        let Some(experts) = &self.config.experts else { return Err(self.refuse("it has no experts")) };
        if let Some(layer) = experts.sparse.iter().position(|sparse| !sparse) {
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
        }))
    }

    /// Fails for what llama.cpp has in its code and the model does otherwise.
    fn check(&self, shape: &Shape) -> Result<()> {
        let (c, family) = (self.config, shape.family);
        let refuse_if = |wrong: bool, what: String| if wrong { Err(self.refuse(what)) } else { Ok(()) };
        refuse_if(
            !family.activations.contains(&c.hidden_act.as_str()),
            format!("its activation is `{}`, and llama.cpp computes `{}`", c.hidden_act, family.activations[0]),
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
                refuse_if(c.attention_bias, "its linear layers have biases, which llama.cpp does not read".into())
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
