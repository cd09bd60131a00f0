#!/usr/bin/env bash
# Every check that wants a GPU, in one go, on a machine that need not reach a network: real-size Stable Diffusion 1.5
# and SDXL pipelines with random weights, validated in bfloat16 and float16, merged and extracted on the device; and so a
# transformer of FLUX.1's size in bfloat16 (--architectures flux1: 50 GB of disk), written shard by shard.
#
#   benchmarks/gpu.sh --wheels            on a machine with a network: put the wheels it carries into benchmarks/wheels
#   benchmarks/gpu.sh OUT [OPTIONS]       on any machine; options as of benchmarks/gpu.py (--size tiny --device cpu)
#
# OUT gets results.json and pictures. A run ends after 8 minutes (--seconds) and goes on where it stopped when it is
# called again. Python with torch and transformers must be there; the packages in benchmarks/wheels are used where the
# machine lacks them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

if [ "${1:-}" = --wheels ]; then
    "$python" -m pip download --quiet --no-deps --dest "$here/wheels" --constraint "$here/../constraints.txt" \
        diffusers importlib_metadata lazy_importer peft rich click markdown-it-py mdurl pygments
    exit
fi

packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
lacks='import importlib.util, sys; sys.exit(None in map(importlib.util.find_spec, ("click", "diffusers", "peft", "rich")))'
if ! "$python" -c "$lacks"; then
    if ! compgen -G "$here/wheels/*.whl" >/dev/null; then
        echo "diffusers, peft, rich or click is missing here and benchmarks/wheels is empty: run $0 --wheels first" >&2
        exit 6
    fi
    "$python" -m pip install --quiet --no-deps --no-index --target "$packages" "$here"/wheels/*.whl
fi
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}:$packages" HF_HUB_OFFLINE=1
"$python" "$here/gpu.py" "$@"
