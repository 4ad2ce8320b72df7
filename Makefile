# one environment for every target and every clone; VENV= points elsewhere
VENV ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mmrednet/venv
PYTHON := $(VENV)/bin/python
# processes of the test suite, of one thread each
TEST_JOBS ?= $(shell nproc)
export PYTHONPATH := $(CURDIR):$(PYTHONPATH)
# ninja, which compiles the kernels, is one of the environment's programs
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: help env ext bench sanitize demo demo-seg demo-panoptic demo-conv dist docs test test-dist test-matrix lint

help:
	@echo 'make demo       train, evaluate and draw a small RedNet detector'
	@echo 'make demo-seg   train, evaluate and draw a small SegNeXt on synthetic streets'
	@echo 'make demo-panoptic  train, evaluate and draw a small Axial-DeepLab'
	@echo 'make demo-conv  the same with 3x3 convolutions in place of involution'
	@echo 'make bench      time kernels and backbones on this CPU; MARKDOWN=FILE keeps the tables'
	@echo 'make sanitize   the tests of the CPU kernels under sanitizers'
	@echo 'make test-matrix  tests with other versions of torch and of the stack'
	@echo 'make docs       the documentation site, in build/site'
	@echo 'make test       the test suite'
	@echo 'make dist       the wheel with the compiled kernels, and the sdist'
	@echo 'make test-dist  the tests of the wheel and sdist in fresh environments'
	@echo 'make lint       ruff, clang-format and mypy'
	@echo 'make env        only the environment, at VENV=$(VENV)'

env:
	@requirements/install.sh $(VENV)

# the native CPU kernels of this clone: compiled where a source is newer
ext: env
	@$(PYTHON) setup.py build_ext --inplace 2>&1 | grep '^mmrednet:' || true

demo: ext
	@$(PYTHON) tools/demo.py

demo-seg: ext
	@$(PYTHON) tools/demo.py --config configs/streets/segnext_mscan-narrow_streets.py

demo-panoptic: ext
	@$(PYTHON) tools/demo.py --config configs/shapes/panoptic-deeplab_axial26-narrow_shapes.py

# under 15 minutes on two cores: each contest ends within about a minute
BENCH_BACKBONES = $(PYTHON) tools/benchmarks/benchmark_backbone.py --budget 60 $(if $(MARKDOWN),--markdown $(MARKDOWN))

bench: ext
	@$(PYTHON) tools/benchmarks/benchmark_ops.py
	@$(PYTHON) tools/benchmarks/benchmark_ops.py --input 800x1344 --layout channels-last --rounds 3
	@$(BENCH_BACKBONES) --precision float32 bfloat16 --rounds 7
	@$(BENCH_BACKBONES) --shape 800 1344 --layouts channels-last --precision float32 bfloat16 --rounds 3
	@$(BENCH_BACKBONES) --shape 224 224 --batch 2 --train --precision float32 autocast --rounds 7
	@$(BENCH_BACKBONES) --batch 2 --memory
	@$(BENCH_BACKBONES) --shape 224 224 --rounds 7 --backbones 'mmseg MSCAN-small' MSCAN-small VAN-b1
	@$(BENCH_BACKBONES) --shape 224 224 --rounds 7 --backbones 'mmseg MSCAN-tiny' MSCAN-tiny

# the kernels' tests under the address and undefined-behaviour sanitizers, in a copy; one allocates too much for them, and
# what torch compiles is not the kernels
SANITIZED = tests/test_native*.py tests/test_ops.py tests/test_fused.py tests/test_depthwise.py tests/test_vector_attention.py \
    tests/test_detection_ops.py

sanitize: env
	@rm -rf build/sanitize && mkdir -p build/sanitize && cp -r setup.py pyproject.toml mmrednet tests build/sanitize
	@rm -f build/sanitize/mmrednet/ops/_C*
	@cd build/sanitize && CFLAGS='-g -fno-omit-frame-pointer -fsanitize=address,undefined' \
	    LDFLAGS=-fsanitize=address,undefined $(PYTHON) setup.py build_ext --inplace 2>&1 | grep '^mmrednet:' || true
	@ls build/sanitize/mmrednet/ops/_C*.so > /dev/null || { echo 'make sanitize: the kernels were not built' >&2; exit 1; }
	@cd build/sanitize && PYTHONPATH=$$PWD ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    $(PYTHON) -m pytest $(SANITIZED) -k 'not 32_bits and not compile'

demo-conv: ext
	@$(PYTHON) tools/demo.py --config configs/shapes/faster-rcnn_r26_fpn_shapes.py

# not --quiet, which drops the warnings that --strict counts; mkdocs-material announces another program unless told not to
docs: env
	@mkdir -p build
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict > build/docs.log 2>&1 || { cat build/docs.log >&2; exit 1; }
	@echo 'build/site/index.html; its search needs a server: python -m http.server -d build/site'

test: ext
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests -n $(TEST_JOBS) --dist worksteal

# in dist/; the wheel has the kernels of this clone, compiled for the torch of the environment
dist: ext
	@rm -rf dist build/lib build/lib.* build/bdist.*
	@$(PYTHON) setup.py --quiet sdist bdist_wheel 2>&1 | grep '^mmrednet:' || true
	@ls dist/*.whl dist/*.tar.gz

test-dist: dist
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/test_dist.py -m dist

# in further environments beside VENV; MATRIX= chooses among oldest, newest and original, TESTS= the tests
test-matrix:
	@requirements/matrix.sh $(VENV) $(MATRIX)

lint: env
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/clang-format --dry-run -Werror mmrednet/*/csrc/*.h mmrednet/*/csrc/*.cpp tests/csrc/*.cpp
	@$(PYTHON) -m mypy
