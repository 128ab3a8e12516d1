//! Programs that are not trusted: what they may do, what they may not, and that nothing of them is left.

use crate::support::command::{processes_of, python};
use crate::support::needs::{NAMESPACES, needs};
use ft::error::Result;
use ft::sandbox::{Isolation, Limits, ProgramEnd, ProgramRun, Sandbox};
use std::path::Path;
use std::time::{Duration, Instant};

fn sandbox(isolation: Isolation, limits: Limits, file: &str) -> Sandbox {
    let command = [python().as_str(), "-S", "{file}"].map(String::from);
    Sandbox::new(isolation, limits, &command, file).unwrap()
}

fn limits() -> Limits {
    Limits { wall: Duration::from_secs(20), cpu: 10, memory: 512 << 20, ..Limits::default() }
}

/// Runs a program of Python under a name of its own, and checks that no process of this name is left.
fn run_with(isolation: Isolation, limits: Limits, name: &str, text: &str) -> ProgramRun {
    let file = format!("ft_{}_{name}_{isolation:?}.py", std::process::id());
    let found = sandbox(isolation, limits, &file).run(text).unwrap();
    assert_eq!(processes_of(&file), 0, "{name}");
    found
}

fn run(name: &str, text: &str) -> ProgramRun {
    run_with(Isolation::Namespaces, limits(), name, text)
}

#[test]
fn a_program_runs_prints_and_fails_with_what_it_said() {
    needs!(NAMESPACES);
    let found =
        run("fine", "import os, sys\nopen('a', 'w').write('x' * 1000)\nprint(os.listdir('.'), os.getuid() != 0)");
    assert_eq!((found.end, found.output.as_str()), (ProgramEnd::Exited(0), "['a'] True\n"), "{found:?}");
    assert!(found.succeeded() && found.summary() == "passed");
    let wrong = run("wrong", "print('begin')\nassert 1 + 1 == 3, 'sums'");
    assert_eq!((wrong.end, wrong.summary().as_str()), (ProgramEnd::Exited(1), "AssertionError: sums"));
    assert_eq!(run("quiet", "import os\nos._exit(3)").summary(), "ended with exit code 3");
    let killed = run("killed", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)");
    assert_eq!(killed.end, ProgramEnd::Signal(libc::SIGSEGV));
}

#[test]
fn forks_are_bounded_and_end_with_the_program() {
    needs!(NAMESPACES);
    let bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n";
    let limits = Limits { wall: Duration::from_secs(2), ..limits() };
    let began = Instant::now();
    let found = run_with(Isolation::Namespaces, limits, "bomb", bomb);
    assert_eq!(found.end, ProgramEnd::TimedOut);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let count = "import os, time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            time.sleep(60)\n        \
                 n += 1\nexcept OSError:\n    print(n)\n";
    let counted = run_with(Isolation::Namespaces, Limits { processes: 8, ..limits }, "count", count);
    let children: u64 = counted.output.trim().parse().unwrap();
    // The program is one, and the first process of the namespace may be counted.
    assert!((6..=8).contains(&children), "{counted:?}");
    // A process that leaves its session and its parent.
    let daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\nprint('left')";
    let began = Instant::now();
    assert_eq!(run("daemon", daemon).output, "left\n");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn memory_time_output_and_disk_have_limits() {
    needs!(NAMESPACES);
    let eats = run("memory", "x = []\nwhile True:\n    x.append(bytearray(1 << 20))\n");
    assert_eq!((eats.end, eats.summary().as_str()), (ProgramEnd::Exited(1), "MemoryError"));
    let shares = "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        x = b'x' * (200 << 20)\n        time.sleep(60)\n        \
                  os._exit(0)\ntime.sleep(60)";
    assert_eq!(run("shares", shares).summary(), "used too much memory");
    let first = run("first", "print(open('/proc/self/oom_score_adj').read())");
    assert_eq!(first.output.trim(), "1000");
    let short = Limits { wall: Duration::from_secs(1), ..limits() };
    assert_eq!(
        run_with(Isolation::Namespaces, short, "sleeps", "import time\ntime.sleep(60)").end,
        ProgramEnd::TimedOut
    );
    assert_eq!(run_with(Isolation::Namespaces, short, "endless", "while True: pass").summary(), "did not end in time");
    let busy = Limits { cpu: 1, ..limits() };
    assert_eq!(run_with(Isolation::Namespaces, busy, "cpu", "while True: pass").end, ProgramEnd::Signal(libc::SIGXCPU));
    let ignores = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass";
    assert_eq!(run_with(Isolation::Namespaces, busy, "ignores", ignores).end, ProgramEnd::Signal(libc::SIGKILL));
    let talks = run("talks", "while True: print('x' * 100)");
    assert_eq!((talks.end, talks.output.len()), (ProgramEnd::TooMuchOutput, limits().output));
    let orphan = "import os\nif os.fork() == 0:\n    while True: print('x' * 100)\n";
    assert!(run("orphan", orphan).output.len() <= limits().output);
    let fills = "try:\n    for i in range(100):\n        open(str(i), 'wb').write(b'x' * (1 << 20))\nexcept OSError as e:\n    print(i, e.strerror)\n";
    assert_eq!(run("fills", fills).output, "16 No space left on device\n");
    let many = "try:\n    for i in range(100000):\n        open(str(i), 'w').close()\nexcept OSError as e:\n    print(e.strerror)\n";
    assert_eq!(run("many", many).output, "No space left on device\n");
    let large = "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ntry:\n    open('a', 'wb').truncate(1 << 30)\nexcept OSError as e:\n    print(e.strerror)\n";
    assert_eq!(run("large", large).output, "File too large\n");
}

#[test]
fn nothing_outside_can_be_reached() {
    needs!(NAMESPACES);
    let outside = tempfile::NamedTempFile::new().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        r#"
import ctypes, os, socket, sys
def tried(what, f):
    try:
        f()
        print('DONE', what)
    except (OSError, AttributeError) as e:
        print(what, type(e).__name__)
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), 'x')
tried('tcp', lambda: socket.create_connection(('127.0.0.1', {port}), 2))
tried('unix', lambda: socket.socket(socket.AF_UNIX))
tried('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
tried('write', lambda: open('{outside}', 'w'))
tried('tmp', lambda: open('/tmp/ft-x', 'w'))
tried('shm', lambda: open('/dev/shm/ft-x', 'w'))
tried('own file', lambda: open(sys.argv[0], 'a'))
tried('setuid', lambda: os.setuid(0))
tried('mount', lambda: call(libc.mount, b'none', b'/', None, 32 | 4096 | 1, None))
tried('namespace', lambda: call(libc.unshare, 0x10000000))
tried('io_uring', lambda: call(libc.syscall, 425, 8, ctypes.create_string_buffer(200)))
tried('first process', lambda: open('/proc/1/environ', 'rb').read())
tried('kill', lambda: os.kill({pid}, 0))
for device in os.listdir('/dev'):
    if device.startswith(('vd', 'sd', 'nvme', 'mem', 'kmsg')):
        tried(device, lambda: open('/dev/' + device, 'rb'))
print(len([p for p in os.listdir('/proc') if p.isdigit()]) <= 2, os.environ.get('FT_SECRET'))
open('/dev/null', 'w').write('x'); print(len(open('/dev/urandom', 'rb').read(4)))
"#,
        port = listener.local_addr().unwrap().port(),
        outside = outside.path().display(),
        pid = std::process::id(),
    );
    let found = run("reaches", &text);
    let lines: Vec<&str> = found.output.lines().collect();
    let done: Vec<&&str> = lines.iter().filter(|line| line.starts_with("DONE")).collect();
    assert!(done.is_empty() && found.succeeded(), "{found:?}");
    assert_eq!(&lines[lines.len() - 2..], ["True None", "4"], "{found:?}");
    assert_eq!(std::fs::metadata(outside.path()).unwrap().len(), 0);
    assert!(!Path::new("/tmp/ft-x").exists());
}

#[test]
fn with_limits_only_there_are_no_sockets_and_no_other_processes() {
    let only = |name: &str, text: &str| run_with(Isolation::LimitsOnly, limits(), name, text);
    let fine =
        only("fine", "import threading\nt = threading.Thread(target=print, args=('thread',))\nt.start()\nt.join()");
    assert_eq!((fine.end, fine.output.as_str()), (ProgramEnd::Exited(0), "thread\n"), "{fine:?}");
    let bomb = only("bomb", "import os\nos.fork()");
    assert!(!bomb.succeeded() && bomb.summary().contains("Resource temporarily unavailable"), "{bomb:?}");
    assert!(only("socket", "import socket\nsocket.socket()").summary().starts_with("PermissionError"));
    assert_eq!(only("memory", "x = bytearray(1 << 30)").summary(), "MemoryError");
    assert_eq!(only("talks", "while True: print('x')").end, ProgramEnd::TooMuchOutput);
    let short = Limits { wall: Duration::from_secs(1), ..limits() };
    let closes = "import os, time\nos.close(1); os.close(2)\ntime.sleep(60)";
    assert_eq!(run_with(Isolation::LimitsOnly, short, "closes", closes).end, ProgramEnd::TimedOut);
    assert_eq!(run_with(Isolation::LimitsOnly, short, "endless", "while True: pass").end, ProgramEnd::TimedOut);
}

#[test]
fn commands_that_cannot_be_run_are_told() {
    needs!(NAMESPACES);
    let open = |command: &[&str]| -> Result<Sandbox> {
        let command: Vec<String> = command.iter().map(|part| part.to_string()).collect();
        Sandbox::new(Isolation::Namespaces, Limits::default(), &command, "x.py")
    };
    let told = |command: &[&str]| open(command).err().unwrap().to_string();
    assert!(told(&[]).contains("the command names no program"));
    assert!(told(&["python3"]).contains("lacks `{file}`"));
    assert!(told(&["pythn3", "{file}"]).contains("there is no program `pythn3`"));
    // A file of the right mode that is no program.
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "\u{1}\u{2}").unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let sandbox = open(&[broken.to_str().unwrap(), "{file}"]).unwrap();
    let message = sandbox.run("").unwrap_err().to_string();
    assert!(message.contains("starting `") && message.contains("Exec format error"), "{message}");
}
