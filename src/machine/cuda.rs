//! The NVIDIA driver and its devices.

use serde::Serialize;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs;
use std::sync::OnceLock;

/// File name of the NVIDIA driver's library.
const DRIVER: &[u8] = b"libcuda.so.1";

/// Returns true if the NVIDIA driver's library can be loaded.
pub fn has_cuda_driver() -> bool {
    open_library(DRIVER, libc::RTLD_LAZY | libc::RTLD_LOCAL).is_ok()
}

/// Opens a shared library (`dlopen`), which then stays open until the process ends. The error is the loader's message.
pub(crate) fn open_library(name: &[u8], flags: c_int) -> Result<*mut c_void, String> {
    let name = CString::new(name).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated name; the libraries opened here are the driver's and libtorch's own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: dlerror returns null or a NUL-terminated string owned by this thread.
    let text: *const c_char = unsafe { libc::dlerror() };
    Err(if text.is_null() {
        "unknown error".into()
    } else {
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    })
}

/// The NVIDIA driver and the devices that it shows to this process; `CUDA_VISIBLE_DEVICES` is respected.
#[derive(Debug, Clone, Serialize)]
pub struct CudaDriver {
    /// The driver's release, e.g. `580.82.07`.
    pub release: Option<String>,
    /// The newest CUDA version it supports, e.g. `(13, 0)`.
    pub cuda: (u32, u32),
    /// The devices, by number.
    pub devices: Vec<CudaDevice>,
}

/// A CUDA device as the driver describes it.
#[derive(Debug, Clone, Serialize)]
pub struct CudaDevice {
    /// Name of the product.
    pub name: String,
    /// Compute capability, e.g. `(9, 0)`.
    pub capability: (u32, u32),
    /// Memory in bytes.
    pub memory: u64,
}

impl CudaDevice {
    /// Returns true if the device has fast bf16 (Ampere and newer). Older ones compute bf16 in float32 and gain
    /// nothing.
    pub fn bf16(&self) -> bool {
        self.capability >= (8, 0)
    }

    /// Returns true if the device multiplies float16 faster than float32 (Volta and newer).
    pub fn f16(&self) -> bool {
        self.capability >= (7, 0)
    }
}

/// Asks the NVIDIA driver for its version and devices. Returns `Ok(None)` if there is no driver; the error is the
/// driver's own.
pub fn cuda_driver() -> Result<Option<CudaDriver>, String> {
    let Ok(library) = open_library(DRIVER, libc::RTLD_LAZY | libc::RTLD_LOCAL) else { return Ok(None) };
    let symbol = |name: &CStr| -> Result<*mut c_void, String> {
        // SAFETY: an open library and a NUL-terminated name.
        let at = unsafe { libc::dlsym(library, name.as_ptr()) };
        if at.is_null() { Err(format!("libcuda.so.1 has no {}", name.to_string_lossy())) } else { Ok(at) }
    };
    let check = |code: c_int, doing: &str| -> Result<(), String> {
        match code {
            0 => Ok(()),
            100 => Err(format!("{doing}: no CUDA device")),
            code => Err(format!("{doing}: CUDA error {code}")),
        }
    };
    // SAFETY: the signatures are those of the CUDA driver interface; all buffers outlive the calls.
    unsafe {
        let init: extern "C" fn(c_uint) -> c_int = std::mem::transmute(symbol(c"cuInit")?);
        let version: extern "C" fn(*mut c_int) -> c_int = std::mem::transmute(symbol(c"cuDriverGetVersion")?);
        let count: extern "C" fn(*mut c_int) -> c_int = std::mem::transmute(symbol(c"cuDeviceGetCount")?);
        let name: extern "C" fn(*mut c_char, c_int, c_int) -> c_int = std::mem::transmute(symbol(c"cuDeviceGetName")?);
        let memory: extern "C" fn(*mut usize, c_int) -> c_int = std::mem::transmute(symbol(c"cuDeviceTotalMem_v2")?);
        let attribute: extern "C" fn(*mut c_int, c_int, c_int) -> c_int =
            std::mem::transmute(symbol(c"cuDeviceGetAttribute")?);
        let (mut cuda, mut devices) = (0, 0);
        check(version(&mut cuda), "asking the driver for its version")?;
        check(init(0), "starting the driver")?;
        check(count(&mut devices), "counting devices")?;
        let mut found = Vec::new();
        for device in 0..devices {
            let (mut text, mut bytes, mut major, mut minor) = ([0 as c_char; 256], 0usize, 0, 0);
            check(name(text.as_mut_ptr(), text.len() as c_int, device), "asking a device for its name")?;
            check(memory(&mut bytes, device), "asking a device for its memory")?;
            check(attribute(&mut major, 75, device), "asking a device for its compute capability")?;
            check(attribute(&mut minor, 76, device), "asking a device for its compute capability")?;
            found.push(CudaDevice {
                name: CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned(),
                capability: (major as u32, minor as u32),
                memory: bytes as u64,
            });
        }
        let cuda = (cuda as u32 / 1000, cuda as u32 % 1000 / 10);
        Ok(Some(CudaDriver { release: driver_release(), cuda, devices: found }))
    }
}

/// Returns the compute capability of a CUDA device, e.g. `(9, 0)`; `None` if the driver does not know the device. The
/// driver is asked once.
pub fn cuda_capability(index: usize) -> Option<(u32, u32)> {
    static DRIVER: OnceLock<Option<CudaDriver>> = OnceLock::new();
    Some(DRIVER.get_or_init(|| cuda_driver().ok().flatten()).as_ref()?.devices.get(index)?.capability)
}

/// Reads the driver's release from the kernel module: `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  …`.
fn driver_release() -> Option<String> {
    let text = fs::read_to_string("/sys/module/nvidia/version")
        .or_else(|_| fs::read_to_string("/proc/driver/nvidia/version"))
        .ok()?;
    let version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_ascii_whitespace().find(version).map(str::to_string)
}
