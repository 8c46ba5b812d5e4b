# make setup   install everything pinned into .venv, for the machine that TORCH names:
#              cuda (default; cards from 2018, sm_75), volta (V100, and drivers from 525), cpu,
#              own (the torch of the Python that PYTHON names: of a module, a container)
# make wheelhouse FOR_PYTHON=3.12   collect wheels for `make setup WHEELHOUSE=wheelhouse` offline
# make resolve FOR_PYTHON=3.13      ask whether every pin can be had for another Python
# make table   the default experiment, from data to results/table.csv and results/report.html
# make test    all tests; those that need system packages only with CTM_TEST_SYSTEM=1
# make bench   time training steps, sampling and scoring on this machine
# make lock    regenerate the lock files from pyproject.toml
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.PHONY: setup wheelhouse resolve moved table test bench lock

VENV := .venv
# Keep the installed variant until TORCH selects another.
TORCH ?= $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*) $(VENV)/.installed-cuda))
LOCK_cuda := requirements/lock.txt
LOCK_volta := requirements/lock-volta.txt
LOCK_cpu := requirements/lock-cpu.txt
LOCK_own := requirements/lock.txt
LOCK := $(LOCK_$(TORCH))
ifeq ($(LOCK),)
$(error TORCH=$(TORCH) is unknown; it is cuda, volta, cpu or own)
endif
INSTALLED := $(VENV)/.installed-$(TORCH)
WHEELS = requirements/wheelhouse.py $(1) --lock $(LOCK) $(if $(filter own,$(TORCH)),--without-torch)
FOR = $(if $(FOR_PYTHON),--python $(FOR_PYTHON)) $(if $(PLATFORM),--platform $(PLATFORM))
CORES ?= all
# The first sufficiently new Python on the path.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

# The scripts of an environment name its place: of a moved or copied checkout, they lead to another.
MOVED := $(shell python=$$(head -n 2 $(VENV)/bin/pip 2>/dev/null | grep -o '/[^"]*/bin/python[0-9.]*'); \
	test -z "$$python" || test "$${python%/*}" -ef $(VENV)/bin || echo moved)
# Snakemake keeps a cache at home, which a container or a service account may not be able to write.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)
ifeq ($(shell mkdir -p "$(CACHE)" 2>/dev/null && test -w "$(CACHE)" && echo writable),)
export XDG_CACHE_HOME := $(CURDIR)/.snakemake/cache
endif

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifneq ($(WHEELHOUSE),)
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(abspath $(WHEELHOUSE))
endif

setup: $(INSTALLED)

moved:
	@echo "$(VENV) was made at another place; it is made anew"
	@rm -rf $(VENV)

$(INSTALLED): $(LOCK) pyproject.toml $(MOVED)
	@test -n "$(PYTHON)" || { echo "make setup needs Python 3.11 or newer; give one by PYTHON=..." >&2; exit 2; }
	@test -z "$(WHEELHOUSE)" || $(PYTHON) $(call WHEELS,check $(WHEELHOUSE))
	@rm -f $(VENV)/.installed-*
	@echo "Installing $(LOCK) into $(VENV) (a few minutes the first time)"
ifeq ($(TORCH),own)
	$(PYTHON) requirements/own_torch.py $(VENV) $(LOCK)
else
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/lib/python*/site-packages/own_torch.pth
	pip install --quiet --requirement $(LOCK)
endif
	pip install --quiet --no-deps --no-build-isolation --editable .
	python -m ctm_core.runtime.cuda
	@touch $@

wheelhouse:
	@$(PYTHON) $(call WHEELS,collect wheelhouse) $(FOR)

resolve: setup
	@python $(call WHEELS,resolve) $(FOR)

table: setup
	@python workflow/scripts/clear_dead_lock.py
	snakemake --cores $(CORES) results/table.csv results/report.html
	@ctm compare results || true  # a table that is not the reference's is a table, too

test: setup
	python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --durations=20 $(PYTEST_FLAGS)

bench: setup
	python benchmarks/bench.py

lock: setup
	python requirements/lock.py
