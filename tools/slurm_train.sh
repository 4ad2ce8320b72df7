#!/usr/bin/env bash
# Run tools/train.py as a slurm job: slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of train.py]
# environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of train.py]" >&2; exit 2; }
options=("${@:4}")
# what follows the config is the work directory unless it is an option
if [ $# -ge 4 ] && [[ $4 != -* ]]; then options=(--work-dir "${@:4}"); fi
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086
exec srun --partition="$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$root/tools/train.py" "$3" --launcher slurm "${options[@]}"
