# make help   says what there is
.DEFAULT_GOAL := help
.PHONY: help setup demo table test test-slurm lint clean

PYTHON ?= python3.11
BIN := .venv/bin
# A run is made once: give another RUN for other STEPS, and another DEMO for other MINUTES.
RUN ?= runs/demo
DEMO ?= shards/demo
STEPS ?= 2400
EVERY ?= 800
MINUTES ?= 24
# Of make table: shards, the sweep's folder (another one for other STEPS or shards), and what else sf-sweep is told.
TABLE_DATA ?= shards/speech
TABLE ?= sweeps/table
TABLE_CLIPS ?= 32
TABLE_OUT ?= experiments/LAYOUTS.md
TABLE_ARGS ?=

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/installed: setup.cfg pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "error: no $(PYTHON) here: name a Python 3.11 or later, make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -e '.[demo,test]'
	@touch $@

setup: .venv/installed  ## The environment alone, in .venv

$(DEMO)/dev/manifest.json: | .venv/installed
	$(BIN)/sf-shards demo --out $(DEMO) --minutes $(MINUTES)

$(RUN)/summary.md: | $(DEMO)/dev/manifest.json
	$(BIN)/sf-fit --config experiments/demo.yaml --data.train=$(DEMO)/train --data.val=$(DEMO)/dev \
		--trainer.default_root_dir=$(RUN) --trainer.max_steps=$(STEPS) --trainer.val_check_interval=$(EVERY) \
		--ckpt_path=last

demo: setup $(RUN)/summary.md  ## Synthesise speech, train a decoder on it, hear it stream: 10 minutes on 2 cores
	@echo; cat $(RUN)/summary.md; echo
	@echo "hear and see: $(RUN)/report.html"
	@echo "logs:         $(RUN)/csv, $(RUN)/wandb"
	@echo "checkpoint:   $(RUN)/checkpoints/last.ckpt"

table: setup  ## All layouts trained alike, with seeds and intervals: experiments/LAYOUTS.md; hours on 2 cores
	@test -f $(TABLE_DATA)/dev/manifest.json || { echo "error: no shards at $(TABLE_DATA)/train and /dev: build them" \
		"(sf-shards build --audio ... --out $(TABLE_DATA)/train, then dev), or TABLE_DATA=shards/demo after make demo"; exit 2; }
	$(BIN)/sf-sweep experiments/sweeps/table.yaml --dir=$(TABLE) $(TABLE_ARGS) \
		--data.train=$(TABLE_DATA)/train --data.val=$(TABLE_DATA)/dev --data.val_clips=$(TABLE_CLIPS) \
		--trainer.max_steps=$(STEPS) --trainer.val_check_interval=$(STEPS) \
		--trainer.callbacks.init_args.every_n_train_steps=200
	$(BIN)/python benchmarks/layouts.py $(TABLE) --out $(TABLE_OUT)

lint: setup  ## Lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sf_lightning

test: lint  ## Lint, then all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not slurm"

test-slurm: setup  ## The job scripts on a Slurm cluster of two nodes, on this machine: root on Debian
	tests/slurm/cluster.sh up
	trap 'tests/slurm/cluster.sh down' EXIT INT TERM; $(BIN)/python -m pytest -m 'slurm and not slow' tests/slurm

clean:  ## Delete runs and demo shards, keep the environment
	rm -rf runs shards/demo
