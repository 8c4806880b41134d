# Everything a developer or a newcomer runs. Each target makes the environment it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# meson, ninja and cython are found by name.
export PATH := $(abspath $(BIN)):$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))

PACKAGE := $(shell find src -name __pycache__ -prune -o -type f -print)
SOURCES := $(wildcard $(addprefix src/pagemove/_native/*.,pyx pxi pxd))
C_FILES := $(shell find src tests benchmarks docs -name _build -prune -o -name "*.[ch]" -print)
# What the environment is made with: another PYTHON gets another one.
INTERPRETER := $(shell $(PYTHON) -c "import sys; print(sys.base_prefix, *sys.version_info[:3])" 2>/dev/null)

.PHONY: demo compare test test-all test-kernels check bench docs sanitize wheel format clean FORCE

# The verdict alone where all is well; everything that doctor says where something is missing.
demo: $(BIN)/.installed
	@$(BIN)/pagemove doctor >build/doctor.txt || { cat build/doctor.txt; exit 1; }
	@head -3 build/doctor.txt
	@$(BIN)/python examples/demo.py

# The argument of 2014 in full, and pages of real files.
compare: $(BIN)/.installed
	$(BIN)/pagemove compare $(COMPARE_ARGS)
	$(BIN)/python examples/reorder_file.py
	$(BIN)/python examples/compact_heap.py
	$(BIN)/python examples/page_file.py

# Most of a test's time is waiting: two processes for each CPU. Without bytecode files each of them
# would prepare every file of tests anew.
JOBS ?= $(shell expr 2 \* $$(nproc))
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
PARALLEL := --numprocesses=$(JOBS) --dist=worksteal

# One instance of every behaviour.
test: $(BIN)/.installed $(BIN)/.test
	$(PYTEST) --sets=lean $(PARALLEL) $(PYTEST_ARGS)

# Everything. What changes the machine comes first, and runs alone.
test-all: $(BIN)/.installed $(BIN)/.test $(BIN)/.works-with
	status=0; \
	$(PYTEST) --sets=pairs -m alone $(PYTEST_ARGS) || status=$$?; \
	$(PYTEST) --sets=pairs -m "not alone" $(PARALLEL) $(PYTEST_ARGS) || status=$$?; \
	exit $$status

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

# Whole or not at all: half an environment would be taken for one the next time. Its file changes only
# with the interpreter, and what depends on it is made anew then.
$(VENV)/.made-with: FORCE
	@if [ -z "$(INTERPRETER)" ] || [ "$$(cat $@ 2>/dev/null)" != "$(INTERPRETER)" ]; then \
	    sh tools/prerequisites.sh "$(PYTHON)" || exit 1; \
	    rm -rf $(VENV) build/release; \
	    "$(PYTHON)" -m venv $(VENV) && \
	        $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	        echo "$(INTERPRETER)" >$@ || { rm -rf $(VENV); exit 1; }; \
	fi

# Not an editable install: that rebuilds on import, and tests start many interpreters at once.
$(BIN)/.installed: $(VENV)/.made-with pyproject.toml meson.build $(PACKAGE)
	@echo "Building pagemove into $(VENV): half a minute, the first time some minutes with downloads."
	@mkdir -p build
	$(BIN)/python -m pip install --quiet --group build
	$(BIN)/python -m pip install --quiet --no-build-isolation -Cbuild-dir=build/release '.[cli,plot]'
	touch $@

# The tools of a task; the package itself is brought up to date besides.
$(BIN)/.test $(BIN)/.works-with $(BIN)/.check $(BIN)/.docs: $(BIN)/.%: $(VENV)/.made-with pyproject.toml
	$(BIN)/python -m pip install --quiet --group $*
	touch $@
