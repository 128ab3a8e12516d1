//! Random tensors that depend on a seed alone.
//!
//! libtorch has one random generator per device. Sampling from it in the middle of a run would change the run's own
//! stream of random numbers, and a checkpoint would have to save that. Here the generators are seeded for one call
//! and restored afterwards, so the same seed gives the same numbers and a checkpoint needs no extra state.

use crate::native;
use tch::{Device, Tensor};

/// Runs `draw` with libtorch's generators seeded by `seed` and returns its result. The generators' states are restored
/// afterwards, after a panic too.
pub fn with_seed<R>(device: Device, seed: u64, draw: impl FnOnce() -> R) -> R {
    struct RestoreGenerators(Vec<(Device, Tensor)>);
    impl Drop for RestoreGenerators {
        fn drop(&mut self) {
            for (device, state) in &self.0 {
                native::set_rng_state(*device, state).expect("a state of this generator");
            }
        }
    }
    // Seeding touches the generators of every device.
    let mut devices = vec![Device::Cpu];
    devices.extend((device != Device::Cpu).then_some(device));
    let state = |d: Device| (d, native::rng_state(d).expect("a device has a generator"));
    let _back = RestoreGenerators(devices.into_iter().map(state).collect());
    tch::manual_seed(seed as i64);
    draw()
}
