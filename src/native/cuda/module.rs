//! Compiled kernels loaded on a device, and their launch.

use super::compiler::Compiler;
use super::kernels::{Kernel, Kernels};
use super::library::{Driver, Handle};
use crate::fsutil::{self, FileAccess};
use crate::native;
use crate::report;
use sha2::{Digest, Sha256};
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::io::Write;
use std::path::PathBuf;
use tch::{Device, Kind};

/// The compiler, the driver, and the folder of compiled kernels. Its errors complete the sentence "ft's kernels
/// need …".
pub struct Toolkit {
    compiler: Compiler,
    driver: &'static Driver,
    cache: Option<PathBuf>,
}

impl Toolkit {
    /// Opens NVRTC, at the first of the given places that has it, and the driver's library. Compiled kernels are kept
    /// in the folder `cache`; `None`: nowhere.
    pub fn open(nvrtc: &[PathBuf], driver: &CStr, cache: Option<PathBuf>) -> Result<Self, String> {
        let compiler = Compiler::open(nvrtc)?;
        let driver: &'static Driver = Box::leak(Box::new(Driver::open(driver)?));
        // SAFETY: plain call.
        driver.check(unsafe { (driver.init)(0) }, "a driver that starts")?;
        Ok(Self { compiler, driver, cache })
    }

    /// Returns the kernels of a device (by number) for tensors of dtype `kind`: from the cache, or compiled, which
    /// takes seconds.
    pub fn kernels(&self, device: usize, kind: Kind) -> Result<Kernels, String> {
        let driver = self.driver;
        let (mut ordinal, mut major, mut minor, mut context) = (0, 0, 0, std::ptr::null_mut());
        // SAFETY: the results have room for what is written. 75 and 76 are the halves of the compute capability. The
        // primary context is the one that libtorch uses; it is kept until the process ends.
        unsafe {
            driver.check((driver.device)(&mut ordinal, device as c_int), "the device")?;
            driver.check((driver.attribute)(&mut major, 75, ordinal), "the device's compute capability")?;
            driver.check((driver.attribute)(&mut minor, 76, ordinal), "the device's compute capability")?;
            driver.check((driver.retain_context)(&mut context, ordinal), "a context of the device")?;
        }
        let target = self.compiler.target(10 * major + minor)?;
        let path = self.cache.as_ref().map(|folder| {
            let hash = Sha256::digest(self.compiler.key(target, kind));
            folder.join(format!("{}.kernels", fsutil::hex(&hash[..16])))
        });
        let kept = path.as_ref().and_then(|path| std::fs::read(path).ok());
        // A damaged file is compiled again.
        if let Some(module) = kept.and_then(|image| Module::load(driver, context, &image).ok()) {
            return Ok(Kernels::new(module, kind));
        }
        let (image, _) = self.compiler.compile(target, kind)?;
        if let Some((path, folder)) = path.as_ref().and_then(|path| Some((path, path.parent()?))) {
            let stored = fsutil::create_private_dir(folder)
                .and_then(|()| fsutil::write_atomic_for(FileAccess::OwnerOnly, path, |w| w.write_all(&image)));
            if let Err(e) = stored {
                report::warn_once(format!("compiled CUDA kernels are not kept: {}", e.message()));
            }
        }
        Ok(Kernels::new(Module::load(driver, context, &image)?, kind))
    }
}

/// The kernels of one number format on one device.
pub(super) struct Module {
    driver: &'static Driver,
    context: Handle,
    functions: [Handle; Kernel::ALL.len()],
}

// SAFETY: contexts and functions of the driver may be used by any thread.
unsafe impl Send for Module {}
unsafe impl Sync for Module {}

/// A value passed to a kernel.
#[derive(Clone, Copy)]
pub(super) enum Argument<'a> {
    Pointer(*mut c_void),
    Long(i64),
    Int(i32),
    Float(f32),
    /// The bytes of a struct with the kernel's layout.
    Struct(&'a dyn std::any::Any),
}

impl Module {
    /// Loads compiled kernels. Fails for an image that is damaged or made for another device.
    fn load(driver: &'static Driver, context: Handle, image: &[u8]) -> Result<Self, String> {
        // The driver reads text up to a NUL, and needs an aligned image.
        let mut aligned = vec![0u64; image.len() / 8 + 1];
        // SAFETY: the target has room for the image; it is plain memory.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), aligned.as_mut_ptr().cast::<u8>(), image.len()) };
        let _current = CurrentContext::set(driver, context)?;
        let (mut module, mut functions) = (std::ptr::null_mut(), [std::ptr::null_mut(); Kernel::ALL.len()]);
        // SAFETY: the image is complete; results have room for a handle; the module is never unloaded.
        unsafe {
            driver.check((driver.load)(&mut module, aligned.as_ptr().cast()), "a module that the driver loads")?;
            for (function, kernel) in functions.iter_mut().zip(Kernel::ALL) {
                driver.check((driver.function)(function, module, kernel.name().as_ptr()), "a complete module")?;
            }
        }
        Ok(Self { driver, context, functions })
    }

    /// Runs `blocks` blocks of a kernel on the current stream of `device`, after what is queued there. Does not wait.
    /// Panics if the driver refuses, as libtorch's own operations do.
    pub fn launch(&self, kernel: Kernel, blocks: i64, device: Device, arguments: &[Argument]) {
        let blocks = c_uint::try_from(blocks).expect("a kernel has fewer than 2^31 blocks");
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::address).collect();
        let stream = native::current_stream(device).expect("a device has a current stream");
        let launched = CurrentContext::set(self.driver, self.context).and_then(|_current| {
            // SAFETY: the arguments have the kernel's types (`Kernels`, tested for each) and outlive the call, which
            // copies them.
            let code = unsafe {
                let (function, threads) = (self.functions[kernel as usize], kernel.threads());
                let none = std::ptr::null_mut();
                (self.driver.launch)(function, blocks, 1, 1, threads, 1, 1, 0, stream, pointers.as_mut_ptr(), none)
            };
            self.driver.check(code, &kernel.name().to_string_lossy())
        });
        launched.unwrap_or_else(|why| panic!("launching {why}"));
    }
}

impl Argument<'_> {
    /// Returns where the value lies, for the driver.
    fn address(&self) -> *mut c_void {
        match self {
            Self::Pointer(p) => (p as *const *mut c_void).cast_mut().cast(),
            Self::Long(n) => (n as *const i64).cast_mut().cast(),
            Self::Int(n) => (n as *const i32).cast_mut().cast(),
            Self::Float(x) => (x as *const f32).cast_mut().cast(),
            Self::Struct(s) => (*s as *const dyn std::any::Any).cast_mut().cast(),
        }
    }
}

/// Makes a context the thread's current one until it is dropped. libtorch's own threads have theirs set already, unless
/// their first operation is one of ours.
struct CurrentContext(Option<&'static Driver>);

impl CurrentContext {
    fn set(driver: &'static Driver, context: Handle) -> Result<Self, String> {
        let mut current = std::ptr::null_mut();
        // SAFETY: the result has room for a handle; the context is valid until the process ends.
        unsafe {
            driver.check((driver.current_context)(&mut current), "the thread's context")?;
            if current == context {
                return Ok(Self(None));
            }
            driver.check((driver.push_context)(context), "a context for the thread")?;
        }
        Ok(Self(Some(driver)))
    }
}

impl Drop for CurrentContext {
    fn drop(&mut self) {
        if let Some(driver) = self.0 {
            let mut before = std::ptr::null_mut();
            // SAFETY: takes away the context that `set` pushed.
            unsafe { (driver.pop_context)(&mut before) };
        }
    }
}
