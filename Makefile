# Everything runs in .venv, which the first target creates with the interpreter PYTHON.
PYTHON ?= python3
PROMPT = a blue circle swaying over a light yellow dotted background
SIZE = --frames 25 --height 192 --width 192 --steps 12
TOO_OLD = vidsparse needs Python 3.11 or newer (make PYTHON=python3.12 takes another)
PIP = .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint type bench docs clean
.NOTPARALLEL:

demo: .venv/core.stamp
	.venv/bin/vidsparse compare "$(PROMPT)" --preset balanced,fast $(SIZE) --repeats 2 --seed 0 -o demo

test: .venv/dev.stamp
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/dev.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/codespell

type: .venv/dev.stamp
	.venv/bin/pyright --pythonpath .venv/bin/python

bench: .venv/core.stamp
	.venv/bin/python benchmarks/cpu_engine.py $(ARGS)

docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

clean:
	rm -rf .venv build dist demo site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are as new as the last install: an edit of a file they depend on installs again.
.venv/core.stamp: .venv/made.stamp pyproject.toml constraints.txt
	@echo "Installing vidsparse into .venv (minutes the first time)"
	@$(PIP) -e .
	@touch $@

.venv/dev.stamp: .venv/made.stamp pyproject.toml constraints.txt
	@echo "Installing vidsparse and its development tools into .venv (minutes the first time)"
	@$(PIP) -e ".[dev]"
	@touch .venv/core.stamp $@

.venv/docs.stamp: .venv/core.stamp
	@$(PIP) -e ".[docs]"
	@touch $@

.venv/made.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "$(TOO_OLD), and there is no $(PYTHON)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(TOO_OLD), and $(PYTHON) is no such Python" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@
