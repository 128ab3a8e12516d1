#!/usr/bin/env bash
# build.sh [FOLDER]: builds the fake CUDA device into FOLDER (target/fake_cuda) and prints the lib folder of a libtorch
# with it: links to the files of LIBTORCH (.libtorch/torch), but libtorch_cuda.so, libcuda.so.1 and libnvrtc.so.13 are the
# stand-ins. Does nothing if neither the sources nor the libtorch changed since. Takes about two minutes of CPU time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-${CARGO_TARGET_DIR:-target}/fake_cuda}
mkdir -p "$out"
out=$(cd "$out" && pwd)
torch=$(readlink -f "${LIBTORCH:-.libtorch/torch}")
lib=$out/libtorch/torch/lib

exec 9>"$out/lock"
flock 9

base=$(stat -Lc '%n %s %Y' "$torch/lib/libtorch_cpu.so"; g++ --version)
# Prints a name for what the compiler makes of the given sources with this libtorch and these settings.
key() { { echo "$base"; cat "$@" tests/fake_cuda/*.h tests/fake_cuda/build.sh; } | sha256sum | cut -c1-16; }

all=$(key tests/fake_cuda/*.cpp tests/fake_cuda/driver.c native/cuda/*)
if [ "$(cat "$out/built" 2>/dev/null)" != "$all" ]; then
    flags=(-std=c++17 -O1 -fPIC -w -D_GLIBCXX_USE_CXX11_ABI=1)
    flags+=(-I"$torch/include" -I"$torch/include/torch/csrc/api/include")
    rm -f "$out/built"
    mkdir -p "$out/objects"
    objects=()
    driver=()
    # The stand-ins for the driver and NVRTC, with ft's own kernels for each number format.
    for number in 0 1 2; do
        object=$out/objects/kernels$number-$(key tests/fake_cuda/kernels.cpp native/cuda/*).o
        driver+=("$object")
        [ ! -f "$object" ] || continue
        rm -f "$out/objects/kernels$number"-*
        [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
        { g++ -std=c++17 -O2 -ffp-contract=off -fPIC -w -DFT_NUMBER=$number -c tests/fake_cuda/kernels.cpp -o "$object.part" &&
            mv "$object.part" "$object"; } >&2 &
    done
    # The longest first, on two cores.
    parts=(attention compute_kernels dispatch memory_kernels hooks tensors generator streams graphs memory pinned counters)
    for part in "${parts[@]}"; do
        object=$out/objects/$part-$(key "tests/fake_cuda/$part.cpp").o
        objects+=("$object")
        [ ! -f "$object" ] || continue
        rm -f "$out/objects/$part"-*
        [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
        { g++ "${flags[@]}" -c "tests/fake_cuda/$part.cpp" -o "$object.part" && mv "$object.part" "$object"; } >&2 &
    done
    wait # an object that failed is missed by the linker

    rm -rf "$out/libtorch"
    mkdir -p "$lib"
    # libtorch_cpu.so of a CUDA build finds CUDA's small libraries beside the torch folder.
    [ ! -d "$torch/../nvidia" ] || ln -s "$(readlink -f "$torch/../nvidia")" "$out/libtorch/nvidia"
    for file in version.py build-version; do [ ! -f "$torch/$file" ] || cp "$torch/$file" "$out/libtorch/torch/"; done
    for file in "$torch"/lib/*; do
        case ${file##*/} in
            libtorch_cuda* | libc10_cuda* | libtorch_nvshmem* | libcaffe2_nvrtc*) ;;
            *) ln -s "$file" "$lib/" ;;
        esac
    done
    link=(-L"$torch/lib" -ltorch_cpu -lc10 -Wl,--allow-shlib-undefined)
    g++ -shared "${objects[@]}" -o "$lib/libtorch_cuda.so" "${link[@]}"
    gcc -O1 -fPIC -w -c tests/fake_cuda/driver.c -o "$out/objects/driver.o"
    g++ -std=c++17 -O1 -fPIC -w -c tests/fake_cuda/launches.cpp -o "$out/objects/launches.o"
    g++ -shared "$out/objects/driver.o" "$out/objects/launches.o" "${driver[@]}" -Wl,-soname,libcuda.so.1 -o "$lib/libcuda.so.1" -ldl
    ln -s libcuda.so.1 "$lib/libnvrtc.so.13"
    echo "$all" >"$out/built"
fi
echo "$lib"
