//! KnOTS (Stoica et al. 2024, arXiv 2410.19735): writes the changes of a weight in common directions before they are
//! merged. Updates of adapters that were trained apart differ in their directions more than in what they do, so that their
//! entries can hardly be compared; their coordinates in common directions can.

use super::delta::Delta;
use super::svd;
use tch::{Kind, Tensor};

/// Changes of one weight in common directions.
pub struct Aligned {
    /// The common directions U, (out, K), orthonormal columns.
    pub directions: Tensor,
    /// The coordinates S V_i of each change, (K, in): U S V_i is the change.
    pub parts: Vec<Tensor>,
}

/// Decomposes the changes put side by side: `[D_1 | D_2 | …] = U S [V_1 | V_2 | …]` (section 4, with S on the side of V as
/// in the authors' code). Directions whose singular value is below a millionth of the largest are left out.
pub fn align(deltas: &[&Delta]) -> Aligned {
    const SMALLEST: f64 = 1e-6;
    let (basis, beside) = side_by_side(deltas);
    let (u, s, v) = svd::decompose(&beside);
    let limit = s.max().double_value(&[]) * SMALLEST;
    let kept = s.gt(limit).sum(Kind::Int64).int64_value(&[]).max(1);
    let coordinates = s.narrow(0, 0, kept).unsqueeze(1) * v.narrow(1, 0, kept).tr(); // (K, parts · in)
    let directions = u.narrow(1, 0, kept);
    let directions = basis.map_or_else(|| directions.shallow_clone(), |q| q.matmul(&directions));
    let inputs = deltas[0].shape()[1];
    let part = |i: usize| coordinates.narrow(1, i as i64 * inputs, inputs).to_kind(Kind::Float).contiguous();
    Aligned { directions: directions.to_kind(Kind::Float).contiguous(), parts: (0..deltas.len()).map(part).collect() }
}

/// Returns the changes side by side in float64. Products of small rank are written in an orthonormal basis of their left
/// factors, which is returned: (out, R) and (R, parts · in).
fn side_by_side(deltas: &[&Delta]) -> (Option<Tensor>, Tensor) {
    let wide = |t: &Tensor| t.to_kind(Kind::Double);
    let mut factors = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Factors { a, b } => factors.push((wide(a), wide(b))),
            Delta::Dense(_) => break,
        }
    }
    let rank: i64 = factors.iter().map(|(a, _)| a.size()[0]).sum();
    if factors.len() < deltas.len() || rank > deltas[0].shape()[0] {
        let dense: Vec<Tensor> = deltas.iter().map(|delta| wide(&delta.dense())).collect();
        return (None, Tensor::cat(&dense, 1));
    }
    let left: Vec<&Tensor> = factors.iter().map(|(_, b)| b).collect();
    let (q, r) = Tensor::linalg_qr(&Tensor::cat(&left, 1), "reduced"); // (out, R), (R, R)
    let mut start = 0;
    let parts: Vec<Tensor> = factors
        .iter()
        .map(|(a, _)| {
            let columns = r.narrow(1, start, a.size()[0]);
            start += a.size()[0];
            columns.matmul(a)
        })
        .collect();
    (Some(q), Tensor::cat(&parts, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// The coordinates give the changes back, the directions are orthonormal, and dense changes and products agree.
    #[test]
    fn changes_are_written_in_common_directions() {
        let changes = [2, 3].map(|rank| Delta::Factors { a: random([rank, 9]), b: random([8, rank]) });
        let dense = changes.each_ref().map(|delta| Delta::Dense(delta.dense()));
        for list in [&changes, &dense] {
            let aligned = align(&list.iter().collect::<Vec<_>>());
            assert_eq!(aligned.directions.size(), [8, 5]);
            let gram = aligned.directions.tr().matmul(&aligned.directions);
            let eye = Tensor::eye(5, (Kind::Float, Device::Cpu));
            assert!((gram - eye).abs().max().double_value(&[]) < 1e-5);
            for (part, delta) in aligned.parts.iter().zip(list) {
                let error = (aligned.directions.matmul(part) - delta.dense()).abs().max().double_value(&[]);
                assert!(error < 1e-5, "{error}");
            }
        }
    }
}
