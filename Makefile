# Everything a checkout needs. `make help` lists the targets.
#
# Needs rustup's toolchain (rust-toolchain.toml names it), a C++ compiler, make, and Python 3.10 or newer with pip.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
PYTHON ?= python3

# Options of the demo, for example `make demo DEMO_ARGS="--rounds 6 --json demo.json"`.
DEMO_ARGS ?=
# Options of the tests, for example `make test TEST_ARGS="-p gradmesh-compression"`.
TEST_ARGS ?= --workspace

# The binary knows where libtorch lies (rpath); test binaries of other crates do not, so they are told.
WITH_LIBTORCH = LD_LIBRARY_PATH="$$($(PYTHON) scripts/libtorch.py --lib-dir)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: libtorch
libtorch: ## find or download libtorch 2.11.0 (once per user; LIBTORCH or LIBTORCH_USE_PYTORCH win)
	@$(PYTHON) scripts/libtorch.py

.PHONY: demo
demo: libtorch ## train one model with several peers on this machine (DEMO_ARGS)
	@# The whole workspace, as the tests build it: a package alone has other features, and its dependencies would be
	@# built once more. And gradmesh needs gradmesh-daemon and gradmesh-devchain beside it.
	@$(CARGO) build --locked --workspace
	@$(WITH_LIBTORCH) "$${CARGO_TARGET_DIR:-target}/debug/gradmesh" demo $(DEMO_ARGS)

.PHONY: test
test: libtorch ## run all tests (TEST_ARGS)
	@$(WITH_LIBTORCH) $(CARGO) test --locked $(TEST_ARGS)

.PHONY: check
check: fmt clippy doc dependencies deny ## all static checks: fmt, clippy, doc, dependencies, deny

.PHONY: fmt
fmt: ## formatting
	$(CARGO) fmt --all --check

.PHONY: clippy
clippy: libtorch ## lints, as errors
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: doc
doc: libtorch ## documentation of our crates, warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --workspace

.PHONY: dependencies
dependencies: ## which crate may use which; what the pure crates may not touch
	$(PYTHON) scripts/dependencies.py --self-test
	$(PYTHON) scripts/dependencies.py

.PHONY: deny
deny: ## licences, bans, sources and known vulnerabilities of all dependencies
	@CARGO="$(CARGO)" bash scripts/deny.sh

.PHONY: clean
clean: ## remove what was built and the link to libtorch; the user's cache stays
	$(CARGO) clean
	@if [ -L libtorch ]; then rm libtorch; fi
