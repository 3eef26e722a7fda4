# Everything a checkout can do. `make` alone lists it; CI calls the same names.
#
#   PYTHON=...   the interpreter for .venv (otherwise python3.12 or python3.11 is looked for)
#   TORCH=...    another torch release than the pinned one, or a build of it such as 2.12.0+cu130
#   INDEX=...    the package index that has that build
#
# What TORCH and INDEX were at set-up is kept in .venv/choice.mk and used until given anew.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

-include .venv/choice.mk
PINNED_TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= $(PINNED_TORCH)
INDEX ?=
PYTHON ?=

PY := .venv/bin/python
PIP := $(PY) -m pip install -qq --constraint .venv/constraints.txt
KEY := $(shell { cat pyproject.toml constraints.txt; echo '$(TORCH) $(INDEX)'; } | cksum | cut -d' ' -f1)
INSTALLED := .venv/installed-$(KEY)
BENCHMARKS := kernels overhead engine unet store scheduler tiers serve train
ARGS ?=

.PHONY: help setup demo serve test test-full check format proto api bench fuzz sbom clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1 \t\2/p' Makefile | expand -t 20

setup: $(INSTALLED) ## create .venv and install everything (the other targets do it too)

demo: $(INSTALLED) ## the main job: twelve blends at once on the built-in base -> out/demo.png
	@.venv/bin/loramux demo --out out/demo.png $(ARGS)

serve: $(INSTALLED) ## serve the built-in base with the shelf in adapters_store/data
	@.venv/bin/loramux serve --store adapters_store/data $(ARGS)

test: $(INSTALLED) ## the tests, short forms
	@$(PY) -m pytest -n logical --dist worksteal -m 'not gpu and not long' $(ARGS)

test-full: $(INSTALLED) ## the tests, long forms too
	@$(PY) -m pytest -n logical --dist worksteal -m 'not gpu' $(ARGS)

check: $(INSTALLED) ## lint, types, import rules, schema, stubs, documents, Dockerfile
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright --pythonpath $(PY)
	.venv/bin/lint-imports --no-logo
	.venv/bin/buf lint proto
	.venv/bin/buf format --diff --exit-code proto
	.venv/bin/hadolint Dockerfile
	$(PY) -m pytest --quiet tests/test_architecture.py tests/test_packaging.py \
		tests/documents/test_pages.py tests/documents/test_named_commands.py

format: $(INSTALLED) ## lay out code and schema as `make check` wants them
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/buf format --write proto

PROTO_OUT ?= proto
proto: $(INSTALLED) ## generate the stubs beside the schema
	PATH=$(dir $(PY)):$$PATH $(PY) -m grpc_tools.protoc -Iproto --python_out=$(PROTO_OUT) \
		--pyi_out=$(PROTO_OUT) --grpc_python_out=$(PROTO_OUT) --mypy_grpc_out=quiet:$(PROTO_OUT) \
		proto/loramux/v1/*.proto

API ?= docs/api.md
api: $(INSTALLED) ## write the reference in docs/api.md from the schema
	$(PY) docs/generator/api.py $(API)

bench: $(INSTALLED) ## every benchmark -> out/bench/NAME.json
	@mkdir -p out/bench
	@for name in $(BENCHMARKS); do \
		echo "bench $$name"; \
		.venv/bin/loramux bench $$name --json > out/bench/$$name.json; \
	done

fuzz: $(INSTALLED) ## look for files that break the format readers, 60 s or ARGS=SECONDS -> out/fuzz
	@$(PIP) --group fuzz
	@OMP_NUM_THREADS=1 $(PY) tests/adapters_store/fuzz.py $(ARGS)

SBOM ?= out/sbom.json
sbom: $(INSTALLED) ## the bill of materials of what is installed here -> out/sbom.json
	@mkdir -p $(dir $(SBOM))
	@PATH=$(dir $(PY)):$$PATH deploy/image/sbom.sh $(PY) $(SBOM)

clean: ## remove what was made here, except .venv and the shelf
	rm -rf out dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# Set-up. torch comes first and alone, so that no other package chooses its build; then the rest
# of constraints.txt. A release other than the pinned one brings its own triton and CUDA, so that
# their pins are then taken out of the copy of the constraints that pip is given.

$(INSTALLED): | .venv/bin/python
	@rm -f .venv/installed-*
	@if [ '$(TORCH)' = '$(PINNED_TORCH)' ]; then cat constraints.txt; \
	else sed -E '/^(torch|triton|(cuda|nvidia)-.*)==/d' constraints.txt; echo 'torch==$(TORCH)'; fi \
		> .venv/constraints.txt
	@echo 'installing torch $(TORCH), then the packages in constraints.txt (minutes the first time)'
	@$(PIP) pip
	@if [ "$$(cat .venv/torch 2>/dev/null)" != '$(TORCH) $(INDEX)' ]; then \
		$(PIP) --force-reinstall $(if $(INDEX),--extra-index-url '$(INDEX)') 'torch==$(TORCH)'; \
		echo '$(TORCH) $(INDEX)' > .venv/torch; \
		printf '%s\n' 'TORCH ?= $(TORCH)' 'INDEX ?= $(INDEX)' > .venv/choice.mk; \
	fi
	@$(PIP) --group dev
	@$(PIP) --no-build-isolation --editable '.[cuda,train,otel]'
	@touch $@

.venv/bin/python:
	@found=; seen=; \
	for python in $(or $(PYTHON),python3.12 python3.11 python3 python); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		case $$version in 3.11|3.12) found=$$python; break;; *) seen="$$seen $$python is $$version.";; esac; \
	done; \
	if [ -z "$$found" ]; then \
		echo "LoRAMux needs Python 3.11 or 3.12, and neither is here.$$seen" >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	echo "creating .venv with $$found ($$version)"; \
	"$$found" -m venv .venv || { rm -rf .venv; \
		echo "$$found could not create .venv; on Debian and Ubuntu install python$$version-venv" >&2; exit 1; }
