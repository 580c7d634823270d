# `make` lists the targets. Needs a POSIX sh, make, and Python 3.11 or newer.

.POSIX:
.SUFFIXES:
.NOTPARALLEL:
.PHONY: help demo test coverage venv lint style bench clean ngspice pyspice
SHELL = /bin/sh

VENV = .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip --disable-pip-version-check -q
# Written after an installation; older than pyproject.toml means install again.
INSTALLED = $(VENV)/.installed
INSTALLED_DEV = $(VENV)/.installed-dev
# An interpreter to use instead of the first suitable one: make venv PYTHON=python3.12
PYTHON =

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

demo: $(INSTALLED) ## install what is needed and train the demonstration network
	@$(VENV)/bin/circuitsim train runs/demo.yaml

test: $(INSTALLED_DEV) style ngspice pyspice ## style, types, architecture and all tests
	@echo "tests"
	@$(PY) -m pytest -n 2 --dist loadfile --benchmark-disable

coverage: $(INSTALLED_DEV) ## all tests once more, with what they cover: half as long again
	@$(PY) -m pytest -n 2 --dist loadfile --benchmark-disable --cov --cov-report=term:skip-covered

venv: $(INSTALLED_DEV) ## make the development environment in .venv
	@echo "the environment is ready: . $(VENV)/bin/activate"

lint: style ## style, types and import contracts, without the tests
	@echo "import contracts"
	@$(PY) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True, no_cache=True))'

bench: $(INSTALLED_DEV) ## run the benchmarks
	@$(PY) -m pytest --benchmark-only

clean: ## remove caches and build outputs (not .venv, not the records under runs)
	@rm -rf build dist htmlcov .coverage .coverage.* .pytest_cache .hypothesis .ruff_cache .mypy_cache \
		.import_linter_cache .benchmarks
	@find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Parts of the above ---------------------------------------------------------------------------

style: $(INSTALLED_DEV)
	@echo "style"
	@$(PY) -m ruff check -q
	@$(PY) -m ruff format -q --check
	@echo "types"
	@$(PY) -m mypy --no-error-summary

# python3.x may exist and still not run (pyenv), or come without venv (Debian): try before choosing.
$(PY):
	@found=; old=; \
	for name in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		"$$name" -c '' >/dev/null 2>&1 || continue; \
		if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
			if "$$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$name; break; fi; \
			old="$$name has no venv module: on Debian and Ubuntu, install the package python3-venv."; \
		elif [ -z "$$old" ]; then old="$$name is $$("$$name" -V 2>&1)."; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No usable Python 3.11 or newer was found. $$old" >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python venv" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$found" -V)"; \
	"$$found" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(INSTALLED): pyproject.toml $(PY)
	@echo "installing circuitsim into $(VENV) (a minute or two the first time)"
	@$(PIP) install -e . || $(PY) -P -c '$(USABLE)'
	@touch $@

$(INSTALLED_DEV): pyproject.toml $(PY)
	@echo "installing circuitsim and its development tools into $(VENV) (a minute or two the first time)"
	@$(PIP) install -e '.[dev]' || $(PY) -P -c '$(USABLE_DEV)'
	@touch $(INSTALLED) $@

# Without a network, what is installed already will do, if it is complete.
USABLE = import circuitsim, h5py, matplotlib, numba, numpy, pooch, pydantic, rich, sklearn, typer, yaml; \
	print("The installation failed (see above); going on with what is in $(VENV) already.")
USABLE_DEV = import hypothesis, importlinter, mypy, pytest, pyvisa, pyvisa_py, pytest_benchmark, pytest_cov, ruff, scipy, xdist; $(USABLE)

ngspice:
	@library() { PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q libngspice; }; \
	command -v ngspice >/dev/null 2>&1 && library && exit 0; \
	as_root=no; \
	if command -v apt-get >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ]; then as_root=; \
		elif sudo -n true >/dev/null 2>&1; then as_root="sudo -n"; fi; \
	fi; \
	if [ "$$as_root" != no ]; then \
		echo "installing ngspice for the SPICE cross-checks"; \
		{ $$as_root apt-get update -qq && \
		  $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ngspice libngspice0-dev; \
		} >/dev/null 2>&1 </dev/null || :; \
	fi; \
	if ! command -v ngspice >/dev/null 2>&1; then \
		echo "ngspice is not installed and cannot be installed here: the SPICE cross-checks will be skipped" \
			"(install the package ngspice to run them)"; \
	elif ! library; then \
		echo "libngspice was not found and cannot be installed here: the cross-checks through PySpice's shared" \
			"library will be skipped (install the package libngspice0-dev to run them)"; \
	fi

pyspice: $(INSTALLED_DEV)
	@$(PY) -c 'import sys, importlib.util as u; sys.exit(u.find_spec("PySpice") is None)' || \
	{ echo "installing PySpice (optional, GPLv3) for the SPICE cross-checks"; \
	  $(PIP) install --retries 1 -e '.[spice]' >/dev/null 2>&1; } || \
	echo "PySpice cannot be installed here: the tests that need it will be skipped"
