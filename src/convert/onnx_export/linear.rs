//! Linear layers, norms, and the activation of the MLP.

use super::Precision;
use super::decoder::DecoderGraph;
use super::weights::{WeightForm, ZERO_CODE};
use crate::models::blocks::{Activation, NormKind};
use crate::onnx::{AttributeValue, ElementType, Value};

/// The input of linear layers, in the form in which they multiply it; layers that read the same input share it.
pub struct LayerRows(RowForm);

enum RowForm {
    /// (T, in) float32 or float16.
    Float(Value),
    /// (T, in) whole numbers of 8 bits, (T, 1) the step between two of them, and (T, 1) float32 the one that stands for 0.
    Quantised { codes: Value, step: Value, zero: Value },
}

impl DecoderGraph<'_> {
    /// Prepares rows (T, in) for linear layers.
    pub fn rows(&mut self, x: &Value) -> LayerRows {
        LayerRows(match self.precision {
            Precision::Float32 => RowForm::Float(x.clone()),
            Precision::Float16 => RowForm::Float(self.g.cast(x, ElementType::Float16)),
            Precision::Int8 => self.quantised(x),
        })
    }

    /// Quantises each token's numbers between their own smallest and largest. Bounds for all tokens, as `DynamicQuantizeLinear` has
    /// them, would be those of the first token, whose numbers are hundreds of times as large in many models.
    fn quantised(&mut self, x: &Value) -> RowForm {
        let last = [("axes", AttributeValue::Ints(vec![-1])), ("keepdims", AttributeValue::Int(0))];
        let [none, least, all] = [0.0, f32::MIN_POSITIVE, 1.0 / 255.0].map(|x| self.g.float(x));
        let [low, high] = [("ReduceMin", "Min"), ("ReduceMax", "Max")].map(|(reduce, bound)| {
            let found = self.g.add_with(reduce, &[x], &last); // (T)
            self.g.add(bound, &[&found, &none])
        });
        let range = self.g.add("Sub", &[&high, &low]);
        let step = self.g.add("Mul", &[&range, &all]);
        let step = self.g.add("Max", &[&step, &least]);
        let zero = self.g.add("Div", &[&low, &step]);
        let zero = self.g.add("Neg", &[&zero]);
        let zero = self.g.add("Round", &[&zero]);
        let zero_code = self.g.cast(&zero, ElementType::Uint8);
        let codes = self.g.add_with("QuantizeLinear", &[x, &step, &zero_code], &[("axis", AttributeValue::Int(0))]);
        let [step, zero] = [&step, &zero].map(|of_token| self.g.unsqueeze(of_token, &[1]));
        RowForm::Quantised { codes, step, zero }
    }

    /// Computes a linear layer of the trunk: (T, in) -> (T, out) float32.
    pub fn linear(&mut self, x: &LayerRows, module: &str, sizes: [i64; 2], bias: bool) -> Value {
        let shape = if self.layout.transposed { sizes } else { [sizes[1], sizes[0]] };
        let bias = bias.then(|| self.vector(&format!("{module}.bias"), sizes[1]));
        self.product(x, &format!("{module}.weight"), shape, self.layout.transposed, bias.as_ref())
    }

    /// Multiplies rows by a matrix of the model, (out, in), or (in, out) if it is `transposed`: (T, in) -> (T, out) float32.
    pub fn product(
        &mut self,
        x: &LayerRows,
        weight: &str,
        shape: [i64; 2],
        transposed: bool,
        bias: Option<&Value>,
    ) -> Value {
        let form = self.matrix_form(transposed);
        let parts = self.weights.add(&mut self.g, weight, &shape, form);
        match &x.0 {
            RowForm::Float(x) => {
                let orientation = [("transB", AttributeValue::Int(i64::from(!transposed)))];
                if self.precision == Precision::Float32 {
                    let inputs: Vec<&Value> = [x, &parts[0]].into_iter().chain(bias).collect();
                    return self.g.add_with("Gemm", &inputs, &orientation);
                }
                let y = self.g.add_with("Gemm", &[x, &parts[0]], &orientation);
                let y = self.g.cast(&y, ElementType::Float);
                self.plus(y, bias)
            }
            RowForm::Quantised { codes, step, zero } => {
                // The sum over the inputs of (code - zero) (weight - 128) is that of code (weight - 128), less zero times that of
                // (weight - 128), which is part of the model.
                let [none, middle] = [0, ZERO_CODE].map(|code| self.g.constant(ElementType::Uint8, &[], vec![code]));
                let y = self.g.add("MatMulInteger", &[codes, &parts[0], &none, &middle]);
                let y = self.g.cast(&y, ElementType::Float);
                let y = self.g.add("Mul", &[&y, &parts[1]]);
                let excess = self.g.add("Mul", &[zero, &parts[2]]);
                let y = self.g.add("Sub", &[&y, &excess]);
                let y = self.g.add("Mul", &[&y, step]);
                self.plus(y, bias)
            }
        }
    }

    fn plus(&mut self, y: Value, bias: Option<&Value>) -> Value {
        bias.map_or(y.clone(), |bias| self.g.add("Add", &[&y, bias]))
    }

    /// Returns the form of matrices.
    fn matrix_form(&self, transposed: bool) -> WeightForm {
        match self.precision {
            Precision::Float32 => WeightForm::Plain(ElementType::Float),
            Precision::Float16 => WeightForm::Plain(ElementType::Float16),
            Precision::Int8 => WeightForm::Quantised { transposed, summed: true },
        }
    }

    /// Returns rows of a table (count, width) by their numbers (T): (T, width) float32. With `head`, the table is an output head
    /// too, or has its form.
    pub fn table_rows(&mut self, weight: &str, shape: [i64; 2], numbers: &Value, head: bool) -> Value {
        let form = match self.matrix_form(false) {
            WeightForm::Quantised { .. } if !head => WeightForm::Plain(ElementType::Float),
            WeightForm::Quantised { transposed, .. } => {
                WeightForm::Quantised { transposed, summed: self.config.tie_word_embeddings }
            }
            form => form,
        };
        let parts = self.weights.add(&mut self.g, weight, &shape, form);
        if let WeightForm::Plain(kind) = form {
            let rows = self.g.add("Gather", &[&parts[0], numbers]);
            return if kind == ElementType::Float { rows } else { self.g.cast(&rows, ElementType::Float) };
        }
        let codes = self.g.add_with("Gather", &[&parts[0], numbers], &[("axis", AttributeValue::Int(1))]); // (width, T)
        let codes = self.g.transpose(&codes, &[1, 0]);
        let codes = self.g.cast(&codes, ElementType::Float);
        let zero = self.g.float(f32::from(ZERO_CODE));
        let steps = self.g.add("Sub", &[&codes, &zero]);
        let scales = self.g.add("Gather", &[&parts[1], numbers]);
        let scales = self.g.unsqueeze(&scales, &[1]);
        self.g.add("Mul", &[&steps, &scales])
    }

    /// Returns a vector of the model in float32: (width).
    pub fn vector(&mut self, name: &str, width: i64) -> Value {
        self.small(name, &[width], false)
    }

    /// Returns a small tensor of the model in float32; `centred`: plus 1.
    fn small(&mut self, name: &str, shape: &[i64], centred: bool) -> Value {
        let form = if centred { WeightForm::Centred } else { WeightForm::Plain(ElementType::Float) };
        self.weights.add(&mut self.g, name, shape, form).swap_remove(0)
    }

    /// Normalises the last dimension of x, with the model's kind of norm. The norm's weight has this shape: (width), or (H, width) for
    /// x (T, H, width).
    pub fn norm(&mut self, x: &Value, module: &str, shape: &[i64]) -> Value {
        let kind = self.layout.design.norm;
        let weight = self.small(&format!("{module}.weight"), shape, kind == NormKind::CentredRms);
        let (eps, width) = (self.config.norm_eps as f32, *shape.last().unwrap_or(&0));
        let NormKind::Layer { bias } = kind else {
            // The order of operators is that which runtimes replace by one of theirs.
            let (two, last) = (self.g.float(2.0), [("axes", AttributeValue::Ints(vec![-1]))]);
            let squares = self.g.add("Pow", &[x, &two]);
            let mean = self.g.add_with("ReduceMean", &[&squares], &last);
            let eps = self.g.float(eps);
            let sum = self.g.add("Add", &[&mean, &eps]);
            let root = self.g.add("Sqrt", &[&sum]);
            let normal = self.g.add("Div", &[x, &root]);
            return self.g.add("Mul", &[&normal, &weight]);
        };
        let bias = bias.then(|| self.small(&format!("{module}.bias"), shape, false));
        let settings = [("axis", AttributeValue::Int(-1)), ("epsilon", AttributeValue::Float(eps))];
        if shape.len() == 1 {
            let inputs: Vec<&Value> = [x, &weight].into_iter().chain(&bias).collect();
            return self.g.add_with("LayerNormalization", &inputs, &settings);
        }
        let ones = self.g.floats(&vec![1.0; width as usize], &[width as u64]);
        let normal = self.g.add_with("LayerNormalization", &[x, &ones], &settings);
        let y = self.g.add("Mul", &[&normal, &weight]);
        self.plus(y, bias.as_ref())
    }

    /// Applies the activation of the MLP.
    pub fn activated(&mut self, x: &Value) -> Value {
        match self.layout.design.feed_forward.activation {
            Activation::Silu => self.silu(x),
            Activation::Gelu => {
                let root = self.g.float(std::f32::consts::SQRT_2);
                let scaled = self.g.add("Div", &[x, &root]);
                let erf = self.g.add("Erf", &[&scaled]);
                self.half_of(x, &erf)
            }
            Activation::GeluTanh => {
                // tanh(sqrt(2 / pi) (x + 0.044715 x^3))
                let three = self.g.float(3.0);
                let cube = self.g.add("Pow", &[x, &three]);
                let cube = self.g.scale(&cube, 0.044715);
                let sum = self.g.add("Add", &[x, &cube]);
                let sum = self.g.scale(&sum, (2.0 / std::f64::consts::PI).sqrt());
                let tanh = self.g.add("Tanh", &[&sum]);
                self.half_of(x, &tanh)
            }
        }
    }

    /// Computes `x sigmoid(x)`.
    pub fn silu(&mut self, x: &Value) -> Value {
        let sigmoid = self.g.add("Sigmoid", &[x]);
        self.g.add("Mul", &[x, &sigmoid])
    }

    /// Computes `0.5 x (1 + y)`.
    fn half_of(&mut self, x: &Value, y: &Value) -> Value {
        let one = self.g.float(1.0);
        let sum = self.g.add("Add", &[y, &one]);
        let product = self.g.add("Mul", &[x, &sum]);
        self.g.scale(&product, 0.5)
    }
}
