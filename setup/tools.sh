#!/usr/bin/env bash
# Says which build tools are missing and how to get them; with --install, installs them where it can (Debian, as root).
# With --tests (and with --install) also what the tests of labelling need: a browser with its driver, PostgreSQL, and
# axe-core, which comes from npm into target/axe.
set -u
missing=()
have() { command -v "$1" >/dev/null 2>&1; }
have g++ || missing+=(g++)
have make || missing+=(make)
have python3 || missing+=(python3)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
if [ "${1:-}" = --install ] || [ "${1:-}" = --tests ]; then
    have chromium || have google-chrome || missing+=(chromium)
    have chromedriver || missing+=(chromium-driver)
    have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
    have npm || missing+=(npm)
fi

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

axe=axe-core@4.10.3
axe_sha256=0f2b4d7dcdf7d1219df8d1959ad68e565f51d14c3f0d88bb71cd59abeb956292
if [ "${1:-}" = --install ] || [ "${1:-}" = --tests ]; then
    folder="$(dirname "$0")/../target/axe"
    if [ ! -f "$folder/package/axe.min.js" ]; then
        mkdir -p "$folder" &&
            (cd "$folder" && pack=$(npm pack --silent "$axe") && echo "$axe_sha256  $pack" | sha256sum --check --status &&
                tar -xzf "$pack" package/axe.min.js package/LICENSE) || {
            echo "error: $axe cannot be fetched from npm; the accessibility tests need it" >&2
            echo "hint: put axe.min.js of axe-core into target/axe/package" >&2
            exit 1
        }
    fi
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
