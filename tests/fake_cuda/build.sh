#!/usr/bin/env bash
# build.sh [FOLDER]: builds the fake CUDA device into FOLDER (target/fake_cuda) and prints the lib folder of a libtorch with it: links
# to the files of LIBTORCH (.libtorch/torch), but libtorch_cuda.so, libcuda.so.1 and libnvrtc.so.13 are the stand-ins. Does nothing if neither the
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
state=$({ echo "$torch"; stat -Lc '%s %Y' "$torch/lib/libtorch_cpu.so"; sha256sum tests/fake_cuda/*.{cpp,c,h,sh} native/cuda/*; g++ --version; } | sha256sum)
if [ "$(cat "$out/built" 2>/dev/null)" != "$state" ]; then
    flags=(-std=c++17 -O1 -fPIC -w -D_GLIBCXX_USE_CXX11_ABI=1 -I"$torch/include" -I"$torch/include/torch/csrc/api/include")
    rm -rf "$out/built" "$out/objects"
    mkdir -p "$out/objects"
    # The stand-ins for the driver and NVRTC, with ft's own kernels for each number format.
    mkdir -p "$out/driver"
    gcc -O1 -fPIC -w -c tests/fake_cuda/driver.c -o "$out/driver/driver.o"
    g++ -std=c++17 -O1 -fPIC -w -c tests/fake_cuda/launches.cpp -o "$out/driver/launches.o"
    printf '%s\0' 0 1 2 | xargs -0 -P 2 -I{} \
        g++ -std=c++17 -O2 -ffp-contract=off -fPIC -w -DFT_NUMBER={} -c tests/fake_cuda/kernels.cpp -o "$out/driver/kernels{}.o" >&2
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
    g++ -shared "$out"/driver/*.o -Wl,-soname,libcuda.so.1 -o "$lib/libcuda.so.1" -ldl
    ln -s libcuda.so.1 "$lib/libnvrtc.so.13"
    echo "$state" >"$out/built"
fi
echo "$lib"
