//! Matrices in FP8 with a scale for each block, in the layout that DeepSeek-V3 introduced and transformers calls fine-grained FP8:
//! `weight` (out, in) in float8_e4m3fn, `weight_scale_inv` (out / block, in / block), both rounded up. Despite its name the scale
//! is what a number is multiplied with.

use super::tensors::MatrixTensors;
use crate::error::Result;
use crate::nn::{QuantisedEntry, QuantisedWeight};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Ending of the tensor with the scales.
pub const SCALES: &str = ".weight_scale_inv";

/// Takes the tensors of a matrix. `block`: outputs and inputs that share a scale, as config.json says.
pub fn matrix(tensors: &mut MatrixTensors, block: [i64; 2]) -> Result<Rc<dyn QuantisedEntry>> {
    let codes = tensors.take(".weight")?;
    let [outputs, inputs] = codes.size()[..] else {
        return Err(tensors.error(".weight", &format!("has shape {:?}, expected (out, in)", codes.size())));
    };
    tensors.require(".weight", &codes, &[Kind::Float8e4m3fn], &[outputs, inputs], "itself")?;
    let scales = tensors.take(SCALES)?;
    let shape = [outputs, inputs].iter().zip(block).map(|(size, block)| (size + block - 1) / block).collect::<Vec<_>>();
    let why = format!("a weight of {outputs} x {inputs} in blocks of {} x {}", block[0], block[1]);
    tensors.require(SCALES, &scales, &[Kind::Float, Kind::BFloat16, Kind::Half], &shape, &why)?;
    Ok(Rc::new(Fp8Matrix { codes, scales, block }))
}

/// A matrix: views of the mapped file.
struct Fp8Matrix {
    codes: Tensor,
    scales: Tensor,
    block: [i64; 2],
}

impl QuantisedEntry for Fp8Matrix {
    fn shape(&self) -> [i64; 2] {
        let size = self.codes.size();
        [size[0], size[1]]
    }

    fn bytes(&self) -> u64 {
        (self.codes.numel() + self.scales.numel() * self.scales.kind().elt_size_in_bytes()) as u64
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        let _no_grad = tch::no_grad_guard();
        QuantisedWeight::of_fp8(&self.codes, &self.scales, self.block, device)
    }
}
