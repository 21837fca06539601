# Everything a newcomer needs: `make` lists it. Each target installs what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs format bench tiny-base clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  %-10s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## create .venv and install the package with everything for development

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: setup ## train a small BIMBA on long needle videos and score it before and after (5 to 8 minutes on two cores)
	$(BIN)/python train.py experiment=needle_demo hydra.run.dir=outputs/demo/train
	$(BIN)/python evaluate.py checkpoint=bimba-tiny num_frames=32 temporal_pooling=4 output_dir=outputs/demo/before
	$(BIN)/python evaluate.py checkpoint=outputs/demo/train/checkpoint output_dir=outputs/demo/after
	$(BIN)/python -m bimba.report.demo --before outputs/demo/before --after outputs/demo/after --out outputs/demo/summary.json

test: setup ## run the tests, on up to four cores; one file's tests share what they set up, so they stay together
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## build the documentation as a site, in site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## compare the scan with its peers, and the compressor with other layers
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/compressor.py

tiny-base: setup ## train the shipped tiny base again (about an hour on two cores; interrupted runs resume)
	$(BIN)/python -m bimba.training.tiny_tokenizer outputs/tiny_base/tokenizer
	$(BIN)/python train.py experiment=tiny_base model.tokenizer=outputs/tiny_base/tokenizer hydra.run.dir=outputs/tiny_base resume=auto
	cp outputs/tiny_base/checkpoint/* bimba/assets/bimba_tiny/
	rm -r outputs/tiny_base/resume

clean: ## delete outputs and caches, but neither .venv nor data
	rm -rf outputs site .pytest_cache .mypy_cache .ruff_cache
