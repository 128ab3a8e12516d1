//! Prepares the libtorch that this process runs on: checks its version, switches to the one in `FT_LIBTORCH`, loads its
//! CUDA part and limits its threads and caches.
//!
//! The binary is linked only against `libtorch_cpu` and `libc10`, so that it starts on machines without CUDA. If a
//! driver and `libtorch_cuda.so` exist, [`start`] opens the latter before any code asks libtorch about CUDA: libtorch
//! looks for its CUDA part once and keeps the answer until the process ends.

use crate::error::{Error, Result};
use crate::libtorch::{LIBRARY, Libtorch, SERIES, library_path};
use crate::machine::{Cpu, check_cpu_limit, has_cuda_driver, open_library};
use std::ffi::{CStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The libtorch in use, as [`start`] found it; `ft doctor` shows it.
#[derive(Debug)]
pub struct Runtime {
    /// The folder and version of libtorch.
    pub libtorch: Libtorch,
    /// The state of its CUDA part.
    pub cuda: CudaPart,
}

/// Whether the CUDA part of libtorch is loaded, and if not, why.
#[derive(Debug)]
pub enum CudaPart {
    /// `libtorch_cuda.so` is loaded; its kernels are registered.
    Opened {
        /// Time that loading took.
        took: Duration,
    },
    /// No `libcuda.so.1`: a machine without a GPU, or without its driver.
    NoDriver,
    /// There is a driver, but this libtorch is a CPU build.
    NotShipped,
    /// Both exist, but the library cannot be opened; the text is the loader's message.
    Failed(String),
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Prepares libtorch; must be called in `main` before anything else uses it. If `FT_LIBTORCH` names another libtorch
/// than the loaded one, the program is restarted with it. Fails if the loaded version does not fit.
pub fn start() -> Result<&'static Runtime> {
    check_cpu_limit().map_err(Error::user)?;
    let loaded = loaded_libtorch()?;
    if let Some(folder) = std::env::var_os("FT_LIBTORCH").filter(|folder| !folder.is_empty()) {
        switch_to(Path::new(&folder), &loaded)?;
    }
    if loaded.fits() == Some(false) {
        return Err(Error::user(format!(
            "{} is libtorch {}, but this ft needs {SERIES}",
            loaded.root.display(),
            loaded.version_text()
        ))
        .hint(format!("set FT_LIBTORCH to the folder of a libtorch or PyTorch {SERIES}; `make setup` fetches one")));
    }
    let_segments_grow();
    let_products_have_an_order();
    let cuda = open_cuda(&loaded.lib);
    limit_threads();
    limit_compiled_products();
    Ok(RUNTIME.get_or_init(|| Runtime { libtorch: loaded, cuda }))
}

/// Makes a closed pipe (`ft … | head`) end the program quietly instead of with a panic. Called in `main`.
pub fn end_on_closed_pipe() {
    // SAFETY: the default action of a signal, set before any other thread runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Makes writing to a closed pipe an error instead of the end of the process. Needed while talking to a command of the
/// user (one that scores answers), which may end at any time.
pub fn survive_broken_pipes() {
    // SAFETY: changes how a signal is taken, and nothing else.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Returns what [`start`] found; panics if it was not called.
pub fn get() -> &'static Runtime {
    RUNTIME.get().expect("main calls runtime::start first")
}

/// Returns the libtorch whose `libtorch_cpu.so` the loader mapped into this process.
fn loaded_libtorch() -> Result<Libtorch> {
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
        // SAFETY: the loader passes a valid record with a NUL-terminated name, and `found` is the Option below.
        let (name, found) = unsafe { (CStr::from_ptr((*info).dlpi_name), &mut *found.cast::<Option<PathBuf>>()) };
        let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        if path.file_name().is_some_and(|file| file == LIBRARY) {
            *found = Some(path.to_path_buf());
        }
        found.is_some().into()
    }
    let mut path: Option<PathBuf> = None;
    // SAFETY: `visit` has the signature asked for and only runs during this call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut path).cast()) };
    path.as_deref()
        .and_then(Path::parent)
        .and_then(Libtorch::at)
        .ok_or_else(|| Error::bug(format!("{LIBRARY} is not among the libraries that this process loaded")))
}

/// Restarts the program with the libtorch of `folder` first in the loader's path. Returns if that libtorch is loaded
/// already; fails if there is none, or if the restart did not help.
fn switch_to(folder: &Path, loaded: &Libtorch) -> Result<()> {
    let asked = Libtorch::at(folder).ok_or_else(|| {
        Error::user(format!("FT_LIBTORCH={}: no {LIBRARY} there", folder.display()))
            .hint("set it to the folder that holds lib/libtorch_cpu.so, e.g. site-packages/torch, or unset it")
    })?;
    if asked.lib == loaded.lib {
        return Ok(());
    }
    if std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default()).next().as_ref()
        == Some(&asked.lib)
    {
        return Err(Error::user(format!(
            "FT_LIBTORCH={} asks for {}, but the loader took {}",
            folder.display(),
            asked.lib.display(),
            loaded.lib.display()
        ))
        .hint("LD_PRELOAD or an RPATH may override it: `LD_DEBUG=libs ft --version` shows what the loader does"));
    }
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new("/proc/self/exe");
    again.arg0(arguments.next().unwrap_or_else(|| "ft".into()));
    let failed = again.args(arguments).env("LD_LIBRARY_PATH", library_path(&asked.lib)).exec();
    Err(Error::user(format!("restarting with {}: {failed}", asked.lib.display()))
        .hint(format!("start ft with LD_LIBRARY_PATH={} instead", asked.lib.display())))
}

/// Limits libtorch's threads to the number of cores and the quota of the control group. By default libtorch starts one
/// thread per logical processor, and the surplus ones only wait for each other. A number in OMP_NUM_THREADS is
/// respected.
///
/// The number is set even if it does not change: once a number was set, MKL chooses other kernels, which changes the
/// last bits of float32 products with AVX2. `ft replay` sets the recorded number, and must get the bits that the run
/// got.
fn limit_threads() {
    let threads = tch::get_num_threads();
    tch::set_num_threads(match std::env::var_os("OMP_NUM_THREADS") {
        Some(_) => threads,
        None => threads.min(Cpu::read().threads() as i32),
    });
}

/// Limits the caches of compiled matrix products. oneDNN caches a compiled product for each shape, and libtorch caches
/// 1,024 more on top of it. Packed rows differ in length, so in a long run these caches would grow to hundreds of
/// megabytes. A step has fewer shapes than the 160 that oneDNN keeps here, and the second cache saves no time. Values
/// that the user set are respected.
fn limit_compiled_products() {
    for (name, capacity) in [("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "160"), ("LRU_CACHE_CAPACITY", "1")] {
        if std::env::var_os(name).is_none() {
            // SAFETY: called from `start`, before another thread of ours exists; both are read at the first product.
            unsafe { std::env::set_var(name, capacity) };
        }
    }
}

/// The variable from which libtorch's CUDA allocator takes its settings, and its older name.
const ALLOCATOR_SETTINGS: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];

/// Lets libtorch's CUDA allocator enlarge its blocks of memory in place. Packed rows differ in length, so that blocks of
/// fixed sizes would soon leave gaps too small for the next row, and memory would run out although much is free. Must
/// run before `libtorch_cuda.so` is loaded. Settings of the user are respected.
fn let_segments_grow() {
    if allocator_is_unset(|name| std::env::var_os(name).is_some()) {
        // SAFETY: called from `start`, before another thread of ours exists.
        unsafe { std::env::set_var(ALLOCATOR_SETTINGS[0], "expandable_segments:True") };
    }
}

/// Gives cuBLAS buffers with which the order of its sums does not depend on what else the GPU computes. A run with
/// `run.deterministic` needs that, but the variable is read before a recipe is. On GPUs before Hopper they are larger than
/// libtorch's own choice, 32 MiB instead of 8. A value of the user is respected.
fn let_products_have_an_order() {
    if std::env::var_os("CUBLAS_WORKSPACE_CONFIG").is_none() {
        // SAFETY: called from `start`, before another thread of ours exists.
        unsafe { std::env::set_var("CUBLAS_WORKSPACE_CONFIG", ":4096:8") };
    }
}

fn allocator_is_unset(is_set: impl Fn(&str) -> bool) -> bool {
    !ALLOCATOR_SETTINGS.into_iter().any(is_set)
}

/// Opens `libtorch_cuda.so` of the loaded libtorch. This takes 0.1 to 0.2 s, so it is done only if a driver is present.
fn open_cuda(lib: &Path) -> CudaPart {
    if !has_cuda_driver() {
        return CudaPart::NoDriver;
    }
    let path = lib.join("libtorch_cuda.so");
    if !path.is_file() {
        return CudaPart::NotShipped;
    }
    let began = Instant::now();
    match open_library(path.as_os_str().as_bytes(), libc::RTLD_NOW | libc::RTLD_GLOBAL) {
        Ok(_) => CudaPart::Opened { took: began.elapsed() },
        Err(why) => CudaPart::Failed(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocator_settings_of_the_user_are_kept_under_both_names() {
        assert!(allocator_is_unset(|_| false));
        for name in ALLOCATOR_SETTINGS {
            assert!(!allocator_is_unset(|set| set == name), "{name}");
        }
    }
}
