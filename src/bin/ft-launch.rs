//! Finds a libtorch, then runs the real binary with it. This launcher is the first part of the single-file `ft` that
//! `make dist` and `make wheel` build.
//!
//! The real binary is linked against libtorch, so it cannot even start on a machine whose loader does not find one.
//! This launcher is not linked against it. The real binary is appended to the launcher, followed by its length as 20
//! digits and `MARK`. It is copied into anonymous memory and executed there, with LD_LIBRARY_PATH set to the libtorch
//! that was found.

#[path = "../libtorch.rs"]
#[allow(dead_code)]
mod libtorch;

use libtorch::{LIBRARY, Libtorch, SERIES, library_path, own_environment, usual_places};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

const MARK: &[u8; 12] = b"ft-payload-1";
const FOOTER: u64 = 20 + MARK.len() as u64;

fn main() -> ExitCode {
    match launch() {
        Ok(never) => match never {},
        Err(lines) => {
            for (label, line) in ["error"].into_iter().chain(std::iter::repeat("hint")).zip(lines) {
                eprintln!("{label}: {line}");
            }
            ExitCode::from(1)
        }
    }
}

/// Replaces this process by the real binary. Returns only on failure, with the error message and then the hints.
fn launch() -> Result<std::convert::Infallible, Vec<String>> {
    let exe = std::env::current_exe().ok();
    let memory = payload()
        .map_err(|e| vec![format!("unpacking ft into memory: {e}"), "is the file complete? copy it again".into()])?;
    let libtorch = find(exe.as_deref())?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "ft".into());
    let mut ft = Command::new(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    let failed = ft.arg0(name).args(arguments).env("LD_LIBRARY_PATH", library_path(&libtorch.lib)).exec();
    Err(vec![
        format!("starting ft from memory: {failed}"),
        "does this system forbid executing from memory (sysctl vm.memfd_noexec)? build ft on this machine instead"
            .into(),
    ])
}

/// Copies the appended binary into an anonymous file in memory.
fn payload() -> io::Result<File> {
    let mut own = File::open("/proc/self/exe")?;
    let size = own.metadata()?.len();
    let missing = || io::Error::other("nothing is packed into this file; `make dist` does that");
    let mut footer = [0; FOOTER as usize];
    own.seek(SeekFrom::Start(size.checked_sub(FOOTER).ok_or_else(missing)?))?;
    own.read_exact(&mut footer)?;
    let (digits, mark) = footer.split_at(20);
    let length = std::str::from_utf8(digits).ok().and_then(|d| d.parse::<u64>().ok());
    let length = length.filter(|&n| mark == MARK && n + FOOTER < size).ok_or_else(missing)?;
    own.seek(SeekFrom::Start(size - FOOTER - length))?;
    let mut memory = anonymous_file()?;
    let copied = io::copy(&mut own.take(length), &mut memory)?;
    if copied == length { Ok(memory) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn anonymous_file() -> io::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10; // since Linux 6.3; older kernels refuse the flag and need none
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: a NUL-terminated name; the descriptor is new and owned by nobody else.
        let fd = unsafe { libc::memfd_create(c"ft".as_ptr(), flags) };
        if fd >= 0 {
            return Ok(unsafe { File::from_raw_fd(fd) });
        }
    }
    Err(io::Error::last_os_error())
}

/// Finds a libtorch: the one in `FT_LIBTORCH` if it is set; else the first of the right version in the Python
/// environment of this program, LD_LIBRARY_PATH, LIBTORCH and the usual places. The error is a message and hints.
fn find(exe: Option<&Path>) -> Result<Libtorch, Vec<String>> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set("FT_LIBTORCH") {
        let folder = Path::new(&folder);
        let Some(libtorch) = Libtorch::at(folder) else {
            return Err(vec![
                format!("FT_LIBTORCH={}: no {LIBRARY} there", folder.display()),
                "set it to the folder that holds lib/libtorch_cpu.so, e.g. site-packages/torch".into(),
            ]);
        };
        if libtorch.fits() == Some(false) {
            return Err(vec![
                format!(
                    "FT_LIBTORCH={} is libtorch {}, but {SERIES} is needed",
                    folder.display(),
                    libtorch.version_text()
                ),
                format!("install it with: python3 -m pip install torch=={SERIES}.0"),
            ]);
        }
        return Ok(libtorch);
    }
    let mut places = own_environment(exe);
    places.extend(std::env::split_paths(&set("LD_LIBRARY_PATH").unwrap_or_default()));
    places.extend(set("LIBTORCH").map(Into::into));
    places.extend(usual_places(exe));
    let found: Vec<Libtorch> = places.iter().filter_map(|place| Libtorch::at(place)).collect();
    if let Some(fitting) = found.iter().find(|libtorch| libtorch.fits() == Some(true)) {
        return Ok(fitting.clone());
    }
    let mut lines = vec![format!("no libtorch {SERIES} found")];
    let others = found.iter().map(|l| format!("{} is {}", l.root.display(), l.version_text())).take(3);
    lines.extend(others);
    lines.push("set FT_LIBTORCH to the folder of a libtorch or PyTorch that holds lib/libtorch_cpu.so".into());
    lines.push(format!("or install one: python3 -m pip install torch=={SERIES}.0"));
    Err(lines)
}
