#!/usr/bin/env bash
# One experiment on this machine, outside any queue:
#
#     jobs/local.sh jobs/digits.yaml [RANKS] [--OPTION VALUE ...]
#
# RANKS: left out, one rank for each core and one more for the server, which sleeps while the others train.
set -euo pipefail

config=${1:?usage: jobs/local.sh CONFIG.yaml [RANKS] [--OPTION VALUE ...]}
shift
ranks=$(($(nproc) + 1))
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    ranks=$1
    shift
fi

launch=(mpirun -n "$ranks")
if mpirun --version | grep -qiE 'open mpi|openrte'; then
    launch+=(--oversubscribe) # or it refuses the server's rank, for which there is no core
fi
exec "${launch[@]}" python -m fedmpi --config "$config" "$@"
