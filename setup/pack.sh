#!/usr/bin/env bash
# pack.sh LAUNCHER BINARY OUT: writes a single file that finds a libtorch and runs BINARY with it (see src/bin/ft-launch.rs).
set -euo pipefail
folder=$(dirname "$3")
mkdir -p "$folder"
parts=$(mktemp -d "$folder/.pack-XXXXXX")
trap 'rm -rf "$parts"' EXIT
strip -o "$parts/launcher" "$1"
strip -o "$parts/binary" "$2"
{
    cat "$parts/launcher" "$parts/binary"
    printf '%020dft-payload-1' "$(stat -c %s "$parts/binary")"
} > "$parts/packed"
chmod 755 "$parts/packed"
mv "$parts/packed" "$3"
