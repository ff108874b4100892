# Everything happens in .venv, which the first target that needs it makes. A stamp per extra,
# younger than pyproject.toml and constraints.txt, says that there is nothing to install.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin

TRAIN_ARGS ?= trpo --env CartPole-v1 --preset --stop-at 500 --eval-freq 4000 --eval-episodes 20
BENCHMARK_ARGS ?= all
COMPARE_SMALL := --envs CartPole-v1 Pendulum-v1 --agents trpo npg acktr sb3:ppo sb3:a2c sb3-contrib:trpo \
	--seeds 3 --total-timesteps 20000 --jobs 2 --output reports/small
# Processes for pytest. Each runs torch on one thread (tests/conftest.py).
WORKERS ?= 2
PYTEST_ARGS ?=

# The tests start many processes; with this set, each would compile the whole project anew.
unexport PYTHONDONTWRITEBYTECODE

SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train test coverage test-slow lint format benchmark compare-small clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target text; do printf '  make %-13s %s\n' "$$target" "$$text"; done
	@echo
	@echo '  make train TRAIN_ARGS="trpo --env HalfCheetah-v5 --num-envs 8"   chooses what to train'
	@echo '  make test PYTEST_ARGS="-k fisher"                                chooses what to test'

setup: $(VENV)/.dev ## make .venv with all that training, the tests and the benchmarks need

train: $(VENV)/.base ## train TRPO on CartPole-v1 (another run: TRAIN_ARGS="...")
	@$(BIN)/python scripts/train.py $(TRAIN_ARGS)

test: lint ## lint, types, import contracts, then the tests with coverage
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(PYTEST_ARGS)

coverage: $(VENV)/.dev ## the tests once more, with the lines of every case counted
	@NPG_COVERAGE=all $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(PYTEST_ARGS)

test-slow: $(VENV)/.dev ## the tests that take minutes: learning, a Ray cluster if Ray is installed
	@$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.dev ## formatting, lint, types, import contracts, security
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive npg agents envs scripts

format: $(VENV)/.dev ## rewrite the sources as `make lint` wants them
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

benchmark: $(VENV)/.benchmark ## measure against the peers (one part: BENCHMARK_ARGS="...")
	@$(BIN)/python scripts/benchmark.py $(BENCHMARK_ARGS)

compare-small: $(VENV)/.benchmark ## compare six agents on two environments, within five minutes
	@$(BIN)/python scripts/compare.py agents $(COMPARE_SMALL)

clean: ## remove caches and build products; .venv and runs/ stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		.coverage .coverage.* coverage.xml htmlcov
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# --------------------------------------------------------------------------------- environment

# install(extras): quiet unless it fails. Python compiles a file when it is first imported: compiling
# all of torch here would more than double the time before `make train` starts.
define install
	@echo "npg: installing into $(VENV); a minute, more on a slow network (log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-compile \
		-c constraints.txt -e '.$(1)' >$(VENV)/install.log 2>&1 </dev/null || { \
		grep -v '^WARNING: Location' $(VENV)/install.log | tail -n 40 >&2; \
		echo "npg: the installation failed; all that pip said: $(VENV)/install.log" >&2; exit 1; }
	@echo "npg: installed; the first start takes some 20 s longer than the next"
	@touch $@
endef

$(VENV)/.created:
	@for python in $(PYTHON) python3.11 python3 python; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "npg: creating $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv $(VENV) && touch $@; exit $$?; \
		fi; \
	done; \
	echo "npg needs Python 3.11 or newer, and found none; name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.base: $(SOURCES) | $(VENV)/.created
	$(call install,)

# Both of these hold the base install too.
$(VENV)/.benchmark: $(SOURCES) | $(VENV)/.created
	$(call install,[benchmark])
	@touch $(VENV)/.base

$(VENV)/.dev: $(SOURCES) | $(VENV)/.created
	$(call install,[dev])
	@touch $(VENV)/.base $(VENV)/.benchmark
