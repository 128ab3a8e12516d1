# Stages of a demo, for scripts that are read by bash: each is skipped when it was done with the same command on the same
# content of its inputs. Needs FT and RUNS.

# What a command and the files that it reads come to; where ft lies is no part of it.
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

# stage NAME RESULT INPUT... -- COMMAND...
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

# training NAME FOLDER INPUT... -- ARGUMENTS of ft train
training() {
    local name=$1 folder=$2 now how=--overwrite
    now=$(key "${@:3}")
    # Broken off with the same inputs: go on.
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
    # `--resume` is no other work: the key is that of the arguments.
    stage "$name" "$folder/summary.json" "${inputs[@]}" -- train "${arguments[@]}"
}
