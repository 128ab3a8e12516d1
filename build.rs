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
    link(&libtorch);
}

/// `LIBTORCH` from the environment, else from .cargo/config.toml: what `make setup` unpacked.
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

/// The runpath is searched after LD_LIBRARY_PATH, so another libtorch can be put in front of the one built against.
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
