# Two commands do everything on a fresh Debian 12: `make demo` and `make test`.
# Both set up what they need first; the second run finds it done.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Tests that wait for a QEMU leave the processor to another one.
JOBS ?= 3

# What the tests run against, and what builds the hypervisor stand-in they preload.
PROGRAMS := qemu-system-x86_64 qemu-img gcc systemd-analyze openssl losetup ip /usr/lib/xen-4.17/bin/xenstored \
            /usr/lib/xen-4.17/bin/oxenstored /usr/include/xenctrl.h
PACKAGES := qemu-system-x86 qemu-utils gcc libc6-dev systemd xen-utils-4.17 libxen-dev \
            python3 python3-venv openssl mount iproute2

.PHONY: demo test sweep bench faults fuzz lint setup system pages lock clean

demo: setup
	$(BIN)/python -m tests.rigs xenstored xenstored xenstored -- $(BIN)/xencolo demo

test: setup
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

# Every point of the crash sweep, of which the tests take a part.
sweep: setup
	XENCOLO_SWEEP=whole $(BIN)/python -m pytest tests/e2e/test_sweep.py $(ARGS)

bench: setup
	$(BIN)/python -m tests.bench

# All the readers of what others write, coverage-guided; FUZZ_SECONDS is for all of them together.
fuzz: setup $(VENV)/.fuzz
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(BIN)/python -m tests.fuzz

$(VENV)/.fuzz: $(VENV)/.done requirements-fuzz.txt
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-fuzz.txt
	touch $@

faults: setup
	$(BIN)/python -m tests.faults $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: system $(VENV)/.done

system:
	@for program in $(PROGRAMS); do command -v $$program >/dev/null || test -e $$program || missing=1; done; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing=1; \
	test -z "$$missing" || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(PACKAGES); }

$(VENV)/.done: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The pages that are made from the code's own tables.
pages: setup
	$(BIN)/python -c 'from xencolo.reference import page; print(page(), end="")' > protocol/NODES.md
	$(BIN)/python -c 'from xencolod.config import example; print(example(), end="")' > systemd/xencolod.toml

# Newest versions of everything, with their hashes; needs uv.
lock:
	uv pip compile pyproject.toml --group dev --python-version 3.11 --generate-hashes --upgrade \
		--no-emit-index-url --no-emit-find-links --no-header -o requirements.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
