PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-zA-Z_.-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  make %-15s %s\n", $$1, $$2}'

# The stamp is written last, so that an interrupted install is repeated.
.PHONY: .venv
.venv: $(VENV)/.installed ## Create .venv from the lock file (PYTHON=python3)
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Everyrun needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 .venv" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: .venv ## Run the main job end to end and compare it with the truth (INPUTS=2500 FAULTS=default SEED=1)
	@$(BIN)/everyrun demo --inputs $(or $(INPUTS),2500) --faults $(or $(FAULTS),default) --seed $(or $(SEED),1)

.PHONY: up
up: .venv ## Run the whole stack until Ctrl-C; its data stay in .everyrun
	@$(BIN)/everyrun up

.PHONY: test
test: .venv ## Run every test on a real Kafka and Postgres, in two processes (ARGS='-n 0 tests/unit')
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Another Python gets a virtual environment of its own, such as .venv-python3.13.
OTHER_VENV = .venv-$(notdir $(PYTHON))
.PHONY: test-python
test-python: ## Run the unit tests on another Python (PYTHON=python3.13)
	@$(MAKE) --no-print-directory VENV=$(OTHER_VENV) $(OTHER_VENV)/.installed
	@$(OTHER_VENV)/bin/pytest -q tests/unit $(ARGS)

.PHONY: lint
lint: .venv ## Check with ruff, mypy --strict and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: .venv ## Format every file and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: bench
bench: .venv ## Measure speeds, each next to its ceiling in the same run (ONLY=startup|processor|bridge|intake|retry|archive|notify|export|dropin|demo)
	@$(BIN)/python -m benchmarks $(ONLY)

.PHONY: chaos
chaos: .venv ## Break everything while jobs run, and compare with the truth; resumes (CELLS='bridge/*,extend/*' SEEDS=1,2,3)
	@$(BIN)/python -m chaos --cells '$(CELLS)' --seeds '$(or $(SEEDS),1)'
	@[ -n '$(CELLS)' ] || $(BIN)/pytest -m chaos
	@EVERYRUN_CHAOS=1 $(BIN)/pytest -q tests/integration/test_promises.py

.PHONY: soak
soak: .venv ## Run jobs under random faults and kills; check for loss, stalls, memory growth (MINUTES=10 SEED=1)
	@$(BIN)/python -m chaos.soak --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

.PHONY: fuzz
fuzz: .venv ## Fuzz the APIs, the bridge, HTTP itself and the command line (MINUTES=10)
	@EVERYRUN_FUZZ_MINUTES=$(or $(MINUTES),10) $(BIN)/pytest tests/fuzz -s -o timeout=0 $(ARGS)

.PHONY: audit
audit: .venv-audit/.installed ## Check the locked dependencies for known vulnerabilities (needs the network)
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements.lock
.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@touch $@

.PHONY: bench-replay
bench-replay: .venv ## Measure rebuild and audit next to their ceilings (RUNS=100000)
	@REPLAY_RUNS=$(or $(RUNS),100000) $(BIN)/python -m benchmarks replay

.PHONY: schemas
schemas: .venv ## Generate schemas/ and pages of docs/reference/ from the code's types
	@$(BIN)/python -m everyrun.schemas
	@EVERYRUN_WRITE=1 $(BIN)/pytest -q tests/integration/test_schemas.py

.PHONY: release-schemas
release-schemas: .venv ## Store schemas and golden events of event versions that have none yet
	@$(BIN)/python -m everyrun.schema_compatibility
	@EVERYRUN_WRITE=1 $(BIN)/pytest -q tests/unit/test_golden_events.py tests/unit/test_schema_compatibility.py

.PHONY: lock
lock: .venv ## Update requirements.lock (needs uv)
	uv pip compile pyproject.toml --extra embedded --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

.PHONY: clean
clean: ## Delete virtual environments and caches; .everyrun stays
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
