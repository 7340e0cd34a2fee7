# Two commands: `make train` and `make test`. Each sets itself up first. A target is one line; the logic is Python.
RECIPE ?= orz-tiny
BENCH  ?= rl
PYTHON ?= python3
MINUTES ?= 9
PY     := .venv/bin/python
READY  := .venv/.ready
STEP   := $(PY) -m stepstack
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

.PHONY: help setup train data eval table bench plan sim config check test gpu test-gpu test-vllm test-optin

help: ; @$(PYTHON) scripts/make_help.py

# a virtual environment with the exact versions of constraints.txt; EXTRAS=vllm,gpu for GPUs, TORCH_INDEX=URL for another torch
setup: $(READY) ; $(if $(EXTRAS),$(PYTHON) scripts/setup_venv.py --extras $(EXTRAS))
# train RECIPE on this machine or cluster, and show its report: RECIPE=orz-tiny ARGS="seed=1 name=x"
train: $(READY) ; $(STEP) launch $(RECIPE) $(ARGS) --open
# prepare the data of RECIPE
data: $(READY) ; $(STEP) data $(RECIPE) $(ARGS)
# evaluate RECIPE, or MODEL=dir by it, on its tasks or TASKS=a,b: a table and a page of samples
eval: $(READY) ; $(STEP) eval $(RECIPE) $(ARGS) $(if $(MODEL),--model $(MODEL)) $(if $(TASKS),--tasks $(TASKS)) --open
# write the tables of the READMEs from evals/; CHECK=1 only compares
table: $(READY) ; $(STEP) table $(if $(CHECK),--check)
# measure and write evals/results: BENCH=rl
bench: $(READY) ; $(STEP) bench $(BENCH) $(ARGS)
# decide what machines do, without a machine: PLANNER=contextparallel ARGS="<file>.yaml"
plan: $(READY) ; $(STEP) plan $(PLANNER) $(ARGS)
# what plans come to, in time, money and waste: SIM=pods ARGS="--trace <file> --record"
sim: $(READY) ; $(STEP) sim $(SIM) $(ARGS)
# every value of RECIPE and where it came from
config: $(READY) ; $(STEP) config $(RECIPE) $(ARGS) --explain
# style, types and the floors of the house
check: $(READY) ; $(PY) scripts/check.py
# every test that needs neither a GPU, nor vLLM, nor the network: ARGS="-k gae -n 8"
test: $(READY) ; $(PYTEST) -n 2 --dist loadfile $(ARGS)
# all that one GPU shows in nine minutes, by the python that has torch: tests, kernels, speed of training; ARGS="--out FOLDER"
gpu: ; PYTHONPATH=src:.:kernels:$$PYTHONPATH $(PYTHON) -m evals.gpu --minutes $(MINUTES) $(ARGS)
# the tests that need an accelerator
test-gpu: $(READY) ; $(PYTEST) -m gpu tests/gpu $(ARGS)
# the tests that need the real vLLM engine
test-vllm: ; bash scripts/test_vllm.sh $(ARGS)
# the tests with real downloads or many minutes
test-optin: $(READY) ; $(PYTEST) -m optin $(ARGS)

$(READY): pyproject.toml constraints.txt scripts/setup_venv.py ; $(PYTHON) scripts/setup_venv.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
