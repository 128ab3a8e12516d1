#!/usr/bin/env bash
# Reports which build tools are missing and how to install them. With --tests it also checks for tools that single tests need (a
# browser with its driver, PostgreSQL, axe-core, llama.cpp, ONNX Runtime, venv) and, as root on a Debian-like system, installs whatever is
# missing. A test whose tool cannot be installed is skipped by name (tests/it/support/needs.rs); only a missing build tool is an error.
set -u
[ "${1:-}" = --tests ] && tests=yes || tests=
axe="$(dirname "$0" 2>/dev/null)/../target/axe"
llama="$(dirname "$0" 2>/dev/null)/../target/llama-cpp"
have() { command -v "$1" >/dev/null 2>&1; }

# Sets the lists of missing packages: `missing` for building, `wanted` for single tests.
look() {
    missing=() wanted=()
    have g++ || missing+=(g++)
    have make || missing+=(make)
    have python3 || missing+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    [ -n "$tests" ] || return 0
    have chromium || have google-chrome || wanted+=(chromium)
    have chromedriver || wanted+=(chromium-driver)
    have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || wanted+=(postgresql)
    { [ -f "$axe/package/axe.min.js" ] && [ -d "$llama" ]; } || have npm || wanted+=(npm)
    # Debian's python3 does not contain ensurepip.
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || wanted+=(python3-venv)
}

install() { apt-get install -y -qq --no-install-recommends "$@" >&2; }

look
packages=("${missing[@]}" "${wanted[@]}")
if [ -n "$tests" ] && [ ${#packages[@]} -gt 0 ] && have apt-get && [ "$(id -u)" = 0 ]; then
    echo "installing ${packages[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    # If one package is unavailable, install the others one by one.
    install "${packages[@]}" || for package in "${packages[@]}"; do install "$package"; done
    look
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "error: missing: ${missing[*]}" >&2
    echo "hint: on Debian or Ubuntu: apt-get install ${missing[*]}" >&2
    exit 1
fi
if ! have cargo; then
    echo "error: cargo is missing: Rust 1.89 or newer is needed" >&2
    echo "hint: install Rust with rustup, or from your distribution where it is new enough" >&2
    exit 1
fi
version=$(rustc --version 2>/dev/null | sed -n 's/^rustc 1\.\([0-9]*\).*/\1/p')
if [ -n "$version" ] && [ "$version" -lt 89 ]; then
    echo "error: $(rustc --version) is too old: 1.89 or newer is needed" >&2
    echo "hint: rustup update stable" >&2
    exit 1
fi
[ -n "$tests" ] || exit 0

if [ ${#wanted[@]} -gt 0 ]; then
    echo "note: tests that need ${wanted[*]} will be skipped; to run them: apt-get install ${wanted[*]}" >&2
fi
pin=axe-core@4.10.3
sha256=0f2b4d7dcdf7d1219df8d1959ad68e565f51d14c3f0d88bb71cd59abeb956292
fetch_axe() {
    mkdir -p "$axe" && cd "$axe" && pack=$(npm pack --silent --fetch-retries=1 "$pin") || return
    echo "$sha256  $pack" | sha256sum --check --status && tar -xzf "$pack" package/axe.min.js package/LICENSE
}
if [ ! -f "$axe/package/axe.min.js" ] && have npm && ! (fetch_axe); then
    echo "note: $pin cannot be fetched from npm, so tests of accessibility will be skipped" >&2
fi
# Packages that carry a compiled llama.cpp.
node_llama=3.22.1
[ "$(uname -m)" = aarch64 ] && arch=arm64 || arch=x64
fetch_llama() {
    rm -rf "$llama.part" && npm install --prefix "$llama.part" --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error --fetch-retries=1 \
        "node-llama-cpp@$node_llama" "@node-llama-cpp/linux-$arch@$node_llama" >&2 && mv "$llama.part" "$llama"
}
if [ ! -d "$llama" ] && have npm && ! (fetch_llama); then
    echo "note: node-llama-cpp@$node_llama cannot be fetched from npm, so the tests that run files in llama.cpp will be skipped" >&2
fi
runtime=onnxruntime==1.32.0
ort="$(dirname "$0")/../target/onnxruntime"
fetch_ort() {
    mkdir -p "$ort.part" && python3 -m pip install --quiet --upgrade --only-binary=:all: --target "$ort.part" "$runtime" >&2 && mv "$ort.part" "$ort"
}
if [ ! -d "$ort" ] && ! fetch_ort; then
    echo "note: $runtime cannot be fetched, so tests that run exported models in it will be skipped" >&2
fi
if ! python3 "$(dirname "$0")/wheels.py" nvrtc >&2; then
    echo "note: NVRTC cannot be fetched, so the test that compiles the CUDA kernels for GPUs will be skipped" >&2
fi
exit 0
