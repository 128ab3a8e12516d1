//! The libtorch this process runs on: which one is loaded, whether it is the one asked for, and its CUDA part.
//!
//! The binary is linked against `libtorch_cpu` and `libc10` alone, so that it starts on any machine. Where a driver
//! and `libtorch_cuda.so` exist, [`start`] opens the latter before anybody asks libtorch about CUDA: libtorch looks
//! for its CUDA part once and remembers the answer for the life of the process.

use crate::error::{Error, Result};
use crate::libtorch::{LIBRARY, Libtorch, SERIES, library_path};
use crate::machine::{Cpu, check_limit, driver_present, open_library};
use std::ffi::{CStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What [`start`] found; `ft doctor` shows it.
#[derive(Debug)]
pub struct Runtime {
    pub libtorch: Libtorch,
    pub cuda: CudaPart,
}

/// The CUDA part of libtorch, and why it is missing where it is.
#[derive(Debug)]
pub enum CudaPart {
    /// `libtorch_cuda.so` is loaded; its kernels are registered.
    Opened { took: Duration },
    /// No `libcuda.so.1`: a machine without a GPU, or without its driver.
    NoDriver,
    /// A driver, but a libtorch for the CPU alone.
    NotShipped,
    /// Both are there, and the loader said why it cannot open the library.
    Failed(String),
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Called first in `main`, before anything else touches libtorch. Starts the program again beside the libtorch in
/// `FT_LIBTORCH` where another one was loaded.
pub fn start() -> Result<&'static Runtime> {
    check_limit().map_err(Error::user)?;
    let loaded = loaded()?;
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
    let cuda = open_cuda(&loaded.lib);
    limit_threads();
    limit_compiled_products();
    Ok(RUNTIME.get_or_init(|| Runtime { libtorch: loaded, cuda }))
}

/// Called in `main`: a closed pipe (`ft … | head`) ends the program quietly instead of with a panic.
pub fn end_on_closed_pipe() {
    // SAFETY: the default action of a signal, set before any other thread runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// From here on a broken pipe is an error where it is written to, and no end of the process: a command that judges
/// answers may die while it is talked to.
pub fn survive_broken_pipes() {
    // SAFETY: changes how a signal is taken, and nothing else.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// What [`start`] found.
pub fn get() -> &'static Runtime {
    RUNTIME.get().expect("main calls runtime::start first")
}

/// The `libtorch_cpu.so` that the loader mapped into this process.
fn loaded() -> Result<Libtorch> {
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

/// Runs the program again with `folder` in front of the loader's path; returns only where it is loaded already.
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
        .hint("is LD_PRELOAD or an RPATH in the way? `LD_DEBUG=libs ft --version` shows what the loader does"));
    }
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new("/proc/self/exe");
    again.arg0(arguments.next().unwrap_or_else(|| "ft".into()));
    let failed = again.args(arguments).env("LD_LIBRARY_PATH", library_path(&asked.lib)).exec();
    Err(Error::user(format!("starting again beside {}: {failed}", asked.lib.display()))
        .hint(format!("start ft with LD_LIBRARY_PATH={} instead", asked.lib.display())))
}

/// libtorch starts a thread for every logical processor; more than there are cores or than the control group grants
/// only wait for each other. OMP_NUM_THREADS, the usual way to choose, is left alone.
///
/// The number is set even where it stays: that one was set at all changes which of its kernels MKL takes, and so the last bits
/// of float32 products with AVX2. A replay sets the number that is on record, and must compute what the run computed.
fn limit_threads() {
    let threads = tch::get_num_threads();
    tch::set_num_threads(match std::env::var_os("OMP_NUM_THREADS") {
        Some(_) => threads,
        None => threads.min(Cpu::read().threads() as i32),
    });
}

/// oneDNN keeps every matrix product that it compiled, one for each shape, and libtorch's layer over it keeps 1,024 of
/// its own: packed rows differ in length, so that a long run would gather hundreds of megabytes of them. A step meets
/// fewer shapes than oneDNN keeps here; the second cache saves no time. What the user set stays.
fn limit_compiled_products() {
    for (name, capacity) in [("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "160"), ("LRU_CACHE_CAPACITY", "1")] {
        if std::env::var_os(name).is_none() {
            // SAFETY: called from `start`, before another thread of ours exists; both are read at the first product.
            unsafe { std::env::set_var(name, capacity) };
        }
    }
}

/// Opens `libtorch_cuda.so` beside the loaded libtorch; takes 0.1 to 0.2 s, so only where a driver is present.
fn open_cuda(lib: &Path) -> CudaPart {
    if !driver_present() {
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
