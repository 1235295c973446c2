#!/usr/bin/env bash
# Everything that needs a GPU, in stages. Each stage is meant to fit ten minutes on a machine with an H200 and 16 cores,
# so that it also runs where the time of one command is limited.
#   STAGE=build      compiles the extension for this GPU (without a GPU: for $TORCH_CUDA_ARCH_LIST, default 9.0)
#   STAGE=tests      the tests that are marked gpu
#   STAGE=sanitizer  some of these tests under compute-sanitizer: memcheck, then racecheck
#   STAGE=bench      the ops, whole steps of inversion, and the roofline
#   STAGE=all        all of them in this order (default)
# Needs a CUDA toolkit, and a Python ($PYTHON, default python3) with torch and the project's dependencies. The last three
# stages need the GPU and the extension of the first. Logs and results go to $OUT (default build/gpu).
set -uo pipefail
cd "$(dirname "$0")/.."
STAGE="${STAGE:-all}"
OUT="${OUT:-build/gpu}"
PYTHON="${PYTHON:-python3}"
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1
status=0

fail() { echo "$*" >&2; exit 2; }

step() {  # step NAME SECONDS COMMAND...: runs the command, logs its output, remembers a failure
  local name=$1 limit=$2
  shift 2
  echo "=== $name (at most $limit s)"
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  local rc=$?
  tail -n 15 "$OUT/$name.log"
  [ $rc = 0 ] || { echo "$name failed with $rc"; status=1; }
}

needs() {  # needs MODULE...: installs what is missing, where a package index can be reached
  local module missing=()
  for module in "$@"; do
    "$PYTHON" -c "import $module" 2>/dev/null || missing+=("${module//_/-}")
  done
  [ ${#missing[@]} = 0 ] || timeout 60 "$PYTHON" -m pip install --quiet --retries 0 "${missing[@]}"
}

needs_gpu() {
  "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || fail "STAGE=$1 needs a CUDA GPU"
  "$PYTHON" -c 'import sys, exml_fast; sys.exit(exml_fast.build_info()["cuda_archs"] is None)' ||
    fail "STAGE=$1 needs the extension with CUDA: run STAGE=build first"
}

build() {
  local own
  own=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null)
  step build 570 env EXML_CUDA=1 TORCH_CUDA_ARCH_LIST="${own:-${TORCH_CUDA_ARCH_LIST:-9.0}}" "$PYTHON" setup.py \
    build_ext --inplace
}

tests() {
  needs_gpu tests
  step tests 500 "$PYTHON" -m pytest -m gpu python_tests -p no:cacheprovider
}

sanitizer() {
  needs_gpu sanitizer
  local sanitizer tool
  if ! sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
    echo "sanitizer: the CUDA toolkit here has no compute-sanitizer" >&2
    [ "$STAGE" = all ] || status=2  # the other stages go on without it
    return
  fi
  for tool in memcheck racecheck; do
    step "$tool" 270 "$sanitizer" --tool $tool --error-exitcode 1 "$PYTHON" -m pytest -m gpu -p no:cacheprovider \
      python_tests -k "reference and (float32 or bfloat16) and (shape4 or shape1)"
  done
}

bench() {
  needs_gpu bench
  export EXML_BENCH_COMMAND="make gpu STAGE=bench"
  step bench 220 "$PYTHON" -m pytest benches/bench_ops.py -k cuda --benchmark-only -p no:cacheprovider
  step inversion 260 "$PYTHON" benches/inversion.py --device cuda --teachers resnet50 mobilenet_v2
  step roofline 60 "$PYTHON" benches/roofline.py --device cuda --teachers resnet50 mobilenet_v2 \
    --json "$OUT/roofline-cuda.json"
  cp benches/results/{ops,inversion}-cuda.json "$OUT/" 2>/dev/null
}

case "$STAGE" in
  build | tests | sanitizer | bench) stages=("$STAGE") ;;
  all) stages=(build tests sanitizer bench) ;;
  *) fail "STAGE must be build, tests, sanitizer, bench or all, got '$STAGE'" ;;
esac
mkdir -p "$OUT"
needs pydantic safetensors hypothesis pytest_benchmark scipy
for stage in "${stages[@]}"; do
  "$stage"
done
exit $status
