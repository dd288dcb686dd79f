#!/usr/bin/env bash
# One experiment on this machine, outside any queue:
#
#     jobs/local.sh jobs/digits.yaml [RANKS] [--OPTION VALUE ...]
#
# Without RANKS there is one rank per core, and one more for the server, which sleeps while the others train. Results are
# written to runs/NAME-DATE.h5, where NAME is that of the YAML file. `output:` in that file, or --output, chooses another
# file.
set -euo pipefail

config=${1:?usage: jobs/local.sh CONFIG.yaml [RANKS] [--OPTION VALUE ...]}
shift
ranks=$(($(nproc) + 1))
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    ranks=$1
    shift
fi

# The name of the results file, and its time stamp if it exists already.
output=$(python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1])).get("output") or "")' "$config" 2>/dev/null || true)
output=${output:-runs/$(basename "$config" .yaml)-$(date +%Y%m%d-%H%M%S)-$$.h5}
option='' resumes='' asks=''
for word in "$@"; do
    [[ $option == --output ]] && output=$word
    case $word in
    --output=*) output=${word#*=} ;;
    --resume*) resumes=yes ;;
    -h | --help | --*.help* | --print_config*) asks=yes ;;
    esac
    option=$word
done
before=$(stat --format '%i %y' "$output" 2>/dev/null || true)

launch=(mpirun -n "$ranks")
if mpirun --version | grep -qiE 'open mpi|openrte'; then
    launch+=(--oversubscribe) # or it refuses the server's rank, for which there is no core
fi
launch+=(python -m fedmpi --config "$config" "$@")
if [[ $asks ]]; then
    exec "${launch[@]}"
fi

# In the background, because a shell receives signals only while it waits. In a process group of its own (-m), because
# Ctrl-C in a terminal would reach it twice otherwise. mpirun passes signals on to every rank.
set -m
"${launch[@]}" --output "$output" </dev/null &
run=$!
set +m
for signal in INT TERM USR1; do
    # shellcheck disable=SC2064 # each signal has a command of its own
    trap "kill -$signal $run" "$signal"
done
while
    status=0
    wait "$run" || status=$? # that of the signal, if one came in between
    kill -0 "$run" 2>/dev/null
do :; done
wait "$run" || status=$?

# mpirun may end with 0 although a rank has left early. So the status in the file counts.
if ((status == 0)); then
    word=$(python -m fedmpi.results status "$output") || status=1
    if [[ ! $resumes && $before && $before == $(stat --format '%i %y' "$output") ]]; then
        word="as it was before" status=1
    fi
    if ((status)); then
        echo "$output: $word, although mpirun ended without an error" >&2
    fi
fi
exit "$status"
