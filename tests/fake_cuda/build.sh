#!/usr/bin/env bash
# build.sh [FOLDER]: builds the fake CUDA device into FOLDER (target/fake_cuda) and prints the lib folder of a libtorch with it: links
# to the files of LIBTORCH (.libtorch/torch), but libtorch_cuda.so and libcuda.so.1 are the stand-ins. Does nothing if neither the
# sources nor the libtorch changed since. Needs about two minutes of CPU time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-${CARGO_TARGET_DIR:-target}/fake_cuda}
mkdir -p "$out"
out=$(cd "$out" && pwd)
torch=$(readlink -f "${LIBTORCH:-.libtorch/torch}")
lib=$out/libtorch/torch/lib

exec 9>"$out/lock"
flock 9
state=$({ echo "$torch"; stat -Lc '%s %Y' "$torch/lib/libtorch_cpu.so"; sha256sum tests/fake_cuda/*.{cpp,c,h,sh}; g++ --version; } | sha256sum)
if [ "$(cat "$out/built" 2>/dev/null)" != "$state" ]; then
    flags=(-std=c++17 -O1 -fPIC -w -D_GLIBCXX_USE_CXX11_ABI=1 -I"$torch/include" -I"$torch/include/torch/csrc/api/include")
    rm -rf "$out/built" "$out/objects"
    mkdir -p "$out/objects"
    # The longest first, on two cores.
    printf '%s\0' attention compute_kernels dispatch memory_kernels hooks tensors generator streams memory pinned counters |
        xargs -0 -P 2 -I{} g++ "${flags[@]}" -c tests/fake_cuda/{}.cpp -o "$out/objects/{}.o" >&2

    rm -rf "$out/libtorch"
    mkdir -p "$lib"
    # libtorch_cpu.so of a CUDA build finds CUDA's small libraries beside the torch folder.
    [ ! -d "$torch/../nvidia" ] || ln -s "$(readlink -f "$torch/../nvidia")" "$out/libtorch/nvidia"
    for file in version.py build-version; do [ ! -f "$torch/$file" ] || cp "$torch/$file" "$out/libtorch/torch/"; done
    for file in "$torch"/lib/*; do
        case ${file##*/} in libtorch_cuda* | libc10_cuda* | libtorch_nvshmem* | libcaffe2_nvrtc*) ;; *) ln -s "$file" "$lib/" ;; esac
    done
    g++ -shared "$out"/objects/*.o -o "$lib/libtorch_cuda.so" -L"$torch/lib" -ltorch_cpu -lc10 -Wl,--allow-shlib-undefined
    gcc -O1 -shared -fPIC -w -Wl,-soname,libcuda.so.1 tests/fake_cuda/driver.c -o "$lib/libcuda.so.1"
    echo "$state" >"$out/built"
fi
echo "$lib"
