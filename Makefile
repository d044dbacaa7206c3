# make demo     the paper's experiment on drawn tissue, in runs/mine
# make test     all tests, with the notebooks end to end on smoke and her2st
# make lint     ruff and mypy: layout, imports and types
# make weekly   the long tests that make test leaves out
# make her2st   the same experiment on real public tissue, in runs/her2st
# make smoke    all chapters on very little tissue in a minute, in runs/smoke
# make ladder   which part of PEKA did the work? all studies on the demo, about an hour
# make grid     the profile smoke as jobs, two at a time, and its tables against peka run smoke
# make scvi     install the library of the teacher scvi: peka run demo --run scvi -p teacher=scvi
# make lab      open the notebooks in JupyterLab
# make book     the chapters, the API and the glossary as pages, in build/book; nothing is run
# make test-browser   the book in headless Chromium: links, figures, equations, small screens
# make test-lab       run chapter 1 in a real JupyterLab; all chapters: make test-lab ARGS=all
# make publish  run demo and her2st again, and put their notebooks and tables into the repository
# make clean    remove .venv and caches, but not runs/
# For another Python: make demo PYTHON=python3.12. For tests one after the other: make test WORKERS=0

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
BIN := .venv/bin

.PHONY: help demo test lint weekly her2st smoke ladder grid scvi lab book test-browser test-lab publish clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: .venv/.core
	$(BIN)/peka run demo --run mine $(ARGS)

her2st smoke: .venv/.core
	$(BIN)/peka run $@ $(ARGS)

ladder: .venv/.core
	$(BIN)/peka ladder demo --run ladder $(ARGS)
	cp runs/ladder/results/ladder*.csv results/
	$(BIN)/python scripts/cite.py --write

grid: .venv/.grid
	$(BIN)/python workflow/check.py $(ARGS)

scvi: .venv/.core
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[scvi]'

lab: .venv/.core
	$(BIN)/jupyter lab notebooks $(ARGS)

book: .venv/.book
	@rm -rf build/book
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs build/book
	@echo "build/book/index.html opens from the file, without a network"

test-browser: book .venv/.browser
	PEKA_BOOK=build/book $(BIN)/python -m pytest tests/book/test_pages.py -n $(WORKERS) $(ARGS)

test-lab: .venv/.browser
	PEKA_LAB=$(or $(ARGS),01_data) $(BIN)/python -m pytest tests/book/test_lab.py

publish: .venv/.core
	rm -rf runs/demo runs/her2st
	$(BIN)/peka run her2st
	$(BIN)/python scripts/publish.py her2st
	$(BIN)/peka run demo
	$(BIN)/python scripts/publish.py demo

test: .venv/.test
	@$(BIN)/peka fetch her2st || echo "her2st is not here: its end-to-end test will say so and be skipped"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

weekly: .venv/.test .venv/.grid scvi
	$(BIN)/python -m pytest -m weekly $(ARGS)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[ecosystem]'
	$(BIN)/python -m pytest tests/models/test_scvi.py tests/slides/test_lazyslide.py tests/sources/test_visium.py $(ARGS)

.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing peka_core and its pinned dependencies into .venv (some minutes on first use) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@$(BIN)/python -c "import umap"  # compiles its functions once
	@touch $@

.venv/.test: .venv/.core
	@echo "installing the test extras ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,wsi,spatial]'
	@touch $@

.venv/.grid: .venv/.core
	@echo "installing Snakemake ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[grid]'
	@touch $@

.venv/.book: .venv/.core
	@echo "installing Sphinx ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[book]'
	@touch $@

.venv/.browser: .venv/.test
	@echo "installing Playwright, which drives a Chromium or Chrome of this machine ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@touch $@

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python 3.11, 3.12 or 3.13, or name one: make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "peka_core needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make demo PYTHON=python3.12"; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)"; exit 1; }

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find peka_core tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
