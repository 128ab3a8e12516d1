#!/usr/bin/env bash
# Runs the tests that `make test` leaves out because they take long or load the whole machine: many annotators at once, a server
# that is killed twenty times, policy gradients from twenty seeds. One at a time, since the load tests measure times.
#
# Two more tests need files that are not in the repository. They are run if these variables name them:
#   FT_IMPORTED, FT_LINES   a directory written by `ft import`, and lines with their ids (tests/reference/check_import.py --write)
#   FT_TEST_TEMPLATES       a folder of fetched chat templates (tests/fixtures/templates/make.py --fetch)
set -uo pipefail
leave_out=()
leave() {
    echo "left out: $1 (set $2 to run it)"
    leave_out+=(--skip "$1")
}
[ -n "${FT_IMPORTED:-}" ] && [ -n "${FT_LINES:-}" ] || leave a_whole_model_gives_the_reference_ids "FT_IMPORTED and FT_LINES"
[ -n "${FT_TEST_TEMPLATES:-}" ] || leave published_templates_render_as_transformers FT_TEST_TEMPLATES
OMP_NUM_THREADS=1 cargo test --release --test all -- --ignored --nocapture --test-threads 1 ${leave_out[@]+"${leave_out[@]}"}
