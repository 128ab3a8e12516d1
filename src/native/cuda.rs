//! Our own CUDA kernels: native/cuda/ is compiled at run time by NVRTC, for the device that is there.
//!
//! [`kernels_for`] is the one place where an operation asks for them. It returns `None` for tensors on the CPU, and
//! where they cannot be had: no NVRTC, or a device that it does not know. The operation is then composed of
//! libtorch's, and a warning says so once.

mod compiler;
mod kernels;
mod library;
mod low_rank;
mod module;
mod norm;

pub use compiler::{Compiler, Target};
pub use kernels::{Cast, Kernels, NF4_BLOCK};
pub use low_rank::{FactorProduct, factor_product_bytes};
pub use module::Toolkit;
pub use norm::{RowUpdate, row_stride};

use crate::fsutil;
use crate::report;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use tch::{Device, Kind, Tensor};

/// Returns the kernels for these tensors: on one CUDA device, all of one dtype (float32, bfloat16 or float16),
/// contiguous and not empty.
pub fn kernels_for(tensors: &[&Tensor]) -> Option<&'static Kernels> {
    let (device, kind) = (tensors[0].device(), tensors[0].kind());
    let fits = |t: &&Tensor| t.device() == device && t.kind() == kind && t.is_contiguous() && t.numel() > 0;
    if device.is_cuda() && tensors.iter().all(fits) { kernels(device, kind) } else { None }
}

/// Does the same for tensors whose rows, the last dimension, are contiguous and at equal distances ([`row_stride`]).
pub fn kernels_for_rows(tensors: &[&Tensor]) -> Option<&'static Kernels> {
    let (device, kind) = (tensors[0].device(), tensors[0].kind());
    let fits = |t: &&Tensor| t.device() == device && t.kind() == kind && t.numel() > 0 && row_stride(t).is_some();
    if device.is_cuda() && tensors.iter().all(fits) { kernels(device, kind) } else { None }
}

/// Returns the kernels of a CUDA device for tensors of dtype `kind`. They are compiled, or read from the user's cache,
/// when device and dtype are first met.
pub fn kernels(device: Device, kind: Kind) -> Option<&'static Kernels> {
    let Device::Cuda(index) = device else { return None };
    let number = compiler::number_format(kind)?;
    static LOADED: Mutex<BTreeMap<(usize, u8), Option<&'static Kernels>>> = Mutex::new(BTreeMap::new());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    *loaded.entry((index, number)).or_insert_with(|| {
        let made = toolkit().and_then(|toolkit| toolkit.kernels(index, kind));
        match made {
            Ok(kernels) => Some(Box::leak(Box::new(kernels))),
            Err(why) => {
                report::warn_once(format!(
                    "libtorch's operations are used in place of ft's CUDA kernels, which need {why}"
                ));
                None
            }
        }
    })
}

/// Opens NVRTC and the driver, once. The error completes the sentence "ft's kernels need …".
fn toolkit() -> Result<&'static Toolkit, String> {
    static TOOLKIT: OnceLock<Result<Toolkit, String>> = OnceLock::new();
    let open = || Toolkit::open(&nvrtc_places(), c"libcuda.so.1", fsutil::user_cache("kernels"));
    TOOLKIT.get_or_init(open).as_ref().map_err(String::clone)
}

/// Returns where NVRTC may be, best first: beside the libtorch in use, where PyTorch's wheels put it, where the loader
/// looks, and where the CUDA toolkit is usually installed.
fn nvrtc_places() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let libtorch =
        maps.lines().filter_map(|line| Some(&line[line.find('/')?..])).find(|p| p.ends_with("/libtorch_cuda.so"));
    let lib = libtorch.and_then(|path| PathBuf::from(path).parent().map(PathBuf::from));
    let names = ["libnvrtc.so.13", "libnvrtc.so.12"];
    let beside = lib.iter().flat_map(|lib| {
        let wheels = lib.join("../../nvidia");
        [lib.clone(), wheels.join("cu13/lib"), wheels.join("cuda_nvrtc/lib")]
    });
    let usual = [PathBuf::new(), PathBuf::from("/usr/local/cuda/lib64")];
    beside.chain(usual).flat_map(|folder| names.map(|name| folder.join(name))).collect()
}
