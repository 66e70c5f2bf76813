# make demo   32 labelled images from the bundled model, in demo/
# make check  ruff, mypy --strict and the tests that are not slow, in under a minute on two cores
# make test   the same with all tests, in some ten minutes
# make clean  removes the environment, the demo and what the tests keep

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
NEEDED := 3.11
# A Python to prefer: make demo PYTHON=/path/to/python3.12
PYTHON ?=

# Tests start many processes, each of which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

# What the tests need of TensorRT, one version a folder: the vendor's Python bindings of TensorRT, which our calls are
# checked against, without their libraries; and TensorRT for RTX, whole, which builds plans without a GPU. One that is not
# there for this machine or Python leaves its tests skipped.
TENSORRT := 11 10 rtx
build/tensorrt/11/.installed: BINDINGS := tensorrt-cu13-bindings==11.4.0.106
build/tensorrt/10/.installed: BINDINGS := tensorrt-cu13-bindings==10.16.1.11
build/tensorrt/rtx/.installed: BINDINGS := tensorrt-rtx-cu13-bindings==1.7.1.116 onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0

# A worker for each core, and one more for all tests, since some wait for other processes; one thread each. More than four
# spend their time on importing the same libraries.
test: MORE := + 1
WORKERS = $$($(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) $(MORE)))')
PYTEST = $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

# What `check` and `test` share: mypy, which has but one thread, runs beside the tests that the argument chooses.
define checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@echo "mypy --strict, beside $(PYTEST) $(1)"
	@$(BIN)/mypy --strict & types=$$!; $(PYTEST) $(1); tests=$$?; wait $$types && exit $$tests
endef

.PHONY: demo check test clean

demo: $(VENV)/.installed
	$(BIN)/dengine generate --count 32 --out demo

test: $(VENV)/.installed-dev $(TENSORRT:%=build/tensorrt/%/.installed)
	$(call checks)

check: $(VENV)/.installed-dev
	$(call checks,-m "not slow")

clean:
	rm -rf $(VENV) demo build/tensorrt build/test-cache

# The stamps keep a second `make` from installing again. The test set-up holds the demo's.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing dengine and what it needs into $(VENV) (some minutes the first time)."
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing dengine, what it needs and its tests' tools into $(VENV) (some minutes the first time)."
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed

build/tensorrt/%/.installed: Makefile | $(VENV)/.installed-dev
	@rm -rf $(@D)
	@if $(PIP) --no-deps --target $(@D) $(BINDINGS); then touch $@; else \
		echo "$(BINDINGS) is not to be had here: the tests of TensorRT $* will be skipped."; fi

$(BIN)/python:
	@for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(NEEDED)".split("."))))' \
				>/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "error: no Python >= $(NEEDED) found. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)."; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $$found cannot make a virtual environment; on Debian and Ubuntu install python3-venv." >&2; exit 1; }
