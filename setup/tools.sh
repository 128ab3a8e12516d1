#!/usr/bin/env bash
# Says which build tools are missing and how to get them; with --install, installs them where it can (Debian, as root).
set -u
missing=()
have() { command -v "$1" >/dev/null 2>&1; }
have g++ || missing+=(g++)
have make || missing+=(make)
have python3 || missing+=(python3)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

if [ ${#missing[@]} -gt 0 ] && [ "${1:-}" = --install ] && have apt-get && [ "$(id -u)" = 0 ]; then
    echo "installing ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || exit 1
    missing=()
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "error: missing: ${missing[*]}" >&2
    echo "hint: on Debian or Ubuntu: apt-get install ${missing[*]}" >&2
    exit 1
fi
if ! have cargo; then
    echo "error: cargo is missing: Rust 1.88 or newer is needed" >&2
    echo "hint: install Rust with rustup, or from your distribution where it is new enough" >&2
    exit 1
fi
version=$(rustc --version 2>/dev/null | sed -n 's/^rustc 1\.\([0-9]*\).*/\1/p')
if [ -n "$version" ] && [ "$version" -lt 88 ]; then
    echo "error: $(rustc --version) is too old: 1.88 or newer is needed" >&2
    echo "hint: rustup update stable" >&2
    exit 1
fi
