#!/usr/bin/env bash
# Run tools/test.py as a slurm job: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
# environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086
exec srun --partition="$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$root/tools/test.py" "$3" "$4" --launcher slurm "${@:5}"
