# make help   says what there is
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slurm lint clean

PYTHON ?= python3.11
BIN := .venv/bin
# A run is made once: give another RUN for other STEPS, and another DEMO for other MINUTES.
RUN ?= runs/demo
DEMO ?= shards/demo
STEPS ?= 2400
EVERY ?= 800
MINUTES ?= 24

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

lint: setup  ## Lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sf_lightning

test: lint  ## Lint, then all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not slurm"

test-slurm: setup  ## The job scripts on a Slurm cluster of two nodes, on this machine: root on Debian
	tests/slurm/cluster.sh up
	trap 'tests/slurm/cluster.sh down' EXIT INT TERM; $(BIN)/python -m pytest -m 'slurm and not slow' tests/slurm

clean:  ## Delete runs and demo shards, keep the environment
	rm -rf runs shards/demo
