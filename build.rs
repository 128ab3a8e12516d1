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
    // Not the folder native/cuda: those files are text in the Rust code.
    let files = std::fs::read_dir("native").unwrap_or_else(|e| fail(&format!("native: {e}"))).flatten();
    for file in files.map(|file| file.path()).filter(|path| path.is_file()) {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let libtorch = locate();
    // A library is linked before those whose functions it calls.
    let mut libraries = vec![shim(&libtorch), dispatch(&libtorch)];
    // A level may call functions of a lower one.
    libraries.extend(levels().iter().rev().map(kernels));
    compile(&mut libraries);
    link(&libtorch);
}

/// Returns the folder of a library and of its object files, whose names do not depend on its flags.
fn folder_of(library: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join(library)
}

/// Compiles static libraries (name, files and flags), as many at a time as cargo runs jobs: each has a single long file.
fn compile(libraries: &mut [(String, cc::Build)]) {
    for (name, build) in &mut *libraries {
        build.out_dir(folder_of(name));
    }
    let libraries = &*libraries;
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((name, build)) = libraries.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    build.compile(name);
                }
            });
        }
    });
    for (name, _) in libraries {
        println!("cargo:rustc-link-search=native={}", folder_of(name).display());
        println!("cargo:rustc-link-lib=static={name}");
    }
    println!("cargo:rustc-link-lib=stdc++");
    // The OpenMP that libtorch uses, so that both share one pool of threads.
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
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

/// Returns the build of the bindings of libtorch, and of the allocator.
fn shim(libtorch: &Libtorch) -> (String, cc::Build) {
    let mut build = over_libtorch(libtorch);
    build.files(["native/shim.cpp", "native/allocator.cpp", "native/graph.cpp"]);
    ("ftshim".into(), build)
}

/// An instruction set: a row of the table in native/isa.h.
struct Level {
    name: String,
    vector_bytes: String,
    flags: Vec<String>,
}

/// Returns the instruction sets that this architecture has builds for.
fn levels() -> Vec<Level> {
    let table = std::fs::read_to_string("native/isa.h").unwrap_or_else(|e| fail(&format!("native/isa.h: {e}")));
    let row = |line: &str| {
        let mut fields = line.trim().strip_prefix("X(")?.split(',').map(str::trim);
        let (name, bytes, flags) = (fields.next()?, fields.next()?, fields.next()?);
        let flags = flags.trim_matches('"').split_whitespace().map(String::from).collect();
        Some(Level { name: name.into(), vector_bytes: bytes.into(), flags })
    };
    let levels = table.lines().filter_map(row);
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64");
    // The first one is portable.
    levels.take(if x86 { usize::MAX } else { 1 }).collect()
}

fn native_build() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).pic(true).warnings(false).std("c++17").opt_level(3).cargo_metadata(false);
    build
}

/// Returns a build that includes libtorch's headers.
fn over_libtorch(libtorch: &Libtorch) -> cc::Build {
    let mut build = native_build();
    build
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(libtorch.root.join("include"))
        .include(libtorch.root.join("include/torch/csrc/api/include"));
    build
}

/// Returns the build of the kernels for an instruction set.
fn kernels(level: &Level) -> (String, cc::Build) {
    let mut build = native_build();
    let files = ["kernels", "merge", "product", "quantised", "quantised_product"];
    build.files(files.map(|file| format!("native/{file}.cpp")));
    build.define("FT_ISA", level.name.as_str()).define("FT_BYTES", level.vector_bytes.as_str());
    // Vectors wider than a register are only arguments of functions that are inlined.
    let all = ["-Wno-psabi", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"];
    for flag in all.into_iter().chain(level.flags.iter().map(String::as_str)) {
        build.flag(flag);
    }
    (format!("ftkernels_{}", level.name), build)
}

/// Returns the build of the code that chooses among the builds of the kernels at run time and calls them on tensors, on
/// libtorch's own OpenMP threads.
fn dispatch(libtorch: &Libtorch) -> (String, cc::Build) {
    let mut build = over_libtorch(libtorch);
    build.flag("-fopenmp").files(["native/decode.cpp", "native/dispatch.cpp", "native/isa.cpp"]);
    ("ftdispatch".into(), build)
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
