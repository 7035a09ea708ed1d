# Every target makes the environment it needs, once: a second run installs nothing and works offline.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MYPY   := src tests $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help demo test shapes evidence ablations bench bench-streaming bench-neighbours lint clean

help: ## this page
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: $(VENV)/.installed ## align the embedded model on this machine and write a report
	$(BIN)/astrolabe demo

test: $(VENV)/.installed-dev lint ## style, types and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

shapes: $(VENV)/.installed ## train the embedded models again, from nothing (two hours)
	$(BIN)/python -m astrolabe.pretrain

evidence: $(VENV)/.installed ## what the README claims: three bases, three training seeds, random rewards (90 minutes)
	$(BIN)/python -m benchmarks.evidence --only demo --seeds 0 1 2
	$(BIN)/python -m benchmarks.evidence.page

bench-streaming: $(VENV)/.installed-dev ## what training along a stream costs; plans against measurements (an hour)
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.plots

ablations: $(VENV)/.installed ## every claim of docs/evidence_plan.md (fourteen hours; goes on where it stopped)
	$(BIN)/python -m benchmarks.evidence
	$(BIN)/python -m benchmarks.evidence.page

bench: $(VENV)/.installed-dev ## speed and memory of generation, memory of loading
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.generation

bench-neighbours: $(VENV)/.installed-dev ## a step of the demo beside other busy programs (an hour, on two idle cores)
	$(BIN)/python -m benchmarks.neighbours

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy $(MYPY)

clean: ## remove the environment and every cache; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find src tests $(wildcard benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,<what>): a virtual environment with this package in it, edited in place.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Astrolabe needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)."; \
	  echo "Name one that is: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '$(1)'
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/.installed $@
