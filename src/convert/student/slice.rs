//! Decides which rows and columns of each tensor a student keeps, and under which name.

use crate::convert::student::activations::Importance;
use crate::error::{Error, Result};
use crate::models::{Config, layer_number, with_layer_number};
use crate::nn::Weights;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The rows and columns to keep of every tensor.
pub struct TensorSlices {
    /// Kept layers: old layer number -> new layer number.
    layers: BTreeMap<usize, usize>,
    /// By old layer number: indices of the kept neurons; empty if all are kept.
    neurons: BTreeMap<usize, Tensor>,
    /// By old layer number: the kept rows of q (also the columns of o), and the kept rows of k and v; empty if all are
    /// kept.
    heads: BTreeMap<usize, (Tensor, Tensor)>,
    /// Rows of q, and of k or v, before.
    rows: [i64; 2],
}

impl TensorSlices {
    /// Decides what is kept: the layers `kept`, and in each of them the `mlp` neurons and `heads` query heads with the
    /// largest activations. Fails if a needed activation was not measured.
    pub fn new(c: &Config, kept: &[usize], mlp: i64, heads: i64, important: &Importance) -> Result<Self> {
        let layers: BTreeMap<usize, usize> = kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let found = |old: usize, module: &str| {
            let name = format!("model.layers.{old}.{module}");
            important.get(&name).ok_or_else(|| {
                Error::user(format!("a {} model has no `{name}`: only its layers can be cut", c.model_type))
                    .hint("leave --mlp and --heads out")
            })
        };
        let (mut neurons, mut rows) = (BTreeMap::new(), BTreeMap::new());
        for &old in kept {
            if mlp != c.intermediate_size {
                neurons.insert(old, largest_indices(found(old, "mlp.down_proj")?, mlp));
            }
            if heads != c.num_attention_heads {
                let (e, per) = (c.head_dim, c.num_attention_heads / c.num_key_value_heads);
                // Query heads that share a key/value head are kept or removed together.
                let size = found(old, "self_attn.o_proj")?.view([c.num_key_value_heads, per * e]);
                let groups =
                    largest_indices(&size.sum_dim_intlist([1i64].as_slice(), false, Kind::Double), heads / per);
                rows.insert(old, (rows_of_groups(&groups, per * e), rows_of_groups(&groups, e)));
            }
        }
        let of = |heads: i64| heads * c.head_dim;
        Ok(Self { layers, neurons, heads: rows, rows: [of(c.num_attention_heads), of(c.num_key_value_heads)] })
    }

    /// Returns the tensors of the student: new name -> old name.
    pub fn student_names(&self, weights: &Weights) -> BTreeMap<String, String> {
        let renamed = |name: &str| match layer_number(name) {
            None => Some(name.to_string()),
            Some(old) => Some(with_layer_number(name, *self.layers.get(&old)?)),
        };
        weights.names().filter_map(|old| Some((renamed(old)?, old.to_string()))).collect()
    }

    /// Returns the kept part of the tensor with this old name.
    pub fn apply(&self, name: &str, t: &Tensor) -> Tensor {
        let Some(old) = layer_number(name) else { return t.shallow_clone() };
        let module = |m: &str| name.contains(&format!(".{m}."));
        if let Some(kept) = self.neurons.get(&old) {
            if module("gate_proj") || module("up_proj") {
                return t.index_select(0, kept);
            }
            if module("gate_up_proj") {
                return t.index_select(0, &Tensor::cat(&[kept.shallow_clone(), kept + t.size()[0] / 2], 0));
            }
            if module("down_proj") && t.dim() == 2 {
                return t.index_select(1, kept);
            }
        }
        if let Some((query, key)) = self.heads.get(&old) {
            if module("q_proj") {
                return t.index_select(0, query);
            }
            if module("k_proj") || module("v_proj") {
                return t.index_select(0, key);
            }
            if module("o_proj") && t.dim() == 2 {
                return t.index_select(1, query);
            }
            let [of_q, of_k] = self.rows;
            if module("qkv_proj") {
                let parts = [query.shallow_clone(), key + of_q, key + (of_q + of_k)];
                return t.index_select(0, &Tensor::cat(&parts, 0));
            }
            // Norms of all heads together, or with numbers for each.
            let norms = [("q_norm", of_q, query), ("k_norm", of_k, key)];
            if let Some((.., kept)) = norms.iter().find(|(name, all, _)| module(name) && t.numel() as i64 == *all) {
                let size = t.size();
                return t.reshape([-1]).index_select(0, kept).reshape([&[-1], &size[1..]].concat());
            }
        }
        t.shallow_clone()
    }
}

/// Returns the indices of the `n` largest values, in ascending order.
fn largest_indices(sizes: &Tensor, n: i64) -> Tensor {
    sizes.topk(n, -1, true, true).1.sort(-1, false).0
}

/// Returns the row indices of all `groups`, each of which is `width` consecutive rows.
fn rows_of_groups(groups: &Tensor, width: i64) -> Tensor {
    let within = Tensor::arange(width, (Kind::Int64, groups.device()));
    (groups.unsqueeze(-1) * width + within).flatten(0, -1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_become_rows() {
        let rows = Vec::<i64>::try_from(rows_of_groups(&Tensor::from_slice(&[0i64, 2]), 3)).unwrap();
        assert_eq!(rows, [0, 1, 2, 6, 7, 8]);
        let most = Vec::<i64>::try_from(largest_indices(&Tensor::from_slice(&[0.1, 5.0, 0.2, 3.0]), 2)).unwrap();
        assert_eq!(most, [1, 3]);
    }
}
