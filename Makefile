# Every target makes its own virtual environment from pyproject.toml, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: demo test check format docs viewer audit lock clean

demo: $(STAMP)  ## the main job on a simulated cohort; ends with runs/demo/report.html
	$(BIN)/normscan demo --out runs/demo

test: check  ## lint, layers, types, all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup --durations=10

check: $(STAMP)  ## lint, layers, types
	$(BIN)/ruff check src tests benchmarks docs fuzz examples
	$(BIN)/ruff format --check src tests benchmarks docs fuzz examples
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format src tests benchmarks docs examples
	$(BIN)/ruff check --fix src tests benchmarks docs examples

docs: $(STAMP)  ## generated method pages and the site, in site/
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

viewer:  ## the page of normscan view, from web/ into the package; needs Node 20
	cd web && npm ci --no-audit --no-fund --ignore-scripts && npm run build

AUDIT := .venv-audit/bin
audit: $(STAMP)  ## licences and an SBOM, into build/audit, without the network; then known vulnerabilities, from pypi.org
	mkdir -p build/audit
	$(BIN)/python docs/licences.py --sbom build/audit/sbom.json > build/audit/licences.md
	test -x $(AUDIT)/pip-audit || ($(PYTHON) -m venv .venv-audit && $(AUDIT)/pip install -q pip-audit)
	$(AUDIT)/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"

lock: $(STAMP)  ## requirements.lock: every pinned package with the hash of its file
	$(BIN)/python docs/lock.py

clean:
	rm -rf $(VENV) .venv-audit site build dist .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "normscan needs Python 3.11 or newer: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)
