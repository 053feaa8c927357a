# Every target works alone on a fresh machine with Python 3.11 to 3.14 and pip; a second call costs seconds.
PYTHON ?= python3
BIN := .venv/bin

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE :=
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
# A container's user may have no name, which DVC asks for, and no home for uv's cache
export USER := $(or $(USER),$(shell id -un 2>/dev/null),nameless)
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export UV_CACHE_DIR := .venv/cache
endif

.PHONY: help repro test test-slow coverage check docs format ui lock setup clean

help:
	@echo "make repro      run the pipeline of the profile in params.yaml: data, shards, three nets, scores, report"
	@echo "make ui         compare runs in MLflow's pages, whose address is printed (PORT=... for another port than 5000)"
	@echo "make test       run the tests; make test-slow the long ones; make coverage counts lines; make check style and types"
	@echo "make docs       build the documentation as a site, .site/html/index.html, and check its links"
	@echo "make lock       choose the packages' versions anew; make setup the environment alone; make clean drop it"

repro: setup
	python -m dvc repro

# Coverage is a target of its own: to count lines takes nearly as long as the tests. Three tests at a time keep two
# cores busy, because they wait for servers
TESTS := pytest -n 3 --dist loadfile --no-loadscope-reorder

test: setup
	$(TESTS)

coverage: setup
	$(TESTS) --cov=fcn --cov=pipeline --cov-report=term:skip-covered --cov-fail-under=90

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

# Scripts of an environment hold its path, so that of a project that was moved is made again. Without git, as in an
# archive of the code, DVC needs a word to work
setup:
	@if [ -s .venv/synced ] && [ "$$(cat .venv/synced)" != "$$(pwd -P)" ]; then \
		echo "the environment was made in $$(cat .venv/synced); it is made again here"; rm -rf .venv; fi
	@$(MAKE) -s --no-print-directory .venv/synced
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
		! grep -qs no_scm .dvc/config.local || python -m dvc config -q --local --unset core.no_scm; \
	else grep -qs no_scm .dvc/config.local || python -m dvc config -q --local core.no_scm true; fi

# Compiled once here, or each of the dozens of processes of a run would compile torch and Ray for itself
.venv/synced: requirements.lock pyproject.toml | $(BIN)/uv
	uv pip sync -q --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@pwd -P > $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Python 3.11 to 3.14 is needed, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m pipeline.surroundings
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

clean:
	rm -rf .venv
