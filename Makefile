# Every verb does its own set-up: a virtual environment in .venv with the pinned versions, made again when they change.
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3 python,$(if $(shell $(p) -c 'import sys; assert sys.version_info >= (3, 11); print(1)' 2>/dev/null),$(p),)))
BIN := $(VENV)/bin
READY := $(VENV)/ready
COMPILED := $(shell find bandit serving -name "*.pxd")

.PHONY: help demo test smoke check bench torture mutants lock clean
help: ## Show the verbs
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(READY) ## The story of Recipes and Furniture, then the replay on real data (out/demo/report.html)
	@$(BIN)/python -m examples.kuairand

# Each worker starts a Redis of its own; one that the environment names is shared, so one process tests on it.
WORKERS := $(if $(QUERY_REWARDS_REDIS_URL),0,logical)
test: $(READY) ## Every test, against a real local Redis, on every core
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal

smoke: $(READY) ## Build the wheel and the source archive, install the wheel with no extra and with each, and use it
	@$(BIN)/python -m tests.smoke

check: $(READY) ## Formatting, lints, types, import contracts
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(READY) ## Every figure that the README quotes (out/bench/*.json); fails when a limit does not hold
	@$(BIN)/python -m benchmarks

torture: $(READY) ## The stream killed, cut and frozen hundreds of times; every event counted once (about twenty minutes)
	@$(BIN)/python -W ignore -m tests.torture

mutants: $(READY) ## How many one-line changes of bandit/ the tests notice; a sample with a seed (ARGS="--sample 0": all, hours)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --group mutants
	@nice $(BIN)/python -m tests.mutants $(ARGS)

lock: $(READY) ## Pin again what pyproject.toml allows (requirements.txt)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-emit-index-url --no-emit-find-links --no-annotate \
		--no-header --custom-compile-command "make lock" pyproject.toml -o requirements.txt

clean: ## Remove the virtual environment and everything that was made
	find bandit serving -name "*.so" -delete; rm -rf $(VENV) out build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/installed: pyproject.toml requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none on the PATH; name one with make PYTHON=..." >&2; exit 1; }
	@echo "Installing into $(VENV) (about two minutes, once)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(READY): $(VENV)/installed setup.py $(COMPILED) $(COMPILED:.pxd=.py)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
