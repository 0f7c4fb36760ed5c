# Each target makes the virtual environment that it needs. PYTHON chooses the interpreter, WORKERS the processes.
PYTHON ?= $(shell command -v python3.11 || echo python3)
WORKERS ?= 2
ENV ?= .venv
CONSTRAINTS ?= constraints.txt
READY := $(ENV)/ready
BIN := $(abspath $(ENV))/bin
# For pytest, as in `make test ARGS='--shuffle 7'`.
ARGS ?=
QUICK := $(addprefix tests/,ops tuning launch test_functional.py test_module.py test_reference.py test_mutants.py \
    compile/test_plan.py compile/test_gate_function.py compile/test_reasons.py) \
    $(addprefix --ignore=tests/ops/,test_registration.py test_joint_batch.py)

.DELETE_ON_ERROR:
.PHONY: demo quick test test-all test-for test-oldest test-version lint fmt docs dist test-dist bench evidence budgets mutants

demo: $(READY)
	$(BIN)/python examples/demo.py

# After each edit, within a minute: lint, and tests that compile nothing.
quick: $(READY)
	$(BIN)/ruff check -q . && $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(QUICK) $(ARGS)

# All but the slow tests.
test: $(READY)
	$(BIN)/python tests/both_parts.py -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(READY)
	$(BIN)/python tests/both_parts.py -n $(WORKERS) --dist worksteal $(ARGS)

# The tests of some files: make test-for FILES="kernels/tile.py"
test-for: $(READY)
	$(BIN)/python tests/which.py $(FILES) -- -n $(WORKERS) --dist worksteal $(ARGS)

test-oldest:
	$(MAKE) test-all ENV=$(ENV)-oldest CONSTRAINTS=constraints-oldest.txt

# Any torch that tests/versions.py knows: make test-version TORCH=2.12.1
test-version: $(ENV)-$(or $(TORCH),none).txt
	$(MAKE) test-all ENV=$(ENV)-$(TORCH) CONSTRAINTS=$<

$(ENV)-%.txt: tests/versions.py constraints.txt constraints-oldest.txt
	$(PYTHON) tests/versions.py $* > $@

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fmt: $(READY)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

# The site, into site/: links are checked, and the tutorial runs. To look at it: .venv/bin/python -m http.server -d site
docs: $(ENV)/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The sdist and the wheel, checked, into dist/. ADDRESS is the repository's, which a release needs.
dist: $(ENV)/dist-ready
	$(BIN)/python .ci/dist.py $(ADDRESS)

# The tests of the sdist in dist/, from an empty folder. An sdist holds no link, so it is made again.
test-dist: $(READY)
	rm -rf $(ENV)/unpacked && mkdir $(ENV)/unpacked && tar -xzf dist/*.tar.gz -C $(ENV)/unpacked --strip-components 1
	ln -s ../kernels $(ENV)/unpacked/eca_triton/kernels
	cd $(ENV)/unpacked && PYTHONPATH=. $(BIN)/python tests/both_parts.py -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=min,median,iqr,rounds --benchmark-sort=fullname

# FILES: of which files, by default of all, which takes about an hour.
mutants: $(READY)
	$(BIN)/python tests/mutants.py $(FILES)

# Installs nothing: the first Python that has torch, Triton and timm runs it.
evidence:
	@for each in $(PYTHON) $(BIN)/python python python3; do \
	    if $$each -c 'import torch, triton, timm' 2>/dev/null; then exec $$each -m benchmarks evidence; fi; \
	done; echo 'no Python here has torch, triton and timm; PYTHON=... names one' >&2; exit 2

budgets: $(READY)
	$(BIN)/python tests/kernels/budgets.py

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(ENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[test,timm,cli,dev]'
	@touch $@

$(ENV)/dist-ready: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dist]'
	@touch $@

$(ENV)/docs-ready: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@
