//! Experts in MXFP4, in the layout of gpt-oss: the weights of all experts of a layer are in one tensor. For the layer
//! `gate_up_proj` of E experts these are `gate_up_proj_blocks` (E, out, in / 32, 16), of two numbers in a byte the first in the
//! lower half, and `gate_up_proj_scales` (E, out, in / 32), exponents.

use super::tensors::MatrixTensors;
use crate::error::Result;
use crate::nn::quantised::MXFP4_GROUP;
use crate::nn::{QuantisedEntry, QuantisedWeight, Weights};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Ending of the tensor with the numbers.
pub const BLOCKS: &str = "_blocks";
/// Ending of the tensor with the exponents.
pub const SCALES: &str = "_scales";

/// Replaces the two tensors of `stack`, such as `model.layers.0.mlp.experts.down_proj`, by an entry for each expert.
pub fn experts(weights: &mut Weights, stack: &str) -> Result<()> {
    let mut tensors = MatrixTensors::new(weights, stack);
    let (blocks, scales) = (tensors.take(BLOCKS)?, tensors.take(SCALES)?);
    let half = MXFP4_GROUP / 2;
    let [experts, outputs, groups, bytes] = blocks.size()[..] else {
        let what = format!("has shape {:?}, expected (experts, out, groups, {half})", blocks.size());
        return Err(tensors.error(BLOCKS, &what));
    };
    tensors.require(BLOCKS, &blocks, &[Kind::Uint8], &[experts, outputs, groups, half], "blocks of 32 numbers")?;
    if experts == 0 || outputs == 0 || groups == 0 {
        return Err(tensors.error(BLOCKS, &format!("has shape {:?}: there is nothing in it", blocks.size())));
    }
    let why = format!("blocks of shape {:?}", [experts, outputs, groups, bytes]);
    tensors.require(SCALES, &scales, &[Kind::Uint8], &[experts, outputs, groups], &why)?;
    let Some((module, layer)) = stack.rsplit_once('.') else {
        return Err(tensors.error(BLOCKS, "is in no module"));
    };
    for e in 0..experts {
        let codes = blocks.get(e).view([outputs, groups * half]);
        let matrix = Mxfp4Matrix { codes, exponents: scales.get(e) };
        weights.add_quantised(format!("{module}.{e}.{layer}.weight"), Rc::new(matrix));
    }
    Ok(())
}

/// The matrix of one expert: views of the mapped file.
struct Mxfp4Matrix {
    /// (out, in / 2)
    codes: Tensor,
    /// (out, in / 32)
    exponents: Tensor,
}

impl QuantisedEntry for Mxfp4Matrix {
    fn shape(&self) -> [i64; 2] {
        let size = self.codes.size();
        [size[0], 2 * size[1]]
    }

    fn bytes(&self) -> u64 {
        (self.codes.numel() + self.exponents.numel()) as u64
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        let _no_grad = tch::no_grad_guard();
        QuantisedWeight::of_mxfp4(&self.codes, &self.exponents, device)
    }

    fn outline(&self) -> Result<QuantisedWeight> {
        Ok(QuantisedWeight::outline_of_mxfp4(self.shape()))
    }
}
