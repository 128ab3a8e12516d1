//! Compares the CUDA kernels of native/cuda/ with libtorch's operations, on the CPU: the stand-ins of tests/fake_cuda
//! run the kernels' own text, launched by ft's own code. A kernel runs twice, the second time with its threads in
//! reverse order: other bits would be a data race on a GPU. Where NVRTC is there, the kernels are also compiled for
//! GPUs.

mod casts;
mod compiling;
mod low_rank;
mod operations;

use crate::support::device;
use ft::native::cuda::{Kernels, Toolkit};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

const KINDS: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

/// Returns the allowed gap, relative to the largest number: float32 adds up to thousands of numbers in another order;
/// the narrow formats round twice at most, by half a step each.
fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::Float => 4e-6,
        Kind::BFloat16 => 8e-3,
        _ => 1e-3,
    }
}

/// Builds the stand-ins for the driver and NVRTC, once; returns their library.
fn stand_ins() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_kernels");
        std::fs::create_dir_all(&folder).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda");
        let compile = |compiler: &str, options: &[&str], file: &str, object: String| {
            let object = folder.join(object);
            let mut run = Command::new(compiler);
            run.args(options).args(["-fPIC", "-w", "-c"]).arg(source.join(file)).arg("-o").arg(&object);
            assert!(run.status().unwrap().success(), "{file} does not compile");
            object
        };
        let mut objects = vec![
            compile("gcc", &["-O1"], "driver.c", "driver.o".into()),
            compile("g++", &["-std=c++17", "-O1"], "launches.cpp", "launches.o".into()),
        ];
        for number in 0..3 {
            let define = format!("-DFT_NUMBER={number}");
            let options = ["-std=c++17", "-O2", "-ffp-contract=off", &define];
            objects.push(compile("g++", &options, "kernels.cpp", format!("kernels{number}.o")));
        }
        let library = folder.join(format!("libcuda-{}.so", std::process::id()));
        let linked = Command::new("g++").arg("-shared").args(&objects).arg("-o").arg(&library).arg("-ldl").status();
        assert!(linked.unwrap().success());
        library
    })
}

fn toolkit(cache: Option<&Path>) -> Toolkit {
    device();
    let driver = CString::new(stand_ins().as_os_str().as_bytes()).unwrap();
    Toolkit::open(&[stand_ins().into()], &driver, cache.map(PathBuf::from)).unwrap()
}

fn kernels(kind: Kind) -> Kernels {
    toolkit(None).kernels(0, kind).unwrap()
}

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// Returns the same numbers at an address that no pack of numbers may have.
fn displaced(t: &Tensor) -> Tensor {
    let room = Tensor::zeros([t.numel() as i64 + 1], (t.kind(), Device::Cpu));
    let part = room.narrow(0, 1, t.numel() as i64).view(t.size().as_slice());
    part.shallow_clone().copy_(t);
    part
}

#[track_caller]
fn near(what: &str, found: &Tensor, expected: &Tensor, most: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let expected = expected.to_kind(Kind::Double);
    let scale = expected.abs().max().double_value(&[]).max(1e-3);
    let gap = (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / scale;
    assert!(gap <= most, "{what}: gap {gap:e}, allowed {most:e}");
}

/// Runs a computation twice, with the threads of its kernels in both orders. Returns its results.
#[track_caller]
fn in_both_orders<const N: usize>(compute: impl Fn() -> [Tensor; N]) -> [Tensor; N] {
    let (first, second) = (compute(), compute());
    for (i, (a, b)) in first.iter().zip(&second).enumerate() {
        assert!(a.equal(b), "result {i} depends on the order of threads");
    }
    first
}

/// Runs `check` for each dtype with tensors whose rows can and cannot be read in packs.
fn for_each_kind(check: impl Fn(&Kernels, Kind, &dyn Fn(&Tensor) -> Tensor)) {
    tch::manual_seed(11);
    for kind in KINDS {
        let k = kernels(kind);
        check(&k, kind, &Tensor::shallow_clone);
        check(&k, kind, &displaced);
    }
}
