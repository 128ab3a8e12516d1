//! Recognises a libtorch folder, reads its version, and lists the places where one is usually installed.
//!
//! Uses the standard library only: build.rs and the launcher (src/bin/ft-launch.rs) include this file, because both
//! have to find a libtorch before one is linked or loaded. Loads nothing and does not change the process.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The version series that this binary is built against; others have another C++ interface.
pub const SERIES: &str = "2.11";

/// The library that the binary is linked against; a folder that has it is a libtorch.
pub const LIBRARY: &str = "libtorch_cpu.so";

/// A folder with `lib/libtorch_cpu.so`, as the PyTorch wheel (`site-packages/torch`) and the libtorch archive lay it
/// out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// The folder above `lib`.
    pub root: PathBuf,
    /// The folder that holds the shared libraries.
    pub lib: PathBuf,
    /// Version according to the folder, e.g. `2.11.0+cu130`; `None` if it has no version file.
    pub version: Option<String>,
    /// The CUDA version it was built for, e.g. `13.0`; `None` for a CPU build or if the folder does not say.
    pub cuda: Option<String>,
}

impl Libtorch {
    /// Finds the libtorch at `folder`, which may be its root, its `lib`, or the site-packages folder above it; `None`
    /// if there is none.
    pub fn at(folder: &Path) -> Option<Libtorch> {
        let lib = [folder.join("lib"), folder.to_path_buf(), folder.join("torch/lib"), folder.join("libtorch/lib")]
            .into_iter()
            .find(|lib| lib.join(LIBRARY).is_file())?;
        let lib = fs::canonicalize(&lib).unwrap_or(lib);
        let root = lib.parent().unwrap_or(Path::new("/")).to_path_buf();
        let (version, cuda) = read_version(&root);
        Some(Libtorch { root, lib, version, cuda })
    }

    /// Returns whether the binary can run on it; `None` if its version is unknown.
    pub fn fits(&self) -> Option<bool> {
        let version = self.version.as_deref()?;
        Some(version.strip_prefix(SERIES).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+'])))
    }

    /// Returns the version for messages: `2.11.0+cu130`, or "of unknown version".
    pub fn version_text(&self) -> &str {
        self.version.as_deref().unwrap_or("of unknown version")
    }
}

/// Reads version and CUDA version from `version.py`, which a wheel has, or `build-version`, which a libtorch archive
/// has.
fn read_version(root: &Path) -> (Option<String>, Option<String>) {
    if let Ok(text) = fs::read_to_string(root.join("version.py")) {
        let value = |key: &str| {
            let line = text.lines().find(|l| l.starts_with(key))?;
            let quoted = line.split_once('=')?.1.trim();
            let inner = quoted.strip_prefix(['\'', '"'])?.strip_suffix(['\'', '"'])?;
            Some(inner.to_string())
        };
        return (value("__version__"), value("cuda"));
    }
    let version = fs::read_to_string(root.join("build-version")).ok().map(|text| text.trim().to_string());
    let cuda = version.as_deref().and_then(|v| v.split_once("+cu")).and_then(|(_, digits)| {
        let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
        Some(format!("{major}.{minor}"))
    });
    (version, cuda)
}

/// Returns the torch folders of the Python environment that the program is installed in: for PREFIX/bin/ft, those under
/// PREFIX/lib/python3*. pip installed ft and that torch for each other.
pub fn own_environment(exe: Option<&Path>) -> Vec<PathBuf> {
    let prefix = exe.and_then(Path::parent).filter(|folder| folder.ends_with("bin")).and_then(Path::parent);
    prefix.map(site_packages).unwrap_or_default().into_iter().map(|site| site.join("torch")).collect()
}

/// Returns the folders to search if no libtorch was named, nearest first. `exe` is the file of the running program.
pub fn usual_places(exe: Option<&Path>) -> Vec<PathBuf> {
    let mut places = own_environment(exe);
    if let Some(beside) = exe.and_then(Path::parent) {
        places.extend([beside.join("libtorch"), beside.join("torch"), beside.join("../lib"), beside.to_path_buf()]);
        places.extend(beside.ancestors().take(4).map(|folder| folder.join(".libtorch/torch")));
    }
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|v| folder_in(v)).collect();
    // `pip install torch` puts its files under the prefix of a Python: PREFIX/bin/python3. So look at the Pythons next
    // to the program and on PATH, also with links resolved, because an environment may use the packages of the Python
    // it was made from.
    let beside = exe.and_then(Path::parent).map(Path::to_path_buf);
    for bin in beside.into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())) {
        let python = bin.join("python3");
        if python.is_file() {
            prefixes.extend(bin.parent().map(Path::to_path_buf));
            prefixes.extend(fs::canonicalize(&python).ok().and_then(|p| Some(p.parent()?.parent()?.to_path_buf())));
        }
    }
    prefixes.extend(folder_in("HOME").map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr", "/opt/conda", "/opt/venv"].map(PathBuf::from));
    for prefix in prefixes {
        places.extend(site_packages(&prefix).into_iter().map(|site| site.join("torch")));
    }
    places.extend(["/usr/local/libtorch", "/opt/libtorch", "/usr/lib/libtorch"].map(PathBuf::from));
    let mut seen = std::collections::HashSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

fn folder_in(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Returns `PREFIX/lib/python3*/site-packages` and Debian's `dist-packages`, the newest Python first.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for lib in ["lib", "lib64"] {
        for entry in fs::read_dir(prefix.join(lib)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(minor) = name.strip_prefix("python3") else { continue };
            let minor = minor.trim_start_matches('.').parse().unwrap_or(0);
            found.extend(["site-packages", "dist-packages"].map(|site| (minor, entry.path().join(site))));
        }
    }
    found.sort_by_key(|(minor, _)| std::cmp::Reverse(*minor));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Returns `LD_LIBRARY_PATH` with `lib` in front, so that the loader prefers this libtorch to the one ft was built
/// against.
pub fn library_path(lib: &Path) -> OsString {
    let mut value = lib.as_os_str().to_os_string();
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH").filter(|rest| !rest.is_empty()) {
        value.push(":");
        value.push(rest);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a libtorch, with one more file.
    fn folder(file: &str, text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("lib")).expect("lib");
        fs::write(dir.path().join("lib").join(LIBRARY), "").expect("library");
        fs::write(dir.path().join(file), text).expect("version file");
        dir
    }

    #[test]
    fn versions_are_read_from_the_wheel_and_from_the_archive() {
        let wheel = folder("version.py", "__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n");
        let here = Libtorch::at(wheel.path()).expect("recognised");
        assert_eq!((here.version.as_deref(), here.cuda.as_deref()), (Some("2.11.0+cu130"), Some("13.0")));
        assert_eq!(Libtorch::at(&wheel.path().join("lib")).as_ref(), Some(&here), "its lib names the same libtorch");
        let archive = folder("build-version", "2.11.0+cu126\n");
        let here = Libtorch::at(archive.path()).expect("recognised");
        assert_eq!((here.version.as_deref(), here.cuda.as_deref()), (Some("2.11.0+cu126"), Some("12.6")));
        let cpu = folder("version.py", "__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None\n");
        assert_eq!(Libtorch::at(cpu.path()).expect("recognised").cuda, None);
        assert_eq!(Libtorch::at(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_program_in_an_environment_looks_there_first() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let prefix = dir.path().join(".venv");
        let torch = prefix.join("lib/python3.12/site-packages/torch");
        fs::create_dir_all(torch.parent().expect("a parent")).expect("folders");
        let places = usual_places(Some(&prefix.join("bin/ft")));
        assert_eq!(places[0], torch);
        // A checkout around the environment comes later.
        assert!(places.contains(&dir.path().join(".libtorch/torch")), "{places:?}");
        assert!(own_environment(Some(&prefix.join("elsewhere/ft"))).is_empty());
    }

    #[test]
    fn only_the_series_built_against_fits() {
        let fits = |version: &str| Libtorch::at(folder("build-version", version).path()).expect("recognised").fits();
        assert_eq!([fits("2.11.0"), fits("2.11.1+cu130"), fits("2.11")], [Some(true); 3]);
        assert_eq!([fits("2.1.1"), fits("2.110.0"), fits("2.10.0+cpu")], [Some(false); 3]);
        assert_eq!(Libtorch::at(folder("README", "").path()).expect("recognised").fits(), None);
    }
}
