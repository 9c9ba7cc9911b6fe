# Each goal makes .venv and installs what it needs by itself; only Python 3.11 or newer must be there.
PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint

demo: .venv/demo.stamp
	.venv/bin/bwm edit "push the red cube right" --num-candidates 8 --seed 0 --output out/demo

test: .venv/dev.stamp
	.venv/bin/python -m pytest

lint: .venv/dev.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable .
	touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[training,evaluation,scale,comfy,space,adapters,dev]'
	touch $@
