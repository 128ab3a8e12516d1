//! The initial values of LoRA's factors in a linear layer.

use super::spec::LoraInit;
use crate::adapters::plan::AdaptedLayer;
use crate::error::Result;
use crate::merging::svd;
use tch::{Device, Kind, Tensor};

/// Returns the initial A (R, in) and B (out, R) of a linear layer's update, in float32, whose scale is `scale`. Zeros if
/// they depend on the layer's weight and are not used.
pub(super) fn factors(init: LoraInit, layer: &AdaptedLayer, rank: i64, scale: f64) -> Result<[Tensor; 2]> {
    let [outputs, inputs] = layer.matrix()?;
    let options = (Kind::Float, Device::Cpu);
    let zeros = || [Tensor::zeros([rank, inputs], options), Tensor::zeros([outputs, rank], options)];
    let with_zero_b = |a: Tensor| [a, Tensor::zeros([outputs, rank], options)];
    Ok(match init {
        // Kaiming uniform with a = sqrt(5): bound = sqrt(6 / ((1 + 5) * in))
        // EVA's directions are found later, because they need the run's rows.
        LoraInit::Kaiming | LoraInit::Eva => {
            let bound = (inputs as f64).powf(-0.5);
            with_zero_b(Tensor::empty([rank, inputs], options).uniform_(-bound, bound))
        }
        LoraInit::Gaussian => with_zero_b(Tensor::randn([rank, inputs], options) / rank as f64),
        LoraInit::Orthogonal => {
            if rank % 2 != 0 {
                let why = format!("`init: orthogonal` needs an even rank, found {rank}");
                return Err(layer.refusal(&why, "choose an even rank, also in rank_pattern"));
            }
            orthogonal(outputs, inputs, rank)
        }
        init if init.needs_weight() && !layer.uses_initial_values() => zeros(),
        LoraInit::Pissa | LoraInit::PissaFast | LoraInit::Olora | LoraInit::Loftq => {
            if rank > outputs.min(inputs) || scale == 0.0 {
                let why = format!(
                    "its weight of {outputs} x {inputs} cannot be decomposed for rank {rank} and the scale {scale}"
                );
                return Err(layer.refusal(&why, "lower the rank (rank_pattern), and choose an alpha above 0"));
            }
            let weight = layer.site.weight.dense(Kind::Float);
            let _no_grad = tch::no_grad_guard();
            match init {
                LoraInit::Loftq => {
                    let Some(own) = layer.site.unquantised else {
                        let why = "`init: loftq` corrects the error of a quantisation, and this weight is not quantised when it is loaded";
                        return Err(layer.refusal(
                            why,
                            "set model.quantize, with the model's full-precision weights, or choose another init",
                        ));
                    };
                    // LoftQ, equation 6, for the weights as they were quantised: one step of its alternation.
                    let error = own.to_device(weight.device()).to_kind(Kind::Float) - &weight;
                    pissa(error.svd(true, true), rank, scale)
                }
                LoraInit::Olora => olora(&weight, rank),
                LoraInit::PissaFast => pissa(randomised_svd(&weight, rank, 16), rank, scale),
                _ => pissa(weight.svd(true, true), rank, scale),
            }
        }
    })
}

/// Returns the factors that PEFT's `orthogonal` starts with: B reads the odd rows of an orthogonal matrix and A the even
/// ones, so that B A is 0 up to rounding.
fn orthogonal(outputs: i64, inputs: i64, rank: i64) -> [Tensor; 2] {
    let random = |rows: i64, columns: i64| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu));
    let (basis, _) = Tensor::linalg_qr(&random(rank, rank), "reduced");
    let half = |first: i64| basis.slice(0, first, None, 2); // (R / 2, R)
    let a = random(inputs, rank / 2).matmul(&half(0)).tr() / 10.0;
    let b = random(rank / 2, outputs).tr().matmul(&half(1)) / 10.0;
    [a.contiguous(), b]
}

/// Returns `A = sqrt(S / s) Vᵀ` and `B = U sqrt(S / s)` of the largest `rank` singular values S (PiSSA, arXiv 2404.02948,
/// equations 2 and 3), so that s B A is the principal part of the weight.
fn pissa((u, s, v): (Tensor, Tensor, Tensor), rank: i64, scale: f64) -> [Tensor; 2] {
    let root = (s.narrow(0, 0, rank) / scale).sqrt(); // (R)
    let a = v.narrow(1, 0, rank).tr() * root.unsqueeze(1);
    let b = u.narrow(1, 0, rank) * root;
    [a.contiguous(), b.contiguous()]
}

/// Computes the largest `rank` singular values and vectors by subspace iteration from a random matrix.
fn randomised_svd(weight: &Tensor, rank: i64, iterations: usize) -> (Tensor, Tensor, Tensor) {
    let start = Tensor::randn(svd::start_shape(weight, rank), (Kind::Float, Device::Cpu));
    svd::largest(weight, &start, iterations)
}

/// Returns the first rows of R and columns of Q of the weight's QR decomposition (arXiv 2406.01775), as A and B.
fn olora(weight: &Tensor, rank: i64) -> [Tensor; 2] {
    let (q, r) = Tensor::linalg_qr(weight, "reduced");
    [r.narrow(0, 0, rank).contiguous(), q.narrow(1, 0, rank).contiguous()]
}
