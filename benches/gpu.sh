#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build for this GPU, GPU tests, compute-sanitizer, benchmarks.
# Needs a CUDA toolkit and a Python with torch. Results and logs go to $OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:-build/gpu}"
PYTHON="${PYTHON:-python3}"
mkdir -p "$OUT"
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1
status=0
step() {  # step NAME SECONDS COMMAND...: runs it, logs it, remembers a failure
  local name=$1 limit=$2
  shift 2
  echo "=== $name"
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  local rc=$?
  tail -n 15 "$OUT/$name.log"
  [ $rc = 0 ] || { echo "$name failed with $rc"; status=1; }
}

capability=$($PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
$PYTHON -m pip install --quiet hypothesis pytest-benchmark safetensors scipy >/dev/null 2>&1
step build 240 env EXML_CUDA=1 TORCH_CUDA_ARCH_LIST="$capability" $PYTHON setup.py build_ext --inplace
step tests 200 $PYTHON -m pytest -m gpu python_tests -p no:cacheprovider
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck; do
    step "$tool" 120 "$sanitizer" --tool $tool --error-exitcode 1 $PYTHON -m pytest -m gpu -p no:cacheprovider \
      python_tests -k "reference and (float32 or bfloat16) and (shape4 or shape1)"
  done
else
  echo "compute-sanitizer: not on this machine"
fi
step graphs 60 $PYTHON -m pytest -m gpu python_tests/test_ops_cuda_graph.py -p no:cacheprovider
EXML_BENCH_COMMAND="make gpu" step bench 240 $PYTHON -m pytest benches/bench_ops.py -k cuda --benchmark-only -p no:cacheprovider
EXML_BENCH_COMMAND="make gpu" step inversion 300 $PYTHON benches/inversion.py --device cuda --teachers resnet50 mobilenet_v2
step roofline 60 $PYTHON benches/roofline.py --device cuda --teachers resnet50 mobilenet_v2 --json "$OUT/roofline-cuda.json"
cp benches/results/{ops,inversion}-cuda.json "$OUT/" 2>/dev/null
exit $status
