//! The encoder that virtual tokens are trained through: a table of vectors and a small network on them.

use crate::nn::{ParamRole, RegisterParam};
use tch::kind::FLOAT_CPU;
use tch::{Kind, Tensor};

/// The activation between linear layers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Activation {
    Relu,
    Tanh,
}

/// The shape of an encoder.
pub(super) struct EncoderShape<'a> {
    /// Number of virtual tokens.
    pub count: i64,
    /// Widths of the table's vectors and of each linear layer's result.
    pub widths: &'a [i64],
    /// The activation between linear layers.
    pub activation: Activation,
    /// Name of the linear layers in PEFT's model, in which activations are counted too.
    pub name: &'static str,
    /// The last linear layer starts at zero.
    pub zero: bool,
}

impl EncoderShape<'_> {
    /// Registers the parameters, named and initialised as PEFT's, and returns a function that computes the result: (n,
    /// last width) float32.
    pub fn build(&self, add: &mut RegisterParam) -> impl Fn() -> Tensor + 'static {
        let table = Tensor::randn([self.count, self.widths[0]], FLOAT_CPU);
        let table = add("prompt_encoder.embedding.weight", table, ParamRole::Trained);
        let last = self.widths.len() - 2;
        let layers = self.widths.windows(2).enumerate().map(|(i, sizes)| {
            let (inputs, outputs) = (sizes[0], sizes[1]);
            // torch's default for linear layers: uniform, bounded by 1 / sqrt(inputs).
            let bound = if self.zero && i == last { 0.0 } else { (inputs as f64).powf(-0.5) };
            let mut sample = |part: &str, shape: &[i64]| {
                let first = Tensor::rand(shape, FLOAT_CPU) * (2.0 * bound) - bound;
                add(&format!("prompt_encoder.{}.{}.{part}", self.name, 2 * i), first, ParamRole::Trained)
            };
            (sample("weight", &[outputs, inputs]), sample("bias", &[outputs]))
        });
        let (layers, activation): (Vec<_>, _) = (layers.collect(), self.activation);
        move || {
            let wide = |t: &Tensor| t.to_kind(Kind::Float);
            layers.iter().enumerate().fold(wide(&table), |x, (i, (weight, bias))| {
                let y = x.linear(&wide(weight), Some(&wide(bias)));
                match activation {
                    _ if i == last => y,
                    Activation::Relu => y.relu(),
                    Activation::Tanh => y.tanh(),
                }
            })
        }
    }
}
