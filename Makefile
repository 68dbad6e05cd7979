# One environment for everything. Large temporaries stay on the heap: without these glibc returns their pages every step.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 4294967296
export MALLOC_TOP_PAD_ := 268435456
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3

.PHONY: repro report test test-slow check stages bench

repro: .venv/installed
	@dvc repro
	@induction-lab answers --compare

report: .venv/installed
	@induction-lab report

test: .venv/installed
	@python -m interp_core.processor pytest -m "not slow and not hub and not cuda" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	@python -m interp_core.processor pytest -m "slow or hub or cuda"

check: .venv/installed
	@induction-lab stages --check
	@ruff format --check . && ruff check . && basedpyright

stages: .venv/installed
	@induction-lab stages

bench: .venv/installed
	@python -m benchmarks

.venv/installed: pyproject.toml constraints.txt
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@touch $@
