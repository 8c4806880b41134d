# Everything a developer or a newcomer runs. Each target makes the environment it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# meson, ninja and cython are found by name.
export PATH := $(abspath $(BIN)):$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))

PACKAGE := $(shell find src -name __pycache__ -prune -o -type f -print)
SOURCES := $(wildcard src/pagemove/_native/*.pyx src/pagemove/_native/*.pxd)
C_FILES := $(shell git ls-files "*.c" "*.h")

.PHONY: demo test test-kernels check bench docs sanitize wheel format clean

demo: $(BIN)/.installed
	$(BIN)/pagemove doctor
	$(BIN)/pagemove compare --quick
	$(BIN)/python examples/reorder_file.py
	$(BIN)/python examples/compact_heap.py
	$(BIN)/python examples/page_file.py

test: $(BIN)/.installed $(BIN)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Debian's kernels, booted in QEMU: make test-kernels KERNELS="6.12 7.3"
test-kernels: $(BIN)/.installed $(BIN)/.test
	PYTHONPATH=tests $(BIN)/python -m matrix $(KERNELS) $(KERNELS_ARGS)

check: $(BIN)/.installed $(BIN)/.check $(BIN)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=src $(BIN)/mypy
	MYPYPATH=src $(BIN)/python -m mypy.stubtest pagemove --mypy-config-file pyproject.toml \
	    --ignore-unused-allowlist --allowlist stubtest-allowlist.txt
	$(BIN)/cython-lint $(SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

bench: $(BIN)/.installed $(BIN)/.test
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(BIN)/.installed $(BIN)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

sanitize: $(BIN)/.installed
	$(MAKE) -C tests/sanitize run

wheel: $(BIN)/.installed $(BIN)/.test
	$(BIN)/python -m build --outdir dist

format: $(BIN)/.check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

# Not an editable install: that rebuilds on import, and tests start many interpreters at once.
$(BIN)/.installed: pyproject.toml meson.build $(PACKAGE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group build
	$(BIN)/python -m pip install --quiet --no-build-isolation -Cbuild-dir=build/release '.[plot]'
	touch $@

# The tools of a task; the package itself is brought up to date besides.
$(BIN)/.test $(BIN)/.check $(BIN)/.docs: $(BIN)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group $*
	touch $@
