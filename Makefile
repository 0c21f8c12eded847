# make run    build, then classify handwritten digits with two trained networks
# make test   build, install what the tests need, run all tests, as many at a time as there are processors, up to four
# make bench  a table of times beside PyTorch, ONNX Runtime and OpenVINO
# make asan   the tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make fuzz   200,000 mutated files through every loader, and what loads through all that a user may do
# make fuzz-asan   20,000 of them under AddressSanitizer and UndefinedBehaviorSanitizer
# make soak   pools and streams under a random schedule, for ten minutes
# make lint   ruff, mypy, clang-format, cython-lint, codespell, vermin

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))
BIN = $(VENV)/bin
COUNT ?= 200000
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES = setup.py pyproject.toml $(wildcard src_c/*.[ch] src_c/kernels/*.[ch] fastrnn/*.pyx fastrnn/*.pxd)

.PHONY: run test bench asan build/asan fuzz fuzz-asan soak lint clean

run: $(VENV)/installed
	$(BIN)/python examples/digits/run.py

test: $(VENV)/installed-test
	LD_PRELOAD="$(PRELOAD)" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 10 $(ARGS)

bench: $(VENV)/installed-bench
	$(BIN)/python bench/compare.py

fuzz: $(VENV)/installed-test
	LD_PRELOAD="$(PRELOAD)" $(BIN)/python tests/fuzz_loaders.py --count $(COUNT)

soak: $(VENV)/installed-test
	$(BIN)/python tests/soak_streams.py --minutes 10

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint fastrnn
	$(BIN)/vermin --quiet --no-tips --violations --exclude long -t=3.10- $$(git ls-files '*.py')
	$(BIN)/codespell $$(git ls-files '*.py' '*.pyx' '*.md' '*.c' '*.h')
	$(BIN)/clang-format --dry-run --Werror $(wildcard src_c/*.[ch] src_c/kernels/*.[ch] tests/c/*.[ch] bench/*.[ch])

# A copy of its own, so that nothing instrumented stays among the objects of the fast build.
SANITIZED = FASTRNN_OPENMP=0 FASTRNN_SANITIZE=address,undefined ASAN_OPTIONS=detect_leaks=0 $(MAKE) -C build/asan \
    PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"

build/asan:
	rm -rf build/asan && mkdir -p build/asan && git ls-files -z | tar -c --null -T - | tar -x -C build/asan

asan: build/asan
	$(SANITIZED) test \
	    ARGS="tests --ignore=tests/test_package.py --ignore=tests/test_quiet.py --ignore=tests/test_quiet_models.py \
	          --ignore=tests/test_neon.py"

fuzz-asan: build/asan
	$(SANITIZED) fuzz COUNT=20000

clean:
	rm -rf build dist *.egg-info $(VENV) fastrnn/*.so fastrnn/_core.c fastrnn/_blas.c

# ---- Environments ----

NEEDS = apt-get install python3 python3-dev python3-venv gcc make

$(VENV)/made:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: $(NEEDS)"; exit 1; }
	@command -v gcc >/dev/null || command -v cc >/dev/null || { echo "a C compiler is missing: $(NEEDS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python cannot make virtual environments: $(NEEDS)"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null || \
	    { echo "Python's headers are missing: $(NEEDS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/made $(SOURCES)
	$(PIP) install -e '.[keras]'
	touch $@

# torch is pinned, and first: other packages would take a build of several gigabytes.
$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install torch==2.13.0
	$(PIP) install -e '.[test]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed-test
	$(PIP) install -e '.[bench]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -e '.[dev]'
	touch $@
