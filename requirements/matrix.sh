#!/usr/bin/env bash
# Runs tests in further environments, which lie beside the project's own: matrix.sh VENV [NAME...]
#
#   oldest    the oldest torch, mmrednet.ops alone, without the OpenMMLab stack
#   newest    the newest torch, likewise
#   original  the original distribution of the stack (mmcv, mmengine, mmdet, mmsegmentation)
#
# PYTHON_<NAME> chooses an interpreter, and TESTS the tests. What was run is printed at the end.
set -euo pipefail
# make puts the clone there, but the tests import the copy that is made below
unset PYTHONPATH
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
base=${1:?usage: matrix.sh VENV [NAME...]}
shift
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(oldest newest original)
shopt -s nullglob
cd "$root"
ops_tests=(tests/test_ops.py tests/test_fused.py tests/test_difference*.py tests/test_native*.py)

step() { echo "== $name: $*"; }

# print the first of the interpreters that runs
first_python() {
    for python in "$@"; do
        if "$python" -c '' 2> /dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

install_ops() { "$venv/bin/python" -m pip -qq install -r "$here/matrix/$name.txt"; }

install_original() {
    pip() { "$venv/bin/python" -m pip -qq install -c "$here/constraints.txt" "$@"; }
    pip "$(grep '^torch==' "$here/matrix/original.txt")" -r "$here/build.txt"
    step 'mmcv: its operators are compiled once, about 13 minutes on two cores'
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip --no-build-isolation \
        "$(grep '^mmcv==' "$here/matrix/original.txt")"
    # what the tests need of the other distribution's list is not the stack itself
    grep -v '^onedl-' "$here/stack.txt" > "$venv/other.txt" || true
    pip -r "$here/matrix/original.txt" -r "$venv/other.txt" -r "$here/test.txt" -r "$here/docs.txt"
    "$venv/bin/python" -m pip -qq install --no-deps -c "$here/constraints.txt" -r "$here/cityscapes.txt"
    if ! "$venv/bin/python" -c 'import cv2' 2> /dev/null; then
        # the desktop build of OpenCV needs libGL
        "$venv/bin/python" -m pip uninstall --quiet --yes opencv-python opencv-python-headless
        pip --no-deps "$(grep '^opencv-python-headless==' "$here/constraints.txt")"
    fi
}

install() {
    local wanted=$1 python stamp
    stamp="$venv/.$(cat "$here/matrix/$name.txt" | cksum | cut -d' ' -f1)"
    [ ! -e "$stamp" ] || return 0
    # word splitting is meant: a list of interpreters
    # shellcheck disable=SC2086
    python=$(first_python $wanted) || {
        echo "== $name: none of these interpreters runs: $wanted" >&2
        return 1
    }
    step "$("$python" --version) at $venv"
    "$python" -m venv "$venv"
    if [ "$name" = original ]; then install_original; else install_ops; fi
    touch "$stamp"
}

# compile the kernels for this torch in a copy of the tree, and run the tests there
run_tests() {
    local copy="build/matrix/$name"
    rm -rf "$copy"
    mkdir -p "$copy"
    cp -r setup.py pyproject.toml README.md CONTRIBUTING.md CHANGELOG.md Makefile mmrednet tests configs docs tools requirements "$copy"
    rm -f "$copy"/mmrednet/ops/_C*
    (
        cd "$copy"
        export PYTHONPATH=$PWD PATH="$venv/bin:$PATH"
        python setup.py build_ext --inplace > build.log 2>&1
        grep '^mmrednet:' build.log || true
        python - <<'END'
import importlib.metadata as metadata, platform
from mmrednet.ops import active_kernels
names = 'torch', 'numpy', 'mmcv', 'mmengine', 'mmdet', 'mmsegmentation'
found = {d.metadata['Name']: d.version for d in metadata.distributions()}
print('Python', platform.python_version(), *(f'{n} {found[n]}' for n in names if n in found), sep=', ')
print('CPU kernels:', active_kernels()['cpu'])
END
        python -m pytest -p no:cacheprovider "${tests[@]}"
    )
}

summary=()
status=0
for name in "${names[@]}"; do
    venv=$(dirname "$base")/$(basename "$base")-$name
    case $name in
        # torch.compile of 2.5 and 2.6 cannot unpack a Window
        oldest)
            interpreters=${PYTHON_OLDEST:-python3.10 python3}
            tests=("${ops_tests[@]}" -k 'not one_graph')
            ;;
        newest) interpreters=${PYTHON_NEWEST:-python3.13 python3} tests=("${ops_tests[@]}") ;;
        original) interpreters=${PYTHON_ORIGINAL:-python3} tests=(tests) ;;
        *) echo "no such environment: $name (oldest, newest or original)" >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2206
    [ -z "${TESTS:-}" ] || tests=($TESTS)
    log="build/matrix-$name.log"
    mkdir -p build
    result=passed
    # the subshell is no part of a condition, where bash would ignore -e
    set +e
    (set -e; install "$interpreters"; run_tests) 2>&1 | tee "$log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || result=FAILED status=1
    set -e
    summary+=("$name $result: $(grep -m1 '^Python, ' "$log" | sed 's/^Python, /Python /'): $(tail -n 1 "$log")")
done
echo '== matrix'
printf '%s\n' "${summary[@]}"
exit $status
