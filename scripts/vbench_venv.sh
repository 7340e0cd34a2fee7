#!/usr/bin/env bash
# An environment for VBench (.venv-vbench), whose pins (numpy<2, transformers 4.33.2) ours cannot hold: for
# `stepstack vbench --python .venv-vbench/bin/python`. Needs Python 3.11 or older, for which those versions have wheels.
# torch 2.5 is the last that loads VBench's pickled weights unasked. Arguments go to pip, e.g. --extra-index-url https://download.pytorch.org/whl/cpu for a CPU build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv-vbench/bin/python
if [ ! -x "$python" ]; then
  "${PYTHON:-python3.11}" -m venv .venv-vbench
fi
"$python" -m pip install --quiet "setuptools<81" wheel torch==2.5.1 torchvision==0.20.1 "numpy<2" "$@"
"$python" -m pip install --quiet --no-build-isolation vbench==0.1.5 "$@"
"$python" -c 'import vbench, vbench2_beta_i2v; print("VBench can be imported")'
