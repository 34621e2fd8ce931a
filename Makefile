# Everything starts from a fresh clone with python3 (3.11+) and git; each target makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ONCE ?=

.PHONY: demo test check lint types serve soak hostile agents bench clean

demo: $(VENV)/.run
	$(BIN)/tollbook demo $(if $(ONCE),--once)

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/pyright

serve: $(VENV)/.run
	$(BIN)/tollbook serve

# The kill tests at length: many more rounds than `make test` takes.
soak: $(VENV)/.dev
	SOAK_KILL_ROUNDS=100 $(BIN)/python -m pytest tests/test_kill.py -s
	SOAK_RESERVATION_KILLS=20 $(BIN)/python -m pytest tests/test_reservations_soak.py -s
	SOAK_PROXY_CALLS=10000 $(BIN)/python -m pytest tests/test_proxy_soak.py -s

# One response id on a million records: bounded work per batch, some minutes.
hostile: $(VENV)/.dev
	HOSTILE_RECORDS=1000000 $(BIN)/python -m pytest tests/test_hostile.py -s

# Claude Code and Codex themselves, installed by npm into a cache folder, working through a server; then their bill.
agents: $(VENV)/.dev
	AGENTS=1 $(BIN)/python -m pytest tests/test_agents.py -s

bench: $(VENV)/.dev
	$(BIN)/python -m bench

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python requirements.txt pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) demo-data
