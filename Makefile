# Everything below works on a machine with Python >= 3.11, make and git; `make test` needs Node.js >= 20.19, curl and Chromium too. Kept to what GNU make 3.81 (macOS) knows.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVERS := tests/servers/node_modules/.package-lock.json
CLIENT := client/node_modules/.package-lock.json
# `make setup PYTHON=/path/to/python` tries that one only.
PYTHON ?= python3 python3.13 python3.12 python3.11
# `make test PYTEST_ARGS="-k cursor"`, `make serve ARGS="--port 9000"`
PYTEST_ARGS ?=
# Processes that run tests, a file each at a time: most of a test's time is waiting for others. In the files' order, since
# those that take longest come first then.
WORKERS ?= 4
ARGS ?=
# `make lock UPGRADE=--upgrade` takes new versions; without it only what pyproject.toml asks for changes.
UPGRADE ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test client chromium bench lint format lock clean

help: ## show this list
	@echo "agent-sse: agent events to the browser, and the user's permission back"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything, checked by hash

# The project goes in with --no-deps and without build isolation: nothing is installed that the lock does not name.
# A .venv that still works is kept and brought up to date, one whose Python is gone is made anew.
$(STAMP): requirements/dev.txt pyproject.toml
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	found=""; seen=""; bare=""; \
	for candidate in $(PYTHON); do \
	    version=$$($$candidate -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    seen="$$seen $$candidate ($$version)"; \
	    $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue; \
	    if $$candidate -c 'import ensurepip, venv' 2>/dev/null; then found=$$candidate; break; fi; \
	    bare=$${bare:-$$version}; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	    echo "Python $$bare is here without its venv module; on Debian or Ubuntu: apt install python$$bare-venv" >&2; \
	    exit 1; \
	elif [ -z "$$found" ]; then \
	    echo "agent-sse needs Python 3.11 or newer; found:$${seen:- none}." \
	         "Install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "creating $(VENV) with $$found, and installing (about a minute)"; \
	$$found -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## run the main job on a real MCP server: events, a question, your answer
	@$(BIN)/agent-sse demo $(ARGS)

serve: setup ## run the service with the settings from the environment and .env
	@$(BIN)/agent-sse serve $(ARGS)

test: setup lint client chromium $(SERVERS) ## check style and types, then run all tests
	@command -v curl >/dev/null || { echo "the tests need curl, for an agent that is a shell script" >&2; exit 1; }
	MAKEFLAGS= $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder $(PYTEST_ARGS)

client: setup $(CLIENT) ## check, build and test the browser's client, and that the console is built from it
	cd client && npm run --silent lint && npm run --silent types -- --check && npm run --silent check
	cd client && npm run --silent build && npm run --silent size && npm run --silent console:check
	cd client && npm test --silent

chromium: setup ## find or install the Chromium of the tests
	@$(BIN)/python tests/browser/chromium.py

# From npm: the client's tools, and real MCP servers for the tests; nothing of them is needed to run the service, the
# console or the guard. `ci`, or npm of another version would write the lock anew; --ignore-scripts, since none of them
# has to build anything.
client/node_modules/.package-lock.json tests/servers/node_modules/.package-lock.json: \
    %/node_modules/.package-lock.json: %/package-lock.json %/package.json
	@node -e 'const [a, b] = process.versions.node.split("."); process.exit(+(a < 20 || (a == 20 && b < 19)))' 2>/dev/null && npm --version >/dev/null 2>&1 || { \
	    echo "the tests need Node.js >= 20.19 with npm, for the browser's client and real MCP servers (https://nodejs.org)" >&2; exit 1; }
	@npm ci --prefix $* --no-audit --no-fund --ignore-scripts --loglevel=error
	@touch $@

# `make bench ARGS="--only fanout --rounds 1 --peers agent-sse"`
bench: setup ## measure this project beside its peers, about 15 minutes
	@$(BIN)/python -m benchmarks $(ARGS)

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## bring the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --universal: one file for every platform and Python version, since markers differ between them (3.11.2 needs
# async-timeout, 3.11.3 does not). --no-config: a user's own index never gets into the file.
COMPILE = $(BIN)/uv --quiet --no-config pip compile --universal --python-version 3.11 --generate-hashes \
          --custom-compile-command "make lock" $(UPGRADE)

lock: setup ## write requirements/*.txt anew from pyproject.toml
	$(COMPILE) pyproject.toml --all-extras --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --constraint requirements/dev.txt --output-file requirements/run.txt
	$(COMPILE) --group build --constraint requirements/dev.txt --output-file requirements/build.txt

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) tests/servers/node_modules client/node_modules client/dist examples/react/node_modules examples/react/dist build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
