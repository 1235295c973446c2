#!/usr/bin/env bash
# Installs the wheel of dist/ beside one version of torch, and runs the tests of the ops and the quick start.
#   with_torch.sh TORCH FOLDER [PYTHON]
set -euo pipefail
torch=$1
folder=$2
cd "$(dirname "$0")/.."
root=$PWD
echo "=== torch $torch"
rm -rf "$folder"
"${3:-python3}" -m venv "$folder"
python=$(realpath -s "$folder")/bin/python
# === leaves out variants such as 2.13.0+cpu, which need a torchvision of the same kind.
"$python" -m pip install --quiet "torch===$torch" torchvision pytest pytest-benchmark hypothesis scipy
"$python" -m pip install --quiet "$(ls "$root"/dist/exml_fast-*.whl)[cli,report,eval]"
export PYTHONSAFEPATH=1  # the package in this folder must not hide the installed one
cd "$folder"
"$python" -c 'import exml_fast; from exml_fast._native import COMPILED, WHY_NOT; print(exml_fast.build_info()); assert COMPILED, WHY_NOT'
"$python" -m pytest -p no:cacheprovider --rootdir="$root" -c "$root/pyproject.toml" "$root"/python_tests/test_ops_*.py
"$python" "$root/examples/quick_start.py"
cd "$root"
rm -rf "$folder"
