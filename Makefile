# The main targets are `make demo` and `make test`. Both create the environment first.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# uv installs, or pip where uv cannot be had; `.ci/install.py` makes the environment first.
INSTALL := $(shell command -v $(PYTHON) || echo python3) .ci/install.py
# Processes of the tests; each starts a Ray, an S3 server and a browser of its own.
TEST_PROCESSES ?= 2

.PHONY: browser demo test test-slow test-lowest test-gpu-build test-gpu check env results results-gpu bench bench-full docs wheel clean

demo: env
	$(BIN)/skysift demo --folder skysift-demo

test: env browser
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(TEST_PROCESSES) --dist loadfile

# The map is tested in Chromium. Where it is missing and cannot be installed, those tests skip, and the
# last lines of the run say so.
browser:
	@command -v chromium >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] \
	  || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 \
	  || echo "chromium could not be installed: apt-get install chromium says why" >&2

# The tests that take an hour: every fault at every step, lost hosts, the tutorial. Run them nightly.
test-slow: env
	$(BIN)/python -m pytest -m "slow and not gpu"

# The same tests with the oldest releases that pyproject.toml allows; their warnings are ignored.
# `uv pip compile --resolution lowest-direct` made the constraints, with torch and the test tools as pinned.
# Two tests compare with the pinned releases and are left out: a reference page by click, Ray's images.
test-lowest:
	$(INSTALL) .venv-lowest -c constraints-lowest.txt torch -e '.[dev]'
	.venv-lowest/bin/python -m pytest -W ignore -m "not slow and not gpu" \
	  --deselect tests/test_docs.py::test_the_reference_is_what_the_code_says \
	  --deselect tests/test_kuberay_files.py::test_tokens_are_on_and_ray_is_the_version_of_the_tests

# The index and the searches with faiss-gpu in place of faiss-cpu, on the CPU. Run them nightly.
test-gpu-build: .venv-gpu/.ready
	.venv-gpu/bin/python -m pytest -m "not slow and not gpu" -n $(TEST_PROCESSES) --dist loadfile \
	  tests/storage/index tests/pipeline/indexing tests/pipeline/search tests/workflows/doctor

# What needs an NVIDIA GPU: the table of benchmarks/gpu.py, which fails at once without one, and the tests.
test-gpu: .venv-gpu/.ready
	.venv-gpu/bin/python -m benchmarks.gpu
	.venv-gpu/bin/python -m pytest -m gpu

# Both packages own the files of the module `faiss`, so both go before one of them comes.
.venv-gpu/.ready: pyproject.toml constraints.txt .ci/install.py
	$(INSTALL) .venv-gpu -c constraints.txt torch -e '.[dev]'
	.venv-gpu/bin/python -m pip uninstall --quiet --quiet -y faiss-cpu faiss-gpu
	$(INSTALL) .venv-gpu -c constraints.txt faiss-gpu
	touch $@

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The losses on the real labelled set (see docs/results.md); needs AID_TAR and MOBILENET_V2.
results: env
	$(BIN)/python -m benchmarks.results

# Fine-tuning of every weight on both labelled sets: all GPUs, bfloat16, three seeds (see docs/results.md);
# needs AID_TAR, UCM_TAR and MOBILENET_V2, and ends with one line where there is no GPU. A stopped run goes on.
results-gpu: .venv-gpu/.ready
	.venv-gpu/bin/python -m benchmarks.finetune --device gpu

# Every benchmark beside its peers, into docs/performance.md; the long forms take hours.
bench bench-full: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(if $(filter bench-full,$@),--full)

$(VENV)/.bench: $(VENV)/.ready
	$(INSTALL) $(VENV) -c constraints.txt -e '.[bench]'
	touch $@

# Generate the pages of docs/reference from the code.
docs: env
	$(BIN)/python docs/build_reference.py
	$(BIN)/python docs/build_licences.py

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt .ci/install.py
	$(INSTALL) $(VENV) -c constraints.txt torch -e '.[dev]'
	touch $@

wheel: env
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .venv-gpu dist skysift-demo
