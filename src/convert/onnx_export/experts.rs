//! Layers of experts: a router, and the experts that it chooses for each token.
//!
//! Letters in shapes: T tokens, D the width of the residual stream, E experts, k of a token; n the tokens of one expert.

use super::decoder::DecoderGraph;
use super::weights::WeightForm;
use crate::models::ExpertSizes;
use crate::nn::GatedMlpForm;
use crate::onnx::{AttributeValue, ElementType, Value};

impl DecoderGraph<'_> {
    /// Computes `sum_j w_j expert_j(x)` over the chosen experts of each token, and the expert that computes every token if there is
    /// one: (T, D) -> (T, D). Each expert computes the tokens that it was chosen for, which may be none.
    pub fn experts(&mut self, layer: &str, x: &Value, sizes: &ExpertSizes) -> Value {
        let design = self.layout.design.experts;
        let module = format!("{layer}.{}", design.module);
        let weights = self.routing(&format!("{module}.{}.weight", design.router), x, sizes);
        let columns = [("axis", AttributeValue::Int(1))];
        let adding = [("reduction", AttributeValue::Text("add".into()))];
        let mut sum = match sizes.shared_width {
            Some(width) => self.shared_expert(&module, x, width),
            None => self.zeros_like(x),
        };
        for e in 0..sizes.count {
            let number = self.g.integer(e);
            let weight = self.g.add_with("Gather", &[&weights, &number], &columns); // (T)
            let chosen = self.g.add("NonZero", &[&weight]);
            let chosen = self.g.reshape(&chosen, &[-1]); // (n)
            let rows = self.g.add("Gather", &[x, &chosen]);
            let y = self.expert(&format!("{module}.experts.{e}"), &rows, sizes.width);
            let factors = self.g.add("Gather", &[&weight, &chosen]);
            let factors = self.g.unsqueeze(&factors, &[1]);
            let y = self.g.add("Mul", &[&y, &factors]); // (n, D)
            let places = self.g.unsqueeze(&chosen, &[1]);
            sum = self.g.add_with("ScatterND", &[&sum, &places, &y], &adding);
        }
        sum
    }

    /// Returns the weights of the experts for each token, 0 for those that are not chosen: (T, E). In float32, in whatever format matrices
    /// are: a rounded logit may choose another expert.
    fn routing(&mut self, weight: &str, x: &Value, sizes: &ExpertSizes) -> Value {
        let last = ("axis", AttributeValue::Int(-1));
        let logits = self.float_product(x, weight, [sizes.count, self.config.hidden_size]);
        let probabilities = self.g.add_with("Softmax", &[&logits], &[last.clone()]);
        let count = self.g.integers(&[sizes.chosen]);
        let [mut picked, chosen] = self.g.add_for("TopK", &[&probabilities, &count], &[last]); // (T, k)
        if sizes.renormalise {
            let last = self.g.integers(&[-1]);
            let total = self.g.add("ReduceSum", &[&picked, &last]);
            picked = self.g.add("Div", &[&picked, &total]);
        }
        let picked = self.g.scale(&picked, sizes.scale);
        let none = self.zeros_like(&probabilities);
        self.g.add_with("ScatterElements", &[&none, &chosen, &picked], &[("axis", AttributeValue::Int(1))])
    }

    /// Computes one expert: (n, D) -> (n, D).
    fn expert(&mut self, module: &str, x: &Value, width: i64) -> Value {
        // Experts of the other form are refused before.
        let GatedMlpForm::Separate(names) = self.layout.design.experts.mlp else { return x.clone() };
        let (d, rows) = (self.config.hidden_size, self.rows(x));
        let [gate, up, down] = names.map(|name| format!("{module}.{name}"));
        let [gate, up] = [gate, up].map(|name| self.linear(&rows, &name, [d, width], false));
        let gate = self.silu(&gate);
        let inner = self.g.add("Mul", &[&gate, &up]);
        let rows = self.rows(&inner);
        self.linear(&rows, &down, [width, d], false)
    }

    /// Computes the expert that computes every token, times the sigmoid of its gate: (T, D) -> (T, D).
    fn shared_expert(&mut self, module: &str, x: &Value, width: i64) -> Value {
        let shared = self.layout.design.experts.shared;
        let y = self.expert(&format!("{module}.{}", shared.module), x, width);
        let Some(gate) = shared.gate else { return y };
        let opening = self.float_product(x, &format!("{module}.{gate}.weight"), [1, self.config.hidden_size]);
        let opening = self.g.add("Sigmoid", &[&opening]); // (T, 1)
        self.g.add("Mul", &[&y, &opening])
    }

    /// Multiplies rows by a matrix (out, in) that is in float32 in every format: (T, in) -> (T, out).
    fn float_product(&mut self, x: &Value, weight: &str, shape: [i64; 2]) -> Value {
        let weight =
            self.weights.add(&mut self.g, weight, &shape, WeightForm::Plain(ElementType::Float)).swap_remove(0);
        self.g.add_with("Gemm", &[x, &weight], &[("transB", AttributeValue::Int(1))])
    }

    fn zeros_like(&mut self, x: &Value) -> Value {
        let shape = self.g.add("Shape", &[x]);
        self.g.add("ConstantOfShape", &[&shape])
    }
}
