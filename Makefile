# make run        run the notebook from top to bottom, into build/
# make test       run the tests but for the slow ones
# make test-all   run all tests
# All make the environment .venv first. Choose another Python by e.g. `make run PYTHON=python3.12`, and let two
# processes share the tests by e.g. `make test-all JOBS=2`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TOGETHER = $(if $(JOBS),-n $(JOBS) --dist worksteal)

.PHONY: run test test-all test-faults test-versions test-oldest test-colab test-newest bench measure notebook pictures

run: $(VENV)/run
	$(BIN)/python -m tools.run_notebook

test: $(VENV)/test
	$(BIN)/python -m pytest $(TOGETHER)

test-all: $(VENV)/test
	$(BIN)/python -m pytest --full $(TOGETHER)

# All that can go wrong, e.g. each byte of a checkpoint damaged.
test-faults: $(VENV)/test
	$(BIN)/python -m pytest --full -m fault $(TOGETHER)

# All tests with the oldest versions that requirements.txt allows, with those of Colab in August 2026, and with
# the newest, each with another Python in a new environment in build/. `make -k test-versions` tries all three
# whatever fails.
PYTHON311 ?= python3.11
PYTHON312 ?= python3.12
PYTHON313 ?= python3.13
COLAB = tensorflow==2.20.* keras==3.13.2 numpy==2.1.3 matplotlib==3.10.0 scikit-learn==1.6.1
OLDEST = $(shell sed -n 's/^\([a-z-]*\)>=\([0-9.]*\).*/\1==\2/p' requirements.txt tests/requirements.txt)

test-versions: test-oldest test-colab test-newest

test-oldest: WITH = PYTHON=$(PYTHON311) VERSIONS="$(OLDEST)"
test-colab: WITH = PYTHON=$(PYTHON313) VERSIONS="$(COLAB)"
test-newest: WITH = PYTHON=$(PYTHON312)
test-oldest test-colab test-newest: test-%:
	rm -rf build/$*
	$(MAKE) test-all VENV=build/$* $(WITH)

# Measure the speed beside other programs. Nothing else should run on the machine.
bench: $(VENV)/run
	$(BIN)/python -m benchmarks.bench

# Train and measure all that isn't measured with this version on this kind of processor, for hours. When it is
# broken off, the same command goes on. Nothing else should run on the machine.
measure: $(VENV)/run
	$(BIN)/python -m benchmarks.accuracy --missing
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.tables
	$(MAKE) pictures

# Run the notebook, keep the outputs in the notebook itself, and write its and the README's figures anew.
notebook: $(VENV)/run
	$(BIN)/python -m tools.run_notebook --in-place
	$(BIN)/python -m benchmarks.tables
	rm -f benchmarks/exercise-wider.ipynb
	$(BIN)/python -m tools.exercises wider --folder benchmarks

# Draw the chart at the top of the notebook, from the network in the last checkpoint, and the pictures of
# the exercise on better networks, and save the README's pictures from the outputs of the notebook.
pictures: $(VENV)/run
	$(BIN)/python -m tools.draw_flowchart
	$(BIN)/python -m benchmarks.draw_better_networks
	$(BIN)/python -m tools.save_results

$(VENV)/run: requirements.txt $(VENV)/made
	$(BIN)/python -m pip install -r requirements.txt $(VERSIONS)
	touch $@

$(VENV)/test: tests/requirements.txt $(VENV)/run
	$(BIN)/python -m pip install -r tests/requirements.txt $(VERSIONS)
	touch $@

# An environment without pip was broken off while it was made, so it is made again.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	{ echo "Python 3.11, 3.12 or 3.13 is needed. Say which by e.g. 'make PYTHON=python3.12'."; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	{ echo "The environment $(VENV) could not be made. On Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }
	touch $@
