#!/usr/bin/env bash
# Run tools/train.py in several processes: dist_train.sh CONFIG GPUS [options of train.py]
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: dist_train.sh CONFIG GPUS [options of train.py]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="${2}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$root/tools/train.py" "${@:1:1}" --launcher pytorch "${@:3}"
