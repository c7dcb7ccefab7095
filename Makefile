# make demo   train pix2pix on synthetic façades, here and now, and judge it (3 to 6 minutes on two cores)
# make test   everything that must hold: notebooks, modules, tests; ends with the counts
# make lab    JupyterLab on the course map
# make bench  the tables of benchmarks/
# make weights MODEL=spade DATASET=facades    train, measure and export the weights that ship under this name
# make weights CONFIG=stylegan-frozen         the same for weights that have a config of their own name
# make clean  remove the environment and caches; runs/ stays
#
# Each of them first creates .venv from constraints.txt, once. Another Python: make PYTHON=python3.12 demo
# Another demo: make demo SET="train.num_steps=100"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SET ?=
READY := $(VENV)/installed

# Nothing that is installed elsewhere on the machine may leak in.
unexport PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE := 1
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help environment demo test lab bench weights clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

environment: $(READY)

$(READY): constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "semsynth needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

# Narrower and shorter than the config, whose weights ship.
DEMO := model.channels=16 train.num_steps=1000
demo: $(READY)
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/semsynth train --dataset synthetic --model pix2pix --gpus 0 --run-dir $$run $(or $(SET),$(DEMO)) && \
	$(BIN)/semsynth evaluate $$run --dataset synthetic --split test --out $$run/evaluation && \
	echo "Label maps, samples and real façades side by side: $$run/evaluation/gallery.html"

test: $(READY)
	@$(BIN)/python tests/run.py

lab: $(READY)
	$(BIN)/jupyter lab nbs/index.ipynb

bench: $(READY)
	$(BIN)/python -m benchmarks

# A run that is there already is gone on with. DATA=DIR is where the data set lies; without it, it is downloaded.
MODEL ?= pix2pix
DATASET ?= synthetic
DATA ?=
CONFIG ?=
RUN := runs/$(or $(CONFIG),$(MODEL)-$(DATASET))-weights
NAME := $(or $(CONFIG),$(MODEL)$(if $(filter-out synthetic,$(DATASET)),-$(DATASET)))
WHICH := $(if $(CONFIG),--config semsynth/configs/$(CONFIG).yaml,--dataset $(DATASET) --model $(MODEL))
ROOT := $(if $(DATA),--data-root $(DATA))
UNMEASURED := $(filter autoencoder vqgan_autoencoder map_autoencoder latent_diffusion stylegan2,$(MODEL))
# Most weights come from one run. The conditional GAN's come from three, each from where the one before ended.
trained = if [ -f $(1)/checkpoint.pt ]; then $(BIN)/semsynth train --resume $(1); else \
	$(BIN)/semsynth train $(WHICH) $(ROOT) --run-dir $(1) $(2) $(SET); fi
HALF := optim.generator.lr=2e-4 optim.discriminator.lr=2e-4
SECOND := train.start_from=$(RUN)-first train.num_steps=2000 train.ema_decay=0.998 $(HALF)
THIRD := train.start_from=$(RUN)-second train.ema_decay=0.9995 train.lr_schedule=constant data.num_images=4000 $(HALF)
IN_THREE := $(if $(CONFIG),,$(filter cgan-synthetic,$(MODEL)-$(DATASET)))
weights: $(READY)
	$(if $(IN_THREE),$(call trained,$(RUN)-first))
	$(if $(IN_THREE),$(call trained,$(RUN)-second,$(SECOND)))
	$(call trained,$(RUN),$(if $(IN_THREE),$(THIRD)))
	$(if $(UNMEASURED),,$(BIN)/semsynth evaluate $(RUN) $(ROOT) --out $(RUN)/evaluation --overwrite)
	$(BIN)/semsynth export $(RUN) -o semsynth/weights/$(NAME).safetensors --overwrite \
		$(if $(UNMEASURED),,--report $(RUN)/evaluation/report.json)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find nbs semsynth tests benchmarks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
