# Every target works in a fresh clone: the virtual environment is made when it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test lint slow models-sweep zoo quantizer-sweep engines-sweep peers bench clean

quickstart: $(VENV)/.quickstart  ## A trained ViT becomes a verified INT8 bundle in out/quickstart
	$(BIN)/vitexport run recipes/quickstart.yaml -o out/quickstart

test: $(VENV)/.dev lint  ## Lint, type check and all fast tests, on up to four cores
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/.dev  ## The long sweeps
	$(BIN)/python -m pytest -m slow --timeout 3600

models-sweep: $(VENV)/.dev  ## Export every model row at full size and rewrite the table in docs/models.md
	$(BIN)/python -m benchmarks.models

zoo: $(VENV)/.dev  ## Small models of every vision family of timm and transformers, and the table in docs/models.md: hours
	$(BIN)/python -m benchmarks.zoo --resume

quantizer-sweep: $(VENV)/.dev  ## Printed figures against other images, and massive activations at full size: hours
	$(BIN)/python -m pytest -m slow -s tests/host/quantize

peers: $(VENV)/bin/python  ## One environment per tool that the benchmarks compare with, in .peers/ or $$VITEXPORT_PEERS
	$(BIN)/python -m benchmarks.peers.install

bench: $(VENV)/.dev  ## Every comparison of docs/benchmarks.md; a peer that is not installed is skipped by name
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.quantizers
	$(BIN)/python -m benchmarks.rotation
	$(BIN)/python -m benchmarks.engine_inference

engines-sweep: $(VENV)/.dev  ## Build the full-size INT8 engines and rewrite the table in docs/tensorrt.md
	$(BIN)/python -m benchmarks.engines

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[host,report]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.quickstart

clean:
	rm -rf $(VENV) out build dist *.egg-info
