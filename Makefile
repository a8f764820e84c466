# Everything runs in .venv, which `make install` creates; the versions are those of constraints.txt.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CORE := setup.py CMakeLists.txt $(shell find csrc -type f)
CXX_FILES := $(shell find csrc -type f)
# Processes that run the tests.
JOBS ?= 2
TESTS := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: install demo test tour slow sanitize check fix bench gpu docs clean

install: .venv/.installed

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Python files are used in place; only a change of the core or of the dependencies installs anew.
.venv/.installed: pyproject.toml constraints.txt $(CORE) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/mtlcore demo

test: install
	@$(TESTS)

# One command for each remedy, without and with it; writes docs/tour.md.
tour: install
	$(BIN)/mtlcore tour --page docs/tour.md

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/types && ln -sfn ../../plugins build/types/mtlcore_plugins
	MYPYPATH=build/types $(BIN)/mypy -p mtlcore -p mtlcore_plugins
	@if [ -x $(BIN)/clang-format ]; then \
	    echo "clang-format --dry-run"; $(BIN)/clang-format --dry-run --Werror $(CXX_FILES); \
	else echo "clang-format is not installed: C++ not checked"; fi
	@$(TESTS)

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@if [ -x $(BIN)/clang-format ]; then $(BIN)/clang-format -i $(CXX_FILES); fi

bench: install
	$(BIN)/python -m pytest benchmarks/bench_*.py
	$(BIN)/python -m benchmarks.step --json --record
	$(BIN)/python -m benchmarks.lora --json --record
	$(BIN)/python -m benchmarks.overhead --json --record
	$(BIN)/python -m benchmarks.gramian --json --record
	$(BIN)/python -m benchmarks.weighting --json --record
	$(BIN)/python -m benchmarks.cross_entropy --json --record
	$(BIN)/python -m benchmarks.throughput --json --record
	$(BIN)/python -m benchmarks.startup --json --record
	$(BIN)/python -m benchmarks.baselines --json --record
	$(BIN)/python -m benchmarks.fisher --json --record
	$(BIN)/python -m benchmarks.checkpoint --json --record
	$(BIN)/python -m benchmarks.faults --json --record
	$(BIN)/python -m benchmarks.demo --json --record

# Wheel, sdist and repeated installs in empty environments: minutes.
slow: install
	@$(BIN)/python -m pytest -m slow

# The ops' tests on cores built with AddressSanitizer and UBSan, and by clang: minutes.
sanitize: install
	@$(BIN)/python -m pytest -m slow tests/ops/test_builds.py

# On a machine with a GPU, which may have no network; MTLCORE_GPU_DRY=1 tries it without one.
gpu:
	@bash benchmarks/gpu.sh

# The code blocks of README.md and docs/ are run, and what they list is compared with the code.
docs: install
	@$(BIN)/python -m pytest tests/test_repo.py tests/test_docs.py

clean:
	rm -rf build dist *.egg-info mtlcore/_core*.so .venv/.installed
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find mtlcore plugins tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
