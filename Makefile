# Every target works alone on a fresh machine with Python 3.11+, pip and git; a second call costs seconds.
PYTHON ?= python3
BIN := .venv/bin

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE :=
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0

.PHONY: help repro test test-slow check docs format ui lock setup clean

help:
	@echo "make repro      run the pipeline of the profile in params.yaml: data, shards, three nets, scores, report"
	@echo "make ui         compare runs in MLflow's pages, whose address is printed (PORT=... for another port than 5000)"
	@echo "make test       run the tests; make test-slow the long ones; make check style and types"
	@echo "make docs       build the documentation as a site, .site/html/index.html, and check its links"
	@echo "make lock       choose the packages' versions anew; make setup the environment alone; make clean drop it"

repro: setup
	dvc repro

test: setup
	pytest -n 2 --dist loadfile --cov=fcn --cov=pipeline --cov-report=term:skip-covered

test-slow: setup
	pytest -m slow

check: setup
	ruff format --check .
	ruff check .
	pyright

docs: setup
	python docs/site/pages.py
	zensical build --strict --clean

format: setup
	ruff format .
	ruff check --fix .

PORT ?= 5000
ui: setup
	@fcn tracking ui --port $(PORT)

lock: $(BIN)/uv
	uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group dev --group docs --extra s3 pyproject.toml -o requirements.lock

setup: .venv/synced

# Compiled once here, or each of the dozens of processes of a run would compile torch and Ray for itself
.venv/synced: requirements.lock pyproject.toml | $(BIN)/uv
	uv pip sync -q --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

clean:
	rm -rf .venv
