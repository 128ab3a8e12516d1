//! Compiles native/cuda/ by NVRTC. Needs neither a device nor a driver.

use super::library::{Handle, Nvrtc};
use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use tch::Kind;

/// The kernels' source, in the order in which one file needs another.
const FILES: [(&str, &str); 8] = [
    ("language.h", include_str!("../../../native/cuda/language.h")),
    ("activation.cu", include_str!("../../../native/cuda/activation.cu")),
    ("rotary.cu", include_str!("../../../native/cuda/rotary.cu")),
    ("norm.cu", include_str!("../../../native/cuda/norm.cu")),
    ("head.cu", include_str!("../../../native/cuda/head.cu")),
    ("quantised.cu", include_str!("../../../native/cuda/quantised.cu")),
    ("adapter.cu", include_str!("../../../native/cuda/adapter.cu")),
    ("low_rank.cu", include_str!("../../../native/cuda/low_rank.cu")),
];

/// Returns the text that is compiled: all files, with lines that name them in the compiler's messages.
pub(super) fn source() -> String {
    FILES.iter().map(|(name, text)| format!("#line 1 \"native/cuda/{name}\"\n{text}")).collect()
}

/// NVRTC, CUDA's run-time compiler. Its errors complete the sentence "ft's kernels need …".
pub struct Compiler {
    nvrtc: Nvrtc,
    version: (i32, i32),
    /// Compute capabilities that it compiles for, as 10 x major + minor, ascending.
    capabilities: Vec<i32>,
}

/// What the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The device's own compute capability, as 10 x major + minor.
    Device(i32),
    /// An older capability, for a device that NVRTC does not know: the driver compiles the rest.
    Virtual(i32),
}

impl Compiler {
    /// Opens NVRTC: the first of these files that can be opened. A path without a folder is left to the loader's
    /// search.
    pub fn open(places: &[PathBuf]) -> Result<Self, String> {
        let nvrtc = Nvrtc::open(places)?;
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the results have room for what is written.
        let capabilities = unsafe {
            check((nvrtc.version)(&mut major, &mut minor), "a version of NVRTC")?;
            check((nvrtc.arch_count)(&mut count), "NVRTC's list of devices")?;
            let mut archs = vec![0; count.max(0) as usize];
            check((nvrtc.archs)(archs.as_mut_ptr()), "NVRTC's list of devices")?;
            archs.sort_unstable();
            archs
        };
        Ok(Self { nvrtc, version: (major, minor), capabilities })
    }

    /// Returns what to compile for a device of this capability. Fails if NVRTC no longer compiles for it.
    pub fn target(&self, capability: i32) -> Result<Target, String> {
        let known = &self.capabilities;
        match known.last() {
            _ if known.contains(&capability) => Ok(Target::Device(capability)),
            Some(&newest) if newest < capability => Ok(Target::Virtual(newest)),
            _ => {
                let (major, minor) = self.version;
                Err(format!(
                    "a device that NVRTC {major}.{minor} compiles for (this one has compute capability {}.{})",
                    capability / 10,
                    capability % 10
                ))
            }
        }
    }

    /// Returns everything that the compiled kernels depend on, as text.
    pub(super) fn key(&self, target: Target, kind: Kind) -> String {
        format!("{:?} {:?}\n{}", self.version, options(target, kind), source())
    }

    /// Compiles the kernels for tensors of dtype `kind`. Returns the machine code (PTX for a virtual target), and the
    /// compiler's messages: registers and spilled bytes of each kernel.
    pub fn compile(&self, target: Target, kind: Kind) -> Result<(Vec<u8>, String), String> {
        let n = &self.nvrtc;
        let text = CString::new(source()).map_err(|e| e.to_string())?;
        let options: Vec<CString> =
            options(target, kind).into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings and results outlive the calls; each result has the size that NVRTC gave for it.
        unsafe {
            let none = std::ptr::null();
            check((n.create)(&mut program, text.as_ptr(), c"ft.cu".as_ptr(), 0, none, none), "a working NVRTC")?;
            let code = (n.compile)(program, options.len() as c_int, options.as_ptr());
            let read = |size: SizeOf, get: Get| -> Result<Vec<u8>, String> {
                let mut bytes = 0;
                check(size(program, &mut bytes), "the compiler's result")?;
                let mut found = vec![0u8; bytes];
                check(get(program, found.as_mut_ptr().cast()), "the compiler's result")?;
                Ok(found)
            };
            let log = read(n.log_size, n.log)?;
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string();
            let image = match (code, target) {
                (0, Target::Device(_)) => read(n.cubin_size, n.cubin),
                (0, Target::Virtual(_)) => read(n.ptx_size, n.ptx),
                _ => Err(format!("an NVRTC that compiles them (error {code}: {log})")),
            };
            (n.destroy)(&mut program);
            Ok((image?, log))
        }
    }
}

type SizeOf = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;

fn check(code: c_int, what: &str) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{what} (NVRTC error {code})")) }
}

/// Returns the value of FT_NUMBER in native/cuda/language.h; `None` for a dtype without kernels.
pub(super) fn number_format(kind: Kind) -> Option<u8> {
    match kind {
        Kind::Float => Some(0),
        Kind::BFloat16 => Some(1),
        Kind::Half => Some(2),
        _ => None,
    }
}

fn options(target: Target, kind: Kind) -> Vec<String> {
    let arch = match target {
        Target::Device(n) => format!("sm_{n}"),
        Target::Virtual(n) => format!("compute_{n}"),
    };
    let number = number_format(kind).expect("a dtype of the kernels");
    // 177: a function that only another number format uses.
    let fixed = ["--std=c++17", "--diag-suppress=177", "--ptxas-options=-v"].map(String::from);
    [format!("--gpu-architecture={arch}"), format!("-DFT_NUMBER={number}")].into_iter().chain(fixed).collect()
}
