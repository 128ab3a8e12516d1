//! Attention of a layer with its keys and values of earlier tokens, and which keys each query sees.

use super::Precision;
use super::decoder::DecoderGraph;
use super::rotation::Rotation;
use crate::models::blocks::{Projections, QkNorm};
use crate::nn::Alibi;
use crate::onnx::{AttributeValue, Dimension, ElementType, Value};

/// What is added to the scores of a key that is not seen. It is finite, so that a query without any key, that of padding, has a result.
const HIDDEN: f32 = f32::MIN;

/// Lengths and shapes that the layers share.
pub struct AttentionFrame {
    /// (B, S), the shape of the token ids.
    tokens: Value,
    /// Shape of the scores of all heads of a key head together, (B, K, G * S, L), and head by head, (B, K, G, S, L).
    scores: [Value; 2],
    /// (L) numbers of the keys, (S, 1) those of the keys that belong to the queries.
    keys: Value,
    queries: Value,
    /// (B, 1, L) the keys that are no padding.
    real: Value,
    /// (B, L) attention_mask.
    mask: Value,
    /// (B, 1, 1, S, L) what is added to scores, for each window.
    biases: Vec<(Option<i64>, Value)>,
    /// (1 or B, K, G, 1, L) biases by distance.
    alibi: Option<Value>,
}

impl DecoderGraph<'_> {
    /// Computes what all layers share, of the token ids (B, S) and the mask (B, L).
    pub fn attention_frame(&mut self, ids: &Value, mask: &Value) -> AttentionFrame {
        let groups = self.config.num_attention_heads / self.config.num_key_value_heads;
        let tokens = self.g.add("Shape", &[ids]);
        let [rest, grouped] = [&[0, 0, -1][..], &[0, 0, groups, -1][..]].map(|known| self.g.integers(known));
        let of_mask = self.g.add("Shape", &[mask]);
        let one = self.g.integers(&[1]);
        let total = self.g.add("Gather", &[&of_mask, &one]); // (1)
        let scores = [rest, grouped].map(|known| self.g.concat(&[&known, &total], 0));
        let [zero, step] = [0, 1].map(|n| self.g.integer(n));
        let last = self.g.integer(1);
        let [total, new] = [&of_mask, &tokens].map(|shape| self.g.add("Gather", &[shape, &last]));
        let past = self.g.add("Sub", &[&total, &new]);
        let keys = self.g.add("Range", &[&zero, &total, &step]);
        let queries = self.g.add("Range", &[&past, &total, &step]);
        let queries = self.g.unsqueeze(&queries, &[1]);
        let real = self.g.cast(mask, ElementType::Bool);
        let real = self.g.unsqueeze(&real, &[1]);
        let (biases, alibi) = (Vec::new(), None);
        let mut frame = AttentionFrame { tokens, scores, keys, queries, real, mask: mask.clone(), biases, alibi };
        let mut windows = self.config.windows.clone();
        windows.sort();
        windows.dedup();
        frame.biases = windows.into_iter().map(|window| (window, self.bias(&frame, window))).collect();
        frame.alibi = self.layout.design.attention.alibi.map(|alibi| self.bias_by_distance(&frame, alibi));
        frame
    }

    /// Returns what is added to the scores of keys that a query does not see: later ones, padding, and those before the window.
    fn bias(&mut self, frame: &AttentionFrame, window: Option<i64>) -> Value {
        let mut seen = self.g.add("LessOrEqual", &[&frame.keys, &frame.queries]); // (S, L)
        if let Some(window) = window {
            let window = self.g.integer(window);
            let first = self.g.add("Sub", &[&frame.queries, &window]);
            let within = self.g.add("Greater", &[&frame.keys, &first]);
            seen = self.g.add("And", &[&seen, &within]);
        }
        let seen = self.g.add("And", &[&seen, &frame.real]); // (B, S, L)
        let [zero, hidden] = [0.0, HIDDEN].map(|x| self.g.float(x));
        let bias = self.g.add("Where", &[&seen, &zero, &hidden]);
        self.g.unsqueeze(&bias, &[1, 2])
    }

    /// Returns the bias of each key less that of the last: a query's weights do not change if all its scores change alike.
    fn bias_by_distance(&mut self, frame: &AttentionFrame, alibi: Alibi) -> Value {
        let heads = self.config.num_attention_heads;
        let keys = self.config.num_key_value_heads;
        let slopes: Vec<f32> = alibi.slopes(heads).into_iter().map(|slope| slope as f32).collect();
        let shape = [1, keys as u64, (heads / keys) as u64, 1, 1];
        if !alibi.rounded {
            let slopes = self.g.floats(&slopes, &shape);
            let last = self.g.add_with("ReduceMax", &[&frame.keys], &[("keepdims", AttributeValue::Int(1))]);
            let distance = self.g.add("Sub", &[&frame.keys, &last]);
            let distance = self.g.cast(&distance, ElementType::Float);
            let bias = self.g.add("Mul", &[&slopes, &distance]);
            return self.g.scale(&bias, alibi.factor);
        }
        // Slopes, positions and products are rounded to bfloat16; positions count what is no padding.
        let slopes: Vec<f32> = slopes.iter().map(|slope| half::bf16::from_f32(*slope).to_f32()).collect();
        let slopes = self.g.floats(&slopes, &shape);
        let last = self.g.integer(1);
        let counted = self.g.add("CumSum", &[&frame.mask, &last]);
        let one = self.g.integer(1);
        let positions = self.g.add("Sub", &[&counted, &one]);
        let positions = self.g.cast(&positions, ElementType::Float);
        let positions = self.bfloat16(&positions);
        let positions = self.g.unsqueeze(&positions, &[1, 2, 3]); // (B, 1, 1, 1, L)
        let bias = self.g.add("Mul", &[&slopes, &positions]);
        let bias = self.bfloat16(&bias);
        let last = [("axes", AttributeValue::Ints(vec![-1]))];
        let largest = self.g.add_with("ReduceMax", &[&bias], &last);
        let bias = self.g.add("Sub", &[&bias, &largest]);
        self.g.scale(&bias, alibi.factor)
    }

    /// Rounds to bfloat16 and back.
    fn bfloat16(&mut self, x: &Value) -> Value {
        let narrow = self.g.cast(x, ElementType::Bfloat16);
        self.g.cast(&narrow, ElementType::Float)
    }

    /// Computes layer `i`'s attention in the module `module`: (T, D) -> (T, D).
    pub fn attention(
        &mut self,
        i: usize,
        module: &str,
        x: &Value,
        frame: &AttentionFrame,
        rotation: Option<&Rotation>,
    ) -> Value {
        let (heads, keys) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let (groups, head) = (heads / keys, self.config.head_dim);
        let design = &self.layout.design.attention;
        let (output, output_bias, softcap) = (design.output, design.output_bias, design.softcap);
        let [q, k, v] = self.queries_keys_values(module, x);
        let [q, k] = match rotation {
            Some(rotation) => [self.rotate(&q, rotation, heads), self.rotate(&k, rotation, keys)],
            None => [q, k],
        };
        let q = self.g.scale(&q, self.layout.scales[i]);
        let q = self.by_sequence(frame, &q, &[keys, groups, head]); // (B, S, K, G, E)
        let q = self.g.transpose(&q, &[0, 2, 3, 1, 4]);
        let q = self.g.reshape(&q, &[0, 0, -1, head]); // (B, K, G * S, E)
        let q = self.stored(&q);
        let [k, v] = [("key", k), ("value", v)].map(|(name, new)| self.with_past(i, name, &new, frame));

        let turned = self.g.transpose(&k, &[0, 1, 3, 2]);
        let scores = self.g.add("MatMul", &[&q, &turned]);
        let scores = self.computed(&scores);
        let scores = match softcap {
            Some(bound) => self.g.cap(&scores, bound),
            None => scores,
        };
        let mut scores = self.g.add("Reshape", &[&scores, &frame.scores[1]]);
        if let Some(alibi) = &frame.alibi {
            scores = self.g.add("Add", &[&scores, alibi]);
        }
        let window = self.config.windows[i];
        let bias = frame.biases.iter().find(|(of, _)| *of == window).map(|(_, bias)| bias);
        let scores = self.g.add("Add", &[&scores, bias.expect("a bias for each window")]);
        let weights = self.g.add_with("Softmax", &[&scores], &[("axis", AttributeValue::Int(-1))]);
        let weights = self.g.add("Reshape", &[&weights, &frame.scores[0]]);
        let weights = self.stored(&weights);
        let y = self.g.add("MatMul", &[&weights, &v]); // (B, K, G * S, E)
        let y = self.computed(&y);
        let y = self.g.reshape(&y, &[0, 0, groups, -1, head]);
        let y = self.g.transpose(&y, &[0, 3, 1, 2, 4]);
        let y = self.g.reshape(&y, &[-1, heads * head]);
        let rows = self.rows(&y);
        self.linear(&rows, &format!("{module}.{output}"), [heads * head, self.config.hidden_size], output_bias)
    }

    /// Returns queries (T, H, E), keys and values (T, K, E) of the input (T, D).
    fn queries_keys_values(&mut self, module: &str, x: &Value) -> [Value; 3] {
        let (heads, keys, head) =
            (self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim);
        let design = &self.layout.design.attention;
        let (projections, bias, norm, clip) = (design.projections, design.qkv_bias, design.qk_norm, design.clip_qkv);
        let (d, counts) = (self.config.hidden_size, [heads, keys, keys]);
        let rows = self.rows(x);
        let all = [d, (heads + 2 * keys) * head];
        let parts = match projections {
            Projections::ByKind(name) => {
                let all = self.linear(&rows, &format!("{module}.{name}"), all, bias);
                self.g.split(&all, counts.map(|count| count * head), 1)
            }
            Projections::ByGroup(name) => {
                let all = self.linear(&rows, &format!("{module}.{name}"), all, bias);
                let all = self.g.reshape(&all, &[-1, keys, heads / keys + 2, head]);
                let parts = self.g.split(&all, [heads / keys, 1, 1], 2);
                let widths = counts.map(|count| count * head);
                [0, 1, 2].map(|i| self.g.reshape(&parts[i], &[-1, widths[i]]))
            }
            Projections::Separate | Projections::Latent(_) => [0, 1, 2].map(|i| {
                let name = ["q_proj", "k_proj", "v_proj"][i];
                self.linear(&rows, &format!("{module}.{name}"), [d, counts[i] * head], bias)
            }),
        };
        let names = ["q_norm", "k_norm"].map(|name| format!("{module}.{name}"));
        let mut parts = parts;
        if norm == QkNorm::Whole {
            for i in 0..2 {
                parts[i] = self.norm(&parts[i], &names[i], &[counts[i] * head]);
            }
        }
        if let Some(limit) = clip {
            let [low, high] = [-limit, limit].map(|x| self.g.float(x as f32));
            parts = parts.map(|part| self.g.add("Clip", &[&part, &low, &high]));
        }
        let mut parts = [0, 1, 2].map(|i| self.g.reshape(&parts[i], &[-1, counts[i], head]));
        for i in 0..2 {
            parts[i] = match norm {
                QkNorm::None | QkNorm::Whole => parts[i].clone(),
                QkNorm::PerHead => self.norm(&parts[i], &names[i], &[head]),
                QkNorm::EachHead => self.norm(&parts[i], &names[i], &[counts[i], head]),
            };
        }
        parts
    }

    /// Divides the rows of a packed batch by sequence: (T, …) -> (B, S, …).
    fn by_sequence(&mut self, frame: &AttentionFrame, x: &Value, rest: &[i64]) -> Value {
        let shape = self.sequence_shape(frame, rest);
        self.g.add("Reshape", &[x, &shape])
    }

    /// Returns the shape (B, S, …) with these lengths in the end.
    pub fn sequence_shape(&mut self, frame: &AttentionFrame, rest: &[i64]) -> Value {
        let rest = self.g.integers(rest);
        self.g.concat(&[&frame.tokens, &rest], 0)
    }

    /// Appends new keys or values (T, K, E) to those of earlier tokens: (B, K, L, E), which is an output.
    fn with_past(&mut self, i: usize, name: &str, new: &Value, frame: &AttentionFrame) -> Value {
        let (heads, head, kind) = (self.config.num_key_value_heads, self.config.head_dim, self.cache_kind());
        let new = self.by_sequence(frame, new, &[heads, head]);
        let new = self.g.transpose(&new, &[0, 2, 1, 3]);
        let new = self.stored(&new);
        let shape =
            |length: &str| -> Vec<Dimension> { vec!["batch_size".into(), heads.into(), length.into(), head.into()] };
        let past = self.g.input(&format!("past_key_values.{i}.{name}"), kind, shape("past_sequence_length"));
        let all = [("axis", AttributeValue::Int(2))];
        let all = self.g.add_as(&format!("present.{i}.{name}"), "Concat", &[&past, &new], &all);
        self.g.output(&all, kind, shape("total_sequence_length"));
        all
    }

    /// Returns the type of keys and values of earlier tokens.
    fn cache_kind(&self) -> ElementType {
        if self.precision == Precision::Float16 { ElementType::Float16 } else { ElementType::Float }
    }

    /// Converts float32 to the type of keys and values.
    fn stored(&mut self, x: &Value) -> Value {
        if self.precision == Precision::Float16 { self.g.cast(x, ElementType::Float16) } else { x.clone() }
    }

    /// Converts a product of keys or values to float32.
    fn computed(&mut self, x: &Value) -> Value {
        if self.precision == Precision::Float16 { self.g.cast(x, ElementType::Float) } else { x.clone() }
    }
}
