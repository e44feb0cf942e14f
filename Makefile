# `make` alone lists what there is. Python 3.10 to 3.12; another one: make PYTHON=/path/to/python3.12 demo

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
# What `make test` installs beside the package. EXTRAS=dev leaves out torch; tests that need it are skipped then.
EXTRAS ?= train,features,dev
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo "$$p" && break; done)

# Where install-service puts units, and the command that they run.
DESTDIR ?=
PREFIX ?= /usr/local
MASKLINE ?= /opt/maskline/bin/maskline

DIST ?= dist
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check

.PHONY: help demo test lint types wheel install-service clean distclean

help:
	@echo "make demo             install into $(VENV), then run the demonstration line"
	@echo "make test             run every test      (TESTS=tests/edge for a part, EXTRAS=dev without torch)"
	@echo "make lint types       ruff and mypy"
	@echo "make wheel            build the wheel into $(DIST)/"
	@echo "make install-service  install the systemd units (DESTDIR, PREFIX, MASKLINE=the command they run)"
	@echo "make clean distclean  remove what was built; the environment as well"

demo: $(VENV)/.installed
	@$(BIN)/maskline demo $(DEMO)

test: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/python -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/mypy

wheel: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/python -m hatchling build -t wheel -d $(DIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 to 3.12 with venv on the PATH (tried python3, python3.12," \
		"python3.11, python3.10). Install one (Debian, Ubuntu: apt install python3-venv), or name one:" \
		"make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@echo "making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)

# Editable: the sources of this checkout run as they are; only a change of pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing maskline into $(VENV), about 350 MB with OpenVINO"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-$(EXTRAS): pyproject.toml | $(BIN)/python
	@echo "installing maskline[$(EXTRAS)] into $(VENV)"
	@$(PIP) install --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

# For packagers with DESTDIR; without it the user, the folders and the units are made known to this machine as well.
install-service:
	@install -d $(addprefix $(DESTDIR)$(PREFIX)/lib/,systemd/system sysusers.d tmpfiles.d)
	@for unit in maskline@.service maskline-actuate@.service; do \
		sed 's|^ExecStart=[^ ]*|ExecStart=$(MASKLINE)|' "systemd/$$unit" \
			> "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit"; \
		chmod 644 "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit"; done
	@install -m 644 systemd/sysusers.d/maskline.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/maskline.conf
	@install -m 644 systemd/tmpfiles.d/maskline.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/maskline.conf
	@echo "installed maskline@.service, maskline-actuate@.service, their sysusers.d and tmpfiles.d under" \
		"$(DESTDIR)$(PREFIX)/lib"
	@test -n "$(DESTDIR)" || { systemd-sysusers maskline.conf; systemd-tmpfiles --create maskline.conf; \
		systemctl daemon-reload; }
	@test -n "$(DESTDIR)" -o -x "$(MASKLINE)" || echo "note: $(MASKLINE) is not there yet;" \
		"python3 -m venv /opt/maskline && /opt/maskline/bin/pip install . puts it there (MASKLINE=PATH for another one)"
	@test -n "$(DESTDIR)" || echo "next: put a recipe at /etc/maskline/NAME.toml, then systemctl enable --now maskline@NAME"

clean:
	@rm -rf $(DIST) build out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)
