//! The weights of a graph: which tensor of the model each is made of, in which form, and where it lies in the data file.

use crate::error::{Error, Result};
use crate::onnx::{ElementType, GraphBuilder, InitializerData, Value};
use rayon::prelude::*;
use std::collections::HashMap;

/// The file beside the graph that has its weights.
pub const DATA_FILE: &str = "model.onnx.data";

/// Weights begin at multiples of this number of bytes, so that runtimes can map them.
const ALIGNMENT: u64 = 4096;

/// The code that stands for 0 in quantised weights.
pub const ZERO_CODE: u8 = 128;

/// What is made of a tensor of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WeightForm {
    /// Its numbers in this type of float.
    Plain(ElementType),
    /// Its numbers plus 1, in float32.
    Centred,
    /// For each output a factor and whole numbers of 8 bits, those of an input side by side: (in, out), (out) factors, and (out) the
    /// sum of the numbers that codes and factors stand for. The largest number of an output is 127 steps from 0.
    Quantised {
        /// The tensor is stored as (in, out).
        transposed: bool,
        /// It is multiplied, for which the sums are needed; a table of which rows are looked up has none.
        summed: bool,
    },
}

impl WeightForm {
    /// Returns ending, type and shape of each tensor of the graph that is made of one of this shape.
    fn parts(self, shape: &[u64]) -> Vec<(&'static str, ElementType, Vec<u64>)> {
        match self {
            Self::Plain(kind) => vec![("", kind, shape.to_vec())],
            Self::Centred => vec![("", ElementType::Float, shape.to_vec())],
            Self::Quantised { transposed, summed } => {
                let (inputs, outputs) = if transposed { (shape[0], shape[1]) } else { (shape[1], shape[0]) };
                let mut parts = vec![
                    ("_quantized", ElementType::Uint8, vec![inputs, outputs]),
                    ("_scale", ElementType::Float, vec![outputs]),
                ];
                parts.extend(summed.then(|| ("_sum", ElementType::Float, vec![outputs])));
                parts
            }
        }
    }

    /// Returns the bytes of these tensors. Fails for numbers that do not fit into float16.
    pub fn encode(self, name: &str, values: Vec<f32>, shape: &[u64]) -> Result<Vec<Vec<u8>>> {
        match self {
            Self::Plain(ElementType::Float16) => {
                let bad = values.iter().find(|x| half::f16::from_f32(**x).is_infinite());
                if let Some(x) = bad {
                    return Err(Error::user(format!("tensor {name}: the value {x} does not fit into float16"))
                        .hint("choose another type: --type f32 or int8"));
                }
                Ok(vec![values.par_iter().flat_map_iter(|x| half::f16::from_f32(*x).to_le_bytes()).collect()])
            }
            Self::Plain(_) => Ok(vec![floats(&values)]),
            Self::Centred => Ok(vec![floats(&values.iter().map(|x| x + 1.0).collect::<Vec<_>>())]),
            Self::Quantised { transposed, summed } => {
                let (codes, scales) = quantise(&values, shape, transposed);
                let sums = summed.then(|| floats(&sums(&codes, &scales)));
                Ok([codes, floats(&scales)].into_iter().chain(sums).collect())
            }
        }
    }

    /// Returns the sum of squares of what the form loses of the numbers, given its bytes, and that of the numbers.
    pub fn loss(self, values: &[f32], shape: &[u64], bytes: &[Vec<u8>]) -> (f64, f64) {
        let square = |x: f64| x * x;
        let norm = values.par_iter().map(|x| square(f64::from(*x))).sum();
        let error = match self {
            Self::Plain(ElementType::Float16) => {
                let stored = bytes[0].par_chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64());
                stored.zip(values).map(|(a, b)| square(a - f64::from(*b))).sum()
            }
            Self::Plain(_) | Self::Centred => 0.0,
            Self::Quantised { transposed, .. } => {
                let scales: Vec<f64> = bytes[1].chunks_exact(4).map(|b| f64::from(read_float(b))).collect();
                let outputs = scales.len();
                let inputs = values.len() / outputs;
                let of_code = |(at, code): (usize, &u8)| {
                    let (input, output) = (at / outputs, at % outputs);
                    let value = values[place(inputs, outputs, input, output, transposed)];
                    square((f64::from(*code) - f64::from(ZERO_CODE)) * scales[output] - f64::from(value))
                };
                debug_assert_eq!(shape.iter().product::<u64>() as usize, values.len());
                bytes[0].par_iter().enumerate().map(of_code).sum()
            }
        };
        (error, norm)
    }
}

/// Returns where a tensor has the number of an input and an output.
fn place(inputs: usize, outputs: usize, input: usize, output: usize, transposed: bool) -> usize {
    if transposed { input * outputs + output } else { output * inputs + input }
}

fn floats(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn read_float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Quantises a matrix: returns codes (in, out) and factors (out).
fn quantise(values: &[f32], shape: &[u64], transposed: bool) -> (Vec<u8>, Vec<f32>) {
    let (rows, columns) = (shape[0] as usize, shape[1] as usize);
    let (inputs, outputs) = if transposed { (rows, columns) } else { (columns, rows) };
    let largest = |output: usize| {
        (0..inputs).map(|input| values[place(inputs, outputs, input, output, transposed)].abs()).fold(0.0, f32::max)
    };
    let scale = |largest: f32| if largest > 0.0 { largest / 127.0 } else { 1.0 };
    let scales: Vec<f32> = (0..outputs).into_par_iter().map(|output| scale(largest(output))).collect();
    // A cache line of inputs at a time.
    const LINE: usize = 16;
    let mut codes = vec![0u8; values.len()];
    codes.par_chunks_mut(outputs * LINE).enumerate().for_each(|(block, codes)| {
        for output in 0..outputs {
            for line in 0..codes.len() / outputs {
                let x = values[place(inputs, outputs, block * LINE + line, output, transposed)] / scales[output];
                codes[line * outputs + output] = (x.round() as i32 + i32::from(ZERO_CODE)) as u8;
            }
        }
    });
    (codes, scales)
}

/// Returns the sum of the numbers of each output.
fn sums(codes: &[u8], scales: &[f32]) -> Vec<f32> {
    let mut sums = vec![0i64; scales.len()];
    for row in codes.chunks_exact(scales.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, code)| *sum += i64::from(*code) - i64::from(ZERO_CODE));
    }
    sums.iter().zip(scales).map(|(sum, scale)| (*sum as f64 * f64::from(*scale)) as f32).collect()
}

/// A tensor of the model, and the tensors of the graph that are made of it.
#[derive(Debug, Clone)]
pub struct PlannedWeight {
    /// Its name in the model.
    pub source: String,
    /// Its shape there.
    pub shape: Vec<u64>,
    /// What is made of it.
    pub form: WeightForm,
    /// Name and first byte in the data file of each tensor of the graph.
    pub placed: Vec<(Value, u64)>,
}

/// All weights of a graph, in the order of the data file.
#[derive(Default)]
pub struct WeightPlan {
    /// The weights.
    pub list: Vec<PlannedWeight>,
    by_source: HashMap<String, usize>,
    /// The size of the data file.
    pub bytes: u64,
}

impl WeightPlan {
    /// Returns the tensors of the graph that are made of a tensor of the model; those that exist already are used once more.
    pub fn add(&mut self, g: &mut GraphBuilder, source: &str, shape: &[i64], form: WeightForm) -> Vec<Value> {
        if let Some(found) = self.by_source.get(source) {
            return self.list[*found].placed.iter().map(|(value, _)| value.clone()).collect();
        }
        let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
        let mut placed = Vec::new();
        for (ending, kind, shape) in form.parts(&shape) {
            let (offset, length) =
                (self.bytes.next_multiple_of(ALIGNMENT), shape.iter().product::<u64>() * kind.bytes());
            let data = InitializerData::Beside { file: DATA_FILE.into(), offset, length };
            placed.push((g.weight(&format!("{source}{ending}"), kind, shape, data), offset));
            self.bytes = offset + length;
        }
        let values = placed.iter().map(|(value, _)| value.clone()).collect();
        self.by_source.insert(source.into(), self.list.len());
        self.list.push(PlannedWeight { source: source.into(), shape, form, placed });
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_within_half_a_step_whichever_way_the_matrix_lies() {
        let (outputs, inputs) = (5usize, 37usize);
        let values: Vec<f32> = (0..outputs * inputs).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let shape = [outputs as u64, inputs as u64];
        let turned: Vec<f32> = (0..inputs * outputs).map(|i| values[i % outputs * inputs + i / outputs]).collect();
        let (codes, scales) = quantise(&values, &shape, false);
        assert_eq!((codes.clone(), scales.clone()), quantise(&turned, &[shape[1], shape[0]], true));
        for (at, code) in codes.iter().enumerate() {
            let (x, step) = (values[at % outputs * inputs + at / outputs], scales[at % outputs]);
            let found = (f32::from(*code) - f32::from(ZERO_CODE)) * step;
            assert!((found - x).abs() <= 0.5001 * step, "{at}: {found} for {x}");
        }
        let form = WeightForm::Quantised { transposed: false, summed: true };
        let bytes = form.encode("w", values.clone(), &shape).unwrap();
        let (error, norm) = form.loss(&values, &shape, &bytes);
        assert!(error > 0.0 && error < 1e-4 * norm, "{error} of {norm}");
        let row: f32 = values[2 * inputs..][..inputs].iter().sum();
        assert!((read_float(&bytes[2][8..]) - row).abs() < 0.5 * inputs as f32 * scales[2]);
        // A row of zeros stays one.
        assert_eq!(quantise(&[0.0; 6], &[2, 3], false), (vec![128; 6], vec![1.0; 2]));
        assert!(WeightForm::Plain(ElementType::Float16).encode("w", vec![7e4], &[1]).is_err());
    }
}
