# make run    run the notebook from top to bottom, into build/
# make test   run the tests
# All make the environment .venv first. Choose another Python by e.g. `make run PYTHON=python3.12`.

PYTHON ?= python3
BIN = .venv/bin

.PHONY: run test test-faults bench notebook pictures

run: .venv/run
	$(BIN)/python -m tools.run_notebook

test: .venv/test
	$(BIN)/python -m pytest

# All that can go wrong, e.g. each byte of a checkpoint damaged: about 20 minutes.
test-faults: .venv/test
	$(BIN)/python -m pytest --full

# Measure the speed beside other programs. Nothing else should run on the machine.
bench: .venv/run
	$(BIN)/python -m benchmarks.bench

# Run the notebook and keep the outputs in the notebook itself.
notebook: .venv/run
	$(BIN)/python -m tools.run_notebook --in-place

# Draw the chart at the top of the notebook, from the network in the last checkpoint, and save the
# README's picture from the outputs of the notebook.
pictures: .venv/run
	$(BIN)/python -m tools.draw_flowchart
	$(BIN)/python -m tools.save_results

.venv/run: requirements.txt .venv/made
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

.venv/test: tests/requirements.txt .venv/run
	$(BIN)/python -m pip install -r tests/requirements.txt
	touch $@

# An environment without pip was broken off while it was made, so it is made again.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	{ echo "Python 3.11, 3.12 or 3.13 is needed. Say which by e.g. 'make PYTHON=python3.12'."; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || \
	{ echo "The environment .venv could not be made. On Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }
	touch $@
