//! Rotary embedding, and sinusoidal vectors of positions.

use super::decoder::DecoderGraph;
use crate::nn::{Rope, RopeScaling};
use crate::onnx::{AttributeValue, ElementType, Value};
use tch::Device;

/// Cosines and sines of the angles of each token, both halves: (T, 1, R) each. Those of the first half of sines are negative.
#[derive(Clone)]
pub struct Rotation {
    cos: Value,
    sin: Value,
}

impl DecoderGraph<'_> {
    /// Computes the angles of a rotary embedding at the positions (B, S).
    pub fn rotation(&mut self, positions: &Value, theta: f64, scaling: &RopeScaling) -> Rotation {
        let size = self.config.rotary_size;
        let rope = Rope::new(size, theta, scaling, Device::Cpu);
        let frequencies = rope.frequencies();
        let turns = match scaling {
            RopeScaling::Dynamic { factor, original } => self.stretched(positions, &frequencies, [*factor, *original]),
            RopeScaling::Long { original, .. } => {
                let longest = self.longest(positions);
                let limit = self.g.integer(*original as i64);
                let is_long = self.g.add("Greater", &[&longest, &limit]); // (B, 1)
                let [short, long] = [frequencies, rope.frequencies_beyond(*original)].map(|list| self.table(&list));
                let turns = self.g.add("Where", &[&is_long, &long, &short]);
                self.g.unsqueeze(&turns, &[1])
            }
            _ => self.table(&frequencies),
        }; // (R/2), or (B, 1, R/2)
        let at = self.g.cast(positions, ElementType::Float);
        let at = self.g.unsqueeze(&at, &[2]);
        let angles = self.g.add("Mul", &[&at, &turns]); // (B, S, R/2)
        let angles = self.g.reshape(&angles, &[-1, 1, size / 2]);
        let attention = match scaling {
            RopeScaling::Yarn { attention, .. } | RopeScaling::Long { attention, .. } => *attention,
            _ => 1.0,
        };
        let [cos, sin] = ["Cos", "Sin"].map(|function| {
            let of = self.g.add(function, &[&angles]);
            self.g.scale(&of, attention)
        });
        let negative = self.g.add("Neg", &[&sin]);
        Rotation { cos: self.g.concat(&[&cos, &cos], 2), sin: self.g.concat(&[&negative, &sin], 2) }
    }

    fn table(&mut self, list: &[f32]) -> Value {
        self.g.floats(list, &[list.len() as u64])
    }

    /// Returns the length that each sequence has reached: (B, 1).
    fn longest(&mut self, positions: &Value) -> Value {
        let last = self.g.add_with("ReduceMax", &[positions], &[("axes", AttributeValue::Ints(vec![1]))]);
        let one = self.g.integer(1);
        self.g.add("Add", &[&last, &one])
    }

    /// Returns the frequencies of a base that grows with the length of a sequence: (B, 1, R/2). In the terms of
    /// [`RopeScaling::Dynamic`], the base is multiplied by `s^(R / (R - 2))`, and so frequency i by `s^(-2i / (R - 2))`.
    fn stretched(&mut self, positions: &Value, frequencies: &[f32], [factor, original]: [f64; 2]) -> Value {
        let size = self.config.rotary_size as f64;
        let longest = self.longest(positions);
        let longest = self.g.cast(&longest, ElementType::Double);
        let [original, slope, offset] = [original, factor / original, factor - 1.0].map(|x| self.g.doubles(&[x], &[1]));
        let longest = self.g.add("Max", &[&longest, &original]);
        let stretch = self.g.add("Mul", &[&longest, &slope]);
        let stretch = self.g.add("Sub", &[&stretch, &offset]); // (B, 1)
        let powers: Vec<f64> = (0..frequencies.len()).map(|i| -2.0 * i as f64 / (size - 2.0)).collect();
        let powers = self.g.doubles(&powers, &[frequencies.len() as u64]);
        let factors = self.g.add("Pow", &[&stretch, &powers]);
        let factors = self.g.cast(&factors, ElementType::Float);
        let frequencies = self.table(frequencies);
        let turns = self.g.add("Mul", &[&factors, &frequencies]); // (B, R/2)
        self.g.unsqueeze(&turns, &[1])
    }

    /// Rotates the first numbers of each head: (T, heads, E) -> (T, heads, E).
    pub fn rotate(&mut self, x: &Value, rotation: &Rotation, heads: i64) -> Value {
        let (head, size) = (self.config.head_dim, self.config.rotary_size);
        let x = match self.layout.design.attention.interleaved {
            // The pairs (2i, 2i + 1) are moved to (i, i + E/2), in queries and keys alike.
            true => {
                let pairs = self.g.reshape(x, &[-1, heads, head / 2, 2]);
                let halves = self.g.transpose(&pairs, &[0, 1, 3, 2]);
                self.g.reshape(&halves, &[-1, heads, head])
            }
            false => x.clone(),
        };
        let (turned, rest) = if size < head {
            let [turned, rest] = self.g.split(&x, [size, head - size], 2);
            (turned, Some(rest))
        } else {
            (x, None)
        };
        let [first, second] = self.g.split(&turned, [size / 2, size / 2], 2);
        let swapped = self.g.concat(&[&second, &first], 2);
        let along = self.g.add("Mul", &[&turned, &rotation.cos]);
        let across = self.g.add("Mul", &[&swapped, &rotation.sin]);
        let turned = self.g.add("Add", &[&along, &across]);
        rest.map_or(turned.clone(), |rest| self.g.concat(&[&turned, &rest], 2))
    }

    /// Returns the sinusoidal vectors of the positions (B, S): (T, D) float32. Angles are computed in float64, because float32 would
    /// lose digits of those of late positions.
    pub fn sinusoids(&mut self, positions: &Value) -> Value {
        let width = self.config.hidden_size;
        let count = (width + 1) / 2;
        let frequencies: Vec<f64> =
            (0..count).map(|i| (i as f64 * -2.0 / width as f64 * 10000f64.ln()).exp()).collect();
        let frequencies = self.g.doubles(&frequencies, &[count as u64]);
        let at = self.g.cast(positions, ElementType::Double);
        let at = self.g.reshape(&at, &[-1, 1]);
        let angles = self.g.add("Mul", &[&at, &frequencies]); // (T, D/2)
        // Whole turns are taken away in float64; what is left has all its digits in float32.
        let turn = self.g.doubles(&[std::f64::consts::TAU], &[1]);
        let turns = self.g.add("Div", &[&angles, &turn]);
        let turns = self.g.add("Floor", &[&turns]);
        let turns = self.g.add("Mul", &[&turns, &turn]);
        let angles = self.g.add("Sub", &[&angles, &turns]);
        let angles = self.g.cast(&angles, ElementType::Float);
        let parts = ["Sin", "Cos"].map(|function| {
            let of = self.g.add(function, &[&angles]);
            self.g.unsqueeze(&of, &[2])
        });
        let vectors = self.g.concat(&[&parts[0], &parts[1]], 2);
        let vectors = self.g.reshape(&vectors, &[-1, 2 * count]);
        if 2 * count == width {
            return vectors;
        }
        let [vectors, _] = self.g.split(&vectors, [width, 1], 1);
        vectors
    }
}
