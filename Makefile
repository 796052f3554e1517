# The study, one command a step. `make help` lists them; README.md tells what each leaves behind.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# `gpu` where there is a GPU, `cpu` elsewhere.
ifeq ($(origin PROFILE),undefined)
PROFILE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
endif
# Only the name of a profile may reach a shell; $(value ...) does not expand what is checked.
LEFT := $(value PROFILE)
LETTERS := a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 - _
$(foreach letter,$(LETTERS),$(eval LEFT := $$(subst $(letter),,$$(LEFT))))
PROFILES := $(patsubst notebooks/profiles/%.yaml,%,$(wildcard notebooks/profiles/*.yaml))
ifneq ($(if $(value LEFT),,$(filter $(value PROFILE),$(PROFILES))),$(value PROFILE))
$(error PROFILE='$(value PROFILE)': expected one of $(PROFILES))
endif
ifeq ($(value PROFILE),)
$(error PROFILE is empty: expected one of $(PROFILES))
endif
# results/reference holds what is published.
RESULTS := results/$(patsubst reference,reference-run,$(PROFILE))
SETTINGS := notebooks/profiles/$(PROFILE).yaml

# An active conda environment named hamr is used as it is; otherwise a .venv is made.
ifeq ($(CONDA_DEFAULT_ENV),hamr)
VENV := $(CONDA_PREFIX)
else
VENV := .venv
endif
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.hamr-installed
UV := uv==0.13.9

# A training step asks for the same hundreds of megabytes again and again. glibc would give them back
# in between and clear every page anew. This keeps them, in huge pages. Other C libraries ignore it.
MALLOC := glibc.malloc
export GLIBC_TUNABLES ?= $(MALLOC).mmap_threshold=1073741824:$(MALLOC).trim_threshold=4294967296:$(MALLOC).top_pad=268435456:$(MALLOC).hugetlb=1

.PHONY: help setup lock method data train evaluate ablations compare figures reproduce test test-all lint bench lab clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14
	@echo; echo "PROFILE=$(PROFILE); known: $(PROFILES)"

# --- set-up -------------------------------------------------------------------------------------

setup: $(INSTALLED) ## Make the environment (.venv, or the active conda environment hamr)

$(VENV)/bin/python:
	@echo "making $(VENV)"
	@for python in python3 python3.12 python3.11 python; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; \
	  then exec $$python -m venv $(VENV); fi; done; \
	echo "no Python 3.11 or 3.12 found on the PATH" >&2; exit 1

# The stamp holds a copy of the lock file, so that a changed lock installs anew.
$(INSTALLED): requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked packages into $(VENV) (about 7 GB)"
	$(PY) -m pip install --quiet --disable-pip-version-check $(UV)
	$(PY) -m uv pip install --quiet --python $(PY) --compile-bytecode --require-hashes \
	  -r requirements.lock
	$(PY) -m uv pip install --quiet --python $(PY) --no-deps --editable .
	@cp requirements.lock $@

lock: | $(VENV)/bin/python ## Resolve pyproject.toml into requirements.lock anew
	$(PY) -m pip install --quiet --disable-pip-version-check $(UV)
	$(PY) -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --quiet -o requirements.lock

# --- the study ----------------------------------------------------------------------------------
# An executed notebook is the sign that its step is done. Make compares it with the notebook, the
# profile and the steps before it; to run anew after a change of the library: make clean.

STEPS := method data train evaluate ablations compare figures reproduce

ifeq ($(wildcard $(INSTALLED)),)
# Only the library can tell which runs there are, so it is installed first, and make begins again.
.NOTPARALLEL:
$(STEPS): setup
	@$(if $(findstring n,$(firstword -$(MAKEFLAGS))),echo then: make $@,$(MAKE) --no-print-directory $@)
else

# Nothing runs on a profile that does not read: `runs` checks it and lists the ablation runs,
# `methods` the comparisons that have a run of their own.
ifneq ($(filter $(STEPS) $(RESULTS)/%,$(MAKECMDGOALS)),)
RUNS := $(shell $(PY) -m hamr_lib.study runs $(PROFILE) || echo BROKEN)
METHODS := $(shell $(PY) -m hamr_lib.study methods $(PROFILE) || echo BROKEN)
endif
ifneq ($(filter BROKEN,$(RUNS) $(METHODS)),)
$(error the profile $(PROFILE) cannot be used, see above)
endif
# Runs that go side by side (make -j2) share the cores. If each took them all, threads would wait in a
# loop for others that have no core to run on.
JOBS = $(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS)))
CORES := $(shell getconf _NPROCESSORS_ONLN)
SHARE = $(if $(JOBS),OMP_NUM_THREADS=$$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )))
EXECUTE = @$(SHARE) $(PY) -m hamr_lib.study execute $(PROFILE)
EVALUATED := $(RUNS:%=$(RESULTS)/runs/%/03_evaluate.ipynb)
COMPARED := $(METHODS:%=$(RESULTS)/comparisons/%/05_comparisons.ipynb)

method: $(RESULTS)/00_method.ipynb ## Walk through the method, equation by equation (a minute)
data: $(RESULTS)/01_data.ipynb ## Check the real sets, render the open stand-ins
train: $(RESULTS)/02_train.ipynb ## Train the network
evaluate: $(RESULTS)/03_evaluate.ipynb ## Score it on every test set
	@cat $(RESULTS)/tables/results.md
ablations: $(if $(RUNS),$(RESULTS)/04_ablations.ipynb) ## Train and score it without each of its parts
	@if [ -z "$(RUNS)" ]; then echo "$(PROFILE) has no ablations: make ablations PROFILE=reference"; exit; fi; \
	cat $(RESULTS)/tables/ablations.md; \
	cat $(RESULTS)/tables/{claims,choices}.md 2>/dev/null || true  # of those it asks for
compare: $(RESULTS)/05_comparisons.ipynb ## Train and score other methods on the same data
	@cat $(RESULTS)/tables/comparisons.md
figures: $(RESULTS)/06_figures.ipynb ## Draw the figures and tables from what is on disk
reproduce: $(RESULTS)/00_method.ipynb $(RESULTS)/06_figures.ipynb ## The whole study, from data to figures
	@echo "the study is complete: $(RESULTS)/"
	$(if $(RUNS),,@echo "left out: make ablations PROFILE=reference")
	$(if $(METHODS),,@echo "left out: make compare PROFILE=reference")

$(RESULTS)/00_method.ipynb: notebooks/00_method.ipynb $(SETTINGS) | $(INSTALLED)
	$(EXECUTE) 00_method $@
$(RESULTS)/01_data.ipynb: notebooks/01_data.ipynb $(SETTINGS) | $(INSTALLED)
	$(EXECUTE) 01_data $@
$(RESULTS)/02_train.ipynb: notebooks/02_train.ipynb $(RESULTS)/01_data.ipynb
	$(EXECUTE) 02_train $@
$(RESULTS)/03_evaluate.ipynb: notebooks/03_evaluate.ipynb $(RESULTS)/02_train.ipynb
	$(EXECUTE) 03_evaluate $@
$(RESULTS)/runs/%/02_train.ipynb: notebooks/02_train.ipynb $(RESULTS)/01_data.ipynb
	$(EXECUTE) 02_train $@ run=$*
$(RESULTS)/runs/%/03_evaluate.ipynb: notebooks/03_evaluate.ipynb $(RESULTS)/runs/%/02_train.ipynb
	$(EXECUTE) 03_evaluate $@ run=$*
$(RESULTS)/04_ablations.ipynb: notebooks/04_ablations.ipynb $(EVALUATED)
	$(EXECUTE) 04_ablations $@
$(RESULTS)/comparisons/%/05_comparisons.ipynb: notebooks/05_comparisons.ipynb $(RESULTS)/01_data.ipynb
	$(EXECUTE) 05_comparisons $@ method=$*
$(RESULTS)/05_comparisons.ipynb: notebooks/05_comparisons.ipynb $(RESULTS)/03_evaluate.ipynb $(COMPARED)
	$(EXECUTE) 05_comparisons $@
$(RESULTS)/06_figures.ipynb: notebooks/06_figures.ipynb $(RESULTS)/03_evaluate.ipynb $(if $(RUNS),$(RESULTS)/04_ablations.ipynb) $(RESULTS)/05_comparisons.ipynb
	$(EXECUTE) 06_figures $@
.SECONDARY:
endif

# --- tools --------------------------------------------------------------------------------------

test: setup ## Run the fast tests (at most 5 minutes on two cores)
	$(PY) -m pytest -m "not slow"

test-all: setup ## Run all tests: also the whole smoke study, torchrun, the browser, kills and fuzzing
	$(PY) -m pytest

lint: setup ## Check style, that no notebook carries outputs, and print the size of everything
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m nbstripout --verify notebooks/*.ipynb
	$(PY) tests/limits.py

bench: setup ## Measure training, inference, silhouettes (and recover on PHOTOS=folder)
	$(PY) -m hamr_lib.bench $(if $(PHOTOS),--photos $(PHOTOS))

lab: setup ## Open JupyterLab on the notebooks
	$(VENV)/bin/jupyter lab notebooks

clean: ## Remove this profile's results and rendered data (never data/raw or results/reference)
	rm -rf $(RESULTS) data/open/$(PROFILE)
