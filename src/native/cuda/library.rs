//! The functions of the CUDA driver and of NVRTC that are used here, looked up in their libraries at run time: ft is
//! built without CUDA's headers and starts on machines without CUDA.

use crate::machine::open_library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An opaque pointer of the driver: a context, a module, a function or a stream.
pub(super) type Handle = *mut c_void;

/// Declares a table of a library's functions, each of which returns 0 or an error code.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($name:ident = $symbol:literal($($argument:ty),*);)* }) => {
        $(#[$doc])*
        pub(super) struct $table {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl $table {
            /// Looks up the functions in a library. Fails if one is missing.
            fn find(library: *mut c_void) -> Result<Self, String> {
                Ok(Self {
                    // SAFETY: the signatures are those of the library's documentation.
                    $($name: unsafe { std::mem::transmute::<*mut c_void, _>(symbol(library, $symbol)?) },)*
                })
            }
        }
    };
}

functions! {
    /// The CUDA driver.
    Driver {
        init = c"cuInit"(c_uint);
        device = c"cuDeviceGet"(*mut c_int, c_int);
        attribute = c"cuDeviceGetAttribute"(*mut c_int, c_int, c_int);
        retain_context = c"cuDevicePrimaryCtxRetain"(*mut Handle, c_int);
        current_context = c"cuCtxGetCurrent"(*mut Handle);
        push_context = c"cuCtxPushCurrent_v2"(Handle);
        pop_context = c"cuCtxPopCurrent_v2"(*mut Handle);
        load = c"cuModuleLoadData"(*mut Handle, *const c_void);
        function = c"cuModuleGetFunction"(*mut Handle, Handle, *const c_char);
        launch = c"cuLaunchKernel"(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        );
        error_text = c"cuGetErrorString"(c_int, *mut *const c_char);
    }
}

functions! {
    /// NVRTC, the compiler.
    Nvrtc {
        version = c"nvrtcVersion"(*mut c_int, *mut c_int);
        arch_count = c"nvrtcGetNumSupportedArchs"(*mut c_int);
        archs = c"nvrtcGetSupportedArchs"(*mut c_int);
        create = c"nvrtcCreateProgram"(
            *mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        );
        compile = c"nvrtcCompileProgram"(Handle, c_int, *const *const c_char);
        log_size = c"nvrtcGetProgramLogSize"(Handle, *mut usize);
        log = c"nvrtcGetProgramLog"(Handle, *mut c_char);
        cubin_size = c"nvrtcGetCUBINSize"(Handle, *mut usize);
        cubin = c"nvrtcGetCUBIN"(Handle, *mut c_char);
        ptx_size = c"nvrtcGetPTXSize"(Handle, *mut usize);
        ptx = c"nvrtcGetPTX"(Handle, *mut c_char);
        destroy = c"nvrtcDestroyProgram"(*mut Handle);
    }
}

/// Looks up a symbol. Fails if the library lacks it.
fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: an open library and a NUL-terminated name.
    let at = unsafe { libc::dlsym(library, name.as_ptr()) };
    if at.is_null() { Err(format!("a library with {}", name.to_string_lossy())) } else { Ok(at) }
}

impl Driver {
    /// Opens the driver's library.
    pub fn open(name: &CStr) -> Result<Self, String> {
        let library = open_library(name.to_bytes(), libc::RTLD_NOW | libc::RTLD_LOCAL)
            .map_err(|why| format!("the NVIDIA driver ({why})"))?;
        Self::find(library)
    }

    /// Turns a code of the driver into a result; the error has its text.
    pub fn check(&self, code: c_int, doing: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: writes a pointer to a constant string, or null for an unknown code.
        unsafe { (self.error_text)(code, &mut text) };
        // SAFETY: as above.
        let text = if text.is_null() { "unknown".into() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy() };
        Err(format!("{doing}: CUDA error {code} ({text})"))
    }
}

impl Nvrtc {
    /// Opens the first of these libraries that can be opened. A path without a folder is left to the loader's search.
    pub fn open(places: &[PathBuf]) -> Result<Self, String> {
        let mut last = String::from("no place to look");
        for path in places {
            let in_folder = path.parent().is_some_and(|folder| !folder.as_os_str().is_empty());
            if in_folder && !path.exists() {
                continue;
            }
            open_builtins(path);
            match open_library(path.as_os_str().as_bytes(), libc::RTLD_NOW | libc::RTLD_LOCAL) {
                Ok(library) => return Self::find(library),
                Err(why) => last = why,
            }
        }
        Err(format!("CUDA's run-time compiler, NVRTC: pip's nvidia-cuda-nvrtc or the CUDA toolkit has it ({last})"))
    }
}

/// Opens the library beside NVRTC that it opens by name alone, which the loader finds in an unusual folder only if it
/// is open already. Without it compilation fails, with a message that names it.
fn open_builtins(nvrtc: &Path) {
    let entries = nvrtc.parent().into_iter().flat_map(std::fs::read_dir).flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("libnvrtc-builtins.so") {
            let _ = open_library(path.as_os_str().as_bytes(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        }
    }
}
