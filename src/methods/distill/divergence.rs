//! Divergences between the teacher's distribution p and the student's q, one number per row, from log-probabilities.
//!
//! With M = beta p + (1 - beta) q:
//!   forward KL   sum p (log p - log q)                      (Hinton et al. 2015, arXiv 1503.02531, T^2 factor apart)
//!   reverse KL   sum q (log q - log p)                      (arXiv 2306.08543, equation 1)
//!   jsd          beta KL(p, M) + (1 - beta) KL(q, M)        (arXiv 2306.13649, equation 1); beta 0 is forward KL and
//!                beta 1 reverse KL, the limits of its gradients, as in TRL
//!   skewed KL    KL(p, a p + (1 - a) q)                     (arXiv 2402.03898, equation 3)
//!   skewed RKL   KL(q, (1 - a) p + a q)                     (the same, equation 4)
//!   total variation  1/2 sum |p - q|                        (arXiv 2307.15190, section 3)
//!   universal    sum |p_(i) - q_(i)|, each sorted from the largest, the shorter with zeros behind it: the closed form
//!                of the Wasserstein distance in arXiv 2402.12030
//!
//! A log-probability may be -inf if both distributions give the outcome probability 0.

use super::spec::Divergence;
use tch::{Kind, Tensor};

/// Computes the divergence of each row from log-probabilities of the same K outcomes: (n, K) -> (n). For the universal
/// divergence, the outcomes may differ, also in number.
pub fn divergence(kind: &Divergence, teacher: &Tensor, student: &Tensor) -> Tensor {
    match kind {
        Divergence::ForwardKl(_) => kl(teacher, student),
        Divergence::ReverseKl(_) => kl(student, teacher),
        Divergence::Jsd(j) if j.beta == 0.0 => kl(teacher, student),
        Divergence::Jsd(j) if j.beta == 1.0 => kl(student, teacher),
        Divergence::Jsd(j) => {
            let mixture = log_mixture(teacher, j.beta, student);
            kl(teacher, &mixture) * j.beta + kl(student, &mixture) * (1.0 - j.beta)
        }
        Divergence::SkewedKl(s) => kl(teacher, &log_mixture(teacher, s.alpha, student)),
        Divergence::SkewedReverseKl(s) => kl(student, &log_mixture(student, s.alpha, teacher)),
        Divergence::TotalVariation(_) => {
            (teacher.exp() - student.exp()).abs().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float) * 0.5
        }
        Divergence::Universal(_) => {
            let width = teacher.size()[1].max(student.size()[1]);
            let sorted = |l: &Tensor| l.exp().sort(-1, true).0.constant_pad_nd([0, width - l.size()[1]]);
            (sorted(teacher) - sorted(student)).abs().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
        }
    }
}

/// Computes KL(a, b) of log-probabilities, row by row. Outcomes that are impossible under a add nothing.
fn kl(a: &Tensor, b: &Tensor) -> Tensor {
    let p = a.exp();
    let terms = (&p * (a - b)).where_self(&p.gt(0.0), &Tensor::zeros_like(&p));
    terms.sum_dim_intlist([-1i64].as_slice(), false, terms.kind())
}

/// Computes log(share a + (1 - share) b) from log-probabilities.
fn log_mixture(a: &Tensor, share: f64, b: &Tensor) -> Tensor {
    match share {
        0.0 => b.shallow_clone(),
        1.0 => a.shallow_clone(),
        _ => (a + share.ln()).logaddexp(&(b + (1.0 - share).ln())),
    }
}
