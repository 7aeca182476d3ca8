#!/usr/bin/env bash
# Compiles causal-conv1d and mamba-ssm, as requirements-gpu.txt pins them, for the card at hand alone, and keeps the wheels.
#   bash profiles/gpu-kernels.sh [FOLDER]      wheels by default; wheels that are there are left as they are
# It takes the environment's torch and the nvcc of the same CUDA release. ARCH=9.0 names a card that is not at hand,
# MAX_JOBS=4 the files compiled at a time. Sources that are in FOLDER/src already are not downloaded.
set -euo pipefail
pins=$(dirname "$(dirname "$(readlink -f "$0")")")/requirements-gpu.txt
folder=$(readlink -m "${1:-wheels}")
work=$folder/build
mkdir -p "$folder/src" "$work"
TORCH_CUDA_ARCH_LIST=${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)}
export TORCH_CUDA_ARCH_LIST MAX_JOBS=${MAX_JOBS:-4}
nvcc --help > "$work/nvcc.txt"
# One file's kernels in several threads, where this nvcc can.
if grep -q -- '--split-compile ' "$work/nvcc.txt"; then export NVCC_APPEND_FLAGS=--split-compile=4; fi

compile() {
    local pin=$1 name=${1%%==*} version=${1##*==}
    local base=${name//-/_}-$version
    if compgen -G "$folder/$base-*.whl" > /dev/null; then return; fi
    if [ ! -f "$folder/src/$base.tar.gz" ]; then
        CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE python -m pip download --quiet --no-deps \
            --no-build-isolation --no-binary :all: --dest "$folder/src" "$pin"
    fi
    # What an earlier, interrupted build has compiled is kept.
    if [ ! -d "$work/$base" ]; then
        tar xzf "$folder/src/$base.tar.gz" -C "$work"
        # setup.py names up to nine architectures and torch then ignores TORCH_CUDA_ARCH_LIST; line tables cost minutes.
        sed -i -e 's/^\( *\)+ cc_flag$/\1+ []/' -e '/"-lineinfo"/d' "$work/$base/setup.py"
    fi
    # Forced, or setup.py looks for a wheel of its authors', for their architectures.
    CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE python -m pip wheel --quiet --no-deps --no-build-isolation \
        --wheel-dir "$folder" "$work/$base"
    rm -r "${work:?}/$base"
}

for pin in $(grep -E '^(causal-conv1d|mamba-ssm)==' "$pins"); do compile "$pin"; done
ls "$folder"/*.whl
