#!/usr/bin/env python3
"""Packs the single-file ft of `make dist` into a Python wheel. Standard library only.

    wheel.py PACKED FOLDER      FOLDER/ft_toolkit-VERSION-py3-none-PLATFORM.whl, the same bytes for the same PACKED

pip installs the file as a script: `ft` in the environment's bin/, where it finds the libtorch of the torch that the
wheel requires (src/libtorch.rs). The distribution is called ft-toolkit, the command ft.

The platform tag states the glibc and libstdc++ that the binary needs, as its ELF version requirements say. libtorch is
not part of the tag: like other extensions of torch, ft takes it, and its libgomp, from the installed torch.
"""

import base64
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "ft-toolkit"
FOOTER, MARK = 32, b"ft-payload-1"
# The newest GLIBCXX_3.4.N that a manylinux platform allows, oldest platform (its glibc 2.N) first.
LIBSTDCXX = [(24, 28), (28, 31), (29, 34), (30, 35), (33, 39)]


def parts(packed):
    """Returns the launcher and the binary appended to it (setup/pack.sh)."""
    digits, mark = packed[-FOOTER : -len(MARK)], packed[-len(MARK) :]
    if mark != MARK:
        sys.exit("error: nothing is packed into this file; `make dist` does that")
    body = packed[:-FOOTER]
    return body[: -int(digits)], body[-int(digits) :]


def glibc(elf):
    """Returns the smallest N so that the program runs on a manylinux_2_N platform: its glibc is 2.N, with a libstdc++
    of that age."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(elf)
        file.flush()
        text = subprocess.run(["readelf", "-V", "-W", file.name], check=True, capture_output=True, text=True).stdout
    needs = [m[1] for m in re.finditer(r"Name: (\S+)\s+Flags: (?!.*WEAK)", text)]

    def newest(series):
        found = [re.match(rf"{re.escape(series)}(\d+)", need) for need in needs]
        return max((int(match[1]) for match in found if match), default=0)

    libc, libstdcxx = newest("GLIBC_2."), newest("GLIBCXX_3.4.")
    if "GLIBC_ABI_DT_RELR" in needs:
        libc = max(libc, 36)
    if not libstdcxx:
        return libc
    allowing = [minor for allowed, minor in LIBSTDCXX if libstdcxx <= allowed]
    if not allowing:
        sys.exit(f"error: GLIBCXX_3.4.{libstdcxx} is newer than the manylinux platforms that setup/wheel.py knows")
    return max(libc, allowing[0])


def of_cargo(key):
    return re.search(rf'^{key} = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]


def main():
    packed, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
    version = of_cargo("version")
    torch = re.search(r"^torch==(\S+)", (ROOT / "setup/libtorch.txt").read_text(), re.M)[0]
    minor = max(glibc(elf) for elf in parts(packed))
    tag = f"py3-none-manylinux_2_{minor}_{platform.machine()}"
    stem = f"{NAME.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\nSummary: {of_cargo('description')}\n"
        f"License: {of_cargo('license')}\nRequires-Dist: {torch}\n"
    )
    files = {
        f"{stem}.data/scripts/ft": packed,
        f"{info}/LICENSE": (ROOT / "LICENSE").read_bytes(),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: ft {version}\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    sums = {path: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode() for path, data in files.items()}
    record = "".join(f"{path},sha256={sums[path]},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-{tag}.whl"
    partial = wheel.with_suffix(f".{os.getpid()}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, data)
    os.replace(partial, wheel)
    print(f"packed: {wheel} ({wheel.stat().st_size / 1e6:.0f} MB), requires {torch}")


if __name__ == "__main__":
    main()
