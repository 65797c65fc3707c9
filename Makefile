# make demo: set up and watch text become a scored, packaged model. make test: set up and check everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-gpu lint types imports tests clean

demo: $(STAMP)
	$(BIN)/pgolf run --preset demo --run demo

test: lint types imports tests

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

tests: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# What a GPU runs, on fake CUDA tensors: no GPU or driver is needed, but torch's CUDA build, several gigabytes, which
# goes into a folder of its own.
GPU_VENV := .venv-gpu
test-gpu:
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -c "import sys, torch; sys.exit(torch.version.cuda is None)" 2> /dev/null || \
		$(GPU_VENV)/bin/python -m pip install --quiet torch===$$(sed -n 's/^torch==//p' constraints.txt)
	grep -v '^torch==' constraints.txt > $(GPU_VENV)/constraints.txt
	$(GPU_VENV)/bin/python -m pip install --quiet --constraint $(GPU_VENV)/constraints.txt --editable '.[test]'
	$(GPU_VENV)/bin/python -m pytest -m gpu

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
