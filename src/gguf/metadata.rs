//! Writes the sizes and settings of a model ([`Shape`]) as metadata, the reverse of [`super::architecture`].

use super::layout::{ExpertUse, FamilyKeyType, RopeUse, WindowUse};
use super::rope_scaling::{RopeKeys, Scaling, YARN_BETAS};
use super::shape::Shape;
use super::writer::MetaValue;
use serde_json::Value;

/// Returns the metadata of a model's architecture, without `general` and the tokenizer.
pub fn of(shape: &Shape) -> Vec<(String, MetaValue)> {
    let family = shape.family;
    let mut keys = Keys { arch: family.arch, list: Vec::new() };
    keys.number("block_count", shape.layers);
    keys.number("context_length", shape.context);
    keys.number("embedding_length", shape.hidden);
    keys.number("feed_forward_length", shape.inner);
    keys.number("vocab_size", shape.vocab);
    keys.number("attention.head_count", shape.heads);
    if let Some(latent) = shape.latent {
        // In llama.cpp all heads share one key, the vector that keys are made of, and one value.
        keys.number("attention.head_count_kv", 1);
        keys.number("attention.key_length", latent.key_value_rank + latent.rotated);
        keys.number("attention.value_length", latent.key_value_rank);
        keys.number("attention.key_length_mla", shape.head_dim);
        keys.number("attention.value_length_mla", latent.value);
    } else if family.rope != RopeUse::Learnt {
        keys.number("attention.head_count_kv", shape.kv_heads);
    }
    if family.free_head_size && !family.latent {
        keys.number("attention.key_length", shape.head_dim);
        keys.number("attention.value_length", shape.head_dim);
    }
    keys.float(family.norm.eps_key(), shape.norm_eps);
    if let Some(rope) = &shape.rope {
        keys.rope(rope);
    }
    if let Some(latent) = shape.latent {
        keys.number("attention.kv_lora_rank", latent.key_value_rank);
        latent.query_rank.into_iter().for_each(|rank| keys.number("attention.q_lora_rank", rank));
    }
    keys.windows(shape);
    if let (ExpertUse::Experts { own_width, later, .. }, Some(experts)) = (family.experts, shape.experts) {
        keys.number("expert_count", experts.count);
        keys.number("expert_used_count", experts.chosen);
        if own_width {
            keys.number("expert_feed_forward_length", experts.width);
        }
        match experts.shared {
            // Shared experts are as wide as the others.
            Some(width) if later => keys.number("expert_shared_count", width / experts.width),
            Some(width) => keys.number("expert_shared_feed_forward_length", width),
            None => {}
        }
        if later {
            keys.number("leading_dense_block_count", experts.first);
            keys.float("expert_weights_scale", experts.scale);
            keys.add("expert_weights_norm", MetaValue::Flag(false));
            keys.number("expert_gating_func", SOFTMAX);
        }
    }
    for setting in family.settings {
        let value = shape.settings.get(setting.config).unwrap_or(&Value::Null);
        match setting.kind {
            FamilyKeyType::Float => keys.float(setting.gguf, value.as_f64().unwrap_or(1.0)),
            FamilyKeyType::Optional => value.as_f64().into_iter().for_each(|x| keys.float(setting.gguf, x)),
            FamilyKeyType::Fixed(x) => keys.float(setting.gguf, x),
            FamilyKeyType::Flag => keys.add(setting.gguf, MetaValue::Flag(value.as_bool().unwrap_or(true))),
        }
    }
    for (key, text) in family.constants {
        keys.add(key, (*text).into());
    }
    keys.list
}

/// llama.cpp's number for routers whose probabilities are a softmax.
pub const SOFTMAX: u64 = 1;

struct Keys {
    arch: &'static str,
    list: Vec<(String, MetaValue)>,
}

impl Keys {
    fn add(&mut self, key: &str, value: MetaValue) {
        self.list.push((format!("{}.{key}", self.arch), value));
    }

    fn number(&mut self, key: &str, value: u64) {
        self.add(key, MetaValue::Unsigned(value as u32));
    }

    fn float(&mut self, key: &str, value: f64) {
        self.add(key, MetaValue::Float(value as f32));
    }

    fn rope(&mut self, rope: &RopeKeys) {
        self.number("rope.dimension_count", rope.rotary);
        self.float("rope.freq_base", rope.theta);
        if let Some(theta) = rope.local_theta {
            self.float("rope.freq_base_swa", theta);
        }
        match &rope.scaling {
            Scaling::None => {}
            // llama.cpp recognises Llama 3's scaling by its tensor of divisors, from which the original context alone cannot be told.
            Scaling::Llama3 { original, .. } => self.number("rope.scaling.original_context_length", *original),
            Scaling::Linear { factor } => {
                self.add("rope.scaling.type", "linear".into());
                self.float("rope.scaling.factor", *factor);
            }
            Scaling::Yarn { factor, original, fast, slow, log_multiplier } => {
                self.add("rope.scaling.type", "yarn".into());
                self.float("rope.scaling.factor", *factor);
                self.number("rope.scaling.original_context_length", *original);
                if (*fast, *slow) != YARN_BETAS {
                    self.float("rope.scaling.yarn_beta_fast", *fast);
                    self.float("rope.scaling.yarn_beta_slow", *slow);
                }
                if let Some(x) = log_multiplier {
                    self.float("rope.scaling.yarn_log_multiplier", *x);
                }
            }
            Scaling::Long { original, attention, .. } => {
                self.number("rope.scaling.original_context_length", *original);
                self.float("rope.scaling.attn_factor", *attention);
            }
        }
    }

    fn windows(&mut self, shape: &Shape) {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let period = match shape.family.windows {
            WindowUse::None => return,
            WindowUse::Ignored => {
                let window = shape.windows.as_ref().map_or(0, |(window, _)| *window);
                return self.number("attention.sliding_window", window);
            }
            WindowUse::Period { period, .. } => period,
        };
        let Some((window, layers)) = &shape.windows else { return };
        self.number("attention.sliding_window", *window);
        // A list is what other programs write for OLMo 3, whose period is that of llama.cpp; a number sets another period.
        match window_period(layers, period) {
            Some(found) if found != period => self.number(PATTERN, found),
            _ if shape.family.rope == RopeUse::LocalUnscaled => self.add(PATTERN, MetaValue::Flags(layers.clone())),
            _ => {}
        }
    }
}

/// Returns the number p for which all layers but every p-th have a window; `usual` if it is one of several. `None` if there
/// is no such number.
pub fn window_period(layers: &[bool], usual: u64) -> Option<u64> {
    let fits = |period: &u64| layers.iter().enumerate().all(|(i, window)| *window == (i as u64 % period < period - 1));
    [usual].into_iter().chain(1..=layers.len() as u64 + 1).find(fits)
}

#[cfg(test)]
mod tests {
    use super::window_period;

    #[test]
    fn the_period_of_windows_is_found() {
        assert_eq!(window_period(&[true, false, true], 2), Some(2));
        assert_eq!(window_period(&[true, true, true], 6), Some(6));
        assert_eq!(window_period(&[true, true, false, true], 6), Some(3));
        assert_eq!(window_period(&[false, true], 4), None);
        assert_eq!(window_period(&[false, false], 4), Some(1));
    }
}
