//! Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), as torch.optim.Muon computes it, for the matrices of
//! linear layers and adapters; embeddings, the head, norms and biases take AdamW's steps.
//!
//! `b <- mu b + (1 - mu) g`, `u = mu b + (1 - mu) g` (Nesterov) or b, `O = NewtonSchulz(u)`,
//! `p <- p - lr wd p - lr scale O`. Newton-Schulz: `X = u / |u|`, then five times `A = X X^T`,
//! `X <- a X + (b A + c A A) X`, in bfloat16. `scale` is `0.2 sqrt(max(N, M))`, which gives O the size of AdamW's steps
//! (Liu et al. 2025, arXiv 2502.16982, equation 4), or `sqrt(max(1, N / M))` as first published, where N counts
//! outputs: a weight of GPT-2, which is stored as (in, out), gets the step of the same layer in another family.

use super::adamw::AdamW;
use super::conditional::update_each;
use super::rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule};
use crate::error::Result;
use crate::nn::LayerKind;
use crate::recipe::optim::MuonScale;
use tch::{Kind, Tensor};

/// Coefficients (a, b, c) of the Newton-Schulz iteration, chosen for a steep slope at zero.
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;
const EPS: f64 = 1e-7;

/// Muon for matrices (state: one momentum), AdamW for all other parameters (state: two moments).
#[derive(Debug, Clone, Copy)]
pub struct Muon {
    /// Decay of the momentum.
    pub momentum: f64,
    /// Use Nesterov momentum.
    pub nesterov: bool,
    /// How updates are scaled with the shape of a matrix.
    pub scale: MuonScale,
    /// Rule for parameters that are not matrices.
    pub rest: AdamW,
}

/// Returns true if Muon updates the parameter; false if AdamW does.
fn is_muon_matrix(form: &ParameterInfo) -> bool {
    let hidden = form.layer == LayerKind::Linear || (form.adapter && form.layer == LayerKind::Head);
    form.shape.len() == 2 && hidden
}

/// Approximates `U V^T` for `x = U S V^T` (N, M). Returns (N, M) in bfloat16.
pub fn orthogonalised(x: &Tensor) -> Tensor {
    let (a, b, c) = QUINTIC;
    let (n, m) = (x.size()[0], x.size()[1]);
    let x = x.to_kind(Kind::BFloat16);
    let mut x = if n > m { x.tr() } else { x };
    x = &x / x.norm().clamp_min(EPS);
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.tr());
        let polynomial = addmm(&gram, b, &gram, &gram, c);
        x = addmm(&x, a, &polynomial, &x, 1.0);
    }
    if n > m { x.tr() } else { x }
}

/// Computes `beta t + alpha (x y)` with a single rounding.
fn addmm(t: &Tensor, beta: f64, x: &Tensor, y: &Tensor, alpha: f64) -> Tensor {
    let batch = |t: &Tensor| t.unsqueeze(0);
    batch(t).baddbmm(&batch(x), &batch(y), beta, alpha).squeeze_dim(0)
}

impl UpdateRule for Muon {
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField> {
        if is_muon_matrix(form) { vec![StateField::float("momentum", &form.shape)] } else { self.rest.layout(form) }
    }

    fn update(&self, slots: &[ParameterUpdate], pace: StepSize, skip: Option<&Tensor>) -> Result<()> {
        let (matrices, rest): (Vec<&ParameterUpdate>, Vec<&ParameterUpdate>) =
            slots.iter().partition(|s| is_muon_matrix(s.form));
        update_each(matrices, skip, |s| {
            let (mut p, mut momentum) = (s.param.shallow_clone(), s.state[0].shallow_clone());
            let _ = momentum.lerp_(&s.grad, 1.0 - self.momentum);
            let u = if self.nesterov { s.grad.lerp(&momentum, self.momentum) } else { momentum };
            // n outputs and m inputs, whichever way the matrix is stored.
            let (n, m) = (s.form.shape[0] as f64, s.form.shape[1] as f64);
            let (n, m) = if s.form.transposed { (m, n) } else { (n, m) };
            let scale = match self.scale {
                MuonScale::MatchRms => 0.2 * n.max(m).sqrt(),
                MuonScale::Original => (n / m).max(1.0).sqrt(),
            };
            p *= 1.0 - pace.lr * pace.decay;
            p -= orthogonalised(&u).to_kind(Kind::Float) * (pace.lr * scale);
        })?;
        let rest: Vec<ParameterUpdate> = rest.into_iter().map(ParameterUpdate::shallow_clone).collect();
        self.rest.update(&rest, pace, skip)
    }
}
