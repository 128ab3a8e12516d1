//! Reads what this machine has: CPU and its instruction sets, CUDA devices, free memory, free disk.
//!
//! Asks the kernel and the NVIDIA driver, never libtorch, so that the result is right even if libtorch cannot use a
//! device. Limits of control groups (containers) on memory and cores are respected.

mod control_groups;
mod cpu;
mod cuda;
mod memory;

pub use cpu::{Cpu, check_cpu_limit};
pub(crate) use cuda::open_library;
pub use cuda::{CudaDevice, CudaDriver, cuda_capability, cuda_driver, has_cuda_driver};
pub use memory::{SystemMemory, free_disk};

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn this_machine_has_a_processor_memory_and_disk() {
        let cpu = Cpu::read();
        assert!(cpu.threads() >= 1 && cpu.cores <= cpu.logical, "{cpu:?}");
        assert!(!cpu.model.is_empty(), "{cpu:?}");
        let memory = SystemMemory::read();
        assert!(memory.free > 0 && memory.free <= memory.total, "{memory:?}");
        assert!(free_disk(Path::new("not/yet/there")).is_some_and(|free| free > 0));
    }
}
