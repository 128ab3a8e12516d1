//! Reads what this machine has: CPU and its instruction sets, CUDA devices, free memory, free disk.
//!
//! Asks the kernel and the NVIDIA driver, never libtorch, so that the result is right even if libtorch cannot use a
//! device. Limits of control groups (containers) on memory and cores are respected.

use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The properties of the processor that determine the speed of training.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    /// Name of the processor.
    pub model: String,
    /// Cores that this process may use, hyper-threads of one core counted once.
    pub cores: usize,
    /// Logical processors that this process may use.
    pub logical: usize,
    /// Processor time that a control group grants, in processors (1.5 = one and a half); `None` if unlimited.
    pub quota: Option<f64>,
    /// AVX2.
    pub avx2: bool,
    /// AVX-512 F.
    pub avx512: bool,
    /// AVX-512 products of bfloat16.
    pub avx512_bf16: bool,
    /// AMX tiles of bfloat16.
    pub amx_bf16: bool,
    /// Whether an Arm processor has bfloat16 products.
    pub arm_bf16: bool,
    /// The instruction set that environment variables limit the program to (`FT_CPU` or those of ATen, oneDNN and MKL),
    /// if it is less than the processor has. The fields above respect the limit.
    pub limited_to: Option<&'static str>,
}

unsafe extern "C" {
    /// Defined in native/isa.cpp. Returns the highest level that may be used; -1 if FT_CPU names none.
    fn ft_isa_allowed() -> c_int;
}

/// Values of `FT_CPU`, in ascending order; the index is the level.
const INSTRUCTION_SETS: [&str; 5] = ["portable", "avx2", "avx512", "avx512_bf16", "amx"];

/// Fails if `FT_CPU` is set to an unknown instruction set.
pub fn check_cpu_limit() -> Result<(), String> {
    // SAFETY: a plain call.
    match unsafe { ft_isa_allowed() } {
        0.. => Ok(()),
        _ => Err(format!(
            "FT_CPU={}: unknown; expected one of {}",
            std::env::var("FT_CPU").unwrap_or_default(),
            INSTRUCTION_SETS.join(", ")
        )),
    }
}

impl Cpu {
    /// Reads the properties of the processor; unknown ones stay empty or false.
    pub fn read() -> Cpu {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let allowed = allowed_processors();
        let (mut model, mut flags, mut cores) = (String::new(), String::new(), BTreeSet::new());
        let mut processors = 0;
        for block in text.split("\n\n") {
            let field = |key: &str| {
                block.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim()))
            };
            let Some(number) = field("processor").and_then(|n| n.parse::<usize>().ok()) else { continue };
            if model.is_empty() {
                model = field("model name").unwrap_or("unknown").to_string();
                flags = field("flags").or_else(|| field("Features")).unwrap_or_default().to_string();
            }
            if allowed.as_ref().is_none_or(|set| set.contains(&number)) {
                processors += 1;
                // Some virtual machines do not report the topology; then every logical processor is counted as a core.
                let core = field("physical id").zip(field("core id"));
                cores.insert(core.map_or(format!("processor {number}"), |(package, core)| format!("{package}/{core}")));
            }
        }
        // SAFETY: a plain call.
        let allowed = unsafe { ft_isa_allowed() }.try_into().unwrap_or(INSTRUCTION_SETS.len() - 1);
        let there = |flag: &str| flags.split_ascii_whitespace().any(|f| f == flag);
        let levels = [(1, "avx2"), (2, "avx512f"), (3, "avx512_bf16"), (4, "amx_bf16"), (1, "bf16")];
        let has = |flag: &str| there(flag) && levels.iter().any(|(level, f)| *f == flag && *level <= allowed);
        let limited = levels.iter().any(|(_, flag)| there(flag) && !has(flag));
        let logical = processors.max(1);
        Cpu {
            model,
            cores: cores.len().clamp(1, logical),
            logical,
            quota: cpu_quota(),
            avx2: has("avx2"),
            avx512: has("avx512f"),
            avx512_bf16: has("avx512_bf16"),
            amx_bf16: has("amx_bf16"),
            arm_bf16: has("bf16"),
            limited_to: limited.then(|| INSTRUCTION_SETS[allowed]),
        }
    }

    /// Returns the number of threads to use for arithmetic: one per core, not more than the quota.
    pub fn threads(&self) -> usize {
        let quota = self.quota.map_or(usize::MAX, |q| q.ceil() as usize);
        self.cores.min(quota).max(1)
    }

    /// Returns the name of the instruction set with bf16 products; `None` if there is none.
    pub fn bf16(&self) -> Option<&'static str> {
        if self.amx_bf16 {
            Some("AMX")
        } else if self.avx512_bf16 {
            Some("AVX-512")
        } else if self.arm_bf16 {
            Some("Arm")
        } else {
            None
        }
    }
}

/// Returns the processors that this process may run on, from its affinity mask; `None` if the mask cannot be read.
fn allowed_processors() -> Option<BTreeSet<usize>> {
    // SAFETY: cpu_set_t is plain data that the kernel fills; its size is passed along.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return None;
        }
        Some((0..libc::CPU_SETSIZE as usize).filter(|&i| libc::CPU_ISSET(i, &set)).collect())
    }
}

/// Total and free memory for this process, in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct SystemMemory {
    /// Memory of the machine, or the limit of its control group.
    pub total: u64,
    /// Memory that can still be allocated.
    pub free: u64,
    /// Whether a control group, not the machine, limits the total.
    pub limited: bool,
}

impl SystemMemory {
    /// Reads the machine's memory and the limits of this process's control groups.
    pub fn read() -> SystemMemory {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |key: &str| -> u64 {
            let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let mut memory = SystemMemory { total: field("MemTotal"), free: field("MemAvailable"), limited: false };
        for (limit, used) in memory_limits() {
            if limit < memory.total {
                memory.total = limit;
                memory.limited = true;
            }
            memory.free = memory.free.min(limit.saturating_sub(used));
        }
        memory
    }
}

/// Returns the folders of this process's control groups for `controller`, of versions 2 and 1, innermost first.
fn control_groups(controller: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in fs::read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mount = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            names if names.split(',').any(|name| name == controller) => Path::new("/sys/fs/cgroup").join(controller),
            _ => continue,
        };
        let group = mount.join(path.trim_start_matches('/'));
        folders.extend(group.ancestors().take_while(|folder| folder.starts_with(&mount)).map(Path::to_path_buf));
    }
    folders
}

fn number_in(path: PathBuf) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Returns (limit, used) in bytes for every control group of this process. Page cache that can be dropped is not
/// counted as used.
fn memory_limits() -> Vec<(u64, u64)> {
    let read = |folder: PathBuf| {
        let limit = number_in(folder.join("memory.max")).or_else(|| number_in(folder.join("memory.limit_in_bytes")))?;
        let used =
            number_in(folder.join("memory.current")).or_else(|| number_in(folder.join("memory.usage_in_bytes")))?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cache = |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok());
        let droppable = cache("total_inactive_file ").or_else(|| cache("inactive_file ")).unwrap_or(0);
        Some((limit, used.saturating_sub(droppable)))
    };
    control_groups("memory").into_iter().filter_map(read).collect()
}

fn cpu_quota() -> Option<f64> {
    let read = |folder: PathBuf| -> Option<f64> {
        if let Ok(text) = fs::read_to_string(folder.join("cpu.max")) {
            let (quota, period) = text.trim().split_once(' ')?;
            return Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?);
        }
        let quota: f64 = fs::read_to_string(folder.join("cpu.cfs_quota_us")).ok()?.trim().parse().ok()?;
        (quota > 0.0).then_some(quota / number_in(folder.join("cpu.cfs_period_us"))? as f64)
    };
    control_groups("cpu").into_iter().filter_map(read).reduce(f64::min)
}

/// Returns the bytes that this user can still write on the disk of `folder` or its nearest existing parent.
pub fn free_disk(folder: &Path) -> Option<u64> {
    let folder = crate::fsutil::absolute(folder);
    let there = folder.ancestors().find(|f| f.exists())?;
    let path = CString::new(there.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: a NUL-terminated path and a record that the kernel fills.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut stat) == 0).then_some(stat.f_bavail as u64 * stat.f_frsize as u64)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

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
