#!/bin/sh
# Wraps rustc: adds libFuzzer's coverage instrumentation to the crates whose parsers are fuzzed. All other crates are
# compiled as usual, and only once. Works with stable Rust. No sanitizer is used, because the parsers contain no
# unsafe code.
case " $* " in
*" --crate-name ft "* | *" --crate-name gguf "* | *" --crate-name safetensors "* | *" --crate-name recipe "* | \
    *" --crate-name config "* | *" --crate-name template "* | *" --crate-name rows "* | *" --crate-name tokenizer "* | \
    *" --crate-name labels "* | *" --crate-name saphyr_parser "*)
    exec "$@" --cfg fuzzing -Coverflow-checks=on -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0
    ;;
*) exec "$@" ;;
esac
