//! Tests the way from a fresh machine to a working binary: pinned wheels, the Makefile, the libraries that the binary
//! needs, `ft doctor`, the one-file `ft`, the check of a GPU, and the preparation of the ICD-10 task. No test uses a
//! network: wheels are made here.

use crate::support::command::{stderr, stdout};
use crate::support::fake_cuda;
use crate::support::needs::{VENV, needs};
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::{TempDir, tempdir};

const FT: &str = env!("CARGO_BIN_EXE_ft");
const LAUNCHER: &str = env!("CARGO_BIN_EXE_ft-launch");

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a command that must succeed; returns its stdout.
fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}\n{}\n{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Runs a command that must fail with this exit code; returns its stderr.
fn fail(command: &mut Command, code: i32) -> String {
    let output = run(command);
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{}\n{}", stdout(&output), stderr(&output));
    stderr(&output)
}

/// Returns a command for `ft` as a user starts it: without the variables that point to a libtorch.
fn program(path: impl AsRef<Path>) -> Command {
    let mut command = Command::new(path.as_ref());
    command.env_remove("FT_LIBTORCH").env_remove("LIBTORCH").env_remove("LD_LIBRARY_PATH");
    command
}

fn doctor(command: &mut Command) -> Value {
    let text = succeed(command.args(["doctor", "--json"]));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::create_dir_all(path.as_ref().parent().expect("a parent")).expect("folder");
    fs::write(path, text).expect("file");
}

// ---- the Makefile and its scripts

#[test]
fn make_help_names_every_target_for_users() {
    let help = succeed(Command::new("make").arg("help").current_dir(at("")));
    for target in ["help", "setup", "demo", "test", "dist", "wheel", "gpu-pack", "gpu-check", "clean"] {
        assert!(help.contains(&format!("make {target} ")), "{target} is missing in:\n{help}");
    }
}

#[test]
fn the_demo_trains_and_evaluates_before_and_after() {
    let steps = succeed(Command::new("make").args(["-n", "-B", "demo"]).current_dir(at("")).env_remove("LIBTORCH"));
    let place = |step: &str| steps.find(step).unwrap_or_else(|| panic!("no `{step}` in:\n{steps}"));
    assert!(place("wheels.py libtorch") < place("cargo build --release"), "{steps}");
    assert!(place("ft import") < place("ft train recipes/lora-medical.yaml"), "{steps}");
    assert!(place("prepare_icd10.py") < place("ft train"), "{steps}");
    assert_eq!(steps.matches("ft eval").count(), 2, "{steps}");
    assert!(place("--adapter adapters/lora-medical") > place("ft train"), "{steps}");
}

/// Writes executable shell scripts into a folder that tests put on the PATH.
fn programs(folder: &Path, scripts: &[(&str, &str)]) {
    for (name, script) in scripts {
        write(folder.join(name), &format!("#!/bin/sh\n{script}\n"));
        succeed(Command::new("chmod").arg("+x").arg(folder.join(name)));
    }
}

/// Runs setup/test.sh with these scripts in place of the real programs. Returns its exit code and stdout.
fn test_script(scripts: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempdir().expect("folder");
    programs(dir.path(), scripts);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("PATH"));
    let mut script = Command::new(bash());
    let output =
        run(script.arg(at("setup/test.sh")).env("PATH", path).env_remove("FT_CPU").env_remove("FT_TEST_DEVICE"));
    (output.status.code(), stdout(&output))
}

#[test]
fn the_closing_line_sums_all_test_binaries_and_keeps_the_exit_status() {
    let cargo = "echo 'test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'
        echo 'test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out'; exit 101";
    let (code, said) = test_script(&[("cargo", cargo), ("grep", "exit 1")]);
    assert_eq!((code, said.lines().last()), (Some(101), Some("15 passed, 2 failed, 0 skipped")), "{said}");
    // If the build fails, no test runs, and cargo is not called a second time.
    let (code, said) = test_script(&[("cargo", "echo 'error: could not compile'; exit 101")]);
    assert_eq!((code, said.as_str()), (Some(101), "error: could not compile\n0 passed, 0 failed, 0 skipped\n"));
}

#[test]
fn a_test_that_lacks_a_tool_counts_as_skipped_and_is_named() {
    let cargo = "echo 'a::b: no browser; to run it: apt-get install browser' >>$FT_TEST_SKIPPED
        echo 'test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out'";
    let (code, said) = test_script(&[("cargo", cargo), ("grep", "exit 1")]);
    let end = "skipped:\n  a::b: no browser; to run it: apt-get install browser\n4 passed, 0 failed, 1 skipped\n";
    assert!(code == Some(0) && said.ends_with(end), "{said}");
}

#[test]
fn tests_run_again_as_on_a_processor_without_avx512_and_on_a_fake_device() {
    let cargo = "case \"$FT_CPU$FT_TEST_DEVICE $*\" in
        *'avx2 test --release --no-fail-fast --lib --test all -- '*' nn:: '*' rl:: '*) n=7 bad=1 ;;
        'cuda test --release --no-fail-fast --test all -- '*' properties:: '*)
            case $LD_LIBRARY_PATH in /built*) n=5 bad=2 ;; *) n=0 bad=99 ;; esac ;;
        ' test --release --no-fail-fast') n=20 bad=0 ;;
        *) n=1000 bad=1000 ;;
    esac
    echo \"test result: ok. $n passed; $bad failed; 0 ignored; 0 measured; 0 filtered out\"; exit $bad";
    // `bash` builds the device and prints its folder.
    let (code, said) = test_script(&[("cargo", cargo), ("grep", "exit 0"), ("bash", "echo /built")]);
    assert_eq!((code, said.lines().last()), (Some(2), Some("32 passed, 3 failed, 0 skipped")), "{said}");
    assert!(said.contains("FT_CPU=avx2") && said.contains("on the fake CUDA device: "), "{said}");
    let (code, said) = test_script(&[("cargo", "echo 'test result: ok. 1 passed'"), ("bash", "exit 3")]);
    assert_eq!(code, Some(1), "a device that cannot be built is a failure: {said}");
    let (code, said) = test_script(&[("cargo", cargo), ("grep", "exit 1")]);
    assert_eq!((code, said.lines().last()), (Some(0), Some("20 passed, 0 failed, 0 skipped")), "{said}");
}

/// Every module that setup/test.sh names contains tests: a filter that matches nothing would pass unnoticed.
#[test]
fn the_modules_of_the_test_script_exist() {
    let script = fs::read_to_string(at("setup/test.sh")).expect("script");
    let all = succeed(Command::new(std::env::current_exe().expect("own path")).args(["--list"]));
    for list in ["NUMERIC=(", "ON_DEVICE=("] {
        let names = script.split_once(list).and_then(|(_, rest)| rest.split_once(')')).expect("a list").0;
        for name in names.split_whitespace() {
            let within = format!("::{name}");
            let found = all.lines().any(|test| format!("::{test}").contains(&within));
            assert!(found, "{list}{name}: matches no integration test");
        }
    }
}

/// `make test` counts the tests that it leaves out; `make nightly` runs every one of them or names it.
#[test]
fn tests_that_are_left_out_are_counted_and_run_at_night() {
    let cargo = "echo 'test result: ok. 20 passed; 0 failed; 6 ignored; 0 measured; 0 filtered out'";
    let (code, said) = test_script(&[("cargo", cargo), ("grep", "exit 1")]);
    assert_eq!((code, said.lines().last()), (Some(0), Some("20 passed, 0 failed, 0 skipped")), "{said}");
    assert!(said.contains("left out: 6 long tests; make nightly runs them"), "{said}");
    let script = fs::read_to_string(at("setup/nightly.sh")).expect("script");
    let ignored = succeed(Command::new(std::env::current_exe().expect("own path")).args(["--list", "--ignored"]));
    let skipped: Vec<&str> = script.lines().filter_map(|l| l.split_once("|| leave ")?.1.split(' ').next()).collect();
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    for name in skipped {
        assert!(ignored.contains(&format!("::{name}: test")), "{name} is no ignored test");
    }
    assert!(ignored.contains("label::load::") && ignored.contains("twenty_seeds"), "{ignored}");
}

#[test]
fn a_test_whose_tool_is_missing_is_recorded_or_fails() {
    let test = "label::browser::ten_pairs_by_keyboard";
    let dir = tempdir().expect("folder");
    let file = dir.path().join("skipped");
    let alone = || {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["--exact", test]).env("PATH", "/nonexistent");
        command
    };
    succeed(alone().env("FT_TEST_SKIPPED", &file));
    let line = fs::read_to_string(&file).expect("a line");
    assert!(line.starts_with(&format!("{test}: ")) && line.lines().count() == 1, "{line}");
    assert!(line.contains("to run it: apt-get install chromium chromium-driver"), "{line}");
    let output = run(alone().env_remove("FT_TEST_SKIPPED"));
    assert!(!output.status.success() && stdout(&output).contains("apt-get install chromium"), "{}", stdout(&output));
}

#[test]
fn missing_tools_are_named_with_their_packages() {
    let told = fail(Command::new(bash()).arg(at("setup/tools.sh")).env("PATH", "/nonexistent"), 1);
    assert!(told.contains("apt-get install g++ make python3 python3-pip"), "{told}");
}

fn bash() -> String {
    succeed(Command::new("sh").args(["-c", "command -v bash"])).trim().to_string()
}

/// Makes a folder that stands in for a fresh machine: a PATH with the build tools, and with an apt-get that cannot
/// install the browser's driver.
fn fresh_machine() -> TempDir {
    let dir = tempdir().expect("folder");
    fs::create_dir(dir.path().join("setup")).expect("folder");
    fs::copy(at("setup/tools.sh"), dir.path().join("setup/tools.sh")).expect("script");
    let bin = dir.path().join("bin");
    programs(
        &bin,
        &[
            ("g++", ""),
            ("make", ""),
            ("cargo", ""),
            ("rustc", "echo rustc 1.89.0"),
            ("id", "echo ${UID_OF_TEST:-0}"),
            ("python3", "case \"$*\" in *ensurepip*) exit 1 ;; esac"),
            ("npm", "echo npm \"$*\" >>$LOG; exit 1"),
            (
                "apt-get",
                "echo apt-get \"$*\" >>$LOG; case \"$*\" in *chromium-driver*) exit 100 ;; *chromium) : >$BIN/chromium; \
                 chmod +x $BIN/chromium ;; esac",
            ),
        ],
    );
    for name in ["dirname", "mkdir", "sed", "chmod"] {
        let real = succeed(Command::new("sh").args(["-c", &format!("command -v {name}")]));
        std::os::unix::fs::symlink(real.trim(), bin.join(name)).expect("link");
    }
    dir
}

/// Runs setup/tools.sh on that machine. Returns its exit code, its stderr, and its calls of apt-get and npm.
fn tools_there(machine: &TempDir, argument: &str, user: &str) -> (Option<i32>, String, String) {
    let (bin, log) = (machine.path().join("bin"), machine.path().join("log"));
    write(&log, "");
    let mut command = Command::new(bash());
    command.arg(machine.path().join("setup/tools.sh")).args(Some(argument).filter(|a| !a.is_empty()));
    command.env("PATH", &bin).env("BIN", &bin).env("LOG", &log).env("UID_OF_TEST", user);
    let output = run(&mut command);
    (output.status.code(), stderr(&output), fs::read_to_string(&log).expect("log"))
}

#[test]
fn root_gets_the_tools_of_the_tests_and_a_missing_package_stops_nothing() {
    let machine = fresh_machine();
    let (code, told, asked) = tools_there(&machine, "--tests", "0");
    assert_eq!(code, Some(0), "{told}");
    assert!(
        asked.contains("apt-get update")
            && asked.contains("install -y -qq --no-install-recommends chromium chromium-driver")
    );
    // One package fails, so each is tried alone; the note names only what is still missing.
    assert!(machine.path().join("bin/chromium").exists(), "{asked}");
    let note = told.lines().find(|l| l.starts_with("note: tests that need ")).unwrap_or_else(|| panic!("{told}"));
    assert!(note.contains("apt-get install chromium-driver") && note.contains("python3-venv"), "{note}");
    assert!(asked.contains("npm pack") && told.contains("axe-core@4.10.3 cannot be fetched"), "{told}{asked}");

    // Without `--tests`, nothing is installed, and the build needs none of these tools.
    let (code, told, asked) = tools_there(&machine, "", "0");
    assert_eq!((code, told.as_str(), asked.as_str()), (Some(0), "", ""));
}

#[test]
fn without_root_the_tests_that_will_be_skipped_are_reported() {
    let machine = fresh_machine();
    let (code, told, asked) = tools_there(&machine, "--tests", "1000");
    assert!(code == Some(0) && !asked.contains("apt-get"), "{told}{asked}");
    assert!(told.contains("will be skipped; to run them: apt-get install chromium chromium-driver"), "{told}");
    // A missing compiler is an error: it does not concern only some tests.
    fs::remove_file(machine.path().join("bin/g++")).expect("file");
    let (code, told, _) = tools_there(&machine, "--tests", "1000");
    assert!(code == Some(1) && told.contains("error: missing: g++") && told.contains("hint:"), "{told}");
}

#[test]
fn make_test_installs_tools_first_and_ci_runs_make_test() {
    let steps = succeed(Command::new("make").args(["-n", "test"]).current_dir(at("")).env_remove("LIBTORCH"));
    let place = |step: &str| steps.find(step).unwrap_or_else(|| panic!("no `{step}` in:\n{steps}"));
    assert!(place("tools.sh --tests") < place("cargo build --release"), "{steps}");
    assert!(place("cargo build --release") < place("test.sh"), "{steps}");
    let check = fs::read_to_string(at(".ci/run")).expect("script");
    assert!(check.ends_with("exec make test\n") && !check.contains("tools.sh"), "{check}");
}

// ---- pinned wheels

fn wheels() -> Command {
    let mut command = Command::new("python3");
    command.arg(at("setup/wheels.py")).env_remove("LIBTORCH");
    command
}

#[test]
fn every_pinned_wheel_has_a_version_and_a_checksum() {
    let listed = succeed(wheels().arg("list"));
    let mut written = 0;
    for file in ["libtorch.txt", "cuda.txt", "demo.txt"] {
        let text = fs::read_to_string(at("setup").join(file)).expect("pins");
        for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let (pin, sum) = line.split_once(" --hash=sha256:").unwrap_or_else(|| panic!("{file}: {line}"));
            let (name, version) = pin.split_once("==").unwrap_or_else(|| panic!("{file}: {line}"));
            assert!(sum.len() == 64, "{file}: {line}");
            assert!(listed.contains(&format!("{file}\t{name}\t{version}\t{sum}\n")), "{line} is not in:\n{listed}");
            written += 1;
        }
    }
    assert_eq!(listed.lines().count(), written);
    let torch = listed.lines().find_map(|l| l.strip_prefix("libtorch.txt\ttorch\t")).expect("torch is pinned");
    assert!(torch.starts_with(ft::libtorch::SERIES), "{torch}");
}

/// A copy of setup/wheels.py with pins of its own, and the small wheels that they pin.
struct Registry {
    dir: TempDir,
}

impl Registry {
    fn new() -> Registry {
        let dir = tempdir().expect("folder");
        write(dir.path().join("setup/wheels.py"), &fs::read_to_string(at("setup/wheels.py")).expect("script"));
        let registry = Registry { dir };
        registry.make_wheels("library");
        let pins = succeed(Command::new("sh").arg("-c").current_dir(registry.path("wheels")).arg(
            "for f in *.whl; do s=$(sha256sum $f); IFS=-; set -- $f; \
             echo \"$1==$2 --hash=sha256:${s%% *}\" | tr _ -; unset IFS; done",
        ));
        write(registry.path("setup/libtorch.txt"), &pins);
        write(registry.path("setup/cuda.txt"), "");
        write(registry.path("setup/demo.txt"), &pins);
        registry
    }

    /// Makes wheels that pip accepts; `library` is the content of libtorch_cpu.so.
    fn make_wheels(&self, library: &str) {
        let script = r#"
import sys, zipfile, pathlib
out, library = pathlib.Path(sys.argv[1]), sys.argv[2]
out.mkdir(exist_ok=True)
def wheel(name, version, tag, files):
    with zipfile.ZipFile(out / f"{name}-{version}-{tag}.whl", "w") as z:
        info = f"{name}-{version}.dist-info/"
        files = files | {info + "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
                         info + "WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n", info + "RECORD": ""}
        for path, text in files.items():
            z.writestr(zipfile.ZipInfo(path), text)
wheel("torch", "2.11.0", "cp311-cp311-manylinux_2_28_x86_64", {
    "torch/lib/libtorch_cpu.so": library, "torch/lib/libtorch_python.so": "x", "torch/include/ATen/ATen.h": "//",
    "torch/version.py": "__version__ = '2.11.0+cu130'\n", "torch/__init__.py": "raise SystemExit"})
wheel("nvidia_cuda_runtime", "13.0.96", "py3-none-manylinux2014_x86_64", {
    "nvidia/cu13/lib/libcudart.so.13": "cudart", "nvidia/__init__.py": ""})
"#;
        succeed(Command::new("python3").args(["-c", script]).arg(self.path("wheels")).arg(library));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set_up(&self, links: &str) -> Command {
        let mut command = Command::new("python3");
        command.arg(self.path("setup/wheels.py")).args(["libtorch", "--root"]).arg(self.path("root"));
        command.env_remove("LIBTORCH").env("PIP_NO_INDEX", "1").env("PIP_NO_CACHE_DIR", "1");
        command.env("PIP_FIND_LINKS", self.path(links)).env("PIP_CONFIG_FILE", "/dev/null");
        command
    }

    fn library(&self) -> String {
        fs::read_to_string(self.path("root/torch/lib/libtorch_cpu.so")).unwrap_or_default()
    }
}

#[test]
fn libtorch_is_unpacked_once_and_repaired_when_broken() {
    let registry = Registry::new();
    succeed(&mut registry.set_up("wheels"));
    assert_eq!(registry.library(), "library");
    assert!(registry.path("root/nvidia/cu13/lib/libcudart.so.13").is_file());
    assert!(registry.path("root/torch/version.py").is_file());
    for unwanted in ["torch/__init__.py", "nvidia/__init__.py", "torch/lib/libtorch_python.so", "wheels", ".partial"] {
        assert!(!registry.path("root").join(unwanted).exists(), "{unwanted} was left behind");
    }

    // A second time, with no wheel available: none is needed.
    let again = succeed(&mut registry.set_up("nothing"));
    assert!(again.contains("in place") && !again.contains("fetching"), "{again}");

    // First a truncated library, then a partial download together with a missing stamp: both are detected and repaired.
    fs::write(registry.path("root/torch/lib/libtorch_cpu.so"), "lib").expect("cut off");
    succeed(&mut registry.set_up("wheels"));
    assert_eq!(registry.library(), "library");
    fs::remove_file(registry.path("root/installed.json")).expect("stamp");
    write(registry.path("root/wheels/torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl"), "half");
    write(registry.path("root/.partial/torch/lib/libtorch_cpu.so"), "half");
    let told = succeed(&mut registry.set_up("wheels"));
    assert!(told.contains("broken") && told.contains("fetching torch"), "{told}");
    assert_eq!(registry.library(), "library");
}

#[test]
fn an_altered_wheel_is_refused_and_nothing_is_installed() {
    let registry = Registry::new();
    registry.make_wheels("altered");
    let told = fail(&mut registry.set_up("wheels"), 1);
    assert!(told.contains("error: torch 2.11.0") || told.contains("error: nvidia-cuda-runtime 13.0.96"), "{told}");
    assert!(told.contains("SHA-256"), "{told}");
    assert_eq!(registry.library(), "");
    assert!(!registry.path("root/installed.json").exists());
}

#[test]
fn no_registry_gives_one_clear_error() {
    let registry = Registry::new();
    let told = fail(&mut registry.set_up("nothing"), 1);
    assert_eq!(told.matches("error:").count(), 1, "{told}");
    assert!(told.contains("pip could not fetch") && told.contains("LIBTORCH"), "{told}");
}

#[test]
fn a_libtorch_of_another_version_is_refused() {
    let dir = tempdir().expect("folder");
    let told = fail(wheels().arg("libtorch").env("LIBTORCH", dir.path()), 1);
    assert!(told.contains("no libtorch there"), "{told}");
    write(dir.path().join("lib/libtorch_cpu.so"), "");
    write(dir.path().join("include/ATen/ATen.h"), "");
    write(dir.path().join("build-version"), "2.9.1+cpu\n");
    let told = fail(wheels().arg("libtorch").env("LIBTORCH", dir.path()), 1);
    assert!(told.contains("2.9.1") && told.contains(ft::libtorch::SERIES), "{told}");
    write(dir.path().join("build-version"), "2.11.0+cpu\n");
    succeed(wheels().arg("libtorch").env("LIBTORCH", dir.path()));
}

// ---- the binary

/// The (NEEDED libraries, RUNPATH or RPATH lines) of an ELF file.
fn dynamic_section(file: &str) -> (BTreeSet<String>, String) {
    let text = succeed(Command::new("readelf").args(["-d", "-W", file]).env("LC_ALL", "C"));
    let needed = text.lines().filter(|l| l.contains("(NEEDED)"));
    let names = needed.filter_map(|l| Some(l.split_once('[')?.1.trim_end_matches(']').to_string())).collect();
    (names, text.lines().filter(|l| l.contains("PATH)")).collect())
}

#[test]
fn the_binary_needs_only_the_cpu_part_of_libtorch() {
    let (needed, paths) = dynamic_section(FT);
    assert!(needed.contains("libtorch_cpu.so") && needed.contains("libc10.so"), "{needed:?}");
    let system =
        ["libstdc++.so", "libgcc_s.so", "libc.so", "libm.so", "libgomp.so", "libdl.so", "libpthread.so", "ld-linux"];
    for name in needed.iter().filter(|n| *n != "libtorch_cpu.so" && *n != "libc10.so") {
        assert!(system.iter().any(|known| name.starts_with(known)), "the binary needs {name}");
    }
    assert!(paths.contains("(RUNPATH)") && !paths.contains("(RPATH)"), "LD_LIBRARY_PATH must win: {paths}");
    let (needed, _) = dynamic_section(LAUNCHER);
    assert!(!needed.iter().any(|name| name.contains("torch") || name.contains("c10")), "{needed:?}");
}

#[test]
fn doctor_reports_the_machine_and_that_training_runs() {
    let report = doctor(&mut program(FT));
    assert_eq!(report["ok"], true, "{report:#}");
    let version = report["libtorch"]["version"].as_str().expect("a version");
    assert!(version.starts_with(ft::libtorch::SERIES), "{version}");
    for number in ["/cpu/cores", "/threads", "/memory/free", "/disk_free", "/cpu_gflops/f32", "/cpu_gflops/bf16"] {
        assert!(report.pointer(number).and_then(Value::as_f64).is_some_and(|n| n > 0.0), "{number}: {report:#}");
    }
    let names: Vec<&str> =
        report["checks"].as_array().expect("checks").iter().filter_map(|c| c["name"].as_str()).collect();
    for name in ["libtorch", "cpu", "threads", "training on cpu", "cuda", "memory", "disk"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for check in report["checks"].as_array().expect("checks") {
        assert!(check["status"] == "ok" || check["remedy"].is_string(), "no remedy: {check}");
    }
    let table = succeed(program(FT).arg("doctor"));
    assert!(names.iter().all(|name| table.contains(name)) && !table.contains('\x1b'), "{table}");
}

/// Source of a stand-in for the NVIDIA driver: it reports one device, but lacks the functions that libtorch needs.
const DRIVER: &str = r#"
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Stand-in", n); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int d) { *bytes = 80000000000; return 0; }
int cuDeviceGetAttribute(int *v, int what, int d) { *v = what == 75 ? 8 : 6; return 0; }
"#;

#[test]
fn a_driver_that_libtorch_cannot_use_is_reported_with_a_remedy() {
    let dir = tempdir().expect("folder");
    let source = dir.path().join("driver.c");
    write(&source, DRIVER);
    let library = dir.path().join("libcuda.so.1");
    succeed(Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&source));
    let report = doctor(program(FT).env("LD_LIBRARY_PATH", dir.path()));
    assert_eq!((&report["ok"], &report["cuda_usable"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(report["driver"]["cuda"], serde_json::json!([12, 4]));
    assert_eq!(report["driver"]["devices"][0]["capability"], serde_json::json!([8, 6]));
    let checks = report["checks"].as_array().expect("checks");
    let check = |name: &str| checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name}: {report:#}"));
    assert!(check("cuda")["status"] == "warning" && check("cuda")["remedy"].is_string(), "{}", check("cuda"));
    assert!(check("cuda:0")["found"].as_str().is_some_and(|f| f.contains("Stand-in · 80.0 GB")), "{}", check("cuda:0"));
}

/// Makes a second libtorch from links to the one under test, in a temporary folder.
fn second_libtorch() -> (TempDir, PathBuf) {
    let dir = tempdir().expect("folder");
    let copy = libtorch_in(&fs::canonicalize(dir.path()).expect("path").join("site"));
    (dir, copy)
}

/// Makes a folder `torch` in `site` from links to the libtorch under test; returns its path.
fn libtorch_in(site: &Path) -> PathBuf {
    let report = doctor(&mut program(FT));
    let root = PathBuf::from(report["libtorch"]["folder"].as_str().expect("a folder"));
    let copy = site.join("torch");
    fs::create_dir_all(copy.join("lib")).expect("lib");
    for entry in fs::read_dir(root.join("lib")).expect("lib").flatten() {
        std::os::unix::fs::symlink(entry.path(), copy.join("lib").join(entry.file_name())).expect("link");
    }
    write(copy.join("version.py"), &format!("__version__ = '{}.0+copy'\n", ft::libtorch::SERIES));
    let cuda = root.parent().expect("a parent").join("nvidia");
    if cuda.exists() {
        std::os::unix::fs::symlink(cuda, site.join("nvidia")).expect("link");
    }
    copy
}

#[test]
fn another_libtorch_can_be_chosen_by_variable() {
    let (_dir, copy) = second_libtorch();
    let by_name = doctor(program(FT).env("FT_LIBTORCH", &copy));
    assert_eq!(by_name["libtorch"]["folder"], copy.to_str().expect("UTF-8"));
    let by_path = doctor(program(FT).env("LD_LIBRARY_PATH", copy.join("lib")));
    assert_eq!(by_path["libtorch"]["folder"], copy.to_str().expect("UTF-8"));
    let told = fail(program(FT).arg("doctor").env("FT_LIBTORCH", "/nonexistent"), 1);
    assert!(told.contains("FT_LIBTORCH=/nonexistent"), "{told}");
    write(copy.join("version.py"), "__version__ = '2.9.1'\n");
    let told = fail(program(FT).arg("doctor").env("FT_LIBTORCH", &copy), 1);
    assert!(told.contains("2.9.1") && told.contains("hint:"), "{told}");
}

#[test]
fn the_one_file_ft_finds_a_libtorch_or_says_what_to_do() {
    let (dir, copy) = second_libtorch();
    let packed = dir.path().join("elsewhere/ft");
    succeed(Command::new("bash").arg(at("setup/pack.sh")).args([LAUNCHER, FT]).arg(&packed));
    let size = fs::metadata(&packed).expect("packed").len();
    // Below 71 MB when this was written. Of 64.5 MB before evaluation suites and CUDA's further kernels, half was polars and what is
    // generated from its types, 6 MB our own code, as much of core's over our types, 5 MB tables for unwinding. A jump means that a
    // large dependency, debug symbols or a part of libtorch came in.
    assert!(size < 72_000_000, "{size} bytes");

    let bare = || {
        let mut command = Command::new(&packed);
        command.env_clear().env("PATH", "/nonexistent").env("HOME", "/nonexistent");
        command
    };
    for (variable, folder) in [("FT_LIBTORCH", copy.clone()), ("LD_LIBRARY_PATH", copy.join("lib"))] {
        let report = doctor(bare().env(variable, folder));
        assert_eq!(report["libtorch"]["folder"], copy.to_str().expect("UTF-8"), "through {variable}");
    }
    // Without such a variable, a libtorch is found in the active Python environment; arguments are passed on.
    let packages = dir.path().join("venv/lib/python3.13/site-packages");
    fs::create_dir_all(packages.parent().expect("a parent")).expect("folder");
    std::os::unix::fs::symlink(dir.path().join("site"), &packages).expect("link");
    let output = run(bare().env("VIRTUAL_ENV", dir.path().join("venv")).args(["no-such-verb"]));
    assert!(stderr(&output).contains("no-such-verb"), "{}", stderr(&output));

    let told = fail(bare().arg("doctor").env("FT_LIBTORCH", "/nonexistent"), 1);
    assert!(told.contains("FT_LIBTORCH=/nonexistent"), "{told}");
    let other = copy.join("version.py");
    write(&other, "__version__ = '2.9.1'\n");
    let told = fail(bare().arg("doctor").env("FT_LIBTORCH", &copy), 1);
    assert!(told.contains("2.9.1") && told.contains("pip install torch=="), "{told}");

    // A truncated file is reported as such; nothing of it is run.
    let bytes = fs::read(&packed).expect("packed");
    fs::write(&packed, &bytes[..bytes.len() - 1000]).expect("cut off");
    let told = fail(&mut bare(), 1);
    assert!(told.contains("is the file complete"), "{told}");
}

#[test]
fn a_wheel_installs_ft_into_a_python_environment() {
    needs!(VENV);
    let dir = tempdir().expect("folder");
    let dir = fs::canonicalize(dir.path()).expect("path");
    let packed = dir.join("ft");
    succeed(Command::new("bash").arg(at("setup/pack.sh")).args([LAUNCHER, FT]).arg(&packed));
    let pack = |out: &str| {
        let told = succeed(Command::new("python3").arg(at("setup/wheel.py")).arg(&packed).arg(dir.join(out)));
        assert!(told.contains("requires torch==2.11.0"), "{told}");
        let mut made = fs::read_dir(dir.join(out)).expect("folder").map(|e| e.expect("entry").path());
        (made.next().expect("a wheel"), made.next())
    };
    let ((wheel, more), (twin, _)) = (pack("one"), pack("two"));
    let name = wheel.file_name().and_then(|n| n.to_str()).expect("a name");
    let begin = format!("ft_toolkit-{}-py3-none-manylinux_2_", env!("CARGO_PKG_VERSION"));
    assert!(
        name.starts_with(&begin) && name.ends_with(&format!("_{}.whl", std::env::consts::ARCH)) && more.is_none(),
        "{name}"
    );
    assert!(fs::read(&wheel).expect("wheel") == fs::read(&twin).expect("wheel"), "two wheels of one ft differ");

    let venv = dir.join("venv");
    succeed(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let pip = || {
        let mut command = Command::new(venv.join("bin/python"));
        command.args(["-m", "pip", "--disable-pip-version-check"]).env("PIP_CONFIG_FILE", "/dev/null");
        command
    };
    succeed(pip().args(["install", "--quiet", "--no-deps", "--no-index"]).arg(&wheel));
    let lacks = run(pip().arg("check"));
    assert!(
        !lacks.status.success() && stdout(&lacks).contains("ft-toolkit 0.1.0 requires torch"),
        "{}",
        stdout(&lacks)
    );
    let required = "import importlib.metadata as m; print(*m.requires('ft-toolkit'))";
    assert_eq!(succeed(Command::new(venv.join("bin/python")).args(["-c", required])), "torch==2.11.0\n");

    // ft finds the environment's own torch without a variable that names it and without Python on the PATH. LIBTORCH
    // does not change that; FT_LIBTORCH does.
    let bare = || {
        let mut command = Command::new(venv.join("bin/ft"));
        command.env_clear().env("PATH", "/nonexistent").env("HOME", "/nonexistent");
        command
    };
    let python = fs::read_dir(venv.join("lib")).expect("lib").flatten().next().expect("a Python").path();
    let torch = libtorch_in(&python.join("site-packages"));
    let version = succeed(bare().arg("--version"));
    assert_eq!(version, format!("ft {}\n", env!("CARGO_PKG_VERSION")));
    let (_dir, other) = second_libtorch();
    for variable in ["UNSET", "LIBTORCH"] {
        let report = doctor(bare().env(variable, &other));
        assert_eq!(report["libtorch"]["folder"], torch.to_str().expect("UTF-8"), "with {variable}");
    }
    let report = doctor(bare().env("FT_LIBTORCH", &other));
    assert_eq!(report["libtorch"]["folder"], other.to_str().expect("UTF-8"));
}

// ---- the check of a GPU

/// Returns a command that runs benches/gpu_check.py with `ft` and this test binary; results go to `out`.
fn gpu_check(ft: &Path, out: &Path) -> Command {
    let mut command = Command::new("python3");
    command.arg(at("benches/gpu_check.py")).arg("--ft").arg(ft).arg("--out").arg(out);
    command.arg("--tests").arg(std::env::current_exe().expect("own path")).env("OMP_NUM_THREADS", "1");
    command.env_remove("FT_LIBTORCH").env_remove("CUDA_VISIBLE_DEVICES");
    command
}

fn stages(out: &Path) -> Value {
    let text = fs::read_to_string(out.join("results.json")).expect("results");
    serde_json::from_str::<Value>(&text).expect("JSON")["stages"].take()
}

/// Every stage but the long ones runs to its end on the fake device. The peers are measured if this Python has them.
#[test]
fn the_gpu_check_runs_on_the_fake_device() {
    let dir = tempdir().expect("folder");
    let out = dir.path().join("out");
    let said = run(gpu_check(Path::new(FT), &out)
        .args(["--fake", "--stages", "doctor,flash,selftest,lora-tiny,decode,profile,memory"])
        .env("FT_LIBTORCH", fake_cuda::library()));
    let log = fs::read_to_string(out.join("log.txt")).expect("a log");
    assert!(said.status.success(), "{}\n{}\n{log}", stdout(&said), stderr(&said));
    let found = stages(&out);
    let names: Vec<&String> = found.as_object().expect("stages").keys().collect();
    assert_eq!(names, ["doctor", "flash", "selftest", "lora-tiny", "decode", "profile", "memory"]);
    assert_eq!(found["flash"]["compared"].as_array().map(Vec::len), Some(8), "{found:#}");
    let turn = &found["lora-tiny"]["turns"][0];
    for number in ["tokens_per_s", "memory", "mfu", "rate"] {
        assert!(turn["side"] == "ft" && turn[number].as_f64().is_some_and(|n| n > 0.0), "{number}: {turn}");
    }
    for number in ["launches", "waits", "operations"] {
        assert!(
            found["profile"]["shapes"]["tiny"][number].as_i64().is_some_and(|n| n > 0),
            "{number}: {}",
            found["profile"]
        );
    }
    let summary = fs::read_to_string(out.join("summary.md")).expect("a summary");
    for part in [
        "a stand-in on the CPU",
        "| tiny | 2 x 64 | ft |",
        "| tiny | 2 x 64 | ft with CUDA graphs |",
        "| 16 | ",
        "| bf16 | 9/3 | 64 |",
        "| LoRA, 8 rows, replay none |",
    ] {
        assert!(summary.contains(part), "{part} is missing in:\n{summary}");
    }
    let mut files: Vec<_> = fs::read_dir(&out).expect("folder").map(|e| e.expect("entry").file_name()).collect();
    files.sort();
    assert_eq!(files, ["log.txt", "profile-tiny.json.gz", "results.json", "summary.md"]);
}

/// A stage that fails does not stop the others; one that hangs is stopped, with the programs that it started, when the
/// budget is used up; what no longer fits is skipped.
#[test]
fn the_gpu_check_goes_on_after_a_failure_and_keeps_its_budget() {
    let dir = tempdir().expect("folder");
    let (out, pid) = (dir.path().join("out"), dir.path().join("pid"));
    let script = format!("case $1 in doctor) exit 3 ;; esac; echo $$ >{}; exec sleep 600", pid.display());
    programs(dir.path(), &[("ft", &script)]);
    let began = std::time::Instant::now();
    let said = run(gpu_check(&dir.path().join("ft"), &out).args(["--fake", "--budget", "15"]));
    assert!(began.elapsed().as_secs() < 60 && said.status.code() == Some(1), "{}", stdout(&said));
    let found = stages(&out);
    let line = |stage: &str| found[stage]["found"].as_str().unwrap_or_else(|| panic!("{stage}: {found:#}"));
    assert_eq!(line("doctor"), "ft doctor ended with exit code 3 and no report");
    assert!(line("selftest").starts_with("stopped after"), "{found:#}");
    assert_eq!(found["memory"]["status"], "skipped", "{found:#}");
    // A killed process whose parent is gone has no command line, also before the system has cleared it away.
    let child = Path::new("/proc").join(fs::read_to_string(&pid).expect("a process").trim()).join("cmdline");
    assert!(fs::read(child).unwrap_or_default().is_empty(), "the stage's program still runs");
}

#[test]
fn a_profile_is_summarised() {
    let script = r#"
import json, sys
sys.path.insert(0, "benches")
from gpu_check import summarise
span = lambda cat, name, ts, dur: {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}
print(json.dumps(summarise([
    span("kernel", "gemm", 100, 50), span("kernel", "gemm", 160, 40), span("kernel", "norm", 140, 15),  # 15 overlap by 10
    span("gpu_memcpy", "Memcpy DtoH", 300, 5), span("cpu_op", "aten::mm", 90, 8), {"ph": "M", "name": "process_name"},
    span("cuda_runtime", "cudaStreamSynchronize", 200, 105), span("cuda_runtime", "cudaLaunchKernel", 91, 2),
    span("cuda_runtime", "cudaDeviceSynchronize", 310, 1),
], 200e-6)))
"#;
    let text = succeed(Command::new("python3").args(["-c", script]).current_dir(at("")));
    let found: Value = serde_json::from_str(&text).expect("JSON");
    for (key, number) in [("launches", 3.0), ("waits", 1.0), ("copies", 1.0), ("operations", 1.0)] {
        assert_eq!(found[key].as_f64(), Some(number), "{key}: {found}");
    }
    // 100 to 155, 160 to 200 and 300 to 305 are 100 of 200 microseconds.
    assert!((found["idle"].as_f64().expect("a share") - 0.5).abs() < 1e-9, "{found}");
    assert_eq!((&found["kernels"][0]["name"], &found["kernels"][0]["count"]), (&"gemm".into(), &2.into()));
}

// ---- the ICD-10 task

/// Returns a tabular list with the structure of the real one: two chapters with 14 leaves each and one with 2, with
/// duplicate and nested diagnoses.
fn tabular() -> String {
    let leaf = |code: &str, text: &str| format!("<diag><name>{code}</name><desc>{text}</desc></diag>\n");
    let mut chapters = String::new();
    for (number, title, part, leaves) in [
        (1, "Diseases of the nose (A00-A09)", "nose", 14),
        (2, "Diseases of the toe (B00-B9A)", "toe", 14),
        (3, "Others (U00-U85)", "rest", 2),
    ] {
        let mut diagnoses = String::new();
        for i in 0..leaves / 2 {
            diagnoses += &leaf(&format!("X{i}.0"), &format!("Kind {i} of {part} pain, right side"));
            diagnoses += &leaf(&format!("X{i}.1"), &format!("Kind {i} of {part} pain, left side"));
        }
        diagnoses += &leaf("X99", &format!("KIND 0 of {part} pain, RIGHT side"));
        chapters += &format!(
            "<chapter><name>{number}</name><desc>{title}</desc><section id=\"X\"><desc>Section</desc>\
             <diag><name>X</name><desc>Not a leaf</desc>{diagnoses}</diag></section></chapter>\n"
        );
    }
    format!("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<ICD10CM.tabular>{chapters}</ICD10CM.tabular>\n")
}

fn prepare(xml: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.arg(at("datasets/prepare_icd10.py")).arg(xml).arg("--out").arg(out);
    command.args(["--train", "6", "--valid", "2", "--test", "2", "--least", "10"]).args(more);
    command
}

/// Reads (question, answer) of every row of a split.
fn rows(out: &Path, split: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(out.join(format!("{split}.jsonl"))).expect("split");
    let turn = |row: &Value, i: usize, role: &str| {
        assert_eq!(row["messages"][i]["role"], role, "{row}");
        row["messages"][i]["content"].as_str().expect("content").to_string()
    };
    let row = |line: &str| -> Value { serde_json::from_str(line).expect("JSON") };
    text.lines().map(row).map(|row| (turn(&row, 0, "user"), turn(&row, 1, "assistant"))).collect()
}

#[test]
fn icd10_splits_are_balanced_disjoint_and_reproducible() {
    let dir = tempdir().expect("folder");
    let (xml, out, twin) = (dir.path().join("list.xml"), dir.path().join("a"), dir.path().join("b"));
    write(&xml, &tabular());
    let told = succeed(&mut prepare(&xml, &out, &[]));
    assert!(told.contains("30 diagnoses in 3 chapters, 2 of them"), "{told}");
    // Asking for further splits does not change the others.
    succeed(&mut prepare(&xml, &twin, &["--held-out", "2", "--more", "1", "--prompts", "9"]));
    let mut seen = HashSet::new();
    for (split, size) in [("train", 6), ("valid", 2), ("test", 2)] {
        let found = rows(&out, split);
        for title in ["Diseases of the nose", "Diseases of the toe"] {
            assert_eq!(found.iter().filter(|(_, answer)| answer == title).count(), size, "{split}: {title}");
        }
        assert_eq!(found.len(), 2 * size, "{split}");
        for (question, _) in found {
            assert!(question.contains("pain") && question.contains('?'), "{question}");
            assert!(seen.insert(question.to_lowercase()), "duplicate: {question}");
        }
        let bytes = |out: &Path| fs::read(out.join(format!("{split}.jsonl"))).expect("split");
        assert_eq!(bytes(&out), bytes(&twin), "{split} differs from run to run");
    }
    for (split, size) in [("held_out", 4), ("more", 2)] {
        let further = rows(&twin, split);
        assert_eq!(further.len(), size);
        assert!(further.iter().all(|(question, _)| seen.insert(question.to_lowercase())), "{further:?}");
    }
    // The prompts are the questions that are left of the 14 in each chapter, without answers.
    let prompts = fs::read_to_string(twin.join("prompts.jsonl")).expect("split");
    for row in prompts.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
        let question = row["prompt"][0]["content"].as_str().expect("content").to_lowercase();
        assert!(
            row["prompt"].as_array().is_some_and(|turns| turns.len() == 1) && row.get("messages").is_none(),
            "{row}"
        );
        assert!(seen.insert(question), "{row}");
    }
    assert_eq!(prompts.lines().count(), 2);
    assert_eq!(fs::read_dir(&out).expect("folder").count(), 3, "the folder contains more than the splits");
}

#[test]
fn icd10_families_can_be_kept_together() {
    let dir = tempdir().expect("folder");
    let (xml, out) = (dir.path().join("list.xml"), dir.path().join("a"));
    write(&xml, &tabular());
    let told = succeed(&mut prepare(&xml, &out, &["--by-family"]));
    assert!(told.contains("0 of 4 test rows have a sibling"), "{told}");
    let families = |split| -> HashSet<String> {
        rows(&out, split).into_iter().map(|(q, _)| q.rsplit_once(',').expect("a comma").0.to_lowercase()).collect()
    };
    assert!(families("train").is_disjoint(&families("test")) && families("train").is_disjoint(&families("valid")));
}

#[test]
fn icd10_errors_say_what_is_wrong() {
    let dir = tempdir().expect("folder");
    let (xml, out) = (dir.path().join("list.xml"), dir.path().join("a"));
    write(&xml, "<html><body/></html>");
    let told = fail(&mut prepare(&xml, &out, &[]), 1);
    assert!(told.contains("ICD-10-CM tabular list"), "{told}");
    write(&xml, &tabular());
    let told = fail(&mut prepare(&xml, &out, &["--train", "40"]), 1);
    assert!(told.contains("too few"), "{told}");
    assert!(!out.join("train.jsonl").exists());
}
