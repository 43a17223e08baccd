# SPDX-License-Identifier: GPL-3.0-or-later
# `make run` and `make test` need Python 3.11 or later with its venv module, and nothing else: they make .venv themselves.

PYTHON ?= python3
PYTEST_ARGS ?=
BIN := .venv/bin
# Scripts without an extension; mypy wants each by itself.
SCRIPTS := vmside/ruddo.PrometheusProxy tests/standin/qrexec-client-vm

.DEFAULT_GOAL := help
.PHONY: help run test test-debian lint check soak bench clean

help:
	@echo "make run     try it: the daemon on 127.0.0.1:8199, three demo qubes, real exporters (Ctrl-C ends it)"
	@echo "make test    all tests; PYTEST_ARGS='-k wire' for some"
	@echo "make lint    ruff and mypy"
	@echo "make check   lint, then test"
	@echo "make soak    five minutes of qubes that come, go and fail; prints what the daemon holds before and after"
	@echo "make bench   what a scrape costs, side by side with others; some ten minutes"
	@echo "make clean   remove what these made"

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$(PYTHON) is missing or older than Python 3.11; name another one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: .venv/installed
	@exec $(BIN)/python tests/demo/run.py

test: .venv/installed
	PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	for script in $(SCRIPTS); do $(BIN)/mypy $$script || exit 1; done

# The other end of what is supported: Debian 12's own Python and libraries (aiohttp 3.8, prometheus-client 0.16).
# That they warn of what is deprecated since is nothing we can mend.
test-debian:
	PYTHONASYNCIODEBUG=1 /usr/bin/python3 -m pytest -W ignore::DeprecationWarning --ignore=tests/test_soak.py $(PYTEST_ARGS)

check: lint test

soak: .venv/installed
	$(BIN)/python -m tests.soak 300

bench: .venv/installed
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
