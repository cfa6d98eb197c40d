# The two commands of the README are `make demo` and `make test`; both set themselves up.
# `make check` is what a reviewer would run before looking: formatting, lint, types, layers.

PYTHON ?=
ARGS ?=
RUNS ?=
BIN := .venv/bin
# Its folders stay behind for a look; not in /tmp.
PYTEST := $(BIN)/python -m pytest --basetemp=.pytest_tmp

.PHONY: demo test check testbed faults compiled bench deb rpm clean setup

demo:
	@tests/setup demo "$(PYTHON)"
	@$(BIN)/python tests/demo.py $(ARGS)

test: setup
	$(PYTEST) -m "not testbed" $(ARGS)

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

# The same program on Debian 12 and 13 with systemd as PID 1, and in a machine with real cgroup controllers.
testbed: setup
	$(PYTEST) -m testbed $(ARGS)

# Kill, block, starve and restart everything, under load; RUNS=50 for hours of it, see tests/faults/README.md.
faults: setup
	$(BIN)/python -m tests.faults $(if $(RUNS),--runs $(RUNS)) $(ARGS)

# The modules that every request goes through, in place, as the Debian package has them. Tests run the sources all the same,
# unless LLAMASWAPD_COMPILED=1; then without those of them that replace functions: make test ARGS='-m "not testbed and not sources"'
compiled: setup
	@tests/setup compile "$(PYTHON)"

# Against nginx, a Go stand-in for llama-swap and the bare upstream; see bench/README.md.
bench: compiled
	@tests/setup bench "$(PYTHON)"
	$(BIN)/python bench/make_bench.py $(ARGS)

# Into dist/, without an environment of our own; see packaging/README.md. ARGS=--lint holds the package against lintian.
deb:
	packaging/build-deb $(ARGS)

rpm:
	packaging/build-rpm $(ARGS)

setup:
	@tests/setup dev "$(PYTHON)"

clean:
	find llamaswapd \( -name '*.so' -o -name compiled.from \) -delete
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .pytest_tmp .hypothesis
