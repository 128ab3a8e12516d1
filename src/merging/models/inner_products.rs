//! Inner products between the parts of a tensor: of the whole tensor, of each row or of each column.

use super::blocks::TensorParts;
use crate::error::Result;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// What is taken as one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vectors {
    /// The whole tensor.
    Whole,
    /// Each row.
    Rows,
    /// Each column.
    Columns,
}

/// The inner products of some vectors with each other.
pub(super) struct InnerProducts {
    count: usize,
    products: Vec<f64>,
}

impl InnerProducts {
    /// Returns the number of vectors.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the inner product of two vectors.
    pub fn of(&self, one: usize, two: usize) -> f64 {
        self.products[one * self.count + two]
    }

    /// Returns the norm of a vector.
    pub fn norm(&self, vector: usize) -> f64 {
        self.of(vector, vector).max(0.0).sqrt()
    }

    /// Returns the squared norm of a sum of the vectors with these factors.
    pub fn square(&self, factors: &[f64]) -> f64 {
        self.between(factors, factors)
    }

    /// Returns the inner product of two sums of the vectors with these factors.
    pub fn between(&self, one: &[f64], two: &[f64]) -> f64 {
        let row = |i: usize| -> f64 { two.iter().enumerate().map(|(j, factor)| factor * self.of(i, j)).sum() };
        one.iter().enumerate().map(|(i, factor)| factor * row(i)).sum()
    }

    /// Returns the same of the vectors divided by these numbers.
    pub fn divided(&self, by: &[f64]) -> Self {
        let product = |i: usize, j: usize| self.of(i, j) / (by[i] * by[j]);
        let products = (0..self.count).flat_map(|i| (0..self.count).map(move |j| (i, j))).map(|(i, j)| product(i, j));
        Self { count: self.count, products: products.collect() }
    }
}

/// Reads a tensor once and returns the inner products of its parts: one set for the whole, or one for each row or column.
/// `vectors` makes the vectors of a block of the parts.
pub(super) fn measure(
    parts: &TensorParts,
    along: Vectors,
    vectors: impl Fn(&[Tensor]) -> Vec<Tensor>,
) -> Result<Vec<InnerProducts>> {
    let mut sums: Vec<Tensor> = Vec::new(); // by block for rows, else one: (count · count, groups) float64
    let mut count = 0;
    for rows in parts.blocks.blocks() {
        let block = vectors(&parts.read_all(&rows)?);
        count = block.len();
        let found = super::super::on_one_thread(|| of_block(&block, along));
        match sums.first_mut().filter(|_| along != Vectors::Rows) {
            Some(sum) => *sum += found,
            None => sums.push(found),
        }
    }
    let groups: Vec<Vec<f64>> = sums
        .iter()
        .flat_map(|sum| {
            let groups = sum.size()[1];
            (0..groups).map(move |g| Vec::<f64>::try_from(sum.select(1, g).contiguous()).expect("a vector"))
        })
        .collect();
    Ok(groups.into_iter().map(|products| InnerProducts { count, products }).collect())
}

/// Returns the inner products of the vectors of a block: (count · count, groups) in float64.
fn of_block(block: &[Tensor], along: Vectors) -> Tensor {
    let wide: Vec<Tensor> = block.iter().map(|vector| vector.to_kind(Kind::Double)).collect();
    let mut products: Vec<Tensor> = Vec::new();
    for (i, one) in wide.iter().enumerate() {
        for (j, two) in wide.iter().enumerate() {
            // The table is symmetric.
            products.push(match j < i {
                true => products[j * wide.len() + i].shallow_clone(),
                false => {
                    let product = one * two;
                    match along {
                        Vectors::Whole => product.sum(Kind::Double).view([1]),
                        Vectors::Rows => product.sum_dim_intlist([1i64].as_slice(), false, Kind::Double),
                        Vectors::Columns => product.sum_dim_intlist([0i64].as_slice(), false, Kind::Double),
                    }
                }
            });
        }
    }
    Tensor::stack(&products, 0)
}

/// Factors of parts, for the whole tensor or for each of its rows or columns.
pub(super) enum PartFactors {
    /// One factor for each part.
    Whole(Vec<f64>),
    /// By part: (rows) float32.
    Rows(Vec<Tensor>),
    /// By part: (columns) float32.
    Columns(Vec<Tensor>),
}

impl PartFactors {
    /// Arranges the factors of each group of vectors by part.
    pub fn new(along: Vectors, mut groups: Vec<Vec<f64>>) -> Self {
        if along == Vectors::Whole {
            return Self::Whole(groups.pop().unwrap_or_default());
        }
        let parts = groups.first().map_or(0, Vec::len);
        let of = |part: usize| {
            let factors: Vec<f32> = groups.iter().map(|factors| factors[part] as f32).collect();
            Tensor::from_slice(&factors).to_device(Device::Cpu)
        };
        let factors = (0..parts).map(of).collect();
        if along == Vectors::Rows { Self::Rows(factors) } else { Self::Columns(factors) }
    }

    /// Returns the block of a part times its factors.
    pub fn times(&self, part: usize, rows: &Range<i64>, block: &Tensor) -> Tensor {
        match self {
            Self::Whole(factors) => block * factors[part],
            Self::Rows(factors) => block * factors[part].narrow(0, rows.start, rows.end - rows.start).unsqueeze(1),
            Self::Columns(factors) => block * factors[part].unsqueeze(0),
        }
    }
}
