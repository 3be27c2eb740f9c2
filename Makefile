# Everything a newcomer or CI runs. Each target installs what it misses into .venv.
#
#   make serve   install, then serve ling-nano on 127.0.0.1:8000; with SANDBOX=1 it may run code, too
#   make check   lint, types, import rules
#   make test    the fast tests (under 10 minutes on two cores)
#   make base-install   the wheel without torch, alone in an empty environment, and what it must do
#   make fresh-machine  deploy/install.sh in a bare Debian made for it, as root

PYTHON ?= python3
VENV   ?= .venv
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?= ling-nano
# Where torch's CPU builds are published; pip passes over it if it cannot be reached.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
HAS_NVIDIA := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c GPU)

.PHONY: serve chat programs services test test-slow check base-install fresh-machine format bench-peers bench-report lock clean help evals

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lingflash needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# Without an NVIDIA GPU torch comes first, from the CPU index, so that nothing pulls in CUDA packages.
$(VENV)/.torch: $(BIN)/python constraints.txt
ifeq ($(filter-out 0,$(HAS_NVIDIA)),)
	$(PIP) install -qq --no-deps --retries 1 --extra-index-url $(TORCH_CPU_INDEX) -c constraints.txt torch
else
	$(PIP) install --quiet torch
endif
	@touch $@

$(VENV)/.engine: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet -c constraints.txt -e '.[$(if $(filter-out 0,$(HAS_NVIDIA)),cuda,engine)]'
ifeq ($(filter-out 0,$(HAS_NVIDIA)),)
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda and f"torch {torch.__version__} is a CUDA build, but this machine has no NVIDIA GPU: rm -rf $(VENV) and try again where the CPU index can be reached")'
endif
	@touch $@

$(VENV)/.dev: $(VENV)/.engine
	$(PIP) install --quiet -c constraints.txt -e '.[dev,plot]'
	@touch $@

# The clients that tests run against the server; LlamaIndex needs another openai, so another folder.
$(VENV)/.clients: $(VENV)/.dev
	$(PIP) install --quiet -c constraints.txt -e '.[clients]'
	@touch $@

$(VENV)-llama-index/.clients: tests/llama-index.txt
	$(PYTHON) -m venv $(VENV)-llama-index
	$(VENV)-llama-index/bin/python -m pip install --quiet --disable-pip-version-check -r tests/llama-index.txt
	@touch $@

CLIENTS := $(VENV)/.clients $(VENV)-llama-index/.clients
export LLAMA_INDEX_PYTHON = $(abspath $(VENV)-llama-index/bin/python)

# What `ling sandbox` runs code with.
$(VENV)/.kernel: $(VENV)/.engine
	$(PIP) install --quiet -c constraints.txt -e '.[kernel]'
	@touch $@

# Beside the server, and gone with it; root has to say whom it is to become.
SANDBOX_PORT ?= 8049
WITH_SANDBOX := $(if $(SANDBOX),--sandbox http://127.0.0.1:$(SANDBOX_PORT))

serve: $(VENV)/.engine $(if $(SANDBOX),$(VENV)/.kernel)
	$(if $(SANDBOX),$(BIN)/ling sandbox --port $(SANDBOX_PORT) $$(test "$$(id -u)" != 0 || echo --user nobody) & trap "kill $$!" EXIT;) \
	$(BIN)/ling serve $(MODEL) --host $(HOST) --port $(PORT) $(WITH_SANDBOX)

chat: $(VENV)/.engine
	$(BIN)/ling chat $(MODEL)

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# Debian's packages that tests run beside them, such as PostgreSQL, Redis and bubblewrap; where one is
# missing its tests skip.
services:
	tests/install-debian.sh

test: $(CLIENTS)
	$(BIN)/pytest -q -n 2 --dist loadfile

# The programs that test-slow runs against the server, one folder in the user's cache for each lock
# file of tests/programs/locks. The tests install what is missing by themselves.
export TORCH_CPU_INDEX
programs: $(VENV)/.dev
	tests/install-debian.sh
	$(BIN)/python tests/programs/program_install.py

# The packages that carry benchmarks' data and scorers, for `ling eval`, in the user's cache.
evals: $(VENV)/.engine
	$(BIN)/python -m lingflash.evals.environment

# What takes longer: real agents and libraries, more random schedules, a soak, long training checks.
test-slow: $(CLIENTS)
	$(BIN)/pytest -q -n 2 --dist load --maxschedchunk 1 -m slow

# The README's `pip install lingflash`: an environment that only this target fills.
BASE := build/base-install

base-install:
	rm -rf $(BASE)
	$(PYTHON) -m venv $(BASE)/venv
	$(BASE)/venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(BASE) .
	time $(BASE)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(BASE)/*.whl
	$(BASE)/venv/bin/python -I tests/base_install.py

fresh-machine:
	tests/fresh_machine.sh

format: $(VENV)/.dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

# mlx-lm, the peer of `ling bench throughput`, in an environment of its own.
bench-peers:
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2

bench-report: $(VENV)/.dev
	$(BIN)/ling bench report

# The exact versions that CI installs.
lock: $(VENV)/.clients
	$(PIP) freeze --exclude-editable --exclude pip --exclude setuptools | sed -E 's/^(torch==[0-9.]+)\+cpu/\1/' > constraints.txt

clean:
	rm -rf $(VENV) $(VENV)-llama-index build dist .pytest_cache .hypothesis .ruff_cache
