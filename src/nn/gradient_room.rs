//! Gradients with room behind each row, where the layer that reads them writes what it would otherwise multiply on its own.
//!
//! Results of layers whose factors A lie below their weights are columns of a wider matrix ([`super::joint_linear`]). Operations on
//! CUDA lay the gradients of such results out alike, and offer the wider matrix here. Only the gradient that was offered last can be
//! taken, so that nothing is written behind rows that merely look like it.

use std::cell::RefCell;
use tch::Tensor;

thread_local! {
    /// The wider matrix of the last gradient; the columns behind the gradient's are unused.
    static OFFERED: RefCell<Option<Offer>> = const { RefCell::new(None) };
}

struct Offer {
    /// (T, distance of rows)
    all: Tensor,
    /// Columns of the gradient.
    width: i64,
}

/// Offers the room behind `width` columns, of which `first` (T, …) has the first ones, if its rows begin farther apart. They must be
/// a matrix of their own, of which nobody uses other columns.
pub(super) fn offer(first: &Tensor, width: i64) {
    let (rows, stride) = (first.size()[0], first.stride()[0]);
    let all = (rows > 0 && stride > width).then(|| first.as_strided([rows, stride], [stride, 1], None::<i64>));
    OFFERED.replace(all.map(|all| Offer { all, width }));
}

/// Takes the wider matrix (T, …) of which the columns of `g` (T, n) are the first, if it was the last to be offered.
pub(super) fn take(g: &Tensor) -> Option<Tensor> {
    let Offer { all, width } = OFFERED.take()?;
    let same = all.data_ptr() == g.data_ptr() && all.size()[0] == g.size()[0] && all.stride() == g.stride();
    (same && all.kind() == g.kind() && width == g.size()[1]).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Only the last gradient that has room, whole, and only once.
    #[test]
    fn room_is_taken_by_the_gradient_that_it_was_offered_for() {
        let matrix = || Tensor::zeros([3, 6], (Kind::Float, Device::Cpu)).narrow(1, 0, 4);
        let (a, b, plain) = (matrix(), matrix(), Tensor::zeros([3, 4], (Kind::Float, Device::Cpu)));
        offer(&a, 4);
        assert!(take(&a).is_some_and(|all| all.size() == [3, 6] && all.data_ptr() == a.data_ptr()));
        assert!(take(&a).is_none());
        offer(&a, 4);
        offer(&b, 4);
        assert!(take(&a).is_none());
        offer(&a, 4);
        assert!(take(&a.narrow(1, 0, 3)).is_none());
        offer(&a, 4);
        offer(&plain, 4);
        assert!(take(&a).is_none() && take(&plain).is_none());
        offer(&a.narrow(1, 0, 2), 4);
        assert!(take(&a).is_some());
    }
}
