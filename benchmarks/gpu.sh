#!/usr/bin/env bash
# Build, test and measure the kernels on a machine with an NVIDIA GPU: `make gpu`.
#
# The machine has nvcc, torch >= 2.10 and triton; it needs no network. Packages that it lacks are
# installed from the folder of wheels MTLCORE_WHEELS, e.g. filled elsewhere by
#   pip download --no-deps -d wheels pybind11 pluggy psutil pytest iniconfig hypothesis \
#       sortedcontainers annotated-types
# PYTHON is the python to take torch from (.venv's where there is one, else python3). Logs and the benchmarks' JSON lines go to MTLCORE_GPU_OUT
# (default build/gpu); a step that fails does not keep the others from running.
#
# MTLCORE_GPU_DRY=1 goes through the same steps without a GPU: nvcc compiles if it is there, Triton
# interprets, benchmarks run small on the CPU, and what needs the device says so.
set -uo pipefail
cd "$(dirname "$0")/.."

DRY=${MTLCORE_GPU_DRY:-}
OUT=$(realpath -m "${MTLCORE_GPU_OUT:-build/gpu}")
VENV=$OUT/venv
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-$PWD/.venv/bin/python}
PYTHON=${PYTHON:-python3}
PY=$VENV/bin/python
LINES=$OUT/benchmarks.jsonl
SUMMARY=$OUT/summary.txt
mkdir -p "$OUT/path"
ln -sfn "$PWD/plugins" "$OUT/path/mtlcore_plugins" # the package's name for that folder
export PYTHONPATH=$PWD:$OUT/path
: >"$LINES"
: >"$SUMMARY"
failed=0

# step NAME COMMAND...: run it into a log, note seconds and verdict.
step() {
    local name=$1 start=$SECONDS verdict=ok
    shift
    if ! "$@" >"$OUT/$name.log" 2>&1; then
        verdict=FAILED
        failed=1
        tail -n 15 "$OUT/$name.log"
    fi
    printf '%-12s %-7s %4d s\n' "$name" "$verdict" $((SECONDS - start)) | tee -a "$SUMMARY"
}

on_device() { # what cannot run without a GPU
    if [ -n "$DRY" ]; then echo "dry run: not run: $*"; else "$@"; fi
}

where() {
    on_device nvidia-smi || return
    if [ -z "$DRY" ] || command -v nvcc; then nvcc --version || return; fi
    "$PY" -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
}

environment() {
    "$PYTHON" -m venv --system-site-packages --without-pip "$VENV" || return
    # A venv sees the packages of the python that made it, but not those of a venv around that.
    "$PYTHON" -c 'import site, sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth" || return
    local missing=() name
    for name in pybind11 pluggy psutil pytest iniconfig hypothesis sortedcontainers \
        annotated_types; do
        "$PY" -c "import $name" 2>/dev/null || missing+=("${name//_/-}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ -z "${MTLCORE_WHEELS:-}" ]; then
        echo "$PYTHON lacks ${missing[*]}: set MTLCORE_WHEELS to a folder with their wheels"
        return 1
    fi
    echo "installing ${missing[*]} from $MTLCORE_WHEELS"
    "$PY" -m pip install -q --no-index --no-deps --find-links "$MTLCORE_WHEELS" "${missing[@]}"
}

build() {
    MTLCORE_CUDA=$([ -n "$DRY" ] && echo auto || echo on) "$PY" setup.py build_ext --inplace \
        --build-temp "$OUT/cmake" || return
    "$PY" -c "import torch, mtlcore._core as core; print('kernels for CUDA:', core.has_cuda)"
}

tests() {
    if [ -n "$DRY" ]; then
        "$PY" -m pytest -q -p no:cacheprovider tests/ops -k "interpreter or compile"
    else
        "$PY" -m pytest -q -p no:cacheprovider -m gpu tests/ops tests/model/test_row_attention.py
    fi
}

sanitize() { # the CUDA kernels; Triton's are checked in its interpreter
    local tool
    for tool in memcheck racecheck; do
        on_device compute-sanitizer --tool "$tool" --error-exitcode 9 "$PY" -m pytest -q \
            -p no:cacheprovider -m gpu tests/ops/test_gramian.py tests/ops/test_combine.py || return
    done
}

benchmark() { # benchmark NAME OPTIONS...
    local name=$1
    shift
    "$PY" -m "benchmarks.$name" --json "$@" | tee -a "$LINES"
}

step environment environment
step where where
step build build
step tests tests
step sanitize sanitize
if [ -n "$DRY" ]; then
    step lora benchmark lora --rounds 2 --tokens 64 --widths 100 --dtype bfloat16
    step gramian benchmark gramian --rounds 2 --columns 100000
else
    step lora benchmark lora --device cuda --dtype bfloat16 --tokens 8192 --widths 2048 4096
    step gramian benchmark gramian --device cuda --columns 42000000
fi
"$PY" - "$LINES" <<'PYTHON' | tee -a "$SUMMARY"
import json
import sys

for line in open(sys.argv[1], encoding="utf-8"):
    record = json.loads(line)
    for one in record["results"]:
        verdict = {None: "", True: "met", False: "MISSED"}[one["met"]]
        target = "" if one["target"] is None else f"target {one['target']:.3g}"
        name = f"{record['benchmark']}: {one['case']} {one['metric']}"
        print(f"{name:60} {one['value']:10.4g} {one['unit']:3} {target:12} {verdict}")
PYTHON
echo "logs and JSON lines: $OUT"
exit $failed
