# Functions to run the stages of a demo; to be sourced by a bash script that sets FT and RUNS. A stage is skipped if it was
# completed before with the same command and the same content of its inputs.

# key INPUT... -- COMMAND...: prints a hash of the command and the content of its input files. The path of ft does not count.
key() {
    local inputs=() file
    while [ "$1" != -- ]; do
        if [ -d "$1" ]; then
            while IFS= read -r file; do inputs+=("$file"); done < <(find "$1" -maxdepth 1 -type f ! -name export_report.json | sort)
        else
            inputs+=("$1")
        fi
        shift
    done
    { printf '%s\n' "${@/#"$FT"/ft}"; sha256sum "${inputs[@]}"; } | sha256sum | cut -d' ' -f1
}

# stage NAME RESULT INPUT... -- COMMAND...: runs the command unless it is unchanged and RESULT exists.
stage() {
    local name=$1 result=$2 now
    shift 2
    now=$(key "$@")
    if [ -e "$result" ] && [ "$(cat "$RUNS/$name.done" 2>/dev/null)" = "$now" ]; then
        echo "$name: unchanged, $result"
        return
    fi
    while [ "$1" != -- ]; do shift; done
    shift
    echo "$name: $*"
    rm -f "$RUNS/$name.done"
    "$@"
    echo "$now" >"$RUNS/$name.done"
}

# training NAME FOLDER INPUT... -- ARGUMENTS of ft train: the same for a training, which is resumed if it was interrupted.
training() {
    local name=$1 folder=$2 now how=--overwrite
    now=$(key "${@:3}")
    # Interrupted with the same inputs: resume.
    if [ "$(cat "$RUNS/$name.begun" 2>/dev/null)" = "$now" ] && compgen -G "$folder/checkpoints/step-*" >/dev/null; then
        how=--resume
    fi
    local inputs=()
    shift 2
    while [ "$1" != -- ]; do inputs+=("$1"); shift; done
    shift
    local arguments=("$@")
    train() {
        echo "$now" >"$RUNS/$name.begun"
        "$FT" train "${arguments[@]}" --set run.out="$folder" "$how"
    }
    # The stage's key must not depend on --resume or --overwrite, so it is computed from the arguments only.
    stage "$name" "$folder/summary.json" "${inputs[@]}" -- train "${arguments[@]}"
}
