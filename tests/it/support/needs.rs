//! Optional programs that some tests need in addition to the build tools: such a test begins with `needs!(BROWSER)`,
//! for example.
//!
//! Under `make test`, a test whose program is missing appends its name to the file that FT_TEST_SKIPPED names and
//! returns; setup/test.sh counts it as skipped and prints its name. Without that variable the test fails, so that no
//! run passes while tests are left out unnoticed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program or file that tests may need, and how to install it.
pub struct Tool {
    pub lacks: &'static str,
    pub get: &'static str,
    there: fn() -> bool,
}

pub const BROWSER: Tool = Tool {
    lacks: "Chromium or its driver is missing",
    get: "apt-get install chromium chromium-driver",
    there: || on_path("chromedriver") && (on_path("chromium") || on_path("google-chrome")),
};

pub const AXE: Tool = Tool {
    lacks: "axe-core is missing",
    get: "apt-get install npm && bash setup/tools.sh --tests",
    there: || axe().is_file(),
};

pub const POSTGRES: Tool = Tool {
    lacks: "PostgreSQL is missing",
    get: "apt-get install postgresql",
    there: || postgres("initdb").is_some() && postgres("postgres").is_some(),
};

pub const VENV: Tool = Tool {
    lacks: "Python's venv is missing",
    get: "apt-get install python3-venv",
    there: || Command::new("python3").args(["-c", "import ensurepip, venv"]).output().is_ok_and(|o| o.status.success()),
};

pub const SCRIPT: Tool =
    Tool { lacks: "`script` of util-linux is missing", get: "apt-get install bsdutils", there: || on_path("script") };

pub const LIMITS: Tool = Tool {
    lacks: "`prlimit` of util-linux is missing",
    get: "apt-get install util-linux",
    there: || on_path("prlimit"),
};

pub const NAMESPACES: Tool = Tool {
    lacks: "user namespaces are not allowed",
    get: "sysctl -w user.max_user_namespaces=10000",
    there: || {
        let command = ["sh", "{file}"].map(String::from);
        ft::sandbox::Sandbox::new(Default::default(), Default::default(), &command, "nothing.sh").is_ok()
    },
};

pub const NVRTC: Tool = Tool {
    lacks: "NVRTC, CUDA's run-time compiler, is missing",
    get: "python3 setup/wheels.py nvrtc",
    there: || nvrtc().iter().any(|path| path.is_file()),
};

pub const LLAMA_CPP: Tool = Tool {
    lacks: "llama.cpp (node-llama-cpp) is missing",
    get: "apt-get install npm && bash setup/tools.sh --tests",
    there: || on_path("node") && llama_cpp().join("node-llama-cpp/package.json").is_file(),
};

/// Returns the folder in which set-up puts llama.cpp as a package of Node.
pub fn llama_cpp() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/llama-cpp/node_modules")
}

pub const ONNX_RUNTIME: Tool = Tool {
    lacks: "ONNX Runtime is missing",
    get: "bash setup/tools.sh --tests",
    there: || {
        let mut python = Command::new("python3");
        python.args(["-c", "import onnxruntime"]).env("PYTHONPATH", onnx_runtime());
        python.output().is_ok_and(|output| output.status.success())
    },
};

/// Returns the folder in which set-up puts Python's onnxruntime.
pub fn onnx_runtime() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/onnxruntime")
}

/// Returns the places where set-up puts NVRTC: for tests, and as a part of CUDA's libraries.
pub fn nvrtc() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut places = vec![root.join("target/nvrtc"), root.join(".libtorch")];
    places.extend(std::env::var_os("LIBTORCH").and_then(|torch| Some(Path::new(&torch).parent()?.to_path_buf())));
    places.iter().map(|folder| folder.join("nvidia/cu13/lib/libnvrtc.so.13")).collect()
}

/// Returns from the calling test if one of these tools is missing.
macro_rules! needs {
    ($($tool:expr),+) => {
        if crate::support::needs::lacking(&[$(&$tool),+], std::any::type_name_of_val(&|| ())) {
            return;
        }
    };
}
pub(crate) use needs;

/// Returns false if all tools are present. Otherwise records the calling test as skipped and returns true; panics if
/// FT_TEST_SKIPPED is not set. `closure` is the type name of a closure inside the test, which contains the name of the
/// test.
pub fn lacking(tools: &[&Tool], closure: &str) -> bool {
    let missing: Vec<&&Tool> = tools.iter().filter(|tool| !(tool.there)()).collect();
    if missing.is_empty() {
        return false;
    }
    let join = |text: fn(&Tool) -> &str, by: &str| missing.iter().map(|tool| text(tool)).collect::<Vec<_>>().join(by);
    let why = format!("{}; to run it: {}", join(|t| t.lacks, ", "), join(|t| t.get, " && "));
    let Some(file) = std::env::var_os("FT_TEST_SKIPPED") else { panic!("{why}") };
    let test = closure.trim_end_matches("::{{closure}}").split_once("::").map_or(closure, |(_, test)| test);
    // A single write call: tests run in parallel, and their lines must not mix.
    let line = format!("{test}: {why}\n");
    std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap().write_all(line.as_bytes()).unwrap();
    true
}

/// Returns the path at which setup/tools.sh stores axe-core.
pub fn axe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/axe/package/axe.min.js")
}

/// Finds a program of PostgreSQL in Debian's folders or on the PATH.
pub fn postgres(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|v| v.path().join("bin")).chain(path()).map(|folder| folder.join(name)).find(|p| p.is_file())
}

fn on_path(name: &str) -> bool {
    path().iter().any(|folder| folder.join(name).is_file())
}

fn path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}
