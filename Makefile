# The two commands of the README, and what a contributor runs. Needs make and Python 3.11 to 3.13, nothing else.
#
#   make quickstart   a virtual environment, then the main job: train, score and release a small embedder
#   make test         the same environment with every extra, then the tests
#   make lint         ruff and mypy
#   make clean        removes the environment and the runs
#
# Both share .venv. A stamp in it carries the digest of pyproject.toml, so nothing is installed twice.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?= $(firstword $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p; done))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
KEY := $(firstword $(shell cksum < pyproject.toml))
CORE := $(VENV)/.core-$(KEY)
ALL := $(VENV)/.all-$(KEY)

# Two threads on two busy cores are slower than one; beyond that, half of the cores is a good start.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export OMP_NUM_THREADS ?= $(shell [ $(CORES) -le 2 ] && echo 1 || echo $$(($(CORES) / 2)))
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help quickstart test lint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(CORE)
	$(VENV)/bin/omni2vec quickstart

test: $(ALL)
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(ALL)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "omni2vec needs Python 3.11, 3.12 or 3.13, and none is on the PATH." \
	    "Install one, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment." \
	    "On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(CORE): | $(VENV)/bin/python
	@echo "installing omni2vec into $(VENV): about two minutes, most of them torch"
	@$(PIP) -e .
	@rm -f $(VENV)/.core-* && touch $@

$(ALL): $(CORE)
	@echo "installing the extras and the tools of a contributor: about a minute"
	@$(PIP) -e ".[all]"
	@rm -f $(VENV)/.all-* && touch $@
