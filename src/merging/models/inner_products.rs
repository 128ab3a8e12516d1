//! Inner products between the parts of a tensor: of the whole tensor, of each row or of each column.

use super::blocks::{TensorBlocks, TensorParts, kernels, slices};
use super::combination::Terms;
use crate::error::Result;
use std::ops::Range;

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
    /// Makes the table of all pairs of its upper triangle with the diagonal, row by row.
    fn of_triangle(count: usize, triangle: &[f64]) -> Self {
        let mut products = vec![0.0; count * count];
        let pairs = (0..count).flat_map(|i| (i..count).map(move |j| (i, j)));
        for ((i, j), product) in pairs.zip(triangle) {
            products[i * count + j] = *product;
            products[j * count + i] = *product;
        }
        Self { count, products }
    }

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

/// Reads a tensor once and returns the inner products of its terms: one set for the whole, or one for each row or column.
pub(super) fn measure(parts: &TensorParts, along: Vectors, terms: &Terms) -> Result<Vec<InnerProducts>> {
    let count = terms.count();
    let pairs = count * (count + 1) / 2;
    let mut sums: Vec<f64> = Vec::new(); // by group, then by pair
    let measure = |(): &mut (), rows: &Range<i64>| {
        let read = parts.read_all(rows)?;
        Ok(terms.of(&slices(&read), |terms| of_block(terms, along, parts.blocks)))
    };
    parts.blocks.each(
        parts.threads,
        || (),
        measure,
        |found: Vec<f64>| {
            match along {
                Vectors::Rows => sums.extend(found),
                _ if sums.is_empty() => sums = found,
                _ => sums.iter_mut().zip(found).for_each(|(sum, product)| *sum += product),
            }
            Ok(())
        },
    )?;
    Ok(sums.chunks(pairs.max(1)).map(|triangle| InnerProducts::of_triangle(count, triangle)).collect())
}

/// Returns the inner products of the vectors of a block, group by group: the upper triangle of each.
fn of_block(vectors: &[&[f32]], along: Vectors, blocks: TensorBlocks) -> Vec<f64> {
    let (count, columns) = (vectors.len(), blocks.columns as usize);
    let pairs = count * (count + 1) / 2;
    match along {
        Vectors::Whole => {
            let mut sums = vec![0.0; pairs];
            kernels().products(vectors, &mut sums);
            sums
        }
        Vectors::Rows => {
            let rows = vectors[0].len() / columns;
            let mut sums = vec![0.0; rows * pairs];
            for (row, sums) in sums.chunks_mut(pairs).enumerate() {
                let of_row: Vec<&[f32]> = vectors.iter().map(|v| &v[row * columns..(row + 1) * columns]).collect();
                kernels().products(&of_row, sums);
            }
            sums
        }
        Vectors::Columns => {
            let mut sums = vec![0.0; columns * pairs];
            let each = (0..count).flat_map(|i| (i..count).map(move |j| (i, j))).enumerate();
            for (pair, (i, j)) in each {
                for (one, two) in vectors[i].chunks(columns).zip(vectors[j].chunks(columns)) {
                    for (column, (a, b)) in one.iter().zip(two).enumerate() {
                        sums[column * pairs + pair] += f64::from(*a) * f64::from(*b);
                    }
                }
            }
            sums
        }
    }
}

/// Factors of parts, for the whole tensor or for each of its rows or columns.
pub(super) enum PartFactors {
    /// One factor for each part.
    Whole(Vec<f32>),
    /// By row: the factor of each part.
    Rows(Vec<Vec<f32>>),
    /// By part: the factor of each column.
    Columns(Vec<Vec<f32>>),
}

impl PartFactors {
    /// Arranges the factors of each group of vectors.
    pub fn new(along: Vectors, mut groups: Vec<Vec<f64>>) -> Self {
        let narrow = |factors: Vec<f64>| -> Vec<f32> { factors.into_iter().map(|factor| factor as f32).collect() };
        match along {
            Vectors::Whole => Self::Whole(narrow(groups.pop().unwrap_or_default())),
            Vectors::Rows => Self::Rows(groups.into_iter().map(narrow).collect()),
            Vectors::Columns => {
                let parts = groups.first().map_or(0, Vec::len);
                let of = |part: usize| groups.iter().map(|factors| factors[part] as f32).collect();
                Self::Columns((0..parts).map(of).collect())
            }
        }
    }
}
