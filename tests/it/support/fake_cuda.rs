//! Runs code on the fake CUDA device of tests/fake_cuda: the real binary with its counts per step, or a test in a process
//! of its own.

use super::command::{stderr, stdout};
use super::workspace::Workspace;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What costs time on a GPU. The layout is that of `fake_cuda_counts` in tests/fake_cuda/counters.cpp.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// Operations that compute something on the device.
    pub launches: i64,
    /// How often the host waited for the device.
    pub waits: i64,
    /// Copies from the host to the device.
    pub uploads: i64,
    pub upload_bytes: i64,
    /// Copies from the device to the host.
    pub downloads: i64,
    pub download_bytes: i64,
    /// Allocations of device memory.
    pub allocations: i64,
}

/// What a process did on the device until it ended.
#[derive(Debug, Clone, Deserialize)]
pub struct Trace {
    pub total: Counts,
    /// The counts between two runs of the operation `FAKE_CUDA_MARK`; the first since the process began.
    pub marks: Vec<Counts>,
    /// Waits by their reason.
    pub waits: BTreeMap<String, i64>,
    /// Launches by operation.
    pub operations: BTreeMap<String, i64>,
    /// Waits by their reason and ft's own functions, innermost first: `item < ft::train::… < …`. Empty unless
    /// `FAKE_CUDA_STACKS=1`.
    pub stacks: BTreeMap<String, i64>,
    /// Bytes that were allocated when most were, by operation and ft's own functions. Empty unless `FAKE_CUDA_STACKS=1`.
    pub peak: BTreeMap<String, i64>,
}

/// A command that ran on the fake device.
pub struct FakeRun {
    pub output: Output,
    /// `None` if the process was killed or never loaded the device.
    pub trace: Option<Trace>,
}

impl FakeRun {
    /// Expects that the command succeeded and returns what it did on the device.
    #[track_caller]
    pub fn succeeded(self) -> Trace {
        assert!(self.output.status.success(), "{}\n{}", stdout(&self.output), stderr(&self.output));
        self.trace.expect("a process on the fake device writes a trace when it ends")
    }

    /// Returns what the command wrote to stderr.
    pub fn stderr(&self) -> String {
        stderr(&self.output)
    }
}

/// The operation that ends a step of training with AdamW.
pub const ADAMW: &str = "aten::_fused_adamw_";

/// Runs ft in the workspace on the fake device. `environment` are further variables, such as `FAKE_CUDA_MEMORY`; the
/// mark is `ADAMW` unless `FAKE_CUDA_MARK` is among them. The device of a recipe must be asked for
/// (`--set model.device=cuda`), except where `auto` finds it.
pub fn ft(space: &Workspace, arguments: &[&str], environment: &[(&str, &str)]) -> FakeRun {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = space.command(arguments);
    on_device(&mut command)
        .env("OMP_NUM_THREADS", "1")
        .env("FAKE_CUDA_MARK", ADAMW)
        .env("FAKE_CUDA_TRACE", file.path());
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    // A process that ft starts appends a line of its own; ft ends last.
    let text = std::fs::read_to_string(file.path()).unwrap();
    let trace = text.lines().last().map(|line| serde_json::from_str(line).unwrap());
    FakeRun { output, trace }
}

/// Makes a command find the fake device. Buffers of products are small, so that measured memory is that of tensors.
pub fn on_device(command: &mut Command) -> &mut Command {
    command
        .env("LD_LIBRARY_PATH", library())
        .env("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("FT_LIBTORCH")
}

/// Returns the folder with the fake device and links to the other libraries of libtorch. Builds it if its sources
/// changed, which takes a minute or two.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda/build.sh"));
        build.arg(target.join("fake_cuda")).env_remove("LD_LIBRARY_PATH");
        if let (None, Some(libtorch)) = (std::env::var_os("LIBTORCH"), option_env!("LIBTORCH")) {
            build.env("LIBTORCH", libtorch);
        }
        let output = build.output().unwrap();
        assert!(output.status.success(), "building the fake CUDA device\n{}", stderr(&output));
        PathBuf::from(stdout(&output).trim())
    })
}

/// Runs the calling test in a process of its own, in which `cuda:0` and `cuda:1` are fake devices. `environment` are
/// further variables of that process. Returns false in the calling process after the other one succeeded, true in the
/// other one, where the test goes on.
#[must_use]
pub fn inside(name: &str, environment: &[(&str, &str)]) -> bool {
    let run = run_inside(name, environment);
    if let Some(output) = &run {
        let text = stdout(output);
        assert!(text.contains("1 passed") && output.status.success(), "{text}\n{}", stderr(output));
    }
    run.is_none()
}

/// Does the same as `inside` for a test that ends its process: returns what the other process wrote, or `None` in it.
pub fn run_inside(name: &str, environment: &[(&str, &str)]) -> Option<Output> {
    const INSIDE: &str = "FT_TEST_INSIDE_FAKE_CUDA";
    if std::env::var_os(INSIDE).is_some() {
        ft::runtime::start().unwrap();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    on_device(&mut command).env(INSIDE, "1").env("FT_TEST_DEVICE", "cuda").env("OMP_NUM_THREADS", "1");
    Some(command.envs(environment.iter().copied()).output().unwrap())
}

/// Returns the counts of this process since the last `reset`. Fails if it does not run on the fake device.
pub fn counts() -> Counts {
    let mut counts = Counts::default();
    // SAFETY: the function of tests/fake_cuda/counters.cpp, which fills the struct.
    unsafe {
        let read: extern "C" fn(*mut Counts) = std::mem::transmute(symbol(c"fake_cuda_counters"));
        read(&raw mut counts);
    }
    counts
}

/// Sets the counts of this process to zero.
pub fn reset() {
    // SAFETY: the function of tests/fake_cuda/counters.cpp, which takes nothing.
    unsafe {
        let reset: extern "C" fn() = std::mem::transmute(symbol(c"fake_cuda_reset"));
        reset();
    }
}

fn symbol(name: &std::ffi::CStr) -> *mut libc::c_void {
    // SAFETY: a NUL-terminated name; libtorch_cuda.so was opened with RTLD_GLOBAL.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!found.is_null(), "{name:?}: this process does not run on the fake device");
    found
}
