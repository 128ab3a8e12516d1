//! How the kernels are compiled, kept and loaded.

use super::{KINDS, near, random, stand_ins, toolkit};
use crate::support::needs::{NVRTC, needs, nvrtc};
use ft::native::cuda::{Compiler, Target, Toolkit};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use tch::Kind;

/// Compiled kernels are read from the cache; a damaged file is compiled again and replaced.
#[test]
fn compiled_kernels_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("kernels");
    let files = || -> Vec<PathBuf> {
        let mut found: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    let use_them = |kind| {
        let x = random(&[3, 8], kind);
        near("swiglu", &toolkit(Some(&cache)).kernels(0, kind).unwrap().swiglu(&x, &x), &(x.silu() * &x), 8e-3);
    };
    use_them(Kind::Float);
    assert_eq!(files().len(), 1);
    let (file, image) = (files()[0].clone(), std::fs::read(&files()[0]).unwrap());
    let marked = [&image[..image.len() - 1], b" kept\0"].concat();
    std::fs::write(&file, &marked).unwrap();
    use_them(Kind::Float);
    assert_eq!(std::fs::read(&file).unwrap(), marked, "the file is not written again");
    for damage in [&b""[..], b"\0", &image[..5]] {
        std::fs::write(&file, damage).unwrap();
        use_them(Kind::Float);
        assert_eq!(std::fs::read(&file).unwrap(), image);
    }
    use_them(Kind::BFloat16);
    assert_eq!(files().len(), 2, "one file for each format");
    // A folder that cannot be written is no reason to fail.
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    assert!(toolkit(Some(&blocked.join("kernels"))).kernels(0, Kind::Float).is_ok());
}

#[test]
fn what_is_missing_is_named() {
    let driver = CString::new(stand_ins().as_os_str().as_bytes()).unwrap();
    let why = |nvrtc: &[PathBuf], driver: &CString| Toolkit::open(nvrtc, driver, None).err().unwrap();
    assert!(why(&["/nonexistent/libnvrtc.so.13".into()], &driver).contains("NVRTC"));
    let no_driver = why(&[stand_ins().into()], &CString::new("/nonexistent/libcuda.so.1").unwrap());
    assert!(no_driver.contains("driver"), "{no_driver}");
    let compiler = Compiler::open(&[stand_ins().into()]).unwrap();
    assert_eq!(compiler.target(90), Ok(Target::Device(90)));
    assert_eq!(compiler.target(121), Ok(Target::Virtual(100)), "newer than the compiler: compiled by the driver");
    let old = compiler.target(61).unwrap_err();
    assert!(old.contains("6.1"), "{old}");
}

/// The real compiler accepts the kernels for the GPUs that are in use, and keeps everything in registers.
#[test]
fn nvrtc_compiles_every_kernel_without_spills() {
    needs!(NVRTC);
    let compiler = Compiler::open(&nvrtc()).unwrap();
    for capability in [80, 89, 90] {
        for kind in KINDS {
            let (image, log) = compiler.compile(Target::Device(capability), kind).unwrap();
            assert!(image.starts_with(b"\x7fELF") && image.len() > 10_000);
            let count = |text: &str| log.matches(text).count();
            assert!(!log.contains("warning"), "sm_{capability} {kind:?}: {log}");
            assert_eq!(count("Compiling entry function"), 12, "{log}");
            assert_eq!(count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"), 12, "{log}");
        }
    }
    let (ptx, _) = compiler.compile(Target::Virtual(80), Kind::BFloat16).unwrap();
    let ptx = String::from_utf8(ptx).unwrap();
    assert!(ptx.contains(".target sm_80"));
    // Eight numbers of two bytes are loaded and stored by one instruction.
    let body = ptx.split(".entry swiglu(").nth(1).unwrap().split(".entry").next().unwrap();
    assert!(body.contains("ld.global.v4") && body.contains("st.global.v4"), "{body}");
}
