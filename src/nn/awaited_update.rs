//! Low-rank updates of results that are added to another tensor: on CUDA the launch that adds the result computes its update, too.
//!
//! While a layer waits for updates ([`AwaitedUpdates`]), a linear layer may leave its update here instead of adding it to its result.
//! The operation that adds the result takes it: [`super::ops::add_rms_norm`] or [`super::ops::add`]. Gradients are not concerned:
//! that of the result is that of the sum.

use crate::native::cuda::RowUpdate;
use std::cell::RefCell;
use tch::Tensor;

thread_local! {
    static AWAITED: RefCell<Awaited> = const { RefCell::new(Awaited::Nothing) };
}

enum Awaited {
    /// Nobody would take an update.
    Nothing,
    /// An update may be left.
    Update,
    /// That of the result at this address was left.
    Left(usize, RowUpdate),
}

/// Multiplications up to which an update is computed by the addition. It uses no tensor cores and reads B once for each row: as many
/// bytes as an H100 reads from its cache in about 13 us by its data sheet, while a launch costs the host 4 us. Not measured.
const MOST_MULTIPLICATIONS: i64 = 1 << 25;

/// While a value of this type exists, linear layers on this thread may leave updates of results that are added to another tensor.
pub struct AwaitedUpdates(());

impl AwaitedUpdates {
    /// Begins to wait. Each result must be added before the next layer that leaves an update, and before the value is dropped.
    pub fn begin() -> Self {
        AWAITED.replace(Awaited::Update);
        Self(())
    }
}

impl Drop for AwaitedUpdates {
    fn drop(&mut self) {
        let left = matches!(AWAITED.replace(Awaited::Nothing), Awaited::Left(..));
        assert!(!left || std::thread::panicking(), "the result of a layer was used without its update");
    }
}

/// While a value of this type exists, layers on this thread leave no updates: their results are copied before they are added.
pub(super) struct PausedUpdates(Option<Awaited>);

impl PausedUpdates {
    /// Begins the pause.
    pub fn begin() -> Self {
        Self(Some(AWAITED.replace(Awaited::Nothing)))
    }
}

impl Drop for PausedUpdates {
    fn drop(&mut self) {
        AWAITED.replace(self.0.take().unwrap_or(Awaited::Nothing));
    }
}

/// Leaves the update `low B^T` of the result y (T, out): low (T, R), B (out, R). Returns false if nobody waits for it, or if it is too
/// large to be computed by an addition.
pub(super) fn leave(y: &Tensor, low: &Tensor, b: &Tensor) -> bool {
    let multiplications = low.size()[0] * b.numel() as i64;
    AWAITED.with_borrow_mut(|awaited| match awaited {
        Awaited::Update if multiplications <= MOST_MULTIPLICATIONS => {
            let update = RowUpdate { low: low.detach(), b: b.detach() };
            *awaited = Awaited::Left(y.data_ptr() as usize, update);
            true
        }
        Awaited::Update | Awaited::Nothing => false,
        Awaited::Left(..) => panic!("the result of a layer was not added before the next layer's"),
    })
}

/// Takes the update that was left for the result y.
pub(super) fn take(y: &Tensor) -> Option<RowUpdate> {
    AWAITED.with_borrow_mut(|awaited| match std::mem::replace(awaited, Awaited::Nothing) {
        Awaited::Left(result, update) => {
            assert_eq!(result, y.data_ptr() as usize, "an update of another result");
            *awaited = Awaited::Update;
            Some(update)
        }
        other => {
            *awaited = other;
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn left(y: &Tensor) -> bool {
        let low = Tensor::ones([3, 2], (Kind::Float, Device::Cpu));
        leave(y, &low, &Tensor::ones([4, 2], (Kind::Float, Device::Cpu)))
    }

    #[test]
    fn an_update_is_left_where_one_is_awaited_and_taken_once() {
        let y = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
        assert!(!left(&y) && take(&y).is_none());
        let awaited = AwaitedUpdates::begin();
        assert!(left(&y) && take(&y).is_some() && take(&y).is_none());
        assert!(left(&y) && take(&y).is_some());
        let paused = PausedUpdates::begin();
        assert!(!left(&y));
        drop(paused);
        assert!(left(&y) && take(&y).is_some());
        drop(awaited);
        assert!(!left(&y));
    }

    #[test]
    #[should_panic(expected = "without its update")]
    fn an_update_that_is_not_taken_is_a_bug() {
        let y = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
        let _awaited = AwaitedUpdates::begin();
        left(&y);
    }

    #[test]
    fn large_updates_are_not_left() {
        let low = Tensor::zeros([1 << 12, 16], (Kind::Float, Device::Cpu));
        let y = Tensor::zeros([1 << 12, 1 << 10], (Kind::Float, Device::Cpu));
        let _awaited = AwaitedUpdates::begin();
        assert!(!leave(&y, &low, &Tensor::zeros([1 << 10, 16], (Kind::Float, Device::Cpu))));
    }
}
