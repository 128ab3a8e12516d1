//! Opens the weights in a GGUF file where they lie: nothing is dequantised or copied before a layer reads it.

use crate::error::Result;
use crate::gguf::file::Gguf;
use crate::gguf::quant::GgmlType;
use crate::gguf::tensor_map::MappedTensor;
use crate::gguf::{architecture, vocabulary};
use crate::nn::weights::{QuantisedEntry, TensorLocation};
use crate::nn::{QuantisedWeight, Weights};
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Opens the weights of a GGUF file under their names in a Hugging Face directory. Matrices in blocks of numbers stay
/// quantised; all other tensors are plain. Fails if the file is damaged or contains no whole model.
pub fn open(path: &Path) -> Result<Weights> {
    let gguf = Gguf::open(path)?;
    let ids = vocabulary::token_ids(&gguf)?;
    let model = architecture::map_model(&gguf, architecture::of(&gguf)?, &ids)?;
    let (plain, blocks): (Vec<_>, Vec<_>) = model.tensors.into_iter().partition(|t| plain_kind(t).is_some());
    let plain = plain.into_iter().filter_map(|t| {
        let shape = t.shape.iter().map(|&n| n as i64).collect();
        Some((t.name.clone(), TensorLocation::new(plain_kind(&t)?, shape, t.source.place(), t.change)))
    });
    let mut weights = Weights::empty(path);
    let file = weights.add_file(path, plain.collect())?;
    for tensor in blocks {
        let place = tensor.source.place();
        let blocks = file.narrow(0, place.start as i64, place.len() as i64);
        weights.add_quantised(tensor.name.clone(), Rc::new(BlockMatrix { tensor, blocks }));
    }
    Ok(weights)
}

/// Returns the dtype of a tensor whose numbers are stored one by one; `None` if they are in blocks.
fn plain_kind(tensor: &MappedTensor) -> Option<Kind> {
    match tensor.source.kind {
        GgmlType::F32 => Some(Kind::Float),
        GgmlType::F16 => Some(Kind::Half),
        GgmlType::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}

/// A matrix in the mapped file.
struct BlockMatrix {
    tensor: MappedTensor,
    /// Its bytes (size) uint8, a view of the mapping.
    blocks: Tensor,
}

impl QuantisedEntry for BlockMatrix {
    fn shape(&self) -> [i64; 2] {
        // Also for GPT-2: the file's rows are outputs, whatever the layout of other checkpoints.
        match self.tensor.source.shape[..] {
            [rows, columns] => [rows as i64, columns as i64],
            _ => [0, 0],
        }
    }

    fn bytes(&self) -> u64 {
        self.tensor.source.place().len() as u64
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        let weight = self.in_order_of_file(device)?;
        match self.tensor.change.row_order(self.shape()[0] as usize) {
            Some(order) => weight.select_rows(&Tensor::from_slice(&order).to_device(device)),
            None => Ok(weight),
        }
    }

    /// Copies nothing: rows stay in the order of the file.
    fn outline(&self) -> Result<QuantisedWeight> {
        self.in_order_of_file(Device::Cpu)
    }
}

impl BlockMatrix {
    fn in_order_of_file(&self, device: Device) -> Result<QuantisedWeight> {
        QuantisedWeight::of_ggml_blocks(self.tensor.source.kind, self.shape(), &self.blocks.to_device(device))
    }
}
