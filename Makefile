# Everything a developer or a newcomer runs. Each target makes the environment it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The editable install rebuilds native code on import, with the ninja and cython of the environment.
export PATH := $(abspath $(BIN)):$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))

SOURCES := $(wildcard src/pagemove/_native/*.pyx src/pagemove/_native/*.pxd)
C_FILES := $(wildcard src/pagemove/_native/*.c src/pagemove/_native/*.h)

.PHONY: demo test check bench docs sanitize wheel format clean

demo: $(BIN)/.installed
	$(BIN)/pagemove doctor
	$(BIN)/pagemove compare --quick
	$(BIN)/python examples/reorder_file.py

test: $(BIN)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(BIN)/.check $(BIN)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=src $(BIN)/mypy
	MYPYPATH=src $(BIN)/python -m mypy.stubtest pagemove --allowlist stubtest-allowlist.txt
	$(BIN)/cython-lint $(SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

bench: $(BIN)/.test
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(BIN)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

sanitize: $(BIN)/.installed
	$(MAKE) -C tests/sanitize run

wheel: $(BIN)/.test
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

$(BIN)/.installed: pyproject.toml meson.build src/pagemove/_native/meson.build | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group build
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[plot]'
	touch $@

$(BIN)/.test $(BIN)/.check $(BIN)/.docs: $(BIN)/.%: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --group $*
	touch $@
