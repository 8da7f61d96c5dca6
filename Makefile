PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
OLDEST := .venv-oldest

.PHONY: demo test test-all test-oldest lint bench fidelity registers zoo learning evidence evidence-quick decisions clean

demo: $(INSTALLED)
	$(BIN)/python examples/train_language_model.py

# Two processes of one thread each: a machine with 2 cores is enough. Tests of threads ask for them.
# `make test-oldest TEST_FLAGS=` runs them one by one.
TEST_FLAGS := --numprocesses 2 --dist loadfile
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_FLAGS)

# What the tests cover is counted by Python's own monitoring where there is one (3.12): a tracer takes half as long again.
CORE = $$($(BIN)/python -c "import sys; print('sysmon' if sys.version_info >= (3, 12) else 'ctrace')")

test: $(INSTALLED)
	COVERAGE_CORE=$(CORE) $(PYTEST) -m "not slow" --cov --cov-fail-under=90

test-all: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[examples]'
	$(PYTEST)

# The quick tests on the oldest torch that pyproject.toml admits, in a virtual environment of its own. Where pip finds no
# CPU build of that release, installing takes several GB.
test-oldest: $(OLDEST)/installed
	$(PYTEST:$(BIN)/%=$(OLDEST)/bin/%) -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy examples benchmarks

bench: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[bench,rivals]'
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/matrix_step.py
	$(BIN)/python benchmarks/optimal_levels.py

# The tables in docs/: averages over 2,000 steps (minutes), and learning on three workloads (about an hour on 2 cores).
fidelity: $(INSTALLED)
	$(BIN)/python benchmarks/ema_fidelity.py

# Registers and spills of the Triton kernels for four GPUs, none of which is needed (a minute).
registers: $(INSTALLED)
	$(BIN)/python benchmarks/registers.py

# Public optimizers, with and without a budget (some 20 minutes on 2 cores); goes on where it was stopped.
zoo: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[zoo]'
	$(BIN)/python benchmarks/zoo/run.py
	$(BIN)/python benchmarks/zoo/language.py

learning: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/learning.py

# Whole trainings, ours beside rivals: about ten hours on 2 cores, and may be stopped at any time. The quick one trains one
# workload (under 20 minutes).
evidence: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[evidence]'
	$(BIN)/python benchmarks/evidence/run.py

evidence-quick: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[evidence]'
	$(BIN)/python benchmarks/evidence/run.py --quick

# Predicted against true damage, plans against uniform configurations, and what planning costs (about two hours on 2 cores).
decisions: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/risk.py
	$(BIN)/python benchmarks/horizon.py
	$(BIN)/python benchmarks/decisions.py
	$(BIN)/python benchmarks/dropping.py
	$(BIN)/python benchmarks/configurator_cost.py
	$(BIN)/python benchmarks/time_model.py

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis demo.png demo_frontier.png
	find . -name __pycache__ -prune -exec rm -rf {} +

# The links show mypy passes/ and kernels/ under the only names they are imported by.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo,test,dev]'
	mkdir -p $(VENV)/mypy/baoc_compile
	ln -sfn ../../../passes ../../../kernels $(VENV)/mypy/baoc_compile
	touch $@

# Other releases as in constraints.txt, but for those that torch itself asks for; the interpreter of its Triton (3.6) fails
# on NumPy 2.4.
$(OLDEST)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(torch|triton|setuptools|numpy)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --constraint $(OLDEST)/constraints.txt --editable '.[demo,test]' "numpy<2.4" \
		"torch==$$(sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml).*"
	touch $@
