#!/usr/bin/env bash
# gpu_pack.sh FT OUT: packs the single-file FT of `make dist` and the stripped test binary of the same sources into OUT
# (.tar.xz), for benches/gpu_check.py on a machine without the build tools. Both contain the same libraries, so a
# dictionary that spans both saves bytes.
set -euo pipefail
built='import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("target", {}).get("name") == "all" and message.get("executable"):
        print(message["executable"])'
tests=$(cargo test --release --no-run --test all --message-format=json | python3 -c "$built")
parts=$(mktemp -d "$(dirname "$2")/.gpu-pack-XXXXXX")
trap 'rm -rf "$parts"' EXIT
cp "$1" "$parts/ft"
strip -o "$parts/tests" "$tests"
tar -C "$parts" -c ft tests | xz -T0 -6 --lzma2=dict=128MiB >"$parts/packed"
mv "$parts/packed" "$2"
