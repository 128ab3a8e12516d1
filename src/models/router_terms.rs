//! Terms of the loss that keep the routers of layers of experts useful, and metrics of their balance.
//!
//! They depend on the activations of every layer, so they are computed with the loss of each packed row, from the
//! statistics that the layers leave in the pass. With L layers of experts and T tokens of the row:
//!
//! - load balancing (Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6, as transformers computes it over all layers):
//!   `E sum_e f_e P_e`, where `f_e` is how often expert e was chosen and `P_e` the sum of its probabilities, each over all
//!   layers and tokens and divided by L T. It is k if the router is balanced.
//! - z-loss (Zoph et al. 2022, arXiv 2202.08906, equation 5): the mean over all layers and tokens of the square of the
//!   logarithm of the sum of the exponentials of the logits.
//!
//! A step of several rows has their mean, each row weighted by its items, as the loss itself.

use super::learning::MicroBatch;
use super::loss::{Extreme, Loss, Metrics, Output};
use super::model::Model;
use crate::nn::RouterStatistics;
use std::sync::Mutex;
use tch::{Kind, Tensor};

/// Coefficients of the terms of the loss for routers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RouterTerms {
    /// The coefficient of load balancing.
    pub balance: f64,
    /// The coefficient of the z-loss.
    pub z: f64,
}

/// Metrics of a step of a model with experts: the terms, without their coefficients.
pub const BALANCE: &str = "router_balance";
/// See [`BALANCE`].
pub const Z: &str = "router_z";
/// The tokens of the expert that has the most of its layer, as a multiple of those that it had if all had equally many.
pub const LARGEST_LOAD: &str = "expert_load_max";
/// What the names of the shares of the experts begin with: the part of all choices, over all layers, that an expert of this
/// number got.
pub const SHARE: &str = "expert_share_";

impl Model {
    /// Sets the terms of the loss for routers, for all later calls of `learn`.
    pub fn set_router_terms(&self, terms: RouterTerms) {
        self.router_terms.set(terms);
    }

    /// Returns true if layers of experts leave statistics in a pass of training.
    pub(super) fn watches_routing(&self) -> bool {
        self.config.experts.is_some() && self.switches.train.get()
    }

    /// Returns the loss of a packed row, with the terms for its routers.
    pub(super) fn loss_of(&self, batch: &dyn MicroBatch, out: &Output) -> Loss {
        let Loss { sum, mut metrics } = batch.loss(out);
        let routing: Vec<&RouterStatistics> = out.activations.routing().collect();
        let terms = self.router_terms.get();
        match weighted_terms(&routing, terms, batch.items(), &mut metrics) {
            Some(term) if terms != RouterTerms::default() => Loss { sum: sum + term, metrics },
            _ => Loss { sum, metrics },
        }
    }
}

/// Returns the terms of a row with `items` items times their coefficients and the items, and records the metrics; `None`
/// without layers of experts.
fn weighted_terms(
    routing: &[&RouterStatistics],
    terms: RouterTerms,
    items: f64,
    metrics: &mut Metrics,
) -> Option<Tensor> {
    let tokens = routing.iter().map(|r| r.tokens).sum::<i64>() as f64; // of all layers
    let first = routing.first().filter(|_| tokens > 0.0)?;
    let sum_of = |of: fn(&RouterStatistics) -> &Tensor| {
        let parts = routing.iter().map(|r| of(r).shallow_clone());
        parts.reduce(|a, b| a + b).expect("at least one layer") / tokens
    };
    let (probabilities, z) = (sum_of(|r| &r.probabilities), sum_of(|r| &r.squares));
    let by_layer = Tensor::stack(&routing.iter().map(|r| &r.counts).collect::<Vec<_>>(), 0); // (L, E)
    let counts = by_layer.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    let (experts, chosen) = (counts.size()[0], routing.iter().map(|r| r.pairs).sum::<i64>() as f64);
    // Each layer has chosen equally often.
    let largest = by_layer.max() * (experts as f64 / first.pairs as f64);
    let often = counts.to_kind(Kind::Float) / tokens;
    let balance = (often * probabilities).sum(Kind::Float) * experts as f64;
    metrics.add(BALANCE, &(&balance * items), items);
    metrics.add(Z, &(&z * items), items);
    metrics.add_extreme(LARGEST_LOAD, &largest, Extreme::Maximum);
    (0..experts).for_each(|e| metrics.add(share_name(e as usize), &counts.get(e), chosen));
    Some((balance * terms.balance + z * terms.z) * items)
}

/// Returns the name of the metric of an expert's share. Names of metrics live as long as the program.
fn share_name(expert: usize) -> &'static str {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    while names.len() <= expert {
        let next = format!("{SHARE}{}", names.len());
        names.push(Box::leak(next.into_boxed_str()));
    }
    names[expert]
}
