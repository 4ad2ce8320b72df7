#!/usr/bin/env bash
# Makes the pinned environment of the project, or leaves a finished one alone: install.sh VENV
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:?usage: install.sh VENV}
stamp="$venv/.mmrednet-$(cat "$here"/*.txt | cksum | cut -d' ' -f1)"
if [ -e "$stamp" ]; then
    echo "== environment: $venv (finished, reused)"
    exit 0
fi

step() { echo "== environment: $*"; }
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "mmrednet needs Python 3.10 or newer (3.11 is tested), got $("$python" --version); set PYTHON=" >&2
    exit 1
}
step "1/4 virtual environment at $venv"
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@" -c "$here/constraints.txt"; }
step '2/4 torch'
pip install -r "$here/torch.txt"
pip install -r "$here/build.txt"
step '3/4 mmcv: its operators are compiled once, about 13 minutes on two cores, seconds when pip has the wheel'
# the build must see the torch of this environment, and compiles for the GPU only where torch has one
MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip install --no-build-isolation "$(grep '^onedl-mmcv==' "$here/stack.txt")"
step '4/4 the other packages'
pip install -r "$here/stack.txt" -r "$here/test.txt" -r "$here/docs.txt"
# the rest of what the Cityscapes scripts ask for serves their viewer, and one is a copy of a standard module
pip install --no-deps -r "$here/cityscapes.txt"
if ! "$venv/bin/python" -c 'import cv2' 2> /dev/null; then
    # the desktop build of OpenCV, which mmcv asks for, needs libGL; the headless one has the same functions
    headless=$(grep '^opencv-python-headless==' "$here/constraints.txt")
    "$venv/bin/python" -m pip uninstall --quiet --yes opencv-python opencv-python-headless
    pip install --no-deps "$headless"
fi
"$venv/bin/python" -c 'import mmcv.ops, mmdet, mmseg, cityscapesscripts.helpers.annotation'
touch "$stamp"
step 'finished'
