//! How much the errors of a matrix's columns count when it is quantised: an importance matrix, the mean square of each input that the
//! matrix is multiplied with.

/// The importance of the columns of one block, and the mean square of the row that the block is in.
#[derive(Clone, Copy)]
pub(super) struct Importance<'a> {
    /// One number for each column of the block.
    pub columns: &'a [f32],
    /// The mean square of the row's numbers.
    pub row: f32,
}

impl Importance<'_> {
    /// Returns the weights of the squared errors of the first `N` numbers of a block: w √(s + x²), where s is a mean square.
    pub fn weights<const N: usize>(&self, x: &[f32], s: f32) -> [f32; N] {
        std::array::from_fn(|i| self.columns[i] * (s + x[i] * x[i]).sqrt())
    }
}

/// Calls `f` with each block of rows of as many numbers as there are columns, and with its importance.
pub(super) fn for_blocks<'a>(
    values: &'a [f32],
    columns: &'a [f32],
    elements: usize,
    mut f: impl FnMut(&'a [f32], Importance<'a>),
) {
    for row in values.chunks_exact(columns.len()) {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        for (x, columns) in row.chunks_exact(elements).zip(columns.chunks_exact(elements)) {
            f(x, Importance { columns, row: mean });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    /// Returns the sum of squared errors, each times the importance of its column.
    pub fn error_by_columns(x: &[f32], y: &[f32], importance: &[f32]) -> f64 {
        let weights = importance.iter().cycle();
        x.iter().zip(y).zip(weights).map(|((x, y), w)| f64::from(*w) * f64::from(x - y).powi(2)).sum()
    }
}
