#!/usr/bin/env bash
# Runs the tests. The last line is the total of all test binaries: `N passed, N failed, N skipped`.
#
# Rust's test harness cannot skip a test. A test that lacks a tool writes a line to the file FT_TEST_SKIPPED and returns
# (tests/it/support/needs.rs), so it counts as passed; this script subtracts it from the passed tests and prints its name. Without that
# variable such a test fails.
set -uo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FT_TEST_SKIPPED="$work/skipped"
touch "$FT_TEST_SKIPPED" "$work/log"

# Tests run in parallel on tiny models, so more than one thread inside libtorch would only wait for the others.
run() {
    OMP_NUM_THREADS=1 cargo test --release --no-fail-fast "$@" 2>&1 </dev/null | tee -a "$work/log"
    return "${PIPESTATUS[0]}"
}

# Modules that compare numbers: they must pass on every instruction set that a user's processor may have. A module is chosen if its
# path contains one of these, both in the library and in tests/it.
NUMERIC=(adapters:: distill:: families:: generate:: ggml:: gguf_base:: gguf_export:: merging:: nn:: number_formats:: optimisers:: parity::
    ppo:: preference_losses:: properties:: quantised:: recurrent:: reward:: rl:: selftest:: stored:: tiled::
    trajectories::)
# Modules whose tests compute on the device in FT_TEST_DEVICE: they run once more on a fake CUDA device (tests/fake_cuda). Of those that
# compare a resumed run with a straight one, some: they take long, and differ in what they save more than in where they compute.
ON_DEVICE=(adapters:: attention:: bandit:: decoding:: distill:: families:: heads:: long:: new_models:: number_formats::
    optimisers:: parity:: ppo:: preference_losses:: properties:: recurrent:: resume::adamw resume::dpo resume::muon reward:: rl:: ropes::
    selftest:: tiled::
    trajectories::)

status=0
run || status=$?
left_out=$(awk '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ /^ignored/) n += $(i - 1) } END { print n + 0 }' "$work/log")
# If the build failed, no test ran, and a second run would fail, too.
if grep -qw avx512f /proc/cpuinfo && grep -q '^test result:' "$work/log"; then
    echo "numeric tests again, limited to AVX2 as on a processor without AVX-512 (FT_CPU=avx2): ${NUMERIC[*]}"
    FT_CPU=avx2 run --lib --test all -- "${NUMERIC[@]}" || status=$?
fi
if grep -q '^test result:' "$work/log"; then
    echo "tests of models again, on a fake CUDA device (tests/fake_cuda): ${ON_DEVICE[*]}"
    began=$SECONDS
    if device=$(bash tests/fake_cuda/build.sh); then
        LD_LIBRARY_PATH=$device${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} FT_TEST_DEVICE=cuda \
            run --test all -- "${ON_DEVICE[@]}" || status=$?
    else
        status=1
    fi
    echo "on the fake CUDA device: $((SECONDS - began)) of $SECONDS s"
fi

if [ "$left_out" -gt 0 ]; then
    echo "left out: $left_out long tests; make nightly runs them"
fi
if [ -s "$FT_TEST_SKIPPED" ]; then
    echo "skipped:"
    sort -u "$FT_TEST_SKIPPED" | sed 's/^/  /'
fi
awk -v skipped="$(wc -l <"$FT_TEST_SKIPPED")" '
    /^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i - 1); if ($i ~ /^failed/) failed += $(i - 1) } }
    # A test binary that was killed prints no total, but may have skipped a test before.
    END { if (passed >= skipped) passed -= skipped; printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$work/log"
exit "$status"
