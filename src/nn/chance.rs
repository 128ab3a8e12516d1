//! Chance that is a function of a seed: draws inside a borrowed generator leave no trace in the run's own stream.
//!
//! Whoever draws so needs nothing in a checkpoint: the seed says it all.

use crate::native;
use tch::{Device, Tensor};

/// Runs `draw` with libtorch's generators seeded by `seed`, and puts them back on any way out.
pub fn seeded<R>(device: Device, seed: u64, draw: impl FnOnce() -> R) -> R {
    struct Back(Vec<(Device, Tensor)>);
    impl Drop for Back {
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
    let _back = Back(devices.into_iter().map(state).collect());
    tch::manual_seed(seed as i64);
    draw()
}
