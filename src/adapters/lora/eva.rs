//! The directions in which the inputs of layers vary most, for EVA (Paischer et al. 2024, arXiv 2410.07170): LoRA's A starts
//! with the first principal components of its layer's inputs.
//!
//! They are found by subspace iteration: each pass over the same texts multiplies some directions by the covariance of
//! the inputs. That needs memory for the directions alone, whereas the covariance itself would be larger than the weight.

use crate::error::Result;
use crate::nn::{Adapter, AdapterPlan, AdapterSite, Dense, RegisterParam};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Directions that are followed besides those that are returned: the more, the faster these converge.
const MORE: i64 = 8;

/// The directions in which a layer's inputs vary most.
pub struct PrincipalInputs {
    /// (k, in) orthonormal, that of the largest variance first.
    pub directions: Tensor,
    /// The share of the inputs' variance along each direction.
    pub explained: Vec<f64>,
}

/// Records the inputs of layers while a base without adapter runs.
pub struct InputRecorder {
    layers: BTreeMap<String, Rc<RefCell<InputDirections>>>,
    rows: Rc<RefCell<Tensor>>,
}

impl InputRecorder {
    /// Records the inputs of these modules, for as many directions each as given.
    pub fn new(wanted: BTreeMap<String, i64>) -> Self {
        let directions = |wanted| {
            let (q, z, sum, squares) = (None, None, None, None);
            Rc::new(RefCell::new(InputDirections { wanted, q, z, sum, squares, count: 0 }))
        };
        let layers = wanted.into_iter().map(|(module, rank)| (module, directions(rank))).collect();
        Self { layers, rows: Rc::new(RefCell::new(Tensor::zeros([0], (Kind::Int64, Device::Cpu)))) }
    }

    /// Sets the rows (int64) of the next packed row of tokens that are counted.
    pub fn count_rows(&self, rows: Tensor) {
        *self.rows.borrow_mut() = rows;
    }

    /// Ends a pass over the texts.
    pub fn end_pass(&self) {
        self.layers.values().for_each(|layer| layer.borrow_mut().end_pass());
    }

    /// Returns the directions of each module, at most as many as its inputs; `None` for a module that has seen no input. To
    /// be called after a pass instead of `end_pass`.
    pub fn directions(self) -> BTreeMap<String, Option<PrincipalInputs>> {
        self.layers.iter().map(|(module, layer)| (module.clone(), layer.borrow().principal())).collect()
    }
}

impl AdapterPlan for InputRecorder {
    fn attach(&self, site: &AdapterSite, _: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        let recording = |directions: &Rc<RefCell<InputDirections>>| {
            Box::new(RecordedLayer { directions: directions.clone(), rows: self.rows.clone() }) as Box<dyn Adapter>
        };
        Ok(self.layers.get(site.name).map(recording))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// A layer whose inputs are recorded and whose result is unchanged.
struct RecordedLayer {
    directions: Rc<RefCell<InputDirections>>,
    rows: Rc<RefCell<Tensor>>,
}

impl Adapter for RecordedLayer {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        let counted = x.detach().index_select(0, &self.rows.borrow()).to_kind(Kind::Float);
        self.directions.borrow_mut().add(&counted);
        base.forward(x)
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        weight.shallow_clone()
    }
}

/// The directions of one layer's inputs.
struct InputDirections {
    wanted: i64,
    /// (in, k) orthonormal: the directions of this pass.
    q: Option<Tensor>,
    /// (in, k) the sum of x xᵀ q over the inputs of this pass.
    z: Option<Tensor>,
    /// (in) the sum of the inputs.
    sum: Option<Tensor>,
    /// The sum of the squares of all numbers of the inputs.
    squares: Option<Tensor>,
    count: i64,
}

impl InputDirections {
    /// Adds inputs (n, in).
    fn add(&mut self, x: &Tensor) {
        let _no_grad = tch::no_grad_guard();
        let (n, inputs) = x.size2().expect("rows of inputs");
        let q = self.q.get_or_insert_with(|| {
            let k = (self.wanted + MORE).min(inputs);
            let random = Tensor::randn([inputs, k], (Kind::Float, Device::Cpu));
            Tensor::linalg_qr(&random, "reduced").0.to_device(x.device())
        });
        let (z, sum) = (x.tr().matmul(&x.matmul(q)), x.sum_dim_intlist([0i64].as_slice(), false, Kind::Float));
        let added = |old: Option<Tensor>, new: Tensor| Some(old.map_or_else(|| new.shallow_clone(), |old| old + &new));
        let squares = x.square().sum(Kind::Double);
        (self.z, self.sum) = (added(self.z.take(), z), added(self.sum.take(), sum));
        self.squares = added(self.squares.take(), squares);
        self.count += n;
    }

    /// Returns the directions of this pass and their product with the covariance: the inputs are centred, as in PEFT.
    fn product(&self) -> Option<(&Tensor, Tensor)> {
        let (q, z, sum) = (self.q.as_ref()?, self.z.as_ref()?, self.sum.as_ref()?);
        let of_mean = sum.outer(&q.tr().mv(sum)) / self.count.max(1) as f64;
        Some((q, z - of_mean))
    }

    fn end_pass(&mut self) {
        let _no_grad = tch::no_grad_guard();
        if let Some((_, z)) = self.product() {
            self.q = Some(Tensor::linalg_qr(&z, "reduced").0);
        }
        (self.z, self.sum, self.squares, self.count) = (None, None, None, 0);
    }

    fn principal(&self) -> Option<PrincipalInputs> {
        let _no_grad = tch::no_grad_guard();
        let (q, z) = self.product()?;
        // Within the directions found, the covariance is a small matrix, whose eigenvectors are in ascending order.
        let (values, vectors) = Tensor::linalg_eigh(&q.tr().matmul(&z), "L");
        let (values, found) = (values.flip([0i64]), q.matmul(&vectors).flip([1i64]));
        let (sum, squares) = (self.sum.as_ref()?.to_kind(Kind::Double), self.squares.as_ref()?);
        let variance =
            squares.double_value(&[]) - sum.square().sum(Kind::Double).double_value(&[]) / self.count.max(1) as f64;
        let count = self.wanted.min(found.size()[1]);
        let explained = (0..count).map(|i| values.double_value(&[i]) / variance.max(f64::MIN_POSITIVE)).collect();
        Some(PrincipalInputs { directions: found.narrow(1, 0, count).tr().contiguous(), explained })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directions are the principal components of the inputs of all texts, up to their signs.
    #[test]
    fn directions_are_the_principal_components() {
        tch::manual_seed(9);
        let options = (Kind::Float, Device::Cpu);
        let sizes = Tensor::from_slice(&[5.0f32, 3.5, 2.5, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]);
        let (basis, _) = Tensor::linalg_qr(&Tensor::randn([14, 14], options), "reduced");
        let x = (Tensor::randn([300, 14], options) * sizes).matmul(&basis.tr()) + 2.0;
        let recorder = InputRecorder::new(BTreeMap::from([("layer".to_string(), 3), ("unseen".to_string(), 2)]));
        let layer = recorder.layers["layer"].clone();
        for pass in 0..4 {
            for part in x.split(64, 0) {
                layer.borrow_mut().add(&part);
            }
            if pass < 3 {
                recorder.end_pass();
            }
        }
        let found = recorder.directions();
        assert!(found["unseen"].is_none());
        let PrincipalInputs { directions: found, explained } = found["layer"].as_ref().unwrap();
        let centred = &x - x.mean_dim([0i64].as_slice(), true, Kind::Float);
        let expected = centred.svd(true, true).2.narrow(1, 0, 3);
        let cosines = found.matmul(&expected).abs();
        assert!(cosines.allclose(&Tensor::eye(3, options), 1e-4, 1e-4, false), "{cosines}");
        let values = centred.svd(true, true).1.square();
        let shares = &values / values.sum(Kind::Float);
        let gap = explained.iter().enumerate().map(|(i, share)| (share - shares.double_value(&[i as i64])).abs());
        assert!(gap.fold(0.0, f64::max) < 1e-5, "{explained:?}");
    }
}
