#!/bin/bash
# Fuzzes every target for SECONDS_EACH (60) seconds and keeps a minimised corpus. Inputs that break a parser are written
# to fuzz/artifacts.
# Builds into FUZZ_TARGET_DIR (target/fuzz), about 2 GB, which may be removed afterwards.
set -euo pipefail
cd "$(dirname "$0")"
export RUSTC_WRAPPER=$PWD/instrument.sh CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$PWD/../target/fuzz} OMP_NUM_THREADS=1
export LIBTORCH=${LIBTORCH:-$PWD/../.libtorch/torch}
export LD_LIBRARY_PATH=$LIBTORCH/lib:${LD_LIBRARY_PATH:-}
cargo build --release
status=0
for target in ${1:-gguf safetensors recipe config template rows tokenizer labels}; do
    binary=$CARGO_TARGET_DIR/release/$target
    found=$CARGO_TARGET_DIR/found/$target
    mkdir -p "$found" "corpus/$target" "artifacts/$target" "$found.min"
    seeds=(); for s in ../tests/hostile/$target ../tests/fixtures/$target; do [ -d "$s" ] && seeds+=("$s"); done
    [ "$target" = safetensors ] && seeds+=(../tests/hostile/index)
    [ "$target" = recipe ] && seeds+=(../recipes)
    [ "$target" = template ] && seeds+=(../tests/fixtures/templates)
    [ "$target" = tokenizer ] && seeds+=(../tests/fixtures/tiny-tokenizer)
    [ "$target" = config ] && seeds+=(../tests/hostile/adapter_config)
    echo "== $target"
    "$binary" -max_total_time="${SECONDS_EACH:-60}" -max_len=16384 -rss_limit_mb=4096 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" "$found" "corpus/$target" ${seeds[@]+"${seeds[@]}"} 2>&1 | tail -n "${LINES_SHOWN:-25}" || status=1
    rm -rf "$found.min"; mkdir "$found.min"
    "$binary" -merge=1 -max_len=4096 "$found.min" "$found" "corpus/$target" >/dev/null 2>&1 || true
    # Keeps about 80 files spread over all sizes, smallest first, at most 70 kB per target.
    python3 - "$found.min" "corpus/$target" <<'PY'
import pathlib, shutil, sys
source, kept = map(pathlib.Path, sys.argv[1:])
for old in kept.iterdir():
    old.unlink()
files = sorted(source.iterdir(), key=lambda f: (f.stat().st_size, f.name))
room = 70_000
for file in files[:: max(1, -(-len(files) // 80))]:
    room -= file.stat().st_size
    if room < 0:
        break
    shutil.copy(file, kept / file.name)
PY
done
exit $status
