# One environment for everything. Large temporaries stay on the heap: without these glibc returns their pages every step.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 4294967296
export MALLOC_TOP_PAD_ := 268435456
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
# Hundreds of processes would each compile the project's code again.
unexport PYTHONDONTWRITEBYTECODE
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3

.PHONY: help setup repro pull push report test test-slow test-browser test-servers torture check stages bench published

# The first target: what `make` alone says.
help:
	@echo "make setup   install everything into .venv"
	@echo "make repro   set up and run the whole pipeline, then print the answers"
	@echo "make pull    fetch what was run elsewhere from the remote; make push: send it there"
	@echo "make report  the run to look at: report/index.html, opened from disk"
	@echo "make test    prove it; make check: format, lint, types, holes; make test-slow: what takes minutes"
	@echo "make torture prove that no damaged file and no odd profile ends in a traceback"
	@echo "make published STUDY=pythia_topology   the study once a seed, and its answers over trainings"
	@echo "make bench   side by side with the peers; make stages: for those who change the code"

setup: .venv/installed
	@echo "done: source .venv/bin/activate, then: induct profile --model DIRECTORY --out mine"

repro: .venv/installed
	@induction-lab repro
	@induction-lab answers --compare

# What was run elsewhere, from the remote and to it; no stage is run.
pull: .venv/installed
	@induction-lab pull

push: .venv/installed
	@induction-lab push

# One page of the run, computed from data/ into report/, which git ignores.
report: .venv/installed
	@induction-lab report

test: .venv/installed
	@python -m interp_core.processor pytest -m "not slow and not hub and not cuda" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	@python -m interp_core.processor pytest -m "slow or hub or cuda"

# Pages in headless Chromium; those of the run need `make repro` before.
test-browser: .venv/installed
	@python -m interp_core.processor pytest -m slow tests/end_to_end/test_page_in_browser.py

# Remotes, Dask and Slurm: apt-get install openssh-server nginx-light slurm-wlm munge.
test-servers: .venv/installed
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,servers]"
	@python -m interp_core.processor pytest -m servers

# Files damaged and profiles edited by seed, every one read: minutes. TORTURE="--seed 1 --files 500"
torture: .venv/installed
	@PYTHONPATH=tests python -m torture $(TORTURE)

check: .venv/installed
	@induction-lab stages --check
	@ruff format --check . && ruff check . && basedpyright
	@python tests/advisories.py

# make published STUDY=pythia_topology: the study once a seed, and its answers over trainings.
published: .venv/installed
	@induction-lab publish $(STUDY)

stages: .venv/installed
	@induction-lab stages

bench: .venv/installed
	@python -m benchmarks

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), and Python 3.11 or newer is needed: make setup PYTHON=python3.12" >&2; exit 2; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@touch $@
