//! The processor: cores, instruction sets, quota.

use super::control_groups;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int};
use std::fs;
use std::path::PathBuf;

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
    /// Defined in native/isa.cpp. Returns the name of a level, a constant; null if there is no such level.
    fn ft_isa_name(level: c_int) -> *const c_char;
}

/// Returns the values of `FT_CPU`, in ascending order; the index is the level.
fn instruction_sets() -> impl Iterator<Item = &'static str> {
    // SAFETY: the function returns null or a constant, NUL-terminated string.
    let name = |level| unsafe { ft_isa_name(level).as_ref().map(|name| CStr::from_ptr(name)) };
    (0..).map_while(name).map(|name| name.to_str().unwrap_or("?"))
}

/// Fails if `FT_CPU` is set to an unknown instruction set.
pub fn check_cpu_limit() -> Result<(), String> {
    // SAFETY: a plain call.
    match unsafe { ft_isa_allowed() } {
        0.. => Ok(()),
        _ => Err(format!(
            "FT_CPU={}: unknown; expected one of {}",
            std::env::var("FT_CPU").unwrap_or_default(),
            instruction_sets().collect::<Vec<_>>().join(", ")
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
        let allowed = usize::try_from(unsafe { ft_isa_allowed() }).unwrap_or(usize::MAX);
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
            limited_to: limited.then(|| instruction_sets().nth(allowed)).flatten(),
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

fn cpu_quota() -> Option<f64> {
    let read = |folder: PathBuf| -> Option<f64> {
        if let Ok(text) = fs::read_to_string(folder.join("cpu.max")) {
            let (quota, period) = text.trim().split_once(' ')?;
            return Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?);
        }
        let quota: f64 = fs::read_to_string(folder.join("cpu.cfs_quota_us")).ok()?.trim().parse().ok()?;
        (quota > 0.0).then_some(quota / control_groups::number_in(folder.join("cpu.cfs_period_us"))? as f64)
    };
    control_groups::of("cpu").into_iter().filter_map(read).reduce(f64::min)
}
