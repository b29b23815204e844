# make help   lists the targets
.DEFAULT_GOAL := help
.PHONY: help setup demo table test test-slurm lint clean

PYTHON ?= python3.11
BIN := .venv/bin
# Existing results are reused: other STEPS need another RUN, other MINUTES another DEMO.
RUN ?= runs/demo
DEMO ?= shards/demo
STEPS ?= 2400
EVERY ?= 800
MINUTES ?= 24
# make table: shards, folder of the sweep (another one for other STEPS or shards), further arguments of sf-sweep.
TABLE_DATA ?= shards/speech
TABLE ?= sweeps/table
TABLE_CLIPS ?= 32
TABLE_OUT ?= experiments/LAYOUTS.md
TABLE_ARGS ?=

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/installed: setup.cfg pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; expected Python 3.11 or later: make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -e '.[demo,test]'
	@touch $@

setup: .venv/installed  ## Install everything into .venv

$(DEMO)/dev/manifest.json: | .venv/installed
	$(BIN)/sf-shards demo --out $(DEMO) --minutes $(MINUTES)

$(RUN)/summary.md: | $(DEMO)/dev/manifest.json
	$(BIN)/sf-fit --config demo --data.train=$(DEMO)/train --data.val=$(DEMO)/dev \
		--trainer.default_root_dir=$(RUN) --trainer.max_steps=$(STEPS) --trainer.val_check_interval=$(EVERY) \
		--ckpt_path=last

demo: setup $(RUN)/summary.md  ## Synthesize speech, train a decoder on it, stream and score: 10 minutes on 2 cores
	@echo; cat $(RUN)/summary.md; echo
	@echo "report:     $(RUN)/report.html (audio and pictures)"
	@echo "logs:       $(RUN)/csv, $(RUN)/wandb"
	@echo "checkpoint: $(RUN)/checkpoints/last.ckpt"

table: setup  ## Train all layouts with two seeds and write experiments/LAYOUTS.md; hours on 2 cores
	@test -f $(TABLE_DATA)/dev/manifest.json || { echo "error: no shards in $(TABLE_DATA)/train and $(TABLE_DATA)/dev; build" \
		"them with sf-shards build --audio ... --out ..., or set TABLE_DATA=shards/demo after make demo"; exit 2; }
	$(BIN)/sf-sweep table --dir=$(TABLE) $(TABLE_ARGS) \
		--data.train=$(TABLE_DATA)/train --data.val=$(TABLE_DATA)/dev --data.val_clips=$(TABLE_CLIPS) \
		--trainer.max_steps=$(STEPS) --trainer.val_check_interval=$(STEPS) \
		--trainer.callbacks.init_args.every_n_train_steps=200
	$(BIN)/python benchmarks/layouts.py $(TABLE) --out $(TABLE_OUT)

lint: setup  ## Lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sf_lightning
	$(BIN)/lint-imports --no-cache --no-logo

test: lint  ## Lint, then run all tests except slow, gpu and slurm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not slurm"

test-slurm: setup  ## Run the job scripts on a two-node Slurm cluster on this machine (root on Debian)
	tests/slurm/cluster.sh up
	trap 'tests/slurm/cluster.sh down' EXIT INT TERM; $(BIN)/python -m pytest -m 'slurm and not slow' tests/slurm

clean:  ## Delete runs and demo shards; keep the environment
	rm -rf runs shards/demo
