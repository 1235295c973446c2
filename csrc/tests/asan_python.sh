#!/usr/bin/env bash
# The Python tests of the ops, on an extension built with AddressSanitizer and UBSan.
#   asan_python.sh PYTHON BUILD_FOLDER [ARGUMENTS OF PYTEST]
# EXML_EXAMPLES is the number of random calls a test.
set -euo pipefail
python=$(realpath -s "$1")
build=$2
arguments=("${@:3}")
[ ${#arguments[@]} -gt 0 ] || \
  arguments=(-n auto --dist loadfile python_tests/test_ops_*.py -k "not compiles and not capability")
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$build/package"
build=$(cd "$build" && pwd)
cd "$root"
EXML_CUDA=0 EXML_SANITIZE=address,undefined "$python" setup.py -q build_ext \
  --build-temp "$build/temp" --build-lib "$build/package"
cp -r exml_fast/. "$build/package/exml_fast.sources"
find "$build/package/exml_fast.sources" -name '*.so' -o -name '_built_for.py' | xargs rm -f
cp -r "$build/package/exml_fast.sources/." "$build/package/exml_fast/"
rm -r "$build/package/exml_fast.sources"
preload=$(for library in libasan libubsan libstdc++; do g++ -print-file-name=$library.so; done | paste -sd:)
# Leaks: the interpreter's own would drown ours. OpenMP's second thread pool is torch's business.
# The package in this folder has another extension, and neither Python nor its workers may find it. Workers share the
# cores, so their threads must not wait actively.
env PYTHONSAFEPATH=1 PYTHONPATH="$build/package:$root/python_tests" LD_PRELOAD="$preload" OMP_WAIT_POLICY=passive \
  EXML_EXAMPLES="${EXML_EXAMPLES:-5}" \
  ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  "$python" -m pytest -p no:cacheprovider --rootdir="$root" "${arguments[@]}"
