//! Compiles the C++ shim against libtorch and sets the run path, so that a plain `cargo build` gives a binary that starts.

use std::{env, path::PathBuf};

fn main() {
    let libtorch = locate();
    compile_shim(&libtorch);
    link(&libtorch);
}

/// The libtorch folder (holding include/ and lib/), from LIBTORCH; `.cargo/config.toml` points it at the one `make setup` unpacks.
fn locate() -> PathBuf {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let folder = PathBuf::from(env::var_os("LIBTORCH").expect("LIBTORCH is not set: run `make setup`"));
    assert!(folder.join("include/ATen/ATen.h").exists(), "no libtorch in {}: run `make setup`", folder.display());
    folder.canonicalize().expect("LIBTORCH is a folder")
}

fn compile_shim(libtorch: &std::path::Path) {
    println!("cargo:rerun-if-changed=native/shim.cpp");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .opt_level(3)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .file("native/shim.cpp")
        .compile("ftshim");
}

fn link(libtorch: &std::path::Path) {
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
