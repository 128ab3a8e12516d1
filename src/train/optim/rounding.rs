//! Stochastic rounding to bfloat16 (Gupta et al. 2015, arXiv 1502.02551).
//!
//! A number is rounded up with a probability equal to the fraction that is cut off. An update smaller than half a unit
//! in the last place thus takes effect on average; rounding to nearest would always lose it.

use tch::{Kind, Tensor};

/// Rounds float32 to bfloat16: adds 16 random bits, from libtorch's generator, below the last bit that is kept, and
/// truncates.
pub fn round_stochastically(exact: &Tensor) -> Tensor {
    let noise = Tensor::randint(1 << 16, exact.size(), (Kind::Int, exact.device()));
    let bits = (exact.contiguous().view_dtype(Kind::Int) + noise).bitwise_and_(-65536i64);
    bits.view_dtype(Kind::Float).to_kind(Kind::BFloat16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn it_is_right_on_average_and_exact_where_nothing_is_cut() {
        for x in [1.0f32 + 1.0 / 1024.0, -0.3, 7.77e-6] {
            let many = Tensor::full([200_000], f64::from(x), (Kind::Float, Device::Cpu));
            let rounded = round_stochastically(&many).to_kind(Kind::Double);
            let unit = f64::from(x.abs()) / 128.0; // at least a unit in the last place
            let mean = rounded.mean(Kind::Double).double_value(&[]);
            assert!((mean - f64::from(x)).abs() < unit * 0.01, "{x}: mean {mean}");
            assert!((rounded - f64::from(x)).abs().max().double_value(&[]) <= unit, "{x}: more than one unit away");
        }
        let exact = Tensor::from_slice(&[0.0f32, -0.0, 1.5, -2.25, 3.0e-30]);
        let exact = exact.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        assert!(round_stochastically(&exact).to_kind(Kind::Float).equal(&exact));
    }
}
