#!/usr/bin/env bash
# Run tools/test.py in several processes: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="${3}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$root/tools/test.py" "${@:1:2}" --launcher pytorch "${@:4}"
