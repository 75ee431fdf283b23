# The project's commands. `make help` lists them.
#
# `make demo` and `make test` set up what they need in .venv. With PYTHON=<interpreter that has PyTorch> they use
# that interpreter as it is, with the package built in place, and need no network.

CC ?= cc
CFLAGS ?= -O2
WERROR ?=
BASE_PYTHON ?= python3
PYTHON ?=
RESULTS ?= results
# Where the C objects and test programs go, and what runs the test programs (an emulator, where needed).
BUILD ?= build
RUNNER ?=

FLAGS := -std=gnu11 -fPIC -fvisibility=hidden -fexceptions -Wall -Wextra -I.
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
LIBS := -Wl,--as-needed -ldl -lpthread -lm

LIBRARY_SOURCES := $(sort $(wildcard generator/*.c cache/*.c runtime/*.c))
BINDING_SOURCES := $(sort $(wildcard python/*.c))
TEST_SOURCES := $(sort $(wildcard tests/c/test_*.c))
TESTS := $(TEST_SOURCES:tests/c/%.c=%)
C_FILES := $(filter-out third_party/%, $(sort $(wildcard \
  generator/*.[ch] cache/*.[ch] runtime/*.[ch] python/*.[ch] examples/*.c tests/c/*.[ch] templates/common/*.h)))
CXX_FILES := $(sort $(wildcard tests/emulator/native/*.h tests/emulator/native/*.cpp))
DIGEST_FILES := $(sort $(wildcard generator/*.c generator/*.h templates/common/*))
DIGEST := $(shell cat $(DIGEST_FILES) | sha256sum | cut -c 1-16)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DEFINES := -DFA_VERSION='"$(VERSION)"' -DFA_SOURCE_DIGEST='"$(DIGEST)"'

PACKAGE_LIBRARY := python/flash_attention/_flash_attention.so
VENV := .venv
ifeq ($(PYTHON),)
  PY := $(CURDIR)/$(VENV)/bin/python
  TOOLS := $(CURDIR)/$(VENV)/bin/
  DEMO_READY := $(VENV)/.demo
  TEST_READY := $(VENV)/.test
else
  PY := $(PYTHON)
  TOOLS :=
  DEMO_READY :=
  TEST_READY :=
endif
RUN := PYTHONPATH="$(CURDIR)/python$${PYTHONPATH:+:$$PYTHONPATH}" $(PY)

.PHONY: all demo test lint format check-c check-sanitized check-neon check-oldest check-python bench clean help
.DELETE_ON_ERROR:

all: $(BUILD)/libflash_attention.so $(BUILD)/plain_c ## the C library and the plain C example, without Python (default)

demo: $(PACKAGE_LIBRARY) $(DEMO_READY) ## train a small language model with this attention and with PyTorch's
	$(RUN) examples/demo.py --output $(RESULTS) $(if $(TEXT),--text "$(TEXT)") $(ARGS)

test: $(PACKAGE_LIBRARY) $(TEST_READY) ## everything that CI checks: linters, C tests (also sanitized), pytest
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory check-c WERROR=-Werror
	$(MAKE) --no-print-directory check-sanitized WERROR=-Werror
	$(MAKE) --no-print-directory check-neon
	$(MAKE) --no-print-directory check-python

TIDY_FLAGS := -std=gnu11 -I. -DFA_VERSION=\"0\" -DFA_SOURCE_DIGEST=\"0\" -DFA_TEMPLATE_DIR=\"templates\"
lint: $(TEST_READY) ## clang-format, clang-tidy, ruff and mypy
	$(TOOLS)clang-format --dry-run -Werror $(C_FILES) $(CXX_FILES)
	@echo "$(TOOLS)clang-tidy of $(words $(filter %.c, $(C_FILES))) files"
	@printf '%s\n' $(filter %.c, $(C_FILES)) | xargs -P 2 -n 1 sh -c \
	  'found=$$("$(TOOLS)clang-tidy" --quiet "$$1" -- $(TIDY_FLAGS) 2>&1) || { echo "$$found"; exit 1; }' lint
	$(TOOLS)ruff check .
	$(TOOLS)ruff format --check .
	$(TOOLS)mypy

format: $(TEST_READY) ## rewrite every file as the linters want it
	$(TOOLS)clang-format -i $(C_FILES) $(CXX_FILES)
	$(TOOLS)ruff check --fix .
	$(TOOLS)ruff format .

# Two processes, where pytest-xdist is installed: many tests wait for processes of their own. Who is done takes over
# tests of the other.
WORKERS = $(shell $(PY) -c 'import xdist' 2>/dev/null && echo --numprocesses 2 --dist worksteal)
check-python: $(PACKAGE_LIBRARY) $(TEST_READY) ## pytest; ARGS="-k name" selects
	$(RUN) -m pytest $(WORKERS) $(ARGS)

bench: $(PACKAGE_LIBRARY) $(DEMO_READY) ## measure against PyTorch on this machine: table, CSV, PNG
	$(RUN) -m flash_attention bench --output $(RESULTS) $(ARGS)

OLDEST := .venv-oldest
check-oldest: $(PACKAGE_LIBRARY) $(OLDEST)/.ready ## the tests marked `oldest` on the oldest PyTorch that is supported
	PYTHONPATH="$(CURDIR)/python" $(OLDEST)/bin/python -m pytest -m oldest $(ARGS)

check-c: $(TESTS:%=$(BUILD)/tests/%.passed) ## the C tests
	@echo "$(words $(TESTS)) C test programs passed ($(BUILD))"

# Without test_kernels: generated kernels are compiled as ever, so nothing new would be seen.
check-sanitized: ## the C tests under AddressSanitizer and UBSan
	$(MAKE) --no-print-directory check-c BUILD=build/sanitized CFLAGS='$(SANITIZE)' \
	  TESTS='$(filter-out test_kernels, $(TESTS))'

# -O1, because GCC 12 for aarch64 crashes on a loop of the example at -O2.
NEON_CC := aarch64-linux-gnu-gcc
NEON_RUNNER := qemu-aarch64 -L /usr/aarch64-linux-gnu
NEON_BUILD := BUILD=build/neon CC=$(NEON_CC) CFLAGS=-O1
NEON_TESTS := test_kernels

check-neon: ## kernels for aarch64 in an emulator, where it and a cross compiler are installed
	@if command -v $(NEON_CC) >/dev/null && command -v $(firstword $(NEON_RUNNER)) >/dev/null; then \
	  set -e; unset FLASH_ATTENTION_CPU_ISA; \
	  $(MAKE) --no-print-directory check-c $(NEON_BUILD) RUNNER='$(NEON_RUNNER)' TESTS='$(NEON_TESTS)'; \
	  $(MAKE) --no-print-directory build/neon/plain_c $(NEON_BUILD); \
	  FLASH_ATTENTION_AUTOTUNE=0 FLASH_ATTENTION_CACHE_DIR=$(CURDIR)/build/neon/cache CC=$(NEON_CC) \
	    $(NEON_RUNNER) build/neon/plain_c; \
	else \
	  echo "neon not tested: needs $(NEON_CC) and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu, qemu-user)"; \
	fi

clean: ## remove what was built; the virtual environment stays
	rm -rf build dist $(RESULTS) python/*.egg-info $(PACKAGE_LIBRARY)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3 takes an interpreter that has PyTorch instead of .venv; TEXT=file is the demo's text."

# --- libraries ---------------------------------------------------------------------------------------------------

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(WERROR) $(CFLAGS) $(DEFINES) -DFA_TEMPLATE_DIR='"$(CURDIR)/templates"' -MMD -MP -c $< -o $@

# The digest is compiled in: whatever changes it rebuilds the objects.
$(LIBRARY_SOURCES:%.c=$(BUILD)/obj/%.o): $(DIGEST_FILES)

$(BUILD)/libflash_attention.so: $(LIBRARY_SOURCES:%.c=$(BUILD)/obj/%.o)
	$(CC) $(CFLAGS) -shared $^ -o $@ $(LIBS)

$(BUILD)/plain_c: examples/plain_c.c $(BUILD)/libflash_attention.so
	$(CC) $(FLAGS) $(CFLAGS) $< -o $@ -L$(BUILD) -lflash_attention -Wl,-rpath,'$$ORIGIN' $(LIBS)

# Finds its templates beside itself, not where it was built. Moved into place: a process that has the old one loaded
# keeps it.
$(PACKAGE_LIBRARY): $(LIBRARY_SOURCES) $(BINDING_SOURCES) $(DIGEST_FILES) $(wildcard cache/*.h runtime/*.h python/*.h)
	$(CC) $(FLAGS) $(CFLAGS) $(DEFINES) -shared $(filter %.c, $^) -o $@.new $(LIBS)
	mv $@.new $@

# --- C tests: each file is a program that links the whole library -------------------------------------------------

$(BUILD)/tests/%: $(BUILD)/obj/tests/c/%.o $(LIBRARY_SOURCES:%.c=$(BUILD)/obj/%.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $^ -o $@ $(LIBS)

# Stand in for the CUDA driver, so that the CUDA runtime is tested where there is no GPU, and for NVRTC.
$(BUILD)/tests/libfake_cuda.so: $(BUILD)/obj/tests/c/fake_cuda.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -shared $^ -o $@ $(LIBS)
$(filter $(BUILD)/tests/test_cuda%, $(TESTS:%=$(BUILD)/tests/%.passed)): $(BUILD)/tests/libfake_cuda.so
$(BUILD)/tests/libnvrtc.so: $(BUILD)/obj/tests/c/fake_nvrtc.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -shared $^ -o $@ $(LIBS)
$(BUILD)/tests/test_nvrtc.passed: $(BUILD)/tests/libnvrtc.so

$(BUILD)/tests/%.passed: $(BUILD)/tests/%
	$(RUNNER) $<
	@touch $@

# Compiled two at a time; run one after another, as some of them measure time.
$(TESTS:%=$(BUILD)/tests/%.passed): | programs
.PHONY: programs
programs:
	@$(MAKE) --no-print-directory -j 2 $(TESTS:%=$(BUILD)/tests/%)

.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# --- the virtual environment --------------------------------------------------------------------------------------

$(VENV)/bin/python:
	$(BASE_PYTHON) -m venv $(VENV)

# --no-compile: of PyTorch's thousands of modules only those that are imported are compiled, then.
PIP_INSTALL := -m pip install --no-compile
$(VENV)/.demo: pyproject.toml setup.py | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[progress,plot]'
	@touch $@

$(VENV)/.test: pyproject.toml setup.py | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[progress,plot,test,lint]'
	@touch $(VENV)/.demo $@

# The oldest PyTorch that is supported, in an environment of its own.
$(OLDEST)/.ready:
	$(BASE_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP_INSTALL) 'torch==2.10.*' numpy 'pytest>=8'
	@touch $@
