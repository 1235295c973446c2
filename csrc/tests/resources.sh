#!/usr/bin/env bash
# Registers, shared memory and spills of every CUDA kernel, as ptxas reports them; a spill or local memory fails.
#   resources.sh [ARCHITECTURE...]     default: sm_90. NVCC and CXXFILT name the tools.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
nvcc=${NVCC:-${CUDA_HOME:+$CUDA_HOME/bin/}nvcc}
[ $# -gt 0 ] || set -- sm_90
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for arch in "$@"; do
  for source in "$root"/csrc/ops/cuda/*.cu; do
    "$nvcc" -std=c++20 -O3 -arch="$arch" -I"$root/csrc" -Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror \
      -cubin -o /dev/null "$source" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
    "${CXXFILT:-c++filt}" <"$log" | awk -v arch="$arch" '
      /Compiling entry function/ {
        name = $0
        sub(/.*function .(void )?/, "", name)
        gsub(/exml::cuda::|exml::|\(anonymous namespace\)::/, "", name)
        sub(/\(.*/, "", name)
      }
      /bytes spill stores/ { stack = $1; stores = $5; loads = $9 }
      /Used [0-9]+ registers/ {
        registers = shared = 0
        for (i = 1; i < NF; ++i) {
          if ($(i + 1) ~ /^registers/) registers = $i
          if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
        }
        printf "%-6s %-44s %4d registers %6d B shared %4d B stack %4d B spilled\n", arch, name, registers, shared,
               stack, stores + loads
        if (stack + stores + loads > 0) bad = 1
      }
      END { exit bad }'
  done
done
