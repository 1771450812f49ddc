PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is
	@grep -hE '^[a-zA-Z_.-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  make %-14s %s\n", $$1, $$2}'

# The stamp is written last, so that an interrupted install is done again.
.PHONY: .venv
.venv: $(VENV)/.installed ## Create .venv from the lock file
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Everyrun needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 " if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: .venv ## The main job, end to end, beside the truth (INPUTS=2500 FAULTS=default SEED=1)
	@$(BIN)/everyrun demo --inputs $(or $(INPUTS),2500) --faults $(or $(FAULTS),default) --seed $(or $(SEED),1)

.PHONY: up
up: .venv ## Bring the stack up, until Ctrl-C (its data stay in .everyrun)
	@$(BIN)/everyrun up

.PHONY: test
test: .venv ## Every test, on a real Kafka and a real Postgres; two processes (ARGS= for pytest: -n 0 for one)
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: lint
lint: .venv ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: .venv ## Put every file in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: bench
bench: .venv ## Speeds, each beside its ceiling in the same run (ONLY=startup|processor|bridge|intake|archive|demo)
	@$(BIN)/python -m benchmarks $(ONLY)

.PHONY: chaos
chaos: .venv ## Break everything while jobs run, beside the truth; goes on where it was (CELLS='bridge/*,extend/*' SEEDS=1,2,3)
	@$(BIN)/python -m chaos --cells '$(CELLS)' --seeds '$(or $(SEEDS),1)'
	@[ -n '$(CELLS)' ] || $(BIN)/pytest -m chaos
	@EVERYRUN_CHAOS=1 $(BIN)/pytest -q tests/integration/test_promises.py

.PHONY: soak
soak: .venv ## Jobs, random faults and kills for long: lost, doubled, stalls, memory (MINUTES=10 SEED=1)
	@$(BIN)/python -m chaos.soak --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

.PHONY: fuzz
fuzz: .venv ## Fuzz the APIs, the bridge, HTTP itself and the command line (MINUTES=10)
	@EVERYRUN_FUZZ_MINUTES=$(or $(MINUTES),10) $(BIN)/pytest tests/fuzz -s -o timeout=0 $(ARGS)

.PHONY: audit
audit: .venv-audit/.installed ## The locked dependencies against known vulnerabilities (needs the network)
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements.lock
.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@touch $@

.PHONY: bench-replay
bench-replay: .venv ## Rebuild and audit beside their ceilings (RUNS=100000)
	@REPLAY_RUNS=$(or $(RUNS),100000) $(BIN)/python -m benchmarks replay

.PHONY: schemas
schemas: .venv ## Write schemas/ and docs/reference/ anew from the code's own types
	@$(BIN)/python -m everyrun.schemas
	@EVERYRUN_WRITE=1 $(BIN)/pytest -q tests/integration/test_schemas.py

.PHONY: release-schemas
release-schemas: .venv ## Keep copies of schemas, and golden events, of versions that have none yet
	@$(BIN)/python -m everyrun.schema_compatibility
	@EVERYRUN_WRITE=1 $(BIN)/pytest -q tests/unit/test_golden_events.py tests/unit/test_compatibility.py

.PHONY: lock
lock: .venv ## Write requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra embedded --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

.PHONY: clean
clean: ## Take away .venv and caches; .everyrun stays
	rm -rf $(VENV) .venv-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
