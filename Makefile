# Two commands on a fresh machine: `make demo` and `make test`. Everything lives in .venv.

PYTHON ?= python3
BIN := .venv/bin
# An ImageFolder of real photos for the slow tests, such as DATA=path/to/imagenette/val
DATA ?=
# Imagenette's training images, for `make imagenette`.
TRAIN ?=
# The tested versions; empty to let pip choose within pyproject.toml.
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := $(BIN)/pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: demo app-web test test-all slow lint digits imagenette lock clean

demo: .venv/demo.stamp
	$(BIN)/python -m tinyvit_edge.digits images out/digits
	$(BIN)/tinyvit-edge deploy --weights digits --data out/digits/heldout --calib out/digits/train \
		--targets onnx,executorch,tflite,coreml --precisions fp32,fp16,w8-dynamic,w8a8 \
		--threads 1 --out out/demo

# The web app on http://localhost:8000, with the bundles that are there, or else the demo's.
WEB := apps/web

app-web: $(WEB)/vendor $(WEB)/bundles/index.json
	$(PYTHON) -m http.server --directory $(WEB) --bind 127.0.0.1 8000

$(WEB)/vendor: $(WEB)/package-lock.json $(WEB)/vendor.js
	cd $(WEB) && npm ci --ignore-scripts --no-audit --no-fund && npm run vendor

# A make of its own, so that bundles of one's own need no demo beside them.
$(WEB)/bundles/index.json:
	$(MAKE) out/web
	$(BIN)/tinyvit-edge bundle --app web out/web

out/web: .venv/demo.stamp
	$(BIN)/python -m tinyvit_edge.digits images out/digits
	$(BIN)/tinyvit-edge deploy --weights digits --data out/digits/heldout --calib out/digits/train \
		--targets onnx,tflite --precisions fp32,w8a8 --threads 1 --out $@

test: lint
	$(BIN)/pytest -m "not slow" -n auto

test-all: test slow

slow: .venv/dev.stamp
	$(BIN)/pytest -m slow $(if $(DATA),--data=$(DATA))

lint: .venv/dev.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# Trains the bundled demo weights again: about three minutes on one core.
digits: .venv/demo.stamp
	$(BIN)/python -m tinyvit_edge.digits train tinyvit_edge/weights/digits

# Distils TinyViT-5M for Imagenette's ten classes: some hours on a CPU. It can be
# stopped at any time, and goes on where it was.
STORE := out/imagenette-store
STUDENT := out/imagenette-student/model
CLASSES := out/imagenette-classes/model
AGAIN := out/imagenette-classes-2/model
TEACH = $(BIN)/tinyvit-edge teach --data $(TRAIN) --augment light --workers 1 --out $(STORE)
STUDY = $(BIN)/tinyvit-edge train --data $(TRAIN) --store $(STORE) --hold-out 20 --workers 1

imagenette: $(AGAIN)

$(STUDENT): .venv/distill.stamp
	$(if $(TRAIN),,$(error which images? make imagenette TRAIN=path/to/imagenette/train))
	$(TEACH) --epochs 4
	$(STUDY) distill-small --classes teacher --out $(@D)

$(CLASSES): $(STUDENT)
	$(TEACH) --epochs 16
	$(STUDY) distill-classes --weights $< --half --out $(@D)

$(AGAIN): $(CLASSES)
	$(TEACH) --epochs 24
	$(STUDY) distill-classes --stages 168:13,224:5 --lr 5e-4 --seed 1 --weights $< --half --out $(@D)

# Renews constraints.txt: the newest versions that pyproject.toml allows, in a new environment.
# In two steps, as pip searches for long when it is asked for everything at once.
lock:
	rm -rf .venv
	$(MAKE) .venv/demo.stamp CONSTRAINTS=
	$(MAKE) .venv/dev.stamp CONSTRAINTS=
	$(BIN)/python .ci/constraints.py constraints.txt

# torch comes first and alone: an index that offers a CPU build is then asked for just that, and
# what follows finds its requirement met instead of fetching another build.
.venv/torch.stamp:
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) torch==2.13.0
	touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml $(CONSTRAINTS)
	$(PIP_INSTALL) -e '.[demo]'
	touch $@

.venv/distill.stamp: .venv/torch.stamp pyproject.toml $(CONSTRAINTS)
	$(PIP_INSTALL) -e '.[distill]'
	touch $@

.venv/dev.stamp: .venv/torch.stamp pyproject.toml $(CONSTRAINTS)
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv out build *.egg-info .pytest_cache .mypy_cache .ruff_cache
