//! Finds the libtorch to build against, compiles the C++ shim over it, and links with an rpath to it.

#[path = "src/libtorch.rs"]
#[allow(dead_code)]
mod libtorch;

use libtorch::{Libtorch, SERIES};
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/libtorch.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = locate();
    compile_shim(&libtorch);
    compile_decoding(&libtorch);
    compile_kernels();
    link(&libtorch);
}

/// Returns the libtorch in `LIBTORCH`: from the environment, else from .cargo/config.toml, which names the one that
/// `make setup` unpacked. Ends the build if there is none or its version does not fit.
fn locate() -> Libtorch {
    let folder = std::env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_else(|| PathBuf::from(".libtorch/torch"));
    let Some(libtorch) = Libtorch::at(&folder) else {
        fail(&format!(
            "no libtorch in {} (LIBTORCH): run `make setup`, or set LIBTORCH to a libtorch {SERIES}",
            folder.display()
        ));
    };
    if libtorch.fits() == Some(false) {
        let (root, version) = (libtorch.root.display(), libtorch.version_text());
        fail(&format!(
            "LIBTORCH={root} is libtorch {version}, but {SERIES} is needed: unset LIBTORCH and run `make setup`"
        ));
    }
    libtorch
}

fn compile_shim(libtorch: &Libtorch) {
    println!("cargo:rerun-if-changed=native");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .opt_level(3)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(libtorch.root.join("include"))
        .include(libtorch.root.join("include/torch/csrc/api/include"))
        .files(["native/shim.cpp", "native/allocator.cpp"])
        .compile("ftshim");
}

/// Compiles the matrix products of decoding, one object per level of native/isa.h to choose from at run time, and the
/// code that calls them on tensors, on libtorch's own OpenMP threads.
fn compile_decoding(libtorch: &Libtorch) {
    let plain = || {
        let mut build = cc::Build::new();
        build.cpp(true).pic(true).warnings(false).std("c++17").opt_level(3);
        build
    };
    let product = |isa: &str, bytes: &str, flags: &[&str]| {
        let mut build = plain();
        build.file("native/product.cpp").define("FT_ISA", isa).define("FT_BYTES", bytes);
        flags.iter().for_each(|flag| {
            build.flag(flag);
        });
        build.compile(&format!("ftproduct_{isa}"));
    };
    plain()
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(libtorch.root.join("include"))
        .include(libtorch.root.join("include/torch/csrc/api/include"))
        .flag("-fopenmp")
        .file("native/decode.cpp")
        .compile("ftdecode");
    product("portable", "16", &[]);
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        let wide = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"];
        product("avx2", "32", &["-mavx2", "-mfma"]);
        product("avx512", "64", &wide);
        product("avx512_bf16", "64", &[&wide[..], &["-mavx512bf16"]].concat());
        product("amx", "64", &[&wide[..], &["-mavx512bf16", "-mamx-tile", "-mamx-bf16"]].concat());
    }
}

/// Compiles the elementwise loops, once per instruction set; the one to run is chosen at run time.
fn compile_kernels() {
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|a| a == "x86_64");
    let builds: &[(&str, &[&str])] = if x86 {
        &[
            ("portable", &[]),
            ("avx2", &["-march=x86-64-v3"]),
            ("avx512", &["-march=x86-64-v4", "-mprefer-vector-width=512"]),
        ]
    } else {
        &[("portable", &[])]
    };
    for (isa, flags) in builds {
        let mut build = cc::Build::new();
        build.cpp(true).pic(true).std("c++17").opt_level(3).define("FT_ISA", *isa).file("native/kernels.cpp");
        for flag in
            ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"].iter().chain(*flags)
        {
            build.flag(flag);
        }
        build.compile(&format!("ftkernels_{isa}"));
    }
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .std("c++17")
        .opt_level(2)
        .flag("-fopenmp")
        .files(["native/dispatch.cpp", "native/isa.cpp"])
        .compile("ftdispatch");
    // The OpenMP that libtorch uses, so that both share one pool of threads.
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
}

/// Links libtorch, with a runpath. The loader searches a runpath after LD_LIBRARY_PATH, so the user can replace the
/// libtorch that ft was built against.
fn link(libtorch: &Libtorch) {
    println!("cargo:rustc-link-search=native={}", libtorch.lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{}", libtorch.lib.display());
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    std::process::exit(1)
}
