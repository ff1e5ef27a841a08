# `make demo` and `make test` need Python 3.11+, make and the package index; each makes and reuses .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.ready
	$(BIN)/nucleate demo

test: $(VENV)/.ready check
	$(BIN)/python -m pytest

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installed again whenever the requirements change; the stamp is written last, so a broken install is retried.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nucleate needs Python 3.11 or newer; \
	try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing nucleate and its libraries into $(VENV) (several GB with PyTorch, minutes on the first run) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,slides,sets]" --constraint constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) runs
