//! Measures the activations of layers, neurons and heads on calibration texts.
//!
//! Activations inside a layer are recorded by an adapter that changes nothing: it sees the input of each linear layer
//! that it is attached to.

use crate::error::Result;
use crate::models::{Heads, LoadOptions, Model, Storage};
use crate::nn::{Adapter, AdapterPlan, AdapterSite, Dense, LayerKind, RegisterParam, Tokens};
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// The angle between input and output of a block of layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BlockAngle {
    /// The first layer of the block.
    pub from: usize,
    /// Number of layers in the block.
    pub layers: usize,
    /// Mean angle between input and output over all tokens, divided by 180 degrees.
    pub distance: f64,
}

/// Mean absolute value of each input of a linear layer, by the layer's name: (in) float64 on the CPU, where
/// the weights are cut.
pub type Importance = BTreeMap<String, Tensor>;

/// The measured activations.
pub struct CalibrationActivations {
    /// Importance of the inputs of each linear layer.
    pub importance: Importance,
    /// For every text, the input of each layer and the output of the last one: (T, D) float32.
    states: Vec<Vec<Tensor>>,
}

/// Runs the texts (token ids) through the model in `folder` and measures its activations.
pub fn measure(folder: &Path, texts: &[Vec<u32>], device: Device) -> Result<CalibrationActivations> {
    let recorder = ActivationRecorder::default();
    let adapters: Vec<(String, &dyn AdapterPlan)> = vec![("recorder".into(), &recorder)];
    let load = LoadOptions {
        device,
        kind: Kind::Float,
        storage: Storage::Auto,
        train_base: None,
        adapters,
        vocabulary: None,
        heads: Heads::Tokens,
    };
    let model = Model::load(folder, load)?;
    let bar = crate::report::bar(texts.len() as u64, "calibration texts");
    let (mut states, mut tokens) = (Vec::new(), 0i64);
    for text in texts.iter().filter(|t| !t.is_empty()) {
        states.push(model.hidden_states(&Tokens::pack(&[text], device))?);
        tokens += text.len() as i64;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let sums = recorder.sums.take();
    let importance = sums.into_iter().map(|(name, sum)| (name, (sum / tokens as f64).to_device(Device::Cpu))).collect();
    Ok(CalibrationActivations { importance, states })
}

impl CalibrationActivations {
    /// Returns, for each block of `layers` consecutive layers, the mean angle between its input and output.
    pub fn block_angles(&self, layers: usize) -> Vec<BlockAngle> {
        let depth = self.states[0].len() - 1;
        let turn = |from: usize| {
            let (mut sum, mut n) = (0.0, 0);
            for states in &self.states {
                let cosine = Tensor::cosine_similarity(&states[from], &states[from + layers], -1, 1e-8);
                sum += cosine.clamp(-1.0, 1.0).acos().sum(Kind::Double).double_value(&[]) / std::f64::consts::PI;
                n += cosine.numel();
            }
            BlockAngle { from, layers, distance: sum / n as f64 }
        };
        (0..=depth - layers).map(turn).collect()
    }
}

/// Attaches a recording adapter to the layers whose inputs are the outputs of neurons (`down_proj`) and of heads
/// (`o_proj`).
#[derive(Default)]
struct ActivationRecorder {
    sums: Rc<RefCell<Importance>>,
}

/// An adapter that adds up the absolute values of its input and leaves the layer's result unchanged.
struct RecordingAdapter {
    name: String,
    sums: Rc<RefCell<Importance>>,
}

impl AdapterPlan for ActivationRecorder {
    fn attach(&self, site: &AdapterSite, _: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        let reads = site.name.ends_with(".down_proj") || site.name.ends_with(".o_proj");
        let ear = || Box::new(RecordingAdapter { name: site.name.into(), sums: self.sums.clone() }) as Box<dyn Adapter>;
        Ok((site.layer == LayerKind::Linear && reads).then(ear))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl Adapter for RecordingAdapter {
    fn forward(&self, x: &Tensor, base: &Dense, _: bool) -> Tensor {
        let size = x.detach().abs().sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        let mut sums = self.sums.borrow_mut();
        match sums.get_mut(&self.name) {
            Some(sum) => *sum += size,
            None => drop(sums.insert(self.name.clone(), size)),
        }
        base.forward(x)
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        weight.shallow_clone()
    }
}
