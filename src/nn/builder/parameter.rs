//! Reads or samples the parameters of layers, quantises those that are to be, and records them.

use super::{ModuleScope, WeightSource, transposed_view};
use crate::error::{Error, Result};
use crate::native;
use crate::nn::params::{LayerKind, Param, QuantisedParam};
use crate::nn::quantised::{QuantisedWeight, TableFormat};
use crate::nn::weight::{Weight, cast};
use crate::nn::weights::{QuantisedEntry, Weights};
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A parameter as it was read or sampled.
struct FoundTensor {
    /// Its full name.
    name: String,
    /// The values as they are in the file.
    tensor: Tensor,
    /// True if they are stored as (in, out).
    transposed: bool,
}

impl ModuleScope<'_> {
    /// Returns a parameter in the `shape` in which it is used.
    pub(super) fn param(&self, name: &str, layer: LayerKind, shape: &[i64]) -> Tensor {
        self.param_or_default(name, layer, shape, None)
    }

    /// Returns the weight of a linear layer that is no output head: quantised if the builder does that and no adapter trains it
    /// in full. With it comes the matrix that it was quantised from.
    pub(super) fn linear_weight(&self, layer: LayerKind, shape: &[i64]) -> (Weight, Option<Tensor>) {
        let (b, whole) = (self.builder, self.trained_in_full(layer));
        let possible = layer == LayerKind::Linear && b.trained.is_none() && !whole;
        if let Some(matrix) = self.stored_quantised("weight") {
            return (self.quantised_weight("weight", matrix, layer, shape, whole), None);
        }
        let found = self.find("weight", layer, shape, None);
        let Some(format) = b.quantise.map(|all| all.linear).filter(|_| possible) else {
            let quantised = if possible { QuantisedParam::Possible } else { QuantisedParam::Never };
            return (self.register(found, layer, quantised).into(), None);
        };
        let matrix = if found.transposed { found.tensor.tr() } else { found.tensor.shallow_clone() };
        match QuantisedWeight::quantise(&matrix, format, b.device) {
            Ok(weight) => (self.add_quantised(found.name, found.transposed, layer, weight), Some(matrix)),
            Err(e) => {
                b.error.borrow_mut().get_or_insert(e.context(format!("{}: `{}`", b.origin(), found.name)));
                (found.tensor.into(), None)
            }
        }
    }

    /// Returns the weight of a table of tokens or of an output head (V, D): quantised if the builder does that, some rows at
    /// a time as they are read.
    pub(super) fn token_table_weight(&self, layer: LayerKind, shape: [i64; 2]) -> Weight {
        let b = self.builder;
        if let Some(matrix) = self.stored_quantised("weight") {
            return self.quantised_weight("weight", matrix, layer, &shape, self.trained_in_full(layer));
        }
        let Some(format) = b.quantise.and_then(|all| all.embeddings) else {
            let found = self.find("weight", layer, &shape, None);
            return self.register(found, layer, QuantisedParam::PossibleTable).into();
        };
        let name = (self / "weight").path;
        let weight = match b.source {
            WeightSource::Disk(weights) => {
                b.used.borrow_mut().insert(name.clone());
                let found = weights.shape(&name).map(<[i64]>::to_vec).zip(weights.kind(&name));
                if let Some(problem) = misfit(&name, Ok(found), &shape) {
                    b.problems.borrow_mut().push(problem);
                    return self.placeholder().into();
                }
                quantised_table(weights, &name, shape, format, b.device)
            }
            WeightSource::Random(_) => {
                let whole = self.find("weight", layer, &shape, None).tensor;
                let rows = |rows: Range<i64>| Ok(whole.narrow(0, rows.start, rows.end - rows.start));
                QuantisedWeight::quantise_by_rows(shape, format, b.device, rows)
            }
        };
        match weight {
            Ok(weight) => self.add_quantised(name, false, layer, weight),
            Err(e) => {
                b.error.borrow_mut().get_or_insert(e.context(format!("{}: `{name}`", b.origin())));
                self.placeholder().into()
            }
        }
    }

    /// Returns a small tensor in the place of one whose building failed: the expected shape may not fit into memory.
    fn placeholder(&self) -> Tensor {
        Tensor::zeros([1, 1], (self.builder.kind, Device::Cpu))
    }

    /// Returns true if an adapter trains this module in full.
    pub(super) fn trained_in_full(&self, layer: LayerKind) -> bool {
        self.builder.adapters.iter().any(|adapter| adapter.trains_in_full(&self.path, layer))
    }

    /// Records a quantised weight and returns it.
    fn add_quantised(&self, name: String, transposed: bool, layer: LayerKind, weight: QuantisedWeight) -> Weight {
        let (tensor, quantised) = (weight.tensors()[0].shallow_clone(), QuantisedParam::Done(weight.clone()));
        let (adapter, scale) = (None, false);
        let param = Param { name, tensor, quantised, layer, adapter, transposed, scale };
        self.builder.store.borrow_mut().add(param);
        Weight::Quantised(weight)
    }

    /// Returns a matrix that the checkpoint contains quantised.
    pub(super) fn stored_quantised(&self, name: &str) -> Option<Rc<dyn QuantisedEntry>> {
        match self.builder.source {
            WeightSource::Disk(weights) => weights.quantised(&(self / name).path).cloned(),
            WeightSource::Random(_) => None,
        }
    }

    /// Reads a weight that the checkpoint contains quantised. It cannot be trained in full (`whole`).
    pub(super) fn quantised_weight(
        &self,
        name: &str,
        matrix: Rc<dyn QuantisedEntry>,
        layer: LayerKind,
        shape: &[i64],
        whole: bool,
    ) -> Weight {
        let (b, full) = (self.builder, (self / name).path);
        b.used.borrow_mut().insert(full.clone());
        if matrix.shape() != shape {
            b.problems.borrow_mut().push(format!("`{full}` has shape {:?}, expected {shape:?}", matrix.shape()));
            return self.placeholder().into();
        }
        let trained = whole || b.trained.as_ref().is_some_and(|trained| trained(&full, layer));
        let read = match trained {
            true => Err(Error::user("this weight is stored quantised and cannot be trained")
                .hint("train an adapter over it, or use the model in its original number format")),
            false => if b.outline { matrix.outline() } else { matrix.read(b.device) }.and_then(|weight| match layer {
                LayerKind::Embedding | LayerKind::Table if !weight.has_whole_rows() => {
                    Err(Error::user(format!("rows of a table in {} cannot be looked up", weight.describe()))
                        .hint("use a model whose embeddings are in another format"))
                }
                _ => Ok(weight),
            }),
        };
        match read {
            Ok(weight) => {
                let transposed = b.transposed(&full);
                self.add_quantised(full, transposed, layer, weight)
            }
            Err(e) => {
                b.error.borrow_mut().get_or_insert(e.context(format!("{}: `{full}`", b.origin())));
                self.placeholder().into()
            }
        }
    }

    /// Does the same as `param`, with the value `first` if the checkpoint lacks the tensor.
    pub(super) fn param_or_default(
        &self,
        name: &str,
        layer: LayerKind,
        shape: &[i64],
        first: Option<Tensor>,
    ) -> Tensor {
        self.register(self.find(name, layer, shape, first), layer, QuantisedParam::Never)
    }

    /// Reads or samples a parameter, which is used in this `shape`; `first` is its value if the checkpoint lacks it.
    fn find(&self, name: &str, layer: LayerKind, shape: &[i64], first: Option<Tensor>) -> FoundTensor {
        let b = self.builder;
        let full = (self / name).path;
        let transposed = b.transposed(&full);
        let shape: Vec<i64> = if transposed { shape.iter().rev().copied().collect() } else { shape.to_vec() };
        let found = match b.source {
            // A mapped page that was read counts as the process's memory; what is quantised needs it only once.
            WeightSource::Disk(weights) if b.read || b.quantise.is_some() => {
                weights.read(&full).transpose().map(|t| t.or(first))
            }
            WeightSource::Disk(weights) => Ok(weights.get(&full).or(first)),
            WeightSource::Random(_) if first.is_some() => Ok(first),
            WeightSource::Random(initial) => Ok(Some(initial.sample(&full, layer, &shape, self.std_factor))),
        };
        b.used.borrow_mut().insert(full.clone());
        let outline = found.as_ref().map(|t| t.as_ref().map(|t| (t.size(), t.kind())));
        let problem = misfit(&full, outline, &shape);
        let tensor = match found {
            // A matrix that lies transposed in its file without being used so is copied, unless only its shape matters.
            Ok(Some(t)) if problem.is_none() => match transposed || b.outline {
                true => t,
                false => t.contiguous(),
            },
            _ => self.placeholder(),
        };
        b.problems.borrow_mut().extend(problem);
        FoundTensor { name: full, tensor, transposed }
    }

    /// Moves a parameter to the device in the dtype that it is held in, and records it. Returns it as it is used.
    fn register(&self, found: FoundTensor, layer: LayerKind, quantised: QuantisedParam) -> Tensor {
        let (b, FoundTensor { name, tensor, transposed }) = (self.builder, found);
        let trained = b.trained.as_ref().is_some_and(|trained| trained(&name, layer));
        let tensor = if trained {
            tensor.to_device(b.device).to_kind(Kind::Float).copy().set_requires_grad(true)
        } else if tensor.dim() >= 2 && layer != LayerKind::Score && (b.keeps_dtype)(tensor.kind()) {
            tensor.to_device(b.device)
        } else {
            cast(&tensor.to_device(b.device), b.kind)
        };
        // The kernels of decoding, which compute a row alike in every batch, read a frozen weight in the order in which it is
        // used.
        let reorder = transposed && !trained && !b.outline && b.device == Device::Cpu;
        let tensor = if reorder { tensor.tr().contiguous().tr() } else { tensor };
        let kept = tensor.shallow_clone();
        let (adapter, scale) = (None, false);
        b.store.borrow_mut().add(Param { name, tensor: kept, quantised, layer, adapter, transposed, scale });
        if transposed { transposed_view(&tensor) } else { tensor }
    }
}

/// Says what is wrong with a tensor, found with this shape and dtype, or not at all, or not readable; `None` if nothing is.
fn misfit(name: &str, found: std::result::Result<Option<(Vec<i64>, Kind)>, &Error>, shape: &[i64]) -> Option<String> {
    match found {
        Err(e) => Some(format!("`{name}` could not be read: {e}")),
        Ok(None) => Some(format!("`{name}` is missing, expected shape {shape:?}")),
        Ok(Some((found, _))) if found != shape => Some(format!("`{name}` has shape {found:?}, expected {shape:?}")),
        Ok(Some((_, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 | Kind::Float8e4m3fn))) => None,
        Ok(Some((_, kind))) => Some(format!("`{name}` has dtype {kind:?}, expected floating-point numbers")),
    }
}

/// Reads and quantises a table of a checkpoint, which has this shape, without holding more of it than some rows.
fn quantised_table(
    weights: &Weights,
    name: &str,
    [count, width]: [i64; 2],
    format: TableFormat,
    device: Device,
) -> Result<QuantisedWeight> {
    let reader = weights.entry_reader(name).ok_or_else(|| Error::bug(format!("`{name}` is not in the checkpoint")))?;
    QuantisedWeight::quantise_by_rows([count, width], format, device, |rows| {
        let part = Tensor::empty([rows.end - rows.start, width], (reader.kind(), Device::Cpu));
        native::fill_bytes(&part, |bytes| reader.read((rows.start * width) as usize, bytes))?;
        Ok(part)
    })
}
