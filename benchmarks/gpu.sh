#!/bin/sh
# All that needs a GPU, in one go: the tests, then the benchmarks. PYTHON names an interpreter that has torch for CUDA,
# Triton, this package and its extras "test" and "bench"; nothing is installed. Results go to OUT, by default
# benchmarks/results/ (their pages and plots then to docs/).
#
#     PYTHON=python3 OUT=results sh benchmarks/gpu.sh
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
failed=
mkdir -p "$OUT"

run() {
    echo "== $*"
    "$@" || failed="$failed
    $*"
}

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no GPU"' || exit 1
run "$PYTHON" -m pytest -m gpu -ra
run "$PYTHON" benchmarks/host_time.py --device cuda --out "$OUT"
run "$PYTHON" benchmarks/first_call.py --device cuda --out "$OUT"
run "$PYTHON" benchmarks/step_time.py --device cuda --out "$OUT"
run "$PYTHON" benchmarks/matrix_step.py --device cuda --out "$OUT"
[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
