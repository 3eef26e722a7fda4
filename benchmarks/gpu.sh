#!/usr/bin/env bash
# Everything that only an NVIDIA card can tell, in at most nine minutes on an H100:
#
#   1. correctness: every variant against float64, with poisoned memory, and in captured graphs; where the server and
#      diffusers are installed, too, pictures of the built-in base in fp16
#   2. memory accesses: compute-sanitizer over every variant on tiny layers, where that tool is installed
#   3. time: plain Triton GEMM against the vendor's; then each variant, plain torch and PEFT (where it is installed)
#      against the base layer, at the linear layers of Stable Diffusion 1.5 and XL, in captured graphs over inputs that
#      do not stay in the cache, 2 and 16 batch rows, total rank 16 and 48
#      -> benchmarks/results/DATE-CARD-kernels.json
#   4. where the server is installed: whole forwards, launched and captured -> benchmarks/results/DATE-CARD-unet.json
#
# Needs Python with torch, triton and pytest; the kernels are read from this checkout and need not be installed. Variables:
#
#   PYTHON    the interpreter (python3)
#   RESULTS   where the JSON file goes (benchmarks/results)
#
# Every step is run whatever the one before it found; the exit status is that of the last one that failed.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-benchmarks/results}
export PYTHONPATH=kernels:server:client:proto:adapters_store:training${PYTHONPATH:+:$PYTHONPATH}
unset TRITON_INTERPRET

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

if ! "$PYTHON" -c 'import torch, triton'; then
    echo "gpu.sh: $PYTHON has no torch or no triton; name another with PYTHON=..." >&2
    exit 2
fi
if ! card=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")') ||
    [ -z "$card" ]; then
    echo "gpu.sh: no CUDA device here: nothing to measure" >&2
    exit 2
fi
mkdir -p "$RESULTS"
result=$RESULTS/$(date -u +%F)-$(tr -cs 'A-Za-z0-9\n' - <<<"$card" | sed 's/-*$//')
file=$result-kernels.json
server=false
if "$PYTHON" -c 'from importlib.metadata import version; version("loramux"); import diffusers, loramux_server.app' 2>/dev/null
then
    server=true
fi

step "correctness on $card"
status=0
if "$PYTHON" -c 'import pytest' 2>/dev/null; then
    # Several processes, because compiling takes most of the time. Their configuration is none: that of the project
    # names plugins that may not be here.
    logs=$(mktemp -d)
    variants='dispatch split single vendor'
    pids=()
    if $server; then
        timeout 240 "$PYTHON" -m pytest -c /dev/null --rootdir=. -p no:cacheprovider --import-mode=importlib \
            -W ignore::pytest.PytestUnknownMarkWarning --quiet --tb=short -rP -m gpu tests/server/test_gpu.py \
            >"$logs/pictures" 2>&1 &
        pids+=("$!")
    else
        echo "the server is not installed: pictures are not compared" >&2
    fi
    for part in $variants "not (${variants// / or })"; do
        timeout 240 "$PYTHON" -m pytest -c /dev/null --rootdir=. -p no:cacheprovider --import-mode=importlib \
            -W ignore::pytest.PytestUnknownMarkWarning --quiet --tb=short --maxfail=10 \
            -m gpu -k "$part" tests/kernels/test_gpu.py >"$logs/$part" 2>&1 &
        pids+=("$!")
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || status=$?
    done
    tail -n 40 "$logs"/*
    rm -r "$logs"
else
    echo "pytest is not installed: only the comparison of step 2 is made" >&2
fi

step "memory accesses"
if command -v compute-sanitizer >/dev/null; then
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 80 compute-sanitizer --tool memcheck --error-exitcode 3 \
        "$PYTHON" -m loramux_server.bench.gpu check || status=$?
else
    echo "compute-sanitizer is not installed: every variant runs once on tiny layers without it"
    timeout 80 "$PYTHON" -m loramux_server.bench.gpu check || status=$?
fi

step "time"
# Parts that would begin in the last 90 s are left out, and the file names them; what was measured stays.
left=$((465 - SECONDS))
timeout "$left" "$PYTHON" -m loramux_server.bench.gpu measure "$file" $((left - 90)) || status=$?
if $server; then
    timeout 60 "$PYTHON" -m loramux_client.cli bench unet --json >"$result-unet.json" || status=$?
fi

step "done"
for file in "$result"-*.json; do
    [ ! -s "$file" ] || echo "$file"
done
exit "$status"
