# make demo   quantize two small models with the shipped photographs     make test          the tests
# make test-compat   the same tests with transformers 4.57.6             make test-oracle   against the vendor's library
# make demo-ocr   PP-OCR's detection, recognition, orientation and table models in int8, on their real weights
# make test-ocr   the tests of that
# make docs   the pages as a site, in build/site; a broken link is an error
# make lint   layout, lint and types of the code, nothing is changed
# make accuracy   a real language model's perplexity in int8, by calibration and method     make accuracy-short   a few rows, with bounds
# make bench   time and memory against msmodelslim, llm-compressor and the machine's limits: 45 minutes     make bench-short   a cut-down version
PYTHON ?= python3
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.11") if sys.version_info < (3, 10) else None'

.PHONY: demo demo-ocr test test-ocr test-compat test-oracle docs lint accuracy accuracy-short bench bench-short clean

# An environment is made once for each version of its requirements; torch first, so that nothing else chooses its build.
define environment
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(1)/bin/pip install --quiet --disable-pip-version-check $(2)
	@touch $(1)/.made
endef

.venv/.made: requirements.txt requirements-dev.txt
	$(call environment,.venv,-r requirements-dev.txt)

.venv-compat/.made: requirements-dev.txt requirements.txt requirements-compat.txt
	$(call environment,.venv-compat,-r requirements-compat.txt)

.venv-oracle/.made: requirements-oracle.txt
	$(call environment,.venv-oracle,-r requirements-oracle.txt)

.venv-accuracy/.made: requirements-accuracy.txt requirements.txt
	$(call environment,.venv-accuracy,-r requirements-accuracy.txt)

.venv-llmc/.made: requirements-llmc.txt
	$(call environment,.venv-llmc,-r requirements-llmc.txt)

.venv-ocr/.made: requirements-ocr.txt requirements-dev.txt requirements.txt
	$(call environment,.venv-ocr,-r requirements-ocr.txt)

.venv-docs/.made: requirements-docs.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch .venv-docs/.made

demo: .venv/.made
	.venv/bin/python examples/demo.py

demo-ocr: .venv-ocr/.made
	.venv-ocr/bin/python examples/ocr/demo.py

test-ocr: .venv-ocr/.made
	.venv-ocr/bin/python -m pytest -q tests/ocr

# Files side by side, one thread each: half the time on two cores.
IN_PARALLEL = -n auto --maxprocesses 4 --dist loadfile

test: .venv/.made
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q $(IN_PARALLEL)

test-compat: .venv-compat/.made
	OMP_NUM_THREADS=1 .venv-compat/bin/python -m pytest -q $(IN_PARALLEL)

test-oracle: .venv-oracle/.made .venv/.made
	QUANT_PYTHON=.venv/bin/python .venv-oracle/bin/python -m pytest -q tests/oracle

docs: .venv-docs/.made
	rm -rf build/pages
	mkdir -p build/pages
	tar cf - *.md docs/*.md docs/*.png bench/NOTES.md calibImages/SOURCES.md examples/README.md | tar xf - -C build/pages
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

lint: .venv/.made
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy quant

accuracy: .venv-accuracy/.made
	.venv-accuracy/bin/python bench/accuracy/accuracy.py

accuracy-short: .venv-accuracy/.made
	.venv-accuracy/bin/python bench/accuracy/accuracy.py --short

bench: .venv/.made .venv-oracle/.made .venv-llmc/.made
	.venv/bin/python bench/bench.py

bench-short: .venv/.made .venv-oracle/.made .venv-llmc/.made
	.venv/bin/python bench/bench.py --short

clean:
	rm -rf .venv .venv-compat .venv-oracle .venv-accuracy .venv-ocr .venv-llmc .venv-docs build/pages build/site out
