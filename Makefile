# Two commands: `make demo` runs the main job, `make test` passes the tests; each sets itself up in .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready

.PHONY: demo test test-long test-slow lint clean

demo: $(READY)
	$(VENV)/bin/moleflow demo --out moleflow-demo

# One thread a worker: two workers on two cores are faster than one that shares them out.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist worksteal

test-long: $(READY)
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist worksteal -m "long and not slow"

test-slow: $(READY)
	$(RUN) pytest -m slow -rs

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) moleflow-demo
