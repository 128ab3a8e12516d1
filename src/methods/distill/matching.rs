//! Trains layers of the student to match layers of the teacher: hidden states and attention maps, through trained
//! projections.
//!
//!   hidden     w / P sum over pairs (s, t) of d(W_st h_s, h_t), d the mean of squared differences over the teacher's
//!              width, or 1 - cos                                      (TinyBERT, arXiv 1909.10351, equation 8)
//!   attention  w / P sum over pairs (s, t) of 1/H_t sum over heads a and keys j of
//!              (sum_b P_st[a, b] A_s[b, j] - A_t[a, j])^2             (the same, equation 7, of probabilities; the map
//!              over heads lets their numbers differ)
//!
//! Both losses are sums over supervised tokens, like every other loss: h and the rows of A are those at which a
//! supervised token is predicted. Projections start as the identity if sizes agree. Gradients are computed pair by
//! pair, and for maps segment by segment, so that only one part is in memory at a time (`nn::chunked::sum_of_parts`).

use super::spec::{MatchSpec, StateDistance};
use crate::error::{Error, Result};
use crate::methods::sft::SupervisedBatch;
use crate::methods::state::{StateTensors, damaged};
use crate::models::{Activations, ExposedLayers, Model, Output};
use crate::native::upload_slice;
use crate::nn::chunked::{chunks, sum_of_parts};
use crate::nn::{Attention, LayerKind, Param, QuantisedParam, QueriesAndKeys};
use crate::rng;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Number of rows of a map, or of states, that are processed at once.
const CHUNK: i64 = 256;

/// States and attention of the teacher's layers for a row.
pub type TeacherLayers = Rc<Activations>;

/// A pair of layers with the projection (teacher's size, student's size) between them.
struct LayerPair {
    name: String,
    student: usize,
    teacher: usize,
    projection: Tensor,
}

/// All matched layers with their projections.
pub struct LayerMatching {
    hidden: Vec<LayerPair>,
    attention: Vec<LayerPair>,
    spec: MatchSpec,
}

impl LayerMatching {
    /// Chooses the pairs and initialises the projections. From now on both models return the states and attention of
    /// these layers.
    ///
    /// An error if a model lacks a layer that is named.
    pub fn new(spec: &MatchSpec, student: &Model, teacher: &Model, seed: u64) -> Result<Self> {
        let (s, t) = (student.config(), teacher.config());
        let depths = (student.depth(), teacher.depth());
        if spec.attention.is_some()
            && let Some(config) = [s, t].into_iter().find(|config| !config.has_attention())
        {
            return Err(Error::user(format!(
                "method.distill.match.attention: a {} model has no attention",
                config.model_type
            ))
            .hint("match hidden states, or logits alone"));
        }
        let pairs = |what: &str, layers: &[[usize; 2]], sizes: (i64, i64)| -> Result<Vec<LayerPair>> {
            let layers = layer_pairs(layers, depths, &format!("method.distill.match.{what}.layers"))?;
            Ok(projected_pairs(what, &layers, sizes, seed, student.device()))
        };
        let hidden = match &spec.hidden {
            Some(hidden) => pairs("hidden", &hidden.layers, (t.stream_width(), s.stream_width()))?,
            None => Vec::new(),
        };
        let attention = match &spec.attention {
            Some(maps) => pairs("attention", &maps.layers, (t.num_attention_heads, s.num_attention_heads))?,
            None => Vec::new(),
        };
        let look = |of: fn(&LayerPair) -> usize| ExposedLayers {
            states: hidden.iter().map(of).collect(),
            attention: attention.iter().map(of).collect(),
        };
        student.expose(look(|p| p.student));
        teacher.expose(look(|p| p.teacher));
        Ok(Self { hidden, attention, spec: spec.clone() })
    }

    fn pairs(&self) -> impl Iterator<Item = &LayerPair> {
        self.hidden.iter().chain(&self.attention)
    }

    /// Returns the projections, for the optimiser.
    pub fn parameters(&self) -> Vec<Param> {
        let param = |p: &LayerPair| Param {
            name: p.name.clone(),
            tensor: p.projection.shallow_clone(),
            quantised: QuantisedParam::Never,
            layer: LayerKind::Linear,
            adapter: None,
            transposed: false,
            scale: false,
        };
        self.pairs().map(param).collect()
    }

    /// Returns the projections by name, for a checkpoint.
    pub fn state(&self) -> StateTensors {
        self.pairs().map(|p| (p.name.clone(), p.projection.detach())).collect()
    }

    /// Restores what `state` returned.
    pub fn restore(&self, state: &StateTensors) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for pair in self.pairs() {
            let fits = |t: &&Tensor| t.size() == pair.projection.size();
            let saved = state
                .get(&pair.name)
                .filter(fits)
                .ok_or_else(|| damaged(format_args!("`{}` is missing or of another shape", pair.name)))?;
            pair.projection.shallow_clone().copy_(saved);
        }
        Ok(())
    }

    /// Computes the weighted losses, summed over the row's supervised tokens, with the names of their metrics.
    pub fn losses(
        &self,
        out: &Output,
        teacher: &Activations,
        answers: &SupervisedBatch,
    ) -> Vec<(&'static str, Tensor)> {
        let mut found = Vec::new();
        let mean = |parts: Vec<Tensor>, weight: f64| {
            let pairs = parts.len() as f64;
            Tensor::stack(&parts, 0).sum(Kind::Float) * (weight / pairs)
        };
        if let Some(spec) = &self.spec.hidden {
            let rows = |layers: &Activations, i: usize| layers.hidden_state(i).index_select(0, &answers.at);
            let one = |p: &LayerPair| {
                hidden_loss(&rows(&out.activations, p.student), &rows(teacher, p.teacher), &p.projection, spec.distance)
            };
            found.push(("match_hidden", mean(self.hidden.iter().map(one).collect(), spec.weight)));
        }
        if let Some(spec) = &self.spec.attention {
            let one = |p: &LayerPair| {
                attention_loss(
                    out.activations.attention(p.student),
                    teacher.attention(p.teacher),
                    &p.projection,
                    answers,
                )
            };
            found.push(("match_attention", mean(self.attention.iter().map(one).collect(), spec.weight)));
        }
        found
    }
}

/// Returns the given pairs; if none are given, each layer of the student with one of the teacher's, evenly spaced, the
/// last with the last.
fn layer_pairs(given: &[[usize; 2]], (student, teacher): (usize, usize), key: &str) -> Result<Vec<[usize; 2]>> {
    for (what, at, depth) in [("student", 0, student), ("teacher", 1, teacher)] {
        if let Some(pair) = given.iter().find(|pair| pair[at] >= depth) {
            return Err(Error::user(format!("{key}: {pair:?}: the {what} has layers 0 to {}", depth - 1))
                .hint("each pair is [layer of the student, layer of the teacher]"));
        }
    }
    Ok(match given.is_empty() {
        false => given.to_vec(),
        true => (0..student).map(|s| [s, ((s + 1) * teacher).div_ceil(student) - 1]).collect(),
    })
}

/// Returns pairs of layers with newly initialised projections between `sizes`; `what` is what is matched.
fn projected_pairs(what: &str, layers: &[[usize; 2]], sizes: (i64, i64), seed: u64, device: Device) -> Vec<LayerPair> {
    let pair = |(i, [s, t]): (usize, &[usize; 2])| LayerPair {
        name: format!("match.{what}.{s}-{t}"),
        student: *s,
        teacher: *t,
        projection: initial_projection(sizes, rng::derived_seed(seed, what, i as u64), device),
    };
    layers.iter().enumerate().map(pair).collect()
}

/// Returns the identity if sizes agree, else a random matrix that preserves lengths on average; a float32 leaf.
fn initial_projection((rows, columns): (i64, i64), seed: u64, device: Device) -> Tensor {
    let options = (Kind::Float, device);
    let first = match rows == columns {
        true => Tensor::eye(rows, options),
        false => {
            crate::nn::randomness::with_seed(device, seed, || Tensor::randn([rows, columns], options))
                * (columns as f64).powf(-0.5)
        }
    };
    first.set_requires_grad(true)
}

/// Computes the distance of `projection student` from `teacher`, summed over rows: (N, D_s) and (N, D_t).
pub fn hidden_loss(student: &Tensor, teacher: &Tensor, projection: &Tensor, distance: StateDistance) -> Tensor {
    sum_of_parts(&[student, projection], chunks(student.size()[0], CHUNK), |leaves, (start, n)| {
        let ours = leaves[0].narrow(0, start, n).to_kind(Kind::Float).matmul(&leaves[1].tr()); // (n, D_t)
        let theirs = teacher.narrow(0, start, n).to_kind(Kind::Float);
        match distance {
            StateDistance::Mse => (ours - theirs).square().mean_dim([-1i64].as_slice(), false, Kind::Float),
            StateDistance::Cosine => -Tensor::cosine_similarity(&ours, &theirs, -1, 1e-8) + 1.0,
        }
        .sum(Kind::Float)
    })
}

/// Computes the squared differences of attention probabilities, summed over supervised tokens and averaged over the
/// teacher's heads.
pub fn attention_loss(
    student: &QueriesAndKeys,
    teacher: &QueriesAndKeys,
    projection: &Tensor,
    answers: &SupervisedBatch,
) -> Tensor {
    sum_of_parts(&[&student.q, &student.k, projection], parts(answers), |leaves, part| {
        let ours = map(&leaves[0], &leaves[1], &student.attention, &part); // (H_s, n, L)
        let theirs = map(&teacher.q, &teacher.k, &teacher.attention, &part); // (H_t, n, L)
        let heads = theirs.size()[0];
        let mixed = leaves[2].matmul(&ours.flatten(1, 2)).view_as(&theirs);
        (mixed - theirs).square().sum(Kind::Float) / heads as f64
    })
}

/// Some supervised tokens of one segment: the queries of one chunk.
struct QueryChunk {
    /// The segment's first row, and its length.
    keys: (i64, i64),
    /// (n) rows of the packed row at which a supervised token is predicted.
    queries: Tensor,
}

/// Splits the supervised tokens by segment, and each segment into chunks.
fn parts(answers: &SupervisedBatch) -> Vec<QueryChunk> {
    let at = &answers.rows;
    let (mut found, mut start, mut from) = (Vec::new(), 0, 0);
    for &length in &answers.tokens.segments.lengths {
        let to = from + at[from..].partition_point(|row| *row < start + length);
        for queries in at[from..to].chunks(CHUNK as usize) {
            let queries = upload_slice(queries, answers.at.device());
            found.push(QueryChunk { keys: (start, length), queries });
        }
        (start, from) = (start + length, to);
    }
    found
}

/// Computes the attention probabilities of some rows over their segment: (H, n, L), float32.
fn map(q: &Tensor, k: &Tensor, attention: &Attention, part: &QueryChunk) -> Tensor {
    let (start, length) = part.keys;
    let q = q.index_select(0, &part.queries).to_kind(Kind::Float).transpose(0, 1); // (H, n, E)
    let k = k.narrow(0, start, length).to_kind(Kind::Float).transpose(0, 1); // (K, L, E)
    let k = k.repeat_interleave_self_int(q.size()[0] / k.size()[0], 0, None::<i64>);
    let places = Tensor::arange(length, (Kind::Int64, q.device())) + start;
    let (places, queries) = (places.unsqueeze(0), part.queries.unsqueeze(-1));
    let later = places.gt_tensor(&queries); // (n, L)
    let hidden = match attention.window {
        Some(window) => later.logical_or(&places.le_tensor(&(&queries - window))),
        None => later,
    };
    let scores = attention.cap(q.matmul(&k.transpose(1, 2)) * attention.scale);
    let bias = match &attention.relative {
        Some(bias) => Some(bias.of_distances(&(queries - places))),
        None => attention.bias(scores.size()[0], (0, 1), (0, length), scores.device()),
    };
    let scores = bias.map_or_else(|| scores.shallow_clone(), |bias| &scores + bias);
    attention.softmax(&scores.masked_fill(&hidden, f64::NEG_INFINITY)).0
}
