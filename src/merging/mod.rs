//! Merges changes of weights, and whole weights ([`models`]): pure functions on tensors that know no adapters and no files.
//!
//! A [`Delta`] is the change of one weight, dense or as a product of two factors. [`method`] merges the deltas of one
//! weight into one; `prune` and `ties` are the parts that the methods are made of. [`knots`] brings deltas into common
//! directions first. [`svd`] reduces a delta to a rank, and [`comparison`] says how far deltas agree.
//!
//! Everything runs on one thread where the order of a sum could depend on their number, so results have the same bits on
//! any number of threads ([`on_one_thread`]).

pub mod comparison;
pub mod delta;
pub mod factors;
pub mod knots;
pub mod method;
pub mod models;
pub mod prune;
pub mod svd;
pub mod ties;

pub use comparison::{BlockComparison, Comparison};
pub use delta::Delta;
pub use method::{Method, Rule, WeightedDelta};
pub use svd::{Truncated, Truncation};
pub use ties::MajoritySign;

/// Runs `compute` with one thread of libtorch, and without gradients. The number of threads is restored afterwards, after a
/// panic too.
pub fn on_one_thread<T>(compute: impl FnOnce() -> T) -> T {
    struct RestoreThreads(i32);
    impl Drop for RestoreThreads {
        fn drop(&mut self) {
            tch::set_num_threads(self.0);
        }
    }
    let threads = tch::get_num_threads();
    let _back = RestoreThreads(threads);
    if threads != 1 {
        tch::set_num_threads(1);
    }
    let _no_grad = tch::no_grad_guard();
    compute()
}
