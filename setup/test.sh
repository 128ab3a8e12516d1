#!/usr/bin/env bash
# Runs the tests and closes with one line, `N passed, N failed, N skipped`, summed over all of cargo's test binaries.
#
# Rust's harness cannot skip. A test that lacks a tool writes a line into the file FT_TEST_SKIPPED and returns
# (tests/needs.rs); here it is taken from the passed ones and named. Without that variable it fails.
set -uo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FT_TEST_SKIPPED="$work/skipped"
touch "$FT_TEST_SKIPPED" "$work/log"

# Tests run side by side on tiny models: more threads inside libtorch would only wait for each other.
run() {
    OMP_NUM_THREADS=1 cargo test --release --no-fail-fast "$@" 2>&1 </dev/null | tee -a "$work/log"
    return "${PIPESTATUS[0]}"
}

# Modules that compare numbers: they must pass on every instruction set that a user's processor may end at.
NUMERIC=(adapters:: distill:: families:: formats:: generate:: heads:: nn:: optimisers:: parity:: ppo:: preference_losses:: properties::
    resume:: reward:: rl:: selftest:: trajectories::)

status=0
run || status=$?
# Nothing ran where the build failed, and nothing would now.
if grep -qw avx512f /proc/cpuinfo && grep -q '^test result:' "$work/log"; then
    echo "the tests of numbers once more, as on a processor without AVX-512 (FT_CPU=avx2): ${NUMERIC[*]}"
    FT_CPU=avx2 run --lib --test all -- "${NUMERIC[@]}" || status=$?
fi

if [ -s "$FT_TEST_SKIPPED" ]; then
    echo "skipped:"
    sort -u "$FT_TEST_SKIPPED" | sed 's/^/  /'
fi
awk -v skipped="$(wc -l <"$FT_TEST_SKIPPED")" '
    /^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i - 1); if ($i ~ /^failed/) failed += $(i - 1) } }
    # Of a test binary that was killed there is no sum, but perhaps a skipped test.
    END { if (passed >= skipped) passed -= skipped; printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$work/log"
exit "$status"
